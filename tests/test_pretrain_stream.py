"""Order, stream and views: pure functions of their inputs, whatever the process, rank or restart."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.batches import SETTINGS, take
from helpers.datasets import body_slice

from data_prep.schema import SchemaError, Slice, Split
from pretrain.data import boxes, order, randomness, resize, stream, views


@pytest.fixture
def split(tiny_dataset) -> Split:
    """24 training slices."""
    return Split(tiny_dataset(), "train")


def test_an_epoch_holds_every_sample_once() -> None:
    """Batches that do not divide the epoch: still each sample once in every epoch, in another order each time."""
    chain = order.Chain(23, seed=5)
    batches = [chain.batch(number, 7) for number in range(23)]
    sample, epoch = (np.concatenate(parts) for parts in zip(*batches))
    for each in range(7):
        assert sorted(sample[epoch == each]) == list(range(23))
    assert not np.array_equal(order.epoch_order(23, 5, 0), order.epoch_order(23, 5, 1))
    assert np.array_equal(order.Chain(23, 5).batch(11, 7)[0], batches[11][0])


def test_a_batch_larger_than_the_data_spans_epochs() -> None:
    """Three samples in batches of eight: every epoch inside the batch is whole."""
    sample, epoch = order.Chain(3, 0).batch(0, 8)
    assert sorted(sample[:3]) == sorted(sample[3:6]) == [0, 1, 2] and epoch.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_five_million_samples_are_put_in_order_quickly() -> None:
    """An epoch's order of five million samples takes under two seconds of the processor, whatever else it works on."""
    began = time.process_time()
    assert len(order.epoch_order(5_000_000, 0, 0)) == 5_000_000
    assert time.process_time() - began < 2


def test_the_stream_is_the_slices(split: Split) -> None:
    """What comes out is what was stored, in the order of the chain, for any number of threads."""
    chain = order.Chain(len(split), 3)
    for threads in (1, 3):
        for number, batch in enumerate(take(split, 5, threads=threads)):
            assert batch.sample.tolist() == chain.batch(number, 6)[0].tolist()
            for row, sample in enumerate(batch.sample.tolist()):
                stored = split[sample]
                assert np.array_equal(batch.pixels[row].numpy(), stored.pixels) and batch.box[row].tolist() == list(
                    stored.box
                )


def test_a_stream_taken_up_later_is_the_stream_that_went_on(split: Split) -> None:
    """start=4 gives batch 4 and those after it."""
    for went_on, taken_up in zip(take(split, 7)[4:], take(split, 3, start=4)):
        assert torch.equal(went_on.pixels, taken_up.pixels) and torch.equal(went_on.epoch, taken_up.epoch)


def test_the_global_batch_is_the_same_for_any_number_of_ranks(split: Split) -> None:
    """The parts of 1, 2 and 3 ranks, put together, are the same batch; more ranks than samples are refused."""
    whole = take(split, 3)
    for world in (2, 3, 4):
        parts = [take(split, 3, rank=rank, world=world) for rank in range(world)]
        for number, batch in enumerate(whole):
            assert torch.equal(torch.cat([part[number].sample for part in parts]), batch.sample)
    with pytest.raises(ValueError, match="cannot be divided among 7 processes"):
        take(split, 1, batch_size=6, world=7)


def test_a_damaged_sample_is_named_and_no_thread_is_left(split: Split) -> None:
    """Bytes that do not decode raise one error that names shard and sample; the threads end."""
    path = split.paths[0]
    payload = bytearray(path.read_bytes())
    payload[512:1500] = bytes(988)
    path.write_bytes(payload)
    with pytest.raises(SchemaError, match=rf"{path.name}: sample \d+: .*make the shard again"):
        take(split, 8)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("meddap-decode")]


def test_every_rank_knows_the_whole_batch(split: Split) -> None:
    """Of any number of ranks each has sample and epoch of all images, also where an epoch ends within the batch."""
    (alone,) = take(split, 1, batch_size=30)
    assert set(alone.epoch.tolist()) == {0, 1}
    for world in (1, 2, 4):
        for rank in range(world):
            (batch,) = take(split, 1, batch_size=30, rank=rank, world=world)
            assert torch.equal(batch.whole[0], alone.sample) and torch.equal(batch.whole[1], alone.epoch)


def test_labelled_voxels_are_those_of_the_label_maps(tiny_dataset) -> None:
    """Every voxel with a label inside the foreground box and no other, none of a slice without a label map, on any
    rank; nothing is decoded where nobody asks."""

    def some(*where) -> Slice:
        made = body_slice(*where)
        labelmap = np.pad(made.labelmap[1:], ((1, 0), (0, 0)), constant_values=9)  # the first row is outside the box
        return replace(made, labelmap=labelmap if made.order % 2 else None)

    split = Split(tiny_dataset(make=some), "train")
    assert take(split, 1)[0].voxels is None
    for world in (1, 2):
        for batch in (batch for rank in range(world) for batch in take(split, 2, voxels=True, rank=rank, world=world)):
            starts = batch.voxel_starts.tolist()
            assert len(starts) == len(batch.sample) + 1 and starts[-1] == len(batch.voxels)
            for row, number in enumerate(batch.sample.tolist()):
                stored = split[number]
                found = np.zeros(stored.pixels.shape[1:], bool)
                found[tuple(batch.voxels[starts[row] : starts[row + 1]].T.long())] = True
                expected = np.zeros_like(found)
                if stored.labelmap is not None:
                    row0, row1, column0, column1 = stored.box
                    inside = np.s_[row0:row1, column0:column1]
                    expected[inside] = stored.labelmap[inside] > 0
                    assert (stored.labelmap > 0).sum() > expected.sum()
                assert np.array_equal(found, expected)


@pytest.mark.parametrize("crop", [(3, 5, 20, 17), (0, 0, 40, 50), (10, 10, 7, 9), (30, 2, 1, 1)])
@pytest.mark.parametrize("size", [8, 16, 33])
def test_resizing_is_antialiased_interpolation_of_the_crop(crop: tuple, size: int) -> None:
    """Equal to interpolate(mode="bicubic", antialias=True) of the cropped image to 1e-4, up and down, flipped too."""
    image = torch.rand(2, 1, 40, 50, generator=torch.Generator().manual_seed(0))
    row, column, height, width = (torch.tensor([value, value]) for value in crop)
    flip = torch.tensor([False, True])
    rows = resize.weights(row, height, 40, size, torch.zeros(2, dtype=torch.bool))
    columns = resize.weights(column, width, 50, size, flip)
    cropped = image[:, :, crop[0] : crop[0] + crop[2], crop[1] : crop[1] + crop[3]]
    expected = F.interpolate(cropped, (size, size), mode="bicubic", antialias=True, align_corners=False)
    expected[1] = expected[1].flip(-1)
    torch.testing.assert_close(resize.apply(image, rows[:, None], columns[:, None]), expected, atol=1e-4, rtol=0)


def test_a_samples_views_do_not_depend_on_the_batch(split: Split) -> None:
    """The same slices in another order and another company give the same views, to float32's last digits."""
    batch = take(split, 1)[0]
    turned = stream.Batch(
        *(getattr(batch, name).flip(0)[1:] for name in ("pixels", "box", "present", "sample", "epoch", "labels"))
    )
    one, other = views.make(batch, SETTINGS, 7), views.make(turned, SETTINGS, 7)
    torch.testing.assert_close(one.global_crops.flip(1)[:, 1:], other.global_crops, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.local_crops.flip(1)[:, 1:], other.local_crops, atol=1e-5, rtol=0)


def test_views_change_with_seed_epoch_and_crop_alone(split: Split) -> None:
    """Equal inputs give equal bits; another seed or epoch gives other views; crops differ among themselves."""
    batch = take(split, 1)[0]
    once, again = views.make(batch, SETTINGS, 7), views.make(batch, SETTINGS, 7)
    assert torch.equal(once.global_crops, again.global_crops) and torch.equal(once.local_crops, again.local_crops)
    later = replace(batch, epoch=batch.epoch + 1)
    for other in (views.make(batch, SETTINGS, 8), views.make(later, SETTINGS, 7)):
        assert not torch.allclose(once.global_crops, other.global_crops)
    assert not torch.allclose(once.global_crops[0], once.global_crops[1])
    for kind in ("global", "local"):
        one, other = (views.sample_parameters(batch, SETTINGS, 7, kind, number) for number in (0, 1))
        assert not (one.boxes == other.boxes).all(dim=2).any() and not (one.key == other.key).any()
    assert once.global_crops.shape == (2, 6, 1, 32, 32) and once.local_crops.shape == (3, 6, 1, 16, 16)


def test_crops_lie_in_the_foreground_and_hold_body(split: Split) -> None:
    """Every candidate box is inside the foreground box, and the chosen ones hold the body they must."""
    batch = take(split, 1, batch_size=24)[0]
    sums = boxes.body_sums(batch.pixels, torch.from_numpy(SETTINGS.lowest))
    drawn = views.sample_parameters(batch, SETTINGS, 0, "local", 0)
    row, column, height, width = drawn.boxes.unbind(dim=-1)
    box = batch.box.unsqueeze(1)
    assert (row >= box[..., 0]).all() and (row + height <= box[..., 1]).all()
    assert (column >= box[..., 2]).all() and (column + width <= box[..., 3]).all()
    chosen = boxes.choose(sums, drawn.boxes, 0.5)
    shares = [
        (image[0, r : r + h, c : c + w] > SETTINGS.body_threshold_hu).float().mean()
        for image, (r, c, h, w) in zip(batch.pixels, chosen.tolist())
    ]
    assert min(shares) >= 0.5


def test_without_augmentation_a_view_is_the_windowed_crop(split: Split) -> None:
    """No flip, shift, noise or blur: the view is the interpolated crop under the plain window."""
    plain = replace(SETTINGS, flip=0, window_shift=0, window_stretch=0, noise_p=0, blur_p=(0, 0, 0), candidates=1)
    batch = take(split, 1)[0]
    crops = views.make(batch, plain, 1).global_crops[1]
    boxes = views.sample_parameters(batch, plain, 1, "global", 1).boxes[:, 0].tolist()
    for image, (row, column, height, width), crop in zip(batch.pixels.float(), boxes, crops):
        cut = image[None, :, row : row + height, column : column + width]
        expected = F.interpolate(cut, (32, 32), mode="bicubic", antialias=True)[0]
        torch.testing.assert_close(crop, plain.intensity.normalise(expected), atol=1e-4, rtol=0)


def test_noise_is_standard_normal_and_belongs_to_its_key() -> None:
    """Mean 0, deviation 1, no neighbour correlation; a key gives the same noise in any company."""
    keys = torch.tensor([1, 2, 12345678])
    values = randomness.gaussian(keys, (1, 200, 200))
    assert values.mean().abs() < 0.01 and abs(values.std() - 1) < 0.01 and values.isfinite().all()
    for shift in (1, 200):
        flat = values.flatten(1)
        assert (flat[:, shift:] * flat[:, :-shift]).mean().abs() < 0.02
    assert torch.equal(randomness.gaussian(keys[2:], (1, 200, 200))[0], values[2])


def test_a_record_that_lacks_a_key_is_named_with_its_sample(tiny_dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch needs of a record and does not find is one error, with shard, sample and remedy."""
    split = Split(tiny_dataset(), "train")
    monkeypatch.setattr(stream.schema, "members", lambda _: {"json": b'{"shape": [8, 8]}'})
    buffer = memoryview(bytearray(int(split.index["size"].max())))
    with pytest.raises(SchemaError, match="sample 0: its record lacks box, labels, .*; make the shard again"):
        stream.read_sample(split, 0, buffer)
