"""Gram anchoring as a stage: where the anchor comes from, what it sees, and that a stop changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny_run import CONFIG, rows, stop_after_every_step, weights

from data_prep.schema import Split
from meddap.settings import SettingsError
from pretrain import build, checks, train
from pretrain.config import AugmentConfig, load
from pretrain.data import stream, views
from pretrain.runtime import checkpoint

STAGES = CONFIG.replace(
    "  second: {steps: 3, optim: {lr: {peak: 1.0e-4}}}\n",
    """  gram:
    steps: 6
    gram: {teacher_from: adapt/5, size: 64, weight: {start: 2.0, peak: 2.0}}
    optim: {lr: {peak: 1.0e-4}}
  fine:
    steps: 4
    crops: {global_size: 48, local_size: 24}
    gram: {teacher_from: adapt, size: 96, weight: {start: 1.0, peak: 3.0, warmup_steps: 2}, refresh_every: 2}
""",
)


@pytest.fixture
def run(tiny_dataset, tmp_path: Path):
    """run(name, *words) trains three stages and returns the exit status."""
    data, config = tiny_dataset(), tmp_path / "three.yaml"
    config.write_text(STAGES)

    def start(name: str, *words: str) -> int:
        return train.main(["--config", str(config), f"name={name}", f"output={tmp_path}", f"data.root={data}", *words])

    start.config, start.data = config, data
    return start


def test_three_stages_chain_and_the_anchor_is_the_teacher_that_was_named(run, tmp_path: Path) -> None:
    """The step that is named is saved and kept; its backbone is the anchor; gram is in the metrics and the total."""
    assert run("a") == 0
    folder = tmp_path / "a"
    assert [path.name for path in checkpoint.steps(folder / "adapt")] == [
        "00000000",
        "00000005",
        "00000006",
        "00000008",
    ]
    anchor = weights_of(folder / "gram" / "00000006", "gram")
    named = weights_of(folder / "adapt" / "00000005", "teacher")
    assert all(torch.equal(anchor[key], named[f"backbone.{key}"]) for key in anchor)
    for stage, last in (("gram", 6), ("fine", 4)):
        found = rows(folder / stage)
        assert len(found) == last and all(row["loss/gram"] >= 0 for row in found)
        for row in found:
            terms = checks.stage(load(run.config, [f"data.root={run.data}"]), stage)
            pairs = 2 + 2 * terms.crops.local_number
            dino = (2 * row["loss/dino_global"] + (pairs - 2) * row["loss/dino_local"]) / pairs
            total = dino + row["loss/ibot"] + 2 * 0.1 * row["loss/koleo"] + row["gram_weight"] * row["loss/gram"]
            assert row["loss/total"] == pytest.approx(total, rel=1e-5)
    assert [row["gram_weight"] for row in rows(folder / "fine")] == [1.0, 2.0, 3.0, 3.0]
    start = weights(folder / "gram" / "00000000")
    end = weights(folder / "adapt" / "00000008")
    assert all(torch.equal(start[key], end[key]) for key in start if key.startswith(("student.", "teacher.")))


def weights_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """One file of a step folder."""
    return checkpoint.read(folder).tensors(name)


def test_a_refreshed_anchor_is_the_present_teacher(run, tmp_path: Path) -> None:
    """After refresh_every steps the anchor is the stage's own teacher of that step."""
    assert run("a", "save.every=1", "save.keep_every=1") == 0
    folder = tmp_path / "a" / "fine"
    first, second, third = (weights_of(folder / f"{step:08d}", "gram") for step in (1, 2, 3))
    teacher = weights_of(folder / "00000002", "teacher")
    assert all(torch.equal(second[key], teacher[f"backbone.{key}"]) for key in second)
    assert all(torch.equal(second[key], third[key]) for key in second)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_stopped_in_every_step_of_every_stage_it_ends_the_same(run, tmp_path: Path, monkeypatch) -> None:
    """A run that dies after each step, refreshed anchors included, ends with the same bits as one that does not."""
    assert run("whole") == 0
    assert stop_after_every_step(lambda: run("stopped"), monkeypatch) == 18
    for stage, last in (("adapt", "00000008"), ("gram", "00000006"), ("fine", "00000004")):
        assert rows(tmp_path / "whole" / stage) == rows(tmp_path / "stopped" / stage)
        ours, theirs = (weights(tmp_path / name / stage / last) for name in ("whole", "stopped"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_gram_crops_are_the_global_crops_without_distortion(run) -> None:
    """Rendered at the global crops' size they are those crops with the plain window, no noise, no blur."""
    config = load(run.config, [f"data.root={run.data}"])
    stage = checks.stage(config, "gram")
    stage.gram.size = stage.crops.global_size
    batches = stream.batches(Split(config.data.root, "train"), batch_size=8, seed=0)
    batch = next(batches)
    batches.close()
    found = views.make(batch, build.view_settings(stage, config.intensity), seed=0)
    assert found.gram_crops.shape == found.global_crops.shape
    assert not torch.equal(found.gram_crops, found.global_crops)
    stage.augment = AugmentConfig(blur_p=[0, 0, 0])
    plain = views.make(batch, build.view_settings(stage, config.intensity), seed=0)
    torch.testing.assert_close(found.gram_crops, plain.global_crops)
    stage.gram.size = 2 * stage.crops.global_size
    finer = views.make(batch, build.view_settings(stage, config.intensity), seed=0).gram_crops
    shrunk = torch.nn.functional.avg_pool2d(finer.flatten(0, 1), 2).unflatten(0, (2, 8))
    assert (shrunk - plain.global_crops).abs().mean() < 0.1 * plain.global_crops.std()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("stages.gram.gram.teacher_from=adpat", "no stage before gram is called adpat"),
        ("stages.gram.gram.teacher_from=fine", "no stage before gram is called fine"),
        ("stages.gram.gram.teacher_from=adapt/9", "stage adapt has steps 1 to 8"),
        ("stages.gram.gram.teacher_from=adapt/x", "expected STAGE or STAGE/STEP"),
        ("stages.gram.gram.size=60", "gram.size=60: not a multiple of model.patch_size=8"),
    ],
)
def test_an_anchor_that_cannot_be_is_refused_before_anything_runs(words: str, expected: str, run, capsys) -> None:
    """A stage that is not there or comes later, a step beyond its end, a size that is not whole patches."""
    assert run("bad", words) == 1
    assert expected in capsys.readouterr().err
    with pytest.raises(SettingsError):
        checks.stage(load(run.config, [words]), "gram")


def test_the_gram_loss_holds_the_patches(run, tmp_path: Path) -> None:
    """With a heavy weight the student's patch similarities stay nearer to the anchor's than without."""
    words = ("stages.gram.steps=40", "stages.gram.optim.lr.peak=3e-3", "stages.fine.steps=3")
    assert run("held", *words, "stages.gram.gram.weight.start=100", "stages.gram.gram.weight.peak=100") == 0
    assert run("free", *words, "stages.gram.gram.weight.start=0", "stages.gram.gram.weight.peak=0") == 0
    held, free = (rows(tmp_path / name / "gram") for name in ("held", "free"))
    assert sum(row["loss/gram"] for row in held[-10:]) < 0.5 * sum(row["loss/gram"] for row in free[-10:])
