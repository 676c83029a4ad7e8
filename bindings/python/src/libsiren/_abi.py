"""The library, its functions and its structs, as ``siren.h`` has them. ctypes frees the GIL in calls."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char, c_char_p, c_double, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import TypeVar

ABI_MAJOR = 0
ABI_MINOR = 3
SONAME = f"libsiren.so.{ABI_MAJOR}"


class Text(ctypes.Structure):
    """A field that is given bytes keeps them alive. ``data`` None: absent."""

    _fields_ = [("data", c_char_p), ("length", c_size_t)]


class Input(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("text", Text),
        ("prompt", Text),
        ("response", Text),
    ]


class Result(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("status", c_int32),
        ("score", c_double),
        ("threshold", c_double),
        ("is_harmful", c_uint32),
        ("truncated", c_uint32),
        ("tokens", c_uint64),
        ("windows", c_uint64),
        ("window_index", c_uint64),
        ("window_start", c_uint64),
        ("window_end", c_uint64),
    ]


class Error(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("status", c_int32),
        ("message_length", c_uint64),
        ("message", c_char * 1008),
    ]


class ScoreOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("has_threshold", c_uint32),
        ("threshold", c_double),
        ("cancel", c_void_p),
        ("timeout_ms", c_uint64),
        ("wait", c_uint32),
        ("windows", c_uint32),
        ("window_tokens", c_uint64),
        ("window_stride", c_uint64),
    ]


ProgressCallback = ctypes.CFUNCTYPE(None, c_void_p, POINTER(c_char), c_size_t, c_uint64, c_uint64)
LogCallback = ctypes.CFUNCTYPE(None, c_void_p, c_int32, POINTER(c_char), c_size_t)


class OpenOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("threads", c_uint32),
        ("model", Text),
        ("backbone", Text),
        ("device", Text),
        ("dtype", Text),
        ("cache_dir", Text),
        ("hub_endpoint", Text),
        ("hub_token", Text),
        ("data_dir", Text),
        ("max_length", c_uint64),
        ("max_text_bytes", c_uint64),
        ("max_batch", c_uint64),
        ("max_queue", c_uint64),
        ("offline", c_uint32),
        ("read_weights", c_uint32),
        ("progress", ProgressCallback),
        ("progress_user_data", c_void_p),
        ("max_streams", c_uint64),
        ("kv_bytes", c_uint64),
        ("prefix_cache_bytes", c_uint64),
        ("no_prefix_cache", c_uint32),
        ("reserved", c_uint32),
        ("packed_cache", Text),
    ]


class GuardInfo(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("threads", c_uint32),
        ("max_length", c_uint64),
        ("default_threshold", c_double),
        ("layers_run", c_uint32),
        ("layers", c_uint32),
        ("hidden_size", c_uint64),
        ("neurons", c_uint64),
        ("weight_bytes", c_uint64),
        ("max_text_bytes", c_uint64),
        ("max_batch", c_uint64),
        ("kv_token_bytes", c_uint64),
        ("device", c_char * 16),
        ("dtype", c_char * 16),
    ]


class GuardStats(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("requests", c_uint64),
        ("texts", c_uint64),
        ("pushes", c_uint64),
        ("harmful", c_uint64),
        ("tokens", c_uint64),
        ("tokens_reused", c_uint64),
        ("truncated", c_uint64),
        ("queue_depth", c_uint64),
        ("passes", c_uint64),
        ("pass_sequences", c_uint64),
        ("pass_seconds", c_double),
        ("pass_tokens_limit", c_uint64),
        ("latency_counts", c_uint64 * 16),
        ("latency_sum", c_double),
        ("kv_bytes", c_uint64),
        ("streams", c_uint64),
        ("streams_parked", c_uint64),
        ("cache_entries", c_uint64),
        ("cache_hits", c_uint64),
        ("cache_misses", c_uint64),
        ("errors", c_uint64 * 32),
    ]


class StreamOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("has_threshold", c_uint32),
        ("threshold", c_double),
        ("prompt", Text),
        ("hysteresis", c_uint64),
        ("windows", c_uint32),
        ("reserved", c_uint32),
        ("window_tokens", c_uint64),
        ("window_stride", c_uint64),
    ]


class PushOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("wait", c_uint32),
        ("cancel", c_void_p),
        ("timeout_ms", c_uint64),
        ("token_scores", POINTER(c_double)),
        ("token_scores_capacity", c_size_t),
    ]


class PushResult(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint32),
        ("status", c_int32),
        ("score", c_double),
        ("threshold", c_double),
        ("is_harmful", c_uint32),
        ("truncated", c_uint32),
        ("tokens", c_uint64),
        ("crossed", c_uint32),
        ("reserved", c_uint32),
        ("crossing_token", c_uint64),
        ("crossing_byte", c_uint64),
        ("cleared_bytes", c_uint64),
        ("windows", c_uint64),
        ("window_index", c_uint64),
        ("window_start", c_uint64),
        ("window_end", c_uint64),
        ("first_scored", c_uint64),
        ("token_scores_count", c_uint64),
    ]


S = TypeVar("S", bound=ctypes.Structure)


def new(kind: type[S]) -> S:
    """A struct of zeros, which mean the defaults, that knows its size."""
    return kind(ctypes.sizeof(kind))


def new_array(kind: type[S], length: int) -> ctypes.Array[S]:
    """`new`, `length` times."""
    return (kind * length).from_buffer_copy(bytes(new(kind)) * length)


# The functions and what they take; `P` stands for a pointer that `byref` makes.
P = c_void_p
FUNCTIONS = {
    "siren_open": [P, P, P],
    "siren_free": [P],
    "siren_warmup": [P, P],
    "siren_info": [P, P, P],
    "siren_info_json": [P, P, c_size_t, P, P],
    "siren_stats": [P, P, P],
    "siren_stats_prometheus": [P, P, c_size_t, P, P],
    "siren_audit_json": [P, P, P, P, c_size_t, P, P],
    "siren_score": [P, P, P, P, P],
    "siren_score_batch": [P, P, c_size_t, P, P, P, P],
    "siren_cancel_token_new": [P, P],
    "siren_cancel": [P, P],
    "siren_cancel_token_free": [P],
    "siren_stream_new": [P, P, P, P],
    "siren_stream_push": [P, c_char_p, c_size_t, P, P, P],
    "siren_stream_finish": [P, P, P, P],
    "siren_stream_reset": [P, P],
    "siren_stream_fork": [P, P, P],
    "siren_stream_free": [P],
    "siren_log_set": [P, P, c_int32, P],
}


def _load() -> ctypes.CDLL:
    """The library that SIREN_LIBRARY names, else the wheel's own, else the system's."""
    named = os.environ.get("SIREN_LIBRARY")
    own = Path(__file__).parent / "lib" / SONAME
    places = [named] if named else [str(own), SONAME]
    failures = []
    for place in places:
        try:
            library = ctypes.CDLL(place)
            break
        except OSError as e:
            failures.append(f"{place} ({e})")
    else:
        raise ImportError(
            f"{SONAME} could not be loaded; looked at: {'; '.join(failures)}. Install the wheel, or set "
            "SIREN_LIBRARY to the library's path."
        )
    library.siren_abi_version.restype = c_uint32
    library.siren_abi_version.argtypes = []
    version = library.siren_abi_version()
    major, minor = version >> 16, version & 0xFFFF
    if major != ABI_MAJOR or minor < ABI_MINOR:
        raise ImportError(
            f"{place} has ABI {major}.{minor}, expected {ABI_MAJOR}.{ABI_MINOR} or a later one of {ABI_MAJOR}"
        )
    library.siren_version.restype = c_char_p
    library.siren_version.argtypes = []
    library.siren_status_name.restype = c_char_p
    library.siren_status_name.argtypes = [c_int32]
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = c_int32
        function.argtypes = arguments
    return library


lib = _load()
