"""Plans on paper against what steps, messages and checkpoints are."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.planned_run import config_of
from safetensors.torch import save_file

from benchmarks import foretold, training_step
from pretrain import build, checks, distillation, plan
from pretrain.config import SaveConfig
from pretrain.data.micro_batch import micro_batches
from pretrain.planning import communication, rates
from pretrain.runtime import checkpoint
from pretrain.runtime.distributed import World

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("counts", "group", "first_pass"), [([(4, 4)], 2, False), ([(2, 2), (2, 2)], 2, False), ([(2, 2), (2, 2)], 3, True)]
)
def test_messages_are_those_of_a_step(counts: list[tuple[int, int]], group: int, first_pass: bool) -> None:
    """As many sums and gathers as a step of two ranks asks its World for, and as large, in one part and in two."""
    config = config_of(machine={"device": "cpu", "precision": "float32"})
    of, said = checks.stage(config, "gram"), []
    of = replace(of, loss=replace(of.loss, koleo_group=group))

    class Counting(World):
        def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
            said.append(("sinkhorn", tensor.numel()))
            return tensor

        max_ = sum_

        def gather(self, rows: torch.Tensor, counts) -> torch.Tensor:
            said.append(("gather", rows.numel()))
            return torch.cat([rows] * len(counts))

    arm = training_step.Arm(config, of, 4, CPU, side=64)
    draws = build.draws(config, of, arm.batch, 0)
    batch = micro_batches(arm.views(), arm.masks, draws, counts)
    distillation.backward(
        arm.student, arm.teacher, batch, arm.weights, gram_teacher=arm.gram_teacher, world=Counting(0, 2)
    )
    found = {each.what: each for each in communication.messages(config, of, 4, 2, len(counts), first_pass)}
    sums = [size for kind, size in said if kind == "sinkhorn"]
    gathered = [size for kind, size in said if kind == "gather"]
    assert found["Sinkhorn's sums"].count == len(sums)
    assert found["Sinkhorn's sums"].sent == sum(4 * size for size in sums)  # two ranks: twice half of it
    koleo, monitors = found["cls tokens for KoLeo"], found["cls tokens for the monitors"]
    assert koleo.count + monitors.count == len(gathered)
    assert koleo.sent + monitors.sent == sum(4 * size for size in gathered)
    assert communication.messages(config, of, 4, 1) == []


def test_checkpoints_are_as_large_and_as_many_as_planned(tmp_path: Path) -> None:
    """A checkpoint's files within two in a hundred of the plan's, and as many folders as pruning leaves."""
    config = config_of(model={"embed_dim": 64}, dino_head={"prototypes": 4096})
    of = checks.stage(config, "gram")
    student, teacher, gram_teacher = training_step.networks(config, of, CPU)
    optimizer = build.optimizer(of, student, config.model.depth)
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    names = {parameter: name for name, parameter in student.named_parameters()}
    groups = {"student": student.state_dict(), "teacher": teacher.state_dict(), "gram": gram_teacher.state_dict()}
    groups["optimizer"] = checkpoint.optimizer_tensors(optimizer, names)
    for name, tensors in groups.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / f"{name}.safetensors")
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size == pytest.approx(plan.checkpoint_bytes(config, of), rel=0.02)
    for save, steps, wanted in (
        (SaveConfig(every=10, keep_last=2), 95, {20}),
        (SaveConfig(every=10, keep_last=1, keep_every=30), 100, set()),
        (SaveConfig(every=1000), 5, set()),
    ):
        folder = tmp_path / f"stage{steps}"
        for number in sorted({0, steps, *range(save.every, steps, save.every), *wanted}):
            (folder / f"{number:08d}").mkdir(parents=True)
        checkpoint.prune(folder, save.keep_last, save.keep_every, wanted)
        assert plan.kept(save, steps, wanted) == len(checkpoint.steps(folder))


def test_more_gpus_take_less_time_and_more_messages() -> None:
    """Eight by one: the same operations, an eighth of the days at most where nothing waits, more across nodes."""
    config = config_of()
    machine, how = plan.GPUS["h100"], {"side": 512, "peak": False}
    one = plan.of_stage(config, "adapt", 1, machine, per_node=8, **how)
    eight = plan.of_stage(config, "adapt", 8, machine, per_node=8, **how)
    apart = plan.of_stage(config, "adapt", 8, machine, per_node=1, **how)
    assert eight.operations == pytest.approx(one.operations, rel=0.02) and one.images == 8 * eight.images
    assert one.time.low == pytest.approx(8 * eight.time.low, rel=0.01)
    assert one.time.messages == 0 < eight.time.messages < apart.time.messages


def test_a_mixture_costs_what_its_pixels_do() -> None:
    """Steps of four times the pixels have the same images and four times the products (attention more).

    KoLeo's first pass is about a quarter of them.
    """
    config, machine, how = config_of(), plan.GPUS["h100"], {"per_node": 8, "side": 64, "peak": False}
    crops = {"global_size": 48, "local_size": 24, "local_number": 3}
    pairs = [{"ratio": 1.0, "global_size": 96, "local_size": 48}]
    plain, mixed, alone = (
        plan.of_stage(replace(config, stages={"adapt": {"steps": 9, **more}}), "adapt", 1, machine, **how)
        for more in (
            {"crops": crops, "loss": {"koleo_group": 64}},
            {"crops": crops | {"mixture": pairs}},
            {"crops": crops | {"mixture": pairs}, "loss": {"koleo_group": 64}},
        )
    )
    assert plain.samples == mixed.samples == 9 * 512 and plain.images == mixed.images == 512
    assert 4 < alone.time.low / plain.time.low < 6 and 1.1 < mixed.time.low / alone.time.low < 1.33


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_command_prints_a_plan(how: str, capsys: pytest.CaptureFixture) -> None:
    """Days add up, GPU-hours are days by GPUs, storage follows from the slices; the peak is the memory benchmark's."""
    file = Path(build.__file__).parent / "configs/quickstart.yaml"
    words = [str(file), "--gpus", "4", "--gpu", "a100", "--slices", "1000", f"machine.parallel={how}"]
    assert plan.main(words) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["total"][1] == lines["adapt"][1]
    assert "0 GB of shards" in out and "epochs of 1,000" in out and how in out.splitlines()[0]
    assert ("parameters" in out) == (how == "fsdp")
    assert plan.main([str(file), "--gpus", "0"]) == 1
    assert plan.main([str(file), "modle.depth=3"]) == 1
    assert "did you mean model" in capsys.readouterr().err


def test_a_step_takes_as_long_as_planned_from_another_one() -> None:
    """The share of the matrix rate that one step reaches gives its own time back, and that of others by their counts.

    Another width, other crops and another batch: `python benchmarks/foretold.py` holds the same against the clock.
    """
    known, *others = (each.counted for each in foretold.steps())
    slow = plan.GPUS["a100"]
    took = 3 * plan.seconds(known, slow).total
    reached = plan.reached(known, slow, took)
    assert reached.mfu < slow.mfu and plan.seconds(known, reached).total == pytest.approx(took)
    for counted in others:
        before, now = plan.seconds(counted, slow), plan.seconds(counted, reached)
        assert now.low * reached.mfu == pytest.approx(before.low * slow.mfu)
        assert (now.float32, now.bytes) == (before.float32, before.bytes)


def test_rates_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product's rate by its size is its time; work that takes twice as long takes twice as long."""
    now, size = [0.0], 256

    def work(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(rates.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "mm", lambda one, other, out: work(0.004))
    assert rates.products("cpu", "float32", size) == pytest.approx(2.0 * size**3 / 0.004)
    assert rates.taken(lambda: work(0.002), "cpu", 0.01) == pytest.approx(0.002)
    assert rates.taken(lambda: work(0.004), "cpu", 0.01) == pytest.approx(0.004)
    monkeypatch.undo()
    assert rates.taken(lambda: time.sleep(0.002), "cpu", 0.01) >= 0.002
