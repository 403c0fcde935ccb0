"""The scores of benchmark tasks (``tasks.json``) as a table on the terminal and as a figure. Reads files only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrnx.report.paper import DISTILLED_10M, DISTILLED_10M_PARTS
from hgrnx.report.plots import STYLE, bar_colour, save_figure

if TYPE_CHECKING:
    from rich.console import Console

TITLES = {
    "blimp": "BLiMP",
    "blimp_fast": "BLiMP (fast)",
    "supplement": "BLiMP Supplement",
    "supplement_fast": "BLiMP Supplement (fast)",
    "ewok": "EWoK",
    "ewok_fast": "EWoK (fast)",
    "bear": "BEAR",
    "glue": "(Super)GLUE",
}
"""What people call the tasks."""

CHANCE = {"blimp", "blimp_fast", "supplement", "supplement_fast", "ewok", "ewok_fast"}
"""Tasks of two options each, of which half is chance."""


def print_task_scores(content: Mapping[str, Any], console: Console) -> None:
    """Print each task with its groups: our column, in which a tie counts half, and the official one beside it."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for column in ("items", "score, %", "±", "official, %", "ties"):
        table.add_column(column, justify="right")
    for task, tables in content["tasks"].items():
        title = TITLES.get(task, task)
        metrics = {row["name"]: row["metric"] for row in tables.get("details", [])}
        if tables["overall"] is not None:
            table.add_row(title, *_cells(tables["overall"]), style="bold")
        else:
            table.add_row(f"{title} (in part)", style="bold")
        for row in [*tables["groups"], *tables["templates"]]:
            metric = metrics.get(row["name"], "accuracy")
            name = row["name"].replace("_", " ") + (f" ({metric})" if metric != "accuracy" else "")
            table.add_row(f"  {name}", *_cells(row))
    if content["macro"] is not None:
        ours, official = (f"{100 * content['macro'][key]:.2f}" for key in ("accuracy_ties_half", "accuracy"))
        table.add_row("macro average", "", ours, "", official, "", style="bold")
    console.print(table)
    if any(tables["overall"] and tables["overall"]["ties"] for tables in content["tasks"].values()):
        console.print("A tie counts half in our column and as right in the official one.", style="dim")
    for tables in content["tasks"].values():
        for row in tables.get("details", []):
            if row["train_file"] != f"{row['name'].removesuffix('-mm')}.train.jsonl":
                note = f"{row['name']} was fine-tuned on {row['train_file']} ({row['train_rows']} rows)."
                console.print(note, style="dim", highlight=False)


def plot_task_scores(content: Mapping[str, Any], out: Path, label: str) -> bool:
    """Bars for each task's groups with standard errors, beside the paper's model where its numbers are known.

    Args:
        content: of ``tasks.json``.
        out: PNG to write.
        label: what the model is called in the legend.

    Returns:
        Whether there was anything to draw.
    """
    panels = {task: tables["groups"] for task, tables in content["tasks"].items() if tables["groups"]}
    if not panels:
        return False
    import matplotlib
    from matplotlib.figure import Figure

    heights = [len(rows) + 1.6 for rows in panels.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 0.9 + 0.34 * sum(heights)), layout="constrained")
        axes_of = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (task, rows) in zip(axes_of, panels.items()):
            _draw_task(axes, task, rows, label)
        handles: dict[str, Any] = {}
        for axes in axes_of:
            handles.update(zip(*reversed(axes.get_legend_handles_labels())))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
        save_figure(figure, out)
    return True


def _draw_task(axes: Any, task: str, rows: list[dict[str, Any]], label: str) -> None:
    paper = DISTILLED_10M_PARTS.get(task.removesuffix("_fast"), {})
    places = range(len(rows))
    height = 0.38 if paper else 0.7
    axes.barh(
        [place - height / 2 if paper else place for place in places],
        [100 * row["accuracy_ties_half"] for row in rows],
        height,
        xerr=[100 * row["stderr"] for row in rows],
        color=bar_colour(0),
        error_kw={"elinewidth": 1.0, "ecolor": "#333333"},
        label=label,
    )
    known = [place for place in places if rows[place]["name"] in paper]
    if known:
        values = [paper[rows[place]["name"]] for place in known]
        axes.barh([place + height / 2 for place in known], values, height, color=bar_colour(1), label=DISTILLED_10M)
    if task in CHANCE:
        axes.axvline(50, color="#333333", linewidth=1, linestyle="--")
        axes.annotate(
            "chance", (50, 1), (0, 2), ("data", "axes fraction"), "offset points", ha="center", color="#777777"
        )
    axes.set_yticks(places, [row["name"].replace("_", " ") for row in rows])
    axes.invert_yaxis()
    axes.set_title(TITLES.get(task, task), loc="left")
    axes.set_xlim(0, 100 if task != "bear" else None)
    if task == "glue":
        axes.set_xlabel("accuracy; CoLA: Matthews correlation, MRPC and QQP: F1; times 100")
    else:
        axes.set_xlabel("accuracy, % (± standard error)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _cells(row: Mapping[str, Any]) -> list[str]:
    shares = [row["accuracy_ties_half"], row["stderr"], row["accuracy"]]
    return [str(row["items"]), *(f"{100 * share:.2f}" for share in shares), str(row["ties"])]
