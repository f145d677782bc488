"""Stacks of frames: sorted along the normal, without duplicates, split at gaps (PS3.3, C.7.6.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.config import StackConfig
from data_prep.dicom.frames import Frame
from data_prep.dicom.scan import AnyHeader
from data_prep.dicom.whitelist import number
from data_prep.volumes.volume import RejectedSeries

_SAME_MM = 0.01  # slices nearer than this lie at one position


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
    """Return the stacks of a series, and a rejection for every group of frames that does not stack."""
    groups: dict[tuple, list[Frame]] = defaultdict(list)
    headers: dict[tuple, AnyHeader] = {}
    for frame, header in frames:
        key = (frame.grid, frame.group)
        groups[key].append(frame)
        headers.setdefault(key, header)
    built: list[Stack | RejectedSeries] = []
    for key, members in groups.items():
        try:
            for acquired in _acquisitions(members):
                built += _several(acquired, headers[key], config, min_slices)
        except RejectedSeries as error:
            built.append(error)
    return built


def _several(
    frames: list[Frame], header: AnyHeader, config: StackConfig, min_slices: int
) -> list[Stack | RejectedSeries]:
    try:
        return list(_stacks(frames, header, config, min_slices))
    except RejectedSeries as error:
        return [error]


def _acquisitions(frames: list[Frame]) -> list[list[Frame]]:
    """Return one list, or one per AcquisitionNumber if that alone explains why positions repeat (phases)."""
    if _repeats(frames):
        acquisitions: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            acquisitions[frame.acquisition].append(frame)
        if len(acquisitions) > 1 and not any(_repeats(members) for members in acquisitions.values()):
            return list(acquisitions.values())
    return [frames]


def _repeats(frames: list[Frame]) -> bool:
    places = np.sort(_places(frames))
    return bool((np.diff(places) < _SAME_MM).any())


def _normal(frame: Frame) -> np.ndarray:
    along_row, along_column = np.array(frame.axes).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    if abs(np.linalg.norm(normal) - 1) > 0.01:
        raise RejectedSeries("ImageOrientationPatient does not hold two unit vectors at right angles")
    return normal


def _places(frames: list[Frame]) -> np.ndarray:
    """Return positions along the normal in mm."""
    return np.array([frame.position for frame in frames]) @ _normal(frames[0])


def _stacks(
    frames: list[Frame], header: AnyHeader, config: StackConfig, min_slices: int
) -> Iterator[Stack | RejectedSeries]:
    places = _places(frames)
    order = sorted(range(len(frames)), key=lambda n: (places[n], frames[n].instance, frames[n].uid, frames[n].path))
    kept = [order[0]]
    for candidate in order[1:]:
        if places[candidate] - places[kept[-1]] >= _SAME_MM:
            kept.append(candidate)
    notes: dict[str, object] = {"duplicates_dropped": len(order) - len(kept)} if len(kept) < len(order) else {}
    if len(kept) < min_slices:
        raise RejectedSeries(f"{len(kept)} slices, fewer than min_slices={min_slices}")
    runs = _even_runs(places[kept], config.max_gap)
    if len(runs) > 1 and config.uneven == "refuse":
        steps = np.diff(places[kept])
        raise RejectedSeries(
            f"slices {steps.min():.2f} to {steps.max():.2f} mm apart: some are missing or the spacing varies; "
            "stacks.uneven=split keeps the even runs"
        )
    long = [(first, last) for first, last in runs if last - first >= min_slices]
    if len(runs) > 1:
        notes["uneven_runs"] = len(runs)
    for first, last in long:
        run = [frames[chosen] for chosen in kept[first:last]]
        yield Stack(run, _affine(run, header), header, notes)
    if short := sum(last - first for first, last in runs) - sum(last - first for first, last in long):
        yield RejectedSeries(f"{short} slices in {len(runs) - len(long)} runs shorter than min_slices={min_slices}")


def _even_runs(places: np.ndarray, tolerance: float) -> list[tuple[int, int]]:
    """Return half-open ranges of sorted positions whose distances differ by at most the factor `tolerance`."""

    def alike(one: float, other: float) -> bool:
        return max(one, other) <= tolerance * min(one, other)

    steps, runs, first = np.diff(places), [], 0
    for place, step in enumerate(steps):
        if place == first:  # a run's first distance counts only if the next one agrees
            even = place + 1 == len(steps) or alike(step, steps[place + 1])
        else:
            even = alike(step, steps[first])
        if not even:
            runs.append((first, place + 1))
            first = place + 1
    return [*runs, (first, len(places))]


def _affine(frames: list[Frame], header: AnyHeader) -> np.ndarray:
    first, last = frames[0], frames[-1]
    along_row, along_column = np.array(first.axes).reshape(2, 3)
    if len(frames) > 1:
        step = (last.position - first.position) / (len(frames) - 1)
    else:
        thickness = number(header.get("SpacingBetweenSlices")) or number(header.get("SliceThickness")) or 1.0
        step = _normal(first) * thickness
    rows, columns = first.spacing
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along_row * columns, along_column * rows, step
    affine[:3, 3] = first.position
    affine[:2] *= -1  # DICOM counts to the left and back (LPS), the affine to the right and front (RAS)
    return affine
