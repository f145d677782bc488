"""Guards: no patient in two splits, none that pretraining saw, by id or by pixels; and bad input in one line each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import write_dataset
from helpers.encoders import Pixels
from helpers.tiny_run import CONFIG, SHORT

from data_prep import schema
from eval import probe, report
from eval.config import StrideConfig, TableConfig, TaskConfig
from eval.data import features, leaks, sources, splits
from eval.data.examples import Examples
from meddap.settings import SettingsError
from pretrain import checks, train
from pretrain.config import load
from pretrain.weights import card, encoder


def task(data: Path, **changes) -> TaskConfig:
    """A task on every slice, with the quick probe."""
    small = {"size": 64, "stride": StrideConfig(1, 1, 1), "draws": 50, "probes": ["knn"]}
    return TaskConfig(data=str(data), **(small | changes))


def test_a_patient_in_two_splits_is_an_error(tiny_dataset, tmp_path: Path) -> None:
    """Given splits that share a patient: one line, nothing is probed."""
    examples = sources.load(task(tiny_dataset()), tmp_path)
    subjects = examples.subjects.copy()
    subjects[examples.splits == "test"] = subjects[0]
    with pytest.raises(SettingsError, match="1 patients are in train and in test; shard again"):
        splits.folds(replace(examples, subjects=subjects), task(tmp_path))


def tiny_run(folder: Path, data: Path, *more: str) -> Path:
    """A run of one stage and no steps but the first."""
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    words = [f"output={folder}", f"data.root={data}", "stages.adapt.steps=1", "stages.second.steps=1", *SHORT, *more]
    assert train.main(["--config", str(folder / "config.yaml"), *words]) == 0
    return folder / "tiny"


def checked(run: Path | str, examples: Examples, one: TaskConfig, cache: Path) -> leaks.Leaks:
    return leaks.check(str(run), one, examples, splits.folds(examples, one), cache)


def test_a_run_that_today_would_be_refused_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up's start without a warm-up, which older versions passed over: leaks, card and report are made of it."""
    data = write_dataset(tmp_path / "data", {"train": 4, "val": 2, "test": 2}, slices=3)
    with monkeypatch.context() as older:
        older.setattr(checks, "check_stage", lambda *_: None)
        run, one = tiny_run(tmp_path / "run", data, "stage_defaults.optim.teacher_temp.start=0.04"), task(data)
    found = encoder.find(run)
    with pytest.raises(SettingsError, match="teacher_temp.start=0.04"):
        checks.stage(load(found.path / "config.yaml"), "adapt")
    examples = sources.load(one, tmp_path)
    assert checked(run, examples, one, tmp_path).checked
    assert "| adapt | 1 of 1 |" in card.card(found, encoder.load_encoder(run), "equal")
    assert report.main(["--runs", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert "<td>adapt</td><td>1 of 1</td>" in (tmp_path / "page.html").read_text().replace("\n", "")


def test_patients_of_pretraining_are_found_by_id_and_by_pixels(tmp_path: Path) -> None:
    """Other patients are clean; the test patients are found by id; under other ids by their pixels alone."""
    data = write_dataset(tmp_path / "data", {"train": 4, "val": 2, "test": 2}, slices=3)
    run = tiny_run(tmp_path / "run", data)
    one = task(data)
    examples = sources.load(one, tmp_path)
    clean = checked(run, examples, one, tmp_path)
    assert not clean.found and not clean.unchecked and clean.checked and clean.patients == 2
    names = {"train": "test", "val": "val", "test": "train"}
    swapped = replace(examples, splits=np.array([names[each] for each in examples.splits]))
    seen = checked(run, swapped, one, tmp_path)
    assert len(seen.by_id) == len(seen.by_pixels) == 4 == seen.patients and not seen.in_splits
    renamed = replace(swapped, subjects=np.array([each[::-1] for each in swapped.subjects]))
    hidden = checked(run, renamed, one, tmp_path)
    assert not hidden.by_id and len(hidden.by_pixels) == 4
    assert hidden.lines()[0].startswith("leak: 4 of 4 test patients have slices with the very pixels of pretraining's")
    with pytest.raises(SettingsError, match="leak: 4 of 4 test patients are among"):
        checked(run, swapped, replace(one, leaks="refuse"), tmp_path)


def test_the_same_pixels_under_another_id_are_found(tiny_dataset, tmp_path: Path) -> None:
    """A slice that a training patient has too, whoever it is said to be."""
    one = task(tiny_dataset())
    examples = sources.load(one, tmp_path)
    digests = examples.digests.copy()
    digests[np.flatnonzero(examples.splits == "test")[0]] = digests[np.flatnonzero(examples.splits == "train")[0]]
    found = checked("random", replace(examples, digests=digests), one, tmp_path)
    assert len(found.in_splits) == 1 and not found.by_id and not found.by_pixels


def test_what_cannot_be_checked_is_said(tiny_dataset, tmp_path: Path) -> None:
    """Unknown weights, data that are gone: the row says that nobody looked; data that the user names are compared."""
    one = task(tiny_dataset())
    examples = sources.load(one, tmp_path)
    assert "nobody says which images" in checked("weights.pth", examples, one, tmp_path).unchecked
    named = checked("weights.pth", examples, replace(one, pretraining=[f"{one.data}:test"]), tmp_path)
    assert len(named.by_id) == 2 and not named.unchecked
    gone = checked("weights.pth", examples, replace(one, pretraining=["/nowhere"]), tmp_path)
    assert "/nowhere" in gone.unchecked and not gone.checked


def test_the_table_is_marked(tiny_dataset, tmp_path: Path, monkeypatch, capsys) -> None:
    """Every row of a run with a leak says so, and so does the console."""
    data = tiny_dataset()
    monkeypatch.setattr(probe.encoder, "load", lambda checkpoint, task: Pixels())
    rows = probe.run("weights", task(data, pretraining=[f"{data}:test"]), tmp_path / "out")
    assert all(row["leaks"]["by_id"] == 2 for row in rows)
    assert "leak: 2 of 2 test patients are among the patients of pretraining" in capsys.readouterr().err


def test_digests_of_pixels_tell_slices_apart() -> None:
    """Equal pixels, equal digest; one other value, shape or type, another one; large slices by every fourth row."""
    rng = np.random.default_rng(0)
    small = rng.integers(-1000, 1000, (1, 64, 64)).astype(np.int16)
    changed = small.copy()
    changed[0, 63, 63] += 1
    digests = [small, changed, small.astype(np.uint16), small.reshape(1, 32, 128), small[:, :, :63]]
    assert len({schema.content_digest(each) for each in digests}) == len(digests)
    assert schema.content_digest(small.copy()) == schema.content_digest(small)
    assert schema.content_digest(np.asfortranarray(small)) == schema.content_digest(small)


def test_digests_lie_beside_the_shards(patients: Path, tmp_path: Path) -> None:
    """What data_prep writes is what the pixels give, and verify compares them."""
    from data_prep import shard_ct, verify

    assert shard_ct.main(["--input", str(patients), "--output", str(tmp_path / "out"), "grid.size=64"]) == 0
    for name in schema.SPLITS:
        split = schema.Split(tmp_path / "out", name)
        expected = [schema.content_digest(split[number].pixels) for number in range(len(split))]
        assert split.content().tolist() == expected
    path = next((tmp_path / "out").glob("*/*.content.npy"))
    np.save(path, np.load(path) + 1)
    assert verify.main([str(tmp_path / "out")]) == 1


def test_bad_input_is_one_line(tiny_dataset, tmp_path: Path, capsys) -> None:
    """Unknown patients in a CSV, a class with one member, an unknown class, no test patients, wrong files."""
    data = tiny_dataset()
    examples = sources.load(task(data), tmp_path)
    patients = sorted(set(examples.subjects.tolist()))
    table = tmp_path / "labels.csv"

    def message(**changes) -> str:
        one = replace(task(data, kind="binary", source="table", table=TableConfig(file=str(table))), **changes)
        with pytest.raises(SettingsError) as error:
            splits.folds(sources.load(one, tmp_path), one)
        assert "\n" not in str(error.value)
        return str(error.value)

    table.write_text("id,sick\n" + "".join(f"{each},{n % 2}\n" for n, each in enumerate([*patients, "jane_doe"])))
    said = message()
    assert f"1 of {len(patients) + 1} rows name no patient" in said and "line 10" in said and "jane" not in said
    table.write_text("id,sick\n" + "".join(f"{each},{n == 0}\n" for n, each in enumerate(patients)))
    assert "yes of 'sick' has one patient only" in message()
    table.write_text(f"id,sick\n{patients[0]},1\n{patients[0]},0\n")
    assert "lines 2 and 3 name the same patient" in message()
    table.write_text("name,sick\na,1\n")
    assert "has no column 'id'; it has name, sick" in message()
    table.write_text(f"id,age\n{patients[0]},old\n{patients[1]},7\n")
    assert "column 'age' holds 'old', which is not a number" in message(kind="regression")
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.png").write_bytes(b"no image")
    assert "one class only (a)" in message(source="folders", data=str(folder), kind="multiclass")
    (folder / "b").mkdir()
    (folder / "b" / "x.png").write_bytes(b"no image")
    assert "cannot be read as an image" in message(source="folders", data=str(folder), kind="multiclass")
    np.savez(tmp_path / "half.npz", train_images=np.zeros((2, 4, 4), np.uint8))
    assert "lacks train_labels" in message(source="medmnist", data=str(tmp_path / "half.npz"))


def test_settings_that_cannot_be_drawn_are_one_line(tiny_dataset, tmp_path: Path, capsys) -> None:
    """Before anything is read: odd cells of a head whose squares overlap by half, none, nothing to choose from."""
    (tmp_path / "task.yaml").write_text("name: x\n")
    for words, expected in (
        ("segmentation.cells=3", "error: segmentation.cells=3: give an even number above 0\n"),
        ("region.cells=0", "error: region.cells=0: expected 1 or more\n"),
        ("knn.k=[]", "error: knn.k=[]: give one value or more\n"),
    ):
        common = ["--checkpoint", "pixels", "--task", str(tmp_path / "task.yaml"), "--output", str(tmp_path / "out")]
        assert probe.main([*common, f"data={tmp_path}", words]) == 1
        assert capsys.readouterr().err == expected


def test_features_that_are_nan_are_refused(tiny_dataset, tmp_path: Path) -> None:
    """A network that diverged is named, and nothing half-written counts as features."""
    one = task(tiny_dataset())
    examples = sources.load(one, tmp_path)

    class Broken(Pixels):
        def features(self, images, blocks, present=None):
            return [(cls * np.nan, patches) for cls, patches in super().features(images, blocks)]

    with pytest.raises(SettingsError, match="pixels: its features hold NaN or infinite values; take another"):
        features.extract(Broken(), examples, one, tmp_path)
