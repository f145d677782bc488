"""Whose images a path names, where no header and no layout says it."""

from __future__ import annotations

import json
import random
from pathlib import Path, PurePath

import pytest
from helpers.mri_files import head, write
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import shard_mri
from data_prep.discovery import alike, patients


def named(*paths: str, studies: tuple[str, ...] = ()) -> tuple[str, set[str]]:
    """What the console says, and the patients of the paths."""
    every = [PurePath(path) for path in paths]
    rule = patients.rule(every, "auto", studies)
    return rule.said(show_names=False), {rule.of(path) for path in every}


@pytest.mark.parametrize(
    ("paths", "says", "who"),
    [
        (["p1/ct.nii", "p2/ct.nii"], "folder level 1", {"p1", "p2"}),
        (["p1/a/ct.nii", "p2/a/ct.nii", "p2/b/ct.nii"], "folder level 1", {"p1", "p2"}),
        (["train/p1/a/ct.nii", "train/p2/b/ct.nii"], "folder level 2 (train/*)", {"p1", "p2"}),
        (["train/p1/x.nii", "test/p2/x.nii", "val/p3/x.nii"], "folder level 2 (test|train|val/*)", {"p1", "p2", "p3"}),
        (["CT/p1/x.nii", "MR/p1/x.nii", "CT/p2/x.nii"], "folder level 2 (CT|MR/*)", {"p1", "p2"}),
        (["Clinic/imagesTr/p1/x.nii", "Clinic/imagesTr/p2/x.nii"], "folder level 3 (…/imagesTr/*)", {"p1", "p2"}),
        (["HGG/p1/x.nii", "LGG/p2/x.nii"], "folder level 2 (HGG|LGG/*)", {"p1", "p2"}),
        (["subset0/1.2.3.nii", "subset1/1.2.4.nii"], "file name (subset0|subset1/*)", {"1_2_3", "1_2_4"}),
        (["Site-A/001/x.nii", "Site-B/002/x.nii"], "folder level 2 (Site-A|Site-B/*)", {"001", "002"}),
        (["ct_scans/c1.nii", "lung_mask/c1.nii", "ct_scans/c2.nii"], "file name (ct_scans|lung_mask/*)", {"c1", "c2"}),
        (["p1_ses-1.nii", "p1_visit02.nii", "p2_ses-1.nii"], "file name", {"p1", "p2"}),
        (["p1_20190102.nii", "p1_2020-11-30.nii", "p2_20190102.nii"], "file name", {"p1", "p2"}),
        (["abdomen_20190102.nii", "abdomen_20190103.nii"], "file name", {"abdomen_20190102", "abdomen_20190103"}),
        (["case_1/x.nii", "case_2/x.nii"], "folder level 1", {"case_1", "case_2"}),
        (["scan001/x.nii", "scan002/x.nii"], "folder level 1", {"scan001", "scan002"}),
        (["training_data/p1.nii", "training_data/p2.nii"], "file name (training_data/*)", {"p1", "p2"}),
        (["a.nii.gz", "b.nii.gz"], "file name", {"a", "b"}),
        (["T1/p1.nii", "T2/p1.nii"], "file name (T1|T2/*)", {"p1"}),
        (["p1_ct.nii.gz", "p1_arterial.nii.gz", "p2_ct.nii.gz"], "file name", {"p1", "p2"}),
        (["c_0000.nii", "c_0001.nii", "d_0000.nii", "d_0001.nii"], "file name", {"c", "d"}),
        (["c_0000.nii", "c_0001.nii", "c_0002.nii"], "file name", {"c_0000", "c_0001", "c_0002"}),
        (["p1/visit1/x.nii", "p1/visit2/x.nii"], "folder level 1", {"p1"}),
        (["p1/t1.nii", "p1/flair.nii"], "folder level 1", {"p1"}),
        (["p1/x.nii", "stray.nii"], "folder level 1", {"p1", "stray"}),
        (["2019-03-04/A7/x.nii", "2019-05-06/B8/x.nii"], "folder level 2 (…/*)", {"A7", "B8"}),
        (["20190304/4711/x.nii", "20190506/4711/x.nii"], "folder level 2 (…/*)", {"4711"}),
        (["20190304/1/x.nii", "20190506/2/x.nii"], "folder level 1", {"20190304", "20190506"}),
        (["Kim/20190304/x.nii", "Kim/20190506/x.nii"], "folder level 1", {"Kim"}),
        (["preop/007/x.nii", "intraop/007/x.nii", "preop/008/x.nii"], "folder level 2 (…/*)", {"007", "008"}),
        (["visit1/s1.nii", "visit2/s1.nii", "visit1/s2.nii"], "file name (…/*)", {"s1", "s2"}),
        (["K7_visit1/x.nii", "K7_visit2/x.nii", "K8_visit1/x.nii"], "folder level 1", {"K7", "K8"}),
        (["K7-baseline/x.nii", "K7-followup/x.nii", "K8_2020-01-31/x.nii"], "folder level 1", {"K7", "K8"}),
        (["K-01_raw/x.nii", "K-01_FU001d_raw/x.nii", "K-02_raw/x.nii"], "folder level 1", {"K-01_raw", "K-02_raw"}),
        (["k7_B30f.nii", "k7_Br64d.nii", "k8_B30f.nii"], "file name", {"k7", "k8"}),
        (["k7_lung.nii", "k7_soft.nii", "k7_1.5mm.nii", "k7_5mm.nii"], "file name", {"k7"}),
        (["k7_L.nii", "k7_R.nii", "k8_exp.nii", "k8_insp.nii"], "file name", {"k7", "k8"}),
        (["k7_T00.nii", "k7_T50.nii", "k7_T0.nii", "k8_BL.nii", "k8_FU2.nii"], "file name", {"k7", "k8"}),
        (["k7_scan1.nii", "k7_scan2.nii", "k8-V1.nii", "k8-V2.nii"], "file name", {"k7", "k8"}),
        (
            ["7_CT_20210506100215_2.nii", "7_CT_20210506100315_3a.nii", "8_CT_20210506100215_2.nii"],
            "file name",
            {"7", "8"},
        ),
        (["scan_1.nii", "scan_2.nii"], "file name", {"1", "2"}),
        (["raw/sub-01/anat/sub-01_T1w.nii", "raw/sub-02/sub-02_T1w.nii"], "file name", {"sub-01", "sub-02"}),
    ],
)
def test_the_level_whose_names_differ_names_the_patient(paths: list[str], says: str, who: set[str]) -> None:
    """Levels that only divide images, and one folder around all, are passed over; others' names are not said."""
    assert named(*paths) == (says, who)


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("begin or end alike", [f"gbm-{p:03d}_{scan}/x.nii" for p in range(4) for scan in (11, 21)]),
        ("begin or end alike", [f"{1000 + p}_{7000 + 10 * p + scan}.nii" for p in range(4) for scan in (1, 2)]),
        ("begin or end alike", [f"p{p}{side}/x.nii" for p in range(4) for side in "ab"]),
        ("begin or end alike", [f"2021031{day}_{1000 + p}.nii" for p in range(4) for day in (1, 2)]),
        ("begin or end alike", ["P1/x.nii", "p-1/x.nii", *(f"P{p}/x.nii" for p in range(2, 9))]),
        ("begin or end alike", [f"p{p:03d}_{scan}.mhd.nii" for p in range(4) for scan in (1, 2)]),
        ("begin or end alike", [f"K{p:04d}2020010{day}.nii" for p in range(4) for day in (1, 2)]),
        ("begin or end alike", [f"{p:06d}_{day:02d}_01_{9 * day}-{p}{day}.nii" for p in range(4) for day in (1, 2)]),
        ("each; if these", [f"upload{disk}/K{disk}{p:03d}/x.nii" for disk in (1, 2) for p in range(5)]),
        ("each; if these", [f"2020_Q{part}/{part}{p:03d}.nii" for part in (1, 2) for p in range(5)]),
        ("look like years", [f"{year}/mrn{p}/x.nii" for p in range(4) for year in (2019, 2020)]),
        ("look like dates", [f"2021031{day}/{scan}.nii" for day in range(4) for scan in "ab"]),
        ("without a number", [f"{site}/{p:02d}/x.nii" for p in range(4) for site in ("Bern", "Graz")]),
        ("without a number", [f"{kind}/{kind}_{p:03d}.nii" for p in range(4) for kind in ("covid", "normal")]),
        ("without a number", [f"CT-{kind}/study_{kind}{p:03d}.nii" for p in range(4) for kind in (0, 1)]),
        ("of several patients", [f"acc{p}{scan}/{1000 + p}.nii" for p in range(6) for scan in (1, 2)]),
        ("", [f"p{p}/scan{scan}.nii" for p in range(8) for scan in (1, 2, 3)]),
        ("", [f"p{p}/2019030{day}/x.nii" for p in range(1, 5) for day in (1, 2)]),
        ("", [f"TCGA-{site:02d}-{1000 + 7 * site + p:04d}/x.nii" for site in (2, 6, 8) for p in range(3)]),
        ("", [f"site{site}_{p:03d}.nii" for site in (1, 2) for p in range(9)]),
        ("", [f"Kim{name}/CT {scan}/x.nii" for name in ("a", "b") for scan in (1, 2)]),
        ("", [f"{p:04d}.nii" for p in range(20)]),
        ("", [f"p{p}/acc{p}{scan}00/x.nii" for p in range(8) for scan in range(5)]),
        ("", [f"{site:02d}-{p:03d}/x.nii" for site in (1, 2) for p in range(5)]),
        ("", [f"case_{p:05d}_ct_scan.nii" for p in range(9)]),
    ],
)
def test_names_that_may_be_of_fewer_or_more_patients_are_a_warning(line: str, paths: list[str]) -> None:
    """No rule can know what a number counts: what looks like images of one patient is said, usual names are not."""
    every = [PurePath(path) for path in paths]
    said = alike.warnings(patients.rule(every, "auto"), every)
    assert len(said) == bool(line) and all(line in one and "patient=REGEX" in one for one in said)
    assert not alike.warnings(patients.rule(every, "auto", pattern="x"), every)


@pytest.mark.parametrize(
    ("ids", "alike_ones"),
    [
        ({"P001", "p001", "P002"}, 2),
        ({"001", "1", "0001", "2"}, 3),
        ({"K7-V1", "K7-V2", "K8-V1"}, 2),
        ({"K7_20200101", "K7_20210101"}, 2),
        ({"K7_BL", "K7_FU", "K8_BL", "K8_FU"}, 4),
        ({"TCGA-02-0001", "TCGA-02-0003", "TCGA-06-0001", "LIDC-IDRI-0100", "LIDC-IDRI-0010"}, 0),
        ({"1.2.840.1", "1.2.840.10", "a", "b", ""}, 0),
    ],
)
def test_ids_that_may_be_of_one_person_are_a_warning(ids: set[str], alike_ones: int) -> None:
    """Case, zeros, separators, a visit: what other systems add. Nothing is joined, and no id is said."""
    said = alike.of_ids(ids)
    assert [line.split()[0] for line in said] == ([str(alike_ones)] if alike_ones else [])


def test_a_folder_with_patients_by_id_and_by_path_is_a_warning() -> None:
    """The same person would be two, one of them perhaps in test."""
    files = [PurePath(f"P{n}/ct.nii") for n in range(3)]
    rule = patients.rule(files, "auto")
    (line,) = alike.beside_ids(rule, files, [(PurePath(f"P{n}/dcm/1"), f"id{n}") for n in range(2)])
    assert line.startswith("2 patients by their paths")
    assert not alike.beside_ids(rule, files, [(PurePath(f"P{n}/dcm/1"), f"P{n}") for n in range(3)])
    assert not alike.beside_ids(rule, files, [(PurePath("P1/dcm/1"), "a"), (PurePath("P1/dcm/2"), "b")])


def test_a_pattern_of_the_path_names_patients(tmp_path: Path, capsys) -> None:
    """It counts before folders and BIDS names; a path that it misses is left out with the reason."""
    for number in range(3):
        for scan in (11, 21):
            write(tmp_path / "in" / f"gbm-{number}_{scan}" / "T1.nii.gz", head(seed=10 * number + scan))
    write(tmp_path / "in" / "sub-gbm7" / "anat" / "sub-gbm7_T1w.nii.gz", head(seed=99))
    write(tmp_path / "in" / "phantom" / "T1.nii.gz", head(seed=98))
    words = ["--input", str(tmp_path / "in"), "split.train=1", "split.val=0", "split.test=0"]
    assert shard_mri.main([*words, "--output", str(tmp_path / "out"), "patient=(gbm-?[0-9])"]) == 0
    said = capsys.readouterr().err
    assert "patients by the pattern given (patient): 4" in said and "end alike" not in said
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert len({row["subject"] for row in rows if row["status"] == "accepted"}) == 4
    assert [row["reason"] for row in rows if row["status"] == "rejected"] == [patients.MISSED]
    assert shard_mri.main([*words, "--output", str(tmp_path / "none"), "patient=("]) == 1
    assert "patient=(: not a regular expression" in capsys.readouterr().err


def test_files_of_one_study_are_one_patient() -> None:
    """Sequences of one folder, whatever else stands in their names."""
    assert named("foo/AX_t1.nii", "foo/COR_flair.nii", studies=("foo",))[1] == {"foo"}
    assert named("foo/AX_t1.nii", "foo/COR_t1.nii")[1] == {"ax", "cor"}


FOLDER = st.sampled_from(["p1", "p2", "case_3", "Anon-7", "visit1", "a", "train", "CT", "images"])
PATHS = st.lists(st.tuples(st.lists(FOLDER, max_size=3), st.sampled_from(["x", "y_ct", "t1", "z_0000"])), min_size=1)


@settings(max_examples=200, deadline=None)
@given(PATHS, st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_matters(tree: list, shuffled: random.Random) -> None:
    """A function of the set of paths; every path has a patient."""
    paths = [PurePath(*folders, f"{name}.nii.gz") for folders, name in tree]
    again = [*paths, *paths[:1]]
    shuffled.shuffle(again)
    rule = patients.rule(paths, "auto")
    assert rule == patients.rule(again, "auto")
    assert all(rule.of(path) for path in paths)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(FOLDER, max_size=2), min_size=2, max_size=8))
def test_where_first_folders_differ_they_name_the_patients_as_ever(tree: list[list[str]]) -> None:
    """Ids of data sets made with first_folder stay what they were."""
    paths = [PurePath(f"patient{place % 5}", *folders, "x.nii") for place, folders in enumerate(tree)]
    auto, before = patients.rule(paths, "auto"), patients.rule(paths, "first_folder")
    assert [auto.of(path) for path in paths] == [before.of(path) for path in paths]


def test_all_parts_of_an_archive_agree_who_is_a_patient(tmp_path: Path) -> None:
    """Each start looks at the whole input, whichever share of the patients is its own."""
    for number in range(4):
        write(tmp_path / "in" / "Clinic" / f"p{number}" / "T1.nii.gz", head(seed=number))
    subjects: dict[str, list[str]] = {}
    for part in ("1/1", "1/2", "2/2"):
        output = tmp_path / ("whole" if part == "1/1" else "parts")
        words = ["--input", str(tmp_path / "in"), "--output", str(output), f"part={part}"]
        assert shard_mri.main(words) == 0
        for file in output.rglob("manifest.jsonl"):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            subjects.setdefault(output.name, []).extend(row["subject"] for row in rows if row["status"] == "accepted")
    assert len(set(subjects["whole"])) == 4
    assert set(subjects["parts"]) == set(subjects["whole"])


def test_names_of_folders_are_said_only_where_asked(tmp_path: Path, capsys) -> None:
    """A folder around all images may bear a name; patients in both train and test are one each, and that is said."""
    for split, number in (("train", 1), ("train", 2), ("test", 2)):
        write(tmp_path / "in" / "Meier" / split / f"p{number}" / "T1.nii.gz", head(seed=number))
    words = ["--input", str(tmp_path / "in"), "split.train=1", "split.val=0", "split.test=0"]
    assert shard_mri.main([*words, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "patients by folder level 3 (…/test|train/*): 2" in said and "Meier" not in said
    assert "1 patients have images in several of the folders above theirs and count as one each" in said
    assert "Meier" not in (tmp_path / "out" / "dataset.json").read_text()
    assert shard_mri.main([*words, "--output", str(tmp_path / "shown"), "--show-names"]) == 0
    assert "(Meier/test|train/*)" in capsys.readouterr().err


def test_a_rule_can_be_forced(tmp_path: Path) -> None:
    """patient_from=first_folder is as it was: one patient for one folder around all."""
    for number in range(3):
        write(tmp_path / "in" / "Clinic" / f"p{number}" / "T1.nii.gz", head(seed=number))
    counts = {}
    for setting in ("auto", "first_folder", "parent_folder"):
        words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / setting), f"patient_from={setting}"]
        assert shard_mri.main([*words, "split.train=1", "split.val=0", "split.test=0"]) == 0
        made = json.loads((tmp_path / setting / "dataset.json").read_text())
        counts[setting] = made["splits"]["train"]["subjects"]
    assert counts == {"auto": 3, "first_folder": 1, "parent_folder": 3}


def test_a_second_image_of_a_patient_does_not_keep_a_stale_record(tmp_path: Path) -> None:
    """What was staged before the input grew counts only if its patient is the same still."""
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "split.train=1", "split.val=0"]
    write(tmp_path / "in" / "Clinic" / "p0" / "T1.nii.gz", head())
    (tmp_path / "out").mkdir()
    blocked = tmp_path / "out" / "histograms.json"
    blocked.mkdir()  # the first start stages and cannot finish
    assert shard_mri.main([*words, "split.test=0"]) != 0
    blocked.rmdir()
    write(tmp_path / "in" / "Clinic" / "p1" / "T1.nii.gz", head(seed=1))
    assert shard_mri.main([*words, "split.test=0"]) == 0
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["splits"]["train"]["subjects"] == 2
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    again = tmp_path / "again"
    assert shard_mri.main([*words[:2], "--output", str(again), *words[4:], "split.test=0"]) == 0
    fresh = [json.loads(line) for line in (again / "manifest.jsonl").read_text().splitlines()]
    assert sorted(row["subject"] for row in rows) == sorted(row["subject"] for row in fresh)
