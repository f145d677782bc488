"""The data of a training: its sources opened and checked, with the labels that they share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep import schema
from data_prep.schema import CT, Split
from meddap.settings import SettingsError
from pretrain import shares
from pretrain.config import Config, DataConfig, SourceConfig, sources_of
from pretrain.data import labels
from pretrain.data.corpus import Corpus, Source
from pretrain.data.intensity import Level
from pretrain.data.labels import Labelling
from pretrain.data.mixture import LEAST_SHARE
from pretrain.data.order import MOST_SOURCES
from pretrain.runs import TrainingError


def open_corpus(config: Config) -> Corpus:
    """Return what a run is trained on. Raises MeddapError for data that are missing or do not fit the configuration."""
    data, every = config.data, config.data.sequences
    asked = sources_of(data)
    if len(asked) > MOST_SOURCES:
        raise SettingsError(f"data.sources: {len(asked)} sources; at most {MOST_SOURCES:,} are taken")
    splits = {name: _open(name, source, data.split) for name, source in asked.items()}
    _check_distinct(splits)
    schema.allow_open_files(sum(len(split.paths) for split in splits.values()))
    numbered = _class_numbers(data, splits)
    sources = []
    for name, source in asked.items():
        read = _sequences(name, source, splits[name], every)
        _check_channels(name, splits[name], every if read is None else read, config.model.channels)
        weights = _weights(name, source, splits[name])
        window = None if source.window is None else (source.window[0], source.window[1])
        known = _labelling(name, data, splits[name], numbered)
        if weights is not None and known.only is not None and not weights[known.only].any():
            raise SettingsError(f"{_key(name)}.sampling={source.sampling}: every labelled slice has the weight 0")
        levels = (source.mean, source.std) if config.model.channels == 1 else (source.rgb_mean, source.rgb_std)
        mean, std = (tuple(each) if isinstance(each, list) else each for each in levels)
        sources.append(Source(name, splits[name], known, read, window, weights, mean, std, source.body_threshold_hu))
    sizes, given = [source.samples for source in sources], [source.weight for source in asked.values()]
    share = shares.divide(list(asked), sizes, given, data.temperature)
    _check_shares(list(asked), share)
    return Corpus(tuple(sources), share)


def identity(corpus: Corpus) -> dict[str, Any]:
    """Return what a checkpoint records of the data.

    `data_digest` is the digest of the one data set, or of all; `sources`, where they have names, by name the digest,
    the share and what decides which samples are read, and how; `licenses` by name where they are known.
    """
    digests = [source.split.dataset["digest"] for source in corpus.sources]
    licenses = {source.name: schema.license_of(source.split.dataset) for source in corpus.sources}
    said = {"licenses": {name: one for name, one in licenses.items() if one}} if any(licenses.values()) else {}
    if not corpus.sources[0].name:
        return {"data_digest": digests[0], **said}
    known = {
        source.name: {
            "digest": digest,
            "samples": source.samples,
            "share": round(float(share), 12),
            "sequences": None if source.sequences is None else list(source.sequences),
            "window": None if source.window is None else list(source.window),
            "mean": _listed(source.mean),
            "std": _listed(source.std),
            "body_threshold_hu": source.body_threshold_hu,
            "sampling": None if source.weights is None else hashlib.sha256(source.weights.tobytes()).hexdigest(),
        }
        for source, digest, share in zip(corpus.sources, digests, corpus.share)
    }
    whole = digests[0] if len(digests) == 1 else schema.text_sha256("\n".join(digests))
    return {"data_digest": whole, "sources": known, **said}


def _listed(level: Level | None) -> float | list[float] | None:
    """Return a mean or deviation as JSON has it."""
    return list(level) if isinstance(level, tuple) else level


def check_identity(where: object, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise TrainingError where a run that began with the sources `was` is to go on with `now`."""
    remedy = "give the run another name="
    if bool(was) != bool(now):
        kind = "data.sources" if was else "data.root"
        raise TrainingError(f"{where}: this run began with {kind}; name its data as then, or {remedy}")
    for name in was:
        if name not in now:
            alike = [other for other in now if other not in was and now[other]["digest"] == was[name]["digest"]]
            gone = f"is now called {alike[0]}; call it {name} again" if alike else "is gone; name it again"
            raise TrainingError(f"{where}: the source {name} that this run began with {gone}, or {remedy}")
    for name in now:
        if name not in was:
            raise TrainingError(f"{where}: the source {name} was not there when this run began; {remedy}")
    for name in was:
        if was[name]["digest"] != now[name]["digest"]:
            raise TrainingError(f"{where}: the shards of the source {name} changed since this run began; {remedy}")
    for name in was:  # last, as shares follow from the sizes of all sources
        for key in now[name]:
            if was[name].get(key) != now[name][key]:
                changed = f"{key} of the source {name} was {was[name].get(key)} when this run began"
                raise TrainingError(f"{where}: {changed}, now {now[name][key]}; {remedy}")


def classes(config: DataConfig, corpus: Corpus) -> dict[str, list[str]]:
    """Return the names of the classes of each label column that a training learns."""
    return _classes(config, {source.name: source.split for source in corpus.sources})


def class_weights(config: DataConfig, corpus: Corpus) -> dict[str, tuple[float, ...]]:
    """Return the weights of the classes of each label column, by inverse frequency in what the training sees."""
    found = {}
    for column, names in classes(config, corpus).items():
        if len(corpus.sources) == 1:
            split = corpus.sources[0].split
            found[column] = labels.balanced(split.dataset["classes"][column]["samples"][split.name])
            continue
        counts = dict.fromkeys(names, 0.0)
        for source, share in zip(corpus.sources, corpus.share):
            known = source.split.dataset["classes"].get(column, {"names": [], "samples": {source.split.name: []}})
            for name, count in zip(known["names"], known["samples"][source.split.name]):
                counts[name] += float(share) * count / len(source.split)
        found[column] = labels.balanced(list(counts.values()))
    return found


def described(corpus: Corpus) -> list[str]:
    """Return a line for each of several sources: how much of the training it is, and how long its epoch."""
    lines = []
    for source, share in zip(corpus.sources, corpus.share if corpus.names else ()):
        read = "" if source.sequences is None else f" ({', '.join(source.sequences)})"
        weighted = "" if source.weights is None else ", drawn by weights"
        lines.append(
            f"source {source.name}{read}: {share:.2%} of the samples, {source.samples:,} slices{weighted}; "
            f"seen once in {source.samples / share:,.0f} samples of the training"
        )
    return lines


def _key(name: str) -> str:
    return f"data.sources.{name}" if name else "data"


def _open(name: str, source: SourceConfig, split_name: str) -> Split:
    try:
        split = Split(source.root, split_name)
    except schema.SchemaError as error:
        raise schema.SchemaError(f"{_key(name)}.root: {error}") from error
    if source.window is not None and CT not in (there := schema.sequences_of(split.dataset) or {CT: 0}):
        raise SettingsError(
            f"{_key(name)}.window={source.window}: {source.root} has {', '.join(there)}, no {CT}, and a window in HU "
            "changes nothing there; leave it out"
        )
    if not len(split):
        raise TrainingError(
            f"{_key(name)}.root={source.root}: split {split.name!r} holds no slices; shard with another `split` or salt"
        )
    return split


def _weights(name: str, source: SourceConfig, split: Split) -> np.ndarray | None:
    """Return how often each sample of a source is drawn, or None: all alike."""
    if not source.sampling:
        return None
    try:
        return schema.read_weights(split, source.sampling)
    except schema.SchemaError as error:
        raise schema.SchemaError(f"{_key(name)}.sampling={source.sampling}: {error}") from error


def _check_shares(names: list[str], share: np.ndarray) -> None:
    """Raise SettingsError for a share that the mixture would not keep to one per cent of it."""
    least = int(np.argmin(share))
    if share[least] < LEAST_SHARE:
        raise SettingsError(
            f"{_key(names[least])}: its share of the samples is {share[least]:.1e}, and the least is "
            f"{LEAST_SHARE:.0e}; give it more weight, or weight=0 to leave it out"
        )


def _check_distinct(splits: Mapping[str, Split]) -> None:
    seen: dict[str, str] = {}
    for name, split in splits.items():
        other = seen.setdefault(split.dataset["digest"], name)
        if other != name:
            raise SettingsError(
                f"data.sources: {other} and {name} are the same data set; leave one out and give the other more weight"
            )


def _check_channels(name: str, split: Split, read: Sequence[str], channels: int) -> None:
    """Raise SettingsError where a sequence that is read has samples in colour and the model takes grey."""
    there = split.dataset["channels"]
    if coloured := [each for each in read if there.get(each, 1) > channels]:
        raise SettingsError(
            f"{_key(name)}: {coloured[0]} of {split.root} is in colour, and model.channels={channels} takes grey; "
            "set model.channels=3, or shard the pictures with colour=grey"
        )


def _sequences(name: str, source: SourceConfig, split: Split, every: list[str]) -> tuple[str, ...] | None:
    """Return which sequences are read of a source, in their order in a batch; None for the data set without a name."""
    there = schema.sequences_of(split.dataset)
    if not name:
        return None
    wanted = [each for each in every if not source.sequences or each in source.sequences]
    if there is None:
        return tuple(wanted)
    if missing := [each for each in source.sequences if each not in there]:
        raise SettingsError(f"{_key(name)}.sequences: {source.root} has no {missing[0]}; it has {', '.join(there)}")
    read = tuple(each for each in wanted if each in there)
    if not read:
        raise SettingsError(
            f"{_key(name)}: {source.root} has {', '.join(there)}, none of the sequences that are read, {every}; "
            "add one to model.sequences, and to data.sequences where that is given"
        )
    return read


def _classes(config: DataConfig, splits: Mapping[str, Split]) -> dict[str, list[str]]:
    """Return the names of each column's classes: those of the first source that has it, then what others add."""
    found: dict[str, list[str]] = {}
    for column in config.labels:
        there = [each["names"] for split in splits.values() if (each := split.dataset["classes"].get(column))]
        found[column] = list(dict.fromkeys(name for names in there for name in names))
    return found


def _class_numbers(config: DataConfig, splits: Mapping[str, Split]) -> dict[str, list[str]]:
    """Return `_classes`, checked. Raises SettingsError for a column that no data set has."""
    every: dict[str, None] = {}
    for split in splits.values():
        every |= dict.fromkeys(split.dataset["classes"])
    if strange := [column for column in config.labels if column not in every]:
        roots = " or ".join(str(split.root) for split in splits.values())
        has = f"it has {', '.join(every)}" if every else "it has none; shard with --labels CSV"
        raise SettingsError(f"data.labels: {strange[0]} is not a label column of {roots}: {has}")
    if config.only_labelled and not config.labels:
        raise SettingsError("data.only_labelled: no label column is named; set data.labels")
    return _classes(config, splits)


def _labelling(name: str, config: DataConfig, split: Split, numbered: Mapping[str, list[str]]) -> Labelling:
    """Return whose class labels a training sees of one source."""
    if not config.labels:
        return Labelling()
    there = split.dataset["classes"]
    own = {column: there[column]["names"] for column in numbered if column in there}
    if config.only_labelled and not own:
        raise SettingsError(
            f"{_key(name)}: has none of the label columns {config.labels}, and data.only_labelled=true leaves out what "
            "has no label; leave it out, or set data.only_labelled=false"
        )
    known = labels.known(split, config.labelled_share, list(own)) if own else np.zeros(len(split), bool)
    other = {
        column: [numbered[column].index(each) for each in names]
        for column, names in own.items()
        if list(names) != numbered[column]
    }
    return Labelling(tuple(config.labels), known, np.flatnonzero(known) if config.only_labelled else None, other)
