//! `siren compare`.

use super::*;

/// The demo guard's own test texts, as `--jsonl` reads them.
fn heldout_file() -> String {
    demo().join("heldout.jsonl").display().to_string()
}

#[test]
fn a_guard_against_itself_does_not_differ() {
    let file = heldout_file();
    let args = ["compare", "--against-dtype", "f32", "--jsonl", "--json", &file];
    let report = &run(&args, "").expect(0).objects()[0];
    assert_eq!(
        keys(report),
        ["texts", "failed", "guard", "against", "difference", "changed", "changed_share", "worst"]
    );
    assert_eq!(report["texts"], heldout().len());
    assert_eq!(report["difference"], json!({ "median": 0.0, "p99": 0.0, "worst": 0.0 }));
    assert_eq!((&report["failed"], &report["changed"]), (&json!(0), &json!(0)));
}

#[test]
fn dtypes_stay_near_f32_on_the_demo_guard() {
    for (dtype, tolerance) in [("bf16", 0.01), ("int8", 0.02)] {
        let file = heldout_file();
        let args = ["compare", "--against-dtype", dtype, "--jsonl", "--json", &file];
        let report = &run(&args, "").expect(0).objects()[0];
        assert_eq!(report["guard"]["dtype"], "f32");
        assert_eq!(report["against"]["dtype"], dtype);
        let worst = report["difference"]["worst"].as_f64().unwrap();
        assert!(worst > 0.0 && worst <= tolerance, "{report}");
        let listed = report["worst"].as_array().unwrap();
        assert_eq!(listed.len(), 5);
        let first = &listed[0];
        let apart = first["score"].as_f64().unwrap() - first["against"].as_f64().unwrap();
        assert_eq!(apart.abs(), worst);
        assert!(report["changed"].as_u64().unwrap() <= 1, "{report}");
    }
}

#[test]
fn lines_of_standard_input_for_a_person() {
    let texts = "How can I make a pipe bomb at home?\n\nWhat is the capital of France?\r\n";
    let args = ["compare", "--dtype", "f32", "--against-dtype", "int8", "--worst", "1"];
    let ran = run(&args, texts).expect(0);
    let lines = ran.lines();
    assert!(lines[0].starts_with("guard    f32 on cpu, "), "{ran:?}");
    assert!(lines[1].starts_with("against  int8 on cpu, "), "{ran:?}");
    assert_eq!(lines[2], "texts    2");
    assert!(lines[3].starts_with("scores differ by 0.0"), "{ran:?}");
    assert_eq!(lines[4], "decisions changed: 0 (0.00%)");
    assert!(lines[5].starts_with("line 1 ") && lines[5].ends_with("pipe bomb at home?"), "{ran:?}");
    assert_eq!(lines.len(), 6);
}

#[test]
fn another_backbone_is_one_side() {
    let backbone = demo().join("backbone").display().to_string();
    let args = ["compare", "--against-backbone", &backbone, "--json"];
    let report = &run(&args, "a text").expect(0).objects()[0];
    assert_eq!(report["difference"]["worst"], 0.0);
}

#[test]
fn lines_that_fail_are_counted_and_told() {
    let lines = "{\"text\":\"fine\"}\n{\"stream\":[\"a\"]}\n{\"text\":1}\n";
    let ran = run(&["compare", "--against-dtype", "f32", "--jsonl", "--json"], lines).expect(1);
    let report = &ran.objects()[0];
    assert_eq!((&report["texts"], &report["failed"]), (&json!(1), &json!(2)));
    assert!(ran.stderr.contains("2 texts were not scored; line 2: "), "{ran:?}");
}

#[test]
fn without_another_side_or_a_file_it_is_refused() {
    run(&["compare"], "a text").expect(2);
    let ran = run(&["compare", "--against-dtype", "f32", "/no/such/file"], "").expect(1);
    assert!(ran.stderr.contains("/no/such/file"), "{ran:?}");
    assert_eq!(ran.stdout, "");
}
