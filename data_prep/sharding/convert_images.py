"""The conversion of a picture or radiograph into staged samples, one for each frame of its file, or of a PET series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from data_prep.config import GridConfig, ImagesConfig, TileConfig
from data_prep.dicom import headers, radiographs
from data_prep.discovery.studies import Series
from data_prep.schema import MR_HIGH, MR_LOW, Slice
from data_prep.sharding import convert_pet, slide_tiles
from data_prep.sharding.staging import Job, Record, Stager, refused_before
from data_prep.volumes import medmnist, pictures, slicing, slides, tiles, video
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.scaling import Scale
from data_prep.volumes.volume import RejectedSeries


@dataclass(frozen=True)
class _Frame:
    """A frame as it is stored: planes (C, H, W) uint16 on one scale; spacing in mm, None where unknown.

    place  (row, column) where a tile begins in the finest pixels of its file; None: a frame is a picture
    """

    planes: np.ndarray
    scale: Scale
    spacing: tuple[float, float] | None = None
    meta: dict[str, object] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)
    place: tuple[int, int] | None = None


def convert(job: Job) -> Record:
    """Stage one source, or record in its rows why it is left out."""
    stager = Stager(job, flushed=False)
    if not refused_before(stager):
        series = job.source.series[0]
        try:
            if series.dicom and _modality(job.paths(series)[0]) == "PT":
                convert_pet.stage(stager, series)
            else:
                _stage(stager, series)
        except RejectedSeries as error:
            stager.discard()
            stager.reject(series, error)
    return stager.finish()


def _modality(path: str) -> str:
    try:
        return headers.read_header(path).modality
    except OSError as error:  # the input's, not the output's
        unless_trouble(error)
        raise RejectedSeries(f"cannot be read ({error.strerror})") from error


def _stage(stager: Stager, series: Series) -> None:
    """Stage all frames of a file. Raises RejectedSeries, whichever frame it is for: a file is taken whole."""
    job, config = stager.job, stager.job.config
    assert isinstance(config, ImagesConfig)
    own = stager.series_hash(series.uid)
    notes: dict[str, object] = {}
    sizes, first, counts, order = set(), None, slicing.SliceCounts(), 0
    channels = 1
    left_out: Counter[str] = Counter()
    for frame in _frames(job, series, own, notes, left_out):
        first = first or frame
        channels = max(channels, len(frame.planes))
        for key, value in frame.notes.items():
            counted = isinstance(value, int) and not isinstance(value, bool)
            notes[key] = int(str(notes.get(key, 0))) + int(str(value)) if counted else value
        fitted, spacing = _fitted(frame, config)
        sizes.add(fitted.shape[1:])
        whole = frame.place is not None or config.tiles.size is None or max(fitted.shape[1:]) <= config.tiles.size
        pieces = [(frame.place, fitted)] if whole else _tiles(fitted, config.tiles, own, left_out)
        for place, planes in pieces:
            every = planes.reshape(-1, planes.shape[2])  # all channels below each other
            counts.count(slicing.Channel(config.sequence, planes, 0, frame.scale), every, np.ones(every.shape, bool))
            sample = Slice(
                pixels=planes,
                sequences=(config.sequence,),
                spacing=spacing or (1.0, 1.0),
                position=float(order),
                subject=stager.record.subject,
                series=own,
                order=order,
                key=f"{own}-{order:05d}",
                box=(0, planes.shape[1], 0, planes.shape[2]),
                labels=dict(job.labels),
                scales=((frame.scale.slope, frame.scale.intercept),),
                meta=frame.meta if place is None else {**frame.meta, "tile": list(place)},
                channels=len(planes),
            )
            stager.add([sample])
            order += 1
    counts.air = left_out["tiles_empty"] + left_out["tiles_without_tissue"]
    if not order and left_out["tiles_without_tissue"]:
        raise RejectedSeries("no tile holds tissue; tiles.min_tissue and tiles.tissue_above say what is tissue")
    if not order:
        raise RejectedSeries("all its tiles are empty; tiles.min_spread says what is")
    assert first is not None  # readers refuse files without pictures
    notes |= {key: count for key, count in left_out.items() if count}
    if len(sizes) > 1:
        notes["sizes"] = f"{len(sizes)} sizes of pictures in the file"
    stager.count(counts.sparse())
    for name, count in counts.slices.items():
        stager.accept(
            series,
            sequence=name,
            stack=own,
            slices=count,
            air_slices=counts.air,
            shape=[count, *first.planes.shape[1:]],
            # digits that count: pixels of slides and electron micrographs are smaller than a tenth of a micrometre
            spacing_mm=[1.0, *(float(f"{length:.5g}") for length in first.spacing or (1.0, 1.0))],
            annotated=[],
            **({"channels": channels} if channels > 1 else {}),
            notes=notes if first.spacing else {**notes, "spacing": "unknown, 1 mm stands for it"},
            meta=first.meta,
        )


def _tiles(
    planes: np.ndarray, config: TileConfig, key: str, left_out: Counter[str]
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Yield where tiles begin and the tiles of (C, H, W) planes that are not empty, row by row; count the others."""
    assert config.size is not None
    every = list(tiles.places((planes.shape[1], planes.shape[2]), config))
    drawn = tiles.draw(every, config.most, key)
    left_out["tiles_not_drawn"] += len(every) - len(drawn)
    for row, column in drawn:
        tile = planes[:, row : row + config.size, column : column + config.size]
        if _is_empty(tile, config):
            left_out["tiles_empty"] += 1
        else:
            yield (row, column), np.ascontiguousarray(tile)


def _is_empty(planes: np.ndarray, config: TileConfig) -> bool:
    return bool((planes.std(axis=(1, 2)) < config.min_spread * (MR_HIGH - MR_LOW)).all())


def _frames(job: Job, series: Series, key: str, notes: dict[str, object], left_out: Counter[str]) -> Iterator[_Frame]:
    """Yield what a file holds; of one read by region its tiles, with `notes` and what is `left_out`.

    Raises RejectedSeries, UnreadableError.
    """
    config = job.config
    assert isinstance(config, ImagesConfig)
    rules = pictures.Rules(config.alpha, config.colour, config.range)
    path = job.paths(series)[0]
    if (series.dicom and _modality(path) == "SM") or (
        not series.dicom and slides.by_region(path, config.tiles.size is not None)
    ):
        for tile in slide_tiles.read(path, config, key, notes, left_out):
            values = tile.picture.values
            if values.min() == values.max():
                left_out["tiles_empty"] += 1
                continue
            frame = _encoded(tile.picture, rules, tile.ends)
            if _is_empty(frame.planes, config.tiles):
                left_out["tiles_empty"] += 1
            else:
                yield replace(frame, spacing=tile.spacing, place=tile.place)
    elif series.dicom:
        for radiograph in radiographs.read(path, config):
            yield _of_radiograph(radiograph, rules)
    elif "#" in series.name and path.lower().endswith(".npz"):
        split, _, number = series.name.rpartition("#")[2].rpartition("-")
        image = medmnist.read_image(path, split, int(number), config.limits.volume_gb)
        own: dict[str, object] = {}
        if image.ndim == 3 and config.colour == "grey" and not _equal(image):
            image, own = medmnist.grey(image[None])[0], {"colour": "grey by the luma of BT.601"}
        yield _encoded(pictures.ruled(image, None, own, rules), rules)
    elif video.is_video(path):
        yield from _of_video(video.Video(path, config.frame_stride, config.video.max_change), rules, config)
    else:
        for decoded in islice(pictures.frames(path, rules), 0, None, config.frame_stride):
            yield _encoded(decoded, rules)


def _of_video(film: video.Video, rules: pictures.Rules, config: ImagesConfig) -> Iterator[_Frame]:
    """Yield the frames of a video but blank ones; the last has the notes. Raises RejectedSeries if it breaks off."""
    last: _Frame | None = None
    blank = 0
    for pixels in film.frames():
        if pixels.min() == pixels.max():
            blank += 1
            continue
        if last is not None:
            yield last
        last = _encoded(pictures.ruled(pixels, None, {}, rules), rules)
    if film.broken and config.video.broken == "refuse":
        raise RejectedSeries(f"{film.broken}; video.broken=keep takes the frames before")
    if last is None:
        raise RejectedSeries("all its frames are blank")
    notes: dict[str, object] = {"copies_left_out": film.left_out} if film.left_out else {}
    notes |= {"blank_frames_left_out": blank} if blank else {}
    yield replace(last, notes={**last.notes, **notes, **({"video": film.broken} if film.broken else {})})


def _equal(image: np.ndarray) -> bool:
    return bool((image[..., :1] == image[..., 1:]).all())


def _encoded(
    decoded: pictures.DecodedPicture, rules: pictures.Rules, between: tuple[float, float] | None = None
) -> _Frame:
    """Return a picture as it is stored; `between`: see `pictures.encode`.

    Raises RejectedSeries for one that shows nothing.
    """
    values = decoded.values
    if values.min() == values.max():
        raise RejectedSeries("all its pixels have one value")
    stored, scale, notes = pictures.encode(values, rules, between)
    notes = {**decoded.notes, **notes}
    if values.dtype != np.uint8 and rules.range == "auto":
        notes["range"] = f"{values.dtype} values by their percentiles"
    planes = stored[None] if stored.ndim == 2 else np.ascontiguousarray(np.moveaxis(stored, -1, 0))
    return _Frame(planes, scale, notes=notes)


def _of_radiograph(radiograph: radiographs.Radiograph, rules: pictures.Rules) -> _Frame:
    """Return a radiograph as it is stored: bright is large, and padding as dark as the darkest pixel beside it."""
    values, outside, notes = radiograph.values, radiograph.outside, dict(radiograph.notes)
    if values.ndim == 3:
        frame = _encoded(pictures.ruled(values, None, notes, rules), rules)
        return _Frame(frame.planes, frame.scale, radiograph.spacing, radiograph.meta, frame.notes)
    exposed = values if outside is None else values[~outside]
    if exposed.min() == exposed.max():
        raise RejectedSeries("all its pixels have one value")
    ends = radiograph.ends or pictures.ends(exposed, rules)
    if radiograph.ends is None and not (rules.range == "full" or exposed.dtype == np.uint8):
        notes["range"] = f"{values.dtype} values by their percentiles"
    if outside is not None:
        values = np.where(outside, exposed.max() if radiograph.inverted else exposed.min(), values)
        notes["padding"] = "as dark as the darkest pixel"
    stored, scale, more = pictures.encode(values, rules, ends)
    if radiograph.inverted:
        # the other end of the scale; signal = stored · slope + intercept still holds
        mirror = MR_LOW + MR_HIGH
        stored = np.minimum(mirror - stored.astype(np.int64), 65535).astype(np.uint16)
        scale = Scale(-scale.slope, scale.intercept + mirror * scale.slope, level=0)
    return _Frame(stored[None], scale, radiograph.spacing, radiograph.meta, {**notes, **more})


def _fitted(frame: _Frame, config: ImagesConfig) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Return planes and spacing at `grid` and no longer than `longest`. Raises RejectedSeries."""
    planes, spacing = frame.planes, frame.spacing
    shape: tuple[int, int] = (planes.shape[1], planes.shape[2])
    if config.grid.in_plane_mm or config.grid.size:
        if config.grid.in_plane_mm and spacing is None:
            raise RejectedSeries("its spacing is unknown, and grid.in_plane_mm needs it; longest=N needs none")
        fitted = slicing.Resampler(shape, spacing or (1.0, 1.0), config.grid)
        planes = np.stack([fitted.image(plane, MR_LOW) for plane in planes])
        spacing, shape = spacing and fitted.spacing, (planes.shape[1], planes.shape[2])
    if config.longest and max(shape) > config.longest:
        # by pixels: of one unit each, until the longer side has `longest`
        fitted = slicing.Resampler(shape, (1.0, 1.0), GridConfig(in_plane_mm=max(shape) / config.longest))
        planes = np.stack([fitted.image(plane, MR_LOW) for plane in planes])
        spacing = spacing and (spacing[0] * fitted.spacing[0], spacing[1] * fitted.spacing[1])
    return planes, spacing
