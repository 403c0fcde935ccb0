"""The weights that a run ended, or stands, with."""

from __future__ import annotations

from pathlib import Path

import torch

from hgrnx.errors import UserError
from hgrnx.training.checkpoint import latest_checkpoint, load_weights


def last_checkpoint(run_dir: Path) -> Path:
    """The folder of a run's last whole checkpoint.

    Raises:
        UserError: the run has none.
    """
    folder = latest_checkpoint(run_dir / "checkpoints")
    if folder is None:
        raise UserError(f"The run {run_dir} has no checkpoint yet. Start it again to continue it.")
    return folder


def last_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's last whole checkpoint, by parameter name. Raises like :func:`last_checkpoint`."""
    return load_weights(last_checkpoint(run_dir))
