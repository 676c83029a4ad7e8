"""Bulk scoring on Ray Data: a callable class for ``map_batches``, and a run over Parquet files that resumes."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlparse

from .tables import Scoring

try:
    import pyarrow as pa
    import pyarrow.dataset
    import pyarrow.fs
    import ray
    import ray.data
    from ray.data.checkpoint import CheckpointConfig
except ImportError as e:
    raise ImportError("libsiren.bulk.ray needs Ray Data: pip install 'libsiren[ray]'") from e

# Of listing the source's files or cutting them to size, and of leaving out what is done: Ray Data takes one each.
_OTHER_CPUS = 2
# What reading and writing take, so that they do not wait for a CPU that a worker holds.
_LITTLE = 0.01
# What of ``Scoring.options`` has a part in what a row scores.
_DECIDING = ("backbone", "dtype", "max_length", "max_text_bytes")


class Scorer:
    """What ``map_batches`` runs in each of its actors, on Arrow tables: ``score`` passes it on rightly.

    The guard is opened in the actor, with a thread for each CPU that the actor was given.
    """

    def __init__(self, scoring: Scoring) -> None:
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        self._scorer = scoring.open(threads=max(1, int(cpus)))

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._scorer(batch)


def score(dataset: ray.data.Dataset, scoring: Scoring, *, workers: int, cpus: float = 1) -> ray.data.Dataset:
    """``dataset`` with the columns of ``VERDICTS``, scored by ``workers`` actors of ``cpus`` CPUs.

    An actor that dies is replaced, and what it had in work runs again. A row that cannot be scored is kept with
    its error; what is wrong with all of them ends the run.
    """
    return dataset.map_batches(
        Scorer,
        fn_constructor_args=(scoring,),
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus,
    )


def score_parquet(
    source: str,
    target: str,
    scoring: Scoring,
    *,
    id: str,
    workers: int,
    cpus: float = 1,
    rows_per_file: int = 10_000,
    checkpoint: str | None = None,
) -> int:
    """Score the Parquet files below ``source`` into files below ``target``; the rows that ``target`` then has.

    Called again after it was stopped, by whatever, it goes on: rows that were written are neither scored nor
    written again, and what was half written is removed first. ``id`` is a column whose values are never null
    and never twice the same. What is in work when a run is stopped is lost: some files of ``rows_per_file``
    rows a worker. Ray Data keeps the ids that are done in ``checkpoint``, by default ``target`` with
    ".checkpoint" at its end; it is not to be removed as long as ``source`` may be scored into ``target`` again.
    All paths must be the same for all machines. One run at a time writes into a target. Ray needs two CPUs
    beside those of the workers.

    ValueError: the run that began here had another scoring, ``target`` has files of another origin, or Ray has
    too few CPUs.
    RuntimeError: ``target`` has not as many rows as ``source`` at the end.
    """
    source, target = _absolute(source), _absolute(target)
    checkpoint = _absolute(checkpoint or target.rstrip("/") + ".checkpoint")
    if not ray.is_initialized():
        ray.init()
    there, needed = ray.cluster_resources().get("CPU", 0), workers * cpus + _OTHER_CPUS
    if there < needed:
        # Ray Data would wait for ever.
        raise ValueError(
            f"Ray has {there:g} CPUs, expected {needed:g}: {workers} workers of {cpus:g}, and {_OTHER_CPUS} for "
            "what finds and passes on their rows; ray.init(num_cpus=) may name more than there are"
        )
    _begin_or_go_on(target, checkpoint, {"id": id, **_deciding(scoring)})
    dataset = ray.data.read_parquet(source, num_cpus=_LITTLE)
    # Ray Data's own: ids are noted before a file of theirs is written, and settled when it is there.
    dataset.context.checkpoint_config = CheckpointConfig(
        id, f"{checkpoint}/ids", delete_checkpoint_on_success=False
    )
    dataset = dataset.repartition(target_num_rows_per_block=rows_per_file)
    score(dataset, scoring, workers=workers, cpus=cpus).write_parquet(target, ray_remote_args={"num_cpus": _LITTLE})
    expected, written = _rows(source), _rows(target)
    if written != expected:
        raise RuntimeError(
            f"{target} has {written} rows, expected the {expected} of {source}: a value of {id!r} stands there "
            "twice, or files were changed since the first run"
        )
    return written


def _absolute(path: str) -> str:
    """A URI as it is, a local path from the root."""
    return path if urlparse(path).scheme else os.path.abspath(path)


def _file_system(path: str) -> tuple[pa.fs.FileSystem, str]:
    system, inside = pa.fs.FileSystem.from_uri(path)
    return system, inside


def _rows(path: str) -> int:
    system, inside = _file_system(path)
    if system.get_file_info(inside).type == pa.fs.FileType.NotFound:
        return 0
    count: int = pyarrow.dataset.dataset(inside, filesystem=system, format="parquet").count_rows()
    return count


def _begin_or_go_on(target: str, checkpoint: str, settings: dict[str, Any]) -> None:
    """Hold a run against the one that began here; if there was none, write down what it is."""
    system, folder = _file_system(checkpoint)
    file = f"{folder}/scoring.json"
    if system.get_file_info(file).type != pa.fs.FileType.NotFound:
        with system.open_input_stream(file) as stream:
            begun = json.loads(stream.read())
        if differing := [name for name in settings if settings[name] != begun.get(name)]:
            raise ValueError(
                f"{target} was begun with "
                + ", ".join(f"{name} {begun.get(name)!r}, found {settings[name]!r}" for name in differing)
                + ": score into another target, or remove this one and its checkpoint"
            )
        return
    files, inside = _file_system(target)
    if files.get_file_info(pa.fs.FileSelector(inside, allow_not_found=True)):
        raise ValueError(f"{target} is not empty, and there is no run to go on with in {checkpoint}")
    system.create_dir(folder, recursive=True)
    with system.open_output_stream(file) as stream:
        stream.write(json.dumps(settings).encode())


def _deciding(scoring: Scoring) -> dict[str, Any]:
    """What decides on a row's verdict, as JSON has it."""
    fields = {name: getattr(scoring, name) for name in ("model", "threshold", "windows", "prefix")}
    options = {name: scoring.options.get(name) for name in _DECIDING}
    settings: dict[str, Any] = json.loads(json.dumps({**fields, **scoring.columns, **options}, default=str))
    return settings
