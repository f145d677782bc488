"""The console: lines, progress, and how a command ends."""

from __future__ import annotations

import functools
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import NoReturn, Protocol, TypeVar

from tqdm import tqdm

from meddap import __version__
from meddap.errors import MeddapError

T = TypeVar("T")
FAILED, INTERRUPTED, UNEXPECTED = 1, 130, 70
_ISSUES = "report it with the lines below, the command and `meddap --version`"


class Main(Protocol):
    """A command: its arguments, or those of the process, to an exit status."""

    def __call__(self, arguments: list[str] | None = None) -> int: ...


def say(line: str) -> None:
    """A line that does not tear the bar."""
    tqdm.write(line, file=sys.stderr)


def fail(line: str) -> int:
    """Print the one line of a command that cannot go on; return its exit status."""
    say(f"error: {line}")
    return FAILED


def command(main: Main) -> Main:
    """Decorate a command's `main(arguments) -> status`: an error of ours becomes its line and status 1."""

    @functools.wraps(main)
    def wrapped(arguments: list[str] | None = None) -> int:
        try:
            return main(arguments)
        except MeddapError as error:
            return fail(str(error))

    return wrapped


def launch(main: Main, arguments: list[str] | None = None) -> NoReturn:
    """Run a command as this process and exit with its status.

    130 after Ctrl-C, in one line; 70 after an error that nobody foresaw, whose traceback follows a line that says where
    to report it.
    """
    try:
        status = main(arguments)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from what is finished")
        status = INTERRUPTED
    except Exception as error:
        say(f"unexpected {type(error).__name__} in meddap {__version__}: {_ISSUES}")
        traceback.print_exc()
        status = UNEXPECTED
    sys.exit(status)


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
