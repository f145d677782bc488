"""What a process runs on: precision, launcher, and what a GPU must never be asked within a step."""

from __future__ import annotations

import pytest
import torch

from benchmarks import step as bench
from meddap.settings import SettingsError
from pretrain import build, distillation
from pretrain.config import MachineConfig
from pretrain.data import views
from pretrain.data.micro_batch import micro_batches
from pretrain.model.vit import VisionTransformer
from pretrain.runtime import distributed
from pretrain.runtime.device import autocast, pick_device, uses_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("found", "expected"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx512_f": True}, False)]
)
def test_auto_is_bf16_where_the_processor_multiplies_it(found: dict, expected: bool, monkeypatch) -> None:
    """AMX's or AVX-512's bfloat16; elsewhere it would be emulated. A word of one's own wins."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert uses_bf16("auto", CPU) is expected
    assert uses_bf16("bf16", CPU) and not uses_bf16("float32", CPU)
    with autocast("auto", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if expected else torch.float32)


def test_what_is_no_precision_or_device_is_one_line() -> None:
    """The value and what to use instead."""
    with pytest.raises(SettingsError, match="machine.precision: 'half'; use auto, bf16 or float32"):
        uses_bf16("half", CPU)
    with pytest.raises(SettingsError, match="machine.device: 'gpu' is not a device; use auto, cpu or cuda"):
        pick_device("gpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"cuda_graphs": True}, "set machine.compile=true"),
        ({"cuda_graphs": True, "compile": True, "parallel": "fsdp"}, "use machine.parallel=ddp"),
    ],
)
def test_graphs_that_cannot_be_recorded_are_refused(words: dict, said: str) -> None:
    """Without compiled blocks, or of parameters that move: one line each."""
    model = VisionTransformer(embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(SettingsError, match=f"machine.cuda_graphs=true: .*{said}"):
        build.prepare(model, MachineConfig(**words), CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_never_waits_for_the_gpu() -> None:
    """From views and masks to gradients the host asks the device nothing, drop path included."""
    device = torch.device("cuda")
    config = bench.Task("s", (112, 48), batch=4, prototypes=512, drop_path=0.3, depth=2).config
    inputs = bench.inputs_of(config, 4)
    student, teacher = build.student_and_teacher(config, device)
    seen = views.Views(inputs.crops.global_crops.to(device), inputs.crops.local_crops.to(device))
    whole = micro_batches(seen, inputs.masks, inputs.draws, [(4,)])
    weights = distillation.StepWeights(teacher_temp=0.07)
    for _ in range(2):  # the first one allocates
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = distillation.backward(student, teacher, whole, weights, precision=autocast("bf16", device))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert found["total"].isfinite()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, {"rank": 3, "size": 8, "local_rank": 1}),
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"},
            {"rank": 1, "size": 2, "local_rank": 0},
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, None),  # the batch script, not a step
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        ({}, None),
    ],
)
def test_who_a_process_is_follows_from_its_launcher(environment: dict, expected: dict | None) -> None:
    """torchrun's and srun's variables; a batch script without srun, a launcher of one and no launcher are alone."""
    found = distributed.launched(environment)
    assert (found and {"rank": found.rank, "size": found.size, "local_rank": found.local_rank}) == expected
