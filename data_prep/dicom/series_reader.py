"""DICOM series, classic and enhanced, as volumes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from data_prep.config import PrepConfig
from data_prep.dicom import frames, pixels, stacks, whitelist
from data_prep.dicom.scan import AnyHeader
from data_prep.schema import AIR_HU
from data_prep.volumes import geometry, hounsfield
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.volume import RejectedSeries, Volume, check_size

Refused = dict[str, set[str]]  # reason → paths; a file may hold frames of several volumes, and counts once


def read_series(
    paths: Sequence[str], modality: str, config: PrepConfig
) -> Iterator[tuple[Volume, AnyHeader] | RejectedSeries]:
    """Yield every stack of a series ("CT" or "MR") as a volume with the header of its first frame, or its rejection.

    One volume is in memory at a time. Raises UnreadableError for failures that are not the files' fault.
    """
    refused: Refused = defaultdict(set)
    for stack in _built(paths, modality, config, refused):
        if isinstance(stack, RejectedSeries):
            yield stack
        else:
            yield from _volumes(stack, modality, config, refused)
    for reason, files in refused.items():
        share = "" if len(files) == len(set(paths)) else f"{len(files)} of {len(paths)} files: "
        yield RejectedSeries(f"{share}{reason}")


def _built(
    paths: Sequence[str], modality: str, config: PrepConfig, refused: Refused
) -> list[stacks.Stack | RejectedSeries]:
    """Return all stacks. Pixels may be compared for that; files whose pixels are damaged are left out."""
    try:
        return stacks.build(_frames(paths, modality, config, refused), config.stacks, config.min_slices)
    except pixels.DamagedPixels:
        refused.clear()
        broken = pixels.damaged([frame for frame, _ in _frames(paths, modality, config, refused)])
        refused.clear()
        whole = [path for path in paths if path not in broken]
        built = stacks.build(_frames(whole, modality, config, refused), config.stacks, config.min_slices)
        _add(refused, broken)
        return built


def _volumes(
    stack: stacks.Stack, modality: str, config: PrepConfig, refused: Refused
) -> Iterator[tuple[Volume, AnyHeader] | RejectedSeries]:
    """Yield a stack as a volume; or, if files are damaged, what the others give. Those are noted in `refused`."""
    volume = _volume(stack, modality, config)
    if not isinstance(volume, pixels.DamagedPixels):
        yield volume
        return
    broken = pixels.damaged(stack.frames)
    _add(refused, broken)
    whole = [frame for frame in stack.frames if frame.path not in broken]
    if not broken:
        yield volume
    elif whole:
        for rest in stacks.build([(frame, stack.header) for frame in whole], config.stacks, config.min_slices):
            if isinstance(rest, RejectedSeries):
                yield rest
            else:
                notes = {**stack.notes, **rest.notes, "damaged_files_left_out": len(broken)}
                yield _volume(replace(rest, notes=notes), modality, config)


def _frames(
    paths: Sequence[str], modality: str, config: PrepConfig, refused: Refused
) -> Iterator[tuple[frames.Frame, AnyHeader]]:
    """Yield all frames; note files without any in `refused` by reason."""
    for path in paths:
        try:
            yield from frames.read(path, modality, config.stacks)
        except RejectedSeries as error:
            refused[error.reason].add(path)
        except Exception as error:  # hostile bytes raise anything
            unless_trouble(error)
            refused[pixels.unreadable(error)].add(path)


def _add(refused: Refused, broken: dict[str, str]) -> None:
    for path, reason in broken.items():
        refused[reason].add(path)


def _volume(stack: stacks.Stack, modality: str, config: PrepConfig) -> tuple[Volume, AnyHeader] | RejectedSeries:
    try:
        rows, columns = stack.frames[0].shape
        check_size((len(stack.frames), rows, columns), config.limits.volume_gb)
        voxels, notes = (pixels.ct if modality == "CT" else pixels.mr)(stack.frames)
        if modality == "CT":
            notes |= hounsfield.check(voxels, notes, config, declared=True)
        outside = AIR_HU if modality == "CT" else 0
        turned, affine, turning = geometry.to_axial(voxels.transpose(2, 1, 0), stack.affine, config.geometry, outside)
        return Volume(
            voxels=turned,
            affine=affine,
            frame=str(stack.header.get("FrameOfReferenceUID") or ""),
            meta=whitelist.fields(stack.header, config.keep_year),
            notes={**stack.notes, **notes, **turning},
        ), stack.header
    except RejectedSeries as error:
        return error
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        return RejectedSeries(pixels.unreadable(error))
