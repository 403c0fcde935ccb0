from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hgrnx.data.benchmarks import MinimalPair, read_minimal_pairs
from hgrnx.errors import UserError

EVAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "eval"
GOOD = {"sentence_good": "It runs.", "sentence_bad": "It run."}


def test_groups_and_fields(tmp_path: Path) -> None:
    blimp = {**GOOD, "linguistics_term": "agreement", "field": "morphology", "UID": "other_name"}
    line_break = {"sentence_good": "A: Who?\nB: She.", "sentence_bad": "A: Who?\u2028B: Her."}
    (tmp_path / "b.jsonl").write_text(json.dumps(blimp) + "\n")
    text = json.dumps(line_break, ensure_ascii=False) + "\n\n" + json.dumps(GOOD)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    pairs = read_minimal_pairs(tmp_path)
    assert list(pairs) == ["a", "b"]
    assert pairs["b"] == [MinimalPair("It runs.", "It run.", "agreement", "morphology")]
    assert pairs["a"][0] == MinimalPair("A: Who?\nB: She.", "A: Who?\u2028B: Her.", "a", "")
    assert len(pairs["a"]) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2: not valid JSON"),
        ("[]", r"a\.jsonl:2: not a JSON object"),
        ('{"sentence_good": "x"}', r"a\.jsonl:2: a minimal pair needs the key 'sentence_bad'"),
        ('{"sentence_good": "", "sentence_bad": "x"}', r"a\.jsonl:2: .* 'sentence_good'"),
        ('{"sentence_good": "x", "sentence_bad": 3}', r"a\.jsonl:2: .* 'sentence_bad'"),
    ],
)
def test_wrong_lines_are_named(write: Callable[..., Path], line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_minimal_pairs(write({"a.jsonl": json.dumps(GOOD) + "\n" + line}))


def test_nothing_to_read(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_minimal_pairs(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"There are no \.jsonl files.*Its folder blimp has some"):
        read_minimal_pairs(write({"blimp/a.jsonl": "{}"}))
    with pytest.raises(UserError, match=r"a\.jsonl has no pairs"):
        read_minimal_pairs(write({"a.jsonl": "\n"}, "empty"))
    with pytest.raises(UserError, match=r"a\.jsonl is not UTF-8 text \(byte 1\)"):
        read_minimal_pairs(write({"a.jsonl": b'"\xff'}, "latin"))


@pytest.mark.skipif(not EVAL.is_dir(), reason="the benchmark files are not on this machine")
def test_the_sets_of_the_2024_pipeline() -> None:
    blimp = read_minimal_pairs(EVAL / "blimp_filtered")
    assert len(blimp) == 67
    assert sum(map(len, blimp.values())) == 59_875
    assert all(len({pair.phenomenon for pair in pairs}) == 1 for pairs in blimp.values())
    assert len({pairs[0].phenomenon for pairs in blimp.values()}) == 13
    supplement = read_minimal_pairs(EVAL / "supplement_filtered")
    assert {name: pairs[0].phenomenon for name, pairs in supplement.items()} == {n: n for n in supplement}
    assert sum(map(len, supplement.values())) == 5_218
    assert any("\n" in pair.good for pair in supplement["turn_taking"])
