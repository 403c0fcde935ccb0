from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from hgrnx.data.run_ledger import (
    LEDGER,
    Reader,
    RunLedger,
    Text,
    check_ledger,
    make_ledger,
    print_run_ledger,
    read_readers,
)
from hgrnx.data.tracks import Track
from hgrnx.errors import UserError

TRACK = Track(name="small", words=1_000, max_passes=10)
OURS = (Text("a.train", "11", 600), Text("b.train", "22", 300))


def model(name: str, texts: tuple[Text, ...] | None = OURS, words_read: int | None = 2_700) -> Reader:
    return Reader("model", name, texts, words_read)


def ledger(*readers: Reader) -> RunLedger:
    return make_ledger(TRACK, readers)


def test_the_same_text_counts_once() -> None:
    student, teacher = model("student"), model("teacher", (OURS[1], Text("c.train", "33", 100)))
    found = ledger(student, Reader("tokenizer", "t", OURS, None), teacher, model("teacher", ()))
    assert found.words == 1_000 and len(found.readers) == 3  # the same teacher, by two ways
    assert found.problems() == []
    # Of a text that two read in part, the larger part counts; another name or content is another text.
    more = model("teacher", (Text("a.train", "11", 650), Text("a.train", "99", 70)))
    assert ledger(student, more).words == 650 + 300 + 70


def test_too_much_text_is_refused_with_what_each_adds() -> None:
    teacher = model("teacher", (OURS[0], Text("x.txt", "77", 1_500)))
    tokenizer = Reader("tokenizer", "abc", (Text("y.txt", "88", 200),), None)
    with pytest.raises(UserError) as error:
        check_ledger(ledger(model("student"), tokenizer, teacher), TRACK, True)
    text = str(error.value)
    assert "have read 2,600 different words, 1,600 more than the 1,000 of the track small" in text
    assert "(the run itself 900, the tokenizer abc adds 200, the model teacher adds 1,500)" in text
    assert "data.enforce_budget=false" in text


def test_passes_are_counted_for_every_model() -> None:
    assert ledger(model("student", words_read=9_000)).problems() == []
    (problem,) = ledger(model("student"), model("teacher", words_read=9_900)).problems()
    assert problem == "the model teacher reads its text 11.00 times, and the track small allows 10 passes"
    assert Reader("tokenizer", "t", OURS, None).passes == 1


def test_unknown_text_is_no_small_text() -> None:
    (problem,) = ledger(model("student"), model("downloaded", None, None)).problems()
    assert problem.startswith("nobody can tell what text the model downloaded has read")


@pytest.mark.parametrize(
    ("over_budget", "enforce", "outcome"),
    [("refuse", True, "error"), ("refuse", False, "warning"), ("warn", True, "warning"), ("ignore", True, "nothing")],
)
def test_what_happens_is_the_tracks_rule(over_budget: str, enforce: bool, outcome: str) -> None:
    track = TRACK.model_copy(update={"over_budget": over_budget})
    wrong = ledger(model("student", words_read=99_000))
    if outcome == "error":
        with pytest.raises(UserError, match="breaks the rules of the track small:\n  - .* 110.00 times"):
            check_ledger(wrong, track, enforce)
    else:
        assert len(check_ledger(wrong, track, enforce)) == (outcome == "warning")


def test_kept_and_read_again(tmp_path: Path) -> None:
    written = ledger(model("teacher"), Reader("tokenizer", "t", OURS, None), model("old", None, None))
    (tmp_path / LEDGER).write_text(json.dumps(written.as_dict()))
    assert tuple(read_readers(tmp_path, "x")) == written.readers
    assert read_readers(tmp_path / "elsewhere", "x") == [model("x", None, None)]
    (tmp_path / LEDGER).write_text('{"readers": [{}]}')
    with pytest.raises(UserError, match=r"ledger\.json is damaged"):
        read_readers(tmp_path, "x")


def test_printed() -> None:
    out = io.StringIO()
    print_run_ledger(ledger(model("s"), model("old", None, None)).as_dict(), Console(file=out, width=120))
    text = " ".join(out.getvalue().split())
    assert "model s │ 900 │ 3.00 │ 2,700" in text and "model old │ unknown" in text
    assert "together, each text once │ 900" in text and "budget │ 1,000 │ at most 10" in text
