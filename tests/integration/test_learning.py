"""IQL, VDN and QMIX on games whose answer is known: what they can represent, they learn, and where they err is known.

With epsilon 1 every joint action is equally likely, so what is learned is a least-squares fit of the payoffs: IQL's
values are the means of rows and columns, VDN's table is the sum of their effects, and QMIX fits what is monotone.
"""

import logging
from types import SimpleNamespace

import pytest
import torch
from helpers import read_run, run_main

from components.episode_buffer import EpisodeBatch
from config.schema import extend, freeze, load
from envs import make_vector_env
from run import Experiment
from runners import REGISTRY as runner_REGISTRY
from runners.game_tables import joint_action_batch
from utils.logging import Logger
from utils.seeding import seed_everything

UNIFORM = {"epsilon_start": 1.0, "epsilon_finish": 1.0}
SETTINGS = {
    "use_cuda": False,
    "plot": False,
    "test_interval": 10**9,
    "log_interval": 10**9,
    "rnn_hidden_dim": 32,
    "optimizer": "adam",
    "lr": 0.002,
    "target_update_interval": 100,
}


def train(alg: str, env_args: dict, t_max: int, seed: int = 0, **settings) -> Experiment:
    """A whole training of `--config=alg --env-config=matrix_games`."""
    config = load(alg, "matrix_games", {**SETTINGS, "t_max": t_max, "seed": seed, "env_args": env_args, **settings})
    seed_everything(seed)
    torch.set_num_threads(1)
    args, logger = extend(freeze(config), device="cpu", unique_token="test"), Logger(logging.getLogger("test"))
    experiment = Experiment(args, logger, runner_REGISTRY[args.runner](args, logger))
    experiment.train(SimpleNamespace(_id=None))
    return experiment


def tables(experiment) -> dict[str, torch.Tensor]:
    """By state of the game: Q_tot of every joint action (A, A), or without a mixer every agent's values (N, A)."""

    def new_batch(episodes, length):
        return EpisodeBatch(experiment.scheme, experiment.groups, episodes, length, None, experiment.preprocess)

    found = {}
    A = experiment.args.n_actions
    for state in experiment.runner.env.game_states():
        env = make_vector_env("matrix_games", A * A, "cpu", experiment.args.env_args)
        q, joint = experiment.learner.joint_values(joint_action_batch(env, state.path, new_batch))
        found[state.name] = joint[:, -1, 0].view(A, A) if joint.shape[-1] == 1 else q[0, -1]
    return found


def greedy_return(experiment) -> float:
    summary = experiment.runner.evaluate(8)
    assert summary["test_return_std"] == pytest.approx(0, abs=1e-4)
    return summary["test_return_mean"]


def fit_uniform_data(alg: str, game: str, updates: int, seed: int = 0, **settings) -> Experiment:
    """Training on a batch that holds every sequence of joint actions once: no sampling noise remains."""
    experiment = train(alg, {"game": game}, t_max=1, seed=seed, **settings)
    length, A = experiment.args.episode_limit, experiment.args.n_actions
    plans = torch.cartesian_prod(*[torch.arange(A)] * (2 * length)).view(-1, length, 2)  # (A^2T, T, 2)
    env = make_vector_env("matrix_games", len(plans), "cpu", experiment.args.env_args)
    batch = EpisodeBatch(experiment.scheme, experiment.groups, len(plans), length + 1, None, experiment.preprocess)
    seen = env.reset()
    for t in range(length + 1):
        batch.update({"obs": seen.obs, "state": seen.state, "avail_actions": seen.avail}, ts=t)
        if t < length:
            step = env.step(plans[:, t])
            done = {"actions": plans[:, t], "reward": step.reward, "terminated": step.terminated}
            batch.update(done, ts=t, mark_filled=False)
            seen = step.final
    for update in range(updates):
        experiment.learner.train(batch, t_env=update, episode_num=update)
    return experiment


def assert_near(table: torch.Tensor, expected, tolerance: float) -> None:
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=tolerance)


# The two-step game (Rashid et al. 2018): the first agent chooses between 7 for sure and the game [[0, 1], [1, 8]].


@pytest.mark.parametrize(("seed", "precision"), [(0, "float32"), (1, "float32"), (0, "bf16")])
def test_qmix_solves_the_two_step_game(seed, precision):
    experiment = fit_uniform_data("qmix", "two_step", updates=600, seed=seed, precision=precision)
    table = tables(experiment)
    assert_near(table["2A"], [[7, 7], [7, 7]], 0.1)
    assert_near(table["2B"], [[0, 1], [1, 8]], 0.1)
    assert_near(table["1"], [[0.99 * 7] * 2, [0.99 * 8] * 2], 0.1)
    assert greedy_return(experiment) == 8


def test_vdn_takes_the_safe_branch_of_the_two_step_game():
    """The best sum for [[0, 1], [1, 8]] is mean 2.5 and effects -2 and 2, so 2B seems to pay 6.5, less than 7."""
    experiment = fit_uniform_data("vdn", "two_step", updates=1500)
    table = tables(experiment)
    assert_near(table["2A"], [[7, 7], [7, 7]], 0.1)
    assert_near(table["2B"], [[-1.5, 2.5], [2.5, 6.5]], 0.1)
    assert_near(table["1"], [[0.99 * 7] * 2, [0.99 * 6.5] * 2], 0.1)
    assert greedy_return(experiment) == 7


def test_iql_takes_the_safe_branch_of_the_two_step_game():
    """In 2B an agent sees the means over the other's actions, 0.5 and 4.5; 4.5 is less than 7."""
    experiment = fit_uniform_data("iql", "two_step", updates=1500)
    table = tables(experiment)
    assert_near(table["2A"], [[7, 7], [7, 7]], 0.1)
    assert_near(table["2B"], [[0.5, 4.5], [0.5, 4.5]], 0.1)
    both = 0.99 * (7 + 4.5) / 2  # the second agent's first action decides nothing
    assert_near(table["1"], [[0.99 * 7, 0.99 * 4.5], [both, both]], 0.1)
    assert greedy_return(experiment) == 7


# One-step games


@pytest.mark.parametrize("alg", ["vdn", "qmix"])
def test_the_monotone_game_is_solved(alg):
    experiment = train(alg, {"game": "monotone"}, t_max=1000, updates_per_episode=0.5, **UNIFORM)
    assert greedy_return(experiment) == 12


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alg", ["lica", "greedy_lica"])
def test_actor_critics_solve_the_monotone_game(alg, seed):
    options = {"lr": 0.0025, "epsilon_anneal_time": 3000}
    experiment = train(alg, {"game": "monotone"}, t_max=4000, seed=seed, **options)
    assert greedy_return(experiment) == 12
    assert tables(experiment)["1"][0, 0].item() == pytest.approx(12, abs=0.2)  # what it plays, it values rightly


@pytest.mark.parametrize("alg", ["maddpg", "greedy_maddpg", "brac_p", "brac_v", "bear"])
def test_actors_that_learn_from_a_replay_solve_the_monotone_game(alg):
    options = {"lr": 0.0025, "critic_lr": 0.0025, "updates_per_episode": 0.2, "target_update_interval": None}
    experiment = train(alg, {"game": "monotone"}, t_max=1600, **options)
    assert greedy_return(experiment) == 12


@pytest.mark.parametrize("alg", ["ippo", "mappo", "coma"])
def test_policy_gradients_solve_the_monotone_game(alg):
    options = {"lr": 0.0025, "critic_lr": 0.0025, "epsilon_anneal_time": 1000, "critic_train_reps": 2}
    experiment = train(alg, {"game": "monotone"}, t_max=2000, **options)
    assert greedy_return(experiment) == 12
    batch = experiment.runner.play(1)
    assert (experiment.mac.unroll(batch, test_mode=True)[0, 0].max(dim=-1).values > 0.9).all()


def test_vdn_fits_the_non_monotone_game_by_its_main_effects():
    experiment = fit_uniform_data("vdn", "nonmonotone", updates=1500)
    low, middle, high = -56 / 9, -44 / 9, -32 / 9  # mean -40/9; row and column effects -8/9, 4/9, 4/9
    assert_near(tables(experiment)["1"], [[low, middle, middle], [middle, high, high], [middle, high, high]], 0.1)
    assert greedy_return(experiment) == 0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alg", ["qmix", "qcgraph_qmix"])
def test_monotone_mixers_give_up_the_best_joint_action_of_the_non_monotone_game(alg, seed):
    """Five cells that it cannot tell apart get their mean, (8 - 4 * 12) / 5; the others pay 0."""
    experiment = fit_uniform_data(alg, "nonmonotone", updates=600, seed=seed)
    assert_near(tables(experiment)["1"], [[-8, -8, -8], [-8, 0, 0], [-8, 0, 0]], 0.2)
    assert greedy_return(experiment) == 0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("alg", "rest"), [("ow_qmix", -12 * 0.1 / 1.1), ("cw_qmix", -6)])
def test_weighted_qmix_finds_the_optimum_of_the_non_monotone_game(alg, rest, seed):
    """The best cell is fitted; eight others get one value, to which OW gives the four of -12 a tenth of the weight."""
    weighting = {"alpha": 0.1, "central_embed_dim": 32}
    experiment = fit_uniform_data(alg, "nonmonotone", updates=700, seed=seed, weighting=weighting)
    table = tables(experiment)["1"].flatten()
    assert_near(table[0], 8, 0.75)  # the weight changes whenever the fit crosses its target
    assert_near(table[1:], [rest] * 8, 0.2)
    assert greedy_return(experiment) == 8


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alg", ["qtran", "qtran_alt", "qcgraph"])
def test_qtran_learns_the_non_monotone_game_and_finds_its_optimum(alg, seed):
    experiment = fit_uniform_data(alg, "nonmonotone", updates=700, seed=seed)
    assert_near(tables(experiment)["1"], [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]], 0.75)
    assert greedy_return(experiment) == 8


@pytest.mark.parametrize("seed", [0, 1])
def test_dcg_learns_the_non_monotone_game_and_finds_its_optimum(seed):
    """The payoffs of one pair of agents can be any table."""
    experiment = fit_uniform_data("dcg", "nonmonotone", updates=400, seed=seed)
    assert_near(tables(experiment)["1"], [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]], 0.2)
    assert greedy_return(experiment) == 8


def test_a_graph_without_edges_fits_the_non_monotone_game_by_its_main_effects():
    experiment = fit_uniform_data("dcg", "nonmonotone", updates=800, graph={"edges": "none"})
    low, middle, high = -56 / 9, -44 / 9, -32 / 9
    assert_near(tables(experiment)["1"], [[low, middle, middle], [middle, high, high], [middle, high, high]], 0.1)


@pytest.mark.parametrize("alg", ["qplex", "dcg", "qcgraph_qmix"])
def test_it_solves_the_two_step_game(alg):
    experiment = fit_uniform_data(alg, "two_step", updates=500)
    table = tables(experiment)
    assert_near(table["2A"], [[7, 7], [7, 7]], 0.3)
    assert_near(table["2B"], [[0, 1], [1, 8]], 0.3)
    assert greedy_return(experiment) == 8


# Games of 25 repeats: exploration falls from 1 to 0.05 over 6,000 steps, and what the agents settle on is played.
# They do not see their last actions: for games without states these are noise, which costs QMIX a repeat or two.

REPEATED = {"epsilon_anneal_time": 6000, "epsilon_finish": 0.05, "obs_last_action": False}


@pytest.mark.parametrize("alg", ["iql", "vdn", "qmix"])
def test_a_harsh_penalty_leads_to_the_safe_action(alg):
    """Miscoordination costs 100, so all of them settle on the joint action that pays 2 and not on one that pays 10."""
    experiment = train(alg, {"game": "penalty", "k": -100}, t_max=10_000, **REPEATED)
    assert greedy_return(experiment) == 50


@pytest.mark.parametrize("alg", ["iql", "vdn"])
def test_the_climbing_game_is_climbed_in_part(alg):
    """The optimum is 275; published returns of IQL and VDN lie between 125 and 195."""
    experiment = train(alg, {"game": "climbing"}, t_max=10_000, **REPEATED)
    assert 125 <= greedy_return(experiment) <= 195


def test_the_two_step_command_line(tmp_path, capsys):
    """No setting changed but that it ends earlier: the learned tables are printed, and greedy play earns 8."""
    command = ("--config=qmix", "--env-config=matrix_games", "with", "env_args.game=two_step", "t_max=3000")
    assert run_main(*command, "use_cuda=False", "plot=False", f"local_results_path={tmp_path}") == 0
    out = capsys.readouterr().out
    for state in ("1", "2A", "2B"):
        assert f"state {state}: learned values" in out
    assert read_run(tmp_path)["metrics"]["test_return_mean"]["values"][-1] == 8
