"""Files of a data set that are cut, empty or something else: one line that names the file; and Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_prep import generate, identity, merge, overview, schema, shard_ct, verify

ROOT = Path(__file__).resolve().parent.parent
Damage = Callable[[Path], object]


def cut(path: Path) -> None:
    """The second half is missing."""
    payload = path.read_bytes()
    path.write_bytes(payload[: len(payload) // 2])


def another_shape(path: Path) -> None:
    """Well-formed, but not what should be there: a list, rows without their keys, floats."""
    if path.suffix == ".npy":
        np.save(path, np.zeros((3, 2)))
    elif path.suffix == ".jsonl":
        path.write_text('{"status": "accepted"}\n')
    else:
        path.write_text("[1, 2]")


DAMAGES: dict[str, Damage] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "binary": lambda path: path.write_bytes(bytes(range(128, 256)) * 4),
    "another shape": another_shape,
    "missing": lambda path: path.unlink(),
}
INDEX, CONTENT = "train/000000.index.npy", "train/000000.content.npy"


def of_split(root: Path) -> int:
    """Whatever reads shards: 1, and the line on stderr, as a command would."""
    try:
        schema.Split(root, "train").content()
    except schema.SchemaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


# command → how it is started on a data set (or on its parts), and the files that it reads
COMMANDS: dict[str, tuple[Callable[[Path], int], tuple[str, ...]]] = {
    "verify": (
        lambda root: verify.main([str(root)]),
        ("dataset.json", "manifest.jsonl", "histograms.json", INDEX, CONTENT),
    ),
    "overview": (
        lambda root: overview.main([str(root)]),
        ("dataset.json", "manifest.jsonl", "histograms.json", INDEX),
    ),
    "merge": (lambda root: merge.main([str(root.parent)]), ("dataset.json", "manifest.jsonl", "histograms.json")),
    "shard_ct": (
        lambda root: shard_ct.main(["--input", str(root.parent / "in"), "--output", str(root), *SPLIT, "--show-names"]),
        ("dataset.json", "manifest.jsonl", "settings.json"),
    ),
    "split": (of_split, ("dataset.json", INDEX, CONTENT)),
}
SPLIT = ("split.train=1", "split.val=0", "split.test=0")
# nothing is wrong where an older version wrote no digests, or where sharding has not begun or not ended
NORMAL = {("split", CONTENT), ("shard_ct", "settings.json"), ("shard_ct", "dataset.json"), ("merge", "dataset.json")}
CASES = [
    pytest.param(command, file, damage, id=f"{command}-{Path(file).name}-{damage}")
    for command, (_, files) in COMMANDS.items()
    for file in files
    for damage in DAMAGES
    if damage != "missing" or (command, file) not in NORMAL
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients in `in`, their shards in `out`, and the same in two parts in `parts`; to be read only."""
    folder = tmp_path_factory.mktemp("broken")
    generate.generate(folder / "in", generate.GenerateConfig(patients=4, slices=4, size=32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        words = ["--input", str(folder / "in"), *SPLIT]
        assert shard_ct.main([*words, "--output", str(folder / "out")]) == 0
        for part in ("part=1/2", "part=2/2"):
            assert shard_ct.main([*words, "--output", str(folder / "parts"), part]) == 0
    return folder


@pytest.mark.parametrize(("command", "file", "damage"), CASES)
def test_a_broken_file_is_one_line(command: str, file: str, damage: str, whole: Path, tmp_path: Path, capsys) -> None:
    """Exit status 1 and one line with the file's name and what to do; `verify` adds its count of problems."""
    shutil.copytree(whole / "in", tmp_path / "in")
    shutil.copytree(whole / ("parts" if command == "merge" else "out"), tmp_path / "out")
    root = tmp_path / "out" / ("part-001-of-002" if command == "merge" else "")
    for path in tmp_path.glob("in/**/*"):  # a copy must not look like another input
        shutil.copystat(whole / path.relative_to(tmp_path), path)
    DAMAGES[damage](root / file)
    capsys.readouterr()
    assert COMMANDS[command][0](root) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and not any("Traceback" in line for line in lines), lines
    if command == "verify" and file != "dataset.json":
        assert any(Path(file).name in line for line in lines) and lines[-1].endswith("problems, named above")
    else:
        assert len(lines) == 1 and Path(file).name in lines[0] and "; " in lines[0], lines


def wait_for_the_end_of_group(group: int) -> None:
    """Every process of a group ends within seconds; one that nobody has waited for has ended too."""
    ends = time.monotonic() + 20
    alive = [0]
    while alive and time.monotonic() < ends:
        time.sleep(0.05)
        alive = []
        for process in psutil.process_iter(["pid", "status"]):
            with suppress(OSError):
                if os.getpgid(process.info["pid"]) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                    alive.append(process.info["pid"])
    assert not alive


@pytest.mark.parametrize("reaches", ["the whole terminal", "the command alone"])
def test_ctrl_c_is_one_line_and_the_next_start_ends_the_same(reaches: str, tmp_path: Path) -> None:
    """Status 130, no process left; staged records that were damaged since are made again; every byte is equal."""
    generate.generate(tmp_path / "in", generate.GenerateConfig(patients=24, slices=8, size=128))
    words = ["data_prep/shard_ct.py", "--input", str(tmp_path / "in"), "workers=2", "--output"]
    start = [sys.executable, *words, str(tmp_path / "stopped")]
    with subprocess.Popen(start, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        staged = tmp_path / "stopped" / "staging"
        while len(list(staged.glob("[0-9a-f]*.json"))) < 5 and process.poll() is None:
            time.sleep(0.002)
        if reaches == "the whole terminal":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    lines = [line for line in printed.splitlines() if not line.startswith(("left out: ", "patients by "))]
    assert lines == ["interrupted; the same command goes on from what is finished"], printed
    wait_for_the_end_of_group(process.pid)
    records = sorted(staged.glob("[0-9a-f]*.json"))
    assert len(records) >= 5 and not (tmp_path / "stopped" / "dataset.json").exists()
    for path, damage in zip(records, (cut, DAMAGES["empty"], another_shape, DAMAGES["binary"])):
        damage(path)
    for output in ("stopped", "whole"):
        start = [sys.executable, *words, str(tmp_path / output)]
        again = subprocess.run(start, cwd=ROOT, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert ("were staged before" in again.stderr) == (output == "stopped" and len(records) > 4)
    stopped, whole = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "stopped", tmp_path / "whole")
    )
    assert stopped == whole and len(whole) > 6
