"""Computed memory of a step against the bytes that PyTorch's allocator gives out during a real one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import planned_run
from torch.profiler import ProfilerActivity, profile

from benchmarks import memory, training_step
from pretrain import build, checks
from pretrain.config import Config, StageConfig, load
from pretrain.planning import peak_memory

CPU = torch.device("cpu")
LARGER = {"model": {"embed_dim": 64, "depth": 4}, "machine": {"device": "cpu"}}


def config_of(**more) -> Config:
    return planned_run.config_of(LARGER, **more)


def allocated(config: Config, of: StageConfig, images: int, masked: float) -> int:
    """The most bytes that a real step on the CPU has in use at once, beyond what there was before it."""
    arm = training_step.Arm(config, of, images, CPU, masked=masked, side=64)
    crops = arm.views()
    arm.gradients(crops)
    arm.optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        arm.gradients(crops)
    events = [each for each in found.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for each in sorted(events, key=lambda each: each.start_ns()):
        now += each.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    "more",
    [
        {"machine": {"precision": "float32"}},
        {"machine": {"precision": "bf16"}},
        {"machine": {"precision": "float32", "recompute": True}},
        {"machine": {"precision": "float32"}, "model": {"drop_path": 0.5, "ffn": "swiglu"}},
    ],
    ids=["float32", "bf16", "recompute", "drop path"],
)
@pytest.mark.parametrize("name", ["adapt", "gram"])
def test_a_computed_peak_is_what_a_real_step_allocates(name: str, more: dict) -> None:
    """Within two in a hundred of the allocator's own peak on a CPU, without any tensor having been there.

    In bf16 within four: operations that mix precisions (RoPE) copy one side within themselves on a CPU.
    """
    config = config_of(**more)
    of = checks.stage(config, name)
    found = peak_memory.computed(config, of, 12, masked=0.2, side=64, gpu=False)
    passing = found.peak - found.networks - found.moments - found.inputs
    near = 0.02 if config.machine.precision == "float32" else 0.04
    assert passing == pytest.approx(allocated(config, of, 12, 0.2), rel=near)


@pytest.mark.parametrize("recipe", ["real_mri_small", "mm_dinov2_vitb14"])
def test_several_sequences_and_classes_that_are_prototypes_can_be_planned(recipe: str) -> None:
    """Neither data nor labels are there to ask: more images take more memory all the same."""
    file = Path(build.__file__).parent / "configs" / f"{recipe}.yaml"
    small = ["data.root=x", "model.embed_dim=32", "model.num_heads=2", "model.depth=2"]
    config = load(file, small)
    two, four = (peak_memory.computed(config, checks.stage(config, "adapt"), images).peak for images in (2, 4))
    assert 0 < two < four


def test_activation_checkpointing_and_parts_take_less() -> None:
    """Both keep fewer activations and lower the peak; networks and moments stay what they are."""
    plain = peak_memory.computed(config_of(), checks.stage(config_of(), "gram"), 12)
    again = peak_memory.computed(config_of(machine={"recompute": True}), checks.stage(config_of(), "gram"), 12)
    divided = peak_memory.computed(config_of(machine={"accumulate": 3}), checks.stage(config_of(), "gram"), 12)
    for less in (again, divided):
        assert less.activations < 0.6 * plain.activations and less.peak < plain.peak
        assert (less.networks, less.moments) == (plain.networks, plain.moments)


def test_weights_and_moments_are_the_models() -> None:
    """Three networks where there is a Gram teacher, two moments of the student, all float32."""
    config = config_of()
    model = build.networks(config)[0]
    size = 4 * sum(each.numel() for each in model.state_dict().values())
    backbone = 4 * sum(each.numel() for each in model.backbone.state_dict().values())
    found = peak_memory.computed(config, checks.stage(config, "gram"), 2)
    assert found.networks == 2 * size + backbone and found.moments == 2 * size
    assert found.rest > 0


def test_the_largest_batch_fits_and_the_next_one_does_not() -> None:
    """By the peaks themselves, for two sizes of GPU; no image fits a GPU smaller than the networks."""
    config = config_of()
    of = checks.stage(config, "adapt")
    known = peak_memory.computed(config, of, 8)
    sizes = [1.9 * known.peak / 2**30, 4.0 * known.peak / 2**30, known.networks / 2**30]
    most = peak_memory.largest(config, of, known, sizes)
    for images, size in zip(most[:2], sizes):
        assert peak_memory.computed(config, of, images).peak <= peak_memory.room(size)
        assert peak_memory.computed(config, of, images + 1).peak > peak_memory.room(size)
    assert most[2] == 0 and most[1] > most[0] > 8


def test_the_stages_rows_have_their_largest_crops() -> None:
    """Where sizes are mixed, the drawn pair with most pixels, in as many micro-batches as it has more pixels."""
    config = config_of()
    pairs = [{"ratio": 1.0, "global_size": 48, "local_size": 24}, {"ratio": 1.0, "global_size": 96, "local_size": 48}]
    config = replace(config, stages={"adapt": {"steps": 50, "crops": {"local_number": 3, "mixture": pairs}}})
    (row,) = peak_memory.variants(config)
    whole = checks.stage(config, "adapt").crops
    pixels = [2 * large**2 + 3 * small**2 for large, small in ((whole.global_size, whole.local_size), (96, 48))]
    assert row[1].crops.global_size == 96 and row[2] == math.ceil(pixels[1] / pixels[0])


def test_the_table_has_every_stage_twice(tmp_path, capsys: pytest.CaptureFixture) -> None:
    """Without and with activation checkpointing, its parts add up to the peak, nothing is said to be measured."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "name: tiny\nmodel: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}\n"
        "dino_head: {prototypes: 64}\nibot_head: {prototypes: 64}\n"
        "stages: {adapt: {steps: 1, crops: {global_size: 32, local_size: 16, local_number: 2}}}\n"
    )
    memory_sizes, memory.GPUS = memory.GPUS, (0.5,)
    try:
        assert memory.main(["--config", str(path), "--device", "cpu"]) == 0
    finally:
        memory.GPUS = memory_sizes
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny adapt")]
    peaks, fits = rows[:2], rows[2:]
    assert len(rows) == 4 and "recompute" in peaks[1][0]
    for row in peaks:
        assert sum(map(float, row[4:10])) == pytest.approx(float(row[10]), abs=0.31)
        assert row[11].strip() == "not measured"
    assert int(fits[1][2]) >= int(fits[0][2]) > 0
    assert memory.main(["--config", "nowhere.yaml"]) == 1
