"""What MR series are: contrast medium in words, BIDS entities, localizers, maps; strong grounds beat weak ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path, PurePath

import numpy as np
import pydicom
import pytest
from helpers import dicom_files
from helpers.mri_files import head, write

from data_prep import shard_ct, shard_mri
from data_prep.discovery import kinds, sequences, wording

SPLIT = ("split.train=1", "split.val=0", "split.test=0")


def shard(source: Path, output: Path, *words: str, command=shard_mri) -> list[dict]:
    """Run the command on all patients as training; return the rows of the manifest."""
    assert command.main(["--input", str(source), "--output", str(output), *SPLIT, *words]) == 0
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def by_status(rows: list[dict]) -> tuple[dict[str, dict], list[dict]]:
    """Return the accepted rows by sequence, and the rejected ones."""
    accepted = {row["sequence"]: row for row in rows if row["status"] == "accepted"}
    return accepted, [row for row in rows if row["status"] == "rejected"]


def dicom(folder: Path, name: str, seed: int = 0, shape=(24, 24, 6), positions=None, each=None, **attributes) -> None:
    """Write an MR series named by its description."""
    voxels = head(shape, seed=seed).transpose(2, 1, 0)
    own = dict(SeriesDescription=name, SeriesInstanceUID=f"1.2.{seed + 1}", **attributes)
    dicom_files.series(folder / f"{seed}", voxels, positions, modality="MR", each=each, **own)


AFTER = [
    *("AX T1 W CONTRAST", "t1 tse km", "T1 +C", "T1+C", "T1 C+ AX", "T1 POST", "T1 POST GAD", "T1PostGd", "T1W CE"),
    *("T1 post-op +C", "sag t1 with gd", "T1 nach KM", "T1 mit KM", "T1 post contrast fs", "T1 wo FS POST"),
    *("post fossa T1 GD", "T1 con contraste", "T1 W/ IV CONTRAST", "contrast-enhanced T1", "T1 W/O FS +C", "T1 w C"),
    *(
        "T1 com contraste",
        "T1 z kontrastem",
        "T1 kontrastlı",
        "T1 조영증강",
        "T1_с_контрастом",
        "T1 Gd - axial",
        "t1 km-tra",
    ),
    *("T1 kontrasztanyaggal", "T1 med kontrast", "T1 s kontrastom", "T1 Gd-DTPA"),
    *("CET1", "T1 con gadolinio", "T1 SE C+FS", "T1 C plus", "sT1W_3D_TFE_GD", "T1 IV+", "T1 post gadoterate"),
]
BEFORE = [
    *("AX T1 W/O CONTRAST", "AX T1 w\\o", "T1 WITHOUT", "T1 no contrast", "T1 non-contrast", "T1 NON CON", "T1 pre"),
    *(
        "PRE AX T1",
        "T1 nativ",
        "T1 sans injection",
        "T1 sans gado",
        "T1 vor KM",
        "T1 ohne KM",
        "T1 unenhanced",
        "preT1",
    ),
    *("AX T1 -C", "T1 pre-Gd", "T1 noncontrast", "T1 wo", "T1 senza mdc", "non enhanced T1", "T1 not enhanced"),
    *("T1 W/O IV CONTRAST", "T1 without i.v. contrast", "T1 C-", "t1_pre_contrast", "T1 ohne"),
    *(
        "T1 sem contraste",
        "T1 s/ contraste",
        "T1 s/c",
        "T1 kontrastsız",
        "T1 조영전",
        "T1_KM-frei",
        "T1 IV-",
        "T1 Gd- ax",
    ),
    *("T1 KM -", "T1_Gd_neg", "T1 uden kontrast", "T1_без_контраста", "T1 bez kontrastu", "T1 gado negativ"),
    *("T1 w.o. contrast", "T1_W_O_CONTRAST", "T1 wout contrast", "T1 prior to contrast", "T1 contrast: none"),
]
NEITHER = [
    *("T1 post fossa", "T1 posterior fossa", "T1 post-operative", "T1 postop", "T1 pre-op", "T1 W/WO CONTRAST"),
    *("T1 w and w/o contrast", "T1 wo/w contrast", "T1 C-SPINE", "SAG T1-C SPINE", "T1 no 3", "T1 without fatsat"),
    *("T1 C+T spine", "T1 post treatment", "t1 post RT", "T1 post shunt", "T1 native space", "T1 SE AX C SPINE", "T1"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [*((text, True) for text in AFTER), *((text, False) for text in BEFORE), *((text, None) for text in NEITHER)],
)
def test_contrast_medium_is_read_with_its_negations(text: str, expected: bool | None) -> None:
    """In several languages; posterior fossa and the time of an operation are not contrast medium."""
    assert wording.contrast(wording.words(text)) is expected
    dataset = pydicom.Dataset()
    dicom_files.put(dataset, {"SeriesDescription": text})
    assert sequences.by_header(dataset).sequence == ("t1c" if expected else "t1")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"SeriesDescription": "AX T1 W/O CONTRAST", "ContrastBolusAgent": "Gadovist"}, "t1"),  # the study's, later
        ({"SeriesDescription": "AX T1", "ContrastBolusAgent": "NONE"}, "t1"),
        ({"SeriesDescription": "AX T1 W/WO", "ContrastBolusAgent": "MULTIHANCE"}, "t1c"),
        ({"SeriesDescription": "AX GRE T2*"}, "t2star"),
        ({"SeriesDescription": "AX_T2*_GRE"}, "t2star"),
        ({"SeriesDescription": "T1 GRE"}, "t1"),
        ({"SeriesDescription": "VEN_BOLD"}, "swi"),
        ({"SeriesDescription": "PD/T2", "RepetitionTime": 3000, "EchoTime": 15}, "pd"),
        ({"SeriesDescription": "PD/T2", "RepetitionTime": 3000, "EchoTime": 90}, "t2"),
        ({"SeriesDescription": "t2_tirm_cor", "InversionTime": 150}, "t2"),
        ({"SeriesDescription": "t2_tirm_tra_dark-fluid", "InversionTime": 2500}, "flair"),
        ({"SeriesDescription": "ep2d_diff_3scan", "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "adc"),
    ],
)
def test_descriptions_that_misled(attributes: dict, expected: str) -> None:
    """An agent that the study got later, T2*, techniques beside weightings, two echoes, short inversions."""
    dataset = pydicom.Dataset()
    dicom_files.put(dataset, attributes)
    assert sequences.kind_by_header(dataset) is None
    assert sequences.by_header(dataset).sequence == expected


@pytest.mark.parametrize(
    ("name", "sequence", "kind"),
    [
        ("sub-01_inv-1_MP2RAGE.nii.gz", None, "single inversion"),
        ("sub-01_UNIT1.nii.gz", "t1", None),
        ("sub-01_T1map.nii.gz", None, "map"),
        ("sub-01_Chimap.nii.gz", None, "map"),
        ("sub-01_ce-none_T1w.nii.gz", "t1", None),
        ("sub-01_ce-preGd_T1w.nii.gz", "t1", None),
        ("sub-01_ce-gadovist_T1w.nii.gz", "t1c", None),
        ("sub-01_acq-postGd_T1w.nii.gz", "t1c", None),
        ("sub-01_acq-preop_T1w.nii.gz", "t1", None),
        ("sub-01_part-phase_T2starw.nii.gz", None, "phase image"),
        ("sub-01_part-mag_T2starw.nii.gz", "t2star", None),
        ("sub-01_acq-scout_T1w.nii.gz", None, "localizer"),
        ("sub-01_asl.nii.gz", None, "perfusion"),
        ("sub-01_task-rest_bold.nii.gz", None, "functional series"),
        ("sub-01_magnitude1.nii.gz", None, "field map"),
        ("sub-01_angio.nii.gz", None, "angiography"),
        ("p1_localizer_T1.nii.gz", None, "localizer"),
        ("pilot_07_T1.nii.gz", "t1", None),  # a study's name
        ("p1_T1_map.nii.gz", None, "map"),
        ("p1_swi_phase.nii.gz", None, "phase image"),
        ("p1_T1_arterial_phase.nii.gz", "t1", None),
        ("p1_T2_to_T1.nii.gz", "t2", None),
        ("p1_T1_W_O_contrast.nii.gz", "t1", None),
        ("p1_mp2rage_INV1.nii.gz", None, "single inversion"),
        ("p1_T1_without_contrast.nii.gz", "t1", None),
        ("p1_T1_post_sub.nii.gz", None, "subtraction"),
        ("sub_07_T1.nii.gz", "t1", None),
        ("P1/T1/P1_T1_FLAIR.nii.gz", "flair", None),  # T1 is a time point
        ("P1/T2/P1_T2_T1.nii.gz", "t1", None),
        ("in/P1/T1/P1-T1-T2.nii.gz", "t2", None),
        ("P1/T1/P1_T1.nii.gz", "t1", None),
        ("P1/T1/T1_FLAIR.nii.gz", "t1", None),
    ],
)
def test_names_say_what_is_no_weighted_image(name: str, sequence: str | None, kind: str | None) -> None:
    """BIDS suffixes and entities, and words; a word before the sequence may be a name."""
    guess = sequences.by_name(PurePath(name))
    assert (guess.sequence if guess else None) == sequence
    found = sequences.kind_by_name(PurePath(name))
    assert found is None if kind is None else str(found).startswith(kind)


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"SeriesDescription": "AAHead_Scout"}, "localizer"),
        ({"SeriesDescription": "localizer"}, "localizer"),
        ({"SeriesDescription": "3-plane loc T1"}, "localizer"),
        ({"SeriesDescription": "Survey_SHC"}, "localizer"),
        ({"SeriesDescription": "3D TOF"}, "angiography"),
        ({"SeriesDescription": "MobiView", "AngioFlag": "Y"}, "angiography"),
        ({"SeriesDescription": "gre_field_mapping"}, "field map"),
        ({"SeriesDescription": "pCASL 3D"}, "perfusion"),
        ({"SeriesDescription": "ep2d_perf"}, "perfusion"),
        ({"SeriesDescription": "ep2d_bold_moco"}, "functional series"),
        ({"SeriesDescription": "Pha_Images"}, "phase image"),
        ({"SeriesDescription": "T1 subtraction"}, "subtraction"),
        ({"SeriesDescription": "mIP_Images(SW)"}, "projection"),
        ({"SeriesDescription": "T2 map"}, "map"),
        ({"SeriesDescription": "AX T2*", "ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "phase image"),
        ({"SeriesDescription": "AX T2*", "ComplexImageComponent": "PHASE"}, "phase image"),
        ({"SeriesDescription": "T1 in phase"}, None),
        ({"SeriesDescription": "T1 FA 15"}, None),
        ({"SeriesDescription": "T1", "ProtocolName": "MRA and survey"}, None),
    ],
)
def test_headers_say_what_is_no_weighted_image(attributes: dict, kind: str | None) -> None:
    """By description and by coded fields."""
    dataset = pydicom.Dataset()
    dicom_files.put(dataset, attributes)
    assert sequences.kind_by_header(dataset) == kind or str(sequences.kind_by_header(dataset)).startswith(str(kind))


def test_times_say_nothing_about_echo_planar_and_dynamic_series() -> None:
    """Their textbook weighting would be T2 or T2*, whatever they are."""
    times = {"RepetitionTime": 4000, "EchoTime": 95}
    for attributes in ({"ScanningSequence": ["EP", "SE"]}, {"NumberOfTemporalPositions": 40}):
        dataset = pydicom.Dataset()
        dicom_files.put(dataset, {**times, **attributes})
        assert sequences.by_header(dataset) is None


def test_bids_entities_choose_the_t1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The plain T1w is used; what loses is named on the console, once, and in the manifest."""
    anat = tmp_path / "in" / "sub-01" / "anat"
    names = ["inv-1_MP2RAGE", "UNIT1", "T1map", "ce-none_T1w", "run-2_T1w", "part-phase_T2starw", "part-mag_T2starw"]
    for seed, name in enumerate(names):
        shape = (30, 30, 12) if name == "UNIT1" else (24, 24, 10)  # size does not decide
        write(anat / f"sub-01_{name}.nii.gz", head(shape, seed=seed))
    accepted, rejected = by_status(shard(tmp_path / "in", tmp_path / "out", "--show-names"))
    assert set(accepted) == {"t1", "t2star"} and len(accepted["t1"]["chosen_over"]) == 2
    lost = [row for row in rejected if "lost_to" in row]
    assert {row["lost_to"] for row in lost} == {accepted["t1"]["source"]} and len(rejected) == 5
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("study ")]
    assert len(lines) == 1 and "t1 is sub-01/anat/sub-01_ce-none_T1w.nii.gz (BIDS name), not" in lines[0]
    assert "UNIT1" in lines[0] and "run-2" in lines[0]


def test_a_larger_volume_of_weaker_grounds_does_not_win(tmp_path: Path) -> None:
    """A series known by times alone never replaces one that its description names; a pattern replaces both."""
    dicom(tmp_path / "in", "AX T1 SE", seed=1)
    dicom(tmp_path / "in", "Series 4", seed=2, shape=(40, 40, 20), RepetitionTime=500, EchoTime=10)
    accepted, (lost,) = by_status(shard(tmp_path / "in", tmp_path / "out"))
    assert accepted["t1"]["grounds"] == "SeriesDescription" and "is better known" in lost["reason"]
    config = tmp_path / "c.yaml"
    config.write_text("sequences: {'series 4': t1}\n")
    accepted, (lost,) = by_status(shard(tmp_path / "in", tmp_path / "out2", "--config", str(config)))
    assert accepted["t1"]["grounds"] == "pattern given" and lost["grounds"] == "SeriesDescription"


def test_t1_with_and_without_contrast_are_two_sequences(tmp_path: Path) -> None:
    """ "W/O CONTRAST" is not "CONTRAST"."""
    for seed, name in enumerate(("AX T1 W/O CONTRAST", "AX T1 W CONTRAST", "AX T2 FSE")):
        dicom(tmp_path / "in", name, seed=seed)
    accepted, rejected = by_status(shard(tmp_path / "in", tmp_path / "out"))
    assert set(accepted) == {"t1", "t1c", "t2"} and not rejected


def test_the_diffusion_image_is_not_the_one_without_diffusion(tmp_path: Path) -> None:
    """Of b-values 0 and 1000 the latter is dwi."""
    dicom(tmp_path / "in", "DWI", seed=1, DiffusionBValue=0.0)
    dicom(tmp_path / "in", "DWI", seed=2, DiffusionBValue=1000.0)
    accepted, (lost,) = by_status(shard(tmp_path / "in", tmp_path / "out"))
    assert "b-value 0" in lost["reason"] and set(accepted) == {"dwi"}


@pytest.mark.parametrize("packed", [False, True])
def test_localizers_are_left_out_and_never_give_the_grid(packed: bool, tmp_path: Path) -> None:
    """By description, by slices far apart, by planes, of gzipped files too; on request kept, but not as the grid."""
    dicom(tmp_path / "in", "t2_tse_tra", seed=1)
    times = {"ScanningSequence": "GR", "RepetitionTime": 8.6, "EchoTime": 4.0}
    dicom(tmp_path / "in", "AAHead_Scout", seed=2, **times)
    far = [(0, 0, 20 * place) for place in range(6)]
    dicom(tmp_path / "in", "quick", seed=3, positions=far, SliceThickness=6, **times)
    axial, sagittal, coronal = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]
    each = [{"ImageOrientationPatient": axes} for axes in (axial, sagittal, coronal) for _ in range(4)]
    places = [
        *((0, 0, 4 * n) for n in range(4)),
        *((4 * n, 0, 0) for n in range(4)),
        *((0, 4 * n, 0) for n in range(4)),
    ]
    dicom(tmp_path / "in", "fast", seed=4, shape=(24, 24, 12), positions=places, each=each, **times)
    for path in [path for path in (tmp_path / "in").rglob("*") if packed and path.is_file()]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    accepted, rejected = by_status(shard(tmp_path / "in", tmp_path / "out"))
    assert set(accepted) == {"t2"}
    reasons = {row["reason"] for row in rejected}
    assert "localizer; localizers=keep takes it" in reasons
    assert any("6 slices of 6 mm, 20 mm apart" in reason for reason in reasons)
    assert any("12 slices in 3 planes" in reason for reason in reasons)
    accepted, _ = by_status(shard(tmp_path / "in", tmp_path / "out2", "localizers=keep", "min_overlap=0"))
    assert set(accepted) == {"t1", "t2"} and accepted["t2"]["reference"]


def test_a_kept_scout_of_an_image_file_never_gives_the_grid(tmp_path: Path) -> None:
    """Its slices are the thickest, and yet the other sequence gives the grid; of two T1 it loses."""
    thick = np.diag([2.0, 2, 6, 1])
    write(tmp_path / "in" / "p" / "a_T1_scout.nii.gz", head((24, 24, 4)), thick)
    write(tmp_path / "in" / "p" / "a_T2w.nii.gz", head(seed=1))
    accepted, (refused,) = by_status(shard(tmp_path / "in", tmp_path / "out"))
    assert set(accepted) == {"t2"} and refused["reason"] == "localizer; localizers=keep takes it"
    accepted, _ = by_status(shard(tmp_path / "in", tmp_path / "out2", "localizers=keep"))
    assert set(accepted) == {"t1", "t2"} and accepted["t2"]["reference"]
    write(tmp_path / "in" / "p" / "a_T1w.nii.gz", head((20, 20, 4), seed=2))
    accepted, (lost,) = by_status(
        shard(tmp_path / "in", tmp_path / "out3", "localizers=keep", "study_from=folder", "min_overlap=0")
    )
    assert "no localizer" in lost["reason"] and lost["lost_to"] == accepted["t1"]["source"]


def test_a_series_with_gaps_that_is_named_is_no_localizer() -> None:
    """Geometry is weaker than words, and a thick stack without large gaps is none at all."""
    dataset = pydicom.Dataset()
    dataset.SliceThickness = 5
    assert (
        kinds.sparse(dataset, 10, 20.0) and not kinds.sparse(dataset, 10, 6.5) and not kinds.sparse(dataset, 40, 20.0)
    )


def test_frames_of_reference_that_were_remapped(tmp_path: Path) -> None:
    """Refused with the setting that trusts the affines; with it one study, and a note."""
    for seed, name in enumerate(("T1 AX", "T2 AX", "FLAIR AX")):
        dicom(tmp_path / "in", name, seed=seed, FrameOfReferenceUID=f"1.7.{seed}")
    accepted, rejected = by_status(shard(tmp_path / "in", tmp_path / "out"))
    assert len(accepted) == 1 and all("frame_of_reference=ignore" in row["reason"] for row in rejected)
    accepted, rejected = by_status(shard(tmp_path / "in", tmp_path / "out2", "frame_of_reference=ignore"))
    assert set(accepted) == {"t1", "t2", "flair"} and not rejected
    assert sum("frame_of_reference_ignored" in row["notes"] for row in accepted.values()) == 2


def test_the_command_says_ct_where_names_say_a_sequence(tmp_path: Path) -> None:
    """T1 and T2 may be time points: voxels with air are CT; an MR of that name is still refused as one."""
    hu = np.where(head((24, 24, 10)) > 30, head((24, 24, 10)) - 60, -1000).astype(np.int16)
    names = ("case1_T1", "case1_T2", "P2_CT1", "P3_pd", "P4_T1w", "P5_diff")
    for name in names:
        write(tmp_path / "in" / f"{name}.nii.gz", hu)
    write(tmp_path / "in" / "mr_T1.nii.gz", head())
    normal = ((head() - 50) / 20).astype(np.float32)
    write(tmp_path / "in" / "normalised_T1.nii.gz", normal)
    rows = shard(tmp_path / "in", tmp_path / "out", command=shard_ct)
    accepted = [row for row in rows if row["status"] == "accepted"]
    assert len(accepted) == len(names)
    assert sum(row["notes"].get("named_as_mr", False) for row in accepted) == len(names)
    left_out = [row["reason"] for row in rows if row["status"] == "rejected"]
    assert len(left_out) == 2 and "named as MR; shard_mri.py takes it" in left_out
    trusted = shard(tmp_path / "in", tmp_path / "trusted", "values=trust", command=shard_ct)
    assert all(row["status"] == "accepted" for row in trusted)  # the user's word counts for names, too


def test_an_mr_whose_name_also_says_ct_is_taken_by_its_voxels(tmp_path: Path) -> None:
    """The command was chosen for MR: a name with CT and a sequence is refused only if its voxels show air in HU."""
    write(tmp_path / "in" / "p" / "CT_trial_T1w.nii.gz", head())
    hu = np.where(head(seed=1) > 30, head(seed=1) - 60, -1000).astype(np.int16)
    write(tmp_path / "in" / "q" / "ct_T1.nii.gz", hu)
    accepted, (refused,) = by_status(shard(tmp_path / "in", tmp_path / "out"))
    assert set(accepted) == {"t1"} and refused["reason"] == "named as CT; shard_ct.py takes it"


@pytest.mark.parametrize(
    ("attribute", "values", "said"),
    [
        ("ComplexImageComponent", ("MAGNITUDE", "PHASE"), "phase image"),
        ("AcquisitionContrast", ("T2", "PERFUSION"), "perfusion"),
        ("FrameType", (["ORIGINAL", "PRIMARY", "OTHER"], ["ORIGINAL", "PRIMARY", "PERFUSION"]), "perfusion"),
        ("FrameType", (["ORIGINAL", "PRIMARY", "OTHER"], ["DERIVED", "PRIMARY", "PERFUSION", "RCBV"]), "derived"),
    ],
)
def test_frames_of_an_enhanced_image_are_known_by_their_groups(
    attribute: str, values: tuple, said: str, tmp_path: Path
) -> None:
    """One file holds an image and what is no image of the anatomy, told by a functional group alone."""
    stored = np.repeat(head((24, 24, 6)).transpose(2, 1, 0), 2, axis=0)
    positions = [(0, 0, 3.0 * (n // 2)) for n in range(12)]
    each = [{"MRImageFrameTypeSequence": {attribute: values[n % 2]}} for n in range(12)]
    (tmp_path / "in").mkdir()
    whole = {} if attribute == "FrameType" else {attribute: "MIXED"}  # as the file's own header says it
    dicom_files.enhanced(tmp_path / "in" / "e", stored, positions, "MR", each, SeriesDescription="AX T2", **whole)
    accepted, (refused,) = by_status(shard(tmp_path / "in", tmp_path / "out"))
    assert set(accepted) == {"t2"} and refused["reason"].startswith(said)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("174-bids-quirks", {"t1", "flair", "t2star"}),
        ("80-t1-without-contrast", {"t1", "t1c"}),
        ("175-frame-of-reference-remapped", {"t1", "t2", "flair"}),
    ],
)
def test_cases_that_were_reported(case: str, expected: set[str], tmp_path: Path) -> None:
    """The inputs that people reported, where they are there."""
    source = Path(__file__).parents[2] / "shared" / "cases" / case
    if not source.is_dir():
        pytest.skip("the cases are not here")
    accepted, _ = by_status(shard(source, tmp_path / "out", "frame_of_reference=ignore"))
    assert set(accepted) == expected
