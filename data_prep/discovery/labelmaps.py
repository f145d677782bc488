"""Label maps: recognised by name, paired with their image, put on its grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from data_prep.config import PrepConfig
from data_prep.dicom import segments
from data_prep.discovery import sequences
from data_prep.volumes import geometry, images
from data_prep.volumes.volume import RejectedSeries, Volume

_WORDS = {
    "seg",
    "dseg",
    "mask",
    "msk",
    "segmentation",
    "label",
    "labels",
    "labelmap",
    "groundtruth",
    "gold",
    "goldstandard",
}
_WORDS |= {"segmentationoverlapping"}
_BIDS_SUFFIXES = {"dseg", "mask", "msk", "seg"}
_IMAGE_WORDS = sequences.TOKENS | {"ct", "mr", "mri", "image", "img", "scan", "volume"}


@dataclass(frozen=True)
class LabelFile:
    """A label map and how it was found.

    certain  named by the user, by a dedicated name (seg.nii.gz) or by the header of a DICOM-SEG; others count only if
             they lie on the image's grid
    """

    path: str
    certain: bool
    dicom: bool = False


def is_label(name: str) -> bool:
    """Return whether an image file's name says that it holds labels."""
    stem = images.stem(name)
    if stem.startswith("sub-"):
        return stem.rpartition("_")[2].lower() in _BIDS_SUFFIXES
    return bool(_WORDS & set(sequences.tokens(stem)))


def is_plain(name: str) -> bool:
    """Return whether a name says only that it is a label map, which then belongs to its folder."""
    return images.stem(name).lower() in _WORDS


def base(name: str) -> str:
    """Return a file's name without the words that distinguish image and label map: equal for the two of a pair."""
    stem = images.stem(name)
    if stem.startswith("sub-"):
        return "_".join(part for part in stem.split("_") if part.startswith(("sub-", "ses-")))
    return "_".join(word for word in sequences.tokens(stem) if word not in _WORDS | _IMAGE_WORDS)


def in_tree(image: PurePath, masks: Path) -> LabelFile | None:
    """Return the label map below `masks` at the relative path of an image or of a series' folder, or in that folder."""
    candidates = [masks / image, *(masks / f"{image}{suffix}" for suffix in images.NIFTI)]
    folder = image.parent if images.is_image(image.name) else image
    candidates += [masks / folder / f"seg{suffix}" for suffix in images.NIFTI]
    return next((LabelFile(str(path), certain=True) for path in candidates if path.is_file()), None)


def of(labels: Sequence[LabelFile], volume: Volume, config: PrepConfig) -> tuple[np.ndarray | None, dict[str, object]]:
    """Return (Z, Y, X) uint8 labels on the grid of `volume`, nearest neighbour, 0 outside the map; and notes.

    None, with the reason in the notes, if no single one of `labels` belongs to the volume: several fit, or the only
    one was a guess and has another grid. Raises RejectedSeries if the map is damaged, holds values other than whole
    numbers 0…255 or does not touch the volume.
    """
    if len(labels) > 1:
        fitting = [label for label in labels if not label.dicom and _same_grid(label, volume, config)]
        if len(fitting) != 1:
            which = f"{len(fitting)} of them on its grid" if fitting else "none on its grid"
            return None, {"labels_left_out": f"{len(labels)} label maps found, {which}; label_maps can name one"}
        labels = fitting
    return _read_onto(labels[0], volume, config) if labels else (None, {})


def _same_grid(label: LabelFile, volume: Volume, config: PrepConfig) -> bool:
    try:
        image = images.Image(label.path, config)
        return _on_grid(image.affine, image.shape, volume)
    except RejectedSeries:
        return False


def _on_grid(affine: np.ndarray, shape: tuple[int, ...], volume: Volume) -> bool:
    """Return whether a grid is the volume's, up to permuted or flipped axes."""
    outline = np.broadcast_to(np.uint8(0), shape)  # takes no memory
    turned, transform = geometry.canonical(outline, affine)
    shape = volume.voxels.shape
    return turned.shape == shape and geometry.same_grid(transform, volume.affine, shape[::-1])


def _read_onto(label: LabelFile, volume: Volume, config: PrepConfig) -> tuple[np.ndarray | None, dict[str, object]]:
    try:
        if label.dicom:
            labels, affine, notes = segments.read(label.path, config)
        else:
            (labels, affine), notes = images.read_labels(label.path, config), {}
    except RejectedSeries as error:
        if not label.certain:
            return None, {"labels_left_out": error.reason}
        raise RejectedSeries(f"label map: {error.reason}") from error
    if _on_grid(affine, labels.shape, volume):
        return np.ascontiguousarray(geometry.canonical(labels, affine)[0]), notes
    if not label.certain:
        return None, {"labels_left_out": "found by its name, but on another grid; label_maps can name the pair"}
    placed = geometry.place(labels, affine, volume.affine, volume.voxels.shape[::-1], order=0)
    if labels.any() and not placed.any():
        raise RejectedSeries("label map: none of its labels lies inside the volume; check the two affines")
    return np.ascontiguousarray(placed.transpose(2, 1, 0)), notes
