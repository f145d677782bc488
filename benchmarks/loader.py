"""How fast samples are read, decoded and made into views, as ratios taken in one run on one core.

    python benchmarks/loader.py [--input SHARDS] [--samples 128] [--rounds 5] [--growth 50000] [--folder DIR]

Arms take turns; a rate is samples a second, the median of the rounds; one thread on one core (two where it is said),
files in the page cache.
--input is a finished data set of CT; without it synthetic patients of 512 × 512 pixels are made. Beside ours stand

  (a) the same shards through webdataset.WebDataset, doing the same work;
  (b) the same slices as 16-bit PNG in shards of WebDataset's, PIL, and a multi-crop of the same sizes by torchvision's
      transforms (where torchvision is not installed, by the same operations of torch: the output says which), on one
      channel, and on three equal ones, which models of colour pictures take;
  (c) the copy: the same bytes out of the page cache into one buffer; pixels from memory to memory; the codec alone.
"""

from __future__ import annotations

import gc
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before the libraries that read it
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import blosc2
import numpy as np
import torch
import webdataset
from PIL import Image

from benchmarks import synthetic_shards
from benchmarks.multicrop import MultiCrop, torchvision
from data_prep import schema
from meddap import console
from pretrain import build, checks
from pretrain.config import load
from pretrain.data import stream, views

BATCH = 64
CONFIG = Path(__file__).resolve().parent.parent / "pretrain/configs/meddinov3_vitb16.yaml"
_WARM, _STEADY = 8, 24  # batches
_TWO_CORES = "decode: MedDAP, on two cores, threads: {}"
_LARGE = 1 << 26  # bytes: more than a cache holds


def largest(root: Path) -> schema.Split:
    """The split of a data set with most samples."""
    splits = schema.read_dataset(root)["splits"]
    return schema.Split(root, max(splits, key=lambda name: sum(row["samples"] for row in splits[name]["shards"])))


def write_png(folder: Path, split: schema.Split, count: int) -> list[str]:
    """Slices as 16-bit PNG in a shard of WebDataset's."""
    path = str(folder / "png.tar")
    with webdataset.TarWriter(path) as sink:
        for number in range(count):
            sample, memory = split[number], io.BytesIO()
            shifted = (sample.pixels[0].astype(np.int32) + 1024).clip(0, 65535).astype(np.uint16)
            Image.fromarray(shifted).save(memory, "PNG")
            sink.write({"__key__": sample.key, "png": memory.getvalue(), "json": {"order": sample.order}})
    return [path]


class Arms:
    """The timed functions: each takes `count` samples through some stages of loading."""

    def __init__(self, split: schema.Split, png: list[str], count: int) -> None:
        self.split, self.png_shards, self.count = split, png, count
        self.shards = [str(path) for path in split.paths]
        config = load(CONFIG, ["data.root=none"])
        self.settings = build.view_settings(checks.stage(config, "adapt"), config.intensity)
        self.multicrop = MultiCrop(self.settings)
        self.order = np.random.default_rng(0).permutation(len(split))[:count].tolist()
        self.buffer = memoryview(bytearray(int(split.index["size"].max())))
        self.payloads = [bytes(schema.members(split.read(number))["ct.b2"]) for number in self.order]
        shape = split[self.order[0]].pixels.shape[1:]
        self.pixels = np.zeros((BATCH, *shape), np.int16)
        self.source = np.zeros((_LARGE // self.pixels[0].nbytes, *shape), np.int16)
        self.target = np.ones_like(self.source)
        # works only while it is asked, so that it takes nothing from the next arm
        self.one = stream.batches(split, batch_size=BATCH, seed=0, threads=1, prefetch=0)

    def read(self) -> None:
        for number in self.order:
            self.split.read(number, self.buffer)

    def read_webdataset(self) -> None:
        for _ in islice(webdataset.WebDataset(self.shards, shardshuffle=False), self.count):
            pass

    def copy_file(self) -> None:
        """The same bytes as `read`, end to end."""
        left = sum(int(self.split.index["size"][number]) for number in self.order)
        while left > 0:
            for path in self.split.paths:
                with open(path, "rb", buffering=0) as file:
                    while left > 0 and (got := file.readinto(self.buffer)):
                        left -= got

    def decode(self) -> None:
        for _ in range(self.count // BATCH):
            next(self.one)

    def decode_webdataset(self) -> None:
        slices = []
        for sample in islice(webdataset.WebDataset(self.shards, shardshuffle=False), self.count):
            record = json.loads(sample["json"])
            plane = np.frombuffer(blosc2.decompress2(sample["ct.b2"]), record["dtype"]).reshape(record["shape"])
            slices.append(plane)
            if len(slices) == BATCH:
                torch.from_numpy(np.stack(slices))
                slices.clear()

    def codec(self) -> None:
        for place, payload in enumerate(self.payloads):
            blosc2.decompress2(payload, dst=self.pixels[place % BATCH])

    def copy_pixels(self) -> None:
        for place in range(self.count):
            np.copyto(self.target[place % len(self.target)], self.source[place % len(self.source)])

    def everything(self) -> None:
        for _ in range(self.count // BATCH):
            views.make(next(self.one), self.settings, seed=0)

    def _png(self) -> Iterator[np.ndarray]:
        for sample in islice(webdataset.WebDataset(self.png_shards, shardshuffle=False), self.count):
            yield np.asarray(Image.open(io.BytesIO(sample["png"])))

    def decode_png(self) -> None:
        slices = []
        for picture in self._png():
            slices.append(picture)
            if len(slices) == BATCH:
                torch.from_numpy(np.stack(slices))
                slices.clear()

    def png(self, channels: int) -> None:
        """(b): every picture windowed, cropped, and batches of crops stacked."""
        made, (low, high) = [], self.settings.intensity.window
        for picture in self._png():
            unit = torch.from_numpy(picture.astype(np.float32)).sub_(1024 + low).div_(high - low).clamp_(0, 1)
            made.append(self.multicrop(unit.expand(channels, -1, -1)))
            if len(made) == BATCH:
                [torch.stack(crops) for crops in zip(*made)]
                made.clear()


CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextmanager
def on(cores: list[int]) -> Iterator[None]:
    """This thread and those that it starts, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    yield
    os.sched_setaffinity(0, before)


def measure(arms: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, float]:
    """Samples a second of every arm: arms take turns, the median of the rounds; a first one warms up."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, work in arms.items():
            gc.collect()
            began = time.perf_counter()
            work()
            if number:
                rates[name].append(count / (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in rates.items()}


def steady(split: schema.Split, rounds: int) -> dict[str, float]:
    """Samples a second that a stream of one and of two threads decodes without a pause, on two cores."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for threads, found in rates.items():
            batches = stream.batches(split, batch_size=BATCH, seed=0, threads=threads)
            for _ in range(_WARM):
                next(batches)
            began = time.perf_counter()
            for _ in range(_STEADY):
                next(batches)
            found.append(_STEADY * BATCH / (time.perf_counter() - began))
            batches.close()
    return {_TWO_CORES.format(threads): statistics.median(found) for threads, found in rates.items()}


def resident() -> float:
    """Megabytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth(arms: Arms, samples: int) -> tuple[float, float]:
    """Megabytes held after a fifth of so many samples, and after all of them, read, decoded and made into views."""
    held = []
    for part in (samples // 5, samples - samples // 5):
        for _ in range(max(part // BATCH, 1)):
            views.make(next(arms.one), arms.settings, seed=0)
        gc.collect()
        held.append(resident())
    return held[0], held[1]


def cpu() -> str:
    """Return the system's name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(rates: dict[str, float]) -> None:
    """The promised ratios."""
    decode, everything = rates["decode: MedDAP"], rates["everything: MedDAP"]
    grey, colour = rates["everything: (b) PNG, one channel"], rates["everything: (b) PNG, three channels"]
    rows = [
        ("read by WebDataset's (a)", rates["read: MedDAP"] / rates["read: (a) WebDataset"], "≥ 4"),
        ("read by the copy from the page cache (c)", rates["read: MedDAP"] / rates["read: (c) copy"], "≥ 0.6"),
        ("decode by the codec alone (c)", decode / rates["decode: (c) codec alone"], "≥ 0.8"),
        ("decode by WebDataset's with the same codec (a)", decode / rates["decode: (a) WebDataset"], ""),
        ("decode by decoding PNG", decode / rates["decode: PNG, WebDataset"], ""),
        ("decode by everything of (b), three channels", decode / colour, "≥ 50"),
        ("decode by everything of (b), one channel", decode / grey, "≥ 50"),
        ("everything by everything of (b), three channels", everything / colour, "≥ 8"),
        ("everything by everything of (b), one channel", everything / grey, "≥ 8"),
    ]
    if (two := _TWO_CORES.format(2)) in rates:
        rows.append(("decode with two threads by one", rates[two] / rates[_TWO_CORES.format(1)], "≥ 1.5"))
    print("\nratios" + " " * 50 + "wanted")
    for name, ratio, wanted in rows:
        print(f"  {name:<50}{ratio:6.2f}  {wanted}".rstrip())


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = console.parser("How fast samples are read, decoded and made into views, on one core.")
    parser.add_argument("--input", type=Path, metavar="SHARDS", help="a data set of CT; else a synthetic one is made")
    parser.add_argument("--samples", type=int, default=128, help="that every arm takes in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--growth", type=int, default=50_000, help="samples over which memory is watched; 0: none")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to write; the system's temporary folder")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    with tempfile.TemporaryDirectory(prefix="bench-loader-", dir=options.folder) as folder:
        split = largest(options.input or synthetic_shards.shards(Path(folder)))
        count = min(options.samples, len(split)) // BATCH * BATCH
        if count == 0:
            parser.error(f"{split.root}: {len(split)} samples, at least {BATCH} are needed; name another --input")
        png = write_png(Path(folder), split, count)
        with on(CORES[:1]):
            arms = Arms(split, png, count)
            rates = measure(named(arms), count, options.rounds)
            if len(CORES) > 1:
                with on(CORES[:2]):
                    rates |= steady(split, options.rounds)
            held = growth(arms, options.growth) if options.growth else None
    size = split.index["size"].mean()
    print(f"{cpu()}, one core of it; PyTorch {torch.__version__}, WebDataset {webdataset.__version__}", end="; ")
    print(f"(b) by torchvision {torchvision.__version__}" if torchvision else "(b) by torch alone: no torchvision")
    height, width = arms.pixels.shape[1:]
    print(f"{count} slices of {height} × {width} pixels; {2 * height * width / 1e3:.0f} kB of pixels, ", end="")
    crops = f"2 crops of {arms.settings.global_size} and {arms.settings.local_number} of {arms.settings.local_size}"
    print(f"{size / 1e3:.0f} kB in a shard; {crops}")
    print("\nsamples a second")
    for name, rate in rates.items():
        print(f"  {name:<45}{rate:9.0f}")
    report(rates)
    if held:
        print(f"\nmemory after {options.growth // 5} samples {held[0]:.0f} MB, after {options.growth} {held[1]:.0f} MB")
    return 0


def named(arms: Arms) -> dict[str, Callable[[], None]]:
    """The arms by what they are called in the output."""
    return {
        "read: MedDAP": arms.read,
        "read: (a) WebDataset": arms.read_webdataset,
        "read: (c) copy": arms.copy_file,
        "decode: MedDAP": arms.decode,
        "decode: (a) WebDataset": arms.decode_webdataset,
        "decode: PNG, WebDataset": arms.decode_png,
        "decode: (c) codec alone": arms.codec,
        "decode: (c) copy of the pixels": arms.copy_pixels,
        "everything: MedDAP": arms.everything,
        "everything: (b) PNG, one channel": lambda: arms.png(1),
        "everything: (b) PNG, three channels": lambda: arms.png(3),
    }


if __name__ == "__main__":
    console.launch(main)
