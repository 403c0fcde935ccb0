"""Checkpoints on disk: one format for every engine, ZeRO stage and number of processes.

``step-00000120/`` holds ``model.safetensors`` (weights by name), ``optimizer.safetensors`` (such as ``exp_avg/NAME``,
``exp_avg_sq/NAME``; where the weights are an average also ``weights/NAME``, which the training goes on from) and
``state.json`` (step, the caller's ``meta``, size and SHA-256 of the other two, and a SHA-256 of itself). A folder is
written aside under another name, flushed to the disk and renamed; then the file ``LAST`` names it. So a kill at any
instant leaves the previous checkpoint whole and findable.

Weights that are kept to be looked at, not to go on from, are in folders of the same form without the optimizer.

Only one process (rank 0) saves; any may read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hgrnx.errors import UserError
from hgrnx.training.engine import EngineState

FORMAT = 1
_MODEL, _OPTIMIZER, _STATE, _LAST = "model.safetensors", "optimizer.safetensors", "state.json", "LAST"
_FOLDER = re.compile(r"step-(\d{8,})(\.old-[0-9a-f]+)?")
_LEFTOVER = re.compile(r"(step-\d{8,}|chck_\d+M|LAST)\.tmp-[0-9a-f]+")
_log = logging.getLogger(__name__)


class _Damaged(Exception):
    """A checkpoint is not what was written; the message says how."""


def save_checkpoint(
    checkpoints: Path, step: int, state: EngineState, meta: dict[str, Any], keep: int, *, extra: bool = False
) -> Path:
    """Write the checkpoint of ``step`` and point ``LAST`` at it; afterwards keep the ``keep`` newest.

    ``meta`` is any JSON. An ``extra`` checkpoint, one outside the period, is kept beside those and only until the
    next is written. Folders beyond ``step`` belong to a future that was rolled back and are removed, as
    are the leftovers of a save that was killed. Returns the checkpoint's folder.

    Raises:
        UserError: the disk is full or not writable. What was there before is still whole.
    """
    target = checkpoints / f"step-{step:08d}"
    with _place_for(target) as aside:
        moments = {f"{moment}/{name}": t for moment, by_name in state.optimizer.items() for name, t in by_name.items()}
        head = {"step": step, "optimizer_step": state.optimizer_step, "moments": sorted(state.optimizer), "meta": meta}
        if extra:
            head["extra"] = True
        _write(aside, {_MODEL: state.weights, _OPTIMIZER: moments}, head)
        if target.exists():
            # The same step was saved before a rollback. Under this name it is still found by a reader.
            os.rename(target, f"{target}.old-{secrets.token_hex(4)}")
        os.rename(aside, target)
        _sync_folder(checkpoints)
        _point_last(checkpoints, target.name)
    _prune(checkpoints, step, keep)
    return target


def save_weights(target: Path, step: int, weights: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write the weights of ``step`` as the folder ``target``, which :func:`load_weights` reads.

    A folder of that name, from before a rollback, is replaced. Raises like :func:`save_checkpoint`.
    """
    with _place_for(target) as aside:
        _write(aside, {_MODEL: weights}, {"step": step, "meta": meta})
        _remove(target)
        os.rename(aside, target)
        _sync_folder(target.parent)


def load_checkpoint(folder: Path) -> tuple[EngineState, dict[str, Any]]:
    """Read a checkpoint folder, every byte checked, as the engine's state and the caller's ``meta``.

    ``meta["step"]`` is the step it was saved for.

    Raises:
        UserError: the folder is missing, damaged, or written by a newer hgrnx.
    """
    try:
        head = _read_head(folder)
        weights = _read_tensors(folder, _MODEL, head)
        if _OPTIMIZER not in head["files"]:
            raise _Damaged("it has weights only")
        optimizer: dict[str, dict[str, Tensor]] = {moment: {} for moment in head["moments"]}
        for key, tensor in _read_tensors(folder, _OPTIMIZER, head).items():
            moment, _, name = key.partition("/")
            optimizer[moment][name] = tensor
    except _Damaged as damage:
        raise _cannot_use(folder, damage) from None
    return EngineState(weights, optimizer, head["optimizer_step"]), {**head["meta"], "step": head["step"]}


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint folder by parameter name, checked. Raises like :func:`load_checkpoint`."""
    try:
        return _read_tensors(folder, _MODEL, _read_head(folder))
    except _Damaged as damage:
        raise _cannot_use(folder, damage) from None


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` looks like one, whole or not."""
    return (folder / _STATE).is_file()


def is_extra(folder: Path) -> bool:
    """Whether a checkpoint folder lies outside the period; a damaged one counts as one of the period."""
    try:
        return bool(_read_head(folder).get("extra", False))
    except (_Damaged, UserError):
        return False


def read_meta(folder: Path) -> dict[str, Any]:
    """``meta`` of a checkpoint folder, and its ``step``. Raises like :func:`load_checkpoint`."""
    try:
        head = _read_head(folder)
    except _Damaged as damage:
        raise _cannot_use(folder, damage) from None
    return {**head["meta"], "step": head["step"]}


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint to continue from, every byte of it checked; None where none was ever saved.

    That is the one ``LAST`` names. If it is damaged or ``LAST`` is missing, the newest whole one, and a
    warning in the log says which was passed over and why.

    Raises:
        UserError: there are checkpoints, and none is whole, or one was written by a newer hgrnx.
    """
    return find_checkpoint(checkpoints)[0]


def find_checkpoint(checkpoints: Path, *, of_period: bool = False) -> tuple[Path | None, list[str]]:
    """:func:`latest_checkpoint`, and what was passed over: a line of name and reason for each.

    ``of_period``: not one that was saved as ``extra``.
    """
    found = _folders(checkpoints)
    last = _read_last(checkpoints)
    if of_period:
        found = [name for name in found if not is_extra(checkpoints / name)]
        last = last if last in found else max(found, key=_step_of, default=None)
    if not found and last is None:
        return None, []
    # Newest first; of one step, the one moved aside comes after the one that replaced it.
    order = sorted(found, key=lambda name: (_step_of(name), ".old-" not in name), reverse=True)
    if last is None:
        _log.warning("%s has no readable %s; looking for the newest whole checkpoint.", checkpoints, _LAST)
    else:
        order = [last, *(name for name in order if name != last)]
    problems = []
    for name in order:
        damage = damage_of(checkpoints / name)
        if damage is not None:
            problems.append(f"{name}: {damage}")
            _log.warning("Passing over the checkpoint %s: %s.", checkpoints / name, damage)
            continue
        if problems or last is None:
            _log.warning("Continuing from %s.", checkpoints / name)
        return checkpoints / name, problems
    raise UserError(
        f"None of the checkpoints in {checkpoints} is whole ({'; '.join(problems)}). "
        "Restore them from a copy, or start the run anew with --fresh."
    )


def last_saved_step(checkpoints: Path) -> int:
    """The step of the checkpoint that ``LAST`` names, unchecked; 0 where there is none."""
    last = _read_last(checkpoints)
    return _step_of(last) if last is not None else 0


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, every byte checked; None where nothing is."""
    try:
        head = _read_head(folder)
        for file in head["files"]:
            _check_file(folder, file, head)
    except _Damaged as damage:
        return str(damage)
    return None


def content_hash(folder: Path) -> str:
    """SHA-256 that stands for all of a checkpoint folder."""
    return str(_read_head(folder)["sha256"])


def adopt_checkpoint(aside: Path, name: str) -> None:
    """Make the whole folder ``aside``, which came from elsewhere, the checkpoint ``name`` beside it, and the last."""
    target = aside.with_name(name)
    if not target.exists():  # another process of this machine may have been faster
        with contextlib.suppress(OSError):
            os.rename(aside, target)
    _sync_folder(target.parent)
    _point_last(target.parent, name)


@contextlib.contextmanager
def _place_for(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, in a place without the leftovers of killed saves; gone where writing fails."""
    aside = _aside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in os.listdir(target.parent):
            if _LEFTOVER.fullmatch(name):
                _remove(target.parent / name)
        aside.mkdir()
        yield aside
    except (OSError, SafetensorError) as error:
        _remove(aside)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(
            f"Cannot write the checkpoint {target}: {reason}. Earlier checkpoints are whole. "
            "Make room or give write permission there, then start the same command again to continue."
        ) from None


def _write(folder: Path, files: dict[str, dict[str, Tensor]], head: dict[str, Any]) -> None:
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    sizes = {name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in files}
    head = {"format": FORMAT, **head, "files": sizes}
    head["sha256"] = _own_sha256(head)
    (folder / _STATE).write_text(json.dumps(head, indent=2), encoding="utf-8")
    for name in (*files, _STATE):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _point_last(checkpoints: Path, name: str) -> None:
    aside = _aside(checkpoints / _LAST)
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(name + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, checkpoints / _LAST)
    except OSError:
        _remove(aside)
        raise
    _sync_folder(checkpoints)


def _prune(checkpoints: Path, step: int, keep: int) -> None:
    """Remove all but the ``keep`` newest up to ``step``, which ``LAST`` names, and ``step`` itself if it is extra."""
    names = _folders(checkpoints)
    past = sorted((n for n in names if ".old-" not in n and _step_of(n) <= step), key=_step_of, reverse=True)
    kept = {*past[:1], *[n for n in past if not is_extra(checkpoints / n)][:keep]}
    for name in names:
        if name not in kept:
            _remove(checkpoints / name)


def _read_head(folder: Path) -> dict[str, Any]:
    with _reading(_STATE):
        text = (folder / _STATE).read_bytes()
    try:
        head = json.loads(text)
    except ValueError:
        raise _Damaged(f"{_STATE} is not JSON") from None
    if not isinstance(head, dict) or head.get("sha256") != _own_sha256(head):
        raise _Damaged(f"{_STATE} does not have its checksum")
    if head["format"] != FORMAT:
        raise UserError(
            f"The checkpoint {folder} has format {head['format']}, this hgrnx reads format {FORMAT}. "
            "Continue with the version of hgrnx that wrote it."
        )
    if not head["files"].keys() <= {_MODEL, _OPTIMIZER}:  # its names must not lead elsewhere
        raise _Damaged(f"{_STATE} names files that no checkpoint has")
    return head


def _check_file(folder: Path, name: str, head: dict[str, Any]) -> None:
    expected = head["files"][name]
    with _reading(name):
        size = (folder / name).stat().st_size
        if size != expected["size"]:
            raise _Damaged(f"{name} has {size} bytes instead of {expected['size']}")
        if _sha256(folder / name) != expected["sha256"]:
            raise _Damaged(f"{name} does not have its checksum")


def _read_tensors(folder: Path, name: str, head: dict[str, Any]) -> dict[str, Tensor]:
    _check_file(folder, name, head)
    with _reading(name):
        return load_file(folder / name)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _Damaged(f"{name} is missing") from None
    except (OSError, SafetensorError) as error:
        raise _Damaged(f"{name} cannot be read ({error})") from None


def _cannot_use(folder: Path, damage: _Damaged) -> UserError:
    return UserError(f"The checkpoint {folder} cannot be used: {damage}. Use another one beside it, or a copy.")


def _read_last(checkpoints: Path) -> str | None:
    """The name in LAST, or None when there is no such file or no such name in it."""
    try:
        name = (checkpoints / _LAST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _FOLDER.fullmatch(name) else None


def _folders(checkpoints: Path) -> list[str]:
    try:
        return [name for name in os.listdir(checkpoints) if _FOLDER.fullmatch(name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"Cannot read the checkpoints in {checkpoints}: {error.strerror}.") from None


def _step_of(name: str) -> int:
    match = _FOLDER.fullmatch(name)
    assert match
    return int(match[1])


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_sha256(head: dict[str, Any]) -> str:
    content = {key: value for key, value in head.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable. Some network file systems refuse; they do it on their own."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
