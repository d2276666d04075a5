"""DCG's learner and controller against nested loops; what every learner must do is in `test_value_learners.py`."""

import itertools

import pytest
import torch
from helpers import EPISODES, gradients, make_args, make_learner, make_mac, random_batch, run_main, shake

from modules.graphs.coordination import graph_value, max_sum
from utils.errors import UserError

GAMMA = 0.875


def stepped_graph(mac, batch):
    """Utilities (B, T+1, N, A) and features (B, T+1, N, H) by the controller's `forward`, and payoffs edge by edge."""
    mac.init_hidden(batch.batch_size)
    utilities, features = [], []
    for t in range(batch.max_seq_length):
        utilities.append(mac.forward(batch, t))
        features.append(mac.hidden_states.view(batch.batch_size, mac.n_agents, -1))
    utilities, features = torch.stack(utilities, 1), torch.stack(features, 1)
    edges = mac.agent.edges
    pairs = [mac.agent.payoffs(features[:, :, pair], torch.tensor([[0], [1]])) for pair in edges.T]
    sums = mac.args.graph.reduce == "sum"  # of values whose mean is taken
    return utilities * (mac.n_agents if sums else 1), torch.cat(pairs, dim=2) * (len(pairs) if sums else 1), edges


def naive_loss(learner, batch):
    """The TD loss step by step, the best joint action of the next step by going through all of them."""
    args = learner.args
    online, target = stepped_graph(learner.mac, batch), stepped_graph(learner.target_mac, batch)

    def value(graph, e, t, actions):
        utilities, payoffs, edges = graph
        return graph_value(utilities[e, t], payoffs[e, t], edges, torch.tensor(actions).view(-1, 1)).squeeze()

    errors = []
    for e, episode in enumerate(EPISODES):
        for t in range(episode.length):
            ended = t == episode.length - 1 and episode.end == "terminated"
            choices = [row.nonzero().flatten().tolist() for row in batch["avail_actions"][e, t + 1]]
            choosing = online if args.double_q else target
            best = max(itertools.product(*choices), key=lambda a: value(choosing, e, t + 1, a).item())
            following = 0.0 if ended else GAMMA * value(target, e, t + 1, best).detach()
            q = value(online, e, t, batch["actions"][e, t, :, 0].tolist())
            errors.append(0.5 * (q - batch["reward"][e, t, 0] - following) ** 2)
    return sum(errors) / len(errors)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("agent", ["rnn", "mlp"])
@pytest.mark.parametrize("changes", [{"edges": "line"}, {"edges": "star", "reduce": "mean", "payoff_rank": 2}])
def test_loss_and_gradient_are_those_of_the_loops(changes, agent, double_q):
    learner = make_learner(make_args("dcg", gamma=GAMMA, double_q=double_q, agent=agent, graph=changes))
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=3)
    objective = learner.objective(batch)
    expected = naive_loss(learner, batch)
    assert objective.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for ours, theirs in zip(gradients(learner, objective.loss), gradients(learner, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_sums_are_as_many_times_the_means():
    mean, total = (make_learner(make_args("dcg", graph={"reduce": reduce})) for reduce in ("mean", "sum"))
    batch = random_batch(mean.args, seed=3)
    for learner in (mean, total):
        shake(learner, seed=2)
    graph, N, E = mean.mac.unroll_graph(batch), mean.args.n_agents, mean.mac.agent.edges.shape[1]
    utilities = graph.utilities.gather(-1, batch["actions"]).sum(dim=2)
    payoffs = graph.of(batch["actions"]) - utilities / N
    torch.testing.assert_close(total.joint_values(batch)[1], utilities + E * payoffs)


def test_every_option_matters():
    losses = set()
    options = ({"edges": "line"}, {"edges": "none"}, {"payoff_rank": 1}, {"payoff_hidden_dim": 4}, {"reduce": "mean"})
    for changes in ({}, *options):
        learner = make_learner(make_args("dcg", graph=changes))
        shake(learner, seed=2)
        losses.add(round(learner.objective(random_batch(learner.args, seed=3)).loss.item(), 6))
    assert len(losses) == 6


def test_without_edges_it_is_vdn_with_a_mean():
    options = {"mixer": "vdn_mean"}
    vdn, dcg = (
        make_learner(make_args("vdn", **options)),
        make_learner(make_args("dcg", graph={"edges": "none", "reduce": "mean"})),
    )
    shake(vdn, seed=2)
    for mac, other in ((dcg.mac, vdn.mac), (dcg.target_mac, vdn.target_mac)):
        mac.agent.network.load_state_dict(other.agent.state_dict())
    batch = random_batch(vdn.args, seed=3)
    torch.testing.assert_close(dcg.objective(batch).loss, vdn.objective(batch).loss)


@pytest.mark.parametrize("agent", ["rnn", "mlp"])
def test_acting_is_the_graphs_best_joint_action(agent):
    """At every step, with the memory that was built up on the way; exploration aside."""
    args = make_args("dcg", agent=agent)
    mac = make_mac(args)
    with torch.no_grad():
        for parameter in mac.parameters():
            parameter.mul_(3)
    batch = random_batch(args, seed=3)
    with torch.no_grad():
        utilities, payoffs, edges = stepped_graph(mac, batch)
        whole = mac.unroll_graph(batch)
        torch.testing.assert_close(whole.utilities, utilities)
        torch.testing.assert_close(whole.payoffs, payoffs)
        mac.init_hidden(batch.batch_size)
        alone = 0
        for t in range(3):  # every episode has as many
            avail = batch["avail_actions"][:, t]
            actions = mac.select_actions(batch, t_ep=t, t_env=0, test_mode=True)
            best = max_sum(utilities[:, t], payoffs[:, t], edges, avail, args.graph.iterations)
            assert torch.equal(actions, best.squeeze(2))
            alone += (actions != utilities[:, t].masked_fill(avail == 0, -torch.inf).argmax(dim=2)).sum()
    assert alone > 0  # messages matter


def test_the_network_of_the_payoffs_is_saved_with_the_agents(tmp_path):
    args = make_args("dcg")
    saved, loaded = make_mac(args, seed=1), make_mac(args, seed=2)
    saved.save_models(str(tmp_path))
    loaded.load_models(str(tmp_path))
    for ours, theirs in zip(saved.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class PlainAgent(torch.nn.Module):
    """An agent as PyMARL's: it has no `unroll_features`."""

    def __init__(self, input_shape, args):
        super().__init__()


def test_an_agent_that_gives_no_features_is_refused():
    with pytest.raises(UserError, match=r"agent='.*PlainAgent': .* set agent=rnn"):
        make_mac(make_args("dcg", agent=f"{__name__}:PlainAgent"))


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["mac=basic_mac"], "set learner=dcg_learner and mac=dcg_mac"),
        (["mixer=vdn"], "set mixer=null"),
        (["graph.edges=ring"], "one of full, cycle, line, star, none"),
        (["graph.payoff_rank=0"], "graph.payoff_rank=0"),
    ],
)
def test_contradictions_are_refused(options, remedy, capsys):
    assert run_main("--config=dcg", "--env-config=matrix_games", "with", *options) != 0
    assert remedy in capsys.readouterr().err
