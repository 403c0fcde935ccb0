"""An exponential moving average of the weights, around any engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hgrnx.objectives import ObjectiveOutput
from hgrnx.training.engine import Engine, EngineState

_TRAINED = "weights"
"""Under this name a state's ``optimizer`` holds what the training goes on from; ``weights`` are the average."""


class AveragingEngine(Engine):
    """``engine``, with the average of its weights as the weights that it gives away.

    Every ``every`` updates the weights are looked at. After n looks the average is the sum of d^(n - i) w_i over
    i = 1 ... n divided by that of d^(n - i), with d = 2^(-every / half_life): the initial weights are not in it.
    Before the first look, the weights are given away as they are.

    The average lies where the weights lie, whole on every rank (as they do up to ZeRO stage 2).
    """

    def __init__(self, engine: Engine, half_life: int, every: int) -> None:
        self.engine, self.every = engine, every
        self.device, self.rank, self.world_size = engine.device, engine.rank, engine.world_size
        self.micro_steps, self.moments = engine.micro_steps, engine.moments
        self._decay = 0.5 ** (every / half_life)
        self._average: dict[str, Tensor] = {}
        self._updates = 0

    def forward(
        self, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None, chunks: Sequence[int] = ()
    ) -> ObjectiveOutput:
        return self.engine.forward(inputs, targets, cu_seqlens, chunks)

    def backward(self, loss_sum: Tensor, global_count: int, last_micro: bool) -> None:
        self.engine.backward(loss_sum, global_count, last_micro)

    def step(self, learning_rate: float) -> float:
        norm = self.engine.step(learning_rate)
        if math.isfinite(norm):
            self._updates += 1
            if self._updates % self.every == 0:
                self._look(self._updates // self.every)
        return norm

    @torch.no_grad()
    def _look(self, looks: int) -> None:
        share = (1 - self._decay) / (1 - self._decay**looks)  # 1 at the first
        for name, weight in self.engine.whole_weights():
            if looks == 1:
                self._average[name] = weight.to(torch.float32, copy=True)
            else:
                self._average[name].lerp_(weight, share)

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._average.items()) if self._average else self.engine.whole_weights()

    def state(self) -> EngineState:
        state = self.engine.state()
        if not self._average:
            return state
        return EngineState(self.weights(), {**state.optimizer, _TRAINED: state.weights}, state.optimizer_step)

    def load_state(self, state: EngineState) -> None:
        optimizer = dict(state.optimizer)
        trained = optimizer.pop(_TRAINED, None)
        weights = state.weights if trained is None else trained
        self.engine.load_state(EngineState(weights, optimizer, state.optimizer_step))
        self._updates = state.optimizer_step
        self._average = {}
        if trained is not None:
            self._average = {name: weight.to(self.device, copy=True) for name, weight in state.weights.items()}

    def close(self) -> None:
        self.engine.close()
