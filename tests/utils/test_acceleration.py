"""Lower precision and compiled updates: what they change, and what they must not."""

from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import LIMIT, Episode, make_args, make_learner, make_mac, random_batch, run_main, weights

import utils.acceleration as acceleration
from learners.q_learner import QLearner
from utils.acceleration import accelerate
from utils.errors import UserError
from utils.networks import NonFiniteError, unroll

ALGS = sorted(path.stem for path in (Path(acceleration.__file__).parents[1] / "config" / "algs").glob("*.yaml"))
# Not of one graph: episodes sliced as a batch, torch's GRU in a behaviour model.
NOT_COMPILED = ("qtran", "qtran_alt", "qcgraph", "cfcql")


@pytest.fixture(autouse=True)
def _as_before():
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def traced(monkeypatch):
    """Compile as far as the graph: what is slow is to make machine code of it."""

    def trace(function, mode, **options):
        assert mode == "reduce-overhead"
        return torch_compile(function, backend="eager", **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", trace)


def accelerated(alg, seed=0, **options):
    args = make_args(alg, **options)
    learner = make_learner(args, seed)
    accelerate(learner, args)
    return learner


def update(learner, seed, **kind):
    torch.manual_seed(seed)  # of what a learner draws
    learner.train(random_batch(learner.args, seed, **kind), t_env=seed, episode_num=seed)


def furthest(one, other):
    """The largest difference of two learners' weights."""
    ours, theirs = weights(one), weights(other)
    return max((ours[name].float() - theirs[name].float()).abs().max().item() for name in ours)


def gradients(learner, batch):
    learner.train(batch, 0, 0)
    return torch.cat([parameter.grad.flatten() for parameter in learner.params])


# --- precision


@pytest.mark.parametrize(("precision", "matmul", "tf32"), [("float32", "highest", False), ("tf32", "high", True)])
def test_float32_is_float32_and_tf32_is_allowed_where_it_is_asked_for(precision, matmul, tf32):
    accelerated("qmix", precision=precision)
    assert torch.get_float32_matmul_precision() == matmul
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.parametrize("alg", ["qmix", "greedy_qmix", "qplex", "qr_qmix", "greedy_lica"])
def test_bf16_changes_a_little_and_nothing_but_products(alg):
    plain, lowered = accelerated(alg), accelerated(alg, precision="bf16")
    for seed in range(3):
        update(plain, seed)
        update(lowered, seed)
    assert all(value.dtype != torch.bfloat16 for value in weights(lowered).values())
    optimisers = getattr(lowered, "optimisers", None) or {"": lowered.optimiser}
    states = [state for optimiser in optimisers.values() for state in optimiser.state.values()]
    assert all(value.dtype == torch.float32 for state in states for value in state.values())
    assert 0 < furthest(plain, lowered) < 0.02


@pytest.mark.parametrize("alg", ["qmix", "greedy_qmix"])
def test_gradients_in_bf16_are_close(alg):
    batch = random_batch(make_args(alg), 3)
    exact, lowered = gradients(accelerated(alg), batch), gradients(accelerated(alg, precision="bf16"), batch)
    assert torch.equal(exact, gradients(accelerated(alg, precision="tf32"), batch))  # a CPU has none
    error = (exact - lowered).norm() / exact.norm()
    assert 0 < error < 0.02  # bfloat16 has eight bits


def test_losses_are_float32_in_bf16():
    learner = accelerated("greedy_qmix", precision="bf16")
    found = []
    objective = learner.objective
    learner.objective = lambda batch: found.append(objective(batch)) or found[-1]
    update(learner, 0)
    assert {value.dtype for value in (found[0].loss, *found[0].terms.values(), *found[0].stats.values())} == {
        torch.float32
    }


def test_acting_is_float32_whatever_training_is():
    args = make_args("qmix", precision="bf16")
    learner, batch = make_learner(args), random_batch(args, 0)
    before = unroll(learner.mac, batch)
    accelerate(learner, args)
    assert torch.equal(unroll(learner.mac, batch), before)
    update(learner, 0)
    same = make_mac(args)
    same.load_state(learner.mac)
    assert torch.equal(unroll(learner.mac, batch), unroll(same, batch))


@pytest.mark.parametrize("option", [{"precision": "bf16"}, {"share": "none", "precision": "bf16"}])
def test_layers_of_agents_with_networks_of_their_own_are_lowered_too(option, monkeypatch):
    learner, seen = accelerated("qmix", **option), []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        acceleration.F, "linear", lambda x, *rest: seen.append((x.dtype, rest[0].dim())) or linear(x, *rest)
    )
    update(learner, 0)
    of_agents = [dtype for dtype, _ in seen]
    assert of_agents.count(torch.bfloat16) >= 4 * 2  # at least those of agent and mixer, online and target


def test_updates_that_are_not_finite_are_refused_in_bf16():
    learner = accelerated("qmix", precision="bf16", standardise_rewards=True)
    update(learner, 0)
    before, moments = weights(learner), learner.reward_moments
    batch = random_batch(learner.args, 1)
    batch["reward"][0, 0] = torch.inf
    with pytest.raises(NonFiniteError):
        learner.train(batch, 1, 1)
    after = weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert learner.reward_moments is moments
    assert not acceleration._lowered


# --- compiled updates


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("alg", [alg for alg in ALGS if alg not in NOT_COMPILED])
def test_an_update_is_one_graph_and_the_same(alg):
    args = make_args(alg, compile=True)
    plain, fast = make_learner(args), make_learner(args)
    if not isinstance(plain, QLearner):
        with pytest.raises(UserError, match=r"^compile=True: learner=.* set compile=False"):
            accelerate(fast, args)
        return
    accelerate(fast, args)
    for seed in range(3):
        update(plain, seed)
        update(fast, seed)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert furthest(plain, fast) < 1e-6
    for name in plain.statistics:
        ours, theirs = getattr(plain, name), getattr(fast, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(theirs, ours)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("alg", NOT_COMPILED)
def test_what_is_not_one_graph_is_refused(alg):
    learner = accelerated(alg, compile=True)
    update(learner, 0)
    with pytest.raises(UserError, match=r"^compile=True: learner=\w+ cannot be compiled .*; set compile=False$"):
        update(learner, 1)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"standardise_rewards": True, "td_lambda": 0.5}])
def test_options_are_compiled_too(options):
    plain, fast = accelerated("greedy_qmix", **options), accelerated("greedy_qmix", compile=True, **options)
    for seed in range(3):
        update(plain, seed)
        update(fast, seed)
    assert furthest(plain, fast) < 1e-6


@pytest.mark.usefixtures("traced")
def test_compiled_updates_that_are_not_finite_are_refused():
    learner = accelerated("greedy_qmix", compile=True, standardise_rewards=True)
    for seed in range(2):
        update(learner, seed)
    before, kept = weights(learner), {name: getattr(learner, name) for name in learner.statistics}
    batch = random_batch(learner.args, 2)
    batch["reward"][0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="td_loss"):
        learner.train(batch, 2, 2)
    after = weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(getattr(learner, name) is value for name, value in kept.items())


@pytest.mark.slow
@pytest.mark.parametrize("alg", ["qmix", "greedy_qmix"])
def test_machine_code_does_the_same(alg):
    plain, fast = accelerated(alg), accelerated(alg, compile=True)
    for seed in range(4):
        update(plain, seed)
        update(fast, seed)
    assert furthest(plain, fast) < 1e-5


def test_without_a_compiler_there_is_an_error(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"^compile=True: .*no-such-compiler.*set compile=False"):
        accelerated("qmix", compile=True)


@pytest.mark.parametrize("alg", ["qmix", "greedy_qmix"])
def test_steps_of_padding_change_nothing(alg):
    episodes = (Episode(3, "terminated"), Episode(2, "limit"))
    args = make_args(alg)
    whole = random_batch(args, 0, episodes=episodes)
    assert whole.max_seq_length == LIMIT + 1
    update_with = partial(gradients, batch=whole), partial(gradients, batch=whole[:, :4])
    longer, exact = (call(make_learner(args)) for call in update_with)
    torch.testing.assert_close(longer, exact)


@pytest.mark.usefixtures("traced")
def test_a_run_learns_from_compiled_updates_of_few_lengths(tmp_path, monkeypatch):
    torch._dynamo.utils.counters.clear()
    lengths = set()
    train = QLearner.train
    monkeypatch.setattr(
        QLearner, "train", lambda self, batch, *at: lengths.add(batch.max_seq_length) or train(self, batch, *at)
    )
    options = ("compile=True", "precision=bf16", "t_max=400", "batch_size=4", "rnn_hidden_dim=8", "use_cuda=False")
    options += ("test_nepisode=4", "plot=False", "env_args.time_limit=20", f"local_results_path={tmp_path}")
    assert run_main("--config=qmix", "--env-config=gymma", "with", *options) == 0
    assert len(lengths) > 1 or lengths == {21}
    assert all(length % 3 == 0 for length in lengths)  # 21 steps, eight lengths
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * len(lengths)
