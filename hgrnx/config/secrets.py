"""Tokens and passwords by their looks: refused in recipes, blotted out of what is shown or stored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_HIDDEN = "***"
_SHAPES = re.compile(
    "|".join(
        (
            r"\bhf_[A-Za-z0-9]{16,}",  # Hugging Face
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS
            r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
            r"\bglpat-[\w-]{16,}",
            r"\bsk-[A-Za-z0-9_-]{20,}",
            r"\bxox[abprs]-[\w-]{10,}",  # Slack
            r"\bdapi[0-9a-f]{32}\b",  # Databricks
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
            r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)",  # user:password of a URI
            # password=..., &token=..., "secret_access_key: ..."
            r"(?i:(?<![a-z])(?:[a-z0-9]+[_-])*(?:password|passwd|pwd|token|secret|secret[_-]access[_-]key|api[_-]?key))"
            r"\s*[=:]\s*[^\s&;,'\"*]{4,}",
        )
    )
)


def redact(text: str) -> str:
    """``text`` with ``***`` for all that looks like a token or a password."""
    return _SHAPES.sub(_HIDDEN, text)


def find_secrets(values: Any, key: str = "") -> Iterator[str]:
    """Dotted keys in ``values`` (dicts, lists, strings) whose text looks as if it held a secret."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from find_secrets(value, f"{key}.{name}" if key else str(name))
            if _SHAPES.search(str(name)):
                yield redact(str(name))
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from find_secrets(value, f"{key}.{index}" if key else str(index))
    elif isinstance(values, str) and _SHAPES.search(values):
        yield redact(key)
