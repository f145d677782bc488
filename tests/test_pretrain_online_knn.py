"""Neighbours on validation patients while training: the right numbers, the same after a stop, or one clear line."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_run import CONFIG, rows, stop_after_every_step
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from data_prep.schema import Split
from pretrain import online_knn, train
from pretrain.config import KnnConfig
from pretrain.data.intensity import Intensity
from pretrain.online_knn import OnlineKnn


def test_votes_and_area_are_scikit_learns() -> None:
    """Weights e^(cosine / T) over the k nearest, ties in the area counting half."""
    generator = torch.Generator().manual_seed(0)
    memory, queries = (torch.nn.functional.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (60, 40))
    present, truth = torch.rand(60, generator=generator) < 0.4, np.arange(40) % 3 == 0
    theirs = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(memory.numpy(), present.numpy())
    ours = online_knn.votes(memory, present, queries, 7, 0.07).numpy()
    assert ours == pytest.approx(theirs.predict_proba(queries.numpy())[:, 1], abs=1e-4)
    for scores in (ours, np.round(ours, 1)):
        assert online_knn.auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))


class Bright(torch.nn.Module):
    """Features that tell how much of an image is bright, and how much dark."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = torch.zeros(1)

    def forward(self, images: torch.Tensor, **_: object):
        dark = (images < -0.7) & (images > -0.98)  # and no air
        shares = [(images > 0.5).float().mean(dim=(1, 2, 3)), dark.float().mean(dim=(1, 2, 3))]
        self.cls = torch.stack([*shares, torch.full_like(shares[0], 0.02)], dim=1)
        return self


def test_features_that_know_the_organs_score_well_and_noise_at_chance(tiny_dataset) -> None:
    """Brightness finds the bright organ; labels are those of the label maps; few slices are taken evenly."""
    data = tiny_dataset({"train": 12, "val": 8, "test": 1})
    intensity = Intensity(window=(-100, 300), mean=0.5, std=0.5)
    probe = OnlineKnn(str(data), ("ct",), KnnConfig(every=1, k=5), 32, intensity)
    assert probe.train.labels.shape == (72, 2) and probe.val.labels.shape == (48, 2)
    split = Split(data, "val")
    for number, row in zip(probe.val.numbers, probe.val.labels):
        held = np.unique(split[int(number)].labelmap)
        assert row.tolist() == [int(1 in held), int(2 in held)]  # bright, dark
    known = probe.score(Bright(), nullcontext())["knn/auroc"]
    assert known > 0.95

    class Noise(Bright):
        def forward(self, images: torch.Tensor, **_: object):
            self.cls = torch.randn(len(images), 3, generator=torch.Generator().manual_seed(len(images)))
            return self

    assert 0.25 < probe.score(Noise(), nullcontext())["knn/auroc"] < 0.75
    few = OnlineKnn(str(data), ("ct",), KnnConfig(every=1, train_slices=10, val_slices=7), 32, intensity)
    assert len(few.train.numbers) == 10 and len(few.val.numbers) == 7


def test_class_labels_are_asked_one_against_the_rest() -> None:
    """A slice with a class excludes that name's other values; one without says nothing of them."""
    columns = ["grade=1", "grade=2", "liver"]
    found = online_knn.label_table([{"grade=2": 1, "liver": 0}, {"liver": 1}, {}], columns)
    assert found.tolist() == [[0, 1, 0], [-1, -1, 1], [-1, -1, -1]]


def test_it_is_in_the_metrics_and_survives_a_stop(tiny_dataset, tmp_path: Path, monkeypatch, capsys) -> None:
    """Every third step and the last have it; a run that dies after every step has the same; it changes no other row."""
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    words = ["--config", str(config), f"output={tmp_path}", f"data.root={tiny_dataset()}"]
    asked = [*words, "knn.every=3", "knn.k=5"]
    assert train.main([*asked, "name=whole"]) == 0
    found = rows(tmp_path / "whole" / "adapt")
    assert [row["step"] for row in found if "knn/auroc" in row] == [2, 5, 7]
    assert all(0 <= row["knn/auroc"] <= 1 for row in found if "knn/auroc" in row)
    assert "  kNN 0." in capsys.readouterr().err
    assert train.main([*words, "name=without"]) == 0
    plain = [{key: value for key, value in row.items() if key != "knn/auroc"} for row in found]
    assert plain == rows(tmp_path / "without" / "adapt")
    stop_after_every_step(lambda: train.main([*asked, "name=stopped"]), monkeypatch)
    assert rows(tmp_path / "stopped" / "adapt") == found


def test_without_labels_or_validation_patients_it_is_refused(tiny_dataset, tmp_path: Path, capsys) -> None:
    """Before the first step, in one line."""
    data = tiny_dataset({"train": 4, "val": 0, "test": 1})
    (tmp_path / "c.yaml").write_text(CONFIG)
    words = ["--config", str(tmp_path / "c.yaml"), f"output={tmp_path}", f"data.root={data}", "knn.every=5"]
    assert train.main(words) == 1
    assert "split 'val' holds no slices" in capsys.readouterr().err
    dataset = json.loads((data / "dataset.json").read_text())
    assert dataset["labels"] == {"1": "bright", "2": "dark"}
