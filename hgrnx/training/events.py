"""``events.jsonl`` of a run: what went wrong or out of the ordinary, and what was done about it.

Metrics are the same however often a run was disturbed, so this is where a disturbance is seen. Lines are only
added, by rank 0; a run that resumes keeps them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
"""Name of the file in a run's folder."""
_log = logging.getLogger(__name__)


class EventLog:
    """Appends events to ``path``; ``say`` is told each as a sentence as well."""

    def __init__(self, path: Path | None, say: Callable[[str], None] | None = None) -> None:
        self._path, self._say = path, say

    def add(self, kind: str, text: str, **facts: Any) -> None:
        """Record ``kind`` with its ``facts``. A disk that refuses does not end the run because of this."""
        if self._path is None:
            return
        _log.warning("%s", text)
        line = json.dumps({"time": round(time.time(), 3), "event": kind, "text": text, **facts}) + "\n"
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(line)
        if self._say is not None:
            self._say(text)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events in ``path``, in order; none where there is no file. A line cut short is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events
