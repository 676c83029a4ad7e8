//! The report as an SVG: latency by tokens, throughput by batch, what a push costs.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::Report;
use super::measure::{Against, Pushed, Texts};

const PANEL: (u32, u32) = (420, 340);
const TITLE: u32 = 40;
/// They differ in brightness too.
const OURS: RGBColor = RGBColor(0, 92, 170);
const THEIRS: RGBColor = RGBColor(222, 120, 0);
const AGAIN: RGBColor = RGBColor(120, 120, 120);

/// A line of a panel.
struct Line {
    name: &'static str,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

struct Panel {
    title: String,
    x: &'static str,
    y: &'static str,
    lines: Vec<Line>,
    legend: SeriesLabelPosition,
}

/// The report's sections side by side; what was not measured has no panel.
pub fn draw(report: &Report) -> String {
    let panels = panels(report);
    let count = panels.len().max(1) as u32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (PANEL.0 * count, PANEL.1 + TITLE))
            .into_drawing_area();
        let drawn = area.fill(&WHITE).and_then(|()| {
            let name = report.info.model_dir.file_name().unwrap_or_default().to_string_lossy();
            let area = area.titled(&format!("{name}: {}", report.title()), ("sans-serif", 20))?;
            let areas = area.split_evenly((1, count as usize));
            areas.iter().zip(&panels).try_for_each(|(area, panel)| draw_panel(area, panel))
        });
        // Its errors are those of writing, and it writes to memory.
        drawn.and_then(|()| area.present()).expect("a string can be written");
    }
    svg
}

fn panels(report: &Report) -> Vec<Panel> {
    let mut panels = Vec::new();
    let rate = |texts: &Texts, ms: f64| (texts.batch as f64, texts.tokens as f64 / ms * 1e3);
    if !report.latency.is_empty() {
        let texts = &report.latency;
        let at = |text: &Texts, ms: f64| (text.tokens as f64, ms);
        panels.push(Panel {
            title: "One text".into(),
            x: "tokens",
            y: "ms",
            lines: lines(texts, at, |t| (t.timing.median(), &t.against), Vec::new()),
            legend: SeriesLabelPosition::UpperLeft,
        });
    }
    if !report.throughput.is_empty() {
        let texts = &report.throughput;
        panels.push(Panel {
            title: "Texts in one call".into(),
            x: "texts",
            y: "tokens/s",
            lines: lines(texts, rate, |t| (t.timing.median(), &t.against), Vec::new()),
            legend: SeriesLabelPosition::LowerRight,
        });
    }
    if let Some(first) = report.stream.first() {
        let pushes = &report.stream;
        let at = |push: &Pushed, ms: f64| (push.prefix as f64, ms);
        let again = Line {
            name: "all again",
            colour: AGAIN,
            points: pushes.iter().map(|push| at(push, push.whole.median())).collect(),
        };
        panels.push(Panel {
            title: format!("A push of {} tokens onto a stream", first.tokens),
            x: "tokens before",
            y: "ms",
            lines: lines(pushes, at, |p| (p.timing.median(), &p.against), vec![again]),
            legend: SeriesLabelPosition::UpperLeft,
        });
    }
    panels
}

/// Ours, `between`, and llm-siren's if it was measured.
fn lines<T>(
    rows: &[T],
    at: impl Fn(&T, f64) -> (f64, f64),
    times: impl Fn(&T) -> (f64, &Option<Against>),
    between: Vec<Line>,
) -> Vec<Line> {
    let ours = rows.iter().map(|row| at(row, times(row).0)).collect();
    let theirs: Vec<_> = rows
        .iter()
        .filter_map(|row| Some(at(row, times(row).1.as_ref()?.timing.median())))
        .collect();
    let mut lines = vec![Line { name: "siren", colour: OURS, points: ours }];
    lines.extend(between);
    if !theirs.is_empty() {
        lines.push(Line { name: "llm-siren", colour: THEIRS, points: theirs });
    }
    lines
}

type Drawn = Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

fn draw_panel(area: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel) -> Drawn {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..most(|p| p.0) * 1.05, 0.0..most(|p| p.1) * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_desc(panel.x)
        .y_desc(panel.y)
        .x_labels(6)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    for line in &panel.lines {
        let style = line.colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        chart
            .draw_series(line.points.iter().map(|&at| Circle::new(at, 3, line.colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(panel.legend.clone())
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()
}
