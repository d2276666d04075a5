"""Schedules over environment steps."""

import math


class DecayThenFlatSchedule:
    """Falls from `start` to `finish` within `time_length` steps, linearly or exponentially, then stays."""

    def __init__(self, start: float, finish: float, time_length: int, decay: str = "exp"):
        if decay not in ("linear", "exp"):
            raise ValueError(f"decay must be 'linear' or 'exp', got {decay!r}")
        self.start = start
        self.finish = finish
        self.time_length = time_length
        self.decay = decay
        # exp(-T / scaling) reaches `finish` at `time_length`; for a finish that it never reaches, PyMARL's scaling is 1
        self.exp_scaling = -time_length / math.log(finish) if 0 < finish < 1 else 1

    def eval(self, T: int) -> float:
        """The value at step T."""
        if self.time_length <= 0:
            return self.finish
        if self.decay == "linear":
            return max(self.finish, self.start - (self.start - self.finish) * T / self.time_length)
        return min(self.start, max(self.finish, math.exp(-T / self.exp_scaling)))
