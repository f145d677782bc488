"""The commands of eval: probe, compare, report, on a run of a tiny model, and their error lines."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path

import pytest

from eval import compare, probe, report
from pretrain import train

CONFIG = """
name: tiny
model: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, registers: 1, layer_scale: null}
dino_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
ibot_head: {prototypes: 16, hidden_dim: 32, bottleneck_dim: 16}
stages: {adapt: {steps: 2, batch_size: 8, crops: {global_size: 32, local_size: 16, local_number: 1}}}
machine: {device: cpu, tensorboard: false}
"""
TASK = """
{size: 64, stride: {train: 2, val: 2, test: 2}, draws: 50, pictures: 2, logistic: {strengths: 3},
 segmentation: {lr: [0.01], epochs: 1}}
"""


@pytest.fixture
def run(tiny_dataset, tmp_path: Path) -> Path:
    """A trained run, its data beside it, a task file."""
    data = tiny_dataset(patients={"train": 4, "val": 3, "test": 5})
    (data / "manifest.jsonl").write_text('{"status": "rejected", "reason": "gantry tilt of 9.0 degrees"}\n')
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "task.yaml").write_text(TASK)
    assert train.main(["--config", str(tmp_path / "config.yaml"), f"output={tmp_path}", f"data.root={data}"]) == 0
    return tmp_path / "tiny"


def probed(run: Path, name: str, checkpoint: str, *words: str) -> int:
    """Run the probe command into RUN/probe/NAME."""
    task, data = run.parent / "task.yaml", run.parent / "data"
    return probe.main(
        ["--checkpoint", checkpoint, "--task", str(task), "--output", str(run / "probe" / name), f"data={data}", *words]
    )


def test_from_a_run_to_its_page(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Before, after and random are probed, compared and shown on one page that needs nothing else."""
    assert probed(run, "before", str(run / "adapt" / "00000000")) == 0
    assert probed(run, "after", str(run)) == 0
    assert probed(run, "random", "random", f"like={run}", "seed=1") == 0
    assert "| segmentation | dice |" in capsys.readouterr().out
    assert (
        compare.main(
            ["--runs", str(run / "probe" / "before"), str(run / "probe" / "after"), "--output", str(run / "c.jsonl")]
        )
        == 0
    )
    assert capsys.readouterr().out.count("| macro |") == 7 + 7 + 4
    rows = [json.loads(line) for line in (run / "c.jsonl").read_text().splitlines()]
    assert all(row["low"] <= row["high"] for row in rows if row["metric"] != "mcnemar")
    assert {row["metric"] for row in rows} >= {"auroc", "dice", "mcnemar"} and all(0 < row["p"] <= 1 for row in rows)
    assert report.main(["--runs", str(run), "--output", str(run / "report.html")]) == 0
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6 + 2 + 3 + 3 and "Missing" not in page
    assert not re.search(r'src="(?!data:)', page) and "http" not in page.replace("http-equiv", "")
    links = re.findall(r'href="([^"]+)"', page)
    assert {Path(each).suffix for each in links} == {".html", ".svg", ".pdf"}
    assert {run / each for each in links} == set((run / "report_files").iterdir())
    assert "gantry tilt of 9.0 degrees" in page and "after minus before" in page
    with open(run / "report.csv", newline="") as file:
        table = list(csv.DictReader(file))
    results = [line for path in run.glob("probe/*/results.jsonl") for line in path.read_text().splitlines()]
    assert len(table) == len(results) and {row["run"] for row in table} == {"before", "after", "random"}
    assert all((row["difference"] == "") == (row["run"] == "before") for row in table)
    assert all(row["seen_in_pretraining"] == ("False" if row["run"] != "random" else "") for row in table)
    latex = (run / "report.tex").read_text()
    assert latex.count("\\\\") == 1 + 7 + 7 + 4 and "before & after & random" in latex
    folders = [str(run / "probe" / name) for name in ("random", "after")]
    assert report.main(["--runs", *folders, "--output", str(run / "probes.html")]) == 0
    assert "after minus random" in (run / "probes.html").read_text()


def test_shards_without_label_maps_are_shown_but_not_probed(run: Path, capsys: pytest.CaptureFixture) -> None:
    """No labels: the probe says so, draws the maps of the features, and the report shows them."""
    dataset = json.loads((run.parent / "data" / "dataset.json").read_text())
    (run.parent / "data" / "dataset.json").write_text(json.dumps({**dataset, "labels": {}}))
    assert probed(run, "before", str(run / "adapt" / "00000000")) == 0 and probed(run, "after", str(run)) == 0
    assert "no label maps in these shards" in capsys.readouterr().err
    page = report.report([run])
    assert "Patch features" in page and "No label maps" in page and "Missing" not in page


def test_a_report_of_half_a_run_says_what_is_missing(run: Path) -> None:
    """No probes and no data: the page is written and says so."""
    (run.parent / "data" / "dataset.json").unlink()
    page = report.report([run])
    assert "Missing: " in page and "no finished data set there" in page and "No probe was run" in page


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_report_of_a_damaged_run_names_the_file(run: Path, damage: str) -> None:
    """The page is written and says which file a missing section wants; a step that a kill cut is just left out."""
    files = [run.parent / "data" / "manifest.jsonl", run / "adapt" / "crops.npz", run / "adapt" / "metrics.jsonl"]
    for path in (*files, run / "config.yaml"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"\xff\x00\n" * 99)
        page = html.unescape(report.report([run]))
        kill = path.name == "metrics.jsonl" and damage == "cut"
        assert (f"Missing: {path}: " in page) is not kill, path
        path.write_bytes(whole)


def test_errors_are_one_line(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Wrong checkpoint, key, probe, size, split or folder: exit status 1 and a line that says what to do."""
    capsys.readouterr()
    cases = [
        (probed(run, "x", "/nowhere"), "/nowhere: no checkpoint there"),
        (probed(run, "x", "random"), "give like=CHECKPOINT"),
        (probed(run, "x", str(run), "sise=3"), "did you mean size?"),
        (probed(run, "x", str(run), "probes=[knm]"), "knm: no such probe"),
        (probed(run, "x", str(run), "size=60"), "not a multiple of the encoder's patch size 8"),
        (probed(run, "x", str(run), "data=/nowhere"), "no finished data set there"),
        (report.main(["--runs", str(run / "adapt"), "--output", str(run / "r.html")]), "not a run"),
        (compare.main(["--runs", str(run), str(run)]), "predictions.npz: not found"),
    ]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [code for code, _ in cases] == [1] * len(cases)
    assert len(errors) == len(cases)
    for line, (_, expected) in zip(errors, cases):
        assert expected in line


def test_where_there_is_no_figure_there_is_no_p_value() -> None:
    """A label that no test patient shows has a dash for the difference and for p; the others have both."""
    row = {"probe": "knn", "metric": "auroc", "label": "aorta", "low": None, "high": None, "patients": 6}
    table = compare.table([{**row, "value": None, "p": 1.0}, {**row, "value": 0.25, "p": 0.0001}])
    assert table.splitlines()[2:] == [
        "| knn | auroc | aorta | – | no figure | – | 6 |",
        "| knn | auroc | aorta | +0.250 | no interval | < 0.001 | 6 |",
    ]
