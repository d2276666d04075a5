"""The benchmarks' own code: a run of a sweep, that all variants load, that the page says what was published, and that
what measures finds positive numbers."""

import argparse
import csv
import importlib
import json
import math
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median, stdev

import pytest
import torch

import report
from config.schema import load
from utils.checkpoints import open_run

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
COMPARED = {  # README's columns: report, and column there
    "3m": ("first_smax", "3m"),
    "2s3z": ("first_smax", "2s3z"),
    "foraging": ("first_lbf", "Foraging-8x8-2p-2f-coop-v3"),
}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{BENCHMARKS}"):
            del sys.modules[name]


def test_a_run_of_a_sweep(module):
    jobs = module("jobs")
    small = {"t_max": 40, "test_interval": 20, "test_nepisode": 4, "rnn_hidden_dim": 8, "batch_size": 4}
    overrides = tuple(sorted({"env_args.game": "penalty", "env_args.k": -5.0, **small}.items()))
    record = jobs._run(jobs.Job("group", "method", "qmix", "matrix_games", overrides, seed=3))
    assert "error" not in record
    assert math.isfinite(jobs.last(record, "test_return_mean"))
    bad = jobs.Job("group", "method", "qmix", "matrix_games", (("env_args.game", "chess"),), seed=3)
    assert "chess" in jobs._run(bad)["error"]  # counted, not raised


def test_a_wrong_configuration_ends_a_sweep_before_it_starts(module, tmp_path):
    jobs = module("jobs")
    good = jobs.Job("group", "method", "qmix", "matrix_games", (), 0)
    bad = jobs.Job("group", "method", "qmix", "matrix_games", (("lrr", 0.1),), 0)
    with pytest.raises(SystemExit, match="lrr"):
        jobs.run_jobs([good, bad], tmp_path / "runs.jsonl", workers=1)
    assert not (tmp_path / "runs.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "3", "3"], "different"),
        (["--seeds", "-1"], "from 0 on"),
        (["--with", "lr=0.1"], "lr is what is tuned"),
        (["--with", "t_max"], "write key=value"),
        (["--with", "t_mxa=1"], "t_max"),
        (["--env-config", "smacks"], "smax"),
    ],
)
def test_what_tuning_refuses(table_of, module, monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr(module("tuning"), "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=message):
        table_of("tuning", *arguments)


def test_counts_are_at_least_one(module):
    positive = module("jobs").positive
    assert positive("3") == 3
    for text in ("0", "-1", "two", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            positive(text)


def test_overrides_are_read_as_the_program_reads_them(module):
    found = module("jobs").read_overrides(["gate.metric=cert", "lr=0.1", "env_args.map_name=3m", "lr_finish=None"])
    assert found == {"gate.metric": "cert", "lr": 0.1, "env_args.map_name": "3m", "lr_finish": None}


def test_answers_to_other_questions_stay(module, monkeypatch, tmp_path):
    questions, jobs = module("questions"), module("jobs")
    for owner in (questions, jobs):
        monkeypatch.setattr(owner, "PUBLISHED", tmp_path)
    made = {"metrics": {questions.RETURN: [[1, 1.0]]}, "commit": "c"}
    monkeypatch.setattr(
        questions, "run_jobs", lambda jobs, *_: [made | {"group": job.group, "method": job.method} for job in jobs]
    )
    for question, seeds in (("e8", "2"), ("e9", "3")):
        monkeypatch.setattr(sys, "argv", ["questions.py", "--questions", question, "--seeds", seeds])
        questions.main()
    found = json.loads((tmp_path / "questions.json").read_text())
    assert {name: answer["settings"]["seeds"] for name, answer in found.items()} == {"e8": 2, "e9": 3}
    assert found["e8"]["commits_of_runs"] == ["c"]
    assert found["e8"]["table"]["8 units"]["normalised return"]["values"] == [1.0, 1.0]


def tables(module, name: str) -> Iterator[str]:
    """What the benchmark prints of what it has published."""
    report = json.loads((ROOT / "results" / "published" / f"{name}.json").read_text())
    if name == "main_job":
        yield module("learning").as_markdown(report["runs"], report["settings"]["goal"])
    elif name == "greed_games":
        yield module("greed").as_markdown(report["table"], report["settings"]["methods"])
    elif name.startswith("ablation"):
        yield module("ablation").as_markdown(report["table"], report["settings"]["metric"])
    elif name == "questions":
        yield from (module("questions").as_markdown(key, report[key]["table"]) for key in report if key != "e5")
    else:
        yield module("curves").as_markdown(report["table"])


@pytest.mark.parametrize(
    "name", ["main_job", "greed_games", "ablation_greed_games", "ablation_smax", "questions", "curves", "stag_hunt"]
)
def test_the_page_says_what_was_published(module, name):
    def alike(text: str) -> list[str]:
        return re.sub(r"(?<!\d)0\.", ".", text).splitlines()

    page = set(alike((ROOT / "docs" / "experiments.md").read_text()))
    rows = [row for table in tables(module, name) for row in alike(table.strip())[2:]]
    assert len(rows) >= 3
    assert [row for row in rows if row not in page] == []


@pytest.mark.parametrize("name", ["first_smax", "first_lbf", "lbf_units"])
def test_the_page_says_what_a_report_says(name):
    page = (ROOT / "docs" / "experiments.md").read_text()
    report = (ROOT / "results" / "published" / name / "report.md").read_text()
    (table,) = re.findall(r"## Each task\n\n(.*?)\n\n", report, flags=re.DOTALL)
    assert len(table.splitlines()) > 3
    assert table in page


@pytest.mark.parametrize(
    ("name", "archives", "sweeps"),
    [
        ("first_lbf", ["first_lbf"], ["first_lbf", "first_lbf_lagrange"]),
        ("lbf_units", ["first_lbf", "lbf_units"], ["first_lbf", "first_lbf_lagrange", "first_lbf_lagrange_units"]),
    ],
)
def test_the_published_records_give_the_published_report(name, archives, sweeps, tmp_path, monkeypatch):
    published = ROOT / "results" / "published"
    monkeypatch.chdir(tmp_path)
    for folder in archives:
        with tarfile.open(published / folder / "runs.tar.gz") as archive:
            archive.extractall(filter="data")
    folders = sorted(path.parent for path in tmp_path.rglob("finished.json"))
    assert [folder for folder in folders if open_run(folder) is None] == []
    assert report.main(["report.py", *sweeps, "--worst=0", "--best=1", "--out=out"]) == 0
    assert (tmp_path / "out/report.md").read_text() == (published / name / "report.md").read_text()


def test_the_readme_says_what_the_reports_say():
    section = (ROOT / "README.md").read_text().split("## A first comparison")[1].split("\n## ")[0]
    (shown,) = read_tables(section)
    names = {"`greedy_qmix` with `gate.mode=lagrange`": "greedy_qmix_lagrange"}
    for name, row in shown.items():
        for column, score in row.items():
            report, task = COMPARED[column]
            text = (ROOT / "results" / "published" / report / "report.md").read_text()
            (found,) = (table for table in read_tables(text) if task in table["qmix"])
            assert found[names.get(name, name.strip("`"))][task].startswith(score)


@pytest.mark.parametrize(
    ("folder", "ways", "apart"),
    [("kernels_lbf", ("kernels", "plain"), 0.055), ("bf16_lbf", ("float32", "bf16"), 0.075)],
)
def test_the_page_says_how_alike_two_ways_learn_foraging(folder, ways, apart):
    curves = {}
    for way in ways:
        with open(ROOT / f"results/published/{folder}/{way}.csv", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                curves.setdefault((way, row["algorithm"]), {}).setdefault(row["seed"], []).append(float(row["value"]))
    heads = {"plain": "`GREED_KERNELS=off`"}
    columns = [*(heads.get(way, way) for way in ways), *(f"last test, {way.replace('plain', 'off')}" for way in ways)]
    tables = read_tables((ROOT / "docs/performance.md").read_text())
    (shown,) = (rows for rows in tables if list(rows.get("qmix", ())) == columns)
    for name, row in shown.items():
        of_curve, last = [], []
        for way in ways:
            runs = curves[way, name].values()
            assert [len(run) for run in runs] == [11] * 5
            of_curve.append([fmean(run[1:]) for run in runs])
            last.append([run[-1] for run in runs])
        cells = [f"{fmean(values):.2f} ({stdev(values):.2f})".replace("0.", ".") for values in (*of_curve, *last)]
        assert list(row.values()) == cells
        assert max(abs(a - b) for a, b in zip(*of_curve, strict=True)) < apart


def test_the_page_says_how_fast_rollouts_are():
    table = json.loads((ROOT / "results/published/rollout.json").read_text())["table"]
    (shown,) = (rows for rows in read_tables((ROOT / "docs/performance.md").read_text()) if "matrix_games" in rows)
    for name, row in shown.items():
        env, share = name.split()[0], row.pop("environment")
        found = {column: table[f"{env} {column}".replace(",", "")] for column in row}
        assert row == {column: f"{cell['network']['steps_per_second']:,.0f}" for column, cell in found.items()}
        assert share == f"{found['vector, 1024']['env']:.0%}"


def test_the_page_says_what_seeds_at_once_cost():
    table = json.loads((ROOT / "results/published/many_seeds.json").read_text())["table"]
    (shown,) = (rows for rows in read_tables((ROOT / "docs/performance.md").read_text()) if "update, 3m, rnn" in rows)
    for name, row in shown.items():
        for column, cell in row.items():
            algorithm, other = column.split(", of ")
            rounds = table[f"{algorithm}, {name}"]
            others = rounds[{"one": "alone", "ten runs": "10 runs"}[other]]
            assert cell == f"{median(a / b for a, b in zip(rounds['10'], others, strict=True)):.1f}".lstrip("0")
    assert len(shown) * 2 == len(table)


def read_tables(page: str) -> list[dict[str, dict[str, str]]]:
    """Row -> column -> cell of every table of a page; figures are written as .5."""
    tables = []
    for text in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines())
        cells = [[re.sub(r"(?<!\d)0\.", ".", cell) for cell in row] for row in rows]
        tables.append({name: dict(zip(head[1:], rest, strict=True)) for name, *rest in cells})
    return tables


def test_every_ablation_loads(module):
    ablation, nested = module("ablation"), module("jobs").nested
    for env, environment in ablation.ENVIRONMENTS.items():
        for _, config, changes in ablation.variants(list(ablation.CHOICES)):
            for task in environment.tasks.values():
                load(config, env, nested(changes | task))


def test_every_question_loads(module):
    for question in module("questions")._questions().values():
        for config, changes in question.variants.values():
            load(config, question.env, module("jobs").nested(changes))


def test_tasks_are_resampled_one_by_one(module):
    """Two tasks with runs that agree: nothing is left to chance, although the tasks differ."""
    found = module("jobs").summarise_tasks({"easy": [1.0] * 4, "hard": [0.0] * 4, "lost": [math.nan]})
    assert (found["low"], found["iqm"], found["high"]) == (0.5, 0.5, 0.5)
    assert (found["runs"], found["failed"]) == (9, 1)
    assert found["tasks"] == {"easy": 1.0, "hard": 0.0}


@pytest.fixture
def table_of(module, monkeypatch, tmp_path):
    """Runs a benchmark's command line; what it publishes, and what it prints."""

    def run(name: str, *arguments: str) -> dict:
        script = module(name)
        monkeypatch.setattr(module("jobs"), "PUBLISHED", tmp_path)
        monkeypatch.chdir(tmp_path)  # where worker processes write
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        script.main()
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert report["machine"]["cpu"]
        assert report["table"]
        return report["table"]

    return run


def positive(row: dict, *keys: str) -> bool:
    return all(math.isfinite(row[key]) and row[key] > 0 for key in keys)


def test_rollout(table_of):
    options = ["--counts", "1", "4", "--processes", "1", "--seconds", "0.02", "--rounds", "1"]
    table = table_of("rollout", "--envs", "matrix_games", *options)
    assert list(table) == [f"matrix_games {runner}" for runner in ("vector 1", "vector 4", "parallel 1", "episode 1")]
    for row in table.values():
        assert positive(row, "env", "agents", "rest", "of_limit", "launches")
        assert row["env"] + row["agents"] + row["rest"] == pytest.approx(1)
        assert row["env"] < row["of_limit"]
        assert positive(row["uniform"], "steps_per_second")
        assert positive(row["network"], "steps_per_second")


def test_memory(table_of):
    rows = list(table_of("memory", "--shapes", "3m", "--configs", "qmix").values())  # one for each type
    for row in rows:
        assert positive(row, "memory_bytes", "sample_seconds", "bytes_per_second")
        assert row["episode_bytes"] == row["predicted_bytes"]  # what stops a run that would not fit
        assert row["batch_bytes"] == rows[0]["batch_bytes"] > 32 * row["episode_bytes"]  # learners see the usual types
        assert row["update_bytes"] > row["batch_bytes"]  # both networks' values of all steps, with gradients of one
    assert rows[0]["episode_bytes"] > rows[1]["episode_bytes"] > rows[2]["episode_bytes"]


def test_startup(table_of):
    table = table_of("startup", "--pairs", "qmix:matrix_games", "--rounds", "1")
    assert list(table) == ["qmix:matrix_games cold", "qmix:matrix_games warm"]
    for row in table.values():
        assert positive(row, "import", "build", "first step", "first update", "second update", "limit")
        assert row["in all"] == pytest.approx(row["rounds"][0])


def test_learner_step(table_of):
    options = ["--rounds", "1", "--updates", "1"]
    table = table_of("learner_step", "--configs", "qmix", "--shapes", "3m", "--lengths", "realistic", *options)
    (row,) = table["3m, realistic"].values()
    assert positive(row, "ms", "limit_ms", "launch_ms")


def test_linear(table_of):
    for row in table_of("linear", "--rows", "100", "--tries", "2").values():
        assert positive(row, "torch, same", "torch, other", "limit_ms")


def test_what_is_computed_aside_counts(module):
    """The counters see one thread, as does torch here: no target network is left out."""
    count = module("limits").count
    aside = importlib.import_module("utils.aside").aside
    a, rows = torch.ones(8, 8), torch.ones(10_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert count(lambda: aside(lambda: a @ a, rows)()) == (2 * 8**3, 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_products_of_kernels_count(module, monkeypatch):
    linear = importlib.import_module("utils.linear")
    if not importlib.import_module("utils.native").is_there():
        pytest.skip("no kernels here")
    monkeypatch.setattr(linear, "LEAST_PRODUCTS", 0)
    monkeypatch.setattr(linear, "_is_handicapped", lambda: True)
    x, weight = torch.ones(2, 3, 5), torch.ones(7, 5, requires_grad=True)
    products = (2 * 3) * 5 * 7
    assert module("limits").count(lambda: linear.linear(x, weight).sum().backward())[0] == 2 * 2 * products


def test_a_small_task_end_to_end(table_of, module, monkeypatch):
    end_to_end = module("end_to_end")
    keys = {"env_args.game": "two_step", "batch_size": 8, "batch_size_run": 4, "updates_per_episode": 0.1}
    task = end_to_end.Task("two steps", "matrix_games", keys, {}, after=1000, steps=2000)
    monkeypatch.setattr(end_to_end, "TASKS", {"foraging": task})
    table = table_of("end_to_end", "--tasks", "foraging", "--rounds", "1")
    (found,) = table["foraging"]["rounds"]["qmix"]
    assert found["steps_per_second"] > 0
    assert found["steps_per_update"] == pytest.approx(20, rel=0.1)  # two steps in an episode, ten episodes for each
    assert found["transitions_per_update"] == 16
    assert positive(table["foraging"]["limits"]["qmix"], "env_seconds", "update_seconds")


def test_a_peer_that_is_not_there(table_of):
    with pytest.raises(SystemExit, match="no such folder"):
        table_of("end_to_end", "--peer", "epymarl=/nowhere")
    with pytest.raises(SystemExit, match="no --peer has this name"):
        table_of("end_to_end", "--peer-python", "epymarl=python3")
