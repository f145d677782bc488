"""Choosing a checkpoint: validation patients choose, the test is opened once, and none being better is an answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.planted_run import blind, noisy, plant, trained

from eval import choose, embed, probe, report, sweep
from eval.config import TaskConfig
from eval.data import sources
from eval.probes import registry
from pretrain import export
from pretrain.weights import encoder

TASK = """
{name: planted, size: 64, stride: {train: 1, val: 1, test: 1}, draws: 400, pictures: 0, probes: [logistic],
 logistic: {strengths: 5}, bf16: false}
"""


@pytest.fixture
def run(tiny_dataset, tmp_path: Path) -> Path:
    """A run of four kept steps, its data and a task beside it."""
    data = tiny_dataset(patients={"train": 10, "val": 12, "test": 8})
    (data / "manifest.jsonl").write_text("")
    (tmp_path / "task.yaml").write_text(TASK)
    return trained(tmp_path, data)


def chosen(run: Path, *words: str) -> int:
    """Run the command; its exit status."""
    task, data = run.parent / "task.yaml", run.parent / "data"
    return choose.main(["--run", str(run), "--task", str(task), f"data={data}", *words])


def record(run: Path) -> dict:
    return json.loads((run / "chosen.json").read_text())


def openings(run: Path) -> dict[str, int]:
    """How often each folder of a choice opened the test."""
    found = run.glob("choose/*/*/test_opened.jsonl")
    return {path.parent.name: len(path.read_text().splitlines()) for path in found}


def test_the_best_milestone_in_the_middle_is_chosen(run: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Blind at the start and at the end, seeing in the middle: the middle is chosen, the test opened once for both."""
    intact = noisy(0.0)
    plant(run, {2: intact, 1: blind(1), 3: blind(3), 4: blind(4), 0: blind(0)})
    assert chosen(run, "--strict") == 0
    out = capsys.readouterr().out
    found = record(run)
    assert found["checkpoint"] == "adapt/00000002" and found["beats_start"] and "is chosen" in out
    assert "the gain is confirmed" in out and "adapt/00000002 ←" in out
    (task,) = found["tasks"]
    gains = {point["checkpoint"]: point.get("gain_low") for point in task["validation"]}
    assert gains["adapt/00000002"] > 0 and gains["adapt/00000000"] is None
    assert max((low, name) for name, low in gains.items() if low is not None)[1] == "adapt/00000002"
    assert openings(run) == {"start": 1, "chosen": 1}
    assert chosen(run, "--strict") == 0 and openings(run) == {"start": 1, "chosen": 1} and record(run) == found
    name = f"{run}:chosen"
    assert encoder.find(name).path == run / "adapt" / "00000002"
    assert export.main(["--checkpoint", name, "--format", "dinov3", "--output", str(tmp_path / "e.pth")]) == 0
    words = ["--task", str(tmp_path / "task.yaml"), f"data={tmp_path / 'data'}"]
    assert probe.main(["--checkpoint", name, *words, "--output", str(tmp_path / "p")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "p" / "results.jsonl").read_text().splitlines()]
    assert "planted/adapt/00000002 (teacher)" in {row["encoder"] for row in rows}
    vectors = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "v.npz"), "size=64", "bf16=false"]
    for checkpoint in (name, str(run / "adapt" / "00000002")):
        assert embed.main(["--checkpoint", checkpoint, *vectors]) == 0
        (tmp_path / "v.npz").rename(tmp_path / f"{checkpoint[-1]}.npz")
    one, other = (np.load(tmp_path / f"{letter}.npz", allow_pickle=False) for letter in "n2")
    assert all(np.array_equal(one[key], other[key]) for key in one.files)
    points = sweep.plan([str(run), name], [64], TaskConfig(data="x"), tmp_path)
    assert [point.name for point in points] == ["planted", "planted-chosen"]
    page = report.report([run])
    assert "Which checkpoint" in page and "adapt/00000002 is chosen." in page


def test_each_milestone_is_seen_in_its_best_window(run: Path, capsys: pytest.CaptureFixture) -> None:
    """windows: chosen on validation patients before and after alike, and again by the test, which is opened once."""
    plant(run, {2: noisy(0.0), 1: blind(1), 3: blind(3), 4: blind(4), 0: blind(0)})
    for _ in range(2):
        assert chosen(run, "windows=[[3000,3001],[-1000,1000]]") == 0
        assert record(run)["checkpoint"] == "adapt/00000002" and openings(run) == {"start": 1, "chosen": 1}
    assert "window: -1000 to 1000 HU, by logistic auroc on validation patients (3000 to 3001 HU 0." in (
        capsys.readouterr().err
    )
    rows = [json.loads(line) for line in (run / "choose/planted/chosen/results.jsonl").read_text().splitlines()]
    assert {str(row["window"]["hu"]) for row in rows} == {"[[-1000.0, 1000.0]]"}


def test_where_no_milestone_beats_the_start_it_stays(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Milestones made by adding noise: the verdict says keep the start, in words and as status 3; none is tested."""
    plant(run, {step: noisy(0.3 * step, step) for step in (1, 2, 3, 4)})
    assert chosen(run) == 0
    assert chosen(run, "--strict") == 3
    out = capsys.readouterr().out
    assert "No milestone beats the start: keep the published weights" in out
    assert record(run)["checkpoint"] == "adapt/00000000" and not record(run)["beats_start"]
    assert openings(run) == {"start": 1} and encoder.find(f"{run}:chosen").step == 0
    assert "No milestone beats the start" in report.report([run])


def test_no_image_of_a_test_patient_is_read_before_the_choice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads up to the opening of the test are of training and validation patients."""
    read, place = [], sources.load

    def watched(task, cache):
        examples = place(task, cache)
        reader = examples.reader

        def noted(number: int):
            read.append(str(examples.splits[number]))
            return reader(number)

        return replace(examples, reader=noted)

    def opened(*words, **more):
        assert set(read) == {"train", "val"}
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "load", watched)
    monkeypatch.setattr(probe, "run", opened)
    with pytest.raises(KeyboardInterrupt):
        chosen(run)
    assert not (run / "chosen.json").exists()


def test_a_killed_choice_goes_on_where_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the third teacher, then started again: the two that are done are not fitted again, the end is the
    same."""
    plant(run, {step: noisy(0.1, step) for step in (1, 2, 3, 4)})
    fits: list[int] = []
    fit = registry.PROBES["logistic"].fit

    def counted(*words):
        if len(fits) == 2 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        fits.append(1)
        return fit(*words)

    stopped: list[bool] = []
    monkeypatch.setitem(registry.PROBES, "logistic", replace(registry.PROBES["logistic"], fit=counted))
    with pytest.raises(KeyboardInterrupt):
        chosen(run)
    assert chosen(run) == 0
    validations = len(fits) - len(openings(run))
    assert validations == 5


def test_two_tasks_choose_by_mean_rank_or_by_the_main_one(run: Path, tmp_path: Path) -> None:
    """A second task of its own name: both in the record; --main lets one decide."""
    plant(run, {0: blind(0), 1: blind(1), 2: noisy(0.0), 3: blind(3), 4: blind(4)})
    (tmp_path / "other.yaml").write_text(TASK.replace("name: planted", "name: other, main: logistic/auprc"))
    words = ["--task", str(tmp_path / "other.yaml")]
    assert chosen(run, *words) == 0
    found = record(run)
    assert [task["task"] for task in found["tasks"]] == ["planted", "other"] and "mean rank" in found["rule"]
    assert found["checkpoint"] == "adapt/00000002" and found["tasks"][1]["metric"] == "auprc"
    assert chosen(run, *words, "--main", "other") == 0 and "on other" in record(run)["rule"]


def test_what_cannot_be_chosen_by_is_one_line(run: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """A folder that is no run, one without milestones, a task without patients left, names that clash; status 1."""
    capsys.readouterr()
    task = str(tmp_path / "task.yaml")
    (tmp_path / "bare").mkdir()
    for words, expected in (
        (("split.by=kfold",), "split.by=kfold tests every patient"),
        (("--task", task), "two tasks are named planted"),
        (("--main", "x"), "--main x: no such task"),
        (("main=logistic",), "give PROBE/METRIC"),
        (("main=knn/auroc",), "the task has no probe knn"),
        (("main=logistic/dice",), "gives dice"),
        (("name=a/b",), "cannot name a folder"),
        (("data=/nowhere",), "no finished data set there"),
        (("main=logistic/auroc", "metrics=[ece]"), "add auroc to them"),
    ):
        assert chosen(run, *words) == 1, words
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert expected in line
    assert choose.main(["--run", str(tmp_path / "bare"), "--task", task, "data=x"]) == 1
    assert "not a run" in capsys.readouterr().err
    assert export.main(["--checkpoint", f"{run}:chosen", "--format", "dinov3", "--output", str(tmp_path / "x.pth")])
    assert "nothing was chosen there" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["cut", "elsewhere", "gone", "replaced"])
def test_a_record_that_does_not_fit_is_refused(run: Path, change: str, capsys: pytest.CaptureFixture) -> None:
    """A cut record, one that points out of the run, a checkpoint that is gone, or holds other weights: one line."""
    plant(run, {step: noisy(0.3 * step, step) for step in (1, 2, 3, 4)})
    assert chosen(run) == 0
    path = run / "chosen.json"
    if change == "cut":
        path.write_text(path.read_text()[:50])
    elif change == "elsewhere":
        path.write_text(json.dumps(record(run) | {"checkpoint": "../00000000"}))
    elif change == "gone":
        (run / "adapt" / "00000000").rename(run / "moved")
    else:
        plant(run, {0: noisy(0.1)})
    capsys.readouterr()
    assert export.main(["--checkpoint", f"{run}:chosen", "--format", "dinov3", "--output", str(run / "x.pth")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "choose again" in line
