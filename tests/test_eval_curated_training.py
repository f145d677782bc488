"""From shards with copies and uneven makers to a training that draws by the weights, through the commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.anatomy import body, copied
from helpers.tiny_run import CONFIG, rows
from helpers.tiny_run import weights as parameters

from benchmarks import duplicates as bench
from data_prep import schema
from eval import curate
from pretrain import train
from pretrain.data import order, stream
from pretrain.runtime import metrics

STEPS, BATCH = 40, 8
SMALL = (
    *(
        "stage_defaults.crops.global_size=16",
        "stage_defaults.crops.local_size=8",
        "stage_defaults.crops.local_number=1",
    ),
    *(f"stages.adapt.steps={STEPS}", "save.every=15", "stage_defaults.augment.window_shift=0"),
)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Eight patients of maker A and two of B with five slices each; patient 90 has all slices of patient 0 again."""
    slices = [body(who, number, 48, manufacturer="A" if who < 8 else "B") for who in range(10) for number in range(5)]
    slices += [copied(each, 90) for each in slices[:5]]
    return bench.write(tmp_path / "shards", {"train": slices})


def start(root: Path, folder: Path, name: str, *words: str) -> int:
    (folder / "c.yaml").write_text(CONFIG)
    own = [f"name={name}", f"data.sources.trunk.root={root}", "data.sources.trunk.sampling=curated"]
    return train.main(
        ["--config", str(folder / "c.yaml"), "--stage", "adapt", f"output={folder}", *own, *SMALL, *words]
    )


def test_a_training_sees_slices_as_often_as_curate_says(shards, tmp_path: Path, monkeypatch, capsys) -> None:
    """Counts of a run: each slice within sampling error, makers evenly, copies as one; killed, the run is the same; for
    shards that changed since, the weights are refused in one line."""
    words = ["--data", str(shards), "--output", str(tmp_path / "out"), "balance.manufacturer=1"]
    assert curate.main(words) == 0
    split = schema.Split(shards, "train")
    wanted = schema.read_weights(split, "curated").astype(np.float64)
    seen = np.zeros(len(split), int)
    batches = stream.batches

    def counted(*given, **named):
        for batch in batches(*given, **named):
            np.add.at(seen, order.number_of(batch.sample.numpy()), 1)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(stream, "batches", counted)
        assert start(shards, tmp_path, "whole") == 0
    assert seen.sum() == STEPS * BATCH
    epochs = seen.sum() / len(split)
    assert np.abs(seen - epochs * wanted).max() < 4 * 0.5 * epochs**0.5  # an epoch rounds each weight up or down
    maker = np.array([split[number].meta["manufacturer"] for number in range(len(split))])
    assert seen[maker == "B"].sum() / seen.sum() == pytest.approx(0.5, abs=0.03)
    first, again = (split.index["subject"] == schema.short_hash(body(who, 0).subject) for who in (0, 90))
    single = seen[(maker == "A") & ~first & ~again].sum() / 7
    assert seen[first].sum() + seen[again].sum() == pytest.approx(single, rel=0.3) and seen[again].sum() > 0

    write = metrics.Metrics.write

    def dying(self, row: dict) -> None:
        write(self, row)
        if row["step"] == STEPS - 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metrics.Metrics, "write", dying)
        start(shards, tmp_path, "killed")
    assert start(shards, tmp_path, "killed") == 0
    ours, theirs = (tmp_path / name / "adapt" for name in ("whole", "killed"))
    assert rows(ours) == rows(theirs)
    one, other = (parameters(folder / f"{STEPS:08d}") for folder in (ours, theirs))
    assert all(np.array_equal(one[key], other[key]) for key in one)

    changed = bench.write(
        tmp_path / "more", {"train": [body(who, number, 48) for who in range(4) for number in range(5)]}
    )
    for path in schema.weights_of(shards, "curated"):
        (changed / path.name).write_bytes(path.read_bytes())
    capsys.readouterr()
    assert start(changed, tmp_path, "stale") == 1
    said = capsys.readouterr().err.splitlines()
    assert "curated.weights.json: digest" in said[-1] and "make the weights again, or leave them out" in said[-1]
