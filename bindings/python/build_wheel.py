#!/usr/bin/env python3
"""Build the wheel from an installed libsiren, without network.

    python build_wheel.py PREFIX OUT [--glibc 2.34]

The library is checked first: it needs nothing but what manylinux allows, among that no libstdc++, and
no glibc above the given one. The wheel's tag is the oldest manylinux that the library's symbols allow.
Prints the wheel's path.

Requirements: this Python has pip and setuptools 77 or later; readelf.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SONAME = "libsiren.so.0"
ALLOWED = re.compile(r"lib(c|m|gcc_s|pthread|dl|rt)\.so\.\d+|ld-linux-.*\.so\.\d+")
MACHINES = {"Advanced Micro Devices X86-64": "x86_64", "AArch64": "aarch64"}
OLDEST = (2, 17)


def readelf(option: str, library: Path) -> str:
    command = ["readelf", "-W", option, str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout


def glibc(binary: Path, floor: tuple[int, int]) -> tuple[int, int]:
    """The oldest glibc that a library or program runs with, when it needs nothing but what manylinux allows."""
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", binary))
    if foreign := [name for name in needed if not ALLOWED.fullmatch(name)]:
        sys.exit(f"{binary} needs {', '.join(foreign)}, which a package cannot count on")
    versions = {(int(major), int(minor)) for major, minor in re.findall(r"\bGLIBC_(\d+)\.(\d+)", readelf("-V", binary))}
    if not versions:
        sys.exit(f"{binary} names no version of glibc")
    newest = max(versions)
    if newest > floor:
        sys.exit(f"{binary} needs glibc {newest[0]}.{newest[1]}, expected at most {floor[0]}.{floor[1]}")
    return newest


def check(library: Path, floor: tuple[int, int]) -> str:
    """The platform tag of a library that may be in a wheel."""
    newest = glibc(library, floor)
    if f"[{SONAME}]" not in "".join(re.findall(r"\(SONAME\).*", readelf("-d", library))):
        sys.exit(f"{library} is no {SONAME}")
    machine = re.search(r"Machine:\s+(.*)", readelf("-h", library))
    if machine is None or machine[1].strip() not in MACHINES:
        sys.exit(f"{library} is for {machine and machine[1]}, expected one of {', '.join(MACHINES)}")
    newest = max(newest, OLDEST)
    return f"manylinux_{newest[0]}_{newest[1]}_{MACHINES[machine[1].strip()]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--glibc", default="2.34", help="the newest glibc that may be needed")
    arguments = parser.parse_args()
    library = (arguments.prefix / "lib" / SONAME).resolve()
    major, minor = map(int, arguments.glibc.split("."))
    platform = check(library, (major, minor))
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        for name in ("pyproject.toml", "setup.py", "README.md"):
            shutil.copy(HERE / name, stage)
        shutil.copy(HERE.parents[1] / "LICENSE", stage)
        package = stage / "src/libsiren"
        shutil.copytree(HERE / "src/libsiren", package, ignore=shutil.ignore_patterns("__pycache__"))
        (package / "lib").mkdir()
        shutil.copy(library, package / "lib" / SONAME)
        # Where the library looks for it: two folders above itself.
        shutil.copytree(arguments.prefix / "share/libsiren/models", package / "share/libsiren/models")
        built = stage / "built"
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(built), str(stage)]
        subprocess.run(command, check=True, env={**os.environ, "SIREN_WHEEL_PLATFORM": platform})
        (wheel,) = built.glob("*.whl")
        arguments.out.mkdir(parents=True, exist_ok=True)
        print(shutil.copy(wheel, arguments.out))


if __name__ == "__main__":
    main()
