"""Tasks from every source, on real images where they are there: one command, one YAML, every kind of probe."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.encoders import random_transformer

from data_prep import generate, shard_ct, shard_mri
from data_prep.schema import Split
from eval import probe, report
from eval.config import FilesConfig, TaskConfig
from eval.data import sources, splits
from eval.reporting import main_figure, results
from meddap.settings import SettingsError, load

CONFIGS = Path(probe.__file__).parent / "configs"
QUICK = ("draws=50", "pictures=2", "logistic.strengths=4", "linear.steps=60", "few_shot.shots=[1,2]", "mil.epochs=10")
QUICK += ("fractions.draws=2", "attentive.epochs=2", "attentive.lr=[1e-3]", "segmentation.epochs=1", "mil.lr=[1e-3]")
QUICK += ("segmentation.lr=[1e-3]", "anomaly.memory=500", "drawing.surfaces=false")


def probed(task: str | Path, data: Path, output: Path, *words: str) -> list[dict]:
    """Run the command with statistics of pixels as the encoder; the rows that it wrote."""
    file = CONFIGS / f"{task}.yaml" if isinstance(task, str) else task
    common = ["--checkpoint", "pixels", "--task", str(file), "--output", str(output)]
    assert probe.main([*common, f"data={data}", *QUICK, *words]) == 0
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


def headline(rows: list[dict], name: str, metric: str = "auroc") -> float:
    """The largest of a probe's headlines."""
    mine = [row for row in rows if (row["probe"], row["metric"]) == (name, metric)]
    return max(row["value"] for row in mine if row["label"] in ("macro", "all"))


def linked(folder: Path, files: dict[str, Path]) -> Path:
    """A folder of links to files that stay where they are."""
    for name, target in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, folder / name)
    return folder


def test_organs_of_real_ct(data_dir: Path, tmp_path: Path) -> None:
    """Ten OpenKBP patients: presence, few labels, regions and a drawing, each far above chance."""
    names = [f"pt_{n}/{name}.nii.gz" for n in range(1, 13) for name in ("ct", "seg")]
    files = {name: data_dir / "ct_openkbp" / name for name in names}
    patients = linked(tmp_path / "patients", {name: path for name, path in files.items() if path.is_file()})
    assert shard_ct.main(["--input", str(patients), "--output", str(tmp_path / "shards")]) == 0
    words = ["size=64", "split.by=patient", "split.salt=f", "stride={train: 6, val: 6, test: 6}"]
    rows = probed("openkbp_presence", tmp_path / "shards", tmp_path / "presence", *words)
    assert {row["probe"] for row in rows} == {"knn", "logistic", "linear", "attentive", "few_shot", "fractions"}
    assert headline(rows, "knn") > 0.75 and headline(rows, "logistic") > 0.75 and headline(rows, "linear") > 0.75
    words.append("probes=[region,segmentation]")
    rows = probed("openkbp_organs", tmp_path / "shards", tmp_path / "organs", *words)
    assert headline(rows, "region", "balanced_accuracy") > 0.4
    assert {row["probe"] for row in rows} == {"region", "segmentation"}
    assert report.main(["--runs", str(tmp_path / "presence"), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "few_shot: auroc against labelled units" in page and "fractions: auroc against" in page


def test_nnunets_layout(data_dir: Path, tmp_path: Path) -> None:
    """TotalSegmentator's examples as nnU-Net data: the labels of slices, pairs of another shape refused in one line."""
    folder = data_dir / "ct_totalsegmentator"
    pairs = {"a": ("example_ct", "example_seg_fast_force_split"), "c": ("example_ct_sm", "example_seg")}
    pairs["b"] = ("aorta_report/example_ct", "pulmonary_report/models/heart")
    files = {}
    for case, (image, labels) in pairs.items():
        files[f"imagesTr/{case}_0000.nii.gz"] = folder / f"{image}.nii.gz"
        files[f"labelsTr/{case}.nii.gz"] = folder / f"{labels}.nii.gz"
    data = linked(tmp_path / "data", files)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "first": 1, "second": 2, "fifth": 5}}
    (data / "dataset.json").write_text(json.dumps(described))
    task = load(TaskConfig, CONFIGS / "nnunet.yaml", [f"data={data}", "files.plane_stride=9"])
    examples = sources.load(task, tmp_path)
    assert examples.names == ("first", "second", "fifth") and examples.values == (1, 2, 5)
    picture = examples.read(len(examples) // 2)
    assert picture.pixels.dtype == np.int16 and picture.labelmap.shape == picture.pixels.shape[1:]
    counts = [(examples.read(n).labelmap == 1).sum() for n in range(len(examples))]
    known = ~np.isnan(examples.targets[:, 0])
    assert ((np.array(counts)[known] >= 10) == (examples.targets[known, 0] == 1)).all()
    words = ["files.plane_stride=9", "split.salt=s21", "probes=[knn,logistic,region,segmentation]", "size=64"]
    rows = probed("nnunet", data, tmp_path / "out", *words)
    assert {row["probe"] for row in rows} == {"knn", "logistic", "region", "segmentation"} and rows[0]["patients"] == 1
    (data / "labelsTr" / "a.nii.gz").unlink()
    os.symlink(folder / "example_seg.nii.gz", data / "labelsTr" / "a.nii.gz")
    with pytest.raises(SettingsError, match="a.nii.gz: .* voxels, but a_0000.nii.gz has .*; give one grid"):
        sources.load(task, tmp_path)


def test_folders_of_images(data_dir: Path, tmp_path: Path) -> None:
    """Four classes of brain MRI: kNN, heads, few labels, retrieval; no file's name is written down."""
    data = data_dir / "classification" / "brain_mri_4class"
    rows = probed("brain_mri_4class", data, tmp_path / "out", "size=32")
    assert headline(rows, "knn") > 0.65 and headline(rows, "logistic") > 0.6
    assert headline(rows, "retrieval", "map") > 0.3
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"image(" not in written and b".jpg" not in written
    one = load(TaskConfig, CONFIGS / "brain_mri_4class.yaml", [f"data={data}"])
    fold = splits.folds(sources.load(one, tmp_path), one)[0]
    assert len(fold.rows["test"]) == len(list((data / "Testing").rglob("*.jpg")))


def test_a_medmnist_file(data_dir: Path, tmp_path: Path) -> None:
    """Pneumonia in small radiographs: its own splits, AUROC above 0.85 from statistics of pixels."""
    rows = probed("pneumonia", data_dir / "classification" / "pneumonia_subset.npz", tmp_path / "out", "size=32")
    assert headline(rows, "logistic") > 0.85 and rows[0]["patients"] == 624
    assert {row["probe"] for row in rows} == {"knn", "logistic", "linear", "few_shot", "fractions"}


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of synthetic brain MRI with types of tumours."""
    folder = tmp_path_factory.mktemp("brains")
    generate.generate(folder / "patients", generate.GenerateConfig(patients=24, slices=10, size=48, modality="mr"))
    words = ["--labels", str(folder / "patients" / "labels.csv")]
    before, os.environ["MEDDAP_SALT"] = os.environ.get("MEDDAP_SALT"), "tests"
    try:
        command = ["--input", str(folder / "patients"), "--output", str(folder / "shards")]
        assert shard_mri.main([*command, *words]) == 0
    finally:
        os.environ.pop("MEDDAP_SALT") if before is None else os.environ.update(MEDDAP_SALT=before)
    return folder


def test_synthetic_mri_by_volume_and_by_anomaly(brains: Path, tmp_path: Path) -> None:
    """The tumour's type from all slices of a volume; slices with a tumour found by a memory of those without."""
    rows = probed("synthetic_tumour", brains / "shards", tmp_path / "tumour")
    assert {row["probe"] for row in rows} == {"knn", "logistic", "linear", "mil"}
    assert {row["variant"]["pool"] for row in rows if row["probe"] == "mil"} == {"mean", "max", "attention"}
    rows = probed("synthetic_anomaly", brains / "shards", tmp_path / "anomaly")
    assert {row["metric"] for row in rows} == {"auroc", "auprc", "pixel_auroc"}
    assert headline(rows, "anomaly", "pixel_auroc") > 0.6
    _, kept = results.read_predictions(tmp_path / "anomaly")
    figure = main_figure.find("anomaly", (), "", kept)  # of slices: that of pixels has not taken its place
    assert str(figure) == "anomaly auroc" and set(kept) == {"anomaly", "anomaly of pixels"}


def test_synthetic_mri_from_few_slices(brains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Residual adapters on a random transformer see tumours above chance, by slice and by pixel; statistics of pixels
    have no blocks to adapt, and the table says so."""
    file, data = CONFIGS / "synthetic_few_shot_anomaly.yaml", brains / "shards"
    words = ["normal=4", "abnormal=[0,4]", "draws=1", "epochs=[3]", "memory=300", "depths=2"]
    quick = [f"few_shot_anomaly.{word}" for word in words]
    with monkeypatch.context() as patched:
        patched.setattr(probe.encoder, "load", lambda checkpoint, task: random_transformer())
        rows = probed(file, data, tmp_path / "adapted", "probes=[few_shot_anomaly]", *quick)
    assert {row["variant"]["abnormal"] for row in rows} == {0, 4}
    assert headline(rows, "few_shot_anomaly") > 0.6 and headline(rows, "few_shot_anomaly", "pixel_auroc") > 0.6
    rows = probed(file, data, tmp_path / "floor")
    assert {row["probe"] for row in rows} == {"anomaly"}


def test_a_table_of_labels(brains: Path, tmp_path: Path) -> None:
    """Age, survival and site by patient, ids as the hospital has them: ridge, Cox, a fold for each site."""
    rng = np.random.default_rng(0)
    lines = ["id,age,months,died,site"]
    for n in range(24):
        age, months = 50 + 20 * rng.random(), 12 * rng.exponential()
        lines.append(f"Synthetic_{n:04d},{age:.1f},{months:.1f},{n % 2},{'AB'[n % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    task = tmp_path / "task.yaml"
    shared = f"""
source: table
level: volume
size: 64
stride: {{train: 3, val: 3, test: 3}}
table: {{file: {tmp_path}/labels.csv, labels: LABELS}}
"""
    regression = "kind: regression\nprobes: [ridge, knn]\nsplit: {by: site, val: 0.3}\n"
    task.write_text(shared.replace("LABELS", "[age]") + regression)
    rows = probed(task, brains / "shards", tmp_path / "age", "name=age")
    assert {row["metric"] for row in rows} == {"mae", "rmse", "r2", "pearson"} and rows[0]["patients"] == 24
    assert set(rows[0]["chosen_on_val"]) == {"A", "B"}
    survival = "kind: survival\nprobes: [cox]\nsplit: {by: patient}\n"
    task.write_text(shared.replace("LABELS", "[months, died]") + survival)
    rows = probed(task, brains / "shards", tmp_path / "survival", "name=survival")
    assert [row["metric"] for row in rows] == ["c_index"]


def test_the_same_volume_has_the_same_digests_from_nifti_and_from_shards(patients: Path, tmp_path: Path) -> None:
    """So a test case in nnU-Net's layout is found among the shards that pretraining saw."""
    import nibabel

    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 300, (40, 36, 5)).astype(np.int16)
    labels = (voxels > 200).astype(np.uint8)
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    for name, array in (("pt/ct", voxels), ("pt/seg", labels), ("n/imagesTr/x_0000", voxels), ("n/labelsTr/x", labels)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    (tmp_path / "n" / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}}')
    assert shard_ct.main(["--input", str(tmp_path / "pt"), "--output", str(tmp_path / "out")]) == 0
    task = TaskConfig(data=str(tmp_path / "n"), source="nnunet", files=FilesConfig())
    stored = {int(each) for name in ("train", "val", "test") for each in Split(tmp_path / "out", name).content()}
    assert {int(each) for each in sources.load(task, tmp_path).digests} == stored and len(stored) == 5
