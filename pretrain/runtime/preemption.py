"""Asked to stop: the step is finished and saved, then the process ends.

SLURM asks with USR1 before the time limit or a preemption (the batch script then requeues the job); TERM comes from
`scancel`, torchrun or `kill`.
"""

from __future__ import annotations

import signal
import threading

STATUS = {signal.SIGUSR1: 75, signal.SIGTERM: 128 + signal.SIGTERM}  # exit statuses; 75: start me again


class Stopped(RuntimeError):
    """The run was asked to stop and has saved. `status` is the exit status."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"{signal.Signals(number).name}: {where}, saved; start again to go on")
        self.status = STATUS[signal.Signals(number)]


class Stop:
    """Listens for signals within its `with`. `stop_signal` is its number, 0 while there was none."""

    def __init__(self) -> None:
        self.stop_signal = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # only there may a program listen
            self._before = {number: signal.signal(number, self._note) for number in STATUS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        self.stop_signal = max(self.stop_signal, number)
