"""`meddap predict`: what the probe said of its test patients, from raw images and shards; maps on the source's grid."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import pet_files
from helpers.datasets import body_slice
from helpers.encoders import random_transformer
from PIL import Image

from data_prep import identity, shard_ct, shard_images, shard_mri
from eval import predict, probe
from eval.config import DecoderConfig, StrideConfig, TableConfig, TaskConfig
from eval.data import sources
from eval.encoders import encoder
from eval.encoders.encoder import CheckpointEncoder
from eval.intake import grids, raw, unlabelled
from eval.intake.command import LEFT_OUT
from eval.kept import head
from eval.reporting import results

ORIENTATIONS = ("RAS", "LPS", "LAI", "RPI", "ASL", "PIR")
SETTINGS = ("geometry.planes=reformat", "values=trust", "split.train=5", "split.val=3", "split.test=4")


@pytest.fixture(scope="module", autouse=True)
def transformer() -> CheckpointEncoder:
    """A random transformer in place of whatever --checkpoint names."""
    made = random_transformer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "load", lambda checkpoint, task: made)
        patch.setenv(identity.VARIABLE, "tests")
        yield made


def write_patient(folder: Path, number: int, size: int = 64, slices: int = 7) -> None:
    """A CT of an ellipse with two organs and its label map, their axes running somewhere."""
    rng = np.random.default_rng(number)
    drawn = [body_slice(rng, number, order, size) for order in range(slices)]
    voxels = np.stack([each.pixels[0] for each in drawn]).transpose(2, 1, 0)  # x to the left, y to the back, z up
    labels = np.stack([each.labelmap for each in drawn]).transpose(2, 1, 0)
    affine = np.array([[-2.0, 0, 0, 60 + number], [0, -2, 0, 70], [0, 0, 5, -100 - number], [0, 0, 0, 1]])
    folder.mkdir(parents=True)
    for name, values in (("ct", voxels), ("ct_seg", labels)):
        image = nib.Nifti1Image(values, affine)
        axes = nib.orientations.axcodes2ornt(ORIENTATIONS[number % len(ORIENTATIONS)])
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), axes)
        nib.save(image.as_reoriented(turn), folder / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen patients as NIfTI files."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(16):
        write_patient(folder / f"patient{number:02d}", number)
    return folder


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shards, and what stands behind the hashes beside."""
    folder = tmp_path_factory.mktemp("shards")
    words = ["--input", str(images), "--output", str(folder / "shards"), "--key", str(folder / "key.jsonl")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        assert shard_ct.main([*words, *SETTINGS, "labels.1=bright", "labels.2=dark"]) == 0
    return folder / "shards"


def task(data: Path, *probes: str, **changes) -> TaskConfig:
    """Settings of seconds."""
    quick = {"segmentation": DecoderConfig(lr=[5e-3], epochs=12, batch_size=16), "draws": 20, "pictures": 1}
    quick |= {"stride": StrideConfig(1, 1, 1), "bf16": False, "size": 64}
    return TaskConfig(data=str(data), probes=list(probes), **(quick | changes))


@pytest.fixture(scope="module")
def probed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe's folder with a head that names structures of slices and one that draws them."""
    folder = tmp_path_factory.mktemp("probed")
    probe.run("any", task(shards, "logistic", "segmentation"), folder)
    return folder


def run(output: Path, name: Path, *words: str) -> int:
    return predict.main(["--checkpoint", "any", "--head", str(name), "--output", str(output), *words])


def rows(output: Path) -> list[dict[str, str]]:
    with open(output / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_raw_images_and_shards_give_the_probes_own_predictions(images, shards, probed, tmp_path: Path) -> None:
    """Probabilities of every slice of the test patients to 1e-6; patients of the training are refused by name of their
    hash, and predicted where that is allowed."""
    _, written = results.read_predictions(probed)
    mine = written["logistic"]
    wanted = {key: scores for key, scores in zip(mine.keys, mine.scores[0])}
    assert run(tmp_path / "data", probed / "logistic", "--data", str(shards), "split=test") == 0
    assert run(tmp_path / "raw", probed / "logistic", "--input", str(images)) == LEFT_OUT
    for folder in ("data", "raw"):
        found = [row for row in rows(tmp_path / folder) if row["status"] == "predicted"]
        assert len(found) == len(wanted)
        for row in found:
            scores = wanted[f"{row['series']}-{int(row['slice']):05d}"]
            np.testing.assert_allclose([float(row["bright"]), float(row["dark"])], scores, atol=1e-6)
    card = json.loads((probed / "heads" / "logistic" / "head.json").read_text())
    assert card["calibration"] and any(row["metric"] == "ece, calibrated" for row in card["figures"])
    by_score = sorted((float(row["bright"]), float(row["bright, calibrated"])) for row in found)
    assert [each for _, each in by_score] == sorted(each for _, each in by_score)
    assert max(abs(one - other) for one, other in by_score) > 1e-3
    refused = [row for row in rows(tmp_path / "raw") if row["status"] == "refused"]
    assert {row["patient"] for row in refused} == set(head.read(probed / "logistic").head.training)
    assert all("was fitted on or chosen by; --allow-training-patients" in row["reason"] for row in refused)
    assert run(tmp_path / "all", probed / "logistic", "--input", str(images), "--allow-training-patients") == 0
    assert len({row["patient"] for row in rows(tmp_path / "all") if row["status"] == "predicted"}) == 16
    assert not (tmp_path / "raw" / ".work").exists()


def test_another_salt_hides_no_patient_of_the_training(images, shards, probed, tmp_path: Path, monkeypatch) -> None:
    """Found by the pixels, and that ids could not be compared is said."""
    monkeypatch.setenv(identity.VARIABLE, "another")
    assert run(tmp_path / "out", probed / "logistic", "--input", str(images)) == LEFT_OUT
    status = [row["status"] for row in rows(tmp_path / "out")]
    assert status.count("refused") == len(head.read(probed / "logistic").head.training)
    assert all("very pixels" in row["reason"] for row in rows(tmp_path / "out") if row["status"] == "refused")


def dice(drawn: np.ndarray, true: np.ndarray) -> float:
    total = np.count_nonzero(drawn) + np.count_nonzero(true)
    return 2 * np.count_nonzero(drawn & true) / total if total else np.nan


def test_label_maps_lie_on_the_grid_of_their_source(images, shards, probed, tmp_path: Path) -> None:
    """Shape and affine are those of the image, whatever its orientation; the Dice of a structure's file with the label
    map beside the image is the probe's volume Dice; in one map for all, structures that overlap have the likelier."""
    key = [json.loads(line) for line in (shards.parent / "key.jsonl").read_text().splitlines()]
    folder_of = {row["subject"]: Path(row["files"][0]).parent for row in key}
    _, written = results.read_predictions(probed)
    probes = dict(zip(written["segmentation"].subjects, written["segmentation"].values["dice"][0]))
    assert run(tmp_path / "each", probed / "segmentation", "--input", str(images), "maps=each") == LEFT_OUT
    assert run(tmp_path / "one", probed / "segmentation", "--input", str(images)) == LEFT_OUT
    seen, axes = 0, set()
    for row in rows(tmp_path / "each"):
        if row["status"] != "predicted":
            continue
        source = nib.load(folder_of[row["patient"]] / "ct.nii.gz")
        truth = np.asarray(nib.load(folder_of[row["patient"]] / "ct_seg.nii.gz").dataobj)
        maps = np.asarray(nib.load(tmp_path / "one" / "segmentations" / f"{row['series']}.nii.gz").dataobj)
        both = np.zeros(truth.shape, int)
        assert (tmp_path / "each" / row["file"]).is_dir() and row["file"].endswith(row["series"])
        for place, (value, name) in enumerate(((1, "bright"), (2, "dark"))):
            image = nib.load(tmp_path / "each" / "segmentations" / row["series"] / f"{value}.nii.gz")
            assert image.shape == source.shape and np.allclose(image.affine, source.affine)
            mask = np.asarray(image.dataobj) > 0
            assert dice(mask, truth == value) == pytest.approx(probes[row["patient"]][place], abs=1e-6, nan_ok=True)
            assert float(row[f"{name} ml"]) == pytest.approx(mask.sum() * 20 / 1000, abs=1e-3)
            assert not (mask & (both == 0) & (maps != value) & ~(np.isin(maps, (1, 2)))).any()
            both += mask
        assert np.array_equal(both > 0, maps > 0) and (both > 1).sum() == int(row["overlapping voxels"])
        seen, axes = seen + 1, axes | {nib.aff2axcodes(source.affine)}
    assert seen == len(probes) and len(axes) > 1
    assert np.nanmean(list(probes.values())) > 0.3


@pytest.mark.parametrize(
    "settings", [("grid.in_plane_mm=3",), ("grid.size=50",), ("grid.in_plane_mm=1.5", "grid.size=96")]
)
def test_resampled_cropped_and_padded_slices_map_back(settings, images, tmp_path: Path) -> None:
    """A disc that is drawn on such slices lies, within half a pixel, where it lies in the image's own grid."""
    chosen = tmp_path / "images" / "patient"
    chosen.parent.mkdir()
    shutil.copytree(images / "patient04", chosen)
    words = ["--input", str(chosen.parent), "--output", str(tmp_path / "shards"), "--key", str(tmp_path / "key.jsonl")]
    assert shard_ct.main([*words, *SETTINGS, *settings]) == 0
    intake = raw.shards(tmp_path / "shards", tmp_path / "key.jsonl")
    ((series, placed),) = grids.places(intake).items()
    examples = unlabelled.load(str(tmp_path / "shards"), tmp_path / "slices")
    truth = np.asarray(nib.load(chosen / "ct_seg.nii.gz").dataobj)
    planes = {int(order): examples.read(row).labelmap for row, order in enumerate(examples.orders)}
    found = placed.drawn(planes)
    assert found.shape == truth.shape and set(examples.studies) == {series}
    for value in (1, 2):
        centres = [np.argwhere(each == value).mean(axis=0) for each in (found, truth)]
        assert np.abs(centres[0] - centres[1]).max() < 0.5, value
        assert dice(found == value, truth == value) > 0.85, value


def test_one_bad_patient_costs_itself_alone(images, shards, probed, tmp_path: Path) -> None:
    """A damaged file has a row with the reason; the others are predicted; the exit status says so; ids are kept where
    that is asked for, and else nowhere."""
    mixed = tmp_path / "mixed"
    key = {row["subject"]: row for row in map(json.loads, (shards.parent / "key.jsonl").read_text().splitlines())}
    training = set(head.read(probed / "logistic").head.training)
    for subject, row in key.items():
        if subject not in training:
            shutil.copytree(Path(row["files"][0]).parent, mixed / row["patient"])
    names = sorted(path.name for path in mixed.iterdir())
    broken = mixed / names[0] / "ct.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-300])
    assert run(tmp_path / "kept", probed / "logistic", "--input", str(mixed), "--keep-ids") == LEFT_OUT
    found = rows(tmp_path / "kept")
    assert {row["patient"] for row in found if row["status"] == "predicted"} == set(names[1:])
    (out,) = [row for row in found if row["status"] == "left out"]
    assert out["series"] == f"{names[0]}/ct.nii.gz" and "damaged" in out["reason"]
    assert run(tmp_path / "hashed", probed / "logistic", "--input", str(mixed)) == LEFT_OUT
    text = b"".join(path.read_bytes() for path in (tmp_path / "hashed").rglob("*") if path.is_file())
    assert not [name for name in names if name.encode() in text]


def test_values_survival_and_volumes(shards, tmp_path: Path) -> None:
    """A CSV of values by patient: ridge, Cox and a volume's classes predict what they predicted, to 1e-6."""
    examples = sources.load(task(shards), tmp_path / "cache")
    subjects, rng = np.unique(examples.subjects), np.random.default_rng(0)
    table = tmp_path / "labels.csv"
    lines = [
        f"{each},{rng.normal():.3f},{rng.exponential():.3f},{number % 4 != 0:d},{'abc'[number % 3]}"
        for number, each in enumerate(subjects)
    ]
    table.write_text("id,age,time,event,type\n" + "\n".join(lines) + "\n")
    tasks = [("regression", "ridge", ["age"]), ("survival", "cox", ["time", "event"]), ("multiclass", "mil", ["type"])]
    for kind, names, columns in tasks:
        settings = task(
            shards, names, source="table", kind=kind, level="volume", table=TableConfig(file=str(table), labels=columns)
        )
        probe.run("any", settings, tmp_path / kind)
        assert run(tmp_path / f"{kind}-out", tmp_path / kind, "--data", str(shards), "split=test") == 0
        _, written = results.read_predictions(tmp_path / kind)
        found = {row["series"]: row for row in rows(tmp_path / f"{kind}-out")}
        for name, prediction in written.items():
            classes = [f"{each}{name[3:]}" for each in "abc"]
            titles = {"regression": ["age"], "survival": ["log hazard"]}.get(kind, classes)
            for series, scores in zip(prediction.keys, prediction.scores[0]):
                np.testing.assert_allclose([float(found[series][title]) for title in titles], scores, atol=1e-6)
        assert len(found) == len(prediction.keys)


def test_a_start_that_was_killed_goes_on(shards, probed, tmp_path: Path, monkeypatch) -> None:
    """Patients that were finished are not computed again; the same CSV."""
    words = ("--data", str(shards), "split=test")
    assert run(tmp_path / "whole", probed / "segmentation", *words) == 0
    plain, calls = CheckpointEncoder.features, []

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(CheckpointEncoder, "features", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", probed / "segmentation", *words)
    assert not (tmp_path / "killed" / "predictions.csv").exists()
    assert run(tmp_path / "killed", probed / "segmentation", *words, "maps=each") == 1  # it was begun otherwise
    assert run(tmp_path / "killed", probed / "segmentation", *words) == 0
    assert len(calls) == 3 + len(rows(tmp_path / "whole")) - 2
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_what_is_wrong_is_one_line(images, shards, probed, tiny_dataset, tmp_path: Path, capfd, monkeypatch) -> None:
    """Each with its remedy, and status 1."""
    data, logistic = ("--data", str(shards)), probed / "logistic"
    probe.run("any", task(tiny_dataset(slices=4), "logistic", size=48), tmp_path / "unknown")
    cases = [
        (probed, data, "holds the heads logistic, segmentation; name one"),
        (probed / "knn", data, "no such head; there are logistic, segmentation"),
        (tmp_path, data, "no fitted head there"),
        (logistic, (*data, "split=train"), "no patient was predicted: its id is among those"),
        (logistic, (*data, "split=tset"), "split=tset"),
        (logistic, (*data, "stride=0"), "stride=0"),
        (logistic, (*data, "--keep-ids"), "--keep-ids: shards hold hashes alone"),
        (logistic, ("--input", str(images), "--dicom-seg"), "logistic draws nothing"),
        (probed / "segmentation", ("--input", str(images), "--dicom-seg"), "give --input and --keep-ids too"),
        (logistic, ("--input", str(tmp_path / "missing")), "no such folder"),
        (tmp_path / "unknown", ("--input", str(images)), "its raw images cannot be prepared here"),
    ]
    for number, (name, words, wanted) in enumerate(cases):
        assert run(tmp_path / f"out{number}", name, *words) == 1, words
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and wanted in errors[0], (words, errors)
        assert not (tmp_path / f"out{number}" / "predictions.csv").exists()
    assert run(tmp_path / "done", logistic, *data, "split=test") == 0
    assert run(tmp_path / "done", logistic, *data, "split=test") == 0 and "finished before" in capfd.readouterr().err
    assert run(tmp_path / "done", logistic, *data, "split=val") == 1
    assert "was made with split=test, now val; name another --output" in capfd.readouterr().err
    monkeypatch.setattr(encoder, "load", lambda checkpoint, task: random_transformer(seed=1))
    assert run(tmp_path / "other", logistic, *data) == 1
    assert "other weights than the head logistic was fitted on" in capfd.readouterr().err


def test_a_head_of_nnunets_layout_reads_new_files_as_its_cases(tmp_path: Path) -> None:
    """NIfTI files alone, prepared as the cases were: the probe's own predictions of its test cases, to 1e-6; the
    training cases are known again by their pixels."""
    root = tmp_path / "Dataset001"
    for number in range(12):
        write_patient(tmp_path / f"{number}", number)
        end = "Tr" if number < 9 else "Ts"
        for folder, name in ((f"images{end}", "ct"), (f"labels{end}", "ct_seg")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            channel = "_0000" if name == "ct" else ""
            shutil.copy(tmp_path / f"{number}" / f"{name}.nii.gz", root / folder / f"case{number:02d}{channel}.nii.gz")
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "bright": 1, "dark": 2}}
    (root / "dataset.json").write_text(json.dumps({**described, "numTraining": 9, "file_ending": ".nii.gz"}))
    settings = task(root, "logistic", source="nnunet", kind="multilabel")
    probe.run("any", settings, tmp_path / "probed")
    _, written = results.read_predictions(tmp_path / "probed")
    wanted = dict(zip(written["logistic"].keys, written["logistic"].scores[0]))
    words = ("--input", str(root / "imagesTs"), "--keep-ids")
    assert run(tmp_path / "out", tmp_path / "probed", *words) == 0
    found = rows(tmp_path / "out")
    for row in found:
        study = identity.hashed(b"tests", "series", row["series"].removesuffix("_0000.nii.gz"))
        scores = wanted.pop(f"{study}-{int(row['slice']):05d}")
        np.testing.assert_allclose([float(row["bright"]), float(row["dark"])], scores, atol=1e-6)
    assert not wanted and len(found) == 21
    assert run(tmp_path / "seen", tmp_path / "probed", "--input", str(root / "imagesTr")) == 1


def test_a_head_of_folders_of_pictures_reads_new_pictures(tmp_path: Path) -> None:
    """The probe's own probabilities to 1e-3, for shards store 8 bits on a scale of 16,384 steps, and the same classes;
    pictures of the training are known again."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for name, level in (("dark", 60), ("light", 160)):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for number in range(count):
                noise = np.clip(rng.normal(level, 60, (48, 48)), 0, 255).astype(np.uint8)
                Image.fromarray(noise).save(tmp_path / "pictures" / split / name / f"{split}{number}.png")
    probe.run(
        "any", task(tmp_path / "pictures", "logistic", source="folders", kind="binary", size=48), tmp_path / "out"
    )
    _, written = results.read_predictions(tmp_path / "out")
    new = ("--input", str(tmp_path / "pictures" / "test"), "--keep-ids")
    assert run(tmp_path / "new", tmp_path / "out", *new) == 0
    wanted = dict(zip(written["logistic"].keys, written["logistic"].scores[0][:, 0]))
    found = rows(tmp_path / "new")
    for row in found:
        score = wanted[identity.hashed(b"tests", "source", f"test/{row['series']}")]
        assert float(row["light"]) == pytest.approx(score, abs=1e-3)
        assert (float(row["light"]) > 0.5) == row["series"].startswith("light")
    assert len(found) == len(wanted) == 12
    assert run(tmp_path / "old", tmp_path / "out", "--input", str(tmp_path / "pictures" / "train")) == 1


def test_maps_of_an_mr_study_lie_on_the_grid_of_its_reference(brains: Path, tmp_path: Path) -> None:
    """Several sequences, seen one after the other; the file has the reference's shape and affine, and the Dice with the
    study's label map is the probe's."""
    words = ["--input", str(brains), "--output", str(tmp_path / "shards"), "--key", str(tmp_path / "key.jsonl")]
    assert shard_mri.main([*words, "split.train=4", "split.val=3", "split.test=3"]) == 0
    settings = task(tmp_path / "shards", "segmentation", size=40)
    probe.run("any", settings, tmp_path / "probed")
    _, written = results.read_predictions(tmp_path / "probed")
    prediction = written["segmentation"]
    run(tmp_path / "out", tmp_path / "probed", "--input", str(brains), "--allow-training-patients", "maps=each")
    key = {row["source"]: row for row in map(json.loads, (tmp_path / "key.jsonl").read_text().splitlines())}
    manifest = [json.loads(line) for line in (tmp_path / "shards" / "manifest.jsonl").read_text().splitlines()]
    values = head.read(tmp_path / "probed").head.values
    seen = 0
    for row in manifest:
        if row["status"] != "accepted" or not row["reference"] or row["split"] != "test":
            continue
        source = Path(key[row["source"]]["files"][0])
        (labels,) = source.parent.glob("*seg*")
        truth, image = np.asarray(nib.load(labels).dataobj), nib.load(source)
        place = list(prediction.subjects).index(row["subject"])
        for column, value in enumerate(values):
            drawn = nib.load(tmp_path / "out" / "segmentations" / row["stack"] / f"{value}.nii.gz")
            assert drawn.shape == image.shape and np.allclose(drawn.affine, image.affine)
            wanted = prediction.values["dice"][0][place, column]
            assert dice(np.asarray(drawn.dataobj) > 0, truth == value) == pytest.approx(wanted, abs=1e-6, nan_ok=True)
            seen += 1
    assert seen


def test_a_pet_series_lies_where_its_manifest_says(tmp_path: Path) -> None:
    """Its slices come of the command for pictures, and have a grid as those of a CT have."""
    stored = np.random.default_rng(0).integers(2000, 20000, (5, 16, 16)).astype(np.uint16)
    pet_files.series(tmp_path / "in", stored)
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "grid.size=20"]
    assert shard_images.main(words) == 0
    (placed,) = grids.places(raw.shards(tmp_path / "out", None)).values()
    assert placed.slices.shape == (20, 20, 5) and placed.source.shape == (16, 16, 5)
    planes = {order: np.pad(np.full((16, 16), order + 1, np.uint8), 2) for order in range(5)}
    assert np.array_equal(placed.drawn(planes), np.broadcast_to(np.arange(1, 6, dtype=np.uint8), (16, 16, 5)))
