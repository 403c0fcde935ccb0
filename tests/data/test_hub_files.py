"""The hub is a web server on this machine that answers like it, with files in the layout of the real datasets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow
import pytest

from hgrnx.config import DataConfig
from hgrnx.data.benchmark_hub import fetch_benchmark
from hgrnx.data.benchmarks import read_bear
from hgrnx.data.hub import download, hub_files
from hgrnx.data.prepare import prepare
from hgrnx.data.sources import LineCounts, find_domain_files, find_text_files, read_labelled
from hgrnx.data.tracks import find_track, load_track
from hgrnx.errors import UserError

pytest.importorskip("huggingface_hub")
COMMIT = "c92ab16b4f08858304b0815706065b3354d8fc0a"
NAMES = ("bnc_spoken", "childes", "gutenberg", "open_subtitles", "simple_wiki", "switchboard")
RECORDS = [{"text": f"Page {n}.\n\nMore.", "meta": {"pile_set_name": "Pile-CC"}} for n in range(40)]
FILES: dict[str, dict[str, bytes]] = {
    "BabyLM-community/BabyLM-2026-Strict-Small": {
        **{f"{name}.train.txt": f"One line of {name}.\nAnother.\n".encode() for name in NAMES},
        "README.md": b"# The dataset",
    },
    "monology/pile-uncopyrighted": {
        "train/00.jsonl.zst": pyarrow.compress(
            "\n".join(map(json.dumps, RECORDS)).encode(), codec="zstd", asbytes=True
        ),
        "train/01.jsonl.zst": b"not asked for",
    },
    "segyges/OpenWebText2": {"openwebtext2.jsonl.zst.tar": b""},
    "lm-pub-quiz/BEAR": {
        "BEAR/metadata_relations.json": json.dumps(
            {"P1": {"templates": ["[X] is [Y]."], "answer_space_labels": ["red", "blue"]}}
        ).encode(),
        "BEAR/P1.jsonl": json.dumps({"sub_label": "The sky", "answer_idx": 1}).encode(),
        "relation_info.json": json.dumps({"P1": {"domains": ["Arts"]}}).encode(),
        "BEAR-big/P1.jsonl": b"not asked for",
    },
}


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that reading a dataset needs."""

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        asked = self.rfile.read(length).decode()
        paths = json.loads(asked)["paths"] if asked.startswith("{") else [p.split("=")[1] for p in asked.split("&")]
        dataset = "/".join(unquote(self.path).split("/")[3:5])
        found = [self.entry(dataset, unquote(path)) for path in paths if unquote(path) in FILES[dataset]]
        self.send(json.dumps(found).encode())

    def answer(self, body: bool) -> None:
        parts = unquote(self.path).split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            dataset = "/".join(parts[2:4])
            if dataset not in FILES:
                self.send(b"{}", status=404, headers={"X-Error-Code": "RepoNotFound"})
            elif "tree" in parts:
                self.send(json.dumps([self.entry(dataset, name) for name in FILES[dataset]]).encode())
            else:
                siblings = [{"rfilename": name, "size": len(content)} for name, content in FILES[dataset].items()]
                self.send(json.dumps({"id": dataset, "sha": COMMIT, "siblings": siblings}).encode())
            return
        dataset, name = "/".join(parts[1:3]), "/".join(parts[5:])
        content = FILES[dataset][name]
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if body and (asked := self.headers.get("Range")):
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            etag["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            self.send(part, status=206, headers=etag)
        else:
            self.send(content, headers=etag, body=body)

    def entry(self, dataset: str, name: str) -> dict[str, object]:
        content = FILES[dataset][name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None, body: bool = True) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()


@pytest.fixture
def hub(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", server)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("hub")
def test_strict_small_is_downloaded_in_its_layout() -> None:
    track = find_track(DataConfig(track="strict-small"))
    assert track.hub is not None
    folder, commit = download(track.hub, track.name)
    assert commit == COMMIT == track.hub.revision
    files = find_text_files(str(folder), track)
    assert [file.name for file in files] == [f"{name}.train.txt" for name in NAMES]  # no README
    assert {file.split for file in files} == {"train"}
    assert [document for _, document in read_labelled(files[1], 8, LineCounts())] == [
        "One line of childes.\nAnother.\n"
    ]


@pytest.mark.usefixtures("hub")
def test_the_pile_is_streamed() -> None:
    files = find_domain_files(load_track("pile-10m"), None)
    assert [(file.name, file.kind, file.domain) for file in files] == [
        ("pile/train/00.jsonl.zst", "jsonl", None),
        ("openwebtext2/openwebtext2.jsonl.zst.tar", "tar", "OpenWebText2"),
    ]
    assert str(files[0].path) == "hub:monology/pile-uncopyrighted@c92ab16b/train/00.jsonl.zst"
    assert list(read_labelled(files[0], 8, LineCounts())) == [("Pile-CC", f"Page {n}.\nMore.\n") for n in range(40)]


@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have() -> None:
    source = load_track("pile-10m").sources["pile"].hub
    assert source is not None
    with pytest.raises(UserError, match=r"has no file train/99\* at revision main; it has train/00\.jsonl\.zst"):
        hub_files(source.model_copy(update={"files": ("train/99*",)}), "pile-10m")
    with pytest.raises(UserError, match=r"owner/nothing \(revision main\).* does not have it.*--source DIR"):
        hub_files(source.model_copy(update={"dataset": "owner/nothing"}), "pile-10m")


@pytest.mark.usefixtures("hub")
def test_bear_is_downloaded_and_the_challenges_own_files_are_not_there() -> None:
    (relation,) = read_bear(fetch_benchmark("bear"))
    assert (relation.statement(0, "The sky", relation.answers[1]), relation.domains) == ("The sky is blue.", ("Arts",))
    with pytest.raises(UserError, match=r"benchmark ewok is ewok-core/ewok-core-1\.0.* give its folder with --data"):
        fetch_benchmark("ewok")
    with pytest.raises(UserError, match="evaluation data with --data"):
        fetch_benchmark("blimp")


def test_no_internet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    strict, pile = load_track("strict"), load_track("pile-10m")
    assert strict.hub is not None and pile.sources["pile"].hub is not None
    for get, source, track in ((download, strict.hub, "strict"), (hub_files, pile.sources["pile"].hub, "pile-10m")):
        with pytest.raises(UserError, match=rf"cannot be reached .*hgrnx prepare --track {track} --source DIR"):
            get(source, track)


@pytest.mark.usefixtures("hub")
def test_a_track_is_prepared_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(track="strict-small", vocab_size=300, block_lines=1)
    dataset = prepare(config, tmp_path / "data")
    assert dataset.manifest["source"] == f"hub:BabyLM-community/BabyLM-2026-Strict-Small@{COMMIT}"
    text = {row["name"]: row["available_words"] for row in dataset.manifest["sources"]}
    assert text["childes.train.txt"] == {"train": 5, "dev": 0} and len(text) == 6
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # not needed a second time
    for source in (None, "hub"):
        assert prepare(config.model_copy(update={"source": source}), tmp_path / "data").hash == dataset.hash


@pytest.mark.usefixtures("hub")
def test_domains_are_sampled_from_the_hub(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "words: 70\nsources: {p: {hub: {dataset: monology/pile-uncopyrighted, files: [train/00.*]}}}\n"
        "domains: {Pile-CC: {share: 1.0, source: p}}\n"
    )
    dataset = prepare(DataConfig(track=str(tmp_path / "mine.yaml"), vocab_size=300), tmp_path / "data")
    (row,) = dataset.manifest["inputs"]
    assert row["from"] == "hub:monology/pile-uncopyrighted@c92ab16b/train/00.jsonl.zst"
    assert dataset.manifest["domains"]["Pile-CC"]["train"] == dataset.split("train").words == 70
