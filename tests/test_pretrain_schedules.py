"""Schedules, parameter groups and the moving average against the references and by their properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pretrain import build, ema, optim
from pretrain.config import GramConfig
from pretrain.schedules import warmup_cosine
from pretrain.vit import VisionTransformer


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


def test_parameter_groups_are_the_references(golden_dir: Path) -> None:
    """Learning-rate and weight-decay multipliers of every parameter to 1e-9."""
    case = json.loads((golden_dir / "dinov3_param_groups.json").read_text())
    model = VisionTransformer(in_channels=3, embed_dim=96, depth=3, num_heads=3, mask_k_bias=True)
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
    ema.update(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.detach(), expected, rtol=1e-6, atol=1e-7)


def test_a_gram_teacher_is_refreshed_as_often_as_it_may() -> None:
    """Every n steps, at most so many times; never where n is 0."""
    times = [done for done in range(1, 21) if build.refreshes(GramConfig(refresh_every=4, refresh_most=3), done)]
    assert times == [4, 8, 12]
    assert [done for done in range(1, 9) if build.refreshes(GramConfig(refresh_every=4), done)] == [4, 8]
    assert not any(build.refreshes(GramConfig(), done) for done in range(20))
