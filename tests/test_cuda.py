"""The same commands on a GPU: skipped where there is none."""

import pytest
import torch
from helpers import read_run, run_main

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
