"""Tracks: how many words a model may read, of which text, and where that text is kept.

A track is a YAML file: those in ``hgrnx/tracks/`` by name, a user's own by path.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from hgrnx.config import DataConfig
from hgrnx.config.files import parse_yaml, validated
from hgrnx.config.sections import Section
from hgrnx.data.tokenizer import read_given_tokenizer
from hgrnx.errors import UserError

FORMAT = 2
"""Version of the prepared folder's layout; part of its name, so that another version is another dataset."""

HUB = "hub"
"""``DataConfig.source`` for "from the Hugging Face hub, even if the text has been read from a folder before"."""


class HubSource(Section):
    """Files of a dataset on the Hugging Face hub."""

    dataset: str = Field(pattern=r"^[^/\s]+/[^/\s]+$")
    """``owner/name``."""
    revision: str = "main"
    """Branch, tag or commit."""
    files: tuple[str, ...] = Field(min_length=1)
    """Which files: names with ``*`` and ``?``."""


class TrackSource(Section):
    """Where documents come from: exactly one of the two."""

    path: str | None = None
    """A folder or file; a relative one is seen from the track's YAML file."""
    hub: HubSource | None = None

    @model_validator(mode="after")
    def _one_place(self) -> TrackSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either a path or a hub dataset")
        return self


class Domain(Section):
    """A kind of text with a budget of its own: exactly one of ``words``, ``share`` and ``size``."""

    words: int | None = Field(default=None, gt=0)
    share: float | None = Field(default=None, gt=0, le=1)
    """Of the track's words."""
    size: float | None = Field(default=None, gt=0)
    """Weight, in any unit, by which the track's ``others`` are shared out."""
    source: str | None = None
    """Key of the track's ``sources``; the domain's own name when absent."""

    @model_validator(mode="after")
    def _one_budget(self) -> Domain:
        if sum(value is not None for value in (self.words, self.share, self.size)) != 1:
            raise ValueError("give exactly one of words, share and size")
        return self


class Track(Section):
    """A word budget, its rules and its text.

    With ``domains`` the text is a random sample of each domain. Without, it is all the text of a folder, or of
    ``hub``; ``folder`` is the training folder of BabyLM's layout that belongs to the track.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$")
    """The file's name when absent."""
    words: int = Field(gt=0)
    """Training words that everything which the models of a run have read may have together."""
    over_budget: Literal["refuse", "warn", "ignore"] = "refuse"
    """What happens to a run that reads more text, or reads it more often, than the track allows."""
    max_passes: int | None = Field(default=None, gt=0)
    """How often a model may read its text."""
    folder: str | None = None
    hub: HubSource | None = None
    others: int | None = Field(default=None, gt=0)
    """Words shared by the domains that have a ``size``."""
    sources: Mapping[str, TrackSource] = Field(default_factory=dict)
    domains: Mapping[str, Domain] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Track:
        problems = []
        if self.domains and (self.hub or self.folder):
            problems.append("domains: a track of domains has 'sources', not 'hub' or 'folder'")
        if not self.domains and (self.sources or self.others):
            problems.append("domains: there are none to take from the sources")
        for name, domain in self.domains.items():
            if (domain.source or name) not in self.sources:
                near = difflib.get_close_matches(domain.source or name, self.sources, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                problems.append(f"domains.{name}: there is no source '{domain.source or name}'{hint}")
        used = {domain.source or name for name, domain in self.domains.items()}
        if not problems:
            problems += [f"sources.{name}: no domain takes from it" for name in self.sources if name not in used]
        sized = any(domain.size is not None for domain in self.domains.values())
        if sized and self.others is None:
            problems.append("others: needed, because domains have a size to share it by")
        if self.others is not None and self.domains and not sized:
            problems.append("others: no domain has a size to share it by")
        if self.domains and not problems:
            total = sum(_exact_words(self).values())
            if abs(total - self.words) > 0.5 + 1e-9 * self.words:
                problems.append(f"domains: together they have {total:,.0f} words, the track {self.words:,}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def limited(self) -> bool:
        """Whether ``words`` is a rule (more text is refused) or only the usual amount."""
        return self.over_budget == "refuse"

    @property
    def sampled(self) -> bool:
        """Whether the text is a sample of domains."""
        return bool(self.domains)


def shipped_tracks() -> list[str]:
    """Names of the tracks that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in (resources.files("hgrnx") / "tracks").iterdir())


def load_track(name_or_path: str) -> Track:
    """A shipped track, or the one of a YAML file; relative paths in it become absolute.

    Raises:
        UserError: no such track, not YAML, or wrong keys or values; all of them are named.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
        except OSError as error:
            raise UserError(f"Cannot read the track {path}: {error.strerror}.") from None
        values = {"name": path.stem, **parse_yaml(text, str(path), "track")}
        track = validated(Track, values, f"track {path}")
        if track.name in shipped_tracks():
            raise UserError(f"The track {path} is called {track.name} like one that comes with hgrnx. Add name: OTHER.")
        return _with_absolute_paths(track, path.resolve().parent)
    names = shipped_tracks()
    if name_or_path not in names:
        near = difflib.get_close_matches(name_or_path, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"There is no track '{name_or_path}'.{hint} The tracks are {', '.join(names)}; "
            "or give the path of a .yaml file."
        )
    text = (resources.files("hgrnx") / "tracks" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    return validated(Track, {"name": name_or_path, **parse_yaml(text, name_or_path, "track")}, f"track {name_or_path}")


def _with_absolute_paths(track: Track, folder: Path) -> Track:
    sources = {
        name: source.model_copy(update={"path": str(folder / Path(source.path).expanduser())})
        if source.path
        else source
        for name, source in track.sources.items()
    }
    return track.model_copy(update={"sources": sources})


def find_track(config: DataConfig) -> Track:
    """The track of ``config``.

    Raises:
        UserError: there is no such track, ``words`` is above its budget, or it cannot take ``source``.
    """
    track = load_track(config.track)
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


def domain_words(track: Track, words: int | None = None, absent: Collection[str] = ()) -> dict[str, int]:
    """The words to take of each domain, ``words`` (the track's own budget when None) in all.

    Args:
        absent: domains without any text; those with a ``size`` leave their words to the others that have one.

    Raises:
        UserError: a domain in ``absent`` has words of its own, or all that share ``others`` are absent.
    """
    scale = 1.0 if words is None else words / track.words
    exact = {name: amount * scale for name, amount in _exact_words(track, absent).items()}
    lost = [name for name in absent if track.domains[name].size is None]
    if any(domain.size is not None for domain in track.domains.values()) and not any(
        track.domains[name].size is not None for name in exact
    ):
        lost = sorted(absent)
    if lost:
        raise UserError(
            f"The source has no text of {', '.join(lost)}, which the track {track.name} needs. Add it (records with "
            "meta.pile_set_name, or a folder of the domain's name), or make a track of your own without it."
        )
    return _rounded(exact)


def _exact_words(track: Track, absent: Collection[str] = ()) -> dict[str, float]:
    present = {name: domain for name, domain in track.domains.items() if name not in absent}
    sizes = sum(domain.size or 0.0 for domain in present.values())
    amounts: dict[str, float] = {}
    for name, domain in present.items():
        if domain.size is not None:
            amounts[name] = (track.others or 0) * domain.size / sizes
        else:
            amounts[name] = domain.words if domain.words is not None else track.words * (domain.share or 0.0)
    return amounts


def _rounded(amounts: dict[str, float]) -> dict[str, int]:
    """Whole numbers with the same (rounded) sum: those with the largest remainders are rounded up."""
    whole = {name: math.floor(amount + 1e-6) for name, amount in amounts.items()}
    missing = round(sum(amounts.values())) - sum(whole.values())
    for name in sorted(amounts, key=lambda name: whole[name] - amounts[name])[: max(0, missing)]:
        whole[name] += 1
    return whole


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
    if track.name != "demo":
        settings["definition"] = _definition_hash(track)
        settings["block_lines"] = config.block_lines
    if track.name == "demo" or track.sampled:
        settings["seed"] = config.seed
    cleaning = config.cleaning.model_dump(mode="json", exclude_defaults=True)
    if config.cleaning.decontaminate is not None:
        del cleaning["decontaminate"]["benchmarks"]
    if cleaning:
        settings["cleaning"] = cleaning
    return settings


def _definition_hash(track: Track) -> str:
    """Of what decides a track's text: not of its rules, nor of the places of local files."""
    content = track.model_dump(mode="json", include={"words", "folder", "hub", "others", "sources", "domains"})
    for source in content["sources"].values():
        del source["path"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def dataset_name(config: DataConfig) -> str:
    """Folder name of the prepared dataset: the track, ``v<vocab_size>`` or ``given`` (tokenizer), a hash of the
    settings."""
    settings = dataset_settings(config)
    content = json.dumps(settings, sort_keys=True)
    kind = "given" if config.tokenizer else f"v{config.vocab_size}"
    return f"{settings['track']}-{kind}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def prepare_command(config: DataConfig) -> str:
    """The command line that prepares the dataset of ``config``, for messages."""
    changed = {key for key in DataConfig.model_fields if getattr(config, key) != getattr(DataConfig(), key)}
    if changed & {"block_lines", "seed", "cleaning"}:  # settings without an option of their own
        parts = ["hgrnx prepare --recipe RECIPE"]
    else:
        parts = [f"hgrnx prepare --track {config.track}"]
        parts += [f"--words {config.words}"] if config.words else []
        parts += [f"--vocab-size {config.vocab_size}"] if "vocab_size" in changed else []
        parts += [f"--tokenizer {config.tokenizer}"] if config.tokenizer else []
    if config.track != "demo":
        parts.append(f"--source {config.source or 'DIR'}")
    return " ".join(parts)
