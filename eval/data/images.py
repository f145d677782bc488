"""From an example's picture to the square image that an encoder sees, and from a prediction back to the picture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from data_prep.schema import AIR_HU, LUMA
from data_prep.volumes.scaling import HIGH, LOW
from eval.data.examples import Picture


def square(picture: Picture) -> tuple[int, int, int]:
    """Return (row, column, side) in pixels of the square around the body; it may reach beyond the picture."""
    row0, row1, column0, column1 = picture.box
    side = max(row1 - row0, column1 - column0)
    return (row0 + row1 - side) // 2, (column0 + column1 - side) // 2, side


def cut(plane: np.ndarray, place: tuple[int, int, int], fill: float) -> np.ndarray:
    """Return (side, side) of an (H, W) array, `fill` where the square reaches beyond it."""
    row, column, side = place
    out = np.full((side, side), fill, plane.dtype)
    top, left = max(row, 0), max(column, 0)
    part = plane[top : row + side, left : column + side]
    out[top - row : top - row + part.shape[0], left - column : left - column + part.shape[1]] = part
    return out


def image(picture: Picture, size: int) -> torch.Tensor:
    """Return (S·C, size, size) float32 stored values: the square around the body, antialiased bicubic."""
    place = square(picture)
    # beyond the edge lies air; in a picture without units, whatever is darkest in it
    planes = [cut(each, place, AIR_HU if picture.scale == "hu" else each.min()) for each in picture.pixels]
    stored = torch.from_numpy(np.stack(planes).astype(np.float32))
    return F.interpolate(stored[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]


def unit(stored: torch.Tensor, picture: Picture, window: tuple[float, float]) -> torch.Tensor:
    """Map stored values of `picture` to 0…1, clipped. `window` are the HU that an encoder maps to 0 and 1."""
    low, high = {"hu": window, "unit8": (0.0, 255.0), "mr16": (LOW, HIGH)}[picture.scale]
    return ((stored - low) / (high - low)).clamp(0, 1)


def of_channels(planes: torch.Tensor, picture: Picture, channels: int) -> torch.Tensor:
    """Return (S, channels, h, w) of the (S·C, h, w) planes of `picture`, for an encoder of 1 or 3 channels.

    Grey is given three times; of colours one channel has the luma (ITU-R BT.601).
    """
    own = planes.unflatten(0, (-1, picture.channels))
    if picture.channels == channels:
        return own
    if picture.channels == 1:
        return own.expand(-1, channels, -1, -1)
    return (own * own.new_tensor(LUMA).view(-1, 1, 1)).sum(dim=1, keepdim=True)


def shown(picture: Picture, size: int, window: tuple[float, float]) -> torch.Tensor:
    """Return (S, size, size) in 0…1 for figures: of each sequence of `picture` its square; of colours their luma."""
    return of_channels(unit(image(picture, size), picture, window), picture, 1)[:, 0]


def labels(picture: Picture, size: int) -> np.ndarray:
    """Return (size, size) uint8 labels of the square around the body, nearest neighbour."""
    native = native_labels(picture)
    place = ((np.arange(size) + 0.5) * len(native) / size).astype(np.int64)
    return native[np.ix_(place, place)]


def native_labels(picture: Picture) -> np.ndarray:
    """Return (side, side) uint8 labels of the square around the body, in the picture's own pixels."""
    plane = picture.labelmap if picture.labelmap is not None else np.zeros(picture.pixels.shape[1:], np.uint8)
    return cut(plane, square(picture), 0)


def to_picture(maps: torch.Tensor, picture: Picture) -> torch.Tensor:
    """Map (O, size, size) on the resized square to (O, H, W) in the picture's pixels, 0 beyond the square."""
    row, column, side = square(picture)
    native, (height, width) = to_native(maps, side), picture.pixels.shape[1:]
    out = torch.zeros(len(maps), height, width)
    top, left = max(row, 0), max(column, 0)
    part = native[:, top - row : height - row, left - column : width - column]
    out[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return out


def to_native(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Resize (O, size, size) values on the square to (O, side, side), bilinear."""
    return F.interpolate(maps[None], (side, side), mode="bilinear", align_corners=False)[0]
