"""The private key to a data set's hashes, and the grids that the manifest says: where each volume lies."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep import identity, shard_ct, shard_mri
from data_prep.volumes import geometry


def shard(main, images: Path, output: Path, *more: str) -> list[dict]:
    """Shard a folder; the manifest's rows."""
    assert main(["--input", str(images), "--output", str(output), *more]) == 0
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def test_the_key_says_what_stands_behind_every_hash(patients: Path, tmp_path: Path, capsys) -> None:
    """A row per series of the manifest, with the patient whose hash it is; only its owner may read it; again on demand,
    on standard output as well."""
    key, output = tmp_path / "private" / "key.jsonl", tmp_path / "shards"
    manifest = shard(shard_ct.main, patients, output, "--key", str(key))
    rows = {row["source"]: row for row in map(json.loads, key.read_text().splitlines())}
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert {row["source"] for row in manifest} == set(rows)
    for row in manifest:
        mine = rows[row["source"]]
        assert mine["subject"] == row["subject"] == identity.hashed(b"tests", "patient", mine["patient"])
        assert len(mine["files"]) == row["files"] and all(Path(path).is_file() for path in mine["files"])
    capsys.readouterr()
    shard(shard_ct.main, patients, output, "--key", "-")  # finished before
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == list(rows.values())


def test_the_key_does_not_lie_in_the_data_set(patients: Path, tmp_path: Path, capsys) -> None:
    """What may be given away must not hold it."""
    words = ["--input", str(patients), "--output", str(tmp_path / "out"), "--key", str(tmp_path / "out" / "key.jsonl")]
    assert shard_ct.main(words) == 1
    assert "lies in the data set, which may be given away; put it elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("axes", ["RAS", "LPI", "PSR", "LAS"])
def test_the_manifest_says_where_a_volume_lies(axes: str, tmp_path: Path) -> None:
    """A voxel that is marked in the file lies, by the manifest's affine, where the file says that it lies."""
    rng = np.random.default_rng(0)
    voxels = np.full((30, 26, 12), -1000, np.int16)
    voxels[5:25, 4:22] = rng.integers(0, 100, (20, 18, 12))
    affine = np.array([[2.0, 0, 0, -31], [0, 2.5, 0, 17], [0, 0, 4, 250], [0, 0, 0, 1]])
    image = nib.Nifti1Image(voxels, affine)
    image = image.as_reoriented(nib.orientations.axcodes2ornt(axes))
    (tmp_path / "images").mkdir()
    nib.save(image, tmp_path / "images" / "one.nii.gz")
    (row,) = shard(shard_ct.main, tmp_path / "images", tmp_path / "out", "geometry.planes=reformat")
    found = np.array(row["affine"])
    turned = geometry.place(
        np.asarray(image.dataobj), image.affine, found, tuple(row["shape"][::-1]), order=0, outside=-2000
    )
    assert np.array_equal(turned, np.flip(voxels, (0, 1)))
    assert np.allclose(np.linalg.norm(found[:3, :3], axis=0)[::-1], row["spacing_mm"])


def test_the_sequences_of_a_study_have_one_grid(brains: Path, tmp_path: Path) -> None:
    """Every row of a study has the affine of its reference."""
    rows = [row for row in shard(shard_mri.main, brains, tmp_path / "out") if row["status"] == "accepted"]
    of = {row["stack"]: row["affine"] for row in rows if row["reference"]}
    assert all(row["affine"] == of[row["stack"]] for row in rows) and len(of) == 8
