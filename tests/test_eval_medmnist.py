"""MedMNIST's sets as tasks: their files in miniature, official splits, the metrics of its evaluator, published rows."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import probed
from sklearn.metrics import accuracy_score, roc_auc_score

from eval import compare, probe, report
from eval.config import TaskConfig
from eval.data import sources, splits
from eval.reporting import published, results
from eval.statistics import metrics
from eval.statistics.predictions import Scored
from meddap.settings import SettingsError, load

FOLDER = Path(probe.__file__).parent / "configs" / "medmnist"
SETS = sorted(path.stem for path in FOLDER.glob("*mnist*.yaml"))
COLOURED = ("pathmnist", "dermamnist", "retinamnist", "bloodmnist")
QUICK = [
    "draws=40",
    "logistic.strengths=4",
    "linear.steps=60",
    "mil.epochs=8",
    "mil.lr=[1e-3]",
    "pictures=0",
    "size=32",
]


def miniature(path: Path, name: str, counts: tuple[int, ...] = (40, 16, 24), side: int = 28) -> dict[str, np.ndarray]:
    """Write a set's file with few images, whose brightness says the class; return its arrays."""
    task = load(TaskConfig, FOLDER / f"{name}.yaml", ["data=x"])
    rng, arrays = np.random.default_rng(0), {}
    shape = (side,) * 3 if name.endswith("3d") else (side, side, 3) if name in COLOURED else (side, side)
    for split, count in zip(("train", "val", "test"), counts):
        labels = np.arange(count)[:, None] % len(task.names)
        if task.kind == "multilabel":
            labels = rng.integers(0, 2, (count, len(task.names)))
        images = rng.integers(0, 60, (count, *shape))
        images += (labels[:, 0] * 12).reshape(-1, *(1,) * len(shape))
        if name.endswith("3d"):
            images[:, :3] = 7  # nothing to see there
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images.astype(np.uint8), labels.astype(np.uint8)
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_a_task(name: str, tmp_path: Path) -> None:
    """Its file is read in the official splits, with the names of its labels, and published rows are there."""
    arrays = miniature(tmp_path / "set.npz", name)
    task = load(TaskConfig, FOLDER / f"{name}.yaml", [f"data={tmp_path / 'set.npz'}"])
    examples = sources.load(task, tmp_path / "cache")
    (fold,) = splits.folds(examples, task)
    for split, rows in fold.rows.items():
        assert len(np.unique(examples.studies[rows])) == len(arrays[f"{split}_labels"])
    wanted = arrays["test_labels"] == 1 if task.kind == "binary" else arrays["test_labels"]
    first = np.unique(examples.studies[fold.rows["test"]], return_index=True)[1]
    assert np.array_equal(examples.targets[fold.rows["test"]][first], wanted)
    assert examples.names == ((task.names[1],) if task.kind == "binary" else tuple(task.names))
    found = published.find(task.published)
    assert found is not None and all(set(row) == {"auroc", "accuracy"} for row in found.rows.values())


def test_there_are_the_sets_that_the_paper_has() -> None:
    """Twelve sets of images and two of volumes, each with the rows of one table."""
    assert len(SETS) == 14 and [f"medmnist/{name}" for name in SETS if not name.endswith("3d")] == [
        name for name in published.names() if name.startswith("medmnist/")
    ]


def evaluated(true: np.ndarray, score: np.ndarray, kind: str) -> tuple[float, float]:
    """AUC and ACC as MedMNIST's evaluator defines them, by scikit-learn."""
    if kind == "binary":
        return roc_auc_score(true[:, 0], score[:, -1]), accuracy_score(true[:, 0], score[:, -1] > 0.5)
    columns = range(score.shape[1])
    if kind == "multilabel":
        pairs = [(true[:, n], score[:, n]) for n in columns]
        share = [accuracy_score(label, np.where(mine < 0.5, 0, 1)) for label, mine in pairs]
        return float(np.mean([roc_auc_score(*pair) for pair in pairs])), float(np.mean(share))
    auc = [roc_auc_score(true[:, 0] == n, score[:, n]) for n in columns]
    return float(np.mean(auc)), accuracy_score(true[:, 0], score.argmax(axis=1))


@pytest.mark.parametrize(("kind", "width"), [("binary", 1), ("multilabel", 14), ("multiclass", 9)])
def test_the_metrics_are_those_of_its_evaluator(kind: str, width: int) -> None:
    """AUC and ACC agree to rounding, ties and probabilities of exactly 0.5 included."""
    rng = np.random.default_rng(1)
    score = np.round(rng.random((300, width)), 1)
    true = rng.integers(0, width, (300, 1)) if kind == "multiclass" else rng.integers(0, 2, (300, width))
    keys = np.array([f"{n:03d}" for n in range(300)])
    mine = Scored(kind, score[None], true.astype(float), keys, keys, tuple(map(str, range(width))))
    found = []
    for metric in ("auroc", "accuracy"):
        counts = np.ones((1, 300))
        found.append(float(metrics.macro(mine.figures(metric, counts, keys, np.zeros(1, np.int64)))[0]))
    assert found == pytest.approx(evaluated(true, score, kind), abs=1e-12)


def test_accuracy_of_a_label_is_given_where_it_is_asked_for() -> None:
    """It says nothing of a rare label, so no table has it unasked; of classes every table has it."""
    keys = np.array(["a", "b"])
    mine = Scored("binary", np.zeros((1, 2, 1)), np.zeros((2, 1)), keys, keys, ("yes",))
    assert "accuracy" not in results.metrics_of(mine, []) and results.metrics_of(mine, ["accuracy"]) == ["accuracy"]


def test_published_rows_stand_beside(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Probe, compare and report print them with their source; that a miniature is not the set is said."""
    miniature(tmp_path / "chestmnist.npz", "chestmnist")
    command = ["--checkpoint", "pixels", "--task", str(FOLDER / "chestmnist.yaml"), f"data={tmp_path}/chestmnist.npz"]
    assert probe.main([*command, *QUICK, "--output", str(tmp_path / "one")]) == 0
    out = capsys.readouterr().out
    assert "| linear | accuracy |" in out and "| ResNet-18 (28) | 0.768 | 0.947 |" in out
    assert "Yang et al., MedMNIST v2" in out and "Not comparable: 24 units are tested here, 22,433 there" in out
    assert compare.main(["--runs", str(tmp_path / "one"), str(tmp_path / "one")]) == 0
    assert "| Google AutoML Vision | 0.778 | 0.948 |" in capsys.readouterr().out
    page = html.unescape(report.report([tmp_path / "one"]))
    assert "doi:10.1038/s41597-022-01721-8" in page and "Not comparable: 24 units" in page and "AutoKeras" in page


def test_the_whole_official_test_is_comparable(tmp_path: Path) -> None:
    """156 images of BreastMNIST, official split and all labels: no doubt; another split or fewer labels: doubts."""
    rng = np.random.default_rng(0)
    keys = np.array([f"{n:03d}" for n in range(156)])
    scores = Scored("binary", rng.random((1, 156, 1)), np.arange(156)[:, None] % 2 * 1.0, keys, keys, ("normal",))
    words = ["data=x", "draws=20"]
    task = load(TaskConfig, FOLDER / "breastmnist.yaml", words)
    assert not any(
        "Not comparable" in line for line in published.lines(probed.write(tmp_path / "a", task, {"knn": scores}))
    )
    task = load(TaskConfig, FOLDER / "breastmnist.yaml", [*words, "split.by=patient", "labelled_share=0.1"])
    said = "\n".join(published.lines(probed.write(tmp_path / "b", task, {"knn": scores})))
    assert "split.by=patient here, given there" in said and "labels of 10% of the training patients" in said


def test_volumes_are_patients(tmp_path: Path) -> None:
    """NoduleMNIST3D in miniature: a prediction for each volume from all slices that show something."""
    miniature(tmp_path / "set.npz", "nodulemnist3d", (30, 10, 14))
    words = [*QUICK, f"data={tmp_path}/set.npz", "probes=[logistic,mil]", "main=logistic/auroc"]
    task = load(TaskConfig, FOLDER / "nodulemnist3d.yaml", words)
    examples = sources.load(task, tmp_path)
    assert examples.orders.min() == 3 and len(examples) == (30 + 10 + 14) * 25
    rows = probe.run("pixels", task, tmp_path / "out")
    assert {row["probe"] for row in rows} == {"logistic", "mil"} and {row["patients"] for row in rows} == {14}
    assert all(not row["leaks"]["in_splits"] for row in rows)
    assert min(row["value"] for row in rows if row["metric"] == "auroc" and row["label"] in results.HEADLINE) > 0.9


def test_volumes_and_images_are_told_apart(tmp_path: Path) -> None:
    """level=volume of images, and names of another set, are errors of one line."""
    miniature(tmp_path / "set.npz", "octmnist")
    for words, text in (
        (["level=volume"], "holds images, no volumes; take level=slice"),
        (["names=[a,b,c,d,e]"], "has 4 classes, but names gives 5; is it octmnist?"),
        (
            ["published=medmnist/other"],
            "published=medmnist/other: nothing is recorded for it; there are medmnist/blood",
        ),
    ):
        task = load(TaskConfig, FOLDER / "octmnist.yaml", [f"data={tmp_path}/set.npz", *words])
        with pytest.raises(SettingsError) as caught:
            probe.run("pixels", task, tmp_path / "out")
        assert text in str(caught.value)


def test_large_files_are_memory_mapped(tmp_path: Path) -> None:
    """Beyond files.limits.volume_gb images are read from an unpacked copy, to the same digests and pixels."""
    miniature(tmp_path / "set.npz", "pathmnist", side=64)
    small, large = (
        sources.load(
            load(
                TaskConfig, FOLDER / "pathmnist.yaml", [f"data={tmp_path}/set.npz", f"files.limits.volume_gb={limit}"]
            ),
            tmp_path / "cache",
        )
        for limit in (4, 1e-6)
    )
    assert np.array_equal(small.digests, large.digests) and len(list((tmp_path / "cache").glob("*.npy"))) == 3
    assert np.array_equal(small.read(50).pixels, large.read(50).pixels)


def test_every_table_names_its_source() -> None:
    """Files of published rows say where they stand, how they were measured and on which split."""
    for path in published.FOLDER.glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        assert content["protocol"] and ("doi" in content["source"] or "arXiv" in content["source"])
        for each in content["sets"].values():
            assert all(0 < value < 1 for row in each["rows"].values() for value in row.values())


def _written(path: Path, **changed: np.ndarray) -> TaskConfig:
    """Write a small file of two classes with some arrays replaced; return a task on it."""
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = np.arange(8)[:, None] % 2
        arrays[f"{split}_images"] = np.full((8, 28, 28), 9, np.uint8)
    np.savez(path, **{**arrays, **changed})
    return load(TaskConfig, None, ["name=x", "source=medmnist", f"data={path}", "kind=multiclass"])


@pytest.mark.parametrize("shape", [(28, 28, 1), (28, 28, 4), (3, 28, 28), (1, 28, 28)])
def test_channels_are_no_slices(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Pictures with a channel axis of one, three in front, or alpha were read as volumes of slivers."""
    images = {f"{split}_images": np.zeros((8, *shape), np.uint8) for split in ("train", "val", "test")}
    with pytest.raises(SettingsError, match=r"channels where none are expected; save them as \(N, H, W\)"):
        sources.load(_written(tmp_path / "set.npz", **images), tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"val_labels": np.zeros((8, 2))}, "val labels of shape"),
        ({"val_labels": np.array(1)}, "val labels of shape"),
        ({"train_labels": np.zeros((8, 2, 2))}, "train labels of shape"),
        ({"test_images": np.zeros((0, 28, 28), np.uint8), "test_labels": np.zeros((0, 1))}, "no test images"),
        ({"train_labels": np.array([[0.5]] * 8)}, "label 0.5, and kind=multiclass takes numbers of classes"),
        ({"val_labels": np.array([[-1]] * 8)}, "label -1, and kind=multiclass"),
        ({"val_labels": np.array([[np.inf]] * 8)}, "label inf, and kind=multiclass"),
    ],
)
def test_labels_that_do_not_fit_are_refused(changed: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    """Labels of other shapes in one split, or that are no classes, are a line that names them."""
    with pytest.raises(SettingsError, match=said):
        sources.load(_written(tmp_path / "set.npz", **changed), tmp_path)


def test_a_label_that_is_nan_is_unknown(tmp_path: Path) -> None:
    """An example without a label stays, and is neither of the classes."""
    labels = np.arange(8)[:, None] % 2 + 0.0
    labels[3] = np.nan
    task = _written(tmp_path / "set.npz", train_labels=labels)
    for kind in ("multiclass", "binary"):
        task.kind = kind
        assert np.isnan(sources.load(task, tmp_path).targets).sum() == 1


def test_other_values_than_the_kind_has_are_refused(tmp_path: Path) -> None:
    """Values of several labels are 0 or 1, also where a table gives them; classes up to 2 are not yes and no."""
    task = _written(tmp_path / "set.npz", **{f"{s}_labels": np.full((8, 3), 2) for s in ("train", "val", "test")})
    task.kind = "multilabel"
    with pytest.raises(SettingsError, match="72 labels are not 0 or 1, e.g. 2"):
        sources.load(task, tmp_path)
    task = _written(tmp_path / "set.npz", train_labels=np.arange(8)[:, None] % 3)
    task.kind = "binary"
    with pytest.raises(SettingsError, match=r"needs positive=\[NUMBER"):
        sources.load(task, tmp_path)
