"""The probes: against other implementations, against chance, and what they must not look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.schema import Split
from eval import bootstrap, features, images, knn, linear, metrics, probe, segmentation
from eval.bootstrap import Overlap, Presence
from eval.config import SegmentationConfig, StrideConfig, TaskConfig


class Pixels:
    """A user's own encoder in ten lines: the pixels of a patch are its features."""

    source, digest, patch_size, embed_dim = "pixels", "0" * 64, 8, 64

    def prepare(self, hu: torch.Tensor) -> torch.Tensor:
        return hu / 500

    def features(self, images: torch.Tensor, blocks) -> list[tuple[torch.Tensor, torch.Tensor]]:
        tokens = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        return [(tokens.amax(dim=1), tokens) for _ in blocks]


def task(data: Path, **changes) -> TaskConfig:
    """A small task on the tiny data set."""
    small = {"size": 64, "stride": StrideConfig(1, 1, 1), "draws": 200, "pictures": 2}
    return TaskConfig(
        data=str(data), segmentation=SegmentationConfig(lr=[5e-3], epochs=40, batch_size=16), **(small | changes)
    )


@pytest.fixture
def data(tiny_dataset) -> Path:
    """Sixteen patients."""
    return tiny_dataset(patients={"train": 8, "val": 4, "test": 4}, slices=6)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Pixels:
    """The pixel encoder in place of whatever --checkpoint names."""
    monkeypatch.setattr(probe.encoder, "load", lambda checkpoint, task: Pixels())
    return Pixels()


def test_auroc_is_scikit_learns() -> None:
    """Random scores with ties, with and without weights."""
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 200) / 9, rng.random(200) < 0.3
    weights = rng.integers(0, 4, (5, 200))
    assert metrics.auroc(scores, positive)[0] == pytest.approx(reference.roc_auc_score(positive, scores), abs=1e-12)
    for found, weight in zip(metrics.auroc(scores, positive, weights), weights):
        assert found == pytest.approx(reference.roc_auc_score(positive, scores, sample_weight=weight), abs=1e-12)
    assert np.isnan(metrics.auroc(scores, np.zeros(200, bool))[0])


def test_knn_is_scikit_learns() -> None:
    """Cosine neighbours with exponential weights, organ by organ among the labelled slices."""
    reference = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(1)
    train, queries = rng.normal(size=(60, 8)), rng.normal(size=(20, 8))
    present = rng.integers(-1, 2, (60, 2))
    found = knn.scores(train, present, queries, 7, 0.07)
    for organ in range(2):
        known = present[:, organ] >= 0
        theirs = reference.KNeighborsClassifier(
            7, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(train[known], present[known, organ])
        np.testing.assert_allclose(found[:, organ], theirs.predict_proba(queries)[:, 1], atol=1e-8)


def test_logistic_regression_is_scikit_learns() -> None:
    """The same weights and bias to 1e-3, each organ on its labelled slices alone."""
    reference = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(300, 6)).astype(np.float32)
    truth = inputs @ rng.normal(size=(6, 2)) + rng.normal(size=(300, 2)) > 0
    present = np.where(rng.random((300, 2)) < 0.2, -1, truth).astype(np.int8)
    weights, biases = linear.fit(inputs, present, 0.01, 300)
    for organ in range(2):
        known = present[:, organ] >= 0
        theirs = reference.LogisticRegression(C=1 / (0.01 * known.sum()), tol=1e-8, max_iter=1000)
        theirs.fit(inputs[known], present[known, organ])
        np.testing.assert_allclose(weights[:, organ], theirs.coef_[0], atol=1e-3)
        np.testing.assert_allclose(biases[organ], theirs.intercept_[0], atol=1e-3)


def test_dice_by_hand() -> None:
    """Counts over a patient's slices are added before the ratio; unlabelled is NaN, absent in both too."""
    tally = segmentation.Tally(np.array(["a", "b"]), 2)
    square = np.zeros((2, 4, 4), bool)
    square[0, :2, :2] = True
    moved = np.roll(square, 1, axis=2)
    tally.add("a", square, moved, np.array([True, True]))
    tally.add("a", square, square, np.array([True, True]))
    tally.add("b", square, square, np.array([False, False]))
    found = tally.dice()
    assert found[0, 0] == pytest.approx(2 * 6 / 16) and np.isnan(found[0, 1]) and np.isnan(found[1]).all()


def test_an_unlabelled_organ_is_in_neither_loss_nor_score() -> None:
    """Changing logits or targets of an unlabelled organ changes no loss and gives no gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 8, 8, generator=generator, requires_grad=True)
    targets = (torch.rand(3, 2, 8, 8, generator=generator) > 0.5).float()
    annotated = torch.tensor([[True, False], [True, True], [False, False]])
    loss = segmentation.masked_loss(logits, targets, annotated)
    loss.backward()
    assert (logits.grad[~annotated] == 0).all() and (logits.grad[annotated] != 0).any()
    changed = torch.where(annotated[:, :, None, None], targets, 1 - targets)
    assert segmentation.masked_loss(logits, changed, annotated) == loss


def test_a_square_around_the_body_and_back(data: Path) -> None:
    """Labels cut out and drawn back at their own size are the slice's labels; beyond the slice is air."""
    sample = Split(data, "test")[0]
    row, column, side = images.square(sample)
    native = images.native_labels(sample)
    assert native.sum() == sample.labelmap.sum() and native.shape == (side, side)
    same = images.to_native(torch.from_numpy(native)[None].float(), side)
    assert np.array_equal(same[0].numpy(), native)
    assert images.cut(sample.pixels[0], (-5, -5, 10), -1024)[:5].max() == -1024


def test_every_probe_finds_what_is_there(data: Path, encoder: Pixels, tmp_path: Path) -> None:
    """On organs that a pixel tells apart, all three probes are far above chance; every figure has its interval."""
    rows = probe.run("any", task(data), tmp_path)
    figures = {(row["probe"], row["organ"]): row for row in rows}
    assert len(rows) == 3 * 3 and figures["linear", "macro"]["value"] > 0.85 and figures["knn", "macro"]["value"] > 0.75
    assert figures["segmentation", "macro"]["value"] > 0.6
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"] and row["patients"] == 4 and row["split"] == "test"


def test_shuffled_labels_score_at_chance(data: Path, encoder: Pixels, tmp_path: Path) -> None:
    """With presence shuffled over the slices nothing is found: no label leaks into the features or the choice."""
    found = {
        name: features.extract(encoder, Split(data, name), task(data), {"bright": 1}, tmp_path)
        for name in ("train", "val", "test")
    }
    rng, values = np.random.default_rng(0), []
    for _ in range(20):
        shuffled = {name: with_shuffled_presence(part, rng) for name, part in found.items()}
        for run in (probe.probe_knn, probe.probe_linear):
            prediction, _ = run(shuffled, task(data))
            values.append(probe.macro_auroc(prediction.scores, prediction.present))
    assert abs(np.mean(values) - 0.5) < 0.08


def with_shuffled_presence(part: features.Features, rng: np.random.Generator) -> features.Features:
    """The same features with presence shuffled."""
    return replace(part, present=rng.permutation(part.present))


def test_test_patients_choose_nothing(data: Path, encoder: Pixels, tmp_path: Path) -> None:
    """Other labels on the test patients leave every hyperparameter and threshold as it was."""
    rows = probe.run("any", task(data), tmp_path / "a")
    write = features._write

    def spoiled(folder: Path, *arguments) -> None:
        write(folder, *arguments)
        if arguments[1].name == "test":
            for name in ("present", "labels"):
                array = np.load(folder / f"{name}.npy")
                np.save(folder / f"{name}.npy", np.flip(array, 0))

    features._write = spoiled
    try:
        others = probe.run("any", task(data), tmp_path / "b")
    finally:
        features._write = write
    assert [row["chosen_on_val"] for row in rows] == [row["chosen_on_val"] for row in others]
    assert rows[2]["value"] != others[2]["value"]


def test_features_are_extracted_once(data: Path, encoder: Pixels, tmp_path: Path, monkeypatch) -> None:
    """A second run reads the cache; another size, stride or encoder does not."""
    split, organs = Split(data, "val"), {"bright": 1}
    first = features.extract(encoder, split, task(data), organs, tmp_path)
    monkeypatch.setattr(features, "_write", lambda *_: pytest.fail("extracted again"))
    again = features.extract(encoder, split, task(data), organs, tmp_path)
    assert np.array_equal(first.pooled, again.pooled) and np.array_equal(first.patches, again.patches)
    for changed in (task(data, size=32), task(data, stride=StrideConfig(1, 2, 1))):
        with pytest.raises(pytest.fail.Exception):
            features.extract(encoder, split, changed, organs, tmp_path)


def test_the_interval_covers_the_truth() -> None:
    """In 200 simulated studies the 95 % interval of a patient-level Dice holds the true mean about 95 times in 100."""
    rng, covered = np.random.default_rng(3), 0
    subjects = np.array([f"{number:02d}" for number in range(30)])
    for study in range(200):
        figure = bootstrap.figures(Overlap(rng.normal(0.6, 0.1, (30, 1)), subjects), 500, study)[-1]
        covered += figure.low <= 0.6 <= figure.high
    assert 180 <= covered <= 198


def test_slices_of_one_patient_are_resampled_together() -> None:
    """Copying every slice of every patient ten times leaves figure and interval as they were."""
    rng = np.random.default_rng(4)
    subjects, scores = np.repeat(np.arange(12).astype(str), 5), rng.normal(size=(60, 1))
    present = (scores + rng.normal(size=(60, 1)) > 0).astype(int)
    once = bootstrap.figures(Presence(scores, present, subjects), 300, 0)[-1]
    copied = bootstrap.figures(
        Presence(*(np.repeat(each, 10, axis=0) for each in (scores, present, subjects))), 300, 0
    )[-1]
    assert copied.value == pytest.approx(once.value) and copied.low == pytest.approx(once.low)
    assert copied.high == pytest.approx(once.high)


def test_a_paired_difference_is_tighter_than_its_parts() -> None:
    """Two encoders that agree on which patients are hard: the difference's interval is narrow and above zero."""
    rng = np.random.default_rng(5)
    subjects = np.array([f"{number:02d}" for number in range(30)])
    hard = rng.normal(0.5, 0.15, (30, 1))
    one, other = Overlap(hard, subjects), Overlap(hard + 0.02 + rng.normal(0, 0.005, (30, 1)), subjects)
    alone, paired = bootstrap.figures(one, 500, 0)[-1], bootstrap.differences(one, other, 500, 0)[-1]
    assert paired.low > 0 and paired.high - paired.low < 0.2 * (alone.high - alone.low)
    with pytest.raises(ValueError, match="different patients"):
        bootstrap.differences(one, Overlap(hard[1:], subjects[1:]), 500, 0)
