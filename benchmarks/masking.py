"""The gain from whole-sequence masking when a sequence is withheld, and from unlabelled patients beside a few labels.

    python benchmarks/masking.py [--output runs/bench-masking] [--seeds 3] [--patients 1000]

Three models of each seed: `masked` (pretrain/configs/synthetic_mri.yaml), `unmasked` (the same without whole-sequence
masking) and `supervised` (synthetic_mri_supervised.yaml: the same transformer on the labels alone), on synthetic brains
of whom a tenth have labels. Each is probed on all subsets of the sequences by eval.probe. Two models run side by side,
one thread each. A second start does what is missing.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks.seeds import run, shown, stacked
from data_prep.synthetic.brain import SEQUENCES
from eval.statistics import bootstrap, metrics
from eval.statistics.predictions import Scored
from meddap import console

_SELF = "pretrain/configs/synthetic_mri.yaml"
_LABELS = "pretrain/configs/synthetic_mri_supervised.yaml"
ARMS = {
    "masked": [_SELF],
    "unmasked": [_SELF, "stages.adapt.masks.sequence_probability=0"],
    "supervised": [_LABELS],
}
# which sequences the test patients have
SEEN = {"all four": SEQUENCES} | {f"no {each}": tuple(name for name in SEQUENCES if name != each) for each in SEQUENCES}
_MEAN = "one withheld, mean"
_METRIC, _DRAWS, _SALT = "auroc", 3000, "meddap-brains"


def make_data(output: Path, patients: int) -> Path:
    """Shards of synthetic brains."""
    brains, shards = output / "brains", output / "shards"
    size = ["modality=mr", f"patients={patients}", "size=64", "slices=6"]
    run("-m", "data_prep.generate", "--output", brains, *size, salt=_SALT)
    run("data_prep/shard_mri.py", "--input", brains, "--labels", brains / "labels.csv", "--output", shards, salt=_SALT)
    return shards


def train_and_probe(output: Path, shards: Path, arm: str, seed: int) -> Path:
    """The probe's folder of one model."""
    name = f"{arm}-{seed}"
    config, *more = ARMS[arm]
    fixed = [f"data.root={shards}", f"output={output}", f"name={name}", f"seed={seed}"]
    run("-m", "pretrain.train", "--config", config, *fixed, *more, salt=_SALT)
    probed = output / name / "probe"
    if not (probed / "results.jsonl").is_file():
        task = ["--task", "eval/configs/mri_subsets.yaml", f"data={shards}", "label=tumour", "labelled_share=0.1"]
        run("-m", "eval.probe", "--checkpoint", output / name, *task, "size=40", "--output", probed, salt=_SALT)
    console.say(f"{name}: done")
    return probed


def joined(folders: list[Path]) -> dict[str, Scored]:
    """The predictions for what the test patients have, those of several seeds as so many fits."""
    return {seen: stacked(folders, f"subsets sequences {'+'.join(names)}") for seen, names in SEEN.items()}


@dataclass(frozen=True)
class Mean:
    """Predictions for the same patients whose figures are averaged, each resample's and each fit's."""

    parts: tuple[Scored, ...]
    names: tuple[str, ...] = ("all",)

    @property
    def subjects(self) -> np.ndarray:
        return self.parts[0].subjects

    @property
    def scores(self) -> np.ndarray:
        """Scores of one of the predictions, which has as many fits as all others."""
        return self.parts[0].scores

    def metrics(self) -> tuple[str, ...]:
        return self.parts[0].metrics()

    def figures(self, metric: str, counts: np.ndarray, patients: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """(R, 1), see eval.statistics.predictions.Prediction."""
        each = [metrics.macro(part.figures(metric, counts, patients, draws)) for part in self.parts]
        return np.mean(each, axis=0)[:, None]


def withheld(found: dict[str, Scored]) -> Mean:
    """The mean over the sequences, each of them withheld in turn."""
    return Mean(tuple(each for seen, each in found.items() if seen != "all four"))


def table(arms: dict[str, dict[str, Scored]]) -> list[str]:
    """Markdown: a row for what the test patients have; figures of each arm and differences of `masked`."""
    rows: dict[str, dict[str, Scored | Mean]] = {arm: {**found, _MEAN: withheld(found)} for arm, found in arms.items()}
    others = [arm for arm in rows if arm != "masked"]
    heads = ["test patients have", *rows, *(f"masked − {arm}" for arm in others)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for seen in [*SEEN, _MEAN]:
        cells = [shown(bootstrap.figures(found[seen], _METRIC, _DRAWS, 0)) for found in rows.values()]
        for arm in others:
            one, other = rows[arm][seen], rows["masked"][seen]
            cells.append(shown(bootstrap.differences(one, other, _METRIC, _DRAWS, 0), "+"))
        lines.append("| " + " | ".join([seen, *cells]) + " |")
    return lines


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = console.parser(
        "The gain from whole-sequence masking and from unlabelled patients, on synthetic brains.",
        "Run it in the repository.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/bench-masking"), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model")
    parser.add_argument("--patients", type=int, default=1000)
    options = parser.parse_args(arguments)
    try:
        shards = make_data(options.output, options.patients)
        jobs = [(arm, seed) for seed in range(options.seeds) for arm in ARMS]
        with ThreadPoolExecutor(2) as pool:
            folders = list(pool.map(lambda job: train_and_probe(options.output, shards, *job), jobs))
        by_arm = {arm: [folder for (one, _), folder in zip(jobs, folders) if one == arm] for arm in ARMS}
    except OSError as error:
        return console.fail(f"{error.filename}: {error.strerror}")
    for seed in range(options.seeds):
        print(f"\nseed {seed}\n")
        print("\n".join(table({arm: joined([found[seed]]) for arm, found in by_arm.items()})))
    if options.seeds > 1:
        print(f"\n{options.seeds} seeds\n")
        print("\n".join(table({arm: joined(found) for arm, found in by_arm.items()})))
    return 0


if __name__ == "__main__":
    console.launch(main)
