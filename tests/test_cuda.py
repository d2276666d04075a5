"""The same commands on a GPU: skipped where there is none."""

import warnings

import pytest
import torch
from helpers import make_args, make_learner, random_batch, read_run, run_main, weights

from config.schema import Args
from modules.agents.gru import _whole_gru, run_gru
from utils.acceleration import accelerate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TINY = (
    "rnn_hidden_dim=16",
    "batch_size=4",
    "buffer_size=64",
    "test_nepisode=4",
    "plot=False",
    "save_model=True",
    "require_cuda=True",
)


@pytest.mark.parametrize(
    ("alg", "env", "overrides"),
    [
        ("qmix", "matrix_games", ("t_max=200",)),
        ("greedy_qmix", "matrix_games", ("t_max=200", "gate.mode=lagrange", "munchausen.bootstrap=soft")),
        ("vdn", "gymma", ("t_max=200", "runner=episode", "batch_size_run=1", "env_args.time_limit=8")),
        ("qmix", "matrix_games", ("t_max=200", "buffer_cpu_only=True", "replay_dtype=uint8", "agent=rnn_norm")),
        ("greedy_lica", "matrix_games", ("t_max=200", "updates_per_episode=1.0", "gate.mode=lagrange")),
        ("greedy_maddpg", "matrix_games", ("t_max=200", "conservative.coefficient=lagrange")),
        ("bear", "matrix_games", ("t_max=200", "regulariser.in_values=True")),
        ("greedy_qmix", "smax", ("t_max=600", "batch_size_run=8", "env_args.time_limit=12", "replay_dtype=float16")),
        ("greedy_qmix", "matrix_games", ("t_max=200", "precision=bf16")),
        ("lica", "matrix_games", ("t_max=200", "updates_per_episode=1.0", "precision=tf32", "optimizer=adam")),
        ("qmix", "smax", ("t_max=600", "batch_size_run=8", "env_args.time_limit=12", "compile=True")),
    ],
)
def test_training_and_evaluating_on_the_gpu(alg, env, overrides, tmp_path):
    settings = (*TINY, *overrides, f"local_results_path={tmp_path}")
    assert run_main(f"--config={alg}", f"--env-config={env}", "with", *settings) == 0
    metrics = read_run(tmp_path)["metrics"]
    assert metrics["loss" if "loss" in metrics else "critic_loss"]["values"]
    (token,) = (tmp_path / "models").iterdir()
    loading = (f"checkpoint_path={token}", "evaluate=True")
    assert run_main(f"--config={alg}", f"--env-config={env}", "with", *settings, *loading) == 0


@pytest.fixture(autouse=True)
def _as_before():
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def learner_on(device, alg, **options):
    args = make_args(alg, **options)
    learner = make_learner(args)
    if device == "cuda":
        learner.cuda()
    accelerate(learner, Args({**vars(args), "device": device}))
    return learner


def update(learner, seed):
    batch = random_batch(learner.args, seed)
    batch.to(learner.params[0].device)
    learner.train(batch, t_env=0, episode_num=seed)


@pytest.mark.parametrize("alg", ["qmix", "greedy_qmix"])
@pytest.mark.parametrize(
    ("options", "near"),
    [
        ({}, 1e-5),
        ({"compile": True}, 1e-5),
        ({"precision": "tf32"}, 2e-3),
        ({"precision": "bf16"}, 2e-2),
        ({"precision": "bf16", "compile": True}, 2e-2),
        ({"optimizer": "adam", "compile": True}, 1e-4),
    ],
)
def test_updates_are_those_of_the_cpu(alg, options, near):
    plain = {name: value for name, value in options.items() if name == "optimizer"}
    ours, theirs = learner_on("cuda", alg, **options), learner_on("cpu", alg, **plain)
    for seed in range(6):  # CUDA graphs are replayed from the third compiled call on
        update(ours, seed)
        update(theirs, seed)
    for name, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name].cpu(), value, rtol=near, atol=near)
    for name in theirs.statistics:
        expected = getattr(theirs, name)
        if expected is not None:
            torch.testing.assert_close(getattr(ours, name).cpu(), expected, rtol=10 * near, atol=10 * near)


def test_one_operation_of_a_gru_is_cudnns_gru():
    torch.backends.cudnn.allow_tf32 = False
    cell = torch.nn.GRUCell(5, 16).cuda()
    x, hidden = torch.randn(7 * 6, 5, device="cuda"), torch.randn(6, 16, device="cuda")
    inputs = (x.requires_grad_(), hidden.requires_grad_(), cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    found, expected = _whole_gru(*inputs), run_gru(x, hidden, cell, [6] * 7)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(result, inputs, weight) for result in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("alg", "options"), [("qmix", {}), ("greedy_qmix", {}), ("greedy_qmix", {"compile": True}), ("lica", {})]
)
def test_the_host_waits_once_in_an_update(alg, options):
    args = make_args(alg, **options)
    learner = make_learner(args)
    learner.cuda()
    accelerate(learner, Args({**vars(args), "device": "cuda"}))
    batch = random_batch(args, 0)
    batch.to("cuda")
    for _ in range(4):
        learner.train(batch, 0, 0)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        learner.train(batch, 0, 0)
    waits = [warning for warning in seen if "synchronizing CUDA operation" in str(warning.message)]
    assert len(waits) == 1, [f"{warning.filename}:{warning.lineno}" for warning in waits]


def test_battles_stay_on_the_gpu():
    smax = pytest.importorskip("envs.smax")
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU")
    env = smax.SmaxVectorEnv(4, "cuda", "3m", 0, 1.0, None, True, True, False, "closest")
    seen = env.reset()
    assert seen.obs.data_ptr() == env._seen.obs.unsafe_buffer_pointer()
    actions = seen.avail.argmax(dim=-1)
    step = env.step(actions)
    assert step.final.state.is_cuda
    assert step.final.state.data_ptr() == env._seen.state.unsafe_buffer_pointer()
