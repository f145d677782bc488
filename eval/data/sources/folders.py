"""Examples from folders of images: DATA/<class>/*.png, or DATA/<split>/<class>/*.png."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.schema import content_digest
from eval.config import TaskConfig
from eval.data.examples import Examples, Picture, Scale, flat, identified, matched
from meddap.settings import SettingsError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
# what Pillow raises for a file that is cut, overwritten or no image
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_SPLITS = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return every image; its folder is its class, and the folder above its split where that is named so."""
    root = Path(task.data)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise SettingsError(f"{root}: has no images ({', '.join(_SUFFIXES)})")
    relative = [path.relative_to(root) for path in files]
    if shallow := [path for path in relative if len(path.parts) < 2]:
        raise SettingsError(f"{root / shallow[0]}: is not in the folder of a class; expected {root}/CLASS/IMAGE")
    classes = [path.parts[-2] for path in relative]
    names = sorted(set(classes))
    numbers = np.array([[names.index(each)] for each in classes], np.float64)
    labels, targets = _targets(task, names, numbers)
    words, patient, site = [path.as_posix() for path in relative], task.files.patient, task.files.site
    digests = [content_digest(_grey(path)[None]) for path in files]
    return flat(
        identified(words, "source"),  # a name may be a patient's: keys and subjects are hashes or numbers
        targets,
        digests,
        lambda number: _picture(files[number]),
        names=labels,
        subjects=identified(matched(words, patient, "files.patient") if patient else words, "patient"),
        studies=identified(words, "series"),
        sites=np.array(matched(words, site, "files.site") if site else [""] * len(files)),
        splits=np.array([_split(path) for path in relative]),
    )


def _picture(path: Path) -> Picture:
    pixels = _grey(path)
    scale: Scale = "unit8" if pixels.dtype == np.uint8 else "free"
    return Picture(pixels[None], ("image",), scale, (0, pixels.shape[0], 0, pixels.shape[1]), span=(0.0, 65535.0))


def _grey(path: Path) -> np.ndarray:
    """Return (H, W) uint8, or uint16 where the file has 16 bits; colour becomes grey."""
    try:
        with Image.open(path) as image:
            if image.mode in ("I;16", "I;16B", "I;16L", "I"):
                return np.asarray(image).astype(np.uint16)
            return np.asarray(image.convert("L"))
    except _UNREADABLE as error:
        raise SettingsError(f"{path}: cannot be read as an image ({type(error).__name__}); remove it") from error


def _split(path: Path) -> str:
    return _SPLITS.get(path.parts[-3].lower(), "") if len(path.parts) > 2 else ""


def _targets(task: TaskConfig, names: list[str], numbers: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    if len(names) < 2:
        raise SettingsError(f"{task.data}: one class only ({names[0]}); a probe needs two")
    if strange := sorted(set(task.positive) - set(names)):
        raise SettingsError(f"positive={strange[0]}: no such class; there are {', '.join(names)}")
    if task.kind in ("multiclass", "retrieval"):
        return tuple(names), numbers
    if task.kind not in ("binary", "anomaly"):
        raise SettingsError(f"kind={task.kind}: folders say classes; take multiclass, binary, retrieval or anomaly")
    if task.kind == "binary" and len(names) > 2 and not task.positive:
        raise SettingsError(f"kind=binary: {len(names)} classes; say which are 1, e.g. positive=[{names[0]}]")
    positive = task.positive or names[1:2]
    chosen = [names.index(each) for each in positive]
    return ("+".join(positive),), np.isin(numbers, chosen).astype(np.float64)
