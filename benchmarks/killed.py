"""A training killed at random moments on one, two and four processes, beside one that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meddap import console
from meddap.settings import SettingsError
from pretrain.runtime import metrics

_RANKS = (1, 2, 4)
_LONGEST = 900  # seconds of one start
_LOOK = 0.1  # seconds between two looks at the metrics


@dataclass(frozen=True)
class Compared:
    """Two runs, step by step.

    steps       that both have
    samples     steps whose samples are not the same
    other       steps of which a whole number (images, samples so far, batch, crop) is not the same, or one has a number
                that the other has not
    difference  the largest of all other numbers, by the larger of the two, or by 1 where both are smaller
    """

    steps: int
    samples: int
    other: int
    difference: float


def train(arguments: Sequence[str], run: Path, steps: int, kills: int, seed: int) -> list[int]:
    """Train a stage `adapt` of `steps` to its end; every process is killed (SIGKILL) `kills` times on the way.

    The moments are random steps and a random part of a second. Each start has one, two or four processes, by turns;
    their number is returned for each start. Raises SettingsError where a start ends by itself before it is killed, or
    the last one badly.
    """
    draws, starts = random.Random(seed), list[int]()
    for moment in [*sorted(draws.randrange(1, steps) for _ in range(kills)), None]:
        starts.append(_RANKS[len(starts) % len(_RANKS)])
        log = run.with_name(f"{run.name}-start-{len(starts)}.log")
        ranks = _start(arguments, starts[-1], log)
        try:
            _wait(ranks, run / "adapt", moment)
            if moment is not None:
                time.sleep(draws.uniform(0, 1))
        finally:
            running = [rank for rank in ranks if rank.poll() is None]
            for rank in running:
                rank.send_signal(signal.SIGKILL)
            statuses = [rank.wait() for rank in ranks]
        if moment is None and any(statuses):
            raise SettingsError(f"{log}: exit statuses {statuses}; the log says why")
        if moment is not None:
            if not running:
                raise SettingsError(f"{log}: ended before it was killed in step {moment}; the log says why")
            done = _reached(run / "adapt")
            console.say(f"start {len(starts)}, processes: {starts[-1]}; killed after step {done} of {steps}")
    return starts


def compare(one: Path, other: Path) -> Compared:
    """Compare the metrics of two folders of stages. Raises SettingsError where they do not have the same steps."""
    ours, theirs = metrics.read(one / "metrics.jsonl"), metrics.read(other / "metrics.jsonl")
    if [row["step"] for row in ours] != [row["step"] for row in theirs]:
        raise SettingsError(f"{one} and {other}: {len(ours)} and {len(theirs)} steps; train both to their ends")
    samples, unequal, difference = 0, 0, 0.0
    for mine, yours in zip(ours, theirs):
        keys = (mine.keys() | yours.keys()) - {*metrics.TIMING, "samples"}
        pairs = [(mine.get(key), yours.get(key)) for key in keys]
        both = [(a, b) for a, b in pairs if isinstance(a, float) and isinstance(b, float)]
        samples += mine["samples"] != yours["samples"]
        unequal += any(a != b for a, b in pairs if (a, b) not in both)
        difference = max([difference, *(abs(a - b) / max(abs(a), abs(b), 1.0) for a, b in both)])
    return Compared(len(ours), samples, unequal, difference)


def _start(arguments: Sequence[str], size: int, log: Path) -> list[subprocess.Popen]:
    """Start the processes of a training; what they say goes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-m", "pretrain.train", *arguments]
    ranks = []
    with open(log, "w") as file:
        for rank in range(size):
            place = {
                "RANK": rank,
                "WORLD_SIZE": size,
                "LOCAL_RANK": rank,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            given = {name: str(value) for name, value in place.items()} if size > 1 else {}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **given}
            ranks.append(subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment))
    return ranks


def _wait(ranks: Sequence[subprocess.Popen], stage: Path, moment: int | None) -> None:
    """Wait until a stage has made a step, or all processes have ended."""
    until = time.monotonic() + _LONGEST
    while any(rank.poll() is None for rank in ranks) and (moment is None or _reached(stage) < moment):
        if time.monotonic() > until:
            raise SettingsError(f"{stage}: step {moment or 'the last'} was not made in {_LONGEST} s")
        time.sleep(_LOOK)


def _reached(stage: Path) -> int:
    """Return the number of steps that the metrics tell of."""
    path = stage / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0
