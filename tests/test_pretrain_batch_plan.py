"""Stages of mixed crop sizes: drawn by ratio, one batch for all, memory bounded, stopped and resumed the same."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_run import CONFIG, rows, stop_after_every_step, weights

from data_prep.schema import Split
from meddap.settings import SettingsError
from pretrain import build, checks, train
from pretrain.config import CropsConfig, PairConfig, StageConfig, load
from pretrain.data import batch_plan, order, randomness, stream
from pretrain.data.order import Chain
from pretrain.model.tokens import Crops
from pretrain.model.vit import VisionTransformer

PAIRS = [PairConfig(3.0, 32, 16), PairConfig(1.0, 64, 16, 96), PairConfig(1.0, 96, 32)]
MIXED = CONFIG.replace(
    "  second: {steps: 3, optim: {lr: {peak: 1.0e-4}}}\n",
    """  fine:
    steps: 9
    crops:
      mixture:
      - {ratio: 2, global_size: 32, local_size: 16, gram_size: 48}
      - {ratio: 1, global_size: 48, local_size: 24, gram_size: 64}
      - {ratio: 1, global_size: 64, local_size: 32, gram_size: 64}
    gram: {teacher_from: adapt}
""",
).replace("drop_path: 0.1}", "drop_path: 0.1, rope_rescale: 2.0}")


@pytest.fixture
def run(tiny_dataset, tmp_path: Path):
    """run(name, *words) trains a stage and one of mixed sizes; returns the exit status."""
    data, config = tiny_dataset(), tmp_path / "mixed.yaml"
    config.write_text(MIXED)

    def start(name: str, *words: str) -> int:
        return train.main(["--config", str(config), f"name={name}", f"output={tmp_path}", f"data.root={data}", *words])

    return start


def stage(steps: int, batch: int = 64) -> StageConfig:
    """A stage of mixed sizes, measured by crops of 32 and 16 pixels."""
    return StageConfig(
        steps=steps, batch_size=batch, crops=CropsConfig(global_size=32, local_size=16, local_number=4, mixture=PAIRS)
    )


def test_pairs_are_drawn_by_their_ratio_and_all_have_the_batch() -> None:
    """3 : 1 : 1 over many steps; every step has batch_size images, whatever its sizes."""
    plan = build.batch_plan(stage(20_000), seed=5)
    shares = np.bincount(plan.choice) / 20_000
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.015)
    assert [variant.gram.size for variant in build.crop_variants(stage(1))] == [512, 96, 512]
    assert set(plan.sizes) == {64} and plan.starts.tolist() == [64 * number for number in range(20_001)]


@pytest.mark.parametrize(("batch", "count", "processes"), [(64, 1, 1), (64, 3, 1), (61, 2, 4), (9, 2, 4)])
def test_more_pixels_take_more_parts_and_no_more_memory(batch: int, count: int, processes: int) -> None:
    """Pixels of a micro-batch on a process exceed those of the plain stage's by less than one image's.

    Where a process has too few images for that, micro-batches have one, or two on a process that has one image more.
    """
    plan = build.batch_plan(stage(1, batch), seed=0)
    plain = max(map(max, batch_plan.plan_micro_batches(batch, count, [Fraction(1)], None, "adapt", processes)[0]))
    pixels = [
        2 * each.crops.global_size**2 + 4 * each.crops.local_size**2 for each in build.crop_variants(stage(1, batch))
    ]
    own = 2 * 32**2 + 4 * 16**2
    for number, found in enumerate(batch_plan.plan_micro_batches(batch, count, plan.scales, None, "adapt", processes)):
        most, wanted = max(map(max, found)), -(-count * pixels[number] // own)
        assert pixels[number] == plan.scales[number] * own and sum(map(sum, found)) == batch
        assert len(found) == min(wanted, batch // processes)
        if len(found) == wanted:
            assert most * pixels[number] < plain * own + pixels[number]
        else:
            assert most == 1 + bool(batch % processes)


def test_a_plan_is_a_function_of_the_seed_and_its_start_does_not_depend_on_the_end() -> None:
    """The same seed gives the same draws, also for a stage that is made longer; another seed gives others."""
    one, longer, other = build.batch_plan(stage(50), 1), build.batch_plan(stage(80), 1), build.batch_plan(stage(50), 2)
    assert np.array_equal(one.choice, longer.choice[:50]) and not np.array_equal(one.choice, other.choice)
    alone = StageConfig(steps=7, batch_size=12)
    plain = build.batch_plan(alone, 0)
    assert plain.sizes.tolist() == [12] * 7 and len(build.crop_variants(alone)) == len(plain.scales) == 1


def test_batches_of_any_size_follow_the_chain_without_a_gap(tiny_dataset) -> None:
    """Every sample once an epoch, whatever the sizes; taken up at any step; the last batch is the last."""
    split = Split(tiny_dataset(), "train")
    sizes = [5, 3, 8, 1, 7, 4, 6, 2]
    found = [batch.sample.tolist() for batch in stream.batches(split, batch_size=sizes, seed=3)]
    assert [len(each) for each in found] == sizes
    chain = Chain(len(split), 3)
    assert sum(found, []) == chain.positions(0, sum(sizes))[0].tolist()
    assert sorted(sum(found, [])[: len(split)]) == list(range(len(split)))
    later = [batch.sample.tolist() for batch in stream.batches(split, batch_size=sizes, seed=3, start=5)]
    assert later == found[5:]
    halves = [list(stream.batches(split, batch_size=[4, 8, 2], seed=3, rank=rank, world=2)) for rank in (0, 1)]
    whole = list(stream.batches(split, batch_size=[4, 8, 2], seed=3))
    for one, other, together in zip(*halves, whole):
        assert torch.equal(torch.cat([one.sample, other.sample]), together.sample)


def test_a_mixed_stage_runs_and_resumes_to_the_same_bits(run, tmp_path: Path, monkeypatch) -> None:
    """All sizes are met, KoLeo among all images; a run that dies after every step ends as one that does not."""
    assert run("whole") == 0
    found = rows(tmp_path / "whole" / "fine")
    assert {row["crop"] for row in found} == {32, 48, 64} and {row["batch"] for row in found} == {8}
    assert stop_after_every_step(lambda: run("stopped"), monkeypatch) == 17
    assert rows(tmp_path / "stopped" / "fine") == found
    ours, theirs = (weights(tmp_path / name / "fine" / "00000009") for name in ("whole", "stopped"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("{ratio: 0, global_size: 32, local_size: 16}", "crops.mixture[0].ratio=0.0: expected above 0"),
        ("{global_size: 30, local_size: 16}", "crops.mixture[0].global_size=30: not a multiple"),
        ("{global_size: 32, local_size: 16, gram_size: 33}", "crops.mixture[0].gram_size=33: not a multiple"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(pair: str, expected: str, tmp_path: Path) -> None:
    """Before anything runs, by its place in the list."""
    (tmp_path / "c.yaml").write_text(
        f"{CONFIG}data: {{root: x}}\n".replace(
            "adapt: {steps: 8}", f"adapt: {{steps: 8, crops: {{mixture: [{pair}]}}}}"
        )
    )
    with pytest.raises(SettingsError, match="stages.adapt") as caught:
        checks.stage(load(tmp_path / "c.yaml"), "adapt")
    assert expected in str(caught.value)


@pytest.mark.parametrize("path", sorted((Path(train.__file__).parent / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_that_is_handed_out_builds(path: Path) -> None:
    """All its stages are valid, their plans and schedules have every step, the model can be made (without memory)."""
    config = load(path, [] if "sources:" in path.read_text() else ["data.root=SHARDS"])
    prototypes = config.classifier == "prototypes"
    with torch.device("meta"):
        student, teacher = build.networks(config, {"grade": ["2", "3", "4"]} if prototypes else {})
    assert sum(parameter.numel() for parameter in student.parameters()) > 1e5
    assert student.state_dict().keys() == teacher.state_dict().keys()
    for name in config.stages:
        each = checks.stage(config, name)
        plan = build.batch_plan(each, config.seed)
        assert len(plan.sizes) == each.steps and set(plan.sizes) == {each.batch_size}
        assert all(len(values) == each.steps for values in build.schedules(each).values())
        assert all(build.view_settings(variant, config.intensity) for variant in build.crop_variants(each))
        assert build.micro_batches(config, name, each, plan, 1)


def test_recomputed_activations_give_the_same_gradients_from_less_memory() -> None:
    """Drop path and RoPE's scale included: every gradient to the bit, a fraction of the bytes kept between."""
    torch.manual_seed(0)
    model = VisionTransformer(patch_size=8, embed_dim=64, depth=6, num_heads=2, drop_path=0.4, rope_rescale=2.0).train()
    model.init_weights(torch.Generator().manual_seed(0))
    image, draws, found, held = torch.randn(8, 1, 64, 64), torch.rand(6, 2, 8), {}, {}
    for again in (False, True):
        model.recompute, kept = again, []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            (features,) = model.packed([Crops(image, drop=draws, rope_scale=(1.3,))])
        model.zero_grad()
        (features.cls.square().sum() + features.patches.abs().sum()).backward()
        found[again] = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        held[again] = sum(kept)
    assert all(torch.equal(found[False][name], found[True][name]) for name in found[False])
    assert held[True] < 0.3 * held[False]


def test_rope_is_stretched_in_training_alone() -> None:
    """Coordinates by factors within their range, one for all blocks or one for each; in evaluation as without it."""
    torch.manual_seed(0)
    made = [VisionTransformer(patch_size=8, embed_dim=32, depth=2, num_heads=2, rope_rescale=r) for r in (2.0, None)]
    with torch.no_grad():
        for parameter in made[0].parameters():
            parameter.normal_(std=0.2)
    made[1].load_state_dict(made[0].state_dict())
    stretched, plain = made
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(stretched.eval()(image).patches, plain.eval()(image).patches)
    stretched.train()
    drawn = (1.5,), (1.5, 1.5), (1.5, 0.7)
    one, same, other = (stretched.packed([Crops(image, rope_scale=factors)])[0].patches for factors in drawn)
    assert torch.equal(one, same) and not torch.equal(one, other)
    for factors in (None, (1.5, 1.5, 1.5)):
        with pytest.raises(ValueError, match="needs 1 or 2 RoPE scales"):
            stretched.packed([Crops(image, rope_scale=factors)])
    where = dict(sample=torch.arange(3), epoch=torch.zeros(3, dtype=torch.int64), seed=0, crops=4, depth=2)
    for factors in (1, 3):
        how = dict(drop_path=0.0, rope_rescale=2.0, factors=factors)
        draws = [randomness.sample_draws(**where, step=step, **how).rope_scale for step in range(300)]
        flat = [each for pair in draws for size in pair for each in size]
        assert 0.5 <= min(flat) < 0.53 and 1.9 < max(flat) <= 2.0
        assert abs(np.log2(flat).mean()) < 0.08 and len(set(flat)) == 600 * factors


def test_shares_of_a_batch_are_even_and_complete() -> None:
    """Any batch over any number of ranks: contiguous, complete, at most one apart."""
    for size, world in ((8, 3), (512, 512), (10, 4)):
        parts = [order.rank_slice(size, rank, world) for rank in range(world)]
        assert parts[0].start == 0 and parts[-1].stop == size
        assert all(a.stop == b.start for a, b in pairwise(parts))
        assert {p.stop - p.start for p in parts} <= {size // world, size // world + 1}
