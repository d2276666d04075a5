"""The page docs/method.md names functions, keys and tests that exist, and leaves out no equation and no option."""

import ast
import importlib
import operator
import re
from pathlib import Path

import pytest
import yaml

from config.schema import BLOCKS, METHOD_BLOCKS, Run, load

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "method.md").read_text()
LINK = re.compile(r"\[`([\w.]+)`\]\(\.\./((?:src|tests)/[\w/]+\.py)\)")
OPTIONS = {f"{block}.{key}" for block, model in BLOCKS.items() for key in model.model_fields}


def table(section: str) -> list[list[str]]:
    """The rows of the only table of a section, its header first, as cells."""
    text = PAGE.split(f"\n## {section}", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    return rows[:1] + rows[2:]


ROWS = table("11.")[1:]


def functions_of(path: str) -> set[str]:
    """Functions of a file; those of a class as Class.function."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return found


def linked(cell: str) -> list[tuple[str, str]]:
    """Names and files of a cell's links; there is nothing else in it."""
    links = LINK.findall(cell)
    assert links, cell
    assert not LINK.sub("", cell).strip(", "), cell
    return links


@pytest.mark.parametrize("row", ROWS, ids=[LINK.findall(row[1])[0][0] for row in ROWS])
def test_what_a_row_names_exists(row):
    _, functions, keys, tests = row
    for name, path in linked(functions):
        module = path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        qualified = name.removeprefix(module.rpartition(".")[2] + ".")
        operator.attrgetter(qualified)(importlib.import_module(module))
    for name, path in linked(tests):
        assert name.rpartition(".")[2].startswith("test_")
        assert name in functions_of(path), f"{path} has no {name}"
    for key in re.findall(r"[^`, ]+", keys):
        assert key in OPTIONS | set(Run.model_fields), key


def test_every_equation_has_a_row():
    named = {(path, name.rpartition(".")[2]) for row in ROWS for name, path in linked(row[1])}
    for path in sorted((ROOT / "src" / "objectives").glob("*.py")):
        for function in functions_of(f"src/objectives/{path.name}"):
            assert function.startswith("_") or (f"src/objectives/{path.name}", function) in named, function


def test_every_option_has_a_row():
    assert set(re.findall(r"`(\w+\.\w+)`", " ".join(row[2] for row in ROWS))) == OPTIONS


def test_presets_are_as_the_page_says():
    (_, *names), *rows = table("9.")
    configs = {name: load(name, "greed_games", {}) for name in names}

    def value(name: str, key: str):
        block, _, option = key.rpartition(".")
        return (configs[name][block] if block else configs[name])[option]

    keys = [row[0].strip("`") for row in rows]
    for key, (_, *cells) in zip(keys, rows, strict=True):
        shown = [yaml.safe_load(cell.strip("`")) if cell else value(names[0], key) for cell in cells]
        assert shown == [value(name, key) for name in names], key
    options = {f"{block}.{key}" for block, model in METHOD_BLOCKS.items() for key in model.model_fields}
    assert {key for key in options if any(value(name, key) != value(names[0], key) for name in names)} <= set(keys)


def test_options_in_the_text_exist_and_take_the_values_that_are_given():
    functions = {name for row in ROWS for name, _ in linked(row[1])}
    named = re.findall(rf"`((?:{'|'.join(BLOCKS)})\.\w+)(?:=(\w+))?`", PAGE)
    assert len(named) > len(OPTIONS)
    for option, value in named:
        if option not in functions:
            assert option in OPTIONS, option
            block, key = option.split(".")
            if value:
                known = BLOCKS[block].model_json_schema()["properties"][key]
                admitted = ["True", "False"] if known.get("type") == "boolean" else known["enum"]
                assert value in admitted, f"{option}={value}"


def test_every_file_that_the_page_links_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
