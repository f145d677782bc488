"""What a training reads: one data set, or several that are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from data_prep.schema import Split
from pretrain.data.intensity import Intensity, Level
from pretrain.data.labels import UNLABELLED, Labelling
from pretrain.data.mixture import Mixture, chain_seed
from pretrain.data.order import Chain


@dataclass(frozen=True)
class Source:
    """A split of one data set, and how it is read.

    name       "" where a training has one data set without a name
    sequences  names of the sequences that are read of it, if a slice has them; None: all that the training reads
    window     HU mapped to 0 and 1, or None: the training's own; mean and std of the windowed value likewise
    body_threshold_hu  of crops, or None: the stage's own
    weights    (N,) float32 how often each sample comes by the others, or None: all alike
    """

    name: str
    split: Split
    labels: Labelling = UNLABELLED
    sequences: tuple[str, ...] | None = None
    window: tuple[float, float] | None = None
    weights: np.ndarray | None = None
    mean: Level | None = None
    std: Level | None = None
    body_threshold_hu: float | None = None

    @property
    def samples(self) -> int:
        """Samples of one of its epochs."""
        return self.labels.samples(self.split)

    def intensity(self, default: Intensity) -> Intensity:
        """Return how its values become the input."""
        own = {name: value for name in ("window", "mean", "std") if (value := getattr(self, name)) is not None}
        return replace(default, **own)

    def chain(self, seed: int) -> Chain:
        """Return the order of its samples."""
        only = self.labels.only
        weights = self.weights if self.weights is None or only is None else self.weights[only]
        return Chain(self.samples, seed, weights, only)


@dataclass(frozen=True)
class Corpus:
    """The sources of a training, in the order of their names; their place is their number.

    share  (K,) float64 of the samples, of each; above 0, their sum is 1
    """

    sources: tuple[Source, ...]
    share: np.ndarray

    @classmethod
    def of(cls, split: Split, labels: Labelling = UNLABELLED) -> Corpus:
        """Return the corpus of one data set."""
        return cls((Source("", split, labels),), np.ones(1))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources where there are several, else ()."""
        return tuple(source.name for source in self.sources) if len(self.sources) > 1 else ()

    @property
    def samples(self) -> int:
        """Samples that one epoch of each source has together."""
        return sum(source.samples for source in self.sources)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the label columns."""
        return self.sources[0].labels.columns

    def mixture(self, seed: int) -> Mixture:
        """Return the order of the samples of all sources."""
        chains = [source.chain(chain_seed(seed, number)) for number, source in enumerate(self.sources)]
        return Mixture(chains, self.share, seed)

    def intensities(self, default: Intensity) -> tuple[Intensity, ...]:
        """Return the intensity of each source."""
        return tuple(source.intensity(default) for source in self.sources)

    def body_thresholds(self, default: float) -> tuple[float, ...]:
        """Return the threshold in HU above which a pixel of each source belongs to the body."""
        own = (source.body_threshold_hu for source in self.sources)
        return tuple(default if each is None else each for each in own)

    def sequences(self, source: int, names: Sequence[str]) -> frozenset[str]:
        """Return which of the sequences that a training reads are read of a source."""
        own = self.sources[source].sequences
        return frozenset(names if own is None else own)
