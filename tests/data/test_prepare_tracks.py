"""From the text of a track to its dataset: sampled, cleaned, fetched, and what the ledger says of it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_text import lines
from test_prepare import text_of
from test_sampled_text import pile_records, write_pile

from hgrnx.config import CleaningConfig, DataConfig, DecontaminationConfig, NearDuplicatesConfig
from hgrnx.data import prepare as module
from hgrnx.data.ledger import print_ledger
from hgrnx.data.prepare import prepare
from hgrnx.data.tracks import domain_words, load_track
from hgrnx.errors import UserError

Write = Callable[..., Path]
PAIR = {"sentence_good": "Every small bird sings near our house.", "sentence_bad": "Every small birds."}


def shown(manifest: dict[str, Any]) -> str:
    out = io.StringIO()
    print_ledger(manifest, Console(file=out, width=160))
    return " ".join(out.getvalue().split())


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pile(tmp_path_factory.mktemp("pile"), pile_records())


def pile_config(source: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{"track": "pile-10m", "words": 20_000, "source": str(source), "vocab_size": 400, **changes})


def test_pile_in_proportion_whatever_the_workers(pile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_A_PROCESS", 0)
    made = [prepare(pile_config(pile), tmp_path / str(count), workers=count) for count in (1, 4, 1)]
    assert len({dataset.hash for dataset in made}) == 1
    budgets = domain_words(load_track("pile-10m"), 20_000)
    manifest = made[0].manifest
    taken = {name: row["train"] for name, row in manifest["domains"].items()}
    assert taken == budgets and len(taken) == 22
    by_file = {row["name"]: row["train"]["words"] for row in manifest["sources"] if row["train"]["words"]}
    assert sorted(by_file.values()) == sorted(budgets.values())
    assert made[0].split("train").words == manifest["splits"]["train"]["words"] == 20_000
    assert 0 < made[0].split("dev").words <= 200 + 22  # 1% of each domain, rounded up
    assert "Pile-CC.train.jsonl" in by_file and by_file["Pile-CC.train.jsonl"] == budgets["Pile-CC"]
    text = shown(manifest)
    assert "Domains" in text and f"│ Enron Emails │ {manifest['domains']['Enron Emails']['available_words']:,}" in text
    assert not list(tmp_path.glob("*/*/work"))
    assert prepare(pile_config(pile, seed=1), tmp_path / "1").hash != made[0].hash


def test_a_changed_pile_is_noticed(pile: Path, tmp_path: Path) -> None:
    records = pile_records()
    source = write_pile(tmp_path / "p", records)
    first = prepare(pile_config(source), tmp_path / "data")
    assert prepare(pile_config(source), tmp_path / "data").hash == first.hash
    without = pile_config(source).model_copy(update={"source": None})
    assert prepare(without, tmp_path / "data").hash == first.hash
    other = prepare(without.model_copy(update={"vocab_size": 350}), tmp_path / "data")  # found where it was before
    assert other.split("train").words == 20_000
    (source / "more.jsonl").write_text(json.dumps(records[0]))
    with pytest.raises(UserError, match=r"other text: more\.jsonl was added"):
        prepare(pile_config(source), tmp_path / "data")
    (source / "more.jsonl").unlink()
    (source / "02.jsonl").write_text((source / "02.jsonl").read_text() + "\n")
    with pytest.raises(UserError, match=r"other text: 02\.jsonl has changed"):
        prepare(pile_config(source), tmp_path / "data")


def test_changed_text_of_a_track_of_ones_own_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(lines(60))
    text = "words: 50\nsources: {a: {path: a.txt}}\ndomains: {a: {share: 1.0}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    config = DataConfig(track=str(tmp_path / "mine.yaml"), vocab_size=300)
    first = prepare(config, tmp_path / "data")
    assert first.split("train").words == 50
    assert prepare(config, tmp_path / "data").hash == first.hash
    (tmp_path / "a.txt").write_text(lines(61))
    with pytest.raises(UserError, match=r"other text: a/a\.txt has changed"):
        prepare(config, tmp_path / "data")
    assert prepare(config, tmp_path / "data", fresh=True).split("train").words == 50


DIE = """
import os, signal, sys
from pathlib import Path
from hgrnx.config import DataConfig
from hgrnx.data import sampled_text
from hgrnx.data.prepare import prepare

where, source, root = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "reading":
    sampled_text.document_hash = die
elif where == "writing":
    sampled_text.first_words = die
elif where == "noted":
    sampled_text.SampledText.files = die
config = DataConfig(track="pile-10m", words=20_000, source=source, vocab_size=400)
prepare(config, Path(root), workers=1)
"""


@pytest.mark.parametrize("where", ["reading", "writing", "noted"])
def test_killed_while_sampling(pile: Path, tmp_path: Path, where: str) -> None:
    command = [sys.executable, "-c", DIE, where, str(pile), str(tmp_path / "data")]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -signal.SIGKILL
    assert prepare(pile_config(pile), tmp_path / "data").hash == prepare(pile_config(pile), tmp_path / "again").hash
    assert not list((tmp_path / "data").glob(".*.partial"))


def cleaned_config(source: Path, cleaning: CleaningConfig, **changes: Any) -> DataConfig:
    values = {"track": "strict-small", "source": str(source), "vocab_size": 300, "cleaning": cleaning, "block_lines": 1}
    return DataConfig(**{**values, **changes})


def test_cleaning_counts_what_it_changes(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_A_PROCESS", 0)
    benchmarks = write({"blimp_filtered/x.jsonl": json.dumps(PAIR)}, "benchmarks")
    source = write(
        {
            "a.train": lines(30) + "and every small bird sings near it\n" + "cafe\u0301\n",
            "b.train": lines(20, 25) + "caf\u00e9\n",
            "c.dev": "n3\u0301 small\n" + lines(1, 7),
        }
    )
    cleaning = CleaningConfig(
        unicode="NFC",
        exact_duplicates=True,
        decontaminate=DecontaminationConfig(benchmarks=str(benchmarks), ngram=5, remove="documents"),
    )
    one, two = (prepare(cleaned_config(source, cleaning), tmp_path / str(n), workers=n) for n in (1, 2))
    assert one.hash == two.hash and one.manifest["cleaning"] == two.manifest["cleaning"]
    texts = text_of(one, "train")
    assert texts == [*lines(30).splitlines(True), "caf\u00e9\n", *lines(15, 30).splitlines(True)]
    assert text_of(one, "dev") == ["n3\u0301 small\n"]  # the other line was in the training text before
    assert one.manifest["cleaning"] == {
        "unicode": {"form": "NFC", "documents": 1},
        "decontaminate": {
            "ngram": 5,
            "benchmarks": {"blimp": {"items": 1, "checked": 1, "overlap": 1, "documents": 1}},
            "removed": {"documents": 1, "lines": 1, "words": 7},
        },
        "exact_duplicates": {"documents": 7, "words": len((lines(5, 25) + "caf\u00e9 " + lines(1, 7)).split())},
    }
    assert one.split("train").words == sum(len(text.split()) for text in texts)
    text = shown(one.manifest)
    assert "│ blimp │ 1 │ 1 │ 1 │ 1 │" in text and "equal documents left out: 7" in text
    assert "for overlap left out: 1 lines, 7 words" in text and "form NFC: 1" in text
    plain = prepare(cleaned_config(source, CleaningConfig()), tmp_path / "1")
    assert plain.dir != one.dir and plain.manifest["cleaning"] == {}


def test_reporting_overlap_changes_no_text(write: Write, tmp_path: Path) -> None:
    benchmarks = write({"blimp_filtered/x.jsonl": json.dumps(PAIR)}, "benchmarks")
    source = write({"a.train": lines(30) + "every small bird sings near our house\n", "b.dev": lines(3, 90)})
    wanted = DecontaminationConfig(benchmarks=str(benchmarks), ngram=5)
    reported = prepare(cleaned_config(source, CleaningConfig(decontaminate=wanted)), tmp_path / "data")
    plain = prepare(cleaned_config(source, CleaningConfig()), tmp_path / "data")
    assert text_of(reported, "train") == text_of(plain, "train")
    assert reported.manifest["cleaning"]["decontaminate"]["benchmarks"]["blimp"]["overlap"] == 1
    assert not [path for path in reported.dir.rglob("*") if "benchmarks" in path.name]


def test_near_duplicates_of_files(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    long = [" ".join(f"w{n * 60 + k}" for k in range(60)) + "\n" for n in range(8)]
    source = write({"a.train": "".join(long), "b.train": "".join(f"{text[:-1]} more\n" for text in long) + lines(9)})
    cleaning = CleaningConfig(near_duplicates=NearDuplicatesConfig(threshold=0.7))
    dataset = prepare(cleaned_config(source, cleaning), tmp_path / "data")
    assert dataset.manifest["cleaning"]["near_duplicates"]["documents"] == 8
    assert sorted(text_of(dataset, "train") + text_of(dataset, "dev")) == sorted(long + lines(9).splitlines(True))


def test_a_given_tokenizer_has_read_its_own_text(write: Write, tmp_path: Path) -> None:
    from hgrnx.data.run_ledger import dataset_readers

    first = prepare(cleaned_config(write({"a.train": lines(40)}), CleaningConfig()), tmp_path / "data")
    other = cleaned_config(write({"b.train": lines(50, 90)}, "other"), CleaningConfig())
    given = prepare(other.model_copy(update={"tokenizer": str(first.tokenizer_dir)}), tmp_path / "data")
    model, tokenizer = dataset_readers(given.manifest, "m", 10)
    assert [text.name for text in model.texts or ()] == ["b.train"]
    assert [text.name for text in tokenizer.texts or ()] == ["a.train"]
    alone = tmp_path / "alone" / "tokenizer.json"
    alone.parent.mkdir()
    alone.write_bytes((first.tokenizer_dir / "tokenizer.json").read_bytes())
    unknown = prepare(other.model_copy(update={"tokenizer": str(alone)}), tmp_path / "data2")
    assert dataset_readers(unknown.manifest, "m", 10)[1].texts is None
    assert "entries, from" in shown(unknown.manifest)
