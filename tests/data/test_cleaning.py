from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hgrnx.config import CleaningConfig, DataConfig, DecontaminationConfig, NearDuplicatesConfig
from hgrnx.data.cleaning import Cleaner, index_benchmarks
from hgrnx.data.duplicates import Copies, _bands
from hgrnx.data.sources import LineCounts, find_text_files, read_documents
from hgrnx.data.tracks import find_track
from hgrnx.errors import UserError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
TEXT = "the quick brown fox jumps over a lazy dog and runs into the deep dark forest where many trees grow old"


def cleaned(documents: list[str], config: CleaningConfig, folder: Path = Path()) -> tuple[list[str], dict]:
    cleaner = Cleaner(config, index_benchmarks(config, folder))
    copies = Copies(config.exact_duplicates, config.near_duplicates)
    kept = [text for text in map(cleaner.clean, documents) if text and not copies.is_copy(text)]
    return kept, {**cleaner.summary(), **copies.summary()}


def test_off_unless_asked_for() -> None:
    documents = ["e\u0301\n", "e\u0301\n", "ﬁ\n"]
    assert cleaned(documents, CleaningConfig()) == (documents, {})


def test_unicode() -> None:
    kept, counts = cleaned(["e\u0301 ﬁ\n", "plain\n"], CleaningConfig(unicode="NFC"))
    assert kept == ["\u00e9 ﬁ\n", "plain\n"]
    assert counts == {"unicode": {"form": "NFC", "documents": 1}}
    # What the compatibility form makes of a lone diaeresis begins with a space; of no line, white space alone.
    kept, counts = cleaned(["e\u0301 ﬁ\n", "\u00a8\n\ufc5e\n", "ok\n"], CleaningConfig(unicode="NFKC"))
    assert kept == ["\u00e9 fi\n", " \u0308\n \u064c\u0651\n", "ok\n"]
    assert counts["unicode"]["documents"] == 2


def test_exact_duplicates() -> None:
    kept, counts = cleaned(["a b\n", "c\n", "a b\n", "a  b\n", "a b\n"], CleaningConfig(exact_duplicates=True))
    assert kept == ["a b\n", "c\n", "a  b\n"]
    assert counts == {"exact_duplicates": {"documents": 2, "words": 4}}


def test_duplicates_are_compared_after_normalisation() -> None:
    kept, _ = cleaned(["e\u0301\n", "\u00e9\n"], CleaningConfig(unicode="NFC", exact_duplicates=True))
    assert kept == ["\u00e9\n"]


def test_near_duplicates() -> None:
    pytest.importorskip("rensa")
    words = " ".join(f"{TEXT} {n} {n * 7}" for n in range(20)).split()
    near = " ".join([*words[:-1], "changed"]) + "\n"
    far = " ".join(words[::-1]) + "\n"
    documents = [" ".join(words) + "\n", far, near, "short\n", "Short!\n", "...\n", "...\n"]
    kept, counts = cleaned(documents, CleaningConfig(near_duplicates=NearDuplicatesConfig()))
    assert kept == [documents[0], far, "short\n", "...\n", "...\n"]
    assert counts == {"near_duplicates": {"documents": 2, "words": len(words) + 1}}


def test_what_only_seems_alike_is_kept() -> None:
    """Pairs that the hash tables often bring together (40 % of them), but whose similarity is about 0.65 < 0.8."""
    pytest.importorskip("rensa")
    words = [f"w{n}" for n in range(200 * 20)]
    first = [words[n * 200 : (n + 1) * 200] for n in range(20)]
    second = [[*text[:158], *(f"x{n}-{k}" for k in range(42))] for n, text in enumerate(first)]
    documents = [" ".join(text) + "\n" for text in first + second]
    kept, _ = cleaned(documents, CleaningConfig(near_duplicates=NearDuplicatesConfig()))
    assert kept == documents


def test_near_duplicates_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rensa", None)
    with pytest.raises(UserError, match="pip install rensa"):
        Copies(False, NearDuplicatesConfig())


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_bands_find_nine_in_ten(threshold: float) -> None:
    bands = _bands(threshold)
    rows = 128 // bands
    assert rows * bands == 128
    assert 1 - (1 - threshold**rows) ** bands >= 0.9


def test_decontamination_reads_the_folder(write: Callable[..., Path], tmp_path: Path) -> None:
    pair = {"sentence_good": "A very small cat sees nine dogs.", "sentence_bad": "A very small cat see nine dogs."}
    folder = write({"blimp_filtered/a.jsonl": json.dumps(pair)})
    config = CleaningConfig(
        decontaminate=DecontaminationConfig(benchmarks=str(folder), ngram=4, remove="documents"), exact_duplicates=True
    )
    kept, counts = cleaned(["x\n", "say: a very small cat\n", "x\n"], config, tmp_path)
    assert kept == ["x\n"]
    assert counts["decontaminate"]["benchmarks"] == {"blimp": {"items": 1, "checked": 1, "overlap": 1, "documents": 1}}
    assert counts["decontaminate"]["removed"] == {"documents": 1, "lines": 1, "words": 5}
    with pytest.raises(UserError, match="There are no benchmarks in"):
        cleaned(
            [], CleaningConfig(decontaminate=DecontaminationConfig(benchmarks=str(folder / "blimp_filtered"))), folder
        )


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "babylm").is_dir(), reason="the BabyLM-like text is not on this machine")
def test_real_text_does_not_overlap_with_blimp_and_ewok(tmp_path: Path) -> None:
    """What the text's own description says of it, found again; 8-grams."""
    config = CleaningConfig(decontaminate=DecontaminationConfig(benchmarks=str(SHARED / "eval")))
    cleaner = Cleaner(config, index_benchmarks(config, tmp_path))
    for file in find_text_files(str(SHARED / "babylm"), find_track(DataConfig(track="strict-small"))):
        for document in read_documents(file, 8, LineCounts()):
            assert cleaner.clean(document) is document
    report = cleaner.summary()["decontaminate"]["benchmarks"]
    assert report["blimp"]["checked"] > 25_000 and report["ewok"]["checked"] > 7_000
    assert report["blimp"]["overlap"] == report["ewok"]["overlap"] == 0
    assert report["glue"]["overlap"] > 0  # Wikipedia is in both
