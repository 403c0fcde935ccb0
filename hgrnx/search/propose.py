"""What to try next: a function of the space, its seed and the trials so far, so a resumed search goes on as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hgrnx.config.spaces import Choice, IntRange, LogUniform, Parameter, Quantized, SearchPlan, Uniform
from hgrnx.search.trials import Trial

_ATTEMPTS = 50


def propose(plan: SearchPlan, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Parameters of the next trial; None when the space has no point that was not tried.

    The first trial of TPE is the recipe as it is, where the space has it: what is found is never worse. Each proposal
    draws from (seed, number of the trial), not from what a process drew before.
    """
    number = len(trials)
    if plan.space.search == "grid":
        points = plan.grid()
        return points[number] if number < len(points) else None
    if plan.space.search == "tpe" and number == 0:
        own = plan.own_values()
        if own is not None:
            return dict(own)
    tried = [trial.parameters for trial in trials]
    for attempt in range(_ATTEMPTS):
        found = _ask(plan, trials, attempt)
        if found not in tried:
            return found
    return None


def _ask(plan: SearchPlan, trials: Sequence[Trial], attempt: int) -> dict[str, Any]:
    import optuna

    seed = int(np.random.SeedSequence([plan.space.seed, len(trials), attempt]).generate_state(1)[0])
    if plan.space.search == "random":
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        budget = plan.space.budget.trials or 40
        startup = max(4, min(10, budget // 3))
        # constant_liar: trials that still run count as poor, so that several at once don't try the same place.
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
    trial = study_of(plan, trials, sampler).ask()
    chosen: dict[str, Any] = {}
    for key, parameter in plan.active(chosen):
        chosen[key] = _suggest(trial, key, parameter)
    return chosen


def study_of(plan: SearchPlan, trials: Sequence[Trial], sampler: Any = None) -> Any:
    """An Optuna study in memory that knows ``trials``: what was stopped as pruned, with its curve."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objectives = plan.space.objectives
    study = optuna.create_study(
        directions=["minimize" if objective.mode == "min" else "maximize" for objective in objectives],
        sampler=sampler,
    )
    for trial in trials:
        parameters = {key: value for key, value in trial.parameters.items() if key in plan.space.parameters}
        study.add_trial(
            optuna.trial.create_trial(
                state=_state(trial),
                values=[trial.values[objective.metric] for objective in objectives]
                if trial.status == "finished"
                else None,
                params=parameters,
                distributions={key: distribution(plan.space.parameters[key]) for key in parameters},
                intermediate_values={
                    int(point["words"]): point[objectives[0].metric]
                    for point in trial.points
                    if objectives[0].metric in point
                },
            )
        )
    return study


def distribution(parameter: Parameter) -> Any:
    """A parameter in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match parameter:
        case Uniform():
            return FloatDistribution(parameter.low, parameter.high)
        case LogUniform():
            return FloatDistribution(parameter.low, parameter.high, log=True)
        case Quantized():
            return FloatDistribution(parameter.low, parameter.high, step=parameter.step)
        case IntRange():
            return IntDistribution(parameter.low, parameter.high, step=parameter.step, log=parameter.log)
        case Choice():
            return CategoricalDistribution(parameter.options)


def _state(trial: Trial) -> Any:
    from optuna.trial import TrialState

    return {
        "running": TrialState.RUNNING,
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }[trial.status]


def _suggest(trial: Any, key: str, parameter: Parameter) -> Any:
    found = distribution(parameter)
    if isinstance(parameter, Choice):
        return trial.suggest_categorical(key, found.choices)
    if isinstance(parameter, IntRange):
        return trial.suggest_int(key, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
    value = trial.suggest_float(key, parameter.low, parameter.high, step=found.step, log=found.log)
    return parameter.rounded(value)
