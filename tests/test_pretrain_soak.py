"""A long run: as fast at its end as at its beginning, in the same memory."""

from __future__ import annotations

import statistics
from pathlib import Path

import psutil
import pytest
from helpers.tiny_run import CONFIG

from pretrain import train
from pretrain.runtime import metrics

STEPS, WARM, WINDOW = 2000, 100, 100


@pytest.mark.stress
def test_two_thousand_steps_neither_slow_down_nor_grow(tiny_dataset, tmp_path: Path, monkeypatch) -> None:
    """Median images a second of the last hundred steps within 5 % of the first hundred after warm-up; no memory more.

    A checkpoint every 500 steps; the memory is the process's own, looked at in every step.
    """
    (tmp_path / "c.yaml").write_text(CONFIG)
    process, held, write = psutil.Process(), [], metrics.Metrics.write

    def looked(self, row: dict) -> None:
        held.append(process.memory_info().rss)
        write(self, row)

    monkeypatch.setattr(metrics.Metrics, "write", looked)
    words = [f"output={tmp_path}", f"data.root={tiny_dataset()}", f"stages.adapt.steps={STEPS}", "save.every=500"]
    assert train.main(["--config", str(tmp_path / "c.yaml"), "--stage", "adapt", *words]) == 0
    speed = [row["images_per_s"] for row in metrics.read(tmp_path / "tiny" / "adapt" / "metrics.jsonl")]
    first, last = (statistics.median(part) for part in (speed[WARM : WARM + WINDOW], speed[-WINDOW:]))
    grown = max(held[-WINDOW:]) - max(held[: STEPS // 2])
    memory = f"{grown / 1e6:+.1f} MB of {held[-1] / 1e6:.0f} in the second half"
    print(f"{first:.1f} images/s at first, {last:.1f} at last; {memory}")
    assert last > 0.95 * first and grown < 16e6
