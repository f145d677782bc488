"""A batch in parts: the gradients of the whole, or a line that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import CONFIG, rows, weights

from data_prep.settings import SettingsError
from pretrain import accumulate, step, stochastic, train
from pretrain.config import LossConfig
from pretrain.heads import ProjectionHead
from pretrain.losses import koleo_loss
from pretrain.step import Model, StepWeights
from pretrain.views import Views
from pretrain.vit import VisionTransformer


def model_of() -> Model:
    """A small student or teacher with drop path and RoPE's stretch."""
    torch.manual_seed(0)
    options = {"prototypes": 12, "hidden_dim": 24, "bottleneck_dim": 8}
    return Model(
        VisionTransformer(patch_size=8, embed_dim=32, depth=3, num_heads=2, drop_path=0.5, rope_rescale=2.0),
        ProjectionHead(32, **options),
        ProjectionHead(32, **options),
    )


def test_parts_add_up_to_the_batch() -> None:
    """Every term, monitor and gradient, with Gram, drop path, stretch and groups of KoLeo: whole, halves, uneven."""
    student, teacher, anchor = model_of().train(), model_of().eval(), model_of().backbone.eval()
    for network, seed in ((student, 1), (teacher, 2)):
        network.init_weights(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    torch.manual_seed(3)
    images, crops = 8, 3
    fine = torch.randn(2, images, 1, 64, 64)
    views = Views(torch.randn(2, images, 1, 32, 32), torch.randn(crops, images, 1, 16, 16), fine)
    masks = torch.rand(2 * images, 16) < 0.4
    masks[5] = False
    numbers = torch.arange(images)
    draws = stochastic.sample(
        numbers, numbers * 0, seed=0, step=7, crops=2 + crops, depth=3, drop_path=0.5, rope_rescale=2.0
    )
    settings = StepWeights(teacher_temp=0.05, gram=2.0, dino_local=0.5, koleo_group=2)
    found = {}
    for sizes in ((8,), (4, 4), (2, 2, 2, 2), (6, 2)):
        student.zero_grad()
        batch = step.parts(views, masks, draws, [(size,) for size in sizes])
        terms = step.gradients(student, teacher, batch, settings, gram_teacher=anchor)
        found[sizes] = terms, {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    whole, gradients = found.pop((8,))
    assert set(whole) > {"dino_global", "dino_local", "ibot", "koleo", "gram", "total"} and len(found) == 3
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for terms, others in found.values():
        for name, value in whole.items():
            torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)


def test_half_the_local_weight_halves_the_local_part() -> None:
    """Crops count by their pairs, 2 of global and 2·L of local ones; the local part by its own weight besides."""
    for local in (1.0, 0.5):
        one, other = step.crop_weights(4, StepWeights(0.04, dino=3.0, dino_local=local))
        assert 2 * one == pytest.approx(3 * 0.2) and 4 * other == pytest.approx(3 * 0.8 * local)
    assert step.crop_weights(0, StepWeights(0.04))[0] == 0.5


def test_koleo_in_groups_is_the_mean_of_the_groups() -> None:
    """Neighbours are sought within a group; a last, smaller group counts by its images; alone, a sample adds 0."""
    torch.manual_seed(0)
    features = torch.randn(10, 6)
    alone = [koleo_loss(features[start : start + 4]) for start in (0, 4, 8)]
    expected = (4 * alone[0] + 4 * alone[1] + 2 * alone[2]) / 10
    torch.testing.assert_close(koleo_loss(features, 4), expected)
    torch.testing.assert_close(koleo_loss(features, 10), koleo_loss(features))
    assert koleo_loss(features, 1) == 0 and koleo_loss(features, 3) != koleo_loss(features)


def test_duplicates_do_not_own_the_gradient() -> None:
    """Two slices of air beside others: the others' terms alone move the weights, the two slices' own would by 1e7."""
    torch.manual_seed(0)
    others, air = torch.randn(6, 8), torch.randn(1, 8)
    features = torch.cat([others, air, air]).requires_grad_()
    koleo_loss(features).backward()
    known = torch.cat([others, air]).requires_grad_()
    directions = torch.nn.functional.normalize(known, dim=-1)
    apart = torch.cdist(directions[:6], directions).masked_fill(torch.eye(6, 7, dtype=torch.bool), torch.inf)
    nearest = apart.amin(dim=1)
    (-nearest.log().sum() / 8).backward()
    assert known.grad.abs().max() > 0.01
    torch.testing.assert_close(features.grad[:6], known.grad[:6], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.grad[6:].sum(dim=0), known.grad[6], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("batch", "count", "group", "expected"),
    [
        (8, 1, 1, [8]),
        (8, 3, 1, [2, 3, 3]),
        (8, 2, 4, [4, 4]),
        (10, 2, 4, [4, 6]),
        (3, 4, 1, [1, 1, 1]),
        (12, 4, 5, [5, 5, 2]),
    ],
)
def test_parts_are_whole_groups(batch: int, count: int, group: int, expected: list[int]) -> None:
    """As equal as groups allow, in order, nothing lost; never more parts than groups."""
    found = accumulate.part_sizes(batch, count, group)
    assert found == expected and sum(found) == batch
    assert all(size % group == 0 for size in found[:-1])


def test_what_would_change_the_results_is_refused() -> None:
    """KoLeo over the whole batch, groups too large for the parts; without KoLeo anything goes."""
    with pytest.raises(SettingsError, match="stages.adapt.loss.koleo_group to the images of one part or fewer"):
        accumulate.plan([8], 2, LossConfig(), "adapt")
    with pytest.raises(SettingsError, match="batches of 8, in which KoLeo's groups of 6 images allow 2 parts"):
        accumulate.plan([8], 4, LossConfig(koleo_group=6), "adapt")
    with pytest.raises(SettingsError, match="accumulate=0: must be 1 or more"):
        accumulate.plan([8], 0, LossConfig(), "adapt")
    assert accumulate.plan([8, 3], 4, LossConfig(koleo=0.0), "adapt") == {8: [(2,)] * 4, 3: [(1,)] * 3}
    assert accumulate.plan([8], 1, LossConfig(), "adapt") == {8: [(8,)]}


def test_a_run_in_parts_is_the_run(tiny_dataset, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Metrics of every step to 1e-4 (sums are rounded in another order), weights too; refused in one line."""
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    words = ["--config", str(config), f"output={tmp_path}", f"data.root={tiny_dataset()}"]
    words.append("stage_defaults.loss.koleo_group=4")
    for name, count in (("whole", 1), ("parts", 2)):
        assert train.main([*words, f"name={name}", f"machine.accumulate={count}"]) == 0
    for one, other in zip(rows(tmp_path / "whole" / "adapt"), rows(tmp_path / "parts" / "adapt")):
        assert one.keys() == other.keys()
        numbers = [key for key, value in one.items() if not isinstance(value, str)]
        assert all(one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5) for key in numbers)
    ours, theirs = (weights(tmp_path / name / "adapt" / "00000008") for name in ("whole", "parts"))
    for key in ours:
        if key.startswith("student."):
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)
    assert train.main([*words[:-1], "name=refused", "machine.accumulate=2"]) == 1
    assert "error: machine.accumulate=2: KoLeo compares all images" in capsys.readouterr().err
