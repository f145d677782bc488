"""Pretraining: walks the stages of a configuration, each from the newest checkpoint that it has.

    python -m pretrain.train --config pretrain/configs/quickstart.yaml data.root=SHARDS
    torchrun --nproc-per-node=8 -m pretrain.train --config …          one process per GPU; srun starts it too

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
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from data_prep.schema import SchemaError, Split
from meddap.disk import BusyError, write_atomic
from meddap.settings import SettingsError
from pretrain import build, checks, distillation, optim, parallel, runs
from pretrain.config import Config, StageConfig, as_text, gram_teacher_steps, load, recipe
from pretrain.data import batch_plan, order, stream, views
from pretrain.data.batch_plan import BatchPlan
from pretrain.data.micro_batch import micro_batches
from pretrain.model import compiling
from pretrain.online_knn import OnlineKnn
from pretrain.runs import TrainingError, check_identity, finished, folder_of, gram_teacher, held
from pretrain.runtime import checkpoint, distributed, ranks
from pretrain.runtime.checkpoint import CheckpointError
from pretrain.runtime.device import autocast, gigabytes, pick_device, uses_bf16
from pretrain.runtime.distributed import ALONE, StoppedElsewhere, World, local
from pretrain.runtime.heartbeat import Heartbeat
from pretrain.runtime.memory import keep_freed_memory
from pretrain.runtime.metrics import CollapseMonitor, Metrics
from pretrain.runtime.preemption import Stop, Stopped
from pretrain.runtime.saving import Saver
from pretrain.weights import initialise
from pretrain.weights.published import WeightsError

log = logging.getLogger("pretrain")

_GO_ON = "the last checkpoint is kept, start again with a lower stages.*.optim.lr.peak or machine.precision=float32"


def train_stage(config: Config, name: str, before: str | None, code: str, world: World, stop: Stop) -> None:
    """Run stage `name` to its last step. `before` is the stage whose weights it starts from, if any.

    code  digest of the snapshot of the program that runs
    """
    stage = checks.stage(config, name)
    folder = folder_of(config) / name
    split = Split(config.data.root, config.data.split)
    if not len(split):
        raise TrainingError(
            f"{config.data.root}: split {split.name!r} holds no slices; shard with another `split` or salt"
        )
    labels = build.labelling(config.data, split)
    classes, class_weights = build.classes(config.data, split), build.class_weights(config.data, split)
    reads_voxels = build.reads_voxels(name, stage, split)
    plan = build.batch_plan(stage, config.seed)
    parts = parts_of(config, name, stage, plan, world)

    # ---------------------------------------------------------------- where it starts
    identity = {"stage": name, "data_digest": split.dataset["digest"], "recipe": recipe(config, name)}
    own = world.first_does(lambda: checkpoint.newest(folder))
    if own is not None:
        check_identity(own, identity)
    origin = own
    if own is None and before and not stage.init_from:
        origin = world.first_does(lambda: finished(config, before))
    start = own.step if own else 0
    if start == stage.steps:
        log.info("stage %s: all %d steps were done before", name, stage.steps)
        return

    # ---------------------------------------------------------------- model and optimizer
    device = pick_device(config.machine.device, world.local_rank)
    precision = autocast(config.machine.precision, device)
    bf16 = uses_bf16(config.machine.precision, device)
    student, teacher = build.student_and_teacher(config, device, classes)
    anchor = gram_teacher(config, stage, device, world)
    for network in (student.backbone, teacher.backbone, *([anchor] if anchor is not None else [])):
        build.prepare(network, config.machine, device)
    if origin is None and stage.init_from:
        found = initialise.weights_of(stage.init_from)
        initialise.load(student.backbone, found, config.model, config.intensity)
        teacher.load_state_dict(student.state_dict())
        log.info("stage %s: starts from %s (%s)", name, found.source, found.kind)
    spread = parallel.Spread(
        parallel.kind(config.machine.parallel, world), world, device, bf16=bf16, reshard=config.machine.reshard
    )
    learner = spread.student(student)
    for frozen in (teacher, *([anchor] if anchor is not None else [])):
        spread.frozen(frozen)
    optimizer = build.optimizer(stage, student, config.model.depth)
    names = {parameter: key for key, parameter in student.named_parameters()}
    schedules = build.schedules(stage)
    centring = build.centring(config, stage, device)
    if origin is not None:
        origin.fill("student", student.state_dict())
        origin.fill("teacher", teacher.state_dict())
    if own is not None:
        checkpoint.load_optimizer(optimizer, own, names)
        if anchor is not None:
            own.fill("gram", anchor.state_dict())
    if centring is not None and origin is not None and origin.has("centres"):
        origin.fill("centres", centring.tensors())

    # ---------------------------------------------------------------- what is kept
    wanted = gram_teacher_steps(config, name)
    saver = Saver(folder, world, spread.sharded)

    def save(done: int) -> None:
        tensors = {
            "student": student.state_dict(),
            "teacher": teacher.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(optimizer, names),
        }
        if anchor is not None:
            tensors["gram"] = anchor.state_dict()
        if centring is not None:
            tensors["centres"] = centring.tensors()
        seen = int(plan.starts[done])
        position = {"samples": seen, "epochs": seen / labels.samples(split)}
        made_by = {"git_commit": checkpoint.git_commit(), "code": code, "processes": world.size, "spread": spread.how}
        state = {**identity, "step": done, "stream": position, **made_by}
        state |= {"classes": classes} if classes else {}

        def kept() -> None:
            checkpoint.prune(folder, config.save.keep_last, config.save.keep_every, wanted)
            if done > start and (note := os.environ.get("MEDDAP_PROGRESS")):
                Path(note).touch()  # slurm/pretrain.sh looks for it: another start is worth it

        saver.save(tensors, state, as_text(config), kept)

    log.info(
        "stage %s: steps %d to %d, batch %d of %d slices, %s %s%s",
        name,
        start,
        stage.steps,
        stage.batch_size,
        labels.samples(split),
        device.type,
        "bf16" if bf16 else "float32",
        f", {world.size} processes ({spread.how})" if world.size > 1 else "",
    )
    log.info("stage %s: %s", name, build.described(schedules))
    note_parts(name, build.crop_variants(stage), plan, parts, config.machine.accumulate)

    # ---------------------------------------------------------------- data
    sequences = tuple(config.data.sequences)
    settings = [build.view_settings(variant, config.intensity, sequences) for variant in build.crop_variants(stage)]
    batches = stream.batches(
        split,
        batch_size=plan.sizes,
        seed=config.seed,
        start=start,
        rank=world.rank,
        world=world.size,
        sequences=sequences,
        labels=labels,
        voxels=reads_voxels,
        threads=config.machine.decode_threads,
        prefetch=config.machine.prefetch,
        pin=device.type == "cuda",
    )
    metrics = Metrics(
        folder if world.first else None,
        stage=name,
        start=start,
        steps=stage.steps,
        log_every=config.machine.log_every,
        tensorboard=config.machine.tensorboard,
    )

    neighbours = None
    if config.knn.every:
        size = stage.crops.global_size
        neighbours = OnlineKnn(config.data.root, sequences, config.knn, size, build.intensity(config.intensity))

    # ---------------------------------------------------------------- loop
    collapse, loaders = CollapseMonitor(), ranks.LoaderMonitor(world)
    heartbeat = Heartbeat(folder, config.machine.hang_timeout, world)
    try:
        if own is None:
            save(0)
        for number in range(start, stage.steps):
            heartbeat.beat(number, "loading")
            began = time.perf_counter()
            now = {key: float(values[number]) for key, values in schedules.items()}
            batch = next(batches)
            waited = time.perf_counter() - began
            heartbeat.beat(number, "forward and backward")
            batch = batch.to(device)
            seen = settings[plan.choice[number]]
            crops = views.make(batch, seen, seed=config.seed)
            masks = build.masks(stage, config, batch, seen.global_size)
            if number == 0 and world.first:
                save_crops(folder / "crops.npz", crops)
            frozen = number < stage.optim.freeze_last_layer_steps
            optim.set_step(optimizer, lr=now["lr"], weight_decay=now["weight_decay"], freeze_last_layer=frozen)
            draws = build.draws(config, stage, batch, number)
            weights = build.step_weights(stage, now, class_weights, config.classifier)
            batch_parts = micro_batches(crops, masks, draws, parts[plan.choice[number]], world.rank)
            losses = distillation.backward(
                learner,
                teacher,
                batch_parts,
                weights,
                gram_teacher=anchor,
                centring=centring,
                precision=precision,
                world=world,
            )
            if number < stage.optim.freeze_backbone_steps:
                student.backbone.zero_grad(set_to_none=True)  # without a gradient AdamW leaves it as it is
            scalars = scalars_of(losses, optim.clip(student, stage.optim.clip))
            heartbeat.beat(number, "comparing ranks")
            stats = ranks.sync_step(
                world,
                scalars,
                ranks.RankStats(
                    seconds=time.perf_counter() - began,
                    waited=waited,
                    images=len(batch.sample),
                    memory=gigabytes(device),
                    samples=order.fingerprint(batch.sample.numpy(), batch.epoch.numpy()),
                    stop_signal=stop.stop_signal,
                    save_failed=saver.failed,
                ),
            )
            check_finite(name, number, stats.values)
            if stats.failed:
                saver.wait()  # raises where it was this rank
                raise StoppedElsewhere(f"rank {stats.failed[0]} could not save")
            heartbeat.beat(number, "updating")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            optim.update_teacher(teacher, student, now["teacher_momentum"])
            if anchor is not None and build.refreshes(stage.gram, number + 1):
                anchor.load_state_dict(teacher.backbone.state_dict())
            row = {"step": number, "stage": name, "batch": int(plan.sizes[number]), "crop": seen.global_size}
            row |= {"samples": stats.samples, **now, **stats.values}
            if neighbours is not None and ((number + 1) % config.knn.every == 0 or number + 1 == stage.steps):
                row |= neighbours.score(teacher.backbone, precision)  # on every rank: a sharded teacher needs them all
            metrics.write({**row, **stats.timing(each=number % config.machine.log_every == 0)})
            for warning in collapse.update(row) + loaders.update(stats):
                log.warning("warning: stage %s, %s", name, warning)
            last = number + 1 == stage.steps or stats.stop_signal
            if last or (number + 1) % config.save.every == 0 or number + 1 in wanted:
                heartbeat.beat(number, "saving")
                check_weights(name, number, student, world)
                save(number + 1)
            if stats.stop_signal:
                saver.wait()
                raise Stopped(stats.stop_signal, f"stage {name}, step {number + 1} of {stage.steps}")
        saver.wait()
    finally:
        heartbeat.close()
        batches.close()
        metrics.close()
        saver.close()


def parts_of(
    config: Config, name: str, stage: StageConfig, plan: BatchPlan, world: World
) -> list[list[tuple[int, ...]]]:
    """How a batch of each of a stage's variants is divided, among processes and then in time. Raises SettingsError."""
    count, group = config.machine.accumulate, stage.loss.koleo_group
    return batch_plan.plan_micro_batches(stage.batch_size, count, plan.scales, group, name, world.size)


def note_parts(
    name: str, variants: list[StageConfig], plan: BatchPlan, parts: list[list[tuple[int, ...]]], count: int
) -> None:
    """Log which of a stage's variants have fewer parts than their pixels ask for: as many as a process has images."""
    for variant, scale, found in zip(variants, plan.scales, parts):
        if len(found) < (asked := batch_plan.micro_batch_count(count, scale)):
            log.info(
                "stage %s: a batch with crops of %d and %d pixels should go through the student in %d parts, but a "
                "process has only %d images of it: one a part, which may take more memory than other steps",
                name,
                variant.crops.global_size,
                variant.crops.local_size,
                asked,
                len(found),
            )


def scalars_of(losses: dict[str, torch.Tensor], norms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Losses and gradient norms of a step by the names that they have in the metrics."""
    named = {(key if "/" in key else f"loss/{key}"): value for key, value in losses.items()}
    return named | {f"gradient/{part}": norm for part, norm in norms.items()}


def check_finite(stage: str, number: int, values: dict[str, float]) -> None:
    """Raises TrainingError where a loss or a gradient norm is not finite: before the weights change."""
    for key, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"stage {stage}, step {number}: {key} is {value}; {_GO_ON}")


def check_weights(stage: str, number: int, student: torch.nn.Module, world: World) -> None:
    """Raises TrainingError, on all ranks, where an update made a weight of the student that is not finite."""
    bad = [key for key, value in student.named_parameters() if not bool(local(value.detach()).isfinite().all())]
    if any(count for (count,) in world.table([len(bad)])):
        raise TrainingError(
            f"stage {stage}, step {number}: {bad[0] if bad else 'a weight'} is not finite after the update; {_GO_ON}"
        )


def save_crops(path: Path, crops: views.Views) -> None:
    """Keep the first step's crops, normalised as the network sees them, for the report."""
    memory = io.BytesIO()
    np.savez_compressed(
        memory, global_crops=crops.global_crops.cpu().numpy(), local_crops=crops.local_crops.cpu().numpy()
    )
    write_atomic(path, memory.getvalue())


def run(config: Config, only: str | None, world: World = ALONE, stop: Stop | None = None) -> None:
    """Walk the stages in the order of the configuration, or run stage `only`."""
    stages = list(config.stages)
    if only is not None and only not in stages:
        raise SettingsError(f"--stage {only}: no such stage, the configuration has {', '.join(stages)}")
    for name in stages:  # a misspelt key of the last stage, or parts that cannot be, is found before the first begins
        stage = checks.stage(config, name)
        parts_of(config, name, stage, build.batch_plan(stage, config.seed), world)
    folder = folder_of(config)
    with ExitStack() as open_:
        # a job that SLURM requeued, or torchrun started again, may meet the end of its former self
        patience = 120.0 if distributed.launched() or "SLURM_RESTART_COUNT" in os.environ else 0.0
        world.first_does(lambda: open_.enter_context(held(folder, patience)))
        code = world.first_does(lambda: runs.keep_code(folder))
        world.first_does(lambda: write_atomic(folder / "config.yaml", as_text(config).encode()))
        for before, name in zip([None, *stages], stages):
            if only in (None, name):
                train_stage(config, name, before, code, world, stop or Stop())


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
    who = distributed.launched()
    first = who is None or who["rank"] == 0
    level = logging.INFO if first else logging.ERROR  # what all ranks know, one says
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    status = _run(options, who, first)
    if status and who is not None:
        # other ranks may be gone: nothing that waits for them may run
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
    return status


def _run(options: argparse.Namespace, who: dict[str, int] | None, first: bool) -> int:
    """Load, meet the other processes, run; errors become one line and an exit status."""
    say = "error: " if who is None else f"error: rank {who['rank']}: "
    try:
        if who is not None:
            distributed.end_with_the_launcher()
        config = load(options.config, options.overrides)
        device = pick_device(config.machine.device, who["local_rank"] if who else 0)
        parallel.kind(config.machine.parallel, World(**who) if who else ALONE)  # before they meet: all of them know it
        if device.type == "cpu":
            keep_freed_memory()
        with Stop() as stop:
            world = distributed.start(device, config.machine.hang_timeout)
            run(config, options.stage, world, stop)
            distributed.end(world)
    except Stopped as stopped:
        return _stop(stopped, who, first)
    except StoppedElsewhere as error:
        log.debug("%s", error)
        return 1
    except (SettingsError, CheckpointError, WeightsError, BusyError, TrainingError) as error:
        if first or isinstance(error, CheckpointError):  # the same on every rank
            print(f"error: {error}", file=sys.stderr)
        return 1
    except SchemaError as error:
        print(f"{say}{error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or options.config
        print(f"{say}{where}: {error.strerror}; the last checkpoint is whole, start again to go on", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            reason = str(error).strip().splitlines()[0]
            line = f"{reason} Set machine.accumulate=2 or machine.recompute=true and start again to go on"
        elif compiling.failed(error):
            line = f"{str(error).strip().splitlines()[0]}; {compiling.ADVICE}"
        elif who is not None and (reason := distributed.lost(error)):
            line = f"another process is gone ({reason}); start again to go on"
        else:
            raise
        print(f"{say}{line}", file=sys.stderr)
        return 1
    return 0


def _stop(stopped: Stopped, who: dict[str, int] | None, first: bool) -> int:
    """The exit status of a run that was asked to stop: the first process alone says it, when the others are gone.

    A launcher that ends all processes with the first bad one would otherwise report that it killed some.
    """
    if not first:
        logging.shutdown()
        os._exit(0)
    log.warning("%s", stopped)
    if who is not None:
        time.sleep(1)
    return stopped.status


if __name__ == "__main__":
    sys.exit(main())
