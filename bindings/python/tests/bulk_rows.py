"""What the tests of bulk scoring share: rows to score, what they must become, and a worker to kill."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
from conftest import DEMO
from libsiren.bulk import VERDICTS, Scoring

MOST_BYTES = 1000
SCORING = Scoring(DEMO, options={"max_text_bytes": MOST_BYTES})
WORDS = """how can i make a cake bomb knife house dog at home for my friend please tell me what is the best way to
kill a process write poem about hate love rain hurt bake steal buy car money and never be seen again""".split()


def rows(count):
    """Short texts, of which one in a hundred cannot be scored: absent, or longer than the guard takes."""
    words = random.Random(7)
    texts = [" ".join(words.choices(WORDS, k=words.randrange(3, 12))) for _ in range(count)]
    texts[50::200] = [None] * len(texts[50::200])
    texts[150::200] = ["x" * (MOST_BYTES + 1)] * len(texts[150::200])
    return pa.table({"id": range(count), "text": texts})


def write(table, folder, files):
    folder.mkdir()
    size = -(-len(table) // files)
    for i in range(files):
        pa.parquet.write_table(table.slice(i * size, size), folder / f"{i}.parquet")


def read(folder):
    return pa.dataset.dataset(folder, format="parquet").to_table()


def expected(table):
    """What one guard makes of `table`."""
    scored = SCORING.open(threads=2)(table)
    assert pc.sum(pc.not_equal(scored["status"], 0)).as_py() == len(table) // 100
    return scored


def assert_every_row_once(scored, expected):
    """`scored`, in any order, is `expected`, bit for bit."""
    ids = pc.count_distinct(scored["id"]).as_py()
    assert (scored.num_rows, ids) == (expected.num_rows, expected.num_rows), "rows are missing, or there twice"
    scored = scored.sort_by("id")
    for name in ["id", "text", *VERDICTS.names]:
        assert scored[name].equals(expected[name].cast(scored[name].type)), f"column {name} differs"


def processes():
    """Of every process that runs its parent and its command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = parent, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            continue
    return found


def below(ancestor):
    """The command lines of all that `ancestor` started, however far below it."""
    there = processes()
    ours = {ancestor}
    for _ in range(20):
        ours |= {pid for pid, (parent, _) in there.items() if parent in ours}
    return {pid: there[pid] for pid in ours if pid in there and pid != ancestor}


class Killer(threading.Thread):
    """Kills one of the processes that `choose` names as soon as `when` is true; `killed` is its id."""

    def __init__(self, when, choose):
        super().__init__(daemon=True)
        self.when, self.choose = when, choose
        self.killed = None
        self.ended = threading.Event()

    def run(self):
        while not self.ended.is_set():
            if self.when() and (workers := self.choose()):
                self.killed = min(workers)
                os.kill(self.killed, signal.SIGKILL)
                return
            time.sleep(0.1)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()


def start_ray():
    """A Ray for two workers, with the two CPUs beside them that it needs; they need not be there."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=300 << 20, log_to_driver=False)


def ray_workers():
    return [pid for pid, (_, line) in below(os.getpid()).items() if line.startswith("ray::") and "Scorer" in line]


def ids_done(target):
    """Files that a run on Ray has settled."""
    return [path for path in Path(f"{target}.checkpoint/ids").glob("*.parquet") if ".pending." not in path.name]


def run_driver(code, arguments, kill_when=lambda: False):
    """Run a program to its end; or kill it, and it alone, as soon as `kill_when` is true, and give what it left."""
    with tempfile.TemporaryFile("w+") as output:
        driver = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], stdout=output, stderr=output, cwd=Path(__file__).parent
        )
        try:
            while driver.poll() is None:
                if kill_when():
                    return below(driver.pid)
                time.sleep(0.1)
        finally:
            driver.kill()
            driver.wait()
        output.seek(0)
        assert driver.returncode == 0, output.read()[-5000:]
    return None


def wait_for_the_end_of(others, timeout=60):
    """Of processes whose parent was killed; what is left of them then is killed."""
    end = time.monotonic() + timeout
    while (left := [pid for pid in others if processes().get(pid, (0, ""))[1] == others[pid][1]]) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
