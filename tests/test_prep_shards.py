"""From images to shards: what is written, what is left out and why, and that a kill changes nothing."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import webdataset

from data_prep import config, generate, identity, schema, shard_ct
from data_prep.sharding import staging
from meddap import disk

ROOT = Path(__file__).resolve().parent.parent


def shard(source: Path, output: Path, *words: str) -> int:
    """Run the command in this process."""
    return shard_ct.main(["--input", str(source), "--output", str(output), "samples_per_shard=10", *words])


def command_of(source: Path, output: Path, *words: str) -> list[str]:
    """The command line, for a process of its own."""
    script = str(ROOT / "data_prep" / "shard_ct.py")
    return [sys.executable, script, "--input", str(source), "--output", str(output), "samples_per_shard=10", *words]


def contents(output: Path) -> dict[str, bytes]:
    """Every file of a finished data set."""
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file; the affine is 2 mm isotropic RAS unless given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1]) if affine is None else affine), path)
    return path


def block(shape=(12, 12, 6)) -> np.ndarray:
    """A box of tissue in air, in (X, Y, Z), int16."""
    voxels = np.full(shape, -1000, np.int16)
    voxels[3:9, 3:9] = 50
    return voxels


def manifest(output: Path) -> list[dict]:
    """Rows of manifest.jsonl."""
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def test_every_slice_arrives_and_webdataset_reads_it(patients: Path, tmp_path: Path) -> None:
    """Counts agree everywhere, plain WebDataset sees the same samples, pixels and labels equal the phantom's."""
    assert shard(patients, tmp_path / "out") == 0
    dataset = schema.read_dataset(tmp_path / "out")
    rows = [row for row in manifest(tmp_path / "out") if row["status"] == "accepted"]
    assert len(rows) == 6 and sum(row["slices"] for row in rows) == 48
    seen = {}
    for name, part in dataset["splits"].items():
        split = schema.Split(tmp_path / "out", name) if part["samples"] else []
        assert len(split) == part["samples"]
        seen |= {split[number].key: split[number] for number in range(len(split))}
    assert len(seen) == 48
    tars = [str(path) for path in (tmp_path / "out").rglob("*.tar")]
    through_webdataset = {sample["__key__"]: sample for sample in webdataset.WebDataset(tars, shardshuffle=False)}
    assert set(through_webdataset) == set(seen)
    for key, sample in through_webdataset.items():
        out = np.empty_like(seen[key].pixels[0])
        schema.decompress_into(sample["ct.b2"], out)
        assert np.array_equal(out, seen[key].pixels[0]) and "seg.b2" in sample and "json" in sample


def test_dicom_and_nifti_of_one_volume_give_the_same_slices(tmp_path: Path) -> None:
    """The DICOM series, and its voxels as NIfTI in another axis order, become equal pixels, labels and spacing."""
    rng = np.random.default_rng(1)
    made = generate.phantom.make(rng, 6, 32)
    generate.write_patient(tmp_path / "dicom" / "p", made, "someone", rng)
    dz, dy, dx = made.spacing
    # stored posterior→anterior and left→right, with the affine that says so
    affine = np.array([[0, dx, 0, 7], [dy, 0, 0, 5], [0, 0, dz, 9], [0, 0, 0, 1.0]])
    flipped = np.flip(made.hu, (1, 2)).transpose(1, 2, 0).astype(np.int16)
    labels = np.flip(made.labels, (1, 2)).transpose(1, 2, 0)
    write_nifti(tmp_path / "nifti" / "p" / "ct.nii.gz", flipped, affine)
    write_nifti(tmp_path / "nifti" / "p" / "seg.nii.gz", labels, affine)
    found = {}
    for kind in ("dicom", "nifti"):
        assert shard(tmp_path / kind, tmp_path / f"{kind}-out", "split.train=1", "split.val=0", "split.test=0") == 0
        split = schema.Split(tmp_path / f"{kind}-out", "train")
        found[kind] = sorted((split[number] for number in range(len(split))), key=lambda each: each.order)
    assert [each.order for each in found["dicom"]] == list(range(6))
    for dicom, nifti in zip(found["dicom"], found["nifti"]):
        assert np.array_equal(dicom.pixels, nifti.pixels) and np.array_equal(dicom.labelmap, nifti.labelmap)
        assert dicom.spacing == pytest.approx(nifti.spacing, rel=1e-5) and dicom.box == nifti.box
        assert np.array_equal(dicom.pixels[0], made.hu[dicom.order].astype(np.int16))


def test_workers_do_not_change_a_byte(patients: Path, tmp_path: Path) -> None:
    """One process and two write the same files, to the byte."""
    assert shard(patients, tmp_path / "one") == 0 and shard(patients, tmp_path / "two", "workers=2") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def archives_below(folder: Path) -> int:
    """Return the number of shards; folders that go while they are looked at are passed over, as os.walk does."""
    return sum(name.endswith(".tar") for _, _, names in os.walk(folder) for name in names)


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.stress)])
def test_killed_anywhere_and_started_again_it_ends_the_same(kills: int, tmp_path: Path) -> None:
    """kill -9 of every process at random moments, started again until it ends: each file is an undisturbed run's."""
    generate.generate(tmp_path / "in", generate.GenerateConfig(patients=30, slices=16, size=160))
    killed, draws, left = tmp_path / "killed", random.Random(0), set()
    assert (
        subprocess.run(command_of(tmp_path / "in", tmp_path / "whole", "workers=2"), capture_output=True).returncode
        == 0
    )
    for _ in range(kills):
        command = command_of(tmp_path / "in", killed, "workers=2")
        wanted = archives_below(killed) + draws.randrange(8)  # files that are there when it is killed
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while archives_below(killed) < wanted and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.05))
        with suppress(ProcessLookupError):  # it was done
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left.add(archives_below(killed))
        if (killed / "dataset.json").is_file():  # all but done: the next start clears up; then begin anew
            assert subprocess.run(command, capture_output=True).returncode == 0
            assert contents(killed) == contents(tmp_path / "whole")
            shutil.rmtree(killed)
    assert subprocess.run(command_of(tmp_path / "in", killed, "workers=2"), capture_output=True).returncode == 0
    assert len(left) > 4  # the kills met it in different states
    assert contents(killed) == contents(tmp_path / "whole")


def test_a_second_start_changes_nothing(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A finished output is left as it is, exit status 0; other settings, salt or input are refused in one line."""
    assert shard(patients, tmp_path / "out") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")}
    assert shard(patients, tmp_path / "out") == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")}
    capsys.readouterr()
    assert shard(patients, tmp_path / "out", "min_slices=5") == 1
    assert "min_slices=3, now 5" in capsys.readouterr().err
    os.environ[identity.VARIABLE] = "another"
    assert shard(patients, tmp_path / "out") == 1
    assert "another salt" in capsys.readouterr().err


def test_what_cannot_be_used_has_a_row_and_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Text named .dcm, a cut NIfTI, NaN, 4-D, an unfit label map, air alone: left out, each with its reason."""
    source = tmp_path / "in"
    write_nifti(source / "good" / "ct.nii.gz", block())
    whole = write_nifti(
        source / "cut" / "ct.nii.gz", np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16)
    )
    whole.write_bytes(whole.read_bytes()[:900])
    broken = block().astype(np.float32)
    broken[0, 0, 0] = np.nan
    write_nifti(source / "nan" / "ct.nii.gz", broken)
    write_nifti(source / "four" / "ct.nii.gz", np.stack([block()] * 2, axis=-1))
    write_nifti(source / "air" / "ct.nii.gz", np.full((8, 8, 8), -1000, np.int16))
    write_nifti(source / "masked" / "ct.nii.gz", block())
    write_nifti(source / "masked" / "seg.nii.gz", np.full((12, 12, 6), 300, np.int16))
    (source / "text").mkdir()
    (source / "text" / "a.dcm").write_text("hello")
    (source / "text" / "empty.nii").write_bytes(b"")
    assert shard(source, tmp_path / "out", "--show-names") == 0
    console = capsys.readouterr().err
    expected = {
        "cut/ct.nii.gz": "truncated or damaged",
        "nan/ct.nii.gz": "voxels are NaN",
        "four/ct.nii.gz": "4-D image",
        "air/ct.nii.gz": "all voxels are air",
        "masked/ct.nii.gz": "label map: values 300 to 300",
        "text/a.dcm": "not a DICOM file",
        "text/empty.nii": "truncated or damaged",
    }
    for name, reason in expected.items():
        assert any(name in line and reason in line for line in console.splitlines()), name
    assert "Traceback" not in console
    reasons = [row["reason"] for row in manifest(tmp_path / "out") if row["status"] == "rejected"]
    assert len(reasons) == len(expected)
    assert all(any(reason in row for row in reasons) for reason in expected.values())


def test_nothing_to_shard_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An empty folder, a folder that is not there, and inputs that are all unfit: exit status 1, one line."""
    (tmp_path / "empty").mkdir()
    assert shard(tmp_path / "empty", tmp_path / "out") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path / 'empty'}: holds no image")
    assert shard(tmp_path / "nowhere", tmp_path / "out") == 1
    assert "no such folder" in capsys.readouterr().err
    write_nifti(tmp_path / "air" / "ct.nii.gz", np.full((8, 8, 8), -1000, np.int16))
    assert shard(tmp_path / "air", tmp_path / "out2") == 1
    assert "none of 1 inputs could be used" in capsys.readouterr().err
    assert not (tmp_path / "out2" / "dataset.json").exists()


def test_a_folder_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A folder that may not be listed has a row; the rest is used. (Simulated: a superuser may list everything.)"""
    write_nifti(tmp_path / "in" / "good" / "ct.nii.gz", block())
    (tmp_path / "in" / "closed").mkdir()
    scandir = os.scandir

    def refusing(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert shard(tmp_path / "in", tmp_path / "out", "--show-names") == 0
    assert "closed: folder cannot be read (Permission denied)" in capsys.readouterr().err
    assert [row["reason"] for row in manifest(tmp_path / "out") if row["status"] == "rejected"]


def test_a_disk_that_takes_no_more_is_one_line_and_loses_nothing(patients: Path, tmp_path: Path) -> None:
    """Writing the shards fails: one line, exit status 1; with room again what is staged is used, the end the same."""
    assert shard(patients, tmp_path / "whole", "samples_per_shard=1000") == 0
    command = f"ulimit -f 24; exec {' '.join(command_of(patients, tmp_path / 'out', 'samples_per_shard=1000'))}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and error.startswith("error: ") and "start again" in error and "too large" in error
    done = subprocess.run(
        command_of(patients, tmp_path / "out", "samples_per_shard=1000"), capture_output=True, text=True
    )
    assert done.returncode == 0 and "inputs were staged before" in done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_settings_and_salt_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A misspelt key names the nearest; a value of the wrong kind and a missing salt say what to do."""
    write_nifti(tmp_path / "in" / "p" / "ct.nii.gz", block())
    for word, expected in (
        ("wrokers=2", "did you mean workers?"),
        ("air.treshold_hu=0", "did you mean air.threshold_hu?"),
        ("workers=many", "workers=many"),
        ("workers", "expected key=value"),
    ):
        assert shard(tmp_path / "in", tmp_path / "out", word) == 1
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and expected in errors[0]
    monkeypatch.delenv(identity.VARIABLE)
    assert shard(tmp_path / "in", tmp_path / "out") == 1
    assert "no salt" in capsys.readouterr().err
    assert not (tmp_path / "out" / "settings.json").exists()


def test_two_writers_refuse_each_other(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """While one process holds the output, another stops with one line."""
    with disk.sole_writer(tmp_path / "out"):
        assert shard(patients, tmp_path / "out") == 1
    assert "another process writes there" in capsys.readouterr().err


def test_nothing_names_a_patient(tmp_path: Path) -> None:
    """Patient id, name, folder and file names are in no byte of the output, and neither is the salt."""
    made = generate.phantom.make(np.random.default_rng(0), 4, 32)
    generate.write_patient(tmp_path / "in" / "CANARYFOLDER" / "x", made, "CANARYID", np.random.default_rng(0))
    write_nifti(tmp_path / "in" / "CANARYNAME.nii.gz", block())
    os.environ[identity.VARIABLE] = "CANARYSALT"
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    for name, payload in contents(tmp_path / "out").items():
        assert b"CANARY" not in payload and b"Synthetic^" not in payload and "CANARY" not in name


def test_a_patients_series_are_in_one_split(tmp_path: Path) -> None:
    """Split follows the hashed patient: several series of one patient never part, and shares are kept roughly."""
    shares = config.SplitConfig()
    drawn = [identity.split_of(identity.hashed(b"s", "patient", str(number)), shares) for number in range(3000)]
    assert abs(drawn.count("train") / 3000 - 0.6) < 0.04 and abs(drawn.count("val") / 3000 - 0.2) < 0.03
    for number in range(5):
        for series in ("a", "b"):
            write_nifti(tmp_path / "in" / f"p{number}" / series / "ct.nii.gz", block())
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    splits: dict[str, set] = {}
    for row in manifest(tmp_path / "out"):
        splits.setdefault(row["subject"], set()).add(row["split"])
    assert len(splits) == 5 and all(len(found) == 1 for found in splits.values())


def test_a_masks_tree_is_laid_on_the_volumes_grid(tmp_path: Path) -> None:
    """--masks: a map of another resolution and axis order lands on the right voxels, nearest neighbour."""
    write_nifti(tmp_path / "in" / "p" / "ct.nii.gz", block())
    fine = np.zeros((24, 24, 12), np.uint8)  # 1 mm instead of 2, its first axis reversed
    fine[6:18, 6:12] = 3
    affine = np.array([[-1, 0, 0, 22.5], [0, 1, 0, -0.5], [0, 0, 1, -0.5], [0, 0, 0, 1.0]])
    write_nifti(tmp_path / "masks" / "p" / "ct.nii.gz", np.flip(fine, 0), affine)
    words = ("split.train=1", "split.val=0", "split.test=0", "labels.3=organ", "--masks", str(tmp_path / "masks"))
    assert shard(tmp_path / "in", tmp_path / "out", *words) == 0
    sample = schema.Split(tmp_path / "out", "train")[0]
    expected = np.zeros((12, 12), np.uint8)
    expected[3:9, 3:6] = 3  # (X, Y) as stored
    assert np.array_equal(sample.labelmap, np.flip(expected).T)
    assert sample.annotated == (3,) and schema.read_dataset(tmp_path / "out")["labels"] == {"3": "organ"}


def test_what_another_version_staged_is_made_again(tmp_path: Path) -> None:
    """A record of this version and input is taken; one of another version, or without any, is as if not there."""
    record = staging.Record("subject", "train", "f")
    job = SimpleNamespace(folder=tmp_path, name="x", subject="subject", labels=record.labels)
    job.source = SimpleNamespace(fingerprint="f")
    for version, taken in ((staging.VERSION, True), (staging.VERSION + 1, False), (None, False)):
        said = {**asdict(record), "version": version, **({} if taken else {"of another time": 1})}
        (tmp_path / "x.json").write_text(json.dumps({key: each for key, each in said.items() if each is not None}))
        assert (staging.read_record(job) == record) if taken else (staging.read_record(job) is None)
    (tmp_path / "x.json").write_text(json.dumps(asdict(record)))
    job.subject = "another patient, by the paths of a larger input"
    assert staging.read_record(job) is None
