from __future__ import annotations

import json
from pathlib import Path

from hgrnx.data.decontamination import Decontaminator, NgramIndex

BENCHMARKS = {
    "blimp": [["The small cat sees every dog here.", "The small cat see every dog here."], ["Too short."]],
    "glue": [
        ["A small house, near the river: it stands!"],
        ["the small cat sees every dog now"],
        ["nothing shared at all"],
    ],
}
INDEX = NgramIndex.build(BENCHMARKS, 4)


def report(found: Decontaminator) -> dict[str, tuple[int, int, int, int]]:
    return {name: tuple(row.values()) for name, row in found.report().items()}  # type: ignore[misc]


def test_overlap_is_found_whatever_case_punctuation_and_lines() -> None:
    found = Decontaminator(INDEX)
    text = "Once\nthe SMALL cat\nsees, every bird\n"
    assert found.clean(text) == text  # nothing is removed unless asked for
    # One run, "the small cat sees", of two benchmarks; "small cat sees every" as well.
    assert report(found) == {"blimp": (2, 1, 1, 1), "glue": (3, 3, 1, 1)}
    assert found.clean("the small cat saw every dog\n") and report(found)["blimp"] == (2, 1, 1, 1)
    found.clean("House near the river\n")
    assert report(found) == {"blimp": (2, 1, 1, 1), "glue": (3, 3, 2, 2)}


def test_documents_and_lines_are_removed() -> None:
    text = "a good line with enough words\nand the small cat sees it\nanother good one\n"
    documents = Decontaminator(INDEX, "documents")
    assert documents.clean(text) == ""
    assert documents.clean("a good line\n") == "a good line\n"
    assert documents.removed == {"documents": 1, "lines": 3, "words": 15}
    lines = Decontaminator(INDEX, "lines")
    assert lines.clean(text) == "a good line with enough words\nanother good one\n"
    assert lines.clean("the small cat sees\n") == ""
    assert lines.removed == {"documents": 1, "lines": 2, "words": 10}
    # An overlap that runs over a line's end removes both lines.
    assert lines.clean("good\nx the small\ncat sees x\n") == "good\n"


def test_threshold_is_a_share_of_words() -> None:
    text = "and the small cat sees it again today\n"  # 4 of 8 words
    assert Decontaminator(INDEX, "documents", 0.5).clean(text) == text
    assert Decontaminator(INDEX, "documents", 0.49).clean(text) == ""
    assert Decontaminator(INDEX, "lines", 0.5).clean(text) == text
    assert Decontaminator(INDEX, "lines", 0.49).clean(text) == ""


def test_several_count_together(tmp_path: Path) -> None:
    INDEX.save(tmp_path / "index.npz")
    index = NgramIndex.load(tmp_path / "index.npz")
    first, second = Decontaminator(index, "lines"), Decontaminator(index, "lines")
    whole = Decontaminator(INDEX, "lines")
    texts = ["the small cat sees\n", "x\nhouse near the river\n", "sees every dog here\n", "\n"]
    for number, text in enumerate(texts):
        assert (first, second)[number % 2].clean(text) == whole.clean(text)
    first.add_state(json.loads(json.dumps(second.state())))
    assert first.report() == whole.report() and first.removed == whole.removed
    assert whole.report()["blimp"]["documents"] == 2


def test_short_and_strange_text() -> None:
    found = Decontaminator(INDEX, "lines")
    for text in ("", "a\n", "...\n!\n", "\ud800 x y z q\n", "שלום עולם זה מבחן\n"):
        assert found.clean(text) == text
    assert Decontaminator(NgramIndex.build({"a": []}, 4)).clean("a b c d e\n") == "a b c d e\n"
