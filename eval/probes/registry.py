"""The probes by name, as `probes` of a task and the sections of its settings call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from eval.config import DecoderKind, Kind, Level, TaskConfig
from eval.contract import Keeping, Probe
from eval.encoders import language
from eval.encoders.encoder import FrozenEncoder
from eval.networks import fitting, frozen_decoder, tuning, volume_head
from eval.networks.adapters import Method
from eval.networks.baselines import Architecture
from eval.probes import (
    anomaly,
    attentive,
    cox,
    few_shot,
    few_shot_anomaly,
    knn,
    linear,
    logistic,
    mil,
    patch_knn,
    region,
    retrieval,
    ridge,
    subsets,
    zero_shot,
)
from meddap.settings import SettingsError

_LABELS: tuple[Kind, ...] = ("binary", "multiclass", "multilabel", "segmentation")  # segmentation: presence in a slice
_NETWORK: tuple[Kind, ...] = ("binary", "multiclass", "multilabel", "regression", "segmentation")
_MAPS: tuple[Kind, ...] = ("segmentation",)
_SLICE: tuple[Level, ...] = ("slice",)


def _keeping(module: Any, **words: str) -> Keeping:
    """Return how the heads of a module are kept, by its `parts` and `restore`."""
    return Keeping(module.parts, partial(module.restore, **words) if words else module.restore)


def _decoder(name: str, kind: DecoderKind, levels: tuple[Level, ...] = ("slice", "volume")) -> Probe:
    fit, blocks = partial(frozen_decoder.fit, kind=kind), partial(frozen_decoder.blocks, kind=kind)
    return Probe(name, _MAPS, "patches", fit, _keeping(frozen_decoder, kind=kind), blocks, levels)


def _tuned(name: str, method: Method) -> Probe:
    fit, blocks = partial(tuning.fit, method=method), partial(tuning.blocks, method=method)
    return Probe(name, _NETWORK, tuning.needs, fit, _keeping(tuning, method=method), blocks)


def _scratch(name: Architecture, kinds: tuple[Kind, ...]) -> Probe:
    return Probe(name, kinds, "images", partial(fitting.fit_from_scratch, kind=name), _keeping(fitting, kind=name))


_MANY = "it is many fits that ask how many labels are needed; logistic keeps one on all"

_ROWS = (
    # classical models on frozen features
    Probe("knn", (*_LABELS, "regression"), "pooled", knn.fit, _keeping(knn)),
    Probe("logistic", _LABELS, "pooled", logistic.fit, _keeping(logistic)),
    Probe("linear", _LABELS, "pooled", linear.fit, _keeping(linear)),
    Probe("attentive", _LABELS, "patches", attentive.fit, _keeping(attentive), levels=_SLICE),
    Probe("mil", _LABELS, "pooled", mil.fit, _keeping(mil), levels=("volume",)),
    Probe("few_shot", _LABELS, "pooled", few_shot.fit_shots, _MANY, refits=False),
    Probe("fractions", _LABELS, "pooled", few_shot.fit_fractions, _MANY, refits=False),
    Probe("region", _MAPS, "patches", region.fit, "it names structures under masks that are given", levels=_SLICE),
    Probe(
        "retrieval",
        ("retrieval", "multiclass", "binary"),
        "pooled",
        retrieval.fit,
        "it ranks images and predicts nothing; meddap embed writes the vectors to search in",
    ),
    Probe("zero_shot", (*_LABELS, "anomaly"), "pooled", zero_shot.fit, _keeping(zero_shot), lacks=language.lacking),
    Probe("anomaly", ("anomaly",), "patches", anomaly.fit, _keeping(anomaly), levels=_SLICE),
    Probe(
        "few_shot_anomaly",
        ("anomaly",),
        few_shot_anomaly.needs,
        few_shot_anomaly.fit,
        "it is many fits that ask what few slices give; anomaly keeps one on all",
        levels=_SLICE,
        refits=False,
        lacks=few_shot_anomaly.lacking,
    ),
    Probe("ridge", ("regression",), "pooled", ridge.fit, _keeping(ridge)),
    Probe("cox", ("survival",), "pooled", cox.fit, _keeping(cox)),
    # structures drawn from frozen patch features
    _decoder("segmentation", "linear", _SLICE),
    _decoder("primus", "primus"),
    _decoder("unet_decoder", "unet"),
    Probe("patch_knn", _MAPS, "patches", patch_knn.fit, _keeping(patch_knn), patch_knn.blocks),
    Probe("stack3d", _NETWORK, "patches", volume_head.fit, _keeping(volume_head), volume_head.blocks),
    # the encoder trained further
    _tuned("lora", "lora"),
    _tuned("bitfit", "bitfit"),
    _tuned("finetune", "full"),
    # networks from scratch: what the labels alone would have bought
    _scratch("unet", _MAPS),
    _scratch("transunet", _MAPS),
    _scratch("cnn", _NETWORK),
    # an encoder of several MRI sequences, given fewer of them
    Probe("subsets", ("binary", "multiclass"), "pooled", subsets.fit, "its line is the one that logistic keeps"),
)
PROBES = {probe.name: probe for probe in _ROWS}
# networks that read no encoder: they say nothing on one
SCRATCH = tuple(name for name, probe in PROBES.items() if probe.needs == "images")
# probes that see images whatever their row says that they read
SEE_IMAGES = ("unet_decoder", "lora", "bitfit", "finetune")


def find(names: Sequence[str], kind: Kind, level: Level, refit: bool = False) -> dict[str, Probe]:
    """Return some probes by name. Raises SettingsError for an unknown one, or one that does not serve such a task."""
    if strange := sorted(set(names) - set(PROBES)):
        raise SettingsError(f"probes: {', '.join(strange)}: no such probe; there are {', '.join(PROBES)}")
    found = {name: PROBES[name] for name in names}
    for name, probe in found.items():
        if kind not in probe.kinds:
            raise SettingsError(f"probes: {name} serves tasks of kind {', '.join(probe.kinds)}; this one is {kind}")
        if level not in probe.levels:
            raise SettingsError(f"probes: {name} serves level {' and '.join(probe.levels)}; this task's is {level}")
        if refit and not probe.refits:
            raise SettingsError(f"refit=true: {name} asks what few training labels give; drop that probe, or refit")
    return found


def answerable(probes: Mapping[str, Probe], encoder: FrozenEncoder) -> tuple[dict[str, Probe], list[str]]:
    """Return the probes that an encoder can be asked, and a line for each of the others that says why not.

    Raises SettingsError where none is left.
    """
    why = {name: probe.lacks(encoder) if probe.lacks else "" for name, probe in probes.items()}
    lines = [f"{name}: no row for {encoder.source}: {reason}" for name, reason in why.items() if reason]
    if lines and len(lines) == len(probes):
        raise SettingsError(f"{lines[0]}; name a probe that it can be asked")
    return {name: probe for name, probe in probes.items() if not why[name]}, lines


def blocks(probes: Iterable[Probe], task: TaskConfig, depth: int) -> tuple[int, ...]:
    """Return the blocks, counted from 0, whose patch features some of the probes read."""
    wanted = {depth - 1, *(number % depth for number in task.blocks)}
    for probe in probes:
        if probe.reads(task) == "patches" and probe.blocks:
            wanted |= {number % depth for number in probe.blocks(task, depth)}
    return tuple(sorted(wanted))
