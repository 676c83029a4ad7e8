"""Bulk scoring on Spark: a pandas UDF that adds verdicts as a struct."""

from __future__ import annotations

from collections.abc import Iterator

from .tables import VERDICTS, Scoring, TableScorer

try:
    import pandas as pd
    import pyarrow as pa
    from pyspark import TaskContext
    from pyspark.sql import Column
    from pyspark.sql.functions import pandas_udf
    from pyspark.sql.pandas.types import from_arrow_schema
except ImportError as e:
    raise ImportError("libsiren.bulk.spark needs PySpark, pandas and pyarrow: pip install 'libsiren[spark]'") from e

# Of this Python worker, which runs one task after the other; what it was opened for, and the guard.
_opened: tuple[Scoring, TableScorer] | None = None


def verdict(scoring: Scoring) -> Column:
    """A column of structs with the fields of ``VERDICTS``, from the columns that ``scoring`` names.

    A pandas UDF over iterators: each Python worker opens one guard, with ``spark.task.cpus`` threads, and keeps
    it. A row that cannot be scored has its error in its struct; what is wrong with all of them fails the task.
    """
    names = list(scoring.columns.values())

    def score(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        scorer = _scorer(scoring)
        for batch in batches:
            # One column comes as it is, whatever is said of it.
            columns = batch if len(names) > 1 else (batch,)
            arrays = [pa.Array.from_pandas(series) for series in columns]
            yield _frame(scorer.verdicts(pa.table(arrays, names)))

    return pandas_udf(score, from_arrow_schema(VERDICTS))(*names)


def _scorer(scoring: Scoring) -> TableScorer:
    # Here and not earlier: workers are forked from a process that has no guard.
    global _opened
    if _opened is None or _opened[0] != scoring:
        task = TaskContext.get()
        _opened = scoring, scoring.open(threads=1 if task is None else task.cpus())
    return _opened[1]


def _frame(verdicts: pa.Table) -> pd.DataFrame:
    # Types of pandas that know null, so that no number of a row that failed becomes one.
    return verdicts.to_pandas(types_mapper=pd.ArrowDtype)
