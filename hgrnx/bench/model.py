"""Whole training steps: our models beside those of ``transformers``, each in several settings.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hgrnx.bench.measure import Case
from hgrnx.config import HGRN2Config, LaunchConfig, ModelConfig, TrainingConfig
from hgrnx.models import build_model
from hgrnx.objectives import NextToken, ObjectiveModule
from hgrnx.objectives.base import Objective
from hgrnx.training.engine import build_engine

SMALL = HGRN2Config(hidden_size=256, num_hidden_layers=6, expand_ratio=64, tie_word_embeddings=False)
"""13.3M parameters with 16,000 tokens: what one measures with on a CPU."""
VOCAB_SIZE = 16_000


def training_case(
    name: str,
    config: ModelConfig,
    batch: int,
    time: int,
    device: torch.device,
    precision: str,
    objective: Objective | None = None,
    vocab_size: int = VOCAB_SIZE,
) -> Case:
    """Forward, backward, clipping and AdamW by hgrnx's own torch engine on random tokens."""
    training = TrainingConfig.model_validate({"batch_size": batch, "seq_len": time, "precision": precision})
    launch = LaunchConfig(engine="torch", use_gpu=device.type == "cuda")
    model = build_model(config, vocab_size)
    engine = build_engine(ObjectiveModule(model, objective or NextToken()), training, launch)
    inputs_BT, targets_BT = _tokens(batch, time, vocab_size, device)

    def step() -> None:
        output = engine.forward(inputs_BT, targets_BT)
        engine.backward(output.loss_sum, inputs_BT.numel(), last_micro=True)
        engine.step(1e-4)

    tokens = batch * time
    return Case(name, step, tokens, tokens * model.flops_per_token(time), _dtype(precision))


def peer_case(
    name: str,
    model: nn.Module,
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    flops_per_token: float,
    batch: int,
    time: int,
    device: torch.device,
    precision: str,
    vocab_size: int = VOCAB_SIZE,
) -> Case:
    """The same step, with somebody else's model: fused AdamW and clipping as ours."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs_BT, targets_BT = _tokens(batch, time, vocab_size, device)
    bf16 = precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(model, inputs_BT, targets_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Case(name, step, batch * time, batch * time * flops_per_token, _dtype(precision))


def model_cases(batch: int, time: int, device: torch.device, precisions: tuple[str, ...], compiled: bool) -> list[Case]:
    """HGRN2 and ``transformers``' Llama of the same size, each in every setting asked for."""
    cases = [training_case(f"HGRN2, {p}", SMALL, batch, time, device, p) for p in precisions]
    for precision in precisions:
        for name, model, loss_of, flops in _transformers_llama(time, compiled):
            cases.append(peer_case(f"{name}, {precision}", model, loss_of, flops, batch, time, device, precision))
    return cases


def _transformers_llama(
    time: int, compiled: bool
) -> Iterator[tuple[str, nn.Module, Callable[[nn.Module, Tensor, Tensor], Tensor], float]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=SMALL.hidden_size,
        intermediate_size=768,
        num_hidden_layers=SMALL.num_hidden_layers,
        num_attention_heads=4,
        max_position_embeddings=max(2048, time),
        use_cache=False,
    )
    weights = sum(
        parameter.numel() for name, parameter in LlamaForCausalLM(config).named_parameters() if "embed" not in name
    )
    # 2 per weight; attention's two products over on average half the sequence; three times for forward and backward.
    flops = 3.0 * (2 * weights + 2 * config.num_hidden_layers * config.hidden_size * time)

    def loss_of(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        # shift_labels: the targets are shifted already.
        return model(input_ids=inputs_BT, labels=targets_BT, shift_labels=targets_BT).loss

    yield "transformers' Llama", LlamaForCausalLM(config), loss_of, flops
    if compiled:
        model = LlamaForCausalLM(config)
        model.compile()
        yield "transformers' Llama, compiled", model, loss_of, flops


def _tokens(batch: int, time: int, vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, vocab_size, (batch, time + 1), generator=generator).to(device)
    return tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32
