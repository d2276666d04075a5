"""QCGraph's neighbourhoods by hand and by loops, its normalisation, and that its mixer is monotone."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import make_args, random_batch

from modules.graphs.neighbourhood import Neighbourhood, neighbours, normalise
from modules.mixers.qcgraph import QCGraph, QCGraphMixer

B, T, N, S, H = 3, 4, 4, 5, 8


def loop_neighbours(scores):
    """Without exploration: scores (N, N) -> who is whose neighbour, entry by entry."""
    n = len(scores)
    chosen = torch.eye(n, dtype=scores.dtype)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        total = sum(math.exp(scores[i, j]) for j in others)
        pick = max(others, key=lambda j, i=i: scores[i, j].item())
        for j in others:
            if j == pick or math.exp(scores[i, j]) / total > 1.0001 / (n - 1):
                chosen[i, j] = chosen[j, i] = 1
    return chosen


def test_normalisation_by_hand():
    """A line of three: degrees 2, 3, 2 with oneself."""
    line = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    side = 1 / math.sqrt(6)
    torch.testing.assert_close(normalise(line), torch.tensor([[0.5, side, 0], [side, 1 / 3, side], [0, side, 0.5]]))
    torch.testing.assert_close(normalise(torch.ones(2, 4, 4)), torch.full((2, 4, 4), 0.25))
    assert torch.equal(normalise(torch.eye(3)), torch.eye(3))


def test_repeated_convolutions_do_not_blow_up():
    torch.manual_seed(0)
    graph = normalise(neighbours(torch.randn(50, 6, 6), 1.0, explore=False))
    assert torch.linalg.eigvalsh(graph).abs().max() <= 1 + 1e-5
    assert torch.equal(graph, graph.transpose(-1, -2))


def test_neighbours_by_hand():
    """Agent 1 attends to 2 alone; 2 to 3 most and to 1 above the average 1/3; 3 and 4 equally to all, and pick 1."""
    scores = torch.full((4, 4), 9.0)
    scores[0, 1:] = torch.tensor([5.0, 0.0, 0.0])
    scores[1, [0, 2, 3]] = torch.tensor([0.40, 0.55, 0.05]).log()
    scores[2, [0, 1, 3]] = 0.0
    scores[3, [0, 1, 2]] = 0.0
    expected = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 1]]).float()
    assert torch.equal(neighbours(scores, 1.0, explore=False), expected)


def test_neighbours_are_those_of_the_loops():
    torch.manual_seed(1)
    scores = torch.randn(3, 20, 6, 6)
    found = neighbours(scores, 0.5, explore=False)
    for b, t in itertools.product(range(3), range(20)):
        assert torch.equal(found[b, t], loop_neighbours(scores[b, t]))


@pytest.mark.parametrize("explore", [True, False])
def test_neighbours_are_mutual_whole_and_never_none(explore):
    torch.manual_seed(2)
    found = neighbours(torch.randn(200, 5, 5), 1.0, explore)
    assert set(found.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(found, found.transpose(-1, -2))
    assert (found.diagonal(dim1=-2, dim2=-1) == 1).all()
    assert (found.sum(dim=-1) >= 2).all()
    assert torch.equal(neighbours(torch.zeros(3, 2, 2), 1.0, explore), torch.ones(3, 2, 2))
    assert torch.equal(neighbours(torch.zeros(3, 1, 1), 1.0, explore), torch.ones(3, 1, 1))


def test_exploring_picks_by_the_attention():
    """Of three agents, none above the average but agent 1's of 2: how often 1 picks 3 is its attention."""
    torch.manual_seed(3)
    scores = torch.zeros(20000, 3, 3)
    scores[:, 0, 1] = 1.0
    scores[:, 1, 0] = scores[:, 2, 1] = 30.0  # the others' picks are certain, and not this pair
    third = neighbours(scores, 1.0, explore=True)[:, 0, 2].mean().item()
    assert third == pytest.approx(1 / (1 + math.e), abs=0.01)


def test_the_gradient_is_that_of_attention_and_picks():
    torch.manual_seed(4)
    scores = torch.randn(5, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad((neighbours(scores, 1.0, explore=False) * torch.randn(4, 4)).sum(), scores)
    off_diagonal = ~torch.eye(4, dtype=torch.bool)
    assert torch.isfinite(grad).all()
    assert (grad[:, off_diagonal] != 0).any()
    assert (grad.diagonal(dim1=-2, dim2=-1) == 0).all()


def test_only_what_is_differentiated_explores():
    torch.manual_seed(5)
    network, features = Neighbourhood(H, 6, 1.0), torch.randn(B, T, N, H)
    with torch.no_grad():
        read = network(features)
        assert torch.equal(network(features), read)
    assert not torch.equal(network(features), read)


def make_mixer(seed=0):
    torch.manual_seed(seed)
    args = make_args("qcgraph_qmix", rnn_hidden_dim=H)
    mixer = QCGraphMixer(args)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    return args, mixer


def inputs(args, seed=1):
    torch.manual_seed(seed)
    n = args.n_agents
    return torch.randn(B, T, n), torch.randn(B, T, args.state_shape), torch.randn(B, T, n, H)


@pytest.mark.usefixtures("double")
def test_the_mixer_is_the_loops():
    args, mixer = make_mixer()
    q, states, features = inputs(args)
    with torch.no_grad():
        found = mixer(q, states, features)
        w1, b1, w2, v = mixer._weights(states)
        for b, t in itertools.product(range(B), range(T)):
            query, key = mixer.neighbourhood.query(features[b, t]), mixer.neighbourhood.key(features[b, t])
            chosen = loop_neighbours(query @ key.T / math.sqrt(query.shape[-1]))
            degrees = [row.sum().item() for row in chosen]
            total = v[b, t, 0].item()
            for i in range(args.n_agents):
                for e in range(args.mixing_embed_dim):
                    hidden = b1[b, t, e].item()
                    for j in range(args.n_agents):
                        weight = chosen[i, j].item() / math.sqrt(degrees[i] * degrees[j])
                        hidden += weight * q[b, t, j].item() * w1[b, t, j, e].item()
                    total += (hidden if hidden > 0 else math.exp(hidden) - 1) * w2[b, t, e].item()
            assert found[b, t, 0].item() == pytest.approx(total)


@pytest.mark.usefixtures("double")
def test_the_mixer_is_monotone_in_every_value():
    """By its gradient, and by steps of every size; the graph does not move, as it does not depend on the values."""
    for seed in range(5):
        args, mixer = make_mixer(seed)
        q, states, features = inputs(args, seed)
        with torch.no_grad():
            before = mixer(q, states, features)
            for i, step in itertools.product(range(args.n_agents), (1e-3, 1.0, 100.0)):
                raised = q.clone()
                raised[..., i] += step
                assert (mixer(raised, states, features) > before).all()
        q.requires_grad_()
        (gains,) = torch.autograd.grad(mixer(q, states, features).sum(), q)
        assert (gains > 0).all()


def test_the_mixers_graph_learns():
    args, mixer = make_mixer()
    mixer(*inputs(args)).pow(2).sum().backward()
    for parameter in mixer.neighbourhood.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    assert (mixer.neighbourhood.key.weight.grad != 0).any()


@pytest.mark.usefixtures("double")
def test_the_joint_network_is_the_loops():
    args = make_args("qcgraph", rnn_hidden_dim=H)
    torch.manual_seed(0)
    network, batch = QCGraph(args), random_batch(args, seed=1)
    features = torch.randn(batch.batch_size, batch.max_seq_length, args.n_agents, H)
    with torch.no_grad():
        q, v = network(batch, features)
        q, v = (x.view(batch.batch_size, batch.max_seq_length) for x in (q, v))
        first, _, second = network.action_encoding
        for b, t in itertools.product(range(batch.batch_size), range(batch.max_seq_length)):
            h, taken, state = features[b, t], batch["actions_onehot"][b, t], batch["state"][b, t]
            graph = network.neighbourhood(h)
            own = [F.relu(first(torch.cat([h[i], taken[i].double()]))) for i in range(args.n_agents)]
            joint = sum(
                F.relu(second(sum(graph[i, j] * own[j] for j in range(args.n_agents)))) for i in range(args.n_agents)
            )
            assert q[b, t].item() == pytest.approx(network.Q(torch.cat([state, joint])).item())
            assert v[b, t].item() == pytest.approx(network.V(state).item())


def test_the_joint_network_tells_who_did_what():
    """Also where all are neighbours, so that everyone gets the same mean."""
    args = make_args("qcgraph", rnn_hidden_dim=H)
    torch.manual_seed(0)
    network, batch = QCGraph(args), random_batch(args, seed=1)[:1, :1]
    features = torch.randn(1, 1, args.n_agents, H)
    onehot = torch.eye(args.n_actions)
    mine, yours = onehot[[0, 1]], onehot[[1, 0]]
    rest = onehot[[0] * (args.n_agents - 2)]
    with torch.no_grad():
        network.neighbourhood.query.weight.zero_()
        network.neighbourhood.query.bias.zero_()  # equal attention
        values = [network(batch, features, torch.cat([pair, rest])[None, None])[0] for pair in (mine, yours)]
    assert (values[0] - values[1]).abs() > 1e-4


def test_wrong_shapes_are_refused():
    args, mixer = make_mixer()
    q, states, features = inputs(args)
    with pytest.raises(ValueError, match="features must have shape"):
        mixer(q, states, features[:, :1])
    with pytest.raises(ValueError, match="scores must have shape"):
        neighbours(torch.zeros(3, 4), 1.0, explore=False)
    with pytest.raises(ValueError, match="qtran_arch must be qtran_paper"):
        QCGraph(make_args("qcgraph", unchecked={"qtran_arch": "coma_critic"}))
