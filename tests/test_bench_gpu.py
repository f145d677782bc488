"""The GPU benchmark in miniature on a CPU: every line of it runs, and says what it did not measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import cases, gpu


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B alone, and nothing is compiled: both take minutes and have tests of their own."""
    monkeypatch.setattr(cases, "SIZES", {"ViT-B/16": cases.SIZES["ViT-B/16"]})
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def table(path: Path) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in path.read_text().splitlines() if "|" in line]


def test_everything_runs_in_miniature(few: None, tmp_path: Path) -> None:
    """Rates, views, loader, steps of all stages with their shares, a profile: all have figures on a CPU."""
    target = tmp_path / "page.md"
    assert gpu.main(["--device", "cpu", "--quick", "--profile", "--output", str(target)]) == 0
    rows = {row[0]: row for row in table(target)}
    assert float(rows["bf16 matrix products"][1].split()[0]) > 0
    assert rows["loader, 4 threads"][1].endswith("slices/s")
    assert "of the time" in rows["ViT-B/16's trainer waits for it"][1]
    assert rows["host waits for the GPU within a step"][1] == gpu.NOT_MEASURED
    steps = [row for row in table(target) if row[0] == "ViT-B/16" and len(row) == 12]
    assert [row[1] for row in steps] == ["1", "1", "2", "3", "2", "3"]
    for row in steps:
        assert float(row[6]) > 0 and float(row[7]) > 0 and row[9].endswith("%") and row[11] == gpu.NOT_MEASURED
    assert [bool(row[10]) for row in steps] == [True] + [False] * 5  # stage 1 compiled has a target
    assert "Self CPU" in target.read_text()


def test_what_no_time_is_left_for_says_so(few: None, tmp_path: Path) -> None:
    """With no seconds at all every row of the table is there and none has a figure."""
    target = tmp_path / "page.md"
    assert gpu.main(["--device", "cpu", "--quick", "--seconds", "0", "--output", str(target)]) == 0
    rows = [row for row in table(target) if any(row) and not row[0].startswith("---") and row[0] != "step"]
    assert len(rows) == 4 + 6 and all("not measured: no time left" in " ".join(row) for row in rows)


def test_without_a_gpu_it_lists_or_says_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`--list` writes the table with "not measured"; a run without a GPU ends with one line of what to do."""
    target = tmp_path / "page.md"
    assert gpu.main(["--list", "--output", str(target)]) == 0
    assert sum(gpu.NOT_MEASURED in line for line in target.read_text().splitlines()) == 4 + len(cases.cases())
    if torch.cuda.is_available():
        return
    capsys.readouterr()
    assert gpu.main(["--output", str(tmp_path / "none.md")]) == 1
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1 and "--device cpu --quick" in error
    assert not (tmp_path / "none.md").exists()


def test_what_does_not_fit_is_tried_with_half_the_images(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory at 2 images, the step is of 1; at 1 image the case is out of memory."""
    made, fits = [], 1

    class Arm:
        def __init__(self, config, stage, images, device, accumulate, side) -> None:
            made.append(images)
            if images > fits:
                raise torch.OutOfMemoryError("no room")

        def step(self) -> None:
            pass

    monkeypatch.setattr(cases, "Arm", Arm)
    run = cases.Run(torch.device("cpu"), cases.QUICK, 10.0)
    assert isinstance(run.arm(cases.cases()[0]), Arm) and made == [2, 1]
    fits = 0
    assert gpu.case_line(run, cases.cases()[0])[0].startswith("not measured: no room")


@pytest.mark.parametrize("file", ["pretrain/data/made.py", "meddap/made.py"])
def test_the_innermost_line_of_ours_is_found(file: str) -> None:
    """Below folders of a package too; lines of libraries and of the benchmark itself do not count."""
    inner, outer = {}, {}
    exec(compile("import json\n\ndef fail():\n    json.loads('{')", str(gpu.ROOT / file), "exec"), inner)
    exec(compile("def run(fail):\n    fail()", str(gpu.ROOT / "pretrain" / "outer.py"), "exec"), outer)
    with pytest.raises(ValueError) as found:
        outer["run"](inner["fail"])
    assert gpu.innermost_line(found.value) == f"{file}:4"
    assert gpu.innermost_line(RuntimeError("of nobody")) == "?"
