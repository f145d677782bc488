"""The conversion of a PET series into staged samples: axial slices of standardised uptake, or of what is stored."""

from __future__ import annotations

import numpy as np

from data_prep.config import ImagesConfig
from data_prep.dicom import suv
from data_prep.dicom.series_reader import read_series
from data_prep.discovery.studies import Series
from data_prep.sharding import one_volume
from data_prep.sharding.staging import Stager
from data_prep.volumes import pictures, scaling, slicing
from data_prep.volumes.volume import RejectedSeries, Volume

NAME = "pet"


def stage(stager: Stager, series: Series) -> None:
    """Stage all stacks of a series. Raises RejectedSeries where its values are no SUV, UnreadableError."""
    config, paths = stager.job.config, stager.job.paths(series)
    assert isinstance(config, ImagesConfig)
    factor, notes = 1.0, dict[str, object](suv="the stored values")
    if config.pet.values == "suv":
        factor, notes = suv.factor(paths)
    stack = 0
    for found in read_series(paths, "PT", config):
        try:
            if isinstance(found, RejectedSeries):
                raise found
            volume, _ = found
            _stage(stager, series, volume, factor, notes, stack)
            stack += 1
        except RejectedSeries as error:
            stager.reject(series, error)


def _stage(stager: Stager, series: Series, volume: Volume, factor: float, notes: dict[str, object], stack: int) -> None:
    config = stager.job.config
    assert isinstance(config, ImagesConfig)
    voxels = volume.voxels * np.float32(factor)
    if config.pet.values == "suv":
        scale = pictures.scale_between(0.0, config.pet.top)
        level = int(scale.encode(np.array([config.pet.body_suv]))[0])
        scale = scaling.Scale(scale.slope, scale.intercept, level)
    else:
        robust = scaling.robust(voxels)
        if robust is None:
            raise RejectedSeries("all its voxels have one value")
        scale = robust
    channel = slicing.Channel(NAME, voxels, scale.level, scale)
    one_volume.stage(stager, series, stack, volume, channel, min_body=config.pet.min_body_fraction, notes=notes)
