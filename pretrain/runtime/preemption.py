"""Asked to stop: the step is finished and saved, then the process ends.

SLURM asks with USR1 before the time limit or a preemption (the batch script then requeues the job); TERM comes from
`scancel`, torchrun or `kill`, INT from Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from meddap.console import INTERRUPTED
from meddap.errors import MeddapError

# exit statuses; 75: start me again
STATUS = {signal.SIGUSR1: 75, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: INTERRUPTED}


class Stopped(MeddapError, RuntimeError):
    """The run was asked to stop and has saved. `status` is the exit status."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"{signal.Signals(number).name}: {where}, saved; start again to go on")
        self.status = STATUS[signal.Signals(number)]


class Stop:
    """Listens for signals within its `with`. `stop_signal` is the number of one that came, 0 while there was none.

    alone  no other process has a part in the run: a second Ctrl-C ends it at once
    """

    def __init__(self, alone: bool = False) -> None:
        self.stop_signal, self.alone = 0, alone
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # only there may a program listen
            self._before = {number: signal.signal(number, self._note) for number in STATUS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.alone:
            if self.stop_signal == number:
                raise KeyboardInterrupt
            # a step may take long; not `print`, which the signal may have interrupted
            with suppress(OSError):  # a `tee` that read it may have ended by the same Ctrl-C
                os.write(2, b"\nstopping after this step; Ctrl-C again stops at once, and what is not saved is lost\n")
        self.stop_signal = max(self.stop_signal, number)
