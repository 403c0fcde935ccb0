from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hgrnx.config import CleaningConfig, DataConfig, NearDuplicatesConfig
from hgrnx.data.sampled_text import sampled_text
from hgrnx.data.sources import find_domain_files
from hgrnx.data.tracks import domain_words, find_track, load_track
from hgrnx.data.workers import Workers
from hgrnx.errors import UserError

PILE = load_track("pile-10m")
Record = dict[str, object]


def zst(text: bytes) -> bytes:
    return pyarrow.compress(text, codec="zstd", asbytes=True)


def jsonl(records: list[Record]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def record(domain: str, number: int, words: int) -> Record:
    text = f"{domain} {number}\n" + " ".join(f"w{(number * 31 + k) % 97}" for k in range(words))
    return {"text": text, "meta": {"pile_set_name": domain}}


def pile_records(words_each: int = 700) -> list[Record]:
    """Documents of all 22 domains in the proportions that no domain's budget has, shuffled."""
    draw = random.Random(7)
    records = []
    for name, words in domain_words(PILE, 20_000).items():
        left = max(words_each, 2 * words)
        while left > 0:
            records.append(record(name, len(records), draw.randrange(3, 60)))
            left -= len(str(records[-1]["text"]).split())
    draw.shuffle(records)
    return records


def write_pile(folder: Path, records: list[Record]) -> Path:
    """The records in all the forms that the Pile comes in."""
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "00.jsonl.zst").write_bytes(zst(jsonl(records[0::5])))
    (folder / "train" / "01.jsonl.gz").write_bytes(gzip.compress(jsonl(records[1::5])))
    (folder / "02.jsonl").write_bytes(jsonl(records[2::5]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records[3::5]), folder / "03.parquet")
    with tarfile.open(folder / "rest.jsonl.zst.tar", "w") as tar:
        for number, part in enumerate((records[4::10], records[9::10])):
            content = zst(jsonl(part))
            member = tarfile.TarInfo(f"{number}.jsonl.zst")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (folder / "val.jsonl").write_bytes(jsonl([{"text": "not to be read", "meta": {}}]))
    return folder


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pile(tmp_path_factory.mktemp("pile"), pile_records())


def sample(source: Path | None, folder: Path, *, readers: int = 1, **changes: object) -> dict[str, Any]:
    """Write the sample into ``folder``; what is noted of it."""
    (folder / "work").mkdir(parents=True)
    values = {"track": "pile-10m", "words": 20_000, "source": str(source) if source else None, **changes}
    config = DataConfig(**values)  # type: ignore[arg-type]
    inputs = find_domain_files(find_track(config), config.source)
    ticks: list[int] = []
    with Workers(readers) as pool:
        text = sampled_text(config, inputs, folder, None, pool, readers, ticks.append)
    assert ticks == sorted(ticks) and ticks[-1] <= sum(file.size for file in inputs)
    assert [file.name for file in text.files(folder)] == sorted(content(folder))
    return text.facts


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "text").iterdir())}


def words_in(data: bytes) -> int:
    return sum(len(json.loads(line)["text"].split()) for line in data.splitlines())


def test_every_domain_has_its_share_of_table_1(pile: Path, tmp_path: Path) -> None:
    text = sample(pile, tmp_path / "a")
    budgets = domain_words(PILE, 20_000)
    assert len(budgets) == 22 and sum(budgets.values()) == 20_000
    written = {name: words_in(data) for name, data in content(tmp_path / "a").items()}
    for name, budget in budgets.items():
        stem = "".join(c if c.isalnum() else "-" for c in name).strip("-").replace("--", "-")
        assert written[f"{stem}.train.jsonl"] == budget == text["domains"][name]["train"]
        assert text["domains"][name]["available_words"] >= 700
    assert budgets["Pile-CC"] / 20_000 == pytest.approx(0.4900, abs=1e-4)
    assert budgets["OpenWebText2"] / 20_000 == pytest.approx(0.3079, abs=1e-4)
    assert not (tmp_path / "a" / "work" / "waiting").exists()
    train = {line for name, data in content(tmp_path / "a").items() if ".train." in name for line in data.splitlines()}
    dev = {line for name, data in content(tmp_path / "a").items() if ".dev." in name for line in data.splitlines()}
    assert dev and not train & dev
    assert {row["name"] for row in text["inputs"]} == {
        "train/00.jsonl.zst",
        "train/01.jsonl.gz",
        "02.jsonl",
        "03.parquet",
        "rest.jsonl.zst.tar",
    }
    assert sum(row["lines"] for row in text["inputs"]) >= len(pile_records())


def test_readers_order_and_files_do_not_matter(pile: Path, tmp_path: Path) -> None:
    sample(pile, tmp_path / "one")
    sample(pile, tmp_path / "four", readers=4)
    everything = pile_records()[::-1]
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "all.jsonl").write_bytes(jsonl(everything + everything[:50]))  # some twice
    flat = sample(tmp_path / "flat", tmp_path / "other")
    assert content(tmp_path / "one") == content(tmp_path / "four") == content(tmp_path / "other")
    assert 0 < sum(row["equal_documents"] for row in flat["domains"].values()) <= 50
    sample(pile, tmp_path / "seed", seed=1)
    assert content(tmp_path / "seed") != content(tmp_path / "one")


def test_a_domain_of_the_others_without_text_leaves_its_words(tmp_path: Path) -> None:
    records = [r for r in pile_records() if r["meta"] != {"pile_set_name": "Books3"}]
    text = sample(write_pile(tmp_path / "p", records), tmp_path / "a")
    assert set(text["domains"]["Books3"].values()) == {0}
    assert sum(row["train"] for row in text["domains"].values()) == 20_000
    assert text["domains"]["ArXiv"]["train"] > domain_words(PILE, 20_000)["ArXiv"]
    assert text["domains"]["Pile-CC"]["train"] == domain_words(PILE, 20_000)["Pile-CC"]


def test_too_little_text_is_refused_by_domain(pile: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        sample(pile, tmp_path / "a", words=100_000)
    assert "too little text for the track pile-10m" in str(error.value)
    assert "\n  - Pile-CC has " in str(error.value) and "\n  - FreeLaw has " in str(error.value)
    records = [r for r in pile_records() if r["meta"] != {"pile_set_name": "FreeLaw"}]
    with pytest.raises(UserError, match="has no text of FreeLaw, which the track pile-10m needs"):
        sample(write_pile(tmp_path / "p", records), tmp_path / "b")


def test_documents_must_say_their_domain(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jsonl").write_bytes(jsonl([{"text": "a b c"}]))
    with pytest.raises(UserError, match=r"a\.jsonl has documents without meta\.pile_set_name"):
        sample(source, tmp_path / "a")


def own_track(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


def test_a_track_of_ones_own(tmp_path: Path) -> None:
    for name, word in (("wiki", "alpha"), ("talk", "beta")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("".join(f"{word} {n}\n" for n in range(500)))
    (tmp_path / "pile.jsonl").write_bytes(
        jsonl([record("ArXiv", n, 5) for n in range(99)] + [record("EuroParl", 1, 9)])
    )
    track = own_track(
        tmp_path,
        "words: 300\nsources:\n  wiki: {path: wiki}\n  talk: {path: talk/a.txt}\n  pile: {path: pile.jsonl}\n"
        "domains:\n  wiki: {share: 0.5}\n  talk: {words: 100}\n  ArXiv: {words: 50, source: pile}\n",
    )
    text = sample(None, tmp_path / "a", track=track, words=None, block_lines=2)
    assert {name: row["train"] for name, row in text["domains"].items()} == {"wiki": 150, "talk": 100, "ArXiv": 50}
    assert text["other_domains"] == {"EuroParl": 1}
    assert b"beta" not in content(tmp_path / "a")["wiki.train.jsonl"]
    assert json.loads(content(tmp_path / "a")["wiki.train.jsonl"].splitlines()[0])["text"].count("\n") == 2


def test_folders_name_the_domain_of_unlabelled_text(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("Wiki One", "wiki-two"):
        (source / name).mkdir(parents=True)
        (source / name / "x.txt").write_text("".join(f"{name} {n}\n" for n in range(50)))
    track = own_track(
        tmp_path,
        "words: 40\nsources: {s: {path: x}}\ndomains:\n  wiki-one: {share: 0.5, source: s}\n"
        "  wiki-two: {share: 0.5, source: s}\n",
    )
    sample(source, tmp_path / "a", track=track, words=None)
    assert b"wiki-two" not in content(tmp_path / "a")["wiki-one.train.jsonl"]


def test_cleaning_is_done_before_the_budget_is_counted(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    (tmp_path / "a").mkdir()
    long = [f"d{n} " + " ".join(f"v{n * 50 + k}" for k in range(50)) for n in range(20)]
    (tmp_path / "a" / "x.jsonl").write_bytes(jsonl([{"text": t} for t in long] + [{"text": t + " more"} for t in long]))
    track = own_track(tmp_path, "words: 600\nsources: {a: {path: a}}\ndomains: {a: {share: 1.0}}\n")
    cleaning = CleaningConfig(near_duplicates=NearDuplicatesConfig(threshold=0.7), unicode="NFC")
    text = sample(None, tmp_path / "out", track=track, words=None, cleaning=cleaning)
    assert text["domains"]["a"]["train"] == 600
    starts = [json.loads(line)["text"].split()[0] for line in content(tmp_path / "out")["a.train.jsonl"].splitlines()]
    assert len(starts) == len(set(starts))
    assert text["cleaning"]["near_duplicates"]["documents"] > 0
    assert text["cleaning"]["unicode"] == {"form": "NFC", "documents": 0}


def test_development_text_is_no_part_of_the_budget(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_bytes(jsonl([{"text": f"d{n} x"} for n in range(100)]))
    text = "sources: {a: {path: a}}\ndomains: {a: {share: 1.0}}\n"
    noted = sample(None, tmp_path / "one", track=own_track(tmp_path, f"words: 198\n{text}"), words=None)
    assert (noted["domains"]["a"]["train"], noted["domains"]["a"]["dev"]) == (198, 2)
    with pytest.raises(UserError, match="no text left for development after the 200 training words of the track mine"):
        sample(None, tmp_path / "two", track=own_track(tmp_path, f"words: 200\n{text}"), words=None)
