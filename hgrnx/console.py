"""The terminal, or the file that stands in for one."""

from __future__ import annotations

import sys

from rich.console import Console


def make_console() -> Console:
    """A console as wide as the terminal; where there is none, wide enough for every table of ours."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
