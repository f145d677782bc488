"""Student, teacher and Gram teacher of a stage, and the weights that they start from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pretrain import build, corpora, parallel
from pretrain.config import (
    DRAWS,
    Config,
    StageConfig,
    gram_teacher_place,
    older_recipe,
    recorded,
)
from pretrain.model.student_teacher import Model
from pretrain.model.vit import VisionTransformer
from pretrain.objective.sinkhorn import Centring
from pretrain.parallel import Spread
from pretrain.runs import TrainingError, folder_of
from pretrain.runtime import checkpoint
from pretrain.runtime.checkpoint import Checkpoint, Tensors
from pretrain.runtime.device import uses_bf16
from pretrain.runtime.distributed import World
from pretrain.weights import initialise

log = logging.getLogger("pretrain")


@dataclass(frozen=True)
class Networks:
    """The networks of a stage, spread over the processes, and what else a checkpoint holds.

    ddp_student   called in the student's place, so that gradients are averaged; its parameters are the student's
    gram_teacher  the frozen backbone that holds the patches' similarities, or None
    centring      the centres of the teacher's targets, or None where Sinkhorn-Knopp balances them
    """

    student: Model
    ddp_student: nn.Module
    teacher: Model
    gram_teacher: VisionTransformer | None
    spread: Spread
    optimizer: torch.optim.Optimizer
    centring: Centring | None

    def tensors(self) -> dict[str, Tensors]:
        """Return what a checkpoint holds: group → tensors."""
        groups = {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(self.optimizer, self._names()),
        }
        if self.gram_teacher is not None:
            groups["gram"] = self.gram_teacher.state_dict()
        if self.centring is not None:
            groups["centres"] = self.centring.tensors()
        return groups

    def restore(self, own: Checkpoint | None, origin: Checkpoint | None) -> None:
        """Fill in the weights of `origin`; of the stage's `own` checkpoint the optimizer and the Gram teacher, too."""
        if origin is not None:
            origin.fill("student", self.student.state_dict())
            origin.fill("teacher", self.teacher.state_dict())
        if own is not None:
            checkpoint.load_optimizer(self.optimizer, own, self._names())
            if self.gram_teacher is not None:
                own.fill("gram", self.gram_teacher.state_dict())
        if self.centring is not None and origin is not None and origin.has("centres"):
            origin.fill("centres", self.centring.tensors())

    def _names(self) -> dict[torch.Tensor, str]:
        return {parameter: name for name, parameter in self.student.named_parameters()}


def starting_points(
    config: Config, stage: StageConfig, before: str | None, identity: Mapping[str, Any], world: World
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Return the stage's own newest checkpoint and the one whose weights it starts from, each or None.

    The second is its own, or the last one of the stage `before` unless `init_from` names other weights. Raises
    TrainingError where the run was made by another recipe or where the stage before is not finished.
    """
    own = world.first_does(lambda: checkpoint.newest(folder_of(config) / identity["stage"]))
    if own is not None:
        check_identity(own, identity)
        return own, own
    if before and not stage.init_from:
        return None, world.first_does(lambda: finished(config, before))
    return None, None


def make(
    config: Config,
    name: str,
    stage: StageConfig,
    classes: Mapping[str, Sequence[str]],
    starts: tuple[Checkpoint | None, Checkpoint | None],
    device: torch.device,
    world: World,
) -> Networks:
    """Build the networks of stage `name`, spread them and fill in the weights from `starts` (`starting_points`).

    classes  names of the classes of each label column that they learn
    Raises MeddapError.
    """
    own, origin = starts
    student, teacher = build.student_and_teacher(config, device, classes)
    gram = gram_teacher(config, stage, device, world)
    frozen: list[Model | VisionTransformer] = [teacher] if gram is None else [teacher, gram]
    for backbone in (student.backbone, teacher.backbone, *([] if gram is None else [gram])):
        build.prepare(backbone, config.machine, device)
    if origin is None and stage.init_from:
        found = initialise.weights_of(stage.init_from)
        initialise.load(student.backbone, found, config.model, config.intensity)
        teacher.load_state_dict(student.state_dict())
        log.info("stage %s: starts from %s (%s)", name, found.source, found.kind)
    spread = Spread(
        parallel.kind(config.machine.parallel, world),
        world,
        device,
        bf16=uses_bf16(config.machine.precision, device),
        reshard=config.machine.reshard,
    )
    ddp_student = spread.student(student)
    for network in frozen:
        spread.frozen(network)
    optimizer = build.optimizer(stage, student, config.model.depth)
    centring = build.centring(config, stage, device)
    networks = Networks(student, ddp_student, teacher, gram, spread, optimizer, centring)
    networks.restore(own, origin)
    return networks


def finished(config: Config, name: str) -> Checkpoint:
    """Return the last checkpoint of stage `name`. Raises TrainingError where the stage is not finished."""
    found, steps = checkpoint.newest(folder_of(config) / name), recorded(config, name).steps
    if found is None or found.step < steps:
        reached = "has not begun" if found is None else f"stands at step {found.step} of {steps}"
        raise TrainingError(f"stage {name} {reached}; run it first: --stage {name}")
    return found


def gram_checkpoint(config: Config, teacher_from: str) -> Checkpoint:
    """Return the checkpoint that `gram.teacher_from` names. Raises TrainingError where it is missing."""
    name, step = gram_teacher_place(teacher_from)
    found = finished(config, name)
    if step is None or step == found.step:
        return found
    path = folder_of(config) / name / f"{step:08d}"
    if not path.is_dir():
        raise TrainingError(f"{path}: not kept, but gram.teacher_from={teacher_from}; name a step that was kept")
    return checkpoint.read(path)


def gram_teacher(config: Config, stage: StageConfig, device: torch.device, world: World) -> VisionTransformer | None:
    """Return the frozen backbone of a stage with Gram anchoring, else None. Raises TrainingError if it is missing."""
    teacher_from = stage.gram.teacher_from
    if not teacher_from:
        return None
    found = world.first_does(lambda: gram_checkpoint(config, teacher_from))
    model = build.backbone(config.model).to(device).requires_grad_(False).eval()
    tensors = found.tensors("teacher").items()
    model.load_state_dict(
        {key.removeprefix("backbone."): value for key, value in tensors if key.startswith("backbone.")}
    )
    return model


def check_identity(own: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Raise TrainingError where the run on the disk was made by another recipe or from other data.

    Settings newer than the version that began the run had their defaults then, or did what that version did.
    """
    corpora.check_identity(own.path, own.state.get("sources", {}), identity.get("sources", {}))
    if own.state["data_digest"] != identity["data_digest"]:
        raise TrainingError(f"{own.path}: the shards changed since this run began; give the run another name=")
    recipe = older_recipe(identity["stage"]) | own.state["recipe"]
    if (drew := recipe["draws"]) != DRAWS:
        raise TrainingError(
            f"{own.path}: draws={drew}: a seed gave other crops, masks and batches in the version that began this run "
            f"(now draws={DRAWS}); finish it with the program in its folder code/, or give the run "
            "another name="
        )
    for key, value in identity["recipe"].items():
        if (was := recipe.get(key)) != value:
            raise TrainingError(
                f"{own.path}: {key} was {was} when this run began, now {value}; give the run another name="
            )
