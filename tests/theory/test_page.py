"""The page docs/theory.md and these tests name each other: nothing is claimed unchecked, or checked unclaimed."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = set(re.findall(r"tests/[\w/]+\.py::\w+", (ROOT / "docs" / "theory.md").read_text()))


def functions_of(path: Path) -> set[str]:
    functions = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    return {f"{path.relative_to(ROOT)}::{f.name}" for f in functions if f.name.startswith("test_")}


def test_every_test_named_on_the_page_exists():
    """The page: every test that docs/theory.md names exists."""
    files = {ROOT / name.split("::")[0] for name in NAMED}
    assert NAMED
    assert set().union(*map(functions_of, files)) >= NAMED


def test_every_check_is_named_on_the_page():
    """The page: every check in tests/theory is named in docs/theory.md."""
    checks = [path for path in (ROOT / "tests" / "theory").glob("test_*.py") if path != Path(__file__).resolve()]
    assert len(checks) == 8
    assert set().union(*map(functions_of, checks)) <= NAMED
