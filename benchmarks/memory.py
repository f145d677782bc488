"""How much memory of a GPU a training step takes, and how many images fit.

    python benchmarks/memory.py [--config FILE …] [--device auto|cpu|cuda]

On a GPU the peak of real steps is measured beside the computed one (pretrain/planning/peak_memory.py). Without one it
is only computed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import training_step
from meddap import console
from pretrain import build
from pretrain.config import Config, StageConfig, load
from pretrain.planning.peak_memory import computed, crop_sizes, largest, most_masked, variants
from pretrain.runtime.device import pick_device

CONFIGS = ("meddinov3_vitb16", "dinov3_vitl16")
IMAGES = 64  # on one GPU of the configurations' 8 and 32
GPUS = (24, 40, 80, 141)


def measured(config: Config, stage: StageConfig, images: int, device: torch.device, accumulate: int = 1) -> int:
    """The most bytes that PyTorch's allocator gave out during real steps on a GPU. Raises torch.OutOfMemoryError."""
    arm = training_step.Arm(
        config, stage, images, device, accumulate=accumulate, masked=most_masked(stage.masks, images)
    )
    arm.step()  # the moments are made here
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    arm.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def with_recompute(config: Config, wanted: bool) -> Config:
    return replace(config, machine=replace(config.machine, recompute=wanted))


def report(files: Sequence[Path], device: torch.device) -> Iterator[str]:
    """The table, line by line."""
    columns = "images | micro-batches | networks | moments | inputs | logits | kept | rest | peak | measured"
    yield f"| {'stage':28} | {'crops':>7} | {columns} |"
    yield "|---" * 12 + "|"
    fits = []
    for file in files:
        config = load(file, ["data.root=none"])
        for name, stage, accumulate in variants(config):
            for again in (False, True):
                with_ = with_recompute(config, again)
                label = f"{config.name} {name}" + (", recompute" if again else "")
                found = computed(with_, stage, IMAGES, accumulate=accumulate)
                each = (found.networks, found.moments, found.inputs, found.logits, found.activations, found.rest)
                real = _measured(with_, stage, IMAGES, device, accumulate)
                crops = "/".join(map(str, crop_sizes(stage)))
                sizes = " | ".join(f"{size / 2**30:.1f}" for size in (*each, found.peak))
                yield f"| {label:28} | {crops:>7} | {IMAGES} | {accumulate} | {sizes} | {real} |"
                fits.append((label, crops, largest(with_, stage, found, GPUS, accumulate)))
    yield ""
    yield f"| {'images that fit a GPU of':28} | {'crops':>7} | " + " | ".join(f"{size} GB" for size in GPUS) + " |"
    yield "|---" * (2 + len(GPUS)) + "|"
    for label, crops, most in fits:
        yield f"| {label:28} | {crops:>7} | " + " | ".join(f"{each or 'none'}" for each in most) + " |"


def _measured(config: Config, stage: StageConfig, images: int, device: torch.device, accumulate: int) -> str:
    if device.type != "cuda":
        return "not measured"
    try:
        return f"{measured(config, stage, images, device, accumulate) / 2**30:.1f}"
    except torch.OutOfMemoryError:
        return "does not fit"
    finally:
        torch.cuda.empty_cache()


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    folder = Path(build.__file__).parent / "configs"
    parser = console.parser("Peak memory of a training step, and how many images fit a GPU.")
    parser.add_argument("--config", nargs="+", type=Path, metavar="FILE", help="instead of ViT-B/16 and ViT-L/16")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda; on cpu nothing is measured")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    console.show(f"GB of 2³⁰ bytes, of one GPU that holds whole networks; {torch.__version__}")
    for line in report(options.config or [folder / f"{name}.yaml" for name in CONFIGS], device):
        console.show(line)
    return 0


if __name__ == "__main__":
    console.launch(main)
