from __future__ import annotations

import pytest

from hgrnx.config import DataConfig
from hgrnx.data.tracks import dataset_name, dataset_settings, find_track, prepare_command
from hgrnx.errors import UserError


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


def test_settings_are_resolved() -> None:
    assert dataset_settings(DataConfig())["words"] == 400_000


def test_the_command_in_messages() -> None:
    assert prepare_command(DataConfig(vocab_size=1024)) == "hgrnx prepare --track demo --vocab-size 1024"
    assert prepare_command(DataConfig(track="strict", source="/x", words=9)) == (
        "hgrnx prepare --track strict --words 9 --source /x"
    )
    assert prepare_command(DataConfig(track="strict", block_lines=2)) == ("hgrnx prepare --recipe RECIPE --source DIR")
