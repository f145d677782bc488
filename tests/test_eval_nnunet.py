"""The nnU-Net trainer in nnU-Net itself, from raw images to a prediction: `make test-nnunet`, else skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import write_dataset

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed; `make test-nnunet` runs this in a venv of its own")
pytestmark = pytest.mark.timeout(1200)  # nnU-Net plans, trains and predicts, each in a process of its own

CONFIG = """
name: tiny
model: {patch_size: 8, embed_dim: 32, depth: 4, num_heads: 2, registers: 1, layer_scale: null}
dino_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
ibot_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
stages: {adapt: {steps: 1, batch_size: 8, crops: {global_size: 32, local_size: 16, local_number: 1}}}
machine: {device: cpu, tensorboard: false}
"""

SCRIPT = """
import sys, torch
from nnunetv2.run.run_training import get_trainer_from_args
trainer = get_trainer_from_args("1", sys.argv[1], 0, "nnUNetTrainerMedDAP", device=torch.device("cpu"))
trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 2
trainer.initialize()
backbone = trainer.network.network[1].backbone
from pretrain.weights import encoder
import os
told = encoder.load_encoder(os.environ["MEDDAP_CHECKPOINT"]).model.state_dict()
own = {name.replace(".parametrizations.weight.original", ".weight"): value for name, value in
       backbone.state_dict().items()}
assert all(torch.equal(own[name], value) for name, value in told.items()), "weights"
rates = {}
trainer.lr_scheduler.step(trainer.num_epochs - 1)
for group in trainer.optimizer.param_groups:
    rates.update(dict.fromkeys(group["names"], group["lr"]))
print("rates", rates)
trainer.run_training()
trainer.perform_actual_validation()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of ours, and a raw data set of six patients that nnU-Net has planned and preprocessed for 2d and 3d."""
    nibabel = pytest.importorskip("nibabel")
    from pretrain import train

    tmp_path = tmp_path_factory.mktemp("world")
    (tmp_path / "config.yaml").write_text(CONFIG)
    data = write_dataset(tmp_path / "data", {"train": 4, "val": 2, "test": 2})
    assert train.main(["--config", str(tmp_path / "config.yaml"), f"output={tmp_path}", f"data.root={data}"]) == 0
    raw = tmp_path / "raw" / "Dataset001_tiny"
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / folder).mkdir(parents=True)
    for number in range(6):
        label = np.zeros((44, 36, 10), np.uint8)
        label[10 + number : 22 + number, 12:24, 2:8] = 1
        image = np.where(label, 200.0, -100.0) + rng.normal(0, 20, label.shape)
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), raw / "imagesTr" / f"p{number}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), raw / "labelsTr" / f"p{number}.nii.gz")
    (raw / "imagesTs" / "p0_0000.nii.gz").write_bytes((raw / "imagesTr" / "p0_0000.nii.gz").read_bytes())
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": 6}
    (raw / "dataset.json").write_text(json.dumps({**about, "file_ending": ".nii.gz"}))
    import eval.nnunet

    environment = {
        "nnUNet_raw": tmp_path / "raw",
        "nnUNet_preprocessed": tmp_path / "preprocessed",
        "nnUNet_results": tmp_path / "results",
        "nnUNet_extTrainer": eval.nnunet.__path__[0],
        "nnUNet_n_proc_DA": 1,
        "MEDDAP_CHECKPOINT": tmp_path / "tiny",
        "MEDDAP_EPOCHS": 1,
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, str(value))
        _plan()
        patched.setenv("nnUNet_n_proc_DA", "0")
        yield tmp_path


def _plan() -> None:
    command(
        "-c", "from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as p; "
        "p.plan_and_preprocess_entry()",
        "-d", "1", "-c", "2d", "3d_fullres", "-np", "1", "1", "--verify_dataset_integrity",
    )  # fmt: skip


def command(*words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """A process of this interpreter; its output where it fails."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=os.environ | environment)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.mark.parametrize("method", ["full", "lora"])
def test_from_raw_images_to_a_prediction(world: Path, method: str) -> None:
    """It begins with the backbone's weights, trains with layer-wise decay, validates, and predicts from nnU-Net's own
    folder alone."""
    done = command("-c", SCRIPT, "2d", MEDDAP_ADAPT=method)
    assert "MedDAP: " in done.stdout and "Mean Validation Dice" in done.stdout
    folder = world / "results" / "Dataset001_tiny" / "nnUNetTrainerMedDAP__nnUNetPlans__2d"
    kept = json.loads((folder / "plans.json").read_text())["meddap"]
    assert kept["model"]["embed_dim"] == 32 and kept["adapt"] == method and str(world) not in json.dumps(kept)
    rates = eval(next(line for line in done.stdout.splitlines() if line.startswith("rates"))[6:])
    if method == "full":
        assert rates["blocks.0.attn.qkv.weight"] == pytest.approx(rates["blocks.3.attn.qkv.weight"] * 0.75**3)
        assert rates["blocks.3.attn.qkv.weight"] < max(rates.values())
    else:
        assert all("parametrizations" in name or name.startswith("network.1.decoder") for name in rates)
    command(
        "-c", "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as p; p()",
        "-i", str(world / "raw/Dataset001_tiny/imagesTs"), "-o", str(world / "out"), "-d", "1", "-c", "2d", "-f", "0",
        "-tr", "nnUNetTrainerMedDAP", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta",
        MEDDAP_CHECKPOINT="/nowhere",
    )  # fmt: skip
    import nibabel

    drawn = nibabel.load(world / "out" / "p0.nii.gz")
    assert drawn.shape == (44, 36, 10) and set(np.unique(drawn.get_fdata())) <= {0, 1}


def test_what_cannot_be_trained_says_so(world: Path) -> None:
    """A 3-D configuration, no checkpoint."""
    assert "the backbone sees slices; train 2d" in command("-c", SCRIPT, "3d_fullres", check=False).stderr
    done = command("-c", SCRIPT, "2d", check=False, MEDDAP_CHECKPOINT="")
    assert "set MEDDAP_CHECKPOINT to the run" in done.stderr
