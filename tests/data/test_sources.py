from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hgrnx.config import DataConfig
from hgrnx.data.sources import LineCounts, find_domain_files, find_text_files, read_documents, read_labelled
from hgrnx.data.tracks import find_track, load_track
from hgrnx.errors import UserError

Write = Callable[..., Path]
STRICT_SMALL = find_track(DataConfig(track="strict-small"))


def splits(folder: Path) -> dict[str, str]:
    return {file.name: file.split for file in find_text_files(str(folder), STRICT_SMALL)}


def read(folder: Path, block_lines: int = 8) -> tuple[list[str], LineCounts]:
    counts = LineCounts()
    (file,) = find_text_files(str(folder), STRICT_SMALL)
    return list(read_documents(file, block_lines, counts)), counts


def test_babylm_layout_takes_the_folder_of_the_track(write: Write) -> None:
    names = ["train_10M/a.train", "train_100M/a.train", "dev/a.dev", "test/a.txt", "README.txt", "x.dev"]
    folder = write(dict.fromkeys(names, "x\n"))
    assert splits(folder) == {"dev/a.dev": "dev", "train_10M/a.train": "train"}


def test_babylm_layout_without_the_folder_of_the_track(write: Write) -> None:
    folder = write({"train_100M/a.train": "x\n"})
    with pytest.raises(UserError, match="has train_100M but not train_10M"):
        splits(folder)


def test_any_other_folder(write: Write) -> None:
    train = ["a.txt", "b/c.txt.gz", "d.train.jsonl", "development.txt", "train-00000-of-00001.parquet"]
    dev = ["a.dev", "b.dev.txt", "dev/x.txt", "validation-00000-of-00001.parquet", "valid.jsonl.gz"]
    left = ["test/a.txt", "a.test.txt", "test-00000-of-00001.parquet", "a.md", ".hidden.txt", "x.parquet.gz"]
    folder = write(dict.fromkeys([*train, *dev, *left], "x\n"))
    assert splits(folder) == {**dict.fromkeys(train, "train"), **dict.fromkeys(dev, "dev")}


@pytest.mark.parametrize("files", [{"a.md": "x"}, {"only.dev": "x\n"}])
def test_no_training_text(write: Write, files: dict[str, str]) -> None:
    with pytest.raises(UserError, match="no training text in"):
        splits(write(files))


def test_missing_folder_and_a_file_instead(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        splits(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="is a file; give the folder"):
        splits(tmp_path / "a.txt")


def test_blocks_of_lines_keep_the_exact_text(write: Write) -> None:
    text = "one  two \n\n \t\n\tthree\nfo\x0bur\x85\u2028five\nsix"
    documents, counts = read(write({"a.txt": text}), block_lines=2)
    assert documents == ["one  two \n\tthree\n", "fo\x0bur\x85\u2028five\nsix\n"]
    assert (counts.lines, counts.blank_lines) == (6, 2)


def test_carriage_returns_byte_order_mark_and_nul(write: Write) -> None:
    documents, counts = read(write({"a.txt": b"\xef\xbb\xbfone\r\n\r\ntw\0o\n\0\r\n"}))
    assert documents == ["one\ntw\0o\n\0\n"]
    assert counts == LineCounts(lines=4, blank_lines=1, crlf_lines=3, nul_characters=2, byte_order_mark=1)


def test_compressed_lines_are_the_same_lines(write: Write) -> None:
    plain, _ = read(write({"a.txt": "ä b\nc\n"}, "plain"))
    packed, _ = read(write({"a.txt.gz": gzip.compress(b"\xc3\xa4 b\nc\n")}, "packed"))
    assert plain == packed == ["ä b\nc\n"]


def test_damaged_compressed_file(write: Write) -> None:
    whole = gzip.compress(b"some text\n" * 1000)
    for content in (whole[:-20], b"no gzip", whole[:15] + b"\xff" * 9 + whole[24:]):
        with pytest.raises(UserError, match=r"a\.txt\.gz is damaged or cut short"):
            read(write({"a.txt.gz": content}))


@pytest.mark.parametrize("text", ["", "\n \n\r\n"])
def test_empty_file_is_named(write: Write, text: str) -> None:
    with pytest.raises(UserError, match=r"a\.txt has no text in it"):
        read(write({"a.txt": text}))


def test_not_utf8_says_where(write: Write) -> None:
    content = "gänz\n".encode() + b"caf\xe9\n"
    with pytest.raises(UserError, match=r"a\.txt, line 2, byte 9 of the file: 0xe9 is not UTF-8"):
        read(write({"a.txt": content}))
    assert content[9] == 0xE9
    with pytest.raises(UserError, match="line 2, byte 12 of the file"):
        read(write({"a.txt": b"\xef\xbb\xbf" + content}))
    with pytest.raises(UserError, match="It looks like UTF-16"):
        read(write({"a.txt": "text".encode("utf-16")}))


def test_unreadable_file(write: Write) -> None:
    folder = write({"a.txt": "x\n"})
    (file,) = find_text_files(str(folder), STRICT_SMALL)
    file.path.unlink()
    with pytest.raises(UserError, match=r"Cannot read .*a\.txt: No such file"):
        list(read_documents(file, 8, LineCounts()))


def test_json_lines_are_documents(write: Write) -> None:
    records = [{"text": "one\r\n\n two"}, {"text": " \n"}, {"text": "three\n", "id": 3}]
    text = "\n".join(json.dumps(record) for record in records) + "\n\n"
    documents, counts = read(write({"a.jsonl": text}), block_lines=1)
    assert documents == ["one\n two\n", "three\n"]
    assert (counts.lines, counts.blank_lines, counts.crlf_lines) == (4, 2, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "line 2: not valid JSON"),
        ('["x"]', "line 2: a record needs a key 'text'"),
        ('{"text": 3}', "line 2: a record needs a key 'text'"),
        ('{"txt": "x"}', "line 2: a record needs a key 'text'"),
        ('{"text": "x\\ud800"}', "line 2: the text has half a surrogate pair at character 1"),
    ],
)
def test_wrong_json_lines(write: Write, line: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.jsonl, {message}"):
        read(write({"a.jsonl": '{"text": "fine"}\n' + line + "\n"}))


def test_parquet_records_are_documents(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["one\ntwo", None, "ä"], "id": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    documents, counts = read(tmp_path)
    assert documents == ["one\ntwo\n", "ä\n"]
    assert (counts.lines, counts.blank_lines) == (3, 1)


def test_wrong_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a readable parquet file"):
        read(tmp_path)
    for columns, message in (
        ({"words": ["x"]}, "no column 'text'; its columns are words"),
        ({"text": [1]}, "row 1: a record needs"),
    ):
        parquet.write_table(pyarrow.table(columns), path)
        with pytest.raises(UserError, match=message):
            read(tmp_path)


def zst(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_zst_of_several_frames(write: Write) -> None:
    """Several frames one after the other are one file, as ``zstd`` and ``cat`` make them; long lines too."""
    long = "x y " * 500_000
    content = b"".join(zst(json.dumps({"text": text}).encode() + b"\n") for text in ("one", long, "three"))
    documents, counts = read(write({"a.jsonl.zst": content}))
    assert documents == ["one\n", long + "\n", "three\n"] and counts.lines == 3


@pytest.mark.parametrize("name", ["a.txt.zst", "b.tar"])
def test_damaged_archives_are_refused(write: Write, name: str) -> None:
    packed = zst(b"".join(b"line %d\n" % n for n in range(20_000)))
    whole = packed if name.endswith(".zst") else tar({"x.txt.zst": packed})
    for content in (whole[: len(whole) // 2], whole[: len(packed) - 9], b"something else" * 99):
        with pytest.raises(UserError, match=rf"{name} is damaged or cut short"):
            read(write({name: content}))


def test_a_tar_is_read_member_by_member(write: Write) -> None:
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "in parquet"}]), table)
    members = {
        "README.md": b"not text of the corpus",
        "x/1.jsonl.zst": zst(b'\xef\xbb\xbf{"text": "one"}\n'),
        "2.txt": b"two\r\n" * 3,
        "3.parquet": table.getvalue(),
    }
    documents, counts = read(write({"a.tar": tar(members)}), 2)
    assert documents == ["one\n", "two\ntwo\n", "two\n", "in parquet\n"]
    assert (counts.byte_order_mark, counts.crlf_lines) == (1, 3)
    packed, _ = read(write({"b.tar.gz": gzip.compress(tar(members))}, "gz"), 2)
    assert packed == documents
    with pytest.raises(UserError, match=r"a\.tar:1\.jsonl, line 2: not valid JSON"):
        read(write({"a.tar": tar({"1.jsonl": b'{"text": "x"}\n{\n'})}, "wrong"))
    with pytest.raises(UserError, match=r"a\.tar has no text in it"):
        read(write({"a.tar": tar({"README.md": b"x"})}, "none"))


def test_labels(write: Write) -> None:
    records = [
        {"text": "a", "meta": {"pile_set_name": "ArXiv"}},
        {"text": "b", "meta": {}},
        {"text": "c", "meta": {"pile_set_name": 3}},
        {"text": "d"},
        {"text": "e", "meta": "x"},
    ]
    (file,) = find_text_files(str(write({"a.jsonl": "\n".join(map(json.dumps, records))})), STRICT_SMALL)
    assert list(read_labelled(file, 8, LineCounts())) == [
        ("ArXiv", "a\n"),
        *((None, f"{letter}\n") for letter in "bcde"),
    ]


def test_ticks_add_up_to_the_file(write: Write) -> None:
    content = gzip.compress("".join(f'{{"text": "line {n}"}}\n' for n in range(3_000)).encode())
    (file,) = find_text_files(str(write({"a.jsonl.gz": content})), STRICT_SMALL)
    ticks: list[int] = []
    assert len(list(read_labelled(file, 8, LineCounts(), ticks.append))) == 3_000
    assert sum(ticks) == len(content) and min(ticks) >= 0


def test_sources_of_a_track(write: Write) -> None:
    folder = write({"wiki/a.txt": "x\n", "wiki/a.dev": "y\n", "b.jsonl": "{}", "notes.md": "x"})
    text = "words: 10\nsources: {wiki: {path: wiki}, b: {path: b.jsonl}}\n"
    text += "domains: {wiki: {share: 0.5}, b: {share: 0.5}}\n"
    (folder / "t.yaml").write_text(text)
    files = find_domain_files(load_track(str(folder / "t.yaml")), None)
    assert [(f.name, f.kind, f.domain, f.size) for f in files] == [
        ("wiki/a.txt", "lines", "wiki", 2),
        ("b/b.jsonl", "jsonl", "b", 2),
    ]
    (folder / "t.yaml").write_text(text.replace("b.jsonl", "notes.md"))
    with pytest.raises(UserError, match=r"sources\.b of the track t has no text files"):
        find_domain_files(load_track(str(folder / "t.yaml")), None)
