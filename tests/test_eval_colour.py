"""Probes in colour: pictures keep their channels, and encoders get as many as they take, from files to results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.corpora import write_pictures
from helpers.tiny_run import CONFIG, SHORT
from PIL import Image

import pretrain
from data_prep import schema, shard_images, verify
from eval import predict, probe
from eval.config import FilesConfig, StrideConfig, TaskConfig
from eval.curation import catalogue
from eval.data import features, images, leaks, sources, splits
from eval.data.examples import Picture
from eval.encoders import colours, encoder, windows
from meddap.settings import SettingsError
from pretrain import export, train
from pretrain.weights.encoder import load_encoder

COUNTS = {"train": 24, "val": 12, "test": 12}


def two_colours(path: Path, size: int = 28) -> dict[str, np.ndarray]:
    """A MedMNIST file of discs on grey: of class 0 reddish, of class 1 greenish, of the same luma."""
    rng, (rows, columns), arrays = np.random.default_rng(0), np.mgrid[:size, :size], {}
    for split, count in COUNTS.items():
        labels = np.arange(count)[:, None] % 2
        pictures = np.full((count, size, size, 3), 128.0)
        for picture, label in zip(pictures, labels[:, 0]):
            row, column = rng.uniform(0.3, 0.7, 2) * size
            disc = (rows - row) ** 2 + (columns - column) ** 2 < (size * rng.uniform(0.15, 0.3)) ** 2
            red = rng.uniform(40, 70) * (1 if label == 0 else -1)
            picture[disc] += [red, -red * 0.299 / 0.587, 0]  # of the weights of luma
        arrays[f"{split}_images"] = np.rint(pictures + rng.normal(0, 4, pictures.shape[:3])[..., None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return arrays


def task_of(path: Path, colour: str = "keep", **more: object) -> TaskConfig:
    task = TaskConfig(name="t", source="medmnist", kind="binary", data=str(path), probes=["knn"], size=32)
    return replace(task, files=FilesConfig(colour=colour), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a step on pictures, in colour and on one channel (of CT); to be read only."""
    folder = tmp_path_factory.mktemp("runs")
    root = write_pictures(folder / "pictures")
    (folder / "c.yaml").write_text(CONFIG)
    common = [
        "--config",
        str(folder / "c.yaml"),
        f"output={folder}",
        "--stage",
        "adapt",
        "stages.adapt.steps=1",
        *SHORT,
    ]
    words = ["data.sequences=[image]", "model.channels=3", "stage_defaults.crops.min_body=0"]
    mine = [f"data.sources.pictures.root={root}", "data.sources.pictures.rgb_mean=[0.7,0.6,0.5]"]
    assert train.main([*common, *words, "name=colour", f"data.root={root}"]) == 0
    assert train.main([*common, *words, "name=source", *mine]) == 0
    return folder


def test_from_pictures_to_a_probe_through_the_commands(tmp_path: Path, monkeypatch, capsys) -> None:
    """The shipped configuration, tiny: shards in colour, three steps, an exported folder, a probe of it, its head on
    the pictures again. Colours that grey cannot tell are told, by it and by pixels, and by no probe in grey."""
    monkeypatch.setenv("MEDDAP_SALT", "tests")
    two_colours(tmp_path / "in" / "set.npz")
    shards = tmp_path / "shards"
    words = ["--input", str(tmp_path / "in"), "--output", str(shards), "colour=keep"]
    assert shard_images.main(words) == 0 and verify.main([str(shards)]) == 0
    file = Path(pretrain.__file__).parent / "configs" / "colour_small.yaml"
    short = ["steps=3", "batch_size=8", "optim.lr.warmup_steps=1", "optim.teacher_temp.warmup_steps=1"]
    words = [f"data.root={shards}", f"output={tmp_path}", "model.depth=2", "model.embed_dim=64", "model.num_heads=1"]
    words += [f"stages.adapt.{word}" for word in (*short, "optim.freeze_last_layer_steps=1")]
    assert train.main(["--config", str(file), *words, "machine.tensorboard=false"]) == 0
    folder = tmp_path / "exported"
    run = str(tmp_path / "colour_small")
    assert export.main(["--checkpoint", run, "--format", "huggingface", "--output", str(folder)]) == 0
    (tmp_path / "task.yaml").write_text(
        f"name: discs\nsource: medmnist\nkind: binary\ndata: {tmp_path}/in/set.npz\nprobes: [logistic]\nsize: 32\n"
    )
    found = {}
    for name, checkpoint in (("exported", str(folder)), ("pixels", "pixels")):
        for colour in ("keep", "grey"):
            output = tmp_path / f"{name}-{colour}"
            words = ["--checkpoint", checkpoint, "--task", str(tmp_path / "task.yaml"), "--output", str(output)]
            assert probe.main([*words, f"files.colour={colour}"]) == 0
            rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
            found[name, colour] = next(row["value"] for row in rows if row["metric"] == "auroc")
    assert found["exported", "keep"] > 0.9 and found["pixels", "keep"] > 0.9, found
    assert found["exported", "grey"] < 0.9 and found["pixels", "grey"] < 0.9, found
    assert (
        "takes colours, and files.colour=grey makes pictures grey; files.colour=keep keeps them"
        in capsys.readouterr().err
    )
    for number, picture in enumerate(np.load(tmp_path / "in" / "set.npz")["test_images"]):
        (tmp_path / "new").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "new" / f"{number:02d}.png")
    head = next((tmp_path / "exported-keep" / "heads").iterdir())
    words = ["--head", str(head), "--checkpoint", str(folder), "--input", str(tmp_path / "new")]
    assert predict.main([*words, "--output", str(tmp_path / "predicted")]) == 0


def test_medmnist_keeps_colours_with_the_digests_of_shards(tmp_path: Path, monkeypatch) -> None:
    """Three planes and the digests by which leaks are found; grey by default, refused by a setting."""
    monkeypatch.setenv("MEDDAP_SALT", "tests")
    arrays = two_colours(tmp_path / "in" / "set.npz")
    examples = sources.load(task_of(tmp_path / "in" / "set.npz"), tmp_path)
    picture = examples.read(5)
    assert picture.channels == 3 and np.array_equal(picture.pixels, arrays["train_images"][5].transpose(2, 0, 1))
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "colour=keep"]
    assert shard_images.main(words) == 0
    contents = [schema.Split(tmp_path / "out", split).content() for split in schema.SPLITS]
    assert set(np.concatenate(contents).tolist()) == set(examples.digests.tolist())
    assert sources.load(task_of(tmp_path / "in" / "set.npz", "grey"), tmp_path).read(5).channels == 1
    with pytest.raises(SettingsError, match="set.npz: in colour; files.colour=grey or keep takes it"):
        sources.load(task_of(tmp_path / "in" / "set.npz", "refuse"), tmp_path)


def test_folders_keep_colours_beside_grey_pictures(tmp_path: Path) -> None:
    """Three planes as they are stored; what is grey has one."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "colour.png")
        Image.fromarray(pixels[..., 0]).save(tmp_path / name / "grey.png")
    task = TaskConfig(name="t", source="folders", kind="multiclass", data=str(tmp_path), probes=["knn"])
    examples = sources.load(replace(task, files=FilesConfig(colour="keep")), tmp_path / "cache")
    assert [examples.read(number).channels for number in (0, 1)] == [3, 1]
    assert np.array_equal(examples.read(0).pixels, pixels.transpose(2, 0, 1))


def test_an_encoder_gets_the_channels_that_it_takes() -> None:
    """Grey three times, colours by their luma, equal numbers as they are."""
    planes, box = torch.rand(6, 8, 8), (0, 8, 0, 8)
    pixels = np.zeros((6, 8, 8), np.uint8)
    colour = Picture(pixels, ("a", "b"), "unit8", box, channels=3)
    assert torch.equal(images.of_channels(planes, colour, 3), planes.view(2, 3, 8, 8))
    luma = images.of_channels(planes, colour, 1)
    expected = 0.299 * planes[3] + 0.587 * planes[4] + 0.114 * planes[5]
    assert luma.shape == (2, 1, 8, 8) and torch.allclose(luma[1, 0], expected, atol=1e-6)
    grey = Picture(pixels, tuple("abcdef"), "unit8", box)
    three = images.of_channels(planes, grey, 3)
    assert three.shape == (6, 3, 8, 8) and torch.equal(three, planes[:, None].expand(6, 3, 8, 8))


def test_features_in_colour_are_the_models_own(finished: Path, tmp_path: Path) -> None:
    """Of shards of colour and grey pictures: what the model gives for values in 0…1; networks get three planes."""
    task = TaskConfig(data=str(finished / "pictures"), size=40, stride=StrideConfig(1, 1, 1), bf16=False)
    frozen = encoder.load(str(finished / "colour"), task)
    split = schema.Split(finished / "pictures", "train")
    pictures = [sources.shards.picture(split[number]) for number in range(len(split))]
    assert {picture.channels for picture in pictures} == {1, 3}
    ((found, _),) = features.encode(frozen, pictures, 40, [-1])
    model = load_encoder(finished / "colour")
    for number in range(len(split)):
        stored = np.broadcast_to(split[number].pixels, (3, 40, 40)).astype(np.float32)
        unit = torch.from_numpy((stored - schema.MR_LOW) / (schema.MR_HIGH - schema.MR_LOW)).clamp(0, 1)
        with torch.inference_mode():
            expected = model.model(model.intensity.standardise(unit)[None], sequences=frozen.sequences)
        torch.testing.assert_close(found[number], expected.cls[0], atol=1e-4, rtol=1e-4)
    examples = sources.load(replace(task, kind="multilabel", data=str(finished / "pictures")), tmp_path)
    assert features.image_stack(examples, 40, frozen.window, tmp_path, channels=3).shape[1] == 3
    assert features.image_stack(examples, 40, frozen.window, tmp_path).shape[1] == 1


def test_what_is_lost_between_pictures_and_encoders_is_said(finished: Path, tmp_path: Path) -> None:
    """A grey encoder on colours, one of colours on pictures made grey; nothing where they agree."""
    two_colours(tmp_path / "set.npz")
    keep, grey = task_of(tmp_path / "set.npz"), task_of(tmp_path / "set.npz", "grey")
    in_colour = encoder.load(str(finished / "colour"), keep)
    assert in_colour.channels == 3 and not colours.said(in_colour, keep)
    assert "files.colour=grey makes pictures grey; files.colour=keep keeps them" in colours.said(in_colour, grey)
    pixels = encoder.load("pixels", grey)
    assert pixels.embed_dim == 32 and "it sees the luma (BT.601) of pictures in colour" in colours.said(pixels, keep)
    assert encoder.load("pixels", keep).embed_dim == 96 and not colours.said(encoder.load("pixels", keep), keep)
    assert colours.in_colour(TaskConfig(data=str(finished / "pictures")))


def test_a_source_is_probed_with_the_mean_that_training_read_it_with(finished: Path, tmp_path: Path) -> None:
    """Its own for its shards, the encoder's for others; the task's own word goes before both, of as many numbers as the
    encoder has channels."""
    run, shards = str(finished / "source"), str(finished / "pictures")
    task, about = windows.chosen(run, TaskConfig(data=shards))
    assert task.mean == [0.7, 0.6, 0.5] and task.std is None and about == "mean 0.7 0.6 0.5, as training read pictures"
    mine, plain = encoder.load(run, task), encoder.load(run, TaskConfig(data=shards))
    assert mine.digest != plain.digest
    image = torch.full((1, 3, 8, 8), 0.6)
    std = torch.tensor([0.229, 0.224, 0.225])
    expected = (0.6 - torch.tensor([0.7, 0.6, 0.5])) / std
    assert torch.allclose(mine.prepare(image)[0, :, 0, 0], expected, atol=1e-6)
    other = write_pictures(tmp_path / "other", patients=4, slices=2)
    task, about = windows.chosen(run, TaskConfig(data=str(other)))
    assert task.mean is None and "others (pictures mean 0.7 0.6 0.5), which mean=[…] sets" in about
    task, about = windows.chosen(run, TaskConfig(data=shards, mean=[0.1, 0.2, 0.3]))
    assert task.mean == [0.1, 0.2, 0.3] and not about
    with pytest.raises(SettingsError, match=r"mean=\[0.1\]: .* has 3 channels; give a number for each"):
        encoder.load(run, TaskConfig(data=shards, mean=[0.1]))
    with pytest.raises(SettingsError, match="pixels: normalises by its own mean and std; leave mean and std out"):
        encoder.load("pixels", TaskConfig(data=shards, mean=[0.1]))


def test_curation_reads_colours_by_their_luma(finished: Path) -> None:
    """A colour slice has the descriptor of its grey picture."""
    split = schema.Split(finished / "pictures", "train")
    sample = next(each for each in (split[number] for number in range(len(split))) if each.channels == 3)
    grey = replace(sample, pixels=schema.grey(sample.pixels)[None], channels=1)
    one, other = (catalogue.described(each) for each in (sample, grey))
    assert np.array_equal(one.thumbnail, other.thumbnail) and np.array_equal(one.hash, other.hash)


def test_pictures_seen_in_training_are_found_in_colour(finished: Path, tmp_path: Path) -> None:
    """The digests of three planes are those of the shards that a run was trained on."""
    task = TaskConfig(data=str(finished / "pictures"), stride=StrideConfig(1, 1, 1), probes=["knn"], kind="multilabel")
    examples = sources.load(task, tmp_path)
    turned = {"train": "test", "val": "val", "test": "train"}
    examples.splits[:] = [turned[each] for each in examples.splits]
    found = leaks.check(str(finished / "colour"), task, examples, splits.folds(examples, task), tmp_path)
    assert found.patients == 6 and not found.unchecked


def test_colours_that_keep_pixels_from_being_compared_are_said(finished: Path, tmp_path: Path) -> None:
    """A run on pictures in colour, a task that makes them grey; nothing is said where both keep them."""
    two_colours(tmp_path / "set.npz")
    for colour, said in (("keep", ""), ("grey", "in colour in pretraining and grey in the task, so that their pixels")):
        task = task_of(tmp_path / "set.npz", colour)
        examples = sources.load(task, tmp_path)
        found = leaks.check(str(finished / "colour"), task, examples, splits.folds(examples, task), tmp_path)
        assert said in found.unchecked and bool(said) == bool(found.unchecked)


def test_levels_and_windows_have_a_digest_of_their_own_together(finished: Path) -> None:
    """Features are kept by it: a mean, a window, and both give four different ones."""
    run, shards = str(finished / "colour"), str(finished / "pictures")
    ways = [{}, {"mean": [0.1, 0.2, 0.3]}, {"window": [0.0, 80.0]}, {"mean": [0.1, 0.2, 0.3], "window": [0.0, 80.0]}]
    found = [encoder.load(run, TaskConfig(data=shards, **words)) for words in ways]
    assert len({each.digest for each in found}) == 4
    assert found[3].window == (0.0, 80.0) and found[3].mean == (0.1, 0.2, 0.3)
    assert encoder.preprocessing(found[3], 32)["mean"] == [0.1, 0.2, 0.3]


def test_figures_show_colours_by_their_luma_and_sequences_keep_their_channels() -> None:
    """A picture of two sequences in colour: one plane of each for figures, three of the one that is taken."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16)).astype(np.uint8)
    picture = Picture(pixels, ("a", "b"), "unit8", (0, 16, 0, 16), channels=3)
    shown = images.shown(picture, 16, (0.0, 1.0))
    luma = [schema.grey(pixels[:3]) / 255.0, schema.grey(pixels[3:]) / 255.0]
    assert shown.shape == (2, 16, 16) and np.abs(shown.numpy() - np.stack(luma)).max() < 1 / 255
    one = picture.only([1])
    assert one.sequences == ("b",) and one.channels == 3 and np.array_equal(one.pixels, pixels[3:])


@pytest.mark.parametrize("name", ["cnn", "finetune", "lora"])
def test_networks_are_trained_on_three_planes(name: str, finished: Path, tmp_path: Path) -> None:
    """From scratch, and the encoder itself further."""
    two_colours(tmp_path / "set.npz")
    words = [f"{name}.epochs=2", f"{name}.channels=8", "draws=50", "files.colour=keep", "keep_heads=false"]
    (tmp_path / "task.yaml").write_text(
        f"name: discs\nsource: medmnist\nkind: binary\ndata: {tmp_path}/set.npz\nprobes: [{name}]\nsize: 32\n"
    )
    output = tmp_path / "out"
    fixed = ["--checkpoint", str(finished / "colour"), "--task", str(tmp_path / "task.yaml"), "--output", str(output)]
    assert probe.main([*fixed, *words]) == 0
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert any(row["probe"] == name and row["metric"] == "auroc" for row in rows)
