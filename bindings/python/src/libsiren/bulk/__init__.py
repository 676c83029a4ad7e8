"""Millions of texts on an engine that is there already: Arrow tables in and out, for Ray and for Spark.

``Scoring`` says what is scored and with which guard; ``libsiren.bulk.ray`` and ``libsiren.bulk.spark``
run it there, and ``Scoring.open`` here.
"""

from .tables import VERDICTS, Scoring, TableScorer

__all__ = ["VERDICTS", "Scoring", "TableScorer"]
