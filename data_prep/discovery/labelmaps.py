"""Label maps: recognised by name, paired with their image, put on its grid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from data_prep.config import PrepConfig
from data_prep.dicom import segments
from data_prep.discovery import organs, sequences
from data_prep.volumes import geometry, images
from data_prep.volumes.volume import RejectedSeries, Volume

_WORDS = {
    "seg",
    "dseg",
    "mask",
    "msk",
    "segmentation",
    "segmentations",
    "segm",
    "segs",
    "masks",
    "label",
    "labels",
    "labelmap",
    "groundtruth",
    "gt",
    "truth",
    "annotation",
    "annotations",
    "gold",
    "goldstandard",
}
_WORDS |= {"segmentationoverlapping"}
_IGNORE = "ignore"  # what nnU-Net calls voxels that nobody annotated
_SAME_MM = 0.05  # corners of two grids that lie no further apart are one grid
_CHANNEL = re.compile(r"_\d{4}$")  # at the end of the name of nnU-Net's images, not of their label maps
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")  # between the words of leftMask
_EDGE = 0.5 + 1e-3  # voxels beyond the outermost centres that a grid reaches, with room for rounding
_FEW = 4  # an image has more values than so many
_EVEN = 0.4  # of what is not background, the share that equals its neighbours along all axes in a drawing, not an image
_BIDS_SUFFIXES = {"dseg", "mask", "msk", "seg"}
_IMAGE_WORDS = sequences.TOKENS | {"ct", "mr", "mri", "image", "img", "scan", "volume"}


@dataclass(frozen=True)
class LabelFile:
    """A label map and how it was found.

    certain  named by the user, by a dedicated name (seg.nii.gz) or by the header of a DICOM-SEG; others count only if
             they lie on the image's grid
    organs   (path, label value) of binary files in the folder `path`, which are one map; else empty
    problem  why it cannot be used, if discovery found that already; else ""
    orientation  where its axes run, if its format does not say it ("LAS"); else ""
    """

    path: str
    certain: bool
    dicom: bool = False
    organs: tuple[tuple[str, int], ...] = ()
    problem: str = ""
    orientation: str = ""

    @property
    def files(self) -> list[str]:
        """All files that it is read from."""
        return [path for path, _ in self.organs] or [self.path]


def ignored(config: PrepConfig) -> frozenset[int]:
    """Return the label values of voxels that nobody annotated."""
    return ignored_values(config.ignore, config.labels)


def ignored_values(ignore: Iterable[int], labels: Mapping[str, str]) -> frozenset[int]:
    """Return those of `ignore` that have no name in `labels` (label value → name), and those named "ignore"."""
    names = {int(value): name.strip().lower() for value, name in labels.items()}
    unnamed = {int(value) for value in ignore if names.get(int(value), _IGNORE) == _IGNORE}
    return frozenset(unnamed | {value for value, name in names.items() if name == _IGNORE})


def is_label(name: str) -> bool:
    """Return whether an image file's name says that it holds labels."""
    stem = images.stem(name)
    if stem.startswith("sub-"):
        return stem.rpartition("_")[2].lower() in _BIDS_SUFFIXES
    return bool(_WORDS & set(sequences.tokens(stem)))


def is_drawing(path: PurePath) -> bool:
    """Return whether the name of a picture, or of a folder above it, says labels: masks/7.png, leftMask, 7_mask.png."""
    parts = [sequences.tokens(_HUMP.sub(" ", part)) for part in (*path.parts[:-1], path.stem)]
    words = {word for part in parts for word in (*part, "".join(part[-2:]))}  # ground truth, as one word too
    return bool(words & (_WORDS | {"manual", "contour", "contours"}))


def is_plain(name: str) -> bool:
    """Return whether a name says only that it is a label map, which then belongs to its folder."""
    return images.stem(name).lower() in _WORDS


def base(name: str) -> str:
    """Return a file's name without the words that distinguish image and label map: equal for the two of a pair."""
    stem = images.stem(name)
    if stem.startswith("sub-"):
        return "_".join(part for part in stem.split("_") if part.startswith(("sub-", "ses-")))
    return "_".join(word for word in sequences.tokens(stem) if word not in _WORDS | _IMAGE_WORDS)


def is_drawn(voxels: np.ndarray) -> bool:
    """Return whether (Z, Y, X) values are labels, not an image: whole numbers, few of them or in even areas."""
    values, counts = np.unique(voxels[:: max(1, voxels.shape[0] // 8)], return_counts=True)
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        return False
    if len(values) <= _FEW and len(np.unique(voxels)) <= _FEW:
        return bool(voxels.min() < voxels.max())  # of one value nothing can be said
    drawn = voxels != values[counts.argmax()]
    even = drawn[:-1, :-1, :-1].copy()
    for axis in range(3):
        ahead = tuple(slice(1, None) if axis == each else slice(None, -1) for each in range(3))
        even &= voxels[ahead] == voxels[:-1, :-1, :-1]
    return bool(even.sum() > _EVEN * max(drawn[:-1, :-1, :-1].sum(), 1))


def in_tree(image: PurePath, masks: Path) -> LabelFile | None:
    """Return the label map below `masks` at the relative path of an image or of a series' folder, or in that folder.

    The name may lack the number of a channel that the image's has (CASE_0000.nii.gz, CASE.nii.gz).
    """
    candidates = [masks / image, *(masks / f"{image}{suffix}" for suffix in images.NIFTI)]
    if images.is_image(image.name) and _CHANNEL.search(images.stem(image.name)):
        case = _CHANNEL.sub("", images.stem(image.name))
        candidates += [masks / image.with_name(f"{case}{suffix}") for suffix in images.NIFTI]
    folder = image.parent if images.is_image(image.name) else image
    candidates += [masks / folder / f"seg{suffix}" for suffix in images.NIFTI]
    return next((LabelFile(str(path), certain=True) for path in candidates if path.is_file()), None)


def of(labels: Sequence[LabelFile], volume: Volume, config: PrepConfig) -> tuple[np.ndarray | None, dict[str, object]]:
    """Return (Z, Y, X) uint8 labels on the grid of `volume`, nearest neighbour, 0 outside the map; and notes.

    None, with the reason in the notes, if no single one of `labels` belongs to the volume (several fit, or the only
    one was a guess and has another grid), or if nothing in it was annotated. Raises RejectedSeries if the map is
    damaged, holds values other than whole numbers 0…255, or if more of its labels than configured lie outside.
    """
    if len(labels) > 1 and not labels[0].problem:
        fitting = [label for label in labels if not label.dicom and _same_grid(label, volume, config)]
        if len(fitting) != 1:
            which = f"{len(fitting)} of them on its grid" if fitting else "none on its grid"
            return None, {"labels_left_out": f"{len(labels)} label maps found, {which}; label_maps can name one"}
        labels = fitting
    if not labels:
        return None, {}
    if labels[0].problem:
        return None, {"labels_left_out": labels[0].problem}
    try:
        return _read_onto(labels[0], volume, config)
    except RejectedSeries as error:
        if not labels[0].certain:
            return None, {"labels_left_out": error.reason}
        raise RejectedSeries(f"label map: {error.reason}") from error


def said(notes: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Yield lines that sum up, for the console, what the notes of all series say of their label maps."""
    every = list(notes)
    moved = [float(str(each["labels_off_mm"])) for each in every if "labels_off_mm" in each]
    outside = [float(str(each["labels_outside"])) for each in every if "labels_outside" in each]
    if moved:
        yield (
            f"{len(moved)} label maps of their image's shape on another affine, up to {max(moved):.3g} mm off: placed "
            "by the affine; label_grid=refuse refuses them"
        )
    if other := len(outside) - len(moved):
        yield f"{other} label maps on another grid than their image: placed by their affine, nearest neighbour"
    if max(outside, default=0) > 0:
        yield f"up to {max(outside):.2%} of a map's labels lie outside its image (max_labels_outside)"
    for note, what in (("label_units", "unit of the header's lengths"), ("label_transform", "transform")):
        for value, count in Counter(each[note] for each in every if note in each).most_common(3):
            yield f"{count} label maps, {what}: {value}"
    for note, what in (
        ("ignored_voxels", "with voxels that nobody annotated, neither label nor background (ignore)"),
        ("label_voxels_rounded", "whose values were rounded to whole numbers, off by 0.001 at most"),
        ("overlapping_label_voxels", "whose labels overlap: the last one wins"),
    ):
        if count := sum(note in each for each in every):
            yield f"{count} label maps {what}"


def _same_grid(label: LabelFile, volume: Volume, config: PrepConfig) -> bool:
    try:
        image = images.Image(label.files[0], config, orientation=label.orientation)
        return _on_grid(image.affine, image.shape, volume)
    except RejectedSeries:
        return False


def _on_grid(affine: np.ndarray, shape: tuple[int, ...], volume: Volume) -> bool:
    """Return whether a grid is the volume's, up to permuted or flipped axes."""
    return _distance(affine, shape, volume) < _SAME_MM


def _distance(affine: np.ndarray, shape: tuple[int, ...], volume: Volume) -> float:
    """Return how far the corners of a grid lie from the volume's, in mm, up to permuted or flipped axes.

    Infinite for another shape.
    """
    outline = np.broadcast_to(np.uint8(0), shape)  # takes no memory
    turned, transform = geometry.canonical(outline, affine)
    shape = volume.voxels.shape
    return geometry.distance(transform, volume.affine, shape[::-1]) if turned.shape == shape else np.inf


def _read_onto(label: LabelFile, volume: Volume, config: PrepConfig) -> tuple[np.ndarray | None, dict[str, object]]:
    unknown = ignored(config)
    if label.organs:
        labels, affine, notes = organs.read(label.organs, config, unknown)
    elif label.dicom:
        labels, affine, notes = segments.read(label.path, config)
    else:
        labels, affine, notes = images.read_labels(label.path, config, label.orientation)
    highest = labels.max(initial=0)  # found faster than a value is counted, and most maps end far below 255
    if count := sum(int(np.count_nonzero(labels == value)) for value in unknown if value <= highest):
        notes = {**notes, "ignored_voxels": count}
        if count == np.count_nonzero(labels):
            values = ", ".join(str(value) for value in sorted(unknown))
            reason = f"its only value means voxels that nobody annotated (ignore: {values}); labels.255=NAME names it"
            return None, {"labels_left_out": reason}
    distance = _distance(affine, labels.shape, volume)
    if distance < _SAME_MM:
        return np.ascontiguousarray(geometry.canonical(labels, affine)[0]), notes
    if not label.certain:
        raise RejectedSeries("found by its name, but on another grid; label_maps can name the pair")
    if np.isfinite(distance):
        notes = {**notes, "labels_off_mm": round(distance, 3)}
    if config.label_grid == "refuse":
        which = f"of the image's shape, but {distance:.3g} mm off" if np.isfinite(distance) else "on another grid"
        raise RejectedSeries(f"{which}; label_grid=place places it by its affine")
    outside = _share_outside(labels, affine, volume, unknown)
    if outside >= 1:
        raise RejectedSeries("none of its labels lies inside the volume; check the two affines")
    if outside > config.max_labels_outside and "uneven_runs" not in volume.notes:  # of a split series one part
        raise RejectedSeries(
            f"{outside:.1%} of its labels lie outside the image, more than "
            f"max_labels_outside={config.max_labels_outside}; check the two affines"
        )
    placed = geometry.place(labels, affine, volume.affine, volume.voxels.shape[::-1], order=0)
    return np.ascontiguousarray(placed.transpose(2, 1, 0)), {**notes, "labels_outside": round(outside, 5)}


def _share_outside(labels: np.ndarray, affine: np.ndarray, volume: Volume, unknown: frozenset[int]) -> float:
    """Return which share of the label voxels has its centre outside the volume; 0 where there is none."""
    step = np.linalg.inv(volume.affine) @ affine
    shape = np.array(volume.voxels.shape[::-1])
    total = outside = 0
    for k in range(labels.shape[2]):  # a plane at a time: places of all voxels of a large organ take much memory
        plane = labels[:, :, k]
        drawn = plane > 0
        for value in unknown:
            drawn &= plane != value
        at = np.argwhere(drawn)
        places = at @ step[:3, :2].T + (step[:3, 2] * k + step[:3, 3])
        outside += int(((places < -_EDGE) | (places > shape - 1 + _EDGE)).any(axis=1).sum())
        total += len(at)
    return outside / total if total else 0.0
