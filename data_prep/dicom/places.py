"""Where frames lie along their normal, and which of them are evenly spaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_prep.dicom.frames import Frame
from data_prep.volumes.volume import RejectedSeries

SAME_MM = 0.01  # slices nearer than this lie at one place


def normal(frame: Frame) -> np.ndarray:
    """Return the unit vector across a frame. Raises RejectedSeries if its axes are not two at right angles."""
    along_row, along_column = np.array(frame.axes).reshape(2, 3)
    across = np.cross(along_row, along_column)
    if abs(np.linalg.norm(across) - 1) > 0.01:
        raise RejectedSeries("ImageOrientationPatient does not hold two unit vectors at right angles")
    return across


def along(frames: Sequence[Frame]) -> np.ndarray:
    """Return positions along the normal in mm."""
    return np.array([frame.position for frame in frames]) @ normal(frames[0])


def in_order(frames: Sequence[Frame]) -> list[Frame]:
    """Return frames by place; those at one place by the numbers that they have."""
    places = along(frames)
    order = sorted(range(len(frames)), key=lambda n: (places[n], *numbered(frames[n])))
    return [frames[n] for n in order]


def numbered(frame: Frame) -> tuple[int, str, int, str]:
    """Return what frames at one place are ordered by."""
    return frame.instance, frame.uid, frame.number, frame.path


def repeats(places: np.ndarray) -> bool:
    """Return whether two of these places are one."""
    return bool((np.diff(np.sort(places)) < SAME_MM).any())


def clusters(places: np.ndarray) -> list[tuple[int, int]]:
    """Return half-open ranges of sorted positions that lie at one place."""
    ends, first = [], 0
    for n in range(1, len(places)):
        if places[n] - places[first] >= SAME_MM:
            ends.append((first, n))
            first = n
    return [*ends, (first, len(places))]


def even_runs(places: np.ndarray, tolerance: float, cuts: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Return half-open ranges of sorted positions whose distances differ by at most the factor `tolerance`.

    cuts  numbers of distances that end a run whatever their length
    """

    def even_steps(one: float, other: float) -> bool:
        return max(one, other) <= tolerance * min(one, other)

    steps, runs, first = np.diff(places), [], 0
    for place, step in enumerate(steps):
        if place in cuts:
            even = False
        elif place == first:  # a run's first distance counts only if the next one agrees
            even = place + 1 == len(steps) or place + 1 in cuts or even_steps(step, steps[place + 1])
        else:
            even = even_steps(step, steps[first])
        if not even:
            runs.append((first, place + 1))
            first = place + 1
    return [*runs, (first, len(places))]
