"""How many planted duplicates `meddap curate` finds, and how many of those that it finds are wrong.

    python benchmarks/duplicates.py --tune SHARDS --score OTHER_SHARDS

Copies of real slices and series are planted under ids of their own. Thresholds are what keeps the patients of --tune,
among whom nothing is planted, apart; recall and precision are those on --score, with the defaults of the command.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image
from scipy import ndimage

from data_prep import schema
from data_prep.schema import Slice, Split
from eval.config import DuplicatesConfig
from eval.curation import catalogue, duplicates, pairs
from eval.curation.catalogue import Catalogue
from meddap import console
from meddap.disk import file_sha256

Change = Callable[[np.ndarray], np.ndarray]


def eight_bits(low: float, high: float) -> Change:
    """Return a change that stores HU as 256 greys of a window, and reads those as HU again."""

    def change(pixels: np.ndarray) -> np.ndarray:
        grey = np.rint((np.clip(pixels, low, high) - low) * (255 / (high - low)))
        return np.rint(grey * ((high - low) / 255) + low).astype(np.int16)

    return change


def shifted(pixels: np.ndarray) -> np.ndarray:
    """Return (1, H, W) pixels moved by 3 rows and 2 columns; what comes in is air."""
    moved = np.full_like(pixels, pixels.min())
    moved[:, 3:, 2:] = pixels[:, :-3, :-2]
    return moved


def cropped(share: float) -> Change:
    """Return a change that cuts a border off: this share of the body's length on each side of it, a pixel at least."""

    def change(pixels: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(pixels[0] > -100)
        if not len(rows):
            return pixels
        inset = max(1, int(share * (rows.max() - rows.min())))
        cut = pixels[:, rows.min() + inset : rows.max() + 1 - inset, columns.min() + inset : columns.max() + 1 - inset]
        return np.pad(cut, ((0, 0), (4, 4), (4, 4)), constant_values=pixels.min())

    return change


def jpeg(quality: int, low: float = -160, high: float = 240) -> Change:
    """Return a change that stores the greys of a window as JPEG, and reads those as HU again."""

    def change(pixels: np.ndarray) -> np.ndarray:
        grey = np.rint((np.clip(pixels[0], low, high) - low) * (255 / (high - low))).astype(np.uint8)
        memory = io.BytesIO()
        Image.fromarray(grey).save(memory, "JPEG", quality=quality)
        read = np.asarray(Image.open(memory), np.float64)
        return np.rint(read * ((high - low) / 255) + low).astype(np.int16)[None]

    return change


def halved(pixels: np.ndarray) -> np.ndarray:
    """Return (1, H // 2, W // 2) means of 2 × 2 pixels."""
    height, width = (length // 2 * 2 for length in pixels.shape[1:])
    blocks = pixels[:, :height, :width].reshape(1, height // 2, 2, width // 2, 2)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.int16)


def turned(degrees: float) -> Change:
    """Return a change that turns the image, linearly interpolated; what comes in is the lowest value."""
    return lambda pixels: ndimage.rotate(pixels[0], degrees, reshape=False, order=1, cval=pixels.min())[None]


CHANGES: dict[str, Change] = {
    "exact copy": lambda pixels: pixels,
    "8 bits, −1024 to 1500 HU": eight_bits(-1024, 1500),
    "8 bits, −160 to 240 HU": eight_bits(-160, 240),
    "8 bits, −1350 to 150 HU": eight_bits(-1350, 150),
    "clipped to −250 to 550 HU": lambda pixels: np.clip(pixels, -250, 550),
    "moved by 3 and 2 pixels": shifted,
    "JPEG of quality 50, −160 to 240 HU": jpeg(50),
    "half the rows and columns": halved,
    "smoothed by half a pixel": lambda pixels: ndimage.gaussian_filter(pixels, (0, 0.5, 0.5)),
    "turned by 1°": turned(1),
    "cropped by 2 %": cropped(0.02),
    "cropped by 4 %": cropped(0.04),
    "mirrored": lambda pixels: pixels[:, :, ::-1],
}
NEIGHBOUR, BETWEEN = "neighbouring slice", "the slices between"
SERIES: dict[str, Change] = {
    "whole series, 8 bits": eight_bits(-160, 240),
    "whole series, cropped by 4 %": cropped(0.04),
    "every second slice": lambda pixels: pixels,
    BETWEEN: lambda pixels: pixels,
    "whole series, mirrored": lambda pixels: pixels[:, :, ::-1],
}


def renamed(sample: Slice, number: int, order: int, change: Change) -> Slice:
    """Return a changed slice as one of another patient, of whom `number` makes the id."""
    subject = hashlib.sha256(f"planted {number}".encode()).hexdigest()[:32]
    pixels = np.ascontiguousarray(change(sample.pixels))
    height, width = pixels.shape[1:]
    return replace(
        sample, pixels=pixels, subject=subject, series=subject[::-1], order=order, key=f"{subject}-{order:05d}",
        box=(0, height, 0, width), labelmap=None, annotated=(),
    )  # fmt: skip


def write(root: Path, splits: dict[str, Sequence[Slice]]) -> Path:
    """Write slices as a data set of one shard per split."""
    described = {}
    for name, samples in splits.items():
        path, rows, offset = root / name / "000000.tar", [], 0
        path.parent.mkdir(parents=True)
        with open(path, "wb") as file:
            for sample in samples:
                block = b"".join(schema.tar_block(*member) for member in schema.encode(sample))
                file.write(block)
                ids = schema.short_hash(sample.subject), schema.short_hash(sample.series)
                rows.append((offset, len(block), *ids, sample.order))
                offset += len(block)
            file.write(schema.TAR_END)
        np.save(schema.index_of(path), np.array(rows, schema.INDEX_DTYPE))
        shard = {"name": f"{name}/000000.tar", "samples": len(rows), "bytes": path.stat().st_size,
                 "sha256": file_sha256(path), "index_sha256": file_sha256(schema.index_of(path))}  # fmt: skip
        counts = {"series": len({row[3] for row in rows}), "subjects": len({row[2] for row in rows})}
        described[name] = {"shards": [shard], "samples": len(rows), **counts}
    digest = schema.dataset_digest(described)
    dataset = {"schema": schema.VERSION, "digest": digest, "splits": described,
               "statistics": {}, "labels": {}, "made_with": {}}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(dataset))
    return root


def plant(samples: Sequence[Slice], patients: int = 4) -> tuple[list[Slice], list[str], list[tuple[str, int]]]:
    """Return slices, the kind of each ("" for an original), and of each the series and place that it comes from.

    patients  copied as whole series in each of the ways of SERIES; of the others single slices are copied
    """
    series: dict[str, list[Slice]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.series, sample.order)):
        series.setdefault(sample.series, []).append(sample)
    made: list[tuple[Slice, str, tuple[str, int]]] = []
    number = 0
    for place, mine in enumerate(series.values()):
        if place // patients < len(SERIES):
            number += 1
            kind, change = list(SERIES.items())[place // patients]
            first, step = {"every second slice": (0, 2), BETWEEN: (1, 2)}.get(kind, (0, 1))
            for row, sample in enumerate(mine):
                came = sample.series, row
                if not (kind == BETWEEN and row % 2):
                    made.append((sample, "", came))
                if row % step == first:
                    made.append((renamed(sample, number, row // step, change), kind, came))
            continue
        for row, sample in enumerate(mine):
            kind = [*CHANGES, NEIGHBOUR][row // 3 % (len(CHANGES) + 1)] if row % 3 == 1 else ""
            if kind != NEIGHBOUR:
                made.append((sample, "", (sample.series, row)))
            if kind:  # a neighbour goes to another patient, those below and above it stay
                number += 1
                change = CHANGES.get(kind, CHANGES["exact copy"])
                made.append((renamed(sample, number, 0, change), kind, (sample.series, row)))
    slices, kinds, came_from = zip(*made)
    return list(slices), list(kinds), list(came_from)


def table(slices: Catalogue, work: Path, kinds: Sequence[str], came_from: Sequence[tuple[str, int]]) -> list[list[str]]:
    """Return rows: kind, planted, found, recall, wrong, precision; slices first, then series.

    A copy of a slice is found where it is paired with its source (a neighbour: with a slice beside it). A pair is wrong
    where the slices are of different patients or lie more than two places apart. A copied series is found where its
    patient is paired with the source's.
    """
    wanted = DuplicatesConfig()
    similar = pairs.find(slices, work, wanted.radius, wanted.neighbours, wanted.similar)
    close = similar.where(similar.score >= wanted.slice)
    patient = np.unique([series for series, _ in came_from], return_inverse=True)[1]
    place = np.array([row for _, row in came_from])
    kind = np.array(kinds)
    across = slices.series[close.first] != slices.series[close.second]
    apart = np.abs(place[close.first] - place[close.second])
    same = patient[close.first] == patient[close.second]
    rows = []
    for name in (*CHANGES, NEIGHBOUR):
        mine = np.flatnonzero(kind == name)
        reach = 1 if name == NEIGHBOUR else 0
        hit = {int(end) for ends in (close.first, close.second) for end in ends[across & same & (apart <= reach)]}
        involved = across & (np.isin(close.first, mine) | np.isin(close.second, mine))
        rows.append(_row(name, len(mine), sum(int(one) in hit for one in mine), involved, same & (apart <= 2)))
    found = duplicates.same_patients(slices, duplicates.same_series(slices, similar, wanted.slice, wanted.series))
    owner = {int(subject): int(who) for subject, who in zip(slices.subject, patient)}
    right = np.array([owner[int(one)] == owner[int(other)] for one, other in found], bool)
    for name in SERIES:
        copies = np.unique(slices.subject[kind == name])
        involved = np.asarray(np.isin(found, copies).any(axis=1))
        hit = {int(one) for one in found[involved & right].reshape(-1)}
        rows.append(_row(name, len(copies), sum(int(one) in hit for one in copies), involved, right))
    return rows


def _row(name: str, planted: int, found: int, involved: np.ndarray, right: np.ndarray) -> list[str]:
    total, wrong = int(involved.sum()), int((involved & ~right).sum())
    precision = f"{(total - wrong) / total:.3f}" if total else "none found"
    return [name, str(planted), str(found), f"{found / max(planted, 1):.3f}", f"{wrong} of {total}", precision]


def apart(root: Path, work: Path) -> tuple[int, float, float]:
    """Return patients of a data set, and what the most similar ones reach: agreement of slices, share of a series."""
    slices, wanted = catalogue.read(root, work), DuplicatesConfig()
    similar = pairs.find(slices, work, wanted.radius, wanted.neighbours, wanted.similar)
    strangers = similar.where(slices.subject[similar.first] != slices.subject[similar.second])
    same = duplicates.same_series(slices, strangers, wanted.slice, 0.0)
    highest = float(strangers.score.max(initial=0.0))
    return len(np.unique(slices.subject)), highest, max((pair.share for pair in same), default=0.0)


def main(arguments: list[str] | None = None) -> int:
    parser = console.parser("Recall and precision of `meddap curate` on planted duplicates of CT.")
    parser.add_argument("--tune", required=True, type=Path, metavar="SHARDS", help="patients who only set thresholds")
    parser.add_argument("--score", required=True, type=Path, metavar="SHARDS", help="patients whose slices are copied")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        patients, highest, share = apart(options.tune, Path(folder) / "tune")
        console.show(
            f"{patients} patients apart: slices agree by {highest:.3f} at most, series in {share:.2f} of slices"
        )
        splits = [Split(options.score, name) for name in schema.read_dataset(options.score)["splits"]]
        slices, kinds, came_from = plant([split[number] for split in splits for number in range(len(split))])
        root = write(Path(folder) / "planted", {"train": slices})
        found = catalogue.read(root, Path(folder) / "score")
        console.show(f"{len(slices)} slices, {sum(map(bool, kinds))} of them planted")
        console.show("| kind | planted | found | recall | wrong pairs | precision |")
        console.show("|---|---|---|---|---|---|")
        for row in table(found, Path(folder) / "score", kinds, came_from):
            console.show(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
