"""Several processes: fork, spawn, and the memory that they share."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEMO
from libsiren import SirenGuard

TEXTS = [f"text {i}" for i in range(32)]
worker_guard = None


def in_child(action):
    """What `action` answers in a forked child, which may not hang."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            answer = action()
        except BaseException as e:
            answer = f"{type(e).__name__}: {e}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        text = answer.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return text


# Python 3.12 warns of what is tested here: a fork of a process with threads.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_after_a_fork_there_is_a_clear_error(guard):
    stream = guard.stream()
    guard.score_streaming("one")
    calls = [
        lambda: guard.score("text"),
        lambda: guard.score_batch(["text"]),
        lambda: guard.score_streaming("one two"),
        lambda: stream.push("text"),
        lambda: next(iter(guard.guard_answer(["text"]))),
    ]
    for call in calls:
        answer = in_child(lambda: str(call()))
        assert answer.startswith("ForkedError: ") and "fork" in answer
        # Closing in the child leaves the parent's guard alone.
        assert in_child(lambda: str(guard.close())) == "None"
    assert guard.score("text").tokens
    stream.close()


def test_a_guard_opened_after_a_fork_works():
    code = f"""
import os, libsiren
child = os.fork()
guard = libsiren.SirenGuard.open({str(DEMO)!r}, threads=1)
# One write, as both processes write into one pipe: print's newline may be a second one.
os.write(1, f"{{guard.score('text').tokens}}\\n".encode())
if child:
    raise SystemExit(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n1\n", "")


def open_worker():
    global worker_guard
    worker_guard = SirenGuard.open(DEMO, threads=1)


def score_in_worker(text):
    return worker_guard.score(text)


def test_a_pool_of_spawned_processes(guard):
    with multiprocessing.get_context("spawn").Pool(2, open_worker) as pool:
        assert pool.map(score_in_worker, TEXTS) == guard.score_batch(TEXTS)


HOLD = """
import sys, libsiren
options = {"packed_cache": sys.argv[2]} if sys.argv[2:] else {}
guard = libsiren.SirenGuard.open(sys.argv[1], threads=1, **options)
guard.score("text")
print("ready", flush=True)
sys.stdin.readline()
"""


def mapping(process, name):
    """Resident and proportional kB of the mappings of a file in a process."""
    sizes = {"Rss": 0, "Pss": 0}
    ours = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(name)
        elif ours and (found := re.match(r"(Rss|Pss):\s+(\d+) kB", line)):
            sizes[found[1]] += int(found[2])
    return sizes["Rss"], sizes["Pss"]


@pytest.mark.parametrize("name", ["model.safetensors", "libsiren.so.0"])
def test_processes_share_what_they_map(name):
    """Of a file that N processes map, each is counted an Nth in proportion."""
    count = 4
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(DEMO)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for holder in holders:
            assert holder.stdout.readline() == "ready\n"
        sizes = [mapping(holder.pid, name) for holder in holders]
        print(f"{name}: kB resident and proportional of each of {count} processes: {sizes}")
        resident, proportional = (sum(column) for column in zip(*sizes))
        assert resident > 0
        assert proportional < resident * 0.6
    finally:
        for holder in holders:
            holder.communicate("\n", timeout=60)


def test_processes_share_packed_weights(tmp_path):
    """Of packed weights in a file, each of N processes is counted an Nth, and holds none of its own."""
    count = 4
    open_one = [sys.executable, "-c", HOLD, str(DEMO)]
    holders = []
    try:
        for _ in range(count):
            # One after the other, so that the first makes the file.
            holders.append(
                subprocess.Popen([*open_one, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert holders[-1].stdout.readline() == "ready\n"
        (file,) = tmp_path.iterdir()
        sizes = [mapping(holder.pid, file.name) for holder in holders]
        print(f"{file.name}: kB resident and proportional of each of {count} processes: {sizes}")
        # All of it was checked, and is one copy.
        for resident, proportional in sizes:
            assert resident >= file.stat().st_size // 1024 * 0.9
            assert proportional <= resident / count * 1.1
    finally:
        for holder in holders:
            holder.communicate("\n", timeout=60)
