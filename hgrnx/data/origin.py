"""Where the text of a dataset lies: a folder, the hub, or the sources of a track; and whether it is still the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgrnx.config import DataConfig
from hgrnx.data.folders import file_sha256, size_and_time
from hgrnx.data.hub import HubFile, download
from hgrnx.data.sources import DomainFile, TextFile, find_domain_files, find_text_files
from hgrnx.data.tracks import HUB, Track, find_track, prepare_command
from hgrnx.errors import UserError


@dataclass(frozen=True)
class Origin:
    """The files that a dataset is made of; none for the demo, which makes its own."""

    place: str | None
    """For the manifest: a folder, or ``hub:...``; None where the track names its sources itself."""
    files: tuple[TextFile, ...] = ()
    inputs: tuple[DomainFile, ...] = ()
    """What the domains of a sampled track are taken from."""

    def stamps(self) -> list[list[Any]]:
        """What changes when a file does, without reading it."""
        stamps: list[list[Any]] = [[file.name, file.split, *size_and_time(file.path)] for file in self.files]
        for file in self.inputs:
            commit = file.path.commit if isinstance(file.path, HubFile) else size_and_time(file.path)[1]
            stamps.append([file.name, file.domain, file.size, commit])
        return stamps


def find_origin(config: DataConfig, data_root: Path) -> Origin:
    """Find the text of ``config``: its ``source``, else where this track's text was before, else the track's own place.

    Raises:
        UserError: there is no text there, the hub cannot be reached, or the track has no place of its own.
    """
    track = find_track(config)
    if track.name == "demo":
        return Origin(None)
    source = config.source or _known_source(track, data_root)
    source = None if source == HUB else source
    if track.sampled:
        return Origin(source, inputs=tuple(find_domain_files(track, source)))
    if source is not None:
        return Origin(source, files=tuple(find_text_files(source, track)))
    if track.hub is None:
        raise UserError(f"The track {track.name} needs its text: {prepare_command(config)}")
    folder, commit = download(track.hub, track.name)
    return Origin(f"hub:{track.hub.dataset}@{commit}", files=tuple(find_text_files(str(folder), track)))


def difference(config: DataConfig, manifest: Mapping[str, Any]) -> str | None:
    """How the text of ``config`` differs from what a manifest was made of; None where it does not.

    The text is that in ``config.source``, or in the local places that a sampled track names. Hashes are computed
    only where the time of change differs. The hub is not asked again.
    """
    track = find_track(config)
    local = track.sampled and manifest["source"] is None and not any(place.hub for place in track.sources.values())
    if config.source == HUB or (config.source is None and not local):
        return None
    if track.sampled:
        sizes = {file.name: file.size for file in find_domain_files(track, config.source)}
        known = {row["name"]: row["bytes"] for row in manifest["inputs"]}
        changed = [name for name in sorted(sizes.keys() & known.keys()) if sizes[name] != known[name]]
        return _other_names(sizes, known) or (f"{changed[0]} has changed" if changed else None)
    assert config.source is not None  # only a sampled track has local places of its own
    files = {file.name: file for file in find_text_files(config.source, track)}
    recorded = {source["name"]: source for source in manifest["sources"]}
    other = _other_names(files, recorded)
    if other is not None:
        return other
    for name, file in files.items():
        source, (size, mtime_ns) = recorded[name], size_and_time(file.path)
        if (size, mtime_ns) == (source["file_bytes"], source["mtime_ns"]):
            continue
        if size != source["file_bytes"] or file_sha256(file.path) != source["sha256"]:
            return f"{name} has changed"
    return None


def _other_names(now: Mapping[str, Any], before: Mapping[str, Any]) -> str | None:
    for name in sorted(now.keys() ^ before.keys()):
        return f"{name} was {'added' if name in now else 'removed'}"
    return None


def _known_source(track: Track, data_root: Path) -> str | None:
    """Where the text of this track was when it was prepared with other settings."""
    for manifest in sorted(data_root.glob(f"{track.name}-*/manifest.json"), key=lambda path: path.stat().st_mtime):
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        source = facts.get("source")
        if source is not None and facts["settings"]["track"] == track.name and Path(source).is_dir():
            return str(source)
    return None
