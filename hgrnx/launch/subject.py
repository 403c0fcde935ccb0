"""The model that is scored and the tasks that it is asked, as the driver and every worker open them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hgrnx.data.tokenizer import BOS
from hgrnx.errors import UserError
from hgrnx.evaluation.catalogue import Plan, plan_tasks
from hgrnx.evaluation.glue import GlueProgress, Tuner
from hgrnx.evaluation.results import weights_hash
from hgrnx.evaluation.scorer import Scorer
from hgrnx.launch.task_request import TaskRequest
from hgrnx.models import LanguageModel
from hgrnx.ops.cpu import guard_bf16_products, keep_freed_memory
from hgrnx.runs import open_folder


@dataclass(frozen=True)
class OpenedSubject:
    """A model on its device, with its tokenizer."""

    folder: Path
    model: LanguageModel
    weights: str
    """Hash of them."""
    tokenizer: Any
    bos_id: int
    request: TaskRequest

    def scorer(self) -> Scorer:
        return Scorer(self.model, self.tokenizer, self.bos_id, self.request.precision)

    def tuner(self, on_progress: Callable[[GlueProgress], None]) -> Tuner:
        """Fine-tunes copies that are read anew, on the same device."""
        device = self.model.head_weight.device
        return Tuner(lambda: open_folder(self.folder).model, self.tokenizer, self.bos_id, device, on_progress)


def open_subject(folder: Path, request: TaskRequest, device: str) -> OpenedSubject:
    """Read a run's newest weights, or a Hugging Face folder.

    Raises:
        UserError: it is incomplete, or its tokenizer has no BOS.
    """
    if "bf16" in {request.precision, request.glue.precision, *(own.precision for own in request.glue.tasks.values())}:
        guard_bf16_products()
    if device == "cpu":
        keep_freed_memory()
    opened = open_folder(folder)
    tokenizer = opened.tokenizer()
    bos_id = tokenizer.token_to_id(BOS)
    if bos_id is None:
        raise UserError(f"The tokenizer of {folder} has no token '{BOS}', with which every text begins.")
    return OpenedSubject(folder, opened.model.to(device), weights_hash(opened.model), tokenizer, bos_id, request)


def own_device() -> str:
    """Of a process that has the machine to itself."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def find_tasks(request: TaskRequest, names: Sequence[str] | None) -> Plan:
    """See :func:`~hgrnx.evaluation.catalogue.plan_tasks`."""
    return plan_tasks(names, request.data, bear_templates=request.bear_templates, bear_reduction=request.bear_reduction)
