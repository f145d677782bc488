"""The parts that draw: decoders, nearest patches, volumes put together again, augmentation, overlays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.config import DrawingConfig, StrideConfig, TaskConfig
from eval.data import sources, splits
from eval.data.cohorts import Base, Cohort
from eval.networks import augment, decoders, segmentation, volume_scores
from eval.networks.segmenter import Padded, Segmenter
from eval.probes import patch_bank
from eval.reporting import overlays
from meddap.settings import SettingsError
from pretrain.model.vit import VisionTransformer


@pytest.fixture
def test_part(tiny_dataset, tmp_path: Path) -> Cohort:
    """Test patients of the tiny data set, every second slice."""
    data = tiny_dataset(patients={"train": 2, "val": 2, "test": 3}, slices=8)
    task = TaskConfig(data=str(data), size=64, stride=StrideConfig(2, 2, 2))
    examples = sources.load(task, tmp_path)
    return Cohort("test", Base(examples, None, task, tmp_path), splits.folds(examples, task)[0].rows["test"])


def test_blocks_end_the_quarters() -> None:
    """2, 5, 8, 11 of 12, the proportional ones of other depths."""
    assert decoders.spread(12) == [2, 5, 8, 11] and decoders.spread(24) == [5, 11, 17, 23]
    assert decoders.spread(6) == [1, 2, 4, 5] and decoders.spread(2) == [0, 1] and decoders.spread(40)[-1] == 39


def test_the_linear_decoder_is_a_transposed_convolution() -> None:
    """Twice its stride as kernel, and nothing else."""
    torch.manual_seed(0)
    decoder = decoders.LinearDecoder(12, 3, 4)
    torch.nn.init.normal_(decoder.map.weight)
    tokens = torch.randn(2, 6 * 5, 12)
    kernel = decoder.map.weight.view(3, 8, 8, 12).permute(3, 0, 1, 2)
    expected = F.conv_transpose2d(tokens.transpose(1, 2).unflatten(2, (6, 5)), kernel, decoder.bias, 4, 2)
    torch.testing.assert_close(decoder(tokens, (6, 5)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "primus", "unet"])
@pytest.mark.parametrize("cells", [2, 4, 8, 14])
def test_every_decoder_draws_whole_patches(kind: str, cells: int) -> None:
    """Cells per patch and axis, also of a patch of 14; every parameter has a gradient; rare at first."""
    torch.manual_seed(0)
    decoder = decoders.build(kind, 4 * 16, 3, cells, 4, channels=8)
    drawn = decoder(torch.randn(2, 6 * 5, 64), (6, 5), torch.randn(2, 1, 48, 40))
    assert drawn.shape == (2, 3, 6 * cells, 5 * cells) and drawn.sigmoid().mean() < 0.2
    drawn.square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in decoder.parameters())


def test_decoders_that_there_are_not() -> None:
    """Another name, an odd number of cells for the linear one."""
    with pytest.raises(ValueError, match="'primas': no such decoder; there are linear, primus, unet"):
        decoders.build("primas", 8, 2, 4, 1)
    with pytest.raises(ValueError, match="cells 3: the linear decoder draws an even number"):
        decoders.build("linear", 8, 2, 3, 1)


def test_channels_pass_one_after_the_other() -> None:
    """A segmenter on two channels sees each as it would alone; an image of odd size is padded and cut back."""
    model = VisionTransformer(patch_size=8, embed_dim=32, depth=2, num_heads=2, layer_scale=None)
    model.init_weights(torch.Generator().manual_seed(0))
    decoder = decoders.build("linear", 2 * 2 * 32, 3, 4, 2)
    torch.nn.init.normal_(decoder.map.weight, std=0.05)
    segmenter = Segmenter(model, [0, 1], decoder, decoders.Standardise(torch.zeros(128), torch.ones(128)))
    images = torch.randn(2, 2, 32, 24)
    alone = [torch.cat([each.patches for each in model.intermediate(images[:, c : c + 1], [0, 1])], 2) for c in (0, 1)]
    torch.testing.assert_close(segmenter.features(images), torch.cat(alone, dim=2))
    assert segmenter(images).shape == (2, 3, 16, 12)
    whole = Padded(Segmenter(model, [1], decoders.build("primus", 64, 3, 8, 1), decoders.Standardise(
        torch.zeros(64), torch.ones(64))), 8)  # fmt: skip
    assert whole(images[..., :29, :21]).shape == (2, 3, 29, 21)


def test_patches_vote_as_counted_one_by_one() -> None:
    """Against a loop over neighbours; a patch of a series without the organ has no vote; each patch finds itself."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 16, 5, generator=generator)
    structures = (torch.rand(6, 2, 8, 8, generator=generator) < 0.2).float()
    known = torch.tensor([[1, 1]] * 4 + [[1, 0]] * 2).bool()
    bank = patch_bank.collect([(features[:3], structures[:3], known[:3]), (features[3:], structures[3:], known[3:])],
                              96, 96, 2, 0)  # fmt: skip
    assert len(bank.tokens) == 96
    own = bank.draw(features[:4], (4, 4), [1], 0.07)[0]
    torch.testing.assert_close(own, structures[:4])
    queries = torch.randn(1, 16, 5, generator=generator)
    found = bank.draw(queries, (4, 4), [3, 7], 0.1)[1][0]
    for place in range(16):
        similar = bank.tokens @ F.normalize(queries[0, place], dim=0)
        near = similar.argsort(descending=True)[:7]
        for organ in range(2):
            votes = (similar[near] / 0.1).exp() * bank.annotated[near, organ]
            share = (votes[:, None] * bank.drawn[near, organ]).sum(0) / votes.sum().clamp(min=1e-12)
            row, column = 2 * (place // 4), 2 * (place % 4)
            torch.testing.assert_close(found[organ, row : row + 2, column : column + 2].flatten(), share)


def test_a_bank_keeps_what_is_rare() -> None:
    """Of 4,000 patches of which 20 hold the organ a bank of 100 has all 20."""
    structures = torch.zeros(10, 1, 20, 20)
    structures[0].view(-1)[:20] = 1
    features = torch.randn(10, 400, 3, generator=torch.Generator().manual_seed(0))
    bank = patch_bank.collect([(features, structures, torch.ones(10, 1).bool())], 4000, 100, 1, 0)
    assert bank.drawn.sum() == 20 and 90 <= len(bank.tokens) <= 100


def truth(cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
    """A drawer that knows the answer, four times as fine as the pictures."""
    return segmentation.targets(cohort.maps(256)[rows], cohort.examples)


def test_volumes_are_put_together_as_they_were(test_part: Cohort) -> None:
    """The truth drawn is the truth, slice by slice, in mm; in whatever order the slices lie; half a slice apart it is
    not; an organ that is unlabelled in a study has no figure."""
    config, half = DrawingConfig(tolerance_mm=1.0), np.full(2, 0.5)
    found = volume_scores.measure(truth, half, test_part, config)
    assert (found.values["dice"] > 0.97).all()
    assert (found.values["hd95"] <= 2).all() and (found.values["nsd"] > 0.95).all()
    assert volume_scores.spacing(test_part.examples, np.arange(4)) == (6.0, 2.0, 2.0)  # every second slice of 3 mm
    mixed = Cohort("test", test_part.base, np.random.default_rng(0).permutation(test_part.rows))
    assert all(np.array_equal(volume_scores.measure(truth, half, mixed, config).values[name], each)
               for name, each in found.values.items())  # fmt: skip
    worse = volume_scores.measure(lambda cohort, rows: truth(cohort, rows).roll(8, 3), half, test_part, config)
    assert (worse.values["dice"] < found.values["dice"]).all() and (worse.values["hd95"] > found.values["hd95"]).all()
    unlabelled = test_part.base.examples.annotated.copy()
    unlabelled[test_part.base.examples.subjects == found.subjects[1], 0] = False
    base = replace(test_part.base, examples=replace(test_part.base.examples, annotated=unlabelled))
    found = volume_scores.measure(truth, half, Cohort("test", base, test_part.rows), config)
    assert np.isnan(found.values["dice"][0, 1, 0]) and np.isfinite(found.values["dice"]).sum() == 5


def test_pieces_make_the_volume_again() -> None:
    """Cut slice by slice and put into one box; what one has not the other's box still holds; nothing is one voxel."""
    rng = np.random.default_rng(0)
    whole = [np.zeros((5, 9, 11), bool), np.zeros((5, 9, 11), bool)]
    whole[0][1:3, 2:6, 3:5] = rng.random((2, 4, 2)) < 0.7
    whole[1][2:4, 4:8, 1:9] = rng.random((2, 4, 8)) < 0.7
    pieces = [volume_scores.Pieces() for _ in whole]
    for each, volume in zip(pieces, whole):
        for place, plane in enumerate(volume):
            each.add(place, plane)
    either = np.argwhere(whole[0] | whole[1])
    box = tuple(slice(low, high + 1) for low, high in zip(either.min(axis=0), either.max(axis=0)))
    assert all(np.array_equal(found, volume[box]) for found, volume in zip(volume_scores.boxed(*pieces), whole))
    assert [each.shape for each in volume_scores.boxed(volume_scores.Pieces(), volume_scores.Pieces())] == [
        (1, 1, 1)
    ] * 2


def test_a_volume_that_cannot_be_measured_is_one_line(test_part: Cohort) -> None:
    """The slice's key and both shapes; the study and its spacing."""
    read = test_part.base.examples.reader
    bad = replace(test_part.base.examples, reader=lambda row: replace(read(row), labelmap=np.zeros((9, 9), np.uint8)))
    cohort = Cohort("test", replace(test_part.base, examples=bad), test_part.rows)
    with pytest.raises(ValueError, match=r"label map of \(9, 9\) pixels on an image of \(64, 64\)"):
        volume_scores.measure(
            lambda cohort, rows: torch.zeros(len(rows), 2, 8, 8), np.full(2, 0.5), cohort, DrawingConfig()
        )
    flat = replace(test_part.base.examples, reader=lambda row: replace(read(row), spacing=(0.0, 1.0)))
    cohort = Cohort("test", replace(test_part.base, examples=flat), test_part.rows)
    with pytest.raises(SettingsError, match=r"study \w+: spacing .* mm: must be above zero"):
        volume_scores.measure(
            lambda cohort, rows: torch.zeros(len(rows), 2, 8, 8), np.full(2, 0.5), cohort, DrawingConfig()
        )


def test_thresholds_are_those_of_the_best_dice(test_part: Cohort) -> None:
    """A drawer that says 0.35 inside and 0.25 outside is cut between the two."""
    thresholds, dice = segmentation.choose(
        lambda cohort, rows: 0.25 + 0.1 * truth(cohort, rows), test_part, DrawingConfig()
    )
    assert thresholds.tolist() == [0.3, 0.3] and dice == pytest.approx(1.0)


def test_maps_move_with_their_images() -> None:
    """An image that is its own label map stays it; nothing moves where nothing may; one draw is one change."""
    images = torch.zeros(6, 1, 64, 64)
    images[:, :, 20:40, 16:30] = 1
    maps = images[:, 0].to(torch.uint8)
    moved, turned = augment.augment(images, maps, np.random.default_rng(0))
    # away from the edges of the square, where bilinear and nearest differ
    assert ((moved[:, 0] > 0.5) != (turned > 0)).float().mean() < 0.01 and not torch.equal(turned, maps)
    again = augment.augment(images, maps, np.random.default_rng(0))
    assert torch.equal(again[0], moved) and torch.equal(again[1], turned)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("TURN", "ZOOM", "SHIFT", "GAIN", "OFFSET"):
            patched.setattr(augment, name, 0.0)
        same, kept = augment.augment(images, maps, np.random.default_rng(0))
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)
    assert torch.equal(kept, maps)


def test_best_median_and_worst() -> None:
    """By mean Dice; a patient without a figure is none of them."""
    dice = np.array([0.3, np.nan, 0.9, 0.5, 0.7])
    assert overlays.ranked(dice).tolist() == [2, 3, 0] or overlays.ranked(dice).tolist() == [2, 4, 0]
    assert overlays.ranked(np.full(3, np.nan)).tolist() == []
