"""IQL, VDN and QMIX against nested loops over episodes, steps, agents and actions, and what training does with them."""

import pytest
import torch
from helpers import (
    EPISODES,
    Episode,
    RootMixer,
    WildMAC,
    assert_equal,
    corrupt_padding,
    differs,
    gradients,
    make_args,
    make_learner,
    on_filled,
    random_batch,
    shake,
    step_by_step,
    weights,
    without_last_actions,
)

from learners.q_learner import Transitions
from modules.agents import REGISTRY as agent_REGISTRY
from modules.mixers import REGISTRY as mixer_REGISTRY
from utils.networks import NonFiniteError

ALGS = ("iql", "vdn", "qmix")


GAMMA = 0.875  # exact in float32, which masks and flags have, so that float64 results agree to float64's precision


# The loss


def naive_returns(rewards, values, terminated, gamma, td_lambda):
    """G_t of one episode from its rewards, the values of the steps after each, and whether it terminated."""
    returns, L = [], len(rewards)
    for t in reversed(range(L)):
        last = t == L - 1
        if last and terminated:
            returns.insert(0, rewards[t])
            continue
        following = values[t] if last else returns[0]
        returns.insert(0, rewards[t] + gamma * ((1 - td_lambda) * values[t] + td_lambda * following))
    return returns


def naive_loss(learner, batch, episodes):
    """PyMARL's loss, the mean squared TD error, without tensors: returns (loss, errors, chosen, targets)."""
    args = learner.args
    q, q_target = step_by_step(learner.mac, batch), step_by_step(learner.target_mac, batch).detach()
    errors, chosen_values, target_values = [], [], []
    for e, episode in enumerate(episodes):
        chosen, following = [], []
        for t in range(episode.length):
            q_taken, q_next = [], []
            for i in range(args.n_agents):
                q_taken.append(q[e, t, i, batch["actions"][e, t, i, 0]])
                chooser = q.detach() if args.double_q else q_target
                best = None
                for a in range(args.n_actions):
                    allowed = batch["avail_actions"][e, t + 1, i, a] == 1
                    if allowed and (best is None or chooser[e, t + 1, i, a] > chooser[e, t + 1, i, best]):
                        best = a
                q_next.append(q_target[e, t + 1, i, best])
            if args.mixer == "qmix":
                mix = [(learner.mixer, q_taken, t), (learner.target_mixer, q_next, t + 1)]
                q_taken, q_next = (
                    [net(torch.stack(qs).view(1, 1, -1), batch["state"][e, s].view(1, 1, -1)).squeeze()]
                    for net, qs, s in mix
                )
            elif args.mixer == "vdn":
                q_taken, q_next = [sum(q_taken)], [sum(q_next)]
            chosen.append(q_taken)
            following.append(q_next)
        rewards = [batch["reward"][e, t, 0] for t in range(episode.length)]
        for x in range(len(chosen[0])):
            values = [step[x].detach() for step in following]
            returns = naive_returns(rewards, values, episode.end == "terminated", args.gamma, args.td_lambda)
            for t in range(episode.length):
                errors.append(chosen[t][x] - returns[t])
                chosen_values.append(chosen[t][x])
                target_values.append(returns[t])
    return sum(error**2 for error in errors) / len(errors), errors, chosen_values, target_values


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("td_lambda", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("alg", ALGS)
def test_loss_gradient_and_statistics_are_those_of_the_nested_loops(alg, double_q, td_lambda):
    args = make_args(alg, double_q=double_q, td_lambda=td_lambda, gamma=GAMMA)
    learner = make_learner(args)
    shake(learner, seed=2)
    batch = random_batch(args, seed=3)

    objective = learner.objective(batch)
    loss, errors, chosen, targets = naive_loss(learner, batch, EPISODES)

    assert 2 * objective.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    for ours, theirs in zip(gradients(learner, 2 * objective.loss), gradients(learner, loss), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    mean = {name: value.item() for name, value in objective.stats.items()}
    assert mean["td_error_abs"] == pytest.approx(sum(abs(e.item()) for e in errors) / len(errors), rel=1e-12)
    assert mean["q_taken_mean"] == pytest.approx(sum(v.item() for v in chosen) / len(chosen), rel=1e-12)
    assert mean["target_mean"] == pytest.approx(sum(v.item() for v in targets) / len(targets), rel=1e-12)


@pytest.mark.usefixtures("double")
def test_the_options_matter_on_this_batch():
    """Double-Q, TD(lambda) and the mixer change the loss, so the comparison above cannot pass by accident."""
    seen = set()
    for alg in ALGS:
        for options in ({}, {"double_q": False}, {"td_lambda": 0.6}):
            args = make_args(alg, gamma=GAMMA, **options)
            learner = make_learner(args)
            shake(learner, seed=2)
            seen.add(round(learner.objective(random_batch(args, seed=3)).loss.item(), 9))
    assert len(seen) == 9


# The mask


def pymarl_mask(batch):
    """PyMARL's mask, as its learners build it."""
    mask = batch["filled"][:, :-1].float()
    terminated = batch["terminated"][:, :-1].float()
    mask[:, 1:] = mask[:, 1:] * (1 - terminated[:, :-1])
    return mask


def test_the_mask_is_pymarls_on_episodes_that_it_knows():
    args = make_args("qmix")
    episodes = (Episode(6, "terminated"), Episode(2, "terminated"), Episode(1, "terminated"), Episode(6, "limit"))
    batch = random_batch(args, seed=4, episodes=episodes)
    mask = Transitions.of(batch).mask
    assert torch.equal(mask, pymarl_mask(batch))
    assert mask.sum(dim=1).flatten().tolist() == [6, 2, 1, 6]


def test_an_early_cut_has_no_step_behind_its_end():
    """PyMARL knows no such episodes; its mask would count the final observation as a step with reward 0."""
    args = make_args("qmix")
    batch = random_batch(args, seed=4, episodes=(Episode(3, "early"),))
    assert Transitions.of(batch).mask.flatten().tolist() == [1, 1, 1, 0, 0, 0]
    assert pymarl_mask(batch).flatten().tolist() == [1, 1, 1, 1, 0, 0]


# Corruption


@pytest.mark.parametrize("td_lambda", [0.0, 0.6])
@pytest.mark.parametrize("alg", ALGS)
def test_padding_changes_nothing(alg, td_lambda):
    args = make_args(alg, td_lambda=td_lambda)
    learner = make_learner(args)
    shake(learner, seed=2)
    clean = learner.objective(random_batch(args, seed=3))
    wild = learner.objective(corrupt_padding(random_batch(args, seed=3), EPISODES))
    assert torch.equal(clean.loss, wild.loss)
    assert {k: v.item() for k, v in clean.stats.items()} == {k: v.item() for k, v in wild.stats.items()}
    for ours, theirs in zip(gradients(learner, clean.loss), gradients(learner, wild.loss), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alg", ALGS)
def test_a_terminal_observation_may_offer_no_action(alg):
    args = make_args(alg)
    learner = make_learner(args)
    expected = learner.objective(random_batch(args, seed=3)).loss
    assert torch.equal(learner.objective(without_last_actions(random_batch(args, seed=3))).loss, expected)


def test_what_is_no_padding_changes_the_loss():
    """The final observation of a cut episode is bootstrapped, so the test above leaves it alone for a reason."""
    args = make_args("qmix")
    learner = make_learner(args)
    batch = random_batch(args, seed=3)
    before = learner.objective(batch).loss.item()
    cut = EPISODES.index(Episode(4, "early"))
    batch["state"][cut, 4] += 1
    assert learner.objective(batch).loss.item() != before


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("alg", ALGS)
def test_values_of_unavailable_actions_change_nothing(alg, double_q):
    args = make_args(alg, double_q=double_q)
    found = []
    for wild in (0.0, 1e8):
        learner = make_learner(args, mac_class=WildMAC)
        shake(learner, seed=2)
        learner.mac.wild = learner.target_mac.wild = wild
        batch = random_batch(args, seed=3)
        assert learner.mac.unroll(batch).abs().max() > wild
        objective = learner.objective(batch)
        found.append((objective.loss, gradients(learner, objective.loss)))
    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(ours, theirs)


# Target networks


def shift_of_targets(before, after):
    """The share of the way to the online weights that the target weights have gone; one share for all of them."""
    shares = []
    for key, old in before.items():
        if key.startswith("target_"):
            way = after[key.removeprefix("target_")] - old
            shares.append(((after[key] - old) / way)[way.abs() > 1e-3])
    share = torch.cat(shares)
    torch.testing.assert_close(share, torch.full_like(share, share.mean()), rtol=0, atol=1e-6)
    return share.mean().item()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("alg", ALGS)
def test_hard_updates_count_episodes(alg):
    args = make_args(alg, target_update_interval=8, target_update_tau=None)
    learner = make_learner(args)
    shake(learner, seed=2)
    shares = []
    for episode_num in (3, 7, 8, 9, 15, 17, 24, 25):
        before = weights(learner)
        learner.train(random_batch(args, seed=episode_num), t_env=0, episode_num=episode_num)
        shares.append(round(shift_of_targets(before, weights(learner)), 9))
    # Copied at 8; then 17 is the first at least 8 later, and then 25.
    assert shares == [0, 0, 1, 0, 0, 1, 0, 1]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("alg", ALGS)
def test_soft_updates_come_with_every_update(alg):
    args = make_args(alg, target_update_interval=None, target_update_tau=0.25)
    learner = make_learner(args)
    shake(learner, seed=2)
    for _ in range(3):
        before = weights(learner)
        learner.train(random_batch(args, seed=1), t_env=0, episode_num=0)
        assert shift_of_targets(before, weights(learner)) == pytest.approx(0.25, abs=1e-9)


def test_without_either_key_targets_stay():
    args = make_args("qmix", target_update_interval=None, target_update_tau=None)
    learner = make_learner(args)
    before = weights(learner)
    learner.train(random_batch(args, seed=1), t_env=0, episode_num=10**6)
    after = weights(learner)
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("target_"))
    assert differs(before, after)


# The optimiser


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize("clip", [1e9, 0.01])
def test_two_steps_of_the_optimiser_by_hand(optimizer, clip):
    args = make_args(
        "qmix", optimizer=optimizer, lr=0.003, optim_alpha=0.9, optim_eps=1e-4, grad_norm_clip=clip, gamma=GAMMA
    )
    learner = make_learner(args)
    expected = [p.detach().clone() for p in learner.params]
    first, second = [torch.zeros_like(p) for p in expected], [torch.zeros_like(p) for p in expected]
    for step in (1, 2):
        batch = random_batch(args, seed=step)
        gradient = gradients(learner, naive_loss(learner, batch, EPISODES)[0])
        norm = sum((g**2).sum() for g in gradient).sqrt()
        gradient = [g * min(1.0, clip / norm.item()) for g in gradient]
        learner.train(batch, t_env=step, episode_num=0)
        for i, g in enumerate(gradient):
            if optimizer == "rmsprop":
                second[i] = 0.9 * second[i] + 0.1 * g**2
                expected[i] -= 0.003 * g / (second[i].sqrt() + 1e-4)
            else:
                first[i], second[i] = 0.9 * first[i] + 0.1 * g, 0.999 * second[i] + 0.001 * g**2
                mean, square = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
                expected[i] -= 0.003 * mean / (square.sqrt() + 1e-4)
        for parameter, value in zip(learner.params, expected, strict=True):
            torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize(("t_env", "lr"), [(0, 0.004), (500, 0.0025), (1000, 0.001), (1500, 0.001)])
def test_the_step_size_falls_linearly_until_t_max(t_env, lr, optimizer):
    batch = random_batch(make_args("qmix"), seed=1)
    scheduled = make_learner(make_args("qmix", optimizer=optimizer, t_max=1000, lr=0.004, lr_finish=0.001))
    constant = make_learner(make_args("qmix", optimizer=optimizer, t_max=1000, lr=lr, lr_finish=None))
    for learner in (scheduled, constant):
        learner.train(batch, t_env=t_env, episode_num=0)
    assert_equal(weights(scheduled), weights(constant))


@pytest.mark.parametrize("alg", ALGS)
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_same_seed_same_weights(alg, optimizer):
    def train(seed):
        args = make_args(alg, optimizer=optimizer, target_update_interval=2)
        learner = make_learner(args, seed=seed)
        for k in range(5):
            learner.train(random_batch(args, seed=seed + k), t_env=k, episode_num=k)
        return weights(learner)

    first = train(0)
    assert_equal(first, train(0))
    assert differs(first, train(1))


# Standardised rewards


def test_rewards_are_divided_by_the_deviation_of_all_rewards_so_far():
    args = make_args("qmix", standardise_rewards=True)
    learner, plain = make_learner(args), make_learner(make_args("qmix"))
    seen = []
    for k in range(3):
        batch = random_batch(args, seed=k, scale=1 + 5 * k)
        seen += [batch["reward"][e, t, 0].item() for e, episode in enumerate(EPISODES) for t in range(episode.length)]
        loss = learner.objective(batch).loss
        mean = sum(seen) / len(seen)
        batch["reward"].div_((sum((r - mean) ** 2 for r in seen) / len(seen)) ** 0.5)
        torch.testing.assert_close(loss, plain.objective(batch).loss, rtol=1e-5, atol=1e-6)


def test_a_failed_update_forgets_the_rewards_of_its_batch():
    args = make_args("qmix", standardise_rewards=True)
    learner = make_learner(args)
    learner.train(random_batch(args, seed=1), t_env=0, episode_num=0)
    before = learner.reward_moments.clone()
    batch = random_batch(args, seed=2)
    batch["reward"][0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        learner.train(batch, t_env=1, episode_num=1)
    assert torch.equal(learner.reward_moments, before)


# What is logged


def test_statistics_are_logged_under_pymarls_names_and_not_too_often():
    args = make_args("qmix", learner_log_interval=100)
    learner = make_learner(args)
    batch = random_batch(args, seed=1)
    loss = naive_loss(learner, batch, EPISODES)[0].item()
    for t_env in (0, 50, 99, 100, 180, 200):
        learner.train(batch, t_env=t_env, episode_num=0)
    logged = learner.logger.stats
    assert set(logged) == {"loss", "grad_norm", "td_error_abs", "q_taken_mean", "target_mean"}
    for name, values in logged.items():
        assert [t for t, _ in values] == [0, 100, 200], name
    assert logged["loss"][0][1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("alg", ["qmix", "greedy_qmix"])
def test_what_is_not_logged_is_not_measured_and_changes_nothing(alg):
    learners = [make_learner(make_args(alg, learner_log_interval=interval)) for interval in (1, 1000)]
    for t_env in range(4):
        for learner in learners:
            learner.train(random_batch(learner.args, seed=t_env), t_env=t_env, episode_num=t_env)
    often, seldom = learners
    assert often.measures
    assert not seldom.measures
    assert {len(values) for values in often.logger.stats.values()} == {4}
    assert {len(values) for values in seldom.logger.stats.values()} == {1}
    assert often.logger.stats.keys() == seldom.logger.stats.keys()
    assert seldom.objective(random_batch(seldom.args, seed=9)).stats == {}
    for one, other in zip(often.params, seldom.params, strict=True):
        assert torch.equal(one, other)


# Saving


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize("alg", ALGS)
def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(alg, optimizer, tmp_path):
    options = {"target_update_interval": None, "target_update_tau": 0.1, "standardise_rewards": True}
    args = make_args(alg, optimizer=optimizer, **options)
    saved = make_learner(args)
    for k in range(3):
        saved.train(random_batch(args, seed=k), t_env=k, episode_num=k)
    saved.save_models(str(tmp_path))
    mixer_files = {"mixer.th", "target_mixer.th"} if args.mixer else set()
    assert {path.name for path in tmp_path.iterdir()} == {
        "agent.th",
        "target_agent.th",
        "opt.th",
        "statistics.th",
    } | mixer_files

    loaded = make_learner(args, seed=9)
    assert differs(weights(loaded), weights(saved))
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded), weights(saved))
    for k in range(3, 6):  # differs from here on if the optimiser's memory was lost
        for learner in (saved, loaded):
            learner.train(random_batch(args, seed=k), t_env=k, episode_num=k)
    assert_equal(weights(loaded), weights(saved))


@pytest.mark.parametrize("alg", ALGS)
def test_a_folder_of_pymarls_has_no_target_networks(alg, tmp_path):
    args = make_args(alg)
    saved = make_learner(args)
    shake(saved, seed=1)
    saved.save_models(str(tmp_path))
    for path in tmp_path.glob("target_*.th"):
        path.unlink()
    loaded = make_learner(args, seed=9)
    loaded.load_models(str(tmp_path))
    after, expected = weights(loaded), weights(saved)
    for key in after:
        assert torch.equal(after[key], expected[key.removeprefix("target_")]), key


def test_models_hold_pymarls_parameters(tmp_path):
    """The files carry the names of PyMARL's parameters, so that its models load here and the other way round."""
    learner = make_learner(make_args("qmix"))
    learner.save_models(str(tmp_path))
    gru = ["rnn.weight_ih", "rnn.weight_hh", "rnn.bias_ih", "rnn.bias_hh"]
    linear = [f"{name}.{kind}" for name in ("fc1", "fc2") for kind in ("weight", "bias")]
    assert set(torch.load(tmp_path / "agent.th", weights_only=True)) == {*gru, *linear}
    layers = ["hyper_w_1.0", "hyper_w_1.2", "hyper_w_final.0", "hyper_w_final.2", "hyper_b_1", "V.0", "V.2"]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(torch.load(tmp_path / "mixer.th", weights_only=True)) == expected


# Non-finite losses


def everything(learner):
    state = weights(learner)
    for index, memory in learner.optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{index}.{key}": torch.as_tensor(value).clone() for key, value in memory.items()}
    return state


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("alg", ALGS)
def test_a_non_finite_loss_is_named_and_changes_nothing(alg, value):
    args = make_args(alg, target_update_interval=1)
    learner = make_learner(args)
    learner.train(random_batch(args, seed=1), t_env=0, episode_num=5)
    before = everything(learner)
    bad = random_batch(args, seed=1)
    bad["reward"][1, 0] = value
    with pytest.raises(NonFiniteError) as error:
        learner.train(bad, t_env=1, episode_num=10)
    assert error.value.culprit == "td_loss"
    assert f"td_loss is {'nan' if value != value else 'inf'}" in str(error.value)
    assert_equal(everything(learner), before)
    learner.train(random_batch(args, seed=1), t_env=1, episode_num=10)  # it can go on
    assert differs(before, everything(learner))


def test_a_non_finite_gradient_of_a_finite_loss_is_named(monkeypatch):
    monkeypatch.setitem(mixer_REGISTRY, "root", RootMixer)
    learner = make_learner(make_args("qmix", mixer="root"))
    batch = random_batch(learner.args, seed=1)
    assert torch.isfinite(learner.objective(batch).loss)
    before = weights(learner)
    with pytest.raises(NonFiniteError, match="gradient norm") as error:
        learner.train(batch, t_env=0, episode_num=0)
    assert error.value.culprit == "gradient norm"
    assert_equal(weights(learner), before)


def test_a_non_finite_loss_of_finite_gradients_is_named():
    """A term without gradient, such as a constant that overflowed, makes the loss meaningless all the same."""
    learner = make_learner(make_args("qmix"))
    plain = learner.objective

    def objective(batch):
        found = plain(batch)
        found.terms["constant"] = torch.tensor(torch.inf)
        found.loss = found.loss + found.terms["constant"]
        return found

    learner.objective = objective
    before = weights(learner)
    with pytest.raises(NonFiniteError) as error:
        learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
    assert error.value.culprit == "constant"
    assert_equal(weights(learner), before)


# Parts written for PyMARL


def test_an_agent_without_unroll_gives_the_same_loss(monkeypatch):
    class PlainAgent(agent_REGISTRY["rnn"]):
        unroll = property()  # hasattr is False

    monkeypatch.setitem(agent_REGISTRY, "plain", PlainAgent)
    args = make_args("qmix")
    batch = random_batch(args, seed=1)
    fused = make_learner(args).objective(batch).loss.item()
    stepped_learner = make_learner(make_args("qmix", agent="plain"))
    assert not hasattr(stepped_learner.mac.agent, "unroll")
    assert stepped_learner.objective(batch).loss.item() == pytest.approx(fused, rel=1e-5)


def test_joint_values_are_the_networks():
    for alg in ALGS:
        args = make_args(alg)
        learner = make_learner(args)
        batch = random_batch(args, seed=1)
        q, joint = learner.joint_values(batch)
        assert not q.requires_grad
        torch.testing.assert_close(q, on_filled(batch, step_by_step(learner.mac, batch).detach()))
        taken = q.gather(3, batch["actions"]).squeeze(3)
        expected = {"iql": taken, "vdn": taken.sum(2, keepdim=True)}.get(alg)
        if expected is None:
            expected = learner.mixer(taken, batch["state"]).detach()
        torch.testing.assert_close(joint, expected)
