"""Command-line options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path | None, typer.Option(help="Where runs, data and the MLflow database live [HGRNX_HOME].")]
