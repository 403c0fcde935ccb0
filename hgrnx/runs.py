"""Finding, opening and listing the runs of this machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hgrnx.config import Recipe, load_recipe
from hgrnx.data.run_ledger import LEDGER, print_run_ledger
from hgrnx.errors import UserError
from hgrnx.models import LanguageModel, empty_model
from hgrnx.models.folders import assign_weights, load_folder
from hgrnx.paths import Places
from hgrnx.training.checkpoint import is_checkpoint, load_weights
from hgrnx.training.weights import last_weights


@dataclass(frozen=True)
class OpenedModel:
    """A model with its tokenizer, from a run or a Hugging Face folder."""

    folder: Path
    model: LanguageModel
    tokenizer_dir: Path
    recipe: Recipe | None
    """The run's recipe; None for a Hugging Face folder."""
    checkpoint: str | None = None
    """Name of the checkpoint or word milestone of the run, where one was asked for and not the newest weights."""

    def tokenizer(self) -> Any:
        """The ``tokenizers.Tokenizer``."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.tokenizer_dir / "tokenizer.json"))


def find_run(name: str, places: Places) -> Path:
    """The folder of a run given by name, by folder, or by the start of its name.

    Raises:
        UserError: there is none, or several begin so.
    """
    for folder in (places.runs / name, Path(name).expanduser()):
        if (folder / "recipe.yaml").is_file() or (folder / "config.json").is_file():
            return folder.resolve()
    known = run_folders(places)
    near = [folder for folder in known if folder.name.startswith(name)]
    if len(near) == 1:
        return near[0]
    if near:
        raise UserError(f"Several runs begin with '{name}': {', '.join(folder.name for folder in near)}.")
    if Path(name).expanduser().is_dir():
        raise UserError(f"{name} is neither a run (recipe.yaml) nor a Hugging Face folder (config.json).")
    names = ", ".join(folder.name for folder in known[-8:]) or "none yet"
    raise UserError(f"There is no run '{name}' in {places.runs} (runs there: {names}), and no such folder.")


def evaluation_folder(folder: Path, places: Places) -> Path:
    """Where the scores of a model are kept: in the run; for a Hugging Face folder under ``places.home``."""
    if (folder / "recipe.yaml").is_file():
        return folder / "eval"
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return places.home / "eval" / f"{folder.name}-{digest}"


def run_folders(places: Places) -> list[Path]:
    """Folders of all runs, oldest first."""
    if not places.runs.is_dir():
        return []
    found = [folder for folder in places.runs.iterdir() if (folder / "recipe.yaml").is_file()]
    return sorted(found, key=lambda folder: (folder / "recipe.yaml").stat().st_mtime)


def open_model(name: str, places: Places) -> OpenedModel:
    """Load the newest weights of a run, the folder of one of its checkpoints or milestones, or a Hugging Face folder.

    Raises:
        UserError: no such run, no checkpoint yet, or its dataset (for the tokenizer) is gone.
    """
    folder = Path(name).expanduser().resolve()
    if is_checkpoint(folder):
        return open_folder(folder.parent.parent, folder)
    return open_folder(find_run(name, places))


def open_folder(folder: Path, checkpoint: Path | None = None) -> OpenedModel:
    """:func:`open_model` for the folder itself, and for one of the run's checkpoints."""
    if checkpoint is not None and not (folder / "recipe.yaml").is_file():
        raise UserError(f"{checkpoint} is a checkpoint outside of its run: {folder} has no recipe.yaml.")
    if not (folder / "recipe.yaml").is_file():
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder} has no tokenizer.json, so its model cannot read text.")
        return OpenedModel(folder, load_folder(folder).eval(), folder, None)
    recipe = load_recipe(str(folder / "recipe.yaml"))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{folder.name} is a whole job. Name one of its runs: hgrnx runs {folder.name}")
    facts = read_json(folder / "environment.json")
    tokenizer_dir = Path(facts["data"]) / "tokenizer"
    if not (tokenizer_dir / "tokenizer.json").is_file():
        raise UserError(f"The dataset of {folder.name} is gone: {tokenizer_dir} has no tokenizer. Prepare it again.")
    model = empty_model(recipe.model, facts["vocab_size"]).to_empty(device="cpu")
    weights = load_weights(checkpoint) if checkpoint else last_weights(folder)
    assign_weights(model, weights, str(checkpoint or folder))
    return OpenedModel(folder, model.eval(), tokenizer_dir, recipe, checkpoint.name if checkpoint else None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder. Raises :class:`UserError` naming the file where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). The run is incomplete: start it again to continue it."
        ) from None


def status(folder: Path) -> str:
    """``finished``, ``step 120`` (where it would go on) or ``not started``."""
    if (folder / "result.json").is_file() or (folder / "summary.md").is_file():
        return "finished"
    steps = sorted((folder / "checkpoints").glob("step-*[0-9]"))
    return f"step {int(steps[-1].name.removeprefix('step-'))}" if steps else "not started"


def print_runs(places: Places, console: Console) -> None:
    """A table of all runs: name, status, words, and headline scores."""
    table = Table(title=str(places.runs), title_justify="left")
    for column in ("run", "status", "words", "bits/byte", "pairs"):
        table.add_column(column, justify="left" if column in {"run", "status"} else "right")
    for folder in run_folders(places):
        result = read_json(folder / "result.json") if (folder / "result.json").is_file() else {}
        final = folder / "eval" / "final.json"
        metrics = read_json(final)["metrics"] if final.is_file() else {}
        table.add_row(
            folder.name,
            status(folder),
            f"{result['words'] / 1e6:.2f}M" if result else "",
            f"{metrics['dev/bits_per_byte']:.4f}" if "dev/bits_per_byte" in metrics else "",
            f"{100 * metrics['pairs/accuracy']:.1f}" if "pairs/accuracy" in metrics else "",
        )
    console.print(table)


def print_run(name: str, places: Places, console: Console) -> None:
    """Everything a run folder says of a run: recipe, environment, result, ledger of words, scores."""
    folder = find_run(name, places)
    console.print(f"[bold]{folder.name}[/bold] ({status(folder)})\n{folder}\n", highlight=False)
    for file in ("recipe.yaml", "environment.json", "result.json", "summary.md"):
        if (folder / file).is_file():
            console.print(
                f"[bold]{file}[/bold]\n{(folder / file).read_text(encoding='utf-8')}",
                highlight=False,
                markup=True,
            )
    if (folder / LEDGER).is_file():
        print_run_ledger(read_json(folder / LEDGER), console)
    final = folder / "eval" / "final.json"
    if final.is_file():
        console.print("[bold]eval/final.json[/bold]")
        for key, value in read_json(final)["metrics"].items():
            console.print(f"{key:40} {value:.4f}", highlight=False)
