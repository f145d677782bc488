"""Lines and progress on the console."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def say(line: str) -> None:
    """A line that does not tear the bar."""
    tqdm.write(line, file=sys.stderr)


def fail(line: str) -> int:
    """The one line of a command that cannot go on; its exit status."""
    print(f"error: {line}", file=sys.stderr)
    return 1


def progress(items: Iterable[T], total: int, unit: str, seconds: float = 15.0) -> Iterator[T]:
    """`items` with a bar on a terminal, a line every `seconds` in a log."""
    told = time.monotonic()
    bar = tqdm(total=total, unit=f" {unit}", disable=not sys.stderr.isatty() or not total)
    with bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.update()
            if bar.disable and time.monotonic() - told > seconds:
                say(f"{done} of {total or 'unknown'} {unit}")
                told = time.monotonic()
