"""Bulk scoring on a Ray of two workers, run by `test.sh`; `bulk_full.py` has the same with many rows."""

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import bulk_rows  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import pytest  # noqa: E402
import ray  # noqa: E402
from libsiren.bulk import Scoring  # noqa: E402
from libsiren.bulk.ray import score_parquet  # noqa: E402

ROWS, FILES = 3000, 60


@pytest.fixture(scope="module")
def ray_of_two_workers():
    bulk_rows.start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def scored(tmp_path_factory, ray_of_two_workers):
    """A run of which a worker was killed."""
    folder = tmp_path_factory.mktemp("bulk")
    table = bulk_rows.rows(ROWS)
    bulk_rows.write(table, folder / "texts", 3)
    target = folder / "scored"
    with bulk_rows.Killer(lambda: len(bulk_rows.ids_done(target)) >= FILES // 4, bulk_rows.ray_workers) as killer:
        written = score(folder)
    assert killer.killed is not None, "the run ended before a worker could be killed"
    return folder, bulk_rows.expected(table), written


def score(folder, scoring=bulk_rows.SCORING, target="scored", **options):
    options = {"id": "id", "workers": 2, "rows_per_file": ROWS // FILES} | options
    return score_parquet(str(folder / "texts"), str(folder / target), scoring, **options)


def test_a_worker_that_is_killed_loses_no_row_and_doubles_none(scored):
    folder, expected, written = scored
    assert written == ROWS
    bulk_rows.assert_every_row_once(bulk_rows.read(folder / "scored"), expected)


def test_a_run_goes_on_where_it_was(scored):
    """As it was stopped: with files that are half written, and rows that are not there at all."""
    folder, expected, _ = scored
    kept = {path: path.stat().st_mtime_ns for path in (folder / "scored").iterdir()}
    torn, gone = bulk_rows.ids_done(folder / "scored")[:2]
    for ids in (torn, gone):
        (data,) = (folder / "scored").glob(f"{ids.stem}*")
        del kept[data]
        if ids is torn:
            ids.rename(ids.with_suffix(".pending.parquet"))
            data.write_bytes(data.read_bytes()[:100])
        else:
            ids.unlink()
            data.unlink()
    assert score(folder) == ROWS
    bulk_rows.assert_every_row_once(bulk_rows.read(folder / "scored"), expected)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_what_would_mix_or_lose_rows_is_refused(scored):
    folder, _, _ = scored
    with pytest.raises(ValueError, match="was begun with threshold None, found 0.9"):
        score(folder, Scoring(bulk_rows.DEMO, threshold=0.9, options=bulk_rows.SCORING.options))
    with pytest.raises(ValueError, match="texts is not empty, and there is no run to go on with"):
        score(folder, target="texts")
    with pytest.raises(ValueError, match="Ray has 4 CPUs, expected 6: 2 workers of 2, and 2 for"):
        score(folder, target="other", cpus=2)
    assert not (folder / "other").exists()
    # As an id that stands there twice is lost when a run goes on.
    file = next((folder / "scored").iterdir())
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(RuntimeError, match=f"has {ROWS - 1} rows, expected the {ROWS} of "):
        score(folder)
