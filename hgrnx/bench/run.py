"""What `hgrnx bench` does: build the cases, measure them, print and keep the result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hgrnx.bench.data import DataBench
from hgrnx.bench.distill import distill_cases
from hgrnx.bench.eval import cases as cases_of
from hgrnx.bench.eval import compare, read_questions, small_model, verdicts, ways
from hgrnx.bench.measure import Case, Measurement, measure
from hgrnx.bench.model import SIZES, model_cases
from hgrnx.bench.op import op_cases
from hgrnx.errors import UserError
from hgrnx.evaluation.scoring import Precision
from hgrnx.ops.cpu import guard_bf16_products, keep_freed_memory
from hgrnx.report.bench import print_bench, save_bench
from hgrnx.runs import OpenedModel
from hgrnx.tracking.environment import describe_environment

Turns = Callable[[int, Callable[[int, int], None]], tuple[list[dict[str, Any]], list[str]]]
"""Rounds, and progress (done, in all), to rows and notes."""


@dataclass(frozen=True)
class Bench:
    """What all benchmarks share; each method measures, prints a table, and writes JSON and plot into ``folder``.

    Methods return the JSON file.

    Raises:
        UserError: a GPU is asked for and not there; methods: an unknown precision or architecture, text or benchmarks
            that are not there.
    """

    folder: Path
    console: Console
    use_gpu: bool = False
    rounds: int | None = None
    """How often each case is timed; each benchmark has its own number when None."""

    def __post_init__(self) -> None:
        if self.use_gpu and not torch.cuda.is_available():
            raise UserError("hgrnx bench: --gpu needs a CUDA GPU that torch sees; there is none.")
        if not self.use_gpu:  # what a training does
            guard_bf16_products()
            keep_freed_memory()

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.use_gpu else "cpu")

    @property
    def where(self) -> str:
        """The device in words."""
        return torch.cuda.get_device_name() if self.use_gpu else f"CPU, {torch.get_num_threads()} threads"

    def op(self, batch_size: int, seq_len: int, heads: int, head_size: int, precisions: Sequence[str]) -> Path:
        """The recurrence, by every implementation."""
        cases: list[Case] = []
        for precision in _checked(precisions):
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            cases += op_cases(batch_size, seq_len, heads, head_size, self.device, dtype)
        return self._steps("op", f"B{batch_size} T{seq_len} H{heads} K{head_size} V{head_size}", cases)

    def model(
        self, architecture: str, batch_size: int, seq_len: int, precisions: Sequence[str], *, compiled: bool = False
    ) -> Path:
        """Training steps of an architecture and its peers, with ``compiled`` also these under ``torch.compile``."""
        if architecture not in SIZES:
            raise UserError(f"hgrnx bench: architecture '{architecture}' is none of {', '.join(SIZES)}.")
        cases = model_cases(architecture, batch_size, seq_len, self.device, _checked(precisions), compiled)
        return self._steps("model", f"{batch_size} x {seq_len} tokens", cases)

    def distill(self, batch_size: int, seq_len: int, precision: str) -> Path:
        """A distillation step beside a plain one, one with a stored teacher and naive ones."""
        _checked([precision])
        with tempfile.TemporaryDirectory() as folder:
            cases = distill_cases(batch_size, seq_len, self.device, precision, Path(folder))
            return self._steps("distill", f"{batch_size} x {seq_len} tokens", cases)

    def data(self, source: Path, track: str, seq_len: int) -> Path:
        """Preparing the text of ``source`` beside ``datasets.map``, and the loader."""
        with tempfile.TemporaryDirectory() as work:
            bench = DataBench(source, track, seq_len, Path(work))
            title = f"data, {bench.bytes / 1e6:,.1f} MB of text to blocks of {seq_len} tokens"
            measurements = self._measure(bench.cases(), rounds=self.rounds or 3, warmup=0)
            rows = [measurement.row() for measurement in measurements]
            print_bench(title, rows, self.console)
            return self._save("data", title, rows, bench.notes(measurements))

    def eval(self, data: Path, opened: OpenedModel | None, items: int, precisions: Sequence[str]) -> Path:
        """Scoring ``items`` pairs of each of BLiMP's files in ``data``, and BEAR; with a fresh model when None."""
        rows: list[dict[str, Any]] = []
        notes: list[str] = []
        kinds = _checked(precisions)
        with tempfile.TemporaryDirectory(prefix="hgrnx-bench-") as scratch:
            all_questions = read_questions(data, items)
            opened = opened or small_model(all_questions, Path(scratch))
            for questions in all_questions:
                found = ways(questions, opened, Path(scratch) / "exported", kinds, self.device)
                cases = cases_of(questions, found, opened.tokenizer())
                part = compare(questions, found, self._measure(cases, rounds=self.rounds or 7, warmup=1))
                print_bench(
                    f"eval, {len(questions.texts):,} texts of {questions.name}, {self.where}", part, self.console
                )
                rows += part
                notes += verdicts(questions, part)
        return self._save("eval", f"eval, {self.where}", rows, notes)

    def turns(self, kind: str, title: str, measured: Turns) -> Path:
        """What ``measured`` measures by itself: it gets the number of rounds (3), and whom to tell how far it is."""
        with self._progress() as on_progress:
            rows, notes = measured(self.rounds or 3, on_progress)
        title = f"{title}, {self.where}"
        print_bench(title, rows, self.console)
        return self._save(kind, title, rows, notes)

    def _steps(self, kind: str, shape: str, cases: list[Case]) -> Path:
        title = f"{kind}, {shape}, forward and backward, {self.where}"
        rows = [measurement.row() for measurement in self._measure(cases, rounds=self.rounds or 7, warmup=2)]
        print_bench(title, rows, self.console)
        return self._save(kind, title, rows, [])

    def _measure(self, cases: list[Case], *, rounds: int, warmup: int) -> list[Measurement]:
        with self._progress() as on_progress:
            return measure(cases, rounds=rounds, warmup=warmup, device=self.device, on_progress=on_progress)

    @contextmanager
    def _progress(self) -> Iterator[Callable[[int, int], None]]:
        """A bar, and what to call with what is done and what there is in all."""
        with Progress(
            TextColumn("measuring"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        ) as progress:
            task = progress.add_task("measuring", total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    def _save(self, kind: str, title: str, rows: list[dict[str, Any]], notes: list[str]) -> Path:
        for note in notes:
            self.console.print(note, highlight=False)
        rounds = len(rows[0]["rounds"])
        settings = {"title": title, "rounds": rounds, "notes": notes, "environment": describe_environment()}
        path = save_bench(self.folder, f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}", settings, rows)
        self.console.print(path, highlight=False)
        return path


def _checked(precisions: Sequence[str]) -> tuple[Precision, ...]:
    wrong = [name for name in precisions if name not in ("fp32", "bf16")]
    if wrong or not precisions:
        raise UserError(f"hgrnx bench: precision '{', '.join(wrong)}' is none of fp32, bf16.")
    return cast(tuple[Precision, ...], tuple(precisions))
