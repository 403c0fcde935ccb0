"""Names of the metrics by which the best weights of a run can be chosen."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

LOWER_IS_BETTER = ("dev/bits_per_byte", "dev/loss")
_SHARES = ("accuracy", "accuracy_ties_half")


def metric_names(tasks: Sequence[str]) -> list[str]:
    """All but those of single groups of items (``pairs/GROUP/accuracy``), which depend on the data."""
    scored = ["pairs", *(f"tasks/{task}" for task in dict.fromkeys(tasks))]
    if len(averaged(tasks)) > 1:
        scored.append("tasks/mean")
    return [*LOWER_IS_BETTER, *(f"{name}/{share}" for name in scored for share in _SHARES)]


def averaged(tasks: Sequence[str]) -> list[str]:
    """The tasks whose mean is ``tasks/mean``: all but BEAR, whose items have dozens of options instead of two."""
    return [task for task in dict.fromkeys(tasks) if task != "bear"]


def check_metric(
    metric: str,
    tasks: Sequence[str],
    *,
    dev_documents: int | None,
    final_dev_documents: int | None,
    pairs_per_file: int | None,
) -> None:
    """Refuse a metric that cannot exist, or that is not of the same items at every point.

    Names of groups are checked when the data have been read (``hgrnx.evaluation.points.check_best``).

    Raises:
        ValueError: says what is wrong, and the nearest names.
    """
    known = metric_names(tasks)
    parts = metric.split("/")
    group = (parts[0] == "pairs" and len(parts) > 2) or (parts[0] == "tasks" and len(parts) > 3 and parts[1] in tasks)
    if metric not in known and not (group and parts[-1] == "accuracy"):
        raise ValueError(unknown(metric, known))
    for section, key, value, final in (
        ("dev", "dev_documents", dev_documents, final_dev_documents),
        ("pairs", "pairs_per_file", pairs_per_file, None),
    ):
        if parts[0] == section and value != final:
            given, end = ("all" if number is None else f"{number:,}" for number in (value, final))
            remedy = f"Leave {key} out" if final is None else f"Set both {key} and final_{key} to one number"
            raise ValueError(
                f"best={metric} compares points, which must be measured on the same items; but {key} is {given} and "
                f"the end uses {end}. {remedy}"
            )


def unknown(metric: str, known: Sequence[str]) -> str:
    """What to say of a metric that there is not."""
    near = difflib.get_close_matches(metric, dict.fromkeys(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"there is no metric '{metric}' for best; {hint}"
