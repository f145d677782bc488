"""Examples from folders of images: DATA/<class>/*.png, or DATA/<split>/<class>/*.png.

Files are read as `data_prep.volumes.pictures` says, and scaled as sharding scales pictures: 8 bits from 0 to 255; more
bits and floats by the 0.5th and 99.5th percentile of each picture, unless `files.range` says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.identity import SPLIT_NAMES
from data_prep.schema import content_digest
from data_prep.volumes import pictures
from data_prep.volumes.errors import UnreadableError
from data_prep.volumes.scaling import ToHounsfield
from data_prep.volumes.volume import RejectedSeries
from eval.config import FilesConfig, TaskConfig
from eval.data.examples import Examples, Picture, Scale, flat, identified, matched
from meddap.console import say
from meddap.settings import SettingsError


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return every image; its folder is its class, and the folder above its split where that is named so."""
    root = Path(task.data)
    files = sorted(path for path in root.rglob("*") if pictures.is_picture(path.name) and path.is_file())
    if not files:
        raise SettingsError(f"{root}: has no images ({', '.join(pictures.SUFFIXES)})")
    relative = [path.relative_to(root) for path in files]
    if shallow := [path for path in relative if len(path.parts) < 2]:
        raise SettingsError(f"{root / shallow[0]}: is not in the folder of a class; expected {root}/CLASS/IMAGE")
    classes = [path.parts[-2] for path in relative]
    names = sorted(set(classes))
    numbers = np.array([[names.index(each)] for each in classes], np.float64)
    labels, targets = _targets(task, names, numbers)
    words, patient, site = [path.as_posix() for path in relative], task.files.patient, task.files.site
    digests = list(_digests(root, files, task.files))
    return flat(
        identified(words, "source"),  # a name may be a patient's: keys and subjects are hashes or numbers
        targets,
        digests,
        lambda number: _picture(files[number], task.files)[0],
        names=labels,
        subjects=identified(matched(words, patient, "files.patient") if patient else words, "patient"),
        studies=identified(words, "series"),
        sites=np.array(matched(words, site, "files.site") if site else [""] * len(files)),
        splits=np.array([_split(path) for path in relative]),
    )


def _digests(root: Path, files: list[Path], settings: FilesConfig) -> Iterator[int]:
    """Yield the digests of all pictures, of 8 bits as they are stored in shards too; then say what was decided."""
    decided: Counter[str] = Counter()
    for path in files:
        picture, digest, notes = _picture(path, settings)
        decided.update(key.replace("_", " ") + f": {value}" * isinstance(value, str) for key, value in notes.items())
        yield digest
    for note, count in decided.most_common():
        say(f"{root}: {count} of {len(files)} pictures, {note}")


def _picture(path: Path, settings: FilesConfig) -> tuple[Picture, int, dict[str, object]]:
    """Return a picture, the digest of what shards hold of it, and notes on what was decided about it."""
    rules = pictures.Rules(
        settings.alpha, settings.colour, "auto" if settings.range == "hu" else settings.range, "files."
    )
    try:
        decoded = pictures.single(path, rules)
        if settings.range == "hu":
            pixels, notes = _hounsfield(decoded.values)
            return _whole(pixels, "hu"), content_digest(_planes(pixels)), {**decoded.notes, **notes}
        stored, _, notes = pictures.encode(decoded.values, rules)
    except (RejectedSeries, UnreadableError) as error:
        raise SettingsError(f"{path}: {error.reason}; mend or remove it") from error
    notes = {**decoded.notes, **notes}
    full = decoded.values.dtype == np.uint8 and rules.range != "robust"
    if not full and rules.range == "auto":
        notes["range"] = f"{decoded.values.dtype} values by their percentiles; files.range=full or hu scales otherwise"
    picture = _whole(decoded.values, "unit8") if full else _whole(stored, "mr16")
    return picture, content_digest(_planes(stored)), notes


def _whole(pixels: np.ndarray, scale: Scale) -> Picture:
    planes, box = _planes(pixels), (0, pixels.shape[0], 0, pixels.shape[1])
    return Picture(planes, ("image",), scale, box, channels=len(planes))


def _planes(pixels: np.ndarray) -> np.ndarray:
    """Return (C, H, W) of an (H, W) picture or one in colours, (H, W, 3)."""
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _hounsfield(values: np.ndarray) -> tuple[np.ndarray, dict[str, object]]:
    """Return int16 HU and notes. Raises RejectedSeries for values that are none: in HU, air lies below 0."""
    if values.min() >= 0:
        raise RejectedSeries(f"{values.dtype} values from {values.min():g} on are not HU, where air lies below 0")
    convert = ToHounsfield()
    return convert(values), {key: count for key, count in convert.notes().items() if count}


def _split(path: Path) -> str:
    return SPLIT_NAMES.get(path.parts[-3].lower(), "") if len(path.parts) > 2 else ""


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
