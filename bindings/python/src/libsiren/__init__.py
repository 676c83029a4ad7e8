"""How harmful is a text? libsiren for Python; ``import libsiren as siren_guard`` replaces llm-siren."""

from . import _abi
from .answer import GuardedAnswer, GuardedText, HarmfulAnswerError
from .calls import CancelToken, Input, Windows
from .errors import (
    BusyError,
    CancelledError,
    DeadlineExceededError,
    ForkedError,
    InternalError,
    InUseError,
    InvalidArgumentError,
    InvalidHandleError,
    InvalidModelError,
    InvalidUTF8Error,
    LimitExceededError,
    NetworkError,
    NonFiniteError,
    NotFoundError,
    OfflineError,
    PoisonedError,
    SirenError,
    SirenIOError,
    SirenMemoryError,
    UnauthorizedError,
    UnsupportedError,
)
from .guard import SirenGuard, load_guard, set_log
from .results import Crossing, GuardInfo, GuardStats, PushResult, ScoreArrays, ScoreResult, Window
from .stream import SirenStream

#: The library's version.
__version__: str = _abi.lib.siren_version().decode()

__all__ = [
    "BusyError",
    "CancelToken",
    "CancelledError",
    "Crossing",
    "DeadlineExceededError",
    "ForkedError",
    "GuardInfo",
    "GuardStats",
    "GuardedAnswer",
    "GuardedText",
    "HarmfulAnswerError",
    "InUseError",
    "Input",
    "InternalError",
    "InvalidArgumentError",
    "InvalidHandleError",
    "InvalidModelError",
    "InvalidUTF8Error",
    "LimitExceededError",
    "NetworkError",
    "NonFiniteError",
    "NotFoundError",
    "OfflineError",
    "PoisonedError",
    "PushResult",
    "ScoreArrays",
    "ScoreResult",
    "SirenError",
    "SirenGuard",
    "SirenIOError",
    "SirenMemoryError",
    "SirenStream",
    "UnauthorizedError",
    "UnsupportedError",
    "Window",
    "Windows",
    "__version__",
    "load_guard",
    "set_log",
]
