"""The page of runs: what it shows, and that nothing of a run gets out of its place."""

import json
import shutil
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import error_line, run_main

import browse

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x00\x1b"


class Page(HTMLParser):
    """All elements, as (name, attributes), and all text outside of style and script."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] not in ("style", "script"):
            self.text += data + "\n"

    def all(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag == name]


def write(folder: Path, **files: object) -> Path:
    """A run's folder."""
    folder.mkdir(parents=True)
    record = {"status": "RUNNING", "start_time": "2026-01-02T03:04:05", "heartbeat": "2026-01-02T03:05:06.7"}
    defaults = {"run": record, "config": {"name": "qmix", "env": "smax", "seed": 3}, "metrics": {}}
    for name, value in {**defaults, **files}.items():
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def points(*values: float) -> dict[str, list]:
    return {"steps": [100 * i for i in range(len(values))], "values": list(values), "timestamps": [""] * len(values)}


def test_a_real_run(tmp_path, capsys):
    game = ("--config=greedy_qmix", "--env-config=greed_games", "with", "env_args.game=decoy", "rnn_hidden_dim=8")
    sizes = ("t_max=400", "batch_size=8", "use_cuda=False", "test_nepisode=4", "log_interval=100", "test_interval=100")
    assert run_main(*game, *sizes, f"local_results_path={tmp_path}") == 0
    capsys.readouterr()
    assert browse.main(["browse.py", f"{tmp_path}"]) == 0
    assert capsys.readouterr().out == f"1 run: file://{tmp_path}/index.html\n"
    page = Page(tmp_path / "index.html")
    for shown in (
        "COMPLETED",
        "greedy_qmix",
        "greed_games decoy",
        "final metrics",
        "test_return_mean",
        '"buffer_size"',
    ):
        assert shown in page.text
    assert len(page.all("svg")) == 2  # return, gate weight
    (picture,) = page.all("img")
    assert (tmp_path / picture["src"]).name == "gate.png"
    assert (tmp_path / picture["src"]).is_file()
    assert not [
        one for _, attributes in page.elements for one in attributes.values() if "http" in f"{one}"
    ]  # no network

    assert browse.main(["browse.py", f"{tmp_path}", "--embed"]) == 0
    (picture,) = Page(tmp_path / "index.html").all("img")
    assert picture["src"].startswith("data:image/png;base64,")


def test_whatever_a_run_holds_is_text(tmp_path):
    folder = tmp_path / "sacred" / "1"
    record = {
        "status": EVIL,
        "start_time": EVIL,
        "host": {"hostname": EVIL, "cpu": EVIL},
        "fail_trace": [EVIL],
        "artifacts": [f"{EVIL}.png", "../../../outside.png", "gate.png"],
        "experiment": {"repositories": [{"commit": EVIL, "dirty": True}]},
        "result": {EVIL: 1.0, "text": EVIL},
    }
    config = {"name": EVIL, "env": EVIL, "env_args": {"map_name": EVIL}, "seed": EVIL, EVIL: [EVIL]}
    write(folder, run=record, config=config, metrics={EVIL: points(1, 2), "return_mean": points(1, 2)})
    (folder / "gate.png").write_bytes(b"")
    (tmp_path.parent / "outside.png").write_bytes(b"")
    assert browse.main(["browse.py", f"{tmp_path}"]) == 0
    page = Page(tmp_path / "index.html")
    assert len(page.all("script")) == 1
    assert [one["src"] for one in page.all("img")] == ["sacred/1/gate.png"]
    assert not [attributes for _, attributes in page.elements if any(key.startswith("on") for key in attributes)]
    assert "alert(1)" in page.text
    assert "\x00" not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("name", ["run", "config", "metrics"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}"])
def test_what_is_damaged_counts_as_empty(tmp_path, name, content):
    write(tmp_path / "sacred/1", **{name: content})
    write(tmp_path / "sacred/2")
    assert browse.main(["browse.py", f"{tmp_path}"]) == 0
    assert "2 runs" in Page(tmp_path / "index.html").text


@pytest.mark.parametrize(
    "metrics", [{"return_mean": 3}, {"return_mean": []}, {"return_mean": {"steps": 1, "values": 2}}, {"a": {}}]
)
def test_a_damaged_metric_counts_as_empty(tmp_path, metrics):
    write(tmp_path / "sacred/1", metrics=metrics)
    assert browse.main(["browse.py", f"{tmp_path}"]) == 0
    assert Page(tmp_path / "index.html").all("svg") == []


@pytest.mark.parametrize("files", [{"run": {"host": 3}}, {"run": {"result": 3}}, {"config": {"env_args": [1]}}])
def test_a_record_of_another_shape_is_named_among_the_others(tmp_path, files):
    write(tmp_path / "sacred/1", **files)
    write(tmp_path / "sacred/2")
    assert browse.main(["browse.py", f"{tmp_path}"]) == 0
    page = Page(tmp_path / "index.html")
    assert "sacred/1: not a whole record of a run" in page.text
    assert len([one for one in page.all("details") if "data-text" in one]) == 1


def test_a_run_that_is_silent_is_no_longer_running(tmp_path):
    now = f"{datetime.now(UTC).replace(tzinfo=None):%Y-%m-%dT%H:%M:%S}"
    write(tmp_path / "sacred/1")
    write(tmp_path / "sacred/2", run={"status": "RUNNING", "start_time": now})
    assert browse.main(["browse.py", f"{tmp_path}"]) == 0
    words = Page(tmp_path / "index.html").text.split()
    assert (words.count("KILLED"), words.count("RUNNING")) == (1, 1)


def test_runs_of_sweeps_are_told_apart(tmp_path):
    for folder in ("sacred/3", "sweeps/games/iql__decoy__seed_0/sacred/1"):
        write(tmp_path / folder)
    assert browse.main(["browse.py", f"{tmp_path}"]) == 0
    words = Page(tmp_path / "index.html").text.split()
    assert {"3", "games/iql__decoy__seed_0/1"} <= set(words)


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    metrics = {"test_return_mean": points(1.0, float("nan"), 3.0, float("inf")), "loss": points(float("nan"))}
    write(tmp_path / "sacred/1", metrics=metrics)
    assert browse.main(["browse.py", f"{tmp_path}"]) == 0
    (line,) = Page(tmp_path / "index.html").all("polyline")
    assert len(line["points"].split()) == 2
    assert "nan" not in line["points"]


def test_the_newest_run_comes_first(tmp_path):
    for name, stamp in (("1", "2026-01-01"), ("2", "2026-03-01"), ("3", "2026-02-01")):
        write(tmp_path / "sacred" / name, run={"status": "COMPLETED", "start_time": stamp})
    assert browse.main(["browse.py", f"{tmp_path}"]) == 0
    rows = [one["data-text"].split()[0] for one in Page(tmp_path / "index.html").all("details") if "data-text" in one]
    assert rows == ["2", "3", "1"]


def test_long_curves_are_thinned():
    curve = [(float(i), 0.0) for i in range(100_001)]
    found = browse.thin(curve)
    assert len(found) <= browse.MOST + 1
    assert (found[0], found[-1]) == (curve[0], curve[-1])
    assert browse.thin(curve[:2]) == curve[:2]
    assert browse.thin(curve[:1]) == curve[:1]


def test_bad_input(tmp_path, capsys):
    assert browse.main(["browse.py", f"{tmp_path}"]) == 2
    assert "holds no runs" in error_line(capsys)
    assert browse.main(["browse.py", "--nonsense"]) == 2
    assert "see --help" in error_line(capsys)
    write(tmp_path / "sacred/1")
    (tmp_path / "index.html.part").mkdir()
    assert browse.main(["browse.py", f"{tmp_path}"]) == 2
    assert "cannot be written" in error_line(capsys)
    shutil.rmtree(tmp_path / "index.html.part")
    assert browse.main(["browse.py", "--help"]) == 0
