"""The plan of a training: days, GPU-hours, data, messages and disk, from counted operations and bytes.

    meddap plan CONFIG --gpus N --gpu h100|h200|a100|cpu [--mfu 0.4] [key=value …]

A step's time is its products by a share of the card's rates, the bytes of logits and of the update by a share of its
bandwidth, and what its messages take beyond the backward pass that hides them. The shares are assumptions, printed
with the result; `python benchmarks/gpu.py` measures them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from meddap import console
from meddap.ranges import COUNT, POSITIVE, Allowed, check_ranges
from pretrain import build, checks
from pretrain.config import Config, SaveConfig, StageConfig, gram_teacher_steps, load, most_sequences
from pretrain.data import batch_plan
from pretrain.objective.koleo import spans_micro_batches
from pretrain.planning import counting, peak_memory, rates
from pretrain.planning.communication import messages

_SHARE = 0.7  # of the float32 rate, and of bandwidths, that is reached


@dataclass(frozen=True)
class Machine:
    """One device: operations a second of matrix products, bytes a second of memory, and of messages in each direction.

    low      in the precision of most products: bfloat16 without sparsity, or float32
    gigabytes   of memory, 2³⁰ bytes
    inside, outside   bytes a second between devices of a node, and of each device to other nodes
    mfu      share of `low` that is assumed
    """

    name: str
    low: float
    float32: float
    bandwidth: float
    gigabytes: float
    inside: float
    outside: float
    mfu: float = 0.4


# vendors' data sheets, SXM cards; PyTorch multiplies float32 as it is, not as TF32
GPUS = {
    "a100": Machine("A100 80 GB", 312e12, 19.5e12, 2.0e12, 80, 300e9, 25e9),
    "h100": Machine("H100", 989e12, 67e12, 3.35e12, 80, 450e9, 50e9),
    "h200": Machine("H200", 989e12, 67e12, 4.8e12, 141, 450e9, 50e9),
}


@dataclass(frozen=True)
class Seconds:
    """Where a step's time goes: products in low precision, products in float32, bytes, messages that nothing hides."""

    low: float
    float32: float
    bytes: float
    messages: float = 0.0

    @property
    def total(self) -> float:
        return self.low + self.float32 + self.bytes + self.messages


def seconds(counted: counting.Step, machine: Machine) -> Seconds:
    """Return the time of a step on one device, without its messages."""
    return Seconds(
        low=(counted.total - counted.float32) / (machine.low * machine.mfu),
        float32=counted.float32 / (machine.float32 * _SHARE),
        bytes=(counted.logit_bytes + counted.update_bytes) / (machine.bandwidth * _SHARE),
    )


def reached(counted: counting.Step, machine: Machine, took: float) -> Machine:
    """Return the machine with the share `mfu` at which a step takes the `took` seconds that were measured."""
    found = seconds(counted, machine)
    return replace(machine, mfu=found.low * machine.mfu / max(took - found.float32 - found.bytes, 1e-12))


@dataclass(frozen=True)
class Row:
    """One stage: days and what it needs, averaged over its pairs of crop sizes.

    images   of a step on one device, at most
    share    of the time, by kind
    peak     bytes of a device, None where it is not asked for
    """

    name: str
    steps: int
    images: int
    samples: int
    operations: float
    time: Seconds
    peak: int | None

    @property
    def days(self) -> float:
        return self.steps * self.time.total / 86400

    @property
    def rate(self) -> float:
        """Samples a second of all devices."""
        return self.samples / (self.steps * self.time.total)


def of_stage(config: Config, name: str, devices: int, machine: Machine, *, per_node: int, side: int, peak: bool) -> Row:
    """Plan a stage on so many devices. `side` of a slice in pixels."""
    stage = checks.stage(config, name)
    plan, known = build.batch_plan(stage, config.seed), counting.costs(config)
    count, group, images = config.machine.accumulate, stage.loss.koleo_group, math.ceil(stage.batch_size / devices)
    divided = batch_plan.plan_micro_batches(stage.batch_size, count, plan.scales, group, name, devices)
    link = machine.inside if devices <= per_node else machine.outside
    total, operations = [0.0] * 4, 0.0
    for number, variant in enumerate(build.crop_variants(stage)):
        taken = plan.choice == number
        if not taken.any():
            continue
        first = spans_micro_batches(divided[number], stage.loss.koleo_group)
        counted = counting.step(config, variant, images, pixels=(side, side), first_pass=first, known=known)
        found = seconds(counted, machine)
        told = messages(config, variant, images, devices, len(divided[number]), first)
        said = sum(each.sent for each in told) / (link * _SHARE)
        hidden = found.low * counted.gradient.total / counted.total  # by the backward pass
        each = (found.low, found.float32, found.bytes, max(said - hidden, 0.0))
        total = [sum_ + taken.mean() * part for sum_, part in zip(total, each)]
        operations += taken.mean() * counted.model * devices
    bytes_ = _peak(config, name, images, devices) if peak else None
    return Row(name, stage.steps, images, int(plan.starts[-1]), operations, Seconds(*total), bytes_)


def _peak(config: Config, name: str, images: int, devices: int) -> int:
    """Return the bytes of a device with `images` in the step with the largest crops."""
    variant, accumulate = next(
        (variant, accumulate) for each, variant, accumulate in peak_memory.variants(config) if each == name
    )
    found = peak_memory.computed(config, variant, images, accumulate=accumulate)
    if config.machine.parallel != "fsdp" or devices == 1:
        return found.peak
    own = found.networks + found.moments
    return int(found.peak - own * (devices - 1) / devices)


def kept(save: SaveConfig, steps: int, wanted: set[int]) -> int:
    """Checkpoints of a stage that stay on the disk, as `checkpoint.prune` leaves them."""
    made = sorted({0, steps, *range(save.every, steps, save.every), *wanted})
    middle = made[1 : -max(save.keep_last, 1)]
    gone = [step for step in middle if (not save.keep_every or step % save.keep_every) and step not in wanted]
    return len(made) - len(gone)


def checkpoint_bytes(config: Config, stage: StageConfig) -> int:
    """Return the bytes of one checkpoint: student, teacher, two moments of every weight, and the Gram teacher."""
    known = counting.costs(config)
    return 4 * (4 * known.parameters + (known.backbone_parameters if stage.gram.teacher_from else 0))


def report(config: Config, options: argparse.Namespace, machine: Machine) -> Iterator[str]:
    """The plan, line by line."""
    devices, nodes = options.gpus, math.ceil(options.gpus / options.gpus_per_node)
    how = "alone" if devices == 1 else config.machine.parallel
    yield f"{config.name} on {devices} × {machine.name}, {nodes} node{'s' * (nodes > 1)}, {how}"
    yield (
        f"assumed: {machine.mfu:.0%} of {machine.low / 1e12:,.3g} TFLOP/s (--mfu), {_SHARE:.0%} of "
        f"{machine.float32 / 1e12:,.3g} TFLOP/s in float32 and of {machine.bandwidth / 1e12:,.3g} TB/s; slices of "
        f"{options.side} × {options.side} pixels"
    )
    yield ""
    yield f"{'stage':10}{'steps':>9}{'images/GPU':>12}{'TFLOP/step':>12}{'s/step':>9}{'images/s':>10}" + (
        f"{'days':>8}{'GPU-hours':>11}{'peak GB':>9}"
    )
    rows = []
    for name in config.stages:
        row = of_stage(
            config, name, devices, machine, per_node=options.gpus_per_node, side=options.side, peak=options.memory
        )
        rows.append(row)
        yield f"{name:10}{row.steps:9,}{row.images:12,}{row.operations / 1e12:12,.0f}{row.time.total:9.3f}" + (
            f"{row.rate:10,.0f}{row.days:8.3f}{row.days * 24 * devices:11,.0f}" + _fits(row, machine)
        )
    days = sum(row.days for row in rows)
    yield f"{'total':10}{sum(row.steps for row in rows):9,}{'':43}{days:8.3f}{days * 24 * devices:11,.0f}"
    yield ""
    kinds = {"low": "matrix products", "float32": "such in float32", "bytes": "bytes", "messages": "messages"}
    spent = [sum(row.steps * getattr(row.time, kind) for row in rows) for kind in kinds]
    shares = [f"{each / sum(spent):.0%} {what}" for each, what in zip(spent, kinds.values())]
    yield "of the time: " + ", ".join(shares)
    yield from _data(config, options, rows, nodes)
    yield from _messages(config, rows, devices)
    yield from _disk(config)


def _fits(row: Row, machine: Machine) -> str:
    if row.peak is None:
        return f"{'':>9}"
    room = peak_memory.room(machine.gigabytes)
    return f"{row.peak / 2**30:9.1f}" + ("" if row.peak <= room else f"  does not fit {machine.gigabytes:g} GB")


def _data(config: Config, options: argparse.Namespace, rows: list[Row], nodes: int) -> Iterator[str]:
    seen, rate = sum(row.samples for row in rows), max(row.rate for row in rows)
    each = options.slice_kb * 1e3 * most_sequences(config)
    epochs = f", {seen / options.slices:.1f} epochs of {options.slices:,}" if options.slices else ""
    stored = f"; {options.slices * each / 1e9:,.0f} GB of shards" if options.slices else ""
    yield f"data: {seen / 1e6:.1f} million samples seen{epochs}, {each / 1e3:.0f} kB each{stored}"
    cores = rate / nodes * most_sequences(config) / options.decode
    yield (
        f"loader: {rate * each / 1e6:,.0f} MB/s read at most, {rate / nodes:,.0f} samples/s a node: "
        f"{cores:.1f} cores a node at {options.decode:,} slices/s each (--decode)"
    )


def _messages(config: Config, rows: list[Row], devices: int) -> Iterator[str]:
    stage = checks.stage(config, rows[0].name)
    said = messages(config, stage, rows[0].images, devices)
    if not said:
        yield "messages: none"
        return
    listed = ", ".join(f"{each.count} of {each.what} ({each.sent / 1e6:,.1f} MB)" for each in said)
    yield f"messages a step of {rows[0].name}, with what a GPU sends: {listed}"


def _disk(config: Config) -> Iterator[str]:
    total = 0
    sizes: list[str] = []
    for name in config.stages:
        stage = checks.stage(config, name)
        size = checkpoint_bytes(config, stage)
        count = kept(config.save, stage.steps, gram_teacher_steps(config, name))
        total, sizes = total + size * count, [*sizes, f"{name} {count} of {size / 1e9:.2f} GB"]
    yield f"checkpoints kept: {', '.join(sizes)}; {total / 1e9:,.0f} GB in all"


def this_machine() -> Machine:
    """Return this CPU with the rates that it has now."""
    rate, bandwidth = rates.products("cpu", "float32"), rates.copies("cpu")
    return Machine("this CPU", rate, rate, bandwidth, math.inf, math.inf, math.inf, mfu=0.7)


_RANGES = {
    "gpus": COUNT,
    "gpus-per-node": COUNT,
    "mfu": Allowed(0, 1, above=True),
    "slices": COUNT,
    "side": COUNT,
    "slice-kb": POSITIVE,
    "decode": COUNT,
}


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Print the plan of a configuration; return the exit status."""
    parser = console.parser("Estimate what a training takes: days, GPU-hours, data, messages and disk.")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML, see pretrain/configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. machine.parallel=fsdp")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="in all (default 1)")
    parser.add_argument("--gpu", choices=[*GPUS, "cpu"], default="h100", help="cpu: this one, measured now")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="default 8")
    parser.add_argument("--mfu", type=float, metavar="SHARE", help="of the matrix rate that is reached (default 0.4)")
    parser.add_argument("--slices", type=int, metavar="N", help="in the data set: epochs and storage")
    parser.add_argument("--side", type=int, default=512, help="of a slice, pixels (default 512)")
    parser.add_argument("--slice-kb", type=float, default=174.0, help="kB of a slice in a shard (real CT of 512²: 174)")
    parser.add_argument("--decode", type=int, default=2400, help="slices/s of a core (make bench-loader; default 2400)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the peak memory out: faster")
    options = parser.parse_intermixed_args(arguments)
    given = argparse.Namespace(**{name.replace("_", "-"): value for name, value in vars(options).items()})
    check_ranges("--", given, _RANGES)
    config = load(options.config, options.overrides, needs_data=False)
    machine = this_machine() if options.gpu == "cpu" else GPUS[options.gpu]
    if options.mfu is not None:
        machine = replace(machine, mfu=options.mfu)
    for line in report(config, options, machine):
        console.show(line)
    return 0


if __name__ == "__main__":
    console.launch(main)
