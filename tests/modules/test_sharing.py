"""Separate and grouped parameters: one batched call against a loop over networks of every agent's own."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from helpers import ACTIONS, AGENTS, assert_equal, make_args, make_learner, make_mac, networks, random_batch, weights
from torch import nn

from modules.agents import REGISTRY
from modules.agents.sharing import SeparateAgents, assign_groups, share_parameters
from utils.errors import UserError

I, H, A, N, B, T = 5, 8, 4, 3, 2, 6
GROUPS = {"none": [0, 1, 2], "groups": [1, 0, 1]}


class LoopAgent(nn.Module):
    """A plug-in of PyMARL's interface: no unroll, and a memory that starts at a learned value."""

    def __init__(self, input_shape, args):
        super().__init__()
        self.rnn = nn.GRUCell(input_shape, args.rnn_hidden_dim)
        self.out = nn.Linear(args.rnn_hidden_dim, args.n_actions)
        self.start = nn.Parameter(torch.randn(1, args.rnn_hidden_dim))
        self.register_buffer("scale", torch.rand(1))

    def init_hidden(self):
        return self.start.clone()

    def forward(self, inputs, hidden_state):
        h = self.rnn(inputs, hidden_state)
        return self.scale * self.out(h), h


def build(agent, groups, seed=0):
    """The networks as the project builds them, and the same ones of every group apart."""
    agent_class = {**REGISTRY, "loop": LoopAgent}[agent]
    args = SimpleNamespace(rnn_hidden_dim=H, n_actions=A)
    torch.manual_seed(seed)
    together = share_parameters(lambda: agent_class(I, args), groups).double()
    torch.manual_seed(seed)
    apart = [agent_class(I, args).double() for _ in range(max(groups) + 1)]
    return together, apart


def run_apart(apart, groups, inputs):
    """Nested loops: inputs (T, B, N, I) -> values and features (T, B, N, ...), one row and step after another."""
    values, features = [], []
    for b in range(B):
        for i, group in enumerate(groups):
            net, hidden = apart[group], apart[group].init_hidden()
            for t in range(T):
                q, hidden = net(inputs[t, b, i][None], hidden)
                values.append(q[0])
                features.append(hidden[0])
    shape = (B, N, T, -1)
    return [torch.stack(x).view(*shape).permute(2, 0, 1, 3) for x in (values, features)]


def step_all(net, inputs):
    hidden = net.init_hidden().repeat(B, 1)
    values = []
    for step in inputs.reshape(T, B * N, I):
        q, hidden = net(step, hidden)
        values.append(q)
    return torch.stack(values).view(T, B, N, A)


def stacked_gradients(net, loss):
    found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    return {name: g for (name, _), g in zip(net.copies.network.named_parameters(), found, strict=True)}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("agent", [*REGISTRY, "loop"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_values_and_gradients_are_those_of_networks_apart(agent, groups):
    together, apart = build(agent, groups)
    torch.manual_seed(1)
    inputs = torch.randn(T, B, N, I, dtype=torch.float64)
    weighed = torch.randn(T, B, N, A, dtype=torch.float64)
    expected, features = run_apart(apart, groups, inputs)
    of_apart = [
        torch.autograd.grad((expected * weighed).sum(), list(net.parameters()), retain_graph=True) for net in apart
    ]
    found = {"steps": step_all(together, inputs)}
    if hasattr(together, "unroll"):
        rows, hidden = inputs.reshape(T, B * N, I), together.init_hidden().repeat(B, 1)
        found["unroll"] = together.unroll(rows, hidden)[0].view(T, B, N, A)
        values, memories = together.unroll_features(rows, hidden)
        torch.testing.assert_close(values.view(T, B, N, A), expected)
        if agent != "mlp":  # without a memory, features are the last hidden layer
            torch.testing.assert_close(memories.view(T, B, N, -1), features)
    else:
        assert agent == "loop"
    for values in found.values():
        torch.testing.assert_close(values, expected)
        gradients = stacked_gradients(together, (values * weighed).sum())
        for k, net in enumerate(apart):
            for (name, _), gradient in zip(net.named_parameters(), of_apart[k], strict=True):
                torch.testing.assert_close(gradients[name][k], gradient)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_an_agents_loss_moves_its_own_copy_alone(groups):
    together, _ = build("rnn", groups)
    rows = torch.randn(T, B * N, I, dtype=torch.float64)
    values = together.unroll(rows, together.init_hidden().repeat(B, 1))[0].view(T, B, N, A)
    for i, group in enumerate(groups):
        for gradient in stacked_gradients(together, values[:, :, i].square().sum()).values():
            moved = gradient.flatten(1).abs().sum(dim=1) > 0
            assert moved.tolist() == [k == group for k in range(max(groups) + 1)]


def test_copies_differ_and_follow_the_seed():
    first, again, other = (build("rnn", GROUPS["none"], seed)[0].state_dict() for seed in (0, 0, 1))
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])
        assert all(not torch.equal(value[i], value[j]) for i in range(N) for j in range(i))


def test_one_network_for_all_is_the_network_itself():
    """Nothing is drawn and nothing wrapped: runs are what they were."""
    args = make_args("qmix")
    mac = make_mac(args, seed=0)
    assert type(mac.agent) is REGISTRY["rnn"]
    torch.manual_seed(0)
    assert_equal(mac.agent.state_dict(), REGISTRY["rnn"](mac.agent.fc1.in_features, args).state_dict())


def test_saving_loading_and_copying():
    net, _ = build("rnn", GROUPS["groups"])
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other, _ = build("rnn", GROUPS["groups"], seed=5)
    other.load_state_dict(torch.load(file, weights_only=True))
    rows = torch.randn(T, B * N, I, dtype=torch.float64)
    hidden = net.init_hidden().repeat(B, 1)
    expected = net.unroll(rows, hidden)[0]
    assert torch.equal(other.unroll(rows, hidden)[0], expected)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(twin.unroll(rows, hidden)[0], expected)


def test_rows_that_are_no_teams_are_refused():
    net, _ = build("rnn", GROUPS["none"])
    with pytest.raises(ValueError, match=r"episodes times 3 agents.*\(4, 5\)"):
        net(torch.zeros(4, I, dtype=torch.float64), torch.zeros(4, H, dtype=torch.float64))


def test_an_agent_that_cannot_be_mapped_gets_one_line():
    class Fused(nn.GRU):
        def forward(self, inputs, hidden_state):
            return super().forward(inputs, hidden_state.unsqueeze(0))

    net = SeparateAgents([Fused(I, H) for _ in range(N)], range(N))
    with pytest.raises(UserError, match=r"Fused cannot run as one.*set share=all"):
        net(torch.zeros(T, B * N, I), torch.zeros(B * N, H))


# --- groups


def args_of(**values):
    return SimpleNamespace(**{"share": "groups", "share_groups": None, "env": "warehouse", **values})


@pytest.mark.parametrize(
    ("values", "reported", "expected"),
    [
        ({"share": "all"}, [0, 1, 1], None),
        ({"share": "none"}, [0, 1, 1], [0, 1, 2]),
        ({}, [7, 2, 7], [0, 1, 0]),
        ({}, ["wolf", "sheep", "sheep"], [0, 1, 1]),
        ({"share_groups": [1, 0, 1]}, ["wolf", "sheep", "sheep"], [1, 0, 1]),
        ({"share_groups": [0, 0, 0]}, None, [0, 0, 0]),
    ],
)
def test_groups(values, reported, expected):
    assert assign_groups(args_of(**values), 3, reported) == expected


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({}, ["share=groups", "warehouse", "3 agents", "share_groups=[0, 0, 1]"]),
        ({"share_groups": [0, 1]}, ["share_groups=[0, 1]", "2 groups for 3 agents", "share_groups=[0, 0, 1]"]),
        ({"share_groups": [0, 2, 2]}, ["share_groups=[0, 2, 2]", "without gaps", "renumber"]),
        ({"share_groups": [1, 1, 1]}, ["share_groups=[1, 1, 1]", "without gaps"]),
    ],
)
def test_groups_that_do_not_fit(values, parts):
    with pytest.raises(UserError) as error:
        assign_groups(args_of(**values), 3)
    assert all(part in str(error.value) for part in parts)
    assert "\n" not in str(error.value)


# --- controllers and learners

SHARING = ({"share": "none"}, {"share": "groups", "share_groups": [1, 0, 1]})
SEPARATE_HEADS = {
    "heads.utilities": "separate",
    "mac": "gated_mac",
    "gate.acts_on": "penalty",
    "conservative.joint": "cf",
    "munchausen.who": "others",
    "munchausen.source": "alt_utility",
    "heads.reward_independent": "team",
}


def nested(options):
    found = {}
    for key, value in options.items():
        block, _, name = key.rpartition(".")
        (found.setdefault(block, {}) if block else found)[name] = value
    return found


@pytest.mark.parametrize("sharing", SHARING, ids=("none", "groups"))
@pytest.mark.parametrize("ids", [True, False])
def test_another_agents_values_are_those_of_its_network(sharing, ids):
    args = make_args("qmix", obs_agent_id=ids, **sharing)
    mac, batch = make_mac(args), random_batch(make_args("qmix"), seed=3)
    found = mac.unroll_others(batch)
    inputs = mac._build_sequence_inputs(batch)
    steps, episodes = inputs.shape[:2]
    for i in range(AGENTS):
        rows = inputs[:, :, [i] * AGENTS]  # every agent's network on the history of agent i
        if ids:
            rows = torch.cat([rows[..., :-AGENTS], torch.eye(AGENTS).expand(steps, episodes, -1, -1)], dim=-1)
        hidden = mac.agent.init_hidden().repeat(episodes, 1)
        expected = mac.agent.unroll(rows.reshape(steps, episodes * AGENTS, -1), hidden)[0]
        expected = expected.view(steps, episodes, AGENTS, ACTIONS).transpose(0, 1)
        torch.testing.assert_close(found[:, :, i], expected)
        torch.testing.assert_close(found[:, :, i, i], mac.unroll(batch)[:, :, i])


@pytest.mark.parametrize("sharing", SHARING, ids=("none", "groups"))
@pytest.mark.parametrize(
    ("alg", "options"),
    [
        ("iql", {}),
        ("qmix", {"agent": "mlp"}),
        ("qplex", {}),
        ("ow_qmix", {}),
        ("qtran", {}),
        ("qr_qmix", {}),
        ("greedy_qmix", {}),
        ("greedy_qmix", SEPARATE_HEADS | {"heads.act": "agent"}),
        ("greedy_qmix", SEPARATE_HEADS | {"heads.act": "distil"}),
        ("greedy_qr_qmix", {}),
        ("ippo", {}),
        ("mappo", {}),
        ("coma", {}),
        ("iac", {}),
        ("seac", {}),
        ("maddpg", {}),
        ("greedy_maddpg", {}),
        ("bear", {}),
        ("brac_p", {}),
        ("lica", {}),
        ("greedy_lica", {}),
    ],
)
def test_every_learner_trains(alg, options, sharing, tmp_path):
    args = make_args(alg, **nested(options), **sharing)
    learner, batch = make_learner(args), random_batch(make_args(alg), seed=4)
    assert all(type(net) is SeparateAgents for net in own_networks(learner.mac.agent))
    before = weights(learner)
    for update in range(3):
        learner.train(batch, t_env=update, episode_num=update)
    for name, network in networks(learner).items():
        if "agent" not in name or name.startswith(("target_", "slow_")):
            continue
        for key, value in network.state_dict().items():
            if value.dim() > 1:
                moved = (value != before[f"{name}.{key}"]).flatten(1).any(dim=1)
                assert moved.all(), f"{name}.{key}: copies {moved.tolist()} moved"
    learner.save_models(str(tmp_path))
    twin = make_learner(args, seed=1)
    twin.load_models(str(tmp_path))
    torch.testing.assert_close(twin.mac.unroll(batch), learner.mac.unroll(batch), rtol=0, atol=0)


def own_networks(agent):
    return (
        [net for net in agent.children() if not isinstance(net, nn.Identity)] if hasattr(agent, "acting") else [agent]
    )
