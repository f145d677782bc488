"""Stacks of frames: sorted along the normal, told apart by volume, split at gaps (PS3.3, C.7.6.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.config import StackConfig
from data_prep.dicom import passes, pixels, places, traits
from data_prep.dicom.frames import Frame
from data_prep.dicom.scan import AnyHeader
from data_prep.dicom.whitelist import number
from data_prep.volumes.volume import RejectedSeries

_SAME_AXIS = 1e-3  # components of ImageOrientationPatient
_SAME_SPACING = 1e-3  # share of PixelSpacing


@dataclass(frozen=True)
class Stack:
    """Evenly spaced frames on one grid, in order along the normal.

    affine  (4, 4) voxel (x, y, z) → RAS mm; sheared if the gantry was tilted
    header  of the first frame, in the names of classic files
    """

    frames: list[Frame]
    affine: np.ndarray
    header: AnyHeader
    notes: dict[str, object]


def build(
    frames: Iterable[tuple[Frame, AnyHeader]], config: StackConfig, min_slices: int
) -> list[Stack | RejectedSeries]:
    """Return the stacks of a series, and a rejection for every group of frames that does not stack.

    Raises DamagedPixels if pixels had to be compared and a file's cannot be read.
    """
    built: list[Stack | RejectedSeries] = []
    for members, header in _alike(frames):
        thickness = number(header.get("SliceThickness")) or number(header.get("SpacingBetweenSlices"))
        try:
            for volume, notes in passes.apart(members, thickness, config):
                built += _several(volume, header, config, min_slices, notes)
        except pixels.DamagedPixels:
            raise
        except RejectedSeries as error:
            built.append(error)
    return built


def _alike(frames: Iterable[tuple[Frame, AnyHeader]]) -> list[tuple[list[Frame], AnyHeader]]:
    """Return frames of one grid and one kind with the header of the first, within tolerances."""
    exact: dict[tuple, tuple[list[Frame], AnyHeader]] = {}
    for frame, header in frames:
        key = (frame.shape, frame.axes, frame.spacing, frame.group)
        exact.setdefault(key, ([], header))[0].append(frame)
    merged: dict[tuple, list[tuple[list[Frame], AnyHeader]]] = defaultdict(list)  # shape → groups
    groups = []
    for members, header in exact.values():
        for others, _ in merged[members[0].shape]:
            if _agree(members[0], others[0]):
                others += members
                break
        else:
            merged[members[0].shape].append((members, header))
            groups.append((members, header))
    return groups


def _agree(one: Frame, other: Frame) -> bool:
    return (
        all(abs(mine - yours) <= _SAME_AXIS for mine, yours in zip(one.axes, other.axes))
        and all(abs(mine - yours) <= _SAME_SPACING * yours for mine, yours in zip(one.spacing, other.spacing))
        and traits.alike(one.group, other.group)
    )


def _several(
    frames: list[Frame], header: AnyHeader, config: StackConfig, min_slices: int, notes: dict[str, object]
) -> list[Stack | RejectedSeries]:
    try:
        return list(_stacks(frames, header, config, min_slices, notes))
    except RejectedSeries as error:
        return [error]


def _stacks(
    frames: list[Frame], header: AnyHeader, config: StackConfig, min_slices: int, notes: dict[str, object]
) -> Iterator[Stack | RejectedSeries]:
    at = places.along(frames)
    if len(frames) < min_slices:
        raise RejectedSeries(f"{len(frames)} slices, fewer than min_slices={min_slices}")
    jumps = _jumps(frames)
    runs = places.even_runs(at, config.max_gap, jumps)
    if len(runs) > 1 and config.uneven == "refuse":
        if jumps:
            raise RejectedSeries("slices are shifted sideways against each other; stacks.uneven=split keeps even runs")
        steps = np.diff(at)
        raise RejectedSeries(
            f"slices {steps.min():.2f} to {steps.max():.2f} mm apart: some are missing or the spacing varies; "
            "stacks.uneven=split keeps the even runs"
        )
    long = [(first, last) for first, last in runs if last - first >= min_slices]
    if len(runs) > 1:
        notes = {**notes, "uneven_runs": len(runs)}
    for first, last in long:
        run = frames[first:last]
        yield Stack(run, _affine(run, header), header, notes)
    if short := sum(last - first for first, last in runs) - sum(last - first for first, last in long):
        yield RejectedSeries(f"{short} slices in {len(runs) - len(long)} runs shorter than min_slices={min_slices}")


def _jumps(frames: list[Frame]) -> list[int]:
    """Return after which slices the next one is shifted sideways by more than a pixel, besides a gantry's tilt."""
    steps = np.diff([frame.position for frame in frames], axis=0)
    if len(steps) < 2:
        return []
    normal = places.normal(frames[0])
    forward = steps @ normal
    sideways = steps - forward[:, None] * normal
    tilt = np.median(sideways / forward[:, None], axis=0)
    off = np.linalg.norm(sideways - forward[:, None] * tilt, axis=1)
    return [int(n) for n in np.flatnonzero(off > max(frames[0].spacing))]


def _affine(frames: list[Frame], header: AnyHeader) -> np.ndarray:
    first, last = frames[0], frames[-1]
    along_row, along_column = np.array(first.axes).reshape(2, 3)
    if len(frames) > 1:
        step = (last.position - first.position) / (len(frames) - 1)
    else:
        thickness = number(header.get("SpacingBetweenSlices")) or number(header.get("SliceThickness")) or 1.0
        step = places.normal(first) * thickness
    rows, columns = first.spacing
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along_row * columns, along_column * rows, step
    affine[:3, 3] = first.position
    affine[:2] *= -1  # DICOM counts to the left and back (LPS), the affine to the right and front (RAS)
    return affine
