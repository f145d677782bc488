"""Frames of videos by PyAV, if it is installed: every n-th, without those that hardly differ from the one before.

A video that breaks off is noticed where a frame does not decode or only in part, or where its header says how many
frames, seconds or bytes it has: AVI, MP4, MOV, MKV, WebM and WMV do. MPEG program streams do not, so that one cut
between two frames passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_prep.volumes import zips
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.volume import RejectedSeries

SUFFIXES = (".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
_MOST = 16 << 30  # bytes of a video in a zip archive
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_SIDE = 32  # cells a side whose mean greys say whether two frames differ


def is_video(name: str) -> bool:
    """Return whether a file's name has the ending of a video."""
    return name.lower().endswith(SUFFIXES)


class Video:
    """The frames of a video, read once.

    stride   every n-th frame is looked at
    change   largest mean change of any of 32 × 32 cells, in 0…1, up to which a frame is left out as a copy of the one
             that was kept last; below 0: none is

    left_out  frames left out as copies so far
    broken    why the video ends before it should; "" if it does not (yet)
    """

    def __init__(self, path: str | Path, stride: int = 1, change: float = -1.0) -> None:
        self._path, self._stride, self._change = path, stride, change
        self.left_out, self.broken = 0, ""

    def frames(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 red, green and blue, upright; what comes before a break, then `broken` says why.

        Raises RejectedSeries for a file of which nothing can be read, UnreadableError.
        """
        try:
            import av
        except ImportError as error:
            raise RejectedSeries("a video, and PyAV is not installed; pip install 'meddap[video]'") from error
        kept: np.ndarray | None = None
        count = 0
        try:
            with zips.open_whole(self._path, _MOST) as file, av.open(file) as container:
                if not container.streams.video:
                    raise RejectedSeries("holds no video")
                stream, ended = container.streams.video[0], 0.0
                for frame in container.decode(stream):
                    if frame.is_corrupt and count:
                        self.broken = f"breaks off behind frame {count}, the next is damaged"
                        return
                    if frame.is_corrupt:  # a recording that begins between two whole frames
                        continue
                    count, ended = count + 1, float(frame.time or 0.0)
                    if (count - 1) % self._stride:
                        continue
                    if max(component.bits for component in frame.format.components) > 8:
                        raise RejectedSeries("a video of more than 8 bits; convert it, or save its frames as pictures")
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), _quarters(frame))
                    cells = _cells(pixels)
                    if kept is not None and kept.shape == cells.shape and np.abs(cells - kept).max() <= self._change:
                        self.left_out += 1
                        continue
                    kept = cells
                    yield pixels
                self.broken = _missing(container, stream, count, ended) or _cut(file)
        except (RejectedSeries, GeneratorExit):
            raise
        except Exception as error:  # hostile bytes raise anything
            if not isinstance(error, av.error.FFmpegError):  # whose numbers are those of the system, for damage too
                unless_trouble(error)
            if not count:
                raise RejectedSeries(f"cannot be read as a video ({type(error).__name__})") from error
            self.broken = f"breaks off behind frame {count} ({type(error).__name__})"
        if not count:
            raise RejectedSeries("cannot be read as a video (it has no frame)")


def _quarters(frame: Any) -> int:
    """Return the counter-clockwise quarter turns that put a frame upright."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _cells(pixels: np.ndarray) -> np.ndarray:
    """Return (rows, columns) mean greys of cells, in 0…1."""
    grey, ends = pixels.mean(axis=2), []
    for axis, length in enumerate(grey.shape):
        starts = np.arange(min(_SIDE, length)) * length // min(_SIDE, length)
        grey = np.add.reduceat(grey, starts, axis=axis)
        ends.append(np.diff([*starts, length]))
    return grey / np.outer(*ends) / 255


def _cut(file: BinaryIO) -> str:
    """Return why a WMV file is not whole: fewer bytes than its File Properties Object says (ASF, 3.2)."""
    size = file.seek(0, 2)
    file.seek(0)
    _, there, behind = file.read(1 << 16).partition(_ASF_PROPERTIES)
    stated = int.from_bytes(behind[24:32], "little") if there else 0
    return f"breaks off: {size} of {stated} bytes" if size < stated else ""


def _missing(container: Any, stream: Any, count: int, ended: float) -> str:
    """Return why a video that ended without an error is not whole: fewer frames, or shorter, than its header says."""
    if stream.frames and count < stream.frames:
        return f"breaks off: {count} of {stream.frames} frames"
    if container.duration and stream.average_rate:
        stated, frame = container.duration / 1e6, 1 / float(stream.average_rate)
        if ended + 3 * frame < stated + float(container.start_time or 0) / 1e6:
            return f"breaks off after {ended:.1f} of {stated:.1f} s"
    return ""
