"""Benchmark a GPU in one run of at most eight minutes: loader, views, steps of ViT-S/B/L, memory, waiting.

    python benchmarks/gpu.py [--seconds 450] [--profile] [--output FILE]
    python benchmarks/gpu.py --list                    what would be measured, as a table that says "not measured"
    python benchmarks/gpu.py --device cpu --quick      everything in miniature: does it run?

The most important rows come first; rows without time left say so. A step goes from a batch on the GPU to new weights:
views, all networks, losses, gradients, clipping, optimizer, moving average. Its share is the model's counted operations
a second (counting.py) by those of bf16 matrix products of 8192 × 8192, measured in the same run.
"""

from __future__ import annotations

import datetime
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import synthetic_shards
from benchmarks.cases import QUICK, TARGETS, Case, Run, Scale, cases, release
from data_prep.schema import Split
from meddap import console
from meddap.settings import SettingsError
from pretrain.data import stream
from pretrain.planning import rates
from pretrain.runtime.device import pick_device

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_prep", "meddap", "pretrain")
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "not measured"
_WAITING = 0.02  # share of the time that a trainer may wait for its loader
_VIEWS = 0.03  # of a ViT-B step


def peak(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device.type == "cuda" else NOT_MEASURED


# ---------------------------------------------------------------- what is measured


def machine(run: Run) -> Iterator[str]:
    """Yield the machine's rates, to which everything else is compared."""
    name, size = str(run.device), run.scale.matrix
    run.low = rates.products(name, "bf16", size)
    yield f"| bf16 matrix products | {run.low / 1e12:.3g} TFLOP/s |"
    for precision in ("float32", "tf32") if run.device.type == "cuda" else ("float32",):
        yield f"| {precision} matrix products | {rates.products(name, precision, size) / 1e12:.3g} TFLOP/s |"
    yield f"| copies within its memory | {rates.copies(name) / 1e9:.4g} GB/s |"


def step(run: Run, case: Case) -> tuple[str, float]:
    """Return a case's line of the table from its crops on, and its share of the matrix rate."""
    arm = run.arm(case)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = rates.taken(arm.step, run.device, run.scale.least)
    share = arm.counted.model / took / run.low
    wanted = "" if case.target is None else f"{case.target:.0%} {'met' if share >= case.target else 'NOT MET'}"
    crops = f"{arm.stage.crops.global_size}/{arm.stage.crops.local_size}"
    speed = f"{took * 1e3:.1f} | {arm.images / took:.1f} | {arm.counted.model / took / 1e12:.3g}"
    return f"{crops} | {arm.images} | {speed} | {share:.0%} | {wanted} | {peak(run.device)} |", share


def views(run: Run) -> Iterator[str]:
    """Yield the cost of views, in milliseconds and as a share of a ViT-B step."""
    case = Case("ViT-B/16", 1, False, "sdpa")
    arm = run.arm(case)
    of_views, whole = (rates.taken(work, run.device, run.scale.least / 2) for work in (arm.views, arm.step))
    share = of_views / whole
    yield f"| views of {arm.images} images | {of_views * 1e3:.2f} ms |"
    yield f"| of a ViT-B/16 step, not compiled | {share:.1%} (wanted < {_VIEWS:.0%}) |"
    yield f"| of its counted operations | {arm.counted.views / arm.counted.total:.2%} |"


def waiting(run: Run) -> Iterator[str]:
    """Yield whether the host ever waits for the GPU within a step."""
    arm = run.arm(Case("ViT-B/16", 1, False, "sdpa"))
    if run.device.type != "cuda":
        arm.step()
        yield f"| host waits for the GPU within a step | {NOT_MEASURED} |"
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        arm.step()
        yield "| host waits for the GPU within a step | never |"
    except RuntimeError as error:
        yield f"| host waits for the GPU within a step | yes, NOT MET: {innermost_line(error)} |"
    finally:
        torch.cuda.set_sync_debug_mode("default")


def innermost_line(error: BaseException) -> str:
    """Return the innermost line of the packages that an error came through: FILE:LINE, or ? where there is none."""
    trace, line = error.__traceback__, "?"
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PACKAGES:
            line = f"{file.relative_to(ROOT)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def loading(run: Run) -> Iterator[str]:
    """Yield slices a second from shards to batches on the device, and how long a ViT-B trainer waits for them."""
    arm = run.arm(Case("ViT-B/16", 1, False, "sdpa"))
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder, redirect_stderr(StringIO()):
        split = Split(synthetic_shards.shards(Path(folder), run.scale.patients, run.scale.side), "train")
        gpu, count = run.device.type == "cuda", max(4, int(run.scale.least * 10))
        batches = stream.batches(split, batch_size=arm.images, seed=0, threads=4, prefetch=4, pin=gpu)
        try:
            next(batches).to(run.device)
            began = time.perf_counter()
            for _ in range(count):
                next(batches).to(run.device)
            yield f"| loader, 4 threads | {count * arm.images / (time.perf_counter() - began):.0f} slices/s |"
            waited, began = 0.0, time.perf_counter()
            for _ in range(count):
                asked = time.perf_counter()
                arm.batch = next(batches).to(run.device)
                waited += time.perf_counter() - asked
                arm.step()
                if gpu:
                    torch.cuda.synchronize()
            share = waited / (time.perf_counter() - began)
            yield f"| ViT-B/16's trainer waits for it | {share:.1%} of the time (wanted < {_WAITING:.0%}) |"
        finally:
            batches.close()


def kernels(run: Run, case: Case) -> str:
    """Return PyTorch's profile of two steps, the most expensive operations first."""
    arm = run.arm(case)
    gpu = run.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with profile(activities=activities) as found:
        for _ in range(2):
            arm.step()
    by = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    return found.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60)


# ---------------------------------------------------------------- the table

_COLUMNS = "step stage compiled attention crops images ms images/s TFLOP/s share wanted peak_GB".split()


def label(case: Case) -> str:
    return f"| {case.size} | {case.stage} | {'yes' if case.compiled else 'no'} | {case.attention} |"


def written(run: Run | None, with_profile: bool = False) -> Iterator[str]:
    """Yield the page, line by line; without a run, every row says "not measured"."""
    device = run.device if run else None
    name = torch.cuda.get_device_name(device) if device and device.type == "cuda" else platform.processor() or "CPU"
    yield f"# {datetime.date.today()}: {name if run else 'no GPU'}, PyTorch {torch.__version__}"
    yield "\nMemory in GB of 2³⁰ bytes. A share is the model's counted operations a second by the bf16 matrix rate.\n"
    parts: dict[str, Callable[[Run], Iterator[str]]] = {
        "the machine's rates": machine,
        "views": views,
        "host waits within a step": waiting,
        "loader": loading,
    }
    yield "| | |\n|---|---|"
    for what, part in parts.items():
        yield from _rows(run, what, part)
    yield f"\n| {' | '.join(_COLUMNS)} |\n" + "|---" * len(_COLUMNS) + "|"
    slowest: tuple[float, Case] | None = None
    for case in cases():
        line, share = case_line(run, case)
        yield f"{label(case)} {line}"
        if share is not None and case.stage == 1 and case.size in TARGETS:
            slowest = min(slowest or (share, case), (share, case), key=lambda each: each[0])
    if run and with_profile and slowest:
        yield f"\nThe worst of stage 1, {label(slowest[1])}\n\n```\n{kernels(run, slowest[1])}\n```"
    if run:
        yield f"\n{time.monotonic() - run.began:.0f} s in all."


def _rows(run: Run | None, what: str, part: Callable[[Run], Iterator[str]]) -> Iterator[str]:
    if run is None:
        yield f"| {what} | {NOT_MEASURED} |"
        return
    if run.left <= 0:
        yield f"| {what} | {NOT_MEASURED}: no time left |"
        return
    try:
        yield from part(run)
    except torch.OutOfMemoryError:
        yield f"| {what} | {NOT_MEASURED}: out of memory |"
    release(run.device)


def case_line(run: Run | None, case: Case) -> tuple[str, float | None]:
    """Return a case's line from its crops on, and its share; None where it is not measured."""
    nothing = "| " * 7 + "|"
    if run is None:
        return f"{NOT_MEASURED} {nothing}", None
    if run.left <= (60 if case.compiled and run.device.type == "cuda" else 0):
        return f"{NOT_MEASURED}: no time left {nothing}", None
    try:
        return step(run, case)
    except (torch.OutOfMemoryError, SettingsError) as error:
        return f"{NOT_MEASURED}: {str(error).splitlines()[0]} {nothing}", None
    finally:
        release(run.device)


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = console.parser("Benchmark a GPU: loader, views, steps, memory, waiting.")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --quick")
    parser.add_argument("--seconds", type=float, default=450.0, help="after which nothing new is begun (default 450)")
    parser.add_argument("--quick", action="store_true", help="in miniature, which says nothing about speed")
    parser.add_argument("--profile", action="store_true", help="and a profile of the slowest step by its rate")
    parser.add_argument("--list", action="store_true", help="what would be measured, without measuring")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default benchmarks/results/DATE-gpu.md")
    options = parser.parse_args(arguments)
    run = None
    if not options.list:
        try:
            device = pick_device(options.device)
        except SettingsError:
            return console.fail("PyTorch finds no GPU; --device cpu --quick tries everything in miniature")
        if device.type != "cuda" and not options.quick:
            return console.fail("a CPU is measured by make bench-step; here it needs --quick")
        run = Run(device, QUICK if options.quick else Scale(), options.seconds)
    target = options.output or RESULTS / f"{datetime.date.today()}-gpu.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w", buffering=1) as page:  # a run that is cut off leaves what it has measured
        for line in written(run, options.profile):
            console.show(line)
            print(line, file=page)
    console.say(f"\nwritten to {target}")
    return 0


if __name__ == "__main__":
    console.launch(main)
