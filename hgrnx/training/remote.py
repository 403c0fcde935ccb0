"""Copies of a run's checkpoints elsewhere: an object store, or any file system that pyarrow opens by its URI.

The work itself is local. ``URI/RUN/step-00000120-1a2b3c4d/`` is a checkpoint, named after its content as well, so
that what is there once never changes; ``run/`` in it has the metrics and scores of that moment. ``URI/RUN/LAST``
names the newest whole one and is written last.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
from pathlib import Path

from hgrnx.errors import UserError
from hgrnx.training.checkpoint import adopt_checkpoint, content_hash, damage_of
from hgrnx.training.events import EventLog

_NAME = re.compile(r"(step-\d{8,})-[0-9a-f]{8}")
_WAITS_S = (1.0, 5.0, 20.0, 60.0)
"""Between the attempts to send one checkpoint."""
LONGEST_END_S, LONGEST_LEAVE_S = 600.0, 45.0
"""How long the last checkpoint may take to be sent: at the end of a run, and where it is told to leave or fails."""
_STATE = "state.json"


class Remote:
    """The place of one run's copies."""

    def __init__(self, uri: str, run: str) -> None:
        """Raises :class:`UserError` where the URI cannot be understood."""
        from pyarrow import ArrowException, fs

        self.uri = f"{uri.rstrip('/')}/{run}"
        try:
            self._fs, self._base = fs.FileSystem.from_uri(self.uri)
        except (ArrowException, OSError, ValueError) as error:
            raise UserError(f"launch.upload_to={uri} cannot be used: {error}") from None

    def send(self, snapshot: Path, keep: int) -> None:
        """Copy ``snapshot``, a folder called like the copy, point LAST at it, and keep the ``keep`` newest.

        Raises what the file system raises (OSError); a copy that is there already is not sent again.
        """
        target = f"{self._base}/{snapshot.name}"
        if not self._exists(f"{target}/{_STATE}"):
            # What says that a copy is whole comes last.
            for path in sorted(snapshot.rglob("*"), key=lambda path: path.name == _STATE and path.parent == snapshot):
                if path.is_file():
                    name = f"{target}/{path.relative_to(snapshot).as_posix()}"
                    self._fs.create_dir(os.path.dirname(name), recursive=True)
                    with path.open("rb") as source, self._fs.open_output_stream(name) as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
        self._write_last(snapshot.name)
        newest = sorted((name for name in self._copies() if name <= snapshot.name), reverse=True)
        for name in self._copies():
            if name not in newest[:keep] and name != snapshot.name:
                self._fs.delete_dir(f"{self._base}/{name}")

    def fetch(self, run_dir: Path, wanted: str | None = None) -> list[str]:
        """Copy the last whole checkpoint (or ``wanted``, a folder's name without hash) into ``run_dir``.

        Returns:
            What was passed over, a line each.

        Raises:
            UserError: the place does not answer, or has copies, none of them whole.
        """
        problems: list[str] = []
        try:
            last, names = self._last(), sorted(self._copies(), reverse=True)
            order = [name for name in dict.fromkeys([last, *names]) if name in names]
            for name in order:
                if wanted is not None and not name.startswith(f"{wanted}-"):
                    continue
                problem = self._take(name, run_dir)
                if problem is None:
                    return problems
                problems.append(f"{name}: {problem}")
        except OSError as error:
            raise UserError(f"Cannot read the checkpoints in {self.uri}: {error}. Correct launch.upload_to.") from None
        if problems:
            raise UserError(f"None of the checkpoints in {self.uri} is whole ({'; '.join(problems)}).")
        return []

    def _take(self, name: str, run_dir: Path) -> str | None:
        """Bring one copy here; returns why it is not whole, or None."""
        from pyarrow import fs

        match = _NAME.fullmatch(name)
        assert match
        aside = run_dir / "checkpoints" / f"{match[1]}.tmp-{secrets.token_hex(4)}"
        try:
            root = f"{self._base}/{name}"
            for info in self._fs.get_file_info(fs.FileSelector(root, recursive=True)):
                if info.type == fs.FileType.File:
                    # The names come from elsewhere: none may lead out of the folder.
                    parts = Path(os.path.relpath(info.path, root)).parts
                    if ".." in parts:
                        return f"the name {info.path} leads out of its folder"
                    path = aside.joinpath(*parts)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with self._fs.open_input_stream(info.path) as source, path.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
            problem = damage_of(aside)
            if problem is None:
                if (aside / "run").is_dir():
                    shutil.copytree(aside / "run", run_dir, dirs_exist_ok=True)
                    shutil.rmtree(aside / "run")
                adopt_checkpoint(aside, match[1])
            return problem
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _copies(self) -> list[str]:
        from pyarrow import fs

        selector = fs.FileSelector(self._base, allow_not_found=True)
        return [i.base_name for i in self._fs.get_file_info(selector) if _NAME.fullmatch(i.base_name)]

    def _exists(self, path: str) -> bool:
        from pyarrow import fs

        return bool(self._fs.get_file_info(path).type != fs.FileType.NotFound)

    def _last(self) -> str | None:
        try:
            with self._fs.open_input_stream(f"{self._base}/LAST") as stream:
                return str(stream.read().decode().strip())
        except FileNotFoundError:
            return None

    def _write_last(self, name: str) -> None:
        # An object appears whole; on a file system a rename makes it so.
        aside = f"{self._base}/LAST.new"
        with self._fs.open_output_stream(aside) as sink:
            sink.write(f"{name}\n".encode())
        self._fs.move(aside, f"{self._base}/LAST")


class Uploader:
    """Sends checkpoints from a thread. One that waits while a newer one comes is not sent."""

    def __init__(self, remote: Remote, run_dir: Path, keep: int, events: EventLog) -> None:
        self._remote, self._run_dir, self._keep, self._events = remote, run_dir, keep, events
        self._place = run_dir / "upload"
        shutil.rmtree(self._place, ignore_errors=True)  # of a killed process
        self._wake = threading.Condition()
        self._next: Path | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="hgrnx-upload", daemon=True)
        self._thread.start()

    def add(self, folder: Path) -> None:
        """Send the checkpoint ``folder`` soon. It may be removed from now on."""
        snapshot = self._place / f"{folder.name}-{content_hash(folder)[:8]}"
        try:
            shutil.rmtree(snapshot, ignore_errors=True)
            shutil.copytree(folder, snapshot, copy_function=_link)
            for path in [self._run_dir / "metrics.jsonl", *(self._run_dir / "eval").glob("*")]:
                if path.is_file():
                    copy = snapshot / "run" / path.relative_to(self._run_dir)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
        except OSError as error:
            self._events.add("upload_failed", f"{folder.name} could not be set aside to be sent: {error}.")
            return
        with self._wake:
            dropped, self._next = self._next, snapshot
            self._wake.notify_all()
        if dropped is not None and dropped != snapshot:
            shutil.rmtree(dropped, ignore_errors=True)

    def close(self, timeout: float) -> None:
        """Send what waits, for at most ``timeout`` seconds."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._events.add("upload_failed", f"The last checkpoint was not sent to {self._remote.uri} in time.")
        shutil.rmtree(self._place, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._closing)
                snapshot, self._next = self._next, None
            if snapshot is None:
                return
            self._send(snapshot)
            shutil.rmtree(snapshot, ignore_errors=True)

    def _send(self, snapshot: Path) -> None:
        for wait in (*_WAITS_S, None):
            try:
                self._remote.send(snapshot, self._keep)
                return
            except Exception as error:  # whatever a store raises, the run goes on
                reason = str(error).partition("\n")[0][:200]
            with self._wake:
                newer = wait is None or self._wake.wait_for(lambda: self._next is not None, timeout=wait)
            if newer:
                break
        self._events.add("upload_failed", f"{snapshot.name} was not sent to {self._remote.uri}: {reason}.")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
