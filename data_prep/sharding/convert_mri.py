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
from data_prep.discovery import kinds, labelmaps, sequences
from data_prep.discovery.sequences import Guess, Rank
from data_prep.discovery.studies import Series
from data_prep.sharding.staging import Job, Record, Stager, refused_before
from data_prep.volumes import geometry, images, scaling, slicing
from data_prep.volumes.volume import RejectedSeries, Volume

_UNKNOWN = "its sequence is unknown; sequences can name it by a pattern of its {}"
_AIR_HU = -500  # a volume named as CT that goes below is one


@dataclass(frozen=True)
class Candidate:
    """A volume and the sequence that it is assumed to be. A scout never gives the study's grid."""

    series: Series
    volume: Volume
    guess: Guess
    scout: bool = False


@dataclass(frozen=True)
class _Choice:
    """The volume that is used for a sequence, and the series, with their grounds, that lost to it (True: a scout)."""

    winner: Candidate
    losers: list[tuple[Series, Guess, bool]]


def convert(job: Job) -> Record:
    """Stage one study, or record in the rows of its series why it is left out."""
    stager = Stager(job)
    if not refused_before(stager):
        choices = _one_per_sequence(stager, _candidates(stager))
        chosen = {name: choice.winner for name, choice in choices.items()}
        over = {name: _over(job, choice) for name, choice in choices.items()}
        del choices
        if chosen:
            try:
                _stage(stager, chosen, over)
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
    if series.dicom:
        yield from _read_dicom(job, series, config)
    else:
        yield _read_image(job, series, config)


def _read_image(job: Job, series: Series, config: MriConfig) -> Candidate:
    """Return the volume of an image file. Raises RejectedSeries, where its name says enough before it is read."""
    path = PurePath(series.name)
    guess = sequences.by_pattern([series.name, path.name], config.sequences)
    named_ct = guess is None and sequences.is_ct(path)
    kind = sequences.kind_by_name(path)
    scout = kind == kinds.LOCALIZER
    if guess is None:
        if kind and not (scout and config.localizers == "keep"):
            raise _no_sequence(kind, "path")
        guess = sequences.by_words(path)
        if guess is None:
            reason = "named as CT; shard_ct.py takes it" if named_ct else _UNKNOWN.format("path")
            raise RejectedSeries(reason)
    volume = images.read_mr(job.paths(series)[0], config)
    if named_ct and volume.voxels.min() <= _AIR_HU:
        raise RejectedSeries("named as CT; shard_ct.py takes it")
    return Candidate(series, volume, guess, scout)


def _read_dicom(job: Job, series: Series, config: MriConfig) -> Iterator[Candidate | RejectedSeries]:
    paths = job.paths(series)
    names = [series.name, os.path.basename(series.name)]
    planes = kinds.in_planes(paths)
    for stack in read_series(paths, "MR", config):
        if isinstance(stack, RejectedSeries):
            yield stack
            continue
        volume, header = stack
        guess = sequences.by_pattern([*names, _description(header)], config.sequences)
        kind = sequences.kind_by_header(header)
        scout = planes or (kind if kind == kinds.LOCALIZER else None)
        far = kinds.sparse(header, volume.voxels.shape[0], volume.spacing[0])
        if guess is None:
            guess = sequences.by_header(header)
            if far and (guess is None or guess.rank > Rank.WORDS):
                scout = scout or far
            if scout and config.localizers == "refuse":
                yield _no_sequence(scout, "description")
                continue
            if kind and not scout:
                yield _no_sequence(kind, "description")
                continue
        if guess is None:
            yield RejectedSeries(_UNKNOWN.format("description"))
        else:
            yield Candidate(series, volume, guess, scout=bool(scout or far))


def _no_sequence(kind: str, place: str) -> RejectedSeries:
    """Return the rejection of an image that is not a weighted image, with the setting that takes it."""
    if kind.startswith(kinds.LOCALIZER):
        return RejectedSeries(f"{kind}; localizers=keep takes it")
    return RejectedSeries(f"{kind}; sequences can name it by a pattern of its {place}")


def _description(header: AnyHeader) -> str:
    return str(header.get("SeriesDescription") or "")


def _one_per_sequence(stager: Stager, candidates: Iterator[Candidate]) -> dict[str, _Choice]:
    """Return the best known volume of each sequence, of equals the largest; the others get a row that says so."""
    choices: dict[str, _Choice] = {}
    for candidate in candidates:
        name = candidate.guess.sequence
        best = choices.get(name)
        if best is None:
            choices[name] = _Choice(candidate, [])
        elif _merit(candidate) < _merit(best.winner):
            choices[name] = _Choice(candidate, [*best.losers, _lost(best.winner)])
        else:
            best.losers.append(_lost(candidate))
        del candidate, best  # one volume fewer in memory
    for name, choice in choices.items():
        for series, guess, scout in choice.losers:
            error = RejectedSeries(_why(name, choice.winner, guess, scout))
            lost_to = stager.job.hash_of(choice.winner.series)
            stager.reject(series, error, sequence=name, grounds=guess.grounds, lost_to=lost_to)
    return dict(sorted(choices.items(), key=lambda item: _rank(item[0])))


def _merit(candidate: Candidate) -> tuple[bool, bool, int, int, int]:
    """Return what decides between volumes of one sequence, the least first: size only between equals."""
    guess = candidate.guess
    return guess.rank > Rank.PATTERN, candidate.scout, guess.rank, len(guess.against), -candidate.volume.voxels.size


def _lost(candidate: Candidate) -> tuple[Series, Guess, bool]:
    return candidate.series, candidate.guess, candidate.scout


def _why(name: str, best: Candidate, loser: Guess, scout: bool) -> str:
    """Return why a volume is not used."""
    winner = best.guess
    if scout and not best.scout and winner.rank > Rank.PATTERN:
        return f"another {name} of this study is no localizer, this one is"
    if loser.rank > winner.rank:
        return f"another {name} of this study is better known ({winner.grounds}, this one by {loser.grounds})"
    if len(loser.against) > len(winner.against):
        return f"another {name} of this study has precedence; this one: {', '.join(loser.against)}"
    return f"another {name} of this study is larger or came first"


def _over(job: Job, choice: _Choice) -> list[dict[str, str]]:
    return [{"source": job.hash_of(series), "grounds": guess.grounds} for series, guess, _ in choice.losers]


def _rank(sequence: str) -> tuple[int, str]:
    known = sequences.VOCABULARY
    return (known.index(sequence) if sequence in known else len(known), sequence)


def _reference(chosen: dict[str, Candidate], wanted: str) -> str:
    """Return the sequence whose grid the others are resampled onto.

    Unless one is configured: the thickest slices, so that no slice is interpolated, then the finest pixels; of a scout
    only if there is nothing else.
    """
    if wanted in chosen:
        return wanted
    eligible = [name for name, candidate in chosen.items() if not candidate.scout] or list(chosen)
    spacing = {name: chosen[name].volume.spacing for name in eligible}
    return min(eligible, key=lambda name: (-round(spacing[name][0], 2), round(max(spacing[name][1:]), 3), _rank(name)))


def _stage(stager: Stager, chosen: dict[str, Candidate], over: dict[str, list[dict[str, str]]]) -> None:
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
            **({"chosen_over": over[channel.name]} if over[channel.name] else {}),
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
    elsewhere = bool(volume.frame and grid.frame and volume.frame != grid.frame)
    if elsewhere and config.frame_of_reference == "check":
        raise RejectedSeries(
            "another frame of reference than the other sequences of its study; register them first, or "
            "frame_of_reference=ignore where only the ids differ"
        )
    scale = scaling.robust(volume.voxels)
    if scale is None:
        raise RejectedSeries("its foreground has one value only")
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
