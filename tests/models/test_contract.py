"""What every architecture promises (hgrnx/models/base.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import CONFIGS, VOCAB, lively, tokens
from torch import Tensor

from hgrnx.config import ModelConfig
from hgrnx.models import LanguageModel, build_model, empty_model
from hgrnx.models.base import State
from hgrnx.models.folders import load_folder, save_folder
from hgrnx.models.generation import Sampling, generate
from hgrnx.objectives import Distillation, LiveTeacher, ObjectiveModule
from hgrnx.training.optim import parameter_groups

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
LENGTHS = (1, 17, 70, 5)  # 70 is more than a chunk of any implementation


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


@pytest.fixture
def model(config: ModelConfig) -> LanguageModel:
    return lively(config)


def close(given: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(given, wanted, **TOLERANCE)


def documents() -> tuple[list[Tensor], Tensor, Tensor]:
    """Documents of different lengths, the same packed into one row, and their offsets."""
    separate = [tokens(length, seed=length) for length in LENGTHS]
    return separate, torch.cat(separate)[None], torch.tensor([0, *LENGTHS]).cumsum(0)


def tensors_of(state: State) -> list[Tensor]:
    return list(torch.utils._pytree.tree_leaves(state))


def test_no_token_sees_a_later_one(model: LanguageModel) -> None:
    ids = tokens(2, 90)
    whole, _ = model.hidden(ids)
    for place in (1, 12, 64, 89):
        changed = ids.clone()
        changed[:, place:] = (changed[:, place:] + 1) % VOCAB
        hidden, _ = model.hidden(changed)
        close(hidden[:, :place], whole[:, :place])
        assert not torch.allclose(hidden[:, place], whole[:, place], atol=1e-3)


@pytest.mark.parametrize("cut", [1, 2, 3, 31, 64, 79])
def test_the_state_continues_a_text(model: LanguageModel, cut: int) -> None:
    ids = tokens(2, 80)
    whole, last = model.hidden(ids)
    first, state = model.hidden(ids[:, :cut])
    second, state = model.hidden(ids[:, cut:], state=state)
    close(torch.cat((first, second), 1), whole)
    following = tokens(2, 3, seed=9)
    close(model.hidden(following, state=state)[0], model.hidden(following, state=last)[0])


def test_token_by_token_equals_the_whole(model: LanguageModel) -> None:
    ids = tokens(2, 24)
    whole, _ = model.hidden(ids)
    state = model.init_state(2)
    pieces = []
    for token_B1 in ids.split(1, dim=1):
        hidden, state = model.hidden(token_B1, state=state)
        pieces.append(hidden)
    close(torch.cat(pieces, 1), whole)


def test_the_initial_state_is_that_of_no_text(model: LanguageModel) -> None:
    ids = tokens(3, 20)
    without, after = model.hidden(ids)
    hidden, state = model.hidden(ids, state=model.init_state(3))
    close(hidden, without)
    following = tokens(3, 4, seed=1)
    close(model.hidden(following, state=state)[0], model.hidden(following, state=after)[0])


def test_states_are_trees_of_tensors_with_rows_first(model: LanguageModel) -> None:
    _, state = model.hidden(tokens(3, 7))
    for found in (state, model.init_state(3)):
        assert tensors_of(found)
        assert all(tensor.shape[0] == 3 for tensor in tensors_of(found))


def test_padded_rows_equal_separate_ones(model: LanguageModel) -> None:
    separate, _, _ = documents()
    padded = tokens(len(LENGTHS), max(LENGTHS), seed=3)  # padding is arbitrary
    for row, document in zip(padded, separate, strict=True):
        row[: len(document)] = document
    following = tokens(len(LENGTHS), 6, seed=4)
    # Twice: from nothing, and from states of texts of different lengths.
    state = None
    alone: list[State | None] = [None] * len(LENGTHS)
    for _ in range(2):
        hidden, state = model.rows(padded, torch.tensor(LENGTHS), state)
        ahead, _ = model.rows(following, None, state)
        for n, document in enumerate(separate):
            hidden_alone, alone[n] = model.hidden(document[None], state=alone[n])
            close(hidden[n, : len(document)], hidden_alone[0])
            close(ahead[n], model.hidden(following[n : n + 1], state=alone[n])[0][0])


def test_packed_documents_equal_separate_ones(model: LanguageModel) -> None:
    separate, packed, offsets = documents()
    following = tokens(len(LENGTHS), 6, seed=4)
    for hidden_of in (model.hidden, lambda *arguments: LanguageModel.hidden(model, *arguments)):
        state = None
        alone: list[State | None] = [None] * len(LENGTHS)
        for _ in range(2):
            hidden, state = hidden_of(packed, offsets, state)
            parts = hidden[0].split(LENGTHS)
            ahead, _ = model.hidden(following, state=state)
            for n, document in enumerate(separate):
                hidden_alone, alone[n] = model.hidden(document[None], state=alone[n])
                close(parts[n], hidden_alone[0])
                close(ahead[n], model.hidden(following[n : n + 1], state=alone[n])[0][0])


def test_state_selects_rows(model: LanguageModel) -> None:
    ids = tokens(3, 9)
    _, state = model.hidden(ids)
    chosen = torch.tensor([2, 0, 2, 1])
    following = tokens(4, 5, seed=1)
    hidden, _ = model.hidden(following, state=state.select(chosen))
    for row, source in enumerate(chosen.tolist()):
        together, _ = model.hidden(torch.cat([ids[source], following[row]])[None])
        close(hidden[row], together[0, 9:])


@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_gets_a_finite_gradient(config: ModelConfig, tie: bool) -> None:
    """Also through a state, and also from padded rows."""
    model = lively(config.model_copy(update={"tie_word_embeddings": tie}))
    _, state = model.hidden(tokens(2, 70))
    hidden, _ = model.rows(tokens(2, 12, seed=1), torch.tensor([12, 5]), state)
    (hidden[0].square().mean() + hidden[1, :5].square().mean()).backward()
    if not tie:  # the head is used by who reads the hidden states
        model.head_weight.grad = torch.ones_like(model.head_weight)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_text_in_two_pieces_has_the_gradient_of_the_whole(model: LanguageModel) -> None:
    ids = tokens(2, 40)
    gradients = []
    for pieces in ([40], [17, 23]):
        model.zero_grad()
        state, loss = None, torch.zeros(())
        for piece in ids.split(pieces, dim=1):
            hidden, state = model.hidden(piece, state=state)
            loss = loss + hidden.square().sum()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, wanted in gradients[0].items():
        error = (gradients[1][name] - wanted).norm() / wanted.norm()
        assert error < 1e-4, (name, error)


def test_bfloat16_autocast_stays_close_to_float32(model: LanguageModel) -> None:
    ids = tokens(2, 40)
    exact, _ = model.hidden(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, state = model.hidden(ids[:, :25])
        second, _ = model.hidden(ids[:, 25:], state=state)
    hidden = torch.cat((first, second), 1).float()
    error = (hidden - exact).norm() / exact.norm()
    assert 0 < error < 0.06
    hidden.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_seed_alone_decides_the_weights(config: ModelConfig) -> None:
    model, again, other = build_model(config, VOCAB, 3), build_model(config, VOCAB, 3), build_model(config, VOCAB, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.head_weight, other.head_weight)
    assert (model.head_weight[VOCAB:] == 0).all()


@pytest.mark.parametrize("tie", [True, False])
def test_initialisation_fills_every_parameter(config: ModelConfig, tie: bool) -> None:
    model = empty_model(config.model_copy(update={"tie_word_embeddings": tie}), VOCAB).to_empty(device="cpu")
    assert not list(model.buffers()), "a buffer would be left as it is in memory"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        model.initialize(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name


def test_an_untrained_model_is_indifferent(config: ModelConfig) -> None:
    """Its loss is that of a uniform guess, and no hidden state is out of hand."""
    model = build_model(config, VOCAB).eval()
    logits = model(tokens(4, 64))
    assert logits.shape == (4, 64, VOCAB)
    assert logits.std() < 1.0
    assert logits.isfinite().all()


def test_parameter_counts_add_up(model: LanguageModel) -> None:
    counts = model.parameter_counts()
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["total"] == counts["embedding"] + counts["other"]
    assert counts["embedding"] >= model.head_weight.numel()


def test_flops_grow_with_the_model_and_for_attention_with_the_text(model: LanguageModel, config: ModelConfig) -> None:
    flops = model.flops_per_token(128)
    weights = model.parameter_counts()["other"] + model.vocab_size * model.head_weight.shape[1]
    assert 0.7 * 6 * weights < flops < 3 * 6 * weights
    deeper = empty_model(config.model_copy(update={"num_hidden_layers": 6}), VOCAB)
    assert deeper.flops_per_token(128) > 1.3 * flops
    if config.architecture == "transformer":
        assert model.flops_per_token(256) > flops
    else:
        assert model.flops_per_token(256) == flops


def test_vectors_and_what_decides_gates_do_not_decay(model: LanguageModel) -> None:
    groups = parameter_groups(model, 0.3)
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in free}
    assert {name for name, p in model.named_parameters() if p.ndim == 1} <= names
    assert not any("embed" in name or "proj.weight" in name or "head" in name for name in names)
    for part in model.undecayed:
        assert any(name.endswith(part) for name in names), part


@pytest.mark.parametrize("tie", [True, False])
def test_a_folder_gives_the_model_back(config: ModelConfig, tie: bool, tmp_path: Path) -> None:
    model = lively(config.model_copy(update={"tie_word_embeddings": tie}))
    save_folder(model, tmp_path)
    loaded = load_folder(tmp_path)
    assert loaded.config == model.config
    assert (loaded.vocab_size, loaded.padded_vocab_size) == (VOCAB, 128)
    vocabulary = list(model._vocabulary_parameters())
    for name, parameter in model.named_parameters():
        rows = VOCAB if any(parameter is one for one in vocabulary) else len(parameter)  # its padding is not stored
        assert torch.equal(parameter[:rows], loaded.get_parameter(name)[:rows]), name


def test_generation_continues_the_text(model: LanguageModel) -> None:
    ids = [5, 9, 11]
    for token in generate(model, ids, 6, Sampling(temperature=0)):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)
    assert len(ids) == 9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_architecture_teaches_any_other(config: ModelConfig, precision: str) -> None:
    """A student of this architecture learns from an HGRN2, and the other way round."""
    hgrn2 = CONFIGS["hgrn2"].model_copy(update={"hidden_size": 64})
    for teacher, student in ((hgrn2, config), (config, hgrn2)):
        objective = Distillation(LiveTeacher([lively(teacher, 5)], precision=precision), weight=0.5, temperature=2.0)
        module = ObjectiveModule(build_model(student, VOCAB).train(), objective)
        ids = tokens(2, 13)
        optimizer = torch.optim.AdamW(module.parameters(), 5e-3)
        losses = []
        for _ in range(4):
            output = module(ids[:, :-1], ids[:, 1:])
            optimizer.zero_grad()
            output.loss_sum.backward()
            optimizer.step()
            losses.append(float(output.loss_sum.detach()))
        assert losses[-1] < losses[0]
        assert all(p.grad is not None for p in module.parameters())
