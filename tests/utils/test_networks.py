"""Helpers around networks."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from components.episode_buffer import EpisodeBatch
from modules.agents import REGISTRY
from utils.networks import (
    NonFiniteError,
    Packing,
    blend,
    build_optimiser,
    copy_state,
    keep,
    unroll,
    unroll_network,
    unroll_network_features,
)


def net(value, counter=0.0):
    """A parameter tensor and a buffer that hold the values."""
    module = nn.Linear(2, 1)
    module.register_buffer("counter", torch.tensor(counter))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def values(module):
    return {p.item() for parameter in module.parameters() for p in parameter.flatten()}


def test_blend_moves_a_share_of_the_way():
    target, source = net(1.0), net(3.0, counter=7.0)
    blend(target, source, 0.25)
    assert values(target) == {1.5}  # .75 * 1 + .25 * 3
    assert values(source) == {3.0}
    assert target.counter.item() == 7.0
    blend(target, source, 0.5)
    assert values(target) == {2.25}


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_optimisers_step_as_torchs_plain_ones_do_and_go_on_from_what_those_saved(name):
    args = SimpleNamespace(optimizer=name, optim_eps=1e-5, optim_alpha=0.99)
    ours, plain = nn.Linear(5, 4), nn.Linear(5, 4)
    plain.load_state_dict(ours.state_dict())
    optimiser = build_optimiser(list(ours.parameters()), 0.1, args)
    kind = {"rmsprop": partial(torch.optim.RMSprop, alpha=0.99), "adam": torch.optim.Adam}[name]
    plain_optimiser = kind(plain.parameters(), lr=0.1, eps=1e-5)
    for step in range(4):
        if step == 2:
            optimiser.load_state_dict(copy.deepcopy(plain_optimiser.state_dict()))
        for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimiser.step()
        plain_optimiser.step()
        for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_blend_of_one_copies_and_does_not_share():
    target, source = net(1.0), net(3.0, counter=7.0)
    blend(target, source, 1.0)
    assert values(target) == {3.0}
    assert target.counter.item() == 7.0
    blend(source, net(5.0), 1.0)
    assert values(target) == {3.0}


def test_blend_leaves_no_graph_and_keeps_parameters_trainable():
    target, source = net(1.0), net(3.0)
    blend(target, source, 0.25)
    for parameter in target.parameters():
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert parameter.grad is None


def test_blend_refuses_another_architecture():
    with pytest.raises(ValueError, match="1 parameters cannot follow 2"):
        blend(nn.Linear(2, 2, bias=False), nn.Linear(2, 2), 0.5)


def test_blend_moves_what_two_modules_share_once():
    def twice():
        layer = nn.Linear(1, 1, bias=False)
        return nn.Sequential(layer, layer)

    target, source = twice(), twice()
    nn.init.constant_(target[0].weight, 0.0)
    nn.init.constant_(source[0].weight, 1.0)
    blend(target, source, 0.5)
    assert target[1].weight.item() == 0.5


def test_copy_state_prefers_the_file(tmp_path):
    path = tmp_path / "target.th"
    torch.save(net(5.0).state_dict(), path)
    target = net(1.0)
    copy_state(path, target, net(3.0))
    assert values(target) == {5.0}


def test_copy_state_without_a_file_takes_the_source(tmp_path):
    target, source = net(1.0), net(3.0)
    copy_state(tmp_path / "missing.th", target, source)
    assert values(target) == {3.0}
    blend(source, net(9.0), 1.0)
    assert values(target) == {3.0}


class Batch:
    batch_size, max_seq_length = 2, 3


class StepController:
    """A controller as PyMARL's: outputs are the number of steps since its memory began."""

    def init_hidden(self, batch_size):
        self.steps = torch.zeros(batch_size)

    def forward(self, batch, t):
        assert self.steps[0] == t
        self.steps = self.steps + 1
        return self.steps.view(-1, 1, 1).expand(-1, 2, 4)


class SequenceController(StepController):
    def unroll(self, batch):
        return "one call"


def test_unroll_steps_a_controller_of_pymarl():
    controller = StepController()
    for _ in range(2):  # the second time from fresh memory
        outputs = unroll(controller, Batch())
        assert outputs.shape == (2, 3, 2, 4)
        for t in range(3):
            assert (outputs[:, t] == t + 1).all()


def test_unroll_uses_the_controllers_own():
    assert unroll(SequenceController(), Batch()) == "one call"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_error_names_the_first_bad_term(bad):
    terms = {"td_loss": torch.tensor(1.5), "penalty": torch.tensor(bad), "gradient norm": torch.tensor(math.nan)}
    error = NonFiniteError(terms)
    assert isinstance(error, ArithmeticError)
    assert error.culprit == "penalty"
    assert error.terms["td_loss"] == 1.5
    assert str(error).startswith(f"penalty is {bad}; terms: ")
    assert "td_loss" in str(error)


def test_non_finite_error_without_a_bad_term():
    assert NonFiniteError({"td_loss": torch.tensor(1.0)}).culprit == "unknown"


@pytest.mark.parametrize("lengths", [[1, 3, 2], [4, 1, 4], [2, 2]])
def test_packing_leaves_padding_out_and_comes_back(lengths):
    T, B = 4, len(lengths)
    packing = Packing(torch.tensor(lengths), T)
    x = torch.randn(T, B, 2)
    rows = packing.pack(x)
    longest_first = sorted(range(B), key=lambda b: -lengths[b])
    expected = [x[t, b] for t in range(T) for b in longest_first if t < lengths[b]]
    assert torch.equal(rows, torch.stack(expected))
    assert packing.counts == [sum(length > t for length in lengths) for t in range(max(lengths))]
    back = packing.unpack(rows)
    for t in range(T):
        for b in range(B):
            assert torch.equal(back[t, b], x[t, b] if t < lengths[b] else torch.zeros(2))


@pytest.mark.parametrize("agent", ["rnn", "rnn_norm", "mlp"])
def test_packed_sequences_give_what_padded_ones_give(agent):
    torch.manual_seed(0)
    T, B, N, lengths = 6, 4, 2, torch.tensor([2, 6, 1, 4])
    network = REGISTRY[agent](5, SimpleNamespace(rnn_hidden_dim=7, n_actions=3)).double()
    inputs = torch.randn(T, B, N, 5, dtype=torch.float64, requires_grad=True)
    played = (torch.arange(T).view(T, 1) < lengths).view(T, B, 1, 1)
    weights = torch.randn(T, B, N, 3, dtype=torch.float64) * played
    found, expected = (unroll_network_features(network, inputs, p) for p in (Packing(lengths, T), None))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs * played)
    assert torch.equal(unroll_network(network, inputs, Packing(lengths, T)), found[0])
    gradients = [
        torch.autograd.grad((values * weights).sum(), [inputs, *network.parameters()], allow_unused=True)
        for values, _ in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_packing_is_for_batches_in_which_it_pays():
    def batch(*lengths):
        filled = (torch.arange(10).view(1, 10, 1) < torch.tensor(lengths).view(-1, 1, 1)).long()
        batch = EpisodeBatch({}, {}, len(lengths), 10)
        batch.update({"filled": filled}, mark_filled=False)
        return batch

    assert Packing.of(batch(10, 10, 9)) is None
    assert Packing.of(batch(10, 5, 4)).counts == [3, 3, 3, 3, 2, 1, 1, 1, 1, 1]
    assert Packing.of(batch(10, 5, 0)) is None  # an empty sequence has no place in it


def test_a_subclass_that_overrides_unroll_alone_is_asked():
    class Doubled(REGISTRY["rnn"]):
        def unroll(self, inputs, hidden_state):
            values, hidden_state = super().unroll(inputs, hidden_state)
            return 2 * values, hidden_state

    torch.manual_seed(0)
    network = Doubled(5, SimpleNamespace(rnn_hidden_dim=7, n_actions=3))
    packing, inputs = Packing(torch.tensor([4, 1]), 4), torch.randn(4, 2, 1, 5)
    plain = unroll_network_features(network, inputs, packing)[0]
    torch.testing.assert_close(unroll_network(network, inputs, packing)[:1], 2 * plain[:1])


def test_what_is_kept_is_made_anew_when_its_source_changes():
    owner, x, calls = SimpleNamespace(), torch.ones(3), []

    def double():
        calls.append(None)
        return 2 * x

    kept = keep(owner, "double", (x,), double)
    assert keep(owner, "double", (x,), double) is kept
    assert len(calls) == 1
    x[0] = 5.0
    assert keep(owner, "double", (x,), double).tolist() == [10.0, 2.0, 2.0]
    x = torch.zeros(3)
    assert keep(owner, "double", (x,), double).tolist() == [0.0, 0.0, 0.0]
    assert keep(SimpleNamespace(), "double", (x,), double).tolist() == [0.0, 0.0, 0.0]
    assert len(calls) == 4


def test_packed_inputs_with_a_gradient_are_not_kept():
    packing = Packing(torch.tensor([2, 1]), 2)
    for _ in range(2):  # a graph can be walked once
        x = torch.ones(2, 2, 3, requires_grad=True)
        packing.pack(x).sum().backward()
        assert x.grad is not None
        assert x.grad.sum() == 9
