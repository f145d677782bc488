"""The probes: against other implementations, against chance, and what they must not look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoders import Pixels

from eval import probe
from eval.config import DecoderConfig, LogisticConfig, StrideConfig, TaskConfig
from eval.contract import Context
from eval.data import features, images, sources, splits
from eval.data.cohorts import Base, Cohort
from eval.networks import segmentation
from eval.probes import knn, logistic
from eval.reporting import results
from eval.statistics import bootstrap, metrics
from eval.statistics.predictions import Scored, Tabled

BLOCKS = (0,)  # whose patch features are extracted


def task(data: Path, **changes) -> TaskConfig:
    """A small task on the tiny data set."""
    small = {"size": 64, "stride": StrideConfig(1, 1, 1), "draws": 200, "pictures": 2}
    small["logistic"] = LogisticConfig(strengths=4, low=1e-3, high=10, steps=20)
    return TaskConfig(
        data=str(data), segmentation=DecoderConfig(lr=[5e-3], epochs=40, batch_size=16), **(small | changes)
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
    wanted = np.where(present >= 0, present, np.nan)  # as the probe hands it on
    found = knn.votes(train, wanted, queries, [7], 0.07)[7]
    for organ in range(2):
        known = present[:, organ] >= 0
        theirs = reference.KNeighborsClassifier(
            7, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(train[known], present[known, organ])
        np.testing.assert_allclose(found[:, organ], theirs.predict_proba(queries)[:, 1], atol=1e-8)


@pytest.mark.parametrize("strength", [1e-3, 0.3, 30.0])
def test_logistic_regression_is_scikit_learns(strength: float) -> None:
    """The same weights and bias to 1e-3, each label on its known units alone."""
    reference = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(300, 6)).astype(np.float32)
    truth = inputs @ rng.normal(size=(6, 2)) + rng.normal(size=(300, 2)) > 0
    present = np.where(rng.random((300, 2)) < 0.2, -1, truth).astype(np.int8)
    weights, biases = logistic.solve(inputs, present, strength, 300)
    for organ in range(2):
        known = present[:, organ] >= 0
        theirs = reference.LogisticRegression(C=strength, tol=1e-8, max_iter=1000)
        theirs.fit(inputs[known], present[known, organ])
        np.testing.assert_allclose(weights[:, organ], theirs.coef_[0], atol=1e-3)
        np.testing.assert_allclose(biases[organ], theirs.intercept_[0], atol=1e-3)


def test_logistic_regression_of_classes_is_scikit_learns() -> None:
    """One softmax over three classes: the same probabilities to 1e-3."""
    reference = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(300, 6)).astype(np.float32)
    classes = (inputs @ rng.normal(size=(6, 3)) + rng.normal(size=(300, 3))).argmax(axis=1)
    states = (classes[:, None] == np.arange(3)).astype(np.int8)
    weights, biases = logistic.solve(inputs, states, 1.0, 300, exclusive=True)
    theirs = reference.LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(inputs, classes)
    line = logistic.Line(logistic.Standard(np.zeros(6), np.ones(6)), weights, biases)
    np.testing.assert_allclose(line.probabilities(inputs, True), theirs.predict_proba(inputs), atol=1e-3)


def test_dice_by_hand() -> None:
    """Counts over a patient's slices are added before the ratio; unlabelled is NaN, absent in both too."""
    tally = segmentation.PixelCounts(np.array(["a", "b"]), 2)
    square = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    square[0, 0, :2, :2] = True
    moved = square.roll(1, 3)
    drawn, true = torch.cat([square] * 3), torch.cat([moved, square, square])
    tally.add(np.array(["a", "a", "b"]), drawn, true, np.array([[True, True], [True, True], [False, False]]))
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


def test_a_square_around_the_body_and_back(data: Path, tmp_path: Path) -> None:
    """Labels cut out and drawn back at their own size are the slice's labels; beyond the slice is air."""
    sample = sources.load(task(data), tmp_path).read(0)
    row, column, side = images.square(sample)
    native = images.native_labels(sample)
    assert native.sum() == sample.labelmap.sum() and native.shape == (side, side)
    same = images.to_native(torch.from_numpy(native)[None].float(), side)
    assert np.array_equal(same[0].numpy(), native)
    assert images.cut(sample.pixels[0], (-5, -5, 10), -1024)[:5].max() == -1024


def base_of(task: TaskConfig, cache: Path) -> tuple[Base, dict[str, Cohort]]:
    """The examples of a task with the pixel encoder's features, and its three parts."""
    examples = sources.load(task, cache)
    base = Base(examples, features.extract(Pixels(), examples, task, cache, BLOCKS), task, cache)
    rows = splits.folds(examples, task)[0].rows
    return base, {name: Cohort(name, base, rows[name]) for name in rows}


def test_every_probe_finds_what_is_there(data: Path, encoder: Pixels, tmp_path: Path) -> None:
    """On organs that a pixel tells apart, all three probes are far above chance; every figure has its interval."""
    rows = probe.run("any", task(data), tmp_path)
    figures = {(row["probe"], row["metric"], row["label"]): row for row in rows}
    assert len(rows) == (2 * 7 + 4) * 3
    assert figures["logistic", "auroc", "macro"]["value"] > 0.85 and figures["knn", "auroc", "macro"]["value"] > 0.75
    assert figures["segmentation", "dice", "macro"]["value"] > 0.6
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"] and row["patients"] == 4 and row["split"] == "test"
        assert row["test_opened"] == 1
    assert probe.run("any", task(data, probes=["knn"]), tmp_path)[0]["test_opened"] == 2


def test_shuffled_labels_score_at_chance(data: Path, encoder: Pixels, tmp_path: Path) -> None:
    """With presence shuffled over the slices nothing is found: no label leaks into the features or the choice."""
    base, _ = base_of(task(data), tmp_path)
    rng, values = np.random.default_rng(0), []
    for _ in range(20):
        examples = replace(base.examples, targets=rng.permutation(base.examples.targets))
        shuffled = replace(base, examples=examples)
        rows = splits.folds(examples, base.task)[0].rows
        parts = {name: Cohort(name, shuffled, rows[name]) for name in rows}
        for module in (knn, logistic):
            fitted = module.fit(parts["train"], parts["val"], Context(base.task, encoder, tmp_path))
            (outcome,) = fitted.predict(parts["test"])
            values.append(bootstrap.figures(outcome.prediction, "auroc", 1, 0)["macro"].value)
    assert abs(np.mean(values) - 0.5) < 0.08


def test_test_patients_choose_nothing(data: Path, encoder: Pixels, tmp_path: Path, monkeypatch) -> None:
    """Other labels on the test patients leave every hyperparameter and threshold as it was."""
    rows = probe.run("any", task(data), tmp_path / "a")
    load = sources.load

    def spoiled(*arguments) -> sources.Examples:
        examples = load(*arguments)
        targets, test = examples.targets.copy(), examples.splits == "test"
        targets[test] = np.flip(targets[test], 0)
        return replace(examples, targets=targets, values=tuple(reversed(examples.values)), version="spoiled")

    monkeypatch.setattr(sources, "load", spoiled)
    others = probe.run("any", task(data, probes=["knn", "logistic"]), tmp_path / "b")
    chosen = {row["probe"]: row["chosen_on_val"] for row in rows}
    for row in others:
        assert row["chosen_on_val"] == chosen[row["probe"]]
    assert rows[2]["value"] != others[2]["value"]


def test_features_are_extracted_once(data: Path, encoder: Pixels, tmp_path: Path) -> None:
    """A second run reads the cache; another size or encoder does not."""
    examples = sources.load(task(data), tmp_path)
    first = features.extract(encoder, examples, task(data), tmp_path, BLOCKS)

    class Finished(Pixels):
        def features(self, images: torch.Tensor, blocks, present=None):
            pytest.fail("extracted again")

    encoder = Finished()
    again = features.extract(encoder, examples, task(data), tmp_path, BLOCKS)
    assert np.array_equal(first.cls, again.cls) and np.array_equal(first.patches, again.patches)
    assert features.extract(encoder, examples, task(data), tmp_path).patches is None
    for changed, blocks in ((task(data, size=32), BLOCKS), (task(data), (0, 1))):
        with pytest.raises(pytest.fail.Exception):
            features.extract(encoder, examples, changed, tmp_path, blocks)


def test_an_extraction_that_was_killed_goes_on(data: Path, tmp_path: Path, monkeypatch) -> None:
    """Killed in the middle and started again: what was written is not computed again, and all is as if never killed."""
    small = task(data, batch_size=2)
    examples = sources.load(small, tmp_path)
    whole = features.extract(Pixels(), examples, small, tmp_path / "whole", BLOCKS)
    seen = []

    class Counting(Pixels):
        def features(self, images: torch.Tensor, blocks, present=None):
            seen.append(len(images))
            if len(seen) == 40:
                raise KeyboardInterrupt
            return super().features(images, blocks)

    with pytest.raises(KeyboardInterrupt):
        features.extract(Counting(), examples, small, tmp_path / "killed", BLOCKS)
    again = features.extract(Counting(), examples, small, tmp_path / "killed", BLOCKS)
    assert len(seen) == 40 + len(examples) // 2 - 32  # 39 batches were computed, 32 of them were written down
    assert np.array_equal(whole.cls, again.cls) and np.array_equal(whole.patches, again.patches)


def overlap(dice: np.ndarray, subjects: np.ndarray) -> Tabled:
    """A Dice of every patient."""
    return Tabled({"dice": dice[None]}, subjects, ("all",))


def presence(scores: np.ndarray, present: np.ndarray, subjects: np.ndarray) -> Scored:
    """Scores of one label."""
    keys = np.arange(len(subjects)).astype(str)
    return Scored("multilabel", scores[None], present.astype(float), subjects, keys, ("organ",))


def test_the_interval_covers_the_truth() -> None:
    """In 200 simulated studies the 95 % interval of a patient-level Dice holds the true mean about 95 times in 100."""
    rng, covered = np.random.default_rng(3), 0
    subjects = np.array([f"{number:02d}" for number in range(30)])
    for study in range(200):
        figure = bootstrap.figures(overlap(rng.normal(0.6, 0.1, (30, 1)), subjects), "dice", 500, study)["all"]
        covered += figure.low <= 0.6 <= figure.high
    assert 180 <= covered <= 198


def test_slices_of_one_patient_are_resampled_together() -> None:
    """Copying every slice of every patient ten times leaves figure and interval as they were."""
    rng = np.random.default_rng(4)
    subjects, scores = np.repeat(np.arange(12).astype(str), 5), rng.normal(size=(60, 1))
    present = (scores + rng.normal(size=(60, 1)) > 0).astype(int)
    once = bootstrap.figures(presence(scores, present, subjects), "auroc", 300, 0)["all"]
    copied = presence(*(np.repeat(each, 10, axis=0) for each in (scores, present, subjects)))
    ten = bootstrap.figures(copied, "auroc", 300, 0)["all"]
    assert ten.value == pytest.approx(once.value) and ten.low == pytest.approx(once.low)
    assert ten.high == pytest.approx(once.high)


def test_a_paired_difference_is_tighter_than_its_parts() -> None:
    """Two encoders that agree on which patients are hard: the difference's interval is narrow and above zero."""
    rng = np.random.default_rng(5)
    subjects = np.array([f"{number:02d}" for number in range(30)])
    hard = rng.normal(0.5, 0.15, (30, 1))
    one, other = overlap(hard, subjects), overlap(hard + 0.02 + rng.normal(0, 0.005, (30, 1)), subjects)
    alone = bootstrap.figures(one, "dice", 500, 0)["all"]
    paired = bootstrap.differences(one, other, "dice", 500, 0)["all"]
    assert paired.low > 0 and paired.high - paired.low < 0.2 * (alone.high - alone.low) and paired.p < 0.01
    with pytest.raises(ValueError, match="different patients"):
        bootstrap.differences(one, overlap(hard[1:], subjects[1:]), "dice", 500, 0)


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    """Saved and read again: the same arrays, names and forms."""
    rng = np.random.default_rng(6)
    subjects = np.arange(9).astype(str)
    mine = presence(rng.normal(size=(9, 1)), rng.integers(0, 2, (9, 1)), subjects)
    results.save_predictions(
        tmp_path / "predictions.npz",
        {"one": [probe.Outcome(mine, {"shots": 2})], "two": [probe.Outcome(overlap(mine.scores[0], subjects))]},
        TaskConfig(data="x"),
    )
    _, found = results.read_predictions(tmp_path)
    assert np.array_equal(found["one shots 2"].scores, mine.scores) and found["one shots 2"].names == ("organ",)
    assert np.array_equal(found["two"].values["dice"], mine.scores)
