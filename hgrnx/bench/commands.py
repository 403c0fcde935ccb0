"""The commands of `hgrnx bench`; nothing heavy is imported before one is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgrnx.options import Home
from hgrnx.paths import resolve_places

if TYPE_CHECKING:
    from hgrnx.bench.run import Bench

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed and memory on this machine, beside the implementations installed on it.",
)

BatchSize = Annotated[int, typer.Option(min=1, help="Sequences in a step.")]
SeqLen = Annotated[int, typer.Option(min=1, help="Tokens in a sequence.")]
Precisions = Annotated[list[str] | None, typer.Option(help="fp32 or bf16; give it twice for both.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="How often each is timed, in turns [7; data 3].")]
Gpu = Annotated[bool, typer.Option("--gpu", help="On the GPU.")]


@app.command()
def op(
    batch_size: BatchSize = 8,
    seq_len: SeqLen = 512,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    head_size: Annotated[int, typer.Option(min=1, help="Keys, and values, of a head.")] = 64,
    precision: Precisions = None,
    rounds: Rounds = None,
    gpu: Gpu = False,
    home: Home = None,
) -> None:
    """The recurrence, forward and backward, by every implementation."""
    _bench(home, rounds, gpu).op(batch_size, seq_len, heads, head_size, precision or ["fp32"])


@app.command()
def model(
    architecture: Annotated[str, typer.Option(help="hgrn2, transformer, lstm, mamba or xlstm.")] = "hgrn2",
    batch_size: BatchSize = 8,
    seq_len: SeqLen = 512,
    precision: Precisions = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Also peers under torch.compile.")] = False,
    rounds: Rounds = None,
    gpu: Gpu = False,
    home: Home = None,
) -> None:
    """Training steps, beside transformers' Llama or Mamba (and on a GPU FLA's HGRN2)."""
    bench = _bench(home, rounds, gpu)
    bench.model(architecture, batch_size, seq_len, precision or ["fp32"], compiled=compiled)


@app.command()
def distill(
    batch_size: BatchSize = 8,
    seq_len: SeqLen = 512,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    rounds: Rounds = None,
    gpu: Gpu = False,
    home: Home = None,
) -> None:
    """A distillation step, beside a plain one and naive distillation."""
    _bench(home, rounds, gpu).distill(batch_size, seq_len, precision)


@app.command()
def data(
    source: Annotated[Path, typer.Option(help="Text to prepare, as hgrnx prepare takes it.")],
    track: Annotated[str, typer.Option(help="Track whose training folder of the source is taken.")] = "strict-small",
    seq_len: SeqLen = 512,
    rounds: Rounds = None,
    home: Home = None,
) -> None:
    """Text to token shards, beside datasets.map; and the loader beside a training step."""
    _bench(home, rounds, False).data(source, track, seq_len)


@app.command(name="eval")
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder with the benchmarks (blimp_filtered, bear).")],
    model: Annotated[str | None, typer.Option(help="A run, or a Hugging Face folder [a fresh one].")] = None,
    items: Annotated[int, typer.Option(min=1, help="Pairs of each of BLiMP's files.")] = 8,
    precision: Annotated[list[str] | None, typer.Option(help="fp32 or bf16 [both].")] = None,
    rounds: Rounds = None,
    gpu: Gpu = False,
    home: Home = None,
) -> None:
    """Scoring BLiMP and BEAR, beside lm-eval, lm-pub-quiz and a plain forward."""
    from hgrnx.runs import open_model

    bench = _bench(home, rounds, gpu)
    opened = open_model(model, resolve_places(home)) if model else None
    bench.eval(data, opened, items, precision or ["fp32", "bf16"])


def _bench(home: Path | None, rounds: int | None, gpu: bool) -> Bench:
    from hgrnx.bench.run import Bench
    from hgrnx.console import make_console

    return Bench(resolve_places(home).home / "bench", make_console(), gpu, rounds)
