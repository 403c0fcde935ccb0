"""Made-up trials, so that searches can be played without training."""

from __future__ import annotations

import math
from typing import Any

from hgrnx.search.trials import Trial

METRIC = "dev/bits_per_byte"


def score(parameters: dict[str, Any]) -> float:
    """Best at a learning rate of 5e-3; the weight matters little, the temperature not at all."""
    distance = math.log(parameters["training.learning_rate"] / 5e-3)
    return 0.9 + 0.1 * distance**2 + 0.005 * parameters["distill.weight"]


def finished(number: int, parameters: dict[str, Any], **fields: Any) -> Trial:
    value = score(parameters)
    points = [{"words": 1000.0, METRIC: value + 0.5}, {"words": 4000.0, METRIC: value}]
    values = {METRIC: value, "seconds": 30.0, "parameters": 1e6, "words": 4000.0}
    return Trial(number, f"run-{number}", parameters, "finished", None, points, values, 40.0, **fields)


def stopped(number: int, parameters: dict[str, Any]) -> Trial:
    points = [{"words": 1000.0, METRIC: score(parameters) + 0.5}]
    return Trial(number, f"run-{number}", parameters, "stopped", "behind", points, seconds=12.0)
