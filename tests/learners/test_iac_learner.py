"""Independent actor-critics and SEAC against nested loops over episodes, steps and pairs of agents."""

import pytest
import torch
from helpers import EPISODES, assert_equal, make_args, make_learner, make_mac, random_batch, shake, values_on
from test_lica_learner import policies_of

from utils.errors import UserError

SHARING = {"none": {}, "groups": {"share": "groups", "share_groups": [1, 0, 1]}, "all": {"share": "all"}}


def some_args(alg, **changes):
    options = {"reward": "individual", "shared_experience": 0.5 if alg == "seac" else 0.0, **changes.pop("iac", {})}
    return make_args(alg, **{"gamma": 0.875, "td_lambda": 0.5, "entropy_coef": 0.25, "iac": options, **changes})


def naive_losses(learner, batch, episodes, weight):
    """Equations 5 and 6 of the paper with lambda returns, summed for every agent j over the experience of all i."""
    args, N = learner.args, learner.args.n_agents
    policies = policies_of(learner, batch)
    critic, actor, entropy, count, shared_critic, shared_actor, ratios = 0, 0, 0, 0, 0, 0, []
    for j in range(N):
        for i in range(N):
            value = values_on(learner.mac, learner.critic.network, batch, i, j).squeeze(2)
            logits = values_on(learner.mac, learner.mac.agent, batch, i, j)
            for e, episode in enumerate(episodes):
                target = None
                for t in reversed(range(episode.length)):
                    last = t == episode.length - 1
                    ended = last and episode.end == "terminated"
                    following = value[e, t + 1].item()
                    if not last:
                        following = (1 - args.td_lambda) * following + args.td_lambda * target
                    target = batch["individual_reward"][e, t, i].item() + (0 if ended else args.gamma * following)
                    a = batch["actions"][e, t, i, 0]
                    allowed = batch["avail_actions"][e, t, i] == 1
                    log_pi = logits[e, t, a] - logits[e, t][allowed].logsumexp(0)
                    gain = target - value[e, t].item()
                    if i == j:
                        p = policies[e][t][i]
                        entropy = entropy - sum(x * x.log() for x in p if x > 0)
                        critic = critic + (value[e, t] - target) ** 2
                        actor = actor - log_pi * gain
                        count += 1
                    else:
                        ratios.append((log_pi.exp() / policies[e][t][i][a]).item())
                        shared_critic = shared_critic + ratios[-1] * (value[e, t] - target) ** 2
                        shared_actor = shared_actor - ratios[-1] * log_pi * gain
    losses = {
        "critic": (critic + weight * shared_critic) / count,
        "agent": (actor + weight * shared_actor - args.entropy_coef * entropy) / count,
    }
    stats = {
        "critic_loss": critic / count,
        "agent_loss": (actor - args.entropy_coef * entropy) / count,
        "shared_critic_loss": shared_critic / count,
        "shared_agent_loss": shared_actor / count,
        "importance_mean": torch.tensor(sum(ratios) / len(ratios)),
        "entropy": entropy / count,
    }
    return losses, {key: value.item() for key, value in stats.items()}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("sharing", "ids"), [(s, ids) for s in SHARING for ids in (True, False) if ids or s != "all"])
@pytest.mark.parametrize("alg", ["iac", "seac"])
def test_losses_gradients_and_statistics_are_those_of_the_nested_loops(alg, ids, sharing):
    learner = make_learner(some_args(alg, obs_agent_id=ids, **SHARING[sharing]))
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=3)
    found = learner.objective(batch)
    losses, stats = naive_losses(learner, batch, EPISODES, weight=0.5 if alg == "seac" else 0.0)
    for part, loss in losses.items():
        assert found.losses[part].item() == pytest.approx(loss.item(), rel=1e-6), part
        expected = torch.autograd.grad(loss, learner.params[part], retain_graph=True)
        ours = torch.autograd.grad(found.losses[part], learner.params[part], retain_graph=True)
        for g, h in zip(ours, expected, strict=True):
            torch.testing.assert_close(g, h, rtol=1e-5, atol=1e-8)
    known = {key: value for key, value in stats.items() if key in found.stats}
    assert {key: found.stats[key].item() for key in known} == pytest.approx(known, rel=1e-6)
    assert (len(known) == len(stats)) == (alg == "seac")


def test_without_shared_experience_it_is_iac_bit_for_bit():
    found = []
    for alg, more in (("iac", {}), ("seac", {"iac": {"shared_experience": 0.0}})):
        learner = make_learner(some_args(alg, **more))
        for k in range(3):
            learner.train(random_batch(learner.args, seed=k), t_env=k, episode_num=k)
        found.append({**learner.mac.agent.state_dict(), **learner.critic.state_dict()})
    assert_equal(*found)


def test_an_agent_learns_from_what_another_one_did():
    """Where only agent 0 ever sees a reward, the critics of the others move by shared experience alone."""
    moved = []
    for weight in (0.0, 1.0):
        learner = make_learner(some_args("seac", iac={"shared_experience": weight}, entropy_coef=0.0))
        batch = random_batch(learner.args, seed=3)
        with torch.no_grad():
            for parameter in learner.critic.parameters():
                parameter.zero_()
        batch["individual_reward"][..., 1:] = 0
        (bias,) = (p for name, p in learner.critic.named_parameters() if name.endswith("fc2.bias"))
        gradient = torch.autograd.grad(learner.objective(batch).losses["critic"], bias)[0]
        moved.append((gradient.abs() > 0).flatten().tolist())
    assert moved == [[True, False, False], [True, True, True]]


def test_individual_rewards_must_be_there():
    team = make_learner(some_args("iac", iac={"reward": "team"}))
    batch = random_batch(team.args, seed=3)
    team.objective(batch)
    with pytest.raises(UserError, match=r"iac\.reward=individual"):
        make_learner(some_args("iac")).objective(batch)


def test_actors_and_critics_have_parameters_of_their_own():
    mac = make_mac(some_args("iac"))
    learner = make_learner(some_args("iac"))
    for network in (mac.agent, learner.critic.network):
        assert network.groups.tolist() == [0, 1, 2]
        for parameter in network.parameters():
            assert not torch.equal(parameter[0], parameter[1])
