from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from small_text import lines

from hgrnx.config import DataConfig
from hgrnx.data import origin, shards, text_store
from hgrnx.data import prepare as module
from hgrnx.data.dataset import PreparedDataset
from hgrnx.data.folders import WORK
from hgrnx.data.ledger import print_ledger
from hgrnx.data.prepare import prepare
from hgrnx.errors import UserError

Write = Callable[..., Path]
BABYLM = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "babylm"


def config(source: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{"track": "strict-small", "source": str(source), "vocab_size": 300, **changes})


def text_of(dataset: PreparedDataset, split: str) -> list[str]:
    """The documents as they were: without BOS and without the space before each line."""
    part, tokenizer = dataset.split(split), dataset.tokenizer()
    bounds = zip(part.doc_offsets[:-1], part.doc_offsets[1:], strict=True)
    texts = [tokenizer.decode(part.tokens[a + 1 : b].tolist()) for a, b in bounds]
    return ["".join(line[1:] for line in text.splitlines(keepends=True)) for text in texts]


def test_tokens_are_the_text(write: Write, tmp_path: Path) -> None:
    source = write({"a.train": lines(20), "b.txt": lines(5, 100), "c.dev": lines(9, 200)})
    dataset = prepare(config(source), tmp_path / "data")
    assert text_of(dataset, "train") == [lines(8), lines(8, 8), lines(4, 16), lines(5, 100)]
    assert text_of(dataset, "dev") == [lines(8, 200), lines(1, 208)]
    for split in ("train", "dev"):
        part, texts = dataset.split(split), text_of(dataset, split)
        assert part.documents == len(texts)
        assert part.words == sum(len(text.split()) for text in texts) == np.asarray(part.word_starts).sum()
        assert part.doc_bytes.tolist() == [len(text.encode()) for text in texts]
        assert (np.asarray(part.tokens)[part.doc_offsets[:-1]] == dataset.bos_id).all()
        assert (np.asarray(part.tokens) == dataset.bos_id).sum() == part.documents
    assert dataset.pairs_dir is None


def test_manifest_counts_every_word(write: Write, tmp_path: Path) -> None:
    source = write({"a.train": "one two\n\nthree\r\n", "b.dev": lines(3)})
    manifest = prepare(config(source), tmp_path / "data").manifest
    first = manifest["sources"][0]
    assert first["name"] == "a.train"
    assert (first["lines"], first["blank_lines"], first["crlf_lines"]) == (3, 1, 1)
    assert first["available_words"] == {"train": 3, "dev": 0}
    assert {key: first["train"][key] for key in ("documents", "words", "bytes")} == {
        "documents": 1,
        "words": 3,
        "bytes": len("one two\nthree\n"),
    }
    assert manifest["splits"]["dev"]["words"] == len(lines(3).split())
    assert manifest["tokenizer"]["trained_on_words"] == 3
    on_disk = {p.relative_to(tmp_path / "data").parts[1:] for p in (tmp_path / "data").glob("strict*/**/*.*")}
    assert {tuple(name.split("/")) for name in manifest["files"]} | {("manifest.json",)} == on_disk


def test_the_tokenizer_sees_training_text_only(write: Write, tmp_path: Path) -> None:
    """Another development text: the same tokenizer. Another training text: another one."""
    train = lines(50)
    made = [
        prepare(config(write({"a.train": text, "a.dev": dev}, name)), tmp_path / name)
        for name, text, dev in (
            ("one", train, "zebra zebra\n" * 40),
            ("two", train, "quagga\n"),
            ("three", train + "zebra zebra\n" * 40, "quagga\n"),
        )
    ]
    assert made[0].tokenizer_hash == made[1].tokenizer_hash != made[2].tokenizer_hash
    assert made[0].hash != made[1].hash


def test_the_budget_is_a_limit(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write({"a.train": "one two three\n" * 4, "a.dev": "x y\n" * 99})
    small = module.find_track(config(source)).model_copy(update={"words": 12})
    monkeypatch.setattr(module, "find_track", lambda config: small)
    assert prepare(config(source), tmp_path / "data").split("train").words == 12
    source = write({"a.train": "one two three\n" * 5, "a.dev": "x y\n"}, "more")
    with pytest.raises(UserError, match=r"has 15 words, 3 more than the 12 of the track strict-small"):
        prepare(config(source), tmp_path / "data", fresh=True)
    assert prepare(config(source, words=12, block_lines=1), tmp_path / "data").split("train").words == 12


def test_words_take_a_share_of_each_file(write: Write, tmp_path: Path) -> None:
    source = write({"a.train": lines(400), "b.train": lines(100, 400), "a.dev": lines(8, 900)})
    total = len(lines(500).split())
    dataset = prepare(config(source, words=total // 4, block_lines=2), tmp_path / "data")
    _, first, second = dataset.manifest["sources"]
    for row in (first, second):
        assert 0 <= row["available_words"]["train"] / 4 - row["train"]["words"] <= 16  # less than a document
        assert row["train"]["words"] * 4 <= row["available_words"]["train"]
    texts = text_of(dataset, "train")
    assert "".join(texts).startswith(lines(2 * first["train"]["documents"]) + lines(2, 400))  # from the beginning
    assert dataset.split("dev").words == len(lines(8, 900).split())
    with pytest.raises(UserError, match="words=2 is too few"):
        prepare(config(source, words=2), tmp_path / "data")


def test_development_text_is_held_out_where_there_is_none(write: Write, tmp_path: Path) -> None:
    source = write({"a.train": lines(140), "b.train": lines(70, 140)})
    everything = prepare(config(source, block_lines=1), tmp_path / "data")
    assert text_of(everything, "dev") == [lines(1), lines(1, 100), lines(1, 200)]
    assert everything.split("train").documents == 207
    assert not set(text_of(everything, "dev")) & set(text_of(everything, "train"))
    # A smaller share of the training text is measured on the same development text.
    part = prepare(config(source, block_lines=1, words=100), tmp_path / "data")
    assert text_of(part, "dev") == text_of(everything, "dev")
    with pytest.raises(UserError, match="too little training text"):
        prepare(config(write({"a.txt": "a single document\n"}, "tiny")), tmp_path / "data")


def test_second_call_does_nothing(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = write({"a.train": lines(30), "a.dev": lines(3)}), tmp_path / "data"
    first = prepare(config(source), root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("built again"))
    monkeypatch.setattr(origin, "file_sha256", lambda _: pytest.fail("read the text"))
    assert prepare(config(source), root).hash == first.hash
    assert prepare(config(source).model_copy(update={"source": None}), root).hash == first.hash
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_same_text_elsewhere_is_the_same(write: Write, tmp_path: Path) -> None:
    source, root = write({"a.train": lines(30), "a.dev": lines(3)}), tmp_path / "data"
    first = prepare(config(source), root)
    shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copy)  # newer, but equal
    assert prepare(config(tmp_path / "copy"), root).dir == first.dir
    assert prepare(config(tmp_path / "copy"), tmp_path / "again").hash == first.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "a.train").write_text(lines(31)), "a.train has changed"),
        (lambda folder: (folder / "a.dev").write_text(lines(3).replace("n", "m")), "a.dev has changed"),
        (lambda folder: (folder / "b.txt").write_text("new\n"), "b.txt was added"),
        (lambda folder: (folder / "a.dev").unlink(), "a.dev was removed"),
    ],
)
def test_other_text_is_not_taken_for_the_prepared(
    write: Write, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    source, root = write({"a.train": lines(30), "a.dev": lines(3)}), tmp_path / "data"
    first = prepare(config(source), root)
    change(source)
    with pytest.raises(UserError, match=f"prepared from other text: {message}.*--fresh"):
        prepare(config(source), root)
    replaced = prepare(config(source), root, fresh=True)
    assert replaced.dir == first.dir
    assert replaced.hash != first.hash
    assert sorted(p.name for p in root.iterdir()) == [f".{first.dir.name}.lock", first.dir.name]


def test_a_track_without_a_place_needs_a_source(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("words: 1_000\n")
    with pytest.raises(UserError, match=r"mine needs its text: hgrnx prepare --track .*mine\.yaml --source DIR"):
        prepare(DataConfig(track=str(tmp_path / "mine.yaml")), tmp_path)


def test_other_settings_find_the_text_again(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    source = write({"a.train": lines(20), "b.dev": lines(9, 200)})
    first = prepare(config(source), tmp_path / "data")
    nowhere = {"source": None}
    second = prepare(config(source, block_lines=2).model_copy(update=nowhere), tmp_path / "data")
    assert second.dir != first.dir and text_of(second, "train")[0] == lines(2)
    with pytest.raises(UserError, match="track strict is .* which cannot be reached .*--source DIR"):
        prepare(config(source, track="strict").model_copy(update=nowhere), tmp_path / "data")


def test_progress_ends_complete(write: Write, tmp_path: Path) -> None:
    source = write({"a.train": lines(30), "b.train": lines(9), "a.dev": lines(3)})
    seen: dict[str, list[tuple[int, int]]] = {}
    prepare(
        config(source),
        tmp_path / "data",
        on_progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    )
    assert list(seen) == ["text", "tokenizer", "tokens"]
    for steps in seen.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("where", [(shards, "write_pieces"), (text_store, "write_json"), (module, "write_json")])
def test_a_disk_that_refuses_leaves_nothing(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, where: tuple[Any, str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*where, refuse)
    root = tmp_path / "data"
    message = "Cannot write" if code == errno.EROFS else "disk .* is full"
    with pytest.raises(UserError, match=message):
        prepare(config(write({"a.train": lines(30), "a.dev": lines(3)})), root)
    assert [path.name for path in root.iterdir() if not path.name.endswith(".lock")] == []


def test_a_full_device(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    opened = Path.open

    def open_full(path: Path, *args: Any, **kwargs: Any) -> Any:
        return opened(Path("/dev/full") if path.name.startswith("00000.tokens.bin") else path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(UserError, match="is full; what was half written is removed"):
        prepare(config(write({"a.train": lines(30), "a.dev": lines(3)})), tmp_path / "data")
    assert not list((tmp_path / "data").glob("**/*.bin"))


def test_data_root_that_cannot_be_written(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"Cannot write .*HGRNX_DATA"):
        prepare(config(write({"a.train": lines(30)})), tmp_path / "file" / "data")


def test_a_file_that_changes_meanwhile(write: Write, tmp_path: Path) -> None:
    source = write({"a.train": lines(30), "a.dev": lines(3)})

    def touch(stage: str, done: int, total: int) -> None:
        if stage == "text":
            os.utime(source / "a.train", ns=(1, 2 + done))

    with pytest.raises(UserError, match=r"a\.train was changed while it was read"):
        prepare(config(source), tmp_path / "data", on_progress=touch)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from hgrnx.config import DataConfig
from hgrnx.data.prepare import prepare

def act(stage, done, total):
    if sys.argv[3] == "die" and stage == "tokens":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[3] == "wait" and stage == "tokens":
        time.sleep(0.05)
    if stage == "tokens" and done == total:
        print("built")

config = DataConfig(track="strict-small", source=sys.argv[1], vocab_size=300)
print(prepare(config, Path(sys.argv[2]), on_progress=act).hash)
"""


def start(source: Path, root: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(source), str(root), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_is_continued(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = write({"a.train": lines(30), "a.dev": lines(3)}), tmp_path / "data"
    assert start(source, root, "die").wait() == -signal.SIGKILL
    assert list(root.glob(".*.partial"))
    with pytest.raises(UserError, match="is not prepared"):
        module.open_dataset(config(source), root)
    with monkeypatch.context() as patch:  # what was finished is not done again
        patch.setattr(module, "store_text", lambda *_: pytest.fail("read the text again"))
        patch.setattr(module, "train_tokenizer", lambda *_: pytest.fail("trained again"))
        dataset = prepare(config(source), root)
    assert np.array_equal(dataset.split("dev").doc_bytes, [len(lines(3))])
    assert [path.name for path in root.iterdir() if not path.name.endswith(".lock")] == [dataset.dir.name]
    assert dataset.hash == prepare(config(source), tmp_path / "undisturbed").hash


@pytest.mark.parametrize("left", ["text/00000.txt", "text/00001.index", "tokenizer", "train"])
def test_what_a_killed_run_left_is_checked(
    write: Write, tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may leave names without content."""
    source, root = write({"a.train": lines(30), "a.dev": lines(3)}), tmp_path / "data"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_manifest", _interrupt)
        prepare(config(source), root)
    (partial,) = root.glob(".*.partial")
    if left.startswith("text"):  # shards are made of it again
        shutil.rmtree(partial / WORK / "shards")
    damaged = {"tokenizer": partial / "tokenizer/tokenizer.json", "train": partial / "train/00000.tokens.bin"}
    damaged.get(left, partial / WORK / left).write_bytes(b"{}")
    assert prepare(config(source), root).hash == prepare(config(source), tmp_path / "undisturbed").hash


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("change", ["source", "settings", "fresh"])
def test_a_killed_run_of_other_text_is_not_continued(write: Write, tmp_path: Path, change: str) -> None:
    source, root = write({"a.train": lines(30), "a.dev": lines(3)}), tmp_path / "data"
    start(source, root, "die").wait()
    (key,) = root.glob(".*.partial/work/key")
    old = key.stat().st_ino
    if change == "source":
        (source / "a.train").write_text(lines(31))
    elif change == "settings":
        key.write_text(key.read_text().replace('"block_lines": 8', '"block_lines": 9'))
    reread: list[str] = []
    prepare(config(source), root, fresh=change == "fresh", on_progress=lambda stage, done, total: reread.append(stage))
    assert "text" in reread and "tokenizer" in reread and old
    assert prepare(config(source), root).hash == prepare(config(source), tmp_path / "undisturbed").hash


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from hgrnx.config import DataConfig
from hgrnx.data import choose, prepare as module

source, root, stage, seconds = *sys.argv[1:4], float(sys.argv[4])

def die():
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)

killer = threading.Thread(target=die)

def at(now, done, total):
    if now == stage and not killer.ident:
        killer.start()

if __name__ == "__main__":
    module._WORTH_A_PROCESS, choose.SHARD_BYTES = 0, 20_000
    config = DataConfig(track="strict-small", source=source, vocab_size=400)
    print(module.prepare(config, Path(root), workers=2, on_progress=at).hash)
    if killer.ident:
        killer.join()
"""


@pytest.mark.slow
def test_killed_at_any_instant(write: Write, tmp_path: Path) -> None:
    """Parent and workers are killed at random moments, again and again, until a call gets to the end."""
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    files: dict[str, str | bytes] = {f"{name}.train": lines(2_000, 2_000 * i) for i, name in enumerate("abcd")}
    source = write({**files, "a.dev": lines(300, 10_000)})

    def call(root: Path, stage: str = "never", seconds: float = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(source), str(root), stage, str(seconds)]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)

    undisturbed, random = call(tmp_path / "other"), Random(5)
    assert undisturbed.returncode == 0
    for attempt, stages in enumerate(permutations(("text", "tokenizer", "tokens"), 2)):
        root = tmp_path / f"data-{attempt}"
        first, second = (call(root, stage, random.uniform(0, 0.3)) for stage in stages)
        assert first.returncode == -signal.SIGKILL
        assert second.returncode in (0, -signal.SIGKILL)  # the first may have finished that stage
        last = call(root)
        assert (last.returncode, last.stdout) == (0, undisturbed.stdout)
        (folder,) = (path for path in root.iterdir() if not path.name.endswith(".lock"))
        assert not list(folder.rglob("*.tmp"))
    dataset = module.open_dataset(config(source, vocab_size=400), root, verify=True)
    assert len(dataset.manifest["shards"]["train"]) > 5
    # One process, and one shard or many: the same tokens.
    alone = prepare(config(source, vocab_size=400), tmp_path / "alone", workers=1)
    assert np.array_equal(alone.split("train").tokens, dataset.split("train").tokens)
    assert np.array_equal(alone.split("train").doc_offsets, dataset.split("train").doc_offsets)


def test_two_processes_make_it_once(write: Write, tmp_path: Path) -> None:
    source, root = write({"a.train": lines(100), "a.dev": lines(3)}), tmp_path / "data"
    outputs = [process.communicate()[0].split() for process in [start(source, root, "wait") for _ in "ab"]]
    assert sorted(map(len, outputs)) == [1, 2]  # one built, both have the hash
    assert len({output[-1] for output in outputs}) == 1


@pytest.mark.skipif(not BABYLM.is_dir(), reason="the BabyLM-like text is not on this machine")
def test_real_text(tmp_path: Path) -> None:
    source = tmp_path / "babylm"
    for name in ("train_10M/childes.train", "train_10M/simple_wiki.train", "dev/simple_wiki.dev"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        raw = (BABYLM / name).read_bytes()[:150_000]
        (source / name).write_bytes(raw[: raw.rindex(b"\n") + 1])
    dataset = prepare(config(source, vocab_size=2_000), tmp_path / "data")
    for row in dataset.manifest["sources"]:
        text = (source / row["name"]).read_text(encoding="utf-8")
        assert row["train"]["words"] + row["dev"]["words"] == len(text.split())
        kept = [line + "\n" for line in text.split("\n") if line.strip()]
        split = "dev" if row["name"].startswith("dev/") else "train"
        assert row[split]["bytes"] == sum(len(line.encode()) for line in kept)
        assert row[split]["documents"] == -(-len(kept) // 8)
    assert np.asarray(dataset.split("train").word_starts).sum() == dataset.split("train").words


UNTIDY = {
    "bom.train": b"\xef\xbb\xbfone two\n" + b"three\n" * 9,
    "combining.train": "e\u0301te\u0301 n\u0303\n\u0301alone\n".encode(),
    "crlf.train": b"a b\r\n\r\nc\r\n" * 20,
    "long.train": b"word, " * 1_700_000 + b"\nend\n",
    "nul.train": b"a\0b \0 c\n" * 9,
    "right_to_left.train": "שלום עולם\u200f\nمرحبا\u2067 بك\u2069\n".encode() * 9,
    "spaces.train": "  two  spaces \n\ttab\x1cunit\u3000wide\u00a0\u0085\n \u2028 x\n".encode() * 9,
    "some.dev": b"dev\n",
}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_untidy_text_is_not_lost(write: Write, tmp_path: Path, workers: int) -> None:
    source = write(UNTIDY)
    dataset = prepare(config(source, vocab_size=600), tmp_path / "data", workers=workers)
    for row in dataset.manifest["sources"]:
        text = UNTIDY[row["name"]].decode("utf-8-sig")
        assert row["available_words"]["train"] + row["available_words"]["dev"] == len(text.split()), row["name"]
        assert row["train"]["words"] + row["dev"]["words"] == len(text.split())
    assert np.asarray(dataset.split("train").word_starts).sum() == dataset.split("train").words
    part, tokenizer = dataset.split("train"), dataset.tokenizer()
    text = "".join(
        tokenizer.decode(np.asarray(part.tokens[begin + 1 : end]).tolist())
        for begin, end in zip(part.doc_offsets, part.doc_offsets[1:], strict=False)
    )
    kept = [
        line.removesuffix("\r")
        for name in sorted(UNTIDY)
        if name.endswith(".train")
        for line in UNTIDY[name].decode("utf-8-sig").split("\n")
    ]
    assert text == "".join(f" {line}\n" for line in kept if line.strip())


def test_what_a_process_finds_wrong_is_told(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_A_PROCESS", 0)
    source = write({"a.train": lines(9), "b.train": b"fine\nnot \xff fine\n", "a.dev": "x\n"})
    with pytest.raises(UserError, match=r"b\.train, line 2, byte 9 of the file: 0xff is not UTF-8"):
        prepare(config(source), tmp_path / "data", workers=2)
    (source / "b.train").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.train has no text in it"):
        prepare(config(source), tmp_path / "data", workers=2)
    assert not list((tmp_path / "data").glob(".*.partial"))


def test_a_given_tokenizer_is_used_and_is_part_of_the_settings(write: Write, tmp_path: Path) -> None:
    source = write({"a.train": lines(60), "a.dev": lines(3, 500)})
    first = prepare(config(source), tmp_path / "data")
    taken = config(source, tokenizer=str(first.tokenizer_dir))
    second = prepare(taken, tmp_path / "data")
    assert second.dir != first.dir and second.tokenizer_hash == first.tokenizer_hash
    assert second.manifest["tokenizer"]["trained_on_words"] is None
    print_ledger(second.manifest, Console(file=(out := io.StringIO()), width=200))
    assert f"trained on {first.split('train').words} words" in out.getvalue()
    for split in ("train", "dev"):
        assert np.array_equal(second.split(split).tokens, first.split(split).tokens)
    more = write({"a.train": "owls eat owls\n" * 60, "a.dev": lines(3, 500)}, "more")
    other = config(source, tokenizer=str(prepare(config(more), tmp_path / "more").tokenizer_dir))
    assert prepare(other, tmp_path / "data").dir != second.dir


def test_special_tokens_of_a_given_tokenizer_may_have_any_number(write: Write, tmp_path: Path) -> None:
    source = write({"a.train": lines(60), "a.dev": lines(3, 500)})
    first = prepare(config(source), tmp_path / "data")
    facts = json.loads((first.tokenizer_dir / "tokenizer.json").read_text())
    for token, number in (("<pad>", 0), ("<s>", 1), ("</s>", 2)):
        facts["model"]["vocab"][token] = number
        next(added for added in facts["added_tokens"] if added["content"] == token)["id"] = number
    facts["added_tokens"].sort(key=lambda added: added["id"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    second = prepare(config(source, tokenizer=str(tmp_path / "tokenizer.json")), tmp_path / "data")
    assert (second.bos_id, second.eos_id) == (1, 2)
    old, new = np.asarray(first.split("train").tokens), np.asarray(second.split("train").tokens)
    assert np.array_equal(np.where(old == 0, 1, old), new)
