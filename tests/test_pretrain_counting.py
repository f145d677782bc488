"""Counted operations of a step against those that PyTorch counts while a step runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from helpers.planned_run import config_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain import build, checks, distillation
from pretrain.config import Config, StageConfig, load
from pretrain.data import views
from pretrain.data.micro_batch import micro_batches
from pretrain.data.stream import Batch
from pretrain.planning import counting

PIXELS = (40, 56)


def batch_of(images: int, sequences: int) -> Batch:
    number = torch.arange(images)
    pixels = torch.randint(-1000, 1000, (images, sequences, *PIXELS), dtype=torch.int16)
    box = torch.tensor([[0, PIXELS[0], 0, PIXELS[1]]]).repeat(images, 1)
    present = torch.ones(images, sequences, dtype=torch.bool)
    return Batch(pixels, box, present, number, 0 * number, torch.empty(images, 0).long())


def added(total: torch.Size, one: torch.Size, other: torch.Size, *_, **__) -> int:
    """Operations of total += one @ other."""
    return 2 * math.prod(one) * other[1]


def run(
    config: Config, of: StageConfig, images: int, drop: torch.Tensor | None = None, sizes: tuple[int, ...] = ()
) -> tuple[float, float, int]:
    """Operations that PyTorch counts in a step and in its views, and the masked patches of the step.

    sizes  of the micro-batches; (): one
    """
    device, names = torch.device("cpu"), tuple(config.data.sequences)
    student, teacher = build.student_and_teacher(config, device)
    gram_teacher = build.backbone(config.model).eval().requires_grad_(False) if of.gram.teacher_from else None
    for network in (student.backbone, teacher.backbone):
        build.prepare(network, config.machine, device)
    batch = batch_of(images, len(names))
    with FlopCounterMode(display=False) as of_views:
        crops = views.make(batch, build.view_settings(of, config.intensity, names), seed=0, products=True)
    masks = build.masks(of, config, batch, of.crops.global_size)
    draws = build.draws(config, of, batch, 0)
    draws = draws if drop is None else dataclasses.replace(draws, drop=drop)
    now = {name: float(values[0]) for name, values in build.schedules(of).items()}
    batch = micro_batches(crops, masks, draws, [(size,) for size in sizes or (images,)])
    # fused attention is not counted on a CPU, written as products it is; nor are products added to what is there
    in_place = {torch.ops.aten.addmm_: added}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as of_step:
        distillation.backward(student, teacher, batch, build.step_weights(of, now), gram_teacher=gram_teacher)
    return of_step.get_total_flops(), of_views.get_total_flops(), int(masks.sum())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model": {"ffn": "swiglu", "registers": 0, "qkv_bias": False}, "dino_head": {"layers": 2}},
        {"model": {"position": "learned", "grid": 6, "local_norm": True}},
        {"machine": {"recompute": True}},
        {"data": {"sequences": ["t1", "t2"]}, "model": {"sequences": ["t1", "t2"]}},
    ],
    ids=["plain", "swiglu", "learned", "recompute", "two sequences"],
)
@pytest.mark.parametrize("name", ["adapt", "gram"])
def test_products_are_those_that_a_step_makes(name: str, more: dict) -> None:
    """Every operation of the matrix products of a whole step, to the last one, and of its views."""
    config = config_of(**more)
    of = checks.stage(config, name)
    made, made_by_views, masked = run(config, of, images=5)
    found = counting.step(config, of, 5, pixels=PIXELS, masked=masked)
    assert found.model + found.again.total == made
    assert found.views == made_by_views


@pytest.mark.parametrize("more", [{}, {"machine": {"recompute": True}}], ids=["plain", "recompute"])
def test_the_first_pass_of_koleo_is_counted(more: dict) -> None:
    """Every operation of a step whose micro-batches share KoLeo's neighbours: one more pass of the global crops."""
    config = config_of(**more)
    of = checks.stage(config, "adapt")
    made, _, masked = run(config, of, images=5, sizes=(2, 3))
    found = counting.step(config, of, 5, masked=masked, first_pass=True)
    plain = counting.step(config, of, 5, masked=masked)
    assert found.model == plain.model and found.model + found.again.total == made


def test_views_cost_little_beside_a_step() -> None:
    """Under three hundredths of the operations of a ViT-B/16's step, from slices of 512 pixels; Gram crops included."""
    config = load(Path(build.__file__).parent / "configs" / "meddinov3_vitb16.yaml", ["data.root=none"])
    for name in ("adapt", "gram"):
        found = counting.step(config, checks.stage(config, name), 512, pixels=(512, 512))
        assert 0 < found.views < 0.03 * found.model


def test_what_drop_path_skips_is_not_counted() -> None:
    """Where exactly the expected share of samples is drawn, operations are those of the step to the last one."""
    config, images = config_of(model={"drop_path": 0.5}), 8
    of = checks.stage(config, "adapt")
    whole, local = (torch.arange(count * images).view(count, images) / (count * images) for count in (2, 3))
    drop = torch.cat([whole, local]).expand(3, 2, -1, -1)
    # of as many patches in every crop the share that is asked for is exact too
    of = dataclasses.replace(of, masks=dataclasses.replace(of.masks, probability=1.0, ratio=[0.25, 0.25]))
    made, _, masked = run(config, of, images, drop)
    assert counting.step(config, of, images, masked=masked).model == made


def test_masks_are_as_many_as_expected() -> None:
    """The masked share of 400 drawn crops, patches and whole sequences, is the expected one within two in a hundred."""
    names = ["t1", "t2", "flair"]
    config = config_of(data={"sequences": names}, model={"sequences": names})
    for sequences, probability in ((1, 0.0), (3, 0.7)):
        of = checks.stage(config, "adapt")
        of = dataclasses.replace(of, masks=dataclasses.replace(of.masks, sequence_probability=probability))
        drawn = build.masks(of, config, batch_of(200, sequences), 48).float().mean()
        assert abs(float(drawn) - counting.masked_share(of.masks, sequences)) < 0.02


def test_parameters_are_the_models() -> None:
    """Counted without memory, they are those of the model itself."""
    config = config_of()
    real = build.networks(config)[0]
    assert counting.costs(config).parameters == sum(each.numel() for each in real.parameters())
