"""Every probe on made-up features: what is there is found, shuffled labels score at chance, others agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cohorts import fitted, made_up, task

from eval import contract
from eval.config import (
    FewShotConfig,
    LinearConfig,
    TaskSplitConfig,
)
from eval.data import splits
from eval.data.cohorts import Base
from eval.probes import few_shot, linear, registry, retrieval, ridge
from eval.probes.anomaly import slice_scores
from eval.statistics import bootstrap
from meddap.settings import SettingsError


def outcomes(name: str, base: Base, cache: Path) -> list[contract.Outcome]:
    """What one probe says of the test patients."""
    probe, test = fitted(name, base, cache)
    return list(probe.predict(test))


def first(outcome: contract.Outcome, draws: int = 100) -> bootstrap.Figure:
    """The headline of an outcome's first metric."""
    return list(bootstrap.figures(outcome.prediction, outcome.prediction.metrics()[0], draws, 0).values())[-1]


CLASSIFIERS = ("knn", "logistic", "linear", "few_shot", "fractions")
CASES = [(name, kind, "slice") for name in CLASSIFIERS for kind in ("binary", "multiclass", "multilabel")]
CASES += [("attentive", "multiclass", "slice"), ("attentive", "multilabel", "slice")]
CASES += [("mil", "binary", "volume"), ("mil", "multiclass", "volume"), ("linear", "binary", "volume")]
CASES += [("stack3d", "binary", "volume")]
CASES += [("anomaly", "anomaly", "slice"), ("region", "segmentation", "slice"), ("logistic", "segmentation", "slice")]
# metric, value that what is there reaches, value that chance has
OTHERS = [
    ("knn", "regression", "slice", 4.5, None),
    ("ridge", "regression", "slice", 4.0, None),
    ("cox", "survival", "volume", 0.65, 0.5),
    ("cox", "survival", "slice", 0.65, 0.5),
    ("retrieval", "retrieval", "slice", 0.5, 0.38),
]


@pytest.mark.parametrize(("name", "kind", "level"), CASES)
def test_what_is_there_is_found_and_shuffled_labels_are_not(name: str, kind: str, level: str, tmp_path: Path) -> None:
    """AUROC above 0.8 (with one shot or a tenth of the patients 0.65); the mean of six shuffles of the labels is within
    0.1 of 0.5, four times its standard error."""
    for outcome in outcomes(name, made_up(kind, level), tmp_path / "true"):
        few = outcome.variant.get("shots") == 1 or outcome.variant.get("percent") == 10
        assert first(outcome).value > (0.65 if few else 0.8), outcome.variant
    shuffles = [outcomes(name, made_up(kind, level, seed, shuffled=True), tmp_path / f"{seed}") for seed in range(1, 7)]
    for same in zip(*shuffles):
        values = np.array([first(outcome, 1).value for outcome in same])
        assert abs(values.mean() - 0.5) < 0.1, (same[0].variant, values)


@pytest.mark.parametrize(("name", "kind", "level", "reached", "chance"), OTHERS)
def test_values_survival_and_neighbours(name, kind, level, reached, chance, tmp_path: Path) -> None:
    """Errors of a regression are below the spread of the truth; concordance and precision are above chance."""
    (outcome,) = outcomes(name, made_up(kind, level), tmp_path / "true")
    value = first(outcome).value
    assert value < reached if chance is None else value > reached
    (outcome,) = outcomes(name, made_up(kind, level, seed=1, shuffled=True), tmp_path / "shuffled")
    figure = first(outcome)
    if chance is None:
        assert bootstrap.figures(outcome.prediction, "r2", 100, 0)["macro"].value < 0.1
    else:
        assert figure.low - 0.03 <= chance <= figure.high + 0.03


def test_all_heads_in_one_pass_are_each_head_alone() -> None:
    """52 heads at once equal 52 trainings of one head: the same weights to 1e-5, and autograd's gradient."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(90, 10, generator=generator)
    states = torch.randint(-1, 2, (90, 3), generator=generator).to(torch.int8)
    columns, rates, config = [slice(6, 8), slice(0, 10)], [1e-3, 1e-2], LinearConfig(steps=40, batch_size=32)
    weights, biases = linear.sgd(inputs, columns, states, rates, config, False, 0)
    for place, mine in enumerate(columns):
        for number, lr in enumerate(rates):
            (alone,), (bias,) = linear.sgd(inputs, [mine], states, [lr], config, False, 0)
            its = slice(number * 3, number * 3 + 3)
            torch.testing.assert_close(weights[place][:, its], alone, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(biases[place][its], bias, atol=1e-5, rtol=1e-4)
    once = LinearConfig(steps=1, batch_size=90)
    for exclusive in (False, True):
        if exclusive:
            states = torch.nn.functional.one_hot(torch.arange(90) % 3).to(torch.int8)
        (moved,), (shift,) = linear.sgd(inputs, [slice(0, 10)], states, [1.0], once, exclusive, 0)
        start = [torch.zeros(10, 3, requires_grad=True), torch.zeros(3, requires_grad=True)]
        logits, known = inputs @ start[0] + start[1], (states >= 0).float()
        if exclusive:
            loss = torch.nn.functional.cross_entropy(logits, states.argmax(dim=1))
        else:
            each = torch.nn.functional.binary_cross_entropy_with_logits(logits, (states == 1).float(), reduction="none")
            loss = (each * known / known.sum(dim=0)).sum()
        loss.backward()
        torch.testing.assert_close(moved, -start[0].grad * 90 / 256, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(shift, -start[1].grad * 90 / 256, atol=1e-6, rtol=1e-4)


def test_ridge_is_scikit_learns() -> None:
    """Weights and intercepts of every strength to 1e-6, each target on its known units."""
    reference = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(40, 6)), rng.normal(size=(40, 2))
    targets[:7, 0] = np.nan
    for alpha, weights, intercepts in ridge.solutions(inputs, targets, [0.1, 10.0], ""):
        for column in range(2):
            known = ~np.isnan(targets[:, column])
            theirs = reference.Ridge(alpha=alpha).fit(inputs[known], targets[known, column])
            np.testing.assert_allclose(weights[:, column], theirs.coef_, atol=1e-6)
            assert intercepts[column] == pytest.approx(theirs.intercept_, abs=1e-6)


def test_average_precision_of_a_ranking_by_hand() -> None:
    """Right at places 1 and 3 of 4: (1 + 2/3) / 2; the query's own patient is no neighbour."""
    gallery = np.array([[1.0, 0.0], [0.9, 0.3], [0.8, 0.6], [0.0, 1.0]])
    found = retrieval.ranking_figures(
        np.array([[1.0, 0.0]]), np.array([1.0]), gallery, np.array([1.0, 0, 1, 0]), [1, 2], None
    )
    assert found["map"][0] == pytest.approx((1 + 2 / 3) / 2) and found["recall@1"][0] == 1
    subjects = np.array(["p", "q", "p", "r"])
    own = retrieval.ranking_figures(gallery, np.array([1.0, 0, 1, 1]), gallery, np.array([1.0, 0, 1, 1]), [1], subjects)
    assert own["map"][0] == pytest.approx(1 / 2) and own["recall@1"][0] == 0 and np.isnan(own["map"][1])


def test_draws_of_few_shots_are_stratified_by_patient() -> None:
    """As many of each class as asked for, of different patients while there are some; another draw, other units."""
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 20)
    states = (classes[:, None] == np.arange(3)).astype(np.int8)
    subjects = np.tile(np.repeat(np.arange(5), 4), 3).astype(str)
    rows, drawn = few_shot.draw(states, subjects, 5, True, rng)
    assert np.bincount(classes[rows]).tolist() == [5, 5, 5] and (drawn == states[rows]).all()
    assert all(len(set(subjects[rows][classes[rows] == each])) == 5 for each in range(3))
    assert few_shot.draw(states, subjects, 5, True, rng)[0].tolist() != rows.tolist()
    labels = np.stack([states[:, 0], np.where(np.arange(60) < 50, states[:, 1], -1)], axis=1)
    rows, drawn = few_shot.draw(labels, subjects, 2, False, rng)
    assert [(drawn[:, n] == state).sum() for n in (0, 1) for state in (0, 1)] == [2, 2, 2, 2]
    with pytest.raises(SettingsError, match="few_shot.draws=3: take 10 or more"):
        base = made_up("binary")
        outcomes("few_shot", replace(base, task=replace(base.task, few_shot=FewShotConfig(draws=3))), Path())


def test_a_probe_refuses_a_task_that_it_cannot_serve() -> None:
    """Kind and level are named."""
    with pytest.raises(SettingsError, match="ridge serves tasks of kind regression; this one is binary"):
        registry.find(["ridge"], "binary", "slice")
    with pytest.raises(SettingsError, match="mil serves level volume; this task's is slice"):
        registry.find(["mil"], "binary", "slice")


REFITTED = [("knn", "binary", "slice"), ("logistic", "binary", "slice"), ("linear", "binary", "slice")]
REFITTED += [("mil", "binary", "volume"), ("stack3d", "binary", "volume"), ("attentive", "multiclass", "slice")]
REFITTED += [("region", "segmentation", "slice"), ("anomaly", "anomaly", "slice"), ("ridge", "regression", "slice")]
REFITTED += [("cox", "survival", "volume"), ("retrieval", "retrieval", "slice")]


@pytest.mark.parametrize(("name", "kind", "level"), REFITTED)
def test_refitting_uses_the_validation_patients(name: str, kind: str, level: str, tmp_path: Path) -> None:
    """The choice stays, what is said of the test patients is another thing, and the row says so."""
    base = made_up(kind, level)
    found = [
        fitted(name, replace(base, task=replace(base.task, refit=refit)), tmp_path / str(refit))
        for refit in (False, True)
    ]
    assert [probe.refitted for probe, _ in found] == [False, True]
    plain, again = (probe.predict(test) for probe, test in found)
    assert found[0][0].choices == found[1][0].choices
    for one, other in zip(plain, again):
        values = [getattr(each.prediction, "scores", None) for each in (one, other)]
        if values[0] is None:
            values = [next(iter(getattr(each.prediction, "values", {}).values()), None) for each in (one, other)]
        assert values[0] is None or not np.allclose(*values, equal_nan=True), one.variant


def test_refit_is_refused_where_it_would_change_the_question() -> None:
    """Few labels are few labels."""
    with pytest.raises(SettingsError, match="refit=true: few_shot asks what few training labels give"):
        registry.find(["knn", "few_shot"], "binary", "slice", refit=True)


def test_folds_test_every_patient_once_and_sites_whole() -> None:
    """k-fold: disjoint test patients that are all; leave one site out: a fold tests one site."""
    examples = made_up("binary").examples
    folds = splits.folds(examples, replace(task("binary"), split=TaskSplitConfig(by="kfold", folds=4)))
    tested = np.concatenate([fold.rows["test"] for fold in folds])
    assert sorted(tested.tolist()) == list(range(len(examples)))
    sites = splits.folds(examples, replace(task("binary"), split=TaskSplitConfig(by="site")))
    assert [set(examples.sites[fold.rows["test"]]) for fold in sites] == [{"one"}, {"two"}]
    assert [fold.name for fold in sites] == ["one", "two"]


def test_the_worst_patches_make_a_slices_score() -> None:
    """The maximum, or the mean of the highest share."""
    maps = np.array([[0.0, 1, 2, 3], [4, 0, 0, 0]])
    assert slice_scores(maps, 0.0).tolist() == [3, 4] and slice_scores(maps, 0.5).tolist() == [2.5, 2.0]
