"""Signs of collapse: measured rightly, told once, with their likely cause."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch

from meddap import console
from pretrain.objective.monitors import collapse_signs
from pretrain.objective.sinkhorn import SoftTargets
from pretrain.runtime.metrics import CollapseMonitor, Metrics


def monitors(features: torch.Tensor, targets: torch.Tensor | None = None) -> dict[str, float]:
    """Of (B, D) features and (M, K) targets, taken again and again until there are as many."""
    if targets is None:
        targets = torch.full((8, 16), 1 / 16)
    logits = targets.log()[None, torch.arange(len(features)) % len(targets)]
    assigned = SoftTargets(logits, temperature=1.0, scaling=torch.zeros(logits.shape[-1]))
    found = collapse_signs([assigned], features, [len(features)])
    return {name.removeprefix("monitor/"): float(value) for name, value in found.items()}


def test_rank_and_spread_tell_collapse_from_health() -> None:
    """Isotropic features are near 1, one direction is one of them, a constant is none; scale does not matter."""
    torch.manual_seed(0)
    healthy = torch.randn(2000, 16)
    assert monitors(healthy)["feature_rank"] > 0.95 and monitors(7 * healthy)["feature_rank"] > 0.95
    assert monitors(torch.randn(2000, 1) * torch.randn(1, 16))["feature_rank"] == pytest.approx(1 / 16, rel=1e-3)
    plane = torch.randn(2000, 2) @ torch.linalg.qr(torch.randn(16, 2)).Q.T
    assert monitors(plane)["feature_rank"] == pytest.approx(2 / 16, rel=0.05)
    constant = monitors(torch.ones(50, 16))
    assert constant["feature_spread"] == 0 and constant["feature_rank"] == 0
    assert monitors(healthy)["feature_spread"] > 0.9
    assert (
        monitors(healthy)["target_entropy"] == pytest.approx(1)
        and monitors(healthy, torch.eye(16))["target_entropy"] == 0
    )


@pytest.mark.parametrize(
    ("name", "bad", "good", "cause"),
    [
        ("target_entropy", 0.999, 0.9, "the head has not left its start"),
        ("feature_spread", 0.01, 0.8, "collapsed"),
        ("feature_rank", 0.001, 0.3, "a few directions"),
    ],
)
def test_a_sign_that_stays_is_told_once(name: str, bad: float, good: float, cause: str) -> None:
    """Not at once, not when it comes and goes, once when it holds for 200 steps."""
    monitor, told = CollapseMonitor(), []
    for step in range(1000):
        value = good if step < 300 and step % 150 == 149 else bad
        told += monitor.update({"step": step, f"monitor/{name}": value})
    assert len(told) == 1 and cause in told[0] and told[0].startswith("step 499: ")
    healthy = CollapseMonitor()
    assert not any(healthy.update({"step": step, f"monitor/{name}": good}) for step in range(1000))


def test_a_source_whose_images_are_all_alike_is_named_once() -> None:
    """Its own spread tells, while that of the whole batch is healthy; steps in which it has too few do not count."""
    monitor, told = CollapseMonitor(), []
    for step in range(500):
        row = {"step": step, "monitor/feature_spread": 0.8, "source/good/cls_spread": 0.7}
        told += monitor.update(row | ({"source/bad/cls_spread": 0.01} if step % 2 else {}))
    assert len(told) == 1 and told[0].startswith("step 399: source/bad/cls_spread 0.010: all images of this source")


def test_a_rate_of_zero_that_stays_is_reported_once() -> None:
    """After 100 steps of it, not at a warm-up's first step and not while it is small."""
    monitor, lines = CollapseMonitor(), []
    for step in range(500):
        rate = 0.0 if step % 99 == 0 or step >= 300 else 1e-9
        lines += monitor.update({"step": step, "lr": rate})
    assert len(lines) == 1 and lines[0].startswith("step 399: lr 0.000: the learning rate is 0")


class Terminal(io.StringIO):
    """What a terminal is sent."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_warning_does_not_tear_the_line_of_a_step(stream: type, tmp_path: Path, monkeypatch) -> None:
    """On a terminal one line moves, and a warning stands above it; in a log there is a line every so often."""
    monkeypatch.setattr(sys, "stderr", stream())
    settings = {"stage": "adapt", "start": 0, "steps": 10, "log_every": 4, "tensorboard": False}
    written = Metrics(tmp_path, **settings)
    for step in range(10):
        written.write({"step": step, "loss/total": 1.0, "lr": 1e-3, "images_per_s": 2.0, "wait_share": 0.0})
        if step == 4:
            console.say("warning: something")
    written.close()
    sent = sys.stderr.getvalue()
    assert "warning: something" in [line.rpartition("\r")[2] for line in sent.split("\n")]
    shown = [step + 1 for step in range(10) if f"adapt {step + 1}/10" in sent]
    assert shown == (list(range(1, 11)) if stream is Terminal else [1, 4, 8, 10])
    assert sent.count("\n") == (2 if stream is Terminal else 5)
