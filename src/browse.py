"""Command line: a page of all runs below a folder of results. See --help."""

import base64
import json
import math
import os
import sys
import webbrowser
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from utils.arguments import Parser
from utils.errors import UserError
from utils.plots import PANELS
from utils.record import commit_of, find_runs, status_of
from utils.titles import env_title

HELP = """Write a page of the runs below a folder of results: configurations, final metrics, curves and pictures.

  python src/browse.py [RESULTS] [--embed] [--open]

  RESULTS    folder of results (results); the page is RESULTS/index.html, and needs no server
  --embed    put the pictures into the page, so that it can be sent alone
  --open     show it in the browser

`make browse-local` does so, and starts TensorBoard beside it.
Exit code: 0 done, 2 bad input.
"""

SHOWN = {"test win rate": "test_battle_won_mean", "test return": "test_return_mean"}  # columns: title -> metric
COLOURS = ("#1f77b4", "#ff7f0e")  # of a panel's first and second line
REDRAWN = "learning_curve.png"  # the page draws these curves itself
WIDTH, HEIGHT, LEFT, BOTTOM = 320, 180, 44, 22  # of a curve
MOST = 400  # points of a line

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff; }
h1 { font-size: 1.3em; margin: 0 0 .3em; }
input { font: inherit; padding: .3em .6em; width: 28em; max-width: 90%; margin: .6em 0; }
.row, summary { display: grid; grid-template-columns: 12em 7em 10em 1fr 3em 7em 8em 7em 10em; gap: 1em; }
.row { font-weight: 600; border-bottom: 2px solid #444; padding: .3em 1.2em; }
summary { padding: .3em 1.2em; border-bottom: 1px solid #ddd; cursor: pointer; list-style: none; }
summary:hover, details[open] > summary { background: #f2f6fa; }
summary span, .row span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.COMPLETED { color: #1a7f37; } .FAILED, .KILLED { color: #c1121f; } .RUNNING { color: #0969da; }
.INTERRUPTED { color: #b35900; }
.run { padding: .8em 1.2em 1.6em; border-bottom: 1px solid #ddd; }
.curves { display: flex; flex-wrap: wrap; gap: 1em; }
img { max-width: 100%; border: 1px solid #ddd; margin: .4em 0; display: block; }
table { border-collapse: collapse; } td { padding: 0 1.2em 0 0; vertical-align: top; }
.columns { display: flex; flex-wrap: wrap; gap: 2.5em; }
pre { white-space: pre-wrap; background: #f7f7f7; padding: .6em; max-height: 24em; overflow: auto; }
"""
SCRIPT = """
document.querySelector("input").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/ +/);
  for (const run of document.querySelectorAll("details[data-text]"))
    run.hidden = !words.every(word => run.dataset.text.includes(word));
});
"""


@dataclass
class Run:
    """What the folder of one run holds. A file that is missing or damaged counts as empty."""

    folder: Path
    record: dict[str, Any] = field(init=False)
    config: dict[str, Any] = field(init=False)
    metrics: dict[str, list[tuple[float, float]]] = field(init=False)  # finite points, (step, value)

    def __post_init__(self):
        self.record = read(self.folder / "run.json")
        self.config = read(self.folder / "config.json")
        self.metrics = {name: points_of(one) for name, one in read(self.folder / "metrics.json").items()}

    @property
    def state(self) -> str:
        try:
            return f"{status_of(self.record)}"
        except (KeyError, TypeError, ValueError):
            return f"{self.record.get('status', '?')}"

    @property
    def final(self) -> dict[str, float]:
        """The last test's result; while there is none, the last value of each metric."""
        last = {name: points[-1][1] for name, points in self.metrics.items() if points}
        return last | {key: value for key, value in (self.record.get("result") or {}).items() if is_finite(value)}

    @property
    def environment(self) -> str:
        return env_title(f"{self.config.get('env') or '?'}", self.config.get("env_args") or {})

    @property
    def steps(self) -> float:
        return max((points[-1][0] for points in self.metrics.values() if points), default=0)

    @property
    def duration(self) -> str:
        try:
            start, end = (
                datetime.fromisoformat(self.record.get(key) or self.record["heartbeat"])
                for key in ("start_time", "stop_time")
            )
        except (KeyError, TypeError, ValueError):
            return ""
        return f"{timedelta(seconds=int((end - start).total_seconds()))}"

    @property
    def pictures(self) -> list[Path]:
        names = dict.fromkeys(f"{name}" for name in self.record.get("artifacts") or [])
        found = (self.folder / Path(name).name for name in names if name.endswith(".png") and name != REDRAWN)
        return [path for path in found if path.is_file()]

    @property
    def commit(self) -> str:
        commit, is_changed = commit_of(self.record)
        return commit + " and changes" * is_changed


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    if {"-h", "--help"} & set(argv[1:]):
        print(HELP, end="")
        return 0
    parser = Parser()
    parser.add_argument("results", nargs="?", default="results", type=Path)
    parser.add_argument("--embed", action="store_true")
    parser.add_argument("--open", action="store_true")
    try:
        options = parser.parse_args(argv[1:])
        runs = [Run(folder) for folder in find_runs(options.results)]
        path = options.results / "index.html"
        beside = path.with_name(path.name + ".part")
        try:
            beside.write_text(render(runs, options.results, options.embed))
            os.replace(beside, path)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error}); name a folder of results that is yours") from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    address = path.resolve().as_uri()
    print(f"{count(runs)}: {address}")
    if options.open:
        webbrowser.open(address)
    return 0


def count(runs: list[Run]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"


def render(runs: list[Run], results: Path, embed: bool = False) -> str:
    """The page, as HTML. Whatever the runs hold is text in it: the tree is escaped where it is written."""
    head = ["run", "state", "config", "environment", "seed", "steps", *SHOWN, "started (UTC)"]
    newest = sorted(runs, key=lambda run: f"{run.record.get('start_time')}", reverse=True)
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width"),
            tag("title", count(runs)),
            tag("style", STYLE),
        ),
        tag(
            "body",
            tag("h1", f"{count(runs)} in {results}"),
            tag("input", type="search", placeholder="words of a run or its configuration"),
            tag("div", *(tag("span", name, class_=align(i)) for i, name in enumerate(head)), class_="row"),
            *(try_to_show(run, results, embed) for run in newest),
            tag("script", SCRIPT),
        ),
        lang="en",
    )
    return "<!DOCTYPE html>\n" + ElementTree.tostring(page, encoding="unicode", method="html")


def try_to_show(run: Run, results: Path, embed: bool) -> Element:
    """`show`, or a line that says why not."""
    try:
        return show(run, results, embed)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        name = run.folder.relative_to(results)
        return tag("p", f"{name}: not a whole record of a run ({type(error).__name__}: {error})", class_="FAILED")


def show(run: Run, results: Path, embed: bool) -> Element:
    """One run: a row, and what opens below it."""
    folder, state, final = run.folder.relative_to(results), run.state, run.final
    # Of sweeps/NAME/RUN/sacred/1 what tells runs apart.
    short = "/".join(part for part in folder.parts if part not in ("sacred", "sweeps")) or run.folder.name
    cells = [short, state, f"{run.config.get('name', '?')}", run.environment, f"{run.config.get('seed', '')}"]
    cells += [f"{run.steps:,.0f}", *(number(final.get(key)) for key in SHOWN.values())]
    cells.append(f"{run.record.get('start_time', '')}"[:16].replace("T", " "))
    host = run.record.get("host", {})
    gpus = ", ".join(f"{gpu.get('model', gpu)}" for gpu in (host.get("gpus") or {}).get("gpus", []))
    facts = {
        "folder": f"{folder}",
        "duration": run.duration,
        "host": host.get("hostname"),
        "processor": host.get("cpu"),
    }
    facts |= {"GPU": gpus, "commit": run.commit}
    trace = "".join(run.record.get("fail_trace") or [])
    body = tag(
        "div",
        tag("div", *(chart for title, lines in PANELS.items() if (chart := draw(title, lines, run)) is not None)),
        *(tag("img", src=source(path, results, embed), alt=path.stem, loading="lazy") for path in run.pictures),
        tag("div", table("run", facts), table("final metrics", {k: number(v) for k, v in sorted(final.items())})),
        tag("details", tag("summary", tag("b", "configuration")), tag("pre", as_text(run.config))),
        *([tag("pre", trace)] if trace else []),
        class_="run",
    )
    body[0].set("class", "curves")
    body[1 + len(run.pictures)].set("class", "columns")
    classes = ["", state if state.isalpha() else "", *[""] * (len(cells) - 2)]
    row = (tag("span", cell, title=cell, class_=f"{align(i)} {classes[i]}") for i, cell in enumerate(cells))
    text = f"{' '.join(cells)} {as_text(run.config)}".lower()
    return tag("details", tag("summary", *row), body, data_text=text)


def draw(title: str, lines: dict[str, str], run: Run) -> Element | None:
    """A panel's metrics over steps, as a picture of lines; None where nothing was logged."""
    curves = [(label, thin(run.metrics[key])) for key, label in lines.items() if run.metrics.get(key)]
    if not curves:
        return None
    points = [point for _, curve in curves for point in curve]
    right = max(step for step, _ in points) or 1
    low, high = min(value for _, value in points), max(value for _, value in points)
    if title != "return":
        low, high = 0.0, 1.0
    span = (high - low) or 1.0

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 8) * step / right
        return round(x, 1), round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 38) * (value - low) / span, 1)

    marks = []
    for value in (low, (low + high) / 2, high):
        x, y = place(0, value)
        marks.append(tag("line", x1=x, x2=WIDTH - 8, y1=y, y2=y, stroke="#ddd"))
        marks.append(tag("text", f"{value:.3g}", x=x - 5, y=y + 4, text_anchor="end"))
    drawn = []
    for i, (label, curve) in enumerate(curves):
        shape = " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve))
        x, y = place(*curve[-1])
        drawn.append(tag("circle", cx=x, cy=y, r=2.5, fill=COLOURS[i]))  # a line of one point shows nothing
        drawn.append(tag("polyline", points=shape, fill="none", stroke=COLOURS[i], stroke_width=1.6))
        drawn.append(tag("text", label, x=WIDTH - 10, y=14 + 13 * i, text_anchor="end", fill=COLOURS[i]))
    heading = tag("text", title, x=LEFT, y=14, font_weight="600")
    ends = [("0", LEFT, "start"), (f"{right:,.0f} steps", WIDTH - 8, "end")]
    axis = [tag("text", text, x=x, y=HEIGHT - 6, text_anchor=anchor) for text, x, anchor in ends]
    box = f"0 0 {WIDTH} {HEIGHT}"
    return tag("svg", heading, *marks, *axis, *drawn, width=WIDTH, height=HEIGHT, viewBox=box, font_size=11)


def tag(name: str, /, *children: Element | str, **attributes: object) -> Element:
    """An element of the page. `class_` is written class, and text_anchor is written text-anchor."""
    element = Element(name, {key.rstrip("_").replace("_", "-"): printable(f"{one}") for key, one in attributes.items()})
    for child in children:
        if isinstance(child, str):
            element.text = (element.text or "") + printable(child)
        else:
            element.append(child)
    return element


def table(title: str, rows: dict[str, Any]) -> Element:
    """Names and values, without those that are empty."""
    cells = (tag("tr", tag("td", name), tag("td", f"{value}")) for name, value in rows.items() if value)
    return tag("div", tag("b", title), tag("table", *cells))


def source(path: Path, results: Path, embed: bool) -> str:
    """Where a page in `results` finds a picture."""
    if embed:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return quote(f"{path.relative_to(results)}")


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about as many points as can be told apart, the last among them."""
    return [*points[: -1 : -(-len(points) // MOST)], points[-1]]


def read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def points_of(metric: Any) -> list[tuple[float, float]]:
    """The finite points of what metrics.json says of a metric."""
    try:
        return [point for point in zip(metric["steps"], metric["values"], strict=False) if all(map(is_finite, point))]
    except (KeyError, TypeError):
        return []


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}"


def align(column: int) -> str:
    return "number" if 4 <= column < 6 + len(SHOWN) else ""


def as_text(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True)


def printable(text: str) -> str:
    """Without control characters, which no page may hold."""
    return "".join(one if one.isprintable() or one in "\n\t" else "�" for one in text)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
