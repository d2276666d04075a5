"""Coordination graphs: values by hand and by loops, messages against brute force, payoffs of every rank."""

import itertools

import pytest
import torch

from modules.graphs.coordination import TOPOLOGIES, GraphValues, edge_list, graph_value, max_sum
from modules.graphs.payoffs import PayoffNetwork

pytestmark = pytest.mark.usefixtures("double")
TREES = ("line", "star", "none")


def draw(topology, seed, leading=(40,), N=5, A=3):
    """A random graph's utilities, payoffs, edges and availability."""
    generator = torch.Generator().manual_seed(seed)
    edges = edge_list(topology, N)
    utilities = 3 * torch.randn(*leading, N, A, generator=generator)
    payoffs = 5 * torch.randn(*leading, edges.shape[1], A, A, generator=generator)
    avail = (torch.rand(*leading, N, A, generator=generator) < 0.6).int()
    certain = torch.randint(A, (*leading, N, 1), generator=generator)
    return utilities, payoffs, edges, avail.scatter(-1, certain, 1)


def loop_value(utilities, payoffs, edges, actions):
    """Of one situation: utilities (N, A), payoffs (E, A, A), a list of actions."""
    value = sum(utilities[i, a].item() for i, a in enumerate(actions)) / len(utilities)
    pairs = edges.T.tolist()
    return value + sum(payoffs[e, actions[i], actions[j]].item() for e, (i, j) in enumerate(pairs)) / max(len(pairs), 1)


def brute_force(utilities, payoffs, edges, avail):
    """The best available joint action of one situation and its value."""
    choices = [[a for a in range(avail.shape[1]) if row[a]] for row in avail.tolist()]
    return max((loop_value(utilities, payoffs, edges, joint), joint) for joint in itertools.product(*choices))


def test_edges_by_hand():
    expected = {
        "full": [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)],
        "cycle": [(0, 1), (1, 2), (2, 3), (0, 3)],
        "line": [(0, 1), (1, 2), (2, 3)],
        "star": [(0, 1), (0, 2), (0, 3)],
        "none": [],
    }
    assert {name: [tuple(e) for e in edge_list(name, 4).T.tolist()] for name in TOPOLOGIES} == expected
    assert edge_list("cycle", 2).tolist() == [[0], [1]]  # not the same pair twice
    assert edge_list("full", 1).shape == (2, 0)


def test_value_by_hand():
    utilities = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]])
    payoffs = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]]])
    value = graph_value(utilities, payoffs, edge_list("line", 3), torch.tensor([[1], [0], [1]]))
    assert value.item() == pytest.approx((2 + 3 + 11) / 3 + (3 + 20) / 2)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_value_is_that_of_the_loops(topology):
    utilities, payoffs, edges, avail = draw(topology, 1, leading=(3, 4))
    actions = torch.multinomial(avail.double().view(-1, 3), 1).view(3, 4, 5, 1)
    values = graph_value(utilities, payoffs, edges, actions)
    assert values.shape == (3, 4, 1)
    for b, t in itertools.product(range(3), range(4)):
        expected = loop_value(utilities[b, t], payoffs[b, t], edges, actions[b, t, :, 0].tolist())
        assert values[b, t].item() == pytest.approx(expected)


@pytest.mark.parametrize("topology", TREES)
def test_messages_are_exact_on_trees(topology):
    utilities, payoffs, edges, avail = draw(topology, 2)
    best = max_sum(utilities, payoffs, edges, avail, iterations=4)  # the longest path of 5 agents
    for r in range(len(best)):
        assert tuple(best[r, :, 0].tolist()) == brute_force(utilities[r], payoffs[r], edges, avail[r])[1]


def test_on_a_tree_as_many_rounds_as_the_longest_path_are_needed():
    utilities, payoffs, edges, avail = draw("line", 2)

    def value(iterations):
        best = max_sum(utilities, payoffs, edges, avail, iterations)
        return graph_value(utilities, payoffs, edges, best).mean().item()

    values = [value(k) for k in range(7)]
    assert values[:5] == sorted(values[:5])
    assert values[1] < values[4] == pytest.approx(values[6])


@pytest.mark.parametrize("topology", ["full", "cycle"])
def test_on_cycles_the_best_that_came_up_is_kept(topology):
    """It is close to the best, available, and never worse than with fewer rounds, or without messages."""
    utilities, payoffs, edges, avail = draw(topology, 3)
    values = []
    for iterations in (0, 1, 2, 4, 8):
        best = max_sum(utilities, payoffs, edges, avail, iterations)
        assert (avail.gather(-1, best) == 1).all()
        values.append(graph_value(utilities, payoffs, edges, best))
    assert all((later >= earlier).all() for earlier, later in itertools.pairwise(values))
    limits = [brute_force(utilities[r], payoffs[r], edges, avail[r])[0] for r in range(40)]
    exact = [value == pytest.approx(limit) for value, limit in zip(values[-1].flatten().tolist(), limits, strict=True)]
    assert sum(exact) >= 36


def test_without_messages_it_is_each_agents_own_best():
    utilities, payoffs, edges, avail = draw("full", 4)
    expected = utilities.masked_fill(avail == 0, -torch.inf).argmax(dim=-1, keepdim=True)
    assert torch.equal(max_sum(utilities, payoffs, edges, avail, 0), expected)
    nothing = edge_list("none", 5)
    assert torch.equal(max_sum(utilities, payoffs[:, :0], nothing, avail, 3), expected)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_unavailable_actions_change_nothing(topology):
    utilities, payoffs, edges, avail = draw(topology, 5)
    clean = max_sum(utilities, payoffs, edges, avail, 8)
    closed = avail == 0
    barred = closed[..., edges[0], :].unsqueeze(-1) | closed[..., edges[1], :].unsqueeze(-2)
    for wild in (1e8, -1e8):
        wild_payoffs = torch.where(barred, wild, payoffs)
        assert torch.equal(max_sum(torch.where(closed, wild, utilities), wild_payoffs, edges, avail, 8), clean)


def test_padding_gives_some_action_and_disturbs_no_other_row():
    utilities, payoffs, edges, avail = draw("full", 6)
    clean = max_sum(utilities, payoffs, edges, avail, 8)
    avail[3] = 0
    padded = max_sum(utilities, payoffs, edges, avail, 8)
    rest = [r for r in range(40) if r != 3]
    assert torch.equal(padded[rest], clean[rest])
    assert ((padded[3] >= 0) & (padded[3] < 3)).all()


def test_leading_dimensions_are_independent():
    utilities, payoffs, edges, avail = draw("full", 7, leading=(4, 6))
    values = GraphValues(utilities, payoffs, edges)
    whole = values.best(avail, 8)
    assert whole.shape == (4, 6, 5, 1)
    for b in range(4):
        assert torch.equal(values[b].best(avail[b], 8), whole[b])
        assert torch.equal(values[b].of(whole[b]), values.of(whole)[b])


def test_wrong_shapes_are_refused():
    utilities, payoffs, edges, avail = draw("line", 8)
    with pytest.raises(ValueError, match="payoffs must have shape"):
        max_sum(utilities, payoffs[:, :3], edges, avail, 1)
    with pytest.raises(ValueError, match="avail must have shape"):
        max_sum(utilities, payoffs, edges, avail[:1], 1)
    with pytest.raises(ValueError, match="actions must have shape"):
        graph_value(utilities, payoffs, edges, torch.zeros(40, 5, dtype=torch.long))


# --- the network of payoffs


def loop_payoffs(network, features, edges):
    """Of one situation, features (N, H): the mean over both orders of the pair, entry by entry."""
    A, K = network.n_actions, network.rank

    def matrix(i, j):
        raw = network.output(network.pair(torch.cat([features[i], features[j]])))
        if K is None:
            return raw.view(A, A)
        left, right = raw[: K * A].view(K, A), raw[K * A :].view(K, A)
        return sum(left[k].unsqueeze(1) * right[k].unsqueeze(0) for k in range(K))

    return torch.stack([(matrix(i, j) + matrix(j, i).T) / 2 for i, j in edges.T.tolist()])


@pytest.mark.parametrize("rank", [None, 1, 2])
@pytest.mark.parametrize("hidden", [None, 7])
def test_payoffs_are_those_of_the_loops(hidden, rank):
    torch.manual_seed(0)
    network, edges = PayoffNetwork(4, 3, hidden, rank), edge_list("full", 4)
    features = torch.randn(2, 5, 4, 4)
    payoffs = network(features, edges)
    assert payoffs.shape == (2, 5, 6, 3, 3)
    for b, t in itertools.product(range(2), range(5)):
        torch.testing.assert_close(payoffs[b, t], loop_payoffs(network, features[b, t], edges))
    if rank is not None:  # the mean of two matrices of that rank
        assert torch.linalg.matrix_rank(payoffs).max() == min(2 * rank, 3)


def test_payoffs_of_full_rank_can_be_made_by_products():
    """With rank A, left vectors that are the unit vectors make the right ones the rows of any matrix."""
    torch.manual_seed(0)
    A, edges = 3, edge_list("cycle", 4)
    whole, products = PayoffNetwork(4, A, None, None), PayoffNetwork(4, A, None, A)
    with torch.no_grad():
        products.pair.weight.zero_()
        products.pair.bias[: A * A] = torch.eye(A).flatten()
        products.pair.weight[A * A :] = whole.pair.weight
        products.pair.bias[A * A :] = whole.pair.bias
    features = torch.randn(6, 4, 4)
    torch.testing.assert_close(products(features, edges), whole(features, edges))


def test_payoffs_do_not_depend_on_who_comes_first():
    torch.manual_seed(0)
    network, features = PayoffNetwork(4, 3, 8, None), torch.randn(2, 4)
    forth, back = network(features, torch.tensor([[0], [1]])), network(features, torch.tensor([[1], [0]]))
    torch.testing.assert_close(forth, back.transpose(-1, -2))


def test_a_graph_without_edges_has_no_payoffs():
    assert PayoffNetwork(4, 3, None, None)(torch.randn(2, 5, 4), edge_list("none", 5)).shape == (2, 0, 3, 3)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_gradient_reaches_utilities_payoffs_and_features(rank):
    torch.manual_seed(0)
    network, edges = PayoffNetwork(4, 3, 8, rank), edge_list("full", 4)
    features, utilities = torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    graph_value(utilities, network(features, edges), edges, torch.zeros(2, 4, 1, dtype=torch.long)).sum().backward()
    for tensor in (utilities, features, *network.parameters()):
        assert tensor.grad is not None
        assert (tensor.grad != 0).any()
