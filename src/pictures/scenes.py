"""How scenes look. Colours are Okabe and Ito's, which colour-blind readers tell apart."""

import itertools
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke

from envs.scene import Field, Image, Payoffs, Piece, Scene

MARGIN = 2.0  # of a plane, around all that stands on it
COLOURS = {"agent": "#0072B2", "enemy": "#D55E00", "prey": "#E69F00"}


View = tuple[float, float, float, float]  # left, right, bottom, top


def view_of(scenes: Iterable[Scene]) -> View | None:
    """The part of a plane in which anything ever stands, as a square; None for whatever is no plane."""
    fields = [scene for scene in scenes if isinstance(scene, Field) and not scene.is_grid]
    pieces = [piece for scene in fields for piece in (*scene.agents, *scene.others) if piece is not None]
    if not pieces:
        return None
    xs, ys = [piece.x for piece in pieces], [piece.y for piece in pieces]
    half = max(max(xs) - min(xs), max(ys) - min(ys)) / 2 + MARGIN
    x, y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return x - half, x + half, y - half, y + half


def draw_scene(axis: Axes, scene: Scene, actions: np.ndarray | None, view: View | None = None) -> None:
    """Draw what there is to see, and what the agents do now.

    Args:
        actions: (N,); None at an episode's end, where nobody acts.
        view: the part of a plane that is shown; None: all of it.
    """
    axis.clear()
    if isinstance(scene, Field):
        _draw_field(axis, scene, actions, view)
    elif isinstance(scene, Payoffs):
        _draw_payoffs(axis, scene, actions)
    else:
        _draw_image(axis, scene)


def _draw_image(axis: Axes, scene: Image) -> None:
    axis.imshow(scene.pixels)
    axis.axis("off")


def _draw_field(axis: Axes, scene: Field, actions: np.ndarray | None, view: View | None) -> None:
    edge = 0.5 if scene.is_grid else 0.0
    left, right, bottom, top = view or (-edge, scene.width - edge, -edge, scene.height - edge)
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axis.add_patch(Rectangle((-edge, -edge), scene.width, scene.height, fill=False, color="#888888"))
    if scene.is_grid:
        axis.invert_yaxis()
        axis.set_xticks(np.arange(scene.width + 1) - 0.5, [])
        axis.set_yticks(np.arange(scene.height + 1) - 0.5, [])
        axis.grid(color="#dddddd")
        axis.tick_params(length=0)
    else:
        axis.set(xticks=[], yticks=[])
    for agent, action in zip(scene.agents, () if actions is None else actions.tolist(), strict=False):
        if agent is not None:
            _draw_action(axis, scene, agent, action)
    for piece in (*scene.others, *scene.agents):
        if piece is not None:
            _draw_piece(axis, piece, right - left)


def _draw_action(axis: Axes, scene: Field, agent: Piece, action: int) -> None:
    if action in scene.moves:
        dx, dy = scene.moves[action]
        start = (agent.x + agent.size * dx, agent.y + agent.size * dy)
        far = agent.size + (0.35 if scene.is_grid else 1.0)
        arrow = {"arrowstyle": "-|>", "color": "black", "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (agent.x + far * dx, agent.y + far * dy), start, arrowprops=arrow, zorder=6)
    elif action in scene.targets:
        target = scene.others[scene.targets[action]]
        if target is not None:
            axis.plot([agent.x, target.x], [agent.y, target.y], color=COLOURS[agent.kind], lw=1.5, ls=":", zorder=1)
    elif action == len(scene.actions) - 1:  # on grids the last one reaches for what is near
        axis.add_patch(Circle((agent.x, agent.y), 0.49, fill=False, color="#222222", lw=2, zorder=4))


def _draw_piece(axis: Axes, piece: Piece, width: float) -> None:
    """width: of what is shown."""
    colour, size = COLOURS[piece.kind], piece.size
    if piece.kind == "prey":
        corner = (piece.x - 0.8 * size, piece.y - 0.8 * size)
        axis.add_patch(Rectangle(corner, 1.6 * size, 1.6 * size, color=colour, zorder=2))
    else:
        axis.add_patch(Circle((piece.x, piece.y), size, color=colour, zorder=2))
    if piece.health is None:
        text = "black" if piece.kind == "prey" else "white"
        axis.text(piece.x, piece.y, piece.label, ha="center", va="center", fontsize=7, color=text, zorder=5)
        return
    bar, thick = 0.05 * width, 0.01 * width
    left, top = piece.x - bar / 2, piece.y + size + thick
    axis.add_patch(Rectangle((left, top), bar, thick, color="#cccccc", zorder=3))
    axis.add_patch(Rectangle((left, top), bar * piece.health, thick, color="#009E73", zorder=4))
    text = axis.text(piece.x, piece.y - size - thick, piece.label, ha="center", va="top", fontsize=7, color=colour)
    text.set(zorder=7, path_effects=[withStroke(linewidth=2, foreground="white")])  # over arrows and other pieces


def _draw_payoffs(axis: Axes, scene: Payoffs, actions: np.ndarray | None) -> None:
    """Agent 1 down; all others across."""
    A, N = len(scene.actions), scene.table.ndim
    values = scene.table.reshape(A, -1)
    span = max(1e-9, float(np.nanmax(np.abs(values))))
    axis.imshow(values, cmap="PuOr_r", vmin=-1.6 * span, vmax=1.6 * span, aspect="auto")
    if values.size <= 64:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axis.text(column, row, f"{value:g}"[:6], ha="center", va="center", fontsize=9)
    names = ["".join(joint) if N > 2 else joint[0] for joint in itertools.product(scene.actions, repeat=N - 1)]
    few = range(0, len(names), -(-len(names) // 16))
    axis.set_yticks(range(A), scene.actions)
    axis.set_xticks(list(few), [names[i] for i in few])
    axis.set(xlabel="agent 2" if N == 2 else f"agents 2 to {N}", ylabel="agent 1", title=scene.title)
    axis.title.set_fontsize(9)
    if actions is not None:
        column = int(np.ravel_multi_index(tuple(actions[1:]), (A,) * (N - 1)))
        axis.add_patch(Rectangle((column - 0.5, actions[0] - 0.5), 1, 1, fill=False, color="black", lw=3))
