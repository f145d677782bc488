"""The console: lines, progress, and how a command ends.

Nothing heavy is imported at the start, so that `meddap --help` answers at once.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import select
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, NoReturn, Protocol, TextIO, TypeVar

from meddap import __version__
from meddap.errors import MeddapError

if TYPE_CHECKING:
    import logging

T = TypeVar("T")
FAILED, UNEXPECTED, INTERRUPTED, PIPE_CLOSED = 1, 70, 130, 141
_REPORT = "please report it with the lines below, the command and the output of `meddap --version`"
_program: str | None = None  # what the user typed to start this process, e.g. "meddap train"


class Main(Protocol):
    """A command: its arguments, or those of the process, to an exit status."""

    def __call__(self, arguments: list[str] | None = None) -> int: ...


def say(line: str) -> None:
    """Print a line to stderr without tearing a progress bar.

    Nobody may read it any more: Ctrl-C ends the `tee` of `meddap train … 2>&1 | tee LOG` first. The work goes on.
    """
    with suppress(OSError):
        _write(line, sys.stderr)


def show(line: str) -> None:
    """Print a line of a command's result to stdout, at once and without tearing a progress bar."""
    _write(line, sys.stdout)
    sys.stdout.flush()


def _write(line: str, stream: IO[str]) -> None:
    bars = sys.modules.get("tqdm")  # where nobody has imported it there is no bar
    if bars is None:
        print(line, file=stream)
    else:
        bars.tqdm.write(line, file=stream)


def log_handler(level: int) -> logging.Handler:
    """Return a handler that says what is logged, from `level` on, as other lines are said."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(self.format(record))

    return Lines(level)


def fail(line: str) -> int:
    """Print the one line of a command that cannot go on; return its exit status."""
    say(f"error: {' '.join(line.splitlines())}")  # a value that it quotes may be of several
    return FAILED


def unexpected(error: Exception) -> int:
    """Print the traceback of an error that nobody foresaw under a line that says where to report it; return 70."""
    say(f"unexpected {type(error).__name__} in meddap {__version__}: {_REPORT}")
    traceback.print_exception(error)
    return UNEXPECTED


def parser(description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of a command, whose usage line starts with what the user typed."""
    return argparse.ArgumentParser(prog=_program, description=description, epilog=epilog)


def started_as(program: str | None) -> None:
    """Set what the user typed, for usage lines; None where that is not known."""
    global _program
    _program = program


def command(main: Main) -> Main:
    """Decorate a command's `main(arguments) -> status`: an error of ours becomes its line and status 1.

    Warnings that a library logs are said as other lines are.
    """

    @functools.wraps(main)
    def wrapped(arguments: list[str] | None = None) -> int:
        import logging

        logging.lastResort = log_handler(logging.WARNING)
        try:
            return main(arguments)
        except MeddapError as error:
            return fail(str(error))

    return wrapped


def launch(main: Main, arguments: list[str] | None = None) -> NoReturn:
    """Run a command as this process and exit with its status.

    70 after an error that nobody foresaw, whose traceback follows a line that says where to report it; 130 after
    Ctrl-C, in one line; 141 without a word where the reader of the output has gone (`meddap report … | head`).
    """
    _mend_streams()
    if _program is None and (program := _typed()):
        started_as(program)
    try:
        status = main(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from what is finished")
        status = INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _close_broken():
            status = PIPE_CLOSED
        else:
            status = unexpected(error)
    _close_broken()  # lines that nobody reads would change the status when they are flushed
    sys.exit(status)


def _mend_streams() -> None:
    """Let every line be written: nowhere if a stream was closed, escaped where the terminal has no such character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _typed() -> str | None:
    """Return how this process was started, as `python -m NAME` or `python FILE.py`; None for an entry point."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else None


def _close_broken() -> bool:
    """Return whether a reader of our output has gone; what is still to be written to it is then dropped."""
    broken = [stream for stream in (sys.stdout, sys.stderr) if _reader_gone(stream)]
    for stream in broken:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(broken)


def _reader_gone(stream: TextIO) -> bool:
    try:
        pipe = select.poll()
        pipe.register(stream.fileno(), 0)
        return bool(pipe.poll(0))
    except OSError:  # not a file of the system, e.g. within a notebook
        return False


def progress(items: Iterable[T], total: int, unit: str, seconds: float = 15.0) -> Iterator[T]:
    """Yield `items` with a bar on a terminal, and with a line every `seconds` in a log."""
    from tqdm import tqdm  # 50 ms that `meddap --help` need not wait for

    said = time.monotonic()
    bar = tqdm(total=total, unit=f" {unit}", disable=not sys.stderr.isatty() or not total)
    with bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.update()
            if bar.disable and time.monotonic() - said > seconds:
                say(f"{done} of {total or 'unknown'} {unit}")
                said = time.monotonic()
