"""Layouts, statuses and functions against include/siren-abi.json, which is made of the library."""

import ctypes
import importlib.metadata
import re

import libsiren
import libsiren._abi as abi
import pytest
from conftest import read_json
from libsiren import errors

ABI = read_json("include/siren-abi.json")
STRUCTS = {
    "siren_" + re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind
    for kind in vars(abi).values()
    if isinstance(kind, type) and issubclass(kind, ctypes.Structure) and kind.__module__ == abi.__name__
}


def test_structs():
    assert STRUCTS.keys() == ABI["structs"].keys()


@pytest.mark.parametrize("name", STRUCTS)
def test_layout(name):
    kind, expected = STRUCTS[name], ABI["structs"][name]
    assert ctypes.sizeof(kind) == expected["size"]
    assert {field: getattr(kind, field).offset for field, _ in kind._fields_} == expected["offsets"]


def test_statuses():
    known = {"ok": errors.OK}
    for status, kind in errors.BY_STATUS.items():
        known[kind("").status_name] = status
    assert known == ABI["statuses"]


def test_every_error_is_exported():
    for kind in errors.BY_STATUS.values():
        assert getattr(libsiren, kind.__name__) is kind


def test_functions():
    assert abi.FUNCTIONS.keys() <= set(ABI["functions"])


def test_versions():
    assert (abi.ABI_MAJOR, abi.ABI_MINOR) == (ABI["abi"]["major"], ABI["abi"]["minor"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", libsiren.__version__)
    assert importlib.metadata.version("libsiren") == libsiren.__version__
