"""The volumes of an MR study, each with the sequence that it is assumed to be, and those that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import PurePath
from typing import TypeVar

from data_prep.config import MriConfig
from data_prep.dicom.scan import AnyHeader
from data_prep.dicom.series_reader import read_series
from data_prep.discovery import kinds, labelmaps, sequences
from data_prep.discovery.sequences import Guess, Rank
from data_prep.discovery.studies import Series
from data_prep.sharding.staging import Job
from data_prep.volumes import images
from data_prep.volumes.volume import RejectedSeries, Volume

Item = TypeVar("Item")
_UNKNOWN = "its sequence is unknown; sequences can name it by a pattern of its {}"
_AIR_HU = -500  # a volume named as CT that goes below is one


@dataclass(frozen=True)
class Candidate:
    """What is known of a volume, without its voxels.

    place   its number among what its series gives, volumes and rejections
    scout   whether it is a localizer; one never gives the study's grid
    voxels  their count
    """

    series: Series
    place: int
    guess: Guess
    scout: bool
    voxels: int

    @property
    def merit(self) -> tuple[bool, bool, int, int, int]:
        """What decides between volumes of one sequence, the least first: size only between equals."""
        guess = self.guess
        return guess.rank > Rank.PATTERN, self.scout, guess.rank, len(guess.against), -self.voxels


def read(job: Job, series: Series) -> Iterator[tuple[Candidate, Volume] | RejectedSeries]:
    """Yield each volume of a series, or its rejection. Raises RejectedSeries for a series that gives none."""
    config = job.config
    assert isinstance(config, MriConfig)
    if series.dicom:
        yield from _dicom(job, series, config)
    else:
        yield _image(job, series, config)


def read_again(job: Job, candidate: Candidate) -> Volume:
    """Return the voxels of a candidate. Raises RejectedSeries if its files give something else by now."""
    for place, found in enumerate(read(job, candidate.series)):
        if place == candidate.place:
            if isinstance(found, RejectedSeries):
                raise found
            return found[1]
    raise RejectedSeries("its files have changed since they were first read; start again")


def _image(job: Job, series: Series, config: MriConfig) -> tuple[Candidate, Volume]:
    """Return the volume of an image file. Raises RejectedSeries, where its name says enough before it is read."""
    path = PurePath(series.name)
    guess = sequences.by_pattern([series.name, path.name], config.sequences)
    if guess is None and series.sequence:
        guess = Guess(series.sequence, f"layout {job.source.layout}", Rank.BIDS)
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
    volume = images.read_mr(job.paths(series)[0], config, series.channel, series.orientation)
    if named_ct and volume.voxels.min() <= _AIR_HU:
        raise RejectedSeries("named as CT; shard_ct.py takes it")
    if guess.rank > Rank.PATTERN and labelmaps.is_drawn(volume.voxels):
        low, high = volume.voxels.min(), volume.voxels.max()
        raise RejectedSeries(
            f"whole numbers from {low:g} to {high:g} in even areas: a label map, not an MR image; label_maps names the "
            "image that it is of, sequences takes it by a pattern of its path"
        )
    return Candidate(series, 0, guess, scout, volume.voxels.size), volume


def _dicom(job: Job, series: Series, config: MriConfig) -> Iterator[tuple[Candidate, Volume] | RejectedSeries]:
    paths = job.paths(series)
    names = [series.name, os.path.basename(series.name)]
    stacks = read_series(paths, "MR", config)
    first = list(islice(stacks, 2))
    # a series that is one stack has one plane: its headers need not be read again
    planes = kinds.in_planes(paths) if len(first) > 1 else None
    for place, stack in enumerate(chain(_drained(first), stacks)):
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
            yield Candidate(series, place, guess, bool(scout or far), volume.voxels.size), volume


def _drained(items: list[Item]) -> Iterator[Item]:
    """Yield the items of a list and hold on to none of them."""
    while items:
        yield items.pop(0)


def _no_sequence(kind: str, place: str) -> RejectedSeries:
    """Return the rejection of an image that is not a weighted image, with the setting that takes it."""
    if kind.startswith(kinds.LOCALIZER):
        return RejectedSeries(f"{kind}; localizers=keep takes it")
    return RejectedSeries(f"{kind}; sequences can name it by a pattern of its {place}")


def _description(header: AnyHeader) -> str:
    return str(header.get("SeriesDescription") or "")
