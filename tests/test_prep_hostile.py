"""Broken and hostile inputs: no crash, no hang, no memory beyond the bound, every one accounted for."""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from helpers import dicom_files, peaks
from pydicom.uid import JPEG2000Lossless, RLELossless

from data_prep import schema, verify
from data_prep.workers import Workers


def flip_bits(payload: bytearray, draws: random.Random) -> bytes:
    """One to sixty-four bits anywhere."""
    for _ in range(2 ** draws.randrange(7)):
        payload[draws.randrange(len(payload))] ^= 1 << draws.randrange(8)
    return bytes(payload)


def flip_head(payload: bytearray, draws: random.Random) -> bytes:
    """Bits of the header only."""
    for _ in range(2 ** draws.randrange(5)):
        payload[draws.randrange(min(len(payload), 1200))] ^= 1 << draws.randrange(8)
    return bytes(payload)


def truncate(payload: bytearray, draws: random.Random) -> bytes:
    """The end is missing."""
    return bytes(payload[: draws.randrange(len(payload))])


def wrong_length(payload: bytearray, draws: random.Random) -> bytes:
    """Two or four bytes become a huge, a zero or a random number."""
    at = draws.randrange(len(payload) - 4)
    number = draws.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, draws.getrandbits(32)])
    payload[at : at + 4] = struct.pack("<I", number)
    return bytes(payload)


def repeat(payload: bytearray, draws: random.Random) -> bytes:
    """A stretch comes twice, or a stretch is gone."""
    first, last = sorted(draws.randrange(len(payload)) for _ in range(2))
    return bytes(payload[:last] + payload[first:] if draws.random() < 0.5 else payload[:first] + payload[last:])


def noise(payload: bytearray, draws: random.Random) -> bytes:
    """A stretch is random."""
    at = draws.randrange(len(payload))
    stretch = draws.randbytes(draws.randrange(1, 400))
    payload[at : at + len(stretch)] = stretch
    return bytes(payload)


MUTATIONS: list[Callable[[bytearray, random.Random], bytes]] = [
    flip_bits,
    flip_head,
    truncate,
    wrong_length,
    repeat,
    noise,
]


def seeds(folder: Path, number: int) -> dict[str, bytes]:
    """Whole files of every kind, their identifiers of this number."""
    rng = np.random.default_rng(number)
    plane = (rng.integers(0, 60, (48, 48)) + 20).astype(np.int16)
    plane[:3] = -1000
    uid = {"SeriesInstanceUID": f"1.2.{number}", "PatientID": f"p{number}"}
    (classic,) = dicom_files.series(folder / "classic", plane[None], **uid)
    found = {"dcm": classic.read_bytes()}
    for name, syntax in (("j2k", JPEG2000Lossless), ("rle", RLELossless)):
        dataset = pydicom.dcmread(classic)
        dataset.compress(syntax)
        dataset.save_as(folder / name)
        found[f"{name}.dcm"] = (folder / name).read_bytes()
    positions = [(0, 0, 3.0 * place) for place in range(3)]
    found["enhanced.dcm"] = dicom_files.enhanced(folder / "e", np.stack([plane] * 3), positions, **uid).read_bytes()
    image = nibabel.Nifti1Image(np.stack([plane] * 3, axis=-1), np.diag([2.0, 2, 3, 1])).to_bytes()
    return found | {"nii": image, "nii.gz": gzip.compress(image, 1)}


def hostile(folder: Path) -> None:
    """Files that ask for more than any machine has, or nest without end."""
    folder.mkdir(parents=True)

    def crafted(name: str, **attributes: object) -> None:
        (path,) = dicom_files.series(folder / "tmp", np.zeros((1, 8, 8), np.int16), SeriesInstanceUID=f"1.9.{name}")
        dataset = pydicom.dcmread(path)
        dicom_files.put(dataset, attributes)
        dataset.save_as(folder / f"{name}.dcm")
        path.unlink()

    crafted("huge", Rows=65535, Columns=65535)
    crafted("frames", Rows=65535, Columns=65535, NumberOfFrames=2**31 - 1)
    crafted("zero", Rows=0, Columns=0)
    crafted("bits", BitsAllocated=1, BitsStored=1, HighBit=0)
    crafted("wide", BitsAllocated=64, BitsStored=64, HighBit=63)
    crafted("position", ImagePositionPatient=["1e30", "-1e30", "1e300"])
    crafted("slope", RescaleSlope="1e300", RescaleIntercept="-1e300")
    crafted("spacing", PixelSpacing=["1e-30", "1e30"])
    item = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    (path,) = dicom_files.series(folder / "tmp", np.zeros((1, 8, 8), np.int16))
    head = path.read_bytes()[: 132 + 12 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength]
    path.unlink()
    (folder / "tmp").rmdir()
    (folder / "opened.dcm").write_bytes(head + item * 20_000)  # sequences opened and never closed
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    (folder / "nested.dcm").write_bytes(head + item * 400 + closing * 400)
    (folder / "deeper.dcm").write_bytes(head + item * 20_000 + closing * 20_000)
    for name, shape in (
        ("cube", (32767, 32767, 32767)),
        ("flat", (1, 1, 1)),
        ("none", (0, 5, 5)),
        ("minus", (-3, 5, 5)),
    ):
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.int16)
        raw = bytearray(header.binaryblock + bytes(4))
        raw[40:56] = struct.pack("<8h", 3, *shape, 1, 1, 1, 1)
        (folder / f"{name}_ct.nii").write_bytes(raw + bytes(500))
        (folder / f"{name}_ct.nii.gz").write_bytes(gzip.compress(bytes(raw) + bytes(500)))
    bomb = nibabel.Nifti1Header()
    bomb.set_data_dtype(np.float64)
    bomb.set_data_shape((3000, 3000, 3000))
    # 200 MB of zeros in 200 kB: the grid is refused before they are unpacked
    (folder / "bomb_ct.nii.gz").write_bytes(gzip.compress(bomb.binaryblock + bytes(4) + bytes(200_000_000), 1))
    (folder / "text.nrrd").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 99999 99999 99999\nencoding: raw\n\n"
    )
    (folder / "far.nhdr").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: /etc/passwd\n"
    )


@pytest.mark.parametrize("count", [1000, pytest.param(30_000, marks=pytest.mark.stress)])
def test_mutated_inputs_are_all_accounted_for(count: int, tmp_path: Path) -> None:
    """Bit flips, truncations, wrong lengths, hostile sizes: the run ends well, every input has a row."""
    draws, source = random.Random(count), tmp_path / "in"
    hostile(source / "hostile")
    written = len(list((source / "hostile").iterdir()))
    number = 0
    while written < count:
        for kind, payload in seeds(tmp_path / "seeds", number).items():
            for mutate in draws.sample(MUTATIONS, 3):
                folder = source / f"{number % 50:02d}" / f"{written:05d}"
                folder.mkdir(parents=True)
                (folder / f"ct.{kind}").write_bytes(mutate(bytearray(payload), draws))
                written += 1
        number += 1
    words = ("workers=2", "min_slices=1", "limits.minutes=0.5", "limits.volume_gb=0.5", "samples_per_shard=100")
    printed, peak, _ = peaks.run("shard_ct.py", source, tmp_path / "out", *words, limit_s=240 + count / 20)
    assert "Traceback" not in printed and "unexpected error" not in printed, printed
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    ignored = 0  # every file is named as an image
    assert f"{ignored} other files ignored" in printed
    sources = {row["source"]: row["files"] for row in rows}
    assert sum(sources.values()) == written
    assert 0 < sum(row["status"] == "accepted" for row in rows) < written / 2
    assert all(len(row["reason"]) < 200 for row in rows if row["status"] == "rejected")
    assert peak.largest < 3 * 500 + 300, peak.largest
    assert verify.main([str(tmp_path / "out"), "workers=2"]) == 0


def strain(how: str) -> str:
    """What a hostile input might do to its process."""
    if how == "hang":
        time.sleep(600)
    if how == "crash":
        os.abort()
    if how == "eat":
        return f"{len(bytearray(20_000_000_000))} bytes"
    return how


def test_a_process_that_hangs_crashes_or_eats_memory_costs_only_its_own_job() -> None:
    """The others' results come, in order; the lost ones say what happened."""
    jobs = ["one", "hang", "two", "crash", "three", "four"]
    with Workers(2, seconds=3, volume_gb=0.5) as workers:
        found = [(job, result) for job, result in workers.map(strain, jobs)]
    assert [job for job, _ in found] == jobs
    told = {job: str(result) for job, result in found}
    assert all(told[job] == job for job in ("one", "two", "three", "four"))
    assert told["hang"] == "took longer than 0.05 minutes (limits.minutes)"
    assert told["crash"] == "the process that read it was killed or crashed"
    with pytest.raises(MemoryError), Workers(1, seconds=30, volume_gb=0.5) as workers:
        list(workers.map(strain, ["eat"]))


@pytest.mark.parametrize("kind", ["dicom", "nii.gz", "mri"])
def test_memory_stays_within_three_volumes(kind: str, tmp_path: Path) -> None:
    """A worker's peak stays under three times its largest volume in int16 plus 300 MB, over several inputs."""
    shape = (400, 400, 350) if kind != "mri" else (300, 300, 200)
    rng = np.random.default_rng(0)
    voxels = np.full(shape[::-1], -1000, np.int16)
    inside = voxels[:, 50:-50, 50:-50]
    inside[:] = rng.integers(0, 100, inside.shape[1:], dtype=np.int16)
    for number in range(3):
        folder = tmp_path / "in" / f"p{number}"
        if kind == "dicom":
            dicom_files.series(folder, voxels, SeriesInstanceUID=f"1.2.{number}", PatientID=str(number))
        elif kind == "nii.gz":
            folder.mkdir(parents=True)
            nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4)), folder / "ct.nii.gz")
        else:
            folder.mkdir(parents=True)
            for name in ("t1", "t2", "flair", "t1ce"):
                nibabel.save(nibabel.Nifti1Image(voxels.T + np.int16(1000), np.eye(4)), folder / f"x_{name}.nii")
    volume = voxels.nbytes / 1e6 * (4 if kind == "mri" else 1)  # a study's sequences are one volume of four channels
    command = "shard_mri.py" if kind == "mri" else "shard_ct.py"
    _, peak, _ = peaks.run(command, tmp_path / "in", tmp_path / "out", "workers=1")
    assert peak.largest < 3 * volume + 300, (peak.largest, volume)
    assert sum(part["samples"] for part in schema.read_dataset(tmp_path / "out")["splits"].values()) == 3 * shape[2]
