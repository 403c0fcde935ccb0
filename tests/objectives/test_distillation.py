from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hgrnx.config import HGRN2Config, ModelConfig, TransformerConfig
from hgrnx.errors import UserError
from hgrnx.models import LanguageModel, build_model
from hgrnx.objectives import Distillation, LiveTeacher, NextToken, ObjectiveModule, ObjectiveOutput

VOCAB = 90
CONFIG = HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16)


def make(seed: int, size: int = 32, vocab: int = VOCAB) -> LanguageModel:
    model = build_model(CONFIG.model_copy(update={"hidden_size": size}), vocab, seed)
    with torch.no_grad():  # far from the uniform distribution of a fresh model
        for parameter in model.parameters():
            parameter.mul_(6)
        model.head_weight[vocab:] = 9.0  # the vocabulary's padding must not matter
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (3, 13), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[1, 5:] = -100
    return tokens[:, :-1], targets


def run(objective: NextToken | Distillation, model: LanguageModel) -> tuple[ObjectiveOutput, dict[str, Tensor]]:
    output = ObjectiveModule(model, objective)(*batch())
    model.zero_grad()
    output.loss_sum.backward()
    return output, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def by_hand(
    student: LanguageModel, teachers: list[LanguageModel], weight: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, cross-entropy and KL, written out with whole logits in float64."""
    inputs, targets = batch()
    valid = targets != -100
    logits = student(inputs)[valid].double()
    cross_entropy = F.cross_entropy(logits, targets[valid], reduction="sum")
    with torch.no_grad():
        soft = torch.stack([(t(inputs)[valid].double() / temperature).softmax(-1) for t in teachers]).mean(0)
    kl = (soft * (soft.log() - (logits / temperature).log_softmax(-1))).sum()
    return (1 - weight) * cross_entropy + weight * temperature**2 * kl, cross_entropy, kl


def test_next_token_is_the_summed_cross_entropy() -> None:
    model = make(0)
    output, gradients = run(NextToken(), model)
    wanted, _, _ = by_hand(model, [model], 0.0, 1.0)
    torch.testing.assert_close(output.loss_sum.double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(output.metrics, {"cross_entropy": output.loss_sum.detach()})
    assert int(output.count) == 12 + 5 + 12
    for name, wanted_gradient in zip(
        gradients, torch.autograd.grad(wanted, list(model.parameters()), allow_unused=True), strict=True
    ):
        torch.testing.assert_close(gradients[name], wanted_gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 4.0)])
@pytest.mark.parametrize("teachers", [1, 2])
def test_distillation_is_the_weighted_sum(weight: float, temperature: float, teachers: int) -> None:
    student = make(0)
    models = [make(seed, size=16 * seed) for seed in range(1, teachers + 1)]
    output, gradients = run(Distillation(LiveTeacher(models), weight, temperature), student)
    loss, cross_entropy, kl = by_hand(student, models, weight, temperature)
    torch.testing.assert_close(output.loss_sum.double(), loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(output.metrics["cross_entropy"].double(), cross_entropy.detach(), rtol=1e-4, atol=0)
    torch.testing.assert_close(output.metrics["kl"].double(), kl.detach(), rtol=1e-4, atol=0)
    assert not output.metrics["kl"].requires_grad
    for name, wanted in zip(
        gradients, torch.autograd.grad(loss, list(student.parameters()), allow_unused=True), strict=True
    ):
        torch.testing.assert_close(gradients[name], wanted, rtol=1e-3, atol=1e-4, msg=name)


def assert_gradients(found: dict[str, Tensor], loss: Tensor, student: LanguageModel) -> None:
    wanted = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    for (name, gradient), expected in zip(found.items(), wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4, msg=name)


def test_an_ensemble_of_several_architectures_averages_their_probabilities() -> None:
    student = make(0)
    transformer: ModelConfig = TransformerConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
    )
    other = build_model(transformer, VOCAB, 5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(6)
    models = [make(1, size=48), other]
    output, gradients = run(Distillation(LiveTeacher(models), 0.4, 2.0), student)
    loss, _, kl = by_hand(student, models, 0.4, 2.0)
    torch.testing.assert_close(output.metrics["kl"].double(), kl.detach(), rtol=1e-4, atol=0)
    assert_gradients(gradients, loss, student)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_reverse_kl_is_that_of_the_student(temperature: float) -> None:
    student, teacher = make(0), make(1)
    output, gradients = run(Distillation(LiveTeacher([teacher]), 0.4, temperature, reverse_kl=True), student)
    inputs, targets = batch()
    valid = targets != -100
    log_p = (student(inputs)[valid].double() / temperature).log_softmax(-1)
    log_q = (teacher(inputs)[valid].double() / temperature).log_softmax(-1).detach()
    kl = (log_p.exp() * (log_p - log_q)).sum()
    cross_entropy = F.cross_entropy(student(inputs)[valid].double(), targets[valid], reduction="sum")
    torch.testing.assert_close(output.metrics["kl"].double(), kl.detach(), rtol=1e-4, atol=0)
    assert_gradients(gradients, 0.6 * cross_entropy + 0.4 * temperature**2 * kl, student)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_hidden_states_are_drawn_to_the_teachers(weight: float) -> None:
    student, models = make(0), [make(1), make(2)]
    output, gradients = run(Distillation(LiveTeacher(models), weight, 2.0, hidden_weight=3.0), student)
    inputs, targets = batch()
    valid = targets != -100
    ours = student.hidden(inputs)[0][valid].double()
    distance = torch.zeros((), dtype=torch.float64)
    for model in models:
        theirs = model.hidden(inputs)[0][valid].double().detach()
        cosine = (ours * theirs).sum(-1) / (ours.norm(dim=-1) * theirs.norm(dim=-1))
        distance = distance + 0.5 * (1 - cosine).sum()
    loss, _, _ = by_hand(student, models, weight, 2.0)
    torch.testing.assert_close(output.loss_sum.double(), loss + 3.0 * distance, rtol=1e-4, atol=0)
    torch.testing.assert_close(output.metrics["hidden_distance"].double(), distance.detach(), rtol=1e-4, atol=0)
    assert ("kl" in output.metrics) == (weight > 0)
    assert_gradients(gradients, loss + 3.0 * distance, student)
    same, _ = run(Distillation(LiveTeacher([make(0)]), 0.0, hidden_weight=1.0), student)
    assert abs(float(same.metrics["hidden_distance"])) < 1e-4


def test_hidden_states_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match="student's are 32 wide and the teacher's 48"):
        run(Distillation(LiveTeacher([make(1, size=48)]), 0.5, hidden_weight=1.0), make(0))


def test_weight_and_temperature_go_in_a_line_from_the_first_step_to_the_last() -> None:
    teacher = LiveTeacher([make(1)])
    changing = Distillation(teacher, 0.8, 4.0, final_weight=0.0, final_temperature=1.0)
    found = []
    for step in range(5):
        changing.at(step, 5)
        found.append((changing.weight, changing.temperature))
    expected = [(0.8, 4.0), (0.6, 3.25), (0.4, 2.5), (0.2, 1.75), (0.0, 1.0)]
    assert found == [pytest.approx(pair) for pair in expected]
    assert found[-1][0] == 0.0, "the teacher does not run"
    changing.at(2, 5)
    output, _ = run(changing, make(0))
    wanted, _ = run(Distillation(teacher, changing.weight, 2.5), make(0))
    assert torch.equal(output.loss_sum, wanted.loss_sum)
    constant = Distillation(teacher, 0.3, 1.7)
    constant.at(3, 7)
    assert (constant.weight, constant.temperature) == (0.3, 1.7), "to the last bit"


def test_weight_zero_is_next_token_bit_for_bit_and_never_asks_the_teacher() -> None:
    class Silent:
        vocab_size = VOCAB

        def signal(self, *arguments: object) -> object:
            raise AssertionError("the teacher ran")

    plain, plain_gradients = run(NextToken(), make(0))
    output, gradients = run(Distillation(Silent(), 0.0, 2.0), make(0))  # type: ignore[arg-type]
    assert torch.equal(output.loss_sum, plain.loss_sum)
    assert output.metrics.keys() == {"cross_entropy"}
    for name, gradient in gradients.items():
        assert torch.equal(gradient, plain_gradients[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_copy_of_the_teacher_has_nothing_to_learn(precision: str) -> None:
    student = make(0)
    distill = Distillation(LiveTeacher([make(0), make(0)], precision=precision), 1.0, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        output, gradients = run(distill, student)
    assert abs(float(output.metrics["kl"])) < 1e-4, "teacher and student must round alike"
    assert abs(float(output.loss_sum.detach())) < 1e-3
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert largest < 1e-2, "with kl 0 the gradient is rounding"


def test_teacher_stays_as_it_is() -> None:
    teacher = make(1).train()
    before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    student = make(0)
    module = ObjectiveModule(student, Distillation(LiveTeacher([teacher]), 0.5))
    module(*batch()).loss_sum.backward()
    assert not teacher.training
    for name, parameter in teacher.named_parameters():
        assert parameter.grad is None and not parameter.requires_grad
        assert torch.equal(parameter, before[name]), name
    # What the engine, the optimizer and the checkpoint see is the student alone.
    assert {name for name, _ in module.named_parameters()} == {
        f"model.{name}" for name, _ in student.named_parameters()
    }
    assert len(list(module.modules())) == len(list(student.modules())) + 1


def test_packed_documents_are_separate_for_teacher_and_student() -> None:
    student, teacher = make(0), make(1)
    objective = Distillation(LiveTeacher([teacher]), 0.5, 2.0)
    inputs, targets = batch()
    packed = objective(student, inputs.reshape(1, -1), targets.reshape(1, -1), torch.tensor([0, 12, 24, 36]))
    rows = objective(student, inputs, targets)
    torch.testing.assert_close(packed.loss_sum, rows.loss_sum, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(packed.metrics, rows.metrics, rtol=1e-5, atol=1e-4)


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(UserError, match="teacher knows 80 tokens, the student 90"):
        Distillation(LiveTeacher([make(1, vocab=80)]), 0.5)(make(0), *batch())
    with pytest.raises(UserError, match=r"\[80, 90\]"):
        LiveTeacher([make(1, vocab=80), make(2)])


def test_bfloat16_teacher_halves_its_linear_weights() -> None:
    model = make(1)
    exact = LiveTeacher([make(1)]).signal(batch()[0])
    signal = LiveTeacher([model], precision="bf16").signal(batch()[0])
    assert model.get_parameter("model.layers.0.attn.q_proj.weight").dtype == torch.bfloat16
    assert exact.models is not None and signal.models is not None
    assert signal.models[0][1].dtype == torch.bfloat16, "the head's product is the largest of all"
    error = (signal.models[0][0].float() - exact.models[0][0]).norm() / exact.models[0][0].norm()
    assert 0 < error < 0.05
