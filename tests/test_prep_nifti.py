"""NIfTI, NRRD and MetaImage as others read them: grids in mm, transforms that agree, content that is whole."""

from __future__ import annotations

import gzip
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep.config import CtConfig, GeometryConfig, MriConfig
from data_prep.volumes import images
from data_prep.volumes.volume import RejectedSeries

CASES = Path(__file__).resolve().parent.parent.parent / "shared" / "cases"
SHAPE = (20, 16, 12)
GRID = np.array([[-1.0, 0, 0, 30], [0, -1.5, 0, 20], [0, 0, 3, -40], [0, 0, 0, 1]])


def hu(seed: int = 0) -> np.ndarray:
    """SHAPE int16: a block of tissue in air, with noise."""
    rng = np.random.default_rng(seed)
    values = np.full(SHAPE, -1000.0)
    values[4:16, 4:13] = 40
    return np.rint(values + rng.normal(0, 15, SHAPE)).astype(np.int16)


def save(path: Path, affine: np.ndarray = GRID, change: Callable[[nibabel.Nifti1Header], object] | None = None) -> Path:
    """Write a CT; `change` alters its header last, so that nothing else sets it again."""
    image = nibabel.Nifti1Image(hu(), affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    if change:
        packed = path.name.endswith(".gz")
        content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
        header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
        change(header)
        content[:348] = header.binaryblock
        path.write_bytes(gzip.compress(content) if packed else content)
    return path


def opened(path: Path, **geometry: str) -> images.Image:
    """The image under some settings of geometry."""
    return images.Image(path, CtConfig(geometry=GeometryConfig(**geometry)))


def scaled(factor: float, code: int) -> Callable[[nibabel.Nifti1Header], None]:
    """Lengths in another unit."""

    def change(header: nibabel.Nifti1Header) -> None:
        affine = header.get_sform()
        affine[:3] *= factor
        header.set_sform(affine, 1)
        header["pixdim"][1:4] *= factor
        header["xyzt_units"] = code

    return change


@pytest.mark.parametrize(("factor", "code"), [(0.001, 1), (1, 2), (1000, 3), (0.001, 1 + 8), (1000, 3 + 16), (1, 0)])
def test_units_are_applied(factor: float, code: int, tmp_path: Path) -> None:
    """Metre, mm and micron, also beside units of time, give one grid; all but mm are noted."""
    image = opened(save(tmp_path / "ct.nii.gz", change=scaled(factor, code)))
    assert np.allclose(image.affine, GRID, atol=1e-4)
    assert ("units" in image.notes) == (code != 2)


@pytest.mark.parametrize(("code", "factor"), [(1, 1), (3, 1), (2, 0.001), (0, 0.001), (2, 1000)])
def test_a_unit_that_cannot_be_is_refused(code: int, factor: float, tmp_path: Path) -> None:
    """Voxels of a metre or of a micron: the header's unit is wrong, and the user's word counts and is noted."""
    path = save(tmp_path / "ct.nii", change=scaled(factor, code))
    with pytest.raises(RejectedSeries, match="geometry.units"):
        opened(path)
    right = {1: "mm", 0.001: "metre", 1000: "micron"}[factor]
    image = opened(path, units=right)
    assert np.allclose(image.affine, GRID, atol=1e-4) and ("units" in image.notes) == (code != 0)


def transforms(q: np.ndarray | None, s: np.ndarray | None) -> Callable[[nibabel.Nifti1Header], None]:
    """Both transforms, each with code 1 or, if it is None, 0."""

    def change(header: nibabel.Nifti1Header) -> None:
        header.set_qform(GRID if q is None else q, 0 if q is None else 1, strip_shears=True)
        header.set_sform(GRID if s is None else s, 0 if s is None else 1)

    return change


def test_transforms_that_agree_are_taken_without_a_word(tmp_path: Path) -> None:
    """One of them, both, or both up to the rounding of a quaternion."""
    near = GRID.copy()
    near[:3, 3] += 0.1
    for n, (q, s) in enumerate([(GRID, None), (None, GRID), (GRID, GRID), (near, GRID)]):
        image = opened(save(tmp_path / f"{n}.nii", change=transforms(q, s)))
        assert np.allclose(image.affine, GRID, atol=1e-4) and not image.notes


@pytest.mark.parametrize("kind", ["moved", "flipped", "turned", "stretched"])
def test_transforms_that_disagree_need_a_setting(kind: str, tmp_path: Path) -> None:
    """Refused with the distance; geometry.disagreeing decides and is noted."""
    other = GRID.copy()
    if kind == "moved":
        other[2, 3] += 1.5
    elif kind == "flipped":
        other[0, 0] *= -1
    elif kind == "turned":
        other[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix() @ GRID[:3, :3]
    else:
        other[2, 2] *= 2
    path = save(tmp_path / "ct.nii.gz", change=transforms(other, GRID))
    with pytest.raises(RejectedSeries, match=r"sform and qform .* geometry.disagreeing"):
        opened(path)
    for word, wanted in (("sform", GRID), ("qform", other)):
        image = opened(path, disagreeing=word)
        assert np.allclose(image.affine, wanted, atol=1e-3) and str(image.notes["transform"]).startswith(word)


def test_pixdim_that_disagrees_needs_a_setting(tmp_path: Path) -> None:
    """Slices of 3 mm in the sform and 5 mm in pixdim, no qform; a pixdim of 0 states nothing."""

    def change(header: nibabel.Nifti1Header) -> None:
        header["pixdim"][3] = 5

    path = save(tmp_path / "ct.nii", change=change)
    with pytest.raises(RejectedSeries, match=r"1 × 1.5 × 3 in its sform, 1 × 1.5 × 5 in its pixdim"):
        opened(path)
    lengths = [np.linalg.norm(opened(path, disagreeing=word).affine[:3, 2]) for word in ("sform", "qform")]
    assert lengths == pytest.approx([3, 5])

    def unset(header: nibabel.Nifti1Header) -> None:
        header["pixdim"][1:4] = 0

    assert np.allclose(opened(save(tmp_path / "unset.nii", change=unset)).affine, GRID)


@pytest.mark.parametrize(("place", "value"), [(0, 3), (1, -1.5), (2, 0)])
def test_a_quaternion_that_is_no_transform_is_refused_for_that(place: int, value: float, tmp_path: Path) -> None:
    """Not as a damaged file; where an sform states the grid as well, a setting takes that."""

    def change(header: nibabel.Nifti1Header, sform: int = 1) -> None:
        header.set_qform(GRID, 1)
        header.set_sform(GRID, sform)
        header["pixdim"][place] = value

    path = save(tmp_path / "ct.nii.gz", change=change)
    if value > 0 or value < 0:
        with pytest.raises(
            RejectedSeries, match="its qform is no transform.*geometry.disagreeing=sform passes it over"
        ):
            opened(path)
    else:
        with pytest.raises(RejectedSeries, match="geometry.disagreeing"):
            opened(path)
    image = opened(path, disagreeing="sform")
    assert np.allclose(image.affine, GRID, atol=1e-4) and "transform" in image.notes
    with pytest.raises(RejectedSeries):
        opened(save(tmp_path / "alone.nii.gz", change=lambda header: change(header, 0)))


@pytest.mark.parametrize("sform", [0, 1])
def test_a_first_pixdim_of_0_counts_as_1(sform: int, tmp_path: Path) -> None:
    """As the standard says, which rules it out."""

    def change(header: nibabel.Nifti1Header) -> None:
        header.set_qform(GRID, 1)
        header.set_sform(GRID, sform)
        header["pixdim"][0] = 0

    assert np.allclose(opened(save(tmp_path / "ct.nii.gz", change=change)).affine, GRID, atol=1e-4)


def test_a_tilted_gantry_is_no_disagreement(tmp_path: Path) -> None:
    """A quaternion holds no shear: the sform counts, as converters of tilted CT mean it."""
    tilted = GRID.copy()
    tilted[1, 2] = 3 * np.tan(np.radians(18))

    def change(header: nibabel.Nifti1Header) -> None:
        header.set_qform(GRID, 1)
        header.set_sform(tilted, 1)

    assert np.allclose(opened(save(tmp_path / "ct.nii", change=change)).affine, tilted, atol=1e-4)


def test_an_image_without_orientation_needs_a_setting(tmp_path: Path) -> None:
    """Codes 0 and 0: readers differ, so the user says how the axes run, and it is noted."""
    path = save(tmp_path / "ct.nii.gz", change=transforms(None, None))
    with pytest.raises(RejectedSeries, match=r"no orientation .* geometry.unoriented"):
        opened(path)
    for word, signs in (("ras", [1, 1, 1]), ("las", [-1, 1, 1]), ("lps", [-1, -1, 1])):
        image = opened(path, unoriented=word)
        assert np.allclose(np.diag(image.affine)[:3], np.array([1, 1.5, 3]) * signs) and "transform" in image.notes


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, np.nan), (2, np.inf), (np.inf, 0), (-np.inf, np.nan)])
def test_a_scale_that_is_no_number_is_refused_for_what_it_is(
    slope: float, intercept: float, name: str, tmp_path: Path
) -> None:
    """The reason names both numbers; slopes of NaN and 0 mean that there is no scale."""

    def scale(first: float, second: float) -> Callable[[nibabel.Nifti1Header], None]:
        def change(header: nibabel.Nifti1Header) -> None:
            header["scl_slope"], header["scl_inter"] = first, second

        return change

    with pytest.raises(RejectedSeries, match="scl_slope .* scl_inter"):
        opened(save(tmp_path / name, change=scale(slope, intercept)))
    for plain in (np.nan, 0):
        path = save(tmp_path / name, change=scale(plain, 5))
        assert np.array_equal(np.concatenate([v for _, v in opened(path).slabs()], axis=2), hu())


@pytest.mark.parametrize("second", [False, True], ids=["NIfTI-1", "NIfTI-2"])
def test_compression_is_seen_in_the_content(second: bool, tmp_path: Path) -> None:
    """Plain files named .gz and packed ones that are not are read, and noted; both versions, also big-endian."""
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    for order in "<>":
        header = (nibabel.Nifti2Header if second else nibabel.Nifti1Header)(endianness=order)
        header.set_xyzt_units("mm")
        content = kind(hu(), GRID, header).to_bytes()
        for name, stored, noted in [
            ("a.nii", content, False),
            ("b.nii.gz", gzip.compress(content), False),
            ("c.nii.gz", content, True),
            ("d.nii", gzip.compress(content), True),
        ]:
            (tmp_path / name).write_bytes(stored)
            image = opened(tmp_path / name)
            assert np.array_equal(np.concatenate([v for _, v in image.slabs()], axis=2), hu())
            assert ("compression" in image.notes) == noted and np.allclose(image.affine, GRID)


READERS = {
    "ct": lambda path: images.read_ct(path, CtConfig()).voxels,
    "mr": lambda path: images.read_mr(path, MriConfig()).voxels,
    "labels": lambda path: images.read_labels(path, CtConfig())[0],
}


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", READERS)
def test_damage_of_compressed_content_is_told(kind: str, suffix: str, tmp_path: Path) -> None:
    """70 flipped bits and 10 cuts, the checksum among them: refused, or the very voxels. Images, MR and label maps."""
    path = tmp_path / f"image{suffix}"
    values = np.clip(hu(), 0, 200).astype(np.uint8) if kind == "labels" else hu()
    if suffix == ".nii.gz":
        nibabel.save(nibabel.Nifti1Image(values, GRID), path)
    else:
        SimpleITK = pytest.importorskip("SimpleITK", reason="needs SimpleITK: pip install 'meddap[itk]'")
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values.transpose(2, 1, 0)), str(path), True)
    right, whole = READERS[kind](path), path.read_bytes()
    start = {".nii.gz": 0, ".nrrd": whole.find(b"\n\n") + 2, ".mha": whole.find(b"LOCAL\n") + 6}[suffix]
    rng, refused = np.random.default_rng(0), 0
    places = [*range(len(whole) - 8, len(whole)), *rng.integers(start, len(whole), 62)]
    damaged = [
        whole[:place] + bytes([whole[place] ^ 1 << int(bit)]) + whole[place + 1 :]
        for place, bit in zip(places, rng.integers(0, 8, len(places)))
    ]
    damaged += [whole[:-n] for n in (1, 3, 4, 5, 8, 9, 50, 300, 1000, len(whole) - start - 1)]
    for content in damaged:
        path.write_bytes(content)
        try:
            found = READERS[kind](path)
        except RejectedSeries:
            refused += 1
        else:
            assert np.array_equal(found, right)
    assert refused > 60


def test_affines_are_those_of_a_second_reader(tmp_path: Path) -> None:
    """Random directions, spacings, origins, units and codes in NIfTI, NRRD and MetaImage: as SimpleITK places them."""
    SimpleITK = pytest.importorskip("SimpleITK", reason="needs SimpleITK: pip install 'meddap[itk]'")
    rng = np.random.default_rng(5)
    corners = np.array(list(itertools.product(*((0, n - 1) for n in SHAPE))), float)
    for n in range(40):
        affine = np.eye(4)
        turn = Rotation.random(random_state=n).as_matrix() @ np.diag([rng.choice([-1, 1]), 1, 1])
        affine[:3, :3] = turn * rng.uniform(0.4, 6, 3)
        affine[:3, 3] = rng.uniform(-300, 300, 3)
        path = tmp_path / f"{n}{('.nii', '.nii.gz', '.nrrd', '.mha')[n % 4]}"
        if n % 4 < 2:
            factor, code = [(1, 2), (0.001, 1), (1000, 3)][n % 3]
            stored = affine * np.array([[factor]] * 3 + [[1]])
            codes = [(0, 1), (1, 0), (1, 1)][n // 4 % 3]
            image = nibabel.Nifti1Image(hu(), stored)
            image.set_qform(stored, codes[0])
            image.set_sform(stored, codes[1])
            image.header["xyzt_units"] = code
            nibabel.save(image, path)
        else:
            image = SimpleITK.GetImageFromArray(hu().transpose(2, 1, 0))
            lps = np.diag([-1, -1, 1]) @ affine[:3, :3]
            spacing = np.linalg.norm(lps, axis=0)
            image.SetSpacing(spacing)
            image.SetDirection((lps / spacing).ravel())
            image.SetOrigin(np.diag([-1, -1, 1]) @ affine[:3, 3])
            SimpleITK.WriteImage(image, str(path))
        ours, theirs = opened(path), SimpleITK.ReadImage(str(path))
        points = np.array([theirs.TransformContinuousIndexToPhysicalPoint(corner) for corner in corners])
        expected = points * [-1, -1, 1]
        assert np.allclose(corners @ ours.affine[:3, :3].T + ours.affine[:3, 3], expected, atol=0.02)
        assert np.allclose(ours.affine, affine, atol=0.01)


CASE_ROWS = {
    "60-units-meter/ct.nii.gz": (3, 1, 1),
    "60-units-micron/ct.nii.gz": (3, 1, 1),
    "67a-nii-gz-not-gz/ct.nii.gz": (3, 1, 1),
    "67b-nii-is-gz/ct.nii": (3, 1, 1),
    "62-scl-1-nan/ct.nii": "scl_slope 1 with scl_inter nan",
    "67e-bad-crc/ct.nii.gz": "checksum does not match",
}


@pytest.mark.parametrize("name", CASE_ROWS)
def test_cases_that_people_reported(name: str, tmp_path: Path) -> None:
    """Read on a grid in mm, or refused for the real reason, whatever reads them."""
    path, wanted = CASES / name, CASE_ROWS[name]
    if not path.is_file():
        pytest.skip(f"needs shared/cases/{name}")
    if isinstance(wanted, str):
        for read in READERS.values():
            with pytest.raises(
                RejectedSeries, match=wanted if "crc" not in name else "checksum|expected whole numbers"
            ):
                read(Path(shutil.copy(path, tmp_path / path.name)))
    else:
        assert images.read_ct(path, CtConfig()).spacing == pytest.approx(wanted, rel=1e-4)
