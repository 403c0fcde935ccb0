from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from eval_data import write_bear, write_eval_data, write_jsonl

from hgrnx.data.benchmark_names import BLIMP_PHENOMENA, SUBTASKS
from hgrnx.data.benchmarks import MinimalPair, find_benchmarks, read_bear, read_ewok, read_minimal_pairs
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
    assert {name: pairs[0].phenomenon for name, pairs in blimp.items()} == {
        name: term for term, names in BLIMP_PHENOMENA.items() for name in names
    }
    assert tuple(supplement) == SUBTASKS["supplement"]
    assert tuple(read_ewok(EVAL / "ewok")) == SUBTASKS["ewok"]


class TestEwok:
    def test_zip_and_folder_hold_the_same(self, tmp_path: Path) -> None:
        data = write_eval_data(tmp_path / "eval")
        zipped = read_ewok(data / "ewok")
        assert tuple(zipped) == SUBTASKS["ewok"]
        item = zipped["social-relations"][0]
        assert item.contexts[0].endswith("run.") and item.domain == "social-relations"
        row = {"Domain": "d", "ConceptA": "a", "ConceptB": "b", "Context1": "c1", "Context2": "c2", "Target1": "t1"}
        write_jsonl(tmp_path / "plain" / "d.jsonl", [{**row, "Target2": "t2"}])
        (plain,) = read_ewok(tmp_path / "plain")["d"]
        assert (plain.concepts, plain.contexts, plain.targets) == (("a", "b"), ("c1", "c2"), ("t1", "t2"))
        write_jsonl(tmp_path / "plain" / "d.jsonl", [row])
        with pytest.raises(UserError, match=r"d\.jsonl:1: an EWoK item needs the key 'Target2'"):
            read_ewok(tmp_path / "plain")

    def test_wrong_password_and_cut_zip(self, tmp_path: Path) -> None:
        place = write_eval_data(tmp_path / "eval") / "ewok" / "ewok_filtered.zip"
        with pytest.raises(UserError, match="password 'nope' does not open|not a readable zip"):
            read_ewok(place, "nope")
        place.write_bytes(place.read_bytes()[:-300])
        with pytest.raises(UserError, match="not a readable zip"):
            read_ewok(place)
        with pytest.raises(UserError, match="does not exist"):
            read_ewok(tmp_path / "nowhere")
        with pytest.raises(UserError, match="neither EWoK's .zip nor"):
            read_ewok(tmp_path)

    def test_the_hubs_parquet_is_turned_round(self, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        row = {"ConceptA": "a", "ConceptB": "b", "Context1": "c1", "Context2": "c2", "Target1": "t1", "Target2": "t2"}
        rows = [{"Domain": "two", **row}, {"Domain": "one", **row}, {"Domain": "two", **row}]
        (tmp_path / "data").mkdir()
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / "test-0.parquet")
        files = read_ewok(tmp_path)
        assert {name: len(items) for name, items in files.items()} == {"one": 2, "two": 4}
        item, turned = files["one"]
        assert (item.contexts, item.targets) == (("c1", "c2"), ("t1", "t2"))
        assert (turned.contexts, turned.targets) == (("c2", "c1"), ("t2", "t1"))
        (tmp_path / "data" / "test-0.parquet").write_bytes(b"PAR1")
        with pytest.raises(UserError, match="not a readable parquet"):
            read_ewok(tmp_path)


class TestBear:
    def test_relations_answers_and_domains(self, tmp_path: Path) -> None:
        write_bear(tmp_path / "bear" / "BEAR")
        one, two = read_bear(tmp_path / "bear")
        assert (one.name, len(one.instances), len(one.templates), one.domains) == ("P1", 4, 3, ("Arts", "Geographic"))
        assert two.statement(1, "dogs", two.answers[0]) == "Run bark and dogs."
        assert [instance.answer for instance in one.instances] == [0, 1, 0, 1]
        (tmp_path / "bear" / "relation_info.json").unlink()
        assert read_bear(tmp_path / "bear" / "BEAR")[0].domains == ()

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        folder = tmp_path / "BEAR"
        write_bear(folder)
        write_jsonl(folder / "P2.jsonl", [{"sub_label": "x", "answer_idx": 3}])
        with pytest.raises(UserError, match=r"P2\.jsonl:1: 'answer_idx' must be one of the 3 answers"):
            read_bear(folder)
        (folder / "P2.jsonl").unlink()
        with pytest.raises(UserError, match=r"Cannot read .*P2\.jsonl"):
            read_bear(folder)
        metadata = json.loads((folder / "metadata_relations.json").read_text())
        metadata["P1"]["templates"][1] = "[X] is."
        (folder / "metadata_relations.json").write_text(json.dumps(metadata))
        with pytest.raises(UserError, match=r"P1: the template '\[X\] is\.' lacks"):
            read_bear(folder)


def test_benchmarks_are_found_in_both_years_layouts(tmp_path: Path) -> None:
    data = write_eval_data(tmp_path / "eval")
    (data / "fast_eval" / "blimp_fast").mkdir(parents=True)
    found = find_benchmarks(data)
    assert {name: path.relative_to(data).as_posix() for name, path in found.items()} == {
        "blimp": "blimp_filtered",
        "supplement": "supplement_filtered",
        "ewok": "ewok",
        "bear": "bear",
        "glue": "glue_filtered",
        "blimp_fast": "fast_eval/blimp_fast",
    }
