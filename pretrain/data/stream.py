"""From shards to batches: read by index, decoded in threads, the next batches made while one is used.

Corpus.mixture → which samples → Split.read → decompressed straight into the batch's array → Batch
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import blosc2
import numpy as np
import torch

from data_prep import schema
from pretrain.data.corpus import Corpus
from pretrain.data.labels import UNLABELLED, Labelling
from pretrain.data.order import number_of, rank_slice, source_of
from pretrain.runtime.memory import ArrayPool

_READER_THREADS = "meddap-decode"
_NOWHERE = np.empty((0, 2), np.int16)
_RECORD = ("shape", "box", "labels", "sequences", "dtype")  # what a batch needs of a sample's record


@dataclass(frozen=True)
class Batch:
    """Decoded slices of one rank's part of a global batch.

    pixels   (B, S·C, H, W) int16 as `schema.signed` gives them, padded below and right with air to the batch's largest
             slice; all air for a sequence that a sample does not have. Grey samples have C equal channels
    box      (B, 4) int64 foreground (row0, row1, column0, column1)
    present  (B, S) bool, which sequences the sample has: at least one
    sample   (B,) int64 source and number in its split (`order.identify`), and epoch (B,) int64 of the source: with the
             seed, all a view's randomness
    labels   (B, C) int64 class of each label column, −1 where the sample is unlabelled
    voxels   (V, 2) int16 row and column of every pixel with a label inside its sample's foreground box, one sample's
             after the other's from `voxel_starts` (B + 1,) int64 on; both None where they were not asked for
    whole_sample, whole_epoch  (G,) int64 `sample` and `epoch` of the global batch; None where it is this batch
    """

    pixels: torch.Tensor
    box: torch.Tensor
    present: torch.Tensor
    sample: torch.Tensor
    epoch: torch.Tensor
    labels: torch.Tensor
    voxels: torch.Tensor | None = None
    voxel_starts: torch.Tensor | None = None
    whole_sample: torch.Tensor | None = None
    whole_epoch: torch.Tensor | None = None

    @cached_property
    def source(self) -> torch.Tensor:
        """(B,) int64 number of each image's source."""
        return torch.from_numpy(source_of(self.sample.numpy()))

    @property
    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample and epoch of every image of the global batch."""
        if self.whole_sample is None or self.whole_epoch is None:
            return self.sample, self.epoch
        return self.whole_sample, self.whole_epoch

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its images on `device`; what views, masks and layouts need stays on the host."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Return the batch in page-locked memory, from which a GPU copies without waiting."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        pinned = {name: each.pin_memory() for name, each in every.items() if each is not None}
        return replace(self, **pinned)


def batches(
    data: schema.Split | Corpus,
    *,
    batch_size: int | Sequence[int] | np.ndarray,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    sequences: tuple[str, ...] = (schema.CT,),
    labels: Labelling = UNLABELLED,
    channels: int = 1,
    voxels: bool = False,
    threads: int = 2,
    prefetch: int = 2,
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """Yield this rank's share of global batches `start`, `start + 1`, … without end, or to the last that has a size.

    batch_size  global; one for all batches, or one for each. close() of the iterator ends its threads
    data        a corpus says itself which class labels the batches carry; `labels` are those of a split
    channels    C of each sequence: 1, or 3 where some samples may be in colour
    voxels      whether they carry the labelled voxels of their slices; else no label map is decoded
    Raises SchemaError, naming shard and sample, for a sample that cannot be decoded.
    """
    blosc2.set_releasegil(True)
    corpus = data if isinstance(data, Corpus) else Corpus.of(data, labels)
    order = corpus.mixture(seed)
    last = None if isinstance(batch_size, int) else len(batch_size)
    starts = np.zeros(1, np.int64) if isinstance(batch_size, int) else np.concatenate([[0], np.cumsum(batch_size)])
    decoders = _Decoders(corpus, sequences, channels, threads, pin)
    assembler = ThreadPoolExecutor(1, f"{_READER_THREADS}-batch")

    def make(number: int) -> Batch:
        if isinstance(batch_size, int):
            size, whole = batch_size, order.batch(number, batch_size)
        else:
            size = int(starts[number + 1] - starts[number])
            whole = order.positions(int(starts[number]), size)
        sample, epoch = (array[rank_slice(size, rank, world)] for array in whole)
        batch = _assemble(decoders, sample, epoch, voxels)
        if world > 1:
            whole_sample, whole_epoch = (torch.from_numpy(array) for array in whole)
            batch = replace(batch, whole_sample=whole_sample, whole_epoch=whole_epoch)
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
        decoders.close()


def gather(
    split: schema.Split,
    numbers: np.ndarray,
    sequences: tuple[str, ...] = (schema.CT,),
    threads: int = 2,
    channels: int = 1,
) -> Batch:
    """Return samples `numbers` of a split, outside of any epoch's order. Raises SchemaError."""
    decoders = _Decoders(Corpus.of(split), sequences, channels, threads)
    try:
        return _assemble(decoders, numbers, np.zeros_like(numbers))
    finally:
        decoders.close()


@dataclass
class _Decoders:
    """The threads of one stream and the memory that they read and decode into, used again for every batch.

    sequences  names of a batch's sequences, of `channels` planes each
    shape      (height, width) of the last batch
    """

    corpus: Corpus
    sequences: tuple[str, ...]
    channels: int
    threads: int
    pin: bool = False
    shape: tuple[int, int] = (0, 0)
    wanted: list[frozenset[str]] = field(init=False)  # which sequences are read of each source
    _pool: ThreadPoolExecutor = field(init=False)
    _buffers: list[memoryview] = field(init=False)
    _arrays: ArrayPool = field(init=False, default_factory=lambda: ArrayPool(np.int16))

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads, _READER_THREADS)
        sources = self.corpus.sources
        self.wanted = [self.corpus.sequences(number, self.sequences) for number in range(len(sources))]
        largest = max(int(source.split.index["size"].max(initial=0)) for source in sources)
        self._buffers = [memoryview(bytearray(largest)) for _ in range(self.threads)]

    def run(self, work: Callable[[int, memoryview], None], numbers: Sequence[int]) -> None:
        """Run `work` for each number with its thread's buffer; the first error is raised when all have ended."""
        shared = iter(numbers)  # a free thread takes the next

        def some(buffer: memoryview) -> None:
            for number in shared:
                work(number, buffer)

        tasks = [self._pool.submit(some, buffer) for buffer in self._buffers[: len(numbers)]]
        wait(tasks)
        for task in tasks:
            task.result()

    def pixels(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an int16 array that belongs to its holder alone."""
        if self.pin:
            return torch.empty(shape, dtype=torch.int16, pin_memory=True).numpy()  # PyTorch keeps such memory itself
        return self._arrays.array(shape)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _assemble(decoders: _Decoders, sample: np.ndarray, epoch: np.ndarray, voxels: bool = False) -> Batch:
    sources, sequences = decoders.corpus.sources, decoders.sequences
    planes = len(sequences) * decoders.channels
    labelled: list[np.ndarray] = [_NOWHERE] * len(sample)
    records: list[dict] = [{}] * len(sample)
    present = np.zeros((len(sample), len(sequences)), bool)
    source, number = source_of(sample).tolist(), number_of(sample).tolist()
    # the last batch's shape is usually this one's: a sample that fits is decoded as soon as it is read
    shape = decoders.shape
    pixels = decoders.pixels((len(sample), planes, *shape))

    def read(place: int, buffer: memoryview) -> None:
        members, records[place] = read_sample(sources[source[place]].split, number[place], buffer)
        if all(side <= most for side, most in zip(records[place]["shape"], shape)):
            fill(place, members)

    def again(place: int, buffer: memoryview) -> None:
        fill(place, read_sample(sources[source[place]].split, number[place], buffer)[0])

    def fill(place: int, members: dict[str, memoryview]) -> None:
        split = sources[source[place]].split
        try:
            wanted = decoders.wanted[source[place]]
            _decode(members, records[place], sequences, wanted, pixels[place], present[place])
            if voxels:
                labelled[place] = _labelled(members, records[place], split.dataset["ignore"])
        except (schema.SchemaError, RuntimeError, ValueError) as error:
            raise _named(split, number[place], error) from error

    decoders.run(read, range(len(sample)))
    heights, widths = zip(*(record["shape"] for record in records))
    decoders.shape = (max(heights), max(widths))
    if decoders.shape[0] > shape[0] or decoders.shape[1] > shape[1]:
        pixels = decoders.pixels((len(sample), planes, *decoders.shape))
        decoders.run(again, range(len(sample)))
    elif decoders.shape != shape:
        larger, pixels = pixels, decoders.pixels((len(sample), planes, *decoders.shape))
        np.copyto(pixels, larger[:, :, : decoders.shape[0], : decoders.shape[1]])
    box = np.array([record["box"] for record in records], np.int64)
    said = zip(source, number, records)
    classes = [sources[place].labels.of(each, record["labels"]) for place, each, record in said]
    columns = len(decoders.corpus.columns)
    arrays = [pixels, box, present, sample, epoch, np.array(classes, np.int64).reshape(len(sample), columns)]
    if voxels:
        arrays += [np.concatenate(labelled), np.cumsum([0, *(len(each) for each in labelled)], dtype=np.int64)]
    return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def read_sample(split: schema.Split, number: int, into: memoryview) -> tuple[dict[str, memoryview], dict]:
    """Return the members of a sample, read into `into`, and its record. Raises SchemaError, naming shard and sample."""
    try:
        members = schema.members(split.read(number, into))
        record = json.loads(bytes(members["json"]))
        if missing := [key for key in _RECORD if key not in record]:
            raise schema.SchemaError(f"its record lacks {', '.join(missing)}")
        return members, record
    except (schema.SchemaError, KeyError, TypeError, ValueError) as error:
        raise _named(split, number, error) from error


def _decode(
    members: dict,
    record: dict,
    sequences: tuple[str, ...],
    wanted: frozenset[str],
    pixels: np.ndarray,
    present: np.ndarray,
) -> None:
    """Fill one sample's (S·C, H, W) part of the batch with those of the sequences that are `wanted` of its source."""
    height, width = record["shape"]
    whole, channels = (height, width) == pixels.shape[1:], len(pixels) // len(sequences)
    stored = schema.channels_in(record)
    for place, name in enumerate(sequences):
        air = int(schema.span(name, (schema.AIR_HU, 0))[0])
        own = pixels[place * channels : (place + 1) * channels]
        if name not in record["sequences"] or name not in wanted:
            own[:] = air
            continue
        if stored > channels:
            raise schema.SchemaError(f"{name} is in colour, and the model takes grey; set model.channels=3")
        present[place] = True
        # a slice as large as the batch is decoded in place, a smaller one by way of its own array
        planes = (own[:stored] if whole else np.empty((stored, height, width), np.int16)).view(record["dtype"])
        schema.decompress_into(members[f"{name}.b2"], planes)
        if not whole:
            own[:, height:] = own[:, :, width:] = air
            own[:stored, :height, :width] = schema.signed(planes)
        else:
            schema.signed(planes)
        own[stored:] = own[0]  # grey has the same in every channel
    if not present.any():
        asked = [name for name in sequences if name in wanted]
        raise schema.SchemaError(f"has {', '.join(record['sequences'])}, none of data.sequences={asked}")


def _labelled(members: dict, record: dict, ignored: Sequence[int]) -> np.ndarray:
    """Return (V, 2) rows and columns of the pixels with a label inside the foreground box."""
    if "seg.b2" not in members:
        return _NOWHERE
    labelmap = np.empty(record["shape"], np.uint8)
    schema.decompress_into(members["seg.b2"], labelmap)
    row0, row1, column0, column1 = record["box"]
    for value in ignored:
        labelmap[labelmap == value] = 0
    found = np.nonzero(labelmap[row0:row1, column0:column1])
    return np.stack([found[0] + row0, found[1] + column0], axis=1).astype(np.int16)


def _named(split: schema.Split, number: int, error: Exception) -> schema.SchemaError:
    return schema.SchemaError(
        f"{split.paths[int(split.shard[number])]}: sample {number}: {error}; make the shard again"
    )
