"""Tracks: how many words a model may see, and where BabyLM's layout keeps them."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from hgrnx.config import DataConfig
from hgrnx.data.tokenizer import read_given_tokenizer
from hgrnx.errors import UserError

FORMAT = 2
"""Version of the prepared folder's layout; part of its name, so that another version is another dataset."""


@dataclass(frozen=True)
class Track:
    """A word budget. ``folder`` is the training folder of BabyLM's layout that belongs to it."""

    name: str
    words: int
    folder: str | None
    limited: bool
    """Whether ``words`` is a rule of the challenge (more text is refused) or only the usual amount."""


TRACKS = {
    track.name: track
    for track in (
        Track("demo", words=400_000, folder=None, limited=False),
        Track("strict-small", words=10_000_000, folder="train_10M", limited=True),
        Track("strict", words=100_000_000, folder="train_100M", limited=True),
    )
}


def find_track(config: DataConfig) -> Track:
    """The track of ``config``.

    Raises:
        UserError: there is no such track, ``words`` is above its budget, or ``demo`` was given a source.
    """
    track = TRACKS.get(config.track)
    if track is None:
        near = difflib.get_close_matches(config.track, TRACKS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"There is no track '{config.track}'.{hint} The tracks are {', '.join(TRACKS)}.")
    if track.limited and config.words is not None and config.words > track.words:
        raise UserError(
            f"words={config.words} is {config.words - track.words:,} more than the {track.words:,} words of the "
            f"track {track.name}. Ask for fewer words or choose another track."
        )
    if track.name == "demo" and config.source is not None:
        raise UserError(
            f"The track demo makes its own text and cannot take source={config.source}. "
            "Leave the source out, or choose the track strict-small or strict."
        )
    return track


def dataset_settings(config: DataConfig) -> dict[str, Any]:
    """What decides a dataset besides the text: only the settings that this track uses, defaults resolved."""
    track = find_track(config)
    settings: dict[str, Any] = {
        "format": FORMAT,
        "track": track.name,
        "words": config.words or track.words,
    }
    if config.tokenizer is None:
        settings["vocab_size"] = config.vocab_size
    else:
        settings["tokenizer"] = hashlib.sha256(read_given_tokenizer(config.tokenizer)).hexdigest()
    if track.name == "demo":
        settings["seed"] = config.seed
    else:
        settings["block_lines"] = config.block_lines
    return settings


def dataset_name(config: DataConfig) -> str:
    """Folder name of the prepared dataset: the track, ``v<vocab_size>`` or ``given`` (tokenizer), a hash of the
    settings."""
    content = json.dumps(dataset_settings(config), sort_keys=True)
    kind = "given" if config.tokenizer else f"v{config.vocab_size}"
    return f"{config.track}-{kind}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def prepare_command(config: DataConfig) -> str:
    """The command line that prepares the dataset of ``config``, for messages."""
    changed = {key for key in DataConfig.model_fields if getattr(config, key) != getattr(DataConfig(), key)}
    if changed & {"block_lines", "seed"}:  # settings without an option of their own
        parts = ["hgrnx prepare --recipe RECIPE"]
    else:
        parts = [f"hgrnx prepare --track {config.track}"]
        parts += [f"--words {config.words}"] if config.words else []
        parts += [f"--vocab-size {config.vocab_size}"] if "vocab_size" in changed else []
        parts += [f"--tokenizer {config.tokenizer}"] if config.tokenizer else []
    if config.track != "demo":
        parts.append(f"--source {config.source or 'DIR'}")
    return " ".join(parts)
