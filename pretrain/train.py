"""Pretraining: walks the stages of a configuration, each from the newest checkpoint that it has.

    python -m pretrain.train --config pretrain/configs/quickstart.yaml data.root=SHARDS

A stage starts from, in this order:
    1. its own newest whole checkpoint (the run goes on as if it had never stopped);
    2. the backbone that its `init_from` names, with fresh heads;
    3. the last checkpoint of the stage before it, with a fresh optimizer;
    4. the weights that `seed` gives.
A finished stage is not run again.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from data_prep.disk import BusyError, sole_writer, write_atomic
from data_prep.schema import SchemaError, Split
from data_prep.settings import SettingsError
from pretrain import accumulate, build, checkpoint, ema, initialise, masking, mixture, optim, step, stream
from pretrain import views
from pretrain import config as configuration
from pretrain.checkpoint import Checkpoint, CheckpointError
from pretrain.config import Config, StageConfig
from pretrain.machine import autocast, pick_device, uses_bf16
from pretrain.metrics import Metrics
from pretrain.online_knn import OnlineKnn
from pretrain.published import WeightsError
from pretrain.vit import VisionTransformer
from pretrain.watch import Watch

log = logging.getLogger("pretrain")


class TrainingError(RuntimeError):
    """The run cannot go on; the message says at which step, why and what to do."""


def train_stage(config: Config, name: str, before: str | None) -> None:
    """Run stage `name` to its last step. `before` is the stage whose weights it starts from, if any."""
    stage = configuration.stage(config, name)
    folder = run_folder(config) / name
    split = Split(config.data.root, config.data.split)
    if not len(split):
        raise TrainingError(
            f"{config.data.root}: split {split.name!r} holds no slices; shard with another `split` or salt"
        )

    # ---------------------------------------------------------------- model and optimizer
    device = pick_device(config.machine.device)
    student, teacher = build.student_and_teacher(config, device)
    optimizer = build.optimizer(stage, student, config.model.depth)
    plan = mixture.plan(stage, config.seed)
    parts = parts_of(config, name, stage, plan)
    anchor = gram_teacher(config, stage, device)
    for network in (student.backbone, teacher.backbone, *([anchor] if anchor is not None else [])):
        build.prepare(network, config.machine, device)
    wanted = configuration.anchored_steps(config, name)
    names = {parameter: key for key, parameter in student.named_parameters()}
    schedules = build.schedules(stage)
    precision = autocast(config.machine.precision, device)

    # ---------------------------------------------------------------- where it starts
    identity = {"stage": name, "data_digest": split.dataset["digest"], "recipe": configuration.recipe(config, name)}

    def save(done: int) -> None:
        tensors = {
            "student": student.state_dict(),
            "teacher": teacher.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(optimizer, names),
        }
        if anchor is not None:
            tensors["gram"] = anchor.state_dict()
        seen = int(plan.starts[done])
        position = {"samples": seen, "epochs": seen / len(split)}
        state = {**identity, "step": done, "stream": position, "git_commit": checkpoint.git_commit()}
        checkpoint.save(folder, tensors, state, configuration.as_text(config))
        checkpoint.prune(folder, config.save.keep_last, config.save.keep_every, wanted)

    own = checkpoint.newest(folder)
    origin = own or (finished(config, before) if before and not stage.init_from else None)
    if origin is not None:
        student.load_state_dict(origin.tensors("student"))
        teacher.load_state_dict(origin.tensors("teacher"))
    elif stage.init_from:
        found = initialise.weights_of(stage.init_from)
        initialise.load(student.backbone, found, config.model, config.intensity)
        teacher.load_state_dict(student.state_dict())
        log.info("stage %s: starts from %s (%s)", name, found.source, found.kind)
    if own is not None:
        check_identity(own, identity)
        checkpoint.load_optimizer(optimizer, own.tensors("optimizer"), names)
        if anchor is not None:
            anchor.load_state_dict(own.tensors("gram"))
    else:
        save(0)
    start = own.step if own else 0
    if start == stage.steps:
        log.info("stage %s: all %d steps were done before", name, stage.steps)
        return
    log.info(
        "stage %s: steps %d to %d, batch %d of %d slices, %s %s",
        name,
        start,
        stage.steps,
        stage.batch_size,
        len(split),
        device,
        "bf16" if uses_bf16(config.machine.precision, device) else "float32",
    )

    # ---------------------------------------------------------------- data
    settings = [build.view_settings(variant, config.intensity) for variant in plan.variants]
    batches = stream.batches(
        split,
        batch_size=plan.sizes,
        seed=config.seed,
        start=start,
        sequences=tuple(config.data.sequences),
        threads=config.machine.decode_threads,
        prefetch=config.machine.prefetch,
        pin=device.type == "cuda",
    )
    metrics = Metrics(
        folder,
        stage=name,
        start=start,
        steps=stage.steps,
        log_every=config.machine.log_every,
        tensorboard=config.machine.tensorboard,
    )

    neighbours = None
    if config.knn.every:
        sequences, size = tuple(config.data.sequences), stage.crops.global_size
        neighbours = OnlineKnn(config.data.root, sequences, config.knn, size, build.intensity(config.intensity))

    # ---------------------------------------------------------------- loop
    watch = Watch()
    try:
        for number in range(start, stage.steps):
            began = time.perf_counter()
            now = {key: float(values[number]) for key, values in schedules.items()}
            batch = next(batches)
            waited = time.perf_counter() - began
            batch = batch.to(device)
            seen = settings[plan.choice[number]]
            crops = views.make(batch, seen, seed=config.seed)
            masks = masking.sample(
                (seen.global_size // config.model.patch_size,) * 2,
                batch.sample,
                batch.epoch,
                config.seed,
                probability=stage.masks.probability,
                ratio=tuple(stage.masks.ratio),
                min_aspect=stage.masks.min_aspect,
            ).to(device)
            if number == 0:
                save_crops(folder / "crops.npz", crops)
            frozen = number < stage.optim.freeze_last_layer_steps
            optim.set_step(optimizer, lr=now["lr"], weight_decay=now["weight_decay"], freeze_last_layer=frozen)
            draws = build.draws(config, stage, batch, number).to(device)
            weights = build.step_weights(stage, now)
            batch_parts = step.parts(crops, masks, draws, parts[int(plan.sizes[number])])
            losses = step.gradients(
                student, teacher, batch_parts, weights, gram_teacher=anchor, precision=precision
            )
            if number < stage.optim.freeze_backbone_steps:
                student.backbone.zero_grad(set_to_none=True)  # without a gradient AdamW leaves it as it is
            values = finite(name, number, losses, optim.clip(student, stage.optim.clip))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(teacher, student, now["teacher_momentum"])
            if anchor is not None and build.refreshes(stage.gram, number + 1):
                anchor.load_state_dict(teacher.backbone.state_dict())
            seconds = time.perf_counter() - began
            size = int(plan.sizes[number])
            speed = {"images_per_s": size / seconds, "wait_share": waited / seconds}
            row = {"step": number, "stage": name, "batch": size, "crop": seen.global_size, **now, **values, **speed}
            if neighbours is not None and ((number + 1) % config.knn.every == 0 or number + 1 == stage.steps):
                row |= neighbours.score(teacher.backbone, precision)
            metrics.write(row)
            for warning in watch.look(row):
                log.warning("warning: stage %s, %s", name, warning)
            if number + 1 == stage.steps or (number + 1) % config.save.every == 0 or number + 1 in wanted:
                save(number + 1)
    finally:
        batches.close()
        metrics.close()


def parts_of(config: Config, name: str, stage: StageConfig, plan: mixture.Plan) -> dict[int, list[int]]:
    """How each size of batch of a stage is divided. Raises SettingsError."""
    return accumulate.plan(sorted(set(plan.sizes.tolist())), config.machine.accumulate, stage.loss, name)


def finite(
    stage: str, number: int, losses: dict[str, torch.Tensor], norms: dict[str, torch.Tensor]
) -> dict[str, float]:
    """The scalars of a step as numbers, brought to the host at once.

    Raises TrainingError where a loss or a gradient norm is not finite: before the weights change.
    """
    named = {(key if "/" in key else f"loss/{key}"): value for key, value in losses.items()}
    named |= {f"gradient/{part}": norm for part, norm in norms.items()}
    numbers = torch.stack([value.detach().float() for value in named.values()]).tolist()
    values = dict(zip(named, numbers))
    for key, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"stage {stage}, step {number}: {key} is {value}; the last checkpoint is kept, "
                "start again with a lower stages.*.optim.lr.peak or machine.precision=float32"
            )
    return values


def gram_teacher(config: Config, stage: StageConfig, device: torch.device) -> VisionTransformer | None:
    """The frozen backbone that a stage is anchored to, or None. Raises TrainingError where it is not there."""
    if not stage.gram.teacher_from:
        return None
    name, number = configuration.anchor(stage.gram.teacher_from)
    found = finished(config, name)
    if number is not None and number != found.step:
        path = run_folder(config) / name / f"{number:08d}"
        if not path.is_dir():
            raise TrainingError(
                f"{path}: not kept, but gram.teacher_from={stage.gram.teacher_from}; name a step that is"
            )
        found = checkpoint.read(path)
    model = build.backbone(config.model).to(device).requires_grad_(False).eval()
    tensors = found.tensors("teacher").items()
    model.load_state_dict(
        {key.removeprefix("backbone."): value for key, value in tensors if key.startswith("backbone.")}
    )
    return model


def finished(config: Config, name: str) -> Checkpoint:
    """The last checkpoint of stage `name`. Raises TrainingError where the stage is not finished."""
    found, steps = checkpoint.newest(run_folder(config) / name), configuration.stage(config, name).steps
    if found is None or found.step < steps:
        reached = "has not begun" if found is None else f"stands at step {found.step} of {steps}"
        raise TrainingError(f"stage {name} {reached}; run it first: --stage {name}")
    return found


def check_identity(own: Checkpoint, identity: dict) -> None:
    """Raises TrainingError where the run on the disk was made by another recipe or from other data."""
    if own.state["data_digest"] != identity["data_digest"]:
        raise TrainingError(f"{own.path}: the shards changed since this run began; give the run another name=")
    for key, value in identity["recipe"].items():
        if (was := own.state["recipe"].get(key)) != value:
            raise TrainingError(
                f"{own.path}: {key} was {was} when this run began, now {value}; give the run another name="
            )


def save_crops(path: Path, crops: views.Views) -> None:
    """Keep the first step's crops, normalised as the network sees them, for the report."""
    memory = io.BytesIO()
    np.savez_compressed(
        memory, global_crops=crops.global_crops.cpu().numpy(), local_crops=crops.local_crops.cpu().numpy()
    )
    write_atomic(path, memory.getvalue())


def run_folder(config: Config) -> Path:
    """Folder of the run: OUTPUT/NAME."""
    return Path(config.output) / config.name


def run(config: Config, only: str | None) -> None:
    """Walk the stages in the order of the configuration, or run stage `only`."""
    stages = list(config.stages)
    if only is not None and only not in stages:
        raise SettingsError(f"--stage {only}: no such stage, the configuration has {', '.join(stages)}")
    for name in stages:  # a misspelt key of the last stage, or parts that cannot be, is found before the first begins
        stage = configuration.stage(config, name)
        parts_of(config, name, stage, mixture.plan(stage, config.seed))
    with sole_writer(run_folder(config)):
        write_atomic(run_folder(config) / "config.yaml", configuration.as_text(config).encode())
        for before, name in zip([None, *stages], stages):
            if only in (None, name):
                train_stage(config, name, before)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.train",
        description="Adapt a vision transformer to sharded images by self-distillation.",
        epilog="A second start of the same command goes on where the first one stopped.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, see pretrain/configs/")
    parser.add_argument("--stage", metavar="NAME", help="run this stage alone")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. stages.adapt.steps=100 machine.device=cpu"
    )
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run(configuration.load(options.config, options.overrides), options.stage)
    except (SettingsError, SchemaError, CheckpointError, WeightsError, BusyError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or options.config
        print(f"error: {where}: {error.strerror}; the last checkpoint is whole, start again to go on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
