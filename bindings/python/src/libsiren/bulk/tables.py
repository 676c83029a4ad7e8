"""What every engine runs: a guard that reads columns of an Arrow table and adds its verdicts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from ..calls import Input, Windows
from ..errors import OK, PoisonedError, SirenError
from ..guard import SirenGuard
from ..results import ScoreResult

try:
    import pyarrow as pa
except ImportError as e:
    raise ImportError(
        "libsiren.bulk needs pyarrow: pip install 'libsiren[ray]' or 'libsiren[spark]'"
    ) from e

#: The columns that a table gets. A row that failed has a status other than 0 and an error; all else of it is
#: null, but for ``is_harmful``, which is true, so that a failure that nobody looks at does not pass as safe.
VERDICTS = pa.schema(
    [
        # Probability that the text is harmful, from 0 to 1.
        pa.field("score", pa.float64()),
        # score >= threshold, or the row failed.
        pa.field("is_harmful", pa.bool_()),
        pa.field("threshold", pa.float64()),
        # Tokens that ran, special ones included.
        pa.field("tokens", pa.int64()),
        # The text had more tokens than the guard reads, and the rest was not read.
        pa.field("truncated", pa.bool_()),
        # 0, or the number of the failure's status in siren.h.
        pa.field("status", pa.int32()),
        # The name of the status and what was wrong; null where nothing was.
        pa.field("error", pa.string()),
    ]
)

# Texts of one call of the library, which shares them out to passes itself.
_CALL = 1024

# What a column of texts may be.
_KINDS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_null,
)

_Scored = Union[ScoreResult, SirenError]


@dataclass(frozen=True)
class Scoring:
    """What is scored, and with which guard. It can be pickled, as a guard cannot be.

    The text is a column, or ``prompt`` and/or ``response`` are; when none is named, it is the column "text".
    Columns hold strings, or bytes of UTF-8.
    """

    #: A directory or a hub repository, which every worker must reach; None is the demo guard.
    model: str | os.PathLike[str] | None = None
    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    #: From 0 to 1, in place of the guard's own.
    threshold: float | None = None
    #: Read texts that are longer than the guard's max_length to their end.
    windows: Windows | bool = False
    #: What the names of the new columns begin with.
    prefix: str = ""
    #: More arguments of ``SirenGuard.open``, such as ``dtype``. ``threads`` is the engine's to say if it is not here.
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.text is None and self.prompt is None and self.response is None:
            object.__setattr__(self, "text", "text")
        elif self.text is not None and (self.prompt is not None or self.response is not None):
            raise ValueError("text was named, and prompt or response too; expected the one or the other")

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are read, by the field of ``Input`` that they are."""
        named = {"text": self.text, "prompt": self.prompt, "response": self.response}
        return {part: column for part, column in named.items() if column is not None}

    def open(self, threads: int) -> TableScorer:
        """Open the guard, in this process and for it."""
        return TableScorer(self, threads)


class TableScorer:
    """A guard that scores tables; ``Scoring.open`` makes it."""

    def __init__(self, scoring: Scoring, threads: int) -> None:
        self.scoring = scoring
        self._options = {"threads": threads, **scoring.options}
        self._guard = self._open()

    def _open(self) -> SirenGuard:
        return SirenGuard.open(self.scoring.model, **self._options)

    def __call__(self, table: pa.Table) -> pa.Table:
        """``table`` with the columns of ``VERDICTS`` at its end, row by row."""
        names = [self.scoring.prefix + name for name in VERDICTS.names]
        if taken := [name for name in names if name in table.column_names]:
            raise ValueError(f"the table has columns {', '.join(taken)} already: choose a prefix for the new ones")
        verdicts = self.verdicts(table)
        for name, given in zip(names, VERDICTS):
            table = table.append_column(given.with_name(name), verdicts.column(given.name))
        return table

    def verdicts(self, table: pa.Table) -> pa.Table:
        """The columns of ``VERDICTS`` alone, a row for each of ``table``'s.

        A row that cannot be scored fails alone. What is wrong with all of them, such as a column that is not
        there, a threshold out of its range or no memory, is raised.
        """
        parts = {part: _bytes(table, column) for part, column in self.scoring.columns.items()}
        inputs = [Input(**dict(zip(parts, row))) for row in zip(*parts.values())]
        scored: list[_Scored] = []
        for start in range(0, len(inputs), _CALL):
            scored += self._score(inputs[start : start + _CALL])
        return pa.Table.from_pylist([_verdict(one) for one in scored], schema=VERDICTS)

    def _score(self, inputs: list[Input]) -> list[_Scored]:
        scoring = self.scoring
        scored: list[_Scored] = list(
            self._guard.score_batch(
                inputs, scoring.threshold, errors="return", windows=scoring.windows, wait=True
            )
        )
        poisoned = [i for i, one in enumerate(scored) if isinstance(one, PoisonedError)]
        if poisoned:
            # One of the texts broke the guard: the failure is that one's alone.
            self.close()
            self._guard = self._open()
            if len(inputs) > 1:
                for i in poisoned:
                    scored[i] = self._score([inputs[i]])[0]
        return scored

    def close(self) -> None:
        """Free the guard."""
        self._guard.close()


def _bytes(table: pa.Table, column: str) -> list[bytes | None]:
    """A column's texts as bytes: whether they are UTF-8 the library says, of each row."""
    if column not in table.column_names:
        raise KeyError(f"there is no column {column!r}, expected one of {', '.join(table.column_names)}")
    values = table.column(column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not any(is_kind(values.type) for is_kind in _KINDS):
        raise TypeError(f"column {column!r} is of type {values.type}, expected strings or bytes")
    texts: list[bytes | None] = values.cast(pa.large_binary()).to_pylist()
    return texts


def _verdict(scored: _Scored) -> dict[str, object]:
    if isinstance(scored, SirenError):
        return {
            "is_harmful": True,
            "status": scored.status,
            "error": f"{scored.status_name}: {scored.message}",
        }
    return {
        "score": scored.score,
        "is_harmful": scored.is_harmful,
        "threshold": scored.threshold,
        "tokens": scored.tokens,
        "truncated": scored.truncated,
        "status": OK,
    }
