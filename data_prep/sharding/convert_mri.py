"""The conversion of the MR series of a study into staged samples with one channel per sequence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np

from data_prep.config import MriConfig
from data_prep.dicom.scan import AnyHeader
from data_prep.dicom.series_reader import read_series
from data_prep.discovery import labelmaps, sequences
from data_prep.discovery.sequences import Guess
from data_prep.discovery.studies import Series
from data_prep.sharding.staging import Job, Record, Stager, refused_before
from data_prep.volumes import geometry, images, scaling, slicing
from data_prep.volumes.volume import RejectedSeries, Volume


@dataclass(frozen=True)
class Candidate:
    """A volume and the sequence that it is assumed to be."""

    series: Series
    volume: Volume
    guess: Guess


def convert(job: Job) -> Record:
    """Stage one study, or record in the rows of its series why it is left out."""
    stager = Stager(job)
    if not refused_before(stager):
        chosen = _one_per_sequence(stager, _candidates(stager))
        if chosen:
            try:
                _stage(stager, chosen)
            except RejectedSeries as error:
                for candidate in chosen.values():
                    stager.reject(candidate.series, error, sequence=candidate.guess.sequence)
    return stager.finish()


def _candidates(stager: Stager) -> Iterator[Candidate]:
    for series in stager.job.source.series:
        try:
            for candidate in _read(stager.job, series):
                if isinstance(candidate, RejectedSeries):
                    stager.reject(series, candidate)
                else:
                    yield candidate
        except RejectedSeries as error:
            stager.reject(series, error)


def _read(job: Job, series: Series) -> Iterator[Candidate | RejectedSeries]:
    config = job.config
    assert isinstance(config, MriConfig)
    names = [series.name, os.path.basename(series.name)]
    if not series.dicom:
        if sequences.is_ct(PurePath(series.name)):
            raise RejectedSeries("named as CT; shard_ct.py takes it")
        guess = sequences.by_pattern(names, config.sequences) or sequences.by_name(PurePath(series.name))
        if guess is None:  # before the volume is read
            raise RejectedSeries("its sequence is unknown; sequences can name it by a pattern of its path")
        yield Candidate(series, images.read_mr(job.paths(series)[0], config), guess)
        return
    for stack in read_series(job.paths(series), "MR", config):
        if isinstance(stack, RejectedSeries):
            yield stack
            continue
        volume, header = stack
        guess = sequences.by_pattern([*names, _description(header)], config.sequences) or sequences.by_header(header)
        if guess is None:
            yield RejectedSeries("its sequence is unknown; sequences can name it by a pattern of its description")
        else:
            yield Candidate(series, volume, guess)


def _description(header: AnyHeader) -> str:
    return str(header.get("SeriesDescription") or "")


def _one_per_sequence(stager: Stager, candidates: Iterator[Candidate]) -> dict[str, Candidate]:
    """Return the largest volume of each sequence; the others get a row that says so."""
    chosen: dict[str, Candidate] = {}
    for candidate in candidates:
        name = candidate.guess.sequence
        best = chosen.setdefault(name, candidate)
        if candidate is best:
            continue
        loser = candidate
        if candidate.volume.voxels.size > best.volume.voxels.size:
            chosen[name], loser = candidate, best
        error = RejectedSeries(f"another {name} of this study is larger or came first")
        stager.reject(loser.series, error, sequence=name, grounds=loser.guess.grounds)
        del best, loser  # one volume fewer in memory
    return dict(sorted(chosen.items(), key=lambda item: _rank(item[0])))


def _rank(sequence: str) -> tuple[int, str]:
    known = sequences.VOCABULARY
    return (known.index(sequence) if sequence in known else len(known), sequence)


def _reference(chosen: dict[str, Candidate], wanted: str) -> str:
    """Return the sequence whose grid the others are resampled onto.

    Unless one is configured: the thickest slices, so that no slice is interpolated, then the finest pixels.
    """
    if wanted in chosen:
        return wanted
    spacing = {name: candidate.volume.spacing for name, candidate in chosen.items()}
    return min(chosen, key=lambda name: (-round(spacing[name][0], 2), round(max(spacing[name][1:]), 3), _rank(name)))


def _stage(stager: Stager, chosen: dict[str, Candidate]) -> None:
    config = stager.job.config
    assert isinstance(config, MriConfig)
    reference = _reference(chosen, config.reference)
    grid = chosen[reference].volume
    channels, notes = [], {}
    for name in list(chosen):
        try:
            channel, notes[name] = _channel(name, chosen[name].volume, grid, config)
            channels.append(channel)
        except RejectedSeries as error:
            guess = chosen[name].guess
            stager.reject(chosen[name].series, error, sequence=name, grounds=guess.grounds)
            del chosen[name]
    if not channels:
        return
    labelmap, label_notes = labelmaps.of(stager.job.source.labels, grid, config)
    stack = stager.series_hash(f"study:{stager.job.source.patient}\0{stager.job.source.study}")
    counts = slicing.SliceCounts()
    kept: dict[str, object] = {
        name: candidate.volume.meta for name, candidate in chosen.items() if candidate.volume.meta
    }
    count = stager.add(
        slicing.axial(
            replace(grid, meta=kept),
            channels,
            labelmap,
            slicing.SliceOwner(stager.record.subject, stack),
            min_foreground=config.min_foreground,
            grid=config.grid,
            counts=counts,
            labels=stager.job.labels,
            ignored=labelmaps.ignored(config),
        )
    )
    if not count:
        raise RejectedSeries("no slice holds foreground")
    stager.count(counts.sparse())
    for channel in channels:
        candidate, scale = chosen[channel.name], channel.scale
        assert scale is not None  # `_channel` made it
        stager.accept(
            candidate.series,
            sequence=channel.name,
            grounds=candidate.guess.grounds,
            reference=channel.name == reference,
            stack=stack,
            slices=counts.slices[channel.name],
            air_slices=counts.air,
            shape=list(candidate.volume.voxels.shape),
            spacing_mm=[round(length, 4) for length in candidate.volume.spacing],
            annotated=slicing.annotated(labelmap, labelmaps.ignored(config)),
            scale=[scale.slope, scale.intercept],
            notes={**notes[channel.name], **label_notes, "voxels_clipped": scale.clipped},
            meta=candidate.volume.meta,
        )


def _channel(name: str, volume: Volume, grid: Volume, config: MriConfig) -> tuple[slicing.Channel, dict[str, object]]:
    """Resample a sequence onto the common grid. Raises RejectedSeries if it lies elsewhere or shows nothing."""
    if volume.frame and grid.frame and volume.frame != grid.frame:
        raise RejectedSeries("another frame of reference than the other sequences of its study; register them first")
    scale = scaling.robust(volume.voxels)
    if scale is None:
        raise RejectedSeries("its foreground has one value only")
    shape, notes = grid.voxels.shape[::-1], dict(volume.notes)
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
