"""The controller of two networks: who acts, step by step as in one unroll, and saving."""

import pytest
import torch
from helpers import assert_equal, make_args, make_mac, on_filled, random_batch, sharpen, step_by_step

from controllers import REGISTRY
from controllers.gated_controller import COOPERATIVE, INDEPENDENT, GatedMAC
from modules.agents import REGISTRY as agent_REGISTRY

ACTS = ("independent", "cooperative", "global", "agent", "distil")


def make(act, agent="rnn", seed=0):
    args = make_args(
        "greedy_qmix",
        mac="gated_mac",
        agent=agent,
        heads={"utilities": "separate", "act": act},
        gate={"acts_on": "none"},
    )
    mac = make_mac(args, seed)
    sharpen(mac, 2.0)
    return mac


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def alone(network, mac, batch):
    """A network of its own, stepped on what the agents see: (B, T, N, A), 0 in padding."""
    hidden, outputs = network.init_hidden().expand(batch.batch_size * mac.n_agents, -1), []
    for t in range(batch.max_seq_length):
        values, hidden = network(mac._build_inputs(batch, t), hidden)
        outputs.append(values.view(batch.batch_size, mac.n_agents, -1))
    return on_filled(batch, torch.stack(outputs, dim=1))


def test_it_is_in_the_registry():
    assert REGISTRY["gated_mac"] is GatedMAC


@pytest.mark.parametrize("agent", agent_REGISTRY)
@pytest.mark.parametrize("act", ACTS)
def test_steps_are_those_of_the_unroll(act, agent):
    mac = make(act, agent)
    batch = random_batch(mac.args, seed=1)
    for head in (INDEPENDENT, COOPERATIVE):
        mac.act_with(head)
        fused, stepped = mac.unroll(batch), step_by_step(mac, batch)
        close(fused, stepped)
        weights = torch.randn(fused.shape, generator=torch.Generator().manual_seed(1))
        parameters = list(mac.parameters())
        of_fused, of_stepped = (
            torch.autograd.grad((values * weights).sum(), parameters, materialize_grads=True, allow_unused=True)
            for values in (fused, stepped)
        )
        for one, other in zip(of_fused, of_stepped, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert any(one.any() for one in of_fused)


def test_heads_read_the_inputs_that_a_subclass_acts_on():
    class Louder(GatedMAC):
        def _build_inputs(self, batch, t):
            return 2 * super()._build_inputs(batch, t)

    mac = make("distil")
    batch = random_batch(mac.args, seed=1)
    mac.__class__ = Louder
    networks = (mac.agent.independent, mac.agent.cooperative, mac.agent.actor)
    for found, network in zip((*mac.unroll_heads(batch), mac.unroll_imitation(batch)), networks, strict=True):
        close(on_filled(batch, found), alone(network, mac, batch))


@pytest.mark.parametrize("agent", ["rnn", "mlp"])
@pytest.mark.parametrize("act", ACTS)
def test_each_network_remembers_for_itself(act, agent):
    mac = make(act, agent)
    batch = random_batch(mac.args, seed=1)
    independent, cooperative = mac.unroll_heads(batch)
    close(independent, alone(mac.agent.independent, mac, batch))
    close(cooperative, alone(mac.agent.cooperative, mac, batch))
    assert (independent - cooperative).abs().max() > 0.1
    if act == "distil":
        close(mac.unroll_imitation(batch), alone(mac.agent.actor, mac, batch))
    if act == "agent":
        logits = torch.stack([mac.agent.switch(mac._build_inputs(batch, t)) for t in range(7)], dim=1)
        close(mac.unroll_imitation(batch), logits.view(4, mac.n_agents, 7, 1).transpose(1, 2))


def test_who_acts():
    batch = random_batch(make("global").args, seed=1)
    for act in ACTS:
        mac = make(act)
        independent, cooperative = mac.unroll_heads(batch)
        values = mac.unroll(batch)
        if act == "independent":
            expected = independent
        elif act == "cooperative":
            expected = cooperative
        elif act == "global":
            expected = cooperative  # until it is told otherwise
        elif act == "agent":
            switched = mac.unroll_imitation(batch) > 0
            assert switched.any()
            assert not switched.all()
            expected = torch.where(switched, independent, cooperative)
        else:
            expected = mac.unroll_imitation(batch)
        close(on_filled(batch, values), on_filled(batch, expected))


def test_all_agents_follow_the_head_that_they_are_told_to():
    mac = make("global")
    batch = random_batch(mac.args, seed=1)
    heads = mac.unroll_heads(batch)
    for head in (0, 1, torch.tensor(0), torch.tensor(1)):
        mac.act_with(head)
        close(on_filled(batch, mac.unroll(batch)), heads[int(head)])
        mac.init_hidden(4)
        actions = mac.select_actions(batch, t_ep=0, t_env=0, test_mode=True)
        best = heads[int(head)][:, 0].masked_fill(batch["avail_actions"][:, 0] == 0, -torch.inf).argmax(dim=-1)
        assert torch.equal(actions, best)


@pytest.mark.parametrize("act", ["independent", "cooperative", "agent", "distil"])
def test_otherwise_they_cannot_be_told(act):
    mac = make(act)
    batch = random_batch(mac.args, seed=1)
    before = mac.unroll(batch)
    for head in (0, 1):
        mac.act_with(head)
        close(mac.unroll(batch), before, 0)


def test_memory_of_a_step_is_the_networks_in_a_row():
    mac = make("distil")
    mac.init_hidden(2)
    assert mac.hidden_states.shape == (2, mac.n_agents, 3 * mac.args.rnn_hidden_dim)
    assert (mac.hidden_states == 0).all()
    mac.forward(random_batch(mac.args, seed=1)[:2, :], 0)
    assert mac.hidden_states.shape == (2 * mac.n_agents, 3 * mac.args.rnn_hidden_dim)


@pytest.mark.parametrize("act", ACTS)
def test_save_and_load(act, tmp_path):
    mac, other = make(act, seed=1), make(act, seed=2)
    mac.act_with(INDEPENDENT)
    batch = random_batch(mac.args, seed=1)
    mac.save_models(str(tmp_path))
    other.load_models(str(tmp_path))
    assert_equal(mac.agent.state_dict(), other.agent.state_dict())  # the head that acts is among it
    assert other.agent.acting == INDEPENDENT
    close(other.unroll(batch), mac.unroll(batch), 0)
    third = make(act, seed=3)
    third.load_state(mac)
    close(third.unroll(batch), mac.unroll(batch), 0)
    third.act_with(COOPERATIVE)
    assert mac.agent.acting == INDEPENDENT


def test_what_others_would_see_is_asked_of_one_network():
    mac = make("global")
    batch = random_batch(mac.args, seed=1)
    for network, own in zip((mac.agent.independent, mac.agent.cooperative), mac.unroll_heads(batch), strict=True):
        values = mac.unroll_others(batch, network)
        close(torch.stack([values[:, :, i, i] for i in range(mac.n_agents)], dim=2), own)
