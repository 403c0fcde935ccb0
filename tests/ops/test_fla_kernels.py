"""flash-linear-attention's kernels against the float64 recurrence, on a GPU."""

import pytest
import torch
from recurrence_cases import GATES, NAMES, make_inputs, worst

from hgrnx.ops import gated_linear_recurrence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("gates", [g for g in GATES if g != "closed"])
@pytest.mark.parametrize("shape", [(2, 1, 2, 64, 64), (2, 63, 2, 64, 32), (1, 257, 3, 128, 128)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 3e-2)])
def test_agrees_with_the_reference(
    gates: str, shape: tuple[int, int, int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    inputs = make_inputs(shape, gates)
    inputs[:3] = [x.to(dtype).double() for x in inputs[:3]]
    results = []
    for impl, device in (("reference", "cpu"), ("fla", "cuda")):
        kinds = [torch.float64] * 5 if impl == "reference" else [dtype] * 3 + [torch.float32] * 2
        leaves = [x.to(device, kind).requires_grad_() for x, kind in zip(inputs, kinds)]
        o, final = gated_linear_recurrence(*leaves, impl=impl)
        assert final.dtype in (torch.float32, torch.float64)
        generator = torch.Generator().manual_seed(1)
        seeds = [torch.randn(x.shape, generator=generator).to(x) for x in (o, final)]
        results.append(dict(zip(NAMES, (o, final, *torch.autograd.grad([o, final], leaves, seeds)))))
    truth, ours = results
    if gates in ("1e-4", "1e-30"):  # FLA's gradient of the gates cancels there
        del truth["dlog_f"]
    assert worst(ours, truth) < tolerance


def test_packed_documents_equal_separate_ones() -> None:
    *sequence, states = (x.cuda().float() for x in make_inputs((1, 300, 2, 64, 64), states=3))
    offsets = torch.tensor([0, 1, 130, 300])
    packed, finals = gated_linear_recurrence(*sequence, states, offsets)
    for n, (a, b) in enumerate(zip(offsets[:-1], offsets[1:])):
        o, final = gated_linear_recurrence(*(x[:, a:b] for x in sequence), states[n : n + 1])
        torch.testing.assert_close(packed[:, a:b], o, rtol=5e-3, atol=5e-3)
        torch.testing.assert_close(finals[n : n + 1], final, rtol=5e-3, atol=5e-3)
