"""The one command: its table, its help, and that each sub-command is the module's own command."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import meddap
from meddap import cli, console

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "numpy", "pydicom", "nibabel", "omegaconf", "yaml", "tqdm", "data_prep", "pretrain", "eval", "slurm"}


def run(*words: str, **more) -> subprocess.CompletedProcess:
    """A Python process in the repository's folder."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, **more)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Usage lines wrap alike, whatever the program is called, and what a test sets is gone after it."""
    monkeypatch.setenv("COLUMNS", "1000")
    yield
    console.started_as(None)


def test_help_fits_a_screen_and_names_every_command(capsys: pytest.CaptureFixture) -> None:
    """24 lines of 80 columns, status 0; the groups stand along the road, from images to a report."""
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    named = [line.split()[0] for line in lines if line.startswith("  ")]
    assert named == list(cli.TABLE) and named.index("shard-ct") < named.index("train") < named.index("report")
    assert [line for line in lines[1:] if line and line[0] != " "] == list(cli.COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    """Neither PyTorch nor pydicom, nor any package of ours: `meddap --help` answers at once."""
    code = "import sys; from meddap import cli; cli.main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = run("-c", code)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert done.returncode == 0 and "meddap" in loaded and not loaded & HEAVY


def test_what_is_no_command_is_one_line(capsys: pytest.CaptureFixture) -> None:
    """Nothing at all prints the help and fails; a misspelt command names the nearest; --version is the package's."""
    assert cli.main([]) == 2
    assert capsys.readouterr() == ("", cli.usage() + "\n")
    assert cli.main(["trian", "--config", "x"]) == 2
    out, error = capsys.readouterr()
    assert not out and error == "error: trian: unknown command; did you mean train? `meddap --help` lists all\n"
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"meddap {meddap.__version__}\n"


def printed(main: console.Main, words: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    """How a command ends, and what it prints, white space aside."""
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    out, error = capsys.readouterr()
    return status, " ".join(out.split()), " ".join(error.split())


@pytest.mark.parametrize("name", cli.TABLE)
def test_a_command_is_its_module(name: str, capsys: pytest.CaptureFixture) -> None:
    """`meddap NAME` has the help, the refusal of an unknown option and the status of `python -m MODULE`."""
    module = cli.TABLE[name].module
    main = pkgutil.resolve_name(f"{module}:main")
    for words in (["--help"], ["--nonsense"]):
        console.started_as(f"python -m {module}")
        status, out, error = printed(main, words, capsys)
        assert status == (0 if words == ["--help"] else 2)
        assert (out or error).startswith(f"usage: python -m {module} ")
        expected = [text.replace(f"python -m {module}", f"meddap {name}") for text in (out, error)]
        assert printed(cli.main, [name, *words], capsys) == (status, *expected)


@pytest.mark.parametrize("name", cli.TABLE)
def test_a_commands_help_fits_a_screen(name: str, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    """30 lines of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert not end.value.code and lines[0].startswith(f"usage: meddap {name} ")
    assert len(lines) <= 30 and max(map(len, lines)) <= 100


# a command line that each refuses for what it finds, FOLDER being an empty folder
REFUSED = {
    "generate": ["--output", "FOLDER", "patients=none"],
    "shard-ct": ["--input", "FOLDER/none", "--output", "FOLDER/out"],
    "shard-mri": ["--input", "FOLDER", "--output", "FOLDER/out", "min_slcies=1"],
    "shard-images": ["--input", "FOLDER", "--output", "FOLDER/out", "min_slcies=1"],
    "merge": ["FOLDER"],
    "verify": ["FOLDER"],
    "overview": ["FOLDER"],
    "curate": ["--data", "FOLDER/none", "--output", "FOLDER/out"],
    "plan": ["FOLDER/none.yaml"],
    "train": ["--config", "FOLDER/none.yaml"],
    "export": ["--checkpoint", "FOLDER", "--format", "onnx", "--output", "FOLDER/out.onnx"],
    "probe": ["--checkpoint", "FOLDER", "--task", "FOLDER/none.yaml", "--output", "FOLDER/out"],
    "choose": ["--run", "FOLDER", "--task", "FOLDER/none.yaml"],
    "compare": ["--runs", "FOLDER", "FOLDER"],
    "embed": ["--checkpoint", "pixels", "--data", "FOLDER/none", "--output", "FOLDER/out.npz"],
    "predict": ["--checkpoint", "pixels", "--head", "FOLDER", "--data", "FOLDER", "--output", "FOLDER/out"],
    "sweep": ["--checkpoints", "FOLDER", "--sizes", "32", "--task", "FOLDER/none.yaml", "--output", "FOLDER/out"],
    "report": ["--runs", "FOLDER/none", "--output", "FOLDER/out.html"],
    "submit": ["FOLDER/none.yaml"],
}


@pytest.mark.parametrize("name", cli.TABLE)
def test_a_command_fails_as_its_module_does(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The same one line on stderr and the same status 1."""
    words = [word.replace("FOLDER", str(tmp_path)) for word in REFUSED[name]]
    status, out, error = printed(cli.main, [name, *words], capsys)
    assert status == 1 and error.startswith("error: ") and not out
    assert printed(pkgutil.resolve_name(f"{cli.TABLE[name].module}:main"), words, capsys) == (status, out, error)


def test_as_processes_they_do_the_same_work(tmp_path: Path) -> None:
    """`python -m meddap generate` writes the bytes of `python -m data_prep.generate`; an error is one line of both."""
    for folder, words in (("one", ["meddap", "generate"]), ("other", ["data_prep.generate"])):
        command = ["-m", *words, "--output", str(tmp_path / folder), "patients=2", "slices=3", "size=32"]
        assert run(*command).returncode == 0
    one, other = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.*")}
        for folder in ("one", "other")
    )
    assert one == other and len(one) > 4
    lost = [run("-m", *words, str(tmp_path)) for words in (["meddap", "merge"], ["data_prep.merge"])]
    assert lost[0].returncode == lost[1].returncode == 1 and lost[0].stderr == lost[1].stderr
    assert len(lost[0].stderr.splitlines()) == 1
    assert run("-m", "meddap", "merge").stderr.startswith("usage: meddap merge ")
    assert run("-m", "data_prep.merge").stderr.startswith("usage: python -m data_prep.merge ")


def test_a_tab_completes_commands_and_then_files(tmp_path: Path) -> None:
    """With argcomplete: names of commands first, files of the folder behind one."""
    pytest.importorskip("argcomplete")
    (tmp_path / "mine.yaml").touch()

    def completed(line: str) -> list[str]:
        asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
        asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "meddap"], cwd=tmp_path, env={**os.environ, **asked}, check=True)
        return (tmp_path / "answer").read_text().split()

    assert completed("meddap sh") == ["shard-ct", "shard-mri", "shard-images"]
    assert completed("meddap tra") == ["train"]
    assert completed("meddap train mi") == ["mine.yaml"]
