"""How many updates are due while episodes come in."""

from collections.abc import Iterator

from components.episode_buffer import EpisodeBatch


class Pace:
    """`updates_per_episode`, kept exactly however many episodes arrive at once.

    A replay as large as a batch is for learning on-policy: there every episode is learned from equally often. Updates
    are due whenever the replay has been filled anew, before the next episode overwrites one of them.
    """

    def __init__(self, batch_size: int, buffer_size: int, updates_per_episode: float):
        self.batch_size = batch_size
        self.on_policy = buffer_size == batch_size
        self.updates_per_episode = updates_per_episode
        self.collected = 0
        self.owed = 0.0

    def portions(self, batch: EpisodeBatch) -> Iterator[tuple[EpisodeBatch, int]]:
        """What to put into the replay at once, and how many updates are due behind it."""
        start = 0
        while start < batch.batch_size:
            count = batch.batch_size - start
            if self.on_policy:
                count = min(count, self.batch_size - self.collected % self.batch_size)
            self.collected += count
            yield batch[start : start + count], self._due(count)
            start += count

    def _due(self, count: int) -> int:
        if self.on_policy and self.collected % self.batch_size > 0:
            return 0
        if self.collected < self.batch_size:
            return 0
        self.owed += self.updates_per_episode * (self.batch_size if self.on_policy else count)
        if self.on_policy:
            self.owed = round(self.owed, 4)  # a third of an update for each of three episodes is one
        due = int(self.owed)
        self.owed -= due
        return due
