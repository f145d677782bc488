"""The loader's memory, and the two ways to a view: matrix products of a batch, sums over rows of a slice."""

from __future__ import annotations

import gc
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import batches

from data_prep import schema
from pretrain.data import boxes, resize, slices, stream, views
from pretrain.runtime.memory import ArrayPool

SLICE = slices.SliceSettings(0.5, 0.3, 0.5, (0.5, 1.0), 0.5, 0.25, 0.5, (0.5, 1.0), 0.5, (0.7, 1.5))
SETTINGS = replace(batches.SETTINGS, min_body=0.7, mr_shift=0.1, blur_sigma=(0.1, 2.0), gram_size=40)


def one_way_and_the_other(batch: stream.Batch, settings: views.ViewSettings) -> None:
    """Assert that both give the same views."""
    products, sums = (views.make(batch, settings, 7, products=way) for way in (True, False))
    for name in ("global_crops", "local_crops", "gram_crops"):
        torch.testing.assert_close(getattr(sums, name), getattr(products, name), atol=1e-5, rtol=0)


def test_products_and_sums_give_the_same_views(tiny_dataset) -> None:
    """Boxes, flips, windows, blur, noise and Gram crops, made as on a GPU or as on a CPU; without local crops, too."""
    split = schema.Split(tiny_dataset(), "train")
    batch = stream.gather(split, np.arange(12))
    one_way_and_the_other(batch, SETTINGS)
    one_way_and_the_other(batch, replace(SETTINGS, local_number=0, min_body=0.0, noise_p=0.0))


def test_products_and_sums_give_the_same_views_of_several_sequences(brain_shards) -> None:
    """Four MR sequences, each with its own window, noise and blur, some absent."""
    split, names = schema.Split(brain_shards, "train"), ("t1", "t1c", "t2", "flair")
    batch, settings = stream.gather(split, np.arange(8), names), replace(SETTINGS, sequences=names)
    one_way_and_the_other(batch, settings)
    one_way_and_the_other(batch, replace(settings, slice=SLICE, gamma_p=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize(
    "more",
    [
        {"slice": SLICE},
        {"gamma_p": (0.0, 1.0, 0.5)},
        {"slice": SLICE, "gamma_p": (0.5, 0.5, 0.5)},
        {"scale_of": "side", "around_labels": True},
    ],
)
def test_products_and_sums_give_the_same_distorted_views(tiny_dataset, more: dict) -> None:
    """What is done to whole slices, the exponents of single crops, crops around labelled voxels."""
    split = schema.Split(tiny_dataset(), "train")
    batches = stream.batches(split, batch_size=24, seed=0, voxels=True)
    one_way_and_the_other(next(batches), replace(SETTINGS, **more))
    batches.close()


@pytest.mark.parametrize("size", [16, 33, 128])
def test_sums_are_antialiased_interpolation_of_the_crop(size: int) -> None:
    """Every box of every size, alone and in company: interpolate() to 1e-4 of the range, flipped or not; blur as the
    whole matrix blurs."""
    draw = np.random.default_rng(size)
    plane = draw.integers(-1000, 1001, (140, 97)).astype(np.int16)
    places = [(0, 0, 140, 97), (139, 96, 1, 1), (3, 2, 1, 90), (20, 95, 100, 2)]
    for _ in range(30):
        height, width = int(draw.integers(1, 141)), int(draw.integers(1, 98))
        places.append((int(draw.integers(0, 141 - height)), int(draw.integers(0, 98 - width)), height, width))
    wanted = [resize.CropBox(box, bool(draw.random() < 0.5), float(draw.choice([0, 0.1, 0.7, 2]))) for box in places]
    (found,) = resize.crops(plane, [wanted], [size])
    for crop, made in zip(wanted, found):
        row, column, height, width = crop.box
        cut = torch.from_numpy(plane[row : row + height, column : column + width].astype(np.float32))[None, None]
        expected = F.interpolate(cut, (size, size), mode="bicubic", antialias=True)[0, 0]
        expected = expected.flip(-1) if crop.flip else expected
        if crop.sigma:
            blur = resize.blur_weights(torch.tensor(crop.sigma), size)
            expected = blur @ expected @ blur.T
        torch.testing.assert_close(torch.from_numpy(made.copy()), expected, atol=0.1, rtol=0)  # of 2,000
        (alone,), _ = resize.crops(plane, [[crop], []], [size, 5])
        np.testing.assert_allclose(alone, made, atol=0.01)


def test_both_ways_choose_the_same_box() -> None:
    """The first candidate with enough body, else the one with most: also where none has any."""
    draw = np.random.default_rng(0)
    body = draw.random((40, 30, 30)) < draw.choice([0.0, 0.4, 0.6], (40, 1, 1))
    top = draw.integers(0, 15, (40, 5, 2))
    candidates = np.concatenate([top, draw.integers(1, 16, (40, 5, 2))], axis=2)
    pixels = torch.from_numpy(np.where(body, 100, -1000).astype(np.int16)[:, None])
    sums = boxes.body_sums(pixels, torch.zeros(1, 1))
    for least in (0.0, 0.5, 0.62, 1.0):
        chosen = boxes.choose(sums, torch.from_numpy(candidates), least).tolist()
        alone = [boxes.choose_one(each, of.tolist(), least) for each, of in zip(body, candidates)]
        assert alone == chosen


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    """An array that somebody holds, itself or a tensor of it, keeps its values; one let go serves the next."""
    memory = ArrayPool(np.int16)
    first = torch.from_numpy(memory.array((4, 5)))
    first.fill_(7)
    row, place = first[2], first.data_ptr()
    second = memory.array((3, 3))
    second[:] = 1
    assert second.ctypes.data != place
    del first
    third = memory.array((2, 2))  # a view of the first is held
    assert third.ctypes.data != place and row.tolist() == [7] * 5
    del row
    gc.collect()
    assert memory.array((20,)).ctypes.data == place


def test_batches_that_are_held_keep_their_pixels(tiny_dataset) -> None:
    """Ten batches held at once are ten batches; let go, their memory carries those that follow."""
    split = schema.Split(tiny_dataset(), "train")
    batches = stream.batches(split, batch_size=6, seed=3, prefetch=0)
    held = [next(batches) for _ in range(10)]
    for batch in held:
        for row, sample in enumerate(batch.sample.tolist()):
            assert np.array_equal(batch.pixels[row].numpy(), split[sample].pixels)
    places = {batch.pixels.data_ptr() for batch in held}
    del held, batch
    assert len(places) == 10 and next(batches).pixels.data_ptr() in places
    batches.close()


def test_a_sample_is_read_into_a_buffer(tiny_dataset) -> None:
    """The same bytes as without one; a shard that ends too early is an error that names it, either way."""
    split = schema.Split(tiny_dataset(), "train")
    buffer = memoryview(bytearray(int(split.index["size"].max()) + 100))
    assert all(split.read(number, buffer) == split.read(number) for number in range(len(split)))
    path = split.paths[0]
    os.truncate(path, path.stat().st_size // 2)
    last = int(np.flatnonzero(split.shard == 0)[-1])
    for into in (None, buffer):
        with pytest.raises(schema.SchemaError, match=f"{path.name}.*truncated"):
            split.read(last, into)


def test_batches_of_changing_sizes_are_padded_to_their_own_largest(tiny_dataset, monkeypatch) -> None:
    """Slices of two sizes, in batches of one, the other or both: each as large as its largest slice, the rest air."""
    split = schema.Split(tiny_dataset(), "train")
    plain = stream.read_sample

    def smaller(split: schema.Split, number: int, into: memoryview) -> tuple[dict, dict]:
        members, record = plain(split, number, into)
        if number % 2:
            height, width = record["shape"]
            pixels = np.ascontiguousarray(split[number].pixels[0, : height - 8, : width - 3])
            members["ct.b2"], record["shape"] = memoryview(schema.compress(pixels)), list(pixels.shape)
        return members, record

    monkeypatch.setattr(stream, "read_sample", smaller)
    height, width = split[0].pixels.shape[1:]
    for batch in (batch for _, batch in zip(range(30), stream.batches(split, batch_size=2, seed=0))):
        odd = batch.sample % 2 == 1
        shape = (height - 8, width - 3) if odd.all() else (height, width)
        assert batch.pixels.shape[2:] == shape
        for pixels, sample, small in zip(batch.pixels.numpy(), batch.sample.tolist(), odd.tolist()):
            expected = np.full((1, *shape), schema.AIR_HU, np.int16)
            cut = split[sample].pixels[:, : height - 8 * small, : width - 3 * small]
            expected[:, : cut.shape[1], : cut.shape[2]] = cut
            assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("samples", [3000, pytest.param(50_000, marks=pytest.mark.stress)])
def test_memory_does_not_grow(tiny_dataset, samples: int) -> None:
    """Samples read, decoded and made into views, a quarter of them at a time: not 2 MB more with each quarter.

    What leaks does so in every quarter; what the rest of the process takes or frees comes once.
    """
    psutil = pytest.importorskip("psutil")
    split = schema.Split(tiny_dataset(), "train")
    batches = stream.batches(split, batch_size=24, seed=0)
    held = []
    for _ in range(4):
        for _ in range(samples // 96):
            views.make(next(batches), SETTINGS, seed=0)
        gc.collect()
        held.append(psutil.Process().memory_info().rss)
    batches.close()
    assert min(later - earlier for earlier, later in zip(held, held[1:])) < 2e6, held
