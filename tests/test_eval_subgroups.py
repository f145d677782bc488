"""For whom it works: a planted gap is found, none is invented, small groups are named; and what was forgotten."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import probed
from helpers.datasets import body_slice

from data_prep.schema import Split
from eval import compare, probe, report
from eval.config import TaskConfig
from eval.data import groups
from eval.statistics import subgroups
from eval.statistics.predictions import Tabled
from meddap.settings import SettingsError

PATIENTS = 48


def members(seed: int) -> dict[str, dict[str, str]]:
    """Sex, scanner and age at random."""
    rng = np.random.default_rng(seed)
    values = {"sex": ["F", "M"], "manufacturer": ["a", "b", "c"], "age_decade": ["50", "60"]}
    return {name: {f"{n:03d}": str(rng.choice(mine)) for n in range(PATIENTS)} for name, mine in values.items()}


def drawn(shift: np.ndarray | float, seed: int = 0, patients: int = PATIENTS) -> Tabled:
    """Dice of patients about 0.7 and a shift for each."""
    values = 0.7 + np.random.default_rng(seed).normal(0, 0.05, patients) + shift
    return Tabled({"dice": values[None, :, None]}, np.array([f"{n:03d}" for n in range(patients)]), ("all",))


def invented(studies: int, gains: bool = False) -> float:
    """Share of studies without any gap in which one is called real."""
    wrong = 0
    for seed in range(studies):
        one, rest = drawn(0.0, seed), ("dice", members(seed), 5, 400, seed)
        found = subgroups.gains(one, drawn(0.0, seed + 10_000), *rest) if gains else subgroups.figures(one, *rest)
        wrong += any(each.p < 0.05 for each in found[0])
    return wrong / studies


def test_no_gap_is_invented() -> None:
    """Of 200 studies of seven groups about 5 % call a gap real where there is none (upper limit of 200: 8 %)."""
    assert invented(200) <= 0.08


@pytest.mark.stress
@pytest.mark.parametrize("gains", [False, True])
def test_no_gap_is_invented_in_many_studies(gains: bool) -> None:
    """Of 2000 studies at most 6.5 %, figures and gains alike; and no less than 2 %, for a test that never calls a gap
    real is none."""
    assert 0.02 <= invented(2000, gains) <= 0.065


def test_a_planted_gap_is_found_and_no_other() -> None:
    """Women 0.1 below men: both sides of that gap are real, scanner and age are not; the interval holds the gap."""
    mine = members(1)
    women = np.array([mine["sex"][f"{n:03d}"] == "F" for n in range(PATIENTS)])
    found, small = subgroups.figures(drawn(-0.1 * women), "dice", mine, 5, 1000, 0)
    real = {(each.attribute, each.name): each.gap for each in found if each.p < 0.05}
    assert set(real) == {("sex", "F"), ("sex", "M")} and real["sex", "F"] < 0 < real["sex", "M"] and not small
    worst = min(found, key=lambda each: each.gap)
    assert worst.name == "F" and worst.gap_low < -0.1 < worst.gap_high and worst.patients == women.sum()
    assert worst.value == pytest.approx(drawn(-0.1 * women).values["dice"][0, women, 0].mean())
    gained, _ = subgroups.gains(drawn(0.0), drawn(0.2 - 0.15 * women, seed=5), "dice", mine, 5, 1000, 0)
    less = {each.name for each in gained if each.p < 0.05 and each.gap < 0}
    assert less == {"F"}


def test_small_groups_are_named_and_not_scored() -> None:
    """Fewer than ten, or leaving fewer than ten, or unknown: no figure."""
    values = {f"{n:03d}": "rare" if n < 4 else "common" for n in range(PATIENTS - 5)}
    found, small = subgroups.figures(drawn(0.0), "dice", {"kernel": values}, 10, 200, 0)
    assert {each.name: each.patients for each in found} == {"common": 39} or not found
    assert {each.name: each.patients for each in small if each.name != "common"} == {"rare": 4, "unknown": 5}


def test_console_and_page_say_for_whom(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The worst group stands in both, in words, with its interval; the small one by name."""
    mine = members(2) | {"kernel": {f"{n:03d}": "rare" if n < 3 else "common" for n in range(PATIENTS)}}
    women = np.array([mine["sex"][f"{n:03d}"] == "F" for n in range(PATIENTS)])
    task = TaskConfig(data="x", draws=400, subgroups=list(mine), subgroup_patients=5)
    folders = [
        probed.write(tmp_path / name, task, {"segmentation": drawn(shift - 0.1 * women)})
        for name, shift in (("before", 0.0), ("after", 0.1))
    ]
    for folder in folders:
        groups.write(folder, mine)
    assert compare.main(["--runs", *map(str, folders)]) == 0
    out = capsys.readouterr().out
    assert "Subgroup sex F" in out and "is WORSE than the others by 0.1" in out and "kernel rare (3)" in out
    page = report.report(folders)
    assert "<h3>For whom</h3>" in page and "is WORSE than the others" in page and "kernel rare (3)" in page
    (folders[1] / groups.NAME).write_text('{"sex": 3}')
    assert compare.main(["--runs", *map(str, folders)]) == 1
    assert "probe again" in capsys.readouterr().err


def scanned(rng: np.random.Generator, subject: int, order: int, size: int):
    """A slice with a header: two sexes, ages apart."""
    meta = {"sex": "FM"[subject % 2], "age_decade": 50 + 10 * (subject % 3), "slice_thickness_mm": 3.0000001}
    return replace(body_slice(rng, subject, order, size), meta=meta)


TASK = "{size: 64, draws: 50, pictures: 0, probes: [logistic], logistic: {strengths: 3}, subgroup_patients: 2}"


def measured(folder: Path, data: Path, *words: str) -> int:
    """Probe the pixels; the exit status."""
    (folder / "task.yaml").write_text(TASK)
    task = ["--checkpoint", "pixels", "--task", str(folder / "task.yaml"), f"data={data}"]
    return probe.main([*task, "--output", str(folder / "out"), *words])


def test_groups_come_from_the_shards_and_the_table(tiny_dataset, tmp_path: Path, capsys, monkeypatch) -> None:
    """Metadata by patient, of test patients alone; a table's column too, which is then no label; what no patient has,
    and what tells every patient apart, is one line."""
    data = tiny_dataset(patients={"train": 6, "val": 4, "test": 6}, make=scanned)
    assert measured(tmp_path, data, "subgroups=[sex,age_decade,slice_thickness_mm]") == 0
    found = json.loads((tmp_path / "out" / groups.NAME).read_text())
    assert [len(found[name]) for name in ("sex", "age_decade")] == [6, 6]
    assert set(found["age_decade"].values()) == {"50", "60", "70"} and set(found["slice_thickness_mm"].values()) == {
        "3"
    }
    assert measured(tmp_path, data) == 0 and not (tmp_path / "out" / groups.NAME).exists()
    capsys.readouterr()
    assert measured(tmp_path, data, "subgroups=[sexx]") == 1
    assert "no test patient has 'sexx'; there are age_decade, sex, site" in capsys.readouterr().err
    everyone = list(dict.fromkeys(_subjects(data)))
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        rows = [["id", "sick", "ward", "name"]]
        rows += [[each, n % 2, "east" if n % 4 < 2 else "west", f"n{n}"] for n, each in enumerate(everyone)]
        csv.writer(file).writerows(rows)
    words = ["source=table", "kind=multilabel", f"table.file={tmp_path / 'labels.csv'}", "table.labels=[]"]
    assert measured(tmp_path, data, *words, "subgroups=[ward,name]") == 1
    assert "'name' has 6 values in 6 test patients" in capsys.readouterr().err
    assert measured(tmp_path, data, *words, "subgroups=[ward]", "table.labels=[sick]") == 0
    assert set(groups.read(tmp_path / "out")["ward"].values()) == {"east", "west"}


def _subjects(data: Path) -> list[str]:
    return [Split(data, name)[n].subject for name in ("train", "val", "test") for n in range(len(Split(data, name)))]


def test_what_was_forgotten_stands_beside_the_gain(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """--elsewhere: gain here, loss there, both in words and as rows; other encoders there are refused."""
    here, there = TaskConfig(data="x", name="ct", draws=300), TaskConfig(data="y", name="photos", draws=300)
    made = {}
    for name, task, change in (("here", here, 0.1), ("there", there, -0.1)):
        for end, shift in (("before", 0.0), ("after", change)):
            made[name, end] = probed.write(
                tmp_path / name / end, task, {"segmentation": drawn(shift, seed=len(made))}, encoder=f"run/{end}"
            )
    words = ["--runs", *(str(made["here", end]) for end in ("before", "after"))]
    away = ["--elsewhere", *(str(made["there", end]) for end in ("before", "after"))]
    assert compare.main([*words, *away, "--output", str(tmp_path / "c.jsonl")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ct: after against before is a GAIN")
    assert "Elsewhere: photos: after against before is a LOSS" in out and "| photos: segmentation | dice |" in out
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert {row.get("elsewhere", False) for row in rows} == {True, False}
    assert compare.main([*words, "--elsewhere", *reversed(away[1:])]) == 1
    assert "probe the same checkpoint there" in capsys.readouterr().err


def test_pairs_of_other_patients_have_no_gain() -> None:
    """Two predictions of different patients cannot be paired."""
    with pytest.raises(ValueError, match="different patients"):
        subgroups.gains(drawn(0.0), drawn(0.0, patients=9), "dice", members(0), 5, 50, 0)
    with pytest.raises(SettingsError):
        compare.main.__wrapped__(["--runs", "none", "none"])
