"""A label from every subset of the sequences: who counts, what is seen, and the pages that show it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import identity, write_dataset

from data_prep.schema import Slice
from eval import probe, report
from eval.probes.subsets import subsets
from eval.reporting import comparison, sequence_maps
from pretrain import train

ENCODER = '''
"""Brightness of each sequence, 0 where it is absent."""
import torch

class Brightness:
    source, digest, patch_size, embed_dim, depth, window = "brightness", "1", 4, 3, 1, (0.0, 1.0)
    sequences = ("t1", "t2", "flair")

    def prepare(self, images):
        return images

    def features(self, images, blocks, present=None):
        seen = images.mean(dim=(2, 3)) * present
        return [(seen, seen[:, None].expand(-1, 4, -1)) for _ in blocks]

def encoder():
    return Brightness()
'''
TASK = """
{kind: binary, level: volume, label: tumour, metrics: [brier, auroc, mcc, balanced_accuracy, f1], size: 8, draws: 100,
 stride: {train: 1, val: 1, test: 1}, probes: [subsets], logistic: {strengths: 5}}
"""


def brain_slice(rng: np.random.Generator, subject: int, order: int, size: int) -> Slice:
    """T2 is bright in tumours of class 1, T1 is noise; every third patient has FLAIR, which says the same as T2."""
    kind = int(hashlib.sha256(f"kind {subject}".encode()).hexdigest(), 16) % 2
    names = ("t1", "t2", "flair") if subject % 3 == 0 else ("t1", "t2")
    level = {"t1": rng.uniform(26000, 40000), "t2": 28000 + 9000 * kind, "flair": 28000 + 9000 * kind}
    planes = [level[name] + rng.normal(0, 800, (size, size)) for name in names]
    return Slice(
        pixels=np.stack(planes).astype(np.uint16),
        sequences=names,
        spacing=(1.0, 1.0),
        position=float(order),
        **identity(f"brain {subject}", order),
        box=(0, size, 0, size),
        labels={"tumour": kind},
        scales=((1.0, 0.0),) * len(names),
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 patients of three slices."""
    tumour = {"names": ["a", "b"]}
    tumour |= {unit: {"train": [45, 45], "val": [0, 0], "test": [0, 0]} for unit in ("samples", "patients")}
    more = {"classes": {"tumour": tumour}, "labels": {}, "sequences": {"t1": 60, "t2": 60, "flair": 20}}
    (tmp_path / "encoder.py").write_text(ENCODER)
    (tmp_path / "task.yaml").write_text(TASK)
    patients = {"train": 30, "val": 12, "test": 18}
    return write_dataset(tmp_path / "data", patients, slices=3, size=16, make=brain_slice, **more)


def probed(data: Path, output: Path, *words: str, checkpoint: str = "") -> list[dict]:
    """Run the command; its rows."""
    task = ["--task", str(data.parent / "task.yaml"), f"data={data}", *words]
    chosen = checkpoint or f"{data.parent / 'encoder.py'}:encoder"
    assert probe.main(["--checkpoint", chosen, "--output", str(output), *task]) == 0
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


def test_every_subset_is_tested_on_the_patients_who_have_it(data: Path, tmp_path: Path) -> None:
    """2^S − 1 subsets; those with the telling sequence score 1, others by chance; FLAIR's rest on a third of all."""
    rows = probed(data, tmp_path / "out")
    found = {(row["variant"]["sequences"], row["metric"]): row for row in rows if row["label"] in ("all", "macro")}
    names = {"t1", "t2", "flair", "t1+t2", "t1+flair", "t2+flair", "t1+t2+flair"}
    assert {name for name, _ in found} == names
    assert {metric for _, metric in found} == {"brier", "auroc", "mcc", "balanced_accuracy", "f1"}
    for name in names:
        row = found[name, "auroc"]
        assert row["patients"] == (6 if "flair" in name else 18)
        assert row["value"] == 1.0 if "t2" in name else True
    assert 0.2 < found["t1", "auroc"]["value"] < 0.8 and found["t1+t2", "mcc"]["value"] == 1.0
    assert found["t1", "auroc"]["low"] < found["t1", "auroc"]["high"]


def test_a_tenth_of_the_labels_is_a_tenth_of_the_patients(data: Path, tmp_path: Path) -> None:
    """labelled_share hides labels of training and validation patients, never of test patients."""
    few = probed(data, tmp_path / "few", "labelled_share=0.3")
    assert {row["patients"] for row in few} == {18, 6}
    assert few != probed(data, tmp_path / "all")


def test_a_label_that_is_not_there_is_refused(data: Path, tmp_path: Path, capsys) -> None:
    """One line that names the columns; a kind that has no classes, a class that does not exist."""
    task = ["--task", str(data.parent / "task.yaml"), f"data={data}", "--output", str(tmp_path / "out")]
    for word, said in (
        ("label=grade", "no such column of labels"),
        ("kind=regression", "take multiclass or binary"),
        ("positive=[c]", "no such class; there are a, b"),
    ):
        probes = ["probes=[]"] if word.startswith("kind") else []
        chosen = f"{data.parent / 'encoder.py'}:encoder"
        assert probe.main(["--checkpoint", chosen, *task, word, *probes]) == 1
        assert said in capsys.readouterr().err


def test_subsets_are_all_and_bounded() -> None:
    """15 of four sequences, smaller ones first; more than eight sequences are refused."""
    found = subsets(["a", "b", "c", "d"])
    assert len(found) == len(set(found)) == 15 and [len(each) for each in found] == sorted(map(len, found))
    with pytest.raises(ValueError, match="1023 of 10 sequences"):
        subsets([str(number) for number in range(10)])


def test_a_run_on_mri_ends_in_one_page(data: Path, tmp_path: Path) -> None:
    """Trained, probed twice, compared, reported: curves of masked sequences, maps of each, score by their number."""
    (data / "manifest.jsonl").write_text("")
    (tmp_path / "run.yaml").write_text(
        """
name: mri
data: {sequences: [t1, t2, flair], labels: [tumour]}
model: {patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2, registers: 1, layer_scale: null,
        sequences: [t1, t2, flair]}
dino_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
ibot_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
stages:
  adapt:
    {steps: 3, batch_size: 8, crops: {global_size: 12, local_size: 8, local_number: 1},
     masks: {sequence_probability: 1.0}}
machine: {device: cpu, tensorboard: false}
"""
    )
    words = [f"output={tmp_path}", f"data.root={data}"]
    assert train.main(["--config", str(tmp_path / "run.yaml"), *words]) == 0
    run = tmp_path / "mri"
    before = probed(data, run / "probe" / "before", "size=12", checkpoint=str(run / "adapt" / "00000000"))
    after = probed(data, run / "probe" / "after", "size=12", checkpoint=str(run))
    assert len(before) == len(after) == 7 * 5
    differences = comparison.compare(run / "probe" / "before", run / "probe" / "after")
    assert len({row["probe"] for row in differences}) == 7 and {row["patients"] for row in differences} == {18, 6}
    page = report.report([run])
    for said in ("<h2>Sequences</h2>", "sequences that it does not see", "Every subset of the sequences"):
        assert said in page
    assert "Missing:" not in page
    drawn = sequence_maps.draw(run, str(data))
    assert drawn[:4] == b"\x89PNG"
