"""Which part of the code may import which: what lies below never knows what lies above."""

import ast
import re
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"

# Each folder, and file, directly below src: what it may import of the others.
LAYERS = {
    "utils": set(),
    "config": set(),
    "envs": {"utils"},
    "kernels": {"utils"},
    "objectives": {"utils"},
    "modules": {"utils"},
    "components": {"utils"},
    "controllers": {"modules", "components", "utils"},
    "learners": {"objectives", "modules", "components", "utils"},
    "runners": {"components", "envs", "utils"},
    "keeper": {"utils"},
    "filming": {"envs", "pictures", "runners", "utils"},
    "run": {
        "components",
        "config",
        "controllers",
        "envs",
        "filming",
        "keeper",
        "learners",
        "modules",
        "objectives",
        "runners",
        "utils",
    },
    "seeds": {"components", "config", "learners", "run", "runners", "utils"},
    "main": {"config", "run", "seeds", "utils"},
    "doctor": {"components", "config", "envs", "run", "runners", "utils"},
    "dataset": {"components", "doctor", "run", "utils"},
    "sync_runs": {"utils"},
    "browse": {"utils"},
    "sweeping": {"doctor", "utils"},
    "sweep": {"sweeping", "utils"},
    "pictures": {"envs", "utils"},
    "replay": {"config", "run", "utils"},
    "reporting": {"utils"},
    "report": {"reporting", "utils"},
}
PLUGIN = re.compile(r"(\w+)(\.\w+)*:\w+")  # how registries name a class that is imported only when it is asked for


def layer_of(path: Path, src: Path) -> str:
    return path.relative_to(src).parts[0].removesuffix(".py")


def imported(source: str) -> set[str]:
    """The top-level names of all modules that the source imports, wherever and however it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import; this project imports from src"
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if match := PLUGIN.fullmatch(node.value):
                found.add(match[1])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                found.add(name.value.partition(".")[0])
    return found


def violations(src: Path, layers: dict[str, set[str]]) -> list[str]:
    """A line for each import that the table does not allow, and for each part that is not in the table."""
    found = []
    for path in sorted(src.rglob("*.py")):
        layer = layer_of(path, src)
        if layer not in layers:
            found.append(f"{path.relative_to(src)}: {layer} is not in the table")
            continue
        for name in sorted(imported(path.read_text()) & layers.keys() - layers[layer] - {layer}):
            found.append(f"{path.relative_to(src)}: imports {name}")
    return found


def test_imports_keep_to_the_layers():
    assert violations(SRC, LAYERS) == []


def test_the_table_names_what_exists():
    parts = {layer_of(path, SRC) for path in SRC.rglob("*.py")}
    assert parts == set(LAYERS)
    assert all(below <= parts for below in LAYERS.values())


@pytest.mark.parametrize(
    "line",
    [
        "import envs",
        "import envs.smax as battle",
        "from envs.smax import SmaxVectorEnv",
        "def f():\n    from envs import smax",
        "import importlib\nimportlib.import_module('envs.smax')",
        "REGISTRY = {'smax': lazy('envs.smax:SmaxVectorEnv')}",
    ],
)
def test_a_forbidden_import_is_noticed(line, tmp_path):
    (tmp_path / "learners").mkdir()
    (tmp_path / "learners/new.py").write_text(line)
    assert violations(tmp_path, LAYERS) == ["learners/new.py: imports envs"]
    (tmp_path / "learners").rename(tmp_path / "runners")
    assert violations(tmp_path, LAYERS) == []


def test_a_new_part_must_be_entered(tmp_path):
    (tmp_path / "extras.py").write_text("import torch")
    assert violations(tmp_path, LAYERS) == ["extras.py: extras is not in the table"]
