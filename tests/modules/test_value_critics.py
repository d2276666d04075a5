"""Critics of the situation (PPO) and COMA's critic: what they read, and that they read nothing else."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from helpers import make_args, make_full_scheme, random_batch

from modules.critics import REGISTRY


def make_critic(name, alg="mappo", **changes):
    args = make_args(alg, **changes)
    torch.manual_seed(0)
    return REGISTRY[name](make_full_scheme(args), args), random_batch(args, seed=3)


def features(batch, args, e, t, i, with_state):
    """What the critic of agent i reads at one step, in order."""
    parts = [batch["state"][e, t]] if with_state else []
    parts.append(batch["obs"][e, t, i])
    if args.obs_last_action:
        before = torch.zeros(args.n_actions)
        if t > 0 and batch["filled"][e, t - 1, 0] == 1:
            before[batch["actions"][e, t - 1, i, 0]] = 1
        parts.append(before)
    if args.obs_agent_id:
        parts.append(torch.eye(args.n_agents)[i])
    return torch.cat(parts)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("agent", ["mlp", "rnn"])
@pytest.mark.parametrize("last_action", [True, False])
@pytest.mark.parametrize(("name", "with_state"), [("value", False), ("central_value", True)])
def test_values_are_those_of_the_network_one_step_after_another(name, with_state, last_action, agent):
    critic, batch = make_critic(name, agent=agent, obs_last_action=last_action)
    found = critic(batch)
    B, T = batch["filled"].shape[:2]
    assert found.shape == (B, T, critic.args.n_agents, 1)
    for e in range(B):
        for i in range(critic.args.n_agents):
            memory = critic.network.init_hidden()
            for t in range(T):
                x = features(batch, critic.args, e, t, i, with_state).unsqueeze(0)
                value, memory = critic.network(x, memory)
                expected = value[0] if batch["filled"][e, t] else torch.zeros(1)
                torch.testing.assert_close(found[e, t, i], expected)
    assert torch.equal(critic(batch, t=2), found[:, 2:3])


@pytest.mark.usefixtures("double")
def test_comas_critic_in_nested_loops():
    """Per agent: state, its observation, the others' actions with its own left out, the joint action before, its id."""
    critic, batch = make_critic("coma", "coma", critic_hidden_dim=7)
    found = critic(batch)
    B, T, N, A = batch["avail_actions"].shape
    assert found.shape == (B, T, N, A)
    eye = torch.eye(A)
    for e in range(B):
        for t in range(T):
            acts = [eye[batch["actions"][e, t, j, 0]] * batch["filled"][e, t, 0] for j in range(N)]
            before = [torch.zeros(A)] * N
            if t > 0:
                before = [eye[batch["actions"][e, t - 1, j, 0]] * batch["filled"][e, t - 1, 0] for j in range(N)]
            for i in range(N):
                others = [torch.zeros(A) if j == i else acts[j] for j in range(N)]
                x = torch.cat([batch["state"][e, t], batch["obs"][e, t, i], *others, *before, torch.eye(N)[i]])
                hidden = F.relu(critic.fc2(F.relu(critic.fc1(x))))
                torch.testing.assert_close(found[e, t, i], critic.fc3(hidden))
    torch.testing.assert_close(critic(batch, t=1), found[:, 1:2])


def test_comas_critic_does_not_see_an_agents_own_action():
    critic, batch = make_critic("coma", "coma")
    joint = batch["actions_onehot"].clone()
    before = critic(batch, actions=joint)
    assert torch.equal(before, critic(batch))
    joint[:, :, 1] = torch.rand(joint[:, :, 1].shape)
    changed = (critic(batch, actions=joint) != before).any(dim=3)[batch["filled"].squeeze(2) == 1]
    assert changed.all(dim=0).tolist() == [i != 1 for i in range(joint.shape[2])]
    assert not changed[:, 1].any()
    with pytest.raises(ValueError, match="actions must have shape"):
        critic(batch, actions=joint[:, :2])


def test_weights_are_named_and_shaped_as_pymarls():
    critic, _ = make_critic("coma", "coma")
    args = make_args("coma")
    inputs = args.state_shape + args.obs_shape + 2 * args.n_agents * args.n_actions + args.n_agents
    shapes = OrderedDict((key, tuple(value.shape)) for key, value in critic.state_dict().items())
    assert shapes == {
        "fc1.weight": (128, inputs),
        "fc1.bias": (128,),
        "fc2.weight": (128, 128),
        "fc2.bias": (128,),
        "fc3.weight": (args.n_actions, 128),
        "fc3.bias": (args.n_actions,),
    }
