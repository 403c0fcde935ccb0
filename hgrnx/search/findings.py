"""What came out of a search: the best trial, the Pareto front, which parameters mattered, and what it cost."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hgrnx.config.spaces import Objective, SearchPlan
from hgrnx.search.propose import distribution
from hgrnx.search.trials import Trial

_FEWEST = 4


def best_trial(trials: Sequence[Trial], objective: Objective) -> Trial | None:
    """The finished trial with the best final value, the earliest of equals; None when none has finished."""
    best: Trial | None = None
    for trial in trials:
        if trial.status == "finished" and (
            best is None or objective.better(trial.values[objective.metric], best.values[objective.metric])
        ):
            best = trial
    return best


def pareto_front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The finished trials that no other one equals or beats in all objectives while it beats it in one."""

    def beats(one: Trial, other: Trial) -> bool:
        pairs = [(o, one.values[o.metric], other.values[o.metric]) for o in objectives]
        return not any(o.better(theirs, mine) for o, mine, theirs in pairs) and any(
            o.better(mine, theirs) for o, mine, theirs in pairs
        )

    finished = [trial for trial in trials if trial.status == "finished"]
    return [trial for trial in finished if not any(beats(other, trial) for other in finished)]


def common_reason(trials: Sequence[Trial]) -> str:
    """The most frequent reason of failed trials, and how many had it."""
    ((reason, count),) = Counter(trial.reason or "unknown" for trial in trials).most_common(1)
    return f"{count} of {len(trials)}: {reason}"


@dataclass(frozen=True)
class Comparable:
    """Scores of trials after as many words, so that those that were stopped early take part."""

    words: int
    """Words after which they are taken; the score of a trial is of its first evaluation from there on."""
    scores: dict[int, float]
    """By number of the trial."""


def comparable_scores(trials: Sequence[Trial], objective: Objective) -> Comparable | None:
    """The scores after the first evaluation, which every trial that counts has; None with fewer than two trials."""
    firsts = {
        trial.number: point
        for trial in trials
        if trial.status in ("finished", "stopped")
        for point in [next((point for point in trial.points if objective.metric in point), None)]
        if point is not None
    }
    if len(firsts) < 2:
        return None
    words = max(int(point["words"]) for point in firsts.values())
    return Comparable(words, {number: point[objective.metric] for number, point in firsts.items()})


def importances(plan: SearchPlan, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of the scores' variance that each parameter explains (fANOVA: Hutter et al., 2014), largest first.

    Over the final scores where every trial finished, else over those after the first evaluation. A parameter that
    only some trials have is judged among those; parameters that never differed are left out.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = plan.space.objectives[0]
    done = [trial for trial in trials if trial.status in ("finished", "stopped")]
    if all(trial.status == "finished" for trial in done):
        scores = {trial.number: trial.values[objective.metric] for trial in done}
    else:
        found = comparable_scores(done, objective)
        scores = found.scores if found is not None else {}
    judged = [trial for trial in done if trial.number in scores]
    result: dict[str, float] = {}
    for key in plan.space.parameters:
        having = [trial for trial in judged if key in trial.parameters]
        if len(having) < _FEWEST or len({trial.parameters[key] for trial in having}) < 2:
            continue
        shared = [other for other in plan.space.parameters if all(other in trial.parameters for trial in having)]
        study = optuna.create_study(direction="minimize" if objective.mode == "min" else "maximize")
        for trial in having:
            study.add_trial(
                optuna.trial.create_trial(
                    value=scores[trial.number],
                    params={other: trial.parameters[other] for other in shared},
                    distributions={other: distribution(plan.space.parameters[other]) for other in shared},
                )
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that constant columns explain nothing
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            result[key] = float(optuna.importance.get_param_importances(study, evaluator=evaluator)[key])
    return dict(sorted(result.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds of a search against as many full trainings on the same machines, one after the other."""

    trials: int
    """Trials that gave a score here, finished or stopped early; what the others took is counted all the same."""
    trial_seconds: float
    """From the first trial's start to the last one's end; several may run at once."""
    teacher_seconds: float
    """Of training the teacher."""
    signal_seconds: float
    """Of storing the teacher's signal; 0 where the teacher runs beside the student."""
    full_seconds: float | None
    """Of one full training with the teacher beside the student; None where none was measured."""
    measured_on: str = ""
    """How ``full_seconds`` was measured."""

    @property
    def spent(self) -> float:
        """Everything the search took."""
        return self.trial_seconds + self.teacher_seconds + self.signal_seconds

    @property
    def share(self) -> float | None:
        """Of the time of as many full trainings, without a teacher's; None where nothing was measured."""
        if not self.full_seconds or not self.trials:
            return None
        return self.spent / (self.trials * self.full_seconds)

    @property
    def share_without_teacher(self) -> float | None:
        """The same without training the teacher, which full trainings need as well."""
        return None if self.share is None else self.share * (1 - self.teacher_seconds / self.spent)

    def sentence(self) -> str:
        """For the person."""
        parts = f"{self.trials} trials {_minutes(self.trial_seconds)}, teacher {_minutes(self.teacher_seconds)}"
        if self.signal_seconds:
            parts += f", its stored signal {_minutes(self.signal_seconds)}"
        if self.share is None or self.full_seconds is None:
            return f"Cost: {_minutes(self.spent)} ({parts}); no full training was measured to compare it with."
        sentence = (
            f"Cost: {_minutes(self.spent)} ({parts}), {100 * self.share:.0f}% of {self.trials} full distillations with "
            f"a live teacher ({self.trials} x {_minutes(self.full_seconds)}, {self.measured_on})"
        )
        if self.teacher_seconds and self.share_without_teacher is not None:
            sentence += f"; {100 * self.share_without_teacher:.0f}% without the teacher's training, which they need too"
        return sentence + "."


def measure_cost(
    trials: Sequence[Trial],
    full_words: int,
    trial_seconds: float,
    teacher_seconds: float,
    signal_seconds: float,
    live_ratio: float | None,
) -> Cost:
    """The cost of a search from its trials.

    A trial that ran beside others held its share of the machines: its seconds are divided by how many trials ran at
    once, in the mean over the search.

    Args:
        full_words: words of a full training.
        trial_seconds: from the first trial's start to the last one's end.
        live_ratio: how much longer a step is with the teacher beside the student than with its stored signal, which
            the trials read; None where that was not measured, or the trials ran the teacher themselves, so that one
            of them, run to the end, is a full training.
    """
    counted = [trial for trial in trials if trial.status != "running" and not trial.reused]
    whole = [trial for trial in counted if trial.status == "finished" and trial.words >= full_words]
    at_once = max(1.0, sum(trial.seconds for trial in counted) / trial_seconds) if trial_seconds else 1.0
    numbers = ", ".join(str(trial.number) for trial in whole)
    measured = f"the mean of trial{'s' if len(whole) > 1 else ''} {numbers}"
    full = None
    if whole and (live_ratio is not None or not signal_seconds):
        # The start of the workers and the evaluations are those of the trials; the steps are not.
        beside = [((live_ratio or 1.0) - 1.0) * trial.values["seconds"] for trial in whole]
        full = (sum(trial.seconds for trial in whole) + sum(beside)) / len(whole) / at_once
        if live_ratio is not None:
            measured += f" with steps {live_ratio:.2f} times as long, as measured"
    if at_once >= 1.05:
        measured += f"; {at_once:.1f} trials ran at once"
    return Cost(
        sum(trial.status != "failed" for trial in counted),
        trial_seconds,
        teacher_seconds,
        signal_seconds,
        full,
        measured,
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
