"""``transformers`` opens hgrnx's folders: importing this module registers their classes with its Auto classes.

    import hgrnx.models.hub
    model = transformers.AutoModelForCausalLM.from_pretrained("folder")

A Transformer's folder is transformers' own and does not need it. An HGRN2's is flash-linear-attention's, which opens
it on a GPU; the class here runs everywhere, and remembers a state of constant size. A Mamba's is transformers' own,
but FLA takes its name for a class that needs a GPU; the one here does not, and trains on a CPU.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hgrnx.models.base import LanguageModel, State
from hgrnx.models.folders import hub_model

# FLA registers its own HGRN2 and Mamba when it is imported, and what comes last counts; on a CPU they would fail.
with contextlib.suppress(ImportError):
    import fla.models.hgrn2  # noqa: F401


class HGRN2HubConfig(PreTrainedConfig):
    """An HGRN2's ``config.json``, with FLA's keys."""

    model_type = "hgrn2"


class MambaHubConfig(PreTrainedConfig):
    """A Mamba's ``config.json``, with transformers' keys."""

    model_type = "mamba"


class LSTMHubConfig(PreTrainedConfig):
    """An LSTM's ``config.json``, with the keys of :class:`hgrnx.config.LSTMConfig`."""

    model_type = "hgrnx-lstm"


class XLSTMHubConfig(PreTrainedConfig):
    """An xLSTM's ``config.json``, with the keys of :class:`hgrnx.config.XLSTMConfig`."""

    model_type = "hgrnx-xlstm"


class StateCache:
    """A model's state in the place where ``transformers`` expects keys and values."""

    is_compileable = False

    def __init__(self, state: State, seen_tokens: int) -> None:
        self.state = state
        self.seen_tokens = seen_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, which the size of the state does not depend on."""
        return self.seen_tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b goes on from what row ``beam_idx[b]`` was (beam search)."""
        self.state = self.state.select(beam_idx)


class HubModel(PreTrainedModel, GenerationMixin):
    """Any :class:`LanguageModel` as ``transformers`` wants it; parameter names are the model's own."""

    _is_stateful = True
    _tied_weights_keys = None  # a tied head is no parameter of its own

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        model = hub_model(config.to_dict(), str(config.name_or_path or "config.json"))
        for name, child in model.named_children():
            self.add_module(name, child)
        # Its parameters are here already, under its own names: it must not be a child as well.
        object.__setattr__(self, "language_model", model)
        self.language_model: LanguageModel
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: the folder has all weights."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first call makes the cache

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: StateCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **loss_arguments: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, T, V] in float32 (of the last ``logits_to_keep`` tokens where it is not 0), and the cache.

        Tokens with ``attention_mask`` 0 (padding on either side) leave the state as it is. ``labels`` are shifted
        here, as everywhere in ``transformers``.
        """
        model = self.language_model
        state = None if past_key_values is None else past_key_values.state
        tokens = input_ids.shape[1]
        mask_BT = None if attention_mask is None else attention_mask[:, -tokens:].bool()
        if mask_BT is None or bool(mask_BT.all()):
            hidden_BTD, state = model.rows(input_ids, None, state)
        else:
            # Models take padding at the end only: the valid tokens are moved to the front, and their results back.
            order_BT = (~mask_BT).int().argsort(dim=1, stable=True)
            moved_BTD, state = model.rows(input_ids.gather(1, order_BT), mask_BT.sum(1), state)
            hidden_BTD = torch.empty_like(moved_BTD)
            hidden_BTD.scatter_(1, order_BT[..., None].expand_as(moved_BTD), moved_BTD)
        head_VD = model.head_weight[: model.vocab_size]
        logits_BTV = (hidden_BTD[:, -logits_to_keep:] @ head_VD.to(hidden_BTD.dtype).T).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=model.vocab_size, **loss_arguments)
        cache = None
        if use_cache or (use_cache is None and not self.training):
            seen = 0 if past_key_values is None else past_key_values.seen_tokens
            cache = StateCache(state, seen + tokens)
        output = CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=cache)
        return output.to_tuple() if return_dict is False else output


class HGRN2HubModel(HubModel):
    """HGRN2."""

    config_class = HGRN2HubConfig


class MambaHubModel(HubModel):
    """Mamba."""

    config_class = MambaHubConfig


class LSTMHubModel(HubModel):
    """LSTM."""

    config_class = LSTMHubConfig


class XLSTMHubModel(HubModel):
    """xLSTM."""

    config_class = XLSTMHubConfig


for _model in (HGRN2HubModel, MambaHubModel, LSTMHubModel, XLSTMHubModel):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModelForCausalLM.register(_model.config_class, _model, exist_ok=True)
