"""What a training reads: one data set, or several that are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_prep.schema import Split
from pretrain.data.labels import UNLABELLED, Labelling
from pretrain.data.mixture import Mixture, chain_seed
from pretrain.data.order import Chain


@dataclass(frozen=True)
class Source:
    """A split of one data set, and how it is read.

    name       "" where a training has one data set without a name
    sequences  names of the sequences that are read of it, if a slice has them; None: all that the training reads
    window     HU mapped to 0 and 1, or None: the training's own
    weights    (N,) float32 how often each sample comes by the others, or None: all alike
    """

    name: str
    split: Split
    labels: Labelling = UNLABELLED
    sequences: tuple[str, ...] | None = None
    window: tuple[float, float] | None = None
    weights: np.ndarray | None = None

    @property
    def samples(self) -> int:
        """Samples of one of its epochs."""
        return self.labels.samples(self.split)

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

    def windows(self, default: tuple[float, float]) -> tuple[tuple[float, float], ...]:
        """Return the window in HU of each source."""
        return tuple(source.window or default for source in self.sources)

    def sequences(self, source: int, names: Sequence[str]) -> frozenset[str]:
        """Return which of the sequences that a training reads are read of a source."""
        own = self.sources[source].sequences
        return frozenset(names if own is None else own)
