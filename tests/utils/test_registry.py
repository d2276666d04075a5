"""Finding classes by registry key or by `package.module:ClassName`."""

import sys
from collections import OrderedDict

import pytest

from utils.errors import UserError
from utils.registry import lazy, load_plugin, resolve

REGISTRY = {"q_learner": dict, "greedy_q_learner": list}


@pytest.fixture
def plugin_folder(tmp_path, monkeypatch):
    """A folder on the import path; modules imported from it are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_registered_name():
    assert resolve("learner", "q_learner", REGISTRY) is dict


def test_registered_name_comes_before_a_module():
    assert resolve("learner", "collections:OrderedDict", {"collections:OrderedDict": list}) is list


def test_class_of_a_module():
    assert resolve("learner", "collections:OrderedDict", REGISTRY) is OrderedDict


def test_plugin_in_a_package(plugin_folder):
    (plugin_folder / "my_package_for_tests").mkdir()
    (plugin_folder / "my_package_for_tests" / "learners.py").write_text("class Mine:\n    pass\n")
    assert resolve("learner", "my_package_for_tests.learners:Mine", REGISTRY).__name__ == "Mine"


def test_unknown_name_lists_what_exists_and_names_the_nearest():
    with pytest.raises(UserError) as raised:
        resolve("learner", "q_leaner", REGISTRY)
    message = str(raised.value)
    assert message.startswith("learner='q_leaner': unknown (did you mean 'q_learner'?)")
    assert "available: greedy_q_learner, q_learner" in message
    assert "package.module:ClassName" in message


def test_unknown_name_unlike_any_other_gets_no_guess():
    with pytest.raises(UserError, match="learner='xyz': unknown; available") as raised:
        resolve("learner", "xyz", REGISTRY)
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize("name", ["no_such_module:Mine", "no_such_package.module:Mine", "collections.nothing:Mine"])
def test_missing_module(name):
    module = name.partition(":")[0]
    with pytest.raises(UserError, match=f"mac='{name}': no module named '{module}'.*PYTHONPATH"):
        load_plugin("mac", name)


@pytest.mark.parametrize("name", ["collections:Nothing"])
def test_missing_class(name):
    with pytest.raises(UserError, match=f"mac='{name}': .*collections.* has no class"):
        load_plugin("mac", name)


@pytest.mark.parametrize("name", ["sys:Nothing", ":Mine", ".mine:Mine"])
def test_names_without_a_module_file(name):
    with pytest.raises(UserError, match="mac="):
        load_plugin("mac", name)


def test_a_plugins_own_missing_import_is_shown_as_it_is(plugin_folder):
    (plugin_folder / "plugin_with_missing_import.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_plugin("env", "plugin_with_missing_import:Mine")


def test_a_plugins_own_error_is_shown_as_it_is(plugin_folder):
    (plugin_folder / "plugin_with_error.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_plugin("env", "plugin_with_error:Mine")


def test_lazy_imports_when_it_is_called(plugin_folder):
    (plugin_folder / "late_module_for_tests.py").write_text(
        "class Late:\n    def __init__(self, *args, **kwargs):\n        self.seen = args, kwargs\n"
    )
    build = lazy("late_module_for_tests:Late")
    assert "late_module_for_tests" not in sys.modules
    assert build.__name__ == "late_module_for_tests:Late"
    assert build(1, two=2).seen == ((1,), {"two": 2})
    assert "late_module_for_tests" in sys.modules
