"""The controller: its inputs against ones made by hand, unroll against looped forward, availability, saving."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import on_filled
from torch import nn

from components.episode_buffer import EpisodeBatch
from components.transforms import OneHot
from controllers import REGISTRY
from controllers.basic_controller import BasicMAC
from modules.agents import REGISTRY as agent_REGISTRY
from modules.agents.mlp_agent import MLPAgent
from modules.agents.rnn_agent import RNNAgent
from utils.networks import unroll_features

N, A, O, H = 2, 3, 2, 8
SCHEME = {
    "obs": {"vshape": O, "group": "agents"},
    "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
    "avail_actions": {"vshape": (A,), "group": "agents", "dtype": torch.int},
}
PREPROCESS = {"actions": ("actions_onehot", [OneHot(A)])}
FLAGS = [(last_action, agent_id) for last_action in (True, False) for agent_id in (True, False)]


def make_batch(B=3, T=5):
    return EpisodeBatch(SCHEME, {"agents": N}, B, T, preprocess=PREPROCESS)


def random_batch(B=3, T=5, seed=0):
    """Episodes of different lengths; at least one action is available everywhere."""
    rng = torch.Generator().manual_seed(seed)
    batch = make_batch(B, T)
    avail = (torch.rand(B, T, N, A, generator=rng) < 0.5).int()
    avail[..., 0] |= avail.sum(-1) == 0
    batch.update(
        {
            "obs": torch.randn(B, T, N, O, generator=rng),
            "actions": torch.randint(A, (B, T, N, 1), generator=rng),
            "avail_actions": avail,
        }
    )
    for b in range(B):
        batch["filled"][b, T - b :] = 0
    return batch


def make_args(**changes):
    values = {
        "n_agents": N,
        "n_actions": A,
        "agent": "rnn",
        "agent_groups": None,
        "rnn_hidden_dim": H,
        "agent_output_type": "q",
        "obs_last_action": True,
        "obs_agent_id": True,
        "action_selector": "epsilon_greedy",
        "epsilon_start": 0.0,
        "epsilon_finish": 0.0,
        "epsilon_anneal_time": 100,
        "test_epsilon": 0.0,
        "test_greedy": True,
    }
    return SimpleNamespace(**{**values, **changes})


def make_mac(seed=0, **changes):
    torch.manual_seed(seed)
    return BasicMAC(make_batch().scheme, {"agents": N}, make_args(**changes))


class FixedAgent(nn.Module):
    """The same outputs at every step and for every agent of the team; it keeps what it was shown."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = torch.tensor(outputs)
        self.shown = []

    def init_hidden(self):
        return torch.zeros(1, H)

    def forward(self, inputs, hidden_state):
        self.shown.append(inputs)
        return self.outputs.expand(len(inputs), -1), hidden_state


class FixedSequenceAgent(FixedAgent):
    def unroll(self, inputs, hidden_state):
        self.shown.append(inputs)
        return self.outputs.expand(*inputs.shape[:2], -1), hidden_state


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def looped(mac, batch, test_mode=False):
    mac.init_hidden(batch.batch_size)
    return torch.stack([mac.forward(batch, t, test_mode=test_mode) for t in range(batch.max_seq_length)], dim=1)


def test_registry_holds_pymarls_name():
    assert REGISTRY["basic_mac"] is BasicMAC


# What two agents see in an episode of three steps: observation, one-hot of the last action, own id.
OBS = [[[0.1, 0.2], [0.3, 0.4]], [[1.1, 1.2], [1.3, 1.4]], [[2.1, 2.2], [2.3, 2.4]]]
LAST = [[[0, 0, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 0, 1]]]
ID = [[[1, 0], [0, 1]]] * 3


@pytest.mark.parametrize(("last_action", "agent_id"), FLAGS)
def test_inputs_are_those_made_by_hand(last_action, agent_id):
    batch = make_batch(B=2, T=3)
    batch.update({"obs": OBS, "actions": [[2, 0], [1, 2], [2, 2]]}, bs=0)
    batch.update({"obs": [[[9.0, 9.0], [9.0, 9.0]]] * 3, "actions": [[1, 1]] * 3}, bs=1)  # an episode beside it
    parts = [OBS] + [LAST] * last_action + [ID] * agent_id
    expected = torch.cat([torch.tensor(part, dtype=torch.float32) for part in parts], dim=2)  # (T, N, I)

    mac = make_mac(obs_last_action=last_action, obs_agent_id=agent_id)
    assert mac.agent.fc1.in_features == expected.shape[2] == O + A * last_action + N * agent_id
    mac.agent = FixedAgent([0.0] * A)
    looped(mac, batch)
    assert len(mac.agent.shown) == 3
    for t, inputs in enumerate(mac.agent.shown):
        assert inputs.shape == (2 * N, expected.shape[2])
        close(inputs[:N], expected[t], 0)  # agents of the first episode first

    mac.agent = FixedSequenceAgent([0.0] * A)
    mac.unroll(batch)
    [inputs] = mac.agent.shown
    assert inputs.shape == (3, 2 * N, expected.shape[2])
    close(inputs[:, :N], expected, 0)


def test_an_empty_step_before_counts_as_no_last_action():
    """Runners show a window of two steps; before an episode's start the first of them is not filled."""
    batch = make_batch(B=1, T=2)
    batch["actions"][:] = 2
    batch.update({"obs": [OBS[0]]}, bs=0, ts=1)
    mac = make_mac(obs_agent_id=False)
    mac.agent = FixedAgent([0.0] * A)
    mac.init_hidden(1)
    mac.forward(batch, t=1)
    close(mac.agent.shown[0][:, O:], torch.zeros(N, A), 0)


@pytest.mark.parametrize(("last_action", "agent_id"), FLAGS)
@pytest.mark.parametrize("output", ["q", "pi_logits"])
@pytest.mark.parametrize("test_mode", [False, True])
def test_unroll_equals_looped_forward(last_action, agent_id, output, test_mode):
    mac = make_mac(
        obs_last_action=last_action,
        obs_agent_id=agent_id,
        agent_output_type=output,
        action_selector="multinomial",
        epsilon_start=0.3,
        epsilon_finish=0.1,
    )
    batch = random_batch()
    stepped = looped(mac, batch, test_mode)
    fused = mac.unroll(batch, test_mode)
    assert fused.shape == (3, 5, N, A)
    close(on_filled(batch, fused), on_filled(batch, stepped))
    weights = on_filled(batch, torch.randn(fused.shape, generator=torch.Generator().manual_seed(1)))
    parameters = list(mac.parameters())
    of_fused = torch.autograd.grad((fused * weights).sum(), parameters)
    of_stepped = torch.autograd.grad((stepped * weights).sum(), parameters)
    for one, other in zip(of_fused, of_stepped, strict=True):
        close(one, other)
    assert of_fused[0].abs().max() > 1e-3


def test_agents_without_unroll_are_stepped():
    class StepsOnly(nn.Module):
        def __init__(self, agent):
            super().__init__()
            self.agent = agent

        def init_hidden(self):
            return self.agent.init_hidden()

        def forward(self, inputs, hidden_state):
            return self.agent(inputs, hidden_state)

    mac, batch = make_mac(), random_batch()
    fused, memories = mac.unroll_features(batch)
    close(mac.unroll(batch), fused)
    mac.agent = StepsOnly(mac.agent)
    close(on_filled(batch, mac.unroll(batch)), fused)
    stepped = mac.unroll_features(batch)
    close(on_filled(batch, stepped[0]), fused)
    close(on_filled(batch, stepped[1]), memories)


@pytest.mark.parametrize("share", [None, [0, 1]])
@pytest.mark.parametrize("agent_class", [RNNAgent, MLPAgent])
def test_agents_that_override_a_step_alone_are_stepped(agent_class, share, monkeypatch):
    class Dueling(agent_class):
        def __init__(self, input_shape, args):
            super().__init__(input_shape, args)
            self.value = nn.Linear(input_shape, 1)

        def forward(self, inputs, hidden_state):
            advantages, hidden = super().forward(inputs, hidden_state)
            return advantages - advantages.mean(-1, keepdim=True) + self.value(inputs), hidden

    monkeypatch.setitem(agent_REGISTRY, "dueling", Dueling)
    mac, batch = make_mac(agent="dueling", agent_groups=share), random_batch()
    found = mac.unroll(batch)
    close(on_filled(batch, found), on_filled(batch, looped(mac, batch)))
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in mac.parameters())
    close(on_filled(batch, unroll_features(mac, batch)[0]), on_filled(batch, found))


@pytest.mark.parametrize("agent", ["rnn", "rnn_norm"])
def test_memories_are_those_after_every_step(agent):
    mac, batch = make_mac(agent=agent), random_batch()
    values, memories = unroll_features(mac, batch)
    mac.init_hidden(batch.batch_size)
    for t in range(batch.max_seq_length):
        filled = batch["filled"][:, t].unsqueeze(-1)
        close(values[:, t], mac.forward(batch, t) * filled)
        close(memories[:, t], mac.hidden_states.view(memories[:, t].shape) * filled)

    class Foreign:
        """A controller that has PyMARL's methods alone."""

        init_hidden, forward = mac.init_hidden, mac.forward
        hidden_states = property(lambda self: mac.hidden_states)

    foreign = Foreign()
    for ours, theirs in zip(unroll_features(foreign, batch), (values, memories), strict=True):
        close(on_filled(batch, ours), theirs)


def test_unroll_starts_with_fresh_memory():
    mac, batch = make_mac(), random_batch()
    first = mac.unroll(batch)
    close(mac.unroll(batch), first, 0)


def test_policies_by_hand():
    # softmax of (0, log 3) is (1/4, 3/4); a fifth of uniform play gives .8 * 1/4 + .1 and .8 * 3/4 + .1
    mac = make_mac(agent_output_type="pi_logits", epsilon_start=0.2, epsilon_finish=0.2)
    mac.agent = FixedAgent([0.0, math.log(3), 9.0])
    batch = random_batch(B=1, T=2)
    batch["avail_actions"][:] = torch.tensor([1, 1, 0])
    close(looped(mac, batch), torch.tensor([0.3, 0.7, 0.0]).expand(1, 2, N, A))
    close(looped(mac, batch, test_mode=True), torch.tensor([0.25, 0.75, 0.0]).expand(1, 2, N, A))


def test_values_are_returned_as_they_are():
    mac, batch = make_mac(), random_batch()
    mac.agent = FixedAgent([1.0, -2.0, 3.0])
    close(looped(mac, batch), torch.tensor([1.0, -2.0, 3.0]).expand(3, 5, N, A), 0)


@pytest.mark.parametrize(
    ("selector", "output", "epsilon", "test_mode"),
    [
        ("epsilon_greedy", "q", 0.0, False),
        ("epsilon_greedy", "q", 0.9, False),
        ("epsilon_greedy", "q", 0.9, True),
        ("multinomial", "pi_logits", 0.5, False),
        ("multinomial", "pi_logits", 0.5, True),
    ],
)
def test_selected_actions_are_available(selector, output, epsilon, test_mode):
    mac = make_mac(action_selector=selector, agent_output_type=output, epsilon_start=epsilon, epsilon_finish=epsilon)
    mac.agent = FixedAgent([0.0, 1.0, 50.0])  # the best action is often not available
    batch = random_batch(B=40, T=41)
    mac.init_hidden(40)
    seen = set()
    for t in range(20):
        actions = mac.select_actions(batch, t_ep=t, t_env=0, test_mode=test_mode)
        assert actions.shape == (40, N)
        assert (batch["avail_actions"][:, t].gather(2, actions.unsqueeze(-1)) == 1).all()
        seen |= set(actions.unique().tolist())
    assert seen == {0, 1, 2}


def test_greedy_actions_are_the_best_available_of_the_right_step():
    mac = make_mac()
    mac.agent = FixedAgent([0.0, 1.0, 2.0])
    batch = make_batch(B=2, T=2)
    batch.update({"avail_actions": [[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]]]}, ts=1)
    mac.init_hidden(2)
    assert mac.select_actions(batch, t_ep=1, t_env=0).tolist() == [[2, 1], [0, 1]]
    assert mac.select_actions(batch, t_ep=1, t_env=0, bs=[1]).tolist() == [[0, 1]]
    assert mac.select_actions(batch, t_ep=1, t_env=0, bs=slice(0, 1)).tolist() == [[2, 1]]


def test_exploration_follows_the_environment_steps():
    mac = make_mac(epsilon_start=1.0, epsilon_finish=0.0)
    batch = random_batch()
    mac.init_hidden(3)
    for t_env, epsilon in [(0, 1.0), (25, 0.75), (100, 0.0)]:
        mac.select_actions(batch, t_ep=0, t_env=t_env)
        assert mac.action_selector.epsilon == pytest.approx(epsilon)


def test_memory_has_one_row_for_each_agent():
    mac = make_mac()
    mac.init_hidden(4)
    assert mac.hidden_states.shape == (4, N, H)
    assert (mac.hidden_states == 0).all()


# What the agents played with, and what others would have seen


@pytest.mark.parametrize("test_mode", [False, True])
def test_the_probabilities_of_the_last_selection_are_kept_if_the_scheme_stores_them(test_mode):
    scheme = {**make_batch().scheme, "behaviour": {"vshape": (A,), "group": "agents"}}
    mac = BasicMAC(scheme, {"agents": N}, make_args(epsilon_start=0.6, epsilon_finish=0.6))
    mac.agent = FixedAgent([0.0, 1.0, 2.0])
    batch = make_batch(B=2, T=2)
    batch.update({"avail_actions": [[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 1]]]}, ts=1)
    mac.init_hidden(2)
    mac.select_actions(batch, t_ep=1, t_env=0, bs=[1, 0], test_mode=test_mode)
    # .6 over the available ones, .4 on the best of them; of the episodes that were asked for, in their order
    expected = [[[1, 0, 0], [0, 0.3, 0.7]], [[0.2, 0.2, 0.6], [0.3, 0.7, 0]]]
    if test_mode:
        expected = [[[1, 0, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 0]]]
    close(mac.behaviour, torch.tensor(expected, dtype=torch.float32))


def test_otherwise_no_probabilities_are_kept():
    mac, batch = make_mac(), random_batch()
    mac.init_hidden(3)
    mac.select_actions(batch, t_ep=0, t_env=0)
    assert mac.behaviour is None


@pytest.mark.parametrize("agent", ["rnn", "mlp"])
@pytest.mark.parametrize("last_action", [True, False])
def test_values_of_others_are_those_of_a_loop_that_swaps_ids(agent, last_action):
    mac, batch = make_mac(agent=agent, obs_last_action=last_action), random_batch()
    found = mac.unroll_others(batch)
    assert found.shape == (3, 5, N, N, A)
    other = make_mac(seed=1, agent=agent, obs_last_action=last_action)
    of_network = mac.unroll_others(batch, other.agent)
    for j in range(N):
        one_id = torch.eye(N)[j].expand(3, N, N)
        for network, values in ((mac.agent, found), (other.agent, of_network)):
            hidden = network.init_hidden().expand(3 * N, -1)
            for t in range(5):
                inputs = mac._build_inputs(batch, t).view(3, N, -1)
                swapped = torch.cat([inputs[..., :-N], one_id], dim=-1)
                expected, hidden = network(swapped.reshape(3 * N, -1), hidden)
                close(values[:, t, :, j], expected.view(3, N, A) * batch["filled"][:, t].unsqueeze(-1))
    own = torch.stack([found[:, :, i, i] for i in range(N)], dim=2)
    close(own, mac.unroll(batch))
    assert (found[:, :, 0, 0] - found[:, :, 0, 1]).abs().max() > 1e-3


def test_without_ids_nothing_is_another_agents():
    with pytest.raises(ValueError, match="without obs_agent_id"):
        make_mac(obs_agent_id=False).unroll_others(random_batch())


def test_save_and_load(tmp_path):
    mac, other, batch = make_mac(seed=1), make_mac(seed=2), random_batch()
    expected = mac.unroll(batch)
    assert not torch.allclose(other.unroll(batch), expected, atol=1e-3)
    mac.save_models(str(tmp_path))
    assert (tmp_path / "agent.th").is_file()
    other.load_models(str(tmp_path))
    close(other.unroll(batch), expected, 0)


def test_load_state_copies_and_does_not_share():
    mac, other, batch = make_mac(seed=1), make_mac(seed=2), random_batch()
    expected = mac.unroll(batch)
    other.load_state(mac)
    close(other.unroll(batch), expected, 0)
    with torch.no_grad():
        mac.agent.fc2.bias.add_(1.0)
    close(other.unroll(batch), expected, 0)


def test_parameters_are_the_agents():
    mac = make_mac()
    assert [id(p) for p in mac.parameters()] == [id(p) for p in mac.agent.parameters()]
