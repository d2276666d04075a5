"""Films of trained models, of every kind of environment, and what is said where there can be none."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import error_line, read_run, run_main
from PIL import Image

import replay
from pictures import film

SMALL = ("rnn_hidden_dim=8", "batch_size=4", "use_cuda=False", "test_nepisode=2", "plot=False", "save_model=True")
GAMES = {
    "two_step": ("matrix_games", "t_max=60"),
    "bridge": ("greed_games", "env_args.game=bridge", "t_max=60"),
    "stag_hunt": ("stag_hunt", "env_args.n_agents=3", "env_args.size=4", "env_args.time_limit=5", "t_max=60"),
    "foraging": ("gymma", "env_args.key=lbforaging:Foraging-5x5-2p-1f-v3", "env_args.time_limit=5", "t_max=20"),
    "smax": ("smax", "env_args.map_name=3m", "env_args.time_limit=6", "batch_size_run=4", "t_max=60"),
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


def train(*options: str, config: str = "greedy_qmix") -> str:
    """Train in ./results; returns the token."""
    env, *rest = options
    assert run_main(f"--config={config}", f"--env-config={env}", "with", *SMALL, *rest) == 0
    (folder,) = Path("results/models").iterdir()
    return folder.name


def make(*argv) -> int:
    return replay.main(["replay.py", *map(str, argv)])


def pictures_of(path) -> list[np.ndarray]:
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(np.asarray(image.convert("RGB")))
        return found


@pytest.mark.parametrize("game", GAMES)
def test_film_of(game, tmp_path, capsys):
    token = train(*GAMES[game])
    capsys.readouterr()
    assert make(token, "--episodes=2") == 0
    lines = capsys.readouterr().out.splitlines()
    steps = [int(line.split(": ")[1].split(" step")[0]) for line in lines if line.startswith("Episode")]
    assert len(steps) == 2
    frames = pictures_of(f"results/replays/{token}.gif")
    assert f"({sum(steps) + 2} frames" in lines[-1]  # each episode's end is a frame, too
    # Equal neighbours are one picture of a GIF.
    assert 2 <= len(frames) <= sum(steps) + 2
    assert len({frame.shape for frame in frames}) == 1
    assert all(side % 2 == 0 for side in frames[0].shape[:2])
    assert all(len(set(map(bytes, frame[::4, ::4].reshape(-1, 3)))) > 10 for frame in frames)  # none is empty
    assert list(tmp_path.glob("**/*.part*")) == []


def test_the_same_seed_gives_the_same_film():
    """Named by its token, its folder of models or its record; another seed gives another."""
    token = train(*GAMES["stag_hunt"])
    films = []
    for number, options in enumerate(
        ((token,), (f"results/models/{token}",), ("results/sacred/1",), (token, "--seed=9"))
    ):
        assert make(*options, f"--out={number}.gif") == 0
        films.append(Path(f"{number}.gif").read_bytes())
    assert films[0] == films[1] == films[2] != films[3]


@pytest.mark.parametrize("config", ["iql", "mappo", "greedy_lica", "greedy_qmix_cert"])
def test_other_learners(config):
    """Values, or probabilities of actions; a gate where there is one; one network for each head."""
    token = train("matrix_games", "t_max=60", config=config)
    assert make(f"results/models/{token}", "--out=film.gif") == 0
    assert len(pictures_of("film.gif")) >= 2


def test_render_key(capsys):
    token = train("matrix_games", "t_max=60")
    options = (f"checkpoint_path=results/models/{token}", "evaluate=True", "render=True")
    assert run_main("--config=greedy_qmix", "--env-config=matrix_games", "with", *SMALL, *options) == 0
    assert "Film: results/replays/greedy_qmix__" in capsys.readouterr().out
    assert len(list(Path("results/replays").iterdir())) == 1
    assert read_run(Path("results"), 2)["status"] == "COMPLETED"


def test_a_record_of_an_older_commit():
    """Keys that it lacks have their defaults."""
    token = train("matrix_games", "t_max=60")
    file = Path("results/sacred/1/config.json")
    config = json.loads(file.read_text())
    for key in ("render", "test_epsilon", "standardise_rewards"):
        del config[key]
    del config["heads"]["normalise_loss"]
    file.write_text(json.dumps(config))
    assert make("results/sacred/1") == 0
    assert Path(f"results/replays/{token}.gif").exists()


@pytest.mark.parametrize("name", ["Recording", "Silent"])
def test_without_a_picture(name, tmp_path, monkeypatch, capsys):
    """An environment that saves its own replays does so; one that does neither is refused with the remedy."""
    monkeypatch.syspath_prepend(tmp_path)
    Path(f"{name}.py").write_text(
        "from helpers import ScriptedEnv\n"
        "class Silent(ScriptedEnv): pass\n"
        "class Recording(ScriptedEnv):\n"
        "    def save_replay(self): return 'game.SC2Replay'\n"
    )
    Path("own.yaml").write_text(f"env: {name}:{name}\nenv_args:\n  seed: null\nt_max: 20\n")
    token = train("own.yaml", config="iql")
    capsys.readouterr()
    if name == "Recording":
        assert make(token) == 0
        assert "Replay: game.SC2Replay" in capsys.readouterr().out
    else:
        assert make(token) == 2
        assert "cannot be drawn and saves no replays (Silent cannot save replays)" in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "run"),
        (("nothing",), "nothing: no such run; results/models holds"),
        (("results/sacred/7",), "results/sacred/7: no such run; results/sacred holds 1, 2"),
        (("TOKEN", "--episodes=0"), "--episodes=0: give a number from 1 to 10,000"),
        (("TOKEN", "--seed=-4"), "--seed=-4: give a number from 0 to 2,000,000,000"),
        (("TOKEN", "--step=-1"), "--step=-1: give a number from 0"),
        (("TOKEN", "--fps=nan"), "--fps=nan: give a number from 0.1 to 100"),
        (("TOKEN", "--out=film.avi"), "give a name that ends in .gif or .mp4"),
        (("TOKEN", "--out=film.mp4"), "MP4 needs ffmpeg"),
        (("broken",), "broken: not a whole record of a run"),
        (("results/sacred/2",), "no model of this run"),
        (("lonely",), "its configuration is not in"),
    ],
)
def test_bad_input(arguments, message, capsys, monkeypatch):
    token = train("matrix_games", "t_max=60")
    monkeypatch.setattr(film, "_ffmpeg", lambda: None)
    shutil.copytree("results/sacred/1", "results/sacred/2")
    shutil.copytree("results/sacred/1", "broken")
    Path("broken/config.json").write_text("{")
    shutil.copytree(f"results/models/{token}", "lonely")
    capsys.readouterr()
    assert make(*(token if one == "TOKEN" else one for one in arguments)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help(capsys):
    assert make("--help") == 0
    text = capsys.readouterr().out
    for option in ("--episodes", "--out", "--seed", "--step", "--fps", "--results", "Examples"):
        assert option in text
