"""How fast a training step is, beside the same step written plainly, and beside the machine's matrix products.

    python benchmarks/step.py [--crops 112/48] [--batch 16] [--rounds 5] [--drop-path 0.3] [--size s] [--output FILE]

A step goes from views and masks to the teacher's update: both networks, losses, gradients, clipping, optimizer, moving
average. The ways take turns, a step each, on the same views and from the same weights, so that their losses must agree;
each has a process of its own, ours with the C library's memory kept as `pretrain.train` keeps it. Seconds are the
median of the rounds. The plain step is `plain_step.py` beside this file: straightforward modules, one forward pass for
each size of crops, all logits at once, eager. `share` is the step's counted operations a second by those of 2048 x 2048
matrix products in the same precision, measured in every round.
"""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import plain_step, training_step
from meddap import console
from meddap.settings import merge
from pretrain import build, checks, distillation, optim
from pretrain.config import Config
from pretrain.data import views
from pretrain.data.micro_batch import micro_batches
from pretrain.model import compiling
from pretrain.planning import counting
from pretrain.planning.peak_memory import batch_of
from pretrain.runtime import memory
from pretrain.runtime.device import autocast

SIDE = 512  # pixels of a slice
RATE, MOMENTUM, TEACHER_TEMP = 1e-4, 0.99, 0.05
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}  # width, depth, heads


@dataclass
class Inputs:
    """The input of every way of making a step: the same crops, masks and drop path's draws."""

    crops: views.Views
    masks: torch.Tensor
    draws: build.Draws


@dataclass(frozen=True)
class Task:
    """The task that is measured: a ViT of `size` with these (global, local) crops and a batch of so many images."""

    size: str
    crops: tuple[int, int]
    batch: int
    prototypes: int
    drop_path: float
    depth: int | None = None  # None: that of the size

    @property
    def config(self) -> Config:
        """The reference recipe with these crops."""
        width, depth, heads = SIZES[self.size]
        shape = {"embed_dim": width, "depth": self.depth or depth, "num_heads": heads}
        given = {
            "name": "bench",
            "data": {"root": "none"},
            "model": {**shape, "layer_scale": 1.0, "drop_path": self.drop_path},
            "dino_head": {"prototypes": self.prototypes},
            "ibot_head": {"prototypes": self.prototypes},
            "stages": {"adapt": {"steps": 1, "crops": dict(zip(("global_size", "local_size"), self.crops))}},
        }
        return merge(Config, ("bench", given))


def inputs_of(config: Config, count: int) -> Inputs:
    """Crops of a batch of random slices."""
    chosen = checks.stage(config, "adapt")
    batch = batch_of(count, 1, SIDE, torch.device("cpu"))
    crops = views.make(batch, build.view_settings(chosen, config.intensity), seed=0)
    masks = build.masks(chosen, config, batch, chosen.crops.global_size)
    return Inputs(crops, masks, build.draws(config, chosen, batch, 0))


def ours(config: Config, inputs: Inputs, precision: str, compiled: bool) -> Callable[[], dict[str, torch.Tensor]]:
    """Our step, as `pretrain/train.py` makes it."""
    chosen, device = checks.stage(config, "adapt"), torch.device("cpu")
    student, teacher = build.student_and_teacher(config, device)
    if compiled:
        compiling.compile_blocks(student.backbone)
        compiling.compile_blocks(teacher.backbone)
    optimizer = build.optimizer(chosen, student, config.model.depth)
    weights = distillation.StepWeights(teacher_temp=TEACHER_TEMP)
    whole = micro_batches(inputs.crops, inputs.masks, inputs.draws, [(len(inputs.masks) // 2,)])

    def once() -> dict[str, torch.Tensor]:
        losses = distillation.backward(student, teacher, whole, weights, precision=autocast(precision, device))
        training_step.update(student, teacher, optimizer, clip=chosen.optim.clip, lr=RATE, momentum=MOMENTUM)
        return losses

    return once


def plain(config: Config, inputs: Inputs, precision: str) -> Callable[[], dict[str, torch.Tensor]]:
    """The plain step, from the weights that ours starts from."""
    student, _ = build.student_and_teacher(config, torch.device("cpu"))
    model, heads = config.model, []
    assert model.num_heads is not None  # as Task has it
    for head in (config.dino_head, config.ibot_head):
        assert head is not None  # Task gives both
        heads.append(plain_step.PlainHead(model.embed_dim, head.hidden_dim, head.bottleneck_dim, head.prototypes))
    backbone = plain_step.PlainTransformer(
        model.patch_size, model.embed_dim, model.depth, model.num_heads, model.registers, model.drop_path
    )
    copy = plain_step.PlainModel(backbone, *heads)
    wanted = set(copy.state_dict())
    copy.load_state_dict({name: value for name, value in student.state_dict().items() if name in wanted})
    chosen = checks.stage(config, "adapt").optim
    groups = optim.build_groups(copy.named_parameters(), model.depth, chosen.layer_decay, chosen.patch_embed_multiplier)
    for group in groups:
        group["lr"], group["weight_decay"] = RATE * group["lr_multiplier"], 0.04 * group["wd_multiplier"]
    made = plain_step.PlainStep(copy, groups, TEACHER_TEMP, MOMENTUM)

    def once() -> dict[str, torch.Tensor]:
        with autocast(precision, torch.device("cpu")):
            return made(inputs.crops.global_crops, inputs.crops.local_crops, inputs.masks, inputs.draws.drop)

    return once


@dataclass(frozen=True)
class Way:
    """One way of making the step, `compiled` or not, in "float32" or "bf16"."""

    name: str
    precision: str
    compiled: bool = False
    plain: bool = False


WAYS = (
    Way("plain, float32", "float32", plain=True),
    Way("plain, bf16", "bf16", plain=True),
    Way("ours, float32", "float32"),
    Way("ours, float32, compiled", "float32", compiled=True),
    Way("ours, bf16", "bf16"),
    Way("ours, bf16, compiled", "bf16", compiled=True),
)


@dataclass
class Taken:
    """Measurements of a way: seconds of each counted round, total losses of every step."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def stepping(task: Task, way: Way, line: Connection) -> None:
    """A process's work: a step and what it took whenever the other end asks, until it says None."""
    config, inputs = task.config, inputs_of(task.config, task.batch)
    if way.plain:
        once = plain(config, inputs, way.precision)
    else:
        memory.keep_freed_memory()
        once = ours(config, inputs, way.precision, way.compiled)
    while line.recv() is not None:
        began = time.perf_counter()
        total = float(once()["total"])
        line.send((time.perf_counter() - began, total))


def measure(task: Task, ways: Sequence[Way], rounds: int, warmup: int = 2) -> tuple[dict[str, Taken], dict[str, float]]:
    """Every way's steps, taken by turns, and operations a second of matrix products in each precision."""
    start = multiprocessing.get_context("spawn")
    lines, taken = [], {way.name: Taken() for way in ways}
    rates: dict[str, list[float]] = {"float32": [], "bf16": []}
    for way in ways:
        here, there = start.Pipe()
        process = start.Process(target=stepping, args=(task, way, there), daemon=True)
        process.start()
        lines.append((here, process))
    for number in range(rounds + warmup):
        for way, (line, _) in zip(ways, lines):
            line.send(number)
            seconds, loss = line.recv()
            taken[way.name].losses.append(loss)
            if number >= warmup:
                taken[way.name].seconds.append(seconds)
        for word, kind in (("float32", torch.float32), ("bf16", torch.bfloat16)):
            rates[word].append(matrix_rate(kind))
    for line, process in lines:
        line.send(None)
        process.join()
    return taken, {word: statistics.median(each) for word, each in rates.items()}


def matrix_rate(kind: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a product of two square matrices, the best of three."""
    one, other = (torch.randn(size, size).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def table(task: Task, taken: dict[str, Taken], rates: dict[str, float]) -> str:
    """Markdown: a row for each way."""
    config = task.config
    masked = int(inputs_of(config, task.batch).masks.sum())
    work = counting.step(config, checks.stage(config, "adapt"), task.batch, masked=masked).model
    precisions = {way.name: way.precision for way in WAYS}
    base = statistics.median(taken[WAYS[0].name].seconds)
    sizes = "/".join(map(str, task.crops))
    drop = f", drop path {task.drop_path}" if task.drop_path else ""
    lines = [
        f"ViT-{task.size.upper()}/16, crops {sizes}, batch {task.batch}, {task.prototypes} prototypes{drop}; "
        f"{work / 1e9:.0f} billion operations a step",
        "",
        "| step | seconds | images/s | by plain float32 | share of matrix rate | loss of the last step |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in taken.items():
        seconds = statistics.median(each.seconds)
        share = work / seconds / rates[precisions[name]]
        lines.append(
            f"| {name} | {seconds:.3f} | {task.batch / seconds:.2f} | {base / seconds:.2f} "
            f"| {share:.0%} | {each.losses[-1]:.4f} |"
        )
    rate = ", ".join(f"{word} {value / 1e9:.0f}" for word, value in rates.items())
    return "\n".join([*lines, "", f"Matrix products, billion operations a second: {rate}."])


def machine() -> str:
    """The processor, its threads in use and PyTorch's version."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    there = torch.cpu.get_capabilities()
    found = [word for word in ("avx512_f", "avx512_bf16", "amx_bf16") if there.get(word)]
    return f"{name}, {torch.get_num_threads()} threads ({', '.join(found)}), torch {torch.__version__}"


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = console.parser("Our training step beside a plain one, on the CPU.")
    parser.add_argument("--size", choices=SIZES, default="s")
    parser.add_argument("--crops", nargs="+", default=["112/48", "224/96"], metavar="GLOBAL/LOCAL", help="pixels")
    parser.add_argument("--batch", type=int, help="images; default: 16, fewer for larger crops")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--drop-path", type=float, default=0.0, help="of the last block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the tables here too")
    options = parser.parse_args(arguments)
    texts = [f"{date.today()}, {machine()}"]
    for words in options.crops:
        large, small = (int(side) for side in words.split("/"))
        batch = options.batch or max(1, round(16 * (112 / large) ** 2))
        task = Task(options.size, (large, small), batch, options.prototypes, options.drop_path)
        texts.append(table(task, *measure(task, WAYS, options.rounds)))
        print("\n\n".join(texts[-2:] if len(texts) == 2 else texts[-1:]) + "\n", flush=True)
    if options.output:
        options.output.write_text("\n\n".join(["# The training step", *texts]) + "\n")
    return 0


if __name__ == "__main__":
    console.launch(main)
