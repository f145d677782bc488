"""A stage: built new or resumed from its newest checkpoint, one step of it, and what it saves.

`start` builds a stage from the configuration and the newest checkpoint; `run_step` adds the gradients of a batch and
`update` moves the weights. The loop over steps is in `train.py`.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meddap.disk import write_atomic
from pretrain import build, checks, corpora, distillation, networks, online_knn, optim, runs, schedules
from pretrain.config import Config, StageConfig, as_text, gram_teacher_steps, recipe
from pretrain.data import stream, views
from pretrain.data.batch_plan import BatchPlan, micro_batch_count
from pretrain.data.corpus import Corpus
from pretrain.data.micro_batch import micro_batches
from pretrain.data.mixture import Mixture
from pretrain.data.stream import Batch
from pretrain.data.views import Views, ViewSettings
from pretrain.networks import Networks
from pretrain.runtime import checkpoint
from pretrain.runtime.device import autocast, pick_device, uses_bf16
from pretrain.runtime.distributed import World
from pretrain.runtime.heartbeat import Heartbeat
from pretrain.runtime.metrics import Metrics
from pretrain.runtime.ranks import StepStats
from pretrain.runtime.saving import Saver
from pretrain.weights import lineage

log = logging.getLogger("pretrain")

# of a source in a batch: one image has two crops alike, so that the spread of few would look like a collapse
FEWEST_IMAGES, FEWEST_PATCHES = 4, 16


@dataclass(frozen=True)
class Data:
    """What a stage reads, and how its batches are made up.

    corpus         the sources, and the order of their samples
    classes        names of the classes of each label column; class_weights their weights in the loss
    plan           batch of every step, and its crop sizes as an index into `views` and `micro_batches`
    views          crops and augmentation at each pair of crop sizes
    micro_batches  images that every process has of each micro-batch, at each pair of crop sizes
    batches        this process's share of every batch from the first step on
    """

    corpus: Corpus
    order: Mixture
    classes: Mapping[str, Sequence[str]]
    class_weights: Mapping[str, Sequence[float]]
    plan: BatchPlan
    views: list[ViewSettings]
    micro_batches: list[list[tuple[int, ...]]]
    batches: Generator[Batch, None, None]


@dataclass(frozen=True)
class Stage:
    """A stage that runs, from `first_step` on.

    identity   what a checkpoint records of the stage: name, data, recipe, code
    kept_steps steps after which a later stage takes its Gram teacher: they are saved and kept
    resumed    whether it goes on from a checkpoint of its own
    """

    config: Config
    name: str
    settings: StageConfig
    world: World
    device: torch.device
    precision: torch.autocast
    identity: Mapping[str, Any]
    kept_steps: set[int]
    first_step: int
    resumed: bool
    data: Data
    networks: Networks
    schedules: Mapping[str, np.ndarray]
    neighbours: online_knn.CorpusKnn | None
    metrics: Metrics
    saver: Saver
    heartbeat: Heartbeat

    @property
    def folder(self) -> Path:
        return runs.folder_of(self.config) / self.name

    def now(self, step: int) -> dict[str, float]:
        """Return the schedules' values at a step."""
        return {name: float(values[step]) for name, values in self.schedules.items()}

    def saves_after(self, step: int) -> bool:
        """Return whether a checkpoint follows a step."""
        done = step + 1
        return done == self.settings.steps or done % self.config.save.every == 0 or done in self.kept_steps

    def close(self) -> None:
        """End threads and close files, after what is still being written."""
        self.heartbeat.close()
        self.data.batches.close()
        self.metrics.close()
        self.saver.close()


def start(config: Config, name: str, before: str | None, code: str, world: World) -> Stage | None:
    """Return stage `name` ready for its next step, or None where all its steps were done before.

    before  the stage whose weights it starts from, if any
    code    digest of the snapshot of the program that runs
    Raises MeddapError.
    """
    settings = checks.stage(config, name)
    corpus = corpora.open_corpus(config)
    classes, class_weights = corpora.classes(config.data, corpus), corpora.class_weights(config.data, corpus)
    reads_voxels = build.reads_voxels(name, settings, *(source.split for source in corpus.sources))
    plan, variants = build.batch_plan(settings, config.seed), build.crop_variants(settings)
    micro_batches = build.micro_batches(config, name, settings, plan, world.size)

    identity = {"stage": name, **corpora.identity(corpus), "recipe": recipe(config, name)}
    own, origin = networks.starting_points(config, settings, before, identity, world)
    began = world.first_does(lambda: lineage.begin(settings.init_from, origin, config.model.position))
    first_step = own.step if own else 0
    if first_step == settings.steps:
        log.info("stage %s: all %d steps were done before", name, settings.steps)
        return None

    device = pick_device(config.machine.device, world.local_rank)
    made = networks.make(config, name, settings, classes, (own, origin), device, world)
    values = build.schedules(settings)
    log_start(config, name, settings, corpus.samples, first_step, device, made.spread.how, world)
    for line in corpora.described(corpus):
        log.info("stage %s: %s", name, line)
    log.info("stage %s: %s", name, schedules.described(values))
    log_micro_batches(name, variants, plan, micro_batches, config.machine.accumulate)

    channels = config.model.channels
    folder, sequences, neighbours = runs.folder_of(config) / name, tuple(config.data.sequences), None
    if config.knn.every:
        size, intensity = settings.crops.global_size, build.intensity(config.intensity, channels)
        neighbours = online_knn.of_corpus(corpus, sequences, config.knn, size, intensity)
    metrics = Metrics(
        folder if world.first else None,
        stage=name,
        start=first_step,
        steps=settings.steps,
        log_every=config.machine.log_every,
        tensorboard=config.machine.tensorboard,
    )
    batches = stream.batches(
        corpus,
        batch_size=plan.sizes.tolist(),
        seed=config.seed,
        start=first_step,
        rank=world.rank,
        world=world.size,
        sequences=sequences,
        channels=channels,
        voxels=reads_voxels,
        threads=config.machine.decode_threads,
        prefetch=config.machine.prefetch,
        pin=device.type == "cuda",
    )
    views_of = [build.view_settings(variant, config.intensity, sequences, channels, corpus) for variant in variants]
    order = corpus.mixture(config.seed)
    return Stage(
        config=config,
        name=name,
        settings=settings,
        world=world,
        device=device,
        precision=autocast(config.machine.precision, device),
        identity={**identity, "code": code, "began": began},
        kept_steps=gram_teacher_steps(config, name),
        first_step=first_step,
        resumed=own is not None,
        data=Data(corpus, order, classes, class_weights, plan, views_of, micro_batches, batches),
        networks=made,
        schedules=values,
        neighbours=neighbours,
        metrics=metrics,
        saver=Saver(folder, world, made.spread.sharded),
        heartbeat=Heartbeat(folder, config.machine.hang_timeout, world),
    )


def log_start(
    config: Config,
    name: str,
    stage: StageConfig,
    samples: int,
    first_step: int,
    device: torch.device,
    spread: str,
    world: World,
) -> None:
    """Log what is about to run, where."""
    log.info(
        "stage %s: steps %d to %d, batch %d of %d slices, %s %s%s",
        name,
        first_step,
        stage.steps,
        stage.batch_size,
        samples,
        device.type,
        "bf16" if uses_bf16(config.machine.precision, device) else "float32",
        f", {world.size} processes ({spread})" if world.size > 1 else "",
    )


def log_micro_batches(
    name: str, variants: list[StageConfig], plan: BatchPlan, micro_batches: list[list[tuple[int, ...]]], count: int
) -> None:
    """Log each pair of crop sizes with fewer micro-batches than its pixels ask for: one per image of a process."""
    for variant, scale, made in zip(variants, plan.scales, micro_batches):
        if len(made) < (wanted := micro_batch_count(count, scale)):
            log.info(
                "stage %s: a batch with crops of %d and %d pixels should go through the student in %d micro-batches, "
                "but a process has only %d of its images: one per micro-batch, which may take more memory than other "
                "steps",
                name,
                variant.crops.global_size,
                variant.crops.local_size,
                wanted,
                len(made),
            )


def run_step(stage: Stage, step: int, batch: Batch) -> dict[str, torch.Tensor]:
    """Add the gradients of a batch to the student's and clip them; return losses and norms as the metrics name them."""
    settings, config, parts = stage.settings, stage.config, stage.networks
    batch, now, place = batch.to(stage.device), stage.now(step), stage.data.plan.choice[step]
    crops = views.make(batch, stage.data.views[place], seed=config.seed, sources=stage.data.corpus.names)
    masks = build.masks(settings, config, batch, stage.data.views[place].global_size)
    if step == 0 and stage.world.first:
        save_crops(stage.folder / "crops.npz", crops)
    optim.set_step(
        parts.optimizer,
        lr=now["lr"],
        weight_decay=now["weight_decay"],
        freeze_last_layer=step < settings.optim.freeze_last_layer_steps,
    )
    draws = build.draws(config, settings, batch, step)
    losses = distillation.backward(
        parts.ddp_student,
        parts.teacher,
        micro_batches(crops, masks, draws, stage.data.micro_batches[place], stage.world.rank),
        build.step_weights(settings, now, stage.data.class_weights, config.classifier),
        gram_teacher=parts.gram_teacher,
        centring=parts.centring,
        precision=stage.precision,
        world=stage.world,
    )
    if step < settings.optim.freeze_backbone_steps:
        parts.student.backbone.zero_grad(set_to_none=True)  # without a gradient AdamW leaves it as it is
    norms = optim.clip(parts.student, settings.optim.clip)
    named = {(key if "/" in key else f"loss/{key}"): value for key, value in losses.items()}
    return named | {f"gradient/{part}": norm for part, norm in norms.items()}


def update(stage: Stage, step: int) -> None:
    """Move the student by its gradients, the teacher towards it, and now and then the Gram teacher to the teacher."""
    parts = stage.networks
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    optim.update_teacher(parts.teacher, parts.student, stage.now(step)["teacher_momentum"])
    if parts.gram_teacher is not None and stage.settings.gram.refreshes_after(step + 1):
        parts.gram_teacher.load_state_dict(parts.teacher.backbone.state_dict())


def write_row(stage: Stage, step: int, stats: StepStats) -> dict[str, Any]:
    """Write a step's row of metrics, with the neighbours' score where it is due; return the row without timings."""
    row: dict[str, Any] = {"step": step, "stage": stage.name, "batch": int(stage.data.plan.sizes[step])}
    row |= {"crop": stage.data.views[stage.data.plan.choice[step]].global_size, "samples": stats.samples}
    row |= {**stage.now(step), **of_sources(stage.data, step, stats.values)}
    done, every = step + 1, stage.config.knn.every
    if stage.neighbours is not None and (done % every == 0 or done == stage.settings.steps):
        # on every rank: a sharded teacher needs them all
        row |= stage.neighbours.score(stage.networks.teacher.backbone, stage.precision)
    stage.metrics.write({**row, **stats.timing(each=step % stage.config.machine.log_every == 0)})
    return row


def of_sources(data: Data, step: int, values: dict[str, float]) -> dict[str, float]:
    """Return a step's values with `source/NAME/samples`, those seen so far, and without what no image stands for.

    Of a source that the batch has too few images of, losses and spreads mean nothing.
    """
    found, names = dict(values), data.corpus.names
    for name, seen in zip(names, data.order.counts(int(data.plan.starts[step + 1])).tolist()):
        images, patches = (int(found.pop(f"source/{name}/{each}")) for each in ("images", "patches"))
        few = {"loss": images < 1, "cls_spread": images < FEWEST_IMAGES, "patch_spread": patches < FEWEST_PATCHES}
        for key in [key for key, too_few in few.items() if too_few]:
            found.pop(f"source/{name}/{key}", None)
        found |= {f"source/{name}/images": images, f"source/{name}/samples": seen}
    return found


def save(stage: Stage, done: int) -> None:
    """Save the state after `done` steps while the training goes on. Raises what went wrong with the one before."""
    seen, config = int(stage.data.plan.starts[done]), stage.config
    state = {
        **stage.identity,
        "step": done,
        "stream": _seen(stage.data, seen),
        "git_commit": checkpoint.git_commit(),
        "processes": stage.world.size,
        "spread": stage.networks.spread.how,
    }
    state |= {"classes": stage.data.classes} if stage.data.classes else {}

    def saved() -> None:
        checkpoint.prune(stage.folder, config.save.keep_last, config.save.keep_every, stage.kept_steps)
        if done > stage.first_step and (note := os.environ.get("MEDDAP_PROGRESS")):
            Path(note).touch()  # slurm/pretrain.sh looks for it: another start is worth it

    stage.saver.save(stage.networks.tensors(), state, as_text(config), saved)


def _seen(data: Data, samples: int) -> dict[str, Any]:
    """Return how many samples and epochs of each source lie before a position; of several, all of them too."""
    counts = data.order.counts(samples).tolist()
    epochs = [count / source.samples for source, count in zip(data.corpus.sources, counts)]
    if not data.corpus.names:
        return {"samples": samples, "epochs": epochs[0]}
    each = {name: {"samples": n, "epochs": e} for name, n, e in zip(data.corpus.names, counts, epochs)}
    return {"samples": samples, "sources": each}


def save_crops(path: Path, crops: Views) -> None:
    """Keep the first step's crops, normalised as the network sees them, for the report."""
    memory = io.BytesIO()
    whole, local = crops.global_crops.cpu().numpy(), crops.local_crops.cpu().numpy()
    np.savez_compressed(memory, global_crops=whole, local_crops=local)
    write_atomic(path, memory.getvalue())
