"""Measuring a model: held-out text and minimal pairs."""

from __future__ import annotations

from hgrnx.evaluation.suite import EvaluationResult, evaluate, evaluate_pairs

__all__ = ["EvaluationResult", "evaluate", "evaluate_pairs"]
