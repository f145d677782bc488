"""Miniatures of public collections through the real commands: recognised by name, and what is there comes out."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers import ct_collections, mri_collections
from helpers.golden import TESTS
from helpers.miniatures import LEVELS, Miniature, ct, drawn, mr, save

from data_prep import schema, shard_ct, shard_mri
from data_prep.discovery.layouts import rules

SPLIT = ("split.train=1", "split.val=0", "split.test=0")
EVERY = [
    pytest.param(command, write, id=f"{name}-{tree}")
    for command, name, trees in (
        (shard_ct, "ct", ct_collections.COLLECTIONS),
        (shard_mri, "mri", mri_collections.COLLECTIONS),
    )
    for tree, write in trees.items()
]
FEW = {"ct-btcv", "ct-totalsegmentator", "mri-decathlon", "mri-oasis1"}
SOME = [case if case.id in FEW else pytest.param(*case.values, id=case.id, marks=pytest.mark.stress) for case in EVERY]


@dataclass
class Run:
    """A finished start of a command, and what it said."""

    status: int
    said: str
    output: Path

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in (self.output / "manifest.jsonl").read_text().splitlines()]

    @property
    def accepted(self) -> list[dict]:
        return [row for row in self.rows if row["status"] == "accepted"]

    @property
    def dataset(self) -> dict:
        return json.loads((self.output / "dataset.json").read_text())

    def samples(self) -> list[schema.Slice]:
        split = schema.Split(self.output, "train")
        return [split[number] for number in range(len(split))]


def start(command, tree: Path, capsys: pytest.CaptureFixture, *words: str) -> Run:
    """Run a command on a tree, all patients as training."""
    output = tree.with_name(f"{tree.name}-out")
    status = command.main(["--input", str(tree), "--output", str(output), *SPLIT, *words])
    return Run(status, capsys.readouterr().err, output)


def is_recognised(run: Run, wanted: Miniature) -> bool:
    """Whether the console names the layout."""
    return f"layout: {rules.named(wanted.layout).title}" in run.said


def bright(sample: schema.Slice) -> bool:
    """Whether every label lies on an organ: brighter in every sequence than what lies around it."""
    labels = sample.labelmap
    assert labels is not None
    for plane in sample.pixels.astype(float):
        body = (plane > plane.min() + 0.3 * (plane.max() - plane.min())) & (labels == 0)
        for value in np.unique(labels[labels > 0]):
            if plane[labels == value].mean() < np.percentile(plane[body], 75):
                return False
    return True


def test_every_layout_has_a_miniature_and_a_row_in_the_docs(tmp_path: Path) -> None:
    """None is without a test, or unknown to who looks for the command."""
    page = (TESTS.parent / "docs" / "data.md").read_text()
    names = {layout.name for layout in rules.every()}
    assert {name for name in names if f"`{name}`" not in page} == set()
    trees = (case.values[1](tmp_path / str(number)) for number, case in enumerate(EVERY))
    own = {"images_and_labels", "mr_images_and_labels"}  # no collections: people's own folders
    own |= {layout.name for layout in rules.every() if layout.commands == ("images",)}  # test_prep_slides.py has theirs
    assert names - {tree.layout for tree in trees} <= own


def outcomes(rows: list[dict]) -> set[tuple]:
    """What became of each input, and whose an accepted one is."""
    return {(row["source"], row["status"], row["status"] == "accepted" and row["subject"]) for row in rows}


@pytest.mark.parametrize(("command", "write"), EVERY)
def test_a_collection_is_read_as_what_it_is(command, write, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Named on the console; patients, studies, sequences, label maps and their names are those of the tree.

    Labels lie on bright organs, which lie elsewhere in the next patient, and no sequence is taken for another.
    """
    wanted = write(tmp_path / "in")
    run = start(command, tmp_path / "in", capsys, *wanted.words)
    assert run.status == 0 and is_recognised(run, wanted), run.said
    assert all(part in run.said for part in wanted.console), run.said
    found = {layout["name"]: layout for layout in run.dataset["made_with"]["found"]["layouts"]}
    assert found[wanted.layout].get("note", "") == rules.named(wanted.layout).note
    accepted = run.accepted
    assert len({row["subject"] for row in accepted}) == wanted.patients, run.said
    assert len({row["stack"] for row in accepted}) == wanted.studies, run.said
    assert {row["sequence"] for row in accepted} == set(wanted.sequences), run.said
    assert len({row["stack"] for row in accepted if row["annotated"]}) == wanted.labelled, run.said
    names = run.dataset["labels"]
    assert {value: names.get(value) for value in wanted.labels} == dict(wanted.labels)
    labelled = [sample for sample in run.samples() if sample.labelmap is not None and sample.labelmap.any()]
    assert bool(labelled) == bool(wanted.labelled) and all(bright(sample) for sample in labelled)
    for row in accepted:
        if row["sequence"] in LEVELS:  # each sequence has a level of its own
            slope, intercept = row["scale"]
            assert slope * schema.MR_HIGH + intercept == pytest.approx(LEVELS[row["sequence"]], rel=0.05)


@pytest.mark.parametrize(("command", "write"), SOME)
def test_without_its_layout_a_collection_is_read_or_refused_in_words(
    command, write, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """`layout=none` reads what the general rules know, and names no layout."""
    wanted = write(tmp_path / "in")
    run = start(command, tmp_path / "in", capsys, "layout=none")
    assert not is_recognised(run, wanted) and "Traceback" not in run.said
    assert run.status == (0 if wanted.plain else 1), run.said
    if wanted.plain:
        assert len(run.accepted) >= wanted.patients - 1


@pytest.mark.parametrize(("command", "write"), SOME)
def test_a_foreign_file_is_counted_and_changes_nothing_else(
    command, write, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An image that no rule of the layout knows has a row of its own, by the general rules."""
    wanted = write(tmp_path / "in")
    before = start(command, tmp_path / "in", capsys, *wanted.words).rows
    shutil.rmtree(tmp_path / "in-out")
    root = tmp_path / "in"
    while len(inside := [path for path in root.iterdir() if path.is_dir()]) == 1:
        root = inside[0]
    voxels = ct(99) if command is shard_ct else mr("t2", 99)
    save(root / "of_somebody_else" / "extra_T2.nii.gz", voxels)
    run = start(command, tmp_path / "in", capsys, *wanted.words)
    known = {row["source"] for row in before}
    added = [row for row in run.rows if row["source"] not in known]
    assert run.status == 0 and len(added) == 1 and len(run.rows) == len(before) + 1, run.said
    assert outcomes(before) <= outcomes(run.rows)


@pytest.mark.parametrize(("command", "write"), SOME)
def test_a_collection_is_read_from_its_archive(command, write, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A zip of the tree gives the patients, studies and label maps that the tree gives."""
    wanted = write(tmp_path / "tree")
    (tmp_path / "in").mkdir()
    shutil.make_archive(str(tmp_path / "in" / "download"), "zip", tmp_path / "tree")
    run = start(command, tmp_path / "in", capsys, *wanted.words)
    assert run.status == 0 and is_recognised(run, wanted), run.said
    accepted = run.accepted
    assert len({row["subject"] for row in accepted}) == wanted.patients
    assert len({row["stack"] for row in accepted}) == wanted.studies
    assert len({row["stack"] for row in accepted if row["annotated"]}) == wanted.labelled


def test_the_sequences_of_a_study_may_lie_in_several_inputs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """IXI's archives, each given by itself, make the studies that the folder above them makes."""
    wanted = mri_collections.ixi(tmp_path / "in")
    folders = [word for kind in ("T1", "T2", "PD") for word in ("--input", str(tmp_path / "in" / f"IXI-{kind}"))]
    assert shard_mri.main([*folders, "--output", str(tmp_path / "out"), *SPLIT]) == 0
    run = Run(0, capsys.readouterr().err, tmp_path / "out")
    assert is_recognised(run, wanted) and len({row["stack"] for row in run.accepted}) == wanted.studies
    assert {len(sample.sequences) for sample in run.samples()} == {2, 3}


def test_folders_named_as_a_collection_keep_their_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """FOMO60K has no label maps; where subjects and sessions are named as its are, those that lie there are used."""
    for case in (1, 2, 3):
        folder = tmp_path / "in" / f"sub_{case}" / "ses_1"
        save(folder / "t1.nii.gz", mr("t1", case))
        save(folder / "lesion_seg.nii.gz", drawn(case))
    run = start(shard_mri, tmp_path / "in", capsys)
    assert "layout: FOMO60K" in run.said and [row["annotated"] for row in run.accepted] == [[1, 2]] * 3
    assert all(bright(sample) for sample in run.samples() if sample.labelmap is not None)


def test_label_maps_that_a_layout_cannot_be_about_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Files named as those of LiTS with other values than liver and tumor: a warning, unless the user names them."""
    for case in (1, 2, 3):
        save(tmp_path / "in" / f"volume-{case}.nii", ct(case))
        save(tmp_path / "in" / f"segmentation-{case}.nii", drawn(case, 1, 7))
    run = start(shard_ct, tmp_path / "in", capsys)
    assert "layout: LiTS" in run.said and run.said.count("warning: label maps hold 7, for which no name") == 1
    shutil.rmtree(run.output)
    assert start(shard_ct, tmp_path / "in", capsys, "strict=true").status == 1
    shutil.rmtree(run.output)
    assert start(shard_ct, tmp_path / "in", capsys, "strict=true", "labels.7=vessel").status == 0


@pytest.mark.parametrize(("command", "write"), SOME)
def test_a_renamed_collection_is_not_taken_for_itself(
    command, write, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With other names of files and folders no layout is claimed; one that is forced says in a line what is missing."""
    wanted = write(tmp_path / "in")
    for path in sorted((tmp_path / "in").rglob("*"), reverse=True):  # what lies in a folder before the folder
        if not path.name.startswith("._"):
            path.rename(path.with_name(f"q{path.name}"))
    run = start(command, tmp_path / "in", capsys)
    assert not is_recognised(run, wanted) and "Traceback" not in run.said
    shutil.rmtree(tmp_path / "in-out", ignore_errors=True)
    forced = start(command, tmp_path / "in", capsys, f"layout={wanted.layout}")
    last = forced.said.strip().splitlines()[-1]
    assert forced.status == 1 and f"layout={wanted.layout}" in last and not (forced.output / "dataset.json").exists()
