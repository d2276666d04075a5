"""Files of episodes: what is written is read back, and a file that is damaged or of something else is refused."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from helpers import make_args, make_scheme, random_batch

from components import dataset
from components.dataset import DatasetWriter, check_dataset, load_dataset, read_attributes
from utils.errors import UserError

ARGS = make_args("greedy_qmix", behaviour={"source": "stored"}, heads={"reward_independent": "individual"})
PARTS = make_scheme(ARGS)  # scheme, groups, preprocess
STEPS = ARGS.episode_limit + 1
RUN = {
    "env": "matrix_games",
    "n_agents": ARGS.n_agents,
    "n_actions": ARGS.n_actions,
    "obs_shape": ARGS.obs_shape,
    "state_shape": ARGS.state_shape,
    "episode_limit": ARGS.episode_limit,
    "bootstrap_time_limit": True,
    "env_args": json.dumps({"game": "two_step", "seed": 1}),
}
BATCHES = 5


def batches():
    return [random_batch(ARGS, seed=k) for k in range(BATCHES)]


def write(path, content=None, **attributes):
    writer = DatasetWriter(path, *PARTS, STEPS, {**RUN, "seed": 1, "policy": "{}", "versions": "{}", **attributes})
    for batch in content or batches():
        writer.append(batch)
    return writer.commit()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return write(tmp_path_factory.mktemp("recorded") / "episodes.h5")


@pytest.fixture
def file(recorded, tmp_path):
    """A copy that may be damaged."""
    return shutil.copy(recorded, tmp_path / "episodes.h5")


def load(path, scheme=None, dtype=None, **run):
    return load_dataset(str(path), RUN | run, scheme or PARTS[0], *PARTS[1:], STEPS, "cpu", dtype)


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as error:
        load(path, **options)
    message = str(error.value)
    assert message.startswith(f"dataset={path}: ")
    assert "\n" not in message
    return message


# What is written is read back


@pytest.mark.parametrize("block", [1, 7, 10**4])
def test_the_replay_holds_what_was_appended(tmp_path, monkeypatch, block):
    monkeypatch.setattr(dataset, "BLOCK_BYTES", block * 1000)
    replay, found = load(write(tmp_path / "a.h5"))
    assert replay.episodes_in_buffer == replay.buffer_size == found["episodes"] == 4 * BATCHES
    for field, value in replay.data.transition_data.items():
        expected = torch.cat([batch[field] for batch in batches()])
        assert replay[:][field].dtype == expected.dtype
        assert torch.equal(value, expected.to(value.dtype)), field
    sample = replay.sample(8)
    assert sample.max_seq_length == int(sample["filled"].sum(dim=1).max())


def test_a_replay_of_smaller_types(recorded, tmp_path):
    whole, rounded = load(recorded)[0], load(recorded, dtype=torch.float16)[0]
    for field in whole.data.transition_data:
        expected = whole[field].half() if field in ("obs", "state") else whole[field]
        assert torch.equal(rounded[field], expected), field
    with pytest.raises(UserError, match="replay_dtype=uint8: state holds -"):
        load(recorded, dtype=torch.uint8)
    content = batches()
    for batch in content:
        for field in ("obs", "state"):
            batch[field].abs_().round_()
    path = write(tmp_path / "whole_numbers.h5", content)
    assert torch.equal(load(path, dtype=torch.uint8)[0][:]["obs"], load(path)[0]["obs"])


def test_the_attributes_say_what_was_recorded(recorded):
    found = read_attributes(recorded)
    assert found == check_dataset(recorded)
    returns, steps = [], 0
    for batch in batches():
        for e in range(batch.batch_size):
            length = int(batch["filled"][e].sum()) - 1
            returns.append(batch["reward"][e, :length].sum().item())
            steps += length
    assert {key: found[key] for key in RUN} == RUN
    assert found["format"] == "greed_is_good episodes"
    assert found["format_version"] == 1
    assert found["transitions"] == steps
    assert found["return_mean"] == pytest.approx(np.mean(returns))
    assert found["return_std"] == pytest.approx(np.std(returns))
    assert (found["return_min"], found["return_max"]) == pytest.approx((min(returns), max(returns)))


def test_shorter_batches_are_padded_with_zeros(tmp_path):
    short = random_batch(ARGS, seed=0)[:, :4]  # cut episodes are episodes, too
    replay, _ = load(write(tmp_path / "a.h5", [short]))
    assert torch.equal(replay["obs"][:, :4], short["obs"])
    assert not replay["obs"][:, 4:].any()
    assert not replay["filled"][:, 4:].any()


def test_fields_that_a_run_does_not_read_are_left_out(recorded):
    scheme = {key: value for key, value in PARTS[0].items() if key not in ("behaviour", "individual_reward")}
    replay, _ = load(recorded, scheme)
    assert "behaviour" not in replay.data.transition_data


def test_nothing_has_the_name_before_all_is_written(tmp_path):
    path = tmp_path / "new" / "a.h5"
    writer = DatasetWriter(path, *PARTS, STEPS, RUN)
    writer.append(batches()[0])
    assert not path.exists()
    writer.discard()
    assert list(path.parent.iterdir()) == []
    writer = DatasetWriter(path, *PARTS, STEPS, RUN)
    writer.commit()  # no episodes: no file
    assert list(path.parent.iterdir()) == []


def test_an_interrupted_beginning_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(h5py.File, "create_dataset", interrupt)
        with pytest.raises(KeyboardInterrupt) as error:
            DatasetWriter(tmp_path / "new" / "a.h5", *PARTS, STEPS, RUN)
    assert len(list((tmp_path / "new").iterdir())) == 1  # the error still holds the writer
    del error
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_is_never_overwritten(recorded, tmp_path):
    before = recorded.read_bytes()
    with pytest.raises(UserError, match="already exists; name another file"):
        DatasetWriter(recorded, *PARTS, STEPS, RUN)
    assert recorded.read_bytes() == before
    writer = DatasetWriter(tmp_path / "a.h5", *PARTS, STEPS, RUN)
    writer.append(batches()[0])
    (tmp_path / "a.h5").write_text("somebody was faster")
    (tmp_path / "a-2.h5").write_text("twice")
    assert writer.commit() == tmp_path / "a-3.h5"
    assert (tmp_path / "a.h5").read_text() == "somebody was faster"
    assert read_attributes(tmp_path / "a-3.h5")["episodes"] > 0


def test_where_nothing_can_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        DatasetWriter(tmp_path / "file" / "a.h5", *PARTS, STEPS, RUN)


# What no learner could use


def spoil_nan(batch):
    batch["reward"][1, 0] = float("nan")


def spoil_infinity(batch):
    batch["obs"][1, 0, 0, 0] = float("inf")


def spoil_action(batch):
    batch["actions"][1, 0, 0, 0] = 99


def spoil_availability(batch):
    batch["avail_actions"][1, 0] = 0


def spoil_sum(batch):
    batch["behaviour"][1, 0] *= 0.5


def spoil_support(batch):
    taken = batch["actions"][1, 0, 0, 0]
    batch["behaviour"][1, 0, 0] = torch.eye(ARGS.n_actions)[(taken + 1) % ARGS.n_actions]


def spoil_order(batch):
    batch["filled"][1, 1] = 0


FAULTS = {
    spoil_nan: "reward holds a NaN",
    spoil_infinity: "obs holds a NaN or an infinity",
    spoil_action: "none of the environment's",
    spoil_availability: "was not available",
    spoil_sum: "behaviour is no probabilities",
    spoil_support: "behaviour is no probabilities",
    spoil_order: "is not one run of at least two steps",
}


@pytest.mark.parametrize(("spoil", "reason"), FAULTS.items())
def test_it_is_neither_recorded_nor_read(spoil, reason, tmp_path, monkeypatch):
    batch = random_batch(ARGS, seed=1)
    spoil(batch)
    with pytest.raises(UserError, match=f"episode 5 cannot be recorded: .*{reason}"):
        write(tmp_path / "a.h5", [random_batch(ARGS, seed=0), batch])
    fault = dataset._fault
    monkeypatch.setattr(dataset, "_fault", lambda content: None)  # somebody else has written the file
    path = write(tmp_path / "b.h5", [random_batch(ARGS, seed=0), batch])
    monkeypatch.setattr(dataset, "_fault", fault)
    assert re.search(f"its episode 5 cannot be learned from: .*{reason}", refusal(path))
    with pytest.raises(UserError, match=reason):
        check_dataset(path)


def test_padding_may_hold_anything_finite(tmp_path):
    batch = random_batch(ARGS, seed=0)
    batch["actions"][1, 4:] = 99
    batch["behaviour"][1, 4:] = 7.0
    load(write(tmp_path / "a.h5", [batch]))


# Damaged files


def test_a_missing_file_is_named_with_one_like_it(file, tmp_path):
    assert "no such file; python src/dataset.py records one" in refusal(tmp_path / "x" / "y.h5")
    assert f"did you mean {file}?" in refusal(tmp_path / "episode.h5")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert "cannot be read as HDF5" in refusal(file)


def test_no_flipped_bit_gets_through(file):
    """Wherever it is: it is refused, or it is in a place that holds nothing."""
    expected = load(file)[0].data.transition_data
    content, rng = file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in rng.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            found = load(file)[0].data.transition_data
        except UserError:
            refused += 1
        else:
            assert all(torch.equal(found[field], value) for field, value in expected.items())
    assert refused > 25


def test_changed_content_and_attributes_have_another_checksum(file):
    with h5py.File(file, "r+") as opened:
        opened["reward"][3, 0, 0] += 1.0
    assert "its content has another checksum than was recorded; record it again" in refusal(file)
    with h5py.File(file, "r+") as opened:
        opened["reward"][3, 0, 0] -= 1.0
    shutil.copy(file, file.parent / "b.h5")
    with h5py.File(file.parent / "b.h5", "r+") as opened:
        opened.attrs["return_mean"] = 100.0
    assert "another checksum" in refusal(file.parent / "b.h5")


@pytest.mark.parametrize("missing", ["format", "checksum"])
def test_other_hdf5_files_are_told_apart(file, missing):
    with h5py.File(file, "r+") as opened:
        del opened.attrs[missing]
    assert "holds no episodes that this project has recorded" in refusal(file)


def test_another_version_of_the_format_is_refused(file):
    with h5py.File(file, "r+") as opened:
        opened.attrs["format_version"] = 2
    assert "its format has version 2, this project reads 1" in refusal(file)


@pytest.mark.parametrize(("attribute", "value"), [("episodes", "many"), ("env_args", 3), ("env_args", "{")])
def test_attributes_that_make_no_sense_are_refused(file, attribute, value):
    with h5py.File(file, "r+") as opened:
        opened.attrs[attribute] = value
    assert f"is damaged: its attribute {attribute}" in refusal(file)


# Files of something else


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("env", "smax"),
        ("n_agents", 9),
        ("n_actions", 9),
        ("obs_shape", 99),
        ("state_shape", 99),
        ("episode_limit", 99),
        ("bootstrap_time_limit", False),
    ],
)
def test_a_file_of_another_environment_is_refused(recorded, key, value):
    assert f"was recorded with {key} {RUN[key]!r} (this run: {value!r})" in refusal(recorded, **{key: value})


def test_other_arguments_of_the_environment_are_refused_but_not_another_seed(recorded):
    other = json.dumps({"game": "climbing", "seed": 1})
    assert "env_args.game 'two_step' (this run: 'climbing')" in refusal(recorded, env_args=other)
    assert "env_args.k None (this run: 3)" in refusal(recorded, env_args=json.dumps({"game": "two_step", "k": 3}))
    load(recorded, env_args=json.dumps({"game": "two_step", "seed": 7}))


def test_without_the_probabilities_stored_behaviour_is_refused(file):
    with h5py.File(file, "r+") as opened:
        del opened["behaviour"]
    message = refusal(file)
    assert "lacks behaviour" in message
    assert "set behaviour.source=bc_rnn" in message


def test_a_missing_field_is_named(file):
    with h5py.File(file, "r+") as opened:
        del opened["individual_reward"]
    assert "lacks the field individual_reward" in refusal(file)


def replace(opened, field, values):
    del opened[field]
    opened[field] = values


@pytest.mark.parametrize("change", [lambda v: v.astype(np.float64), lambda v: v[:, :-1], lambda v: v[:-1]])
def test_other_types_and_shapes_are_refused(file, change):
    with h5py.File(file, "r+") as opened:
        replace(opened, "obs", change(opened["obs"][:]))
    assert "its field obs holds float" in refusal(file)


def test_more_than_fits_is_refused(recorded, monkeypatch):
    monkeypatch.setattr(dataset, "available_bytes", lambda device: 10)
    message = refusal(recorded)
    assert "20 episodes need" in message
    assert "10 bytes are free" in message
