"""Logistic regression on frozen features over many strengths of its penalty: all labels at once, unknown ones left out.

The strengths are scikit-learn's C, from the strongest penalty to the weakest; each starts from the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from eval.config import Pooling, TaskConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of, score
from eval.data.cohorts import Cohort
from eval.networks.targets import probabilities
from meddap.settings import SettingsError

_TOLERANCE = 1e-4  # scikit-learn's own; there are many strengths


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of the training features, (D,) each; a constant channel is only centred."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Standard:
        std = features.std(axis=0, dtype=np.float64)
        return cls(features.mean(axis=0, dtype=np.float64), np.where(std > 1e-8, std, 1.0))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Standardise (N, D) features; float32, as they are."""
        found = features - self.mean.astype(np.float32)
        found /= self.std.astype(np.float32)
        return found

    def arrays(self, prefix: str = "standard") -> dict[str, np.ndarray]:
        """Return the two as `<prefix>.mean` and `<prefix>.std`, as they are kept."""
        return {f"{prefix}.mean": self.mean, f"{prefix}.std": self.std}

    @classmethod
    def kept(cls, arrays: Mapping[str, np.ndarray], prefix: str = "standard") -> Standard:
        """Return what `arrays` gave."""
        return cls(arrays[f"{prefix}.mean"], arrays[f"{prefix}.std"])


@dataclass(frozen=True)
class Line:
    """Weights (D, O) and biases (O,) on standardised features; logits."""

    standard: Standard
    weights: np.ndarray
    biases: np.ndarray

    def probabilities(self, features: np.ndarray, exclusive: bool) -> np.ndarray:
        """Return (U, O) probabilities of each label, or of classes of which one is true (`exclusive`)."""
        return self.of_standard(self.standard.apply(features), exclusive)

    def of_standard(self, inputs: np.ndarray, exclusive: bool) -> np.ndarray:
        """Return the same for features that are standardised already."""
        return probabilities(torch.from_numpy(inputs @ self.weights + self.biases), exclusive)

    def arrays(self, prefix: str = "line") -> dict[str, np.ndarray]:
        """Return all of it as arrays named `<prefix>.…`, as they are kept."""
        own = {f"{prefix}.weights": self.weights, f"{prefix}.biases": self.biases}
        return {**self.standard.arrays(f"{prefix}.standard"), **own}

    @classmethod
    def kept(cls, arrays: Mapping[str, np.ndarray], prefix: str = "line") -> Line:
        """Return what `arrays` gave."""
        standard = Standard.kept(arrays, f"{prefix}.standard")
        return cls(standard, arrays[f"{prefix}.weights"], arrays[f"{prefix}.biases"])


@dataclass(frozen=True)
class Regression:
    """The line that validation patients chose."""

    line: Line
    task: TaskConfig
    choices: Choices
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        exclusive = self.task.kind == "multiclass"
        return [Outcome(prediction_of(self.line.probabilities(test.pooled(), exclusive), test, self.task))]


def fit(train: Cohort, val: Cohort, context: Context) -> Regression:
    """Choose the best strength on the validation patients."""
    task = context.task
    strength, line = choose(train, val, task, task.logistic.strengths, refit=task.refit)
    return Regression(line, task, {"C": strength}, task.refit)


def parts(fitted: Regression) -> Parts:
    """Return what is kept of it: the line."""
    return Parts(fitted.line.arrays())


def restore(kept: Parts, context: Context) -> Regression:
    """Return what `parts` took apart."""
    return Regression(Line.kept(kept.arrays), context.task, kept.choices, kept.refitted)


def choose(
    train: Cohort, val: Cohort, task: TaskConfig, count: int, how: Pooling | None = None, refit: bool = False
) -> tuple[float, Line]:
    """Return the best of `count` strengths on validation patients, and its line; `how` pools volumes.

    refit  the line of the chosen strength is that of training and validation patients
    """
    chosen: tuple[float, Line] | None = None
    best, inputs = -np.inf, None
    for strength, line in path(train, task, count, how=how):
        inputs = line.standard.apply(val.pooled(how=how)) if inputs is None else inputs  # the same for every line
        worth = score(line.of_standard(inputs, task.kind == "multiclass"), val, task)
        if chosen is None or worth > best:
            best, chosen = worth, (strength, line)
    if chosen is None:
        raise SettingsError("logistic.strengths=0: give a number above 0")
    if refit:
        strength, _ = chosen
        chosen = strength, dict(path(train.plus(val), task, count, until=strength, how=how))[strength]
    return chosen


def path(
    train: Cohort, task: TaskConfig, count: int, until: float = np.inf, how: Pooling | None = None
) -> Iterator[tuple[float, Line]]:
    """Yield (C, Line) for `count` strengths, ascending, each started from the one before."""
    features = train.pooled(how=how)
    standard = Standard.of(features) if task.logistic.standardise else Standard(np.zeros(1), np.ones(1))
    axes, start = Axes.of(standard.apply(features)), None
    for strength in np.geomspace(task.logistic.low, task.logistic.high, count).tolist():
        if strength > until:
            return
        exclusive = task.kind == "multiclass"
        start = axes.solve(train.states, strength, task.logistic.steps, exclusive, start, _TOLERANCE)
        yield strength, Line(standard, axes.back(start[0]), start[1])


@dataclass(frozen=True)
class Axes:
    """Training features along their own principal axes, where every strength's curvature is nearly diagonal.

    In coordinates scaled by it L-BFGS takes tens of steps where it took hundreds. Nothing is lost: the penalised
    minimum has no part outside of the features' span.

    inputs (N, R), vectors (D, R) orthonormal, squares (R,) sums of the squared inputs
    """

    inputs: torch.Tensor
    vectors: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def of(cls, features: np.ndarray) -> Axes:
        """Return the axes of (N, D) float32 features, from the smaller of the two products with themselves."""
        rows = torch.from_numpy(features)
        wide = rows.shape[0] < rows.shape[1]
        squares, vectors = torch.linalg.eigh((rows @ rows.T if wide else rows.T @ rows).double())
        kept = squares > squares[-1].clamp(min=1e-12) * 1e-9
        squares, vectors = squares[kept], vectors[:, kept]
        if wide:
            vectors = rows.double().T @ vectors / squares.sqrt()
        vectors = vectors.float()
        return cls(rows @ vectors, vectors, squares.float())

    def back(self, weights: np.ndarray) -> np.ndarray:
        """Map (R, O) weights on the axes to (D, O) on the features."""
        return (self.vectors @ torch.from_numpy(weights)).numpy()

    def solve(
        self,
        states: np.ndarray,
        strength: float,
        steps: int,
        exclusive: bool = False,
        start: tuple[np.ndarray, np.ndarray] | None = None,
        tolerance: float = 1e-6,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return weights (R, O) on the axes and biases (O,), by L-BFGS: scikit-learn's LogisticRegression(C=strength).

        Minimises, for every label, the sum of cross-entropies over the units where it is known plus |w|² / (2 C),
        divided by their number; the bias is not penalised. exclusive: one softmax over classes instead of a sigmoid for
        each label. states (N, O) in {1, 0, −1}; start: weights and biases to begin from; tolerance: largest gradient,
        in coordinates of unit curvature, at which it ends.
        """
        given = torch.from_numpy(states.T.copy())  # outputs in rows: both matrix products are fastest so
        known, targets = (given >= 0).float(), (given == 1).float()
        if exclusive:
            known = known.amin(dim=0, keepdim=True)
        count = known.sum(dim=1, keepdim=True).clamp(min=1)
        share = known / count
        scale = ((self.squares / 4 + 1 / strength) / len(states)).sqrt()
        shape = len(scale), len(given)
        begin = start or (np.zeros(shape, np.float32), np.zeros(shape[1], np.float32))
        scaled = torch.from_numpy(begin[0]).T * scale
        biases = torch.tensor(begin[1])
        optimizer = torch.optim.LBFGS(
            [scaled.requires_grad_(), biases.requires_grad_()],
            max_iter=steps,
            tolerance_grad=tolerance,
            tolerance_change=1e-9,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            weights = scaled / scale
            logits = torch.addmm(biases[:, None], weights, self.inputs.T)
            if exclusive:
                spread = logits.log_softmax(dim=0)
                entropy, probability = -(spread * targets).sum(dim=0, keepdim=True), spread.exp_()
            else:
                entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
                probability = logits.sigmoid_()
            residual = probability.sub_(targets).mul_(share)
            pull = weights / (strength * count)
            scaled.grad = torch.addmm(pull, residual, self.inputs) / scale
            biases.grad = residual.sum(dim=1)
            return (entropy * share).sum() + (weights * pull).sum() / 2

        optimizer.step(torch.no_grad()(closure))
        return (scaled / scale).detach().T.numpy(), biases.detach().numpy()


def solve(
    features: np.ndarray, states: np.ndarray, strength: float, steps: int = 100, exclusive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (D, O) and biases (O,) of one strength on (N, D) float32 features; see Axes.solve."""
    axes = Axes.of(features)
    weights, biases = axes.solve(states, strength, steps, exclusive)
    return axes.back(weights), biases
