"""`pytest tests/theory --statements` prints a line for each statement: the first line of its test's docstring."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--statements", action="store_true", help="print what each test of tests/theory holds")


@pytest.hookimpl(trylast=True)  # after the terminal is there
def pytest_configure(config):
    if config.getoption("statements", default=False):
        config.pluginmanager.register(_Statements(config.pluginmanager.get_plugin("terminalreporter")))


class _Statements:
    """In place of pytest's dots."""

    def __init__(self, terminal):
        self.terminal = terminal
        self.statements: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: item.module.__doc__)  # "Section 1 of ..."
        self.statements = {item.nodeid: (item.obj.__doc__ or item.name).splitlines()[0] for item in items}

    def pytest_report_teststatus(self, report):
        return ("passed" if report.when == "call" else "", "", "") if report.passed else None

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            verdict = {"passed": "holds", "failed": "FAILS"}.get(report.outcome, report.outcome)
            self.terminal.ensure_newline()
            self.terminal.write_line(f"{verdict}  {self.statements[report.nodeid]}  ({report.duration:.1f} s)")


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """The tensors here are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
