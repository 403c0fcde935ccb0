"""torch.compile takes a whole training loss in one graph, with our operators as its nodes.

Not tried here: the transformer has no operator of its own, an xLSTM's graph has every token by itself (it works, but
takes long to make), and torch does not trace an LSTM.
"""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, VOCAB, tokens
from torch import Tensor

from hgrnx.models import build_model
from hgrnx.objectives import NextToken, ObjectiveModule


@pytest.mark.parametrize(("name", "layers"), [("hgrn2", 2), ("mamba", 1)])
def test_the_loss_is_one_graph(name: str, layers: int) -> None:
    config = CONFIGS[name].model_copy(update={"num_hidden_layers": layers})
    module = ObjectiveModule(build_model(config, VOCAB, seed=0), NextToken())
    inputs, targets = tokens(2, 40), tokens(2, 40, seed=1)

    def step(function: object) -> list[Tensor]:
        loss = function(inputs, targets).loss_sum  # type: ignore[operator]
        return [loss, *torch.autograd.grad(loss, list(module.parameters()))]

    compiled = step(torch.compile(module, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled, step(module))
