"""Text to packed tokens: ``hgrnx prepare`` beside the usual script of ``datasets`` and ``transformers``.

Both read the same lines from text files, put BOS before each, encode them with the same tokenizer in as many
processes as there are cores, and leave token arrays on disk. Training a tokenizer is no part of it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrnx.bench.measure import Case, Measurement
from hgrnx.bench.model import training_case
from hgrnx.config import DataConfig, DistillRecipe, load_recipe
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.loader import TrainLoader
from hgrnx.data.prepare import prepare
from hgrnx.data.sources import LineCounts, TextFile, find_text_files, read_documents
from hgrnx.data.tokenizer import BOS, EOS, PAD, save_tokenizer, train_tokenizer
from hgrnx.data.tracks import find_track
from hgrnx.data.workers import usable_cores
from hgrnx.errors import UserError

PEER = "datasets.map"
CPU_RECIPE = "strict-small-cpu"
WORLD_SIZES = (1, 2, 8)
_VOCAB_SIZE = 16_000
_SAMPLE_LINES = 20_000  # of each file; enough for a tokenizer of this size
_LOADER_STEPS = 50


class DataBench:
    """The cases, on the training text of ``source``; ``folder`` is for what they write."""

    def __init__(self, source: Path, track: str, seq_len: int, folder: Path) -> None:
        files = find_text_files(str(source), find_track(DataConfig(track=track)))
        self.files = [file for file in files if file.split == "train" and file.kind == "lines"]
        if not self.files or any(file.path.suffix == ".gz" for file in self.files):
            raise UserError(f"hgrnx bench data: the training text in {source} must be plain text files.")
        self.seq_len, self.folder, self._compared = seq_len, folder, False
        self.bytes = sum(file.path.stat().st_size for file in self.files)
        save_tokenizer(train_tokenizer(self._sample(), _VOCAB_SIZE), folder / "tokenizer")
        # A flat folder of links: no layout, and one line of development text, so that all files are training text.
        (folder / "source").mkdir()
        for number, file in enumerate(self.files):
            (folder / "source" / f"{number:05d}.txt").symlink_to(file.path.resolve())
        (folder / "source" / "x.dev").write_text("nothing\n")
        self.dataset = self._prepare(folder / "data")

    def cases(self) -> list[Case]:
        """Ours and, where ``datasets`` and ``transformers`` are installed, the usual script's.

        Raises:
            AssertionError: the scripts do not give the same tokens.
        """
        tokens = len(self.dataset.split("train").tokens)
        cases = [Case("hgrnx prepare", self._in_new_folder(self._prepare), tokens, processes=True)]
        try:
            import datasets  # noqa: F401
            import transformers  # noqa: F401
        except ImportError:
            return cases
        return [*cases, Case(PEER, self._in_new_folder(self._check_peer), tokens, processes=True)]

    def notes(self, measurements: list[Measurement]) -> list[str]:
        """What the table does not say: speed by bytes and words, the ratio, and the loader."""
        words = self.dataset.split("train").words
        lines = [
            f"{row.name}: {row.seconds:.1f} s, {self.bytes / row.seconds / 1e6:.2f} MB/s, "
            f"{words / row.seconds:,.0f} words/s"
            for row in measurements
        ]
        if len(measurements) > 1:
            ratio = measurements[1].seconds / measurements[0].seconds
            tokens = len(self.dataset.split("train").tokens)
            lines.append(f"{ratio:.2f} times as fast as {PEER}; the same {tokens:,} tokens, compared one by one")
        return lines + list(self._loader_notes())

    def _prepare(self, folder: Path) -> PreparedDataset:
        config = DataConfig(
            track="strict",
            source=str(self.folder / "source"),
            tokenizer=str(self.folder / "tokenizer"),
            block_lines=1,
        )
        return prepare(config, folder, workers=usable_cores())

    def _check_peer(self, folder: Path) -> None:
        theirs = usual_script([file.path for file in self.files], self.folder / "tokenizer", self.seq_len, folder)
        if self._compared:  # once is enough, and not a part of what is timed
            return
        self._compared = True
        ours = self.dataset.split("train").tokens
        blocks, position = theirs.data.column("input_ids"), 0
        for chunk in blocks.chunks:
            values = chunk.flatten().to_numpy(zero_copy_only=False)
            assert np.array_equal(values, ours[position : position + len(values)]), "the tokens differ"
            position += len(values)
        assert position == len(ours), f"{position} tokens instead of {len(ours)}"

    def _in_new_folder(self, step: Callable[[Path], object]) -> Callable[[], object]:
        def run() -> object:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                return step(Path(folder))

        return run

    def _sample(self) -> Iterator[str]:
        for file in self.files:
            yield from islice(
                read_documents(TextFile(file.path, file.name, "train", "lines"), 1, LineCounts()), _SAMPLE_LINES
            )

    def _loader_notes(self) -> Iterator[str]:
        """Throughput for several numbers of workers, against a step of the CPU recipe on the same tokens."""
        recipe = load_recipe(CPU_RECIPE)
        model = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model
        rows, length = recipe.training.batch_size, recipe.training.seq_len
        step = training_case("step", model, rows, length, torch.device("cpu"), recipe.training.precision).step
        step()
        seconds = _median_seconds(step, 3)
        for world in WORLD_SIZES:
            loaders = [TrainLoader(self.dataset, length, rows, 0, rank, world) for rank in range(world)]
            steps = iter(range(1_000_000))

            def all_ranks() -> None:
                number = next(steps)  # noqa: B023
                for loader in loaders:  # noqa: B023
                    loader.batch(number)

            all_ranks()
            batch = _median_seconds(all_ranks, _LOADER_STEPS)
            yield (
                f"loader, {world} rank{'s' if world > 1 else ''}: {rows * length / batch:,.0f} tokens/s, "
                f"{batch / seconds:.3%} of a step of {CPU_RECIPE} ({seconds:.2f} s), were nothing made ahead"
            )


def usual_script(files: list[Path], tokenizer: Path, seq_len: int, folder: Path) -> Any:
    """Tokens in blocks of ``seq_len`` the way most training scripts make them; returns a ``datasets.Dataset``.

    One thing is changed: the short block at the end of each batch is kept, where the scripts drop it.
    """
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer / "tokenizer.json"),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        split_special_tokens=True,  # "<s>" in the text is text
    )

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = [f" {line}\n" for line in batch["text"] if line and not line.isspace()]
        encoded = fast(texts, add_special_tokens=False, return_attention_mask=False)
        return {"input_ids": [[fast.bos_token_id, *ids] for ids in encoded["input_ids"]]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        stream = list(chain.from_iterable(batch["input_ids"]))
        return {"input_ids": [stream[begin : begin + seq_len] for begin in range(0, len(stream), seq_len)]}

    names = [str(path.resolve()) for path in files]
    lines = datasets.load_dataset("text", data_files={"train": names}, split="train", cache_dir=str(folder))
    encoded = lines.map(tokenize, batched=True, num_proc=usable_cores(), remove_columns=["text"])
    return encoded.map(group, batched=True, num_proc=usable_cores())


def _median_seconds(step: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
