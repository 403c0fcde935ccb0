"""Values in the form and within the limits that MLflow takes; one beyond them would refuse a whole request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_PARAM, MAX_TAG, MAX_DIGEST, MAX_DATASET, MAX_SOURCE = 6_000, 5_000, 36, 500, 65_535
MAX_KEY = 250

RUN_FILE = "mlflow.json"
"""In a run folder: which MLflow run it is, so that a resumed run goes on in the same one."""


def clean_key(key: str) -> str:
    """``key`` in the characters and the length that MLflow takes for metrics, parameters and tags."""
    parts = [part for part in re.sub(r"[^/\w.\- :]", "_", key).split("/") if part not in {"", ".", ".."}]
    return ("/".join(parts) or "_")[:MAX_KEY]


def columns(table: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A table by column, from columns or from rows; cells that a row lacks are None."""
    if isinstance(table, Mapping):
        return {key: list(values) for key, values in table.items()}
    keys = list(dict.fromkeys(key for row in table for key in row))
    return {key: [row.get(key) for row in table] for key in keys}


def stored_run_id(run_dir: Path) -> str | None:
    """The id of the MLflow run that belongs to a run folder, None when it has none."""
    try:
        return str(json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["run_id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
