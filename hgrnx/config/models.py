"""The model section of a recipe: one config per architecture, told apart by the key ``architecture``."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from hgrnx.config.sections import Section


class HGRN2Config(Section):
    """HGRN2 (arXiv 2404.07904); keys are those of flash-linear-attention's ``HGRN2Config``."""

    architecture: Literal["hgrn2"] = "hgrn2"
    hidden_size: int = Field(default=256, gt=0)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(default=6, gt=0)
    expand_ratio: int = Field(default=64, gt=0)
    """State size per head: a head has ``expand_ratio`` keys and as many values; heads = hidden_size / expand_ratio."""
    hidden_ratio: int = Field(default=4, gt=0)
    """The gated MLP is ``hidden_ratio * hidden_size * 2/3`` wide, rounded up to a multiple of 256."""
    use_lower_bound: bool = True
    """Learned lower bounds for the forget gates, growing with depth."""
    use_short_conv: bool = False
    """A short causal convolution of each channel before the recurrence's queries, gates and inputs."""
    conv_size: int = Field(default=4, ge=2)
    """Tokens that ``use_short_conv`` sees."""
    norm_eps: float = Field(default=1e-6, gt=0)
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the output head."""
    initializer_range: float | None = Field(default=None, gt=0)
    """Standard deviation of the initial linear and embedding weights; ``hidden_size ** -0.5`` when absent.
    With FLA's 0.02, whatever the width, narrow models learn less: ``hgrnx/recipes/LOG.md``."""

    @property
    def spread(self) -> float:
        """``initializer_range`` as a number."""
        return self.hidden_size**-0.5 if self.initializer_range is None else self.initializer_range

    @model_validator(mode="after")
    def _heads_divide(self) -> HGRN2Config:
        if self.hidden_size % self.expand_ratio:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of expand_ratio={self.expand_ratio}, "
                "because heads = hidden_size / expand_ratio"
            )
        return self


class TransformerConfig(Section):
    """LLaMA (arXiv 2302.13971); keys are those of transformers' ``LlamaConfig``."""

    architecture: Literal["transformer"] = "transformer"
    hidden_size: int = Field(default=256, gt=0)
    """Width of the residual stream."""
    intermediate_size: int = Field(default=768, gt=0)
    """Width of the gated MLP."""
    num_hidden_layers: int = Field(default=6, gt=0)
    num_attention_heads: int = Field(default=4, gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary embedding's wavelengths."""
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the output head."""
    initializer_range: float | None = Field(default=None, gt=0)
    """Standard deviation of the initial linear and embedding weights; ``hidden_size ** -0.5`` when absent.
    With transformers' 0.02, whatever the width, narrow models learn less: ``hgrnx/recipes/LOG.md``."""

    @property
    def spread(self) -> float:
        """``initializer_range`` as a number."""
        return self.hidden_size**-0.5 if self.initializer_range is None else self.initializer_range

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of 2 * num_attention_heads="
                f"{2 * self.num_attention_heads}, because the rotary embedding turns pairs of a head's dimensions"
            )
        return self


class LSTMConfig(Section):
    """Stacked LSTM layers (``torch.nn.LSTM``)."""

    architecture: Literal["lstm"] = "lstm"
    embedding_size: int = Field(default=256, gt=0)
    """Width of the token embedding."""
    hidden_size: int = Field(default=600, gt=0)
    """Units of each layer."""
    num_hidden_layers: int = Field(default=2, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the outputs of every layer but the last that is dropped in training."""
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the output head; a projection from ``hidden_size`` to ``embedding_size``
    comes before it. Untied, the head reads the last layer itself and is ``hidden_size`` wide."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial projection or head."""
    initializer_gain: float = Field(default=1.0, gt=0)
    """Factor on the LSTM's initial matrices, which torch starts uniformly within ``hidden_size ** -0.5``."""

    @model_validator(mode="after")
    def _dropout_has_a_place(self) -> LSTMConfig:
        if self.dropout and self.num_hidden_layers == 1:
            raise ValueError("dropout acts between layers: with num_hidden_layers=1 it must be 0")
        return self


class MambaConfig(Section):
    """Mamba (arXiv 2312.00752); keys are those of transformers' ``MambaConfig``."""

    architecture: Literal["mamba"] = "mamba"
    hidden_size: int = Field(default=256, gt=0)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(default=12, gt=0)
    state_size: int = Field(default=16, gt=0)
    """States of each channel."""
    expand: int = Field(default=2, gt=0)
    """Channels of the mixer, as a multiple of ``hidden_size``."""
    conv_kernel: int = Field(default=4, ge=2)
    """Tokens seen by the convolution before the state."""
    time_step_rank: int | None = Field(default=None, gt=0)
    """Rank of the projection that makes the time steps; hidden_size / 16, rounded up, when absent."""
    layer_norm_epsilon: float = Field(default=1e-5, gt=0)
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the output head."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial embedding and head."""
    initializer_gain: float = Field(default=1.0, gt=0)
    """Factor on the mixers' initial matrices, which mamba_ssm starts uniformly within ``inputs ** -0.5``."""

    @property
    def intermediate_size(self) -> int:
        """Channels of the mixer."""
        return self.expand * self.hidden_size

    @property
    def rank(self) -> int:
        """``time_step_rank`` as a number."""
        return math.ceil(self.hidden_size / 16) if self.time_step_rank is None else self.time_step_rank


class XLSTMConfig(Section):
    """xLSTM (arXiv 2405.04517): mLSTM blocks, with sLSTM blocks among them."""

    architecture: Literal["xlstm"] = "xlstm"
    hidden_size: int = Field(default=256, gt=0)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(default=12, gt=0)
    """Blocks of both kinds."""
    num_heads: int = Field(default=4, gt=0)
    """Heads of each block."""
    slstm_at: tuple[int, ...] = (1,)
    """Places of the sLSTM blocks, counted from 0; all others are mLSTM blocks."""
    tie_word_embeddings: bool = True
    """One matrix for the embedding and the output head."""
    initializer_gain: float = Field(default=1.0, gt=0)
    """Factor on the blocks' initial matrices, which the authors' package starts from N(0, 2 / (5 ``hidden_size``))."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> XLSTMConfig:
        if self.hidden_size % self.num_heads or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be even and a multiple of num_heads={self.num_heads}"
            )
        wrong = sorted({place for place in self.slstm_at if not 0 <= place < self.num_hidden_layers})
        if wrong or len(set(self.slstm_at)) < len(self.slstm_at):
            found = f"{wrong} among them" if wrong else "a place named twice"
            raise ValueError(
                f"slstm_at must name places from 0 to {self.num_hidden_layers - 1}, once each, not {found}"
            )
        return self


ARCHITECTURES: dict[str, type[Section]] = {
    "hgrn2": HGRN2Config,
    "transformer": TransformerConfig,
    "lstm": LSTMConfig,
    "mamba": MambaConfig,
    "xlstm": XLSTMConfig,
}


def _architecture(section: Any) -> str:
    """The tag of a model section, which says hgrn2 where it says nothing."""
    if isinstance(section, dict):
        return str(section.get("architecture", "hgrn2"))
    return str(getattr(section, "architecture", "hgrn2"))


ModelConfig = Annotated[
    Annotated[HGRN2Config, Tag("hgrn2")]
    | Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[LSTMConfig, Tag("lstm")]
    | Annotated[MambaConfig, Tag("mamba")]
    | Annotated[XLSTMConfig, Tag("xlstm")],
    Discriminator(_architecture),
]
"""The config of any architecture."""
