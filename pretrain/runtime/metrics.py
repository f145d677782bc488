"""What a run reports about itself: `metrics.jsonl`, TensorBoard and a line on the console.

A row of `metrics.jsonl` is one step. Everything but what the clock says (`TIMING`) is a function of configuration, data
and seed, so that the rows of a resumed run equal those of an undisturbed one; on another number of processes to the
rounding of sums.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from meddap import console
from meddap.errors import MeddapError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TIMING = ("images_per_s", "wait_share", "memory_gb", "ranks")


class MetricsError(MeddapError, ValueError):
    """Metrics that cannot be read or written; one line that names the file and says what to do."""


class Metrics:
    """Writes the rows of one stage from step `start` on; rows at or after `start` are dropped first.

    folder  None: this rank writes nothing
    """

    def __init__(
        self, folder: Path | None, *, stage: str, start: int, steps: int, log_every: int, tensorboard: bool
    ) -> None:
        self.stage, self.steps, self.log_every, self.silent = stage, steps, log_every, folder is None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        _truncate(self.path, start)
        self._file = open(self.path, "a")  # noqa: SIM115 closed by `close`
        self._board = _board(folder, start) if tensorboard else None
        # a terminal keeps one moving line, a log gets a line every so often
        self._moving = tqdm(bar_format="{desc}", file=sys.stderr, disable=not sys.stderr.isatty())
        self._began, self._first = time.monotonic(), start

    def write(self, row: dict) -> None:
        """Append a row (`step` counts from 0) and show it."""
        if self.silent:
            return
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise MetricsError(f"{self.path}: {error.strerror}; make room and start again to go on") from error
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{self.stage}/{name}", value, row["step"])
        self._show(row)

    def close(self) -> None:
        if self.silent:
            return
        self._moving.close()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _show(self, row: dict) -> None:
        done, last = row["step"] + 1, row["step"] + 1 == self.steps
        if self._moving.disable and not (
            last or done == self._first + 1 or done % self.log_every == 0 or "knn/auroc" in row
        ):
            return
        elapsed = time.monotonic() - self._began
        left = elapsed / (done - self._first) * (self.steps - done)
        terms = " ".join(
            f"{name[5:]} {row[name]:.3f}" for name in row if name.startswith("loss/") and name != "loss/total"
        )
        known = f"  kNN {row['knn/auroc']:.3f}" if "knn/auroc" in row else ""
        line = (
            f"{self.stage} {done}/{self.steps}  loss {row['loss/total']:.4f} ({terms})  lr {row['lr']:.1e}  "
            f"{row['images_per_s']:.1f} img/s  waiting {row['wait_share']:.0%}  left {_clock(left)}{known}"
        )
        if self._moving.disable:
            console.say(line)
        else:
            self._moving.set_description_str(line)


def read(path: Path) -> list[dict]:
    """Return the rows of a `metrics.jsonl`, [] where there is none; a last line cut by a kill is left out.

    Raises MetricsError for any other line that is not a row.
    """
    if not path.is_file():
        return []
    rows = []
    # what follows the last newline was never finished
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise MetricsError(f"{path}: line {number} is not a row of metrics; delete the line, or the file")
        rows.append(row)
    return rows


def _truncate(path: Path, start: int) -> None:
    rows = [row for row in read(path) if row["step"] < start]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, path)


def _board(folder: Path, start: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    target = folder / "tensorboard"
    try:
        return SummaryWriter(str(target), purge_step=start)
    except OSError as error:
        reason = f"{target}: cannot be written ({error.strerror})"
        raise MetricsError(f"{reason}; make it writable, or set machine.tensorboard=false") from error


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


# by name in the metrics: over how many steps it must hold, what is bad, and the likely cause
_Sign = tuple[int, Callable[[float], bool], str]
_SIGNS: dict[str, _Sign] = {
    "lr": (
        100,
        lambda value: value == 0,
        "the learning rate is 0 and nothing is learned. A warm-up or cosine that ends above 0 (stages.*.optim.lr), or "
        "fewer steps",
    ),
    "monitor/target_entropy": (
        200,
        lambda value: value > 0.995,
        "the teacher's targets stay uniform: the head has not left its start. Fewer prototypes, unit_norm_rows=true, "
        "more body in the crops (crops.min_body), or a larger learning rate",
    ),
    "monitor/feature_spread": (
        200,
        lambda value: value < 0.05,
        "all images have the same features: collapsed. A higher teacher momentum, a lower learning rate, or a lower "
        "teacher_temp at the start",
    ),
    "monitor/feature_rank": (
        200,
        lambda value: value < 0.02,
        "features lie along a few directions only. A larger loss.koleo, or a larger batch",
    ),
}


# of one of several sources, by the end of its metrics' names
_SIGNS_OF_SOURCES: dict[str, _Sign] = {
    f"/{what}_spread": (
        200,
        lambda value: value < 0.05,
        f"all {images} of this source have the same features: its share may be too small for its kind, or, in CT, its "
        "window shows nothing. A larger weight, or another window",
    )
    for what, images in (("cls", "images"), ("patch", "patches"))
}


class CollapseMonitor:
    """Looks for a run that learns nothing or collapses; each sign is reported once, with its likely cause."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[bool]] = {}
        self._reported: set[str] = set()

    def update(self, row: dict) -> list[str]:
        """Add a row of the metrics; return the warnings that it completes."""
        lines = []
        for name, (steps, bad, cause) in _signs(row):
            seen = self._seen.setdefault(name, deque(maxlen=steps))
            seen.append(bad(row[name]))
            if name not in self._reported and len(seen) == steps and all(seen):
                self._reported.add(name)
                lines.append(f"step {row['step']}: {name.removeprefix('monitor/')} {row[name]:.3f}: {cause}")
        return lines


def _signs(row: dict) -> Iterator[tuple[str, _Sign]]:
    """Yield the names in a row that may show a collapse, and how."""
    yield from ((name, sign) for name, sign in _SIGNS.items() if name in row)
    for name in row:
        if name.startswith("source/"):
            yield from ((name, sign) for end, sign in _SIGNS_OF_SOURCES.items() if name.endswith(end))
