"""Evaluation on a Ray cluster: workers that hold the model once and are given shares of the work as they get free.

What a share is does not depend on the workers, so neither do the scores. The driver keeps what comes back; workers
write nothing, and one that dies loses only what it was doing, which another one does again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from hgrnx.errors import UserError
from hgrnx.evaluation.choices import Choices
from hgrnx.evaluation.glue import GlueProgress, Tuning
from hgrnx.evaluation.glue_jobs import SeedResult
from hgrnx.evaluation.shares import Share
from hgrnx.launch.cluster import connected
from hgrnx.launch.subject import find_tasks, open_subject
from hgrnx.launch.task_request import TaskRequest
from hgrnx.paths import Places

TRIES = 3
"""How many workers may die of the same piece of work."""
_POLL_S = 1.0
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Subject:
    """The model that is scored, and what it is asked: all that a worker has to know."""

    folder: Path
    """Of the run, or in Hugging Face form; every node sees it."""
    weights: str
    """Hash of the weights that are meant."""
    request: TaskRequest
    tasks: tuple[str, ...]
    """Names of the zero-shot tasks."""


class Workers:
    """Asks and fine-tunes on a connected cluster.

    Args:
        count: of workers; all GPUs of the cluster when None, or where it has none all CPUs.
        cpus: of each worker; its threads where there is no GPU.
        on_wait: called about once a second with a word on the workers.
        on_tuning: called with the progress of fine-tunings.

    Raises:
        UserError: the cluster is too small.
    """

    def __init__(
        self,
        subject: Subject,
        count: int | None,
        cpus: int,
        on_wait: Callable[[str], None],
        on_tuning: Callable[[GlueProgress], None],
    ) -> None:
        have = ray.cluster_resources()
        self._gpu = have.get("GPU", 0) >= 1
        most = int(have["GPU"]) if self._gpu else int(have.get("CPU", 0) // cpus)
        self._count = most if count is None else count
        if not 1 <= self._count <= most:
            raise UserError(
                f"{self._count or 1} workers with {f'{cpus} CPUs' if not self._gpu else 'a GPU'} each do not fit: the "
                f"Ray cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs. Lower --workers or "
                "--cpus-per-worker, or add nodes."
            )
        self._subject, self._cpus = subject, cpus
        self._on_wait, self._on_tuning = on_wait, on_tuning
        self._opening: dict[Any, Any] = {}
        self._free: list[Any] = []
        self._busy: dict[Any, tuple[Any, Any, int]] = {}
        self._lost = 0

    def ask(self, shares: Sequence[Share]) -> Iterator[tuple[Share, Choices]]:
        """See :data:`hgrnx.evaluation.shares.Ask`."""
        return self._spread(shares, lambda worker, share: worker.ask.remote(share), lambda: None)

    def tune(self, tunings: Sequence[Tuning]) -> Iterator[tuple[Tuning, dict[str, SeedResult]]]:
        """See :data:`hgrnx.evaluation.glue.Tune`."""
        if not tunings:
            return
        board = _TuningBoard.remote()  # type: ignore[attr-defined]

        def show() -> None:
            for progress in ray.get(board.take.remote()):
                self._on_tuning(progress)

        yield from self._spread(tunings, lambda worker, tuning: worker.tune.remote(tuning, board), show)
        show()

    def close(self) -> None:
        """End the workers."""
        for worker in (*self._opening.values(), *self._free, *(worker for worker, _, _ in self._busy.values())):
            ray.kill(worker)
        self._opening, self._free, self._busy = {}, [], {}

    def _spread(
        self, pieces: Sequence[_T], call: Callable[[Any, _T], Any], on_wait: Callable[[], None]
    ) -> Iterator[tuple[_T, _R]]:
        """Give each worker a piece whenever it is free; yields pieces with what came of them, as they are finished."""
        waiting = deque((piece, 1) for piece in pieces)
        while waiting or self._busy:
            while waiting and self._free:
                worker, (piece, attempt) = self._free.pop(), waiting.popleft()
                self._busy[call(worker, piece)] = worker, piece, attempt
            for _ in range(min(len(waiting), self._count - len(self._busy)) - len(self._opening)):
                self._start()
            ready, _ = ray.wait([*self._busy, *self._opening], timeout=_POLL_S)
            self._on_wait(f"{len(self._busy)} of {self._count} workers busy")
            on_wait()
            for reference in ready:
                if reference in self._opening:
                    worker = self._opening.pop(reference)
                    if self._result(reference, worker, 1) is not _LOST:
                        self._free.append(worker)
                    continue
                worker, piece, attempt = self._busy.pop(reference)
                result = self._result(reference, worker, attempt)
                if result is _LOST:
                    waiting.appendleft((piece, attempt + 1))
                else:
                    self._free.append(worker)
                    yield piece, result

    def _start(self) -> None:
        gpus = {"num_gpus": 1} if self._gpu else {}
        worker = _Worker.options(num_cpus=self._cpus, **gpus).remote()  # type: ignore[attr-defined]
        self._opening[worker.open.remote(self._subject, None if self._gpu else self._cpus)] = worker

    def _result(self, reference: Any, worker: Any, attempt: int) -> Any:
        """What came of a call; ``_LOST`` where its worker died and the piece may be tried again."""
        try:
            return ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        except RayActorError as error:
            ray.kill(worker)  # it may only be out of reach
            self._lost += 1
            if attempt >= TRIES or self._lost >= TRIES * (1 + self._count):
                reason = " ".join(line.strip() for line in str(error).splitlines()[:3])
                raise UserError(
                    f"Workers were lost too often ({self._lost} times in all): {reason}\nWhat is finished is kept: the "
                    "same command goes on from there."
                ) from None
            return _LOST


_LOST = object()


@contextmanager
def workers(
    places: Places,
    subject: Subject,
    count: int | None,
    cpus: int,
    on_wait: Callable[[str], None],
    on_tuning: Callable[[GlueProgress], None],
) -> Iterator[Workers]:
    """:class:`Workers` of the cluster in ``RAY_ADDRESS``, or of one that is started for the time of the block."""
    with connected(places):
        made = Workers(subject, count, cpus, on_wait, on_tuning)
        try:
            yield made
        finally:
            made.close()


@ray.remote(num_cpus=0)
class _TuningBoard:
    """The newest progress of each fine-tuning."""

    def __init__(self) -> None:
        self.newest: dict[tuple[str, int], GlueProgress] = {}

    def post(self, progress: GlueProgress) -> None:
        self.newest[progress.task, progress.seed] = progress

    def take(self) -> list[GlueProgress]:
        taken, self.newest = list(self.newest.values()), {}
        return taken


@ray.remote
class _Worker:
    """Holds a model."""

    def open(self, subject: Subject, threads: int | None) -> None:
        """Read the model and the tasks; they must be those that the driver means.

        Raises:
            UserError: they are missing here, or others.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.opened = open_subject(subject.folder, subject.request, "cpu" if threads is not None else "cuda")
        if self.opened.weights != subject.weights:
            raise UserError(
                f"The weights in {subject.folder} are not the same on all machines, or changed meanwhile. Wait for the "
                "end of the run, or score an exported folder."
            )
        plan = find_tasks(subject.request, subject.tasks) if subject.tasks else None
        self.tasks = {task.name: task for task in plan.tasks} if plan is not None else {}

    def ask(self, share: Share) -> Choices:
        return share.ask(self.tasks[share.task], self.opened.scorer())

    def tune(self, tuning: Tuning, board: Any) -> dict[str, SeedResult]:
        last = 0.0

        def post(now: GlueProgress) -> None:
            nonlocal last
            if now.done == now.total or time.monotonic() - last > _POLL_S:
                last = time.monotonic()
                board.post.remote(now)

        return self.opened.tuner(post).run(tuning)
