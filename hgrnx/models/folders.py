"""Model folders in Hugging Face form: config.json, safetensors, tokenizer files.

Keys and names are those of the library that has the architecture: HGRN2 is FLA's, the Transformer is
transformers' Llama, Mamba transformers' Mamba. The LSTM and xLSTM have folders of the same kind that only hgrnx
reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hgrnx.config import ARCHITECTURES, ModelConfig
from hgrnx.errors import UserError
from hgrnx.models import empty_model, model_class
from hgrnx.models.base import LanguageModel
from hgrnx.models.folder_formats import FORMATS, FolderFormat
from hgrnx.paths import inside

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HEAD = "lm_head.weight"
_REMOTE_CODE = "modeling_hgrnx"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def save_folder(model: LanguageModel, folder: Path, tokenizer_dir: Path | None = None) -> None:
    """Write ``model`` as a folder that :func:`load_folder` and the architecture's library read.

    The rows of the vocabulary's padding are left out: another library would give them probability.
    """
    folder.mkdir(parents=True, exist_ok=True)
    special: dict[str, int] = {}
    if tokenizer_dir is not None:
        for name in _TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, folder / name)
        special = special_ids(tokenizer_dir)
    form = FORMATS[model.config.architecture]
    fields = model.config.model_dump(mode="json")
    config = {
        "architectures": [form.class_name],
        "model_type": form.model_type,
        "dtype": "float32",
        **{name: fields[name] for name in form.keys},
        **form.only,
        **form.derived(model.config),
        "vocab_size": model.vocab_size,
        **special,
    }
    if form.hub_class is not None:
        names = [f"{form.hub_class}Config", f"{form.hub_class}Model"]
        (folder / f"{_REMOTE_CODE}.py").write_text(
            "# For transformers with trust_remote_code=True; needs the package hgrnx.\n"
            f"from hgrnx.models.hub import {', '.join(names)}  # noqa: F401\n",
            encoding="utf-8",
        )
        auto_classes = ("AutoConfig", "AutoModelForCausalLM")
        config["auto_map"] = {auto: f"{_REMOTE_CODE}.{name}" for auto, name in zip(auto_classes, names, strict=True)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    for name in tensors.keys() & {form.embedding, _HEAD}:
        tensors[name] = tensors[name][: model.vocab_size]
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def load_folder(folder: Path) -> LanguageModel:
    """Read a model from a Hugging Face folder into float32 on the CPU.

    Raises:
        UserError: the folder, its config or its weights are missing, damaged or of another architecture; a tensor
            is missing, extra or wrongly shaped.
    """
    path = folder / "config.json"
    config, stored, vocab_size = _describe(_read_json(path), str(path))
    form = FORMATS[config.architecture]
    tensors = _read_tensors(folder)
    head = tensors.get(_HEAD)
    if config.tie_word_embeddings and head is not None:
        if not torch.equal(head, tensors.get(form.embedding, head)):
            raise UserError(f"{path}: tie_word_embeddings is true, but {_HEAD} and {form.embedding} differ.")
        del tensors[_HEAD]
    model = empty_model(config, vocab_size).to_empty(device="cpu")
    for name in (form.embedding, _HEAD):  # vocabularies that are not a multiple of 64
        tensor = tensors.get(name)
        if tensor is not None and tensor.ndim == 2 and len(tensor) == stored < model.padded_vocab_size:
            tensors[name] = torch.cat([tensor, tensor.new_zeros(model.padded_vocab_size - stored, tensor.shape[1])])
    assign_weights(model, tensors, str(folder))
    return model


def hub_model(values: dict[str, Any], where: str) -> LanguageModel:
    """The model that the ``values`` of a config.json describe, on torch's default device, with arbitrary weights.

    Its vocabulary has just the rows that the folder stores, without padding of ours.

    Raises:
        UserError: hgrnx has no such model; ``where`` says in which file.
    """
    config, stored, vocab_size = _describe(values, where)
    model = model_class(config)(config, vocab_size)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if any(parameter is rows for rows in model._vocabulary_parameters()):
                setattr(module, name, torch.nn.Parameter(parameter.new_empty(stored, parameter.shape[1])))
    model.padded_vocab_size = stored
    return model


def assign_weights(model: LanguageModel, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy ``tensors`` into ``model`` by name, whatever their precision.

    Raises:
        UserError: a tensor is missing, extra, wrongly shaped or not finite; ``where`` says in which file or folder.
    """
    parameters = dict(model.named_parameters())
    problems = [f"{name} is missing" for name in parameters.keys() - tensors.keys()]
    problems += [f"{name} does not belong to this model" for name in tensors.keys() - parameters.keys()]
    for name in parameters.keys() & tensors.keys():
        wanted, given = tuple(parameters[name].shape), tuple(tensors[name].shape)
        if wanted != given:
            problems.append(f"{name} has shape {list(given)}, not {list(wanted)}")
        elif not tensors[name].isfinite().all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"The weights in {where} do not fit the model: {'; '.join(sorted(problems)[:8])}{more}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _describe(values: dict[str, Any], where: str) -> tuple[ModelConfig, int, int]:
    """The model's config, the rows of its stored vocabulary, and how many of them stand for a token.

    ``hgrnx_vocab_size`` says so where some rows are another library's padding.
    """
    known = {form.model_type: name for name, form in FORMATS.items()}
    architecture = known.get(str(values.get("model_type")))
    if architecture is None:
        can = ", ".join(f"'{name}'" for name in known)
        raise UserError(f"{where}: model_type is {values.get('model_type')!r}; hgrnx can load {can}.")
    config = _read_config(architecture, FORMATS[architecture], values, where)
    stored = values.get("vocab_size", 32000)
    vocab_size = values.get("hgrnx_vocab_size", stored)
    if not isinstance(vocab_size, int) or not isinstance(stored, int) or not 0 < vocab_size <= stored:
        raise UserError(f"{where}: vocab_size={stored!r} and hgrnx_vocab_size={vocab_size!r} do not go together.")
    return config, stored, vocab_size


def _read_config(architecture: str, form: FolderFormat, values: dict[str, Any], where: str) -> ModelConfig:
    values = form.lift(values)
    for key, only in form.only.items():
        if values.get(key, only) != only:
            raise UserError(
                f"{where}: {key}={values[key]!r} is an option of {form.library} that hgrnx does not have ({only!r})."
            )
    fields = {name: values.get(name, default) for name, default in form.keys.items()}
    try:
        config = ARCHITECTURES[architecture].model_validate_json(json.dumps(fields))
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{where}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from None
    for key, value in form.derived(config).items():
        if values.get(key) not in (None, value):
            raise UserError(
                f"{where}: {key}={values[key]!r}, but the other settings make it {value!r}; hgrnx has no other."
            )
    return config  # type: ignore[return-value]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a model folder: there is no {path.name}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return values


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``model.safetensors``, or of the files that its index names."""
    files = [folder / _WEIGHTS]
    if not files[0].is_file() and (folder / _INDEX).is_file():
        names = set(_read_json(folder / _INDEX).get("weight_map", {}).values())
        files = [inside(folder, name) for name in sorted(names)]
    if not files or not all(path.is_file() for path in files):
        pickled = " Pickled weights (.bin, .pt) are not read: convert them to safetensors."
        raise UserError(
            f"{folder} lacks {next((path.name for path in files if not path.is_file()), _WEIGHTS)}."
            + (pickled if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) else "")
        )
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}.") from None
    return tensors


def special_ids(tokenizer_dir: Path) -> dict[str, int]:
    """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, as far as the tokenizer names them."""
    path = tokenizer_dir / "tokenizer_config.json"
    if not path.is_file():
        return {}
    names = _read_json(path)
    added = _read_json(tokenizer_dir / "tokenizer.json").get("added_tokens", [])
    ids = {token["content"]: token["id"] for token in added}
    found = {}
    for kind in ("bos", "eos", "pad"):
        token = names.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            found[f"{kind}_token_id"] = ids[token]
    return found
