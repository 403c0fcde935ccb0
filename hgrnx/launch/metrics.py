"""A run's metrics for Prometheus, through the exporter that every Ray node has (there they begin with ``ray_``)."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

NAMES = {
    "words": ("hgrnx_words", "Words read"),
    "train/loss": ("hgrnx_loss", "Training loss per token"),
    "train/cross_entropy": ("hgrnx_cross_entropy", "Cross-entropy per token, nats"),
    "train/kl": ("hgrnx_kl", "Divergence from the teacher per token, nats"),
    "train/learning_rate": ("hgrnx_learning_rate", "Learning rate"),
    "train/grad_norm": ("hgrnx_grad_norm", "Norm of the gradient before clipping"),
    "train/epoch": ("hgrnx_epoch", "Epochs done"),
    "train/tokens_per_second": ("hgrnx_tokens_per_second", "Tokens a second, all workers together"),
    "train/step_seconds": ("hgrnx_step_seconds", "Seconds of a step"),
    "train/step_seconds_waiting": ("hgrnx_step_seconds_waiting", "Seconds of a step until its batch was there"),
    "train/step_seconds_updating": ("hgrnx_step_seconds_updating", "Seconds of a step in the optimizer"),
    "train/batches_ready": ("hgrnx_batches_ready", "Batches that the loader had made ahead"),
}
"""Keys of ``metrics.jsonl`` and the metrics they become. Every other key is a ``key`` of :data:`SCORE`."""
SCORE = ("hgrnx_score", "Result of the last evaluation; the key says which")
STEP = ("hgrnx_step", "Optimizer steps done")
DURABLE_STEP = ("hgrnx_checkpoint_step", "Step of the last checkpoint that is whole on disk")


class RayMetrics:
    """A tracker whose values Ray's exporter shows, under the name of the run. Kept nowhere."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges = {key: _gauge(*name) for key, name in NAMES.items()}
        self._score = Gauge(*SCORE, tag_keys=("run", "key"))
        self._step, self._durable = _gauge(*STEP), _gauge(*DURABLE_STEP)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show ``metrics`` from now on."""
        self._step.set(step, self._tags)
        for key, value in metrics.items():
            gauge = self._gauges.get(key)
            if gauge is not None:
                gauge.set(float(value), self._tags)
            else:
                self._score.set(float(value), {**self._tags, "key": key})

    def durable(self, step: int) -> None:
        """Show how much a fault could cost."""
        self._durable.set(step, self._tags)

    def close(self, *, final: bool = False, timeout: float = 10.0) -> int:
        """Nothing is missed: what was not asked for in time is not wanted later."""
        return 0


def _gauge(name: str, description: str) -> Gauge:
    return Gauge(name, description, tag_keys=("run",))
