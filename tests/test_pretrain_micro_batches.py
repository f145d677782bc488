"""A batch in micro-batches: the gradients of the whole."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import CONFIG, rows, weights

from meddap.settings import SettingsError
from pretrain import distillation, train
from pretrain.data import batch_plan, randomness
from pretrain.data.micro_batch import MicroBatch, micro_batches
from pretrain.data.views import Views
from pretrain.distillation import StepWeights
from pretrain.model.heads import ProjectionHead
from pretrain.model.student_teacher import Model
from pretrain.model.vit import VisionTransformer
from pretrain.objective import koleo
from pretrain.objective.losses import koleo_loss


def model_of() -> Model:
    """A small student or teacher with drop path and RoPE's scale."""
    torch.manual_seed(0)
    options = {"prototypes": 12, "hidden_dim": 24, "bottleneck_dim": 8}
    return Model(
        VisionTransformer(patch_size=8, embed_dim=32, depth=3, num_heads=2, drop_path=0.5, rope_rescale=2.0),
        ProjectionHead(32, **options),
        ProjectionHead(32, **options),
    )


IMAGES, CROPS = 8, 3


def networks() -> tuple[Model, Model, VisionTransformer]:
    """Student, teacher and Gram teacher with different weights."""
    student, teacher, gram_teacher = model_of().train(), model_of().eval(), model_of().backbone.eval()
    for network, seed in ((student, 1), (teacher, 2)):
        network.init_weights(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return student, teacher, gram_teacher


def divided(*sizes: int) -> list[MicroBatch]:
    """The same random batch in micro-batches of so many images."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, IMAGES, 1, 32, 32), (CROPS, IMAGES, 1, 16, 16), (2, IMAGES, 1, 64, 64)]
    views = Views(*(torch.randn(shape, generator=generator) for shape in shapes))
    masks = torch.rand(2 * IMAGES, 16, generator=generator) < 0.4
    masks[5] = False
    numbers = torch.arange(IMAGES)
    draws = randomness.sample_draws(
        numbers, numbers * 0, seed=0, step=7, crops=2 + CROPS, depth=3, drop_path=0.5, rope_rescale=2.0
    )
    return micro_batches(views, masks, draws, [(size,) for size in sizes])


@pytest.mark.parametrize("group", [2, 3, 5, 6, None])
def test_micro_batches_add_up_to_the_batch(group: int | None) -> None:
    """Every term, monitor and gradient, with Gram, drop path, RoPE's scale and any KoLeo group, whole, even, uneven."""
    student, teacher, gram_teacher = networks()
    settings = StepWeights(teacher_temp=0.05, gram=2.0, dino_local=0.5, koleo=1.0, koleo_group=group)
    found = {}
    for sizes in ((8,), (4, 4), (2, 2, 2, 2), (6, 2), (1, 4, 3)):
        student.zero_grad()
        terms = distillation.backward(student, teacher, divided(*sizes), settings, gram_teacher=gram_teacher)
        found[sizes] = terms, {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    whole, gradients = found.pop((8,))
    assert set(whole) > {"dino_global", "dino_local", "ibot", "koleo", "gram", "total"} and len(found) == 4
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for terms, others in found.values():
        for name, value in whole.items():
            torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    ("sizes", "group", "koleo_weight", "passes"),
    [
        ((8,), None, 1.0, 1),
        ((8,), 3, 1.0, 1),
        ((4, 4), 2, 1.0, 2),
        ((6, 2), 6, 1.0, 2),
        ((4, 4), 3, 1.0, 4),
        ((4, 4), None, 1.0, 4),
        ((4, 4), None, 0.0, 2),
    ],
)
def test_a_first_pass_is_made_where_groups_span_parts(
    sizes: tuple[int, ...], group: int | None, koleo_weight: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student runs twice for each part where one part cannot know KoLeo, once everywhere else."""
    student, teacher, _ = networks()
    packed, seen = VisionTransformer.packed, []

    def counted(model: VisionTransformer, groups: list) -> list:
        seen.append((model is student.backbone, len(groups)))
        return packed(model, groups)

    monkeypatch.setattr(VisionTransformer, "packed", counted)
    distillation.backward(student, teacher, divided(*sizes), StepWeights(0.05, koleo=koleo_weight, koleo_group=group))
    of_student = [groups for own, groups in seen if own]  # global crops alone, then local ones too
    assert of_student == [1] * (passes - len(sizes)) + [2] * len(sizes)


def test_neighbours_in_other_parts_count() -> None:
    """KoLeo's gradient with and without them differs by far more than the exact one errs, in float32 and in bf16."""
    student, teacher, _ = networks()
    alone = StepWeights(teacher_temp=0.05, dino=0.0, ibot=0.0, koleo=1.0)
    for low, tolerance in ((False, 1e-5), (True, 0.01)):
        found = []
        for sizes, group in (((8,), None), ((4, 4), None), ((4, 4), 4)):
            student.zero_grad()
            precision = torch.autocast("cpu", torch.bfloat16, enabled=low)
            distillation.backward(
                student, teacher, divided(*sizes), replace(alone, koleo_group=group), precision=precision
            )
            found.append(student.backbone.blocks[0].attn.qkv.weight.grad.clone())
        whole, exact, within = found
        assert (exact - whole).norm() < tolerance * whole.norm() and (within - whole).norm() > 0.2 * whole.norm()


def test_half_the_local_weight_halves_the_local_part() -> None:
    """Crops count by their pairs, 2 of global and 2·L of local ones; the local part by its own weight besides."""
    for local in (1.0, 0.5):
        one, other = distillation.crop_weights(4, StepWeights(0.04, dino=3.0, dino_local=local))
        assert 2 * one == pytest.approx(3 * 0.2) and 4 * other == pytest.approx(3 * 0.8 * local)
    assert distillation.crop_weights(0, StepWeights(0.04))[0] == 0.5


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
def test_micro_batches_are_whole_groups(batch: int, count: int, group: int, expected: list[int]) -> None:
    """As equal as groups allow, in order, nothing lost; never more micro-batches than groups."""
    found = batch_plan.micro_batch_sizes(batch, count, group)
    assert found == expected and sum(found) == batch
    assert all(size % group == 0 for size in found[:-1])


@pytest.mark.parametrize(
    ("batch", "count", "group", "processes", "expected", "spans"),
    [
        (8, 1, None, 1, [(8,)], False),
        (8, 2, None, 1, [(4,), (4,)], True),
        (9, 2, 3, 1, [(4,), (5,)], True),  # whole groups would be 3 and 6
        (12, 2, 3, 1, [(6,), (6,)], False),
        (11, 2, 6, 1, [(6,), (5,)], False),  # even ones would be 5 and 6
        (3, 4, 2, 1, [(1,), (1,), (1,)], True),
        (7, 1, 4, 3, [(3, 2, 2)], False),
        (16, 2, 4, 2, [(4, 4), (4, 4)], False),
        (12, 2, 4, 2, [(3, 3), (3, 3)], True),  # a process's share cuts a group
        (7, 4, None, 3, [(1, 1, 1), (2, 1, 1)], True),  # no more micro-batches than the smallest share has images
    ],
)
def test_a_batch_in_micro_batches_for_every_process(
    batch: int, count: int, group: int | None, processes: int, expected: list[tuple[int, ...]], spans: bool
) -> None:
    """Even micro-batches, and whole groups where they are no larger; never one that is empty on a process."""
    found = batch_plan.divide_batch(batch, count, group, processes)
    assert found == expected and sum(map(sum, found)) == batch
    assert koleo.spans_micro_batches(found, group) == spans


def test_more_pixels_are_more_parts_and_what_cannot_be_is_a_line() -> None:
    """Parts by the ratio of pixels, rounded up; no accumulate below one, no batch below the processes."""
    scales = [Fraction(1), Fraction(7, 2), Fraction(1, 4)]
    assert [len(each) for each in batch_plan.plan_micro_batches(64, 2, scales, None, "adapt")] == [2, 7, 1]
    assert [len(each) for each in batch_plan.plan_micro_batches(5, 2, scales, None, "adapt")] == [2, 5, 1]
    with pytest.raises(SettingsError, match="machine.accumulate=0: must be 1 or more"):
        batch_plan.plan_micro_batches(8, 0, scales, None, "adapt")
    with pytest.raises(SettingsError, match="stages.adapt.batch_size=3: cannot be divided among 4 processes"):
        batch_plan.plan_micro_batches(3, 1, scales, None, "adapt", 4)


def test_a_run_in_micro_batches_is_the_run(tiny_dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Metrics of every step to 1e-4 (sums are rounded in another order), weights too; too many are a note."""
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    words = ["--config", str(config), f"output={tmp_path}", f"data.root={tiny_dataset()}"]
    with caplog.at_level("INFO", "pretrain"):
        for name, count in (("whole", 1), ("parts", 9)):
            assert train.main([*words, f"name={name}", f"machine.accumulate={count}"]) == 0
    (note, _) = [line for line in caplog.messages if "one per micro-batch" in line]  # one for each stage
    assert (
        "crops of 32 and 16 pixels should go through the student in 9 micro-batches, but a process has only 8" in note
    )
    for one, other in zip(rows(tmp_path / "whole" / "adapt"), rows(tmp_path / "parts" / "adapt")):
        assert one.keys() == other.keys()
        numbers = [key for key, value in one.items() if not isinstance(value, str)]
        assert all(one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5) for key in numbers)
    ours, theirs = (weights(tmp_path / name / "adapt" / "00000008") for name in ("whole", "parts"))
    for key in ours:
        if key.startswith("student."):
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)
