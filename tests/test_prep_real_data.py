"""What every real file becomes, row by row, or why it is left out; HU as a second reader sees them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data_prep import schema
from data_prep.config import CtConfig, MriConfig, PrepConfig
from data_prep.discovery import archive
from data_prep.discovery.inputs import Inputs
from data_prep.sharding import convert_ct, convert_mri, staging

SimpleITK = pytest.importorskip("SimpleITK", reason="needs SimpleITK as a second reader: pip install 'meddap[itk]'")


class Here:
    """Stands in for the pool of workers: does the work in this process."""

    def map(self, work, jobs):
        """(job, result) for every job."""
        for job in jobs:
            yield job, work(job)


@dataclass
class Became:
    """What one source became: its manifest rows and its samples."""

    rows: list[dict]
    samples: list[schema.Slice]


def become(folder: Path, modality: str, config: PrepConfig, out: Path) -> dict[str, Became]:
    """Every source below `folder` by its name, converted."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Became] = {}
    inputs = Inputs.of([folder])
    for source in archive.discover(inputs, [], config, modality, Here()).sources:
        job = staging.Job(source, inputs, out, b"salt", config)
        record = (convert_ct if modality == "CT" else convert_mri).convert(job)
        tar = out / f"{job.name}.tar"
        block = tar.read_bytes() if tar.exists() else b""
        samples = [schema.decode(block[offset : offset + size]) for _, offset, size, *_ in record.samples]
        same = found.setdefault(source.name, Became([], []))
        same.rows += record.rows
        same.samples += sorted(samples, key=lambda sample: sample.order)
    return found


def told(became: Became) -> list[str]:
    """Rows in words, for comparison with the tables below."""
    words = []
    for row in became.rows:
        if row["status"] == "accepted":
            words.append(f"{row['sequence']} {'×'.join(map(str, row['shape']))}, {row['slices']} slices")
        else:
            words.append(row["reason"])
    return sorted(words)


DERIVED = "derived series; stacks.derived=keep takes it"
CUT = "damaged: the file ends within its pixels, or holds fewer than its header says"
NO_POSITION = "multi-frame image without a position per frame"
CT, MR, SMALL = "ct 1×512×512, 1 slices", "t1 1×512×512, 1 slices", "t1 1×64×64, 1 slices"
NAMED = "transfer_syntaxes/ct/CTImage.dcm_{}TransferSyntax_1.2.840.10008.1.2{}.dcm"
# file, modality, what it becomes by itself, what with stacks.derived=keep (None: the same), lossy
FILES: list[tuple[str, str, str, str | None, bool]] = [
    ("small_cases/693_J2KI.dcm", "CT", CT, None, True),
    ("small_cases/693_J2KR.dcm", "CT", CT, None, False),
    ("small_cases/CT_small.dcm", "CT", "ct 1×128×128, 1 slices", None, False),
    ("small_cases/bad_sequence.dcm", "CT", CT, None, False),
    ("small_cases/explicit_VR-UN.dcm", "CT", CT, None, False),
    ("small_cases/eCT_Supplemental.dcm", "CT", DERIVED, "ct 2×512×512, 2 slices", False),
    *(
        (f"small_cases/MR_small{kind}.dcm", "MR", DERIVED, SMALL, False)
        for kind in ("", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_padded")
    ),
    ("small_cases/MR_truncated.dcm", "MR", DERIVED, CUT, False),
    *(
        (f"small_cases/emri_small{kind}.dcm", "MR", NO_POSITION, None, False)
        for kind in ("", "_RLE", "_big_endian", "_jpeg_2k_lossless", "_jpeg_2k_lossless_too_short", "_jpeg_ls_lossless")
    ),
    ("transfer_syntaxes/ct/CTImage.dcm", "CT", CT, None, False),
    (NAMED.format("LittleEndianImplicit", ""), "CT", CT, None, False),
    (NAMED.format("LittleEndianExplicit", ".1"), "CT", CT, None, False),
    (NAMED.format("DeflatedExplicitVRLittleEndian", ".1.99"), "CT", CT, None, False),
    (NAMED.format("BigEndianExplicit", ".2"), "CT", CT, None, False),
    (NAMED.format("RLELossless", ".5"), "CT", CT, None, False),
    (NAMED.format("JPEGProcess1", ".4.50"), "CT", CT, None, True),
    (NAMED.format("JPEGProcess2_4", ".4.51"), "CT", CT, None, True),
    (
        NAMED.format("JPEGProcess6_8", ".4.53"),
        "CT",
        "no decoder exists for JPEG Spectral Selection, Non-Hierarchical (Process 6 and 8)",
        None,
        True,
    ),
    (
        NAMED.format("JPEGProcess10_12", ".4.55"),
        "CT",
        "no decoder exists for JPEG Full Progression, Non-Hierarchical (Process 10 and 12)",
        None,
        True,
    ),
    (NAMED.format("JPEGProcess14", ".4.57"), "CT", CT, None, False),
    (NAMED.format("JPEGProcess14SV1", ".4.70"), "CT", CT, None, False),
    (NAMED.format("JPEGLSLossless", ".4.80"), "CT", CT, None, False),
    (NAMED.format("JPEGLSLossy", ".4.81"), "CT", CT, None, True),
    (NAMED.format("JPEG2000LosslessOnly", ".4.90"), "CT", CT, None, False),
    (NAMED.format("JPEG2000", ".4.91"), "CT", CT, None, True),
    (
        "transfer_syntaxes/ct/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm",
        "CT",
        DERIVED,
        "no air, and 35% of its voxels are above 600: not in HU; an intercept that was lost? (values -14 to 1199); "
        "values=trust takes it",
        True,
    ),
    ("transfer_syntaxes/ct/CT1_J2KR", "CT", CT, None, False),
    ("transfer_syntaxes/ct/CT2_J2KR", "CT", DERIVED, CT, False),
    *((f"transfer_syntaxes/wg04/{kind}/CT1_{kind}", "CT", CT, None, False) for kind in ("J2KR", "JLSL", "JPLL")),
    *((f"transfer_syntaxes/wg04/{kind}/CT1_{kind}", "CT", CT, None, True) for kind in ("J2KI", "JLSN")),
    *((f"transfer_syntaxes/wg04/{kind}/CT2_{kind}", "CT", DERIVED, CT, True) for kind in ("J2KI", "JLSN")),
    *((f"transfer_syntaxes/wg04/{kind}/CT2_{kind}", "CT", DERIVED, CT, False) for kind in ("J2KR", "JLSL", "JPLL")),
    *((f"transfer_syntaxes/wg04/{k}/MR4_{k}", "MR", MR, None, False) for k in ("J2KI", "J2KR", "JLSL", "JLSN", "JPLL")),
    (
        "transfer_syntaxes/wg04/JPLY/MR4_JPLY",
        "MR",
        "its pixels do not decode as JPEG Extended (Process 2 and 4)",
        None,
        True,
    ),
    *((f"transfer_syntaxes/wg04/RLE/CT{n}_RLE", "CT", DERIVED, CT, False) for n in (1, 2)),
    ("transfer_syntaxes/wg04/RLE/MR4_RLE", "MR", DERIVED, MR, False),
]


def alone(modality: str, derived: str = "refuse") -> PrepConfig:
    """Settings under which a single slice counts, whatever it shows."""
    config = CtConfig() if modality == "CT" else MriConfig(sequences={"*": "t1"}, min_foreground=0)
    config.min_slices, config.stacks.derived = 1, derived
    if modality == "CT":
        config.air.min_body_fraction = 0
    return config


def test_the_table_names_every_file(data_dir: Path) -> None:
    """No file of the two folders is forgotten."""
    there = {
        path.relative_to(data_dir / "dicom").as_posix()
        for part in ("small_cases", "transfer_syntaxes")
        for path in (data_dir / "dicom" / part).rglob("*")
        if path.is_file() and not path.name.startswith(("README", "LICENSE"))
    }
    assert there == {name for name, *_ in FILES}


@pytest.mark.parametrize(("name", "modality", "expected", "derived", "lossy"), FILES, ids=[row[0] for row in FILES])
def test_a_file_becomes(
    name: str, modality: str, expected: str, derived: str | None, lossy: bool, data_dir: Path, tmp_path: Path
) -> None:
    """Each file by itself, as the settings are and with derived images kept; the other modality refuses it."""
    (tmp_path / "in").mkdir()
    shutil.copy(data_dir / "dicom" / name, tmp_path / "in" / "file")
    for setting, wanted in (("refuse", expected), ("keep", derived or expected)):
        config = alone(modality, setting)
        became = become(tmp_path / "in", modality, config, tmp_path / setting)
        assert [told(each) for each in became.values()] == [[wanted]]
        if "slices" in wanted and modality == "CT":
            _equals_second_reader(tmp_path / "in" / "file", next(iter(became.values())).samples, lossy)
    other = "MR" if modality == "CT" else "CT"
    refused = become(tmp_path / "in", other, alone(other), tmp_path / "other")
    assert [told(each) for each in refused.values()] == [[f"modality {modality}, not {other}"]]


def _upright(image) -> np.ndarray:
    """(Z, Y, X) of a SimpleITK image, patient right→left, anterior→posterior, inferior→superior."""
    return SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(image, "LPS"))


def _equals_second_reader(path: Path, samples: list[schema.Slice], lossy: bool) -> None:
    """HU as SimpleITK (GDCM) reads them, values below −1024 as air; lossy decoders differ by a stored value."""
    try:
        expected = _upright(SimpleITK.ReadImage(str(path))).astype(np.float64)
    except RuntimeError:
        pytest.skip("the second reader cannot read this file")
    expected = np.rint(np.maximum(expected, schema.AIR_HU))
    found = np.stack([sample.pixels[0] for sample in samples]).astype(np.float64)
    header = pydicom.dcmread(path, stop_before_pixels=True)
    step = float(header.get("RescaleSlope", 1)) + 1 if lossy else 0
    assert found.shape == expected.shape and np.abs(found - expected).max() <= step


ODD_CT = {
    "failing/gantrytilting/001": ["ct 4×521×512, 4 slices"],
    "failing/notavolume/001": ["1 slices, fewer than min_slices=3"] * 4,
    "failing/slicecount/001": ["modality MR, not CT"],
    "failing/sliceincrement/001": ["1 slices in 1 runs shorter than min_slices=3", "ct 3×512×512, 3 slices"],
    "failing/sliceincrement/002": ["1 slices in 1 runs shorter than min_slices=3", "ct 3×513×512, 3 slices"],
    "generic/compressed_jpeg/001/IM-0001-0001-0001.dcm": ["modality MR, not CT"],
    "philips_enhanced/anatomical/001": ["modality MR, not CT"],
    "siemens_multiframe/anatomical/001": ["modality MR, not CT"],
}
UNKNOWN = "its sequence is unknown; sequences can name it by a pattern of its {}"
ODD_MR = {
    **{name: ["modality CT, not MR"] for name, rows in ODD_CT.items() if rows != ["modality MR, not CT"]},
    "failing/slicecount/001": ["2 slices, fewer than min_slices=3"],
    "generic/compressed_jpeg/001/IM-0001-0001-0001.dcm": ["flair 256×256×4, 256 slices"],  # and its RLE twin, dropped
    "philips_enhanced/anatomical/001": ["t1 256×256×8, 256 slices"],
    "siemens_multiframe/anatomical/001": [UNKNOWN.format("description")],
}
NAMED_MR, NAMED_CT = "named as MR; shard_mri.py takes it", "named as CT; shard_ct.py takes it"
ORPHAN = "label map without an image of its own"
HEART = "values 0 to 1, none below 0: not in HU; a label map, an MR or a picture?"
TOTAL = "ct_totalsegmentator"
BRATS = {"BraTS2021_00006": 132, "BraTS2021_01657": 125, "BraTS2021_01658": 122, "BraTS2021_01660": 133}
# folder, modality, settings → source → what it becomes
FOLDERS: list[tuple[str, str, dict, dict[str, list[str]]]] = [
    ("dicom/odd_geometry", "CT", {}, ODD_CT),
    ("dicom/odd_geometry", "MR", {}, ODD_MR),
    ("dicom/ge_gantry_tilt", "CT", {}, {".": ["ct 14×548×512, 14 slices", "ct 14×575×512, 14 slices"]}),
    ("dicom/ct_with_seg", "CT", {}, {"ct-3slice": ["ct 3×512×512, 3 slices"]}),
    (
        TOTAL,
        "CT",
        {},
        {
            "aorta_report/example_ct.nii.gz": ["ct 191×167×233, 191 slices"],
            "example_ct.nii.gz": ["ct 112×101×122, 112 slices"],
            "example_ct_dicom": ["ct 20×512×512, 20 slices"],
            "example_ct_sm.nii.gz": ["ct 30×101×122, 30 slices"],
            "example_mr_sm.nii.gz": [NAMED_MR],
            "example_seg_fast_force_split.nii.gz": [ORPHAN],
            "pulmonary_report/models/heart.nii.gz": [HEART],
        },
    ),
    (
        TOTAL,
        "MR",
        {"sequences": {"*_mr_sm*": "t1"}},
        {
            "aorta_report/example_ct.nii.gz": [NAMED_CT],
            "example_ct.nii.gz": [NAMED_CT],
            "example_ct_dicom": ["modality CT, not MR"],
            "example_ct_sm.nii.gz": [NAMED_CT, "t1 20×91×117, 20 slices"],  # one study by their names
            "example_seg_fast_force_split.nii.gz": [ORPHAN],
            "pulmonary_report/models/heart.nii.gz": [UNKNOWN.format("path")],
        },
    ),
    (
        "mri_brats",
        "MR",
        {},
        {
            f"{name}/{name}_flair.nii.gz": [f"{s} 155×240×240, {n} slices" for s in ("flair", "t1", "t1c", "t2")]
            for name, n in BRATS.items()
        },
    ),
    (
        "mri_brats",
        "CT",
        {},
        {f"{name}/{name}_{s}.nii.gz": [NAMED_MR] for name in BRATS for s in ("flair", "t1", "t1ce", "t2")},
    ),
    (
        "mri_open_ms",
        "MR",
        {},
        {
            "patient07/FLAIR_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz": [
                f"{sequence} 182×218×182, 112 slices" for sequence in ("flair", "t1", "t1c", "t2")
            ]
        },
    ),
    (
        "mri_native_4seq",
        "MR",
        {"study_from": "folder"},
        {
            "MRHR_FLAIR_AX_OtherEXampleTCIA_TCGA-FG-6692_Si_TCGA-FG-6692_MRHR_FLAIR_AX_SE_IR_5_tir2d1_21_fla.nii.gz": [
                "flair 26×256×208, 24 slices",
                "t1 26×224×256, 26 slices",
                "t1c 26×224×256, 26 slices",
                "t2 26×256×224, 24 slices",
            ]
        },
    ),
    (
        "ct_chest_slicerio",
        "CT",
        {"label_maps": {"CTChest4.nrrd": "Segmentation.seg.nrrd"}},
        {"CTChest4.nrrd": ["ct 34×128×128, 34 slices"], "SegmentationOverlapping.seg.nrrd": [ORPHAN]},
    ),
    (
        "tumour_nrrd",
        "CT",
        {},
        {
            "brain1_image.nrrd": ["values 0 to 3057, none below 0: not in HU; a label map, an MR or a picture?"],
            "lung1_image.nrrd": ["ct 48×512×512, 48 slices"],
        },
    ),
    (
        "spine_tptbox",
        "MR",
        {},
        {
            "sample_ct/sub-ct_label-22_ct.nii.gz": [NAMED_CT],
            "sample_mri/sub-mri_label-6_T2w.nii.gz": ["t2 52×68×67, 52 slices"],
        },
    ),
]


@pytest.mark.parametrize(
    ("folder", "modality", "settings", "expected"),
    FOLDERS,
    ids=[f"{row[0]}-{row[1]}-{n}" for n, row in enumerate(FOLDERS)],
)
def test_a_folder_becomes(folder: str, modality: str, settings: dict, expected: dict, data_dir: Path, tmp_path) -> None:
    """Every series, study and stray label map of a folder."""
    config = (CtConfig if modality == "CT" else MriConfig)(**settings)
    if "odd" in folder:  # their pixels are scrambled: no body to be found
        if modality == "CT":
            config.air.min_body_fraction = 0
        else:
            config.min_foreground = 0
    became = become(data_dir / folder, modality, config, tmp_path)
    assert {name: told(each) for name, each in became.items()} == {
        name: sorted(rows) for name, rows in expected.items()
    }


def test_a_series_holds_the_hu_of_a_second_reader(data_dir: Path, tmp_path: Path) -> None:
    """Twenty JPEG 2000 slices without any UID: order, spacing and HU as SimpleITK reads the files one by one."""
    became = become(data_dir / TOTAL, "CT", CtConfig(), tmp_path)["example_ct_dicom"]
    images = [SimpleITK.ReadImage(str(path)) for path in (data_dir / TOTAL / "example_ct_dicom").iterdir()]
    images.sort(key=lambda image: image.GetOrigin()[2])
    assert len(images) == len(became.samples) == 20
    for image, sample in zip(images, became.samples):
        assert np.array_equal(SimpleITK.GetArrayFromImage(image)[0], sample.pixels[0])
        assert sample.position == pytest.approx(image.GetOrigin()[2])
        assert sample.spacing == pytest.approx(image.GetSpacing()[1::-1])


def test_dicom_and_nifti_of_the_same_content_give_the_same_slices(data_dir: Path, tmp_path: Path) -> None:
    """The real series written as NIfTI and NRRD by another library becomes the same pixels, boxes and positions."""
    series = become(data_dir / TOTAL, "CT", CtConfig(), tmp_path / "series")["example_ct_dicom"].samples
    images = [SimpleITK.ReadImage(str(path)) for path in (data_dir / TOTAL / "example_ct_dicom").iterdir()]
    images.sort(key=lambda image: image.GetOrigin()[2])
    volume = SimpleITK.JoinSeries([image[:, :, 0] for image in images], images[0].GetOrigin()[2], 2.0)
    volume.SetOrigin(images[0].GetOrigin())
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        SimpleITK.WriteImage(volume, str(folder / f"p_ct{suffix}"))
        (became,) = become(folder, "CT", CtConfig(), tmp_path / f"{suffix[1:]}-out").values()
        assert len(became.samples) == 20
        for one, other in zip(series, became.samples):
            assert np.array_equal(one.pixels, other.pixels) and one.box == other.box
            assert one.position == pytest.approx(other.position, abs=1e-3)
            assert one.spacing == pytest.approx(other.spacing, rel=1e-5)


def test_a_dicom_segmentation_lies_on_its_series(data_dir: Path, tmp_path: Path) -> None:
    """The liver of a DICOM-SEG: in place, as SimpleITK reads the same file."""
    (became,) = become(data_dir / "dicom" / "ct_with_seg", "CT", CtConfig(), tmp_path).values()
    labels = np.stack([sample.labelmap for sample in became.samples])
    (path,) = (p for p in (data_dir / "dicom" / "ct_with_seg").rglob("*") if p.is_file() and _is_segmentation(p))
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert labels.any() and labels.shape == expected.shape
    assert np.array_equal(labels > 0, expected > 0)
    inside = np.stack([sample.pixels[0] for sample in became.samples])[labels > 0]
    assert 20 < np.median(inside) < 150  # liver


def _is_segmentation(path: Path) -> bool:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True).Modality == "SEG"
    except (pydicom.errors.InvalidDicomError, AttributeError):
        return False


def test_label_maps_of_nrrd_lie_where_another_library_puts_them(data_dir: Path, tmp_path: Path) -> None:
    """A segmentation on a smaller grid than its CT, against SimpleITK's resampling."""
    folder = data_dir / "ct_chest_slicerio"
    config = CtConfig(label_maps={"CTChest4.nrrd": "Segmentation.seg.nrrd"})
    became = become(folder, "CT", config, tmp_path)["CTChest4.nrrd"]
    image, labels = (SimpleITK.ReadImage(str(folder / n)) for n in ("CTChest4.nrrd", "Segmentation.seg.nrrd"))
    expected = _upright(SimpleITK.Resample(labels, image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor))
    found = np.stack([sample.labelmap for sample in became.samples])
    assert found.any() and (found != expected).mean() < 1e-3  # ties between two nearest voxels may fall either way


def test_openkbp_is_read_the_right_way_round(data_dir: Path, tmp_path: Path) -> None:
    """In a real head-and-neck volume the right parotid lies at smaller columns than the left, the cord below."""
    (became,) = become(data_dir / "ct_openkbp" / "pt_1", "CT", CtConfig(), tmp_path).values()
    labels = np.stack([sample.labelmap for sample in became.samples])
    centre = {value: np.argwhere(labels == value).mean(axis=0) for value in np.unique(labels) if value}
    assert centre[3][2] < centre[4][2]
    assert centre[1][0] > centre[2][0]  # the brainstem lies above the cord
    assert min(sample.pixels.min() for sample in became.samples) >= -1024
    assert became.samples[0].spacing == pytest.approx((3.906, 3.906), abs=1e-3)
