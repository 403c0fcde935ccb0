from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from eval_data import write_bear, write_eval_data, write_jsonl

from hgrnx.data.benchmark_items import GLUE_FIELDS, BearInstance, BearRelation, EwokItem, GlueRow, MinimalPair
from hgrnx.data.benchmark_names import BLIMP_PHENOMENA, SUBTASKS
from hgrnx.data.benchmarks import benchmark_texts, find_benchmarks, read_bear, read_ewok, read_glue, read_minimal_pairs
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


EWOK = {
    "Domain": "social-relations",
    "ConceptA": "friend",
    "ConceptB": "rival",
    "ContextType": "direct",
    "ContextDiff": "concept swap",
    "TargetDiff": "negation",
    "Context1": "Ali helps Bo.",
    "Context2": "Ali fights Bo.",
    "Target1": "Bo likes Ali.",
    "Target2": "Bo fears Ali.",
}


def encrypted_zip(path: Path, name: str, content: bytes, password: bytes) -> Path:
    """A zip as EWoK's is: the standard library reads this encryption, but does not write it."""
    table = zipfile._ZipDecrypter  # type: ignore[attr-defined]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, bytes(12) + content)
        info = archive.getinfo(name)
    raw = bytearray(path.read_bytes())
    check = zlib.crc32(content)
    plain = bytes(11) + bytes([check >> 24]) + content
    # The cipher's keys move on with the plain text: find each encrypted byte by trying.
    encrypted = bytearray()
    for position in range(len(plain)):
        decrypt = table(password)
        decrypt(bytes(encrypted))
        zero = decrypt(b"\0")[0]
        encrypted.append(zero ^ plain[position])
    start = info.header_offset + 30 + len(name)
    raw[start : start + len(encrypted)] = encrypted
    central = raw.rindex(b"PK\x01\x02")
    for place, offset in ((info.header_offset, 6), (central, 8)):
        raw[place + offset] |= 1  # encrypted
        raw[place + offset + 8 : place + offset + 12] = check.to_bytes(4, "little")
        raw[place + offset + 16 : place + offset + 20] = len(content).to_bytes(4, "little")
    path.write_bytes(raw)
    return path


def test_ewok_is_read_from_its_zip_in_memory(tmp_path: Path) -> None:
    encrypted_zip(tmp_path / "ewok.zip", "ewok/social-relations.jsonl", json.dumps(EWOK).encode(), b"ewok")
    before = sorted(tmp_path.rglob("*"))
    item = EwokItem(
        domain="social-relations",
        concepts=("friend", "rival"),
        context_type="direct",
        context_difference="concept swap",
        target_difference="negation",
        contexts=("Ali helps Bo.", "Ali fights Bo."),
        targets=("Bo likes Ali.", "Bo fears Ali."),
    )
    assert read_ewok(tmp_path) == read_ewok(tmp_path / "ewok.zip") == {"social-relations": [item]}
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match=r"password 'other' does not open .*ewok\.zip"):
        read_ewok(tmp_path, "other")


def test_ewok_that_is_wrong(write: Callable[..., Path], tmp_path: Path) -> None:
    lacking = {key: value for key, value in EWOK.items() if key != "Target2"}
    folder = write({"a.jsonl": json.dumps(EWOK) + "\n" + json.dumps(lacking)})
    with pytest.raises(UserError, match=r"a\.jsonl:2: an EWoK item needs the key 'Target2'"):
        read_ewok(folder)
    with pytest.raises(UserError, match=r"does not exist"):
        read_ewok(tmp_path / "nowhere.zip")
    with pytest.raises(UserError, match=r"neither EWoK's \.zip nor"):
        read_ewok(write({"x.md": ""}, "empty"))
    with pytest.raises(UserError, match=r"x\.zip is not a readable zip"):
        read_ewok(write({"x.zip": "no zip"}, "broken"))
    encrypted_zip(tmp_path / "two.zip", "a.jsonl", b"{}\n", b"ewok")
    with pytest.raises(UserError, match=r"two\.zip:a\.jsonl:1: an EWoK item needs"):
        read_ewok(tmp_path / "two.zip")


BEAR = {"P6": {"templates": ["[X] has [Y].", "[Y] is of [X]."], "answer_space_labels": ["red", "blue"]}}
FACT = {"sub_label": "Sky", "sub_aliases": ["heaven"], "answer_idx": 1}


def bear(write: Callable[..., Path], folder: str, relations: object = BEAR, fact: object = FACT) -> Path:
    files = {"BEAR/metadata_relations.json": json.dumps(relations), "BEAR/P6.jsonl": json.dumps(fact) + "\n"}
    return write(files, folder)


def test_bear(write: Callable[..., Path]) -> None:
    folder = bear(write, "good")
    (relation,) = read_bear(folder)
    assert read_bear(folder / "BEAR") == [relation]
    assert relation == BearRelation(
        "P6", ("[X] has [Y].", "[Y] is of [X]."), ("red", "blue"), (BearInstance("Sky", ("heaven",), 1),)
    )
    assert relation.statement(1, "Sky", "blue") == "Blue is of Sky."
    for number, (relations, fact, message) in enumerate(
        [
            ({"P6": {**BEAR["P6"], "templates": []}}, FACT, "P6: a relation needs the key 'templates'"),
            ({"P6": {**BEAR["P6"], "templates": ["[X]"]}}, FACT, r"template '\[X\]' lacks"),
            ({"P7": BEAR["P6"]}, FACT, r"Cannot read .*P7\.jsonl"),
            ([], FACT, "not a JSON object of relations"),
            (BEAR, {**FACT, "answer_idx": 2}, r"P6\.jsonl:1: 'answer_idx' must be one of the 2 answers"),
            (BEAR, {**FACT, "answer_idx": True}, r"P6\.jsonl:1: 'answer_idx'"),
            (BEAR, {**FACT, "sub_aliases": "x"}, r"P6\.jsonl:1: 'sub_aliases'"),
            (BEAR, {"answer_idx": 0}, r"P6\.jsonl:1: a fact needs the key 'sub_label'"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            read_bear(bear(write, str(number), relations, fact))


def test_glue(write: Callable[..., Path]) -> None:
    rows = {
        "cola.valid.jsonl": '{"sentence": "It runs.", "label": 1, "idx": 0}\n{"sentence": "", "idx": 1}\n',
        "boolq.train.SUBSTITUTE.jsonl": '{"question": "q", "passage": "p", "label": 0}',
        "wsc.valid.jsonl": '{"text": "a b", "span1_index": 0, "span1_text": "a", "span2_index": 1, "span2_text": "b"}',
    }
    folder = write(rows)
    assert read_glue(folder, "valid") == {
        "cola": [GlueRow({"sentence": "It runs."}, 1), GlueRow({"sentence": ""}, None)],
        "wsc": [
            GlueRow({"text": "a b", "span1_index": 0, "span1_text": "a", "span2_index": 1, "span2_text": "b"}, None)
        ],
    }
    assert list(read_glue(folder, "train")) == ["boolq"]
    for number, (name, line, message) in enumerate(
        [
            ("cola.valid.jsonl", '{"sentence": 3}', r"cola\.valid\.jsonl:1: a row of cola needs the key 'sentence'"),
            ("cola.valid.jsonl", '{"sentence": "x", "label": "1"}', r":1: 'label' must be a whole number"),
            ("colla.valid.jsonl", "{}", "there is no task 'colla'; the tasks are boolq"),
            ("cola.train.jsonl", "{}", r"no files TASK\.valid\.jsonl"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            read_glue(write({name: line}, str(number)), "valid")
    with pytest.raises(UserError, match=r"two files of boolq\.train"):
        read_glue(write({"boolq.train.jsonl": rows["boolq.train.SUBSTITUTE.jsonl"]}), "train")


def test_texts_for_the_search_of_overlaps(write: Callable[..., Path]) -> None:
    write({"blimp_filtered/a.jsonl": json.dumps(GOOD), "ewok/a.jsonl": json.dumps(EWOK)})
    bear(write, "source/bear")
    folder = write({"glue_filtered/cola.valid.jsonl": '{"sentence": "It runs.", "label": 1}'})
    texts = {name: list(items) for name, items in benchmark_texts(folder).items()}
    assert list(texts) == ["blimp", "ewok", "bear", "glue"]
    assert texts["blimp"] == [["It runs.", "It run."]]
    assert texts["ewok"][0][1] == "Ali helps Bo. Bo fears Ali." and len(texts["ewok"][0]) == 4
    assert texts["bear"] == [["Sky has blue.", "Blue is of Sky."]]
    assert texts["glue"] == [["It runs."]]


@pytest.mark.skipif(not EVAL.is_dir(), reason="the benchmark files are not on this machine")
def test_the_other_sets_of_the_2024_pipeline() -> None:
    ewok = read_ewok(EVAL / "ewok")
    assert len(ewok) == 11 and sum(map(len, ewok.values())) == 7_618
    bear = read_bear(EVAL / "bear")
    assert len(bear) == 60 and sum(len(relation.instances) for relation in bear) == 7_731
    assert sum(len(relation.instances) * len(relation.answers) for relation in bear) == 209_499
    glue = read_glue(EVAL / "glue_filtered", "valid")
    assert set(glue) == set(GLUE_FIELDS) and all(row.label is not None for rows in glue.values() for row in rows)
    assert sum(map(len, read_glue(EVAL / "glue_filtered", "train").values())) > 100_000


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
