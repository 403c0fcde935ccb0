from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hgrnx.config import HGRN2Config, LaunchConfig, TrainingConfig
from hgrnx.errors import UserError
from hgrnx.models import LanguageModel, build_model
from hgrnx.objectives import NextToken, ObjectiveModule, ObjectiveOutput
from hgrnx.training import engine as engine_module
from hgrnx.training.checkpoint import load_checkpoint, save_checkpoint
from hgrnx.training.engine import (
    EngineState,
    TorchEngine,
    build_engine,
    choose_device,
    micro_steps_per_step,
)
from hgrnx.training.optim import MOMENTS, parameter_groups

CONFIG = HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16)
BATCH, LENGTH, VOCABULARY = 6, 12, 300


def global_batch(step: int) -> tuple[Tensor, Tensor, int]:
    """Random tokens, the last targets of every second row left out."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    targets[::2, 7:] = -100
    return inputs, targets, int((targets != -100).sum())


def make_engine(micro: int | None = None, model: LanguageModel | None = None, norm: float = 1e9) -> TorchEngine:
    training = TrainingConfig(batch_size=BATCH, precision="fp32", max_grad_norm=norm)
    module = ObjectiveModule(model or build_model(CONFIG, VOCABULARY, seed=1), NextToken())
    engine = build_engine(module, training, LaunchConfig(engine="torch", micro_batch_size=micro))
    assert isinstance(engine, TorchEngine)
    return engine


def take_step(engine: TorchEngine, step: int, learning_rate: float = 1e-3, scale: float = 1.0) -> float:
    inputs, targets, count = global_batch(step)
    rows = BATCH // engine.micro_steps
    for micro in range(engine.micro_steps):
        part = slice(micro * rows, (micro + 1) * rows)
        output = engine.forward(inputs[part], targets[part])
        engine.backward(output.loss_sum * scale, count, micro == engine.micro_steps - 1)
    return engine.step(learning_rate)


def assert_equal(found: EngineState, expected: EngineState) -> None:
    assert found.optimizer_step == expected.optimizer_step
    assert found.optimizer.keys() == expected.optimizer.keys()
    for ours, theirs in [(found.weights, expected.weights)] + [
        (found.optimizer[m], expected.optimizer[m]) for m in expected.optimizer
    ]:
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_step_is_adamw_on_the_clipped_gradient_of_the_mean_over_valid_tokens() -> None:
    engine = make_engine(norm=0.5)
    found = take_step(engine, 0, learning_rate=3e-4)

    model = build_model(CONFIG, VOCABULARY, seed=1)
    inputs, targets, count = global_batch(0)
    output = ObjectiveModule(model, NextToken())(inputs, targets)
    assert int(output.count) == count
    (output.loss_sum / count).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert found == pytest.approx(float(norm), rel=1e-6)
    assert norm > 0.5
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.mul_(0.5 / norm)
    training = TrainingConfig()
    torch.optim.AdamW(
        parameter_groups(model, training.weight_decay), lr=3e-4, betas=training.betas, eps=training.eps
    ).step()
    weights = engine.weights()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=0, atol=2e-6)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, all tensors taken together."""
    assert found.keys() == expected.keys()
    a, b = (torch.cat([tensors[name].flatten() for name in expected]) for tensors in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_accumulation_gives_the_same_gradient(micro: int) -> None:
    whole, parts = make_engine(), make_engine(micro)
    assert parts.micro_steps == BATCH // micro
    assert take_step(parts, 0) == pytest.approx(take_step(whole, 0), rel=1e-6)
    expected, found = whole.state(), parts.state()
    for moment in MOMENTS:
        assert distance(found.optimizer[moment], expected.optimizer[moment]) < 1e-5
    # AdamW's first step is the gradient's sign: where it is zero but for rounding, the weights may differ.
    assert distance(found.weights, expected.weights) < 1e-4


def test_six_steps_are_three_a_checkpoint_and_three_bit_for_bit(tmp_path: Path) -> None:
    through, first = make_engine(micro=3), make_engine(micro=3)
    for step in range(6):
        take_step(through, step)
    for step in range(3):
        take_step(first, step)
    folder = save_checkpoint(tmp_path, 3, first.state(), {}, keep=1)
    second = make_engine(micro=3, model=build_model(CONFIG, VOCABULARY, seed=77))
    second.load_state(load_checkpoint(folder)[0])
    for step in range(3, 6):
        take_step(second, step)
    assert second.state().optimizer_step == 6
    assert_equal(second.state(), through.state())


def test_saving_changes_nothing_and_shares_no_memory() -> None:
    watched, alone = make_engine(), make_engine()
    for step in range(2):
        take_step(alone, step)
        take_step(watched, step)
        state = watched.state()
        for tensors in (state.weights, *state.optimizer.values()):
            for tensor in tensors.values():
                tensor.fill_(float("nan"))
    assert_equal(watched.state(), alone.state())


def test_the_state_before_the_first_step_is_that_of_a_fresh_optimizer() -> None:
    fresh, loaded = make_engine(), make_engine(model=build_model(CONFIG, VOCABULARY, seed=77))
    state = fresh.state()
    assert state.optimizer_step == 0
    assert not any(tensor.any() for moment in MOMENTS for tensor in state.optimizer[moment].values())
    loaded.load_state(state)
    take_step(fresh, 0)
    take_step(loaded, 0)
    assert_equal(loaded.state(), fresh.state())


def test_names_are_the_model_s_and_a_tied_weight_comes_once() -> None:
    model = build_model(CONFIG, VOCABULARY)
    assert CONFIG.tie_word_embeddings
    names = list(dict(model.named_parameters()))
    state = make_engine(model=model).state()
    for tensors in (state.weights, *state.optimizer.values()):
        assert list(tensors) == names
        assert all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors.values())
    total = sum(tensor.numel() for tensor in state.weights.values())
    assert total == model.parameter_counts()["total"]


def test_a_teacher_held_by_the_objective_is_no_part_of_the_engine() -> None:
    class WithTeacher:
        def __init__(self) -> None:
            self.teacher = build_model(CONFIG, VOCABULARY, seed=5)

        def __call__(
            self,
            model: LanguageModel,
            inputs: Tensor,
            targets: Tensor,
            cu_seqlens: Tensor | None = None,
            chunks: Sequence[int] = (),
        ) -> ObjectiveOutput:
            return NextToken()(model, inputs, targets, cu_seqlens)

    objective = WithTeacher()
    before = {name: weight.clone() for name, weight in objective.teacher.state_dict().items()}
    module = ObjectiveModule(build_model(CONFIG, VOCABULARY, seed=1), objective)
    training = TrainingConfig(batch_size=BATCH, precision="fp32")
    engine = build_engine(module, training, LaunchConfig(engine="torch"))
    assert isinstance(engine, TorchEngine)
    take_step(engine, 0)
    assert engine.weights().keys() == dict(module.model.named_parameters()).keys()
    assert all(torch.equal(weight, before[name]) for name, weight in objective.teacher.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_told_and_changes_nothing(bad: float) -> None:
    engine, other = make_engine(), make_engine()
    for each in (engine, other):
        take_step(each, 0)
    assert not torch.isfinite(torch.tensor(take_step(engine, 1, scale=bad)))
    assert_equal(engine.state(), other.state())
    take_step(engine, 2)
    take_step(other, 2)
    assert_equal(engine.state(), other.state())


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing() -> None:
    engine = make_engine()
    before = engine.state()
    deeper = HGRN2Config(hidden_size=32, num_hidden_layers=3, expand_ratio=16)
    wider = HGRN2Config(hidden_size=48, num_hidden_layers=2, expand_ratio=16)
    with pytest.raises(UserError, match=r"another model.*unknown: .*layers\.2"):
        engine.load_state(make_engine(model=build_model(deeper, VOCABULARY)).state())
    with pytest.raises(UserError, match=r"another model.*shape: .*48\) instead of .*32\)"):
        engine.load_state(make_engine(model=build_model(wider, VOCABULARY)).state())
    short = engine.state()
    del short.optimizer["exp_avg_sq"]
    with pytest.raises(UserError, match="exp_avg_sq"):
        engine.load_state(short)
    assert_equal(engine.state(), before)


def test_the_engine_insists_on_its_number_of_micro_batches() -> None:
    engine = make_engine(micro=3)
    inputs, targets, count = global_batch(0)
    output = engine.forward(inputs[:3], targets[:3])
    with pytest.raises(AssertionError):
        engine.backward(output.loss_sum, count, last_micro=True)
    engine.backward(output.loss_sum, count, last_micro=False)
    with pytest.raises(AssertionError):
        engine.step(1e-3)


def test_bf16_is_autocast_around_float32_weights() -> None:
    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)

        def forward(self, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor | None, chunks: Sequence[int]) -> bool:
            return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16

    for precision in ("fp32", "bf16"):
        training = TrainingConfig(batch_size=2, precision=precision)
        engine = TorchEngine(Spy(), training, LaunchConfig(engine="torch"))  # type: ignore[arg-type]
        assert engine.forward(torch.zeros(1), torch.zeros(1)) == (precision == "bf16")
        assert all(weight.dtype == torch.float32 for weight in engine.weights().values())


def test_a_batch_that_does_not_divide_is_refused() -> None:
    training = TrainingConfig(batch_size=12)
    assert micro_steps_per_step(training, LaunchConfig(), 4) == 1
    assert micro_steps_per_step(training, LaunchConfig(micro_batch_size=2), 2) == 3
    with pytest.raises(UserError, match=r"training\.batch_size=12.*5 processes"):
        micro_steps_per_step(training, LaunchConfig(), 5)
    with pytest.raises(UserError, match=r"launch\.micro_batch_size=4.*6 sequences"):
        micro_steps_per_step(training, LaunchConfig(micro_batch_size=4), 2)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(LaunchConfig(use_gpu=True)) == torch.device("cuda", 1)
    assert choose_device(LaunchConfig()) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"torch sees 2 GPUs.*number 2"):
        choose_device(LaunchConfig(use_gpu=True))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # the launcher shows each process its own
    assert choose_device(LaunchConfig(use_gpu=True)) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"launch\.use_gpu=false"):
        choose_device(LaunchConfig(use_gpu=True))


def test_without_deepspeed_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_RANK", "0")
    module = ObjectiveModule(build_model(CONFIG, VOCABULARY), NextToken())
    with pytest.raises(UserError, match=r"launch\.engine=torch"):
        build_engine(module, TrainingConfig(precision="fp32"), LaunchConfig(engine="deepspeed"))


def test_the_torch_engine_imports_no_deepspeed() -> None:
    code = f"import sys, {engine_module.__name__}, hgrnx.training.checkpoint; assert 'deepspeed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
