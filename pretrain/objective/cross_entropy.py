"""Cross-entropy of students against targets over many prototypes, whose logits never exist in full.

DINO (arXiv 2104.14294) compares cls tokens of a student's crops with those of a teacher's, iBOT (arXiv 2111.07832)
masked patches. Both are means of targets · log softmax(features · prototypesᵀ / temperature). With tens of thousands of
prototypes those logits, their softmax and its gradient are most of a step's memory; here a few samples at a time go
from features to gradient, so that only the three products of a linear layer remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pretrain.objective.sinkhorn import SoftTargets, chunks


@dataclass(frozen=True)
class Targets:
    """What S views of N samples, as a student sees them, are compared with.

    soft         of T views of the N samples, as the teacher sees them
    blend        (S, T) float32, rows sum to 1: the target of a student's view is this mean of the T targets
    weights      (S, 1), (1, N) or (S, N) float32, of each term in the sum
    temperature  of the student
    """

    soft: SoftTargets
    blend: torch.Tensor
    weights: torch.Tensor
    temperature: float


@dataclass(frozen=True)
class LossAndTerms:
    """loss: the weighted sum of all terms, with a gradient; terms (S, N): each cross-entropy, without one."""

    loss: torch.Tensor
    terms: torch.Tensor


def cross_entropy(features: torch.Tensor, prototypes: torch.Tensor, targets: Targets) -> LossAndTerms:
    """Compare (S · N, D) float32 unit vectors, view by view, over (K, D) float32 prototypes with targets; in float32.

    Under autocast products are made in its type, as `Prototypes` does; all that is made of them is float32.
    """
    views = len(targets.blend)
    loss, terms = _CrossEntropy.apply(features.unflatten(0, (views, len(features) // views)), prototypes, targets)
    return LossAndTerms(loss, terms)


class _CrossEntropy(torch.autograd.Function):
    """The gradient for a loss of weight 1 is made beside the loss, while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, prototypes: torch.Tensor, targets: Targets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        views, samples, _ = features.shape
        wanted = any(ctx.needs_input_grad[:2])
        weights = targets.weights.expand(views, samples)
        terms = features.new_empty(views, samples)
        # gradients with respect to features and prototypes
        of_features = torch.empty_like(features) if wanted else features
        of_prototypes = torch.zeros_like(prototypes) if wanted else prototypes
        known = Prototypes.of(prototypes, features)
        # per-row scale of the gradient with respect to the logits
        factors = (weights / targets.temperature).unsqueeze(-1)
        with torch.autocast(features.device.type, enabled=False):
            for some in chunks(samples, views * len(prototypes), features.device):
                logits = known.logits(features[:, some], targets.temperature)
                terms[:, some], gradient = _entropy(logits, targets, some, wanted)
                if gradient is not None:
                    gradient = gradient.flatten(0, 1).to(known.narrow.dtype)
                    scaled = (features[:, some] * factors[:, some]).flatten(0, 1).to(gradient.dtype)
                    of_features[:, some] = (gradient @ known.narrow).unflatten(0, (views, -1)) * factors[:, some]
                    _add_product(of_prototypes, gradient.t(), scaled)
        if wanted:
            ctx.save_for_backward(of_features, of_prototypes)
        ctx.mark_non_differentiable(terms)
        return (terms * weights).sum(), terms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        of_features, of_prototypes = ctx.saved_tensors
        return of_features * upstream, of_prototypes * upstream, None


def _entropy(
    logits: torch.Tensor, targets: Targets, some: slice, wanted: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(S, n) terms of some samples from (S, n, K) logits by temperature; their (S, n, K) gradient where `wanted`."""
    soft = targets.soft.rows(some)
    logarithms = torch.log_softmax(logits, dim=-1)
    agreement = torch.einsum("snk,tnk->snt", logarithms, soft)
    terms = -(agreement * targets.blend.unsqueeze(1)).sum(dim=-1)
    if not wanted:
        return terms, None
    gradient = logarithms.exp_()
    gradient.flatten(1).addmm_(targets.blend, soft.flatten(1), alpha=-1)
    return terms, gradient


def _add_product(total: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> None:
    """total += one @ other, in place in one kernel where they have the total's type."""
    if one.dtype == total.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


@dataclass(frozen=True)
class Prototypes:
    """Prototypes ready for products, which in bfloat16 keep what tells directions apart.

    rows    (K, D) float32; narrow: the same in the type of the products, float32 or a lower one
    middle  (1, D) float32 mean of the directions, and its logits `base` (1, K); None in float32
    """

    rows: torch.Tensor
    narrow: torch.Tensor
    middle: torch.Tensor | None = None
    base: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: torch.Tensor, directions: torch.Tensor) -> Prototypes:
        """Prepare (K, D) float32 rows for (…, D) float32 unit vectors; under autocast, products are made in its type.

        Early in training all directions are close, and rounding them would round their differences away: so only their
        difference from their mean is rounded, and the mean's own logits are float32.
        """
        kind = rows.device.type
        if not torch.is_autocast_enabled(kind) or not directions.numel():
            return cls(rows, rows)
        with torch.autocast(kind, enabled=False):
            middle = directions.flatten(0, -2).mean(dim=0, keepdim=True)
            return cls(rows, rows.to(torch.get_autocast_dtype(kind)), middle, middle @ rows.t())

    def logits(self, directions: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """Return (…, K) float32 logits of (…, D) float32 directions, divided by the temperature."""
        with torch.autocast(self.rows.device.type, enabled=False):
            if self.middle is None or self.base is None:
                return (directions / temperature) @ self.rows.t()
            apart = ((directions - self.middle) / temperature).to(self.narrow.dtype)
            return torch.add(self.base / temperature, apart @ self.narrow.t())
