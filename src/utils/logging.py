"""Statistics of a run: to the screen, to sacred's metrics, to TensorBoard."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable
from datetime import timedelta


def get_logger() -> logging.Logger:
    """The console logger that sacred and `Logger` share."""
    logger = logging.getLogger("greed")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("[%(levelname)s %(asctime)s] %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO)
    return logger


class Logger:
    """Keeps every logged scalar, (t, value) by name in `stats`, and hands it on."""

    def __init__(self, console_logger: logging.Logger):
        self.console_logger = console_logger
        self.stats: dict[str, list[tuple[int, float]]] = {}
        self._unrecorded: set[str] = set()  # names that are not for sacred
        self._log_scalar: Callable | None = None
        self._writer = None

    def setup_tb(self, directory_name: str, resumed_at: int | None = None) -> None:
        """Also write TensorBoard scalars to this folder; what is there of steps behind `resumed_at` comes again."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(directory_name, purge_step=None if resumed_at is None else resumed_at + 1)

    def setup_sacred(self, sacred_run) -> None:
        """Also write sacred metrics."""
        self._log_scalar = sacred_run.log_scalar

    def log_stat(self, key: str, value: float, t: int, to_sacred: bool = True) -> None:
        value = float(value)  # numpy and torch scalars would be stored as pickled objects
        self.stats.setdefault(key, []).append((t, value))
        if self._writer is not None:
            try:
                self._writer.add_scalar(key, value, t)
            except OSError as error:  # raised from then on: its thread has ended
                self.console_logger.warning("TensorBoard's file cannot be written (%s) and ends here", error)
                self._writer = None
        if not to_sacred:
            self._unrecorded.add(key)
        elif self._log_scalar is not None:
            self._log_scalar(key, value, t)

    @property
    def recorded(self) -> dict[str, list[tuple[int, float]]]:
        """What sacred was told so far."""
        return {key: points for key, points in self.stats.items() if key not in self._unrecorded}

    def latest(self, key: str) -> float | None:
        """The last value of a statistic, None if it was never logged."""
        return self.stats[key][-1][1] if key in self.stats else None

    def print_recent_stats(self) -> None:
        """All statistics with their last values, as PyMARL prints them."""
        if not self.stats:
            return
        t = max(values[-1][0] for values in self.stats.values())
        lines = [f"{key + ':':<36}{self.stats[key][-1][1]:>12.4f}" for key in sorted(self.stats)]
        self.console_logger.info("Recent statistics at t_env %d\n%s", t, "\n".join(lines))

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()


class Progress:
    """One row of a table per log interval, and on a terminal a line below it that says how far the run is.

    Args:
        t_start, t_max: where the run's time begins and ends. unit: what it counts, steps or updates.
        updates: made before.
    """

    HEADER_EVERY = 20  # rows
    WIDTH = 9  # of a column, at least

    def __init__(self, logger: Logger, t_start: int, t_max: int, unit: str, updates: int = 0):
        self.logger = logger
        self.t_start = t_start
        self.t_max = t_max
        self.unit = unit
        self.started = self._row_time = self._line_time = time.monotonic()
        self._row_t, self._row_updates, self._rows = t_start, updates, 0
        self._terminal = sys.__stdout__ if sys.__stdout__ is not None and sys.__stdout__.isatty() else None

    def row(self, t: int, updates: int) -> None:
        """Print the next row of the table."""
        now = time.monotonic()
        seconds = max(now - self._row_time, 1e-9)
        columns = {
            self.unit: f"{t:,}",
            "done": f"{100 * t / self.t_max:.0f}%",
            f"{self.unit}/s": f"{(t - self._row_t) / seconds:,.0f}",
            "updates/s": f"{(updates - self._row_updates) / seconds:.1f}",
            "left": self._left(t, now),
        }
        if self.unit == "steps":  # otherwise nothing is collected
            columns["return"] = self._latest("return_mean")
        columns["test return"] = self._latest("test_return_mean")
        if "test_battle_won_mean" in self.logger.stats:
            columns["test win rate"] = self._latest("test_battle_won_mean")
        if self.unit == "steps":
            columns["epsilon"] = self._latest("epsilon")
        if "gate_weight_independent" in self.logger.stats:
            columns["gate weight"] = self._latest("gate_weight_independent")
        widths = {name: max(len(name), self.WIDTH) for name in columns}
        self._clear_line()
        if self._rows % self.HEADER_EVERY == 0:
            print("  ".join(name.rjust(widths[name]) for name in columns))
        print("  ".join(value.rjust(widths[name]) for name, value in columns.items()), flush=True)
        self._rows += 1
        self._row_time, self._row_t, self._row_updates = now, t, updates

    def line(self, t: int, updates: int) -> None:
        """Renew the line below the table, at most twice a second; nothing where there is no terminal."""
        now = time.monotonic()
        if self._terminal is None or now - self._line_time < 0.5:
            return
        self._line_time = now
        filled = int(30 * min(1.0, t / self.t_max))
        bar = "#" * filled + "." * (30 - filled)
        self._terminal.write(
            f"\r\x1b[K[{bar}] {t:,}/{self.t_max:,} {self.unit}, {updates:,} updates, left {self._left(t, now)}"
        )
        self._terminal.flush()

    def close(self) -> None:
        self._clear_line()

    def _clear_line(self) -> None:
        if self._terminal is not None:
            self._terminal.write("\r\x1b[K")
            self._terminal.flush()

    def _left(self, t: int, now: float) -> str:
        done = t - self.t_start
        if done <= 0:
            return "?"
        seconds = (now - self.started) * max(self.t_max - t, 0) / done
        return str(timedelta(seconds=math.ceil(seconds)))

    def _latest(self, key: str) -> str:
        value = self.logger.latest(key)
        return "-" if value is None else f"{value:.2f}"


def format_table(rows: list[tuple[str, str]], title: str) -> str:
    """A two-column table with a title."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join([title, "-" * len(title), *(f"{name:<{width}}{value}" for name, value in rows)])
