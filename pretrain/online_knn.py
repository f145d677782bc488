"""During training: what nearest neighbours in the teacher's features know of patients that no gradient saw.

Slices of validation patients ask their nearest neighbours among training slices which organs (or class labels) they
hold; the AUROC, averaged over labels, goes into the metrics. It steers nothing: a sign that features get better or
worse, long before a probe on test patients. A function of weights, data and settings alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata

from data_prep.schema import Slice, Split
from meddap.settings import SettingsError
from pretrain.config import KnnConfig
from pretrain.data import stream, views
from pretrain.data.corpus import Corpus
from pretrain.data.intensity import Intensity
from pretrain.model.vit import VisionTransformer

log = logging.getLogger("pretrain")

_BATCH = 32  # slices of a forward pass


@dataclass(frozen=True)
class Side:
    """Slices of one split: their numbers in it, and labels (N, L) of 1 present, 0 absent, −1 unknown."""

    split: Split
    numbers: np.ndarray
    labels: np.ndarray


class CorpusKnn:
    """The neighbours of each source of a training by itself.

    scored  by name
    """

    def __init__(self, scored: Mapping[str, OnlineKnn]) -> None:
        self.scored = scored

    def score(self, model: VisionTransformer, precision: AbstractContextManager) -> dict[str, float]:
        """Return `knn/auroc`; of several sources their mean, and `knn/NAME/auroc` of each."""
        found = {name: each.score(model, precision) for name, each in self.scored.items()}
        scores = {name: each["knn/auroc"] for name, each in found.items() if each}
        mean = {"knn/auroc": float(np.mean(list(scores.values())))} if scores else {}
        return mean | {f"knn/{name}/auroc": score for name, score in scores.items() if name}


def of_corpus(
    corpus: Corpus, sequences: tuple[str, ...], config: KnnConfig, size: int, intensity: Intensity
) -> CorpusKnn:
    """Return the neighbours of a training's sources; of several, those that have validation patients and labels.

    Raises SettingsError where none has.
    """
    scored, reasons = {}, []
    for source in corpus.sources:
        own = source.intensity(intensity)
        read = sequences if source.sequences is None else source.sequences
        try:
            scored[source.name if corpus.names else ""] = OnlineKnn(str(source.split.root), read, config, size, own)
        except SettingsError as error:
            reasons.append(str(error))
    if not scored:
        raise SettingsError(reasons[0])
    for reason in reasons:
        log.info("no nearest neighbours of a source: %s", reason)
    return CorpusKnn(scored)


class OnlineKnn:
    """Scores a teacher's cls tokens. Raises SettingsError where the data set has no validation patients or labels."""

    def __init__(self, root: str, sequences: tuple[str, ...], config: KnnConfig, size: int, intensity: Intensity):
        self.config, self.size, self.intensity, self.sequences = config, size, intensity, sequences
        chosen = {
            name: _chosen(Split(root, name), count)
            for name, count in (("train", config.train_slices), ("val", config.val_slices))
        }
        columns = sorted({column for *_, slices in chosen.values() for found in slices for column in found})
        if not columns:
            raise SettingsError(f"knn.every={config.every}: {root} has no labels; set knn.every=0")
        self.train, self.val = (
            Side(split, numbers, label_table(slices, columns)) for split, numbers, slices in chosen.values()
        )

    @torch.no_grad()
    def score(self, model: VisionTransformer, precision: AbstractContextManager) -> dict[str, float]:
        """Return `knn/auroc`, the mean over labels that some validation slices have and others lack, if any."""
        memory, queries = (self._features(model, side, precision) for side in (self.train, self.val))
        found = []
        for column in range(self.train.labels.shape[1]):
            known, asked = (side.labels[:, column] >= 0 for side in (self.train, self.val))
            truth = self.val.labels[asked, column] == 1
            if known.any() and truth.any() and not truth.all():
                present = torch.from_numpy(self.train.labels[known, column] == 1)
                share = votes(memory[known], present, queries[asked], self.config.k, self.config.temperature)
                found.append(auroc(share.numpy(), truth))
        return {"knn/auroc": float(np.mean(found))} if found else {}

    def _features(self, model: VisionTransformer, side: Side, precision: AbstractContextManager) -> torch.Tensor:
        device, found = model.cls_token.device, []
        for start in range(0, len(side.numbers), _BATCH):
            numbers, channels = side.numbers[start : start + _BATCH], self.intensity.channels
            batch = stream.gather(side.split, numbers, self.sequences, channels=channels).to(device)
            with precision:
                crops = views.whole(batch, self.size, self.intensity, self.sequences)
                found.append(model(crops, present=batch.present, sequences=self.sequences).cls.float().cpu())
        return F.normalize(torch.cat(found), dim=-1)


def votes(
    memory: torch.Tensor, present: torch.Tensor, queries: torch.Tensor, k: int, temperature: float
) -> torch.Tensor:
    """Return the (M,) share of votes for presence among the k nearest of (N, D) unit vectors.

    A vote is e^(cosine / temperature). present (N,) bool; queries (M, D) unit vectors.
    """
    close, nearest = (queries @ memory.T).topk(min(k, len(memory)), dim=1)
    weights = torch.softmax(close / temperature, dim=1)
    return (weights * present[nearest]).sum(dim=1)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve by ranks, ties counting half; both classes must be there."""
    ranks, count = rankdata(scores), int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def _chosen(split: Split, count: int) -> tuple[Split, np.ndarray, list[dict[str, int]]]:
    """Choose at most `count` evenly spaced slices of a split (shards are random samples), and their labels."""
    if not len(split):
        raise SettingsError(f"{split.root}: split {split.name!r} holds no slices, which knn.every needs")
    numbers = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(np.int64))
    names = {int(value): name for value, name in split.dataset["labels"].items()}
    return split, numbers, [_labels(split[int(number)], names, split.dataset["ignore"]) for number in numbers]


def _labels(sample: Slice, names: dict[int, str], ignored: list[int]) -> dict[str, int]:
    """Organs that are annotated in the sample's series, present or not, and its class labels one against the rest.

    An organ that is not seen is unknown where pixels are `ignored`, as it may lie there.
    """
    drawn = set() if sample.labelmap is None else set(np.unique(sample.labelmap).tolist())
    known = drawn if drawn.intersection(ignored) else set(sample.annotated)
    organs = {names.get(value, str(value)): int(value in drawn) for value in sample.annotated if value in known}
    return organs | {f"{name}={value:g}": 1 for name, value in sample.labels.items()}


def label_table(slices: list[dict[str, int]], columns: list[str]) -> np.ndarray:
    """Return (N, L) labels as in Side; a slice's class label excludes the other values of its name."""
    table = np.full((len(slices), len(columns)), -1, np.int8)
    for row, found in zip(table, slices):
        classes = {name.partition("=")[0] for name in found if "=" in name}
        for place, column in enumerate(columns):
            row[place] = found.get(column, 0 if column.partition("=")[0] in classes and "=" in column else -1)
    return table
