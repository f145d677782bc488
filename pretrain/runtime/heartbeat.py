"""Finds a run that hangs: after a while every rank writes where it is, and one line says which one hangs.

The training loop calls `beat` at every turn of a step. A thread of each rank looks at the clock. Ranks that wait for
another one in a collective stop beating too, so that all of them report, each from its own process and into a folder
that they share; a rank that cannot report (stopped, or its machine is gone) is named by its silence.

    RUN/<stage>/hang/rank-0003.txt     "step 120, loading, 1800 s" and the stack of every thread
"""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path

from meddap.disk import write_atomic
from pretrain.runtime.distributed import ALONE, World

log = logging.getLogger("pretrain")

TURNS = ("loading", "forward and backward", "comparing ranks", "updating", "saving")  # of a step, in their order
STATUS = 70  # exit status of a process that hung
_GRACE = 60.0  # seconds for other ranks to report, at most half of the limit


class Heartbeat:
    """Watches one rank's steps; a turn longer than `limit` seconds ends the process (0: never looks)."""

    def __init__(self, folder: Path, limit: float, world: World = ALONE) -> None:
        self.folder, self.limit, self.world = folder / "hang", limit, world
        self._last = (0, TURNS[0], time.monotonic())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meddap-heartbeat", daemon=True)
        if world.first:
            shutil.rmtree(self.folder, ignore_errors=True)
        if limit:
            self._thread.start()

    def beat(self, step: int, turn: str) -> None:
        """Note that the loop is at `turn` of `step` now."""
        self._last = (step, turn, time.monotonic())
        if self.limit:
            # should the thread itself be blocked (by code that keeps the interpreter's lock), this ends the process
            faulthandler.dump_traceback_later(2 * self.limit + _GRACE, exit=True, file=sys.__stderr__ or 2)

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        if self.limit:
            faulthandler.cancel_dump_traceback_later()
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.limit / 10)):
            if time.monotonic() - self._last[2] > self.limit:
                self._report()

    def _report(self) -> None:
        step, turn, since = self._last
        head = f"step {step}, {turn}, {time.monotonic() - since:.0f} s"
        host = self.world.hosts[self.world.rank]
        text = f"{head}\nrank {self.world.rank} of {self.world.size}, process {os.getpid()} on {host}\n\n{stacks()}"
        write_atomic(self.folder / _name(self.world.rank), text.encode())
        self._wait_for_others()
        reports = read(self.folder)
        if self.world.rank == min(reports):
            log.error("error: %s; stacks: %s", verdict(reports, self.world), self.folder)
        else:
            time.sleep(2)  # the launcher ends everybody when the first one goes
        os._exit(STATUS)

    def _wait_for_others(self) -> None:
        until = time.monotonic() + min(_GRACE, self.limit / 2)
        while len(read(self.folder)) < self.world.size and time.monotonic() < until:
            time.sleep(0.2)


def stacks() -> str:
    """Return the stack of every thread of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():
        found += [f"thread {names.get(ident, ident)}:\n", *traceback.format_stack(frame), "\n"]
    return "".join(found)


def read(folder: Path) -> dict[int, tuple[int, str]]:
    """Return (step, turn) of every rank that reported."""
    found = {}
    for path in folder.glob("rank-*.txt"):
        step, turn, _ = path.read_text().split("\n")[0].split(", ")
        found[int(path.stem.removeprefix("rank-"))] = (int(step.removeprefix("step ")), turn)
    return found


def verdict(reports: dict[int, tuple[int, str]], world: World) -> str:
    """Return the line that says which rank is behind the others, or silent."""
    silent = [rank for rank in range(world.size) if rank not in reports]
    if silent:
        return f"hang: {_named(silent, world)} said nothing: stopped, or the machine is gone"
    places = {rank: (step, TURNS.index(turn)) for rank, (step, turn) in reports.items()}
    last = min(places.values())
    behind = [rank for rank, place in places.items() if place == last]
    where = f"{TURNS[last[1]]} of step {last[0]}"
    if len(behind) == world.size > 1:
        return f"hang: every rank stands in {where}; look at the network"
    return f"hang: {_named(behind, world)} stands in {where}" + (", the others wait" if world.size > 1 else "")


def _named(ranks: list[int], world: World) -> str:
    return " and ".join(f"rank {rank}" + (f" on {host}" if (host := world.hosts[rank]) else "") for rank in ranks)


def _name(rank: int) -> str:
    return f"rank-{rank:04d}.txt"
