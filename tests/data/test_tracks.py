from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrnx.config import CleaningConfig, DataConfig, DecontaminationConfig
from hgrnx.data.tracks import (
    dataset_name,
    dataset_settings,
    domain_words,
    find_track,
    load_track,
    prepare_command,
    shipped_tracks,
)
from hgrnx.errors import UserError

PILE = load_track("pile-10m")


def test_budgets_are_those_of_the_challenge() -> None:
    assert find_track(DataConfig(track="strict-small")).words == 10_000_000
    assert find_track(DataConfig(track="strict")).words == 100_000_000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(track="strict-smal"), "no track 'strict-smal'. Did you mean strict-small?"),
        (DataConfig(track="strict-small", words=10_000_001), "is 1 more than the 10,000,000 words"),
        (DataConfig(track="demo", source="/x"), "makes its own text"),
    ],
)
def test_wrong_tracks_are_refused(config: DataConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_track(config)


def test_name_follows_what_decides_the_tokens_and_nothing_else() -> None:
    base = DataConfig(track="strict-small", source="/a")
    same = [
        base.model_copy(update={"source": "/b"}),
        base.model_copy(update={"words": 10_000_000}),  # the default, written out
        base.model_copy(update={"seed": 5}),  # only the demo has a seed
    ]
    other = [
        base.model_copy(update={"words": 1_000}),
        base.model_copy(update={"vocab_size": 1_000}),
        base.model_copy(update={"block_lines": 9}),
        base.model_copy(update={"track": "strict"}),
    ]
    assert {dataset_name(config) for config in same} == {dataset_name(base)}
    assert len({dataset_name(config) for config in [base, *other]}) == 5
    assert dataset_name(DataConfig(seed=1)) != dataset_name(DataConfig())
    assert dataset_name(base).startswith("strict-small-v16000-")


def test_shipped_tracks() -> None:
    assert shipped_tracks() == ["demo", "pile-100m", "pile-10m", "strict", "strict-small"]
    tracks = {name: load_track(name) for name in shipped_tracks()}
    assert {name: track.over_budget for name, track in tracks.items() if not track.limited} == {"demo": "ignore"}
    assert all(track.max_passes == 10 for name, track in tracks.items() if name != "demo")
    hub = tracks["strict-small"].hub
    assert hub is not None and hub.dataset == "BabyLM-community/BabyLM-2026-Strict-Small" and len(hub.revision) == 40


@pytest.mark.parametrize(
    ("name", "total", "first", "others"),
    [("pile-10m", 9_999_894, 4_900_155, 365_188), ("pile-100m", 99_999_861, 49_214_555, 3_968_870)],
)
def test_the_pile_as_in_table_1(name: str, total: int, first: int, others: int) -> None:
    track = load_track(name)
    budgets = domain_words(track)
    assert len(budgets) == 22 and sum(budgets.values()) == total == track.words
    assert budgets["Pile-CC"] == first
    shared = {name: words for name, words in budgets.items() if track.domains[name].size is not None}
    assert sum(shared.values()) == others and len(shared) == 15
    # Twice the effective size in the Pile, twice the words.
    assert shared["Books3"] / shared["Github"] == pytest.approx(151.44 / 95.16, rel=1e-3)
    fewer = domain_words(track, absent={"Books3", "OpenSubtitles"})
    assert sum(fewer.values()) == total and fewer["Pile-CC"] == first
    assert fewer["Github"] / fewer["ArXiv"] == pytest.approx(shared["Github"] / shared["ArXiv"], rel=1e-3)
    with pytest.raises(UserError, match="no text of FreeLaw, which"):
        domain_words(track, absent={"Books3", "FreeLaw"})
    with pytest.raises(UserError, match="no text of ArXiv, BookCorpus2"):
        domain_words(track, absent=set(shared))


@given(words=st.integers(1, 30_000_000))
def test_scaled_budgets_add_up(words: int) -> None:
    budgets = domain_words(PILE, words)
    assert sum(budgets.values()) == words
    for name, budget in domain_words(PILE).items():
        assert abs(budgets[name] - budget * words / PILE.words) <= 1 + words / PILE.words


WRONG = """
words: 100
over_budget: forbid
sources:
  a: {path: x, hub: {dataset: owner/name, files: [x]}}
  b: {hub: {dataset: nobody, files: []}}
domains:
  a: {share: 0.5, words: 3}
  b: {shares: 0.5}
"""


def test_a_wrong_track_is_told_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(WRONG)
    with pytest.raises(UserError) as error:
        load_track(str(path))
    text = str(error.value)
    assert "mine.yaml has 6 problems" in text
    for part in (
        "over_budget: Input should be 'refuse', 'warn' or 'ignore'",
        "sources.a: give either a path or a hub dataset",
        "sources.b.hub.dataset: String should match",
        "sources.b.hub.files",
        "domains.a: give exactly one of words, share and size",
        "domains.b.shares: there is no such key; did you mean",
    ):
        assert f"  - {part}" in text


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "words: 9\nsources: {wiki: {path: x}, b: {path: y}}\ndomains: {wik: {share: 1.0}}",
            ["domains.wik: there is no source 'wik'; did you mean wiki?"],
        ),
        (
            "words: 9\nothers: 1\nsources: {a: {path: x}, b: {path: y}}\ndomains: {a: {share: 1.0}}",
            ["sources.b: no domain takes from it", "others: no domain has a size to share it by"],
        ),
        (
            "words: 90\nsources: {a: {path: x}}\ndomains: {a: {share: 0.5}}",
            ["domains: together they have 45 words, the track 90"],
        ),
        ("words: 9\nsources: {a: {path: x}}", ["domains: there are none to take from the sources"]),
        (
            "words: 9\nsources: {a: {path: x}}\ndomains: {a: {size: 2}}",
            ["others: needed, because domains have a size to share it by"],
        ),
        (
            "words: 9\nothers: 3\nsources: {a: {path: x}}\ndomains: {a: {words: 9}}",
            ["others: no domain has a size to share it by"],
        ),
        (
            "words: 9\nfolder: x\nsources: {a: {path: x}}\ndomains: {a: {words: 9}}",
            ["domains: a track of domains has 'sources', not 'hub' or 'folder'"],
        ),
    ],
)
def test_parts_of_a_track_must_fit(tmp_path: Path, text: str, problems: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_track(str(tmp_path / "mine.yaml"))
    assert [line.strip(" -") for line in str(error.value).splitlines()[1:]] == problems


def test_a_track_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the track .*none\.yaml"):
        load_track(str(tmp_path / "none.yaml"))
    (tmp_path / "x.yaml").write_text("words: [")
    with pytest.raises(UserError, match=r"x\.yaml, line 1: not valid YAML"):
        load_track(str(tmp_path / "x.yaml"))
    (tmp_path / "strict.yaml").write_text("words: 3")
    with pytest.raises(UserError, match="is called strict like one that comes with hgrnx"):
        load_track(str(tmp_path / "strict.yaml"))
    (tmp_path / "strict.yaml").write_text("words: 3\nname: my-strict")
    assert load_track(str(tmp_path / "strict.yaml")).name == "my-strict"
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(UserError, match=r"x\.yaml is empty: a track is"):
        load_track(str(tmp_path / "x.yaml"))


def test_places_of_a_track_are_seen_from_its_file_and_are_no_part_of_it(tmp_path: Path) -> None:
    names = set()
    for folder, place in (("one", "text"), ("two", "../elsewhere")):
        path = tmp_path / folder / "mine.yaml"
        path.parent.mkdir()
        path.write_text(f"words: 9\nmax_passes: 2\nsources: {{a: {{path: {place}}}}}\ndomains: {{a: {{share: 1.0}}}}\n")
        assert load_track(str(path)).sources["a"].path == str(path.parent / place)
        names.add(dataset_name(DataConfig(track=str(path))))
        path.write_text(path.read_text().replace("passes: 2", "passes: 3"))  # a rule, not the text
        names.add(dataset_name(DataConfig(track=str(path))))
    assert len(names) == 1 and names.pop().startswith("mine-v16000-")
    path.write_text(path.read_text().replace("words: 9", "words: 8"))
    assert dataset_name(DataConfig(track=str(path))) not in names


def test_cleaning_is_part_of_the_settings() -> None:
    def name(**cleaning: object) -> str:
        return dataset_name(DataConfig(track="strict", cleaning=CleaningConfig(**cleaning)))  # type: ignore[arg-type]

    benchmarks = [DecontaminationConfig(benchmarks=place) for place in ("/a", "/b")]
    assert len({name(), name(unicode="NFC"), name(unicode="NFKC"), name(exact_duplicates=True)}) == 4
    assert name(decontaminate=benchmarks[0]) == name(decontaminate=benchmarks[1]) != name()


def test_settings_are_resolved() -> None:
    assert dataset_settings(DataConfig())["words"] == 400_000


def test_the_command_in_messages() -> None:
    assert prepare_command(DataConfig(vocab_size=1024)) == "hgrnx prepare --track demo --vocab-size 1024"
    assert prepare_command(DataConfig(track="strict", source="/x", words=9)) == (
        "hgrnx prepare --track strict --words 9 --source /x"
    )
    assert prepare_command(DataConfig(track="strict", block_lines=2)) == ("hgrnx prepare --recipe RECIPE --source DIR")
