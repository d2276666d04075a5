"""What runners count per episode, logged under PyMARL's names."""

import numpy as np


class EpisodeStatistics:
    """Returns, lengths and the environment's final info of the episodes since the last log."""

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.clear()

    def clear(self) -> None:
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.infos: dict[str, float] = {}  # sums over episodes

    def add(self, episode_return: float, length: int, info: dict) -> None:
        """One finished episode; of its info, numbers are averaged and the rest is left out."""
        self.returns.append(float(episode_return))
        self.lengths.append(int(length))
        for key, value in info.items():
            if isinstance(value, int | float | np.bool_ | np.number):
                self.infos[key] = self.infos.get(key, 0.0) + float(value)

    def summary(self) -> dict[str, float]:
        """`return_mean`, `return_std`, `ep_length_mean` and `<info key>_mean`, with the prefix."""
        n = len(self.returns)
        values = {
            "return_mean": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "ep_length_mean": float(np.mean(self.lengths)),
        }
        # An environment may count n_episodes itself, as SMAC does; it is no average.
        values |= {f"{key}_mean": total / n for key, total in self.infos.items() if key != "n_episodes"}
        return {self.prefix + key: value for key, value in values.items()}

    def log(self, logger, t_env: int) -> None:
        """Log the summary and start anew."""
        for key, value in self.summary().items():
            logger.log_stat(key, value, t_env)
        self.clear()
