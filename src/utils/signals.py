"""Requests to stop, from a scheduler, a terminal or the clock, that training heeds between two of its steps."""

import contextlib
import os
import signal
import threading
import time

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: a scheduler may start the same command again
CONTROL_C = 128 + signal.SIGINT


class StopRequest:
    """Notes SIGTERM and SIGINT while it is entered; a second signal ends the program at once.

    Args:
        max_hours: after so many hours it asks by itself; None: never.
    """

    def __init__(self, max_hours: float | None):
        self.reason = ""  # empty while nobody asks
        self.code = TRY_AGAIN
        self._end = None if max_hours is None else time.monotonic() + 3600 * max_hours

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether to stop now; `reason` says why."""
        if not self.reason and self._end is not None and time.monotonic() >= self._end:
            self.reason = "max_hours is over"
        return bool(self.reason)

    def _note(self, number: int, _frame) -> None:
        self.reason = signal.Signals(number).name
        self.code = CONTROL_C if number == signal.SIGINT else TRY_AGAIN
        for other, handler in self._before.items():
            signal.signal(other, handler)
        text = f"\n{self.reason}: stopping after this round; the same again stops at once\n"
        with contextlib.suppress(OSError):  # nobody may listen any more
            os.write(1, text.encode())  # not print, which may be in the middle of a line of its own
