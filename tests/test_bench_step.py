"""The plain step gives the losses of ours, so that their times compare; the command measures what it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks import step as bench

TASK = bench.Task("s", (32, 16), batch=3, prototypes=64, drop_path=0.0, depth=2)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_the_plain_step_is_the_same_step(drop_path: float) -> None:
    """Every loss of three steps, each with the update of the one before: float32, drop path or none."""
    config = bench.Task("s", (32, 16), batch=3, prototypes=64, drop_path=drop_path, depth=3).config
    inputs = bench.inputs_of(config, 3)
    one, other = bench.ours(config, inputs, "float32", compiled=False), bench.plain(config, inputs, "float32")
    found = []
    for _ in range(3):
        mine, theirs = one(), other()
        found.append(float(mine["total"]))
        assert set(theirs) <= set(mine)
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=2e-4, atol=2e-4, msg=f"{name} differs")
    assert abs(found[2] - found[0]) > 0.01  # the updates change something


def test_ways_take_turns_in_processes_of_their_own() -> None:
    """A step of each in every round, warm-up left out of the seconds; their losses agree; a row for each."""
    ways = [way for way in bench.WAYS if way.name in ("plain, float32", "ours, float32")]
    taken, rates = bench.measure(TASK, ways, rounds=2, warmup=1)
    assert [len(each.seconds) for each in taken.values()] == [2, 2] and min(rates.values()) > 0
    for losses in zip(*(each.losses for each in taken.values())):
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    written = bench.table(TASK, taken, rates)
    assert "ViT-S/16, crops 32/16, batch 3, 64 prototypes" in written and "| plain, float32 |" in written
    assert "| 1.00 |" in written
