"""How each architecture's config is written in config.json: as the library does whose weights it shares, if any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hgrnx.config import ARCHITECTURES, HGRN2Config, MambaConfig, TransformerConfig
from hgrnx.models.hgrn2 import intermediate_size

JSON = dict[str, Any]


@dataclass(frozen=True)
class FolderFormat:
    """config.json of one architecture, and the names of its vocabulary's weights."""

    library: str
    """Whose keys and names these are."""
    model_type: str
    class_name: str
    """What the library calls the model's class."""
    keys: JSON
    """The config fields, with the library's values where config.json has none."""
    embedding: str
    """Name of the embedding's weight. The head's is ``lm_head.weight`` everywhere."""
    only: JSON = field(default_factory=dict)
    """Options of the library of which hgrnx has one setting."""
    derived: Callable[[Any], JSON] = lambda config: {}
    """Further keys, which follow from the config; a folder that says otherwise is refused."""
    lift: Callable[[JSON], JSON] = lambda values: values
    """From what the library may write to ``keys``."""
    hub_class: str | None = None
    """Class of :mod:`hgrnx.models.hub` that a folder names for ``trust_remote_code``; None where transformers itself
    has one that works everywhere."""


def _hgrn2_derived(config: HGRN2Config) -> JSON:
    return {
        "num_heads": config.hidden_size // config.expand_ratio,
        "intermediate_size": intermediate_size(config),
        "initializer_range": config.spread,
    }


def _hgrn2_lift(values: JSON) -> JSON:
    values = dict(values)
    heads = values.pop("num_heads", None)  # FLA looks at it only where there is no expand_ratio
    if values.get("hidden_ratio", 4) is None:
        values["hidden_ratio"] = 4
    if values.get("expand_ratio", 128) is None and isinstance(heads, int):
        values["expand_ratio"] = values["hidden_size"] // heads
    return values


def _llama_derived(config: TransformerConfig) -> JSON:
    return {
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "initializer_range": config.spread,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }


def _llama_lift(values: JSON) -> JSON:
    """transformers before version 5 has ``rope_theta`` at the top and ``rope_scaling`` beside it."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta = rope.get("rope_theta", values.get("rope_theta", 10_000.0))
    return {**values, "rope_theta": theta, "rope_parameters": {"rope_type": "default", **rope, "rope_theta": theta}}


def _mamba_derived(config: MambaConfig) -> JSON:
    rank = "auto" if config.time_step_rank is None else config.time_step_rank
    return {"intermediate_size": config.intermediate_size, "time_step_rank": rank}


def _mamba_lift(values: JSON) -> JSON:
    return {**values, "time_step_rank": None} if values.get("time_step_rank") == "auto" else values


def _own(architecture: str, class_name: str) -> FolderFormat:
    """No library has these weights: all config fields, under their own names."""
    fields = ARCHITECTURES[architecture]().model_dump(mode="json", exclude={"architecture"})
    return FolderFormat(
        "hgrnx", f"hgrnx-{architecture}", class_name, fields, "embedding.weight", hub_class=f"{class_name}Hub"
    )


FORMATS: dict[str, FolderFormat] = {
    "hgrn2": FolderFormat(
        library="FLA",
        model_type="hgrn2",
        class_name="HGRN2ForCausalLM",
        keys={
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "expand_ratio": 128,
            "hidden_ratio": 4,
            "use_lower_bound": True,
            "use_short_conv": False,
            "conv_size": 4,
            "norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "initializer_range": 0.02,
        },
        embedding="model.embeddings.weight",
        only={
            "hidden_act": "swish",
            "elementwise_affine": True,
            "attn": None,
            "attnres_block_size": None,
        },
        derived=_hgrn2_derived,
        lift=_hgrn2_lift,
        hub_class="HGRN2Hub",
    ),
    "transformer": FolderFormat(
        library="transformers",
        model_type="llama",
        class_name="LlamaForCausalLM",
        keys={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "initializer_range": 0.02,
        },
        embedding="model.embed_tokens.weight",
        only={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        derived=_llama_derived,
        lift=_llama_lift,
    ),
    "mamba": FolderFormat(
        library="transformers",
        model_type="mamba",
        class_name="MambaForCausalLM",
        keys={
            "hidden_size": 768,
            "num_hidden_layers": 32,
            "state_size": 16,
            "expand": 2,
            "conv_kernel": 4,
            "time_step_rank": None,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "initializer_range": 0.1,
            "initializer_gain": 1.0,
        },
        embedding="backbone.embeddings.weight",
        only={"hidden_act": "silu", "use_bias": False, "use_conv_bias": True},
        derived=_mamba_derived,
        lift=_mamba_lift,
    ),
    "lstm": _own("lstm", "LSTM"),
    "xlstm": _own("xlstm", "XLSTM"),
}
