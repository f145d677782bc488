"""One training over four sources, killed ten times; and its encoder beside three of one source each.

    python benchmarks/several_sources.py --input FOLDER [--output runs/bench-sources] [--seeds 3] [--kills 10]

FOLDER has ct_openkbp/ (head-and-neck CT), mri_brats/ (brain MR), pneumonia_subset.npz (chest radiographs, MedMNIST) and
brain_mri_4class/ (pictures of brain MR in folders of classes), at any depth; the fourth source are synthetic trunks.
The configuration is pretrain/configs/several_sources.yaml. First a short run of it is trained twice, once undisturbed,
once killed (SIGKILL) at random moments on one, two and four processes: samples, metrics and shares are compared. Then
four encoders of each seed, as many steps each: all sources, CT alone, MR alone, radiographs alone. All of them, their
common start and statistics of pixels are probed on CT, MR and radiographs. A second start does what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import killed
from benchmarks.seeds import run, shown, stacked
from eval import probe
from eval.statistics import bootstrap
from eval.statistics.predictions import Scored
from meddap import console
from meddap.settings import SettingsError
from pretrain.config import load
from pretrain.corpora import open_corpus
from pretrain.runtime import metrics

_CONFIG = "pretrain/configs/several_sources.yaml"
_SALT = "meddap-openkbp"  # the test patients of docs/results.md
_INPUTS = ("ct_openkbp", "mri_brats", "pneumonia_subset.npz", "brain_mri_4class")
SOURCES = ("neck", "brain", "chest", "trunk")
ALONE = {"CT alone": "neck", "MR alone": "brain", "radiographs alone": "chest"}
ALL = "four sources"
# name under which an encoder takes images of one sequence: the modality's own where it learned it, else all that it did
_NAMES = {"neck": "ct", "brain": "t1c", "chest": "xray"}
_PROBES, _METRIC, _DRAWS = ("knn", "logistic"), "auroc", 2000
_SHORT, _CLOSE = 60, 1e-4  # steps of the run that is killed; the most that its numbers may differ by
_WINDOW = "window=[-250,450]"  # of neck, for the encoders that did not learn it too
TASKS = {  # by the source whose modality it is: what is asked, the task, its settings
    "neck": ("CT: organs in a slice", "openkbp_presence", ["stride.train=6", "stride.val=6", "stride.test=4", _WINDOW]),
    "brain": ("MR: kind of tumour", "brain_mri_4class", []),
    "chest": ("radiographs: pneumonia", "pneumonia", []),
}


def find(folder: Path) -> dict[str, Path]:
    """Return the inputs by name. Raises SettingsError for one that is not there."""
    found = {}
    for name in _INPUTS:
        there = [folder / name, *sorted(folder.glob(f"*/{name}"))]
        found[name] = next((path for path in there if path.exists()), folder / name)
        if not found[name].exists():
            raise SettingsError(f"--input {folder}: has no {name}, itself or in a folder of it")
    return found


def make_shards(output: Path, inputs: dict[str, Path]) -> Path:
    """Return the folder with the shards of the four sources."""
    shards, every = output / "shards", ["split.train=1", "split.val=0", "split.test=0"]
    pictures = output / "radiographs"
    pictures.mkdir(parents=True, exist_ok=True)
    file = inputs["pneumonia_subset.npz"]
    if not (pictures / file.name).exists():
        (pictures / file.name).symlink_to(file.resolve())
    run("-m", "data_prep.generate", "--output", output / "trunks", salt=_SALT)
    for name, command, folder, more in (
        ("neck", "ct", inputs["ct_openkbp"], []),
        ("brain", "mri", inputs["mri_brats"], every),  # its probe is on other patients
        ("chest", "images", pictures, ["sequence=xray"]),
        ("trunk", "ct", output / "trunks", []),
    ):
        run(f"data_prep/shard_{command}.py", "--input", folder, "--output", shards / name, *more, salt=_SALT)
    return shards


def words(output: Path, shards: Path, name: str, seed: int, source: str | None = None) -> list[str]:
    """Return the arguments of a training, of one source alone where it is named."""
    found = ["--config", _CONFIG, f"output={output}", f"name={name}", f"seed={seed}"]
    found += [f"data.sources.{each}.root={shards / each}" for each in SOURCES]
    return found + [f"data.sources.{each}.weight={int(each == source)}" for each in SOURCES if source]


def check_kills(output: Path, shards: Path, kills: int) -> Iterator[str]:
    """Yield what came of a run that was killed, beside the one that was not. Raises SettingsError where they differ."""
    # bf16 rounds so coarsely that another division of a batch shows after a few steps
    short = [f"stages.adapt.steps={_SHORT}", "save.every=5", "machine.precision=float32"]
    run("-m", "pretrain.train", *words(output, shards, "whole", 0), *short, salt=_SALT)
    arguments = [*words(output, shards, "killed", 0), *short]
    if not (output / "killed" / "starts.txt").is_file():
        starts = killed.train(arguments, output / "killed", _SHORT, kills, seed=kills)
        (output / "killed" / "starts.txt").write_text(" ".join(map(str, starts)))
    starts = [int(word) for word in (output / "killed" / "starts.txt").read_text().split()]
    same = killed.compare(output / "whole" / "adapt", output / "killed" / "adapt")
    yield f"killed {len(starts) - 1} times; processes of each start: {', '.join(map(str, starts))}"
    yield (
        f"of {same.steps} steps, {same.samples} have other samples and {same.other} another whole number than the run "
        f"that nobody killed; other numbers differ by at most {same.difference:.1e} of their size"
    )
    last = metrics.read(output / "killed" / "adapt" / "metrics.jsonl")[-1]
    corpus = open_corpus(load(_CONFIG, arguments[2:]))
    seen = {name: last[f"source/{name}/samples"] for name in corpus.names}
    yield "| source | asked | given | off by |\n|---|---|---|---|"
    off = {}
    for name, share in zip(corpus.names, corpus.share):
        given = seen[name] / sum(seen.values())
        off[name] = abs(given / share - 1)
        yield f"| {name} | {share:.2%} | {given:.2%} | {off[name]:.2%} of it |"
    if same.samples or same.other or same.difference > _CLOSE or max(off.values()) > 0.01:
        raise SettingsError(f"{output / 'killed'}: not the run that nobody killed, or not the shares; see above")


def probed(output: Path, checkpoint: Path | str, name: str, task: str, data: Path, *more: str) -> Path:
    """Return the folder of a probe. Raises SettingsError where it fails."""
    folder = output / "probes" / f"{name}-{task}"
    if not (folder / "results.jsonl").is_file():
        file, said = TASKS[task][1], StringIO()
        settings = [
            f"data={data}",
            "size=64",
            f"probes=[{','.join(_PROBES)}]",
            f"metrics=[{_METRIC}]",
            f"draws={_DRAWS}",
        ]
        settings += ["keep_heads=false", "pictures=0", "leaks=refuse", *TASKS[task][2], *more]
        call = [
            "--checkpoint",
            str(checkpoint),
            "--task",
            f"eval/configs/{file}.yaml",
            "--output",
            str(folder),
            *settings,
        ]
        with redirect_stdout(said), redirect_stderr(said):
            status = probe.main(call)
        if status:
            raise SettingsError(f"{folder}: exit status {status}: {said.getvalue().strip().splitlines()[-1]}")
        console.say(f"{folder.name}: done")
    return folder


def encoders(output: Path, seeds: int) -> Iterator[tuple[str, str, Path | str, dict[str, str]]]:
    """Yield row of the table, name, checkpoint, and the settings of each task by which the encoder takes its images."""
    yield "pixels", "pixels", "pixels", {}
    own = {task: f"sequence={name}" for task, name in _NAMES.items()}
    for seed, arm in product(range(seeds), ("start", ALL, *ALONE)):
        trained = output / folder_of(arm, seed)
        step = trained / "adapt" / "00000000" if arm == "start" else trained
        only = {task: f"sequence={_NAMES[ALONE[arm]]}" for task in TASKS} if arm in ALONE else own
        yield arm, f"start-{seed}" if arm == "start" else trained.name, step, only


def folder_of(arm: str, seed: int) -> str:
    """Return the name of an encoder's run; that of all sources has the common start, too."""
    return f"{ALONE.get(arm, 'mixed')}-{seed}"


def table(found: dict[str, dict[str, list[Path]]]) -> Iterator[str]:
    """Yield Markdown: for each task and probe the figures of each encoder, and differences."""
    heads = ["probe", *found["neck"], "four sources − start", "four sources − its modality alone"]
    yield "| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|"
    for task, name in product(TASKS, _PROBES):
        arms = {arm: stacked(folders, name) for arm, folders in found[task].items()}
        cells = [f"{TASKS[task][0]}, {name}"]
        cells += [shown(bootstrap.figures(each, _METRIC, _DRAWS, 0)) for each in arms.values()]
        home = next(arm for arm, source in ALONE.items() if source == task)
        for other in ("start", home):
            cells.append(difference(arms[other], arms[ALL]))
        yield "| " + " | ".join(cells) + " |"


def difference(one: Scored, other: Scored) -> str:
    """Return `other` − `one` on the same patients and seeds."""
    return shown(bootstrap.differences(one, other, _METRIC, _DRAWS, 0), "+")


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = console.parser(
        "One training over four sources, killed ten times; its encoder beside three of one source each.",
        "Run it in the repository. About two hours of a core with three seeds.",
    )
    parser.add_argument("--input", type=Path, required=True, metavar="FOLDER", help="the public images, see above")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-sources"), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each encoder")
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args(arguments)
    output, inputs = options.output, find(options.input)
    shards = make_shards(output, inputs)
    for line in check_kills(output, shards, options.kills):
        print(line)
    for seed, arm in product(range(options.seeds), (ALL, *ALONE)):
        name = folder_of(arm, seed)
        run("-m", "pretrain.train", *words(output, shards, name, seed, ALONE.get(arm)), salt=_SALT)
        console.say(f"{name}: trained")
    data = {"neck": shards / "neck", "brain": inputs["brain_mri_4class"], "chest": inputs["pneumonia_subset.npz"]}
    found: dict[str, dict[str, list[Path]]] = {task: {} for task in TASKS}
    for arm, name, checkpoint, settings in encoders(output, options.seeds):
        for task in TASKS:
            more = [settings[task]] if task in settings else []
            found[task].setdefault(arm, []).append(probed(output, checkpoint, name, task, data[task], *more))
    print("\n".join(["", *table(found)]))
    return 0


if __name__ == "__main__":
    console.launch(main)
