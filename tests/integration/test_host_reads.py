"""How often the host has to wait for values of a GPU, counted on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from helpers import HostReads, RecordingLogger, make_args, make_learner, make_mac, make_scheme, random_batch

import modules.mixers
import utils.aside
import utils.networks
from config.schema import Args
from runners.vector_runner import VectorRunner

smax = pytest.importorskip("envs.smax")
STEPS = 12


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Take the ways that a GPU takes: nothing is packed, and torch's one-hot does not check its numbers."""
    for module in (modules.mixers, utils.aside, utils.networks):
        monkeypatch.setattr(module, "may_look_at", lambda x: False)
    monkeypatch.setattr(F, "one_hot", lambda x, n: torch.eye(n, dtype=torch.long)[x])


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("alg", "options"),
    [
        ("qmix", {"optimizer": "rmsprop"}),
        ("qmix", {"optimizer": "adam", "standardise_rewards": True, "td_lambda": 0.5}),
        ("greedy_qmix", {}),
        ("greedy_qmix_cert", {}),
        ("qplex", {}),
        ("dcg", {}),
        ("qtran", {}),
        ("lica", {}),
        ("greedy_lica", {}),
        ("greedy_maddpg", {}),
    ],
)
def test_an_update_is_read_once_to_see_whether_it_is_finite(alg, options):
    args = make_args(alg, **options)
    learner = make_learner(args)
    first, second = (random_batch(args, seed) for seed in range(2))
    learner.train(first, 0, 0)  # logs
    with HostReads() as reads:
        learner.train(second, 0, 1)
    assert reads.found == ["_local_scalar_dense"]


def make_runner(on_device):
    """Eight battles with the agents of QMIX; `on_device`: exchanged as between JAX and torch on a GPU."""
    args = make_args("qmix", "smax", batch_size_run=8, env_args={"time_limit": STEPS}, epsilon_start=0.5)
    runner = VectorRunner(args, RecordingLogger())
    assert isinstance(runner.env, smax.SmaxVectorEnv)
    runner.env._on_gpu = on_device
    info = runner.get_env_info()
    sizes = ("n_agents", "n_actions", "state_shape", "obs_shape", "episode_limit")
    args = Args({**vars(args), **{name: info[name] for name in sizes}})
    runner.setup(*make_scheme(args), make_mac(args))
    return runner


def played(runner):
    torch.manual_seed(5)
    return [runner.run().data.transition_data for _ in range(3)]


def test_battles_that_are_exchanged_by_dlpack_are_the_same():
    one, other = make_runner(on_device=True), make_runner(on_device=False)
    for ours, theirs in zip(played(one), played(other), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    assert vars(one.train_statistics) == vars(other.train_statistics)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_step_of_battles_is_read_once_to_see_which_have_ended(monkeypatch):
    runner = make_runner(on_device=True)
    monkeypatch.setattr(smax, "np", None)  # no copy through numpy
    first = runner.t_env
    with HostReads() as reads:
        runner.run()
    steps = (runner.t_env - first) // 8
    assert steps > 1
    assert reads.found == ["tolist"] * (steps + 1)  # the last for the statistics of all that have ended
