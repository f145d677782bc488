"""The probes by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from types import ModuleType

from eval.config import TaskConfig
from meddap.settings import SettingsError

PROBES = {
    "knn": "eval.probes.knn",
    "logistic": "eval.probes.logistic",
    "linear": "eval.probes.linear",
    "attentive": "eval.probes.attentive",
    "mil": "eval.probes.mil",
    "few_shot": "eval.probes.few_shot",
    "fractions": "eval.probes.fractions",
    "region": "eval.probes.region",
    "retrieval": "eval.probes.retrieval",
    "anomaly": "eval.probes.anomaly",
    "ridge": "eval.probes.ridge",
    "cox": "eval.probes.cox",
    "segmentation": "eval.probes.segmentation",
    "primus": "eval.probes.primus",
    "unet_decoder": "eval.probes.unet_decoder",
    "patch_knn": "eval.probes.patch_knn",
    "stack3d": "eval.probes.stack3d",
    "lora": "eval.probes.lora",
    "bitfit": "eval.probes.bitfit",
    "finetune": "eval.probes.finetune",
    "unet": "eval.probes.unet",
    "transunet": "eval.probes.transunet",
    "cnn": "eval.probes.cnn",
    "subsets": "eval.probes.subsets",
}


def find(names: Sequence[str], kind: str, level: str, refit: bool = False) -> dict[str, ModuleType]:
    """The modules of some probes. Raises SettingsError for one that is not there or does not serve such a task."""
    if strange := sorted(set(names) - set(PROBES)):
        raise SettingsError(f"probes: {', '.join(strange)}: no such probe; there are {', '.join(PROBES)}")
    modules = {name: import_module(PROBES[name]) for name in names}
    for name, module in modules.items():
        if kind not in module.KINDS:
            raise SettingsError(f"probes: {name} serves tasks of kind {', '.join(module.KINDS)}; this one is {kind}")
        if level not in (levels := getattr(module, "LEVELS", ("slice", "volume"))):
            raise SettingsError(f"probes: {name} serves level {' and '.join(levels)}; this task's is {level}")
        if refit and not getattr(module, "REFITS", True):
            raise SettingsError(f"refit=true: {name} asks what few training labels give; drop that probe, or refit")
    return modules


def needs(module: ModuleType, task: TaskConfig) -> str:
    """What a probe reads for this task: its NEEDS, which may be a function of the task."""
    return module.NEEDS(task) if callable(module.NEEDS) else module.NEEDS


def blocks(modules: Iterable[ModuleType], task: TaskConfig, depth: int) -> tuple[int, ...]:
    """Blocks, counted from 0, whose patch features some of the probes read."""
    wanted = {depth - 1, *(number % depth for number in task.blocks)}
    for module in modules:
        if needs(module, task) == "patches" and hasattr(module, "blocks"):
            wanted |= {number % depth for number in module.blocks(task, depth)}
    return tuple(sorted(wanted))
