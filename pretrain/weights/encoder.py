"""A trained backbone, ready to be read by probes: the model, how pixels enter it, where it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data_prep.schema import CT
from pretrain import build
from pretrain.config import ModelConfig, head_count, load
from pretrain.data.intensity import Intensity
from pretrain.model.vit import VisionTransformer
from pretrain.runtime import checkpoint
from pretrain.weights import chosen

_BACKBONE = "backbone."


@dataclass(frozen=True)
class Encoder:
    """A backbone in evaluation mode, float32 on the CPU.

    model      (N, C, h, w) normalised images → Features; (N, S·C, h, w) where it knows S sequences. C is 1, or 3 of a
               model of colour pictures
    intensity  HU → normalised values; an MR sequence enters with its percentiles (data_prep.schema.span) in the window
    config     what it was built from, its heads a number
    source     run, stage and step, or how it was initialised
    digest     SHA-256 over architecture and weights, and over the intensity that published weights bring along
    """

    model: VisionTransformer
    intensity: Intensity
    config: ModelConfig
    source: str
    digest: str


def find(path: str | Path) -> checkpoint.Checkpoint:
    """Return the checkpoint in a step folder, or the newest of a stage folder or of a run's last stage that has one.

    RUN:chosen names the one that eval.choose chose. Raises CheckpointError where there is none.
    """
    path = Path(path)
    if (run := chosen.run_of(path)) is not None:
        return chosen.find(run)
    if (path / "state.json").is_file():
        return checkpoint.read(path)
    folders = [path]
    if (path / "config.yaml").is_file():  # a run: its stages, last first
        folders = [path / name for name in reversed(list(load(path / "config.yaml").stages))]
    for folder in folders:
        if found := checkpoint.newest(folder):
            return found
    raise checkpoint.CheckpointError(
        f"{path}: no checkpoint there; name a run, a stage or a step folder, or RUN:chosen"
    )


def is_run(path: Path) -> bool:
    """Whether a path names a checkpoint of ours, as `find` takes it, rather than published weights."""
    return chosen.run_of(path) is not None or (path.is_dir() and not (path / "config.json").is_file())


def load_encoder(path: str | Path, which: str = "teacher") -> Encoder:
    """Return the `teacher`'s or `student`'s backbone of a checkpoint (see `find`). Raises CheckpointError."""
    found = find(path)
    config = load(found.path / "config.yaml")
    weights = {
        name.removeprefix(_BACKBONE): value
        for name, value in found.tensors(which).items()
        if name.startswith(_BACKBONE)
    }
    model = build.backbone(config.model)
    model.load_state_dict(weights)
    source = f"{config.name}/{found.stage}/{found.step:08d} ({which})"
    return frozen(model, build.intensity(config.intensity, config.model.channels), config.model, source)


def of_one_sequence(loaded: Encoder, name: str) -> Encoder:
    """Return a model of several sequences as one of sequence `name` alone, with the same features.

    The sequence's embedding goes into the bias of the patch embedding and into the mask token.
    Raises CheckpointError where the model does not know the name.
    """
    known = loaded.model.sequences
    if name not in known:
        has = f"it knows {', '.join(known)}" if known else "it knows none"
        raise checkpoint.CheckpointError(f"{loaded.source}: no sequence {name} in the model; {has}")
    weights = dict(loaded.model.state_dict())
    row = torch.nn.functional.normalize(weights.pop("sequence_embed.weight")[known.index(name)], dim=0)
    weights["patch_embed.proj.bias"] = weights["patch_embed.proj.bias"] + row
    weights["mask_token"] = weights["mask_token"] + row
    config = replace(loaded.config, sequences=[])
    model = build.backbone(config)
    model.load_state_dict(weights)
    one = frozen(model, loaded.intensity, config, f"{loaded.source}, sequence {name}")
    return one if name == CT else of_shares(one)


def of_shares(loaded: Encoder) -> Encoder:
    """Return an MR encoder with its window in MR's unit: 0 … 1 from the foreground's 0.5th to its 99.5th percentile."""
    return replace(loaded, intensity=replace(loaded.intensity, window=(0.0, 1.0)))


def random_encoder(like: str | Path, seed: int = 0) -> Encoder:
    """Return a fresh backbone with the architecture of the checkpoint `like`."""
    config = load(find(like).path / "config.yaml")
    model = build.backbone(config.model)
    model.init_weights(torch.Generator().manual_seed(seed))
    own = build.intensity(config.intensity, config.model.channels)
    return frozen(model, own, config.model, f"random, seed {seed}, as {config.name}")


def frozen(model: VisionTransformer, intensity: Intensity, config: ModelConfig, source: str) -> Encoder:
    """Return a model whose weights are in place as an Encoder."""
    config = replace(config, num_heads=head_count(config))  # one digest, whether num_heads was set or not
    digest = hashlib.sha256(repr(config).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    model = model.eval().requires_grad_(False)
    return Encoder(model, intensity, config, source, digest.hexdigest())
