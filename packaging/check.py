#!/usr/bin/env python3
"""Check what a release is made of.

    check.py versions                        every package of this tree has the version of Cargo.toml
    check.py binaries PREFIX [--glibc 2.28]  the library and the command of an installation
    check.py packages DIST LIBRARY           every package in DIST carries that very library

A binary needs only what manylinux allows, of which no libstdc++, and no glibc above the given one. The
library exports the functions of include/siren-abi.json and nothing else, has its SONAME, is never unloaded,
and has no path of this machine to look for libraries in. The first thing that is wrong ends with status 1
and its name. readelf and nm are needed.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bindings/python"))
from build_wheel import check, glibc, readelf  # noqa: E402

# Where a version stands; every one of an expression's matches.
VERSIONS = {
    "Cargo.toml": r'(?m)^version = "(.*)"',
    "Cargo.lock": r'name = "(?:libsiren|siren-cli)"\nversion = "(.*)"',
    "bindings/python/pyproject.toml": r'(?m)^version = "(.*)"',
    "bindings/node/package.json": r'"version": "(.*)"',
    "bindings/node/README.md": r"libsiren-(\d.*)\.tgz",
    "bindings/dotnet/src/Siren.csproj": r"<Version>(.*)</Version>",
    "bindings/go/README.md": r"libsiren/siren@v(\S+)",
}


def versions() -> None:
    found = {file: re.findall(pattern, (ROOT / file).read_text()) for file, pattern in VERSIONS.items()}
    expected = found["Cargo.toml"][0]
    for file, there in found.items():
        if set(there) != {expected}:
            sys.exit(f"{file} has the version {', '.join(there) or 'nowhere'}, expected {expected} as in Cargo.toml")
    header = int(re.search(r"#define SIREN_ABI_MAJOR (\d+)", (ROOT / "include/siren.h").read_text())[1])
    linked = int(re.search(r"const ABI_MAJOR: u32 = (\d+);", (ROOT / "build.rs").read_text())[1])
    if header != linked:
        sys.exit(f"build.rs has the ABI {linked}, expected {header} as in include/siren.h")
    print(f"ok: version {expected} in {', '.join(VERSIONS)}")


def binaries(prefix: Path, floor: tuple[int, int]) -> None:
    abi = json.loads((ROOT / "include/siren-abi.json").read_text())
    library = (prefix / f"lib/libsiren.so.{abi['abi']['major']}").resolve()
    tag = check(library, floor)
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    exported = sorted(line.split()[-1] for line in symbols.splitlines())
    if exported != sorted(abi["functions"]):
        wrong = ", ".join(sorted(set(exported) ^ set(abi["functions"])))
        sys.exit(f"{library} exports other functions than include/siren-abi.json names: {wrong}")
    dynamic = readelf("-d", library)
    if "NODELETE" not in dynamic:
        sys.exit(f"{library} may be unloaded under its threads: it has no NODELETE")
    for binary in (library, prefix / "bin/siren"):
        for unwanted in ("RPATH", "RUNPATH", "TEXTREL"):
            if unwanted in readelf("-d", binary):
                sys.exit(f"{binary} has {unwanted}")
        if re.search(r"GNU_STACK.*RWE", readelf("-l", binary)):
            sys.exit(f"{binary} wants an executable stack")
        newest = glibc(binary, floor)
        print(f"ok: {binary.name}: glibc {newest[0]}.{newest[1]}, {binary.stat().st_size:,} bytes")
    print(f"ok: {library.name}: {tag}, {len(exported)} functions")


def libraries(package: Path) -> dict[str, bytes]:
    """The shared libraries in a package by their names there."""
    if package.name.endswith((".whl", ".nupkg")):
        with zipfile.ZipFile(package) as archive:
            return {name: archive.read(name) for name in archive.namelist() if "libsiren.so" in name}
    with tarfile.open(package) as archive:
        members = [member for member in archive if member.isfile() and "libsiren.so" in member.name]
        return {member.name: archive.extractfile(member).read() for member in members}


def packages(dist: Path, library: Path) -> None:
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    version = re.search(VERSIONS["Cargo.toml"], (ROOT / "Cargo.toml").read_text())[1]
    files = sorted(path for path in dist.rglob("*") if path.name.endswith((".tar.gz", ".tgz", ".whl", ".nupkg")))
    if not files:
        sys.exit(f"{dist} has no package")
    for package in files:
        if version not in package.name:
            sys.exit(f"{package.name} is not of version {version}")
        if package.name.startswith("libsiren-go-"):  # sources alone
            continue
        there = libraries(package)
        if not there:
            sys.exit(f"{package.name} carries no library")
        for name, data in there.items():
            if hashlib.sha256(data).hexdigest() != digest:
                sys.exit(f"{package.name} carries another library than {library}, as {name}")
        print(f"ok: {package.name} carries the library, as {', '.join(there)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("versions")
    of_binaries = commands.add_parser("binaries")
    of_binaries.add_argument("prefix", type=Path)
    of_binaries.add_argument("--glibc", default="2.28", help="the newest glibc that may be needed")
    of_packages = commands.add_parser("packages")
    of_packages.add_argument("dist", type=Path)
    of_packages.add_argument("library", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "versions":
        versions()
    elif arguments.command == "binaries":
        major, minor = map(int, arguments.glibc.split("."))
        binaries(arguments.prefix, (major, minor))
    else:
        packages(arguments.dist, arguments.library)


if __name__ == "__main__":
    main()
