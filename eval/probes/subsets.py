"""Which sequences a label needs: logistic regression on all that a patient has, tested on every subset of them.

The line is fitted once, on training patients with all their sequences. Then the test patients are seen with each of the
2^S − 1 subsets alone, whatever the encoder makes of it. A subset's figures rest on the patients who have all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from data_prep.schema import text_sha256
from eval.contract import Context, Outcome, prediction_of
from eval.data import features
from eval.data.cohorts import Base, Cohort
from eval.data.examples import Examples, Picture
from eval.probes import logistic
from eval.probes.logistic import Regression
from meddap.settings import SettingsError

_MOST = 8  # sequences, whose 255 subsets take as many passes over the test patients


@dataclass(frozen=True)
class FittedSubsets:
    """The line on all sequences, and what tests it on fewer."""

    whole: Regression
    context: Context

    @property
    def choices(self) -> dict:
        return self.whole.choices

    @property
    def refitted(self) -> bool:
        return self.whole.refitted

    def predict(self, test: Cohort) -> list[Outcome]:
        task, exclusive = self.context.task, self.context.task.kind == "multiclass"
        there, found = sequences_of(test.examples), []
        for subset in subsets(sorted({name for each in there for name in each}, key=_place(self.context))):
            rows = np.array([set(subset) <= set(each) for each in there])
            if not rows.any():
                continue
            fewer = only(test.examples.take(rows), subset)
            seen = features.extract(self.context.encoder, fewer, task, self.context.cache)
            cohort = Cohort("test", Base(fewer, seen, task, self.context.cache), np.arange(len(fewer)))
            scores = self.whole.line.probabilities(cohort.pooled(), exclusive)
            found.append(Outcome(prediction_of(scores, cohort, task), {"sequences": "+".join(subset)}))
        return found


def fit(train: Cohort, val: Cohort, context: Context) -> FittedSubsets:
    """Choose the best line on the validation patients, all sequences given."""
    return FittedSubsets(logistic.fit(train, val, context), context)


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all subsets of some sequences but the empty one, smaller ones first. Raises SettingsError for too many."""
    if len(names) > _MOST:
        raise SettingsError(f"probes: subsets: {2 ** len(names) - 1} of {len(names)} sequences; {_MOST} are the most")
    return [subset for count in range(1, len(names) + 1) for subset in combinations(names, count)]


def _place(context: Context) -> Callable[[str], tuple[int, str]]:
    """Return the key that sorts sequences as the encoder's vocabulary has them, others by name."""
    known = list(getattr(context.encoder, "sequences", ()))
    return lambda name: (known.index(name) if name in known else len(known), name)


def sequences_of(examples: Examples) -> list[tuple[str, ...]]:
    """Return the sequences of each example."""
    return [examples.read(number).sequences for number in range(len(examples))]


def only(examples: Examples, names: Sequence[str]) -> Examples:
    """Return the examples as if they had these sequences alone; other digests, so that features are not mixed up."""

    def reader(number: int) -> Picture:
        picture = examples.read(number)
        places = [place for place, name in enumerate(picture.sequences) if name in names]
        return picture.only(places)

    mark = np.uint64(int(text_sha256("+".join(names))[:16], 16))
    return replace(examples, reader=reader, digests=examples.digests ^ mark)
