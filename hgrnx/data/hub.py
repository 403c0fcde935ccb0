"""Files of datasets on the Hugging Face hub: downloaded whole, or opened as streams."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from hgrnx.data.tracks import HubSource
from hgrnx.errors import UserError


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset on the hub, at one commit."""

    dataset: str
    commit: str
    name: str
    size: int
    """In bytes, as far as the hub says it."""

    def open(self, mode: str) -> BinaryIO:
        """The file's bytes as a stream that is fetched while it is read."""
        from huggingface_hub import HfFileSystem

        system = HfFileSystem(endpoint=_endpoint())
        # 16 MB at a time, from the beginning to the end: nothing is kept that was read.
        path = f"datasets/{self.dataset}@{self.commit}/{self.name}"
        return cast(BinaryIO, system.open(path, mode, block_size=2**24, cache_type="readahead"))

    def __str__(self) -> str:
        return f"hub:{self.dataset}@{self.commit[:8]}/{self.name}"


@dataclass(frozen=True)
class Purpose:
    """What files are wanted for, and how to do without the hub: for messages."""

    what: str
    otherwise: str


def hub_files(source: HubSource, purpose: str | Purpose) -> list[HubFile]:
    """The files of ``source``, sorted by name, at the commit that its revision is now.

    Args:
        purpose: the name of the track that they are the text of, or another purpose.

    Raises:
        UserError: the hub can't be reached, or does not have them.
    """
    from huggingface_hub import HfApi

    with _explained(source, purpose):
        info = HfApi(endpoint=_endpoint()).dataset_info(source.dataset, revision=source.revision, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    names = sorted(sizes)
    chosen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in source.files)]
    if not chosen:
        raise UserError(
            f"{source.dataset} on the hub has no file {' or '.join(source.files)} at revision {source.revision}; "
            f"it has {', '.join(names[:8]) or 'none'}."
        )
    return [HubFile(source.dataset, str(info.sha), name, sizes[name]) for name in chosen]


def download(source: HubSource, purpose: str | Purpose) -> tuple[Path, str]:
    """Fetch the files of ``source`` (those not fetched before); returns their folder and the commit they are of.

    Args:
        purpose: see :func:`hub_files`.

    Raises:
        UserError: the hub can't be reached, or does not have them.
    """
    from huggingface_hub import snapshot_download

    commit = hub_files(source, purpose)[
        0
    ].commit  # says at once if the hub can't be reached; the download tries for long
    with _explained(source, purpose):
        folder = snapshot_download(
            source.dataset,
            repo_type="dataset",
            revision=commit,
            allow_patterns=list(source.files),
            endpoint=_endpoint(),
        )
    return Path(folder), commit


def _endpoint() -> str | None:
    """Asked for when it is used: ``huggingface_hub`` reads it once, when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _explained(source: HubSource, purpose: str | Purpose) -> Iterator[None]:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(purpose, str):
        otherwise = f"Or get its files some other way: hgrnx prepare --track {purpose} --source DIR"
        purpose = Purpose(f"The text of the track {purpose}", otherwise)
    what = f"{purpose.what} is {source.dataset} (revision {source.revision}) on the Hugging Face hub"
    otherwise = purpose.otherwise
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{what}, which asks you to accept its terms there and then `hf auth login`. {otherwise}"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(f"{what}, which does not have it: {_first_line(error)} {otherwise}") from None
    except Exception as error:  # many kinds: requests, httpx, huggingface_hub's own, OSError
        raise UserError(f"{what}, which cannot be reached ({_first_line(error)}). {otherwise}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
