"""The gate: the method's numbers N4, N4b, N4c, N4d and N13, Proposition 3.1 and Theorem 3.7."""

import math

import pytest
import torch

from objectives.conservative import agent_gaps, counterfactual_gap
from objectives.gate import (
    certified_value,
    combine,
    direct_weights,
    gated_value,
    hard_weights,
    lagrange_step,
    lagrange_weights,
    loss_units,
    regret,
    smooth,
    suffix_weights,
    weighted_excess,
)
from objectives.td import td_loss


def t64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("d", "eps", "p", "floor", "weights", "weighted_gap"),
    [
        ([1, 3], 1e-6, 1, 0.0, [0.750000, 0.250000], 1.500000),  # 1 and 1/3, over 4/3
        ([1, 3], 1e-6, 2, 0.0, [0.900000, 0.100000], 1.200000),  # 1 and 1/9, over 10/9
        ([0.5, 0.5], 1e-6, 1, 0.0, [0.500000, 0.500000], 0.500000),
        ([-0.5, 0.6], 1e-6, 1, 0.0, [0.999998, 0.000002], -0.499998),  # 1e6 and 1/.600001
        ([-0.5, 0.6], 0.1, 1, 0.0, [0.875000, 0.125000], -0.362500),  # 10 and 1/.7
        ([0, 0.3], 0.01, 1, 0.0, [0.968750, 0.031250], 0.009375),  # 100 and 1/.31
        ([0, 0.3], 0.01, 1, 0.05, [0.921875, 0.078125], 0.023438),  # .05 + .9 w
        ([2, 0.1], 1e-6, 1, 0.05, [0.092858, 0.907142], 0.276429),  # .05 + .9 (1/2, 10)/10.5
        ([0, 0], 1e-6, 1, 0.0, [0.500000, 0.500000], 0.000000),
    ],
)
def test_n4_direct_weights(d, eps, p, floor, weights, weighted_gap):
    gaps = t64(d)
    actual = direct_weights(gaps, eps, p, floor)
    close(actual, weights)
    close(actual.sum(), 1.0, 1e-12)
    close((actual * gaps).sum(), weighted_gap)
    close(direct_weights(gaps, t64(eps), p, floor), weights)  # eps in units of a running scale is a tensor


def test_n4_row_with_absolute_gaps():
    # 1/.5 and 1/.6, over 11/3
    d = t64([-0.5, 0.6])
    weights = direct_weights(d.abs(), 1e-6)
    close(weights, [0.545454, 0.454546])
    close((weights * d).sum(), 0.0)


def test_n4_a_signed_reciprocal_never_happens():
    # 1/(-.5) and 1/.6 would give (6, -5).
    weights = direct_weights(t64([-0.5, 0.6]), 1e-6)
    assert (weights > 0).all()
    assert (weights < 1).all()


@pytest.mark.parametrize(
    ("d", "floor", "weights"),
    [
        ([1, 3], 0.0, [1, 0]),
        ([2, 0.1], 0.0, [0, 1]),
        ([2, 0.1], 0.05, [0.05, 0.95]),
        ([0.5, 0.5], 0.0, [1, 0]),  # a tie
        ([-0.1, -0.7], 0.0, [1, 0]),  # both clipped to 0: a tie
        ([0.3, -0.7], 0.1, [0.1, 0.9]),
    ],
)
def test_n4_hard_weights(d, floor, weights):
    close(hard_weights(t64(d), floor), weights, 1e-12)


def test_direct_weights_become_hard_with_growing_p():
    d = t64([0.4, 0.3])
    close(direct_weights(d, 1e-6, p=300), hard_weights(d))
    assert direct_weights(d, 1e-6, p=1)[1] < direct_weights(d, 1e-6, p=4)[1] < 1


def test_n4_smoothing():
    value, seen = None, []
    for gap in [1.0, 0.5, 0.0, 0.25]:
        value = smooth(value, t64([gap, 2 * gap]), decay=0.9)
        seen.append(value.tolist())
    # 1;  .9 + .05;  .9 * .95;  .9 * .855 + .025
    close(t64(seen), [[x, 2 * x] for x in (1.000000, 0.950000, 0.855000, 0.794500)])


def test_smoothing_carries_no_gradient_and_copies():
    gaps = t64([1.0, 2.0]).requires_grad_()
    first = smooth(None, gaps, 0.9)
    second = smooth(first, gaps * 3, 0.9)
    assert not first.requires_grad
    assert not second.requires_grad
    with torch.no_grad():
        gaps.fill_(9.0)
    close(first, [1.0, 2.0])


def test_n4b_multiplier_weights_cancel_against_multipliers():
    # w = (1/.1, 1/10) / 10.1, so w_I * .1 = w_C * 10 = 1/10.1
    multipliers = t64([0.1, 10.0])
    for weights in (lagrange_weights(multipliers.log()), direct_weights(multipliers, 1e-9)):
        close(weights, [0.990099, 0.009901])
        close(weights * multipliers, [0.099010, 0.099010])


@pytest.mark.parametrize(
    ("V", "G", "over", "weights"),
    [
        ([5 / 6, 10 / 3], [6, -1], [0, 4.3333333], [0.997703, 0.002297]),  # 100 and 1/4.343333
        ([1 / 3, 3], [0, 3], [0.3333333, 0], [0.028302, 0.971698]),  # 1/.343333 and 100
    ],
)
def test_n4c_weights_from_overestimation(V, G, over, weights):
    statistic = (t64(V) - t64(G)).relu()
    close(statistic, over)
    close(direct_weights(statistic, 0.01), weights)


@pytest.mark.parametrize(
    ("V", "G", "certified", "lacking", "independent"),
    [
        ([5 / 6, 10 / 3], [6, -1], [5 / 6, -1], [0, 11 / 6], 1.0),  # what I promises it keeps; C earns -1
        ([1 / 3, 3], [0, 3], [0, 3], [3, 0], 0.0),
    ],
)
def test_n4c_certified_values(V, G, certified, lacking, independent):
    found = certified_value(t64(V), t64(V) - t64(G))
    close(found, certified)
    close(regret(found), lacking)
    close(hard_weights(regret(found)), [independent, 1 - independent])


def test_a_certified_value_is_the_smaller_of_the_promise_and_what_was_kept():
    rng = torch.Generator().manual_seed(3)
    V, G = torch.randn(2, 50, 2, generator=rng, dtype=torch.float64)
    found = certified_value(V, V - G)
    for row in range(50):
        for h in range(2):
            close(found[row, h], min(V[row, h].item(), G[row, h].item()), 1e-12)


def test_regret_is_what_a_head_lacks_to_the_better_one():
    for pair in ([1.0, 4.0], [4.0, 1.0], [-2.0, -2.0]):
        close(regret(t64(pair)), [max(pair) - value for value in pair])


def test_n4d_gated_values():
    # V = (2, 5) over data whose mean is 1 for both heads, so d = (1, 4)
    values, gaps, nothing = t64([2.0, 5.0]), t64([1.0, 4.0]), t64([0.0, 0.0])

    def gated(how, weights=nothing, excess=nothing):
        return gated_value(values[:1].view(1, 1, 1), values[1:].view(1, 1, 1), how, weights, excess)

    soft = direct_weights(gaps, 1e-9)
    close(soft, [0.8, 0.2])
    close((soft * values).sum(), 2.6)  # 1 + the harmonic mean 1.6
    close(gated("soft", soft), [[[2.6]]])
    harder = direct_weights(gaps, 1e-9, p=2)
    close(harder, [0.941176, 0.058824])  # 16/17 and 1/17
    close((harder * values).sum(), 2.176471)
    close(gated("soft", harder), [[[2.176471]]])
    close((hard_weights(gaps) * values).sum(), 2.0)
    close(gated("soft", hard_weights(gaps)), [[[2.0]]])
    close(gated("min"), [[[2.0]]])
    close(gated("cert", excess=values - t64([1.5, 4.0])), [[[4.0]]])  # max of min(2, 1.5) and min(5, 4)


def test_gated_values_in_loops():
    rng = torch.Generator().manual_seed(4)
    a, b = torch.randn(2, 3, 4, 1, generator=rng, dtype=torch.float64)
    weights, excess = t64([0.3, 0.7]), t64([-0.4, 0.6])  # what is earned above a value certifies no more than it
    for e in range(3):
        for t in range(4):
            x, y = a[e, t, 0].item(), b[e, t, 0].item()
            expected = {"min": min(x, y), "soft": 0.3 * x + 0.7 * y, "cert": max(x, y - 0.6)}
            for how, value in expected.items():
                close(gated_value(a, b, how, weights, excess)[e, t], [value], 1e-12)
    with pytest.raises(ValueError, match="how must be min, soft or cert, got 'own'"):
        gated_value(a, b, "own", weights, excess)


def test_until_both_heads_have_been_measured_the_smaller_value_is_bootstrapped_on():
    one, other, weights, excess = t64([[[2.0]]]), t64([[[5.0]]]), t64([0.5, 0.5]), t64([0.5, 0.0])
    for known in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]):
        close(gated_value(one, other, "cert", weights, excess, t64(known)), [[[2.0]]])
    close(gated_value(one, other, "cert", weights, excess, t64([1.0, 1.0])), [[[5.0]]])


def test_proposition_3_1_weighted_gap_is_the_harmonic_mean():
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        d = 5 * torch.rand(2, generator=rng, dtype=torch.float64) + 1e-3
        weighted = (direct_weights(d, 0.0) * d).sum()
        close(weighted, 2 * d[0] * d[1] / (d[0] + d[1]), 1e-9)
        assert d.min() - 1e-9 <= weighted <= 2 * d.min() + 1e-9


def test_proposition_3_1_gradient_with_detached_weights():
    # HM/2 * grad log d_h: with d = (1, 3) that is .75 (1, 1/3)
    d = t64([1.0, 3.0]).requires_grad_()
    combine(t64([0.0, 0.0]), d, direct_weights(d, 0.0), "penalty").backward()
    close(d.grad, [0.75, 0.25])


def test_theorem_3_2_hard_weights_pick_the_smaller_value():
    rng = torch.Generator().manual_seed(1)
    for _ in range(200):
        mean = torch.randn(1, generator=rng, dtype=torch.float64)
        values = mean + torch.rand(2, generator=rng, dtype=torch.float64)
        close((hard_weights(values - mean) * values).sum(), values.min(), 1e-12)


def test_lagrange_step_by_hand():
    # mean gap 2, so the steps are -.1 and +.1
    close(lagrange_step(t64([0.5, -0.2]), t64([1.0, 3.0]), eta=0.1, l_max=4.0), [0.4, -0.1])
    close(lagrange_step(t64([3.95, -3.95]), t64([9.0, 1.0]), eta=0.1, l_max=4.0), [4.0, -4.0])  # clipped
    close(lagrange_weights(t64([4.0, -4.0])), [1 / (1 + math.exp(8)), 1 / (1 + math.exp(-8))])
    close(lagrange_weights(t64([0.0, math.log(3)])), [0.75, 0.25])  # 1 and 1/3
    close(lagrange_weights(t64([0.0, math.log(3)]), floor=0.1), [0.7, 0.3])  # .1 + .8 w


def test_lagrange_steps_toward_a_threshold_by_hand():
    logs, gaps = t64([0.5, -0.2]), t64([1.0, 3.0])
    close(lagrange_step(logs, gaps, eta=0.1, l_max=4.0, threshold=0.5), [0.55, 0.05])  # .1 * .5 and .1 * 2.5
    close(lagrange_step(logs, gaps, eta=0.1, l_max=4.0, threshold=5.0), [0.1, -0.4])
    close(lagrange_step(logs, gaps, eta=0.1, l_max=4.0, threshold=t64(0.5)), [0.55, 0.05])
    # Times the multiplier, e^.5 and e^-.2
    close(lagrange_step(logs, gaps, 0.1, 4.0, "gradient"), [0.335128, -0.118127])
    close(lagrange_step(logs, gaps, 0.1, 4.0, "gradient", threshold=0.5), [0.5 + 0.0824361, -0.2 + 0.2046827])
    close(lagrange_step(logs, gaps, 10.0, 0.4, "gradient"), [-0.4, 0.4])  # clipped


def test_the_gradient_form_stalls_where_the_multiplier_is_small():
    # From log -8 with an excess of .5: 320 steps of .025 lead to 0, or about (e^8 - 1) / .025 = 119 000
    logs = {"exp": t64([-8.0, -8.0]), "gradient": t64([-8.0, -8.0])}
    for _ in range(320):
        for form, log in logs.items():
            logs[form] = lagrange_step(log, t64([1.0, 1.0]), eta=0.05, l_max=9.0, form=form, threshold=0.5)
    close(logs["exp"], [0.0, 0.0])
    assert (logs["gradient"] < -7.99).all()


@pytest.mark.parametrize("threshold", [None, 0.0, 2.0])
def test_the_threshold_cancels_in_the_weights(threshold):
    logs = lagrange_step(t64([0.5, -0.2]), t64([1.0, 3.0]), eta=0.1, l_max=9.0, threshold=threshold)
    close(logs[0] - logs[1], 0.7 - 0.2)


def test_lagrange_step_carries_no_gradient():
    gaps = t64([1.0, 3.0]).requires_grad_()
    for form in ("exp", "gradient"):
        for threshold in (None, 0.5):
            assert not lagrange_step(t64([0.0, 0.0]), gaps, 0.1, 4.0, form, threshold).requires_grad
    with pytest.raises(ValueError, match="form must be exp or gradient, got 'linear'"):
        lagrange_step(t64([0.0, 0.0]), gaps, 0.1, 4.0, "linear")


def test_theorem_3_7_lagrange_is_hedge():
    rng = torch.Generator().manual_seed(2)
    eta, rounds, largest = 0.05, 400, 3.0
    log_multipliers, total, paid = t64([0.0, 0.0]), t64([0.0, 0.0]), 0.0
    for _ in range(rounds):
        gaps = largest * torch.rand(2, generator=rng, dtype=torch.float64) * t64([1.0, 0.8])
        paid += (lagrange_weights(log_multipliers) * gaps).sum().item()
        log_multipliers = lagrange_step(log_multipliers, gaps, eta, l_max=1e9)
        total = total + gaps
        hedge = 1 / (1 + math.exp(-eta * (total[1] - total[0])))  # sigmoid of the summed difference
        close(lagrange_weights(log_multipliers), [hedge, 1 - hedge], 1e-12)
    assert hedge < 0.1  # the weights did move
    assert paid <= total.min().item() + math.log(2) / eta + eta * rounds * largest**2 / 8


def n13():
    """One transition: the utilities of N1b, the mixer of N2, actions (0, 2), targets .9, .4 and 1.1."""
    q = t64([[[[0.5, 1.5, -1.0], [2.0, 0.0, 1.0]]]])
    avail = torch.tensor([[[[1, 1, 1], [1, 0, 1]]]])
    chosen, one = t64([[[0.5, 1.0]]]), t64([[[1.0]]])
    # Q_tot with agent 1, then agent 2 changing its action (method, N3); that of the data is 3.55
    q_cf = t64([[[[3.55, 4.8, 1.7610229], [6.675, 0.4268441, 3.55]]]])
    q_tot = t64([[[3.55]]])
    td = torch.stack([td_loss(chosen, t64([[[0.9, 0.4]]]), one.expand(1, 1, 2)), td_loss(q_tot, t64([[[1.1]]]), one)])
    gaps = [agent_gaps(q, avail, chosen, "lse").mean(), counterfactual_gap(q_cf, avail, q_tot, "lse").mean()]
    return td, torch.stack(gaps)


def test_n13_combined_loss():
    td, d = n13()
    close(td, [0.130000, 3.001250])  # (.4^2 + .6^2) / 4 and 2.45^2 / 2
    close(d, [1.342400, 2.353236])
    weights = direct_weights(d, 1e-6)
    close(weights, [0.636761, 0.363239])  # 2.353236 and 1.342400, over 3.695636
    close(combine(td, 0.5 * d, weights, "penalty"), 3.986038)
    close(combine(td, 0.5 * d, weights, "loss"), 2.027739)
    close(combine(td, 0.5 * d, None, "loss"), 4.979068)
    close(combine(td, 0.5 * d, None, "penalty"), 4.979068)
    close(combine(td, 0.5 * d, weights, "none"), 4.979068)


def test_losses_in_one_unit_by_hand():
    close(loss_units(t64([0.5, 2.0])), [1.0, 0.0625])
    close(loss_units(t64([3.0, 3.0])), [1.0, 1.0])
    close(loss_units(t64([0.2, 0.1])), [1.0, 4.0])
    with pytest.raises(ValueError, match=r"deviations must have shape \(2\)"):
        loss_units(t64([1.0]))


@pytest.mark.parametrize(
    ("acts_on", "of_td", "of_gaps"),
    [
        ("penalty", [1.0, 1.0], [0.318380, 0.181620]),
        ("loss", [0.636761, 0.363239], [0.318380, 0.181620]),
        ("none", [1.0, 1.0], [0.5, 0.5]),
        (None, [1.0, 1.0], [0.5, 0.5]),
    ],
)
def test_n13_gradient_treats_weights_as_constants(acts_on, of_td, of_gaps):
    td, d = (x.requires_grad_() for x in n13())
    weights = None if acts_on is None else direct_weights(d, 1e-6)  # with a graph, so a missing detach would show
    combine(td, 0.5 * d, weights, acts_on or "loss").backward()
    close(td.grad, of_td)
    close(d.grad, of_gaps)


def test_no_gradient_flows_into_the_weights():
    weights = t64([0.3, 0.7]).requires_grad_()
    td = t64([1.0, 2.0]).requires_grad_()
    for acts_on in ("loss", "penalty", "none"):
        combine(td, t64([3.0, 4.0]), weights, acts_on).backward()
    assert weights.grad is None


def test_unknown_place_for_the_gate():
    with pytest.raises(ValueError, match="acts_on must be one of loss, penalty, none, got 'act'"):
        combine(torch.zeros(2), torch.zeros(2), torch.ones(2), "act")


def test_shape_errors_name_both_shapes():
    two, three = torch.ones(2), torch.ones(3)
    calls = {
        "gaps": [
            lambda: direct_weights(three, 0.1),
            lambda: hard_weights(three),
        ],
        "log_multipliers": [lambda: lagrange_step(three, two, 0.1, 4.0), lambda: lagrange_weights(three)],
        "td": [lambda: combine(three, two, two, "loss"), lambda: combine(three, two, None, "loss")],
        "penalty": [lambda: combine(two, three, two, "loss"), lambda: combine(two, three, None, "loss")],
        "weights": [lambda: combine(two, two, three, "loss"), lambda: combine(two, two, three, "penalty")],
        "statistic": [lambda: lagrange_step(two, three, 0.1, 4.0)],
        "certified": [lambda: regret(three)],
    }
    for name, functions in calls.items():
        for call in functions:
            with pytest.raises(ValueError, match=rf"^{name} must have shape \(2,?\), got \(3,\)$"):
                call()


def test_shape_errors_of_rows_name_all_shapes():
    one, other, pair = torch.ones(2, 3, 1), torch.ones(2, 3, 4), torch.ones(2)
    calls = [
        lambda: suffix_weights(one, other, one, 5.0),
        lambda: suffix_weights(one, one, other, 5.0),
        lambda: weighted_excess(one, other, one),
        lambda: weighted_excess(one, one, other),
        lambda: gated_value(one, other, "min", pair, pair),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="shapes must be equal") as raised:
            call()
        assert "(2, 3, 1)" in str(raised.value)
        assert "(2, 3, 4)" in str(raised.value)


# What was realised


def rows(*values):
    """Episodes (B, T) as (B, T, 1)."""
    return t64(values).unsqueeze(-1)


def test_weights_of_the_rest_of_an_episode_by_hand():
    match = rows([1, 0, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0])
    behaviour = rows([0.5, 0.5, 0.5, 0.25], [0.5, 0.5, 0.5, 0.1], [0.5, 0.2, 0.0, 0.0])
    mask = rows([1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0])
    # From the third step on the first episode follows to its end, 1 / (.5 * .25) and 1 / .25; the second never does;
    # the third, of two steps, does from its start.
    expected = rows([0, 0, 8, 4], [0, 0, 0, 0], [10, 5, 0, 0])
    close(suffix_weights(match, behaviour, mask, clip=100.0), expected)
    close(suffix_weights(match, behaviour, mask, clip=6.0), rows([0, 0, 6, 4], [0, 0, 0, 0], [6, 5, 0, 0]))


def test_weights_of_the_rest_of_an_episode_in_loops():
    rng = torch.Generator().manual_seed(5)
    B, T, lengths = 40, 6, [1 + b % 6 for b in range(40)]
    match = (torch.rand(B, T, 1, generator=rng) < 0.8).double()
    behaviour = torch.rand(B, T, 1, generator=rng, dtype=torch.float64) * 0.9 + 0.1
    mask = torch.zeros(B, T, 1, dtype=torch.float64)
    expected = torch.zeros(B, T, 1, dtype=torch.float64)
    for b, length in enumerate(lengths):
        mask[b, :length] = 1
        for t in range(length):
            ratio = 1.0
            for k in range(t, length):
                ratio *= match[b, k].item() / behaviour[b, k].item()
            expected[b, t] = min(ratio, 20.0)
    close(suffix_weights(match, behaviour, mask, clip=20.0), expected, 1e-9)
    assert 0 < (expected > 0).sum() < mask.sum()
    assert (expected == 20).any()
    for wild in (0.0, -3.0, math.nan):  # padding has no effect
        dirty = behaviour.masked_fill(mask == 0, wild)
        close(suffix_weights(match, dirty, mask, clip=20.0), expected, 1e-9)


def test_importance_weights_recover_the_value_of_the_policy():
    """Two steps, two actions: the weighted mean return of the data is what always playing action 0 earns."""
    beta, episodes = (0.25, 0.75), [(a, b) for a in (0, 1) for b in (0, 1)]
    reward = {(a, b): 1.0 + 3 * a - 2 * b + a * b for a, b in episodes}
    match = rows(*[[float(a == 0), float(b == 0)] for a, b in episodes])
    behaviour = rows(*[[beta[a], beta[b]] for a, b in episodes])
    weights = suffix_weights(match, behaviour, torch.ones_like(match), clip=1e9)[:, 0, 0]
    chances = t64([beta[a] * beta[b] for a, b in episodes])
    close((chances * weights).sum(), 1.0, 1e-9)
    close((chances * weights * t64(list(reward.values()))).sum(), reward[0, 0], 1e-9)


def test_weighted_excess_by_hand():
    value, realised = rows([3, 5, math.nan]), rows([1, 6, 7])
    # (1 * 2 + 3 * -1) / 4 over two rows
    excess, count = weighted_excess(value, realised, rows([1, 3, 0]))
    close(excess, -0.25)
    assert count == 2
    excess, count = weighted_excess(value, realised, rows([0, 0, 0]))  # nothing was followed
    close(excess, 0.0)
    assert count == 0


def test_weighted_excess_in_loops():
    rng = torch.Generator().manual_seed(6)
    value, realised = torch.randn(2, 4, 5, 1, generator=rng, dtype=torch.float64)
    weight = (torch.rand(4, 5, 1, generator=rng, dtype=torch.float64) - 0.4).relu()
    cells = [(b, t) for b in range(4) for t in range(5) if weight[b, t] > 0]
    total = sum(weight[c].item() for c in cells)
    expected = sum(weight[c].item() * (value[c].item() - realised[c].item()) for c in cells) / total
    excess, count = weighted_excess(value, realised, weight)
    close(excess, expected, 1e-12)
    assert 0 < count == len(cells) < 20


def test_the_prior_decides_at_equal_gaps():
    # 0.1 / (0.5 + 0.5) against 0.9 / (0.5 + 0.5); with gaps 1.5, 0.5: 0.1 / 2 against 0.9 / 1
    close(direct_weights(t64([0.5, 0.5]), 0.5, prior_cooperative=0.9), t64([0.1, 0.9]))
    close(direct_weights(t64([1.5, 0.5]), 0.5, prior_cooperative=0.9), t64([0.05, 0.9]) / 0.95)
    close(hard_weights(t64([0.5, 0.5]), prior_cooperative=0.9), t64([0, 1]))
    close(hard_weights(t64([0.4, 0.5]), prior_cooperative=0.9), t64([1, 0]))
