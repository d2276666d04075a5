"""Mixers: the method's numbers N2 and N3 through QMIX made constant, monotonicity, what each class can learn,
counterfactuals, gains, joint maxima.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modules.mixers import REGISTRY, InStates, counterfactual_q_tot, joint_value, mixer_gains
from modules.mixers.central import CentralMixer
from modules.mixers.qcgraph import QCGraph, QCGraphMixer
from modules.mixers.qmix import QMixer
from modules.mixers.qmix_concave import ConcaveQMixer
from modules.mixers.qplex import DuplexMixer
from modules.mixers.qtran import QTranAlt, QTranBase
from modules.mixers.vdn import VDNMeanMixer, VDNMixer


@pytest.fixture(autouse=True)
def one_thread():
    """Networks as small as these are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def t64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def mixer_args(n_agents=3, state_shape=5, embed=6, layers=2):
    return SimpleNamespace(
        n_agents=n_agents, state_shape=state_shape, mixing_embed_dim=embed, hypernet_layers=layers, hypernet_embed=7
    )


def qmixer(layers=2, seed=0, mixer_class=QMixer, **sizes):
    """Random weights, larger than the initial ones, so that the mixer bends and differs between states."""
    torch.manual_seed(seed)
    mixer = mixer_class(mixer_args(layers=layers, **sizes))
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(2.0)
    return mixer


def n2_mixer(layers=2, mixer_class=QMixer):
    """QMIX, or another class, whose hypernetworks give the weights of N2 in every state."""
    mixer = mixer_class(mixer_args(n_agents=2, state_shape=3, embed=2, layers=layers)).double()

    def last(hypernet):
        return hypernet[-1] if isinstance(hypernet, nn.Sequential) else hypernet

    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.zero_()
        last(mixer.hyper_w_1).bias.copy_(t64([1.0, -0.5, 0.25, 2.0]))  # a row of two hidden units for each agent
        last(mixer.hyper_b_1).bias.copy_(t64([0.1, -0.3]))
        last(mixer.hyper_w_final).bias.copy_(t64([0.5, -1.5]))
        last(mixer.V).bias.copy_(t64([0.2]))
    return mixer


def n2(q, layers=2, mixer_class=QMixer):
    """f(q) of N2 for rows q (R, 2) -> (R,)."""
    q = torch.as_tensor(q, dtype=torch.float64)
    return n2_mixer(layers, mixer_class)(q.unsqueeze(0), torch.randn(1, len(q), 3, dtype=torch.float64)).view(-1)


N2 = [
    # hidden units 1 * 1 + .25 * -1 + .1 = .85 and .5 - 2 - .3 = -1.8: .5 * .85 + 1.5 (e^-1.8 - 1) + .2
    # gradient .5 * 1 + 1.5 * .5 e^-1.8 and .5 * .25 + 1.5 * 2 e^-1.8
    ([1.0, -1.0], -0.627052, [0.623974, 0.620897]),
    ([0.0, 0.0], -0.138773, [1.055614, 2.347455]),
    ([-2.0, 0.5], -0.604031, [0.640355, 2.243640]),
    # hidden units 2.35 and 2.7, both linear: .5 * 2.35 + 1.5 * 2.7 + .2
    ([2.0, 1.0], 5.425000, [1.250000, 3.125000]),
]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("q", "value", "gradient"), N2)
def test_n2_values_and_gradients(layers, q, value, gradient):
    q = t64([q]).requires_grad_()
    f = n2(q, layers)
    close(f, [value])
    f.sum().backward()
    close(q.grad, [gradient])


def test_n2_gains_are_positive_and_bounded():
    q = (4 * torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    n2(q).sum().backward()
    bound = t64([1.25, 3.125])  # 1 * .5 + .5 * 1.5 and .25 * .5 + 2 * 1.5
    assert (q.grad > 0).all()
    assert (q.grad <= bound + 1e-12).all()
    close(q.grad.max(dim=0).values, bound)  # reached where both hidden units are linear


def test_n2_is_convex():
    x, y = t64([[-2.0, 0.5]]), t64([[2.0, 1.0]])
    close(n2((x + y) / 2), [2.143750])
    close((n2(x) + n2(y)) / 2, [2.410485])
    rng = torch.Generator().manual_seed(1)
    x, y = 3 * torch.randn(2, 500, 2, dtype=torch.float64, generator=rng)
    assert (n2((x + y) / 2) <= (n2(x) + n2(y)) / 2 + 1e-12).all()


def test_n2_is_supermodular():
    rows = t64([[-2.0, -1.0], [-0.5, -1.0], [-2.0, 0.0], [-0.5, 0.0]])  # q, q + d1, q + d2, q + d1 + d2
    f = n2(rows)
    close(f, [-1.686433, -1.421855, -1.316418, -0.599415])
    close(f[3] + f[0] - f[1] - f[2], 0.452424)
    rng = torch.Generator().manual_seed(2)
    q = 3 * torch.randn(500, 2, dtype=torch.float64, generator=rng)
    d = 3 * torch.rand(500, 2, dtype=torch.float64, generator=rng)
    first, second = d * t64([1.0, 0.0]), d * t64([0.0, 1.0])
    assert (n2(q + d) + n2(q) >= n2(q + first) + n2(q + second) - 1e-12).all()


N2_CONCAVE = [
    # the second of the two units is concave. Hidden units .85 and -1.8, both linear: .5 * .85 - 1.5 * 1.8 + .2
    ([1.0, -1.0], -2.075000, [1.250000, 3.125000]),
    ([0.0, 0.0], -0.200000, [1.250000, 3.125000]),  # .1 and -.3: .5 * .1 - 1.5 * .3 + .2
    # -1.775 and -.3: .5 (e^-1.775 - 1) - 1.5 * .3 + .2; gradient .5 e^-1.775 + .75 and .125 e^-1.775 + 3
    ([-2.0, 0.5], -0.665258, [0.834742, 3.021185]),
    # 2.35 and 2.7: .5 * 2.35 - 1.5 (e^-2.7 - 1) + .2; gradient .5 + .75 e^-2.7 and .125 + 3 e^-2.7
    ([2.0, 1.0], 2.774192, [0.550404, 0.326617]),
]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("q", "value", "gradient"), N2_CONCAVE)
def test_concave_values_and_gradients_with_the_weights_of_n2(layers, q, value, gradient):
    q = t64([q]).requires_grad_()
    f = n2(q, layers, ConcaveQMixer)
    close(f, [value])
    f.sum().backward()
    close(q.grad, [gradient])


def test_concave_is_neither_convex_nor_concave_and_neither_supermodular_nor_submodular():
    rng = torch.Generator().manual_seed(3)
    x, y = 3 * torch.randn(2, 500, 2, dtype=torch.float64, generator=rng)
    d = 3 * torch.rand(500, 2, dtype=torch.float64, generator=rng)
    first, second = d * t64([1.0, 0.0]), d * t64([0.0, 1.0])
    f = [n2(rows, 2, ConcaveQMixer) for rows in (x, y, (x + y) / 2, x + first, x + second, x + d)]
    for difference in ((f[0] + f[1]) / 2 - f[2], f[5] + f[0] - f[3] - f[4]):
        assert (difference > 0.01).any()
        assert (difference < -0.01).any()


def test_n3_counterfactuals_and_joint_maximum():
    qs = t64([[[[0.5, 1.5, -1.0], [2.0, 0.0, 1.0]]]])  # the utilities of N1b, whose data plays (0, 2)
    state = torch.zeros(1, 1, 3, dtype=torch.float64)
    mixer = n2_mixer()
    q_cf = counterfactual_q_tot(mixer, t64([[[0.5, 1.0]]]), qs, state)
    # f(.5, 1) = 3.55, f(1.5, 1) = 4.8, f(-1, 1) = .5 (e^-.65 - 1) + 2;  f(.5, 2) = 6.675, f(.5, 0) = 1.5 e^-.05 - 1
    close(q_cf, [[[[3.55, 4.8, 1.761023], [6.675, 0.426844, 3.55]]]])
    close(mixer(t64([[[1.5, 2.0]]]), state), [[[7.925]]])  # .5 * 2.1 + 1.5 * 4.45 + .2


@pytest.mark.parametrize("layers", [1, 2])
def test_qmix_equals_its_formula_in_nested_loops(layers):
    mixer = qmixer(layers)
    rng = torch.Generator().manual_seed(3)
    q, states = torch.randn(2, 3, 3, generator=rng), torch.randn(2, 3, 5, generator=rng)
    actual = mixer(q, states)
    for b in range(2):
        for t in range(3):
            s = states[b, t]
            w1, b1, w2 = mixer.hyper_w_1(s), mixer.hyper_b_1(s), mixer.hyper_w_final(s)
            total = mixer.V(s).item()
            for k in range(6):
                h = b1[k].item() + sum(abs(w1[i * 6 + k].item()) * q[b, t, i].item() for i in range(3))
                total += abs(w2[k].item()) * (h if h > 0 else math.exp(h) - 1)
            close(actual[b, t], [total], 1e-4)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("embed", [2, 5, 6])
def test_concave_equals_its_formula_in_nested_loops(layers, embed):
    mixer = qmixer(layers, mixer_class=ConcaveQMixer, embed=embed)
    rng = torch.Generator().manual_seed(3)
    q, states = torch.randn(2, 3, 3, generator=rng), torch.randn(2, 3, 5, generator=rng)
    actual = mixer(q, states)
    for b in range(2):
        for t in range(3):
            s = states[b, t]
            w1, b1, w2 = mixer.hyper_w_1(s), mixer.hyper_b_1(s), mixer.hyper_w_final(s)
            total = mixer.V(s).item()
            for k in range(embed):
                h = b1[k].item() + sum(abs(w1[i * embed + k].item()) * q[b, t, i].item() for i in range(3))
                convex = h if h > 0 else math.exp(h) - 1
                concave = h if h < 0 else 1 - math.exp(-h)
                total += abs(w2[k].item()) * (concave if k >= (embed + 1) // 2 else convex)
            close(actual[b, t], [total], 1e-4)


@pytest.mark.parametrize("mixer_class", [QMixer, ConcaveQMixer])
@pytest.mark.parametrize("layers", [1, 2])
def test_mixers_are_monotone_on_random_states(layers, mixer_class):
    mixer = qmixer(layers, mixer_class=mixer_class)
    rng = torch.Generator().manual_seed(4)
    q = (3 * torch.randn(20, 30, 3, generator=rng)).requires_grad_()
    states = 3 * torch.randn(20, 30, 5, generator=rng)
    f = mixer(q, states)
    f.sum().backward()
    assert (q.grad >= 0).all()
    assert (q.grad > 0).float().mean() > 0.9
    for agent in range(3):
        raised = q.detach().clone()
        raised[..., agent] += 1.0
        assert (mixer(raised, states) >= f - 1e-5).all()


def test_qmix_depends_on_its_own_state_alone():
    mixer = qmixer()
    rng = torch.Generator().manual_seed(5)
    q, states = torch.randn(2, 3, 3, generator=rng), torch.randn(2, 3, 5, generator=rng)
    before = mixer(q, states)
    states[1, 2] += 1.0
    changed = (mixer(q, states) != before).squeeze(-1)
    assert changed.tolist() == [[False, False, False], [False, False, True]]


def test_vdn_is_the_sum_or_the_mean():
    q = torch.tensor([[[1.0, 2.0, -0.5], [0.0, 0.0, 4.5]]])
    states = torch.randn(1, 2, 5)
    close(VDNMixer()(q, states), [[[2.5], [4.5]]])
    close(VDNMeanMixer()(q, states), [[[2.5 / 3], [1.5]]])


# --- values of joint actions


@pytest.mark.parametrize("mixer", [None, VDNMixer(), qmixer()])
def test_the_value_of_a_joint_action_is_the_mix_of_what_its_actions_are_worth(mixer):
    rng = torch.Generator().manual_seed(3)
    q, states = torch.randn(2, 4, 3, 6, generator=rng), torch.randn(2, 4, 5, generator=rng)
    actions = torch.randint(6, (2, 4, 3, 1), generator=rng)
    found = joint_value(mixer, q, actions, torch.ones_like(q), states)
    for b, t in itertools.product(range(2), range(4)):
        chosen = torch.stack([q[b, t, i, actions[b, t, i, 0]] for i in range(3)])
        expected = chosen if mixer is None else mixer(chosen.view(1, 1, 3), states[b : b + 1, t : t + 1]).view(1)
        torch.testing.assert_close(found[b, t], expected)


def test_a_mixer_may_read_more_than_the_chosen_values():
    class Reader:
        def of_actions(self, *arguments):
            return arguments

    arguments = [
        torch.zeros(1, 1, 2, 3),
        torch.zeros(1, 1, 2, 1, dtype=torch.long),
        torch.ones(1, 1, 2, 3),
        torch.zeros(1),
    ]
    assert all(a is b for a, b in zip(joint_value(Reader(), *arguments), arguments, strict=True))
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 1, 2, 1\), got \(1, 1, 1, 1\)"):
        joint_value(None, arguments[0], arguments[1][:, :, :1], *arguments[2:])


def test_the_central_mixer_is_its_networks_and_is_not_monotone():
    torch.manual_seed(0)
    mixer = CentralMixer(n_agents=2, state_dim=3, embed_dim=7)
    rng = torch.Generator().manual_seed(3)
    q, states = 3 * torch.randn(4, 5, 2, generator=rng), torch.randn(4, 5, 3, generator=rng)
    h = torch.cat([q, states], dim=-1)
    for layer in (0, 2, 4):
        h = mixer.net[layer](h).relu()
    expected = mixer.net[6](h) + mixer.V[2](mixer.V[0](states).relu())
    close(mixer(q, states), expected)
    assert [tuple(p.shape) for p in mixer.net.parameters()][::2] == [(7, 5), (7, 7), (7, 7), (1, 7)]
    q.requires_grad_()
    mixer(q, states).sum().backward()
    assert (q.grad < 0).any()
    assert (q.grad > 0).any()
    with pytest.raises(ValueError, match=r"agent_qs must have shape \(4, 5, 2\), got \(4, 5, 3\)"):
        mixer(torch.zeros(4, 5, 3), states)


# --- what the mixers can learn: one joint decision of two agents with two actions, all four equally likely

OR, AND = [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]  # payoffs of 00, 01, 10, 11


def fitted(mixer_class, payoff, seed) -> torch.Tensor:
    """Q_tot of the four joint actions, (4,), after training the mixer and the agents' values, which start equal."""
    torch.manual_seed(seed)
    mixer = mixer_class(mixer_args(n_agents=2, state_shape=1, embed=8, layers=1))
    values = nn.Parameter(torch.zeros(2, 2))
    first, second, state = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), torch.ones(1, 4, 1)
    optimiser = torch.optim.Adam([values, *mixer.parameters()], lr=0.03)

    def q_tot():
        return mixer(torch.stack([values[0][first], values[1][second]], dim=-1).unsqueeze(0), state).view(4)

    for _ in range(700):
        loss = ((q_tot() - torch.tensor(payoff)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return q_tot().detach()


@pytest.mark.parametrize("seed", [0, 1])
def test_proposition_2_8_qmix_learns_complements_and_of_substitutes_the_best_sum(seed):
    close(fitted(QMixer, AND, seed), AND, 0.05)
    f = fitted(QMixer, OR, seed)
    close(((f - torch.tensor(OR)) ** 2).mean(), 0.0625, 1e-3)
    close(f, [0.25, 0.75, 0.75, 1.25], 0.03)


@pytest.mark.parametrize("payoff", [OR, AND])
@pytest.mark.parametrize("seed", [0, 1])
def test_concave_learns_substitutes_and_complements(payoff, seed):
    f = fitted(ConcaveQMixer, payoff, seed)
    assert ((f - torch.tensor(payoff)) ** 2).mean() < 0.01
    close(f[3], 1.0, 0.03)  # the value of the greedy joint action


# --- counterfactuals, gains, joint maxima


class NoShortcut(nn.Module):
    """A mixer that offers nothing but `forward`."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, agent_qs, states):
        return self.mixer(agent_qs, states)


MIXERS = {
    "vdn": VDNMixer,
    "vdn_mean": VDNMeanMixer,
    "qmix1": lambda: qmixer(layers=1),
    "qmix2": lambda: qmixer(layers=2),
    "qmix_concave1": lambda: qmixer(layers=1, mixer_class=ConcaveQMixer),
    "qmix_concave2": lambda: qmixer(layers=2, mixer_class=ConcaveQMixer),
}


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("name", MIXERS)
def test_counterfactuals_equal_brute_force(name):
    mixer = MIXERS[name]()
    assert hasattr(mixer, "counterfactual")
    B, T, N, A = 2, 3, 3, 4
    rng = torch.Generator().manual_seed(6)
    qs, states = torch.randn(B, T, N, A, generator=rng), torch.randn(B, T + 1, 5, generator=rng)[:, :-1]
    actions = torch.randint(A, (B, T, N, 1), generator=rng)
    chosen = qs.gather(3, actions).squeeze(3)
    expected = torch.empty(B, T, N, A)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                for k in range(A):
                    q = chosen[b, t].clone()
                    q[i] = qs[b, t, i, k]
                    expected[b, t, i, k] = mixer(q.view(1, 1, N), states[b, t].view(1, 1, -1)).item()
    close(counterfactual_q_tot(mixer, chosen, qs, states), expected, 1e-5)
    close(counterfactual_q_tot(NoShortcut(mixer), chosen, qs, states), expected, 1e-5)
    # Where an agent keeps its action, Q_tot is that of the data.
    kept = expected.gather(3, actions).squeeze(3)
    close(kept, mixer(chosen, states).expand_as(kept), 1e-5)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("name", MIXERS)
def test_gradients_of_counterfactuals_equal_those_of_the_generic_path(name):
    mixer = MIXERS[name]().double()
    rng = torch.Generator().manual_seed(7)
    qs = torch.randn(2, 3, 3, 4, generator=rng, dtype=torch.float64).requires_grad_()
    chosen = torch.randn(2, 3, 3, generator=rng, dtype=torch.float64).requires_grad_()
    states = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64)
    weights = torch.randn(2, 3, 3, 4, generator=rng, dtype=torch.float64)
    leaves = [qs, chosen, *mixer.parameters()]
    gradients = [
        torch.autograd.grad((counterfactual_q_tot(path, chosen, qs, states) * weights).sum(), leaves)
        for path in (mixer, NoShortcut(mixer))
    ]
    for fast, slow in zip(*gradients, strict=True):
        close(fast, slow, 1e-9)
    assert (gradients[0][1] != 0).any()


@pytest.mark.parametrize("name", MIXERS)
def test_proposition_1_2_joint_maximum_is_the_mixed_maxima(name):
    mixer = MIXERS[name]()
    B, N, A = 12, 3, 4
    rng = torch.Generator().manual_seed(8)
    qs, states = 2 * torch.randn(B, 1, N, A, generator=rng), torch.randn(B, 1, 5, generator=rng)
    avail = torch.rand(B, 1, N, A, generator=rng) < 0.6
    avail[..., 0] |= ~avail.any(-1)
    best = mixer(qs.masked_fill(~avail, -torch.inf).max(-1).values, states)
    for b in range(B):
        totals = [
            mixer(torch.stack([qs[b, 0, i, a] for i, a in enumerate(joint)]).view(1, 1, N), states[b : b + 1]).item()
            for joint in itertools.product(range(A), repeat=N)
            if all(avail[b, 0, i, a] for i, a in enumerate(joint))
        ]
        close(best[b, 0], [max(totals)], 1e-5)


@pytest.mark.parametrize("name", MIXERS)
def test_gains_are_slopes_of_the_total_at_the_data(name):
    mixer = MIXERS[name]().double()
    rng = torch.Generator().manual_seed(9)
    q = 2 * torch.randn(2, 3, 3, generator=rng, dtype=torch.float64)
    states = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        gains = mixer_gains(mixer, q, states)
    assert not q.requires_grad
    step = 1e-6
    for i in range(3):
        up, down = q.clone(), q.clone()
        up[..., i] += step
        down[..., i] -= step
        close(gains[..., i], ((mixer(up, states) - mixer(down, states)) / (2 * step)).squeeze(-1).detach(), 1e-6)
    assert (gains >= 0).all()


def test_gains_of_n2_and_of_sums():
    q, states = t64([[row[0] for row in N2]]), torch.zeros(1, 4, 3, dtype=torch.float64)
    close(mixer_gains(n2_mixer(), q, states), [[row[2] for row in N2]])
    close(mixer_gains(VDNMixer(), q, states), torch.ones(1, 4, 2))
    close(mixer_gains(VDNMeanMixer(), q, states), torch.full((1, 4, 2), 0.5))


def test_gains_carry_no_gradient_and_leave_none_behind():
    mixer = qmixer()
    q, states = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 4, 5, requires_grad=True)
    gains = mixer_gains(mixer, q, states)
    assert not gains.requires_grad
    assert q.requires_grad
    assert all(leaf.grad is None for leaf in (q, states, *mixer.parameters()))


@pytest.mark.parametrize("mixer_class", [QMixer, ConcaveQMixer])
@pytest.mark.parametrize("layers", [1, 2])
def test_parameter_names_are_pymarls(layers, mixer_class):
    """A mixer.th of PyMARL holds these names; a hypernetwork of one layer has no index."""
    parts = {"hyper_b_1": [""], "V": ["0.", "2."]}
    for name in ("hyper_w_1", "hyper_w_final"):
        parts[name] = [""] if layers == 1 else ["0.", "2."]
    expected = {f"{name}.{part}{kind}" for name, ps in parts.items() for part in ps for kind in ("weight", "bias")}
    assert set(qmixer(layers, mixer_class=mixer_class).state_dict()) == expected


def test_hypernetworks_have_the_sizes_asked_for():
    two, one = QMixer(mixer_args(layers=2)), QMixer(mixer_args(layers=1))
    assert [tuple(p.shape) for p in two.hyper_w_1.parameters()] == [(7, 5), (7,), (18, 7), (18,)]
    assert [tuple(p.shape) for p in two.hyper_w_final.parameters()] == [(7, 5), (7,), (6, 7), (6,)]
    assert [tuple(p.shape) for p in one.hyper_w_1.parameters()] == [(18, 5), (18,)]
    assert [tuple(p.shape) for p in one.V.parameters()] == [(6, 5), (6,), (1, 6), (1,)]
    with pytest.raises(ValueError, match="hypernet_layers must be 1 or 2, got 3"):
        QMixer(mixer_args(layers=3))
    with pytest.raises(ValueError, match=r"mixing_embed_dim must be at least 2, .* got 1"):
        ConcaveQMixer(mixer_args(embed=1))


def test_state_shape_may_be_a_tuple():
    assert QMixer(mixer_args(state_shape=(2, 4))).state_dim == 8


def test_registry_builds_from_args():
    classes = {"vdn": VDNMixer, "vdn_mean": VDNMeanMixer, "qmix": QMixer, "qmix_concave": ConcaveQMixer}
    classes |= {"dmaq": DuplexMixer, "qtran_base": QTranBase, "qtran_alt": QTranAlt}
    classes |= {"qcgraph": QCGraph, "qcgraph_qmix": QCGraphMixer}
    args = vars(mixer_args()) | {"n_actions": 4, "rnn_hidden_dim": 8, "qtran_arch": "qtran_paper"}
    args |= {"network_size": "small", "num_kernel": 2, "adv_hypernet_layers": 1, "adv_hypernet_embed": 4}
    args |= {"neighbour_temperature": 1.0}
    assert {name: type(build(SimpleNamespace(**args))) for name, build in REGISTRY.items()} == classes


def test_shape_errors_name_both_shapes():
    mixer = qmixer()
    with pytest.raises(ValueError, match=r"agent_qs must have shape \(2, 4, 3\), got \(2, 4, 2\)"):
        mixer(torch.zeros(2, 4, 2), torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match=r"agent_qs must have shape \(2, 5, 3\), got \(2, 4, 3\)"):
        mixer(torch.zeros(2, 4, 3), torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match=r"states must have shape \(any, any, 5\), got \(2, 4, 6\)"):
        mixer(torch.zeros(2, 4, 3), torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match=r"chosen must have shape \(2, 4, 3\), got \(2, 4, 1\)"):
        counterfactual_q_tot(mixer, torch.zeros(2, 4, 1), torch.zeros(2, 4, 3, 6), torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match=r"chosen must have shape \(2, 5, 3\), got \(2, 4, 3\)"):
        mixer.counterfactual(torch.zeros(2, 4, 3), torch.zeros(2, 5, 3, 6), torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match=r"qs must have shape \(2, 4, 3, any\), got \(2, 5, 3, 6\)"):
        mixer.counterfactual(torch.zeros(2, 4, 3), torch.zeros(2, 5, 3, 6), torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match=r"chosen must have shape \(2, 5, any\), got \(2, 4, 3\)"):
        mixer_gains(VDNMixer(), torch.zeros(2, 4, 3), torch.zeros(2, 5, 5))


@pytest.mark.parametrize("mixer_class", [QMixer, ConcaveQMixer])
def test_counterfactual_gradients_match_finite_differences(mixer_class):
    torch.manual_seed(5)
    mixer = mixer_class(
        SimpleNamespace(n_agents=3, state_shape=4, mixing_embed_dim=5, hypernet_layers=2, hypernet_embed=6)
    ).double()
    chosen = torch.randn(2, 3, 3, dtype=torch.double, requires_grad=True)
    qs = torch.randn(2, 3, 3, 4, dtype=torch.double, requires_grad=True)
    states = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(mixer.counterfactual, (chosen, qs, states))


# A mixer in given states


class Doubled(QMixer):
    """Overrides what QMIX does, and knows nothing of `at`."""

    def forward(self, agent_qs, states):
        return 2 * super().forward(agent_qs, states)


class Plain(nn.Module):
    """A mixer with PyMARL's call alone."""

    def __init__(self, args):
        super().__init__()
        self.mixer = QMixer(args)

    def forward(self, agent_qs, states):
        return self.mixer(agent_qs, states)


@pytest.mark.parametrize("masked", [None, "full", "half", "nothing"])
@pytest.mark.parametrize("mixer_class", [QMixer, ConcaveQMixer, Doubled, Plain, VDNMixer])
def test_in_given_states_a_mixer_says_what_it_says_when_called(mixer_class, masked):
    mixer = (VDNMixer() if mixer_class is VDNMixer else qmixer(mixer_class=mixer_class)).double()
    torch.manual_seed(1)
    B, T, N, A = 4, 5, 3, 2
    qs, states = torch.randn(B, T, N, A, dtype=torch.float64), torch.randn(B, T, 5, dtype=torch.float64)
    chosen = qs[..., 1].clone().requires_grad_()
    mask = {"full": torch.ones(B, T, 1), "nothing": torch.zeros(B, T, 1)}.get(masked)
    if masked == "half":
        mask = (torch.arange(T).view(1, T, 1) < torch.tensor([5, 3, 1, 1]).view(B, 1, 1)).float()
    wanted = torch.ones(B, T, 1) if masked in (None, "nothing") else mask
    here = InStates(mixer, states, mask)
    parameters = [chosen, *mixer.parameters()]
    for found, expected in (
        (here(chosen), mixer(chosen, states)),
        (here.counterfactual(chosen, qs), counterfactual_q_tot(mixer, chosen, qs, states)),
    ):
        scale = wanted.reshape(B, T, *(1,) * (found.dim() - 2)) * torch.randn_like(found)
        close(found * scale, expected * scale, 1e-12)
        ours, theirs = (
            torch.autograd.grad((values * scale).sum(), parameters, retain_graph=True, allow_unused=True)
            for values in (found, expected)
        )
        for one, other in zip(ours, theirs, strict=True):
            close(one, other, 1e-12)
        assert ours[0].any()


@pytest.mark.parametrize("mixer_class", [QMixer, ConcaveQMixer, Doubled, Plain])
def test_counterfactual_values_are_those_of_the_mixer_that_is_called(mixer_class):
    mixer = qmixer(mixer_class=mixer_class).double()
    torch.manual_seed(1)
    qs, states = torch.randn(2, 3, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    chosen = qs[..., 1]
    found = InStates(mixer, states).counterfactual(chosen, qs)
    for i in range(3):
        for k in range(4):
            changed = chosen.clone()
            changed[..., i] = qs[..., i, k]
            close(found[..., i, k], mixer(changed, states).squeeze(-1), 1e-12)


def test_padding_is_not_asked_for():
    """NaN in what lies behind an episode's end reaches neither values nor gradients."""
    mixer, mask = qmixer(), torch.tensor([[1.0, 1, 1], [1, 0, 0]]).unsqueeze(2)
    chosen, states = torch.randn(2, 3, 3), torch.randn(2, 3, 5)
    states[1, 1:] = torch.nan
    chosen[1, 1:] = torch.nan
    values = joint_value(mixer, chosen.unsqueeze(3), torch.zeros(2, 3, 3, 1, dtype=torch.long), None, states, mask)
    assert (values[1, 1:] == 0).all()
    values.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


def test_hypernetworks_run_once():
    mixer, calls = qmixer(), []
    mixer.hyper_w_1.register_forward_hook(lambda *_: calls.append(1))
    here = InStates(mixer, torch.randn(2, 3, 5))
    qs = torch.randn(2, 3, 3, 4)
    here(qs[..., 0])
    here.counterfactual(qs[..., 0], qs)
    assert len(calls) == 1
