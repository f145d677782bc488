"""nnU-Net v2 with an adapted backbone: its planning, augmentation and inference, our transformer and decoder.

    export nnUNet_extTrainer=$(python -c 'import eval.nnunet as m; print(m.__path__[0])')
    export MEDDAP_CHECKPOINT=RUN
    nnUNetv2_train DATASET 2d FOLD -tr nnUNetTrainerMedDAP

The network is described in the plans under "meddap", which nnU-Net copies beside the weights: prediction
needs neither MEDDAP_CHECKPOINT nor the backbone's own file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from omegaconf import OmegaConf
from torch import nn

from eval.networks import adapters, decoders
from eval.networks.segmenter import Padded, Segmenter, groups
from pretrain import build
from pretrain.config import ModelConfig
from pretrain.data.intensity import Intensity
from pretrain.weights import encoder, initialise

CHECKPOINT, ADAPT, EPOCHS = "MEDDAP_CHECKPOINT", "MEDDAP_ADAPT", "MEDDAP_EPOCHS"


class nnUNetTrainerMedDAP(nnUNetTrainer):
    """2d configurations. Settings come from the environment:

    MEDDAP_CHECKPOINT  run, stage or step folder whose teacher is trained further, or published weights
    MEDDAP_ADAPT       full (default), lora, bitfit or frozen
    MEDDAP_EPOCHS      instead of nnU-Net's 1000; more is seldom better for a pretrained backbone
    """

    layer_decay = 0.75
    warmup_epochs = 10

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net's own signature
    ) -> None:
        if "meddap" not in plans:
            plans["meddap"] = _described()
        super().__init__(plans, configuration, fold, dataset_json, device)
        if len(self.configuration_manager.patch_size) != 2:
            raise RuntimeError(f"configuration {configuration}: the backbone sees slices; train 2d")
        self.enable_deep_supervision = False
        self.initial_lr, self.weight_decay = 3e-4, 5e-2
        self.num_epochs = int(os.environ.get(EPOCHS, 100))

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        described = plans_manager.plans["meddap"]
        model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), described["model"]))
        assert isinstance(model, ModelConfig)
        backbone = build.backbone(model)
        blocks = decoders.spread(model.depth)
        channels = num_input_channels // backbone.patch_embed.proj.in_channels
        width = channels * len(blocks) * model.embed_dim
        decoder = decoders.PrimusDecoder(width, num_output_channels, model.patch_size, prior=0.0)
        adapters.prepare(backbone, described["adapt"], torch.Generator().manual_seed(0))
        # the final norm has left the features near unit scale; the decoder learns the rest
        unit = decoders.Standardise(torch.zeros(width), torch.ones(width))
        segmenter = Segmenter(backbone, blocks, decoder, unit)
        prepare = _Input(plans_manager, configuration_manager, described)
        return Padded(nn.Sequential(prepare, segmenter), model.patch_size)

    def initialize(self) -> None:
        super().initialize()
        if path := os.environ.get(CHECKPOINT):
            backbone = next(each for each in self.network.modules() if isinstance(each, Segmenter)).backbone
            weights = _read(path).model.state_dict()
            own = {name.replace(".parametrizations.weight.original", ".weight"): name for name in backbone.state_dict()}
            # LoRA's own parameters stay as they began
            backbone.load_state_dict({own[name]: value for name, value in weights.items()}, strict=False)
            share = adapters.share(backbone)
            self.print_to_log_file(f"MedDAP: {len(weights)} tensors from {path}, {share:.1%} trained")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, _WarmPoly]:
        depth = self.plans_manager.plans["meddap"]["model"]["depth"]
        trained = groups(self.network, depth, self.layer_decay)
        for group in trained:
            group["weight_decay"] = self.weight_decay * group["wd_multiplier"]
            group["names"] = list(group["names"])
        optimizer = torch.optim.AdamW(trained, self.initial_lr, betas=(0.9, 0.98))
        return optimizer, _WarmPoly(optimizer, self.initial_lr, min(self.warmup_epochs, self.num_epochs // 10), self)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The decoder has one output."""


class _Input(nn.Module):
    """nnU-Net's normalised values → the backbone's: CT goes back to HU and through the backbone's window; anything
    else is left as it is, with zero mean and unit spread, which is about what the backbone saw."""

    def __init__(
        self, plans_manager: PlansManager, configuration_manager: ConfigurationManager, described: dict[str, Any]
    ) -> None:
        super().__init__()
        properties = plans_manager.foreground_intensity_properties_per_channel
        low, high = described["window"]
        self.intensity = Intensity((low, high), described["mean"], described["std"])
        self.ct = [
            (float(properties[str(number)]["mean"]), max(float(properties[str(number)]["std"]), 1e-8))
            if scheme == "CTNormalization"
            else None
            for number, scheme in enumerate(configuration_manager.normalization_schemes)
        ]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        planes = [
            plane if ct is None else self.intensity.normalise(plane.float() * ct[1] + ct[0]).to(plane.dtype)
            for plane, ct in zip(images.unbind(1), self.ct)
        ]
        return torch.stack(planes, dim=1)


class _WarmPoly:
    """Linear warm-up, then nnU-Net's polynomial, times each group's multiplier (nnU-Net's own overwrites those)."""

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float, warmup: int, trainer: nnUNetTrainer) -> None:
        self.optimizer, self.lr, self.warmup, self.trainer = optimizer, lr, warmup, trainer

    def step(self, epoch: int) -> None:
        """Set the learning rates of `epoch`."""
        rest = (epoch - self.warmup) / max(1, self.trainer.num_epochs - self.warmup)
        factor = (epoch + 1) / (self.warmup + 1) if epoch < self.warmup else (1 - rest) ** 0.9
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor * group["lr_multiplier"]


def _read(path: str) -> encoder.Encoder:
    """Return the backbone of a run of ours, or of published weights."""
    return (
        initialise.published_encoder(Path(path)) if initialise.is_published(Path(path)) else encoder.load_encoder(path)
    )


def _described() -> dict[str, Any]:
    """Return what the plans keep of the backbone. Raises RuntimeError where the environment names none."""
    path = os.environ.get(CHECKPOINT)
    if not path:
        raise RuntimeError(f"set {CHECKPOINT} to the run whose backbone is to be trained further")
    found = _read(path)
    if found.config.channels != 1:
        raise RuntimeError(f"{path}: takes colours (model.channels=3); this trainer takes encoders of grey images")
    intensity = found.intensity
    return {
        "model": OmegaConf.to_container(OmegaConf.structured(found.config)),
        "window": list(intensity.window),
        "mean": intensity.mean,
        "std": intensity.std,
        "adapt": os.environ.get(ADAPT, "full"),
        "source": found.source,
    }
