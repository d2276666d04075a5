"""docs/configuration.md: up to date, complete, and every key explained."""

import subprocess
import sys

import pytest

from config import document
from config.schema import BLOCKS, ENV_ARGS, Run, config_files, read_yaml

FILES = [document.DEFAULTS, *config_files("algs").values(), *config_files("envs").values()]


def test_the_page_is_up_to_date(capsys):
    assert document.main(["--check"]) == 0, "run `python src/config/document.py`"
    assert capsys.readouterr().out == ""


def test_a_page_that_is_out_of_date_is_found_and_mended(tmp_path, capsys):
    page = tmp_path / "configuration.md"
    assert document.main(["--check"], page) == 1
    assert not page.exists()
    page.write_text(document.page().replace("| `0.99` |", "| `0.98` |"))
    capsys.readouterr()
    assert document.main(["--check"], page) == 1
    printed = capsys.readouterr()
    assert "-| `gamma` | `0.98` |" in printed.out
    assert "+| `gamma` | `0.99` |" in printed.out
    assert "python src/config/document.py" in printed.err
    assert document.main([], page) == 0
    assert document.main(["--check"], page) == 0


def test_it_runs_as_a_script(tmp_path):
    done = subprocess.run(
        [sys.executable, document.__file__, "--check"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def comments(path) -> dict[str, str]:
    """The comments of a file's keys and of those that it extends, or of default.yaml's."""
    parent = read_yaml(path).get("extends")
    found = comments(config_files(path.parent.name)[parent]) if parent else {}
    if not parent and path != document.DEFAULTS:
        found = comments(document.DEFAULTS)
    return found | {key: entry.comment for key, entry in document.read_entries(path).items() if entry.comment}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_has_a_comment(path):
    """Its own, or that of the same key in the file that is extended or in default.yaml."""
    explained = comments(path)
    for key in document.read_entries(path):
        assert explained.get(key) or key == "extends", f"{path.name}: {key}"


def test_a_file_that_extends_another_is_documented_by_what_differs():
    page = document.page()
    for name, path in config_files("algs").items():
        parent = read_yaml(path).get("extends")
        section = page.partition(f"### src/config/algs/{name}.yaml")[2].partition("###")[0]
        if parent is None:
            assert "Extends" not in section
            continue
        assert f"Extends `{parent}`: keys that it leaves out are those of that file." in section
        rows = [line.split(" | ")[0].strip("| `") for line in section.splitlines() if line.startswith("| `")]
        tops = [key for key in document.read_entries(path) if "." not in key and key not in BLOCKS and key != "extends"]
        assert rows == tops
    header = next(line for line in page.partition("### gate")[2].splitlines() if line.startswith("| key"))
    owners = [name for name, path in config_files("algs").items() if "gate" in read_yaml(path)]
    assert header == f"| key | {' | '.join(owners)} | allowed | meaning |"


def test_every_key_of_the_schema_is_on_the_page():
    rows = [line.split(" | ")[0].strip("| `") for line in document.page().splitlines() if line.startswith("| `")]
    for key in (*Run.model_fields, "env_args", "plugin"):
        assert key in rows
    for prefix, model in [*BLOCKS.items(), *(("env_args", model) for model in ENV_ARGS.values())]:
        for key in model.model_fields:
            assert f"{prefix}.{key}" in rows


def test_all_rows_of_a_table_have_the_same_columns():
    header = 0
    for line in document.page().replace("\\|", "").splitlines():
        columns = line.count("|") if line.startswith("|") else 0
        assert columns in (0, header) or header == 0, line
        header = columns


def test_values_and_comments_are_taken_as_they_are_written(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "# First line,\n# and second.\n"
        'a: 1.0e-5   # one\nb: "x # y"  # two # three\nc: null\n'
        "block:  # four\n  d: {}  # five\n  e:  # six\n    f: 1\n    g: 2\n"
    )
    entries = document.read_entries(path)
    assert {key: entry[:2] for key, entry in entries.items()} == {
        "a": ("1.0e-5", "one"),
        "b": ('"x # y"', "two # three"),
        "c": ("null", ""),
        "block": ("", "four"),
        "block.d": ("{}", "five"),
        "block.e": ("", "six"),
    }
    assert [entry.line for entry in entries.values()] == [2, 3, 4, 5, 6, 7]
    assert document.heading_comment(path) == "First line, and second."


def test_blocks_show_the_value_of_each_file_that_has_them(tmp_path):
    first, second, without = (tmp_path / f"{name}.yaml" for name in ("first", "second", "without"))
    first.write_text("gate:  # trust\n  mode: hard  # a|b <token>\n")
    second.write_text("gate:\n  mode: none\n  p: 2.0  # power\n")
    without.write_text("lr: 1\n")
    table = document._block_table("gate", "gate", BLOCKS["gate"], [first, second, without])
    assert "Trust.\n" in table
    assert "| key | first | second | allowed | meaning |" in table
    allowed = "one of direct, hard, lagrange, fixed, none"
    assert f"| `gate.mode` | `hard` | `none` | {allowed} | a\\|b \\<token> |" in table
    assert "| `gate.p` |  | `2.0` | a number > 0 | power |" in table


def test_a_file_that_extends_another_says_what_differs_behind_it(tmp_path):
    child, parent = tmp_path / "child.yaml", tmp_path / "parent.yaml"
    child.write_text("extends: other\ngate:\n  mode: none  # its own\n  p: 2.0  # power\n  eps: 1.0  # alone\n")
    parent.write_text("gate:  # trust\n  mode: hard  # how\n  p: 1.0  # power\n")
    table = document._block_table("gate", "gate", BLOCKS["gate"], [child, parent])
    assert "Trust.\n" in table
    rows = {line.split(" | ")[0]: line.split(" | ")[-1] for line in table.splitlines()}
    assert rows["| `gate.mode`"] == "how; child: its own |"
    assert rows["| `gate.p`"] == "power |"
    assert rows["| `gate.eps`"] == "alone |"
