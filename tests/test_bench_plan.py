"""Plans on paper against what steps, messages and checkpoints are."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.planned_run import config_of
from safetensors.torch import save_file

from benchmarks import training_step
from pretrain import build, distillation, plan
from pretrain.config import SaveConfig, stage
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
    of, said = stage(config, "gram"), []
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
    batch = distillation.parts(arm.views(), arm.masks, draws, counts)
    distillation.gradients(arm.student, arm.teacher, batch, arm.weights, gram_teacher=arm.anchor, world=Counting(0, 2))
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
    of = stage(config, "gram")
    student, teacher, anchor = training_step.networks(config, of, CPU)
    optimizer = build.optimizer(of, student, config.model.depth)
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    names = {parameter: name for name, parameter in student.named_parameters()}
    groups = {"student": student.state_dict(), "teacher": teacher.state_dict(), "gram": anchor.state_dict()}
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


@pytest.mark.stress
def test_a_step_takes_as_long_as_planned_from_another_one() -> None:
    """The share of the matrix rate that one step reaches foretells the time of others, within a quarter.

    Another width, other crops and another batch; rates, the step that is known and the one that is foretold take turns.
    """
    machine = {"machine": {"device": "cpu", "precision": "float32"}}
    head = {"prototypes": 4096, "hidden_dim": 512, "bottleneck_dim": 128}
    heads = {"dino_head": head, "ibot_head": head}
    shapes = [
        ({"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8}, (96, 48), 8),
        ({"embed_dim": 384, "depth": 4, "num_heads": 6, "patch_size": 8}, (96, 48), 6),
        ({"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8}, (64, 32), 24),
    ]
    made = []
    for model, (large, small), images in shapes:
        config = config_of(model=model, **machine, **heads)
        of = stage(config, "adapt")
        crops = replace(of.crops, global_size=large, local_size=small, local_number=4)
        made.append(training_step.Arm(config, replace(of, crops=crops), images, CPU, side=128))
        made[-1].step()
    rounds = []
    for _ in range(5):
        here = plan.this_machine()
        times = []
        for arm in made:
            began = time.perf_counter()
            arm.step()
            times.append(time.perf_counter() - began)
        known = plan.reached(made[0].counted, here, times[0])
        rounds.append([plan.seconds(arm.counted, known).total / took for arm, took in zip(made[1:], times[1:])])
    ratios = [statistics.median(each) for each in zip(*rounds)]
    print("planned by measured time:", " ".join(f"{each:.2f}" for each in ratios), f"at {known.mfu:.0%}")
    assert all(0.75 < each < 1.25 for each in ratios)


def test_rates_are_those_of_the_clock() -> None:
    """A product's rate by its size is its time; work that takes twice as long takes twice as long."""
    size = 256
    one, other = torch.randn(size, size), torch.randn(size, size)
    took = rates.taken(lambda: torch.mm(one, other), "cpu", 0.02)
    assert 0.2 < rates.products("cpu", "float32", size) * took / (2.0 * size**3) < 5
    assert rates.taken(lambda: time.sleep(0.002), "cpu", 0.01) >= 0.002
