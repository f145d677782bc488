"""How fast images become shards, as ratios taken in one run on the same images.

    python benchmarks/prep.py [--input DIR] [--patients 48] [--slices 100] [--rounds 3] [--folder DIR]

One CT volume (the first below --input, else a synthetic one of 512 × 512 pixels) is written as uncompressed DICOM of
all patients, and as JPEG 2000 DICOM and .nii.gz of a sixth of them; the plain loop reads a twelfth. Arms take turns;
a rate is slices by seconds from the start of the command to its end, the median of the rounds. Files are in the page
cache.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import pydicom
import webdataset
from PIL import Image
from pydicom.uid import JPEG2000Lossless

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep import generate, schema
from data_prep.config import CtConfig
from data_prep.dicom.series_reader import read_series
from data_prep.discovery import archive
from data_prep.discovery.inputs import Inputs
from data_prep.sharding import convert_ct
from data_prep.sharding import run as sharding
from data_prep.synthetic import phantom
from data_prep.volumes import images, slicing
from data_prep.volumes.volume import RejectedSeries, Volume
from data_prep.workers import Workers
from meddap import console
from meddap.settings import SettingsError

KINDS = {"uncompressed DICOM": "raw", "JPEG 2000 DICOM": "j2k", ".nii.gz": "nii"}


class Here:
    """Stands in for the pool of workers: does the work in this process."""

    @staticmethod
    def map(work: Callable, jobs: Iterator) -> Iterator[tuple]:
        """(job, result) for every job."""
        return ((job, work(job)) for job in jobs)


HERE = cast(Workers, Here())


def volume(folder: Path | None, count: int) -> np.ndarray:
    """(count, H, W) int16 HU of the first CT below `folder`, its slices repeated, or of a synthetic patient."""
    if folder is None:
        return np.rint(phantom.make(np.random.default_rng(0), count, 512).hu).astype(np.int16)
    for source in archive.discover(Inputs.of([folder]), [], CtConfig(), "CT", HERE).sources:
        series = source.series[0]
        paths = [str(folder / name) for name in series.files]
        first = next(read_series(paths, "CT", CtConfig())) if series.dicom else images.read_ct(paths[0], CtConfig())
        if not isinstance(first, RejectedSeries):
            voxels = (first[0] if isinstance(first, tuple) else first).voxels
            return np.ascontiguousarray(voxels[np.arange(count) % len(voxels)])
    raise SettingsError(f"{folder}: holds no CT; name another --input")


def write(root: Path, hu: np.ndarray, patients: int) -> None:
    """The three kinds of input."""
    spacing = (2.0, 0.8, 0.8)
    made = phantom.Phantom(hu=np.maximum(hu, -1024), labels=np.zeros((1, 1, 1), np.uint8), spacing=spacing)
    for number in range(patients):
        few = number < max(patients // 6, 1)
        raw = root / "raw" / f"p{number}"
        generate.write_patient(raw, made, f"p{number}", np.random.default_rng(number))
        (raw / "seg.nii.gz").unlink()
        if not few:
            continue
        (root / "j2k" / f"p{number}").mkdir(parents=True)
        for path in raw.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.compress(JPEG2000Lossless)
            dataset.save_as(root / "j2k" / f"p{number}" / path.name)
        folder = root / "nii" / f"p{number}"
        folder.mkdir(parents=True)
        image = nibabel.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-spacing[2], -spacing[1], spacing[0], 1]))
        nibabel.save(image, folder / "ct.nii.gz")


def ours(source: Path, workers: int) -> None:
    """The sharding command, from the folder to dataset.json."""
    with tempfile.TemporaryDirectory(dir=source.parent) as out:
        sharding.run(
            sharding.Request(
                inputs=[source],
                output=Path(out) / "out",
                masks=[],
                modality="CT",
                convert=convert_ct.convert,
                config=CtConfig(workers=workers),
                salt=b"benchmark",
            )
        )


def plain(source: Path, patients: int) -> None:
    """A plain loop without MedDAP, for the first patients: read, HU, 16-bit PNG, ShardWriter."""
    with (
        tempfile.TemporaryDirectory(dir=source.parent) as out,
        webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=1000, verbose=0) as sink,
    ):
        for folder in sorted(source.iterdir())[:patients]:
            for place, hu in enumerate(_plain_slices(folder)):
                memory = io.BytesIO()
                Image.fromarray((hu + 1024).clip(0, 65535).astype(np.uint16)).save(memory, "PNG")
                sink.write(
                    {"__key__": f"{folder.name}-{place:05d}", "png": memory.getvalue(), "json": {"place": place}}
                )


def _plain_slices(folder: Path) -> Iterator[np.ndarray]:
    files = list(folder.iterdir())
    if files[0].suffix == ".gz":
        values = np.asarray(nibabel.Nifti1Image.from_filename(files[0]).dataobj)
        yield from (values[:, :, place].T.astype(np.int32) for place in range(values.shape[2]))
        return
    headers = sorted(
        files, key=lambda path: float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])
    )
    for path in headers:
        dataset = pydicom.dcmread(path)
        yield dataset.pixel_array.astype(np.int32) * int(dataset.RescaleSlope) + int(dataset.RescaleIntercept)


def reading(source: Path) -> None:
    """Read and decode only: every volume, nothing written."""
    for each in archive.discover(Inputs.of([source]), [], CtConfig(), "CT", HERE).sources:
        series = each.series[0]
        paths = [str(source / name) for name in series.files]
        if series.dicom:
            for found in read_series(paths, "CT", CtConfig()):
                assert not isinstance(found, RejectedSeries), found
        else:
            images.read_ct(paths[0], CtConfig())


def encoding(samples: list[schema.Slice]) -> None:
    """The codec only: slices in memory become members of a tar."""
    for sample in samples:
        b"".join(schema.tar_block(name, payload) for name, payload in schema.encode(sample))


def slices(hu: np.ndarray) -> list[schema.Slice]:
    """Slices as sharding makes them."""
    affine = np.diag([-0.8, -0.8, 2.0, 1.0])
    channel = slicing.Channel("ct", hu, -500)
    return list(
        slicing.axial(
            Volume(hu, affine),
            [channel],
            None,
            slicing.SliceOwner("0" * 32, "1" * 32),
            min_foreground=0,
            grid=CtConfig().grid,
            counts=slicing.SliceCounts(),
            labels={},
        )
    )


def measure(arms: dict[str, tuple[Callable[[], None], int]], rounds: int) -> dict[str, float]:
    """Slices a second of every arm: arms take turns, the median of the rounds."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, (work, count) in arms.items():
            began = time.perf_counter()
            work()
            rates[name].append(count / (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in rates.items()}


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Print the rates and the ratios that are promised; return the exit status."""
    parser = console.parser("How fast images become shards.")
    parser.add_argument("--input", type=Path, metavar="DIR", help="folder with a CT; else a synthetic one is made")
    parser.add_argument("--patients", type=int, default=48)
    parser.add_argument("--slices", type=int, default=100, help="of each patient")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to write; the system's temporary folder")
    options = parser.parse_args(arguments)
    hu = volume(options.input, options.slices)
    samples = slices(hu)
    size = sum(len(payload) for sample in samples for _, payload in schema.encode(sample)) / len(samples)
    print(f"{options.patients} patients of {options.slices} slices, {hu.shape[1]} × {hu.shape[2]} pixels; ", end="")
    print(f"a slice is {hu[0].nbytes / 1e3:.0f} kB of pixels and {size / 1e3:.0f} kB in a shard")
    root = Path(tempfile.mkdtemp(prefix="bench-prep-", dir=options.folder))
    try:
        write(root, hu, options.patients)
        alone = max(options.patients // 12, 1)
        arms: dict[str, tuple[Callable[[], None], int]] = {"encode only": (lambda: encoding(samples), len(samples))}
        for kind, folder in KINDS.items():
            total = len(list((root / folder).iterdir())) * options.slices
            arms[f"{kind}: read and decode only"] = (partial(reading, root / folder), total)
            arms[f"{kind}: MedDAP, 1 worker"] = (partial(ours, root / folder, 1), total)
            arms[f"{kind}: plain loop"] = (partial(plain, root / folder, alone), alone * options.slices)
        everything = options.patients * options.slices
        arms["uncompressed DICOM: MedDAP, 2 workers"] = (lambda: ours(root / "raw", 2), everything)
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            rates = measure(arms, options.rounds)
    finally:
        shutil.rmtree(root)
    print("\nslices a second")
    for name, rate in rates.items():
        print(f"  {name:<45}{rate:8.0f}")
    report(rates)
    return 0


def report(rates: dict[str, float]) -> None:
    """The promised ratios."""
    one = "{}: MedDAP, 1 worker"
    raw, nii, j2k = (rates[one.format(kind)] for kind in ("uncompressed DICOM", ".nii.gz", "JPEG 2000 DICOM"))
    limit = 1 / (1 / rates["encode only"] + 1 / rates["uncompressed DICOM: read and decode only"])
    rows = [
        ("uncompressed DICOM by encode only", raw / rates["encode only"], "≥ 0.6"),
        ("uncompressed DICOM by read + encode, one after the other", raw / limit, ""),
        ("uncompressed DICOM by plain loop", raw / rates["uncompressed DICOM: plain loop"], "≥ 4"),
        (".nii.gz by plain loop", nii / rates[".nii.gz: plain loop"], "≥ 2"),
        ("JPEG 2000 DICOM by plain loop", j2k / rates["JPEG 2000 DICOM: plain loop"], ""),
        ("two workers by one", rates["uncompressed DICOM: MedDAP, 2 workers"] / raw, "≥ 1.7"),
    ]
    print("\nratios" + " " * 57 + "wanted")
    for name, ratio, wanted in rows:
        print(f"  {name:<57}{ratio:6.2f}  {wanted}")


if __name__ == "__main__":
    console.launch(main)
