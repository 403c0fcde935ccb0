from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hgrnx.data.tokenizer import (
    load_tokenizer,
    model_text,
    read_given_tokenizer,
    save_tokenizer,
    token_byte_lengths,
    tokenizer_hash,
    train_tokenizer,
)
from hgrnx.errors import UserError

BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
DOCUMENTS = ["the cat sat\nthe cat ran\n", "a naïve cat, 42 dogs!\n", "<s> the end </s>\n"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(DOCUMENTS, 280)


def test_every_line_gets_a_space() -> None:
    assert model_text("one\n two\n") == " one\n  two\n"


def test_a_word_is_one_token_at_the_beginning_of_a_line_too(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(model_text("cat sat\ncat\n")).ids
    cat = tokenizer.token_to_id("Ġcat")
    assert cat is not None
    assert ids.count(cat) == 2


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(index) for index in (BOS_ID, EOS_ID, PAD_ID)] == ["<s>", "</s>", "<pad>"]
    assert tokenizer.get_vocab_size() == 280
    # Text that looks like a special token stays text.
    assert not {BOS_ID, EOS_ID, PAD_ID} & set(tokenizer.encode("<s>a</s><pad>").ids)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert token_byte_lengths(tokenizer)[ids].sum() == len(text.encode())


def test_long_repetitions_make_no_token_above_256_bytes() -> None:
    tokenizer = train_tokenizer(["=" * 4096 + "\n"] * 5, 300)
    lengths = token_byte_lengths(tokenizer)
    assert 128 <= lengths.max() <= 256


def test_saved_folder_opens_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tokenizer"
    digest = save_tokenizer(tokenizer, folder)
    assert digest == tokenizer_hash(folder)
    opened = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id) == (BOS_ID, EOS_ID, PAD_ID)
    text = model_text("the naïve cat\n sat 42\n")
    expected = load_tokenizer(folder).encode(text).ids
    assert opened.encode(text) == expected == tokenizer.encode(text).ids
    assert opened.decode(expected) == text


def test_training_is_the_same_in_every_process(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path / "here")
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from hgrnx.data.tokenizer import *; from test_tokenizer import DOCUMENTS\n"
        "save_tokenizer(train_tokenizer(DOCUMENTS, 280), Path(sys.argv[1]))"
    )
    other = tmp_path / "other"
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, other, Path(__file__).parent], env=environment, check=True)
    assert tokenizer_hash(other) == tokenizer_hash(tmp_path / "here")


def test_missing_and_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"Cannot read .*tokenizer\.json"):
        tokenizer_hash(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)


def given(folder: Path, changes: dict[str, object] | None = None, **model: object) -> Path:
    """A saved tokenizer.json with other values in it."""
    save_tokenizer(train_tokenizer(DOCUMENTS, 280), folder)
    facts = json.loads((folder / "tokenizer.json").read_text())
    facts.update(changes or {})
    facts["model"].update(model)
    (folder / "tokenizer.json").write_text(json.dumps(facts))
    return folder


def test_a_given_tokenizer_is_kept_byte_for_byte(tmp_path: Path) -> None:
    folder = given(tmp_path / "given")
    content = read_given_tokenizer(str(folder))
    assert content == read_given_tokenizer(str(folder / "tokenizer.json")) == (folder / "tokenizer.json").read_bytes()
    assert save_tokenizer(content, tmp_path / "copy") == tokenizer_hash(folder)


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, {}, "splits text by Whitespace"),
        ({"pre_tokenizer": None}, {}, "splits text by nothing"),
        ({"normalizer": {"type": "NFKC"}}, {}, r"normalizer \(NFKC\), so its tokens do not spell it"),
        ({"added_tokens": []}, {"vocab": {"a": 0}, "merges": []}, "lacks <s>, </s>, <pad>"),
        ({}, {"dropout": 0.1}, "with dropout"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, {}, "is a WordLevel tokenizer"),
        ({"version": "x"}, {}, "is not a tokenizer"),
    ],
)
def test_a_given_tokenizer_that_does_not_fit(
    tmp_path: Path, changes: dict[str, object], model: dict[str, object], message: str
) -> None:
    folder = given(tmp_path / "given", changes, **model)
    with pytest.raises(UserError, match=rf"data.tokenizer: .*tokenizer\.json .*{message}"):
        read_given_tokenizer(str(folder))


def test_a_given_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.tokenizer: cannot read"):
        read_given_tokenizer(str(tmp_path / "nowhere.json"))
