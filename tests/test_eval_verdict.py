"""What is said first: gain and loss in plain words, the floor, and what to beware."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import probed
from helpers.cohorts import made_up

from eval import compare, report
from eval.config import TaskConfig
from eval.data.cohorts import Cohort
from eval.probes import site
from eval.reporting import report_probes, verdict, verdict_page
from eval.statistics import confounding, holm
from eval.statistics.predictions import Prediction, Scored, Tabled

PATIENTS = 24


def drawn(dice: float, hd95: float = 5.0, patients: int = PATIENTS, seed: int = 0) -> Tabled:
    """Dice and HD95 of patients, about these means; the same patients are hard for every encoder."""
    rng = np.random.default_rng(7)
    hard = rng.normal(0, 0.05, (1, patients, 1))
    noise = np.random.default_rng(seed).normal(0, 0.01, (1, patients, 1))
    values = {"dice": dice + hard + noise, "hd95": hd95 - 10 * hard - 10 * noise}
    return Tabled(values, np.array([f"{n:03d}" for n in range(patients)]), ("all",))


def told(skill: float, seed: int = 0, sure: float = 1.0) -> Scored:
    """Probabilities of a label for patients of five slices each, right more often the larger `skill` is."""
    rng = np.random.default_rng(3)
    target = np.repeat(rng.integers(0, 2, PATIENTS), 5)
    score = skill * (target - 0.5) + np.random.default_rng(seed).normal(0, 0.5, len(target))
    probability = 1 / (1 + np.exp(-4 * sure * score))
    subjects = np.repeat([f"{n:03d}" for n in range(PATIENTS)], 5)
    keys = np.array([f"{n:04d}" for n in range(len(target))])
    return Scored("multilabel", probability[None, :, None], target[:, None].astype(float), subjects, keys, ("a",))


def folders(tmp_path: Path, *many: tuple[str, dict[str, Prediction]], **more: object) -> list[Path]:
    task = TaskConfig(data="x", name="organs", draws=400)
    return [probed.write(tmp_path / name, task, predictions, **more) for name, predictions in many]


@pytest.mark.parametrize(("change", "expected"), [(0.1, "is a GAIN"), (-0.1, "is a LOSS"), (0.0, "no difference")])
def test_gain_loss_and_neither_are_said_alike(
    change: float, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Console and page open with the same sentence, with interval and patients; a loss is as loud as a gain."""
    mine = folders(tmp_path, ("before", {"knn": drawn(0.6)}), ("after", {"knn": drawn(0.6 + change, seed=1)}))
    assert compare.main(["--runs", *map(str, mine)]) == 0
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    assert first.startswith("organs: after against before") and expected in first and f"{PATIENTS} patients" in first
    page = html.unescape(report.report(mine))
    opening = page[page.index("<h2>Verdict") : page.index("<h2>Probes")]
    assert first in opening
    kinds = {"is a GAIN": "verdict good", "is a LOSS": "verdict bad", "no difference": "verdict "}
    assert f'class="{kinds[expected]}">{first}' in opening


def test_a_loss_beside_the_gain_is_named(tmp_path: Path) -> None:
    """Dice rises and kNN falls: the gain is the main figure, the loss is in the next sentence by name, in red."""
    before, after = {"knn": told(1.5), "segmentation": drawn(0.5)}, {"knn": told(0.2), "segmentation": drawn(0.7)}
    mine = folders(tmp_path, ("before", before), ("after", after))
    (found,) = verdict_page.verdicts(mine)
    assert found.call == "GAIN" and found.row["metric"] == "dice"
    assert "LOST (knn auroc -0." in found.about_others()
    page = report.report(mine)
    assert re.search(r'class="verdict bad">organs: of \d+ other figures \d+ LOST', page)


def test_a_smaller_distance_is_a_gain_and_is_in_mm(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """main=knn/hd95: fewer millimetres are better."""
    task = TaskConfig(data="x", name="organs", draws=400, main="knn/hd95")
    one = probed.write(tmp_path / "before", task, {"knn": drawn(0.6, 9.0)})
    other = probed.write(tmp_path / "after", task, {"knn": drawn(0.6, 5.0, seed=1)})
    assert compare.main(["--runs", str(one), str(other)]) == 0
    out = capsys.readouterr().out
    assert "is a GAIN by knn hd95 (mm)" in out and "| knn | hd95 (mm) | all | -" in out
    assert "hd95 (mm)" in report.report([one, other])


def test_what_to_beware_is_said(tmp_path: Path) -> None:
    """Few patients, leaks, an unchecked encoder, an open test, mixed-up sites, bad probabilities, a floor not left."""
    leaks = {"by_id": 3, "by_pixels": 0, "in_splits": 0, "unchecked": "nobody says"}
    words = {"leaks": leaks, "test_opened": 4, "confounded": ["the site alone tells a in 98% of the patients"]}
    task = TaskConfig(data="x", name="organs", draws=200)
    few = {"knn": drawn(0.6, patients=6), "logistic": told(0.1, sure=9.0)}
    mine = [probed.write(tmp_path / name, task, few, **words) for name in ("before", "after")]
    mine.append(probed.write(tmp_path / "floor", task, {"knn": drawn(0.7, patients=6)}, encoder="pixels"))
    (found,) = verdict_page.verdicts(mine)
    said = " | ".join(found.warnings)
    for text in (
        "few patients (6)",
        "LEAK: 3 test patients of after were patients of pretraining",
        "not checked against pretraining: nobody says",
        "looked at 4 times",
        "the site alone tells a",
        "uncalibrated probabilities of after (ece): logistic",
        "not shown to be above the floor",
    ):
        assert text in said
    assert found.floor is not None and "BELOW" in found.about_floor()
    page = html.unescape(report.report(mine))
    assert all(text in page for text in found.warnings)


def test_the_floor_is_found_beside_folders_that_are_named_by_hand(tmp_path: Path, capsys) -> None:
    """Pixels on the same task and data in the same place, wherever that is; those of another task are no floor."""
    mine = folders(tmp_path, ("before", {"knn": drawn(0.6)}), ("after", {"knn": drawn(0.7, seed=1)}))
    task = TaskConfig(data="x", name="other", draws=50)
    probed.write(tmp_path / "strange", task, {"knn": drawn(0.9)}, encoder="pixels")
    command = ["--runs", *map(str, mine)]
    assert compare.main(command) == 0
    assert "No floor: what the pixels give without a network was not measured; --floor DIR" in capsys.readouterr().out
    assert "organs: no floor: what the pixels give" in html.unescape(report.report(mine))
    floor = probed.write(tmp_path / "a", replace(task, name="organs"), {"knn": drawn(0.3)}, encoder="pixels")
    assert compare.main(command) == 0
    assert "Floor: pixels 0." in capsys.readouterr().out and "after is above it" in html.unescape(report.report(mine))
    elsewhere = floor.rename(tmp_path / "floors") and tmp_path / "floors"
    (tmp_path / "deep").mkdir()
    there = elsewhere.rename(tmp_path / "deep" / "pixels")
    assert compare.main([*command, "--floor", str(there)]) == 0
    assert "after is above it" in capsys.readouterr().out
    assert compare.main([*command, "--floor", str(mine[0])]) == 1
    assert "probes before, not the pixels" in capsys.readouterr().err


def test_the_floor_of_two_probes_is_the_second_ones(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """--probes knn logistic of one folder: above the pixels' logistic regression."""
    (both,) = folders(tmp_path, ("run", {"knn": told(0.5), "logistic": told(2.0, seed=1)}))
    task = TaskConfig(data="x", name="organs", draws=100)
    probed.write(tmp_path / "pixels", task, {"knn": told(3.0), "logistic": told(0.1)}, encoder="pixels")
    assert compare.main(["--runs", str(both), str(both), "--probes", "knn", "logistic"]) == 0
    assert "run is above it" in capsys.readouterr().out


def test_sites_that_training_had_not_stand_beside_the_site_line(tmp_path: Path, capsys) -> None:
    """Leave one site out: where the same weights were tested so, its figure; else what to run."""
    figure = {"value": 0.8, "low": 0.7, "high": 0.9, "patients": 24, "sites": 2}
    task = TaskConfig(data="x", name="organs", draws=400)
    for name, dice, seed in (("before", 0.6, 0), ("after", 0.7, 1)):
        words = {"site_told": figure, "weights": name, "tested": "given"}
        probed.write(tmp_path / name, task, {"knn": drawn(dice, seed=seed)}, **words)
    command = ["--runs", str(tmp_path / "before"), str(tmp_path / "after")]
    assert compare.main(command) == 0
    assert "not measured, probe both again with split.by=site" in capsys.readouterr().out
    for name, dice, seed in (("before", 0.5, 0), ("after", 0.4, 1)):
        words = {"site_told": figure, "weights": name, "tested": "site"}
        probed.write(tmp_path / f"sites-{name}", task, {"knn": drawn(dice, seed=seed)}, **words)
    assert compare.main(command) == 0
    out = capsys.readouterr().out
    assert re.search(r"Each site in turn, by the patients of the others: knn dice 0\.\d+ → 0\.\d+ \(-0\.", out), out
    mine = [tmp_path / name for name in ("before", "after", "sites-before", "sites-after")]
    found = verdict_page.verdicts(mine)
    assert [(each.before, each.after, each.call) for each in found] == [
        ("before", "after", "GAIN"),
        ("sites-before", "sites-after", "LOSS"),
    ]
    assert "Each site was tested by the patients of the others" in html.unescape(report.report(mine))


def test_the_first_sentence_counts_the_steps_that_were_taken(tmp_path: Path) -> None:
    """A training of 50 steps that was stopped at 20 adapted in 20, and one that ended in 50."""
    run = tmp_path / "run"
    for name, dice in (("before", 0.5), ("after", 0.7)):
        probed.write(run / "probe" / name, TaskConfig(data="x", draws=50), {"knn": drawn(dice)})
    (run / "config.yaml").write_text("name: run\ndata: {root: nowhere}\nstages: {one: {steps: 30}, two: {steps: 20}}\n")
    for stage, step in (("one", 0), ("one", 20)):
        (run / stage / f"{step:08d}").mkdir(parents=True)
    assert "were adapted in 20 of 50 planned steps to nowhere" in report.report([run])
    for stage, step in (("one", 30), ("two", 20)):
        (run / stage / f"{step:08d}").mkdir(parents=True)
    assert "were adapted in 50 steps to nowhere" in report.report([run])


def test_a_choice_gives_the_verdict_where_only_the_floor_was_probed(tmp_path: Path) -> None:
    """RUN/probe/pixels alone, beside RUN/choose: start against chosen, above that floor."""
    run, task = tmp_path / "run", TaskConfig(data="x", name="organs", draws=100)
    probed.write(run / "probe" / "pixels", task, {"knn": drawn(0.3)}, encoder="pixels")
    for name, dice in (("start", 0.5), ("chosen", 0.7)):
        probed.write(run / "choose" / "organs" / name, task, {"knn": drawn(dice)})
    (run / "config.yaml").write_text("name: run\ndata: {root: nowhere}\nstages: {adapt: {steps: 3}}\n")
    page = html.unescape(report.report([run]))
    assert "organs: chosen against start is a GAIN" in page and "chosen is above it" in page


def test_a_choice_alone_has_its_tables(tmp_path: Path) -> None:
    """Of a run that nobody probed beside it: start and chosen of each of two tasks, in the page and in its CSV."""
    run = tmp_path / "run"
    for name, end in (("organs", 0.7), ("lesions", 0.6)):
        for which, dice in (("start", 0.5), ("chosen", end)):
            task = TaskConfig(data="x", name=name, draws=100)
            probed.write(run / "choose" / name / which, task, {"knn": drawn(dice)})
    (run / "config.yaml").write_text("name: run\ndata: {root: nowhere}\nstages: {adapt: {steps: 3}}\n")
    assert report.main(["--runs", str(run), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h3>Task lesions</h3>" in page and "<h3>Task organs</h3>" in page and "No probe was run" not in page
    table = (tmp_path / "report.csv").read_text()
    assert all(name in table for name in ("organs", "lesions", "start", "chosen"))


def test_a_comparison_needs_predictions_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Without results.jsonl there is the table, and a line says why there is no verdict; a damaged one is an error."""
    mine = folders(tmp_path, ("before", {"knn": drawn(0.6)}), ("after", {"knn": drawn(0.7, seed=1)}))
    (mine[0] / "results.jsonl").unlink()
    assert compare.main(["--runs", *map(str, mine)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"No verdict: {mine[0]}: ") and "| knn | dice | all | +0.1" in out
    (mine[0] / "results.jsonl").write_text("{")
    assert compare.main(["--runs", *map(str, mine)]) == 1
    assert "probe again" in capsys.readouterr().err


def test_without_a_second_encoder_there_is_no_verdict(tmp_path: Path) -> None:
    """One folder, or an encoder beside pixels and random weights: the page says what it would take."""
    (alone,) = folders(tmp_path, ("before", {"knn": drawn(0.6)}))
    assert verdict_page.verdicts([alone]) == [] and "No verdict" in report.report([alone])
    task = TaskConfig(data="x", name="organs", draws=50)
    random = probed.write(tmp_path / "random", task, {"knn": drawn(0.5)}, encoder="random, seed 1")
    assert verdict_page.verdicts([alone, random]) == []


def test_before_comes_before_after_for_every_task(tmp_path: Path) -> None:
    """NAME-before is the start although its name sorts behind NAME-after."""
    run = tmp_path / "run"
    for name, dice in (("organs-after", 0.7), ("organs-before", 0.5)):
        probed.write(run / "probe" / name, TaskConfig(data="x", draws=100), {"knn": drawn(dice)})
    mine = report_probes.folders_of(run)
    assert [each.name for each in mine] == ["organs-before", "organs-after"]
    (found,) = verdict_page.verdicts(mine)
    assert found.call == "GAIN"


def test_a_bad_output_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A folder, or a place below a file: the error names the output although the runs cannot be read either."""
    (tmp_path / "file").touch()
    for output in (tmp_path, tmp_path / "file" / "report.html"):
        assert report.main(["--runs", str(tmp_path / "none"), "--output", str(output)]) == 1
        assert capsys.readouterr().err.startswith(f"error: {output}" if output == tmp_path else "error: ")
        assert compare.main(["--runs", str(tmp_path), str(tmp_path), "--output", str(output)]) == 1
        line = capsys.readouterr().err
        assert "predictions" not in line and "file" in line
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_sites_that_tell_the_label_are_found_and_others_are_not() -> None:
    """One hospital has nearly all of the sick: said. Labels spread over sites: at most a few of 100 studies say it."""
    rng = np.random.default_rng(0)
    subjects = np.repeat([f"{n:03d}" for n in range(60)], 4)
    sites = np.repeat(np.where(np.arange(60) < 30, "north", "south"), 4)
    sick = np.repeat((np.arange(60) < 30) ^ (rng.random(60) < 0.05), 4).astype(np.int8)[:, None]
    (said,) = confounding.by_site(sites, sick, subjects, ["sick"])
    assert "sick in 9" in said and "north" not in said
    wrong = 0
    for seed in range(100):
        spread = np.repeat(np.random.default_rng(seed).integers(0, 2, (60, 3)), 4, axis=0).astype(np.int8)
        wrong += bool(confounding.by_site(sites, spread, subjects, ["a", "b", "c"], seed))
    assert wrong <= 4
    assert confounding.by_site(np.full(240, ""), sick, subjects, ["sick"]) == []
    assert confounding.by_site(subjects, sick, subjects, ["sick"]) == []  # a site of its own for everyone


def test_how_well_features_tell_the_site(tmp_path: Path) -> None:
    """Sites that the features show are told by nearly all new patients, sites at random at chance, however unequal; of
    one site, or of sites that training lacks, there is no figure. Both ends stand in the verdict."""
    base = made_up("binary", "volume", seed=2)
    order = np.unique(base.examples.subjects, return_inverse=True)[1]
    features = base.features
    shown = np.where(features.cls[:, -1, 0] > np.median(features.cls[:, -1, 0]), "a", "b")
    by_patient = shown[np.searchsorted(order, np.arange(order.max() + 1))][order]
    unequal = np.where(np.random.default_rng(0).random(order.max() + 1) < 0.8, "a", "b")[order]
    half = order % 2 == 0

    def told_of(sites: np.ndarray) -> dict | None:
        mine = replace(base, examples=replace(base.examples, sites=sites))
        return site.told(*(Cohort(name, mine, np.flatnonzero(half == (name == "train"))) for name in ("train", "test")))

    known, chance = told_of(by_patient), told_of(unequal)
    assert known["sites"] == 2 and known["patients"] == 30 and known["low"] > 0.5 and known["value"] > 0.7
    assert abs(chance["value"] - 0.5) < 0.2
    assert told_of(np.full(len(order), "a")) is None and told_of(np.where(half, "a", "b")) is None
    task = TaskConfig(data="x", name="organs", draws=100)
    for name, figure in (("before", known), ("after", chance)):
        probed.write(tmp_path / name, task, {"knn": drawn(0.6)}, site_told=figure)
    said = verdict.about_site(tmp_path / "before", tmp_path / "after")
    assert "2 sites" in said and f"{known['value']:.3f}" in said and "chance is 0.50" in said
    assert said in html.unescape(report.report([tmp_path / "before", tmp_path / "after"]))


def test_holm_is_holm() -> None:
    """The textbook's numbers; never below the plain p-value, never above 1, in the order given."""
    assert holm.adjusted([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm.adjusted([]).tolist() == [] and holm.adjusted([0.9, np.nan]).tolist() == [1.0, 1.0]


def test_the_calls_of_differences_without_an_interval() -> None:
    """Neither value nor interval: nothing is shown; McNemar's test decides by its p-value."""
    row = {"metric": "mcnemar", "value": 0.1, "low": None, "high": None, "p": 0.001}
    assert verdict.call(row) == "GAIN" and verdict.call(row | {"value": -0.1}) == "LOSS"
    assert verdict.call(row | {"p": 0.2}) == verdict.call(row | {"value": None}) == "no difference shown"
