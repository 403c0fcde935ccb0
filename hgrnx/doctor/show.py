"""What `hgrnx doctor` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hgrnx.config import AnyRecipe
from hgrnx.data.dataset import open_dataset
from hgrnx.doctor.estimate import estimate
from hgrnx.doctor.machine import machine_facts
from hgrnx.errors import UserError
from hgrnx.paths import Places
from hgrnx.tracking.environment import describe_environment


def print_machine(places: Places, console: Console) -> None:
    """What is here, one fact a line."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in machine_facts(places).items():
        table.add_row(f"[bold]{name}[/bold]", value)
    console.print(table)


def print_estimates(recipe: AnyRecipe, places: Places, console: Console) -> None:
    """Memory and time of each stage. Raises :class:`UserError` where it does not fit this machine."""
    try:
        dataset = open_dataset(recipe.data, places.data)
    except UserError as error:
        dataset = None
        console.print(f"\n{error}\nUntil then the time is known for durations in steps only.", highlight=False)
    table = Table(title=f"\n{recipe.name}: {recipe.launch.num_workers} workers", title_justify="left")
    for column in ("stage", "parameters", "memory of a worker", "tokens/s", "steps", "training"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    memory_gb = describe_environment()["memory_gb"]
    for one in estimate(recipe, dataset, memory_gb):
        table.add_row(
            one.stage,
            f"{one.parameters / 1e6:,.1f}M",
            f"{one.memory_mb / 1e3:,.1f} GB",
            f"{one.tokens_per_second:,.0f}",
            "" if one.steps is None else f"{one.steps:,}",
            "" if one.seconds is None else _time(one.seconds),
        )
    console.print(table)
    console.print(
        "From a few steps with random tokens (one worker stands for all on a GPU, nothing sharded). Left out: "
        "evaluation, checkpoints, start.",
        highlight=False,
    )


def _time(seconds: float) -> str:
    if seconds < 600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
