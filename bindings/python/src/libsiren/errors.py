"""Why a call failed: one class for each status of ``siren.h``.

A call that fails gives no result. The classes are also the built-in exceptions that stand for the same
thing, and those that ``llm-siren`` raises.
"""

from __future__ import annotations

from typing import NoReturn

from . import _abi


class SirenError(Exception):
    """A failed call of the library. There is no score."""

    #: The number of the status in ``siren.h``.
    status: int = -1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        #: What was wrong, and what was expected.
        self.message = message

    @property
    def status_name(self) -> str:
        """The name of the status, such as ``busy``."""
        name: bytes = _abi.lib.siren_status_name(self.status)
        return name.decode()

    def __str__(self) -> str:
        return self.message


class InvalidArgumentError(SirenError, ValueError):
    """An argument is missing, contradictory or out of its range."""

    status = 1


class InvalidHandleError(SirenError, ValueError):
    """The guard, stream or token was closed."""

    status = 2


class InvalidUTF8Error(SirenError, ValueError):
    """Text is not valid UTF-8, or a string holds half of a surrogate pair."""

    status = 3


class NotFoundError(SirenError, FileNotFoundError):
    """A file, directory, repository or revision does not exist."""

    status = 4


class SirenIOError(SirenError, OSError):
    """The operating system refused to read or write something that exists."""

    status = 5


class InvalidModelError(SirenError, ValueError):
    """A model's files are damaged, contradictory or outside what is accepted."""

    status = 6


class UnsupportedError(SirenError, NotImplementedError, ValueError):
    """A valid request that this build, device or artifact kind cannot serve."""

    status = 7


class NetworkError(SirenError, ConnectionError):
    """The hub could not be reached, or answered with a failure."""

    status = 8


class UnauthorizedError(SirenError, PermissionError):
    """The hub refused access: a token is missing or lacks rights."""

    status = 9


class OfflineError(SirenError, ConnectionError):
    """A download would be needed, and the network was switched off by option."""

    status = 10


class LimitExceededError(SirenError, ValueError):
    """A text, batch or file is larger than the limit that was set for it."""

    status = 11


class SirenMemoryError(SirenError, MemoryError):
    """Memory for the request could not be had."""

    status = 12


class BusyError(SirenError):
    """The queue is full: try again later."""

    status = 13


class CancelledError(SirenError):
    """The call was cancelled by its caller."""

    status = 14


class DeadlineExceededError(SirenError, TimeoutError):
    """The deadline passed before the result was there."""

    status = 15


class PoisonedError(SirenError):
    """An earlier panic broke this guard; open a new one."""

    status = 16


class ForkedError(SirenError):
    """The process was forked after the guard was opened: open a guard in each process."""

    status = 17


class NonFiniteError(SirenError, ArithmeticError):
    """The model computed a value that is not a finite score."""

    status = 18


class InternalError(SirenError):
    """A bug inside the library, caught at its boundary."""

    status = 19


class InUseError(SirenError):
    """Another thread is using this stream: it belongs to one thread at a time."""

    status = 20


#: The status of a call that succeeded.
OK = 0
BY_STATUS: dict[int, type[SirenError]] = {kind.status: kind for kind in SirenError.__subclasses__()}


def error_of(status: int, error: _abi.Error) -> SirenError:
    """The exception of a failed call; of a newer library's status, a plain SirenError with its number."""
    message = bytes(error.message).decode(errors="replace") or "the library gave no message"
    kind = BY_STATUS.get(status)
    if kind is not None:
        return kind(message)
    unknown = SirenError(message)
    unknown.status = status
    return unknown


def fail(status: int, error: _abi.Error) -> NoReturn:
    raise error_of(status, error)
