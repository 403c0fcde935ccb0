"""The recurrence: every implementation that runs here, forward and backward.

Shapes: B batch, T time, H heads, K keys and V values per head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hgrnx.bench.measure import Case
from hgrnx.ops import available_implementations, gated_linear_recurrence


def op_cases(
    batch: int, time: int, heads: int, head_size: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[Case]:
    """A case for every implementation that can run on ``device``: the one dispatch would choose comes first.

    ``reference`` is the recurrence written down token by token (with ``unbind``). On CPU it runs once with one
    thread and once with all, since more threads often slow it down: its best is what others are compared with.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (batch, time, heads, head_size)
    q, k, v, grad_o, z = (torch.randn(shape, generator=generator).to(device) for _ in range(5))
    log_f = F.logsigmoid(z + 3.0)
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k.sigmoid() * 0.1, v))
    inputs = (q, k, v, log_f.requires_grad_())
    grad_o = grad_o.to(dtype)

    def step_of(impl: str) -> Case:
        def step() -> object:
            o, _ = gated_linear_recurrence(q, k, v, log_f, impl=impl)
            return torch.autograd.grad(o, inputs, grad_o)

        return Case(impl, step, tokens=batch * time, dtype=dtype)

    cases = [step_of(impl) for impl in available_implementations(device.type)]
    threads = torch.get_num_threads()
    if device.type == "cpu" and threads > 1:
        reference = next(case for case in cases if case.name == "reference")
        cases.append(Case("reference, 1 thread", reference.step, reference.tokens, dtype=dtype, threads=1))
    return cases
