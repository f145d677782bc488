"""The data of the interactive patch map: test slices of several patients, and the features of all their patches.

Every encoder writes `patch_map.npz` beside its results; the slices depend on data and settings alone, so that those of
two encoders are the same. No patient, series or file is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.config import TaskConfig
from eval.data import features, files, images
from eval.data.examples import Examples, Picture
from eval.encoders.encoder import FrozenEncoder
from eval.reporting import pictures, quantised

TOGETHER = ""  # the view of all sequences at once, as probes see them
_GIGABYTE = 10**9


@dataclass(frozen=True)
class PatchMap:
    """N slices in V views (all sequences together, and each alone where there are several), P = g × g patches each.

    views     names of the views: "" for all sequences together, or a sequence
    codes     (V, N, P, K) int8, middle and step (K,), error: see quantised.Quantised
    there     (V, N) bool: the slice has the sequence, and the encoder knows it
    channels  S names of sequences; images (S, N, s, s) uint8, 0 where a slice lacks the sequence
    labels    (N, P) uint8: place plus 1 in `names` of the structure that most of a patch shows, 0 for none
    patients  (N,) number of the patient, from 0; positions (N,) mm along the axis of the volume
    digests   (N,) uint64 of the pixels, by which slices of two encoders are known as the same
    """

    task: str
    views: tuple[str, ...]
    codes: np.ndarray
    middle: np.ndarray
    step: np.ndarray
    error: float
    there: np.ndarray
    channels: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    patients: np.ndarray
    positions: np.ndarray
    digests: np.ndarray

    def vectors(self) -> np.ndarray:
        """Return (V, N, P, K) float32 unit vectors, whose products are cosines."""
        return quantised.decoded(self.codes, self.middle, self.step)

    def take(self, rows: np.ndarray) -> PatchMap:
        """Return some of the slices."""
        return replace(
            self,
            codes=self.codes[:, rows],
            there=self.there[:, rows],
            images=self.images[:, rows],
            **{name: getattr(self, name)[rows] for name in ("labels", "patients", "positions", "digests")},
        )


def choose(examples: Examples, patients: int, slices: int) -> np.ndarray:
    """Choose slices, evenly over the patients and over the longest series of each; in order of patient and place."""
    everyone = np.unique(examples.subjects)
    chosen: list[int] = []
    for patient in everyone[evenly(len(everyone), patients)]:
        mine = np.flatnonzero(examples.subjects == patient)
        names, counts = np.unique(examples.studies[mine], return_counts=True)
        mine = mine[examples.studies[mine] == names[counts.argmax()]]
        mine = mine[np.argsort(examples.orders[mine], kind="stable")]
        chosen += mine[evenly(len(mine), slices)].tolist()
    return np.array(chosen, np.int64)


def evenly(there: int, wanted: int) -> np.ndarray:
    """Return up to `wanted` of the numbers 0 … there − 1, the first and the last among them; the middle
    one where one is wanted."""
    if wanted == 1:
        return np.array([there // 2])
    return np.unique(np.linspace(0, there - 1, min(there, wanted)).round().astype(np.int64))


def make(encoder: FrozenEncoder, test: Examples, task: TaskConfig) -> PatchMap | None:
    """Return the map of some test slices; None where there is none to show. Raises SettingsError."""
    rows = kept(encoder, test, task)
    if not len(rows):
        return None
    shown = [test.read(row) for row in rows]
    channels = tuple(dict.fromkeys(name for each in shown for name in each.sequences))
    views = _views(channels)
    there, found = _features(encoder, shown, views, task)
    packed = quantised.quantise(found.reshape(-1, found.shape[-1]), task.patch_map.error, task.seed)
    codes = np.zeros((*there.shape, found.shape[1], packed.codes.shape[1]), np.int8)
    codes[there] = packed.codes.reshape(*found.shape[:2], -1)
    mine = test.take(rows)
    return PatchMap(
        task=task.name,
        views=views,
        codes=codes,
        middle=packed.middle,
        step=packed.step,
        error=packed.error,
        there=there,
        channels=channels,
        images=_images(shown, channels, min(task.size, task.patch_map.pixels)),
        labels=_labels(shown, round(found.shape[1] ** 0.5), task.size, test.values),
        names=test.names if test.values else (),
        patients=np.unique(mine.subjects, return_inverse=True)[1],
        positions=mine.positions,
        digests=mine.digests,
    )


def kept(encoder: FrozenEncoder, test: Examples, task: TaskConfig) -> np.ndarray:
    """Return the slices that the settings choose, fewer of each patient where their features exceed the memory."""
    settings = task.patch_map
    rows = choose(test, settings.patients, settings.slices)
    if not len(rows):
        return rows
    views = _views(tuple(dict.fromkeys(name for row in rows for name in test.read(row).sequences)))
    each = len(views) * (task.size // encoder.patch_size) ** 2 * encoder.embed_dim * 2
    most = max(1, int(settings.memory_gb * _GIGABYTE / each))
    if len(rows) <= most:
        return rows
    patients = min(len(np.unique(test.subjects[rows])), most)
    return choose(test, patients, min(settings.slices, most // patients))


def _views(channels: tuple[str, ...]) -> tuple[str, ...]:
    return (TOGETHER, *channels) if len(channels) > 1 else (TOGETHER,)


def _features(
    encoder: FrozenEncoder, shown: Sequence[Picture], views: Sequence[str], task: TaskConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return (V, N) bool, which views there are, and of those (M, P, D) float16 unit patch features, last block."""
    known = getattr(encoder, "sequences", None) or None
    parts = [[_part(each, view, known) for each in shown] for view in views]
    there = np.array([[part is not None for part in mine] for mine in parts])
    seen = [part for mine in parts for part in mine if part is not None]
    found: np.ndarray | None = None
    for start in range(0, len(seen), task.batch_size):
        batch = seen[start : start + task.batch_size]
        ((_, patches),) = features.encode(encoder, batch, task.size, (-1,), task.sequence)
        if found is None:
            found = np.zeros((len(seen), *patches.shape[1:]), np.float16)
        found[start : start + len(batch)] = quantised.unit(patches.numpy())
    assert found is not None  # every slice has a sequence
    return there, found


def _part(picture: Picture, view: str, known: Sequence[str] | None) -> Picture | None:
    """Return what a view shows of a picture; None where it lacks the sequence or the encoder does not know it."""
    if view == TOGETHER:
        return picture
    if view not in picture.sequences or (known is not None and view not in known):
        return None
    return picture.only([picture.sequences.index(view)])


def _images(shown: Sequence[Picture], channels: Sequence[str], side: int) -> np.ndarray:
    out = np.zeros((len(channels), len(shown), side, side), np.uint8)
    for row, picture in enumerate(shown):
        planes = images.shown(picture, side, pictures.WINDOW).numpy()
        for name, plane in zip(picture.sequences, planes):
            out[channels.index(name), row] = np.rint(plane * 255)
    return out


def _labels(shown: Sequence[Picture], grid: int, size: int, values: Sequence[int]) -> np.ndarray:
    """Return (N, P) uint8: the structure that covers half of a patch or more, as `pictures.truth` numbers it."""
    out = np.zeros((len(shown), grid * grid), np.uint8)
    if not values:
        return out
    place = np.arange(size) * grid // size
    patch = (place[:, None] * grid + place).ravel()  # of each pixel
    area = np.bincount(patch, minlength=grid * grid)
    for row, picture in enumerate(shown):
        truth = pictures.truth(picture, size, values).ravel()
        counts = np.stack(
            [np.bincount(patch[truth == value], minlength=len(area)) for value in range(1, len(values) + 1)], axis=1
        )
        out[row] = np.where(2 * counts.max(axis=1) >= area, counts.argmax(axis=1) + 1, 0)
    return out


def write(folder: Path, encoder: FrozenEncoder, test: Examples, task: TaskConfig) -> str:
    """Write the map of some test slices into a probe's folder, or remove the one of an earlier start that is not asked
    for any more; return what to tell the user, or ""."""
    path, settings = folder / "patch_map.npz", task.patch_map
    made = make(encoder, test, task)
    if made is None:
        path.unlink(missing_ok=True)
        return ""
    save(path, made)
    wanted, there = len(choose(test, settings.patients, settings.slices)), len(made.digests)
    if there == wanted:
        return ""
    return f"the patch map has {there} of {wanted} slices: patch_map.memory_gb={settings.memory_gb:g} holds no more"


def save(path: Path, made: PatchMap) -> None:
    """Write a map as .npz."""
    files.write_arrays(path, {name: np.asarray(value) for name, value in vars(made).items()}, compressed=False)


def read(path: Path) -> PatchMap:
    """Return a map that `save` wrote. Raises FileError for a file that is damaged."""
    remedy = "probe again"
    arrays = files.read_arrays(path, remedy)
    with files.reading(path, remedy):
        words: dict[str, Any] = {name: tuple(arrays[name].tolist()) for name in ("views", "channels", "names")}
        plain: dict[str, Any] = {"task": str(arrays["task"]), "error": float(arrays["error"])}
        found = PatchMap(**{**arrays, **words, **plain})
        views, slices, patches, kept = found.codes.shape
        wanted = {
            "there": (views, slices),
            "middle": (kept,),
            "step": (kept,),
            "images": (len(found.channels), slices, *found.images.shape[2:]),
            "labels": (slices, patches),
            **dict.fromkeys(("patients", "positions", "digests"), (slices,)),
        }
        if views != len(found.views) or any(arrays[name].shape != shape for name, shape in wanted.items()):
            raise ValueError("shapes that do not agree")
        return found


def alike(maps: Sequence[PatchMap]) -> Iterator[bool]:
    """Yield for each map whether it shows the same slices as the first."""
    for each in maps:
        yield np.array_equal(each.digests, maps[0].digests) and np.array_equal(each.patients, maps[0].patients)
