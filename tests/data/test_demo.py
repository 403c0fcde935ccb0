from __future__ import annotations

from pathlib import Path

import pytest

from hgrnx.config import DataConfig
from hgrnx.data import demo
from hgrnx.data.benchmarks import read_minimal_pairs
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError

CONFIG = DataConfig(words=3_000, vocab_size=400)


def test_text_and_pairs_without_any_source(tmp_path: Path) -> None:
    dataset = prepare(CONFIG, tmp_path)
    assert 2_900 <= dataset.split("train").words <= 3_000
    assert 0.9 * demo.DEV_WORDS <= dataset.split("dev").words <= demo.DEV_WORDS
    train, dev = ((dataset.dir / f"text/demo.{split}.jsonl").read_text().split("\n") for split in ("train", "dev"))
    assert set(train) & set(dev) == {""}
    assert dataset.pairs_dir is not None
    pairs = read_minimal_pairs(dataset.pairs_dir)
    assert len(pairs) >= 10
    assert all(len(items) == demo.PAIRS_PER_PHENOMENON for items in pairs.values())
    assert dataset.vocab_size == 400
    again = prepare(CONFIG, tmp_path / "elsewhere")
    assert again.hash == dataset.hash
    assert prepare(CONFIG, tmp_path).dir == dataset.dir
    other = prepare(CONFIG.model_copy(update={"seed": 1}), tmp_path)
    assert other.hash != dataset.hash
    assert (other.dir / "text/demo.train.jsonl").read_text() != (dataset.dir / "text/demo.train.jsonl").read_text()


def test_another_grammar_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(CONFIG, tmp_path)
    monkeypatch.setattr("hgrnx.data.grammar.generate_documents", lambda words, seed: iter(["Other text."]))
    with pytest.raises(UserError, match=r"demo grammar has changed since.*--fresh"):
        prepare(CONFIG, tmp_path)
