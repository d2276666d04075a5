"""Keeps a run: checkpoints when they are due, a stop on request, and going on afterwards."""

import contextlib
import time
from typing import Any

from utils.checkpoints import Checkpoints
from utils.errors import Interrupted
from utils.memory import format_bytes
from utils.record import RunFolder
from utils.signals import StopRequest


class Keeper:
    """Stands between two steps of training, where a run is in no middle of anything.

    Args:
        experiment: a `run.Experiment`.
        about: what a checkpoint says of the run: token, config, sacred_id, resumed.
    """

    def __init__(self, experiment, checkpoints: Checkpoints, about: dict[str, Any], stop: StopRequest):
        self.experiment, self.checkpoints, self.about, self.stop = experiment, checkpoints, about, stop
        self.args, self.logger = experiment.args, experiment.logger
        self.log = self.logger.console_logger
        self.replay = None if self.args.offline else experiment.buffer  # episodes in a file are there again
        self._last = time.monotonic()
        self._last_step: int | None = None  # of the newest whole checkpoint
        self._unsavable = False  # some part of the run, such as a class of the user's, cannot say what it is

    def resume(self, sacred_run) -> None:
        """Go on from the newest whole checkpoint, with the run's record as it was then."""
        experiment = self.experiment
        put = None if self.replay is None else self.replay.put
        description, state = self.checkpoints.read(put, self.args.device, self.log.warning)
        experiment.load_state_dict(state)
        for observer in sacred_run.observers:
            if isinstance(observer, RunFolder):
                observer.rewind(self.logger.recorded)
        self._last_step = description["step"]
        # What was printed behind the checkpoint stays in the record; what was measured there comes again.
        self.log.info("Resumed at step %d from %s", description["step"], self.checkpoints.folder)

    def between(self) -> None:
        """Write a checkpoint if one is due.

        Raises:
            Interrupted: the run is to stop. There is a checkpoint, if the disk allowed it.
        """
        if self.stop.asked():
            self.save()
            raise Interrupted(self._last_words(), self.stop.code)
        if self.args.checkpoint_interval and time.monotonic() - self._last >= self.args.checkpoint_interval:
            self.save()

    def _last_words(self) -> str:
        words = [f"Stopped at step {self.experiment.runner.t_env} ({self.stop.reason})", self.experiment.say_save()]
        if self._last_step is None:
            words.append("there is no checkpoint")
        else:
            words.append(f"the same command with resume={self.about['token']} goes on at step {self._last_step}")
        return "; ".join(words)

    def save(self) -> None:
        """Write a checkpoint. One that cannot be written is reported, and training goes on."""
        if self._unsavable:
            return
        step, started = self.experiment.runner.t_env, time.monotonic()
        try:
            size = self.checkpoints.write(step, self.experiment.state_dict(), self.replay, self.about)
        except TypeError as error:
            self._unsavable = True
            self.log.warning("%s: there will be no checkpoints, training goes on, and cannot be resumed", error)
        except OSError as error:
            before = (
                "there is none before it" if self._last_step is None else f"the one of step {self._last_step} stays"
            )
            self.log.warning(
                "The checkpoint of step %d cannot be written (%s); %s; training goes on", step, error, before
            )
        else:
            self._last_step = step
            seconds = time.monotonic() - started
            self.log.info("Checkpoint of step %d: %s in %.2f s", step, format_bytes(size), seconds)
        self._last = time.monotonic()

    def finish(self, summary: dict[str, float]) -> None:
        """The run is complete: nobody needs its checkpoints any more."""
        with contextlib.suppress(OSError):  # a full disk; the run would be continued at its end
            self.checkpoints.finish({**self.about, "result": summary})
