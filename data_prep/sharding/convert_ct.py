"""The conversion of a CT series into staged samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath

from data_prep.config import CtConfig
from data_prep.dicom.series_reader import read_series
from data_prep.discovery import labelmaps, sequences
from data_prep.discovery.studies import Series
from data_prep.sharding import one_volume
from data_prep.sharding.staging import Job, Record, Stager, refused_before
from data_prep.volumes import images, slicing
from data_prep.volumes.volume import RejectedSeries, Volume

_NAMED_MR = "named as MR; shard_mri.py takes it"
_NOT_HU = "not in HU"  # in the reasons of values that are those of an MR or a picture
_AIR_HU = -500  # air lies below


def convert(job: Job) -> Record:
    """Stage one source, or record in its rows why it is left out."""
    stager = Stager(job)
    if not refused_before(stager):
        series = job.source.series[0]
        stack = 0
        for volume in _volumes(job, series):
            try:
                if isinstance(volume, RejectedSeries):
                    raise volume
                _stage(stager, series, volume, stack)
                stack += 1
            except RejectedSeries as error:
                stager.reject(series, error)
            del volume  # one volume in memory at a time
    return stager.finish()


def _volumes(job: Job, series: Series) -> Iterator[Volume | RejectedSeries]:
    try:
        if series.dicom:
            for stack in read_series(job.paths(series), "CT", job.config):
                yield stack if isinstance(stack, RejectedSeries) else stack[0]
        else:
            yield _read_image(job, series)
    except RejectedSeries as error:
        yield error


def _read_image(job: Job, series: Series) -> Volume:
    """Return the volume of an image file.

    The command was chosen for CT: a name like "T1", which may be a time point, says nothing against voxels that show
    air. Without that evidence it is refused as an MR.
    """
    named_mr = sequences.is_mr(PurePath(series.name))
    try:
        volume = images.read_ct(job.paths(series)[0], job.config)
    except RejectedSeries as error:
        if named_mr and _NOT_HU in error.reason:
            raise RejectedSeries(_NAMED_MR) from error
        raise
    if not named_mr:
        return volume
    assert isinstance(job.config, CtConfig)
    if volume.voxels.min() > _AIR_HU and job.config.values != "trust":
        raise RejectedSeries(_NAMED_MR)
    return replace(volume, notes={**volume.notes, "named_as_mr": True})


def _stage(stager: Stager, series: Series, volume: Volume, stack: int) -> None:
    config = stager.job.config
    assert isinstance(config, CtConfig)
    labelmap, notes = labelmaps.of(stager.job.source.labels, volume, config)
    channel = slicing.Channel("ct", volume.voxels, math.floor(config.air.threshold_hu))
    least = config.air.min_body_fraction
    one_volume.stage(stager, series, stack, volume, channel, min_body=least, labelmap=labelmap, notes=notes)
