"""What turns losses into new weights: the engine's contract, and the one that needs nothing but torch.

An engine owns the optimizer and the gradients, and hides how many processes share the work. The loss of a
step is a sum over the tokens of the *global* batch divided by their *global* number, so that 1 worker x 8
micro-batches, 2 x 4 and 4 x 2 give the same gradient. One step is::

    for inputs, targets in micro_batches:  # engine.micro_steps of them, this rank's rows
        output = engine.forward(inputs, targets)
        engine.backward(output.loss_sum, global_count, last_micro)
    grad_norm = engine.step(learning_rate)
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hgrnx.config import LaunchConfig, TrainingConfig
from hgrnx.errors import UserError
from hgrnx.ops.cpu import guard_bf16_products
from hgrnx.training.distributed import rank_and_world
from hgrnx.training.optim import make_optimizer, moments_of

if TYPE_CHECKING:
    from hgrnx.objectives import ObjectiveModule, ObjectiveOutput


@dataclass
class EngineState:
    """All a training needs to go on, in one form for every engine, ZeRO stage and number of processes.

    ``weights`` are by the names of the LanguageModel's parameters (a tied weight comes once), ``optimizer``
    by moment, then by the same names: ``{"exp_avg": {...}, "exp_avg_sq": {...}}``, and with Muon
    ``{"momentum_buffer": {...}}`` for its matrices instead. Every tensor is whole, float32 and on the CPU.
    ``optimizer_step`` counts the updates made.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    optimizer_step: int


class Engine(ABC):
    """One process's share of a training. Every method is collective: all ranks call it, in the same order.

    Attributes:
        device: Where the weights are and where inputs must be.
        rank, world_size: This process among those that train together.
        micro_steps: Micro-batches (forward and backward) per step on every rank.
        moments: Names of the running averages that the optimizer keeps, by the parameter's name.
    """

    device: torch.device
    rank: int
    world_size: int
    micro_steps: int
    moments: Mapping[str, tuple[str, ...]]

    @abstractmethod
    def forward(
        self, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None, chunks: Sequence[int] = ()
    ) -> ObjectiveOutput:
        """The objective on this rank's micro-batch, int64 ``[B, T]`` each. Only for training.

        ``chunks`` says which pieces of the training text these are, for an objective that has something stored of it.
        """

    @abstractmethod
    def backward(self, loss_sum: Tensor, global_count: int, last_micro: bool) -> None:
        """Add the gradient of ``loss_sum / global_count``.

        ``loss_sum`` is the sum over this micro-batch's tokens, ``global_count`` the number of valid tokens in
        the whole step: all ranks, all micro-batches. ``last_micro`` marks the ``micro_steps``-th.
        """

    @abstractmethod
    def step(self, learning_rate: float) -> float:
        """Clip, update the weights, clear the gradients. Returns the global gradient norm before clipping.

        Where that norm is not finite (inf or NaN is then returned) the weights stay as they were.
        """

    def weights(self) -> dict[str, Tensor]:
        """Whole float32 CPU copies of the LanguageModel's parameters by name, on every rank."""
        return {name: cpu_copy(weight) for name, weight in self.whole_weights()}

    @abstractmethod
    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole value of each of the LanguageModel's parameters, on every rank, one after the other.

        Only to look at, before the next step: where possible these are the weights themselves, not copies.
        """

    @abstractmethod
    def state(self) -> EngineState:
        """A copy of all that :meth:`load_state` needs, on every rank."""

    @abstractmethod
    def load_state(self, state: EngineState) -> None:
        """Continue from ``state``, whichever engine made it.

        Raises:
            UserError: names or shapes are not those of this model.
        """

    def initial_state(self, weights: Mapping[str, Tensor]) -> EngineState:
        """The state before the first update of a training that begins with ``weights``."""
        moments: dict[str, dict[str, Tensor]] = {}
        for name, kinds in self.moments.items():
            for moment in kinds:
                moments.setdefault(moment, {})[name] = torch.zeros_like(weights[name])
        return EngineState(dict(weights), moments, 0)

    def close(self) -> None:  # noqa: B027 (most engines hold nothing that must be let go)
        """Let go of what the engine opened by itself, such as a process group of one. Safe to call twice."""


class TorchEngine(Engine):
    """Plain torch: one CPU or GPU, or several with DistributedDataParallel (gloo on CPU, nccl on GPU)."""

    def __init__(self, module: ObjectiveModule, training: TrainingConfig, launch: LaunchConfig) -> None:
        self.rank, self.world_size = rank_and_world()
        self.device = choose_device(launch)
        self.micro_steps = micro_steps_per_step(training, launch, self.world_size)
        self._precision = training.precision
        self._max_grad_norm = training.max_grad_norm
        self._module = module.to(self.device)
        self._parameters = trained_parameters(module)
        self._optimizer = make_optimizer(module.model, training)
        self.moments = moments_by_name(self._parameters, self._optimizer)
        self._ddp: DistributedDataParallel | None = None
        if self.world_size > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self._ddp = DistributedDataParallel(self._module, device_ids=ids, gradient_as_bucket_view=True)
        self._micro = 0

    def forward(
        self, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None, chunks: Sequence[int] = ()
    ) -> ObjectiveOutput:
        self._module.train()
        with self._silent(), autocast(self.device, self._precision):
            return (self._ddp or self._module)(inputs, targets, cu_seqlens, chunks)

    def backward(self, loss_sum: Tensor, global_count: int, last_micro: bool) -> None:
        check_last_micro(self._micro, self.micro_steps, last_micro)
        with self._silent():
            # DDP averages over the ranks; the loss is a share of a sum.
            (loss_sum * (self.world_size / global_count)).backward()
        self._micro += 1

    def step(self, learning_rate: float) -> float:
        check_all_micro(self._micro, self.micro_steps)
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if torch.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._micro = 0
        return float(norm)

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        return iter((name, parameter.detach()) for name, parameter in self._parameters.items())

    def state(self) -> EngineState:
        moments: dict[str, dict[str, Tensor]] = {}
        updates = 0
        for name, parameter in self._parameters.items():
            found = self._optimizer.state.get(parameter, {})
            updates = int(found.get("step", 0))
            for moment in self.moments[name]:
                # Before the first update there is nothing; zeros are what the optimizer starts from.
                value = found.get(moment, torch.zeros_like(parameter))
                moments.setdefault(moment, {})[name] = cpu_copy(value)
        return EngineState(self.weights(), moments, updates)

    @torch.no_grad()
    def load_state(self, state: EngineState) -> None:
        check_state(state, {name: parameter.shape for name, parameter in self._parameters.items()}, self.moments)
        for name, parameter in self._parameters.items():
            parameter.copy_(state.weights[name])
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(state.optimizer_step), device=self.device),
                **{
                    moment: state.optimizer[moment][name].to(self.device, torch.float32, copy=True)
                    for moment in self.moments[name]
                },
            }
        self._optimizer.zero_grad(set_to_none=True)
        self._micro = 0

    def _silent(self) -> contextlib.AbstractContextManager[None]:
        """No exchange of gradients before the last micro-batch; DDP decides that in forward already."""
        if self._ddp is not None and self._micro < self.micro_steps - 1:
            return self._ddp.no_sync()
        return contextlib.nullcontext()


def build_engine(module: ObjectiveModule, training: TrainingConfig, launch: LaunchConfig) -> Engine:
    """The engine named by ``launch.engine`` around ``module``, which it moves to its device.

    The caller has initialised torch.distributed when several processes train together. Frozen teachers are no
    part of ``module``'s tree, so no engine shards, updates or saves them.

    Raises:
        UserError: a GPU or DeepSpeed is asked for and not there, or the batch does not divide.
    """
    if training.precision == "bf16" and not launch.use_gpu:
        guard_bf16_products()
    if launch.engine == "torch":
        return TorchEngine(module, training, launch)
    from hgrnx.training.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(module, training, launch)


def choose_device(launch: LaunchConfig) -> torch.device:
    """The CPU, or with ``launch.use_gpu`` this process's GPU (``LOCAL_RANK``, set by torchrun and Ray)."""
    if not launch.use_gpu:
        return torch.device("cpu")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    # A launcher may show each process its own GPU only, which then is number 0 for all of them.
    index = 0 if seen == 1 else local_rank
    if index >= seen:
        raise UserError(
            f"launch.use_gpu is true, but torch sees {seen} GPUs and this process needs number {index}. "
            "Start fewer workers (launch.num_workers), or run on the CPU with launch.use_gpu=false."
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def micro_steps_per_step(training: TrainingConfig, launch: LaunchConfig, world_size: int) -> int:
    """How many micro-batches of ``launch.micro_batch_size`` make each rank's share of the global batch."""
    share, rest = divmod(training.batch_size, world_size)
    if rest:
        raise UserError(f"training.batch_size={training.batch_size} must be a multiple of the {world_size} processes.")
    micro = launch.micro_batch_size or share
    if share % micro:
        raise UserError(
            f"launch.micro_batch_size={micro} must divide the {share} sequences of each process "
            f"(training.batch_size={training.batch_size} / {world_size} processes)."
        )
    return share // micro


def trained_parameters(module: ObjectiveModule) -> dict[str, nn.Parameter]:
    """The LanguageModel's parameters by its own names; a tied weight comes once."""
    return dict(module.model.named_parameters())


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 autocast around float32 weights for ``bf16``, nothing for ``fp32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def check_last_micro(micro: int, micro_steps: int, last_micro: bool) -> None:
    """Caller and engine must agree on which micro-batch is the last: gradients are exchanged there."""
    assert last_micro == (micro == micro_steps - 1), f"micro-batch {micro} of {micro_steps}, last_micro={last_micro}"


def check_all_micro(micro: int, micro_steps: int) -> None:
    """A step needs all its micro-batches, for the same reason."""
    assert micro == micro_steps, f"step after {micro} of {micro_steps} micro-batches"


def moments_by_name(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, tuple[str, ...]]:
    """Names of the running averages that ``optimizer`` keeps for each of ``parameters``."""
    moments = moments_of(optimizer)
    return {name: moments[parameter] for name, parameter in parameters.items()}


def check_state(state: EngineState, shapes: Mapping[str, torch.Size], moments: Mapping[str, tuple[str, ...]]) -> None:
    """Raise :class:`UserError` unless weights and moments are those of a model with these parameters."""
    expected = {
        moment: {n: shapes[n] for n in shapes if moment in moments[n]} for moment in {*chain(*moments.values())}
    }
    if absent := sorted(expected.keys() - state.optimizer.keys()):
        raise UserError(f"The checkpoint lacks the optimizer's {' and '.join(absent)}. Start anew with --fresh.")
    found = {"weights": state.weights, **state.optimizer}
    for kind, wanted in {"weights": shapes, **expected}.items():
        tensors = found[kind]
        missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        wrong = [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(shape)}"
            for name, shape in wanted.items()
            if name in tensors and tensors[name].shape != shape
        ]
        problems = [
            f"{what}: {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
            for what, names in (("missing", missing), ("unknown", extra), ("shape", wrong))
            if names
        ]
        if problems:
            raise UserError(
                f"The checkpoint is of another model ({kind}; {'; '.join(problems)}). "
                "Continue with the recipe it was made with, or start anew with --fresh."
            )


def cpu_copy(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU that shares no memory with anything."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
