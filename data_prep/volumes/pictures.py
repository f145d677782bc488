"""Pictures from files: PNG, JPEG, TIFF, BMP, WebP, GIF; values are kept, or the picture is refused with the reason.

What comes out, (H, W) of one picture, or (H, W, 3) of one in colours:

    1, 2, 4, 8 bits      uint8; fewer than 8 bits are spread over 0…255
    palette              its colours
    16 bits              uint16, grey or colour (of PNG; TIFF in colours of 16 bits is refused)
    32 bits, negative    int32 or uint32; uint16 where the values fit
    floats               float32; NaN and infinite values are refused
    white is 0 (TIFF)    inverted, so that larger is brighter
    CMYK, YCbCr          red, green and blue; ICC profiles and gamma are ignored
    alpha                dropped where all is opaque; else refused, or by a setting laid over black or white, or dropped
    colour               grey by the luma of ITU-R BT.601, noted; equal channels are grey as they are
    orientation          turned as EXIF or TIFF say

A file may hold several pictures (TIFF, GIF, WebP, PNG); previews beside the picture (MPO, reduced TIFF pages) are not
pictures. Damage is found where the format shows it: checksums of PNG, cut files, broken compression. JPEG, GIF, WebP
and plain TIFF have no checksums, so that a changed byte may show as other pixels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from data_prep import schema
from data_prep.volumes import png, zips
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.scaling import HIGH, LOW, Scale
from data_prep.volumes.volume import RejectedSeries

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")  # others run programs (EPS) or hold no pictures
_ORIENTATION = 0x0112
_MOST = 4 << 30  # bytes of a picture in a zip archive
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 258, 262, 339  # tags of TIFF
_PREVIEW_OR_MASK = 1 | 4  # bits of NewSubfileType
_CONSTANT = 0.1  # the darkest or brightest value is background (collimated, masked) if so many pixels have it
# of damaged or large pictures: what matters is refused in a line
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Rules:
    """The settings of reading and scaling pictures.

    alpha    pixels that are not opaque: refused, over black, over white, or their colours as stored
    colour   colours become grey, are refused, or stay (H, W, 3)
    range    what becomes 0 and 1 (`ends`)
    prefix   of the settings' names, for reasons: "" or "files."
    """

    alpha: Literal["refuse", "black", "white", "drop"] = "refuse"
    colour: Literal["grey", "refuse", "keep"] = "grey"
    range: Literal["auto", "full", "robust"] = "auto"
    prefix: str = ""


@dataclass(frozen=True)
class DecodedPicture:
    """One picture: values (H, W) or (H, W, 3) as the module says, and notes on what was decided."""

    values: np.ndarray
    notes: dict[str, object] = field(default_factory=dict)


def is_picture(name: str) -> bool:
    """Return whether a file's name has the ending of a picture."""
    return name.lower().endswith(SUFFIXES)


def single(path: str | Path, rules: Rules) -> DecodedPicture:
    """Return the one picture in a file. Raises RejectedSeries, also where there are several; UnreadableError."""
    found = frames(path, rules)
    first = next(found)
    if next(found, None) is not None:
        raise RejectedSeries("holds several pictures; save each as a file")
    return first


def frames(path: str | Path, rules: Rules) -> Iterator[DecodedPicture]:
    """Yield the pictures in a file, of any size each. Raises RejectedSeries, UnreadableError."""
    count = 0
    try:
        for values, alpha, notes in _decoded(path):
            yield ruled(values, alpha, notes, rules)
            count += 1
    except RejectedSeries:
        raise
    except Image.DecompressionBombError as error:
        remedy = (
            "tiles.size=N reads it by region" if str(path).lower().endswith((".tif", ".tiff")) else "cut it into tiles"
        )
        raise RejectedSeries(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; {remedy}") from error
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        what = str(error) if isinstance(error, png.PngError) else type(error).__name__
        raise RejectedSeries(f"cannot be read as an image ({what})") from error
    if not count:
        raise RejectedSeries("holds no picture, only previews or masks")


def grey(colours: np.ndarray) -> np.ndarray:
    """Return (…, H, W) luma by ITU-R BT.601 of (…, H, W, 3) uint8 or uint16, rounded, in the same type."""
    return schema.grey(np.moveaxis(colours, -1, 0))


def ends(values: np.ndarray, rules: Rules) -> tuple[float, float]:
    """Return the values that become 0 and 1.

    full     the ends of the type: 0 and 255, 0 and 65,535; of floats 0 and 1, if they hold no others
    robust   the 0.5th and 99.5th percentile. The darkest or brightest value does not count where at least a tenth of
             all pixels have it, and others are left
    auto     full for up to 8 bits, robust for more and for floats, which have no known end

    Raises RejectedSeries for values that `full` does not know.
    """
    if rules.range == "full" or (rules.range == "auto" and values.dtype == np.uint8):
        if values.dtype in (np.uint8, np.uint16):
            return 0.0, float(np.iinfo(values.dtype).max)
        low, high = values.min(), values.max()
        if values.dtype.kind == "f" and low >= 0 and high <= 1:
            return 0.0, 1.0
        raise RejectedSeries(f"values {low:g} to {high:g} have no known ends; {rules.prefix}range=robust takes them")
    seen = values.ravel()
    least, most = seen.min(), seen.max()
    for end in (least, most):
        others = seen[seen != end]
        if len(others) and len(others) <= (1 - _CONSTANT) * values.size:
            seen = others
    low, high = (float(value) for value in np.percentile(seen, (0.5, 99.5)))
    return (low, high) if high > low else (float(least), float(most))


def scale_between(low: float, high: float) -> Scale:
    """Return the scale on which a picture is stored whose `low` is black and `high` white: where MR has percentiles.

    There are 16,384 steps between them, so that up to 14 bits are kept exactly and 16 bits from 0 to 65,535 to within
    2 levels: that black and white lie at fixed stored values is what readers of shards rely on. Of a picture of one
    value, that is 0.
    """
    slope = (high - low) / (HIGH - LOW) if high > low else 1.0
    return Scale(slope, low - LOW * slope, level=0)


def encode(
    values: np.ndarray, rules: Rules, between: tuple[float, float] | None = None
) -> tuple[np.ndarray, Scale, dict[str, object]]:
    """Return uint16 on a scale of its own, the scale, and notes: how many values were clipped, and how many rounded.

    between  what becomes 0 and 1; None: the `ends` by the rules
    """
    scale = scale_between(*(between or ends(values, rules)))
    stored = scale.encode(values)
    notes: dict[str, object] = {"values_clipped": scale.clipped} if scale.clipped else {}
    if values.dtype.kind in "iu" and scale.slope > 1:
        back = np.rint(stored * scale.slope + scale.intercept)
        if rounded := int(np.count_nonzero(back != values)) - scale.clipped:
            notes["values_rounded"] = rounded
    return stored, scale, notes


def ruled(
    values: np.ndarray, alpha: np.ndarray | None, notes: dict[str, object], rules: Rules, coloured: bool = False
) -> DecodedPicture:
    """Return a picture with alpha and colour as the rules say.

    coloured  whether it is a part of a picture in colour, and not grey even if its own channels are equal
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RejectedSeries("pixels are NaN or infinite")
    if alpha is not None and (opaque := np.iinfo(alpha.dtype).max) > alpha.min():
        share = np.count_nonzero(alpha < opaque) / alpha.size
        if rules.alpha == "refuse":
            raise RejectedSeries(f"{share:.1%} of its pixels are transparent; {rules.prefix}alpha=black, white or drop")
        if rules.alpha != "drop":
            behind = 0 if rules.alpha == "black" else np.iinfo(values.dtype).max
            part = alpha[..., None] / opaque if values.ndim == 3 else alpha / opaque
            values = np.rint(values * part + behind * (1 - part)).astype(values.dtype)
        notes["transparent"] = f"alpha={rules.alpha}"
    if values.ndim == 3:
        if values.dtype not in (np.uint8, np.uint16):
            raise RejectedSeries(f"colours of type {values.dtype}; 8 and 16 bits are read")
        if not coloured and (values[..., :1] == values[..., 1:]).all():
            values = values[..., 0]
        elif rules.colour == "refuse":
            raise RejectedSeries(f"in colour; {rules.prefix}colour=grey or keep takes it")
        elif rules.colour == "grey":
            values, notes["colour"] = grey(values), "grey by the luma of BT.601"
    elif values.dtype.kind in "iu" and values.dtype.itemsize == 4 and values.min() >= 0 and values.max() <= 65535:
        values = values.astype(np.uint16)
    return DecodedPicture(np.ascontiguousarray(values), notes)


def _decoded(path: str | Path) -> Iterator[tuple[np.ndarray, np.ndarray | None, dict[str, object]]]:
    """Yield values, alpha (H, W) or None, and notes of each picture."""
    with zips.open_whole(path, _MOST) as file:
        start = file.read(8)
        content = start + file.read() if start == png.SIGNATURE else b""
        if start[:3] == b"GIF":
            _check_end(file)
        file.seek(0)
        header = png.check(content) if content else None
        with Image.open(file, formats=_FORMATS) as image:
            count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            for number in range(count):
                image.seek(number)
                if image.format == "TIFF" and int(image.tag_v2.get(_SUBFILE, 0)) & _PREVIEW_OR_MASK:
                    continue
                notes: dict[str, object] = {}
                if header and header.deep_colour:
                    if count > 1:
                        raise RejectedSeries("several pictures in colours of 16 bits; save each as a file")
                    values, alpha = _deep(png.deep_pixels(content, header), content)
                else:
                    values, alpha = _plain(image, content, header, notes)
                if image.format != "TIFF":  # which Pillow turns itself
                    turned = int(image.getexif().get(_ORIENTATION, 1))
                    values, alpha = _turned(values, turned), None if alpha is None else _turned(alpha, turned)
                yield values, alpha, notes


def _check_end(file: BinaryIO) -> None:
    """Raise RejectedSeries for a GIF without its last byte: Pillow takes it for one of fewer pictures."""
    file.seek(max(file.seek(0, os.SEEK_END) - 64, 0))
    if not file.read().rstrip(b"\0").endswith(b";"):
        raise RejectedSeries("cannot be read as an image (it is cut short)")


def _plain(
    image: Image.Image, content: bytes, header: png.PngHeader | None, notes: dict[str, object]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return values and alpha of a picture that Pillow keeps whole."""
    key = image.info.get("transparency")
    if image.format == "TIFF":
        _check_tiff(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if key is not None or image.mode == "PA" else "RGB")
        key = None
    elif image.mode in ("CMYK", "YCbCr"):
        if image.mode == "CMYK":
            notes["inks"] = "CMYK to red, green and blue without a profile"
        image = image.convert("RGB")
    if image.mode == "1":
        values: np.ndarray = np.asarray(image).astype(np.uint8) * np.uint8(255)
    elif image.mode in ("L", "RGB", "LA", "RGBA", "F") or image.mode.startswith("I"):
        values = np.asarray(image)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    else:
        raise RejectedSeries(f"colours of the kind {image.mode}; save it in grey or in red, green and blue")
    if image.format == "TIFF":
        values = _of_tiff(values, image)
    if image.mode in ("LA", "RGBA"):
        return values[..., 0] if image.mode == "LA" else values[..., :3], values[..., -1]
    if key is None or header is None or (keyed := png.transparent(content)) is None:
        return values, None
    return values, _alpha_of(values, keyed, 8 if header.bits < 8 else header.bits, header.bits)


def _check_tiff(image: Image.Image) -> None:
    """Raise RejectedSeries for what Pillow would cut to 8 bits, or not invert."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, photometric = tags.get(_BITS, (1,)), tags.get(_PHOTOMETRIC, 1)
    if len(bits) > 1 and max(bits) > 8:
        raise RejectedSeries(f"a TIFF with {len(bits)} channels of {max(bits)} bits; save it as PNG, or with 8 bits")
    if photometric == 0 and max(bits) > 16:
        raise RejectedSeries(f"a TIFF of {max(bits)} bits whose 0 is white; save it with a 0 that is black")


def _of_tiff(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return values as the tags say: Pillow does not invert 16 bits, and has no signed 8 or unsigned 32 bits."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, kind = tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
    if bits == 8 and kind == 2 and values.dtype == np.uint8:
        return values.view(np.int8).astype(np.int32)
    if bits == 32 and kind == 1 and values.dtype.kind == "i":
        return values.view(np.uint32)
    if tags.get(_PHOTOMETRIC, 1) == 0 and 8 < bits <= 16:
        if kind != 1:
            raise RejectedSeries("a TIFF of signed values whose 0 is white; save it with a 0 that is black")
        return (np.uint16((1 << bits) - 1) - values.astype(np.uint16)).astype(np.uint16)
    return values


def _deep(pixels: np.ndarray, content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Return values and alpha of (H, W, C) uint16: grey and alpha, colour, or colour and alpha."""
    channels = pixels.shape[2]
    if channels == 2:
        return pixels[..., 0], pixels[..., 1]
    if channels == 4:
        return pixels[..., :3], pixels[..., 3]
    keyed = png.transparent(content)
    return pixels, None if keyed is None else _alpha_of(pixels, keyed, 16, 16)


def _alpha_of(values: np.ndarray, keyed: tuple[int, ...], bits: int, stored_bits: int) -> np.ndarray:
    """Return (H, W) uint8, 0 where a pixel has the transparent value, which is of `stored_bits`; 255 elsewhere."""
    there = np.array(keyed) * ((1 << bits) - 1) // ((1 << stored_bits) - 1)
    same = (values == there).all(axis=-1) if values.ndim == 3 else values == there[0]
    return np.where(same, 0, 255).astype(np.uint8)


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return (H, W, …) upright; `orientation` is that of EXIF, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values
