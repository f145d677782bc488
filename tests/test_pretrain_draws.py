"""What is drawn has the references' distributions, with a fixed seed; tolerances are sampling errors."""

from __future__ import annotations

import math
import types
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from helpers.batches import SETTINGS, take
from helpers.datasets import body_slice
from scipy import ndimage, stats

from data_prep import schema
from meddap.settings import SettingsError
from pretrain import build, checks
from pretrain.config import AugmentConfig, Config, CropsConfig, IntensityConfig, StageConfig
from pretrain.data import boxes, masking, order, randomness, slices, stream, views
from pretrain.data.intensity import Intensity

ASPECT = (3 / 4, 4 / 3)
GLOBAL, LOCAL = (0.32, 1.0), (0.05, 0.32)
BOXES = 4000  # of each distribution
PLAIN = replace(
    SETTINGS,
    flip=0.0,
    min_body=0.0,
    candidates=1,
    window_shift=0.0,
    window_stretch=0.0,
    noise_p=0.0,
    blur_p=(0.0, 0.0, 0.0),
    gram_size=32,
)
FLEXICT = slices.SliceSettings(noise_p=0.1, smooth_p=0.2, scale_p=0.15, low_resolution_p=0.25, gamma_p=0.1)


def draws_of(count: int, candidates: int = 1) -> np.ndarray:
    """(count, candidates, …) numbers of so many samples' boxes."""
    number = np.arange(count)
    return randomness.uniforms(0, 0 * number, number, 0, candidates * boxes.DRAWS).reshape(count, candidates, -1)


def boxes_in(height: int, width: int, scale: tuple, count: int = BOXES, **more) -> np.ndarray:
    """(count, 4) drawn boxes (row, column, height, width) in a foreground that begins at (5, 9)."""
    foreground = np.array([[5, 5 + height, 9, 9 + width]] * count)
    return boxes.draw(foreground, draws_of(count), scale, ASPECT, **more)[:, 0] - [5, 9, 0, 0]


def random_resized_crops(height: int, width: int, scale: tuple, count: int) -> np.ndarray:
    """(count, 4) boxes by torchvision, or by a loop that does what its documentation says."""
    try:
        from torchvision.transforms import RandomResizedCrop

        torch.manual_seed(0)
        image = torch.zeros(1, height, width)
        return np.array([RandomResizedCrop.get_params(image, scale, ASPECT) for _ in range(count)])
    except (ImportError, RuntimeError):  # RuntimeError: of another version than PyTorch
        draw = np.random.default_rng(0)
        return np.array([random_resized_crop(draw, height, width, scale) for _ in range(count)])


def random_resized_crop(draw: np.random.Generator, height: int, width: int, scale: tuple) -> tuple[int, ...]:
    for _ in range(10):
        area = height * width * draw.uniform(*scale)
        ratio = math.exp(draw.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        tall, broad = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < broad <= width:
            return draw.integers(0, height - tall + 1), draw.integers(0, width - broad + 1), tall, broad
    tall, broad = height, width
    if width / height < ASPECT[0]:
        tall = round(width / ASPECT[0])
    elif width / height > ASPECT[1]:
        broad = round(height * ASPECT[1])
    return (height - tall) // 2, (width - broad) // 2, tall, broad


def touching(found: np.ndarray, height: int, width: int) -> float:
    """Share of boxes as tall or as broad as the foreground."""
    return ((found[:, 2] == height) | (found[:, 3] == width)).mean()


@pytest.mark.parametrize(
    ("height", "width", "area", "touch"), [(512, 512, 0.60, 0.006), (400, 300, 0.56, 0.011), (256, 480, 0.45, 0.037)]
)
def test_global_crops_are_random_resized_crops(height: int, width: int, area: float, touch: float) -> None:
    """Area, aspect and place as RandomResizedCrop's (Kolmogorov and Smirnov, p > 0.001); mean area and the share that
    touches two borders within four standard errors, and they are not those of boxes cut at the border."""
    ours, theirs = boxes_in(height, width, GLOBAL), random_resized_crops(height, width, GLOBAL, BOXES)
    measures = {
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: np.log(box[:, 3] / box[:, 2]),
        "row": lambda box: box[:, 0] + box[:, 2] / 2,
        "column": lambda box: box[:, 1] + box[:, 3] / 2,
    }
    for name, measure in measures.items():
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001, name
    shares = measures["area"](ours) / (height * width)
    assert abs(shares.mean() - area) < 4 * shares.std() / math.sqrt(BOXES) + 0.005  # of the rounded figure
    assert abs(touching(ours, height, width) - touch) < 4 * math.sqrt(touch / BOXES)
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()


@pytest.mark.parametrize(("height", "width"), [(400, 300), (256, 480)])
def test_local_crops_have_uniform_areas_and_log_uniform_aspects(height: int, width: int) -> None:
    """Where every box fits none is drawn again: both distributions are the ones that are named (p > 0.001)."""
    found = boxes_in(height, width, LOCAL)
    area, aspect = found[:, 2] * found[:, 3] / (height * width), np.log(found[:, 3] / found[:, 2])
    assert stats.kstest(area, stats.uniform(LOCAL[0], LOCAL[1] - LOCAL[0]).cdf).pvalue > 0.001
    assert stats.kstest(aspect, stats.uniform(math.log(3 / 4), 2 * math.log(4 / 3)).cdf).pvalue > 0.001


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 1, (0, 0, 1, 1)), (300, 10, (143, 0, 13, 10)), (10, 300, (0, 143, 10, 13)), (1, 40, (0, 19, 1, 1))],
)
def test_where_no_crop_fits_it_is_the_central_one(height: int, width: int, expected: tuple) -> None:
    """A foreground far from the allowed aspects gives the largest central box with the nearest allowed one."""
    found = boxes_in(height, width, (0.9, 1.0), count=20)
    assert (found == expected).all()


def test_crops_by_side_are_as_described() -> None:
    """Height = ⌊H·s·r⌋, width = ⌊W·s⌋ with uniform s and r, at least 1, cut at the foreground's height; the place is
    uniform: box by box, and s and r by their distributions (p > 0.001)."""
    height, width = 200, 150
    found, draws = boxes_in(height, width, (0.5, 1.0), scale_of="side"), draws_of(BOXES)[:, 0]
    for box, (up, left, s, r, *_) in zip(found.tolist(), draws.tolist()):
        share, ratio = 0.5 + 0.5 * s, ASPECT[0] + (ASPECT[1] - ASPECT[0]) * r
        tall, broad = min(int(height * share * ratio), height), int(width * share)
        assert box == [int(up * (height - tall + 1)), int(left * (width - broad + 1)), tall, broad]
    assert stats.kstest(found[:, 3] / width, stats.uniform(0.5, 0.5).cdf).pvalue > 0.001 / width
    free = found[:, 2] < height
    assert 0.5 < free.mean() < 0.95 and (boxes_in(3, 2, (0.01, 0.1), 50, scale_of="side")[:, 2:] == 1).all()


@pytest.mark.parametrize("scale_of", ["area", "side"])
def test_crops_around_labels_are_centred_at_a_uniformly_drawn_voxel(scale_of: str) -> None:
    """The centre is a labelled voxel, each as likely as another (p > 0.001), unless the near border shifts it; the far
    border cuts. A sample without labelled voxels has the box that it has without the setting."""
    height, width, count = 120, 100, 3000
    places = np.array([[60, 50], [61, 50], [0, 0], [119, 99]], np.int16)
    voxels = np.concatenate([places + np.int16([5, 9])] * (count // 2))
    starts = np.array([0, *accumulate([len(places), 0] * (count // 2))])  # every second sample has none
    more = {"scale_of": scale_of, "scale": (0.2, 0.4), "count": count}
    found = boxes_in(height, width, labelled=(voxels, starts), **more)
    plain = boxes_in(height, width, **more)
    assert np.array_equal(found[1::2], plain[1::2])
    chosen = []
    for box, (_, _, tall, broad) in zip(found[::2], plain[::2]):
        expected = []
        for centre in places.tolist():
            top, left = max(centre[0] - tall // 2, 0), max(centre[1] - broad // 2, 0)
            expected.append([top, left, min(tall, height - top), min(broad, width - left)])
        chosen.append(expected.index(box.tolist()))
    assert stats.chisquare(np.bincount(chosen, minlength=4)).pvalue > 0.001


@pytest.fixture
def split(tiny_dataset) -> schema.Split:
    """24 training slices, every second one without a label map."""

    def some(*where) -> schema.Slice:
        made = body_slice(*where)
        return made if made.order % 2 else replace(made, labelmap=None)

    return schema.Split(tiny_dataset(make=some), "train")


def test_views_around_labels_do_not_depend_on_the_ranks(split: schema.Split) -> None:
    """Two ranks' views together are one rank's, to float32's last digits, and others than without the setting; a batch
    that was read without labelled voxels is refused."""
    settings = replace(PLAIN, around_labels=True, candidates=3, min_body=0.3)
    ranks = ((0, 1), (0, 2), (1, 2))
    batches = [take(split, 1, voxels=True, rank=rank, world=world)[0] for rank, world in ranks]
    whole, *parts = (views.make(each, settings, 7).local_crops for each in batches)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
    (plain,) = take(split, 1)
    assert not torch.equal(views.make(plain, replace(settings, around_labels=False), 7).local_crops, whole)
    with pytest.raises(ValueError, match="voxels=True"):
        views.make(plain, settings, 7)


def test_labels_that_nothing_has_are_refused(split: schema.Split) -> None:
    """around_labels without any label map, an unknown law of sizes, exponents of 0: one line with key and value."""
    stage = StageConfig(steps=1, crops=CropsConfig(around_labels=True))
    assert build.reads_voxels("adapt", stage, split)
    none = types.SimpleNamespace(root=split.root, dataset={"labels": {}})
    with pytest.raises(SettingsError, match="stages.adapt.crops.around_labels=true: .* has no label map; .*false"):
        build.reads_voxels("adapt", stage, none)
    wrong = {
        ": crops.scale_of: Invalid value 'sides', expected": {"crops": {"scale_of": "sides"}},
        ".augment.gamma_p=.0.5.: expected 3 numbers": {"augment": {"gamma_p": [0.5]}},
        ".augment.slice.gamma=.0.0, 1.0.: expected 2 numbers, above 0": {"augment": {"slice": {"gamma": [0, 1]}}},
    }
    for said, entry in wrong.items():
        config = Config(name="x", stages={"adapt": {"steps": 1, **entry}})
        with pytest.raises(SettingsError, match=f"stages.adapt{said}"):
            checks.stage(config, "adapt")


def masks_of(sample: torch.Tensor, side: int, **more) -> np.ndarray:
    """(2, B, side, side) masks of half of the crops, ratios 0.1 to 0.5."""
    found = masking.sample((side, side), sample, 0 * sample, 3, probability=0.5, ratio=(0.1, 0.5), **more)
    return found.unflatten(0, (2, -1)).unflatten(2, (side, side)).numpy()


def test_exactly_half_of_the_crops_are_masked_and_their_ratios_are_strata() -> None:
    """⌊2·B·p⌋ masked crops, the i-th ratio in the i-th of as many equal parts of 0.1 to 0.5, ⌊P·ratio⌋ patches each."""
    for images, probability in ((64, 0.5), (7, 0.5), (7, 0.3), (5, 0.0), (5, 1.0)):
        sample, crops = torch.arange(images), int(2 * images * probability)
        masks = masking.sample((30, 40), sample, 0 * sample, 1, probability=probability, ratio=(0.1, 0.5))
        counts = masks.sum(dim=1)
        counts = np.sort(counts[counts > 0].numpy())
        assert len(counts) == crops
        bounds = 1200 * (0.1 + 0.4 * np.arange(crops + 1) / max(crops, 1))
        assert (counts >= np.floor(bounds[:-1])).all() and (counts <= bounds[1:]).all()
    both = masks_of(torch.arange(2000), 14).any(axis=(2, 3))
    # each crop is as likely as another: an image has both, one or none in a quarter, half and a quarter
    assert stats.chisquare(np.bincount(both.sum(axis=0), minlength=3), [500, 1000, 500]).pvalue > 0.001


def test_masks_do_not_depend_on_ranks_order_or_parts() -> None:
    """Those of 1, 2, 4 ranks together are one rank's, in any order of the global batch, two epochs within it; an image
    that is not of the global batch is refused."""
    sample, epoch = (torch.from_numpy(each) for each in order.Chain(9, 0).batch(1, 12))
    assert len(epoch.unique()) == 2

    def made(rows, **more) -> torch.Tensor:
        found = masking.sample((8, 8), sample[rows], epoch[rows], 3, probability=0.5, ratio=(0.1, 0.5), **more)
        return found.unflatten(0, (2, -1))

    whole = made(slice(None))
    assert int(whole.any(dim=2).sum()) == 12 and not torch.equal(whole[0], whole[1])
    for world in (1, 2, 4):
        parts = [made(order.rank_slice(12, rank, world), whole=(sample, epoch)) for rank in range(world)]
        assert torch.equal(torch.cat(parts, dim=1), whole)
    turned = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(turned), whole[:, turned])
    assert torch.equal(made([3], whole=(sample[turned], epoch[turned])), whole[:, 3:4])
    with pytest.raises(ValueError, match="not in the whole batch"):
        made(slice(None), whole=(sample[:-1], epoch[:-1]))


def reference_mask(draw: np.random.Generator, side: int, wanted: int) -> np.ndarray:
    """BEiT's block masks as the references draw them, in a loop of its own."""
    mask, count, tries = np.zeros((side, side), bool), 0, 0
    while count < wanted and tries < 10:
        most = min(wanted - count, side * side / 2)
        area = 4 + (most - 4) * draw.random()
        ratio = math.exp(draw.uniform(math.log(0.3), -math.log(0.3)))
        tall, broad = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        tries += 1
        if tall < side and broad < side:
            row, column = draw.integers(0, side - tall + 1), draw.integers(0, side - broad + 1)
            block = mask[row : row + tall, column : column + broad]
            if 0 < (added := int((~block).sum())) <= most:
                block[:] = True
                count, tries = count + added, 0
    free = np.flatnonzero(~mask)
    mask.flat[draw.permutation(free)[: wanted - count]] = True
    return mask


def lonely(mask: np.ndarray) -> float:
    """Share of masked patches without a masked neighbour."""
    beside = ndimage.convolve(mask.astype(int), np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), mode="constant")
    return (mask & (beside == 0)).sum() / mask.sum()


@pytest.mark.parametrize(("side", "alone", "pieces"), [(14, 0.004, 2.4), (7, 0.014, 1.6)])
def test_blocks_go_on_to_the_last_patch(side: int, alone: float, pieces: float) -> None:
    """Lonely patches and 4-connected pieces of a masked crop as in the reference's loop, within four standard errors
    (0.2 % and 0.7 % of patches, 0.2 pieces), where filling patch by patch leaves 2 % and 8 % alone and 3.2 pieces."""
    count, draw = 1000, np.random.default_rng(0)
    ours = masks_of(torch.arange(count), side).reshape(-1, side, side)
    ours = ours[ours.any(axis=(1, 2))]
    shares = 0.1 + 0.4 * (np.arange(count) + draw.random(count)) / count
    theirs = [reference_mask(draw, side, int(side * side * share)) for share in shares]
    measures = {lonely: alone, lambda mask: ndimage.label(mask)[1]: pieces}
    for measure, expected in measures.items():
        one, other = (np.array([measure(mask) for mask in masks]) for masks in (ours, theirs))
        error = math.sqrt((one.var() + other.var()) / count)
        assert abs(one.mean() - other.mean()) < 4 * error
        assert abs(one.mean() - expected) < 4 * error + 0.05 * expected
    centre = ours.mean(axis=0)
    assert np.abs(centre - centre[::-1, ::-1]).max() < 4 * math.sqrt(2 * 0.25 / count)


def image_of(height: int = 40, width: int = 31) -> torch.Tensor:
    """A smooth standardised picture with an edge."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.sin(rows / 5) + np.cos(columns / 4) * (rows > 12)
    return torch.from_numpy(picture.astype(np.float32))


def test_what_is_done_to_a_slice_is_monais() -> None:
    """Every operation with the same numbers gives what MONAI gives, to 1e-5: scaling, low resolution, gamma, smoothing.

    Smoothing is compared four deviations inside: there MONAI brings in zeros from outside, ours the border's values.
    """
    monai = pytest.importorskip("monai.transforms")
    image = image_of()

    def same(drawn: slices.Distortion, theirs: torch.Tensor, inside: int = 0) -> None:
        ours = slices.apply(image, drawn)
        inner = np.s_[inside : len(image) - inside, inside : image.shape[1] - inside]
        assert ours.dtype == torch.float32 and not torch.equal(ours, image)
        torch.testing.assert_close(ours[inner], torch.as_tensor(np.asarray(theirs))[0][inner], atol=1e-5, rtol=0)

    same(slices.Distortion(factor=1.2), monai.ScaleIntensity(minv=None, maxv=None, factor=0.2)(image[None]))
    for gamma in (0.7, 1.5):
        same(slices.Distortion(gamma=gamma), monai.AdjustContrast(gamma)(image[None]))
    for zoom in (0.5, 0.61, 0.93):
        lower = monai.RandSimulateLowResolution(prob=1.0, upsample_mode="bilinear", zoom_range=(zoom, zoom))
        same(slices.Distortion(zoom=zoom), lower(image[None]))
    sigma = (0.5, 0.93)
    same(slices.Distortion(sigma=sigma), monai.GaussianSmooth(sigma)(image[None]), inside=4)
    flat = torch.full((12, 9), 0.7)
    everything = slices.Distortion(sigma=(1.0, 0.5), zoom=0.5, gamma=1.3)
    torch.testing.assert_close(slices.apply(flat, everything), flat, atol=1e-4, rtol=0)  # no rim, no division by 0


def test_a_slices_noise_has_the_drawn_deviation() -> None:
    """Mean 0 and the deviation that was drawn, within four standard errors; another key, other noise."""
    image = image_of(200, 200)
    one, other = (slices.apply(image, slices.Distortion(noise=0.07, key=key)) - image for key in (5, 6))
    assert abs(one.mean()) < 4 * 0.07 / 200 and abs(one.std() - 0.07) < 4 * 0.07 / 200 / math.sqrt(2)
    assert (one * other).mean().abs() < 4 * 0.07**2 / 200


def test_slices_are_distorted_as_often_as_flexict_does_it() -> None:
    """Each operation with its probability (4 standard errors) and numbers uniform in their range (p > 0.001); another
    sequence draws anew."""
    count = 8000
    number = np.arange(count)
    drawn = slices.sample(FLEXICT, 1, 0 * number, number, 0)
    found = {
        "noise": ([one.noise for one in drawn if one.noise], 0.1, (0, 0.1)),
        "rows": ([one.sigma[0] for one in drawn if one.sigma[0]], 0.2, (0.5, 1)),
        "columns": ([one.sigma[1] for one in drawn if one.sigma[1]], 0.2, (0.5, 1)),
        "factor": ([one.factor for one in drawn if one.factor != 1], 0.15, (0.75, 1.25)),
        "zoom": ([one.zoom for one in drawn if one.zoom != 1], 0.25, (0.5, 1)),
        "gamma": ([one.gamma for one in drawn if one.gamma != 1], 0.1, (0.7, 1.5)),
    }
    for name, (values, share, (low, high)) in found.items():
        assert abs(len(values) / count - share) < 4 * math.sqrt(share * (1 - share) / count), name
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.001, name
    assert abs(np.corrcoef([one.sigma for one in drawn if one.sigma[0]], rowvar=False)[0, 1]) < 0.1
    assert slices.sample(FLEXICT, 1, 0 * number, number, 1) != drawn
    assert slices.sample(FLEXICT, 1, 0 * number[:1], number[7:8], 0) == drawn[7:8]


def always(**more) -> slices.SliceSettings:
    """Every operation on every slice."""
    return slices.SliceSettings(1.0, 0.1, 1.0, (0.5, 1.0), 1.0, 0.25, 1.0, (0.5, 0.9), 1.0, (0.7, 1.5), **more)


@pytest.mark.parametrize("products", [False, True])
def test_all_crops_of_a_slice_share_what_was_done_to_it(split: schema.Split, products: bool) -> None:
    """Crops of the same box are equal, the Gram teacher's too, whatever noise the slice has; they go beyond the window
    by then, and a shifted and stretched window is an affine map of them: nothing is cut."""
    (batch,) = take(split, 1)
    batch = replace(batch, box=torch.tensor([[8, 56, 8, 56]]).expand(6, 4))
    alike = replace(PLAIN, global_scale=(1.0, 1.0), aspect=(1.0, 1.0), slice=always())
    crops = views.make(batch, alike, 7, products=products)
    assert torch.equal(crops.global_crops[0], crops.global_crops[1])
    torch.testing.assert_close(crops.gram_crops, crops.global_crops, atol=1e-5, rtol=0)
    black, white = (alike.intensity.normalise(torch.tensor(each)) for each in alike.intensity.window)
    assert crops.global_crops.max() > white + 0.1 and crops.global_crops.min() < black - 0.1
    plain = views.make(batch, replace(alike, slice=slices.SliceSettings()), 7, products=products).global_crops
    assert (plain - crops.global_crops[0]).abs().mean() > 0.05 and plain.max() <= white + 1e-6
    moved = views.make(batch, replace(alike, window_shift=30, window_stretch=0.2), 7, products=products)
    for image, other in zip(crops.global_crops[0], moved.global_crops[0]):
        slope, offset = np.polyfit(image.flatten().numpy(), other.flatten().numpy(), 1)
        assert abs(slope - 1) > 1e-3
        torch.testing.assert_close(other, image * slope + offset, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved.gram_crops, crops.gram_crops, atol=0, rtol=0)


@pytest.mark.parametrize("products", [False, True])
def test_what_is_done_to_a_slice_does_not_depend_on_its_batch(split: schema.Split, products: bool) -> None:
    """Padded to a larger slice, alone or in company a sample's views are the same, to float32's last digits; with
    another epoch they are others."""
    (batch,) = take(split, 1)
    settings = replace(PLAIN, slice=always(), local_number=1)
    padded = torch.nn.functional.pad(batch.pixels, (0, 11, 0, 6), value=schema.AIR_HU)
    found = views.make(batch, settings, 7, products=products)
    larger = views.make(replace(batch, pixels=padded), settings, 7, products=products)
    torch.testing.assert_close(larger.local_crops, found.local_crops, atol=1e-5, rtol=0)
    fields = ("pixels", "box", "present", "sample", "epoch", "labels")
    alone = stream.Batch(*(getattr(batch, name)[2:3] for name in fields))
    torch.testing.assert_close(
        views.make(alone, settings, 7, products=products).global_crops, found.global_crops[:, 2:3], atol=1e-5, rtol=0
    )
    later = views.make(replace(batch, epoch=batch.epoch + 1), settings, 7, products=products)
    assert not torch.allclose(later.gram_crops, found.gram_crops, atol=0.1)


@pytest.mark.parametrize("products", [False, True])
def test_gamma_bends_the_windowed_value_of_the_crops_that_draw_it(split: schema.Split, products: bool) -> None:
    """u becomes u^γ between 0 and 1 with γ in its range, in the kinds that have a probability and no Gram crop."""
    (batch,) = take(split, 1)
    settings = replace(PLAIN, gamma_p=(0.0, 1.0, 0.0), gamma=(0.75, 1.5))
    plain, bent = (views.make(batch, each, 7, products=products) for each in (PLAIN, settings))
    for name in ("local_crops", "gram_crops"):
        torch.testing.assert_close(getattr(plain, name), getattr(bent, name), atol=1e-6, rtol=0)
    torch.testing.assert_close(plain.global_crops[0], bent.global_crops[0], atol=1e-6, rtol=0)
    gamma = views.sample_parameters(batch, settings, 7, "global", 1).gamma
    assert ((gamma > 0.75) & (gamma < 1.5)).all() and len(gamma.unique()) == 6
    unit = PLAIN.intensity
    value = plain.global_crops[1] * unit.std + unit.mean
    expected = (value.clamp(0, 1) ** gamma[..., None, None] - unit.mean) / unit.std
    torch.testing.assert_close(bent.global_crops[1], expected, atol=1e-3, rtol=0)  # the root is steep at 0


def test_gamma_without_clipping_is_odd_and_never_nan() -> None:
    """Where slices are distorted windowed values leave 0…1: below 0 the exponent mirrors, on either way."""
    hu, unit = torch.linspace(-500, 600, 12).view(3, 4), Intensity((-200, 300), 0.4, 0.25)
    windowed = (hu + 200) / 500
    expected = (windowed.sign() * windowed.abs() ** 0.8 - 0.4) / 0.25
    found = unit.normalise(hu, gamma=torch.tensor(0.8), clip=False)
    into = np.empty((3, 4), np.float32)
    unit.normalise_into(into, hu.numpy(), -200, 500, gamma=0.8, clip=False)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.from_numpy(into), expected)


def test_crops_are_blurred_and_bent_as_often_as_the_settings_say() -> None:
    """Global crops 1 and 2 and local crops, each with its own probability, within four standard errors; by default the
    references' effective ones for blur, none for gamma."""
    count = 3000
    number = torch.arange(count)
    box = torch.tensor([[0, 9, 0, 9]]).expand(count, 4)
    present = torch.ones(count, 1, dtype=torch.bool)
    batch = stream.Batch(torch.empty(count, 1, 1, 1), box, present, number, 0 * number, torch.empty(count, 0))
    stage = StageConfig(steps=1)
    stage.augment.gamma_p = [0.0, 0.5, 0.2]
    settings = build.view_settings(stage, IntensityConfig())
    for kind, which, blurred, bent in (("global", 0, 0.0, 0.0), ("global", 1, 0.9, 0.5), ("local", 3, 0.5, 0.2)):
        drawn = views.sample_parameters(batch, settings, 0, kind, which)
        for values, share in ((drawn.blur > 0, blurred), (drawn.gamma != 1, bent)):
            assert abs(float(values.float().mean()) - share) <= 4 * math.sqrt(share * (1 - share) / count)
    assert AugmentConfig().gamma_p == [0, 0, 0] and not settings.slice.on
