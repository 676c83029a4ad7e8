"""Bulk scoring of 100,000 texts on a real Ray and a real Spark, of two workers each, of which some are killed.

Run by `test_bulk.sh`; needs ray and pyspark. BULK_ROWS takes another number of rows.
"""

import os
import shutil
import statistics
import sys
import time
from pathlib import Path

os.environ.update(RAY_USAGE_STATS_ENABLED="0", PYSPARK_PYTHON=sys.executable)
import bulk_rows  # noqa: E402
import pytest  # noqa: E402
import ray  # noqa: E402
from libsiren.bulk.ray import score, score_parquet  # noqa: E402

ROWS = int(os.environ.get("BULK_ROWS", 100_000))
FILES = 50

RAY = f"""
import sys, bulk_rows
from libsiren.bulk.ray import score_parquet
bulk_rows.start_ray()
score_parquet(sys.argv[1], sys.argv[2], bulk_rows.SCORING, id="id", workers=2, rows_per_file={ROWS // FILES})
"""
# What the README says, for parts that resume.
SPARK = """
import sys, bulk_rows
from pathlib import Path
from pyspark.sql import SparkSession, functions
from libsiren.bulk.spark import verdict
builder = SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
spark = builder.getOrCreate()
texts = spark.read.parquet(sys.argv[1])
parts = int(sys.argv[3])
for part in range(parts):
    target = f"{sys.argv[2]}/part={part}"
    if not Path(target, "_SUCCESS").exists():
        rows = texts.where(functions.pmod(functions.hash("id"), functions.lit(parts)) == part).repartition(8)
        rows.withColumn("verdict", verdict(bulk_rows.SCORING)).select("*", "verdict.*").write.mode("overwrite").parquet(target)
spark.stop()
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bulk")
    table = bulk_rows.rows(ROWS)
    bulk_rows.write(table, folder / "texts", 8)
    yield folder, bulk_rows.expected(table)
    shutil.rmtree(folder)


@pytest.fixture
def ray_of_two_workers():
    bulk_rows.start_ray()
    yield
    ray.shutdown()


def test_ray_with_a_worker_killed(texts, ray_of_two_workers):
    folder, expected = texts
    target = folder / "ray"
    with bulk_rows.Killer(lambda: len(bulk_rows.ids_done(target)) >= FILES // 2, bulk_rows.ray_workers) as killer:
        written = score_parquet(
            str(folder / "texts"),
            str(target),
            bulk_rows.SCORING,
            id="id",
            workers=2,
            rows_per_file=ROWS // FILES,
        )
    assert killer.killed is not None, "the run ended before a worker could be killed"
    assert written == ROWS
    bulk_rows.assert_every_row_once(bulk_rows.read(target), expected)


def test_ray_with_the_driver_killed(texts):
    folder, expected = texts
    target = folder / "ray-driver"
    arguments = folder / "texts", target
    others = bulk_rows.run_driver(RAY, arguments, lambda: len(bulk_rows.ids_done(target)) >= FILES // 3)
    assert others, "the driver ended before it could be killed"
    bulk_rows.wait_for_the_end_of(others)
    done = len(bulk_rows.ids_done(target))
    kept = {path: path.stat().st_mtime_ns for ids in bulk_rows.ids_done(target) for path in target.glob(f"{ids.stem}*")}
    assert FILES // 3 <= done < FILES
    bulk_rows.run_driver(RAY, arguments)
    bulk_rows.assert_every_row_once(bulk_rows.read(target), expected)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "rows that were done were written again"
    print(f"Ray: the driver was killed with {done} of {FILES} files settled; the next run wrote the rest")


def spark_workers(driver):
    """Python workers: what the daemon, a process of the same name, has forked."""
    there = bulk_rows.below(driver)
    return [pid for pid, (parent, line) in there.items() if "pyspark.daemon" in line and "pyspark.daemon" in there.get(parent, (0, ""))[1]]


def spark_tasks(target):
    """Tasks whose rows are written, of a job that runs."""
    return list(target.glob("part=*/_temporary/0/task_*"))


def test_spark_with_a_worker_killed(texts):
    folder, expected = texts
    target = folder / "spark"
    with bulk_rows.Killer(lambda: len(spark_tasks(target)) >= 4, lambda: spark_workers(os.getpid())) as killer:
        bulk_rows.run_driver(SPARK, [folder / "texts", target, 1])
    assert killer.killed is not None, "the job ended before a worker could be killed"
    assert (target / "part=0/_SUCCESS").exists()
    bulk_rows.assert_every_row_once(bulk_rows.read(target), expected)


def test_spark_with_the_driver_killed(texts):
    folder, expected = texts
    target = folder / "spark-driver"
    arguments = [folder / "texts", target, 5]
    def done():
        return list(target.glob("part=*/_SUCCESS"))

    others = bulk_rows.run_driver(SPARK, arguments, lambda: len(done()) == 2 and spark_tasks(target))
    assert others, "the driver ended before it could be killed"
    bulk_rows.wait_for_the_end_of(others)
    kept = {path: path.stat().st_mtime_ns for path in done()}
    bulk_rows.run_driver(SPARK, arguments)
    bulk_rows.assert_every_row_once(bulk_rows.read(target), expected)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a part that was done was written again"


def test_two_workers_against_one(texts, ray_of_two_workers):
    """Rows a second of scoring alone, between the first block that comes out and the last; in turns."""
    folder, _ = texts
    dataset = ray.data.read_parquet(str(folder / "texts")).repartition(target_num_rows_per_block=ROWS // 100)
    dataset = dataset.materialize()
    speeds = {1: [], 2: []}
    for _ in range(3):
        for workers, taken in speeds.items():
            counts, times = [], []
            for batch in score(dataset, bulk_rows.SCORING, workers=workers).iter_batches(batch_size=None, batch_format="pyarrow"):
                counts.append(len(batch))
                times.append(time.monotonic())
            assert sum(counts) == ROWS
            taken.append(sum(counts[1:]) / (times[-1] - times[0]))
    one, two = (statistics.median(taken) for taken in speeds.values())
    load = Path("/proc/loadavg").read_text().split()[0]
    print(
        f"Ray, {ROWS} rows, a thread a worker, {os.cpu_count()} CPUs, load {load}: rows a second, medians of 3: "
        f"1 worker {one:.0f}, 2 workers {two:.0f}, {two / one:.2f} times; all: {speeds}"
    )
