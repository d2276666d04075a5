"""The folder of checkpoints: what is written, what is dropped, and what damage does."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components.episode_buffer import EpisodeBatch, ReplayBuffer
from utils import checkpoints as module
from utils.checkpoints import Checkpoints, find, steps
from utils.errors import UserError

SCHEME = {"obs": {"vshape": 3, "group": "agents"}, "reward": {"vshape": (1,)}}
GROUPS = {"agents": 2}
SIZE, LENGTH = 5, 4


def new_buffer() -> ReplayBuffer:
    return ReplayBuffer(SCHEME, GROUPS, SIZE, LENGTH)


def insert(buffer: ReplayBuffer, count: int) -> None:
    """Episodes of different lengths, all different."""
    for _ in range(count):
        number = buffer.inserted + 1
        batch = EpisodeBatch(SCHEME, GROUPS, 1, LENGTH)
        filled = 1 + number % LENGTH
        batch.update({"obs": torch.full((1, filled, 2, 3), float(number))}, ts=slice(0, filled))
        batch.update({"reward": torch.full((1, filled, 1), -float(number))}, ts=slice(0, filled))
        buffer.insert_episode_batch(batch)


def assert_same_replay(one: ReplayBuffer, other: ReplayBuffer) -> None:
    assert (one.inserted, one.buffer_index, one.episodes_in_buffer) == (
        other.inserted,
        other.buffer_index,
        other.episodes_in_buffer,
    )
    assert (one._lengths == other._lengths).all()
    for key, value in one.data.transition_data.items():
        assert torch.equal(value, other.data.transition_data[key]), key


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results/checkpoints/run"


def about(**config) -> dict:
    return {"token": "run", "config": {"lr": 0.1, "block": {"a": 1}, **config}, "sacred_id": "1", "resumed": 0}


def write(checkpoints, step: int, buffer=None, **config) -> int:
    return checkpoints.write(step, {"step": torch.tensor(step)}, buffer, about(**config))


def read(folder: Path, buffer=None, said: list | None = None):
    with Checkpoints(folder, 2) as checkpoints:

        def warn(text, *values):
            (said if said is not None else []).append(text % values)

        return checkpoints.read(None if buffer is None else buffer.put, "cpu", warn)


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("inserts", [[1], [3, 4], [5, 5], [2, 9], [4, 0, 3, 1], [1] * 13, [17, 2]])
def test_the_replay_comes_back_as_it_was(folder, inserts):
    buffer = new_buffer()
    with Checkpoints(folder, 2) as checkpoints:
        for step, count in enumerate(inserts):
            insert(buffer, count)
            write(checkpoints, step, buffer)
    again = new_buffer()
    description, state = read(folder, again)
    assert description["step"] == state["step"] == len(inserts) - 1
    assert_same_replay(buffer, again)


def test_only_new_episodes_are_written(folder):
    buffer = new_buffer()
    with Checkpoints(folder, 2) as checkpoints:
        for step, count in enumerate([3, 0, 1]):
            insert(buffer, count)
            write(checkpoints, step, buffer)
        assert sorted(file.name for file in (folder / "replay").iterdir()) == [
            "0000000000-0000000003.pt",
            "0000000003-0000000004.pt",
        ]


def test_a_resumed_run_writes_on(folder):
    """Also where the process was killed behind its last checkpoint, in the middle of the next."""
    buffer = new_buffer()
    with Checkpoints(folder, 2) as checkpoints:
        insert(buffer, 4)
        write(checkpoints, 1, buffer)
    (folder / "7.tmp").mkdir()
    (folder / "replay/0000000004-0000000009.pt").write_text("half of it")
    again = new_buffer()
    with Checkpoints(folder, 2) as checkpoints:
        checkpoints.read(again.put, "cpu", print)
        insert(again, 2)
        write(checkpoints, 2, again)
    assert not (folder / "7.tmp").exists()
    assert not (folder / "replay/0000000004-0000000009.pt").exists()
    final = new_buffer()
    read(folder, final)
    assert_same_replay(again, final)


def test_old_ones_go(folder):
    buffer = new_buffer()
    with Checkpoints(folder, 3) as checkpoints:
        for step in range(8):
            insert(buffer, 2)
            write(checkpoints, step, buffer)
    assert steps(folder) == [5, 6, 7]
    # The oldest that stays, with 12 episodes so far, needs the last five of them.
    assert min(file.name for file in (folder / "replay").iterdir()) == "0000000006-0000000008.pt"


def damage_state(folder):
    flip(folder / "2/state.pt", 200)
    return "2/state.pt has checksum"


def truncate_state(folder):
    file = folder / "2/state.pt"
    file.write_bytes(file.read_bytes()[:-100])
    return "2/state.pt has checksum"


def lose_state(folder):
    (folder / "2/state.pt").unlink()
    return "2/state.pt"


def damage_description(folder):
    (folder / "2/checkpoint.json").write_text('{"format": 1, "st')
    return "2/checkpoint.json: JSONDecodeError"


def change_description(folder):
    """What is still JSON, and says that the replay is another one."""
    file = folder / "2/checkpoint.json"
    text = file.read_text()
    assert '"end": 4' in text
    file.write_text(text.replace('"end": 4', '"end": 5'))
    return "2/checkpoint.json: ValueError it is not what was written"


def stand_elsewhere(folder):
    (folder / "2").rename(folder / "3")
    return "3/checkpoint.json is of step 2"


def damage_segment(folder):
    flip(folder / "replay/0000000003-0000000004.pt", 300)
    return "0000000003-0000000004.pt has checksum"


def lose_segment(folder):
    (folder / "replay/0000000003-0000000004.pt").unlink()
    return "0000000003-0000000004.pt"


def come_from_the_future(folder):
    file = folder / "2/checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    return "format 99, this program reads 2"


@pytest.mark.parametrize(
    "harm",
    [
        damage_state,
        truncate_state,
        lose_state,
        damage_description,
        change_description,
        stand_elsewhere,
        damage_segment,
        lose_segment,
        come_from_the_future,
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(folder, harm):
    buffer = new_buffer()
    with Checkpoints(folder, 2) as checkpoints:
        insert(buffer, 3)
        write(checkpoints, 1, buffer)
        before = new_buffer()
        insert(before, 3)
        insert(buffer, 1)
        write(checkpoints, 2, buffer)
    named = harm(folder)
    said, again = [], new_buffer()
    description, _ = read(folder, again, said)
    assert description["step"] == 1
    (line,) = said
    assert re.match("Checkpoint [23] is damaged and passed over", line)
    assert named in line
    assert_same_replay(before, again)


def test_where_none_is_whole(folder):
    with Checkpoints(folder, 2) as checkpoints:
        write(checkpoints, 1)
        write(checkpoints, 2)
    for step in (1, 2):
        flip(folder / f"{step}/state.pt", 50)
    with pytest.raises(UserError, match=r"no whole checkpoint.*2/state.pt.*1/state.pt.*start a new run"):
        read(folder)


class Malice:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def test_a_file_runs_no_code(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints(folder, 2) as checkpoints:
        write(checkpoints, 1)
    file = folder / "1/state.pt"
    file.write_bytes(pickle.dumps(Malice()))
    description = module.describe(folder / "1")
    description["files"]["state.pt"] = module.checksum_of(file)
    (folder / "1/checkpoint.json").write_bytes(module._seal(description))
    with pytest.raises(UserError, match=r"state\.pt: UnpicklingError"):
        read(folder)
    assert not Path("harmed").exists()


def test_one_process_writes(folder):
    with Checkpoints(folder, 2) as checkpoints:
        write(checkpoints, 1)
        with pytest.raises(UserError, match="another process is training"):
            Checkpoints(folder, 2)
        with pytest.raises(UserError, match=r"resume='auto': another process is training .*run; wait for it"):
            find("auto", about()["config"] | {"local_results_path": str(folder.parents[1])})
    Checkpoints(folder, 2).__exit__()


def test_the_lock_of_a_killed_process_is_free(folder):
    code = f"""
import sys, os, signal; sys.path.insert(0, {str(Path(module.__file__).parents[1])!r})
from pathlib import Path; from utils.checkpoints import Checkpoints
with Checkpoints(Path({str(folder)!r}), 2) as one:
    one.write(1, {{}}, None, {{"token": "run", "config": {{}}}}); os.kill(os.getpid(), signal.SIGKILL)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert read(folder)[0]["step"] == 1


def test_an_empty_folder_is_not_left(folder):
    with Checkpoints(folder, 2):
        pass
    assert not folder.exists()


def test_a_failed_write_leaves_what_was_there(folder, monkeypatch):
    buffer = new_buffer()
    insert(buffer, 3)
    with Checkpoints(folder, 2) as checkpoints:
        write(checkpoints, 1, buffer)
        before = sorted(folder.rglob("*"))
        insert(buffer, 1)

        def full(*_args):
            raise OSError(28, "No space left on device")

        for part in ("torch.save", "os.fsync"):
            with monkeypatch.context() as patch:
                patch.setattr(part, full)
                with pytest.raises(OSError, match="No space left"):
                    write(checkpoints, 2, buffer)
            assert sorted(folder.rglob("*")) == before
        write(checkpoints, 2, buffer)
    again = new_buffer()
    read(folder, again)
    assert_same_replay(buffer, again)


# Which run is meant


def config_of(folder, **changes) -> dict:
    return about()["config"] | {"local_results_path": str(folder.parents[1])} | changes


def test_find(folder):
    config = config_of(folder)
    assert find("", config) is None
    assert find("auto", config) is None  # nothing is there yet
    with Checkpoints(folder, 2) as checkpoints:
        assert find("auto", config) is None  # nothing to go on with
        write(checkpoints, 7)
    for resume in ("auto", "run", str(folder)):
        found = find(resume, config)
        assert (found.folder.name, found.description["step"], found.result) == ("run", 7, None)
    assert find("auto", config_of(folder, lr=0.2)) is None
    assert find("auto", config_of(folder, max_hours=3, resume="auto")).description["step"] == 7
    with pytest.raises(UserError, match=r"lr 0\.1 \(now 0\.2\)"):
        find("run", config_of(folder, lr=0.2))
    with pytest.raises(UserError, match=r"block\.a 1 \(now 'not set'\); block\.b 'not set' \(now 1\)"):
        find("run", config_of(folder, block={"b": 1}))
    assert find("run", config_of(folder, t_max=10**6)).description["step"] == 7  # it may go on for longer
    assert find("auto", config_of(folder, replay_dtype="float32")).description["step"] == 7  # there was no other then
    assert find("auto", config_of(folder, replay_dtype="float16")) is None
    assert find("auto", config_of(folder, heads={"normalise_loss": False})).description["step"] == 7
    assert find("auto", config_of(folder, heads={"normalise_loss": True})) is None
    with pytest.raises(UserError, match=r"resume='rum': no such run; .*holds run"):
        find("rum", config)


def test_the_newest_of_several_is_meant(folder):
    import os

    for name, when in (("older", 100), ("newer", 300), ("oldest", 50)):
        with Checkpoints(folder.with_name(name), 2) as checkpoints:
            write(checkpoints, 1)
        os.utime(folder.with_name(name), (when, when))
    assert find("auto", config_of(folder)).folder.name == "newer"


def test_a_complete_run(folder):
    with Checkpoints(folder, 2) as checkpoints:
        write(checkpoints, 1)
        checkpoints.finish({**about(), "result": {"test_return_mean": 3.0}})
    assert sorted(file.name for file in folder.iterdir()) == ["finished.json", "lock"]
    assert find("auto", config_of(folder)).result == {"test_return_mean": 3.0}
