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
import logging
import math
import os
import sys
import time
from contextlib import ExitStack, closing

import torch

from meddap import console
from meddap.disk import BusyError, write_atomic
from meddap.errors import MeddapError
from meddap.settings import SettingsError
from pretrain import build, checks, parallel, runs
from pretrain import stage as stages
from pretrain.config import Config, as_text, load
from pretrain.data import order
from pretrain.model import compiling
from pretrain.runs import TrainingError
from pretrain.runtime import distributed, ranks
from pretrain.runtime.device import gigabytes, pick_device
from pretrain.runtime.distributed import ALONE, StoppedElsewhere, World, local
from pretrain.runtime.memory import keep_freed_memory
from pretrain.runtime.metrics import CollapseMonitor
from pretrain.runtime.preemption import Stop, Stopped
from pretrain.weights.published import WeightsError

log = logging.getLogger("pretrain")

_GO_ON = "the last checkpoint is kept, start again with a lower stages.*.optim.lr.peak or machine.precision=float32"
# what is wrong in the same way on every rank: the first one says it
_OF_ALL_RANKS = (SettingsError, WeightsError, BusyError, TrainingError)


def train_stage(config: Config, name: str, before: str | None, code: str, world: World, stop: Stop) -> None:
    """Run stage `name` to its last step: load, step, synchronise, check, update, log, save, stop.

    `before` is the stage whose weights it starts from, if any; `code` the digest of the snapshot of the program.
    """
    stage = stages.start(config, name, before, code, world)
    if stage is None:
        return
    collapse, loaders, beat = CollapseMonitor(), ranks.LoaderMonitor(world), stage.heartbeat.beat
    with closing(stage):
        if not stage.resumed:
            stages.save(stage, 0)
        for step in range(stage.first_step, stage.settings.steps):
            beat(step, "loading")
            began = time.perf_counter()
            batch = next(stage.data.batches)
            waited = time.perf_counter() - began
            beat(step, "forward and backward")
            scalars = stages.run_step(stage, step, batch)
            beat(step, "comparing ranks")
            own = ranks.RankStats(
                seconds=time.perf_counter() - began,
                waited=waited,
                images=len(batch.sample),
                memory=gigabytes(stage.device),
                samples=order.fingerprint(batch.sample.numpy(), batch.epoch.numpy()),
                stop_signal=stop.stop_signal,
                save_failed=stage.saver.failed,
            )
            stats = ranks.sync_step(world, scalars, own)
            check_finite(name, step, stats.values)
            check_saved(stage, stats)
            beat(step, "updating")
            stages.update(stage, step)
            row = stages.write_row(stage, step, stats)
            for warning in collapse.update(row) + loaders.update(stats):
                log.warning("warning: stage %s, %s", name, warning)
            if stage.saves_after(step) or stats.stop_signal:
                beat(step, "saving")
                check_weights(name, step, stage.networks.student, world)
                stages.save(stage, step + 1)
            if stats.stop_signal:
                stage.saver.wait()
                raise Stopped(stats.stop_signal, f"stage {name}, step {step + 1} of {stage.settings.steps}")
        stage.saver.wait()


def check_finite(stage: str, step: int, values: dict[str, float]) -> None:
    """Raise TrainingError where a loss or a gradient norm is not finite: before the weights change."""
    for key, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"stage {stage}, step {step}: {key} is {value}; {_GO_ON}")


def check_saved(stage: stages.Stage, stats: ranks.StepStats) -> None:
    """Raise what went wrong on the rank that could not save, and StoppedElsewhere on the others."""
    if stats.failed:
        stage.saver.wait()
        raise StoppedElsewhere(f"rank {stats.failed[0]} could not save")


def check_weights(stage: str, step: int, student: torch.nn.Module, world: World) -> None:
    """Raise TrainingError, on all ranks, where an update made a weight of the student that is not finite."""
    bad = [key for key, value in student.named_parameters() if not bool(local(value.detach()).isfinite().all())]
    if any(count for (count,) in world.table([len(bad)])):
        raise TrainingError(
            f"stage {stage}, step {step}: {bad[0] if bad else 'a weight'} is not finite after the update; {_GO_ON}"
        )


def run(config: Config, only: str | None, world: World = ALONE, stop: Stop | None = None) -> None:
    """Walk the stages in the order of the configuration, or run stage `only`."""
    names = list(config.stages)
    if only is not None and only not in names:
        raise SettingsError(f"--stage {only}: no such stage, the configuration has {', '.join(names)}")
    for name in names:  # a misspelt key of the last stage, or an impossible micro-batch, is found before the first one
        stage = checks.stage(config, name)
        build.micro_batches(config, name, stage, build.batch_plan(stage, config.seed), world.size)
    folder = runs.folder_of(config)
    with ExitStack() as open_:
        # a job that SLURM requeued, or torchrun started again, may meet the end of its former self
        patience = 120.0 if distributed.launched() or "SLURM_RESTART_COUNT" in os.environ else 0.0
        world.first_does(lambda: open_.enter_context(runs.held(folder, patience)))
        code = world.first_does(lambda: runs.keep_code(folder))
        world.first_does(lambda: write_atomic(folder / "config.yaml", as_text(config).encode()))
        for before, name in zip([None, *names], names):
            if only in (None, name):
                train_stage(config, name, before, code, world, stop or Stop())


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Train a configuration's stages; return the exit status."""
    parser = console.parser(
        "Adapt a vision transformer to sharded images by self-distillation.",
        "A second start of the same command goes on where the first one stopped.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, see pretrain/configs/")
    parser.add_argument("--stage", metavar="NAME", help="run this stage alone")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. stages.adapt.steps=100 machine.device=cpu"
    )
    options = parser.parse_intermixed_args(arguments)
    who = distributed.launched()
    first = who is None or who.rank == 0
    level = logging.INFO if first else logging.ERROR  # what all ranks know, one says
    logging.basicConfig(level=level, format="%(message)s", handlers=[console.log_handler(level)])
    if who is None:
        return _train(options, None)
    status = _train_as_rank(options, who)
    if status:
        # other ranks may be gone: nothing that waits for them may run
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
    return status


def _train(options: argparse.Namespace, who: World | None) -> int:
    """Load the configuration, meet the other processes, run. Raises MeddapError."""
    try:
        if who is not None:
            distributed.end_with_the_launcher()
        config = load(options.config, options.overrides)
        device = pick_device(config.machine.device, who.local_rank if who else 0)
        parallel.kind(config.machine.parallel, who or ALONE)  # before they meet: all of them know it
        if device.type == "cpu":
            keep_freed_memory()
        with Stop(alone=who is None) as stop:
            world = distributed.start(device, config.machine.hang_timeout)
            run(config, options.stage, world, stop)
            distributed.end(world)
    except Stopped as stopped:
        return _say_stopped(stopped, who)
    except MeddapError:
        raise
    except OSError as error:
        where = error.filename or options.config
        raise FailedHere(f"{where}: {error.strerror}; the last checkpoint is whole, start again to go on") from error
    except RuntimeError as error:
        reason = _reason(error, who)
        if reason is None:
            raise
        raise FailedHere(reason) from error
    return 0


class FailedHere(MeddapError):
    """What ended this process and perhaps no other one; the message says why and what to do."""


def _reason(error: RuntimeError, who: World | None) -> str | None:
    """Return the line of an error of PyTorch that a user can mend; None for any other."""
    line = first_line(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{line} Set machine.accumulate=2 or machine.recompute=true and start again to go on"
    if compiling.failed(error):
        return f"{line}; {compiling.ADVICE}"
    if who is not None and (lost := distributed.lost(error)):
        return f"another process is gone ({lost}); start again to go on"
    return None


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return str(error).strip().partition("\n")[0]


def _train_as_rank(options: argparse.Namespace, who: World) -> int:
    """Run as one of several processes; whatever went wrong on all of them is said once."""
    try:
        return _train(options, who)
    except StoppedElsewhere as error:
        log.debug("%s", error)
    except _OF_ALL_RANKS as error:
        if who.first:
            return console.fail(str(error))
    except MeddapError as error:
        return console.fail(f"rank {who.rank}: {error}")
    except Exception as error:
        first = distributed.fails_first()
        if first:
            return console.unexpected(error)
        if first is None:
            return console.fail(f"rank {who.rank}: unexpected {type(error).__name__}: {first_line(error)}")
    return console.FAILED


def _say_stopped(stopped: Stopped, who: World | None) -> int:
    """Return the exit status of a run that was asked to stop: the first process says it, when the others are gone.

    A launcher that ends all processes with the first bad one would otherwise report that it killed some.
    """
    if who is not None and not who.first:
        logging.shutdown()
        os._exit(0)
    log.warning("%s", stopped)
    if who is not None:
        time.sleep(1)
    return stopped.status


if __name__ == "__main__":
    console.launch(main)
