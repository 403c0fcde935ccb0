"""MLflow: runs with explicit ids, their artifacts, and the publisher of their metrics.

MLflow's fluent interface (``mlflow.start_run``) is not used: its state is global to the process, and
``MLFLOW_RUN_ID`` in the environment overrides the ids that it is given.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hgrnx.config.secrets import redact
from hgrnx.errors import UserError
from hgrnx.tracking.mlflow_store import artifact_root, connect, explained, init_store, load, serve
from hgrnx.tracking.publisher import METRICS, BackgroundPublisher, Follower, Point
from hgrnx.tracking.store_check import check_store, shown
from hgrnx.tracking.tracker import replace_file
from hgrnx.tracking.values import (
    MAX_DATASET,
    MAX_DIGEST,
    MAX_KEY,
    MAX_PARAM,
    MAX_SOURCE,
    MAX_TAG,
    RUN_FILE,
    clean_key,
    columns,
    stored_run_id,
)

__all__ = [
    "MlflowPublisher",
    "check_store",
    "connect",
    "finish_run",
    "init_store",
    "load",
    "log_artifact",
    "log_artifacts",
    "log_figure",
    "log_metrics",
    "log_table",
    "replay",
    "serve",
    "set_tags",
    "start_run",
    "stored_run_id",
]

_ITEMS_PER_BATCH = 100  # MLflow's limit for parameters and for tags
_log = logging.getLogger(__name__)


def start_run(
    uri: str,
    experiment: str,
    name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, Any] | None = None,
    parent_id: str | None = None,
    dataset: Mapping[str, Any] | None = None,
    run_dir: Path | None = None,
) -> str:
    """Begin a run, or go on in the one that ``run_dir`` remembers, and return its id.

    Args:
        params: flat (``hgrnx.config.flatten``). Parameters of an MLflow run can't change: those that differ
            when it is resumed are kept as tags ``resumed.KEY``.
        parent_id: the run under which this one is shown.
        dataset: ``name``, ``hash`` and, optionally, ``source`` (where it lies) and ``profile`` (a dict).
        run_dir: the run's folder, where ``mlflow.json`` is read and written.

    Raises:
        UserError: the store refused; says why.
    """
    with explained(uri):
        client = connect(uri)
        run = _existing_run(client, run_dir)
        if run is None:
            run = client.create_run(_experiment_id(client, uri, experiment), run_name=name[:MAX_KEY])
        else:
            client.update_run(run.info.run_id, status="RUNNING")
        run_id = str(run.info.run_id)
        if run_dir is not None:
            content = {"run_id": run_id, "experiment": experiment, "uri": shown(uri)}
            replace_file(run_dir / RUN_FILE, (json.dumps(content, indent=1) + "\n").encode())

        new_tags = {str(key): str(value) for key, value in (tags or {}).items()}
        new_tags.setdefault("mlflow.source.name", "hgrnx")
        if parent_id is not None:
            new_tags["mlflow.parentRunId"] = parent_id
        known = dict(run.data.params)
        new_params = {}
        for key, value in params.items():
            text = str(value)[:MAX_PARAM]
            if clean_key(key) not in known:
                new_params[clean_key(key)] = text
            elif known[clean_key(key)] != text:
                new_tags[f"resumed.{key}"] = text
        _log_items(client, run_id, new_params, new_tags)
        if dataset is not None:  # the same one again is not recorded twice
            _log_dataset(client, run_id, dataset)
        return run_id


def finish_run(uri: str, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
    """Close the run with ``status``. Raises UserError when the store refuses."""
    with explained(uri):
        connect(uri).set_terminated(run_id, status=status)


def set_tags(uri: str, run_id: str, tags: Mapping[str, Any]) -> None:
    """Set tags of the run; old values are replaced."""
    with explained(uri):
        _log_items(connect(uri), run_id, {}, {key: str(value) for key, value in tags.items()})


def log_metrics(uri: str, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Record single values now, as of a comparison; curves go through :class:`MlflowPublisher`."""
    now = int(time.time() * 1000)
    points = [Point(key, float(value), now, step) for key, value in metrics.items()]
    with explained(uri):
        client = connect(uri)
        for start in range(0, len(points), 1_000):
            _send(client, run_id, points[start : start + 1_000])


def log_artifact(uri: str, run_id: str, path: Path, folder: str | None = None) -> None:
    """Keep a file, or a folder with all in it, among the run's artifacts (under ``folder`` there).

    Checkpoints do not belong here: uploads of large files are slow and time out; log where they lie instead.
    """
    with explained(uri):
        client = connect(uri)
        if path.is_dir():
            client.log_artifacts(run_id, str(path), folder)
        else:
            client.log_artifact(run_id, str(path), folder)


def log_artifacts(uri: str, run_id: str, paths: Iterable[Path], folder: str | None = None) -> None:
    """:func:`log_artifact` for several files."""
    for path in paths:
        log_artifact(uri, run_id, path, folder)


def log_figure(uri: str, run_id: str, path: Path) -> None:
    """Keep an image among the run's artifacts, under ``figures``."""
    log_artifact(uri, run_id, path, "figures")


def log_table(
    uri: str, run_id: str, table: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]], name: str
) -> None:
    """Keep a table (columns, or rows with the same keys) as the artifact ``name``, such as ``"pairs.json"``.

    MLflow's page shows it as a table. Logged again, as by a resumed run, it replaces the old one.
    """
    data = columns(table)
    with explained(uri):
        client = connect(uri)
        folder = name.rpartition("/")[0] or None
        if name in {item.path for item in client.list_artifacts(run_id, folder)}:
            # `log_table` would append to what is there; this is the file that it writes.
            rows = [list(row) for row in zip(*data.values())]
            client.log_dict(run_id, {"columns": list(data), "data": rows}, name)
        else:
            client.log_table(run_id, data, name)


class MlflowPublisher(BackgroundPublisher):
    """A tracker that brings ``metrics_path`` to the MLflow run ``run_id`` without holding up a step.

    Making one imports mlflow, so that no step has to pay for that. See
    :class:`~hgrnx.tracking.publisher.BackgroundPublisher`.
    """

    def __init__(self, uri: str, run_id: str, metrics_path: Path, durable_step: int = 0) -> None:
        load()
        super().__init__(_follower(uri, run_id, metrics_path), durable_step)


def replay(
    uri: str,
    run_id: str,
    run_dir: Path,
    *,
    durable_step: int | None = None,
    timeout: float = 60.0,
    file: str = METRICS,
) -> int:
    """Send what MLflow lacks of a run's ``metrics.jsonl``, now, in this thread. Its errors are not raised.

    Args:
        file: another file of the run of the same form.
        durable_step: only up to this step; None for a finished run, of which everything counts.
        timeout: no further batch is begun after so many seconds.

    Returns:
        Records that are still missing, 0 when MLflow has everything.
    """
    follower = _follower(uri, run_id, run_dir / file)
    if follower.missing(durable_step) and check_store(uri, min(5.0, timeout)) is None:
        try:
            follower.publish(durable_step, deadline=time.monotonic() + timeout)
        except Exception as error:  # a run that is complete on disk does not fail because of MLflow
            reason = redact(str(error).strip().partition("\n")[0])[:160]
            _log.warning("MLflow did not take the metrics of %s: %s", run_dir.name, reason)
    return follower.missing(durable_step)


def _existing_run(client: Any, run_dir: Path | None) -> Any | None:
    run_id = stored_run_id(run_dir) if run_dir is not None else None
    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except load().MlflowException as error:
        # Another store, or the run was purged: start a new one. Any other trouble is not ours to hide.
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _experiment_id(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            # The tag makes MLflow's page open with training runs and their curves, not with its agents' traces.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=artifact_root(uri), tags=tags))
        except load().MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
    if found.lifecycle_stage != "active":
        raise UserError(
            f"The MLflow experiment '{name}' was deleted. Restore it with "
            f"'mlflow experiments restore --experiment-id {found.experiment_id}', or use another name."
        )
    return str(found.experiment_id)


def _send(client: Any, run_id: str, points: Iterable[Point]) -> None:
    metric = load().entities.Metric
    metrics = [metric(clean_key(point.key), point.value, point.timestamp_ms, point.step) for point in points]
    client.log_batch(run_id, metrics=metrics, synchronous=True)


def _follower(uri: str, run_id: str, metrics_path: Path) -> Follower:
    clients: list[Any] = []

    def send(points: Iterable[Point]) -> None:
        if not clients:  # made where it is first used: opening the store may hang
            clients.append(connect(uri))
        _send(clients[0], run_id, points)

    return Follower(metrics_path, run_id, send)


def _log_items(client: Any, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    entities = load().entities
    param_items = [entities.Param(key, redact(value)) for key, value in params.items()]
    tag_items = [entities.RunTag(clean_key(key), redact(value)[:MAX_TAG]) for key, value in tags.items()]
    for start in range(0, max(len(param_items), len(tag_items)), _ITEMS_PER_BATCH):
        part = slice(start, start + _ITEMS_PER_BATCH)
        client.log_batch(run_id, params=param_items[part], tags=tag_items[part], synchronous=True)


def _log_dataset(client: Any, run_id: str, dataset: Mapping[str, Any]) -> None:
    entities = load().entities
    entity = entities.Dataset(
        name=str(dataset["name"])[:MAX_DATASET],
        digest=str(dataset["hash"])[:MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": str(dataset.get("source", ""))})[:MAX_SOURCE],
        profile=json.dumps(dataset.get("profile") or {}),
    )
    tags = [entities.InputTag("mlflow.data.context", "training")]
    client.log_inputs(run_id, datasets=[entities.DatasetInput(entity, tags)])
