"""The probes that draw or train networks on real images: one command and one YAML for all of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import generate, shard_ct, shard_mri
from eval import probe
from eval.encoders.encoder import CheckpointEncoder
from pretrain import build
from pretrain.config import IntensityConfig, ModelConfig
from pretrain.weights.encoder import frozen

CONFIGS = Path(probe.__file__).parent / "configs"
DRAWING = ("segmentation", "primus", "unet_decoder", "patch_knn", "stack3d")
NETWORKS = ("lora", "bitfit", "finetune", "unet", "transunet", "cnn")
ONCE = [f"{name}.epochs=1" for name in (*DRAWING, *NETWORKS) if name != "patch_knn"]
ONCE += [f"{name}.lr=[1e-3]" for name in (*DRAWING, *NETWORKS) if name != "patch_knn"]
ONCE += ["unet.channels=8", "transunet.channels=8", "cnn.channels=8", "patch_knn.bank=2000", "draws=50", "pictures=2"]


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random transformer in place of whatever --checkpoint names."""
    config = ModelConfig(patch_size=8, embed_dim=64, depth=4, num_heads=2, registers=1, layer_scale=None)
    model = build.backbone(config)
    model.init_weights(torch.Generator().manual_seed(0))
    made = CheckpointEncoder(frozen(model, build.intensity(IntensityConfig()), config, "random"))
    monkeypatch.setattr(probe.encoder, "load", lambda checkpoint, task: made)


def probed(task: str, data: Path, output: Path, *words: str) -> dict[tuple[str, str], dict]:
    """Run the command; the headline rows by probe and metric."""
    common = ["--checkpoint", "any", "--task", str(CONFIGS / f"{task}.yaml"), "--output", str(output)]
    assert probe.main([*common, f"data={data}", *ONCE, *words]) == 0
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return {(row["probe"], row["metric"]): row for row in rows if row["label"] in ("macro", "all")}


def test_organs_of_real_ct(data_dir: Path, tmp_path: Path) -> None:
    """Two dozen OpenKBP patients by everything in the configuration that is handed out, in mm, with intervals."""
    for name in (f"pt_{n}/{kind}.nii.gz" for n in range(1, 25) for kind in ("ct", "seg")):
        if (data_dir / "ct_openkbp" / name).is_file():
            (tmp_path / "patients" / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(data_dir / "ct_openkbp" / name, tmp_path / "patients" / name)
    assert shard_ct.main(["--input", str(tmp_path / "patients"), "--output", str(tmp_path / "shards")]) == 0
    words = ["size=48", "stride={train: 24, val: 16, test: 12}"]
    rows = probed("openkbp_segmentation", tmp_path / "shards", tmp_path / "out", *words)
    for name in (*DRAWING, "lora", "bitfit", "finetune", "unet", "transunet"):
        dice, hd95, nsd = (rows[name, metric] for metric in ("dice", "hd95", "nsd"))
        assert 0 <= dice["low"] <= dice["value"] <= dice["high"] <= 1 and 0 <= nsd["value"] <= 1, name
        assert 0 < hd95["value"] < 1000, name  # a head and neck is no metre long
    # a mandible is found by anything that sees bone; one pass over a few slices teaches little else
    assert rows["patch_knn", "dice"]["value"] > 0.05 and 0 <= rows["cnn", "auroc"]["value"] <= 1


def test_labels_of_real_images(data_dir: Path, tmp_path: Path) -> None:
    """Pneumonia and four kinds of brain images: networks on images, of one label and of several classes."""
    names, folder = ["lora", "bitfit", "cnn"], data_dir / "classification"
    rows = probed("pneumonia", folder / "pneumonia_subset.npz", tmp_path / "a", "size=32", f"probes={names}")
    assert all(rows[name, "auroc"]["low"] > 0.6 for name in names)
    words = ["size=32", f"probes={names}", "cnn.batch_size=8", "cnn.lr=[3e-3]"]
    rows = probed("brain_mri_4class", folder / "brain_mri_4class", tmp_path / "b", *words)
    # one pass over a thousand images, under a random transformer or by a few steps of a CNN, teaches little
    assert all(rows[name, "auroc"]["value"] > 0.5 and rows[name, "auroc"]["patients"] == 258 for name in names)


def test_labels_of_synthetic_volumes(tmp_path: Path) -> None:
    """A tumour's type from several sequences at once: slices averaged, and stacks of slices."""
    generate.generate(tmp_path / "patients", generate.GenerateConfig(patients=12, slices=6, size=48, modality="mr"))
    labels = ["--labels", str(tmp_path / "patients" / "labels.csv")]
    assert shard_mri.main(["--input", str(tmp_path / "patients"), "--output", str(tmp_path / "shards"), *labels]) == 0
    names = ["stack3d", "lora", "cnn"]
    rows = probed("synthetic_tumour", tmp_path / "shards", tmp_path / "out", "split.by=patient", f"probes={names}")
    for name in names:
        row = rows[name, "auroc"]
        assert np.isfinite(row["value"] if row["value"] is not None else 0.5) and row["patients"] >= 2, name
