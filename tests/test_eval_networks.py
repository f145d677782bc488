"""Probes that draw structures or train networks: each finds what is there, and nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import probe
from eval.config import (
    DecoderConfig,
    DrawingConfig,
    NetworkConfig,
    PatchKnnConfig,
    StrideConfig,
    TaskConfig,
    TuneConfig,
    VolumeHeadConfig,
)  # fmt: skip
from eval.contract import Context
from eval.data import features, sources, splits
from eval.data.cohorts import Base, Cohort
from eval.data.examples import Examples, Picture
from eval.encoders.encoder import CheckpointEncoder
from eval.encoders.pixel_baseline import PixelBaseline
from eval.probes import registry
from eval.reporting import results
from pretrain import build
from pretrain.config import IntensityConfig, ModelConfig
from pretrain.weights.encoder import frozen

FROZEN = ("segmentation", "primus", "unet_decoder", "patch_knn", "stack3d")
TUNED = ("lora", "bitfit", "finetune")
DRAWING = (*FROZEN, *TUNED, "unet", "transunet")


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> CheckpointEncoder:
    """A random transformer in place of whatever --checkpoint names."""
    config = ModelConfig(patch_size=8, embed_dim=64, depth=4, num_heads=2, registers=1, layer_scale=None)
    model = build.backbone(config)
    model.init_weights(torch.Generator().manual_seed(0))
    made = CheckpointEncoder(frozen(model, build.intensity(IntensityConfig()), config, "random"))
    monkeypatch.setattr(probe.encoder, "load", lambda checkpoint, task: made)
    return made


@pytest.fixture
def data(tiny_dataset) -> Path:
    """Sixteen patients."""
    return tiny_dataset(patients={"train": 8, "val": 4, "test": 4}, slices=6)


def task(data: Path, *names: str, **changes) -> TaskConfig:
    """Settings of seconds on the tiny data set."""
    decoder = {"lr": [5e-3], "epochs": 10, "batch_size": 16}
    tuned = {"epochs": 4, "batch_size": 16, "augment": False}
    scratch = {"lr": [5e-3], "epochs": 8, "batch_size": 16, "channels": 8}
    # 96 steps in place of 24: after 24 the smaller organ is just being found, and rounding decides how well
    drawn = scratch | {"batch_size": 4}
    small = {
        "size": 48, "stride": StrideConfig(1, 1, 1), "draws": 200, "pictures": 2, "probes": list(names),
        "segmentation": DecoderConfig(**decoder), "primus": DecoderConfig(**decoder),
        "unet_decoder": DecoderConfig(**decoder | {"epochs": 20, "channels": 8}),
        "patch_knn": PatchKnnConfig(k=[5, 15], bank=1500), "stack3d": VolumeHeadConfig(lr=[5e-3], epochs=10, depth=4),
        "lora": TuneConfig(lr=[3e-3], rank=2, **tuned), "bitfit": TuneConfig(lr=[3e-3], **tuned),
        "finetune": TuneConfig(lr=[3e-4], **tuned), "unet": NetworkConfig(**drawn),
        "transunet": NetworkConfig(**drawn), "cnn": NetworkConfig(**scratch),
    }  # fmt: skip
    return TaskConfig(data=str(data), **(small | changes))


def run(task: TaskConfig, output: Path) -> dict[tuple[str, str, str], dict]:
    """Rows of results by probe, metric and label."""
    return {(row["probe"], row["metric"], row["label"]): row for row in probe.run("any", task, output)}


def test_every_probe_that_draws_finds_the_organs(data: Path, tmp_path: Path) -> None:
    """Frozen decoders, adapted encoders and networks from scratch, in one command, each with intervals in mm too; LoRA
    and BitFit train under two per cent."""
    found = run(task(data, *DRAWING, "cnn"), tmp_path / "out")
    _, predictions = results.read_predictions(tmp_path / "out")
    for name in DRAWING:
        dice, hd95, nsd = (found[name, metric, "macro"] for metric in ("dice", "hd95", "nsd"))
        assert dice["value"] > 0.4 and dice["low"] <= dice["value"] <= dice["high"], name
        assert 0 <= hd95["low"] <= hd95["value"] <= hd95["high"] and nsd["value"] > 0.5, name
        # the median organ of a patient: a few stray pixels in one volume move its hd95, and so the mean, by tens of mm
        assert np.nanmedian(predictions[name].values["hd95"]) < 10, name
    assert found["cnn", "auroc", "macro"]["value"] > 0.65
    for name in ("lora", "bitfit"):
        assert 0 < found[name, "dice", "macro"]["chosen_on_val"]["share"] < 0.02
    with np.load(tmp_path / "out" / "overlays.npz") as arrays:
        dice = arrays["unet.dice"]
        assert dice[0] >= dice[1] >= dice[2] and arrays["unet.drawn"].shape == arrays["unet.truth"].shape


def scattered(load: Callable, seed: int = 0) -> Callable:
    """`sources.load` with every label map given to another slice and moved to another place."""

    def loaded(task: TaskConfig, cache: Path) -> Examples:
        examples = load(task, cache)
        rng = np.random.default_rng(seed)
        other = rng.permutation(len(examples))
        moves = rng.integers(0, 64, (len(examples), 2))
        known = {key: number for number, key in enumerate(examples.keys)}
        keys = examples.keys

        def reader(number: int) -> Picture:
            place = known[keys[number]]
            labelmap = np.roll(examples.read(other[place]).labelmap, moves[place], (0, 1))
            return replace(examples.read(number), labelmap=labelmap)

        targets = examples.targets[other]
        return replace(examples, reader=reader, targets=targets, version=f"scattered {seed}")

    return loaded


def test_labels_moved_at_random_score_at_chance(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaks: no probe draws better than one that fills the whole image."""
    monkeypatch.setattr(probe.sources, "load", scattered(sources.load))
    settings = task(data, *DRAWING, drawing=DrawingConfig(surfaces=False))
    # 24 steps: with true labels enough for a Dice of 0.6 and 0.8, ten times the bound
    few = {name: replace(getattr(settings, name), epochs=2) for name in ("unet", "transunet")}
    found = run(replace(settings, **few), tmp_path / "out")
    covered = np.pi * 6.4**2 / 64**2
    for name in DRAWING:
        assert found[name, "dice", "macro"]["low"] < 2 * covered / (1 + covered), name


def test_networks_for_labels_at_chance_and_not(tiny_dataset, tmp_path: Path, monkeypatch) -> None:
    """Presence of organs by adapted encoders and a CNN: found as it is, a coin's when shuffled over the slices."""
    data = tiny_dataset(patients={"train": 8, "val": 4, "test": 10}, slices=6)
    names, settings = (*TUNED, "cnn"), {"kind": "multilabel", "metrics": ["auroc"]}
    found = run(task(data, *names, **settings), tmp_path / "true")
    assert all(found[name, "auroc", "macro"]["low"] > 0.6 for name in names)
    shuffled = []
    for seed in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(probe.sources, "load", scattered(sources.load, seed))
            shuffled.append(run(task(data, *names, **settings), tmp_path / str(seed)))
    # 0.035 is the standard deviation of such a mean over shuffles and over roundings, which make another network of it
    for name in names:
        assert abs(np.mean([each[name, "auroc", "macro"]["value"] for each in shuffled]) - 0.5) < 0.15, name


def test_a_stack_gives_labels_of_volumes(data: Path, tmp_path: Path) -> None:
    """The light head in three dimensions at level volume; at level slice it says what to set."""
    found = run(task(data, "stack3d", kind="multilabel", level="volume", metrics=["auroc"]), tmp_path / "out")
    assert found["stack3d", "auroc", "macro"]["patients"] == 4
    with pytest.raises(Exception, match="set level=volume"):
        run(task(data, "stack3d", kind="multilabel"), tmp_path / "out2")


def test_a_slice_is_drawn_the_same_alone_and_in_company(data: Path, tmp_path: Path, encoder) -> None:
    """The head in three dimensions sees a slice's neighbours, whichever slices were asked for together."""
    settings, stack3d = task(data, "stack3d"), registry.PROBES["stack3d"]
    examples = sources.load(settings, tmp_path)
    blocks = registry.blocks([stack3d], settings, encoder.depth)
    base = Base(examples, features.extract(encoder, examples, settings, tmp_path, blocks), settings, tmp_path)
    rows = splits.folds(examples, settings)[0].rows
    train, val = (Cohort(name, base, rows[name]) for name in ("train", "val"))
    drawer = stack3d.fit(train, val, Context(settings, encoder, tmp_path)).maps
    together = drawer(val, np.arange(len(val)))
    for row in (0, 7, 20):
        torch.testing.assert_close(drawer(val, np.array([row]))[0], together[row], atol=2e-2, rtol=0)
    mixed = np.array([20, 3, 7, 3])  # a slice may be asked for twice
    torch.testing.assert_close(drawer(val, mixed), together[mixed], atol=2e-2, rtol=0)


def test_the_same_seed_is_the_same_network(data: Path, tmp_path: Path) -> None:
    """Two runs of an adapted encoder and of a U-Net agree in every figure."""
    few = {"unet": NetworkConfig(epochs=2, channels=8), "lora": TuneConfig(epochs=2)}
    settings = task(data, "lora", "unet", drawing=DrawingConfig(surfaces=False), **few)
    one, other = (run(settings, tmp_path / name) for name in "ab")
    assert {key: row["value"] for key, row in one.items()} == {key: row["value"] for key, row in other.items()}


def test_errors_say_what_to_do(data: Path, tmp_path: Path, monkeypatch, encoder) -> None:
    """No weights to train, an unknown decoder, a size that a U-Net cannot halve, a loss that is not finite."""
    for settings, expected in (
        (task(data, "lora", lora=TuneConfig(decoder="linar")), "decoder=linar: no such decoder"),
        (task(data, "unet", size=56), "size=56: unet needs a multiple of 16"),
        (task(data, "unet", unet=NetworkConfig(lr=[1e30], epochs=4, channels=8)), "the loss is"),
    ):
        with pytest.raises(ValueError, match=expected):
            run(settings, tmp_path / "out")
    with torch.no_grad():
        encoder.model.blocks[1].mlp.fc1.weight[0] = np.nan
    with pytest.raises(ValueError, match="its features hold NaN or infinite values"):
        run(task(data, "primus"), tmp_path / "nan")
    monkeypatch.setattr(probe.encoder, "load", lambda checkpoint, task: PixelBaseline())
    with pytest.raises(ValueError, match="pixels: has no weights that bitfit could train"):
        run(task(data, "bitfit"), tmp_path / "out")
