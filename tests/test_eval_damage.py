"""Files that are cut, emptied or overwritten: one line that names the file and the remedy, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import write_dataset
from PIL import Image

from eval import compare, probe, report, sweep

TASK = """
{size: 64, stride: {train: 2, val: 2, test: 2}, draws: 20, pictures: 2, probes: [knn, segmentation, unet],
 drawing: {surfaces: false}, segmentation: {lr: [0.01], epochs: 1}, unet: {lr: [0.01], epochs: 1, channels: 4}}
"""
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "overwritten": lambda content: b"\xff\x00 no such file\n" * 40,
}


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a task and the probes of the pixel baseline."""
    folder = tmp_path_factory.mktemp("probed")
    write_dataset(folder / "data", {"train": 4, "val": 3, "test": 4})
    (folder / "task.yaml").write_text(TASK)
    assert run_probe(folder) == 0
    return folder


@pytest.fixture
def folder(probed: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(probed, tmp_path / "copy"))


def run_probe(folder: Path, *words: str) -> int:
    """Run the probe command again on the same output."""
    common = ["--checkpoint", "pixels", "--task", str(folder / "task.yaml"), "--output", str(folder / "out")]
    return probe.main([*common, f"data={folder / 'data'}", *words])


def run_report(folder: Path) -> int:
    return report.main(["--runs", str(folder / "out"), "--output", str(folder / "page.html")])


def run_compare(folder: Path) -> int:
    return compare.main(["--runs", str(folder / "out"), str(folder / "out")])


def run_sweep(folder: Path) -> int:
    (folder / "sweep").mkdir()
    shutil.copytree(folder / "out", folder / "sweep" / "pixels-64")
    common = ["--checkpoints", "pixels", "--sizes", "64", "--task", str(folder / "task.yaml")]
    return sweep.main([*common, "--output", str(folder / "sweep"), f"data={folder / 'data'}"])


READERS = [
    ("out/results.jsonl", run_report),
    ("out/results.jsonl", run_sweep),
    ("out/predictions.npz", run_report),
    ("out/predictions.npz", run_compare),
    ("out/pictures.npz", run_report),
    ("out/overlays.npz", run_report),
    ("out/cache/features-*/cls.npy", run_probe),
    ("out/cache/features-*/mean.npy", run_probe),
    ("out/cache/features-*/patches.npy", run_probe),
    ("out/cache/examples-*.npz", run_probe),
    ("out/cache/maps-*.npy", run_probe),
    ("out/cache/images-*.npy", run_probe),
    ("data/dataset.json", run_probe),
    ("task.yaml", run_probe),
]


HARMLESS = [("out/results.jsonl", "empty"), ("task.yaml", "empty")]  # no rows; a task of defaults
CASES = [(*reader, damage) for reader in READERS for damage in DAMAGES if (reader[0], damage) not in HARMLESS]


@pytest.mark.parametrize(
    ("file", "read", "damage"), CASES, ids=[f"{name}, {read.__name__}, {damage}" for name, read, damage in CASES]
)
def test_a_damaged_file_is_one_line(file: str, read: Callable[[Path], int], damage: str, folder: Path, capsys) -> None:
    """Whichever command reads it, and however it was damaged."""
    path = next(folder.glob(file))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    capsys.readouterr()
    assert read(folder) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    where = str(path).replace(str(folder / "out"), str(folder / "sweep" / "pixels-64")) if read is run_sweep else path
    assert str(where) in line or str(path.parent) in line


@pytest.mark.parametrize("damage", DAMAGES)
def test_features_whose_record_is_damaged_are_extracted_again(damage: str, folder: Path) -> None:
    """What says how far an extraction came is not needed to begin again; the figures are the same."""
    before = (folder / "out" / "results.jsonl").read_text().replace('"test_opened": 1', '"test_opened": 2')
    path = next(folder.glob("out/cache/features-*/done.json"))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert run_probe(folder) == 0
    assert (folder / "out" / "results.jsonl").read_text() == before


def csv_of_labels(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "labels.csv"
    path.write_text("id,sick\na,0\nb,1\n")
    return path, [f"data={folder / 'data'}", "source=table", f"table.file={path}", "kind=binary", "probes=[knn]"]


def folders_of_images(folder: Path) -> tuple[Path, list[str]]:
    rng = np.random.default_rng(0)
    for number in range(4):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64)).astype(np.uint8)).save(path)
    return path, [f"data={folder / 'images'}", "source=folders", "kind=binary", "probes=[knn]", "split.by=patient"]


def medmnist_file(folder: Path) -> tuple[Path, list[str]]:
    rng, arrays = np.random.default_rng(0), {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (6, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(6)[:, None] % 2
    path = folder / "images.npz"
    np.savez(path, **arrays)
    return path, [f"data={path}", "source=medmnist", "kind=binary", "probes=[knn]"]


def nnunets_description(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "nnunet" / "dataset.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}}))
    return path, [f"data={path.parent}", "source=nnunet"]


SOURCES = [(folders_of_images, damage) for damage in DAMAGES]  # a folder holds whatever images it holds
SOURCES += [
    (source, damage)
    for source in (csv_of_labels, medmnist_file, nnunets_description)
    for damage in (*DAMAGES, "missing", "a folder")
]


@pytest.mark.parametrize(("source", "damage"), SOURCES, ids=[f"{each.__name__}, {how}" for each, how in SOURCES])
def test_a_damaged_source_is_one_line(source: Callable, damage: str, folder: Path, capsys) -> None:
    """A table, an image, a file of arrays, a description."""
    path, words = source(folder)
    if damage in DAMAGES:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    assert run_probe(folder, *words) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(path) in line


def test_a_file_of_ones_own_that_fails_is_one_line(folder: Path, capsys) -> None:
    """Its own error, with the file: the fault is not ours to report."""
    own = folder / "own.py"
    for text, said in (("def build(:\n", "SyntaxError"), ("def build():\n    return 1 / 0\n", "ZeroDivisionError")):
        own.write_text(text)
        common = ["--task", str(folder / "task.yaml"), "--output", str(folder / "new"), f"data={folder / 'data'}"]
        assert probe.main(["--checkpoint", f"{own}:build", *common]) == 1
        assert f"{own}:build: {said}" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(folder: Path, capsys) -> None:
    """A file where the folder should be."""
    (folder / "file").write_text("")
    common = ["--checkpoint", "pixels", "--task", str(folder / "task.yaml"), f"data={folder / 'data'}"]
    assert probe.main([*common, "--output", str(folder / "file" / "out")]) == 1
    assert report.main(["--runs", str(folder / "out"), "--output", str(folder / "file" / "page.html")]) == 1
    outputs = ["--output", str(folder / "file" / "rows.jsonl")]
    assert compare.main(["--runs", str(folder / "out"), str(folder / "out"), *outputs]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(str(folder / "file") in line for line in errors)


SLOW = """
import time
from eval.encoders.pixel_baseline import PixelBaseline

class Slow(PixelBaseline):
    def features(self, images, blocks, present=None):
        open("seen", "a").write(".")
        time.sleep(0.02)
        return super().features(images, blocks, present)
"""


def test_an_interrupted_probe_is_one_line_and_goes_on(folder: Path) -> None:
    """Ctrl-C while features are extracted: status 130; the second start computes only what is left."""
    (folder / "slow.py").write_text(SLOW)
    words = ["--checkpoint", "slow.py:Slow", "--task", "task.yaml", "--output", "slow", "data=data", "batch_size=1"]
    # the patch map reads some slices once more, which is not what is counted here
    words += ["probes=[knn]", "stride={train: 1, val: 1, test: 1}", "patch_map.patients=0"]
    command = [sys.executable, "-m", "eval.probe", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(probe.__file__).parent.parent), *sys.path])}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    seen, end = folder / "seen", time.monotonic() + 60
    while not (seen.is_file() and len(seen.read_text()) > 40):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert [line for line in said.splitlines() if "interrupted" in line]
    first = len(seen.read_text())
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(seen.read_text()) - first <= 66 - 32  # of 66 images the first 32 were recorded before the signal
