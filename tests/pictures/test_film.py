"""Films: what is measured on their shots, and what is written."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from envs.scene import Field, Payoffs, Piece
from envs.scene import Image as Drawn
from pictures import film
from pictures.film import Shot
from pictures.scenes import MARGIN, view_of
from utils.errors import UserError

ACTIONS = ("left", "right", "shoot")


def shot(x: float, values=((0.0, 1.0, 5.0), (2.0, 2.5, 2.0)), avail=((1, 1, 0), (1, 1, 1)), over=False) -> Shot:
    agents = (Piece("agent", x, 1.0, "1", health=0.5), None)
    scene = Field(10, 10, agents, (Piece("enemy", 5, 5, "1", health=1.0),), ACTIONS, {0: (-1, 0), 1: (1, 0)}, {2: 0})
    if over:
        return Shot(scene, "over")
    said = {"independent": np.array(values), "cooperative": 2 * np.array(values)}
    return Shot(scene, f"at {x}", np.array([1, 2]), np.array(avail), said, np.array([0.2, 0.2]))


def test_span_is_of_available_actions():
    shots = [shot(1), shot(2, values=((0, -3, 9), (1, 1, 1))), shot(2, over=True)]
    assert film.span("independent", shots) == 3  # the 5 and the 9 could not be had
    assert film.span("cooperative", shots) == 6


def test_view_holds_whatever_stood_there():
    left, right, bottom, top = view_of([shot(x).scene for x in (1, 3)])
    assert (left, right) == (3 - 2 - MARGIN, 3 + 2 + MARGIN)
    assert (bottom, top) == (3 - 2 - MARGIN, 3 + 2 + MARGIN)
    assert view_of([Payoffs(np.zeros((2, 2)), ("1", "2"), "")]) is None


def test_frames_show_what_changes():
    found = list(film.frames([shot(1), shot(1), shot(3), shot(3, over=True)]))
    assert (found[0] == found[1]).all()
    assert (found[1] != found[2]).any()
    assert all(frame.dtype == np.uint8 and frame.shape == found[0].shape for frame in found)
    assert found[0].shape[0] % 2 == found[0].shape[1] % 2 == 0


@pytest.mark.parametrize("n_agents", [2, 3])
def test_other_scenes(n_agents):
    table = np.arange(3.0**n_agents).reshape((3,) * n_agents)
    table[0, 0] = np.nan
    scenes = (Payoffs(table, ACTIONS, "a game"), Drawn(np.zeros((4, 6, 3), np.uint8), ACTIONS))
    for scene in scenes:
        actions, avail = np.zeros(n_agents, int), np.ones((n_agents, 3), int)
        (frame,) = film.frames([Shot(scene, "", actions, avail, {"value": np.zeros((n_agents, 3))})])
        assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 10


def test_many_agents():
    """More than there is room for: the first ones, and how many are not shown."""
    agents = tuple(Piece("agent", i, 1.0, "1") for i in range(27))
    scene = Field(30, 30, agents, (), ACTIONS)
    crowd = Shot(scene, "", np.zeros(27, int), np.ones((27, 3), int), {"value": np.zeros((27, 3))})
    (frame,) = film.frames([crowd])
    assert frame.shape[0] < 800


def test_gif(tmp_path):
    film.save(tmp_path / "a/film.gif", [shot(1), shot(2), shot(3, over=True)], fps=10)
    with Image.open(tmp_path / "a/film.gif") as image:
        assert image.n_frames == 3
        durations = []
        for number in range(3):
            image.seek(number)
            durations.append(image.info["duration"])
    assert durations == [100, 100, 500]
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["film.gif"]


def test_mp4(tmp_path, monkeypatch):
    """What ffmpeg is given: every pixel of every frame, the last one longer."""
    asked = tmp_path / "asked"
    program = tmp_path / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        f"Path({str(asked)!r}).write_text(f'{{len(sys.stdin.buffer.read())}} ' + ' '.join(sys.argv[1:]))\n"
        "Path(sys.argv[-1]).write_bytes(b'film')\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(film, "_ffmpeg", lambda: f"{program}")
    shots = [shot(1), shot(2, over=True)]
    film.save(tmp_path / "film.mp4", shots, fps=4)
    height, width = next(film.frames(shots)).shape[:2]
    size, *options = asked.read_text().split()
    assert int(size) == (1 + film.LINGER) * 3 * width * height
    assert f"{width}x{height}" in options
    assert (tmp_path / "film.mp4").read_bytes() == b"film"
    program.write_text("#!/bin/sh\ncat > /dev/null\necho no such codec >&2\nexit 1\n")
    with pytest.raises(OSError, match="no such codec"):
        film.save(tmp_path / "other.mp4", shots, fps=4)
    assert not (tmp_path / "other.mp4").exists()


@pytest.mark.skipif(film._ffmpeg() is None, reason="needs ffmpeg")
def test_real_mp4(tmp_path):
    film.save(tmp_path / "film.mp4", [shot(1), shot(2, over=True)], fps=4)
    probed = subprocess.run(
        [f"{film._ffmpeg()}", "-i", f"{tmp_path / 'film.mp4'}", "-f", "null", "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "h264" in probed.stderr


def test_names_that_say_nothing(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.gif or \.mp4"):
        film.save(tmp_path / "film", [shot(1)], fps=4)
