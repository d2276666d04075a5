"""Films of episodes: frames of a scene with the agents' values and the gate beside it, as GIF or MP4.

Legend: N agents, A actions.
"""

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from envs.scene import Scene
from pictures.scenes import View, draw_scene, view_of
from utils.errors import UserError

SHOWN = 8  # agents beside the picture; more would be too small to read
NUMBERS = 10  # actions of which the values are written out
LINGER = 5  # how often an episode's last frame comes
KINDS = (".gif", ".mp4")


@dataclass(frozen=True, eq=False)  # eq=False: arrays do not compare to one truth value
class Shot:
    """One step of an episode."""

    scene: Scene
    heading: str
    actions: np.ndarray | None = None  # (N,); None: the episode is over
    avail: np.ndarray | None = None  # (N, A)
    values: dict[str, np.ndarray] = field(default_factory=dict)  # what says something of the actions: (N, A)
    weights: np.ndarray | None = None  # (N,) of the independent head

    @property
    def available(self) -> dict[str, np.ndarray]:
        """The values, not a number where an action is not available."""
        able = np.asarray(self.avail, bool)
        return {name: np.where(able, value, np.nan) for name, value in self.values.items()}


def check(path: Path) -> None:
    """
    Raises:
        UserError: no film of this kind can be written here.
    """
    if path.suffix not in KINDS:
        raise UserError(f"{path}: the ending says what is written; give a name that ends in {' or '.join(KINDS)}")
    if path.suffix == ".mp4" and _ffmpeg() is None:
        raise UserError(
            f"{path}: MP4 needs ffmpeg, which is not on PATH; install it (apt-get install ffmpeg, or "
            "pip install imageio-ffmpeg), or write a .gif"
        )


def save(path: Path, shots: list[Shot], fps: float) -> None:
    """Draw the shots and write them.

    Raises:
        OSError: the file cannot be written.
        UserError: no film of this kind can be written here.
    """
    check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}.part{path.suffix}")  # what has its final name is whole
    lengths = [LINGER if shot.actions is None else 1 for shot in shots]
    try:
        (_save_gif if path.suffix == ".gif" else _save_mp4)(beside, list(frames(shots)), lengths, fps)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _save_gif(path: Path, pictures: list[np.ndarray], lengths: list[int], fps: float) -> None:
    from PIL import Image  # matplotlib brings it

    # One palette for all, so that only what changes is stored.
    some = Image.fromarray(np.concatenate(pictures[:: -(-len(pictures) // 6)])).quantize(192)
    first, *rest = (Image.fromarray(one).quantize(palette=some, dither=Image.Dither.NONE) for one in pictures)
    durations = [round(1000 * length / fps) for length in lengths]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)


def _save_mp4(path: Path, pictures: list[np.ndarray], lengths: list[int], fps: float) -> None:
    height, width = pictures[0].shape[:2]
    command = [f"{_ffmpeg()}", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", "-pix_fmt", "yuv420p", f"{path}"]
    film = b"".join(one.tobytes() * length for one, length in zip(pictures, lengths, strict=True))
    done = subprocess.run(command, input=film, capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"ffmpeg: {' '.join(done.stderr.decode(errors='replace').split())[-300:]}")


def _ffmpeg() -> str | None:
    if found := shutil.which("ffmpeg"):
        return found
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return None
    return importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()


def frames(shots: list[Shot]) -> Iterator[np.ndarray]:
    """Each shot as (height, width, 3) uint8, all of one even size."""
    spans = {name: span(name, shots) for name in shots[0].values}
    with matplotlib.rc_context({"font.size": 8}):
        screen = _Screen(shots[0], spans, view_of(shot.scene for shot in shots))
        for shot in shots:
            yield screen.draw(shot)


def span(name: str, shots: list[Shot]) -> float:
    """The largest difference that an agent's available actions ever make."""
    found = [shot.available[name] for shot in shots if shot.values]
    return max(1e-9, *(float(np.max(np.nanmax(one, axis=1) - np.nanmin(one, axis=1))) for one in found))


class _Screen:
    """The scene on the left; on the right each agent's weight and values."""

    def __init__(self, shot: Shot, spans: dict[str, float], view: View | None):
        self.spans, self.view = spans, view
        N = 0 if shot.avail is None else len(shot.avail)
        self.n_shown = min(N, SHOWN)
        self.hidden = N - self.n_shown
        # Even numbers of pixels, which MP4 needs.
        wide = round(50 * (4.6 + max(3.6, 1.6 + 0.42 * min(len(shot.scene.actions), 16)))) / 50
        high = round(50 * max(4.6, 0.9 + self.n_shown * (0.3 + 0.24 * len(spans)))) / 50
        self.figure = Figure(figsize=(wide, high), dpi=100, layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        self.heading = self.figure.suptitle("", fontsize=9)
        parts: Any = self.figure.subfigures(1, 2, width_ratios=(4.6, wide - 4.6))
        self.scene = parts[0].subplots()
        self.panels = parts[1].subplots(max(self.n_shown, 1), 1, squeeze=False)[:, 0]
        self.draw(shot)
        self.figure.set_layout_engine("none")  # found once, it stays: finding it takes longer than drawing

    def draw(self, shot: Shot) -> np.ndarray:
        draw_scene(self.scene, shot.scene, shot.actions, self.view)
        self.heading.set_text(shot.heading)
        for agent in range(self.n_shown):
            self._draw_agent(self.panels[agent], shot, agent)
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def _draw_agent(self, axis, shot: Shot, agent: int) -> None:
        axis.clear()
        if shot.actions is None:
            axis.axis("off")
            return
        axis.set_axis_on()
        values = {name: value[agent] for name, value in shot.available.items()}
        # The brightest is a head's best action; the darker another is, the more it would lose.
        shades = np.stack([1 + (value - np.nanmax(value)) / self.spans[name] for name, value in values.items()])
        axis.imshow(shades, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axis.set_facecolor("#eeeeee")
        A = shades.shape[1]
        if A <= NUMBERS:
            for (row, action), number in np.ndenumerate(np.stack(list(values.values()))):
                if np.isfinite(number):
                    colour = "black" if shades[row, action] > 0.55 else "white"
                    text = f"{round(number, 2) + 0.0:.2f}"
                    axis.text(action, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        chosen, names = int(shot.actions[agent]), shot.scene.actions
        axis.axvspan(chosen - 0.5, chosen + 0.5, fill=False, ec="#D55E00", lw=2.5)
        axis.set_yticks(range(len(values)), list(values), fontsize=7)
        axis.set_xticks([])
        last = agent == self.n_shown - 1
        if last and A <= 16:
            turned: dict[str, Any] = {"rotation": 50, "ha": "right", "rotation_mode": "anchor"}
            axis.set_xticks(range(A), names, fontsize=7, **(turned if max(map(len, names)) > 4 else {}))
        axis.tick_params(length=0)
        more = f" ({self.hidden} more agents)" if last and self.hidden else ""
        axis.set_title(f"agent {agent + 1}: {names[chosen]}{more}", fontsize=7, loc="left", pad=2)
        if shot.weights is not None:
            weight = float(shot.weights[agent])
            full = round(10 * weight)
            trust = f"gate: {weight:.2f} independent {'■' * full}{'□' * (10 - full)}"
            axis.set_title(trust, fontsize=7, loc="right", pad=2)
