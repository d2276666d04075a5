"""How often episodes are learned from, however many arrive at once."""

import numpy as np
import pytest
import torch

from components.episode_buffer import EpisodeBatch, ReplayBuffer
from components.pace import Pace

SCHEME = {"number": {"vshape": (1,), "dtype": torch.long}}


def play(arrivals, batch_size, buffer_size, updates_per_episode):
    """How often each episode was in a batch, and after how many episodes each update was made."""
    np.random.seed(0)  # noqa: NPY002  the replay draws from it
    pace = Pace(batch_size, buffer_size, updates_per_episode)
    buffer = ReplayBuffer(SCHEME, {}, buffer_size, 1)
    total = sum(arrivals)
    seen, moments, first, stored = [0] * total, [], 0, 0
    for count in arrivals:
        batch = EpisodeBatch(SCHEME, {}, count, 1)
        batch.update({"number": torch.arange(first, first + count).view(count, 1, 1)})
        first += count
        for part, due in pace.portions(batch):
            buffer.insert_episode_batch(part)
            stored += part.batch_size
            for _ in range(due):
                moments.append(stored)
                for number in buffer.sample(batch_size)["number"].flatten().tolist():
                    seen[number] += 1
    assert stored == total
    return seen, moments


@pytest.mark.parametrize("arrivals", [[1] * 24, [24], [3] * 8, [7, 1, 16], [5, 5, 5, 5, 4]])
@pytest.mark.parametrize(("batch_size", "updates_per_episode", "times"), [(4, 0.25, 1), (4, 0.5, 2), (3, 0.333333, 1)])
def test_on_policy_every_episode_is_learned_from_equally_often(arrivals, batch_size, updates_per_episode, times):
    seen, moments = play(arrivals, batch_size, batch_size, updates_per_episode)
    assert seen == [times] * 24
    assert moments == [k for k in range(batch_size, 25, batch_size) for _ in range(times)]


def test_on_policy_episodes_beyond_the_last_full_replay_wait():
    seen, moments = play([3, 3, 3], 4, 4, 0.25)
    assert moments == [4, 8]
    assert seen == [1] * 8 + [0]


def test_fewer_updates_than_replays_leave_some_out():
    assert play([4] * 4, 4, 4, 0.125)[1] == [8, 16]


def test_off_policy_updates_follow_what_has_arrived():
    """Nothing is due before there is a batch; the fraction that is left counts for the next arrivals."""
    assert play([3, 3, 3, 3], 5, 100, 0.5)[1] == [6, 9, 9, 12]
