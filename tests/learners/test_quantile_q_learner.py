"""Quantile learners: their loss in nested loops, and that the greedy one is greedy Q-learning but for the TD term."""

import pytest
import torch
from helpers import EPISODES, gradients, make_args, make_learner, random_batch, shake, weights

from learners.greedy_q_learner import GreedyQLearner

QUANTILES = 3


def quantile_args(alg="qr_qmix", **overrides):
    return make_args(alg, quantiles=QUANTILES, gamma=0.875, **overrides)


def mix(mixer, q, state):
    """(N, M), (S,) -> (M,), quantile by quantile."""
    return torch.stack([mixer(values.view(1, 1, -1), state).squeeze() for values in q.unbind(dim=1)])


def naive_td_loss(learner, batch, head="cooperative", bonus=None):
    """The quantile loss in loops over episodes, steps, agents and quantiles."""
    args = learner.args
    z, z_target = learner.mac.unroll_quantiles(batch), learner.target_mac.unroll_quantiles(batch).detach()
    losses = []
    for e, episode in enumerate(EPISODES):
        for t in range(episode.length):
            chosen, following = [], []
            for i in range(args.n_agents):
                can = [a for a in range(args.n_actions) if batch["avail_actions"][e, t + 1, i, a] == 1]
                best = max(can, key=lambda a: z[e, t + 1, i, a].mean().item())
                chosen.append(z[e, t, i, batch["actions"][e, t, i, 0]])
                following.append(z_target[e, t + 1, i, best])
            chosen, following = torch.stack(chosen), torch.stack(following)  # (N, M)
            if head == "cooperative":
                state, next_state = batch["state"][e, t].view(1, 1, -1), batch["state"][e, t + 1].view(1, 1, -1)
                chosen = mix(learner.mixer, chosen, state).unsqueeze(0)
                following = mix(learner.target_mixer, following, next_state).detach().unsqueeze(0)
            ended = t == episode.length - 1 and episode.end == "terminated"
            target = batch["reward"][e, t, 0] + (0.0 if ended else args.gamma) * following
            for z_x, y_x in zip(chosen, target, strict=True):
                total = 0.0
                for m in range(QUANTILES):
                    for k in range(QUANTILES):
                        u = y_x[k] - z_x[m]
                        huber = 0.5 * u**2 if abs(u) <= 1 else abs(u) - 0.5
                        total = total + abs((m + 0.5) / QUANTILES - (1.0 if u < 0 else 0.0)) * huber
                losses.append(total / QUANTILES**2)
    return sum(losses) / len(losses)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("mixer", ["qmix", "vdn", None])
def test_loss_and_gradient_are_those_of_the_loops(mixer):
    learner = make_learner(quantile_args(mixer=mixer))
    shake(learner, seed=1)
    batch = random_batch(learner.args, seed=1)
    loss = learner.objective(batch).loss
    naive = naive_td_loss(learner, batch, "independent" if mixer is None else "cooperative")
    assert loss.item() == pytest.approx(naive.item(), rel=1e-9)
    for ours, theirs in zip(gradients(learner, loss), gradients(learner, naive), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


OFF = {"conservative": {"alpha_independent": 0.0, "alpha_cooperative": 0.0}, "munchausen": {"source": "none"}}


@pytest.mark.usefixtures("double")
def test_the_greedy_learner_weighs_the_quantile_losses_of_both_heads():
    gate = {"mode": "fixed", "weight_independent": 0.25}
    learner = make_learner(quantile_args("greedy_qr_qmix", gate=gate, **OFF))
    shake(learner, seed=1)
    batch = random_batch(learner.args, seed=1)
    naive = 0.25 * naive_td_loss(learner, batch, "independent") + 0.75 * naive_td_loss(learner, batch)
    assert learner.objective(batch).loss.item() == pytest.approx(naive.item(), rel=1e-9)


@pytest.mark.usefixtures("double")
def test_everything_but_the_td_term_reads_the_means():
    """Gaps, weights and bonuses are those of greedy Q-learning on the quantiles' means."""
    learner = make_learner(quantile_args("greedy_qr_qmix"))
    shake(learner, seed=1)
    batch = random_batch(learner.args, seed=1)
    ours = learner.objective(batch).stats
    learner.target_std = learner.gap_ema = learner.value_ema = learner.reward_std = None
    learner.td_ema = None
    learner._td = lambda *args: GreedyQLearner._td(learner, *args)
    plain = learner.objective(batch).stats
    same = [key for key in plain if key.startswith(("gap_", "gate_", "munchausen_", "value_", "penalty_"))]
    assert len(same) >= 10
    for key in same:
        assert ours[key].item() == pytest.approx(plain[key].item(), rel=1e-9), key


@pytest.mark.parametrize("alg", ["qr_qmix", "greedy_qr_qmix"])
def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(alg, tmp_path):
    args = quantile_args(alg, target_update_interval=None, target_update_tau=0.1)
    saved = make_learner(args)
    for k in range(3):
        saved.train(random_batch(args, seed=k), t_env=k, episode_num=k)
    saved.save_models(str(tmp_path))
    loaded = make_learner(args, seed=9)
    loaded.load_models(str(tmp_path))
    for learner in (saved, loaded):
        learner.train(random_batch(args, seed=4), t_env=4, episode_num=4)
    for name, value in weights(saved).items():
        assert torch.equal(value, weights(loaded)[name]), name


def test_acting_follows_the_mean_of_the_quantiles():
    learner = make_learner(quantile_args())
    batch = random_batch(learner.args, seed=1)
    z = learner.mac.unroll_quantiles(batch)
    torch.testing.assert_close(learner.mac.unroll(batch), z.mean(dim=-1))
    learner.mac.init_hidden(batch.batch_size)
    torch.testing.assert_close(learner.mac.forward(batch, 0), z[:, 0].mean(dim=-1), rtol=1e-5, atol=1e-6)
