"""Greedy Q-learning: its limits are QMIX and IQL bit for bit, and its objective is the method's, in nested loops."""

import math
import re
from pathlib import Path

import pytest
import torch
from greedy_cases import CASES, MORE_CASES, OFF, SHARED, SHORT, fixed, follow, greedy_args
from helpers import (
    EPISODES,
    Episode,
    WildGatedMAC,
    WildMAC,
    assert_equal,
    corrupt_padding,
    differs,
    gate_state,
    gradients,
    make_args,
    make_learner,
    random_batch,
    shake,
    weights,
    without_last_actions,
)
from nested_loops import HEADS, Reference

from utils.errors import UserError
from utils.networks import NonFiniteError

# The limits


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize("options", [{}, {"td_lambda": 0.6}, {"double_q": False, "grad_norm_clip": 0.1}])
@pytest.mark.parametrize("mixer", ["qmix", "vdn"])
def test_with_every_term_off_it_is_qmix_bit_for_bit(mixer, options, optimizer):
    greedy = make_learner(fixed(0.0, mixer=mixer, optimizer=optimizer, **options))
    plain = make_learner(make_args(mixer, **{**SHARED, "optimizer": optimizer, **options}))
    start = weights(plain)
    for k in range(6):
        batch = random_batch(plain.args, seed=k)
        ours, theirs = greedy.objective(batch).loss, plain.objective(batch).loss
        assert torch.equal(ours, theirs)
        for g, h in zip(gradients(greedy, ours), gradients(plain, theirs), strict=True):
            assert torch.equal(g, h)
        for learner in (greedy, plain):
            learner.train(batch, t_env=k, episode_num=k)
        after = weights(greedy)
        assert_equal({key: after[key] for key in weights(plain)}, weights(plain))
    assert differs(start, weights(plain))


@pytest.mark.parametrize("td_lambda", [0.0, 0.6])
def test_with_all_weight_on_the_independent_head_it_is_iql_on_the_utilities(td_lambda):
    options = {"td_lambda": td_lambda, "grad_norm_clip": 1e6}
    greedy = make_learner(fixed(1.0, **options))
    iql = make_learner(make_args("iql", **{**SHARED, **options}))
    mixer = {key: value for key, value in weights(greedy).items() if key.startswith("mixer")}
    for k in range(4):
        batch = random_batch(iql.args, seed=k)
        assert torch.equal(greedy.objective(batch).loss, iql.objective(batch).loss)
        for learner in (greedy, iql):
            learner.train(batch, t_env=k, episode_num=k)
        after = weights(greedy)
        assert_equal({key: after[key] for key in weights(iql)}, weights(iql))
    assert_equal({key: after[key] for key in mixer}, mixer)  # nothing pulls at the mixer


def test_every_term_that_is_switched_on_changes_the_loss():
    """Or else the bit for bit equality above would say nothing about the switches."""
    batch = random_batch(fixed(0.0), seed=1)

    def loss(**blocks):
        learner = make_learner(greedy_args(**{**OFF, "gate": {"mode": "fixed", "weight_independent": 0.0}, **blocks}))
        shake(learner, seed=2)
        return learner.objective(batch).loss.item()

    losses = [
        loss(),
        loss(gate={"mode": "fixed", "weight_independent": 0.25}),
        loss(gate={"mode": "none"}),
        loss(gate={"mode": "direct"}),
        loss(conservative={"alpha_independent": 0.0, "alpha_cooperative": 0.5}),
        loss(munchausen={"source": "alt_counterfactual", "bootstrap": "soft"}),
        loss(gate={"mode": "fixed", "weight_independent": 0.25}, munchausen={"bootstrap": "hard"}),
    ]
    assert len({round(value, 6) for value in losses}) == len(losses)


# The whole objective


FOUND: dict[tuple, str] = {}  # what each case came to: no option is without effect on these batches


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_objective_gradient_and_statistics_are_those_of_the_nested_loops(name):
    """Two batches, the networks moving in between; slow, target and online networks all differ."""
    learner = make_learner(greedy_args(**CASES[name]))
    reference = Reference(learner)
    episodes = EPISODES if name == "direct" else SHORT
    for k in range(2):
        shake(learner, seed=k)
        batch = follow(learner, random_batch(learner.args, seed=k, scale=1 + k, episodes=episodes), episodes)
        batch["reward"].add_(2)  # greedy play earns more than a head says, or less
        objective = learner.objective(batch)
        loss, stats = reference(batch, episodes)
        assert objective.loss.item() == pytest.approx(loss.item(), rel=1e-9)
        for ours, theirs in zip(gradients(learner, objective.loss), gradients(learner, loss), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)
        found = {key: value.item() for key, value in objective.stats.items()}
        if learner.behaviour is not None:  # what its model reports is tested with the model
            found = {key: value for key, value in found.items() if not key.startswith("behaviour_")}
        assert found.keys() == stats.keys()
        assert found == pytest.approx(stats, rel=1e-7, abs=1e-12)  # shares of steps are float32
        for key, value in gate_state(learner).items():
            expected = reference.state()[key]
            assert value.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12), key
        named = {key: stats[key] for key in stats if key.startswith(("td_loss_", "penalty_indep", "penalty_coop"))}
        named |= {key: stats[key] for key in stats if key == "imitation_loss"}
        assert {key: value.item() for key, value in objective.terms.items()} == pytest.approx(named, rel=1e-9)
    outcome = (loss.item(), *learner.weights.tolist(), *learner.gap_ema.tolist())
    outcome += (*learner.excess_ema.tolist(), *learner.log_multipliers.tolist(), *learner.log_coefficients.tolist())
    assert FOUND.setdefault(tuple(round(value, 9) for value in outcome), name) == name


def test_equal_rewards_leave_the_scales_positive():
    learner = make_learner(greedy_args())
    batch = random_batch(learner.args, seed=1, scale=0.0)
    assert torch.isfinite(learner.objective(batch).loss)
    assert learner.reward_std.item() == pytest.approx(1e-3)
    assert (learner.target_std >= 1e-3).all()


# The gate


def gaps_of(learner, worst: bool):
    """A batch whose actions are all the best of the online network, or all the worst."""
    batch = random_batch(learner.args, seed=1)
    for _ in range(len(EPISODES) + 10):  # actions change what the agents see next, so one pass is not enough
        q = learner.mac.unroll(batch).detach()
        off = q.masked_fill(batch["avail_actions"] == 0, torch.inf if worst else -torch.inf)
        batch["actions"].copy_(
            (off.argmin(-1) if worst else off.argmax(-1)).unsqueeze(-1) * batch["filled"].unsqueeze(2)
        )
    return batch


@pytest.mark.usefixtures("double")
class TestGate:
    """A sum makes the gaps exact: the joint gap is N times the agents' gap, and the counterfactual gap equals it."""

    def learner(self, **gate):
        exact = {"p": 1.0, "eps": 1e-9, "floor": 0.0, "ema": 0.75}
        learner = make_learner(greedy_args(mixer="vdn", gate={**exact, **gate}))
        shake(learner, seed=1)
        return learner

    def test_reciprocal_weights(self):
        learner = self.learner()
        batch = gaps_of(learner, worst=True)
        learner.objective(batch)
        assert learner.gap_ema[1].item() == pytest.approx(3 * learner.gap_ema[0].item())
        assert learner.weights.tolist() == pytest.approx([3 / 4, 1 / 4], abs=1e-6)
        learner = self.learner(p=2.0)
        learner.objective(batch)
        assert learner.weights.tolist() == pytest.approx([9 / 10, 1 / 10], abs=1e-6)
        learner = self.learner(floor=0.2)
        learner.objective(batch)
        assert learner.weights.tolist() == pytest.approx([0.2 + 0.6 * 3 / 4, 0.2 + 0.6 / 4], abs=1e-6)
        learner = self.learner(joint="cf")
        learner.objective(batch)
        assert learner.weights.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)

    def test_hard_weights(self):
        learner = self.learner(mode="hard", floor=0.05)
        learner.objective(gaps_of(learner, worst=True))
        assert learner.weights.tolist() == pytest.approx([0.95, 0.05])

    def test_data_of_the_best_actions_leaves_no_gap_and_the_prior_decides(self):
        for mode, prior, expected in (
            ("direct", 0.5, 0.5),
            ("direct", 0.9, 0.9),
            ("hard", 0.5, 0.0),
            ("hard", 0.9, 1.0),
        ):
            learner = self.learner(mode=mode, prior_cooperative=prior)
            learner.objective(gaps_of(learner, worst=False))
            assert learner.gap_ema.tolist() == pytest.approx([0, 0], abs=1e-12)
            assert learner.weights.tolist() == pytest.approx([1 - expected, expected])

    def test_weights_follow_the_smoothed_gaps_to_the_head_that_the_data_supports(self):
        learner = self.learner(eps=0.01)
        learner.objective(gaps_of(learner, worst=False))
        bad = gaps_of(learner, worst=True)
        q = learner.mac.unroll(bad).detach()  # the same in every call below
        taken = q.gather(3, bad["actions"]).squeeze(3)
        best = q.masked_fill(bad["avail_actions"] == 0, -torch.inf).max(-1).values
        step = (best - taken)[bad["filled"].squeeze(2).roll(-1, 1).bool() & (torch.arange(7) < 6)].mean().item()
        trust = []
        for k in range(1, 6):
            learner.objective(bad)
            assert learner.gap_ema.tolist() == pytest.approx([(1 - 0.75**k) * step, 3 * (1 - 0.75**k) * step])
            trust.append(learner.weights[0].item())
        assert 0.5 < trust[0] < trust[1] < trust[2] < trust[3] < trust[4] < 0.75

    def test_multipliers_climb_by_half_the_difference_of_the_gaps(self):
        """In units of the targets' deviation."""
        learner = make_learner(greedy_args(gate={"mode": "lagrange", "eta": 0.5, "floor": 0.0, "l_max": 50.0}))
        shake(learner, seed=1)
        batch = gaps_of(learner, worst=True)
        learner.objective(batch)
        gaps = learner.gap_ema.tolist()  # all batches are the same
        assert gaps[0] != gaps[1]
        expected = learner.log_multipliers[0].item()
        for _ in range(3):
            expected += 0.5 * (gaps[0] - gaps[1]) / 2 / learner.target_std.mean().item()
            learner.objective(batch)
            logs = learner.log_multipliers.tolist()
            assert logs == pytest.approx([expected, -expected])
            total = math.exp(-logs[0]) + math.exp(-logs[1])
            assert learner.weights.tolist() == pytest.approx([math.exp(-log) / total for log in logs])

    def test_no_gradient_flows_through_the_weights_and_scales(self):
        learner = self.learner()
        learner.objective(random_batch(learner.args, seed=1))
        for value in gate_state(learner).values():
            assert not value.requires_grad


# Corruption


@pytest.mark.parametrize(
    "case",
    [
        *("direct", "lagrange", "td", "over", "over, clipped importance", "target cert, importance"),
        *("penalty to the behaviour", "first-order penalty", "held penalty", "direct KL", "sampled penalty"),
        *("neighbour's confidence", "what others say", "separate, utility as alternative"),
        *("separate, switch by the certificate", "separate, actor by the gap", "individual rewards, realised"),
        *("cloned behaviour", "behaviour with a latent"),
    ],
)
def test_padding_changes_nothing(case):
    found = []
    for corrupt in (False, True):
        learner = make_learner(greedy_args(**{"td_lambda": 0.5, **MORE_CASES[case]}))
        shake(learner, seed=2)
        batch = follow(learner, random_batch(learner.args, seed=3, episodes=SHORT), SHORT)
        torch.manual_seed(4)  # of samples and latents
        objective = learner.objective(corrupt_padding(batch, SHORT) if corrupt else batch)
        found.append((objective, gradients(learner, objective.loss), gate_state(learner)))
    (clean, clean_gradients, clean_gate), (wild, wild_gradients, wild_gate) = found
    torch.testing.assert_close(clean.loss, wild.loss, rtol=1e-6, atol=0)
    for key, value in clean.stats.items():
        torch.testing.assert_close(value, wild.stats[key], rtol=1e-5, atol=1e-7, msg=key)
    for ours, theirs in zip(clean_gradients, wild_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for key, value in clean_gate.items():
        torch.testing.assert_close(value, wild_gate[key], rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize(
    "case", ["direct", "hard bootstrap", "no munchausen", "TD(lambda)", "VDN", "separate, target", "cert, importance"]
)
def test_a_terminal_observation_may_offer_no_action(case):
    losses = []
    for change in (lambda batch: batch, without_last_actions):
        learner = make_learner(greedy_args(**CASES[case]))
        losses.append(learner.objective(change(random_batch(learner.args, seed=3))).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize(
    "case",
    [
        *("direct", "lagrange", "hard bootstrap", "max penalty", "mean penalty", "softmax penalty", "joint penalty"),
        *("penalty to the behaviour", "first-order penalty", "sampled penalty", "VDN", "direct, gap per gain"),
        *("over", "cert, importance", "target min", "direct KL", "what others say", "neighbour's confidence"),
        *("separate, utility as alternative", "separate, what others say", "separate, actor by the gap"),
        *("individual rewards, realised", "behaviour with a latent"),
    ],
)
def test_values_of_unavailable_actions_change_nothing(case):
    found = []
    for wild in (0.0, 1e4):
        mac_class = WildGatedMAC if case.startswith("separate") else WildMAC
        learner = make_learner(greedy_args(**MORE_CASES[case]), mac_class=mac_class)
        shake(learner, seed=2)
        batch = follow(learner, random_batch(learner.args, seed=3, episodes=SHORT), SHORT)
        learner.mac.wild = learner.target_mac.wild = learner.slow_mac.wild = wild
        torch.manual_seed(4)  # of samples and latents
        objective = learner.objective(batch)
        found.append((objective.loss, gradients(learner, objective.loss), gate_state(learner)))
    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(ours, theirs)
    assert_equal(found[0][2], found[1][2])


# Training


def test_slow_copies_follow_the_target_networks():
    args = greedy_args(target_update_interval=None, target_update_tau=0.5, munchausen={"alternative_ema": 0.25})
    learner = make_learner(args)
    shake(learner, seed=1)
    before = weights(learner)
    learner.train(random_batch(args, seed=1), t_env=0, episode_num=0)
    after = weights(learner)
    for key, old in before.items():
        if key.startswith("target_"):
            online = after[key.removeprefix("target_")]
            torch.testing.assert_close(after[key], 0.5 * old + 0.5 * online)
        elif key.startswith("slow_"):
            torch.testing.assert_close(after[key], 0.75 * old + 0.25 * after[key.replace("slow_", "target_")])


def test_same_seed_same_weights():
    def train(seed):
        learner = make_learner(greedy_args(), seed=seed)
        for k in range(5):
            learner.train(random_batch(learner.args, seed=seed + k), t_env=k, episode_num=k)
        return weights(learner) | gate_state(learner)

    first = train(0)
    assert_equal(first, train(0))
    assert differs(first, train(1))


EVERYWHERE = {
    *(
        "loss",
        "grad_norm",
        "td_error_abs",
        "td_error_abs_independent",
        "q_taken_mean",
        "target_mean",
        "realised_return",
        "greedy_change",
    ),
    *(
        f"{name}_{head}"
        for name in ("td_loss", "penalty", "gap", "gate_weight", "target_std", "value", "munchausen_bonus")
        for head in HEADS
    ),
}
MEASURED = {"excess_independent", "excess_cooperative"}
MODELLED = {"behaviour_loss", "behaviour_log_likelihood", "behaviour_calibration_error"}
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "logged.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("case", "more"),
    [
        ("direct", set()),
        ("lagrange", {"multiplier_independent", "multiplier_cooperative"}),
        ("held penalty", {"penalty_coefficient_independent", "penalty_coefficient_cooperative"}),
        ("over", MEASURED),
        ("target cert", MEASURED),
        ("separate", {"heads_disagree"}),
        ("separate, actor by the gap", {"heads_disagree", "imitation_loss"}),
        ("cloned behaviour", MODELLED),
        ("behaviour with a latent", MEASURED | MODELLED | {"behaviour_kl"}),
    ],
)
def test_statistics_are_logged(case, more):
    learner = make_learner(greedy_args(**CASES[case]))
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
    assert set(learner.logger.stats) == EVERYWHERE | more
    for name in learner.logger.stats:
        of_head = re.sub("_(independent|cooperative)$", "_h", name)
        assert f"| `{name}`" in DOCUMENTED or f"| `{of_head}`" in DOCUMENTED, name


@pytest.mark.parametrize(
    "case",
    [
        "direct",
        "lagrange",
        "td",
        "held penalty",
        "over, clipped importance",
        "separate, target",
        "separate, actor by the gap",
        "separate, switch by the certificate",
        "cloned behaviour",
        "behaviour with a latent",
    ],
)
def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(case, tmp_path):
    args = greedy_args(**CASES[case])
    saved = make_learner(args)
    for k in range(4):
        saved.train(random_batch(args, seed=k), t_env=k, episode_num=k)
    saved.save_models(str(tmp_path))
    loaded = make_learner(args, seed=9)
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))
    saved.last_target_update_episode = loaded.last_target_update_episode = 0  # a new run counts its episodes anew
    for k in range(4):
        for learner in (saved, loaded):
            torch.manual_seed(k)  # of the latents
            learner.train(random_batch(args, seed=10 + k), t_env=k, episode_num=k)
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))


def test_a_learner_can_be_saved_before_its_first_update(tmp_path):
    saved, loaded = make_learner(greedy_args()), make_learner(greedy_args(), seed=9)
    saved.save_models(str(tmp_path))
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))
    batch = random_batch(saved.args, seed=1)
    assert torch.equal(loaded.objective(batch).loss, saved.objective(batch).loss)


@pytest.mark.parametrize(
    ("control", "expected"),
    [({"mode": "fixed", "weight_independent": 0.25}, [0.25, 0.75]), ({"mode": "none"}, [0.5, 0.5])],
)
def test_a_control_keeps_its_weights_whatever_model_it_starts_from(control, expected, tmp_path):
    args = greedy_args()
    saved = make_learner(args)
    saved.train(random_batch(args, seed=1), t_env=0, episode_num=0)
    assert saved.weights.tolist() != pytest.approx(expected, abs=0.01)
    saved.save_models(str(tmp_path))
    loaded = make_learner(greedy_args(gate=control), seed=9)
    loaded.load_models(str(tmp_path))
    assert loaded.weights.tolist() == expected


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("mode", ["direct", "lagrange"])
@pytest.mark.parametrize("metric", ["gap", "td"])
def test_the_scale_of_rewards_does_not_change_weights(metric, mode):
    """Twice the values: twice the gaps and deviations, and four times the TD loss."""
    weights = []
    for c in (1.0, 2.0):
        learner = make_learner(greedy_args(gate={"metric": metric, "mode": mode, "eps": 0.25, "eta": 0.5}))
        learner.target_std = c * torch.tensor([2.0, 3.0])
        learner.td_ema = c**2 * torch.tensor([0.5, 4.0])
        learner._weigh(c * torch.tensor([0.5, 1.5]))
        weights.append(learner.weights.tolist())
    assert weights[0][0] != pytest.approx(0.5, abs=0.01)
    assert weights[1] == pytest.approx(weights[0])


def test_a_qmix_model_starts_the_slow_copies_anew(tmp_path):
    qmix = make_learner(make_args("qmix", **SHARED))
    shake(qmix, seed=1)
    qmix.save_models(str(tmp_path))
    greedy = make_learner(greedy_args(), seed=9)
    greedy.load_models(str(tmp_path))
    after, expected = weights(greedy), weights(qmix)
    for key, value in after.items():
        assert torch.equal(value, expected[key.replace("slow_", "target_")]), key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_is_named_and_changes_nothing(value):
    learner = make_learner(greedy_args())
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
    before = weights(learner) | gate_state(learner)
    bad = random_batch(learner.args, seed=1)
    bad["reward"][1, 0] = value
    with pytest.raises(NonFiniteError, match="td_loss_independent") as error:
        learner.train(bad, t_env=1, episode_num=10)
    assert error.value.culprit == "td_loss_independent"
    assert set(error.value.terms) == {
        "td_loss_independent",
        "penalty_independent",
        "td_loss_cooperative",
        "penalty_cooperative",
        "gradient norm",
    }
    assert_equal(weights(learner) | gate_state(learner), before)


def test_without_a_mixer_it_is_refused():
    with pytest.raises(UserError, match="needs a mixer"):
        make_learner(make_args("greedy_qmix", unchecked={"mixer": None}))


def test_single_step_episodes_work():
    """The stateless games have nothing but first and last steps."""
    learner = make_learner(greedy_args())
    batch = random_batch(learner.args, seed=1, episodes=(Episode(1, "terminated"), Episode(1, "early")))
    learner.train(batch, t_env=0, episode_num=0)
    assert all(torch.isfinite(value).all() for value in weights(learner).values())
