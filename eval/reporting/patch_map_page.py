"""The interactive patch map: one HTML file that needs no other and no network, for one encoder or several."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from eval.reporting import patch_map
from eval.reporting.patch_map import PatchMap
from meddap.page import dim, page

LIMIT = 15_000_000  # bytes of a page
_FRAME = 60_000  # bytes of a page without slices and features, and more
_SHOWN = 8  # other patients, of whom the most similar patch is shown
_COLOURS = 64  # steps of the colour scale
_QUALITY = 85  # of WebP
_FOLDER = Path(__file__).parent


def of(folders: Sequence[Path], limit: int = LIMIT) -> str | None:
    """Return the page on folders that eval.probe wrote for one task; None where none of them has a map.

    Slices are left out, evenly, until the page has fewer than `limit` bytes. Raises FileError for a damaged map.
    """
    there = [folder for folder in folders if (folder / "patch_map.npz").is_file()]
    if not there:
        return None
    maps = [patch_map.read(folder / "patch_map.npz") for folder in there]
    same = list(patch_map.alike(maps))
    remarks = [
        f"{folder.name} is not shown: its slices are others; probe it again on the same shards, with the same patch_map"
        for folder, each in zip(there, same)
        if not each
    ]
    shown = {folder.name: each for folder, each, wanted in zip(there, maps, same) if wanted}
    first = next(iter(shown.values()))
    pictures = [_webp(first, channel) for channel in range(len(first.channels))]
    rows = _fitting(list(shown.values()), pictures, limit)
    if len(rows) < len(first.digests):
        remarks.append(
            f"{len(rows)} of {len(first.digests)} slices are shown, evenly spread: with all of them the page would "
            f"have more than {limit / 1e6:g} MB"
        )
    remarks += [
        f"{name}: cosines of the last block's patch features from {each.codes.shape[-1]} components of 8 bits; the "
        f"largest error of those that were checked is {each.error:.3f}"
        for name, each in shown.items()
    ]
    if len(first.views) > 1:
        remarks.append("Features of one sequence are those of the encoder when it sees this sequence alone")
    data = _data({name: each.take(rows) for name, each in shown.items()}, _taken(pictures, rows))
    parts = {
        name: (_FOLDER / f"patch_map.{ending}").read_text() for name, ending in (("style", "css"), ("script", "js"))
    }
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # nothing in it can end the script
    about = "".join(dim(f"{each}.") for each in remarks)
    body = Template((_FOLDER / "patch_map.html").read_text()).substitute(parts, data=text, remarks=about)
    count = len(np.unique(first.patients[rows]))
    return page(
        f"Patch map: {first.task}",
        f"Which patches are alike to an encoder: {len(rows)} slices of {count} test patients",
        [body],
    )


def _data(maps: dict[str, PatchMap], pictures: list[list[str | None]]) -> dict[str, Any]:
    """Return what the script reads; all maps show the same slices."""
    first = next(iter(maps.values()))
    patients = np.unique(first.patients, return_inverse=True)[1]
    positions = [round(float(each), 2) if np.isfinite(each) else None for each in first.positions]
    colours = matplotlib.colormaps["inferno"](np.linspace(0, 1, _COLOURS))[:, :3]
    return {
        "patients": int(patients.max()) + 1,
        "shown": _SHOWN,
        "slices": [{"patient": int(each), "mm": mm} for each, mm in zip(patients, positions)],
        "channels": first.channels,
        "views": first.views,
        "images": pictures,
        "names": first.names,
        "colours": np.rint(colours * 255).astype(int).tolist(),
        "encoders": [_encoder(name, each) for name, each in maps.items()],
    }


def _encoder(name: str, made: PatchMap) -> dict[str, Any]:
    return {
        "name": name,
        "grid": round(made.codes.shape[2] ** 0.5),
        "middle": [float(f"{value:.7g}") for value in made.middle],
        "step": [float(f"{value:.7g}") for value in made.step],
        "there": made.there.tolist(),
        "codes": [_text(codes[there].tobytes()) for codes, there in zip(made.codes, made.there)],
        "labels": _text(made.labels.tobytes()),
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _webp(made: PatchMap, channel: int) -> list[str | None]:
    """Return the slices of a sequence as data URIs; None where a slice lacks it."""
    found: list[str | None] = []
    for plane in made.images[channel]:
        memory = io.BytesIO()
        Image.fromarray(plane).save(memory, "WEBP", quality=_QUALITY)
        found.append(f"data:image/webp;base64,{_text(memory.getvalue())}" if plane.any() else None)
    return found


def _taken(pictures: list[list[str | None]], rows: np.ndarray) -> list[list[str | None]]:
    return [[channel[row] for row in rows] for channel in pictures]


def _fitting(maps: Sequence[PatchMap], pictures: list[list[str | None]], limit: int) -> np.ndarray:
    """Return the slices that a page of fewer than `limit` bytes holds, evenly spread over each patient."""
    first = maps[0]
    features = sum(each.there * 4 * -(-each.codes[0, 0].size // 3) for each in maps).sum(axis=0)
    shown = np.array([[len(each or "") + 8 for each in channel] for channel in pictures]).sum(axis=0)
    labels = sum(4 * -(-each.labels.shape[1] // 3) for each in maps)
    sizes = features + shown + labels + 64
    mine = [np.flatnonzero(first.patients == patient) for patient in np.unique(first.patients)]
    for most in range(max(map(len, mine)), 0, -1):
        rows = np.concatenate([each[patch_map.evenly(len(each), most)] for each in mine])
        if sizes[rows].sum() + _FRAME < limit:
            return rows
    firsts = np.array([each[len(each) // 2] for each in mine])
    fits = np.cumsum(sizes[firsts]) + _FRAME < limit
    return firsts[: max(1, fits.sum())]
