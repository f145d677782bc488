"""Refusals of files in nnU-Net's layout name settings that a task has, and these do what the refusal promises."""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

import data_prep
from data_prep.config import CtConfig, MriConfig
from eval import probe
from eval.config import FilesConfig, TaskConfig
from eval.data import sources
from meddap.settings import SettingsError, load

CONFIG = Path(probe.__file__).parent / "configs" / "nnunet.yaml"
GRID = np.diag([-1.0, -1, 2, 1])
# settings that a probe does not have because the refusals that name them cannot come up: see the last test
FIXED = {"geometry.planes", "geometry.oblique", "geometry.tilt", "min_slices", "label_maps", "limits.minutes"}
FIXED |= {"layout", "limits.zip_gb"}  # neither other collections nor archives


def image(values: np.ndarray, affine: np.ndarray = GRID) -> nibabel.Nifti1Image:
    """Return a NIfTI image in mm."""
    made = nibabel.Nifti1Image(values, affine)
    made.header.set_xyzt_units("mm")
    return made


def body() -> np.ndarray:
    """Return (24, 24, 6) HU: tissue in air."""
    hu = np.full((24, 24, 6), -1000, np.int16)
    hu[3:21, 3:21] = np.random.default_rng(0).integers(-50, 90, (18, 18, 6))
    return hu


def organ() -> np.ndarray:
    """Return (24, 24, 6) labels 0 and 1."""
    labels = np.zeros((24, 24, 6), np.uint8)
    labels[6:12, 6:18, 1:5] = 1
    return labels


def no_codes(ct: nibabel.Nifti1Image, labels: nibabel.Nifti1Image) -> set[str]:
    """Remove both transforms from both headers."""
    return {"imagesTr", "labelsTr"}


def no_codes_of_labels(ct: nibabel.Nifti1Image, labels: nibabel.Nifti1Image) -> set[str]:
    """Remove both transforms of the label map."""
    return {"labelsTr"}


def two_transforms(ct: nibabel.Nifti1Image, labels: nibabel.Nifti1Image) -> None:
    """Make sform and qform of both disagree."""
    for one in (ct, labels):
        one.set_qform(GRID + np.array([[0, 0, 0, 30.0]] + [[0] * 4] * 3), 1)


def metres(ct: nibabel.Nifti1Image, labels: nibabel.Nifti1Image) -> None:
    """State metres where the numbers are mm."""
    for one in (ct, labels):
        one.header.set_xyzt_units("meter")


def outside(ct: nibabel.Nifti1Image, labels: nibabel.Nifti1Image) -> None:
    """Move the label map so that some of it lies outside its image."""
    labels.set_sform(GRID + np.array([[0, 0, 0, 8.0]] + [[0] * 4] * 3), 1)


def beside(ct: nibabel.Nifti1Image, labels: nibabel.Nifti1Image) -> None:
    """Move the label map by 1.5 voxels."""
    labels.set_sform(GRID + np.array([[0, 0, 0, 1.5]] + [[0] * 4] * 3), 1)


def nothing(ct: nibabel.Nifti1Image, labels: nibabel.Nifti1Image) -> None:
    """Change neither."""


def windowed(ct: nibabel.Nifti1Image, labels: nibabel.Nifti1Image) -> None:
    """Clip the CT as many public data sets are."""
    np.asanyarray(ct.dataobj)[...] = np.clip(np.asanyarray(ct.dataobj), -20, 60)


def data_set(folder: Path, damage: Callable, ct: np.ndarray | None = None, affine: np.ndarray = GRID) -> Path:
    """Write a data set of one case. `damage` changes both images, or names the folder whose transforms are removed."""
    hu = np.tile(body(), (2, 2, 4)) if ct is None else ct
    labels = np.tile(organ(), (2, 2, 4)) if ct is None else (ct > 0).astype(np.uint8)
    made = image(hu, affine), image(labels, affine)
    uncoded = damage(*made) or ()
    for name, one in zip(("imagesTr/c_0000", "labelsTr/c"), made):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = bytearray(one.to_bytes())
        if name.partition("/")[0] in uncoded:
            content[252:256] = bytes(4)  # qform_code and sform_code, which nibabel would set
        (folder / f"{name}.nii.gz").write_bytes(gzip.compress(content, 1))
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def read(data: Path, cache: Path, *words: str) -> sources.Examples:
    """Return the examples of a data set."""
    return sources.load(load(TaskConfig, CONFIG, [f"data={data}", *words]), cache)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    ("damage", "before", "key", "value"),
    [
        (no_codes, (), "files.geometry.unoriented", "las"),
        (no_codes_of_labels, (), "files.geometry.unoriented", "lps"),
        (two_transforms, (), "files.geometry.disagreeing", "sform"),
        (metres, (), "files.geometry.units", "mm"),
        (outside, (), "files.max_labels_outside", "1"),
        (beside, ("files.label_grid=refuse",), "files.label_grid", "place"),
        (nothing, ("files.limits.volume_gb=1e-6",), "files.limits.volume_gb", "1"),
        (windowed, ("files.values=check",), "files.values", "trust"),
    ],
)
def test_the_setting_that_a_refusal_names_mends_it(
    damage: Callable, before: tuple, key: str, value: str, modality: str, tmp_path: Path
) -> None:
    """Each `key=` in the reason is a key of the task; the one that offers a remedy makes the data set readable."""
    if damage is windowed and modality == "MR":
        return  # MR has no unit
    data = data_set(tmp_path / "data", damage)
    with pytest.raises(SettingsError) as error:
        read(data, tmp_path, f"files.modality={modality}", *before)
    said = str(error.value).replace(str(data), "")
    keys = re.findall(r"([a-z_]+(?:\.[a-z_]+)*)=", said)
    assert key in keys and set(keys) <= set(leaves(TaskConfig(data=""))) and "\n" not in said
    examples = read(data, tmp_path, f"files.modality={modality}", *before, f"{key}={value}")
    assert len(examples) and examples.names == ("liver",)


def test_what_was_decided_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A label map that is placed by its affine, a unit that no header states: a line each, in words of the task."""
    read(data_set(tmp_path / "a", beside), tmp_path)
    assert "files.label_grid=refuse refuses them" in capsys.readouterr().err
    read(data_set(tmp_path / "b", metres), tmp_path, "files.geometry.units=mm")
    assert "as files.geometry.units says, metre in the header" in capsys.readouterr().err


def leaves(config: object, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration."""
    for one in fields(config):  # type: ignore[arg-type]
        value = getattr(config, one.name)
        yield from leaves(value, f"{prefix}{one.name}.") if is_dataclass(value) else [prefix + one.name]


def test_every_setting_that_readers_name_is_one_of_the_task() -> None:
    """Text of the readers of image files and label maps: each `key=` in it is in `files`, or fixed for probes."""
    known = {*leaves(CtConfig()), *leaves(MriConfig())}
    task = set(leaves(FilesConfig()))
    root = Path(data_prep.__file__).parent
    named = set()
    for path in [*(root / "volumes").glob("*.py"), root / "discovery" / "labelmaps.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= {key for key in known if re.search(rf"(?<![\w.]){re.escape(key)}(?==| says)", node.value)}
    assert {"geometry.units", "geometry.disagreeing", "values", "max_labels_outside", "limits.volume_gb"} <= named
    assert named <= task | FIXED


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("kind", ["sagittal", "oblique", "tilted", "one slice"])
def test_what_sharding_may_refuse_and_a_probe_reads(kind: str, modality: str, tmp_path: Path) -> None:
    """Volumes that are not axial, and a single slice: probes take them, so their settings are not among a task's."""
    affine, hu = GRID.copy(), np.tile(body(), (2, 2, 4))
    if kind == "sagittal":
        affine = np.array([[0, 0, 2.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    elif kind == "oblique":
        cosine, sine = np.cos(0.5), np.sin(0.5)
        affine = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1.0]]) @ GRID
    elif kind == "tilted":
        affine[1, 2] = 0.6
    else:
        hu = hu[:, :, :1]
    data = data_set(tmp_path / "data", nothing, hu, affine)
    assert len(read(data, tmp_path, f"files.modality={modality}"))
