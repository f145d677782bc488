"""Frames of one grid and kind as volumes: phases at the same places, passes that overlap, copies.

What stands at one place twice is a copy only if the pixels are equal. Otherwise an attribute that explains it tells the
volumes apart; a number that counts slices explains nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, islice

import numpy as np

from data_prep.config import StackConfig
from data_prep.dicom import pixels, traits
from data_prep.dicom.frames import Frame
from data_prep.dicom.places import SAME_MM, along, clusters, even_runs, in_order, numbered, repeats
from data_prep.volumes.volume import RejectedSeries

_PASS = 8  # slices in a pass, on average, where an attribute has more values than a place has frames
_SAMPLE = 3  # places at which pixels are compared before all are
_PACKED = 0.9  # slices whose distance is this share of their thickness lie side by side
_OVERLAPPING = 0.75  # slices whose distance is a smaller share of their thickness may be two passes

Part = tuple[list[Frame], dict[str, object]]
Parts = list[list[Frame]]


def apart(frames: list[Frame], thickness: float | None, config: StackConfig) -> list[Part]:
    """Return each volume's frames, in order of place, with notes.

    thickness  of a slice in mm, if known

    Raises RejectedSeries if frames at one place differ and nothing tells whose they are.
    """
    frames = in_order(frames)
    places = along(frames)
    if not repeats(places):
        return _passes(frames, places, thickness, config)
    if found := _explained(frames):
        name, parts = found
        return _noted(name, *_without_equal_parts(parts))
    single = _without_copies(frames)
    copies: dict[str, object] = {"duplicates_dropped": len(frames) - len(single)} if len(single) < len(frames) else {}
    if not repeats(along(single)):
        return [(part, {**notes, **copies}) for part, notes in _passes(single, along(single), thickness, config)]
    if copies and (found := _explained(single)):
        return [(part, {**notes, **copies}) for part, notes in _noted(*found)]
    if config.repeats == "order":
        volumes = _by_order(frames) or _by_order(single)
        if volumes is not None:
            return _noted("order of numbers", volumes)
    count = len(clusters(along(frames)))
    hint = "; stacks.repeats=order takes them by their numbers" if _by_order(single) else ""
    raise RejectedSeries(
        f"{len(frames)} slices at {count} places: their pixels differ, but no attribute tells the volumes apart{hint}"
    )


def _noted(name: str, parts: Parts, dropped: int = 0) -> list[Part]:
    notes: dict[str, object] = {"duplicates_dropped": dropped} if dropped else {}
    if len(parts) > 1:
        notes["volumes_told_by"] = name
    return [(part, dict(notes)) for part in parts]


def _explained(frames: list[Frame]) -> tuple[str, Parts] | None:
    """Return the attribute that alone, or with another, explains why places repeat, and the frames by its values."""
    most = max(last - first for first, last in clusters(along(frames)))
    varying = list(_varying(frames))
    fitting: list[tuple[int, str, Parts]] = []
    for name, values in varying:
        parts = _parted(frames, values)
        many = name == "AcquisitionNumber" and len(frames) >= _PASS * len(parts)
        if (len(parts) <= most or many) and not any(repeats(along(part)) for part in parts):
            fitting.append((len(parts), name, parts))
    if fitting:
        return min(fitting, key=lambda found: found[0])[1:]
    for (name, values), (second, others) in combinations(varying, 2):
        parts = _parted(frames, list(zip(values, others)))
        if len(parts) <= most and not any(repeats(along(part)) for part in parts):
            return f"{name}, {second}", parts
    return _in_time(frames, varying)


def _in_time(frames: list[Frame], varying: list[tuple[str, list]]) -> tuple[str, Parts] | None:
    """Return volumes that were acquired one after the other, by a number or time that differs from slice to slice."""
    ranges = clusters(along(frames))
    count = ranges[0][1] - ranges[0][0]
    if any(last - first != count for first, last in ranges):
        return None
    for name, values in varying:
        if name not in traits.ORDERED or "" in values or len({type(value) for value in values}) > 1:
            continue
        ranked: list[list[tuple]] = [[] for _ in range(count)]
        for first, last in ranges:
            for rank, n in enumerate(sorted(range(first, last), key=values.__getitem__)):
                ranked[rank].append((values[n], n))
        if all(max(one)[0] < min(other)[0] for one, other in zip(ranked, ranked[1:])):
            return name, [[frames[n] for _, n in part] for part in ranked]
    return None


def _varying(frames: list[Frame], count: int | None = None) -> Iterator[tuple[str, list]]:
    """Yield each attribute that differs between frames, with its values; of several numbers also each by itself.

    count  how many of the attributes are looked at, if not all
    """
    for place, column in enumerate(islice(zip(*(frame.maybe for frame in frames)), count)):
        if len(set(column)) == 1:
            continue
        values, name = [traits.value(place, kept) for kept in column], traits.name_of(place)
        if len(set(values)) == 1:
            continue
        yield name, values
        if name == "DimensionIndexValues" and all(isinstance(value, tuple) for value in values):
            for index in range(min(len(value) for value in values)):
                yield f"{name}[{index}]", [value[index] for value in values]
                yield f"{name} but [{index}]", [value[:index] + value[index + 1 :] for value in values]


def _parted(frames: list[Frame], values: Sequence) -> Parts:
    parts: dict[object, list[Frame]] = defaultdict(list)
    for frame, value in zip(frames, values):
        parts[value].append(frame)
    return list(parts.values())


class _Seen(dict[tuple[str, int], bytes]):
    """Digests of frames' pixels, each read once."""

    def of(self, frame: Frame) -> bytes:
        key = frame.path, frame.number
        if key not in self:
            self[key] = pixels.digest(frame)
        return self[key]


def _without_equal_parts(parts: Parts) -> tuple[Parts, int]:
    """Return the volumes that are not a copy of another one or of a piece of it, and how many frames were."""
    seen, kept = _Seen(), list[int]()
    places = [along(part) for part in parts]
    by_first: dict[bytes, list[int]] = defaultdict(list)  # first frames that equal none need no comparison
    for n in sorted(range(len(parts)), key=lambda n: -len(parts[n])):
        likely = by_first.get(seen.of(parts[n][0]), []) if len(parts[n]) == max(map(len, parts)) else kept
        if not any(_covered(parts[n], places[n], parts[other], places[other], seen) for other in likely):
            kept.append(n)
            by_first[seen.of(parts[n][0])].append(n)
    dropped = sum(map(len, parts)) - sum(len(parts[n]) for n in kept)
    return [parts[n] for n in sorted(kept)], dropped


def _covered(part: list[Frame], mine: np.ndarray, other: list[Frame], yours: np.ndarray, seen: _Seen) -> bool:
    nearest = [int(np.abs(yours - place).argmin()) for place in mine]
    if any(abs(place - yours[n]) >= SAME_MM for place, n in zip(mine, nearest)):
        return False
    return all(seen.of(frame) == seen.of(other[n]) for frame, n in zip(part, nearest))


def _without_copies(frames: list[Frame]) -> list[Frame]:
    """Return frames in order without those that equal an earlier one at their place."""
    ranges = clusters(along(frames))
    several = [(first, last) for first, last in ranges if last - first > 1]
    sample = several[:: max(len(several) // _SAMPLE, 1)]
    often = {last - first for first, last in ranges}
    volumes = len(several) == len(ranges) > _SAMPLE and len(often) == 1  # every place repeats equally often
    if volumes and all(len(_distinct(frames[first:last])) == last - first for first, last in sample):
        return frames
    return [frame for first, last in ranges for frame in _distinct(frames[first:last])]


def _distinct(frames: list[Frame]) -> list[Frame]:
    if len(frames) == 1:
        return frames
    return list({pixels.digest(frame): frame for frame in reversed(frames)}.values())[::-1]


def _by_order(frames: list[Frame]) -> Parts | None:
    """Return the n-th frame of each place as the n-th volume; None if numbers do not order them."""
    parts: Parts = []
    for first, last in clusters(along(frames)):
        here = sorted(frames[first:last], key=numbered)
        if len({(frame.instance, frame.number) for frame in here}) < len(here):
            return None
        for rank, frame in enumerate(here):
            if rank == len(parts):
                parts.append([])
            parts[rank].append(frame)
    return parts


def _passes(frames: list[Frame], places: np.ndarray, thickness: float | None, config: StackConfig) -> list[Part]:
    """Return passes over the same region, each of which is a volume; or all frames as one volume."""
    if len(frames) < 4:
        return [(frames, {})]
    even = len(even_runs(places, config.max_gap)) == 1
    near = thickness is not None and float(np.median(np.diff(places))) < _OVERLAPPING * thickness
    known = len({frame.acquisition for frame in frames}) > 1
    if not known and even and not near:
        return [(frames, {})]
    for name, values in _varying(frames, traits.PASSES):
        parts = _parted(frames, values)
        if len(parts) < 2 or len(frames) < 2 * len(parts) or not _overlap(parts):
            continue
        regular = all(len(even_runs(along(part), config.max_gap)) == 1 for part in parts)
        if (even or name != "AcquisitionNumber") and not regular:
            continue
        if name != "AcquisitionNumber" and len(frames) < _PASS * len(parts):
            continue
        if even and _interleaved(frames, values, len(parts), float(np.median(np.diff(places))), thickness):
            continue
        return _noted(name, parts)
    return [(frames, {})]


def _overlap(parts: Parts) -> bool:
    """Return whether one part begins before another ends."""
    ends = sorted((float(places.min()), float(places.max())) for places in map(along, parts))
    return any(following[0] < before[1] for before, following in zip(ends, ends[1:]))


def _interleaved(frames: list[Frame], values: list, count: int, step: float, thickness: float | None) -> bool:
    """Return whether parts alternate and fill each other's gaps: one volume, acquired in turns."""
    turns = all(values[n] == values[n - count] for n in range(count, len(frames)))
    return turns and thickness is not None and step >= _PACKED * thickness
