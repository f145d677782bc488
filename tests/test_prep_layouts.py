"""Layouts through the real commands: patients, sequences, label maps and their names, and what is said of them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from helpers.mri_files import head, write
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import merge, schema, shard_ct, shard_mri
from data_prep.config import CtConfig, MriConfig
from data_prep.discovery import archive
from data_prep.discovery.inputs import Inputs
from data_prep.discovery.layouts import recognise
from data_prep.discovery.layouts.rules import LayoutError

CASES = Path(__file__).parents[2] / "shared" / "cases"
ALL_TRAIN = ("split.train=1", "split.val=0", "split.test=0")


def body(seed: int = 0) -> np.ndarray:
    """(24, 20, 8) HU: tissue in air."""
    hu = np.full((24, 20, 8), -1000, np.int16)
    hu[4:20, 4:16] = np.random.default_rng(seed).integers(-60, 80, (16, 12, 8))
    return hu


def labels(*values: int) -> np.ndarray:
    """(24, 20, 8) labels, each value in a block of its own."""
    drawn = np.zeros((24, 20, 8), np.uint8)
    for place, value in enumerate(values):
        drawn[5 + 4 * place : 8 + 4 * place, 6:10, 2:6] = value
    return drawn


def shard(*words: str, command=shard_ct) -> int:
    """Run the command."""
    return command.main([*words, *ALL_TRAIN])


def dataset(output: Path) -> dict:
    """Read `dataset.json`."""
    return json.loads((output / "dataset.json").read_text())


def accepted(output: Path) -> list[dict]:
    """Rows of the manifest that became samples."""
    rows = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    return [row for row in rows if row["status"] == "accepted"]


CASES_OF = {
    "73-nnunet-layout": ("nnunet", 6, 6, {"1": "label 1", "2": "label 2"}),
    "73b-train-folder-on-top": ("ct_rate", 6, 0, {}),
    "74c-btcv": ("btcv", 3, 3, {"1": "spleen", "2": "right kidney"}),
    "141-v1-labels": ("nnunet", 6, 6, {"1": "liver", "2": "tumour"}),
    "142-regions": ("nnunet", 6, 0, {}),
    "143-ignore": ("nnunet", 6, 6, {"1": "liver"}),
}


@pytest.mark.parametrize("case", CASES_OF)
def test_cases_of_layouts(case: str, tmp_path: Path, capsys) -> None:
    """A patient an image, label maps with their names; what was recognised is said, and stands in dataset.json."""
    if not (CASES / case).is_dir():
        pytest.skip("needs ../shared/cases")
    layout, patients, mapped, names = CASES_OF[case]
    assert shard("--input", str(CASES / case), "--output", str(tmp_path / "out")) == 0
    said, made = capsys.readouterr().err, dataset(tmp_path / "out")
    rows = accepted(tmp_path / "out")
    assert f"({layout}) by " in said and f"{patients} images of {patients} patients" in said
    assert made["made_with"]["found"]["layouts"][0]["name"] == layout
    assert {row["layout"] for row in rows} == {layout}
    assert len({row["subject"] for row in rows}) == patients == made["splits"]["train"]["subjects"]
    assert sum(bool(row["annotated"]) for row in rows) == mapped and made["labels"] == names
    if case == "142-regions":
        assert "described by regions (whole: 1, 2)" in said
    if case == "143-ignore":
        assert made["ignore"] == [2, 255]
        assert all(row["annotated"] == [1] and row["notes"]["ignored_voxels"] for row in rows)


def test_train_and_no_layout_names_patients_by_the_level_that_differs(tmp_path: Path, capsys) -> None:
    """`layout=none` of train/train_1/…: six patients, and the console says by which level."""
    case = CASES / "73b-train-folder-on-top"
    if not case.is_dir():
        pytest.skip("needs ../shared/cases")
    assert shard("--input", str(case), "--output", str(tmp_path / "out"), "--layout", "none") == 0
    assert "patients by folder level 2 (train/*): 6" in capsys.readouterr().err
    made = dataset(tmp_path / "out")
    assert made["made_with"]["found"]["layouts"] == [] and made["made_with"]["settings"]["layout"] == "none"
    assert made["splits"]["train"]["subjects"] == 6


def nnunet(root: Path, *cases: str, channels: tuple[str, ...] = ("0000",), described: dict | None = None) -> Path:
    """A raw data set of CT, its label maps with the values 1 and 2."""
    for number, case in enumerate(cases):
        for channel in channels:
            write(root / "imagesTr" / f"{case}_{channel}.nii.gz", body(number))
        write(root / "labelsTr" / f"{case}.nii.gz", labels(1, 2))
    if described:
        (root / "dataset.json").write_text(json.dumps(described))
    return root


def test_several_roots_and_a_folder_without_a_layout(tmp_path: Path, capsys) -> None:
    """Each root is recognised; what no rule knows is read by the general rules, and counted."""
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}}
    nnunet(tmp_path / "in" / "Dataset001_A", "a1", "a2", described=described)
    nnunet(tmp_path / "in" / "Dataset002_B", "b1", described=described)
    write(tmp_path / "in" / "Dataset002_B" / "imagesTr" / "odd.nii.gz", body(7))
    write(tmp_path / "in" / "own" / "ct.nii.gz", body(8))
    write(tmp_path / "in" / "own" / "seg.nii.gz", labels(1))
    write(tmp_path / "in" / "Dataset001_A" / "imagesTs" / "t1_0000.nii.gz", body(9))
    (tmp_path / "in" / "Dataset001_A" / "imagesTr" / "._a1_0000.nii.gz").write_bytes(b"\0" * 99)
    assert shard("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")) == 0
    said, rows = capsys.readouterr().err, accepted(tmp_path / "out")
    assert "in 2 folders: 4 images of 4 patients, 3 label maps" in said
    assert "1 image files there that its rules do not know" in said
    assert "1 × resource fork of macOS" in said
    assert "1 label maps lie outside of the layouts, and their values get the names of those (label 1 is liver)" in said
    assert len(rows) == 6 == len({row["subject"] for row in rows})
    assert sorted(row["annotated"] for row in rows) == [[], [], [1], [1, 2], [1, 2], [1, 2]]
    assert dataset(tmp_path / "out")["labels"] == {"1": "liver", "2": "spleen"}


def test_bids_is_named_with_its_subjects(tmp_path: Path, capsys) -> None:
    """Its names say patient, session and sequence; the console how many there are."""
    for subject in ("01", "02"):
        for name in ("T1w", "FLAIR"):
            write(tmp_path / "in" / f"sub-{subject}" / "anat" / f"sub-{subject}_{name}.nii.gz", head())
    words = ("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert shard(*words, command=shard_mri) == 0
    assert "layout: BIDS (bids) by */anat/*_*.nii.gz: 4 images of 2 patients\n" in capsys.readouterr().err
    found = dataset(tmp_path / "out")["made_with"]["found"]["layouts"]
    assert [(one["name"], one["images"], one["patients"]) for one in found] == [("bids", 4, 2)]


def test_label_names_that_disagree_are_an_error_until_the_user_names_them(tmp_path: Path, capsys) -> None:
    """Value 1 is liver in one folder and kidney in another: nothing is sharded, the remedy works."""
    for name, organ in (("Dataset001_A", "liver"), ("Dataset002_B", "kidney")):
        nnunet(tmp_path / "in" / name, name[-1], described={"labels": {"background": 0, organ: 1, "spleen": 2}})
    words = ("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert shard(*words) == 1
    said = capsys.readouterr().err
    assert "label 1 is liver in one folder and kidney in another" in said and "labels.1=NAME" in said
    assert shard("--input", str(tmp_path / "in"), "--output", str(tmp_path / "o2"), "labels.1=organ") == 0
    assert dataset(tmp_path / "o2")["labels"] == {"1": "organ", "2": "spleen"}
    (tmp_path / "in" / "Dataset002_B" / "dataset.json").unlink()
    assert shard("--input", str(tmp_path / "in"), "--output", str(tmp_path / "o3")) == 1
    assert "another one's label maps have no names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"labels": {"liver"', "cut or damaged"),
        ("[1]", "not"),
        ('{"labels": {"liver": "one"}}', "not a number"),
        ('{"labels": {"liver": 1, "spleen": 1}}', "two names"),
        ('{"labels": 3}', "not a mapping"),
        ('{"channel_names": {"CT": 0}}', "not a number with a name"),
    ],
)
def test_a_damaged_description_is_one_line(content: str, says: str, tmp_path: Path, capsys) -> None:
    """It names the file and the layout, never the folder, and what to do; layout=none goes on."""
    root = nnunet(tmp_path / "in" / "Meier", "a")
    (root / "dataset.json").write_text(content)
    assert shard("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "dataset.json of nnU-Net" in last and says in last and "layout=none" in last and "Meier" not in last
    assert shard("--input", str(tmp_path / "in"), "--output", str(tmp_path / "none"), "--layout=none") == 0


def test_channels_of_ct(tmp_path: Path, capsys) -> None:
    """Of several channels the CT is taken; where none or two are called so, none is, and the reason says why."""
    described = {"channel_names": {"0": "CT", "1": "PET"}}
    root = nnunet(tmp_path / "pet", "a", "b", channels=("0000", "0001"), described=described)
    assert shard("--input", str(root), "--output", str(tmp_path / "o1")) == 0
    said = capsys.readouterr().err
    assert "2 × channel PET beside the CT of its case" in said and "label map of an image" not in said
    assert len(accepted(tmp_path / "o1")) == 2
    assert all(row["annotated"] == [1, 2] for row in accepted(tmp_path / "o1"))
    for number, names in enumerate(({"0": "CT", "1": "CT late"}, {"0": "low", "1": "high"})):
        (root / "dataset.json").write_text(json.dumps({"channel_names": names, "labels": {}}))
        assert shard("--input", str(root), "--output", str(tmp_path / f"o{number + 2}")) == 1
        said = capsys.readouterr().err
        assert "one of several channels" in said and said.count("label map of an image that is left out") == 2


def test_channels_of_mr_are_the_sequences_of_one_study(tmp_path: Path, capsys) -> None:
    """By the names in dataset.json, version 1 or 2, whatever the file's name says."""
    root = tmp_path / "in"
    names = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    for case in ("t2_a", "t2_b"):
        for place in names:
            write(root / "imagesTr" / f"{case}_000{place}.nii.gz", head(seed=int(place)))
        write(root / "labelsTr" / f"{case}.nii.gz", (head() > 60).astype(np.uint8))
    (root / "dataset.json").write_text(json.dumps({"modality": names, "labels": {"0": "background", "1": "tumour"}}))
    assert shard("--input", str(root), "--output", str(tmp_path / "out"), command=shard_mri) == 0
    rows = accepted(tmp_path / "out")
    assert {row["sequence"] for row in rows} == {"flair", "t1", "t1c", "t2"} and len(rows) == 8
    assert len({row["stack"] for row in rows}) == 2 == len({row["subject"] for row in rows})
    assert {row["grounds"] for row in rows} == {"layout nnunet"} and all(row["annotated"] == [1] for row in rows)
    assert dataset(tmp_path / "out")["labels"] == {"1": "tumour"}
    pattern = "sequences={'*_0001.nii.gz': t1c, '*_0002.nii.gz': pd}"
    assert shard("--input", str(root), "--output", str(tmp_path / "o2"), pattern, command=shard_mri) == 0
    assert {row["sequence"] for row in accepted(tmp_path / "o2")} == {"flair", "t1c", "pd", "t2"}
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {}}))
    assert shard("--input", str(root), "--output", str(tmp_path / "o3"), command=shard_mri) == 1
    said = capsys.readouterr().err
    assert said.count("channel CT; shard_ct.py takes it") == 2
    assert said.count("channel 0003 is not among the 1 described") == 2


def test_regions_need_names_for_their_values(tmp_path: Path, capsys) -> None:
    """Without them images are used without their label maps; with them the label maps are used."""
    described = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}}
    root = nnunet(tmp_path / "in", "a", "b", described=described)
    assert shard("--input", str(root), "--output", str(tmp_path / "o1")) == 0
    assert "labels.1=NAME and so on name its values" in capsys.readouterr().err
    assert all(row["annotated"] == [] for row in accepted(tmp_path / "o1"))
    assert shard("--input", str(root), "--output", str(tmp_path / "o2"), "labels.1=rim", "labels.2=core") == 0
    assert dataset(tmp_path / "o2")["labels"] == {"1": "rim", "2": "core"}
    assert all(row["annotated"] == [1, 2] for row in accepted(tmp_path / "o2"))


def test_a_layout_that_does_not_fit_says_what_is_missing(tmp_path: Path, capsys) -> None:
    """Forced, unknown, of the other command, given twice: one line each."""
    write(tmp_path / "in" / "imagesTr" / "a_0000.nii.gz", body())
    words = ("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    for more, says in (
        (("--layout", "nnunet"), "layout=nnunet: no folder of the input has labelsTr/*.nii.gz"),
        (("layout=nnu-net",), "did you mean nnunet?"),
        (("--layout=brats",), "is for mri"),
    ):
        assert shard(*words, *more) == 1
        assert says in capsys.readouterr().err.strip().splitlines()[-1]
    with pytest.raises(SystemExit):
        shard(*words, "--layout", "nnunet", "--layout", "none")


def test_own_folders_that_look_alike_are_not_seized(tmp_path: Path, capsys) -> None:
    """A layout whose rules know less than half of the image files is not taken, and that is said; it can be forced."""
    nnunet(tmp_path / "in", "a")
    for number in range(3):
        write(tmp_path / "in" / f"patient{number}" / "ct.nii.gz", body(number))
    assert shard("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")) == 0
    said = capsys.readouterr().err
    assert "knows fewer than half of the image files there, so it is not taken; layout=nnunet takes it" in said
    assert "patients by folder level 1" in said
    assert not any("layout" in row for row in accepted(tmp_path / "out"))
    assert shard("--input", str(tmp_path / "in"), "--output", str(tmp_path / "o2"), "--layout", "nnunet") == 0
    assert "3 image files there that its rules do not know" in capsys.readouterr().err
    assert [row.get("layout") for row in accepted(tmp_path / "o2")].count("nnunet") == 1


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("s{}/ct.nii.gz", "s{}/segmentations/{}.nii.gz"),
        ("s{}/ct.nii.gz", "s{}/{}.nii.gz"),
        ("s{}.nii.gz", "s{}/{}.nii.gz"),
        ("group/s{}/ct.nii.gz", "group/s{}/masks/{}.nii.gz"),
    ],
)
def test_organ_files_in_masks_are_one_label_map(image: str, mask: str, tmp_path: Path, capsys) -> None:
    """With the names of the organs, whose values are the same in all images."""
    for number, organs in enumerate((("liver", "spleen"), ("spleen",))):
        write(tmp_path / "in" / image.format(number), body(number))
        for organ in organs:
            drawn = labels(1) if organ == "liver" else labels(0, 1)
            write(tmp_path / "masks" / mask.format(number, organ), drawn)
    words = ("--input", str(tmp_path / "in"), "--masks", str(tmp_path / "masks"))
    assert shard(*words, "--output", str(tmp_path / "out"), "layout=none") == 0
    assert dataset(tmp_path / "out")["labels"] == {"1": "liver", "2": "spleen"}
    assert sorted(row["annotated"] for row in accepted(tmp_path / "out")) == [[1, 2], [2]]
    assert sorted(row["notes"]["organ_files"] for row in accepted(tmp_path / "out")) == [1, 2]
    split = schema.Split(tmp_path / "out", "train")
    values = {int(value) for number in range(len(split)) for value in np.unique(split[number].labelmap)}
    assert values == {0, 1, 2}


def test_organ_files_that_several_images_share_belong_to_none(tmp_path: Path, capsys) -> None:
    """Two CTs in one folder, one folder of organs for it: nothing is guessed."""
    for name in ("early.nii.gz", "late.nii.gz"):
        write(tmp_path / "in" / "s0" / name, body())
    write(tmp_path / "in" / "s1" / "ct.nii.gz", body(1))
    for patient in ("s0", "s1"):
        write(tmp_path / "masks" / patient / "liver.nii.gz", labels(1))
    words = ("--input", str(tmp_path / "in"), "--masks", str(tmp_path / "masks"), "layout=none")
    assert shard(*words, "--output", str(tmp_path / "out")) == 0
    assert "--masks: 1 of 3 images have a label map there" in capsys.readouterr().err
    assert sorted(row["annotated"] for row in accepted(tmp_path / "out")) == [[], [], [1]]


@pytest.mark.parametrize("place", ["labelsTr/dataset.json", "dataset.json"])
def test_a_description_of_the_masks_names_their_labels(place: str, tmp_path: Path) -> None:
    """nnU-Net's dataset.json, in the tree of masks or, of labelsTr, above it; "ignore" is neither."""
    root = nnunet(tmp_path / "in", "a", "b")
    (root / place).write_text(json.dumps({"labels": {"background": 0, "liver": 1, "ignore": 2}}))
    words = ("--input", str(root / "imagesTr"), "--masks", str(root / "labelsTr"))
    assert shard(*words, "--output", str(tmp_path / "out")) == 0
    made = dataset(tmp_path / "out")
    assert made["labels"] == {"1": "liver"} and made["ignore"] == [2, 255]
    assert made["splits"]["train"]["subjects"] == 2 and made["made_with"]["found"]["patients"] == "file name"


def test_a_description_that_changes_changes_what_was_staged(tmp_path: Path, capsys) -> None:
    """A finished output does not pass for one with other ignored labels."""
    root = nnunet(tmp_path / "in", "a", described={"labels": {"background": 0, "liver": 1, "spleen": 2}})
    words = ("--input", str(root), "--output", str(tmp_path / "out"))
    assert shard(*words) == 0 and shard(*words) == 0
    assert "finished before" in capsys.readouterr().err
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "ignore": 2}}))
    assert shard(*words) == 1
    assert "the input has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{:03d}.nii.gz", "labels/{:03d}.nii.gz"),
        ("img/img_{}.nii", "mask/mask_{}.nii"),
        ("volumes/volume-{}.nii.gz", "segmentations/segmentation-{}.nii.gz"),
        ("CT/p{}_ct.nii.gz", "seg/p{}_seg.nii.gz"),
        ("images/ctrl{}.nii.gz", "labels/ctrl{}.nii.gz"),
        ("images/p{}_ct.nii.gz", "labels/p{}_ct_seg.nii.gz"),
        ("scans/scan1_{}.nii.gz", "masks/scan1_{}_mask.nii.gz"),
        ("train/images/a{}.nii.gz", "train/labels/label_a{}.nii.gz"),
    ],
)
def test_images_and_labels_in_sibling_folders(image: str, label: str, tmp_path: Path, capsys) -> None:
    """Names that the folder, and a word of image or label, tell apart: label maps are no images, images have them."""
    for number in range(3):
        write(tmp_path / "in" / image.format(number), body(number))
        write(tmp_path / "in" / label.format(number), labels(1))
    assert shard("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")) == 0
    assert "(images_and_labels) by " in capsys.readouterr().err
    rows = accepted(tmp_path / "out")
    assert len({row["subject"] for row in rows}) == 3 and all(row["annotated"] == [1] for row in rows)


@pytest.mark.parametrize(
    ("label", "more"),
    [("labels/p{}.nii.gz", ()), ("masks/p{}_seg.nii.gz", ()), ("seg/p{}_t1.nii.gz", ("reference=t1",))],
)
def test_mr_images_and_labels_in_sibling_folders(label: str, more: tuple[str, ...], tmp_path: Path, capsys) -> None:
    """Files of one name but for the sequence are a study of one patient, with the label map of that name."""
    for number in range(2):
        for sequence in ("t1", "FLAIR"):
            write(tmp_path / "in" / "images" / f"p{number}_{sequence}.nii.gz", head(seed=number))
        write(tmp_path / "in" / label.format(number), (head(seed=number) > 60).astype(np.uint8))
    words = ("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *more)
    assert shard(*words, command=shard_mri) == 0
    assert "(mr_images_and_labels) by " in capsys.readouterr().err
    rows = accepted(tmp_path / "out")
    assert sorted(row["sequence"] for row in rows) == ["flair", "flair", "t1", "t1"]
    assert len({row["stack"] for row in rows}) == 2 == len({row["subject"] for row in rows})
    assert all(row["annotated"] == [1] for row in rows)


def test_images_and_labels_of_each_patient(tmp_path: Path, capsys) -> None:
    """Below each patient's folder a folder of images and one of label maps, with the same names for all patients."""
    for number in range(3):
        write(tmp_path / "in" / f"p{number}" / "ct" / "scan.nii.gz", body(number))
        write(tmp_path / "in" / f"p{number}" / "masks" / "scan.nii.gz", labels(1))
    assert shard("--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")) == 0
    said = capsys.readouterr().err
    assert "in 3 folders: 3 images, 3 label maps" in said and "patients by folder level 1: 3" in said
    rows = accepted(tmp_path / "out")
    assert len({row["subject"] for row in rows}) == 3 and all(row["annotated"] == [1] for row in rows)


def test_thousands_of_folders_with_a_layout() -> None:
    """Roots in 5,000 folders, each with its own label maps under the same names."""
    names = [f"p{n}/{kind}/{scan}.nii" for n in range(5000) for kind in ("ct", "masks") for scan in ("a", "b")]
    found = recognise.recognise(names, names, False, "auto", "ct", lambda name: False)
    assert len(found.roots) == 5000 and len(found.files) == 20_000
    assert all(found.labels_of(name) == [name.replace("/ct/", "/masks/")] for name in names if "/ct/" in name)


def test_several_inputs_have_their_layouts(tmp_path: Path, capsys) -> None:
    """A root is never above an --input; a patient named in both is one."""
    nnunet(tmp_path / "Dataset001_A", "a", "b")
    nnunet(tmp_path / "Dataset002_B", "b", "c")
    words = [word for name in ("Dataset001_A", "Dataset002_B") for word in ("--input", str(tmp_path / name))]
    assert shard(*words, "--output", str(tmp_path / "out")) == 0
    assert "in 2 folders: 4 images of 3 patients, 4 label maps" in capsys.readouterr().err
    assert dataset(tmp_path / "out")["splits"]["train"]["subjects"] == 3


def test_a_layout_gives_the_same_in_parts(tmp_path: Path) -> None:
    """Parts find the same layouts, and a merge names labels and ignored values as one start does."""
    described = {"labels": {"background": 0, "liver": 1, "ignore": 2}}
    root = nnunet(tmp_path / "in", *"abcd", described=described)
    assert shard("--input", str(root), "--output", str(tmp_path / "whole")) == 0
    for part in ("1/2", "2/2"):
        assert shard("--input", str(root), "--output", str(tmp_path / "parts"), f"part={part}") == 0
    assert merge.main([str(tmp_path / "parts")]) == 0
    whole, parts = dataset(tmp_path / "whole"), dataset(tmp_path / "parts")
    for key in ("labels", "ignore"):
        assert whole[key] == parts[key]
    assert whole["made_with"]["found"] == parts["made_with"]["found"]


class Here:
    """Jobs done in this process."""

    def map(self, function: Callable, jobs: Iterable) -> Iterator[tuple]:
        """Yield (job, result)."""
        for job in jobs:
            yield job, function(job)


STARTS = ("", "Dataset001_A", "data/train")
FILES = (
    *(f"imagesTr/{case}_000{channel}.nii.gz" for case in "ab" for channel in (0, 1)),
    *("imagesTr/liver_1.nii.gz", "imagesTr/._a_0000.nii.gz", "imagesTs/c_0000.nii.gz", "imagesTr/amos_0001.nii.gz"),
    *(
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
        "labelsTr/liver_1.nii.gz",
        "labelsTr/amos_0001.nii.gz",
        "labelsTs/c.nii",
    ),
    *("img/img0001.nii.gz", "label/label0001.nii.gz", "img/x_ct.nii", "label/x_seg.nii", "masks/liver.nii.gz"),
    *("case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz", "case_00000/instances/x.nii.gz"),
    *("volume-0.nii", "segmentation-0.nii", "s0001/ct.nii.gz", "s0001/segmentations/liver.nii.gz"),
    *("sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_dseg.nii.gz", "derivatives/x/sub-1/anat/sub-1_T1w.nii.gz"),
    *(
        "train_1/train_1_a/train_1_a_1.nii.gz",
        "IXI002-Guys-0828-T1.nii.gz",
        "p1/t1.nii.gz",
        "p1/seg.nii.gz",
        "p2/ct.nii",
    ),
    *("BraTS2021_00000/BraTS2021_00000_t1.nii.gz", "BraTS2021_00000/BraTS2021_00000_seg.nii.gz", "dataset.csv"),
)


@settings(max_examples=150, deadline=None)
@given(
    tree=st.sets(st.tuples(st.sampled_from(STARTS), st.sampled_from(FILES)), min_size=1, max_size=14),
    modality=st.sampled_from(["CT", "MR"]),
    layout=st.sampled_from(["auto", "none", "nnunet", "images_and_labels"]),
)
def test_every_file_is_used_once_or_has_a_reason(tree: set, modality: str, layout: str) -> None:
    """Whatever lies together: an image in one source alone, a label map in one at least or with its reason."""
    with TemporaryDirectory() as folder:
        for start, name in tree:
            path = Path(folder, start, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        config = (CtConfig if modality == "CT" else MriConfig)(layout=layout)
        try:
            found = archive.discover(Inputs.of([Path(folder)]), [], config, modality, Here())
        except LayoutError:
            return
        series = Counter(file for source in found.sources for one in source.series for file in one.files)
        labelled = {os.path.relpath(file, folder) for one in found.sources for map in one.labels for file in map.files}
        organs = {file for source in found.sources for one in source.series if not one.files for file in [one.name]}
        for start, name in tree:
            file = os.path.join(start, name)
            if not name.endswith(".csv"):
                used = series[file] + (file in labelled) + (os.path.dirname(file) in organs)
                assert used == 1, (file, series[file], file in labelled)
        assert all(source.patient for source in found.sources)
