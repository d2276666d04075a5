"""Episodes in tensors and their replay."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components import episode_buffer
from components.episode_buffer import NUMBERS, EpisodeBatch, ReplayBuffer, compact, episode_bytes, rounded_up
from components.transforms import OneHot
from utils.errors import UserError
from utils.seeding import seed_everything

N, A, O, T = 2, 3, 4, 5
SCHEME = {
    "obs": {"vshape": O, "group": "agents"},
    "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
    "avail_actions": {"vshape": (A,), "group": "agents", "dtype": torch.int},
    "reward": {"vshape": (1,)},
    "terminated": {"vshape": (1,), "dtype": torch.uint8},
    "map": {"vshape": (2, 2), "episode_const": True},
}
GROUPS = {"agents": N}
PREPROCESS = {"actions": ("actions_onehot", [OneHot(A)])}


def make_batch(B=3, steps=T):
    return EpisodeBatch(SCHEME, GROUPS, B, steps, preprocess=PREPROCESS)


def make_replay(size=4):
    return ReplayBuffer(SCHEME, GROUPS, size, T, preprocess=PREPROCESS)


def episodes(*numbers, lengths=None):
    """One episode for each number, which stands in all of its fields at every filled step."""
    batch = make_batch(len(numbers))
    for row, number in enumerate(numbers):
        steps = slice(0, T if lengths is None else lengths[row])
        count = len(range(T)[steps])
        batch.update(
            {
                "obs": torch.full((count, N, O), float(number)),
                "actions": torch.full((count, N, 1), number % A),
                "reward": torch.full((count, 1), float(number)),
                "map": torch.full((2, 2), float(number)),
            },
            bs=row,
            ts=steps,
        )
    return batch


def numbers_in(batch):
    """The number of each episode, after a check that all of its fields agree on it."""
    numbers = batch["map"][:, 0, 0].tolist()
    for row, number in enumerate(numbers):
        filled = batch["filled"][row, :, 0] == 1
        assert (batch["map"][row] == number).all()
        for field, expected in (("obs", number), ("reward", number), ("actions", number % A)):
            assert (batch[field][row, filled] == expected).all()
            assert (batch[field][row, ~filled] == 0).all()
    return [int(number) for number in numbers]


class TestEpisodeBatch:
    def test_starts_empty_with_pymarls_shapes_and_types(self):
        batch = make_batch()
        expected = {
            "obs": ((3, T, N, O), torch.float32),
            "actions": ((3, T, N, 1), torch.long),
            "avail_actions": ((3, T, N, A), torch.int32),
            "reward": ((3, T, 1), torch.float32),
            "terminated": ((3, T, 1), torch.uint8),
            "map": ((3, 2, 2), torch.float32),
            "filled": ((3, T, 1), torch.long),
            "actions_onehot": ((3, T, N, A), torch.float32),
        }
        assert set(batch.scheme) == set(expected)
        for field, (shape, dtype) in expected.items():
            assert tuple(batch[field].shape) == shape
            assert batch[field].dtype == dtype
            assert (batch[field] == 0).all()
        assert (batch.batch_size, batch.max_seq_length) == (3, T)

    def test_update_everywhere(self):
        batch = make_batch()
        values = torch.arange(3 * T, dtype=torch.float32).view(3, T, 1)
        batch.update({"reward": values})
        assert (batch["reward"] == values).all()
        assert (batch["filled"] == 1).all()

    @pytest.mark.parametrize(
        ("bs", "ts", "shape", "rows", "steps"),
        [
            (slice(None), 2, (3, N, O), [0, 1, 2], [2]),
            (1, 2, (N, O), [1], [2]),
            (np.int64(1), slice(1, 3), (2, N, O), [1], [1, 2]),
            (slice(0, 2), slice(3, 5), (2, 2, N, O), [0, 1], [3, 4]),
            ([2, 0], 1, (2, N, O), [2, 0], [1]),
            ([2, 0], slice(0, 2), (2, 2, N, O), [2, 0], [0, 1]),
            (slice(None), [4, 0], (3, 2, N, O), [0, 1, 2], [4, 0]),
            (torch.tensor([2, 0]), 1, (2, N, O), [2, 0], [1]),
        ],
    )
    def test_update_with_slices_integers_and_lists(self, bs, ts, shape, rows, steps):
        batch = make_batch()
        values = 1 + torch.rand(shape, generator=torch.Generator().manual_seed(0))
        batch.update({"obs": values}, bs=bs, ts=ts)
        values = values.view(len(rows), len(steps), N, O)
        expected, filled = torch.zeros(3, T, N, O), torch.zeros(3, T, 1, dtype=torch.long)
        for i, row in enumerate(rows):
            for j, step in enumerate(steps):
                expected[row, step] = values[i, j]
                filled[row, step] = 1
        assert (batch["obs"] == expected).all()
        assert (batch["filled"] == filled).all()

    def test_update_takes_what_runners_give(self):
        """Lists of the environment's lists and arrays, tuples of numbers, tensors of actions."""
        batch = make_batch(B=1)
        batch.update(
            {
                "obs": [[np.full(O, 0.5, dtype=np.float64), np.full(O, 1.5, dtype=np.float64)]],
                "avail_actions": [[[1, 0, 1], [0, 1, 1]]],
                "actions": torch.tensor([[2, 1]]),
                "reward": [(0.25,)],
                "terminated": [(True,)],
            },
            ts=1,
        )
        assert batch["obs"][0, 1].tolist() == [[0.5] * O, [1.5] * O]
        assert batch["avail_actions"][0, 1].tolist() == [[1, 0, 1], [0, 1, 1]]
        assert batch["actions"][0, 1].tolist() == [[2], [1]]
        assert batch["reward"][0].flatten().tolist() == [0, 0.25, 0, 0, 0]
        assert batch["terminated"][0].flatten().tolist() == [0, 1, 0, 0, 0]
        assert batch["terminated"].dtype == torch.uint8

    def test_mark_filled(self):
        batch = make_batch(B=2)
        batch.update({"reward": [[1.0], [1.0]]}, ts=0, mark_filled=False)
        assert (batch["filled"] == 0).all()
        batch.update({"map": torch.ones(2, 2, 2)})  # no step is known from a field of the whole episode
        assert (batch["filled"] == 0).all()
        batch.update({"map": torch.ones(2, 2), "reward": [1.0], "obs": torch.ones(N, O)}, bs=1, ts=3)
        assert batch["filled"].squeeze(-1).tolist() == [[0] * T, [0, 0, 0, 1, 0]]

    def test_episode_constants_have_no_steps(self):
        batch = make_batch(B=3)
        batch.update({"map": [[[1.0, 2.0], [3.0, 4.0]]]}, bs=1, ts=2)
        assert batch["map"].tolist() == [[[0, 0], [0, 0]], [[1, 2], [3, 4]], [[0, 0], [0, 0]]]

    def test_max_t_filled(self):
        assert make_batch().max_t_filled() == 0
        assert episodes(1, 2, 3, lengths=[2, 4, 3]).max_t_filled() == 4

    def test_derived_field_is_not_stored(self):
        batch = make_batch()
        stored = {**batch.data.transition_data, **batch.data.episode_data}
        assert set(stored) == {*SCHEME, "filled"}
        with pytest.raises(KeyError, match="actions_onehot"):
            batch.update({"actions_onehot": torch.zeros(3, T, N, A)})

    def test_derived_field_follows_its_source(self):
        batch = make_batch(B=1)
        batch.update({"actions": [[2, 0]]}, ts=0)
        assert batch["actions_onehot"][0, 0].tolist() == [[0, 0, 1], [1, 0, 0]]
        batch["actions"][0, 0, 0] = 1
        assert batch["actions_onehot"][0, 0].tolist() == [[0, 1, 0], [1, 0, 0]]

    def test_derived_field_is_zero_where_not_filled(self):
        batch = make_batch(B=1)
        batch["actions"][:] = 1  # left over from an earlier episode
        batch.update({"reward": [[5.0]]}, ts=1)
        assert (batch["actions_onehot"][0, 1] == torch.tensor([0, 1, 0])).all()
        assert (batch["actions_onehot"][0, [0, 2, 3, 4]] == 0).all()

    @pytest.mark.parametrize(
        ("item", "rows", "steps"),
        [
            (1, [1], range(T)),
            (slice(1, 3), [1, 2], range(T)),
            ([2, 0], [2, 0], range(T)),
            ((slice(None), slice(0, 2)), [0, 1, 2], [0, 1]),
            ((slice(None), 3), [0, 1, 2], [3]),
            ((0, 4), [0], [4]),
            (([2, 0], slice(1, 3)), [2, 0], [1, 2]),
            ((slice(0, 2), [4, 1]), [0, 1], [4, 1]),
            (torch.tensor([False, True, True]), [1, 2], range(T)),
            (np.array([2, 1]), [2, 1], range(T)),
        ],
    )
    def test_parts_of_a_batch(self, item, rows, steps):
        batch, steps = episodes(1, 2, 5, lengths=[5, 3, 4]), list(steps)
        batch["obs"][:] = torch.rand(batch["obs"].shape)
        part = batch[item]
        assert (part.batch_size, part.max_seq_length) == (len(rows), len(steps))
        for field in ("obs", "actions", "reward", "filled", "actions_onehot"):
            expected = torch.stack([torch.stack([batch[field][row, step] for step in steps]) for row in rows])
            assert (part[field] == expected).all()
            assert part[field].shape == expected.shape
        assert part["map"][:, 0, 0].tolist() == [[1, 2, 5][row] for row in rows]

    def test_slices_are_views(self):
        batch = make_batch()
        batch[1:, :2].update({"reward": [[[7.0], [8.0]], [[9.0], [6.0]]]})
        assert batch["reward"].squeeze(-1).tolist() == [[0] * T, [7, 8, 0, 0, 0], [9, 6, 0, 0, 0]]

    def test_some_fields_by_their_names(self):
        batch = episodes(1, 2)
        part = batch["actions", "map"]
        assert set(part.scheme) == {"actions", "map", "filled", "actions_onehot"}
        assert part["actions"] is batch["actions"]
        assert part["map"] is batch["map"]
        assert (part["actions_onehot"] == batch["actions_onehot"]).all()
        with pytest.raises(KeyError, match="'reward' is not a field of this batch"):
            part["reward"]

    def test_unknown_fields(self):
        batch = make_batch()
        with pytest.raises(KeyError, match=r"'rewards' is not a stored field of this batch; it has .*'reward'"):
            batch.update({"rewards": torch.zeros(3, T, 1)})
        with pytest.raises(
            KeyError, match=r"'rewards' is not a field of this batch; it has .*'actions_onehot'.*'reward'"
        ):
            batch["rewards"]

    def test_unknown_field_among_several(self):
        with pytest.raises(KeyError, match="rewards"):
            make_batch()["obs", "rewards"]

    def test_wrong_shapes_name_both(self):
        batch = make_batch()
        with pytest.raises(ValueError, match=r"'obs': cannot store shape \(3, 2, 5\) as \(3, 1, 2, 4\)"):
            batch.update({"obs": torch.zeros(3, N, O + 1)}, ts=0)
        with pytest.raises(ValueError, match=r"'reward': cannot store shape \(\) as \(3, 5, 1\)"):
            batch.update({"reward": 1.0})  # no silent broadcast
        with pytest.raises(ValueError, match=r"'obs': cannot store shape \(3, 4, 2\) as \(3, 1, 2, 4\)"):
            batch.update({"obs": torch.zeros(3, O, N)}, ts=0)  # the right number of values in the wrong order
        assert (batch["obs"] == 0).all()

    def test_a_refused_update_changes_nothing(self):
        batch = make_batch()
        with pytest.raises(ValueError, match="cannot store"):
            batch.update({"obs": torch.zeros(3, O, N)}, ts=0)
        assert (batch["filled"] == 0).all()

    def test_two_lists_are_refused(self):
        with pytest.raises(ValueError, match="not for both"):
            make_batch().update({"reward": torch.zeros(2, 2, 1)}, bs=[0, 1], ts=[0, 1])

    def test_group_without_size(self):
        with pytest.raises(ValueError, match="'obs': group 'agents' has no size"):
            EpisodeBatch(SCHEME, {}, 1, T)

    def test_to_a_device(self):
        batch = make_batch()
        batch.to("meta")
        assert batch.device == "meta"
        assert {batch[field].device.type for field in (*SCHEME, "filled")} == {"meta"}

    def test_the_callers_scheme_stays_as_it_was(self):
        before = {field: dict(info) for field, info in SCHEME.items()}
        make_batch().update({"reward": torch.ones(3, T, 1)})
        assert before == SCHEME


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 61, 101])
def test_lengths_are_rounded_up_to_few(limit):
    found = [rounded_up(length, limit, 8) for length in range(1, limit + 1)]
    assert all(length <= rounded <= limit for length, rounded in enumerate(found, start=1))
    assert found == sorted(found)
    assert len(set(found)) <= 8
    assert all(rounded - length < -(-limit // 8) for length, rounded in enumerate(found, start=1))
    assert [rounded_up(length, limit, None) for length in range(1, limit + 1)] == list(range(1, limit + 1))


class TestReplayBuffer:
    def test_ring_overwrites_the_oldest(self):
        replay = make_replay(size=4)
        replay.insert_episode_batch(episodes(1, 2, 3))
        assert (replay.episodes_in_buffer, replay.buffer_index) == (3, 3)
        assert numbers_in(replay) == [1, 2, 3, 0]
        replay.insert_episode_batch(episodes(4, 5, 6))  # wraps around within one batch
        assert (replay.episodes_in_buffer, replay.buffer_index) == (4, 2)
        assert numbers_in(replay) == [5, 6, 3, 4]
        replay.insert_episode_batch(episodes(7, 8))
        assert (replay.episodes_in_buffer, replay.buffer_index) == (4, 0)
        assert numbers_in(replay) == [5, 6, 7, 8]

    def test_a_batch_larger_than_the_ring(self):
        replay = make_replay(size=2)
        replay.insert_episode_batch(episodes(1, 2, 3, 4, 5))
        assert numbers_in(replay) == [5, 4]
        assert (replay.episodes_in_buffer, replay.buffer_index) == (2, 1)

    def test_a_shorter_episode_leaves_nothing_of_the_one_it_overwrites(self):
        replay = make_replay(size=2)
        replay.insert_episode_batch(episodes(1, 2))
        replay.insert_episode_batch(episodes(3, lengths=[2]))
        assert numbers_in(replay) == [3, 2]
        assert replay["filled"].squeeze(-1).tolist() == [[1, 1, 0, 0, 0], [1] * T]

    def test_the_replay_keeps_copies(self):
        replay, batch = make_replay(), episodes(1)
        replay.insert_episode_batch(batch)
        batch["reward"][:] = 9.0
        assert (replay["reward"][0] == 1).all()

    @pytest.mark.parametrize("steps", [1, 2])
    def test_episodes_of_fewer_steps_fill_their_part(self, steps):
        """As in PyMARL, a batch may be shorter than the ring."""
        replay = make_replay()
        replay.insert_episode_batch(episodes(1)[:, :steps])
        assert replay["filled"][0].flatten().tolist() == [1] * steps + [0] * (T - steps)

    def test_can_sample(self):
        replay = make_replay(size=4)
        assert not replay.can_sample(1)
        replay.insert_episode_batch(episodes(1, 2))
        assert replay.can_sample(2)
        assert not replay.can_sample(3)
        with pytest.raises(ValueError, match="cannot sample 3 episodes, the replay holds 2"):
            replay.sample(3)

    def test_samples_are_whole_different_episodes(self):
        seed_everything(0)
        replay = make_replay(size=8)
        replay.insert_episode_batch(episodes(*range(1, 12)))  # 1, 2, 3 are overwritten by 9, 10, 11
        counts = dict.fromkeys(range(4, 12), 0)
        for _ in range(400):
            sample = replay.sample(3)
            assert type(sample) is EpisodeBatch
            numbers = numbers_in(sample)
            assert len(set(numbers)) == 3
            for number in numbers:
                counts[number] += 1
        # 150 of each are expected, with a standard deviation of (400 * 3/8 * 5/8)^.5 = 9.7
        assert all(abs(count - 150) < 40 for count in counts.values())

    def test_a_half_empty_ring_samples_what_it_holds(self):
        seed_everything(0)
        replay = make_replay(size=8)
        replay.insert_episode_batch(episodes(1, 2, 3))
        assert sorted(numbers_in(replay.sample(3))) == [1, 2, 3]

    def test_samples_end_with_their_longest_episode(self):
        seed_everything(0)
        lengths = {1: 2, 2: 4, 3: 3}
        replay = make_replay(size=4)
        replay.insert_episode_batch(episodes(*lengths, lengths=list(lengths.values())))
        seen = set()
        for _ in range(40):
            sample = replay.sample(2)
            longest = max(lengths[number] for number in numbers_in(sample))
            assert sample.max_seq_length == sample["obs"].shape[1] == longest == sample.max_t_filled()
            seen.add(longest)
        assert seen == {3, 4}

    def test_cut_follows_what_overwrote_an_episode(self):
        replay = make_replay(size=1)
        for length in (5, 2, 4):
            replay.insert_episode_batch(episodes(1, lengths=[length]))
            assert replay.sample(1).max_seq_length == length

    def test_samples_keep_derived_fields(self):
        replay = make_replay()
        replay.insert_episode_batch(episodes(2, lengths=[3]))
        sample = replay.sample(1)
        assert sample["actions_onehot"].shape == (1, 3, N, A)
        assert (sample["actions_onehot"] == torch.tensor([0, 0, 1])).all()

    def test_samples_are_copies(self):
        replay = make_replay(size=1)
        replay.insert_episode_batch(episodes(1))
        replay.sample(1)["reward"][:] = 9.0
        assert (replay["reward"] == 1).all()

    def test_nbytes_are_those_of_its_tensors(self):
        replay = make_replay(size=3)
        tensors = [*replay.data.transition_data.values(), *replay.data.episode_data.values()]
        assert replay.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        # obs 2*4*4, actions 2, available 2*3, reward 4, terminated 1, filled 1 for each of 5 steps; a map of 16
        assert replay.nbytes == 3 * (5 * (32 + 2 + 6 + 4 + 1 + 1) + 16)
        assert episode_bytes(compact(SCHEME), GROUPS, T) == replay.nbytes / 3
        # Outside of a replay, an action and a filled take 8 bytes, an availability 4.
        assert episode_bytes(SCHEME, GROUPS, T) == 5 * (32 + 16 + 24 + 4 + 1 + 8) + 16

    def test_refuses_what_does_not_fit(self, monkeypatch):
        # An episode takes 246 bytes; of 1000 free ones it proposes to use at most four fifths: three episodes.
        monkeypatch.setattr(episode_buffer, "available_bytes", lambda device: 1000)
        with pytest.raises(
            UserError, match=r"buffer_size=5: the replay needs 1\.2 KiB on cpu.*set buffer_size=3 or less, or a smaller"
        ):
            make_replay(size=5)
        make_replay(size=4)

    def test_refusal_allocates_nothing(self, monkeypatch):
        monkeypatch.setattr(episode_buffer, "available_bytes", lambda device: 10)

        def allocate(*args, **kwargs):
            raise AssertionError("allocated")

        monkeypatch.setattr(torch, "zeros", allocate)
        with pytest.raises(UserError, match="buffer_size=4"):
            make_replay(size=4)

    def test_refusal_on_a_gpu_points_to_the_hosts_memory(self, monkeypatch):
        monkeypatch.setattr(episode_buffer, "available_bytes", lambda device: 1000)
        with pytest.raises(UserError, match=r"on cuda:0 .*or buffer_cpu_only=True"):
            ReplayBuffer(SCHEME, GROUPS, 5, T, device="cuda:0")

    def test_batches_may_be_longer_than_their_longest_episode(self):
        replay = make_replay()
        replay.insert_episode_batch(episodes(5, 6, lengths=(1, 2)))
        replay.lengths = 2
        batch = replay.sample(2)
        assert batch.max_seq_length == rounded_up(2, T, 2)
        assert batch.max_seq_length > 2
        assert not any(batch[name][:, 2:].any() for name in ("filled", "obs", "actions", "reward"))
        replay.lengths = None
        assert replay.sample(2).max_seq_length == 2


PLAYED = {
    **SCHEME,
    "state": {"vshape": 3},
    "behaviour": {"vshape": (A,), "group": "agents"},
    "individual_reward": {"vshape": (N,)},
}


def compact_replay(dtype, size=3):
    return ReplayBuffer(PLAYED, GROUPS, size, T, PREPROCESS, dtype=dtype)


def played(B=3, seed=0):
    """Random episodes of different lengths; what observations and states hold, bytes do."""
    rng = torch.Generator().manual_seed(seed)
    batch = EpisodeBatch(PLAYED, GROUPS, B, T, preprocess=PREPROCESS)
    for field in ("reward", "map", "behaviour", "individual_reward"):
        batch[field].normal_(generator=rng)
    for field in NUMBERS:
        batch[field].random_(256, generator=rng)
    batch["actions"].random_(A, generator=rng)
    for field in ("avail_actions", "terminated"):
        batch[field].random_(2, generator=rng)
    for row in range(B):
        batch["filled"][row, : T - row] = 1
    return batch


def assert_same(batch, expected):
    """All fields, in type and value."""
    assert batch.scheme == expected.scheme
    for field in (*PLAYED, "filled", "actions_onehot"):
        assert batch[field].dtype == expected[field].dtype, field
        assert torch.equal(batch[field], expected[field]), field


class TestCompactReplay:
    @pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.uint8])
    def test_what_comes_out_is_what_went_in(self, dtype):
        batch, replay = played(B=5), compact_replay(dtype, size=4)
        replay.insert_episode_batch(batch)  # the last one overwrites the first
        kept = batch[[4, 1, 2, 3]]
        assert_same(replay[:], kept)
        assert_same(replay[1:3, 2:], kept[1:3, 2:])
        seed_everything(0)
        rows = np.random.choice(4, 2, replace=False)  # noqa: NPY002  as `sample`
        seed_everything(0)
        assert_same(replay.sample(2), kept[rows, : max(T - [4, 1, 2, 3][row] for row in rows)])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
    def test_the_types_of_the_ring(self, dtype):
        replay = compact_replay(dtype)
        tensors = replay.data.transition_data | replay.data.episode_data
        assert {field: tensor.dtype for field, tensor in tensors.items()} == {
            **dict.fromkeys(("obs", "state"), dtype),
            **dict.fromkeys(("actions", "avail_actions", "terminated", "filled"), torch.uint8),
            **dict.fromkeys(("reward", "individual_reward", "behaviour", "map"), torch.float32),
        }
        assert replay.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    @pytest.mark.parametrize(
        ("n_actions", "dtype"),
        [(2, torch.uint8), (256, torch.uint8), (257, torch.int16), (2**15, torch.int16), (2**15 + 1, torch.int32)],
    )
    def test_actions_take_the_smallest_type_that_holds_them(self, n_actions, dtype):
        scheme = {**SCHEME, "avail_actions": {**SCHEME["avail_actions"], "vshape": (n_actions,)}}
        replay, batch = ReplayBuffer(scheme, GROUPS, 1, T), EpisodeBatch(scheme, GROUPS, 1, T)
        batch["actions"][:] = n_actions - 1
        replay.insert_episode_batch(batch)
        assert replay["actions"].dtype == dtype
        assert (replay[:]["actions"] == n_actions - 1).all()

    @pytest.mark.parametrize(
        ("field", "value", "dtype", "shown"),
        [
            ("obs", 0.5, torch.uint8, "0.5"),
            ("obs", 256.0, torch.uint8, "256"),
            ("state", -1.0, torch.uint8, "-1"),
            ("state", float("nan"), torch.uint8, "nan"),
            ("obs", 65505.0, torch.float16, "65505"),
            ("state", -1e9, torch.float16, "-1e+09"),
        ],
    )
    def test_a_value_that_the_type_does_not_hold_is_refused(self, field, value, dtype, shown):
        replay, batch, name = compact_replay(dtype), played(), str(dtype)[6:]
        replay.insert_episode_batch(batch)
        before = {key: tensor.clone() for key, tensor in replay.data.transition_data.items()}
        batch = played(seed=1)
        batch[field][1, 2] = value
        message = f"replay_dtype={name}: {field} holds {shown}, which the replay cannot keep as {name}; set replay_dty"
        with pytest.raises(UserError) as error:
            replay.insert_episode_batch(batch)
        assert str(error.value).startswith(message)
        assert replay.inserted == 3
        assert all(torch.equal(value, before[key]) for key, value in replay.data.transition_data.items())

    @pytest.mark.parametrize(("field", "value"), [("actions", 256), ("avail_actions", -1)])
    def test_whole_numbers_that_no_environment_has_are_refused(self, field, value):
        batch = played()
        batch[field][0, 0, 0] = value
        with pytest.raises(UserError, match=f"^{field} holds {value}, which the replay cannot keep as uint8$"):
            compact_replay(None).insert_episode_batch(batch)

    @given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
    def test_floats_are_kept_rounded_or_refused(self, numbers):
        """float16 has 11 binary digits, and 2^-24 is the least distance of two numbers."""
        batch, replay = played(B=1), compact_replay(torch.float16)
        batch["state"].copy_(torch.tensor(numbers))
        if max(map(abs, numbers)) > 65504:
            with pytest.raises(UserError, match="cannot keep as float16"):
                replay.insert_episode_batch(batch)
            return
        replay.insert_episode_batch(batch)
        error = (replay[:]["state"][:1].double() - batch["state"].double()).abs()
        assert (error <= torch.clamp(batch["state"].double().abs() * 2**-11, min=2**-25)).all()

    @given(st.lists(st.floats(width=32) | st.integers(-2, 258).map(float), min_size=3, max_size=3))
    def test_bytes_are_exact_or_refused(self, numbers):
        batch, replay = played(B=1), compact_replay(torch.uint8)
        batch["state"].copy_(torch.tensor(numbers))
        if all(0 <= number <= 255 and number == int(number) for number in numbers):
            replay.insert_episode_batch(batch)
            assert torch.equal(replay[:]["state"][:1], batch["state"])
        else:
            with pytest.raises(UserError, match="cannot keep as uint8"):
                replay.insert_episode_batch(batch)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
    def test_episodes_are_put_back_also_in_the_schemes_types(self, dtype):
        """Checkpoints of earlier versions hold those."""
        replay, again, earlier = (compact_replay(dtype) for _ in range(3))
        replay.insert_episode_batch(played())
        replay.insert_episode_batch(played(B=1, seed=1))
        found = replay.episodes(1, 4)
        assert {field: value.dtype for field, value in found.items()} == {
            field: replay[field].dtype for field in (*PLAYED, "filled")
        }
        again.put(found, 1)
        earlier.put({field: value.to(played()[field].dtype) for field, value in found.items()}, 1)
        for other in (again, earlier):
            assert other.inserted == 4
            assert (other._lengths == replay._lengths).all()
            assert_same(other[:], replay[:])
