"""A run as Hugging Face folders: its newest weights, and those at its word milestones; and their way to the hub."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from hgrnx.data.run_ledger import LEDGER
from hgrnx.errors import UserError
from hgrnx.models.folders import assign_weights, save_folder
from hgrnx.paths import Places
from hgrnx.report.card import milestone_card, model_card
from hgrnx.runs import OpenedModel, open_model
from hgrnx.training.checkpoint import load_weights, read_meta
from hgrnx.training.session import MILESTONES

_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def export_run(name: str, folder: Path, places: Places, *, milestones: bool) -> dict[str, Path]:
    """Write a run, or a Hugging Face folder, as a Hugging Face folder with a model card.

    Args:
        folder: must be new or empty.
        milestones: write ``folder/main`` and one folder for each word milestone, ``folder/chck_1M`` ...

    Returns:
        The folders by the name of their revision on the hub; the first is ``main``.

    Raises:
        UserError: no such run, nothing to export, or ``folder`` is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty. Give a new folder.")
    opened = open_model(name, places)
    if milestones and opened.checkpoint is not None:
        raise UserError(f"{name} is one checkpoint; --milestones takes a run: {opened.folder.name}")
    kept = _kept_milestones(opened.folder) if milestones else []
    folders = {"main": folder / "main" if milestones else folder}
    save_folder(opened.model, folders["main"], opened.tokenizer_dir)
    if (opened.folder / LEDGER).is_file():  # what the model has read, for those who learn from it
        shutil.copy(opened.folder / LEDGER, folders["main"] / LEDGER)
    if opened.checkpoint is None and (opened.folder / "result.json").is_file():
        card = model_card(opened.folder, opened.model.config.architecture, folder.name)
        (folders["main"] / "README.md").write_text(card, encoding="utf-8")
    else:
        print(f"{name} is not a finished run: the folder has no model card.", file=sys.stderr)
    for path in kept:
        folders[path.name] = folder / path.name
        _export_milestone(opened, path, folders[path.name])
    return folders


def check_repo(repo: str) -> None:
    """Raises :class:`UserError` where ``repo`` is no name of a repository on the hub."""
    if not _REPO.fullmatch(repo):
        raise UserError(f"'{repo}' is not the name of a repository on the Hugging Face hub: write USER/NAME.")


def push_folders(folders: dict[str, Path], repo: str, *, private: bool) -> str:
    """Upload every folder to the revision (branch) of its name in ``repo``, which is made where it is missing.

    The hub's address and the token are those of ``huggingface_hub``: ``HF_ENDPOINT``, ``HF_TOKEN``, ``hf auth login``.
    Files that are there already are not sent again. Returns the address of the repository.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the second is its HTTP library's

    check_repo(repo)
    api = HfApi(library_name="hgrnx")
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        for revision, folder in folders.items():
            if revision != "main":
                api.create_branch(repo, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, commit_message=f"{revision}, by hgrnx"
            )
    except HfHubHTTPError as error:
        status = error.response.status_code
        login = (
            " Give a token with write permission in HF_TOKEN, or run `hf auth login`." if status in (401, 403) else ""
        )
        said = error.server_message or error.response.reason_phrase
        raise UserError(f"The Hugging Face hub refused {repo} ({status} {said}).{login}") from None
    except (OSError, HTTPError) as error:
        raise UserError(f"Cannot reach the Hugging Face hub for {repo}: {error}. The folders are whole.") from None
    return str(url)


def _kept_milestones(run_dir: Path) -> list[Path]:
    """Folders with the weights at a run's milestones, earliest first."""
    found = [path for path in (run_dir / MILESTONES).glob("chck_*M") if path.is_dir()]
    if not found:
        raise UserError(
            f"{run_dir.name} has kept no word milestones. Train with training.word_milestones=true; the first one is "
            "at 1M words."
        )
    return sorted(found, key=lambda path: int(path.name.removeprefix("chck_").removesuffix("M")))


def _export_milestone(opened: OpenedModel, kept: Path, folder: Path) -> None:
    assign_weights(opened.model, load_weights(kept), str(kept))
    save_folder(opened.model, folder, opened.tokenizer_dir)
    card = milestone_card(opened.folder, opened.model.config.architecture, kept.name, read_meta(kept)["words"])
    (folder / "README.md").write_text(card, encoding="utf-8")
