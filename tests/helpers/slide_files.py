"""Writes whole slides for tests: pyramids of tiled TIFF, as scanners and microscopes write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

APERIO = "Aperio Image Library v11.2.1\r\n{1}x{0} [0,0 {1}x{0}] (256x256) none|AppMag = 20|MPP = {2}"


def tissue(rows: int, columns: int, discs: Sequence[tuple[int, int, int]], seed: int = 0) -> np.ndarray:
    """Return (rows, columns, 3) uint8: white glass with a little noise, and stained discs (row, column, radius)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(240, 246, (rows, columns, 1)).astype(np.uint8).repeat(3, axis=2)
    for row, column, radius in discs:
        y, x = np.mgrid[:rows, :columns]
        inside = (y - row) ** 2 + (x - column) ** 2 <= radius**2
        stained = np.array([190, 110, 160]) + rng.integers(-40, 41, (int(inside.sum()), 1))
        pixels[inside] = stained.astype(np.uint8)
    return pixels


def halved(pixels: np.ndarray) -> np.ndarray:
    """Return the means of 2 × 2 pixels; odd edges are cut."""
    rows, columns = (length // 2 * 2 for length in pixels.shape[:2])
    blocks = pixels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, *pixels.shape[2:]).astype(float)
    return np.rint(blocks.mean(axis=(1, 3))).astype(pixels.dtype)


def svs(path: Path, pixels: np.ndarray, mpp: float = 0.5, levels: int = 3) -> Path:
    """Write (rows, columns, 3) uint8 as Aperio's scanners do, without compression; skips without tifffile."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'meddap[slides]'")
    pytest.importorskip("openslide", reason="needs OpenSlide: pip install 'meddap[slides]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            said = APERIO.format(*pixels.shape[:2], mpp) if level == 0 else None
            options = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
            file.write(pixels, description=said, subfiletype=int(level > 0), **options)
            pixels = halved(pixels)
    return path


def pyramid(path: Path, pixels: np.ndarray, levels: int = 3, **options: object) -> Path:
    """Write (rows, columns[, 3]) as a tiled BigTIFF with smaller resolutions as sub-images; skips without tifffile."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'meddap[slides]'")
    pytest.importorskip("openslide", reason="needs OpenSlide: pip install 'meddap[slides]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"tile": (256, 256), "metadata": None, "photometric": "rgb" if pixels.ndim == 3 else "minisblack"}
    kind = {**kind, **options}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(pixels, subifds=levels - 1, **kind)
        for _ in range(levels - 1):
            pixels = halved(pixels)
            file.write(pixels, subfiletype=1, **kind)
    return path
