"""Reports of real runs, and of runs that went wrong in every way."""

import csv
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import error_line, run_main

import report
import sync_runs
from reporting import page, pictures
from reporting.runs import read_folders
from reporting.study import assemble

SMALL = ("rnn_hidden_dim=8", "batch_size=8", "use_cuda=False", "test_nepisode=4", "plot=False", "t_max=300")
SMALL += ("test_interval=50", "log_interval=50", "learner_log_interval=50")
PICTURES = {"scores", "improvement", "efficiency", "profiles", "curves", "gate"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two algorithms on two games, with two seeds."""
    results = tmp_path_factory.mktemp("sweep")
    for game in ("decoy", "handshake"):
        for config in ("iql", "greedy_qmix"):
            for seed in range(2):
                options = (f"env_args.game={game}", f"seed={seed}", f"local_results_path={results}")
                assert run_main(f"--config={config}", "--env-config=greed_games", "with", *SMALL, *options) == 0
    return results


@pytest.fixture
def results(trained, tmp_path, monkeypatch):
    """A copy of these runs: 1, 2 iql on decoy, 3, 4 greedy_qmix on decoy, 5 to 8 the same on handshake."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "results")
    return tmp_path / "results"


def edit(results, number, file, **changes):
    path = results / "sacred" / str(number) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def make(*argv: str) -> int:
    return report.main(["report.py", *map(str, argv)])


def study(results, **options):
    return assemble(*read_folders([str(results)]), **options)


class Page(HTMLParser):
    """What a page shows, and where from."""

    def __init__(self, text: str):
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page_tables_and_pictures(results, capsys):
    assert make("results") == 0
    out = results / "report"
    assert {file.name for file in out.iterdir()} == {"report.html", "report.md", "tests.csv"} | {
        f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg")
    }
    text = capsys.readouterr().out
    assert text.strip() == (out / "report.md").read_text().strip()
    shown = Page((out / "report.html").read_text())
    assert len(shown.sources) == len(PICTURES)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in shown.sources)  # no other file
    words = " ".join(shown.words)
    for said in ("2 seeds per algorithm and task", "300 steps", "4 greedy episodes every 50 steps", "Python 3.11"):
        assert said in words
        assert said in text
    metric = "test_normalised_return_mean"
    runs = [json.loads((results / f"sacred/{n}/metrics.json").read_text())[metric]["values"][-1] for n in (3, 4)]
    row = next(line for line in text.splitlines() if line.startswith("| greedy_qmix") and "(2)" in line)
    assert f"| greedy_qmix | {np.mean(runs):.2f} [" in row


def test_every_test_as_csv(results):
    edit(results, 3, "run.json", status="FAILED")
    assert make("results") == 0
    rows = list(csv.DictReader((results / "report/tests.csv").read_text().splitlines()))
    metric = "test_normalised_return_mean"
    assert {row["metric"] for row in rows} == {metric}
    for number, algorithm, state in ((3, "greedy_qmix", "failed"), (6, "iql", "complete")):
        logged = json.loads((results / f"sacred/{number}/metrics.json").read_text())[metric]
        about = ("decoy" if number < 5 else "handshake", algorithm, f"{(number - 1) % 2}", state)
        mine = [row for row in rows if (row["task"], row["algorithm"], row["seed"], row["state"]) == about]
        assert [int(row["step"]) for row in mine] == logged["steps"]
        np.testing.assert_allclose([float(row["value"]) for row in mine], logged["values"], rtol=1e-5)


def test_the_machines_of_runs(results, capsys):
    card = {"model": "NVIDIA H200", "total_memory": 143771, "persistence_mode": True}
    for number in range(1, 9):
        edit(results, number, "run.json", host={"cpu": "AMD EPYC", "gpus": {"gpus": [card, card]}})
    assert make("results") == 0
    assert "Machines: AMD EPYC, 2 x NVIDIA H200." in capsys.readouterr().out


def test_names_say_what_differs(results):
    for number in (1, 2):
        edit(results, number, "config.json", lr=0.01, env_args={"game": "decoy", "kappa": 0.5, "seed": number})
    edit(results, 3, "config.json", gate={"mode": "hard"})
    found = study(results)
    assert found.tasks == ["decoy kappa=0.5", "decoy kappa=1.0", "handshake"]
    # lr differs between tasks, but on each of them all runs of iql agree: it is one algorithm.
    assert found.algorithms == ["greedy_qmix gate.mode=direct", "greedy_qmix gate.mode=hard", "iql"]


def test_runs_without_a_score_are_said(results, capsys):
    trace = ["Traceback (most recent call last):\n", "  File x\n", "RunFailure: td_loss is <nan>\n", "SystemExit: 1\n"]
    edit(results, 1, "run.json", status="FAILED", fail_trace=trace)
    long_ago = (datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)).isoformat()
    edit(results, 2, "run.json", status="RUNNING", heartbeat=long_ago)
    edit(results, 3, "run.json", status="RUNNING", heartbeat=datetime.now(UTC).replace(tzinfo=None).isoformat())
    edit(results, 4, "run.json", status="INTERRUPTED")
    (results / "sacred/5/metrics.json").unlink()
    metrics = json.loads((results / "sacred/6/metrics.json").read_text())
    metrics["test_normalised_return_mean"]["values"][-1] = float("nan")
    edit(results, 6, "metrics.json", **metrics)
    (results / "sacred/7/config.json").write_text("{")
    assert make("results", "--out=out") == 0
    text, words = capsys.readouterr().out, " ".join(Page(Path("out/report.html").read_text()).words)
    assert "sacred/7: not a whole record of a run (JSONDecodeError" in text
    kinds = "1 failed, 1 killed, 1 no test_normalised_return_mean, 1 not finite, 1 running, 1 stopped"
    assert f"6 of 7 runs ({kinds})" in text
    assert "handshake: iql, seed 1, has logged values that are not finite." in text
    for state in ("failed: RunFailure: td_loss is <nan>", "killed", "running", "stopped", "complete, not finite"):
        assert state in words
    assert "| - (0 of 2 runs) |" in text


def test_missing_seeds_budgets_and_tests_are_said(results):
    edit(results, 2, "config.json", seed=7)
    edit(results, 5, "config.json", t_max=600)
    edit(results, 6, "config.json", test_nepisode=8)
    notes = "\n".join(study(results).notes)
    for said in (
        "decoy: greedy_qmix lacks seed 7, which others have.",
        "decoy: iql lacks seed 1, which others have.",
        "handshake: budgets differ, t_max is 300 (3 runs), 600 (1 run).",
        "handshake: tests differ, test_nepisode is 4 (3 runs), 8 (1 run).",
    ):
        assert said in notes
    edit(results, 2, "config.json", seed=1)
    for number in (3, 7):
        edit(results, number, "config.json", seed=9)
    notes = "\n".join(study(results).notes)
    assert "every task: greedy_qmix lacks seed 0, which others have." in notes
    shutil.rmtree(results / "sacred/7")
    shutil.rmtree(results / "sacred/8")
    found = study(results)
    assert list(found.comparable(found.common_tasks)) == ["iql"]
    assert "left out of what is said of all tasks: greedy_qmix." in "\n".join(found.notes)


def test_what_is_there_twice_counts_once(results):
    shutil.copytree(results / "sacred/1", results / "sacred/9")
    edit(results, 9, "run.json", start_time="2099-01-01T00:00:00")
    found = study(results)
    assert len(found.scores("iql", "decoy")) == 2
    assert [entry.run.place for entry in found.entries if entry.why == "repeated later"] == ["results/sacred/1"]
    assert [entry.run.place for entry in found.drawn("iql", "decoy")] == ["results/sacred/9", "results/sacred/2"]
    notes = "\n".join(found.notes)
    assert "with the same seed only the newest counts; left out: 1 run." in notes
    assert "Without a score" not in notes


def test_what_was_killed_and_begun_anew_counts_once(results):
    long_ago = "2020-01-01T00:00:00"
    for number, status in ((9, "RUNNING"), (10, "FAILED")):
        shutil.copytree(results / "sacred/3", results / f"sacred/{number}")
        edit(results, number, "run.json", status=status, start_time=long_ago, heartbeat=long_ago)
        metrics = json.loads((results / f"sacred/{number}/metrics.json").read_text())
        cut = {name: {key: column[:2] for key, column in one.items()} for name, one in metrics.items()}
        edit(results, number, "metrics.json", **cut)
    found = study(results)
    reasons = {entry.run.place[-2:]: entry.why for entry in found.entries if entry.why}
    assert reasons == {"/9": "killed, begun anew", "10": "failed"}
    notes = "\n".join(found.notes)
    assert "Killed, and completed by a later run with the same seed; left out: 1 run." in notes
    assert "1 of 10 runs (1 failed)" in notes
    assert len(found.drawn("greedy_qmix", "decoy")) == 3  # a failed one is shown
    edit(results, 9, "run.json", start_time="2099-01-01T00:00:00")  # of what comes later nothing is known yet
    assert "1 failed, 1 killed" in "\n".join(study(results).notes)


def test_tasks_may_be_tested_at_other_steps(results, capsys):
    for number in range(5, 9):  # handshake
        metrics = json.loads((results / f"sacred/{number}/metrics.json").read_text())
        half = {name: {key: column[::2] for key, column in one.items()} for name, one in metrics.items()}
        edit(results, number, "metrics.json", **half)
    assert make("results") == 0
    figure = pictures.draw_efficiency(study(results))
    curves = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    steps = curves[0].get_xdata()
    points = [
        json.loads((results / f"sacred/{number}/metrics.json").read_text())["test_normalised_return_mean"]
        for number in (1, 2, 5, 6)  # iql
    ]
    values = [np.interp(steps, one["steps"], one["values"]) for one in points]
    expected = np.mean(np.sort(values, axis=0)[1:-1], axis=0)
    (iql,) = (line for line in curves if line.get_label() == "iql")
    np.testing.assert_allclose(iql.get_ydata(), expected, atol=1e-6)


def test_the_newest_of_two_runs_within_a_minute_counts(results):
    for number, second in ((9, "05"), (10, "25")):
        shutil.copytree(results / "sacred/1", results / f"sacred/{number}")
        edit(results, number, "run.json", start_time=f"2099-01-01T00:00:{second}")
    scored = [entry.run.place for entry in study(results).entries if entry.is_scored]
    assert "results/sacred/10" in scored
    assert not {"results/sacred/1", "results/sacred/9"} & set(scored)


def test_the_gates_mean_is_over_the_scored_runs(results):
    metrics = json.loads((results / "sacred/3/metrics.json").read_text())
    cut = {name: {key: column[:2] for key, column in one.items()} for name, one in metrics.items()}
    edit(results, 3, "metrics.json", **cut)
    edit(results, 3, "run.json", status="FAILED")
    whole = json.loads((results / "sacred/4/metrics.json").read_text())["gate_weight_independent"]
    figure = pictures.draw_gate(study(results))
    (mean,) = (line for line in figure.axes[0].lines if line.get_linewidth() == 2)
    assert mean.get_xdata()[-1] == whole["steps"][-1]


def test_returns_need_bounds(results, capsys):
    assert make("results", "--metric=test_return_mean") == 0
    text = capsys.readouterr().out
    assert "optimality gap |" not in text
    assert "Without --worst and --best there is no optimality gap of decoy (test_return_mean)" in text
    assert "## Probability of improvement" in text
    assert make("results", "--metric=test_return_mean", "--worst=-4", "--best=6", "--best=handshake=3") == 0
    assert "optimality gap |" in capsys.readouterr().out
    found = study(results, metric="test_return_mean", worst={"": -4.0}, best={"": 6.0, "handshake": 3.0})
    assert found.bounds == {"decoy": (-4, 6), "handshake": (-4, 3)}
    assert found.normalise(np.array([1.0]), "decoy") == pytest.approx([0.5])


def test_one_task_and_one_run(results, capsys):
    assert make("results/sacred/1", "--out=out", "--tests=3") == 0
    text = capsys.readouterr().out
    assert "# 1 run of 1 algorithm on decoy\n\n1 seed per algorithm and task" in text
    assert "the mean of the last 3 tests" in text
    assert not any("[" in line for line in text.splitlines() if line.startswith("|"))  # one run has no interval
    curve = json.loads((results / "sacred/1/metrics.json").read_text())["test_normalised_return_mean"]["values"]
    assert study(results / "sacred/1", tests=3).entries[0].score == pytest.approx(np.mean(curve[-3:]))


def test_runs_of_sweeps_are_among_all_runs(results, capsys):
    shutil.copytree(results / "sacred/1", results / "sweeps/games/iql__decoy__seed_9/sacred/1")
    assert make("results", "--out=out") == 0
    assert capsys.readouterr().out.startswith("# 9 runs of 2 algorithms on 2 tasks")


def test_the_commit_of_a_run_in_an_image(results):
    edit(results, 1, "run.json", experiment={"repositories": []}, host={"ENV": {"GREED_IS_GOOD_COMMIT": "0123456789"}})
    edit(results, 2, "run.json", experiment={}, host={})
    runs, _ = read_folders(["results"])
    assert [run.commit for run in runs[:2]] == ["01234567", "unknown"]


def test_runs_that_never_tested(results, capsys):
    """A page all the same, which says so."""
    for number in range(2, 9):
        shutil.rmtree(results / f"sacred/{number}")
    (results / "sacred/1/metrics.json").unlink()
    edit(results, 1, "run.json", status="FAILED")
    assert make("results", "--out=out") == 0
    assert "1 of 1 run (1 failed)" in capsys.readouterr().out


def test_the_same_from_mongodb(results, mongo_url, monkeypatch, capsys):
    assert make("results", "--out=a") == 0
    folders = capsys.readouterr().out
    monkeypatch.setenv("MONGO_URL", mongo_url)
    assert sync_runs.main(["sync_runs.py", "results"]) == 0
    capsys.readouterr()
    assert make("MONGO_URL", "--out=b") == 0
    assert capsys.readouterr().out == folders


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "results"),
        (("nowhere",), "nowhere: holds no runs"),
        (("results", "--metric=test_won"), "no run has logged it; there are test_ep_length_mean"),
        (("results", "--tests=0"), "--tests=0: give a number of tests"),
        (("results", "--best=x"), "--best=x: 'x' is no number"),
        (("results", "--best=3m=1"), "--best 3m=...: no such task; there are decoy, handshake"),
        (("results", "--best=0", "--worst=1", "--metric=test_return_mean"), "1 is not below 0"),
        (("mongodb://127.0.0.1:1/x",), "MongoDB at mongodb://127.0.0.1:1/x does not answer"),
        (("mongodb://u:secret@h/x",), "command lines are seen by everybody"),
        (("results", "--out=results/sacred/1/run.json"), "--out=results/sacred/1/run.json"),
    ],
)
def test_bad_input(results, capsys, arguments, message):
    assert make(*arguments) == 2
    assert message in error_line(capsys)


def test_help_names_every_option(capsys):
    assert make("--help") == 0
    text = capsys.readouterr().out
    for option in ("--out", "--metric", "--tests", "--worst", "--best", "MONGO_URL", "Examples"):
        assert option in text


def test_the_same_runs_give_the_same_pictures(results):
    def draw():
        return {name: page.picture(figure, "svg") for name, figure in pictures.draw_all(study(results)).items()}

    first = draw()
    assert first.keys() == PICTURES
    assert draw() == first


def test_a_legend_stays_within_its_picture(results):
    for number in range(1, 9):
        edit(results, number, "config.json", name=f"an_algorithm_with_a_long_name_{number}")
    shown = 0
    for figure in pictures.draw_all(study(results)).values():
        figure.canvas.draw()
        for legend in figure.legends:
            shown += len(legend.get_texts())
            extent = legend.get_window_extent()
            assert extent.x0 >= 0
            assert extent.x1 <= figure.bbox.width
    assert shown >= 8 + 4 + 2  # curves of all; the gate's of four, and its two heads


def test_algorithms_differ_in_more_than_colour():
    names = [f"{number:02}" for number in range(20)]
    styles = [pictures.style(SimpleNamespace(algorithms=names), name) for name in names]
    assert len({dash for _, dash, _ in styles[:4]}) == len({point for _, _, point in styles[:4]}) == 4
    assert len(set(styles)) == len({(colour, dash) for colour, dash, _ in styles}) == len(names)


def test_whoever_reads_may_have_seen_enough(results):
    """A page whose reader, such as `head -1`, has gone is there all the same."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, f"{Path(report.__file__)}", f"{results / 'sacred/1'}", "--out=out"]
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].endswith("report.html")
