"""The calibration of a kept head: it mends what is wrong, leaves what is right, and changes no order."""

from __future__ import annotations

import numpy as np
import pytest

from eval.contract import Outcome
from eval.kept import calibration
from eval.statistics import metrics
from eval.statistics.predictions import Scored


def labels(rng: np.random.Generator, count: int, slope: float, shift: float) -> Outcome:
    """Probabilities of two labels; the first one's logit is stretched and moved, the second is as it should be."""
    logits = rng.normal(0, 1.5, (count, 2))
    targets = (rng.random((count, 2)) < 1 / (1 + np.exp(-logits))).astype(float)
    logits[:, 0] = slope * logits[:, 0] + shift
    keys = np.arange(count).astype(str)
    return Outcome(Scored("multilabel", (1 / (1 + np.exp(-logits)))[None], targets, keys, keys, ("off", "right")))


def error(prediction: Scored, column: int) -> float:
    weights = np.ones((1, len(prediction.keys)))
    return float(metrics.ece(prediction.scores[0][:, column], prediction.targets[:, column] > 0, weights)[0])


def test_a_label_that_is_off_is_mended_on_others() -> None:
    """The line is found to 0.1; the error of new units falls to that of the label that was right."""
    rng = np.random.default_rng(0)
    found = calibration.fit([labels(rng, 6000, 3.0, 2.0)])
    assert found[0]["slopes"] == pytest.approx([1 / 3, 1], abs=0.1)
    assert found[0]["intercepts"] == pytest.approx([-2 / 3, 0], abs=0.1)
    new = labels(rng, 6000, 3.0, 2.0)
    better = calibration.calibrated(found, new)
    assert error(new.prediction, 0) > 0.15 and error(better, 0) < 0.03 and error(better, 1) < 0.03
    for column in range(2):
        order = np.argsort(new.prediction.scores[0][:, column], kind="stable")
        assert (np.diff(better.scores[0][order, column]) >= 0).all()


def test_a_temperature_mends_classes() -> None:
    """Three classes that are three times too sure: the temperature is 3, to 0.2; the likeliest class stays."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.2, (5000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    classes = (rng.random((5000, 1)) > np.cumsum(shares, axis=1)).sum(axis=1)
    sure = np.exp(3 * logits) / np.exp(3 * logits).sum(axis=1, keepdims=True)
    keys = np.arange(5000).astype(str)
    outcome = Outcome(Scored("multiclass", sure[None], classes[:, None].astype(float), keys, keys, ("a", "b", "c")))
    (found,) = calibration.fit([outcome])
    assert found["temperature"] == pytest.approx(3, abs=0.2)
    better = calibration.calibrated([found], outcome).scores[0]
    assert np.allclose(better.sum(axis=1), 1) and (better.argmax(axis=1) == sure.argmax(axis=1)).all()
    assert np.abs(better - shares).max() < 0.05


def test_what_cannot_be_calibrated_is_left_as_it_is() -> None:
    """A label of too few units, unknown targets, values: nothing is made up; certain scores stay finite."""
    rng = np.random.default_rng(2)
    outcome = labels(rng, 40, 1.0, 0.0)
    few = outcome.prediction.targets.copy()
    few[:, 1] = 0
    few[:3, 1], few[:5, 0] = 1, np.nan
    outcome.prediction.scores[0, :4, 0] = 0, 1, 0, 1
    mine = Outcome(Scored("multilabel", outcome.prediction.scores, few, *[outcome.prediction.keys] * 2, ("a", "b")))
    (found,) = calibration.fit([mine])
    assert found["slopes"][1] is None and found["intercepts"][1] is None and found["slopes"][0] is not None
    better = calibration.calibrated([found], mine)
    assert np.array_equal(better.scores[..., 1], mine.prediction.scores[..., 1]) and np.isfinite(better.scores).all()
    values = Outcome(Scored("regression", outcome.prediction.scores, few, *[outcome.prediction.keys] * 2, ("a", "b")))
    assert (
        calibration.fit([values]) == ()
        and calibration.calibrated([found], Outcome(values.prediction, {"k": 1})) is None
    )
