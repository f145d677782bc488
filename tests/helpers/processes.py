"""Trainings of several processes on this machine, as a launcher would start them, without its seconds of imports.

A forked launcher forks one process per rank, waits, and kills the rest soon after the first one that ends badly.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pretrain

_CONTEXT = multiprocessing.get_context("forkserver")
# what every process would import, imported once before they are forked
_DISTRIBUTED = ("checkpoint", "checkpoint.api", "device_mesh", "fsdp", "tensor")
_CONTEXT.set_forkserver_preload(["pretrain.train", *(f"torch.distributed.{name}" for name in _DISTRIBUTED)])
_PATIENCE = 20  # seconds between the first bad end and the launcher's


@dataclass
class Launched:
    """A running training: its launcher, and the folder with `pids.json`, `status.json` and `rank-<rank>.log`."""

    launcher: multiprocessing.process.BaseProcess
    logs: Path

    def pids(self) -> list[int]:
        """Process ids of the ranks."""
        while not (self.logs / "pids.json").is_file():
            time.sleep(0.01)
        return json.loads((self.logs / "pids.json").read_text())

    def finish(self, seconds: float = 180) -> list[int]:
        """Exit statuses of the ranks; a signal's number below zero. Empty where the launcher was killed."""
        self.launcher.join(seconds)
        if self.launcher.is_alive():
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)
            self.launcher.join()
            raise AssertionError(f"no end after {seconds} s\n{said(self.logs)}")
        status = self.logs / "status.json"
        return json.loads(status.read_text()) if status.is_file() else []


def start(arguments: Sequence[str], size: int, logs: Path, hook: Callable[[], None] | None = None) -> Launched:
    """`pretrain.train.main(arguments)` in `size` processes.

    hook  called in every process before it begins
    """
    logs.mkdir(parents=True, exist_ok=True)
    for left in ("pids.json", "status.json"):
        (logs / left).unlink(missing_ok=True)
    launcher = _CONTEXT.Process(target=_launch, args=(list(arguments), size, str(logs), hook))
    launcher.start()
    return Launched(launcher, logs)


def train(arguments: Sequence[str], size: int, logs: Path, hook: Callable[[], None] | None = None) -> list[int]:
    """Run a training of `size` processes to its end; exit statuses."""
    return start(arguments, size, logs, hook).finish()


def said(logs: Path) -> str:
    """What all ranks wrote."""
    return "".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(logs.glob("rank-*.log")))


def _launch(arguments: list[str], size: int, logs: str, hook: Callable[[], None] | None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids, launcher = [], os.getpid()
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            pretrain.PARENT = launcher  # which a process that is not forked sees when it is imported
            _train(arguments, rank, size, port, f"{logs}/rank-{rank}.log", hook)
        pids.append(pid)
    _put(f"{logs}/pids.json", pids)
    statuses: dict[int, int] = {}
    until = None
    while len(statuses) < size:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            statuses[pid] = os.waitstatus_to_exitcode(status)
            until = until or (time.monotonic() + _PATIENCE if statuses[pid] else None)
        elif until and time.monotonic() > until:
            for left in set(pids) - set(statuses):
                os.kill(left, signal.SIGKILL)
            until = None
        else:
            time.sleep(0.02)
    _put(f"{logs}/status.json", [statuses[pid] for pid in pids])


def _put(path: str, value: list[int]) -> None:
    Path(f"{path}.new").write_text(json.dumps(value))
    os.replace(f"{path}.new", path)


def _train(arguments: list[str], rank: int, size: int, port: int, log: str, hook: Callable[[], None] | None) -> None:
    """A rank; it does not return."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = 1
    try:
        where = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if size > 1:
            os.environ.update({name: str(value) for name, value in where.items()})
        import torch

        from pretrain import train as command

        torch.set_num_threads(1)
        if hook is not None:
            hook()
        status = command.main(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)
