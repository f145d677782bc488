"""The losses against the references' own numbers, and their properties at the edges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain import losses


@pytest.fixture
def golden(golden_dir: Path) -> dict[str, torch.Tensor]:
    """Tensors of dinov3_losses.safetensors."""
    return load_file(golden_dir / "dinov3_losses.safetensors")


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5, relative."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_sinkhorn_targets_are_the_references(golden) -> None:
    """Teacher probabilities of cls tokens and of masked patches, to 1e-5 relative."""
    for part in ("dino", "ibot"):
        temperature = TEMPERATURE[part]
        close(losses.sinkhorn_targets(golden[f"{part}.teacher_logits"], temperature), golden[f"{part}.teacher_probs"])


TEMPERATURE = {"dino": 0.05, "ibot": 0.05}


def test_dino_loss_is_the_references(golden) -> None:
    """Local crops, and global crops with and without the pairs of equal views."""
    targets = golden["dino.teacher_probs"].unflatten(0, (2, 6))
    local, whole = golden["dino.student_local_logits"], golden["dino.student_global_logits"]
    close(losses.dino_loss(local, targets, 0.1), golden["dino.loss_local"])
    close(losses.dino_loss(whole, targets, 0.1), golden["dino.loss_global_with_diagonal"])
    close(losses.dino_loss(whole, targets, 0.1, ignore_diagonal=True), golden["dino.loss_global_no_diagonal"])


def test_ibot_loss_is_the_references(golden) -> None:
    """Masked patches weighted so that every crop counts alike."""
    masks = golden["ibot.masks"].bool()
    close(
        losses.ibot_loss(golden["ibot.student_logits"], golden["ibot.teacher_probs"], masks, 0.1), golden["ibot.loss"]
    )


def test_centring_is_the_references(golden) -> None:
    """Two batches of centred probabilities and the centre between them."""
    centring = losses.Centring(64)
    close(centring.targets(golden["dino.teacher_logits"], 0.05), golden["dino.centered_probs_step0"])
    close(centring.center, golden["dino.center_after_1"])
    close(centring.targets(golden["dino.teacher_logits"], 0.05), golden["dino.centered_probs_step1"])


def test_koleo_is_the_references(golden) -> None:
    """The mean over the batch of the log distance to the nearest neighbour."""
    close(losses.koleo_loss(golden["koleo.features"]), golden["koleo.loss"])


def test_gram_losses_are_the_references(golden) -> None:
    """Per image, per batch, without negatives; and the resize of high-resolution targets."""
    student, teacher = golden["gram.student"], golden["gram.teacher"]
    close(losses.gram_loss(student, teacher), golden["gram.loss_image_level"])
    close(losses.gram_loss(student, teacher, level="batch"), golden["gram.loss_batch_level"])
    close(losses.gram_loss(student, teacher, remove_negatives=True), golden["gram.loss_remove_neg"])
    close(losses.resize_patches(golden["gram.teacher_highres"], 8, 8, (4, 4)), golden["gram.teacher_resized_4x4"])


def test_koleo_at_the_edges_is_finite() -> None:
    """Duplicates and blank features give finite losses and gradients; a batch of one gives 0."""
    for features in (torch.ones(4, 8), torch.zeros(4, 8), torch.randn(1, 8)):
        features.requires_grad_()
        loss = losses.koleo_loss(features)
        loss.backward()
        assert loss.isfinite() and features.grad.isfinite().all()
    assert losses.koleo_loss(torch.randn(1, 8)) == 0


def test_sinkhorn_survives_what_overflows_an_exponential() -> None:
    """Logits of ±1000 at temperature 0.04 in bf16 give finite rows that sum to one; no samples give no rows."""
    logits = (torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) * 1000).bfloat16()
    targets = losses.sinkhorn_targets(logits, 0.04)
    assert targets.dtype == torch.float32 and targets.isfinite().all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(16))
    assert losses.sinkhorn_targets(torch.zeros(0, 8), 0.04).shape == (0, 8)


def test_ibot_without_any_mask_is_zero() -> None:
    """No masked patch: the loss is 0 and can be differentiated."""
    student = torch.zeros(0, 8, requires_grad=True)
    loss = losses.ibot_loss(student, torch.zeros(0, 8), torch.zeros(4, 9, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss == 0
