"""ICQ against nested loops over episodes, steps and agents, and what training does with it."""

import math
import re
from pathlib import Path

import pytest
import torch
from helpers import (
    EPISODES,
    Episode,
    assert_equal,
    corrupt_padding,
    differs,
    make_args,
    make_learner,
    random_batch,
    shake,
    weights,
    without_last_actions,
)
from test_lica_learner import WildLogitsMAC, policies_of
from test_on_policy_learners import learn, outcome

from utils.networks import NonFiniteError

GAMMA, LAMBDA = 0.875, 0.5
TEMPERATURES = {"policy_temperature": 0.5, "value_temperature": 1.5}


def icq_args(**changes):
    return make_args("icq", **{"gamma": GAMMA, "td_lambda": LAMBDA, "implicit": TEMPERATURES, **changes})


def naive_losses(learner, batch):
    """Both losses, step by step."""
    N, cfg = learner.args.n_agents, learner.args.implicit
    critic, target = learner.critic, learner.target_critic
    q, q_target, pi = critic(batch), target(batch).detach(), policies_of(learner, batch)
    lengths = [episode.length for episode in EPISODES]

    def mix(network, values, e, t):
        state = batch["state"][e, t].view(1, 1, -1)
        gains, bias = network.hyper_k(state).abs().view(-1), network.hyper_b(state).view(())
        return sum(gains[i] * value for i, value in enumerate(values)) + bias

    def taken(q, e, t):
        return [q[e, t, i, batch["actions"][e, t, i, 0]] for i in range(N)]

    def share(values, e, temperature):
        """n softmax over episodes, of the one at `e`."""
        scaled = {b: math.exp(float(v) / temperature) for b, v in values.items()}
        return len(scaled) * scaled[e] / sum(scaled.values())

    def next_value(e, t):
        if t + 1 == lengths[e]:
            expected = [(pi[e][t + 1][i] * q_target[e, t + 1, i]).sum() for i in range(N)]
            return float(mix(target, expected, e, t + 1))
        playing = {
            b: float(mix(target, taken(q_target, b, t + 1), b, t + 1)) for b, n in enumerate(lengths) if n > t + 1
        }
        return share(playing, e, cfg.value_temperature) * playing[e]

    def advantage(b, t, i):
        state = batch["state"][b, t].view(1, 1, -1)
        baseline = (pi[b][t][i] * q[b, t, i]).sum().item()
        return critic.hyper_k(state).abs().view(-1)[i].item() * (taken(q, b, t)[i].item() - baseline)

    fits, clones = [], []
    for e, episode in enumerate(EPISODES):
        following = None
        for t in reversed(range(episode.length)):
            value = next_value(e, t)
            ahead = value if following is None else (1 - LAMBDA) * value + LAMBDA * following
            ended = t == episode.length - 1 and episode.end == "terminated"
            following = batch["reward"][e, t, 0].item() + (0.0 if ended else GAMMA * ahead)
            fits.append((mix(critic, taken(q, e, t), e, t) - following) ** 2)
            for i in range(N):
                advantages = {b: advantage(b, t, i) for b, n in enumerate(lengths) if n > t}
                weight = share(advantages, e, cfg.policy_temperature)
                clones.append(-weight * pi[e][t][i][batch["actions"][e, t, i, 0].item()].log())
    return {"critic": sum(fits) / len(fits), "agent": sum(clones) / len(clones)}


@pytest.mark.usefixtures("double")
def test_losses_and_gradients_are_those_of_the_loops():
    learner = make_learner(icq_args())
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=3)
    objective, naive = learner.objective(batch), naive_losses(learner, batch)
    for part, loss in naive.items():
        assert objective.losses[part].item() == pytest.approx(loss.item(), rel=1e-8)
        ours = torch.autograd.grad(objective.losses[part], learner.params[part], retain_graph=True)
        theirs = torch.autograd.grad(loss, learner.params[part], retain_graph=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_padding_changes_nothing():
    learner = make_learner(icq_args())
    shake(learner, seed=2)
    clean = outcome(learner, random_batch(learner.args, seed=3))
    found = outcome(learner, corrupt_padding(random_batch(learner.args, seed=3), EPISODES))
    for key, value in clean.items():
        torch.testing.assert_close(value, found[key], rtol=1e-4, atol=1e-5)


def test_logits_and_values_of_unavailable_actions_change_nothing():
    found = []
    for wild in (0.0, 1e6):
        learner = make_learner(icq_args(), mac_class=WildLogitsMAC)
        shake(learner, seed=2)
        learner.mac.wild = wild
        batch = random_batch(learner.args, seed=3)
        noise = wild * (batch["avail_actions"] == 0)
        for critic in (learner.critic, learner.target_critic):
            critic.register_forward_hook(lambda _, inputs, q, noise=noise: q + noise)
        found.append(outcome(learner, batch))
    assert_equal(*found)


def test_a_terminal_observation_may_offer_no_action():
    found = []
    for change in (lambda batch: batch, without_last_actions):
        learner = make_learner(icq_args())
        found.append(outcome(learner, change(random_batch(learner.args, seed=3))))
    assert_equal(*found)


def test_same_seed_same_weights_and_the_target_follows():
    def train(seed):
        learner = make_learner(icq_args(target_update_interval=2), seed=seed)
        learn(learner, 4, start=seed)
        return weights(learner)

    first = train(0)
    assert_equal(first, train(0))
    assert differs(first, train(1))
    learner = make_learner(icq_args(target_update_interval=1))
    learn(learner, 2)
    assert_equal(learner.critic.state_dict(), learner.target_critic.state_dict())


def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(tmp_path):
    args = icq_args(standardise_rewards=True)
    saved = make_learner(args)
    learn(saved, 3)
    saved.save_models(str(tmp_path))
    loaded = make_learner(args, seed=9)
    loaded.load_models(str(tmp_path))
    for learner in (saved, loaded):
        learn(learner, 3, start=3)
    assert_equal(weights(loaded), weights(saved))


def test_a_non_finite_loss_is_named_and_changes_nothing():
    learner = make_learner(icq_args())
    learn(learner, 1)
    before, bad = weights(learner), random_batch(learner.args, seed=1)
    bad["reward"][1, 0] = float("nan")
    with pytest.raises(NonFiniteError) as error:
        learner.train(bad, t_env=1, episode_num=10)
    assert error.value.culprit == "critic_loss"
    assert_equal(weights(learner), before)


def test_statistics_are_logged_and_documented():
    learner = make_learner(icq_args())
    learn(learner, 1)
    documented = (Path(__file__).parents[2] / "docs" / "logged.md").read_text(encoding="utf-8")
    section = documented.partition("## Actor-critics")[2]
    assert "weight_max" in learner.logger.stats
    assert set(re.findall(r"`(\w+)`", section)) >= set(learner.logger.stats)


@pytest.mark.parametrize("option", [{"policy_temperature": 5.0}, {"value_temperature": 5.0}])
def test_every_option_matters(option):
    found = []
    for implicit in (TEMPERATURES, TEMPERATURES | option):
        learner = make_learner(icq_args(implicit=implicit))
        shake(learner, seed=2)
        losses = learner.objective(random_batch(learner.args, seed=3)).losses
        found.append({part: loss.item() for part, loss in losses.items()})
    changed = {part for part in found[0] if found[0][part] != found[1][part]}
    assert changed == {"agent" if "policy_temperature" in option else "critic"}


def test_actors_find_the_better_half_of_the_data():
    """With a small temperature they clone what earned more, with a large one what was played."""
    likely = {}
    for temperature in (0.01, 1000.0):
        options = {"implicit": {"policy_temperature": temperature}, "lr": 0.01, "critic_lr": 0.01, "td_lambda": 0.0}
        learner = make_learner(icq_args(obs_last_action=False, **options))
        batch = random_batch(learner.args, seed=3, episodes=[Episode(1, "terminated")] * 60)
        batch["obs"][:], batch["state"][:], batch["avail_actions"][:] = 0.0, 0.0, 1
        batch["reward"][:] = (batch["actions"] == 0).float().sum(dim=2)
        for k in range(200):
            learner.train(batch, t_env=k, episode_num=k)
        likely[temperature] = learner.joint_values(batch)[0][0, 0, :, 0].min().item()
    assert likely[0.01] > 0.9
    assert likely[1000.0] < 0.6
