"""From shards to batches: read by index, decoded in threads, the next batches made while one is used.

order.Chain → which samples → Split.read → decompressed straight into the batch's array → Batch
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import blosc2
import numpy as np
import torch

from data_prep import schema
from pretrain.order import Chain, part

_READER_THREADS = "meddap-decode"


@dataclass(frozen=True)
class Batch:
    """Decoded slices of one rank's part of a global batch.

    pixels   (B, S, H, W) int16 HU, padded below and right with air to the batch's largest slice;
             all air for a sequence that a sample does not have
    box      (B, 4) int64 foreground (row0, row1, column0, column1)
    present  (B, S) bool, which sequences the sample has
    sample   (B,) int64 number in the split, and epoch (B,) int64: with the seed, all a view's randomness
    """

    pixels: torch.Tensor
    box: torch.Tensor
    present: torch.Tensor
    sample: torch.Tensor
    epoch: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch with its images on `device`; what views and masks are drawn from stays on the host."""
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("pixels", "present")}
        return replace(self, **moved)

    def pin(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies without waiting."""
        return Batch(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})


def batches(
    split: schema.Split,
    *,
    batch_size: int | Sequence[int],
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    sequences: tuple[str, ...] = ("ct",),
    threads: int = 2,
    prefetch: int = 2,
    pin: bool = False,
) -> Iterator[Batch]:
    """This rank's parts of the global batches `start`, `start + 1`, … without end, or to the last that has a size.

    batch_size  global; one for all batches, or one for each. close() of the iterator ends its threads
    Raises SchemaError, naming shard and sample, for a sample that cannot be decoded.
    """
    blosc2.set_releasegil(True)
    chain = Chain(len(split), seed)
    starts = None if isinstance(batch_size, int) else np.concatenate([[0], np.cumsum(batch_size)])
    last = None if starts is None else len(starts) - 1
    decoders = ThreadPoolExecutor(threads, _READER_THREADS)
    assembler = ThreadPoolExecutor(1, f"{_READER_THREADS}-batch")

    def make(number: int) -> Batch:
        if starts is None:
            size, drawn = batch_size, chain.batch(number, batch_size)
        else:
            size = int(starts[number + 1] - starts[number])
            drawn = chain.stretch(int(starts[number]), size)
        sample, epoch = (array[part(size, rank, world)] for array in drawn)
        batch = _assemble(split, sample, epoch, sequences, decoders)
        return batch.pin() if pin else batch

    waiting: deque[Future[Batch]] = deque()
    number = start
    try:
        while waiting or last is None or number < last:
            while len(waiting) <= prefetch and (last is None or number < last):
                waiting.append(assembler.submit(make, number))
                number += 1
            yield waiting.popleft().result()
    finally:
        assembler.shutdown(cancel_futures=True)
        decoders.shutdown(cancel_futures=True)


def gather(split: schema.Split, numbers: np.ndarray, sequences: tuple[str, ...] = ("ct",), threads: int = 2) -> Batch:
    """Samples `numbers` of a split, outside of any epoch's order. Raises SchemaError."""
    with ThreadPoolExecutor(threads, _READER_THREADS) as decoders:
        return _assemble(split, numbers, np.zeros_like(numbers), sequences, decoders)


def _assemble(
    split: schema.Split, sample: np.ndarray, epoch: np.ndarray, sequences: tuple[str, ...], decoders: ThreadPoolExecutor
) -> Batch:
    raw = list(decoders.map(lambda number: _open(split, int(number)), sample))
    height, width = (max(record["shape"][axis] for _, record in raw) for axis in (0, 1))
    pixels = np.empty((len(raw), len(sequences), height, width), np.int16)
    present = np.zeros((len(raw), len(sequences)), bool)

    def fill(place: int) -> None:
        try:
            _decode(*raw[place], sequences, pixels[place], present[place])
        except (schema.SchemaError, RuntimeError, ValueError) as error:
            raise _named(split, int(sample[place]), error) from error

    list(decoders.map(fill, range(len(raw))))
    box = np.array([record["box"] for _, record in raw], np.int64)
    arrays = (pixels, box, present, sample, epoch)
    return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def _open(split: schema.Split, number: int) -> tuple[dict[str, memoryview], dict]:
    try:
        members = schema.members(split.read(number))
        return members, json.loads(bytes(members["json"]))
    except (schema.SchemaError, KeyError, ValueError) as error:
        raise _named(split, number, error) from error


def _decode(members: dict, record: dict, sequences: tuple[str, ...], pixels: np.ndarray, present: np.ndarray) -> None:
    """Fill one sample's (S, H, W) part of the batch."""
    height, width = record["shape"]
    whole = (height, width) == pixels.shape[1:]
    if not whole:
        pixels[:, height:] = pixels[:, :, width:] = schema.AIR_HU
    for place, name in enumerate(sequences):
        if name not in record["sequences"]:
            pixels[place] = schema.AIR_HU
            continue
        present[place] = True
        # a slice as large as the batch is decoded in place, a smaller one by way of its own array
        plane = pixels[place] if whole else np.empty((height, width), np.int16)
        schema.decompress_into(members[f"{name}.b2"], plane)
        if not whole:
            pixels[place, :height, :width] = plane


def _named(split: schema.Split, number: int, error: Exception) -> schema.SchemaError:
    return schema.SchemaError(
        f"{split.paths[int(split.shard[number])]}: sample {number}: {error}; make the shard again"
    )
