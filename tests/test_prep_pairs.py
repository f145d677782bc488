"""Images in two files, .hdr and .img, and several images in one, along its fourth axis."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.mri_files import head

from data_prep import shard_mri
from data_prep.config import GeometryConfig, MriConfig
from data_prep.volumes import images
from data_prep.volumes.volume import RejectedSeries

SIZE = (1.0, 1.5, 2.0)  # mm along the axes of the file


def volume() -> np.ndarray:
    """(I, J, K) int16, each voxel with a value of its own."""
    return np.random.default_rng(3).permutation(20 * 18 * 12).astype(np.int16).reshape(20, 18, 12)


def towards(orientation: str) -> np.ndarray:
    """The affine of axes that run towards these ends, by nibabel's reckoning."""
    turned = nibabel.orientations.axcodes2ornt(tuple(orientation))
    affine = np.zeros((4, 4))
    for column, (row, sign) in enumerate(turned):
        affine[int(row), column] = sign * SIZE[column]
    affine[3, 3] = 1
    return affine


def analyze(path: Path, voxels: np.ndarray, order: str = "<") -> Path:
    """Write an Analyze 7.5 file and its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nibabel.AnalyzeHeader(endianness=order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_zooms(SIZE[: voxels.ndim] if voxels.ndim == 3 else (*SIZE, 1))
    nibabel.AnalyzeImage(voxels, None, header).to_filename(path)
    return path


def as_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """Write a NIfTI whose header says where its axes run."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def same(ours, theirs) -> bool:
    """Whether two volumes have equal voxels in equal places, up to their origin."""
    return np.array_equal(ours.voxels, theirs.voxels) and np.allclose(ours.affine[:3, :3], theirs.affine[:3, :3])


CODES = [
    "".join(ends)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for ends in itertools.product(*axes)
    if axes[2] == "IS" or ends[0] == "A"  # all that lie axially, a third of the others
]


@pytest.mark.parametrize("orientation", CODES)
def test_an_analyze_file_lies_as_its_layout_says(orientation: str, tmp_path: Path) -> None:
    """Every orientation gives the volume of a NIfTI whose header states it."""
    config = MriConfig(geometry=GeometryConfig(planes="reformat"))
    path = analyze(tmp_path / "a.img", volume())
    theirs = images.read_mr(as_nifti(tmp_path / "b.nii", volume(), towards(orientation)), config)
    ours = images.read_mr(path, config, orientation=orientation)
    assert same(ours, theirs) and orientation.lower() in str(ours.notes["transform"])


@pytest.mark.parametrize("order", ["<", ">"])
def test_without_a_word_an_analyze_file_is_refused(order: str, tmp_path: Path) -> None:
    """Its format has no orientation; the setting that NIfTI files without one have decides, in either byte order."""
    path = analyze(tmp_path / "a.img", volume(), order)
    with pytest.raises(RejectedSeries, match=r"Analyze.*geometry\.unoriented"):
        images.read_mr(path, MriConfig())
    ours = images.read_mr(path, MriConfig(geometry=GeometryConfig(unoriented="las")))
    theirs = images.read_mr(as_nifti(tmp_path / "b.nii", volume(), towards("LAS")), MriConfig())
    assert same(ours, theirs)


def test_the_users_setting_beats_the_layout(tmp_path: Path) -> None:
    """Where both name an orientation, the setting counts, and the notes say so."""
    path = analyze(tmp_path / "a.img", volume())
    ours = images.read_mr(path, MriConfig(geometry=GeometryConfig(unoriented="ras")), orientation="LAS")
    assert same(ours, images.read_mr(as_nifti(tmp_path / "b.nii", volume(), towards("RAS")), MriConfig()))
    assert "geometry.unoriented" in str(ours.notes["transform"])


def test_a_nifti_pair_is_read_by_its_header(tmp_path: Path) -> None:
    """Scale and transform count as in one file, whatever a layout says."""
    image = nibabel.Nifti1Pair(volume(), towards("LPS"))
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(2, 5)
    nibabel.save(image, tmp_path / "a.img")
    ours = images.read_mr(tmp_path / "a.img", MriConfig(), orientation="RAS")
    loaded = np.asarray(nibabel.load(tmp_path / "a.img").dataobj)
    assert same(ours, images.read_mr(as_nifti(tmp_path / "b.nii", loaded, towards("LPS")), MriConfig()))


def test_damaged_pairs_are_refused(tmp_path: Path) -> None:
    """A header that is missing or cut, or too few values: each with its reason."""
    path = analyze(tmp_path / "a.img", volume())
    settings = MriConfig(geometry=GeometryConfig(unoriented="las"))
    content, start = path.read_bytes(), (tmp_path / "a.hdr").read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(RejectedSeries, match="truncated"):
        images.read_mr(path, settings)
    path.write_bytes(content)
    for damaged in (start[:200], b"\0" * 348, b""):
        (tmp_path / "a.hdr").write_bytes(damaged)
        with pytest.raises(RejectedSeries, match="truncated"):
            images.read_mr(path, settings)
    (tmp_path / "a.hdr").unlink()
    with pytest.raises(RejectedSeries, match="missing"):
        images.read_mr(path, settings)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_each_channel_is_an_image(ending: str, tmp_path: Path) -> None:
    """The fourth axis of a file holds images on one grid; each is read alone, to the end of its checksum."""
    stacked = np.stack([head(level=100 * number, seed=number) for number in range(1, 5)], axis=3)
    path = as_nifti(tmp_path / f"a{ending}", stacked, towards("LAS"))
    for place in range(4):
        ours = images.read_mr(path, MriConfig(), channel=(place, 4))
        assert same(
            ours, images.read_mr(as_nifti(tmp_path / "b.nii", stacked[..., place], towards("LAS")), MriConfig())
        )


def test_channels_that_are_not_as_described_are_refused(tmp_path: Path) -> None:
    """More or fewer images than the description names, or a file with three axes: nothing says which is which."""
    path = as_nifti(tmp_path / "a.nii", np.stack([head()] * 3, axis=3), towards("LAS"))
    for described in (2, 4):
        with pytest.raises(RejectedSeries, match=f"described as {described} channels"):
            images.read_mr(path, MriConfig(), channel=(0, described))
    with pytest.raises(RejectedSeries, match="described as 2 channels"):
        images.read_mr(as_nifti(tmp_path / "b.nii", head(), towards("LAS")), MriConfig(), channel=(1, 2))
    assert images.read_mr(tmp_path / "b.nii", MriConfig(), channel=(0, 1)).voxels.shape == head().shape[::-1]
    with pytest.raises(RejectedSeries, match="4-D image"):
        images.read_mr(path, MriConfig())


def test_another_header_is_another_input(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A start that finds the .hdr changed since stages the image again, or says that the input has changed."""
    analyze(tmp_path / "in" / "p1" / "a_T1.img", volume())
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "geometry.unoriented=las"]
    assert shard_mri.main([*words, "split.train=1", "split.val=0", "split.test=0"]) == 0
    header = nibabel.AnalyzeHeader.from_fileobj((tmp_path / "in" / "p1" / "a_T1.hdr").open("rb"))
    header.set_zooms((2, 2, 2))
    (tmp_path / "in" / "p1" / "a_T1.hdr").write_bytes(header.binaryblock)
    assert shard_mri.main([*words, "split.train=1", "split.val=0", "split.test=0"]) == 1
    assert "input has changed" in capsys.readouterr().err
