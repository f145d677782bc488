"""Run lengths of RLE pixels (PS3.5, annex G) added up: decoders take too many for padding, and cut them off."""

from __future__ import annotations

import struct

import pydicom
from pydicom.encaps import generate_frames

_HEADER = struct.Struct("<16I")  # how many segments, and where each begins
_PADDING = 2  # bytes that the padding of a segment may stand for


def check(dataset: pydicom.Dataset, wanted: list[int]) -> None:
    """Raise RuntimeError, as decoders do, if a segment of the `wanted` frames holds more or less than a plane."""
    count = int(dataset.get("NumberOfFrames") or 1)
    pixels, last = dataset.Rows * dataset.Columns, max(wanted)
    for number, frame in enumerate(generate_frames(dataset.PixelData, number_of_frames=count)):
        if number in wanted:
            segments, *starts = _HEADER.unpack_from(frame)
            ends = [*starts[1:segments], len(frame)]
            for first, end in zip(starts[:segments], ends):
                if not pixels <= _decoded_length(frame[first:end]) <= pixels + _PADDING:
                    raise RuntimeError("an RLE segment does not hold a plane")
        if number == last:
            return


def _decoded_length(segment: bytes) -> int:
    """Return how many bytes a segment stands for; a run that is cut by its end does not count."""
    at = total = 0
    end = len(segment) - 1  # a run is two bytes at least
    while at < end:
        control = segment[at]
        if control < 128:
            at += control + 2
            total += control + 1 if at <= end + 1 else 0
        elif control > 128:
            at += 2
            total += 257 - control
        else:
            at += 1
    return total
