"""The losses against the references' own numbers, and their properties at the edges."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.data.masking import masked
from pretrain.objective import losses, sinkhorn
from pretrain.objective.cross_entropy import Prototypes, Targets, cross_entropy
from pretrain.objective.sinkhorn import Centring, SoftTargets, scalings


@pytest.fixture
def golden(golden_dir: Path) -> dict[str, torch.Tensor]:
    """Tensors of dinov3_losses.safetensors."""
    return load_file(golden_dir / "dinov3_losses.safetensors")


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5, relative."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def assigned(logits: torch.Tensor, temperature: float, views: int = 1) -> SoftTargets:
    """Balanced targets of (views · N, K) logits."""
    logits = logits.float()
    by_view = logits.unflatten(0, (views, len(logits) // views))
    return SoftTargets(by_view, temperature, *scalings([[logits]], temperature))


def test_sinkhorn_targets_are_the_references(golden) -> None:
    """Teacher probabilities of cls tokens and of masked patches, to 1e-5 relative."""
    for part in ("dino", "ibot"):
        found = assigned(golden[f"{part}.teacher_logits"], 0.05).rows(slice(None))[0]
        close(found, golden[f"{part}.teacher_probs"])


def dino(student: torch.Tensor, targets: SoftTargets, blend: list[list[float]]) -> torch.Tensor:
    """Mean cross-entropy of (S, B, K) logits, given as features of prototypes that are the axes."""
    count = torch.full((1, 1), 1 / math.prod(student.shape[:2]))
    with_ = Targets(targets, torch.tensor(blend), count, 0.1)
    return cross_entropy(student.flatten(0, 1), torch.eye(student.shape[-1]), with_).loss


def test_dino_loss_is_the_references(golden) -> None:
    """Local crops, and global crops with and without the pairs of equal views."""
    targets = assigned(golden["dino.teacher_logits"], 0.05, views=2)
    local, whole = golden["dino.student_local_logits"], golden["dino.student_global_logits"]
    close(dino(local, targets, [[0.5, 0.5]] * len(local)), golden["dino.loss_local"])
    close(dino(whole, targets, [[0.5, 0.5]] * 2), golden["dino.loss_global_with_diagonal"])
    close(dino(whole, targets, [[0.0, 1.0], [1.0, 0.0]]), golden["dino.loss_global_no_diagonal"])


def test_ibot_loss_is_the_references(golden) -> None:
    """Masked patches weighted so that every crop counts alike."""
    masks, logits = golden["ibot.masks"].bool(), golden["ibot.student_logits"]
    share = masked(masks, None, 1, torch.device("cpu")).share.unsqueeze(0)
    with_ = Targets(assigned(golden["ibot.teacher_logits"], 0.05), torch.ones(1, 1), share, 0.1)
    close(cross_entropy(logits, torch.eye(logits.shape[1]), with_).loss, golden["ibot.loss"])


def test_a_few_samples_at_a_time_give_the_loss_and_gradients_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As written out with autograd, whatever the size of the chunks."""
    generator = torch.Generator().manual_seed(0)
    views, samples, width, prototypes = 5, 7, 6, 11
    features, weight, logits = (
        torch.randn(*shape, generator=generator)
        for shape in ((views * samples, width), (prototypes, width), (2 * samples, prototypes))
    )
    blend = torch.tensor([[0.0, 1.0], [1.0, 0.0], *[[0.5, 0.5]] * 3])
    weights = torch.rand(views, samples, generator=generator)
    targets = assigned(logits, 0.07, views=2)
    features.requires_grad_(), weight.requires_grad_()
    written = torch.log_softmax((features @ weight.t()).unflatten(0, (views, samples)) / 0.1, dim=-1)
    terms = -torch.einsum("snk,st,tnk->sn", written, blend, targets.rows(slice(None)))
    expected = [terms, *torch.autograd.grad(3 * (terms * weights).sum(), [features, weight])]
    for numbers in (1, 3 * views * prototypes, 1 << 24):
        monkeypatch.setitem(sinkhorn.LOGITS_AT_ONCE, "cpu", numbers)
        found = cross_entropy(features, weight, Targets(targets, blend, weights, 0.1))
        close(found.loss, (terms * weights).sum())
        given = [found.terms, *torch.autograd.grad(3 * found.loss, [features, weight])]
        for one, other in zip(given, expected):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        close(*scalings([[logits]], 0.07), targets.scaling)


def test_centring_is_the_references(golden) -> None:
    """Two batches of centred probabilities and the centre between them."""
    centring, logits = Centring([64]), golden["dino.teacher_logits"]
    for step in range(2):
        targets = SoftTargets(logits.unsqueeze(0), 0.05, *centring.scalings(0.05))
        close(targets.rows(slice(None))[0], golden[f"dino.centered_probs_step{step}"])
        centring.move([[logits]])
        if step == 0:
            close(centring.centres[0].unsqueeze(0), golden["dino.center_after_1"])


def test_koleo_is_the_references(golden) -> None:
    """The mean over the batch of the log distance to the nearest neighbour."""
    close(losses.koleo_loss(golden["koleo.features"]), golden["koleo.loss"])


def test_gram_losses_are_the_references(golden) -> None:
    """Per image, per batch, without negatives; and the resize of high-resolution targets."""
    student, teacher = golden["gram.student"], golden["gram.teacher"]
    close(losses.gram_loss(student, teacher), golden["gram.loss_image_level"])
    close(losses.resize_patches(golden["gram.teacher_highres"], 8, 8, (4, 4)), golden["gram.teacher_resized_4x4"])


def test_koleo_at_the_edges_is_finite() -> None:
    """Duplicates and blank features give finite losses and gradients, the same whatever rounding makes of them; a batch
    of one gives 0."""
    for features in (torch.ones(4, 8), torch.zeros(4, 8), torch.randn(1, 8)):
        features.requires_grad_()
        loss = losses.koleo_loss(features)
        loss.backward()
        assert loss.isfinite() and features.grad.isfinite().all()
    assert losses.koleo_loss(torch.randn(1, 8)) == 0
    equal = F.normalize(torch.randn(1, 32, generator=torch.Generator().manual_seed(0)), dim=-1).repeat(2, 1)
    nearly = equal + 3e-8 * torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(*nearly) and losses.koleo_loss(nearly) == losses.koleo_loss(equal)


def test_sinkhorn_survives_what_overflows_an_exponential() -> None:
    """Logits of ±1000 at temperature 0.04 in bf16 give finite rows that sum to one; no samples give no rows."""
    logits = (torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) * 1000).bfloat16()
    (targets,) = assigned(logits, 0.04).rows(slice(None))
    assert targets.dtype == torch.float32 and targets.isfinite().all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(16))
    assert assigned(torch.zeros(0, 8), 0.04).rows(slice(None)).shape == (1, 0, 8)


def test_ibot_without_any_mask_is_zero() -> None:
    """No masked patch: the loss is 0 and can be differentiated."""
    student, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(8, 4, requires_grad=True)
    with_ = Targets(assigned(torch.zeros(0, 8), 0.05), torch.ones(1, 1), torch.zeros(1, 0), 0.1)
    loss = cross_entropy(student, weight, with_).loss
    loss.backward()
    assert loss == 0 and not weight.grad.any()


def test_bf16_keeps_what_tells_close_directions_apart() -> None:
    """Directions a thousandth apart: their logits' differences to 1 %; rounded as they are, they are off by a tenth."""
    generator = torch.Generator().manual_seed(0)
    rows = 0.02 * torch.randn(512, 64, generator=generator)
    middle, apart = torch.randn(1, 64, generator=generator), torch.randn(20, 64, generator=generator)
    directions = torch.nn.functional.normalize(middle + 8e-3 * apart, dim=-1)
    exact = directions.double() @ rows.double().t()

    def error(logits: torch.Tensor) -> float:
        found, expected = (each.double() - each.double()[:1] for each in (logits, exact))
        return float((found - expected).norm() / expected.norm())

    with torch.autocast("cpu", torch.bfloat16):
        assert error(Prototypes.of(rows, directions).logits(directions)) < 0.01
        assert error(torch.nn.functional.linear(directions, rows)) > 0.1
    assert error(Prototypes.of(rows, directions).logits(directions)) < 1e-3


def test_student_logits_never_exist_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4,096 numbers at a time no tensor of the comparison has more, whatever samples · prototypes is."""
    monkeypatch.setitem(sinkhorn.LOGITS_AT_ONCE, "cpu", 4096)
    samples, prototypes, largest = 96, 512, []
    targets = assigned(torch.randn(samples, prototypes), 0.07)

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            found = function(*arguments, **(named or {}))
            if isinstance(found, torch.Tensor) and found.untyped_storage().data_ptr() != logits:
                largest.append(found.numel())
            return found

    logits = targets.logits.untyped_storage().data_ptr()
    features = torch.randn(samples, 4, requires_grad=True)
    weight = torch.randn(prototypes, 4, requires_grad=True)
    with Sizes():
        cross_entropy(features, weight, Targets(targets, torch.ones(1, 1), torch.ones(1, samples), 0.1)).loss.backward()
    assert features.grad.any() and weight.grad.any() and max(largest) == 4096 < samples * prototypes / 10
