"""Differences judged together: what holds for all of them at once, and the rule that chooses a milestone by it."""

from __future__ import annotations

import numpy as np
import pytest

from eval.statistics import choice, simultaneous
from eval.statistics.simultaneous import Together


def studies(count: int, patients: int, kinds: int, seed: int, effect: float = 0.0) -> tuple[float, float]:
    """Share of simulated studies in which any of `kinds` correlated differences of mean `effect` is called real, and in
    which all intervals hold it."""
    rng = np.random.default_rng(seed)
    called = held = 0
    for _ in range(count):
        sample = rng.normal(effect, 1, (patients, kinds)) + rng.normal(0, 0.7, (patients, 1))
        weights = rng.multinomial(patients, np.full(patients, 1 / patients), size=400)
        found = simultaneous.judge(sample.mean(axis=0), weights @ sample / patients, patients)
        called += found.p.min() < 0.05
        held += ((found.low <= effect) & (effect <= found.high)).all()
    return called / count, held / count


@pytest.mark.parametrize("patients", [12, 30])
def test_chance_alone_is_called_real_at_the_level(patients: int) -> None:
    """Of 200 studies without any effect, about 5 % call one of six real (upper limit of 200 at 5 %: 9 %)."""
    called, held = studies(200, patients, 6, seed=patients)
    assert called <= 0.09 and held >= 0.91


@pytest.mark.stress
@pytest.mark.parametrize("patients", [12, 30, 100])
def test_chance_alone_is_called_real_at_the_level_in_many_studies(patients: int) -> None:
    """The same of 2000 studies: at most 6.5 %, and no less than a tenth of the level, for a test that never calls
    anything is none."""
    called, held = studies(2000, patients, 6, seed=patients)
    assert 0.005 <= called <= 0.065 and held >= 0.935


def test_an_effect_is_found() -> None:
    """A mean of 1.5 standard deviations in 20 patients is called real nearly always."""
    assert studies(40, 20, 3, seed=1, effect=1.5)[0] > 0.9


def test_the_same_twice_is_no_difference_and_one_patient_says_nothing() -> None:
    """Without any spread: 0 is exact, anything else unknown; of one patient nothing is known; NaN stays NaN."""
    found = simultaneous.judge(np.array([0.0, 0.2, np.nan]), np.repeat([[0.0, 0.2, np.nan]], 50, axis=0), 9)
    assert found.low[0] == found.high[0] == 0 and np.isnan(found.low[1:]).all() and (found.p == 1).all()
    drawn = np.random.default_rng(0).normal(size=(50, 2))
    alone = simultaneous.judge(np.array([0.5, 0.1]), drawn, 1)
    assert np.isnan(alone.low).all() and (alone.p == 1).all()


def together(low: list[float], high: list[float]) -> Together:
    """Gains with these bounds."""
    both = np.array(low), np.array(high)
    return Together((both[0] + both[1]) / 2, *both, np.zeros(len(low)))


def test_the_rule_takes_the_largest_lower_bound_and_the_earliest_of_equals() -> None:
    """Not the largest gain; ties, rounding aside, to the earliest; nothing above zero: none."""
    assert choice.choose({"a": together([0.01, 0.02, 0.005], [0.02, 0.03, 0.5])}, "a") == (1, 1)
    assert choice.choose({"a": together([0.01, 0.02, 0.02 + 1e-13], [0.1, 0.1, 0.2])}, "a") == (1, 1)
    assert choice.choose({"a": together([-0.01, 0.0], [0.1, 0.1])}, "a") == (1, None)
    assert choice.choose({"a": together([np.nan, -0.1], [np.nan, 0.1])}, "a") == (1, None)


def test_of_several_tasks_a_loss_on_one_rules_a_milestone_out() -> None:
    """The first gains most on one task and loses on the other; the second gains a little on both. A main task decides
    alone."""
    gains = {"a": together([0.3, 0.1, 0.0], [0.5, 0.2, 0.1]), "b": together([-0.5, 0.05, 0.0], [-0.2, 0.1, 0.1])}
    assert choice.choose(gains, "") == (1, 1) and choice.choose(gains, "a") == (0, 0)
    assert choice.choose({"a": gains["a"], "b": together([-0.5] * 3, [-0.1] * 3)}, "")[1] is None
