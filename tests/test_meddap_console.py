"""How a command ends: an error of ours, an error of nobody's, Ctrl-C, a closed pipe; and lines beside a bar."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

import meddap
from meddap import console
from meddap.errors import MeddapError

ROOT = Path(__file__).resolve().parent.parent


def ends(error: BaseException | None, capsys: pytest.CaptureFixture) -> tuple[object, str]:
    """Status and stderr of a command that raises `error`."""

    @console.command
    def main(arguments: list[str] | None = None) -> int:
        if error is not None:
            raise error
        return 0

    with pytest.raises(SystemExit) as end:
        console.launch(main, [])
    return end.value.code, capsys.readouterr().err


def test_an_error_of_ours_is_its_line(capsys: pytest.CaptureFixture) -> None:
    """Status 1 and nothing but the line; a command that did its work ends with 0 and says nothing."""
    assert ends(MeddapError("a.yaml: no such key"), capsys) == (1, "error: a.yaml: no such key\n")
    assert ends(None, capsys) == (0, "")


def test_an_error_that_quotes_several_lines_is_one_line(capsys: pytest.CaptureFixture) -> None:
    """A value of a setting may hold line ends; the error that quotes it does not."""
    assert ends(MeddapError("license=a\nb: c\u2028d: no text"), capsys) == (1, "error: license=a b: c d: no text\n")


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture) -> None:
    """Status 130, and what to do next."""
    assert ends(KeyboardInterrupt(), capsys) == (
        130,
        "interrupted; the same command goes on from what is finished\n",
    )


def test_a_signal_ends_a_process_with_one_line() -> None:
    """A real SIGINT, also while modules are still being imported by `meddap`."""
    code = (
        "import sys, time, types; from meddap import cli, console\n"
        "cli.TABLE['train'] = cli.Command('slow', '')\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'slow': print('importing', flush=True); time.sleep(60)\n"
        "sys.meta_path.insert(0, Finder()); console.launch(cli.main, ['train'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.splitlines() == [
        "interrupted; the same command goes on from what is finished"
    ]


def test_what_nobody_foresaw_says_where_to_report_it(capsys: pytest.CaptureFixture) -> None:
    """Status 70; the version and what to send stand above the traceback."""
    status, error = ends(ZeroDivisionError("by zero"), capsys)
    first, second, *_, last = error.splitlines()
    assert status == 70 and first.startswith(f"unexpected ZeroDivisionError in meddap {meddap.__version__}: ")
    assert "report it with the lines below" in first and "`meddap --version`" in first
    assert second.startswith("Traceback") and last == "ZeroDivisionError: by zero"


@pytest.mark.parametrize("status", [2, "no"])
def test_a_command_may_exit_itself(status: object, capsys: pytest.CaptureFixture) -> None:
    """As argparse does with 2: the status passes through, without a line of ours."""
    assert ends(SystemExit(status), capsys) == (status, "")


def test_a_closed_pipe_is_quiet() -> None:
    """`meddap report … | head`: neither a traceback nor a warning; status 141, as of other programs."""
    code = (
        "from meddap import console\nconsole.launch(lambda _=None: [console.show('x' * 80) for _ in range(9999)] and 0)"
    )
    for write in ("console.show", "print"):  # the latter only notices when the process flushes
        with subprocess.Popen(
            [sys.executable, "-c", code.replace("console.show", write)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            process.stdout.close()
            assert process.wait(60) == 141 and process.stderr.read() == b""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_nowhere(closed: str) -> None:
    """As a service manager starts a process: lines and bars go nowhere, the work is done."""
    code = (
        "from meddap import console as c; c.launch(lambda _: [c.say('a'), c.show('b'), *c.progress('x', 1, 'y')] and 0)"
    )
    assert subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_character_that_a_terminal_lacks_is_escaped(encoding: str) -> None:
    """An old locale, or a file name that is not UTF-8: the line is there, and no traceback."""
    code = "from meddap import console as c; c.launch(lambda _: c.show('lr 0 \\u2192 1 \\udcff') or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True
    )
    arrow = "\u2192".encode(encoding, "backslashreplace")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"lr 0 " + arrow + b" 1 \\udcff\n", b"")


def test_a_pipe_of_somebody_else_is_an_error(capsys: pytest.CaptureFixture) -> None:
    """A worker's pipe that breaks is not a reader of ours that has gone."""
    status, error = ends(BrokenPipeError("a worker's"), capsys)
    assert status == 70 and error.startswith("unexpected BrokenPipeError")


def test_a_line_does_not_tear_the_bar(capsys: pytest.CaptureFixture) -> None:
    """What is said, shown or logged while a bar stands gets a line of its own, and the bar is drawn again."""

    def warns(arguments: list[str] | None = None) -> int:
        logger = logging.Logger("library")  # without handlers, whatever pytest has installed
        logger.warning("logged")
        return 0

    with tqdm(total=3, file=sys.stderr) as bar:
        bar.update()
        console.say("said")
        console.show("shown")
        console.fail("failed")
        console.command(warns)([])
    out, error = capsys.readouterr()
    assert out == "shown\n"
    lines = [line.rpartition("\r")[2] for line in error.split("\n")]
    assert {"said", "error: failed", "logged"} <= set(lines) and error.count("1/3") > 1
