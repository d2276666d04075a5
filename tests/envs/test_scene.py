"""What environments say there is to see, against what they are."""

import numpy as np
import pytest
import torch
from plugins.misbehaving import ScriptedEnv

from config.schema import load
from envs import REGISTRY, make_vector_env
from envs.scene import Field, Image, Payoffs
from utils.errors import UserError


def make(env: str, **env_args):
    config = load("qmix", env, {"env_args": {**env_args, "seed": 3}})
    return make_vector_env(env, 1, "cpu", config["env_args"])


def play(env, actions):
    return env.step(torch.tensor([actions]))


def test_smax():
    env = make("smax", map_name="2s3z", time_limit=3)
    env.reset()
    scene = env.scene()
    assert isinstance(scene, Field)
    state = env._env_state.state
    pieces = (*scene.agents, *scene.others)
    places = np.array([(piece.x, piece.y) for piece in pieces])
    assert places == pytest.approx(np.asarray(state.unit_positions[0]), abs=1e-4)
    assert [piece.health for piece in pieces] == [1.0] * 10
    types = [env._battle.env.unit_type_shorthands[int(number)] for number in state.unit_types[0]]
    numbers = [*range(1, 6), *range(1, 6)]
    assert [piece.label for piece in pieces] == [f"{t}{n}" for t, n in zip(types, numbers, strict=True)]
    assert len(scene.actions) == env.n_actions == 10
    for action, (dx, dy) in scene.moves.items():  # each goes where it says
        env.reset()
        before = env.scene().agents[0]
        play(env, [action, 4, 4, 4, 4])
        after = env.scene().agents[0]
        moved = np.array([after.x - before.x, after.y - before.y])
        assert np.linalg.norm(moved) > 0.1
        assert moved / np.linalg.norm(moved) == pytest.approx([dx, dy], abs=0.2), action


def test_smax_after_the_end():
    """What is seen is how the battle ended, not how the next one begins."""
    env = make("smax", map_name="3m", time_limit=2)
    env.reset()
    for _ in range(2):
        step = play(env, [1, 1, 1])
    assert step.truncated[0]
    seen = np.array([[piece.x, piece.y] for piece in env.scene().agents]) / 32
    units = step.final.state[0, :30].reshape(3, 10)
    assert seen == pytest.approx(units[:, 1:3].numpy(), abs=1e-5)
    assert not np.allclose(seen, step.next.state[0, :30].reshape(3, 10)[:, 1:3].numpy(), atol=1e-3)


def test_stag_hunt():
    env = make("stag_hunt", n_agents=2, n_stags=1, size=4, time_limit=3)
    state = env.reset().state
    for _ in range(3):
        scene = env.scene()
        layers = state.reshape(2, 4, 4)
        for layer, pieces in zip(layers, (scene.agents, scene.others), strict=True):
            places = {(int(row), int(column)) for row, column in layer.nonzero()}
            assert {(piece.y, piece.x) for piece in pieces if piece is not None} == places
        state = play(env, [4, 4]).final.state


def test_stag_hunt_after_a_catch():
    """Who has left is not there."""
    env = make("stag_hunt", n_agents=2, n_stags=1, size=3, catchers=2)
    env.reset()
    left, middle, right = env._field[3:6].tolist()  # the second row
    env._agents, env._stags = torch.tensor([[left, right]]), torch.tensor([[middle]])
    step = play(env, [5, 5])
    assert step.terminated[0]
    scene = env.scene()
    assert scene.agents == (None, None)
    assert scene.others == (None,)


def test_matrix_games():
    env = make("matrix_games", game="two_step")
    env.reset()
    scene = env.scene()
    assert isinstance(scene, Payoffs)
    assert "state 1" in scene.title
    play(env, [1, 0])
    assert env.scene().table.tolist() == [[0, 1], [1, 8]]


def test_greed_games():
    env = make("greed_games", game="mirage", kappa=0.5)
    env.reset()
    scene = env.scene()
    assert scene.table[0].tolist() == pytest.approx([0.52, 0.52])
    assert np.isnan(scene.table[1]).all()  # what entering brings is not known yet
    play(env, [1, 0])
    hidden = int(env._hidden[0])
    assert env.scene().table.tolist() == [[[0.5, 0.5], [0.5, 0]], [[0, 0], [0, 1]]][hidden]


def single(env: str, **env_args):
    return REGISTRY[env](**load("qmix", env, {"env_args": {**env_args, "seed": 3}})["env_args"])


def test_foraging():
    env = single("gymma", key="lbforaging:Foraging-5x5-2p-1f-v3", time_limit=5)
    env.reset()
    scene = env.scene()
    game = env._game.env.unwrapped
    assert [(piece.y, piece.x) for piece in scene.agents] == [player.position for player in game.players]
    (food,) = scene.others
    assert game.field[food.y, food.x] > 0
    assert food.label == f"food\n{game.field[food.y, food.x]}"
    before = scene.agents
    env.step([scene.actions.index("none"), scene.actions.index("none")])
    assert env.scene().agents == before


def test_other_gymnasium_environments_draw_themselves():
    env = single("gymma", key="rware:rware-tiny-2ag-v2", time_limit=5)
    env.reset()
    with pytest.raises(UserError, match="render_mode=rgb_array"):
        env.scene()
    game = env._game.env.unwrapped
    game.render_mode, game.render = "rgb_array", lambda: np.full((4, 6, 4), 7, np.uint8)
    scene = env.scene()
    assert isinstance(scene, Image)
    assert scene.pixels.tolist() == np.full((4, 6, 3), 7).tolist()
    assert len(scene.actions) == env.get_total_actions()


def test_the_interface_says_that_there_is_none():
    with pytest.raises(NotImplementedError, match=r"ScriptedEnv has no scene\(\)"):
        ScriptedEnv(0).scene()
