"""The cost of probing from cached features, and of 52 linear heads beside one.

python benchmarks/probes.py [--samples 10000] [--width 768] [--labels 7]

Features are random numbers of the size of a ViT-B's; nothing but time is measured. Ratios are medians of interleaved
rounds, so that another program on the machine spoils both sides alike.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from eval.config import LinearConfig, TaskConfig, TaskSplitConfig
from eval.contract import Context
from eval.data import splits
from eval.data.cohorts import Base, Cohort
from eval.data.examples import Examples, Picture
from eval.data.features import StoredFeatures
from eval.encoders.pixel_baseline import PixelBaseline
from eval.probes import registry
from eval.probes.linear import Input, sgd
from eval.reporting.results import metrics_of
from eval.statistics import bootstrap
from meddap import console

_ROUNDS, _STEPS = 5, 60


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def heads(samples: int, width: int, labels: int) -> None:
    """Seconds of a training step of all 52 heads by those of one, the widest input at one learning rate: from cached
    features; and with the features' extraction before both, as it is where nothing is cached."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 5 * width, generator=generator)
    states = (torch.rand(samples, labels, generator=generator) > 0.5).to(torch.int8)
    config = LinearConfig(steps=_STEPS)
    columns = [Input(blocks, mean).columns(4, width) for blocks in (1, 4) for mean in (False, True)]
    sides = {
        "one head": lambda: sgd(inputs, columns[-1:], states, config.lr[:1], config, False, 0),
        "52 heads": lambda: sgd(inputs, columns, states, config.lr, config, False, 0),
    }
    rounds = [{name: timed(work) for name, work in sides.items()} for _ in range(_ROUNDS)]
    found = {name: statistics.median(each[name] for each in rounds) / _STEPS for name in sides}
    ratio = statistics.median(each["52 heads"] / each["one head"] for each in rounds)
    for name, seconds in found.items():
        print(f"  {name}: {1e3 * seconds:.2f} ms a step of {config.batch_size}")
    whole = TaskConfig(data="").linear.steps
    products = sum(inputs[:1, mine].numel() for mine in columns) * len(config.lr) / inputs.shape[1]
    print(f"  52 heads by one head, cached features         {ratio:.2f}   ({products:.0f} times its products)")
    # one image through a ViT-B of 128 pixels on a CPU core takes tens of milliseconds; measured here with a small one
    from pretrain.model.vit import VisionTransformer

    model = VisionTransformer(patch_size=16, embed_dim=384, depth=12, num_heads=6).eval()
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.inference_mode():
        images = torch.randn(16, 1, 128, 128)
        model(images)
        extraction = timed(lambda: model(images)) / 16 * samples
    ratio = (extraction + whole * found["52 heads"]) / (extraction + whole * found["one head"])
    print(f"  the same with the extraction by a ViT-S/16    {ratio:.2f}   (wanted < 2)")


def cached(samples: int, width: int, labels: int) -> None:
    """Every probe on pooled features of `samples` examples, their intervals included."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(samples, labels))
    mixing = rng.normal(size=(labels, width))
    keys = np.array([f"{n:06d}" for n in range(samples)])
    subjects = np.array([f"{n:04d}" for n in rng.integers(0, 200, samples)])
    examples = Examples(
        names=tuple(f"label {n}" for n in range(labels)),
        keys=keys,
        subjects=subjects,
        studies=subjects,
        sites=np.full(samples, ""),
        splits=np.full(samples, ""),
        orders=np.zeros(samples, np.int64),
        positions=np.zeros(samples),
        digests=np.arange(samples).astype(np.uint64),
        targets=(hidden > 0.3).astype(float),
        annotated=np.zeros((samples, 0), bool),
        reader=lambda n: Picture(np.zeros((1, 8, 8), np.uint8), ("x",), "unit8", (0, 8, 0, 8)),
        version="bench",
    )
    task = TaskConfig(data="bench", kind="multilabel", split=TaskSplitConfig(by="patient"))
    with tempfile.TemporaryDirectory() as folder:
        cls = (hidden @ mixing)[:, None] + rng.normal(size=(samples, 4, width))
        stored = StoredFeatures(cls.astype(np.float32), cls.astype(np.float32), None)
        base = Base(examples, stored, task, Path(folder))
        (fold,) = splits.folds(examples, task)
        for name in ("knn", "logistic", "linear"):

            def work(name: str = name) -> None:
                parts = {each: Cohort(each, base, rows) for each, rows in fold.rows.items()}
                context = Context(task, PixelBaseline(), Path(folder))
                fitted = registry.find([name], task.kind, task.level)[name].fit(parts["train"], parts["val"], context)
                (outcome,) = fitted.predict(parts["test"])
                for metric in metrics_of(outcome.prediction, task.metrics):
                    bootstrap.figures(outcome.prediction, metric, task.draws, task.seed)

            began = time.process_time()
            seconds = timed(work)
            print(f"  {name}: {seconds:.1f} s, {time.process_time() - began:.1f} s of a core   (wanted < 20)")


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = console.parser("The cost of probing from cached features, and of 52 linear heads beside one.")
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--width", type=int, default=768, help="channels of a block")
    parser.add_argument("--labels", type=int, default=7)
    options = parser.parse_args(arguments)
    print(f"{torch.get_num_threads()} threads, {options.samples} samples, {options.width} channels")
    heads(options.samples, options.width, options.labels)
    print("from cached features to figures with 2,000 resamples, all labels:")
    cached(options.samples, options.width, options.labels)
    return 0


if __name__ == "__main__":
    console.launch(main)
