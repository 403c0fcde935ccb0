"""What `hgrnx bench` does: build the cases, measure them, print and keep the result."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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

KINDS = ("op", "model", "distill", "eval")


def run_bench(
    kind: str,
    folder: Path,
    console: Console,
    *,
    batch_size: int,
    seq_len: int,
    heads: int = 4,
    head_size: int = 64,
    architecture: str = "hgrn2",
    precisions: tuple[str, ...] = ("fp32",),
    compiled: bool = False,
    rounds: int = 7,
    use_gpu: bool = False,
    data: Path | None = None,
    model: OpenedModel | None = None,
    items: int = 8,
) -> Path:
    """Measure ``kind`` (one of :data:`KINDS`), print a table and write JSON and plot into ``folder``.

    ``heads`` and ``head_size`` are for ``op``, ``architecture`` and ``compiled`` (also measure peers under
    ``torch.compile``) for ``model``; ``distill`` takes the first of ``precisions``. ``eval`` scores ``items`` pairs of
    each of BLiMP's files in ``data``, and BEAR, with ``model`` (a fresh small one when None). Returns the JSON file.

    Raises:
        UserError: an unknown kind, architecture or precision, a GPU or benchmarks that are not there.
    """
    if kind not in KINDS:
        raise UserError(f"hgrnx bench: '{kind}' is none of {', '.join(KINDS)}.")
    wrong = [name for name in precisions if name not in ("fp32", "bf16")]
    if wrong or not precisions:
        raise UserError(f"hgrnx bench: precision '{', '.join(wrong)}' is none of fp32, bf16.")
    if architecture not in SIZES:
        raise UserError(f"hgrnx bench: architecture '{architecture}' is none of {', '.join(SIZES)}.")
    if use_gpu and not torch.cuda.is_available():
        raise UserError("hgrnx bench: --gpu needs a CUDA GPU that torch sees; there is none.")
    device = torch.device("cuda" if use_gpu else "cpu")
    if not use_gpu:  # what a training does
        guard_bf16_products()
        keep_freed_memory()
    where = torch.cuda.get_device_name(device) if use_gpu else f"CPU, {torch.get_num_threads()} threads"
    if kind == "eval":
        if data is None:
            raise UserError("hgrnx bench eval: --data names the folder with the benchmarks (blimp_filtered, bear).")
        return _run_eval(
            data, model, items, cast(tuple[Precision, ...], precisions), rounds, device, where, folder, console
        )
    shape = f"{batch_size} x {seq_len} tokens"
    cases: list[Case] = []
    if kind == "op":
        shape = f"B{batch_size} T{seq_len} H{heads} K{head_size} V{head_size}"
        for precision in precisions:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            cases += op_cases(batch_size, seq_len, heads, head_size, device, dtype)
    elif kind == "model":
        cases = model_cases(architecture, batch_size, seq_len, device, precisions, compiled)
    else:
        cases = distill_cases(batch_size, seq_len, device, precisions[0])
    title = f"{kind}, {shape}, forward and backward, {where}"
    rows = [measurement.row() for measurement in _measured(cases, rounds, device, console)]
    print_bench(title, rows, console)
    return _saved(kind, title, rounds, rows, folder, console)


def _run_eval(
    data: Path,
    model: OpenedModel | None,
    items: int,
    precisions: tuple[Precision, ...],
    rounds: int,
    device: torch.device,
    where: str,
    folder: Path,
    console: Console,
) -> Path:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hgrnx-bench-") as scratch:
        all_questions = read_questions(data, items)
        opened = model or small_model(all_questions, Path(scratch))
        for questions in all_questions:
            found = ways(questions, opened, Path(scratch) / "exported", precisions, device)
            measured = _measured(cases_of(questions, found, opened.tokenizer()), rounds, device, console, warmup=1)
            part = compare(questions, found, measured)
            print_bench(f"eval, {len(questions.texts):,} texts of {questions.name}, {where}", part, console)
            for line in verdicts(questions, part):
                console.print(line, highlight=False)
            rows += part
    return _saved("eval", f"eval, {where}", rounds, rows, folder, console)


def _measured(
    cases: list[Case], rounds: int, device: torch.device, console: Console, warmup: int = 2
) -> list[Measurement]:
    with Progress(
        TextColumn("measuring"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task("measuring", total=None)
        return measure(
            cases,
            rounds=rounds,
            warmup=warmup,
            device=device,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _saved(kind: str, title: str, rounds: int, rows: list[dict[str, Any]], folder: Path, console: Console) -> Path:
    settings = {"title": title, "rounds": rounds, "environment": describe_environment()}
    path = save_bench(folder, f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}", settings, rows)
    console.print(path, highlight=False)
    return path
