"""The ledger of a run: all text that any model of it has read, how often, and what the track allows.

BabyLM counts the text of teachers and tokenizers as the student's own, each text once; and how often each model
reads its text. A run keeps its ledger in ``ledger.json``, so that a student's can take over those of its teachers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgrnx.data.tracks import Track
from hgrnx.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

LEDGER = "ledger.json"


@dataclass(frozen=True)
class Text:
    """A source of text: the same name and SHA-256 are the same text, of which ``words`` words were used."""

    name: str
    sha256: str
    words: int


@dataclass(frozen=True)
class Reader:
    """A model or a tokenizer, and what it was trained on."""

    kind: str
    """``model`` or ``tokenizer``."""
    name: str
    texts: tuple[Text, ...] | None
    """None: nobody knows."""
    words_read: int | None
    """Over all passes; None: nobody knows, or (a tokenizer) the same as once."""

    @property
    def words(self) -> int:
        """Different words that it has read; 0 where nobody knows."""
        return sum(text.words for text in self.texts or ())

    @property
    def passes(self) -> float:
        """How often it has read them, on average."""
        return 1.0 if self.words_read is None or not self.words else self.words_read / self.words


@dataclass(frozen=True)
class RunLedger:
    """The readers of a run: itself first, then its tokenizer, its teachers, and theirs."""

    track: str
    budget: int
    max_passes: int | None
    readers: tuple[Reader, ...]

    def texts(self, readers: Sequence[Reader] | None = None) -> dict[tuple[str, str], int]:
        """Words of every text that has been read, each text once: as much of it as any reader has read."""
        union: dict[tuple[str, str], int] = {}
        for reader in self.readers if readers is None else readers:
            for text in reader.texts or ():
                key = text.name, text.sha256
                union[key] = max(union.get(key, 0), text.words)
        return union

    @property
    def words(self) -> int:
        """Different words that the readers have read together."""
        return sum(self.texts().values())

    def problems(self) -> list[str]:
        """How this run breaks the rules of its track; nothing where it keeps them."""
        problems = []
        unknown = [_title(reader) for reader in self.readers if reader.texts is None]
        if unknown:
            problems.append(
                f"nobody can tell what text {' and '.join(unknown)} has read: there is no {LEDGER} that says so"
            )
        if self.words > self.budget:
            own = sum(self.texts(self.readers[:1]).values())
            others = [f"{_title(r)} adds {more:,}" for r, more in self._additions()]
            problems.append(
                f"the models and tokenizers of this run have read {self.words:,} different words, "
                f"{self.words - self.budget:,} more than the {self.budget:,} of the track {self.track} "
                f"({', '.join([f'the run itself {own:,}', *others])})"
            )
        for reader in self.readers:
            if self.max_passes is not None and round(reader.passes, 2) > self.max_passes:
                problems.append(
                    f"{_title(reader)} reads its text {reader.passes:.2f} times, and the track {self.track} allows "
                    f"{self.max_passes} passes"
                )
        return problems

    def _additions(self) -> Iterable[tuple[Reader, int]]:
        """Words that each reader after the first adds to what those before it have read."""
        before = sum(self.texts(self.readers[:1]).values())
        for count, reader in enumerate(self.readers[1:], start=2):
            total = sum(self.texts(self.readers[:count]).values())
            if total > before:
                yield reader, total - before
            before = total

    def as_dict(self) -> dict[str, Any]:
        """For JSON; derived numbers are for whoever reads the file."""
        rows = [{**asdict(reader), "words": reader.words, "passes": round(reader.passes, 4)} for reader in self.readers]
        return {
            "track": self.track,
            "budget": self.budget,
            "max_passes": self.max_passes,
            "words": self.words,
            "readers": rows,
        }


def dataset_texts(manifest: Mapping[str, Any]) -> tuple[Text, ...]:
    """The training text of a dataset."""
    return tuple(
        Text(source["name"], source["sha256"], source["train"]["words"])
        for source in manifest["sources"]
        if source["train"]["words"]
    )


def dataset_readers(manifest: Mapping[str, Any], name: str, words_read: int) -> list[Reader]:
    """A model trained on the training text of a dataset, and the dataset's tokenizer."""
    texts = dataset_texts(manifest)
    tokenizer = manifest["tokenizer"]
    if tokenizer["given"] is not None:
        read = None if tokenizer["texts"] is None else _texts(tokenizer["texts"])
    else:
        read = texts
    return [Reader("model", name, texts, words_read), Reader("tokenizer", tokenizer["hash"][:12], read, None)]


def tokenizer_texts(place: str, digest: str) -> list[dict[str, Any]] | None:
    """What the tokenizer at ``place`` (a ``tokenizer.json``, or its folder) was trained on, for a manifest.

    A prepared dataset's manifest says it, or the ledger in the folder of an exported model. None: nobody knows.
    """
    folder = Path(place).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    try:
        manifest = json.loads((folder.parent / "manifest.json").read_text(encoding="utf-8"))
        readers = dataset_readers(manifest, "", 0)
    except (OSError, ValueError, KeyError, TypeError):
        readers = read_readers(folder, "")
    for reader in readers:
        if (reader.kind, reader.name) == ("tokenizer", digest[:12]) and reader.texts is not None:
            return [asdict(text) for text in reader.texts]
    return None


def _texts(rows: Iterable[Mapping[str, Any]]) -> tuple[Text, ...]:
    return tuple(Text(**row) for row in rows)


def make_ledger(track: Track, readers: Iterable[Reader]) -> RunLedger:
    """The ledger of a run on ``track``; a reader that is met twice (a teacher of two teachers) counts once."""
    different: dict[tuple[str, str], Reader] = {}
    for reader in readers:
        different.setdefault((reader.kind, reader.name), reader)
    return RunLedger(track.name, track.words, track.max_passes, tuple(different.values()))


def check_ledger(ledger: RunLedger, track: Track, enforce: bool) -> list[str]:
    """What is wrong with ``ledger`` but does not stop the run; before any training starts.

    Raises:
        UserError: the track refuses what is wrong, and ``enforce`` (``data.enforce_budget``) has it so.
    """
    if track.over_budget == "ignore":
        return []
    problems = ledger.problems()
    if problems and enforce and track.over_budget == "refuse":
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(
            f"This run breaks the rules of the track {track.name}:\n{lines}\n"
            "Use teachers and tokenizers trained on this text, or fewer passes; or train outside of the rules with "
            "data.enforce_budget=false."
        )
    return problems


def read_readers(folder: Path, name: str) -> list[Reader]:
    """The readers in the ledger of a run or an exported model; one of whom nobody knows what it read if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / LEDGER
    if not path.is_file():
        return [Reader("model", name, None, None)]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["readers"]
        return [
            Reader(
                row["kind"],
                row["name"],
                None if row["texts"] is None else _texts(row["texts"]),
                row["words_read"],
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Get the model's folder again.") from None


def print_run_ledger(content: Mapping[str, Any], console: Console) -> None:
    """Print what :meth:`RunLedger.as_dict` gave."""
    from rich.table import Table

    table = Table(title=f"Words read by the models of this run (track {content['track']})", title_justify="left")
    table.add_column("reader")
    for title in ("different words", "passes", "words read"):
        table.add_column(title, justify="right")
    for row in content["readers"]:
        known = row["texts"] is not None
        table.add_row(
            f"{row['kind']} {row['name']}",
            f"{row['words']:,}" if known else "unknown",
            f"{row['passes']:.2f}" if row["words_read"] is not None else "",
            f"{row['words_read']:,}" if row["words_read"] is not None else "",
        )
    table.add_section()
    table.add_row("together, each text once", f"{content['words']:,}", "", "")
    limit = f"at most {content['max_passes']}" if content["max_passes"] else ""
    table.add_row("the track's budget", f"{content['budget']:,}", limit, "")
    console.print(table)


def _title(reader: Reader) -> str:
    return f"{'the tokenizer' if reader.kind == 'tokenizer' else 'the model'} {reader.name}"
