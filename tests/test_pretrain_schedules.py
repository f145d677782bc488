"""Schedules, parameter groups and the moving average against the references and by their properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from meddap.settings import SettingsError
from pretrain import build, checks, optim
from pretrain.config import Config, GramConfig, ScheduleConfig
from pretrain.model.vit import VisionTransformer
from pretrain.schedules import described, warmup_cosine


def test_schedules_are_the_references(golden_dir: Path) -> None:
    """Every value of every schedule to 1e-12."""
    for case in json.loads((golden_dir / "dinov3_schedules.json").read_text()):
        args = case["args"]
        found = warmup_cosine(
            start=args["start"],
            peak=args["peak"],
            end=args["end"],
            warmup_steps=args["warmup_iterations"],
            total_steps=args["total_iterations"],
            cosine_steps=args.get("cosine_iterations"),
        )
        np.testing.assert_allclose(found, case["values"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "stage", "key", "why"),
    [
        (10, {"optim": {"lr": {"peak": 1e-3, "warmup_steps": 30000}}}, "lr.warmup_steps=30000", "has 10 steps"),
        (10, {"optim": {"lr": {"peak": 1e-3, "warmup_steps": 10}}}, "lr.warmup_steps=10", "the peak is never reached"),
        (1, {"optim": {"teacher_temp": {"warmup_steps": 1}}}, "teacher_temp.warmup_steps=1", "has 1 step,"),
        (10, {"optim": {"lr": {"peak": 1e-3, "warmup_steps": -1}}}, "lr.warmup_steps=-1", "give 0 or more"),
        (10, {"optim": {"lr": {"start": 0.0, "peak": 1e-3}}}, "lr.start=0.0", "set warmup_steps, or leave start out"),
        (10, {"optim": {"lr": {"peak": 0.0, "end": 1e-3, "cosine_steps": 11}}}, "lr.cosine_steps=11", "give 2 to 10"),
        (
            10,
            {"optim": {"lr": {"peak": 1e-3, "end": 0.0, "warmup_steps": 4, "cosine_steps": 7}}},
            "lr.cosine_steps=7",
            "after 4 of warm-up; give 2 to 6",
        ),
        (10, {"optim": {"lr": {"peak": 1e-3, "cosine_steps": 4}}}, "lr.cosine_steps=4", "there is no end"),
        (3, {"optim": {"lr": {"peak": 1e-3, "end": 0.0, "warmup_steps": 2}}}, "lr.end=0.0", "the end is never reached"),
        (10, {"optim": {"lr": {"peak": 0.0}}}, "lr.peak=0", "the student would learn nothing"),
        (10, {"optim": {"lr": {"start": 0.0, "peak": 0.0, "warmup_steps": 5}}}, "lr.peak=0", "0 in every one of 10"),
        (10, {"optim": {"lr": {"peak": -1e-3}}}, "lr=-0.001", "0 or more"),
        (10, {"optim": {"teacher_momentum": {"peak": 1.0}}}, "teacher_momentum.peak=1", "would stay as it is"),
        (10, {"optim": {"teacher_momentum": {"peak": 0.9, "end": 1.5}}}, "teacher_momentum=1.5", "0 to 1"),
        (10, {"optim": {"teacher_temp": {"peak": 0.0}}}, "teacher_temp=0", "1e-06 or more"),
        (10, {"optim": {"freeze_last_layer_steps": 10}}, "freeze_last_layer_steps=10", "the prototypes would never"),
        (10, {"optim": {"freeze_backbone_steps": 12}}, "freeze_backbone_steps=12", "the backbone would never learn"),
        (10, {"gram": {"refresh_every": 20}}, "gram.refresh_every=20", "would never be refreshed"),
        (10, {"gram": {"refresh_most": 2}}, "gram.refresh_most=2", "set that, or leave this out"),
        (10, {"gram": {"teacher_from": "first", "weight": {"warmup_steps": 10}}}, "gram.weight.warmup_steps=10", "10"),
        (0, {}, "steps=0", "give 1 or more"),
    ],
)
def test_what_would_have_no_effect_in_a_stage_is_refused(steps: int, stage: dict, key: str, why: str) -> None:
    """Key, value and remedy in one line, for a stage's own numbers and for those that it inherits."""
    first = {"steps": 50}
    inherited = Config(stage_defaults=stage, stages={"first": first, "later": {"steps": steps}})
    named = Config(stages={"first": first, "later": {"steps": steps, **stage}})
    for config in (inherited, named):
        with pytest.raises(SettingsError) as caught:
            checks.stage(config, "later")
        message = str(caught.value)
        assert message.startswith("stages.later.") and f"{key}:" in message and why in message and "\n" not in message


def test_all_that_has_no_effect_is_named_at_once() -> None:
    """Who shortens a recipe sees in one line which other numbers to shorten with it."""
    schedule = {"peak": 0.07, "warmup_steps": 30}
    late = {"lr": schedule, "teacher_temp": schedule, "freeze_last_layer_steps": 12}
    with pytest.raises(SettingsError) as caught:
        checks.stage(Config(stages={"only": {"steps": 10, "optim": late}}), "only")
    expected = "(and correct optim.teacher_temp.warmup_steps=30, optim.freeze_last_layer_steps=12)"
    assert str(caught.value).startswith("stages.only.optim.lr.warmup_steps=30: ") and expected in str(caught.value)


def test_a_stage_that_names_a_peak_alone_has_it_in_every_step() -> None:
    """There is no warm-up, freeze or fall that nobody named: defaults are constant."""
    values = build.schedules(checks.stage(Config(stages={"only": {"steps": 7}}), "only"))
    for name, peak in (("lr", 2e-4), ("weight_decay", 0.04), ("teacher_momentum", 0.994), ("teacher_temp", 0.07)):
        assert (values[name] == peak).all() and len(values[name]) == 7
    assert checks.stage(Config(stages={"only": {"steps": 7}}), "only").optim.freeze_last_layer_steps == 0


@pytest.mark.parametrize(
    ("schedule", "steps", "said"),
    [
        ({"peak": 2e-4, "warmup_steps": 30}, 100, "0 → 0.0002 at step 30"),
        ({"peak": 5.657e-3, "end": 1e-6, "warmup_steps": 12}, 120, "0 → 0.00566 at step 12 → 1e-06"),
        ({"peak": 0.0, "end": 7e-5, "cosine_steps": 10}, 30, "0 → 7e-05 at step 9"),
        ({"peak": 0.992, "end": 1.0}, 30, "0.992 → 1"),
        ({"peak": 0.04}, 30, "0.04"),
    ],
)
def test_a_schedule_is_described_by_its_first_highest_and_last_value(schedule: dict, steps: int, said: str) -> None:
    """In the line that every stage logs when it starts."""
    assert described({"lr": ScheduleConfig(**schedule).values(steps)}) == f"lr {said}"


def test_parameter_groups_are_the_references(golden_dir: Path) -> None:
    """Learning-rate and weight-decay multipliers of every parameter to 1e-9."""
    case = json.loads((golden_dir / "dinov3_param_groups.json").read_text())
    model = VisionTransformer(channels=3, embed_dim=96, depth=3, num_heads=3, mask_k_bias=True)
    groups = optim.build_groups(model.named_parameters(), 3, case["lr_decay_rate"], case["patch_embed_lr_mult"])
    found = {name: group for group in groups for name in group["names"]}
    assert set(found) == {row["name"] for row in case["groups"]}
    for row in case["groups"]:
        for factor in ("lr_multiplier", "wd_multiplier"):
            assert abs(found[row["name"]][factor] - row[factor]) < 1e-9, (row["name"], factor)
        assert found[row["name"]]["is_last_layer"] == row["is_last_layer"]


def test_a_frozen_last_layer_does_not_move() -> None:
    """While it is frozen, neither gradient nor weight decay changes the prototypes; the rest learns."""
    model = nn.ModuleDict({"last_layer": nn.Linear(4, 4, bias=False), "mlp": nn.Linear(4, 4)})
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = optim.adamw(optim.build_groups(model.named_parameters(), 1, 0.9, 0.2), (0.9, 0.999))
    optim.set_step(optimizer, lr=0.1, weight_decay=0.1, freeze_last_layer=True)
    sum(part(torch.ones(2, 4)).square().sum() for part in model.values()).backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert torch.equal(after["last_layer.weight"], before["last_layer.weight"])
    assert not torch.equal(after["mlp.weight"], before["mlp.weight"])


def test_the_teacher_follows_the_student() -> None:
    """momentum · teacher + (1 − momentum) · student, to the last digit that float32 has."""
    teacher, student = nn.Linear(5, 5), nn.Linear(5, 5)
    expected = 0.9 * teacher.weight.detach() + 0.1 * student.weight.detach()
    optim.update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.detach(), expected, rtol=1e-6, atol=1e-7)


def test_a_gram_teacher_is_refreshed_as_often_as_it_may() -> None:
    """Every n steps, at most so many times; never where n is 0."""
    times = [done for done in range(1, 21) if GramConfig(refresh_every=4, refresh_most=3).refreshes_after(done)]
    assert times == [4, 8, 12]
    assert [done for done in range(1, 9) if GramConfig(refresh_every=4).refreshes_after(done)] == [4, 8]
    assert not any(GramConfig().refreshes_after(done) for done in range(20))
