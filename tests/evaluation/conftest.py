from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from hgrnx.config import HGRN2Config
from hgrnx.models import LanguageModel, build_model

WORDS = ("the", "a", "dog", "dogs", "cat", "cats", "bark", "barks", "see", "sees", "run", "runs", "and", "big")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Bytes, and the words above as whole tokens."""
    vocab = {"<s>": 0, "</s>": 1, "<pad>": 2}
    for token in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[token] = len(vocab)
    merges = []
    for word in WORDS:
        built = "Ġ"
        for letter in word:
            if built + letter not in vocab:
                vocab[built + letter] = len(vocab)
                merges.append((built, letter))
            built += letter
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.fixture
def model(tokenizer: Tokenizer) -> LanguageModel:
    model = build_model(HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16), tokenizer.get_vocab_size())
    with torch.no_grad():  # far from the uniform distribution of a fresh model
        for parameter in model.parameters():
            parameter.mul_(6)
        assert model.padded_vocab_size > model.vocab_size
        model.head_weight[model.vocab_size :] = 9.0  # the vocabulary's padding must not matter
    return model.eval()


@pytest.fixture
def sentences() -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, size=generator.integers(1, 12))) + "." for _ in range(60)]


@pytest.fixture
def dataset(tokenizer: Tokenizer, sentences: list[str], tmp_path: Path) -> Any:
    """Looks like a ``PreparedDataset``: held-out documents and two files of minimal pairs."""
    documents = [[0, *tokenizer.encode(f" {text}\\n").ids] for text in sentences[:20]]
    split = SimpleNamespace(
        tokens=np.concatenate(documents).astype(np.uint16),
        doc_offsets=np.cumsum([0, *map(len, documents)]),
        doc_bytes=np.array([len(text) + 1 for text in sentences[:20]]),
    )
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for name, term in (("agreement_a", "agreement"), ("agreement_b", "agreement"), ("islands", "islands")):
        rows = [
            {
                "sentence_good": good,
                "sentence_bad": bad,
                "linguistics_term": term,
                "field": "syntax",
                "UID": name,
                "pair_id": i,
            }
            for i, (good, bad) in enumerate(zip(sentences[: 7 + len(name)], sentences[20:], strict=False))
        ]
        (pairs / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SimpleNamespace(
        split=lambda name: {"dev": split}[name], tokenizer=lambda: tokenizer, bos_id=0, pairs_dir=pairs
    )
