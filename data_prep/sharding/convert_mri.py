"""The conversion of the MR series of a study into staged samples with one channel per sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from data_prep.config import MriConfig
from data_prep.discovery import labelmaps
from data_prep.sharding import mri_choice
from data_prep.sharding.mri_choice import Choice
from data_prep.sharding.staging import Job, Record, Stager, refused_before
from data_prep.volumes import geometry, scaling, slicing
from data_prep.volumes.volume import RejectedSeries, Volume

Used = TypeVar("Used")


@dataclass(frozen=True)
class _Stack:
    """The sequences of a study on the grid of one of them, `reference`; notes by sequence."""

    reference: str
    grid: Volume
    channels: list[slicing.Channel]
    notes: dict[str, dict[str, object]]


def convert(job: Job) -> Record:
    """Stage one study, or record in the rows of its series why it is left out."""
    stager = Stager(job)
    if not refused_before(stager):
        choices = mri_choice.choose(stager)
        try:
            _stage(stager, choices)
        except RejectedSeries as error:
            for choice in choices.values():
                choice.reject(stager, error)
    return stager.finish()


def _stage(stager: Stager, choices: dict[str, Choice]) -> None:
    """Stage the study from what is chosen, or from what is next where that cannot be used.

    Raises RejectedSeries if no slice holds foreground whatever is chosen; or for a label map.
    """
    while (stack := _stack(stager.job, choices)) is not None:
        if _add(stager, choices, stack):
            break
        del stack  # before other volumes are read
        reason = "no slice holds foreground"
        if not any(choice.rest and choice.use_next(stager.job, reason) for choice in choices.values()):
            raise RejectedSeries(reason)
    for choice in choices.values():
        choice.reject_others(stager)


def _stack(job: Job, choices: dict[str, Choice]) -> _Stack | None:
    """Return what can be used of the sequences, on one grid; None if nothing can."""
    config = job.config
    assert isinstance(config, MriConfig)
    scales: dict[str, scaling.Scale] = {}
    for name, choice in choices.items():
        if scale := _first(job, choice, _scale):
            scales[name] = scale
    if not scales:
        return None
    reference = _reference({name: choices[name] for name in scales}, config.reference)
    grid = choices[reference].volume
    assert grid is not None  # it has a scale
    channels, notes = [], {}
    for name in list(scales):
        if found := _first(job, choices[name], partial(_channel, name, scales, grid, config)):
            channel, notes[name] = found
            channels.append(channel)
    return _Stack(reference, grid, channels, notes)


def _first(job: Job, choice: Choice, use: Callable[[Volume], Used]) -> Used | None:
    """Return what `use` makes of the first volume of a sequence that it does not reject; None if it rejects all."""
    while choice.volume is not None:
        try:
            return use(choice.volume)
        except RejectedSeries as error:
            reason = error.reason
        choice.use_next(job, reason)  # out here: a caught exception keeps the volume in memory
    return None


def _reference(choices: dict[str, Choice], wanted: str) -> str:
    """Return the sequence whose grid the others are resampled onto.

    Unless one is configured: the thickest slices, so that no slice is interpolated, then the finest pixels; of a scout
    only if there is nothing else.
    """
    if wanted in choices:
        return wanted
    eligible = [name for name, choice in choices.items() if not choice.winner.scout] or list(choices)
    spacing = {name: volume.spacing for name in eligible if (volume := choices[name].volume) is not None}
    return min(
        eligible,
        key=lambda name: (-round(spacing[name][0], 2), round(max(spacing[name][1:]), 3), mri_choice.rank(name)),
    )


def _add(stager: Stager, choices: dict[str, Choice], stack: _Stack) -> bool:
    """Write the slices and the rows of the volumes that they are made from; return whether there are any slices."""
    job, config = stager.job, stager.job.config
    assert isinstance(config, MriConfig)
    labelmap, label_notes = labelmaps.of(job.source.labels, stack.grid, config)
    study = stager.series_hash(f"study:{job.source.patient}\0{job.source.study}")
    counts = slicing.SliceCounts()
    volumes = {channel.name: volume for channel in stack.channels if (volume := choices[channel.name].volume)}
    kept: dict[str, object] = {name: volume.meta for name, volume in volumes.items() if volume.meta}
    count = stager.add(
        slicing.axial(
            replace(stack.grid, meta=kept),
            stack.channels,
            labelmap,
            slicing.SliceOwner(stager.record.subject, study),
            min_foreground=config.min_foreground,
            grid=config.grid,
            counts=counts,
            labels=job.labels,
            ignored=labelmaps.ignored(config),
        )
    )
    if not count:
        return False
    stager.count(counts.sparse())
    for channel in stack.channels:
        name, choice, volume, scale = channel.name, choices[channel.name], volumes[channel.name], channel.scale
        assert scale is not None  # `_channel` made it
        stager.accept(
            choice.winner.series,
            sequence=name,
            grounds=choice.winner.guess.grounds,
            **choice.entries(job),
            reference=name == stack.reference,
            stack=study,
            slices=counts.slices[name],
            air_slices=counts.air,
            shape=list(volume.voxels.shape),
            spacing_mm=[round(length, 4) for length in volume.spacing],
            affine=stack.grid.affine.tolist(),
            annotated=counts.annotated,
            scale=[scale.slope, scale.intercept],
            notes={**stack.notes[name], **label_notes, "voxels_clipped": scale.clipped},
            meta=volume.meta,
        )
    return True


def _scale(volume: Volume) -> scaling.Scale:
    scale = scaling.robust(volume.voxels)
    if scale is None:
        raise RejectedSeries("its foreground has one value only")
    return scale


def _channel(
    name: str, scales: dict[str, scaling.Scale], grid: Volume, config: MriConfig, volume: Volume
) -> tuple[slicing.Channel, dict[str, object]]:
    """Resample a sequence onto the common grid. Raises RejectedSeries if it lies elsewhere or shows nothing.

    `scales` holds the scale of the first volume of a sequence that is tried; it is taken from there.
    """
    scale = scales.pop(name, None) or _scale(volume)
    elsewhere = bool(volume.frame and grid.frame and volume.frame != grid.frame)
    if elsewhere and config.frame_of_reference == "check":
        raise RejectedSeries(
            "another frame of reference than the other sequences of its study; register them first, or "
            "frame_of_reference=ignore where only the ids differ"
        )
    shape, notes = grid.voxels.shape[::-1], dict(volume.notes)
    if elsewhere:
        notes["frame_of_reference_ignored"] = True
    voxels, covered = volume.voxels, None
    if volume.voxels.shape != grid.voxels.shape or not geometry.same_grid(volume.affine, grid.affine, shape):
        own = volume.voxels.shape[::-1]
        share = geometry.overlap(own, volume.affine, grid.affine, shape)
        if share < config.min_overlap:
            raise RejectedSeries(f"covers {share:.0%} of the study's grid, less than min_overlap={config.min_overlap}")
        moved = volume.voxels.transpose(2, 1, 0)
        moved = moved if moved.dtype.kind == "f" else moved.astype(np.float32)
        voxels = geometry.place(moved, volume.affine, grid.affine, shape, order=1, outside=_darkest(scale))
        voxels = voxels.transpose(2, 1, 0)
        covered = _covered(own, volume.affine, grid.affine, shape)
        notes |= {"resampled_onto_study": True, "overlap": round(share, 3)}
    return slicing.Channel(name, voxels, scale.level, scale, covered), notes


def _darkest(scale: scaling.Scale) -> float:
    """Return the signal of unmeasured voxels: zero, or the lowest that uint16 can hold if zero is below it."""
    return max(0.0, scale.intercept)


def _covered(
    own: tuple[int, int, int], affine: np.ndarray, onto: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray | None:
    """Return (Z,) bool, whether each slice of the grid is centred within the slices of a volume; None if all are."""
    centres = np.array([[(shape[0] - 1) / 2, (shape[1] - 1) / 2, z, 1] for z in range(shape[2])])
    heights = (centres @ (np.linalg.inv(affine) @ onto).T)[:, 2]
    inside = (heights > -0.5) & (heights < own[2] - 0.5)
    return None if inside.all() else inside
