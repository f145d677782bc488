"""Millions of slices: an index opens quickly and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from data_prep import schema

SHARDS, PER_SHARD = 2000, 2500
MEASURED = """
import json, re, sys, time
from data_prep.schema import Split
from pretrain.data.order import epoch_order
began = time.process_time()
split = Split(sys.argv[1], "train")
opened = time.process_time()
order = epoch_order(len(split), seed=0, epoch=3)
done = time.process_time()
at = [int(split.shard[place]) for place in (0, 2499, 2500, 4_999_999)]
print(json.dumps({
    "samples": len(split), "open_s": opened - began, "order_s": done - opened, "at": at,
    "permutation": bool(order.min() == 0 and order.max() == len(split) - 1),
    "last": int(split.index[-1]["order"]),
    # of this program alone: ru_maxrss begins at what the parent held
    "peak_mb": int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000,
}))
"""


def test_five_million_samples_open_in_two_seconds_and_500_mb(tmp_path: Path) -> None:
    """2,000 shards of 2,500 samples, opened as training does; the epoch's order is a permutation of all. Seconds are
    those of the processor: other work on the machine does not count."""
    (tmp_path / "train").mkdir()
    rows = np.zeros(PER_SHARD, schema.INDEX_DTYPE)
    shards = []
    for number in range(SHARDS):
        name = f"train/{number:06d}.tar"
        rows["order"] = np.arange(PER_SHARD) + number
        np.save(schema.index_of(tmp_path / name), rows)
        sums = dict.fromkeys(("sha256", "index_sha256"), "0" * 64)
        shards.append({"name": name, "samples": PER_SHARD, "bytes": 10**9, **sums})
    splits = {"train": {"shards": shards, "samples": SHARDS * PER_SHARD, "series": 1, "subjects": 1}}
    described = {"schema": schema.VERSION, "digest": schema.dataset_digest(splits), "splits": splits}
    described |= {"statistics": {}, "labels": {}, "classes": {}, "made_with": {}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    done = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["samples"] == 5_000_000 and found["permutation"] and found["at"] == [0, 0, 1, 1999]
    assert found["last"] == PER_SHARD - 1 + SHARDS - 1
    assert found["open_s"] < 2 and found["order_s"] < 2 and found["peak_mb"] < 500, found
