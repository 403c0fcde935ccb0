"""Whole training steps: our models beside their peers, each in several settings.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hgrnx.bench.measure import Case
from hgrnx.bench.peers import Peer, peers
from hgrnx.config import (
    HGRN2Config,
    LaunchConfig,
    LSTMConfig,
    MambaConfig,
    ModelConfig,
    TrainingConfig,
    TransformerConfig,
    XLSTMConfig,
)
from hgrnx.models import build_model
from hgrnx.objectives import NextToken, ObjectiveModule
from hgrnx.objectives.base import Objective
from hgrnx.training.engine import build_engine

SMALL = HGRN2Config(hidden_size=256, num_hidden_layers=6, expand_ratio=64, tie_word_embeddings=False)
"""13.3M parameters with 16,000 tokens: what one measures with on a CPU."""
SIZES: dict[str, ModelConfig] = {
    "hgrn2": SMALL,
    "transformer": TransformerConfig(tie_word_embeddings=False),
    "lstm": LSTMConfig(tie_word_embeddings=False, dropout=0.0),
    "mamba": MambaConfig(tie_word_embeddings=False),
    "xlstm": XLSTMConfig(tie_word_embeddings=False),
}
"""What is measured of each architecture: about as large as ``SMALL``."""
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
    inputs_BT, targets_BT = random_tokens(batch, time, vocab_size, device)

    def step() -> None:
        output = engine.forward(inputs_BT, targets_BT, None, range(batch))
        engine.backward(output.loss_sum, inputs_BT.numel(), last_micro=True)
        engine.step(1e-4)

    tokens = batch * time
    return Case(name, step, tokens, tokens * model.flops_per_token(time), _dtype(precision))


def peer_case(
    name: str, peer: Peer, batch: int, time: int, device: torch.device, precision: str, vocab_size: int = VOCAB_SIZE
) -> Case:
    """The same step, with somebody else's model: fused AdamW and clipping as ours."""
    model = peer.model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs_BT, targets_BT = random_tokens(batch, time, vocab_size, device)
    bf16 = precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = peer.loss(model, inputs_BT, targets_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Case(name, step, batch * time, batch * time * peer.flops_per_token, _dtype(precision))


def model_cases(
    architecture: str, batch: int, time: int, device: torch.device, precisions: tuple[str, ...], compiled: bool
) -> list[Case]:
    """Ours and its peers of the same size, each in every setting asked for."""
    config = SIZES[architecture]
    cases = [training_case(f"{architecture}, {p}", config, batch, time, device, p) for p in precisions]
    for precision in precisions:
        for peer in peers(config, VOCAB_SIZE, time, device):
            cases.append(peer_case(f"{peer.name}, {precision}", peer, batch, time, device, precision))
        if compiled:
            for peer in peers(config, VOCAB_SIZE, time, device):
                peer.model.compile()
                cases.append(peer_case(f"{peer.name}, compiled, {precision}", peer, batch, time, device, precision))
    return cases


def random_tokens(batch: int, time: int, vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, vocab_size, (batch, time + 1), generator=generator).to(device)
    return tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32
