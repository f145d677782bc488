"""The staging of one volume of one channel (CT, PET): its axial slices, counts and manifest row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_prep.discovery import labelmaps
from data_prep.discovery.studies import Series
from data_prep.sharding.staging import Stager
from data_prep.volumes import slicing
from data_prep.volumes.volume import RejectedSeries, Volume


def stage(
    stager: Stager,
    series: Series,
    stack: int,
    volume: Volume,
    channel: slicing.Channel,
    *,
    min_body: float,
    labelmap: np.ndarray | None = None,
    notes: Mapping[str, object],
) -> None:
    """Stage a volume as stack number `stack` of its series. Raises RejectedSeries where no slice holds a body.

    channel   on the volume's grid; what its scale clipped is noted
    min_body  share of a slice's pixels; a slice with less body is air and left out
    labelmap  (Z, Y, X) uint8, or None
    notes     for the manifest, beside the volume's
    """
    # stacks of one series beyond the first are series of their own in the index: neighbours must be evenly spaced
    own = stager.series_hash(series.uid if stack == 0 else f"{series.uid}\0{stack}")
    counts = slicing.SliceCounts()
    count = stager.add(
        slicing.axial(
            volume,
            [channel],
            labelmap,
            slicing.SliceOwner(stager.record.subject, own),
            min_foreground=min_body,
            grid=stager.job.config.grid,
            counts=counts,
            labels=stager.job.labels,
            ignored=labelmaps.ignored(stager.job.config),
        )
    )
    if not count:
        raise RejectedSeries("no slice holds a body: all voxels are air")
    stager.count(counts.sparse())
    clipped: dict[str, object] = {}
    if channel.scale and channel.scale.clipped:
        clipped = {"values_clipped": channel.scale.clipped}
    stager.accept(
        series,
        sequence=channel.name,
        stack=own,
        slices=count,
        air_slices=counts.air,
        shape=list(volume.voxels.shape),
        spacing_mm=[round(length, 4) for length in volume.spacing],
        affine=volume.affine.tolist(),
        annotated=counts.annotated,
        notes={**volume.notes, **notes, **clipped},
        meta=volume.meta,
    )
