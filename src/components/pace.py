"""When updates are due while episodes come in."""

from collections.abc import Iterator
from dataclasses import dataclass

from components.episode_buffer import EpisodeBatch


@dataclass(frozen=True)
class Pace:
    """`updates_per_episode`, kept exactly however many episodes arrive at once.

    A replay as large as a batch is for learning on-policy: there every episode is learned from equally often. Updates
    are earned whenever the replay has been filled anew, before the next episode overwrites one of it.
    """

    batch_size: int
    buffer_size: int
    updates_per_episode: float

    @property
    def on_policy(self) -> bool:
        return self.buffer_size == self.batch_size

    def portions(self, batch: EpisodeBatch, collected: int) -> Iterator[EpisodeBatch]:
        """What to put into the replay at once, if there have been `collected` episodes before."""
        if not self.on_policy:
            yield batch
            return
        start, stop = 0, self.batch_size - collected % self.batch_size
        while start < batch.batch_size:
            yield batch[start:stop]
            start, stop = stop, stop + self.batch_size

    def earned(self, count: int, collected: int) -> float:
        """The updates that the last `count` episodes have earned, with which there are `collected`."""
        if self.on_policy:
            full = collected % self.batch_size == 0
            # Rounded, so that a third of an update for each of three episodes is one.
            return round(self.updates_per_episode * self.batch_size, 4) if full else 0.0
        return self.updates_per_episode * count if collected >= self.batch_size else 0.0
