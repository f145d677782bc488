"""Discovery and conversion in this process, without workers and without shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_prep import schema
from data_prep.config import CtConfig, PrepConfig
from data_prep.discovery import archive
from data_prep.discovery.inputs import Inputs
from data_prep.sharding import convert_ct, convert_mri, staging


class Here:
    """Stands in for the pool of workers: does the work in this process."""

    def map(self, work, jobs) -> Iterator[tuple]:
        """(job, result) for every job."""
        for job in jobs:
            yield job, work(job)


def discovered(
    *folders: Path, modality: str = "CT", config: PrepConfig | None = None, skip: Path | None = None
) -> archive.Discovered:
    """What lies below the folders."""
    return archive.discover(Inputs.of(folders), [], config or CtConfig(), modality, Here(), skip)


def names(sources: Iterable[archive.Source]) -> list[str]:
    """The names of the sources that can be read."""
    return [source.name for source in sources if not source.problem]


def problems(sources: Iterable[archive.Source]) -> dict[str, str]:
    """Name → reason of the others."""
    return {source.name: source.problem for source in sources if source.problem}


def converted(
    out: Path, *folders: Path, modality: str = "CT", config: PrepConfig | None = None
) -> dict[str, tuple[list[dict], list[schema.Slice]]]:
    """Every source by its name, as rows of the manifest and as samples in their order."""
    out.mkdir(parents=True, exist_ok=True)
    config, inputs = config or CtConfig(), Inputs.of(folders)
    found = {}
    for source in archive.discover(inputs, [], config, modality, Here()).sources:
        job = staging.Job(source, inputs, out, b"salt", config)
        record = (convert_ct if modality == "CT" else convert_mri).convert(job)
        tar = out / f"{job.name}.tar"
        block = tar.read_bytes() if tar.exists() else b""
        samples = [schema.decode(block[offset : offset + size]) for _, offset, size, *_ in record.samples]
        found[source.name] = record.rows, sorted(samples, key=lambda sample: sample.order)
    return found


def pixels(samples: Iterable[schema.Slice]) -> np.ndarray:
    """(Z, H, W) pixels of a volume of one sequence."""
    return np.stack([sample.pixels[0] for sample in samples])
