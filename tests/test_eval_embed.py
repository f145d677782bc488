"""`meddap embed`: the features that probes read, of raw images as of shards, whole or not at all, ids hashed or not."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.encoders import random_transformer
from PIL import Image

from benchmarks import curation as bench
from data_prep import identity, schema, shard_ct
from eval import embed
from eval.config import StrideConfig, TaskConfig
from eval.data import features, sources
from eval.data.cohorts import Base, Cohort
from eval.encoders import encoder
from eval.encoders.encoder import CheckpointEncoder
from eval.intake import command, unlabelled

SMALL = ("size=48", "bf16=false")


@pytest.fixture(autouse=True)
def transformer(monkeypatch: pytest.MonkeyPatch) -> CheckpointEncoder:
    """A random transformer in place of whatever --checkpoint names."""
    made = random_transformer()
    monkeypatch.setattr(encoder, "load", lambda checkpoint, task: made)
    return made


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def run(output: Path, *words: str) -> int:
    return embed.main(["--checkpoint", "any", "--output", str(output), *SMALL, *words])


@pytest.fixture(scope="module")
def shards(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic CT patients with pixels of 9 mm, and their key beside."""
    folder = tmp_path_factory.mktemp("embed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        words = ["--input", str(patients), "--output", str(folder / "shards"), "--key", str(folder / "key.jsonl")]
        assert shard_ct.main([*words, "grid.in_plane_mm=9"]) == 0
    return folder / "shards"


@pytest.mark.parametrize(
    ("level", "words", "blocks", "mean_patch"),
    [("slice", (), 1, True), ("volume", ("tokens=cls", "blocks=3"), 3, False), ("volume", ("pool=max",), 1, True)],
)
def test_vectors_are_what_probes_read(level, words, blocks, mean_patch, tiny_dataset, transformer, tmp_path) -> None:
    """Of every slice, or of every volume, to 1e-6."""
    data = tiny_dataset(slices=5)
    wanted = {"slice": "slice", "volume": "series"}[level]
    assert run(tmp_path / "out.npz", "--data", str(data), "--level", wanted, *words) == 0
    found = read(tmp_path / "out.npz")
    pool = "max" if "pool=max" in words else "mean"
    task = TaskConfig(data=str(data), level=level, size=48, stride=StrideConfig(1, 1, 1), bf16=False, pool=pool)
    examples = sources.load(task, tmp_path / "cache")
    stored = features.extract(transformer, examples, task, tmp_path / "cache")
    cohort = Cohort("all", Base(examples, stored, task, tmp_path / "cache"), np.arange(len(examples)))
    slices = list(zip(examples.studies, examples.orders))
    theirs = dict(zip(cohort.keys if level == "volume" else slices, cohort.pooled(blocks, mean_patch)))
    keys = found["series"].tolist() if level == "volume" else list(zip(found["series"], found["slice"]))
    assert len(keys) == len(theirs) == len(found["vectors"])
    for key, vector in zip(keys, found["vectors"]):
        np.testing.assert_allclose(vector, theirs[key], atol=1e-6)


def test_a_patient_is_the_mean_of_its_series(shards: Path, tmp_path: Path) -> None:
    """Each series counts once, whatever its number of slices."""
    for level in ("patient", "series"):
        assert run(tmp_path / f"{level}.npz", "--data", str(shards), "--level", level) == 0
    whole, parts = read(tmp_path / "patient.npz"), read(tmp_path / "series.npz")
    assert sorted(set(parts["patient"])) == whole["patient"].tolist() and len(parts["series"]) >= len(whole["patient"])
    for patient, vector in zip(whole["patient"], whole["vectors"]):
        np.testing.assert_allclose(vector, parts["vectors"][parts["patient"] == patient].mean(axis=0), atol=1e-6)


def test_raw_images_give_the_vectors_of_their_shards(patients: Path, shards: Path, tmp_path: Path, capsys) -> None:
    """Prepared by the settings of the data set to match (pixels of 9 mm), with the same salt; what was left out has its
    reason and shows in the exit status; nothing temporary stays."""
    assert run(tmp_path / "shards.npz", "--data", str(shards), "--level", "series") == 0
    status = run(tmp_path / "raw.npz", "--input", str(patients), "--like", str(shards), "--level", "series")
    theirs, mine = read(tmp_path / "shards.npz"), read(tmp_path / "raw.npz")
    for name in ("vectors", "patient", "series"):
        assert np.array_equal(theirs[name], mine[name]), name
    rejected = [json.loads(line) for line in (shards / "manifest.jsonl").read_text().splitlines()]
    rejected = sorted((row["source"], row["reason"]) for row in rejected if row["status"] == "rejected")
    assert [(row["source"], row["reason"]) for row in json.loads(str(mine["made"]))["left_out"]] == rejected
    assert rejected and status == command.LEFT_OUT and "inputs were left out" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.npz", "shards.npz"]
    finer = run(tmp_path / "finer.npz", "--input", str(patients), "--modality", "CT", "--level", "series")
    assert finer == command.LEFT_OUT and not np.allclose(read(tmp_path / "finer.npz")["vectors"], mine["vectors"])


def test_pictures_and_mr_studies_are_prepared_as_well(brains: Path, brain_shards: Path, tmp_path: Path) -> None:
    """Pictures, each a patient; the sequences of a study, those that are there averaged: as from their shards."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50), np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    assert run(tmp_path / "pictures.npz", "--input", str(tmp_path / "pictures"), "--modality", "IMAGE") == 0
    assert read(tmp_path / "pictures.npz")["vectors"].shape == (3, 128)
    assert run(tmp_path / "raw.npz", "--input", str(brains), "--like", str(brain_shards)) == 0
    assert run(tmp_path / "shards.npz", "--data", str(brain_shards)) == 0
    assert np.array_equal(read(tmp_path / "raw.npz")["vectors"], read(tmp_path / "shards.npz")["vectors"])


def test_ids_are_hashed_unless_they_are_kept(patients: Path, shards: Path, tmp_path: Path) -> None:
    """Kept, raw: the header's ids and the paths; from shards they need the key and are the same. Hashed: neither is
    anywhere. A folder has a file for every patient."""
    key = shards.parent / "key.jsonl"
    ids = {row["subject"]: row["patient"] for row in map(json.loads, key.read_text().splitlines())}
    words = ("--input", str(patients), "--like", str(shards), "--level", "series")
    run(tmp_path / "raw.npz", *words, "--keep-ids")
    run(tmp_path / "data.npz", "--data", str(shards), "--level", "series", "--keep-ids", "--key", str(key))
    run(tmp_path / "hashed", *words)
    kept, same = read(tmp_path / "raw.npz"), read(tmp_path / "data.npz")
    assert set(kept["patient"]) <= set(ids.values()) and all((patients / name).exists() for name in kept["series"])
    assert np.array_equal(kept["patient"], same["patient"]) and np.array_equal(kept["series"], same["series"])
    files = {path.stem: read(path) for path in (tmp_path / "hashed").glob("*.npz")}
    assert {ids[name] for name in files} == set(kept["patient"])
    for name, arrays in files.items():
        assert np.array_equal(arrays["vectors"], kept["vectors"][kept["patient"] == ids[name]])
    text = b"".join(path.read_bytes() for path in (tmp_path / "hashed").rglob("*"))
    assert not [name for name in (*kept["patient"], *kept["series"]) if name.encode() in text]


def test_a_start_that_was_killed_ends_as_if_it_was_not(tiny_dataset, transformer, tmp_path: Path, monkeypatch) -> None:
    """Killed while it extracts and while it writes; the same file, byte for byte, in each form; then it is finished."""
    data, plain = tiny_dataset(slices=16), CheckpointEncoder.features
    words = ("--data", str(data), "batch_size=2", "--level", "series")
    run(tmp_path / "whole.npz", *words)
    calls = []

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == 40:  # more than a stretch of batches is on the disk
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(CheckpointEncoder, "features", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.npz", *words)
    assert not (tmp_path / "killed.npz").exists()
    assert run(tmp_path / "killed.npz", *words, "tokens=cls") == 1  # it was begun otherwise
    monkeypatch.setattr(embed.vectors, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.npz", *words)
    assert len(calls) == 40 + 16 * 8 // 2 - 32 and not (tmp_path / "killed.npz").exists()
    monkeypatch.undo()
    monkeypatch.setattr(encoder, "load", lambda checkpoint, task: transformer)
    assert run(tmp_path / "killed.npz", *words) == 0
    assert (tmp_path / "killed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not (tmp_path / "killed.npz.work").exists()


def test_a_finished_output_is_not_made_again(tiny_dataset, tmp_path: Path, capsys) -> None:
    """The same command: said, not touched. Another setting: an error that names it."""
    data = tiny_dataset(slices=4)
    for output in (tmp_path / "one.npz", tmp_path / "folder"):
        assert run(output, "--data", str(data)) == 0
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
        assert run(output, "--data", str(data)) == 0
        assert "finished before, 32 slices" in capsys.readouterr().err
        assert run(output, "--data", str(data), "tokens=cls") == 1
        assert "was made with tokens=both, now cls; name another --output" in capsys.readouterr().err
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}


def test_a_parquet_table_holds_the_same(tiny_dataset, tmp_path: Path, capsys) -> None:
    """Vectors, columns and how they were made; without pyarrow one line says what to install."""
    data = tiny_dataset(slices=4)
    words = ("--data", str(data), "--level", "slice")
    try:
        import pyarrow.parquet
    except ImportError:
        assert run(tmp_path / "out.parquet", *words) == 1
        assert "need pyarrow: pip install 'meddap[parquet]'" in capsys.readouterr().err
        return
    assert run(tmp_path / "out.parquet", *words) == 0 and run(tmp_path / "out.npz", *words) == 0
    table, arrays = pyarrow.parquet.read_table(tmp_path / "out.parquet"), read(tmp_path / "out.npz")
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), arrays["vectors"])
    for name in ("patient", "series", "slice"):
        assert table[name].to_pylist() == arrays[name].tolist()
    assert json.loads(table.schema.metadata[b"made"]) == json.loads(str(arrays["made"]))
    assert run(tmp_path / "out.parquet", *words) == 0  # finished before


def test_what_is_wrong_is_one_line(tiny_dataset, patients: Path, shards: Path, tmp_path: Path, capfd) -> None:
    """Each with its remedy, and status 1."""
    data, nothing = str(tiny_dataset(slices=4)), tmp_path / "nothing"
    nothing.mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    shutil.copytree(shards, tmp_path / "copy")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), damaged / "a.nii.gz")
    (damaged / "a.nii.gz").write_bytes((damaged / "a.nii.gz").read_bytes()[:-20])
    raw = ("--input", str(patients))
    cases = [
        (("--data", data, "size=50"), "size=50: not a multiple of the encoder's patch size 8"),
        (("--data", data, "blocks=5"), "blocks=5"),
        (("--data", data, "tokens=cls", "blocks=0"), "blocks=0"),
        (("--data", data, "split=tset"), "split=tset"),
        (("--data", data, "sise=3"), "unknown key sise; did you mean size?"),
        (("--data", str(nothing)), "dataset.json: not found"),
        (("--data", data, "--keep-ids"), "--keep-ids: shards hold hashes alone; give --key FILE"),
        (("--data", data, "--keep-ids", "--key", str(shards.parent / "key.jsonl")), "--key: does not name 8 patients"),
        (raw, "any: does not say how raw images are prepared; give --like SHARDS"),
        ((*raw, "--like", data), "dataset.json does not say how it was made"),
        (("--input", str(nothing), "--modality", "CT"), "holds no image and no DICOM file"),
        (("--input", str(tmp_path / "missing"), "--modality", "CT"), "no such folder"),
        (("--input", str(damaged), "--modality", "CT"), "none of 1 inputs could be used"),
    ]
    for number, (words, wanted) in enumerate(cases):
        assert run(tmp_path / f"{number}.npz", *words) == 1, words
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and wanted in errors[0], (words, errors)
        assert not (tmp_path / f"{number}.npz").exists()
    assert run(tmp_path / "out.csv", "--data", data) == 1
    assert "give FILE.npz, FILE.parquet or a folder" in capfd.readouterr().err


def test_slices_as_examples_take_little_memory(tmp_path: Path) -> None:
    """Of 100,000 slices of 400 series every second one: at most 300 bytes each; ids, order and numbers are right."""
    root = bench.many(tmp_path / "shards", 100_000)
    tracemalloc.start()
    examples = unlabelled.load(str(root), tmp_path / "work", stride=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(examples) == 50_000 and peak / len(examples) < 300
    index = schema.Split(root, "train").index
    rows = np.arange(0, 50_000, 997)
    for row, key in zip(rows, examples.keys[rows]):
        assert int(examples.subjects[row][:16], 16) == index["subject"][key]
        assert int(examples.studies[row][:16], 16) == index["series"][key]
        assert examples.orders[row] == index["order"][key] and examples.orders[row] % 2 == 0
    assert sorted(examples.subjects) == list(examples.subjects)


def test_an_index_of_other_samples_is_one_line(tmp_path: Path) -> None:
    """A header that names another patient than the index does."""
    root = bench.many(tmp_path / "shards", 500)
    path = schema.index_of(root / "train" / "000000.tar")
    index = np.load(path)
    index["subject"] += 1
    np.save(path, index)
    with pytest.raises(schema.SchemaError, match="its subject is not the index's"):
        unlabelled.load(str(root), tmp_path / "work")
