"""Process groups and their folders end with the one that guards them: by kill, by close, and when it is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import bury_orphans, group_of, nothing_left, process_table, started_under, wait_until

from utils import processes
from utils.processes import Guard

SOURCES = Path(processes.__file__).resolve().parents[1]
FAMILY = [
    "sh",
    "-c",
    "trap '' TERM HUP INT; sh -c 'sleep 600 & sleep 600 & wait' & sleep 600 & wait",
]  # a group of five
LATE = ["sh", "-c", "sleep 600 & sleep 600 & exit 3"]  # its leader is gone, two of it stay


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The mark of what a test starts, and the folder for temporary files."""
    with nothing_left(tmp_path, monkeypatch) as place:
        yield place


@pytest.fixture
def guard():
    guard = Guard()
    yield guard
    guard.close()


def start(guard, folder: Path, command=FAMILY):
    """A whole group, with a file in its folder."""
    folder.mkdir()
    (folder / "file").touch()
    process = guard.start(command, folder)
    wait_until(lambda: len(group_of(process.pid)) == (5 if command is FAMILY else 3))
    return process


def test_a_command_leads_a_group_of_its_own(guard, place):
    folder = place[1] / "one"
    folder.mkdir()
    process = guard.start(["sh", "-c", "echo $WORD; exit 4"], folder, env={"WORD": "ahoy"}, stdout=subprocess.PIPE)
    assert process.communicate(timeout=60) == (b"ahoy\n", None)  # options reach Popen
    assert process.returncode == 4
    long = guard.start(["sleep", "600"], folder)
    assert os.getpgid(long.pid) == os.getsid(long.pid) == long.pid
    guard.kill(process, folder)
    guard.kill(long, folder)
    assert long.returncode == -signal.SIGKILL


def test_kill_waits_until_nothing_of_the_group_is_left(guard, place):
    first, second = (start(guard, place[1] / name) for name in ("first", "second"))
    guard.kill(first, place[1] / "first")
    assert group_of(first.pid) == []  # no zombie either
    assert not (place[1] / "first").exists()
    assert first.returncode == -signal.SIGKILL
    assert len(group_of(second.pid)) == 5  # another group is nobody's business
    guard.kill(second, place[1] / "second")
    assert group_of(second.pid) == []


def test_kill_ends_what_outlived_its_leader(guard, place):
    process = start(guard, place[1] / "late", LATE)
    assert process.wait(60) == 3
    assert len(group_of(process.pid)) == 2
    guard.kill(process, place[1] / "late")
    assert group_of(process.pid) == []
    assert process.returncode == 3


def test_kill_ends_stopped_processes_and_may_come_twice(guard, place):
    process = start(guard, place[1] / "stopped")
    os.killpg(process.pid, signal.SIGSTOP)
    wait_until(lambda: process_table()[process.pid][0] == "T")
    for _ in range(2):
        guard.kill(process, place[1] / "stopped")
        assert group_of(process.pid) == []


def test_close_ends_what_was_not_killed(place):
    guard = Guard()
    killed, left, late = (
        start(guard, place[1] / name, command)
        for name, command in (("killed", FAMILY), ("left", FAMILY), ("late", LATE))
    )
    late.wait(60)
    guard.kill(killed, place[1] / "killed")
    guard.close()
    assert left.wait(60) == -signal.SIGKILL
    wait_until(lambda: not started_under(place[0]))
    assert list(place[1].iterdir()) == []
    guard.close()  # may come twice
    bury_orphans()  # ours, as `kill` has not waited for them


def test_kill_does_not_need_the_watcher(guard, place):
    """Somebody, such as a machine that is short of memory, has killed it."""
    process = start(guard, place[1] / "one")
    guard._watcher.kill()
    guard._watcher.wait(60)
    guard.kill(process, place[1] / "one")
    assert group_of(process.pid) == []


PARENT = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(SOURCES)!r})
from utils.processes import Guard

def interrupted(*_):
    guard.kill(started[0], Path(sys.argv[1]) / "first")  # needs the watcher
    os.write(1, b"interrupted\\n")

guard = Guard()
started = []
for name in ("first", "second"):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    (folder / "file").touch()
    started.append(guard.start(["sh", "-c", {FAMILY[2]!r}], folder))
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
signal.signal(signal.SIGINT, interrupted)
print(*(process.pid for process in started), flush=True)
while True:
    time.sleep(600)
"""


@pytest.fixture
def parent(place):
    """A process that guards two groups, in a group of its own like a command of a shell; and the two leaders."""
    command = [sys.executable, "-c", PARENT, str(place[1])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    leaders = [int(pid) for pid in process.stdout.readline().split()]
    wait_until(lambda: [len(group_of(pid)) for pid in leaders] == [5, 5])
    yield process, leaders
    process.kill()
    process.communicate(timeout=60)


def assert_all_gone(place):
    wait_until(lambda: not started_under(place[0]))
    wait_until(lambda: not list(place[1].iterdir()))
    bury_orphans()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_outlives_a_parent_that_is_killed(number, parent, place):
    process, _ = parent
    process.send_signal(number)
    assert process.wait(60) == -number
    assert_all_gone(place)


def test_control_c_is_not_for_the_watcher(parent, place):
    """A terminal sends it to the whole group of the parent, which goes on here, and is killed later."""
    process, (first, second) = parent
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
    assert group_of(first) == []
    assert len(group_of(second)) == 5
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert_all_gone(place)
