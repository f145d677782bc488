"""Class labels from a CSV: whose they are, what is refused, where they end; synthetic MRI with two tumour types."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data_prep import generate, merge, overview, schema, shard_mri, verify
from data_prep.discovery import class_labels
from data_prep.synthetic import brain
from meddap.settings import SettingsError


def shard(source: Path, output: Path, labels: Path, *words: str) -> int:
    """Run the command."""
    return shard_mri.main(["--input", str(source), "--output", str(output), "--labels", str(labels), *words])


def samples(root: Path) -> list[schema.Slice]:
    """All slices of all splits."""
    splits = [schema.Split(root, name) for name in schema.SPLITS]
    return [split[number] for split in splits for number in range(len(split))]


def table(path: Path, text: str) -> Path:
    """A CSV."""
    path.write_text(text)
    return path


def test_labels_of_patients_end_in_their_slices(brains: Path, tmp_path: Path, capsys) -> None:
    """Every slice has its patient's class; dataset.json counts them by split; parts merged count the same."""
    labels = brains / "labels.csv"
    assert shard(brains, tmp_path / "out", labels) == 0
    found = schema.read_dataset(tmp_path / "out")["classes"]["tumour"]
    assert found["names"] == ["match", "mismatch"]
    truth = [line.partition(",")[2] for line in labels.read_text().splitlines()[1:]]
    assert np.sum(list(found["patients"].values()), axis=0).tolist() == [truth.count(name) for name in found["names"]]
    of_subject: dict[str, set] = {}
    for sample in samples(tmp_path / "out"):
        of_subject.setdefault(sample.subject, set()).add(sample.labels["tumour"])
    assert sorted(sum(map(list, of_subject.values()), [])) == sorted(found["names"].index(name) for name in truth)
    assert verify.main([str(tmp_path / "out")]) == 0 and overview.main([str(tmp_path / "out")]) == 0
    assert "Labelled patients of each class" in (tmp_path / "out" / "overview.html").read_text()
    assert "tumour: 8 patients labelled" in capsys.readouterr().err
    for part in ("1/2", "2/2"):
        assert shard(brains, tmp_path / "parts", labels, f"part={part}") == 0
    assert merge.main([str(tmp_path / "parts")]) == 0
    assert schema.read_dataset(tmp_path / "parts")["classes"]["tumour"] == found


def test_ids_of_the_csv_are_nowhere_in_the_output(brains: Path, tmp_path: Path, capsys) -> None:
    """Neither in a file nor on the console, also where the command refuses."""
    lines = (brains / "labels.csv").read_text().splitlines()
    assert shard(brains, tmp_path / "out", brains / "labels.csv") == 0
    stranger = table(tmp_path / "more.csv", "\n".join([*lines, "Canary_77,match"]))
    assert shard(brains, tmp_path / "other", stranger) == 1
    printed = "".join(capsys.readouterr())
    assert "line 10 names no patient or study of the input" in printed
    for name in [line.partition(",")[0] for line in lines[1:]] + ["Canary"]:
        assert name not in printed
        assert all(name.encode() not in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_unknown_rows_may_be_ignored_and_other_labels_are_another_data_set(brains: Path, tmp_path: Path, capsys):
    """unknown_labels=ignore shards them all the same; a second start with another CSV is refused."""
    text = (brains / "labels.csv").read_text()
    stranger = table(tmp_path / "more.csv", text + "Nobody,match\n")
    assert shard(brains, tmp_path / "out", stranger, "unknown_labels=ignore") == 0
    assert shard(brains, tmp_path / "out", brains / "labels.csv", "unknown_labels=ignore") == 1
    assert "was begun with other --labels" in capsys.readouterr().err


def test_a_study_comes_before_its_patient_and_an_empty_cell_is_unlabelled(tmp_path: Path) -> None:
    """Two sessions of one BIDS subject, named with and without sub- and ses-; several columns, numbers in order."""
    generate.generate(
        tmp_path / "in", generate.GenerateConfig(modality="mr", layout="bids", patients=2, slices=4, size=32)
    )
    for subject in ("sub-0000", "sub-0001"):
        for session in ("ses-1", "ses-2"):
            anat = tmp_path / "in" / subject / session / "anat"
            anat.mkdir(parents=True)
            for path in (tmp_path / "in" / subject / "anat").iterdir():
                name = path.name.replace(subject, f"{subject}_{session}")
                (anat / name).write_bytes(path.read_bytes())
        for path in list((tmp_path / "in" / subject / "anat").iterdir()):
            path.unlink()
    csv = table(
        tmp_path / "labels.csv",
        "participant_id;session;grade;site\nsub-0000;;10;a\n0000;ses-2;9;\nsub-0001;1;9;b\n",
    )
    split = ("split.train=1", "split.val=0", "split.test=0")
    assert shard(tmp_path / "in", tmp_path / "out", csv, *split) == 0
    dataset = schema.read_dataset(tmp_path / "out")
    assert {name: found["names"] for name, found in dataset["classes"].items()} == {
        "grade": ["9", "10"],
        "site": ["a", "b"],
    }
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    by_stack = {row["stack"]: (row["labels"], row["sequence"]) for row in rows}
    assert sorted(str(labels) for labels, _ in by_stack.values()) == sorted(
        map(str, [{"grade": 1, "site": 0}, {"grade": 0, "site": 0}, {"grade": 0, "site": 1}, {}])
    )
    assert {sample.sequences for sample in samples(tmp_path / "out")} == {brain.SEQUENCES}


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("patient,t\na,x\nb\n", (), "line 3 has 1 fields, its header 2"),
        ("patient,t\na,x\nb,y\na,y\n", (), "lines 2 and 4 name the same patient"),
        ("who,t\na,x\n", (), "no column is called patient or study; it has who, t"),
        ("patient\na\nb\n", (), "no column beside patient, so no label"),
        ("patient,t\n", (), "holds no labels"),
        ("patient,t\n,x\nb,y\n", (), "line 2 names no patient"),
        ("patient,t\na,x\nb,x\n", (), "column t has 1 classes"),
        ("patient,t\na,x\nb,\x07\n", (), "line 3, column t: a class is"),
        ("patient,t,t\na,x,y\n", (), "two columns are called t"),
        ("patient,t.u\na,x\nb,y\n", (), "column 't.u': a name is"),
        ("patient,t\na,x\nb,y\n", ("u",), "no column u; it has t"),
        (
            "patient,t\n" + "".join(f"{n},name {n}\n" for n in range(9)),
            (),
            "9 different values in 9 lines",
        ),
        ('patient,t\na,"x\n', (), "is not valid CSV"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_in_one_line(text: str, words, said: str, tmp_path: Path) -> None:
    """The file, the line and what to do; never what stands in a cell."""
    with pytest.raises(SettingsError) as error:
        class_labels.read(table(tmp_path / "labels.csv", text), words)
    assert said in str(error.value) and str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_a_missing_or_binary_table_is_refused(tmp_path: Path) -> None:
    """One line each."""
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00patient")
    for name, said in (("a.csv", "No such file"), ("b.csv", "not valid UTF-8")):
        with pytest.raises(SettingsError, match=said):
            class_labels.read(tmp_path / name)


def test_one_sequence_says_nothing_and_two_of_different_properties_tell() -> None:
    """From the pictures, the tumour's place known: the two types are as bright and as strong in every sequence; the
    two of one property say nothing either; any two of different ones tell, so that none is needed."""
    made = [brain.make(np.random.default_rng([5, number]), 3, 48) for number in range(400)]
    mismatch = np.array([each.kind == "mismatch" for each in made])
    assert all(each.kind == brain.TYPES[each.high["water"] != each.high["protein"]] for each in made)
    assert 0.43 < mismatch.mean() < 0.57

    def told(values: np.ndarray) -> float:
        return float((values[mismatch][:, None] > values[~mismatch][None]).mean())

    seen = {name: np.array([_contrast(each, name) for each in made]) for name in brain.SEQUENCES}
    seen["t1"] = -seen["t1"]  # dark where there is much water
    for name in brain.SEQUENCES:
        assert all(0.42 < told(values) < 0.58 for values in (seen[name], abs(seen[name]))), name
    for one, other in (("t1", "t2"), ("t1c", "flair")):
        assert 0.42 < told(-seen[one] * seen[other]) < 0.58, (one, other)
    for one in ("t1", "t2"):
        for other in ("t1c", "flair"):
            assert told(-seen[one] * seen[other]) > 0.97, (one, other)


def _contrast(made: brain.Brain, name: str) -> float:
    """Mean signal of a tumour by that of the tissue around it, less 1."""
    image, tumour = made.signal[name], made.tumour > 0
    grown = [ndimage.binary_dilation(tumour, np.ones((1, 3, 3)), iterations=count) for count in (1, 4)]
    return float(image[tumour].mean() / image[grown[1] & ~grown[0] & (image > 0)].mean() - 1)
