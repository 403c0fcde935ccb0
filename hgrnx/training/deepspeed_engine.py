"""The engine on DeepSpeed: ZeRO stages 0 to 3, on GPUs and on CPUs.

It is set up so that it computes what :class:`~hgrnx.training.engine.TorchEngine` computes. The weights and
the AdamW are torch's own, in float32; bf16 is autocast (``torch_autocast``), not DeepSpeed's bf16 weights;
gradients are exchanged in float32. Checkpoints hold whole tensors by name instead of DeepSpeed's own files,
which load on no other stage or number of processes.

The only module that imports deepspeed, and only when an engine is made. What it touches beyond DeepSpeed's
documented interface is marked "internal" and covered by the tests on every stage.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from hgrnx.config import LaunchConfig, TrainingConfig
from hgrnx.errors import UserError
from hgrnx.training.distributed import rank_and_world
from hgrnx.training.engine import (
    Engine,
    EngineState,
    check_all_micro,
    check_last_micro,
    check_state,
    choose_device,
    cpu_copy,
    micro_steps_per_step,
    moments_by_name,
    trained_parameters,
)
from hgrnx.training.muon import Shards
from hgrnx.training.optim import MOMENTS, make_optimizer, moments_of

if TYPE_CHECKING:
    from hgrnx.objectives import ObjectiveModule, ObjectiveOutput

_BUCKET = 50_000_000
"""Elements of the buffer in which gradients are exchanged; DeepSpeed's own 500 million take 2 GB."""

KEPT_WHOLE = 100_000
"""Stage 3 leaves parameters with fewer elements whole on every rank: gathering them costs more than it saves."""


class DeepSpeedEngine(Engine):
    """DeepSpeed around an ObjectiveModule; ``launch.zero_stage`` says what is sharded over the processes."""

    def __init__(self, module: ObjectiveModule, training: TrainingConfig, launch: LaunchConfig) -> None:
        self.device = choose_device(launch)
        deepspeed = _import_deepspeed(self.device)
        _start_alone(self.device)
        self.rank, self.world_size = rank_and_world()
        self.micro_steps = micro_steps_per_step(training, launch, self.world_size)
        self._stage = launch.zero_stage
        assert training.optimizer != "muon" or self._stage < 3, "the recipe is refused"
        self._max_grad_norm = training.max_grad_norm
        self._micro = 0
        module = module.to(self.device)
        # Taken before ZeRO-3 empties the parameters. They stay the same objects.
        self._parameters = trained_parameters(module)
        self._shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        size = sum(shape.numel() for shape in self._shapes.values())
        self._optimizer = make_optimizer(module.model, training)
        self.moments = moments_by_name(self._parameters, self._optimizer)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._optimizer,
            config=_settings(training, self._stage, self.world_size, self.micro_steps, min(_BUCKET, size)),
            dist_init_required=False if deepspeed.comm.is_initialized() else None,
        )
        if self._stage in (1, 2):
            self._tell_muon_its_shards()
        self._make_moments(0)

    def forward(
        self, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None, chunks: Sequence[int] = ()
    ) -> ObjectiveOutput:
        self._engine.train()
        return self._engine(inputs, targets, cu_seqlens, chunks)

    def backward(self, loss_sum: Tensor, global_count: int, last_micro: bool) -> None:
        check_last_micro(self._micro, self.micro_steps, last_micro)
        # DeepSpeed averages over the ranks; that it also divides by the micro-batches is switched off.
        self._engine.backward(loss_sum * (self.world_size / global_count), scale_wrt_gas=False)
        self._micro += 1
        if not last_micro:
            self._engine.step()  # only counts the micro-batch

    def step(self, learning_rate: float) -> float:
        check_all_micro(self._micro, self.micro_steps)
        norm = self._clip() if self._stage == 0 else None
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        self._micro = 0
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._parameters.items():
            # Below stage 3 every rank has the whole float32 weights anyway.
            yield name, safe_get_full_fp32_param(parameter) if self._stage == 3 else parameter.detach()

    def state(self) -> EngineState:
        moments: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self._parameters.items():
            for moment in self.moments[name]:
                moments.setdefault(moment, {})[name] = self._whole_moment(parameter, moment)
        (updates,) = {int(found["step"]) for found in self._optimizer.state.values()}
        return EngineState(self.weights(), moments, updates)

    @torch.no_grad()
    def load_state(self, state: EngineState) -> None:
        check_state(state, self._shapes, self.moments)
        self._make_moments(state.optimizer_step)
        for name, parameter in self._parameters.items():
            self._fill(parameter, state.weights[name], None)
            for moment in self.moments[name]:
                self._fill(parameter, state.optimizer[moment][name], moment)
        self._engine.optimizer.zero_grad()
        self._micro = 0

    def close(self) -> None:
        self._engine.destroy()

    def _clip(self) -> Tensor:
        """Stage 0 in float32 neither reports the norm nor looks at it, so the clipping is done here."""
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm)
        if not torch.isfinite(norm):
            for parameter in self._parameters.values():
                parameter.grad = None  # AdamW passes it over, as stages 1 to 3 do with such a step
        return norm

    def _tell_muon_its_shards(self) -> None:
        """Stages 1 and 2 put one flat tensor, this rank's part of the group, in the place of a group's matrices."""
        zero = self._engine.optimizer
        for number, group in enumerate(self._optimizer.param_groups):
            if group.get("muon"):
                # Internal: the group's parameters in the order in which they lie in the flat tensor, and where.
                places = zip(zero.round_robin_bit16_groups[number], zero.round_robin_bit16_offsets[number], strict=True)
                matrices = [(offset, parameter.shape) for parameter, offset in places]
                group["shards"] = Shards(self.rank, self.world_size, matrices)

    def _whole_moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """A moment of ``parameter``, gathered from all ranks."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if self._stage == 0:  # the getter knows sharded states only
            return cpu_copy(self._optimizer.state[parameter][moment])
        return cpu_copy(safe_get_full_optimizer_state(parameter, moment))

    def _fill(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Every rank takes its part of ``value``: the weights (``moment`` None) or a moment of ``parameter``."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.to(self.device, torch.float32)
        if self._stage == 3:
            shard = _shard(value, parameter.ds_tensor.numel(), self.rank)  # type: ignore[attr-defined]
            if moment is not None:
                safe_set_local_optimizer_state(parameter, shard, moment)
                return
            safe_set_local_fp32_param(parameter, shard)
            self._refill_gathered(parameter, value)
        elif moment is None:
            parameter.copy_(value)
            if self._stage > 0:
                safe_set_full_fp32_param(parameter, value)  # the optimizer's own copy
        elif self._stage == 0:
            self._optimizer.state[parameter][moment].copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _refill_gathered(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Overwrite what stage 3 computes with: its shards, and the small parameters it keeps whole."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)

    def _make_moments(self, updates: int) -> None:
        """Give the optimizer the state it otherwise makes in its first step, so that it can be read and filled.

        DeepSpeed alone would not do: in the first step at stages 1 and 2 it links the parameters of all groups
        to their states when only the first group has any.
        """
        zero = self._engine.optimizer
        # Below stage 3 the optimizer's parameters are what it steps.
        tensors: dict[Any, tuple[str, ...]] = dict(moments_of(self._optimizer))
        if self._stage == 3:
            tensors = dict.fromkeys(zero.fp32_partitioned_groups_flat, MOMENTS)  # internal
        for tensor, moments in tensors.items():
            self._optimizer.state[tensor] = {
                "step": torch.tensor(float(updates), device=self.device),
                **{moment: torch.zeros_like(tensor) for moment in moments},
            }
        if self._stage in (1, 2):
            # Internal: point the parameters into the new states.
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()


def _settings(training: TrainingConfig, stage: int, world_size: int, micro_steps: int, bucket: int) -> dict[str, Any]:
    """DeepSpeed's configuration."""
    return {
        "train_micro_batch_size_per_gpu": training.batch_size // world_size // micro_steps,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": training.max_grad_norm if stage else 0.0,  # at stage 0 in _clip
        "zero_allow_untested_optimizer": True,  # "untested" is any that is not DeepSpeed's, torch's AdamW too
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_param_persistence_threshold": KEPT_WHOLE,
        },
        "torch_autocast": {
            "enabled": training.precision == "bf16",
            "dtype": "bfloat16",
            # Modules whose gradients may be summed over the ranks in bf16. None: DDP sums in float32.
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": None,
    }


def _import_deepspeed(device: torch.device) -> Any:
    """Import deepspeed for ``device``, quietly, and without compiling anything."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # it would take a GPU that is there
    # It reads its GPU's number here; choose_device has settled it.
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"launch.engine=deepspeed needs the package deepspeed, which cannot be imported ({error}). "
            "Install it, or use launch.engine=torch."
        ) from None
    found = deepspeed.accelerator.get_accelerator().device_name()
    if found.split(":")[0] != device.type:
        raise UserError(
            f"In this process DeepSpeed already works on '{found}' and cannot change to '{device.type}' "
            "(launch.use_gpu). Start a new process, check DS_ACCELERATOR, or use launch.engine=torch."
        )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # An all-reduce for inference on CPUs, which training never calls. DeepSpeed would compile it with g++ on
    # first use (half a minute) and fail where there is no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Its own use of torch, which the user cannot change.
    warnings.filterwarnings("ignore", r".*(all_gather_into|reduce_scatter)_tensor. is deprecated", FutureWarning)
    return deepspeed


def _start_alone(device: torch.device) -> None:
    """DeepSpeed needs a process group even for one process; without one yet, make it, with no port."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _shard(value: Tensor, size: int, rank: int) -> Tensor:
    """The ``rank``-th piece of ``size`` elements of ``value``; the last pieces are padded with zeros."""
    piece = value.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(piece, (0, size - piece.numel()))
