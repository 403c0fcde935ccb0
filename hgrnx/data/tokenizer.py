"""The byte-level BPE tokenizer: trained on the training text only, kept as a Hugging Face tokenizer folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hgrnx.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SPECIAL = (BOS, EOS, PAD)
_LONGEST_TOKEN = 256
"""In bytes; keeps the words that begin in one token countable in a byte, whatever the text."""


def model_text(document: str) -> str:
    """What is encoded of a raw document: each line with a space before it.

    The benchmarks score ``" " + sentence`` after BOS, so a line's first word must be the same token as in the
    middle of a line.
    """
    return " " + document[:-1].replace("\n", "\n ") + "\n"


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (GPT-2's splitting, no normalisation) with at most ``vocab_size`` entries.

    ``documents`` are raw documents. Deterministic. ``<s>``, ``</s>``, ``<pad>`` have the ids 0, 1, 2, and every
    byte is an entry, so that any text can be encoded and decoding gives it back exactly.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(documents, 1_000), trainer)
    return _as_plain_text(tokenizer)


def save_tokenizer(tokenizer: Tokenizer | bytes, folder: Path) -> str:
    """Write ``folder`` so that ``transformers.AutoTokenizer`` opens it; returns the tokenizer's hash.

    Given the bytes of a ``tokenizer.json``, these are kept as they are, and so is their hash.
    """
    content = tokenizer if isinstance(tokenizer, bytes) else tokenizer.to_str(pretty=True).encode()
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(content)
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    # No model_max_length: a number there would be a limit for lm-eval, whatever its size.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "clean_up_tokenization_spaces": False}
    for name, values in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return tokenizer_hash(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of ``folder``. Text that reads like a special token (``<s>``) is encoded as text.

    Raises:
        UserError: there is no tokenizer in ``folder``, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has no tokenizer.json.")
    try:
        return _as_plain_text(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not a tokenizer: {error}.") from None


def read_given_tokenizer(place: str) -> bytes:
    """The ``tokenizer.json`` at ``place`` (the file, or the folder it lies in), if prepared text can be made with it.

    That takes a byte-level BPE of GPT-2's splitting whose tokens spell the text exactly (else neither words nor
    bits per byte could be counted), with ``<s>``, ``</s>`` and ``<pad>``.

    Raises:
        UserError: there is none, or it is of another kind; the message says what is in the way.
    """
    path = Path(place).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"data.tokenizer: cannot read {path}: {error.strerror}.") from None
    problem = _problem_with(content)
    if problem:
        raise UserError(f"data.tokenizer: {path} {problem}. Leave data.tokenizer out to train one on the text.")
    return content


def _problem_with(content: bytes) -> str | None:
    from tokenizers import Tokenizer, pre_tokenizers

    try:
        tokenizer, facts = Tokenizer.from_buffer(content), json.loads(content)
        kind, splitting = facts["model"]["type"], facts["pre_tokenizer"] or {}
    except Exception as error:  # the library raises bare Exception
        return f"is not a tokenizer: {error}"
    if kind != "BPE":
        return f"is a {kind} tokenizer, not a byte-level BPE"
    if splitting.get("type") != "ByteLevel" or splitting.get("use_regex") is False:
        return f"splits text by {splitting.get('type', 'nothing')}, not by ByteLevel with its own expression"
    if facts["normalizer"] is not None:
        return f"changes the text by a normalizer ({facts['normalizer'].get('type')}), so its tokens do not spell it"
    model = facts["model"]
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if odd:
        return f"has a BPE model with {' and '.join(odd)}"
    vocabulary = tokenizer.get_vocab()
    absent = [token for token in SPECIAL if token not in vocabulary]
    absent += sorted(set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys())[:3]
    if absent:
        return f"lacks {', '.join(absent)}, which hgrnx needs"
    added = [token["content"] for token in facts["added_tokens"] if not token["special"]]
    if added:
        return f"cuts words such as '{added[0]}' out of the text (added tokens that are not special)"
    longest = max(vocabulary.keys() - {token["content"] for token in facts["added_tokens"]}, key=len)
    if len(longest) > _LONGEST_TOKEN:
        return f"has a token of {len(longest)} bytes; at most {_LONGEST_TOKEN} are supported"
    return None


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 of ``tokenizer.json``: equal for two models exactly when their tokens mean the same."""
    try:
        return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read {folder / 'tokenizer.json'}: {error.strerror}.") from None


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that each token id stands for, int64 ``[vocab]``; 0 for the special tokens."""
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if token in SPECIAL else len(token)  # the byte-level alphabet has one character a byte
    return lengths


def _as_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # a "<s>" in the text is no beginning of a document
    return tokenizer


def _batches(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, size)):
        yield [model_text(document) for document in batch]
