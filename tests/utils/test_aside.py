"""What is computed beside the update: the same result, without gradients, and its errors where it is asked for."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import run
from utils.aside import LEAST_ROWS, LEAST_WORK, allow_aside, aside, cores_for

ROWS = torch.zeros(LEAST_ROWS)


@pytest.fixture(autouse=True)
def _whatever_earlier_runs_allowed():
    allow_aside(True)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def begun_aside(compute):
    """`aside`, once the other thread has begun it: one who asks before does it himself."""
    begun = threading.Event()
    found = aside(lambda: (begun.set(), compute())[1], ROWS)
    assert begun.wait(10.0)
    return found


def test_another_thread_computes_it_only_where_torch_has_one(threads):
    where = begun_aside(threading.get_ident)()
    assert (where != threading.get_ident()) == (threads == 1)


def test_who_waits_does_what_has_not_begun():
    """The other thread is kept busy: nobody waits for it but for what it has begun."""
    go_on = threading.Event()
    wait = begun_aside(lambda: go_on.wait(10.0))
    assert aside(threading.get_ident, ROWS)() == threading.get_ident()
    go_on.set()
    assert wait()


def test_kernels_have_a_core_that_nobody_else_computes_on(threads):
    aside(lambda: None, ROWS)()  # the thread is there, and waits
    wanted = 2 if threads == 1 else 1
    deadline = time.monotonic() + 10
    while cores_for(LEAST_WORK) != wanted and time.monotonic() < deadline:  # it is on its way to wait
        time.sleep(0.01)
    assert cores_for(LEAST_WORK) == wanted
    assert cores_for(LEAST_WORK - 1) == 1
    if threads == 1:
        go_on = threading.Event()
        wait = begun_aside(lambda: (go_on.wait(10.0), cores_for(LEAST_WORK))[1])
        assert cores_for(LEAST_WORK) == 1
        threading.Timer(0.2, go_on.set).start()
        assert wait() == 2  # as who waits does not compute
    allow_aside(False)
    assert cores_for(LEAST_WORK) == 1


@pytest.mark.usefixtures("threads")
def test_what_is_aside_within_what_is_aside_is_all_computed():
    def total(first, last):
        if last - first == 1:
            return first
        middle = (first + last) // 2
        wait = aside(lambda: total(middle, last), ROWS)
        return total(first, middle) + wait()

    wait = aside(lambda: total(0, 64), ROWS)
    assert total(64, 128) + wait() == sum(range(128))


def test_little_is_computed_at_once(threads):
    assert aside(threading.get_ident, ROWS[1:])() == threading.get_ident(), threads


def test_where_no_core_is_spare_nothing_is_aside(threads):
    allow_aside(False)
    assert aside(threading.get_ident, ROWS)() == threading.get_ident(), threads


@pytest.mark.parametrize(
    ("cores", "given", "keys", "spare"),
    [
        (1, None, {}, False),
        (2, None, {}, True),
        (2, None, {"torch_threads": 1}, False),
        (2, None, {"overlap": True}, False),
        (2, None, {"overlap": True, "offline": True}, True),
        (3, None, {"overlap": True}, True),
        (8, "1", {}, False),
        (8, "2", {}, True),
        (1, "4", {}, False),
    ],
)
def test_which_runs_have_a_spare_core(cores, given, keys, spare, monkeypatch):
    monkeypatch.setattr(run, "core_count", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    defaults = {"torch_threads": 0, "overlap": False, "evaluate": False, "offline": False}
    assert run.has_spare_core(SimpleNamespace(**defaults | keys)) == spare


@pytest.mark.usefixtures("threads")
def test_it_is_the_same_without_gradients():
    torch.manual_seed(0)
    x = torch.randn(50, 50, requires_grad=True)
    expected = torch.tanh(x @ x)
    found = aside(lambda: torch.tanh(x @ x), ROWS)
    assert torch.is_grad_enabled()
    assert torch.equal(found(), expected)
    assert not found().requires_grad


@pytest.mark.usefixtures("threads")
def test_the_caller_may_enable_gradients_meanwhile():
    x = torch.ones(2, requires_grad=True)
    started, go_on = threading.Event(), threading.Event()

    def compute():
        started.set()
        go_on.wait(0.2)
        return (x * 2).requires_grad

    found = aside(compute, ROWS)
    started.wait(1.0)
    with torch.enable_grad():
        assert (x * 2).requires_grad
        go_on.set()
        assert found() is False


def test_an_error_is_raised_where_the_result_is_asked_for():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    result = aside(lambda: 1 // 0, ROWS)
    torch.set_num_threads(before)
    with pytest.raises(ZeroDivisionError):
        result()


def test_denormals_are_flushed_there_as_in_a_run():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert begun_aside(lambda: (torch.tensor([1e-38]) * 1e-3).item())() == 0
    torch.set_num_threads(before)


FORKS = """
import os, signal, torch
from utils.aside import LEAST_ROWS, aside

torch.set_num_threads(1)
rows = torch.zeros(LEAST_ROWS)
assert aside(lambda: 1, rows)() == 1
child = os.fork()
if not child:
    signal.alarm(30)  # where it would wait for ever
    os._exit(aside(lambda: 7, rows)())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


def test_a_fork_has_a_thread_of_its_own():
    path = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", FORKS], env={**os.environ, "PYTHONPATH": path}, check=True)
