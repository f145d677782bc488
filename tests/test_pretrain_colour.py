"""Models of three channels: colours as they are stored, grey three times, distortions, one batch of both, one run."""

from __future__ import annotations

import colorsys
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.batches import SETTINGS
from helpers.corpora import overrides, write_pictures
from helpers.datasets import write_dataset
from helpers.processes import said
from helpers.processes import train as train_on
from helpers.tiny_run import CONFIG, rows, stop_after_every_step, weights
from torch import nn

from benchmarks.plain_step import PlainStep
from data_prep import schema
from meddap.settings import SettingsError
from pretrain import build, checks, distillation, train
from pretrain.config import load
from pretrain.corpora import open_corpus
from pretrain.data import colour, stream, views
from pretrain.data.colour import ColourSettings
from pretrain.data.corpus import Corpus
from pretrain.data.intensity import Intensity
from pretrain.data.micro_batch import MicroBatch

RGB = Intensity((-200, 300), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
COLOUR = CONFIG.replace(
    "layer_scale: null, drop_path: 0.1}", "layer_scale: null, drop_path: 0.1, channels: 3, sequences: [ct, image]}"
).replace("window_shift: 20}", "window_shift: 20, colour: {jitter_p: 0.8, grey_p: 0.2, solarise_p: [0.0, 0.2, 0.0]}}")
WORDS = ("data.sources.pictures.weight=0.6", "data.sources.body.window=[-200,300]")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Roots of pictures in colour and grey, and of CT; to be read only."""
    root = tmp_path_factory.mktemp("colours")
    body = write_dataset(root / "body", {"train": 4, "val": 2, "test": 2}, sequences={"ct": 8})
    return {"pictures": write_pictures(root / "pictures"), "body": body}


@pytest.fixture
def run(corpus: dict[str, Path], tmp_path: Path):
    """run(name, *words) trains the tiny configuration on both sources and returns the exit status."""
    (tmp_path / "colour.yaml").write_text(COLOUR)

    def start(name: str, *words: str) -> int:
        fixed = ["--config", str(tmp_path / "colour.yaml"), f"name={name}", f"output={tmp_path}"]
        return train.main([*fixed, *overrides(corpus), *WORDS, *words])

    return start


def first_batch(corpus: Corpus, names: tuple[str, ...], size: int = 8, channels: int = 3) -> stream.Batch:
    batches = stream.batches(corpus, batch_size=size, seed=1, sequences=names, channels=channels)
    found = next(batches)
    batches.close()
    return found


def pictured(seed: int = 0, count: int = 6, size: int = 8) -> torch.Tensor:
    """Random colours, some pixels grey, some red as green."""
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    images[:, :, 0] = images[:, :1, 0]
    images[:, 1, 1] = images[:, 0, 1]
    return images


def factors(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_hue_turns_the_circle_as_colorsys_does() -> None:
    """Every pixel's hue is shifted in HSV by the standard library's formulas; grey stays; a turn of 0 is nothing."""
    images, shifts = pictured(), [0.0, 0.05, -0.1, 0.3, -0.5, 0.5]
    found = colour.hue(images, factors(*shifts))
    for image, turned, shift in zip(images.numpy(), found.numpy(), shifts):
        for row, column in itertools.product(range(8), range(8)):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
            expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
            assert np.abs(turned[:, row, column] - expected).max() < 1e-5
    assert torch.allclose(found[0], images[0], atol=1e-6) and torch.allclose(found[:, :, 0], images[:, :, 0], atol=1e-6)


def test_brightness_contrast_and_saturation_blend_as_torchvision_says() -> None:
    """factor · image + (1 − factor) · (black, the mean grey, the own grey), cut to 0…1; a factor of 1 is nothing."""
    images, factor = pictured(1), factors(0.0, 0.6, 1.0, 1.4, 1.9, 0.3)
    luma = (images * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)
    others = {
        colour.brightness: torch.zeros_like(images),
        colour.contrast: luma.mean(dim=(1, 2, 3), keepdim=True),
        colour.saturation: luma,
    }
    for change, other in others.items():
        expected = (factor * images + (1 - factor) * other).clamp(0, 1)
        assert torch.allclose(change(images, factor), expected, atol=1e-6), change.__name__
        assert torch.allclose(change(images, factors(*[1.0] * 6)), images, atol=1e-6)


def test_changes_come_as_often_as_their_probabilities_and_in_every_order() -> None:
    """Shares of jittered, grey and solarised crops; factors within 1 ± strength, hue ± 0.1, uniform; all 24 orders."""
    settings = ColourSettings(0.8, 0.4, 0.4, 0.2, 0.1, 0.2, (0.0, 0.2, 0.0))
    count = np.arange(20_000)
    drawn = colour.sample(settings, 3, np.zeros_like(count), count, 1, 1, 0)
    for found, expected in ((drawn.jitter, 0.8), (drawn.grey, 0.2), (drawn.solarise, 0.2)):
        assert found.mean() == pytest.approx(expected, abs=0.015)
    assert not colour.sample(settings, 3, np.zeros_like(count), count, 0, 0, 0).solarise.any()
    for place, (low, high) in enumerate(((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1))):
        shares = np.histogram(drawn.factors[:, place], bins=8, range=(low, high))[0] / len(count)
        assert shares.sum() == 1 and np.abs(shares - 1 / 8).max() < 0.015
    orders, times = np.unique(drawn.order, axis=0, return_counts=True)
    assert len(orders) == 24 and times.min() > 600


def test_each_change_is_made_in_its_own_order_and_only_where_it_was_drawn() -> None:
    """Two crops with the same factors in opposite orders, a grey, a solarised and an untouched one."""
    images, order = pictured(2, 5), np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]])
    strength = np.float32([[1.3, 0.7, 1.2, 0.1]] * 5)
    which = [np.arange(5) == place for place in range(5)]
    found = images.clone()
    colour.apply(found, colour.ColourDraws(which[0] | which[1], which[2], which[3], strength, order))
    changes = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
    for place, numbers in ((0, range(4)), (1, reversed(range(4)))):
        expected = images[place : place + 1]
        for number in numbers:
            expected = changes[number](expected, factors(strength[0, number]))
        assert torch.allclose(found[place], expected[0], atol=1e-6)
    assert (found[2] == found[2, :1]).all() and not torch.allclose(found[0], found[1], atol=1e-3)
    bright = images[3] >= 128 / 255
    assert torch.equal(found[3], torch.where(bright, 1 - images[3], images[3])) and torch.equal(found[4], images[4])


def test_a_batch_holds_colours_as_they_are_stored_and_grey_three_times(corpus) -> None:
    """Planes of each sequence side by side; a model of grey images names what to set."""
    split, names = schema.Split(corpus["pictures"], "train"), ("ct", "image")
    batch = first_batch(Corpus.of(split), names, len(split))
    seen = set()
    for row, number in enumerate(batch.sample.tolist()):
        stored = split[number]
        seen.add(stored.channels)
        expected = np.broadcast_to(schema.signed(stored.pixels.copy()), (3, *stored.pixels.shape[1:]))
        assert np.array_equal(batch.pixels[row, 3:].numpy(), expected)
        assert (batch.pixels[row, :3] == schema.AIR_HU).all() and batch.present[row].tolist() == [False, True]
    assert seen == {1, 3}
    with pytest.raises(schema.SchemaError, match="image is in colour, and the model takes grey; set model.channels=3"):
        first_batch(Corpus.of(split), ("image",), len(split), channels=1)


@pytest.mark.parametrize("distorted", [False, True])
def test_both_ways_of_making_views_agree_in_colour(distorted: bool, corpus, tmp_path: Path) -> None:
    """Matrix products and sums slice by slice, CT, grey and colour in a batch, absent sequences black."""
    (tmp_path / "c.yaml").write_text(COLOUR)
    config = load(tmp_path / "c.yaml", overrides(corpus))
    several = open_corpus(config)
    batch = first_batch(several, ("ct", "image"), 12)
    slice_ = replace(SETTINGS.slice, noise_p=1.0, gamma_p=1.0) if distorted else SETTINGS.slice
    settings = replace(
        SETTINGS, intensity=RGB, channels=3, sequences=("ct", "image"), slice=slice_, gram_size=24,
        source_intensities=(RGB, replace(RGB, mean=(0.1, 0.2, 0.3))), source_thresholds=(-500.0, 0.0),
        colour=ColourSettings(jitter_p=1.0, grey_p=0.3, solarise_p=(0.5, 0.5, 0.5)),
    )  # fmt: skip
    one, other = (views.make(batch, settings, seed=1, products=products) for products in (True, False))
    for name in ("global_crops", "local_crops", "gram_crops"):
        # a pixel at the threshold of solarisation may fall on either side
        difference = (getattr(one, name) - getattr(other, name)).abs()
        assert (difference > 1e-3).float().mean() < 1e-3, name
    for row, (source, present) in enumerate(zip(batch.source.tolist(), batch.present.tolist())):
        means = torch.tensor(settings.source_intensities[source].means)
        black = -means / torch.tensor(RGB.stds)
        absent = one.global_crops[:, row, 3 * present.index(False) :][:, :3]
        assert torch.allclose(absent, black.view(1, 3, 1, 1).expand_as(absent), atol=1e-6)


def test_a_grey_slice_is_seen_as_a_model_of_one_channel_sees_it(tiny_dataset) -> None:
    """The same window, noise, blur, gamma and crop in all channels: (u − mean) / std of the grey model's u."""
    split = schema.Split(tiny_dataset(), "train")
    grey = replace(SETTINGS, intensity=Intensity((-200, 300), 0.0, 1.0), gamma_p=(0.5, 0.5, 0.5), gram_size=32)
    rgb = replace(grey, intensity=RGB, channels=3)
    one = views.make(first_batch(Corpus.of(split), ("ct",), 6, 1), grey, seed=1)
    three = views.make(first_batch(Corpus.of(split), ("ct",), 6, 3), rgb, seed=1)
    for name in ("global_crops", "local_crops", "gram_crops"):
        expected = RGB.standardise(getattr(one, name).repeat(1, 1, 3, 1, 1))
        torch.testing.assert_close(getattr(three, name), expected, atol=1e-5, rtol=1e-5)


def test_a_source_has_its_own_mean_std_and_body(tiny_dataset) -> None:
    """Crops of grey sources are standardised each by its own numbers; a threshold above all tissue finds no body."""
    split = schema.Split(tiny_dataset(), "train")
    batch = first_batch(Corpus.of(split), ("ct",), 6, 1)
    mine = replace(batch, sample=batch.sample + (torch.arange(6) % 2 << 40))
    assert mine.source.tolist() == [0, 1] * 3
    plain = replace(SETTINGS, intensity=Intensity((-200, 300), 0.0, 1.0))
    own = Intensity((-200, 300), 0.3, 0.5)
    several = replace(SETTINGS, intensity=own, source_intensities=(own, replace(own, mean=0.6, std=0.1)))
    for products in (True, False):
        units, found = (views.make(mine, each, seed=1, products=products).local_crops for each in (plain, several))
        for row, (mean, std) in enumerate([(0.3, 0.5), (0.6, 0.1)] * 3):
            torch.testing.assert_close(found[:, row], (units[:, row] - mean) / std, atol=1e-5, rtol=1e-5)
        high = replace(plain, min_body=0.9, source_thresholds=(-500.0, 3000.0))
        low = replace(plain, min_body=0.9)
        one, other = (views.make(mine, each, seed=1, products=products).global_crops for each in (low, high))
        assert torch.equal(one[:, ::2], other[:, ::2]) and not torch.equal(one[:, 1::2], other[:, 1::2])


class Alone(nn.Module):
    """A backbone that sees every image by itself, of its own sequences alone; features laid out as of all sequences."""

    def __init__(self, backbone: nn.Module, present: torch.Tensor, sequences: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone, self.present, self.sequences = backbone, present, sequences

    def forward(self, images, mask=None, draws=None):
        every_cls, every_patch = [], []
        for number, image in enumerate(images):
            places = self.present[number % len(self.present)].nonzero().squeeze(1).tolist()
            planes = image.unflatten(0, (len(self.sequences), -1))[places].flatten(0, 1)[None]
            masked = (
                None if mask is None else mask[number].unflatten(0, (len(self.sequences), -1))[places].flatten()[None]
            )
            found = self.backbone(planes, masked, sequences=tuple(self.sequences[place] for place in places))
            whole = found.patches.new_zeros(len(self.sequences), *found.patches.shape[1:])
            whole[places] = found.patches
            every_cls.append(found.cls[0])
            every_patch.append(whole.flatten(0, 1))
        return torch.stack(every_cls), torch.stack(every_patch)


def test_a_mixed_batch_has_the_losses_and_gradients_of_the_plain_way(corpus, tmp_path: Path) -> None:
    """CT, grey and colour pictures in one packed pass; each image alone, plain Sinkhorn and cross-entropy."""
    (tmp_path / "c.yaml").write_text(COLOUR)
    config = load(tmp_path / "c.yaml", [*overrides(corpus), *WORDS, "model.drop_path=0"])
    stage, several, names = checks.stage(config, "adapt"), open_corpus(config), tuple(config.data.sequences)
    batch = first_batch(several, names, 10)
    assert {tuple(row) for row in batch.present.tolist()} == {(True, False), (False, True)}
    made = views.make(batch, build.view_settings(stage, config.intensity, names, 3, several), seed=0)
    masks = build.masks(stage, config, batch, 32)
    student, teacher = build.student_and_teacher(config, torch.device("cpu"))
    for model, seed in ((student, 0), (teacher, 1)):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    step = distillation.StepWeights(teacher_temp=0.06, koleo=0.1)
    found = distillation.backward(student, teacher, [MicroBatch(made, masks)], step)
    ours = {name: each.grad.clone() for name, each in student.named_parameters() if each.grad is not None}
    student.zero_grad()

    def plain(model) -> SimpleNamespace:
        own = Alone(model.backbone, batch.present, names)
        return SimpleNamespace(backbone=own, dino_head=model.dino_head, ibot_head=model.ibot_head)

    whole = SimpleNamespace(student=plain(student), teacher=plain(teacher), temperature=0.06)
    expected = PlainStep.losses(whole, made.global_crops, made.local_crops, masks, None)
    expected["total"].backward()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-5, atol=1e-5, msg=name)
    for name, parameter in student.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-7:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_run_in_colour_stopped_at_every_step_is_the_run_that_was_not(run, tmp_path: Path, monkeypatch) -> None:
    """CT, grey and colour pictures, colours distorted, killed after every step: the same bits."""
    assert run("whole") == 0
    assert stop_after_every_step(lambda: run("stopped"), monkeypatch) == 11
    for stage, last in (("adapt", "00000008"), ("second", "00000003")):
        assert rows(tmp_path / "whole" / stage) == rows(tmp_path / "stopped" / stage)
        ours, theirs = (weights(tmp_path / name / stage / last) for name in ("whole", "stopped"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("spread", ["ddp", pytest.param("fsdp", marks=pytest.mark.stress)])
def test_two_ranks_share_a_batch_in_colour(spread: str, corpus, tmp_path: Path) -> None:
    """The metrics of one process, whole numbers alike, others to 1e-5."""
    (tmp_path / "c.yaml").write_text(COLOUR)
    for name, size in (("one", 1), ("two", 2)):
        fixed = ["--config", str(tmp_path / "c.yaml"), f"name={name}", f"output={tmp_path}", "--stage", "adapt"]
        words = [*fixed, *overrides(corpus), *WORDS, f"machine.parallel={spread}"]
        assert train_on(words, size, tmp_path / "logs" / name) == [0] * size, said(tmp_path / "logs" / name)
    for ours, theirs in zip(rows(tmp_path / "one" / "adapt"), rows(tmp_path / "two" / "adapt"), strict=True):
        assert ours["samples"] == theirs["samples"]
        for key, value in ours.items():
            assert value == theirs[key] or value == pytest.approx(theirs[key], rel=1e-5, abs=1e-5), key


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.channels=2"], "model.channels=2: take 1 (grey) or 3 (red, green and blue)"),
        (["intensity.mean=0.4"], "intensity.mean=0.4: does nothing with model.channels=3; set intensity.rgb_mean"),
        (
            ["data.sources.body.std=0.4"],
            "data.sources.body.std=0.4: does nothing with model.channels=3; set data.sources",
        ),
        (["intensity.rgb_std=[0.1,0.2]"], "intensity.rgb_std=[0.1, 0.2]: expected 3 numbers"),
        (["data.sources.body.rgb_std=[0.1,0.2,0]"], "expected 3 numbers, above 0"),
        (["stage_defaults.augment.colour.hue=0.6"], "augment.colour.hue=0.6: expected from 0 to 0.5"),
        (["stage_defaults.augment.colour.solarise_p=[2,0,0]"], "expected 3 numbers, from 0 to 1"),
        (
            ["model.channels=1", "data.sources.pictures.weight=0", "stage_defaults.augment.colour.grey_p=0"],
            "stages.adapt.augment.colour.jitter_p=0.8: needs model.channels=3; set that, or leave it out",
        ),
        (["data.sources.body.body_threshold_hu=nan"], "data.sources.body.body_threshold_hu=nan: expected a finite"),
    ],
)
def test_what_does_not_fit_is_one_line(words: list[str], said: str, run, capsys) -> None:
    """Channels, means and distortions of the other kind of model, and numbers outside their range."""
    assert run("bad", *words) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0], errors


def test_a_run_does_not_go_on_with_another_mean_of_a_source(run, capsys) -> None:
    """Mean, deviation and threshold of a source are part of what it was trained on; so are the channels."""
    assert run("a", "--stage", "adapt", "data.sources.body.rgb_mean=[0.4,0.4,0.4]") == 0
    capsys.readouterr()
    for words, expected in (
        ([], "mean of the source body was [0.4, 0.4, 0.4] when this run began, now None"),
        (["data.sources.body.rgb_mean=[0.4,0.4,0.4]", "data.sources.body.body_threshold_hu=0"], "body_threshold_hu of"),
    ):
        assert run("a", "--stage", "adapt", *words) == 1
        assert expected in capsys.readouterr().err


def test_colours_may_be_distorted_in_a_model_that_sees_them_alone() -> None:
    """Each setting of colours is refused for grey, and taken for three channels."""
    from pretrain.config import Config, ModelConfig

    stages = {"only": {"steps": 10, "augment": {"colour": {"brightness": 0.2}}}}
    with pytest.raises(SettingsError, match="augment.colour.brightness=0.2: needs model.channels=3"):
        checks.stage(Config(name="x", stages=stages), "only")
    checks.stage(Config(name="x", stages=stages, model=ModelConfig(channels=3)), "only")
