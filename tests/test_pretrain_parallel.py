"""One process and several train the same run: losses, samples, checkpoints, and what happens when one is lost."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import socket
import subprocess
import tarfile
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
import torch
from helpers.datasets import write_dataset
from helpers.processes import said, start, train
from helpers.tiny_run import CONFIG, MRI, rows
from safetensors.torch import load_file

from data_prep.schema import Split
from meddap.settings import SettingsError
from pretrain import parallel
from pretrain.data import batch_plan, order
from pretrain.data.order import Chain
from pretrain.objective.sinkhorn import Centring, SoftTargets, scalings
from pretrain.runs import keep_code
from pretrain.runtime import checkpoint, metrics, ranks
from pretrain.runtime.distributed import World
from pretrain.runtime.heartbeat import Heartbeat

ROOT = Path(__file__).resolve().parent.parent
# Sinkhorn, KoLeo over all ranks, drop path, a stage with Gram anchoring; 20 steps in all
STAGES = CONFIG.replace("adapt: {steps: 8}", "adapt: {steps: 12}").replace(
    "second: {steps: 3, optim: {lr: {peak: 1.0e-4}}}",
    "gram: {steps: 8, gram: {teacher_from: adapt/6, size: 64, weight: {start: 2, peak: 2}, refresh_every: 3}}",
)
STEPS = {"adapt": 12, "gram": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    """runs(name, processes, *words) trains the stages; the folder of the run. Trained once for all tests."""
    root, done = tmp_path_factory.mktemp("runs"), set()
    data = write_dataset(root / "data", {"train": 4, "val": 1, "test": 1})
    (root / "run.yaml").write_text(STAGES)

    def arguments(name: str, *words: str) -> list[str]:
        return ["--config", str(root / "run.yaml"), f"name={name}", f"output={root}", f"data.root={data}", *words]

    def run(name: str, processes: int, *words: str) -> Path:
        if name not in done:
            logs = root / "logs" / name
            assert train(arguments(name, *words), processes, logs) == [0] * processes, said(logs)
            done.add(name)
        return root / name

    run.root, run.data, run.arguments = root, data, arguments
    return run


def assert_same_numbers(one: Path, other: Path, *stages: str, tolerance: float = 1e-5) -> None:
    """Every row of the stages: the same samples, and losses, monitors and norms to `tolerance`, relative above 1."""
    for stage in stages or STEPS:
        found = rows(one / stage)
        assert len(found) == STEPS[stage]
        assert_same_rows(found, rows(other / stage), tolerance)


def assert_same_rows(ours: list[dict], theirs: list[dict], tolerance: float = 1e-5) -> None:
    """Numbers to `tolerance`, relative above 1; all else alike."""
    assert len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs):
        assert mine.keys() == yours.keys()
        for key, value in mine.items():
            same = value == yours[key]
            if isinstance(value, float):
                same = math.isclose(value, yours[key], rel_tol=tolerance, abs_tol=tolerance)
            assert same, (mine["stage"], mine["step"], key, value, yours[key])


@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_two_processes_are_one(runs, spread: str) -> None:
    """20 steps in float32, Sinkhorn and Gram on: all numbers of the metrics to 1e-5, and the same last teacher."""
    one, two = runs("one", 1), runs(f"{spread}2", 2, f"machine.parallel={spread}")
    assert_same_numbers(one, two)
    ours, theirs = (load_file(run / "gram" / "00000008" / "teacher.safetensors") for run in (one, two))
    assert ours.keys() == theirs.keys()
    worst = max((ours[key] - theirs[key]).abs().max() for key in ours)
    assert worst < 2e-3  # Adam's step of a gradient that is only rounding is as large as any


@pytest.mark.parametrize("spread", ["ddp", pytest.param("fsdp", marks=pytest.mark.stress)])
def test_four_processes_are_two(runs, spread: str) -> None:
    """The same from two to four, who are more than the three shards."""
    two, four = (runs(f"{spread}{count}", count, f"machine.parallel={spread}") for count in (2, 4))
    assert_same_numbers(two, four)


@pytest.mark.parametrize(
    ("group", "count", "words"),
    [
        (None, 2, ("machine.parallel=ddp", "machine.accumulate=2")),
        (None, 2, ("machine.parallel=fsdp", "machine.accumulate=4", "machine.reshard=true")),
        pytest.param(None, 3, ("machine.parallel=ddp", "machine.accumulate=2"), marks=pytest.mark.stress),
        pytest.param(2, 2, ("machine.parallel=ddp", "machine.accumulate=2"), marks=pytest.mark.stress),
        pytest.param(3, 2, ("machine.parallel=fsdp", "machine.accumulate=2"), marks=pytest.mark.stress),
    ],
)
def test_parts_of_a_batch_on_several_processes_change_nothing(
    runs, group: int | None, count: int, words: tuple[str, ...]
) -> None:
    """KoLeo among all images, in groups that parts cut or do not: the numbers of one process without parts."""
    recipe = () if group is None else (f"stage_defaults.loss.koleo_group={group}",)
    one = runs("one" if group is None else f"groups{group}", 1, *recipe)
    assert_same_numbers(one, runs(f"parts{group}-{count}-{'-'.join(words)}", count, *recipe, *words))


def test_sequences_and_labels_on_two_processes_are_those_of_one(brain_shards: Path, tmp_path: Path) -> None:
    """MRI with sequences missing and masked, half of the patients labelled: every number of one process, to 1e-5."""
    lines = [line for line in CONFIG.splitlines() if not line.startswith("model:")]
    (tmp_path / "mri.yaml").write_text("\n".join(lines) + MRI)
    common = ["--config", str(tmp_path / "mri.yaml"), f"output={tmp_path}", f"data.root={brain_shards}"]
    common += ["--stage", "adapt", "stages.adapt.masks.sequence_probability=1.0", "stages.adapt.steps=4"]
    for name, processes, spread in (("one", 1, "none"), ("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")):
        logs = tmp_path / "logs" / name
        arguments = [*common, f"name={name}", f"machine.parallel={spread}"]
        assert train(arguments, processes, logs) == [0] * processes, said(logs)
    one = rows(tmp_path / "one" / "adapt")
    assert len(one) == 4 and {"loss/classes", "sequences/loss", "sequences/marginal"} <= one[-1].keys()
    for name in ("ddp", "fsdp"):
        assert_same_rows(one, rows(tmp_path / name / "adapt"))


def test_every_step_sees_its_samples_and_an_epoch_each_once(runs) -> None:
    """The fingerprints in the metrics are those of the chain's batches, in which an epoch holds every sample once."""
    run, split = runs("ddp2", 2, "machine.parallel=ddp"), Split(runs.data, "train")
    chain, seen = Chain(len(split), 0), []
    for number, row in enumerate(rows(run / "adapt")):
        sample, epoch = chain.batch(number, 8)
        assert row["samples"] == f"{order.fingerprint(sample, epoch):012x}"
        seen += list(zip(epoch.tolist(), sample.tolist()))
    assert len(set(seen)) == len(seen) == 96 and sorted(s for e, s in seen if e == 0) == list(range(len(split)))


def test_a_run_goes_on_on_other_numbers_of_processes_and_spread_otherwise(runs) -> None:
    """fsdp on 2, then ddp on 3 (who take 3, 3 and 2 of a batch), then one process, then fsdp on 2.

    Each is stopped by a signal to its last process alone: all of them finish the step, and the first one says it.
    """
    for processes, spread, last in ((2, "fsdp", 3), (3, "ddp", 6), (1, "none", 9), (2, "fsdp", 12)):
        words = (f"machine.parallel={spread}", "--stage", "adapt")
        logs = runs.root / "logs" / f"moved{last}"
        statuses = train(runs.arguments("moved", *words), processes, logs, AskToStop(last) if last < 12 else None)
        assert statuses == [75 if last < 12 else 0] + [0] * (processes - 1), said(logs)
        found = checkpoint.newest(runs.root / "moved" / "adapt")
        assert found.step == last and found.in_shards == (spread == "fsdp")
        assert (found.state["processes"], found.state["spread"]) == (processes, spread)
    assert "SIGUSR1: stage adapt, step 3 of 12, saved; start again to go on" in said(runs.root / "logs" / "moved3")
    assert_same_numbers(runs("one", 1), runs.root / "moved", "adapt")


@dataclass
class AskToStop:
    """Sends the last rank USR1 in the step after which `last` are done."""

    last: int

    def __call__(self) -> None:
        before = Heartbeat.beat

        def beat(heartbeat: Heartbeat, step: int, turn: str) -> None:
            if step == self.last - 1 and turn == "loading" and heartbeat.world.rank == heartbeat.world.size - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            before(heartbeat, step, turn)

        Heartbeat.beat = beat


@dataclass
class Hang:
    """One rank stands still in a step."""

    rank: int
    step: int
    how: str

    def __call__(self) -> None:
        before = Heartbeat.beat

        def beat(heartbeat: Heartbeat, step: int, turn: str) -> None:
            before(heartbeat, step, turn)
            if step == self.step and turn == "loading" and heartbeat.world.rank == self.rank:
                os.kill(os.getpid(), signal.SIGSTOP) if self.how == "stopped" else time.sleep(1000)

        Heartbeat.beat = beat


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("asleep", "hang: rank 1 on {host} stands in loading of step 3, the others wait"),
        pytest.param(
            "stopped", "hang: rank 1 on {host} said nothing: stopped, or the machine is gone", marks=pytest.mark.stress
        ),
    ],
)
def test_a_rank_that_hangs_is_named_with_the_stacks_of_all(runs, how: str, expected: str) -> None:
    """The run ends after the time-out, one line names the rank, every rank that can writes where it stands."""
    logs = runs.root / "logs" / how
    running = start(runs.arguments(how, "machine.hang_timeout=10"), 2, logs, Hang(1, 3, how))
    assert 70 in running.finish(90), said(logs)
    assert expected.format(host=socket.gethostname()) in said(logs)
    found = {path.name: path.read_text() for path in (runs.root / how / "adapt" / "hang").iterdir()}
    assert set(found) == {f"rank-000{rank}.txt" for rank in range(2) if how == "asleep" or rank != 1}
    assert all("thread MainThread" in text and "train_stage" in text for text in found.values())
    if how == "asleep":
        assert "time.sleep(1000)" in found["rank-0001.txt"]


def test_a_slow_loader_is_named_once() -> None:
    """A rank that waits for its loader, far more than the others, over fifty steps; evenly slow ones are not."""
    world = World(1, 3, hosts=("a", "b", "c"))

    def lines(waits: tuple[float, ...]) -> list[str]:
        loaders = ranks.LoaderMonitor(world)
        each = [ranks.RankStats(1.0, wait, 8, 0.0, 0, 0, False) for wait in waits]
        return [line for _ in range(120) for line in loaders.update(ranks.StepStats({}, each))]

    assert lines((0.01, 0.02, 0.01)) == [] == lines((0.5, 0.5, 0.6))
    (line,) = lines((0.01, 0.02, 0.4))
    assert line.startswith("rank 2 on c waits for its loader 40% of the time, the others 2%")


def test_ranks_tell_their_throughput_and_memory(runs) -> None:
    """Rows of a run of two hold both ranks' images a second and share of waiting; of one, neither."""
    last = metrics.read(runs("ddp2", 2, "machine.parallel=ddp") / "adapt" / "metrics.jsonl")[0]
    assert set(last["ranks"]) == {"images_per_s", "wait_share", "memory_gb"}
    assert all(len(each) == 2 for each in last["ranks"].values())
    assert all("ranks" not in row for row in metrics.read(runs("one", 1) / "adapt" / "metrics.jsonl"))


def test_an_error_of_all_processes_is_one_line(runs) -> None:
    """Another recipe than the run's: all of them end, one of them says it."""
    runs("ddp2", 2, "machine.parallel=ddp")
    logs = runs.root / "logs" / "error"
    assert all(train(runs.arguments("ddp2", "stages.adapt.optim.lr.peak=1"), 2, logs)), said(logs)
    (line,) = [line for line in said(logs).splitlines() if "error" in line.lower()]
    assert line.startswith("error: ") and "was 0.001 when this run began, now 1.0" in line


def test_what_several_processes_cannot_do_is_refused() -> None:
    """`none` for two, an unknown word, a batch smaller than the processes."""
    assert parallel.kind("fsdp", World()) == "none"
    for wish, expected in (
        ("none", "2 processes were started; use ddp or fsdp"),
        ("dpp", "'dpp'; use none, ddp or fsdp"),
    ):
        with pytest.raises(SettingsError, match=expected):
            parallel.kind(wish, World(0, 2))
    with pytest.raises(SettingsError, match="stages.adapt.batch_size=1: cannot be divided among 2 processes"):
        batch_plan.plan_micro_batches(1, 1, [Fraction(1)], None, "adapt", 2)


def test_a_lost_process_ends_the_others_with_a_line(runs) -> None:
    """kill -9 of one rank: the others end by themselves, saying so, and the run goes on from its checkpoint."""
    logs = runs.root / "logs" / "lost"
    running = start(runs.arguments("lost", "machine.parallel=ddp"), 2, logs)
    wait_for_step(runs.root / "lost" / "adapt", 4)
    os.kill(running.pids()[1], signal.SIGKILL)
    assert running.finish() == [1, -signal.SIGKILL], said(logs)
    assert "error: rank 0: another process is gone" in said(logs) and "Traceback" not in said(logs)
    assert_same_numbers(runs("one", 1), runs("lost", 2, "machine.parallel=ddp", "--stage", "adapt"), "adapt")


def wait_for_step(stage: Path, step: int) -> None:
    """Until the metrics of a stage hold row `step`."""
    until = time.monotonic() + 120
    while not any(row["step"] >= step for row in metrics.read(stage / "metrics.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 3), *(pytest.param(seed, 10, marks=pytest.mark.stress) for seed in (2, 3))]
)
def test_killed_at_random_moments_and_resumed_on_1_2_and_4_processes(runs, seed: int, kills: int) -> None:
    """kill -9 of one rank, of all, of the launcher, at any moment; the undisturbed run's numbers.

    Each start has another number of processes, by turns as DDP and FSDP. Nobody outlives a killed launcher.
    """
    draws, name = random.Random(seed), f"killed{seed}"
    stage = runs.root / name / "adapt"
    for kill in range(kills):
        processes, victim = (2, 4, 1)[kill % 3], ("one", "launcher", "all")[(kill + kill // 3) % 3]
        words = (f"machine.parallel={draws.choice(('ddp', 'fsdp'))}", "save.every=1", "save.keep_last=3")
        arguments = runs.arguments(name, *words, "--stage", "adapt")
        running = start(arguments, processes, runs.root / "logs" / f"{name}-{kill}")
        pids = running.pids()
        before = len(metrics.read(stage / "metrics.jsonl"))
        until, target = time.monotonic() + 60, min(before + draws.randint(0, 3), 11)
        while len(metrics.read(stage / "metrics.jsonl")) < target and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.2))
        for pid in {"one": pids[-1:], "all": pids, "launcher": [running.launcher.pid]}[victim]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.finish()
        gone = time.monotonic() + 30
        while any(alive(pid) for pid in pids):
            assert time.monotonic() < gone, f"a process of {victim} lives on"
            time.sleep(0.02)
    assert_same_numbers(runs("one", 1), runs(name, 2, "--stage", "adapt"), "adapt")


def alive(pid: int) -> bool:
    """Whether a process runs (and is not only waiting to be noticed as dead)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("processes", [2, pytest.param(1, marks=pytest.mark.stress)])
def test_a_truncated_shard_or_file_in_the_newest_checkpoint_is_passed_over(runs, processes: int) -> None:
    """Half a file is found by its sum: a warning, the checkpoint before it, and the undisturbed run's numbers."""
    name, words = f"cut{processes}", ("machine.parallel=fsdp", "save.every=6", "--stage", "adapt")
    logs = runs.root / "logs" / f"{name}-first"
    assert train(runs.arguments(name, *words), processes, logs) == [0] * processes
    newest = runs.root / name / "adapt" / "00000012"
    broken = sorted(newest.glob("shards/*"))[-1] if processes > 1 else newest / "student.safetensors"
    os.truncate(broken, broken.stat().st_size // 2)
    assert_same_numbers(runs("one", 1), runs(name, processes, *words), "adapt")
    text = said(runs.root / "logs" / name)
    assert f"{broken}: damaged" in text and "taking the checkpoint before it" in text
    assert text.count("taking the checkpoint before it") == 1


def test_a_checkpoint_of_the_first_version_is_read(runs) -> None:
    """What one process wrote before there were shards: the same files under version 1."""
    logs = runs.root / "logs" / "old-first"
    assert train(runs.arguments("old", "--stage", "adapt"), 1, logs, AskToStop(7)) == [75]
    for path in (runs.root / "old").glob("adapt/*/state.json"):
        state = json.loads(path.read_text())
        state["version"] = 1
        for key in ("processes", "spread", "code"):
            del state[key]
        path.write_text(json.dumps(state))
    assert_same_numbers(runs("one", 1), runs("old", 2, "machine.parallel=fsdp", "--stage", "adapt"), "adapt")


def test_a_disk_that_fills_up_is_one_line_and_the_past_is_intact(runs, tmp_path: Path) -> None:
    """A real full disk in the middle of a run of two: one line, whole checkpoints before it; with room it goes on."""
    room = tmp_path / "small"
    room.mkdir()
    last = runs("one", 1) / "adapt" / "00000012"
    enough = 4 * sum(path.stat().st_size for path in last.iterdir())  # for three, or a little less
    mount = ["mount", "-t", "tmpfs", "-o", f"size={enough}", "tmpfs", str(room)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        words = ("machine.parallel=fsdp", "save.every=1", "save.keep_every=1", "--stage", "adapt", f"output={room}")
        logs = runs.root / "logs" / "full"
        assert all(train(runs.arguments("full", *words), 2, logs))
        text = said(logs)
        (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in text and "No space left on device" in line, text
        newest = checkpoint.newest(room / "full" / "adapt")
        assert newest is not None and newest.step > 0 and "damaged" not in text
        subprocess.run(["mount", "-o", "remount,size=100m", str(room)], check=True)
        assert train(runs.arguments("full", *words), 2, logs) == [0, 0], said(logs)
        assert_same_numbers(runs("one", 1), room / "full", "adapt")
    finally:
        subprocess.run(["umount", str(room)], check=True)


def test_every_start_keeps_the_code_that_ran(runs) -> None:
    """RUN/code holds the sources as they are, named in every checkpoint; the same code gives the same bytes."""
    run = runs("one", 1)
    (kept,) = (run / "code").iterdir()
    assert checkpoint.newest(run / "gram").state["code"] == kept.name.removesuffix(".tar.gz")
    with tarfile.open(kept) as tar:
        names = tar.getnames()
        assert tar.extractfile("pretrain/train.py").read() == (ROOT / "pretrain" / "train.py").read_bytes()
    assert "slurm/pretrain.sh" in names and "setup.cfg" in names and not any("test" in name for name in names)
    assert keep_code(run / "again") == kept.name.removesuffix(".tar.gz")
    assert (run / "again" / "code" / kept.name).read_bytes() == kept.read_bytes()


def test_scaling_vectors_of_both_heads_travel_together() -> None:
    """Balancing heads together or a head in parts, and a prototype beyond every sample at the lowest temperature,
    changes nothing."""
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(20, 7, generator=generator), torch.randn(50, 11, generator=generator)]
    heads[0][:, 3] -= 60  # scores of minus thousands
    for head, scaling in zip(heads, scalings([[head] for head in heads], 0.01, 3)):
        assert torch.equal(scaling, *scalings([[head]], 0.01, 3))
        torch.testing.assert_close(scaling, *scalings([[head[:1], head[:0], head[1:]]], 0.01, 3))
        found = SoftTargets(head.unsqueeze(0), 0.01, scaling).rows(slice(None))[0]
        exact = _by_definition(head.double() / 0.01, 3)
        torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=0)
    messages = []
    count = World(0, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "sum_", lambda self, tensor: messages.append(tensor.shape) or tensor)
        patch.setattr(World, "max_", lambda self, tensor: tensor)
        scalings([[head] for head in heads], 0.1, 3, count)
    assert messages == [(18,)] * 3


def _by_definition(scores: torch.Tensor, iterations: int) -> torch.Tensor:
    """Rows and columns normalised by turns, in logarithms and double precision."""
    for _ in range(iterations):
        scores = scores - scores.logsumexp(dim=0)
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    return scores.exp()


def test_a_centre_moves_with_the_batch_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with 3 and 5 samples move their centres as one with 8 does, in one message."""
    logits = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    whole = Centring([6])
    whole.move([[logits]])
    total = torch.cat([logits.sum(dim=0), torch.tensor([8.0])])
    monkeypatch.setattr(World, "sum_", lambda self, tensor: total)
    for mine in (slice(0, 3), slice(3, 8)):
        one = Centring([6])
        one.move([[logits[mine]]], World(0, 2))
        torch.testing.assert_close(one.centres[0], whole.centres[0])
