"""One whole training step against the reference: every loss, the total, every gradient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pretrain.data.micro_batch import MicroBatch
from pretrain.data.views import Views
from pretrain.distillation import StepWeights, backward
from pretrain.model import compiling
from pretrain.model.heads import ProjectionHead
from pretrain.model.student_teacher import Model
from pretrain.model.vit import VisionTransformer


def model_of(tensors: dict[str, torch.Tensor], role: str, heads: dict) -> Model:
    """The student or teacher of the golden step."""
    shared = {"hidden_dim": heads["hidden_dim"], "bottleneck_dim": heads["bottleneck_dim"], "layers": heads["nlayers"]}
    model = Model(
        VisionTransformer(channels=3, embed_dim=96, depth=3, num_heads=3, mask_k_bias=True),
        ProjectionHead(96, prototypes=heads["dino_prototypes"], **shared),
        ProjectionHead(96, prototypes=heads["ibot_prototypes"], **shared),
    )
    weights = {name[len(role) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{role}.")}
    names = set(model.state_dict())
    model.load_state_dict({name: value for name, value in weights.items() if name in names})
    return model


@pytest.fixture(scope="module", params=["eager", "compiled"])
def step(golden_dir: Path, request: pytest.FixtureRequest):
    """(tensors, student, losses by name) of the golden step, gradients computed.

    Compiled: of its second run, in which no new graph may be made.
    """
    path = golden_dir / "dinov3_step.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    heads, hyper = json.loads(metadata["heads"]), json.loads(metadata["hyperparameters"])
    tensors = load_file(path)
    student, teacher = model_of(tensors, "student", heads), model_of(tensors, "teacher", heads)
    anchor = VisionTransformer(channels=3, embed_dim=96, depth=3, num_heads=3, mask_k_bias=True)
    prefixes = ("gram_teacher.backbone.", "gram_teacher.", "gram.backbone.", "gram.")
    prefix = next(p for p in prefixes if p + "cls_token" in tensors)
    anchor.load_state_dict({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})
    views = Views(tensors["input.global_crops"], tensors["input.local_crops"], tensors["input.gram_crops"])
    weights = StepWeights(
        teacher_temp=hyper["teacher_temp"],
        student_temp=hyper["student_temp"],
        dino=hyper["dino_weight"],
        ibot=hyper["ibot_weight"],
        koleo=hyper["koleo_weight"],
        gram=hyper["gram_weight"],
        sinkhorn_iterations=hyper["sinkhorn_iterations"],
    )

    def run() -> dict[str, torch.Tensor]:
        student.zero_grad()
        part = MicroBatch(views, tensors["input.masks"].bool())
        return backward(student, teacher, [part], weights, gram_teacher=anchor)

    if request.param == "eager":
        return tensors, student, run()
    pytest.importorskip("torch._inductor")
    compiling.compile_blocks(student.backbone)
    compiling.compile_blocks(teacher.backbone, replayed=True)  # on a GPU; a CPU replays nothing
    run()
    with torch.compiler.set_stance("fail_on_recompile"):
        return tensors, student, run()


def test_every_loss_of_the_step_is_the_references(step) -> None:
    """Each term and the total, to 1e-5 relative."""
    tensors, _, found = step
    names = {
        "dino_global": "dino_global_crops_loss",
        "dino_local": "dino_local_crops_loss",
        "ibot": "ibot_loss",
        "koleo": "koleo_loss",
        "gram": "gram_loss",
        "total": "total",
    }
    for ours, theirs in names.items():
        torch.testing.assert_close(found[ours].double(), tensors[f"loss.{theirs}"], rtol=1e-5, atol=1e-7)


def test_every_gradient_of_the_step_is_the_references(step) -> None:
    """Each student parameter's gradient, to 1e-4 of the largest entry."""
    tensors, student, _ = step
    gradients = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("grad")}
    gradients = {name.removeprefix("student."): value for name, value in gradients.items()}
    ours = dict(student.named_parameters())
    assert set(gradients) == set(ours)
    largest = max(value.abs().max() for value in gradients.values())
    for name, expected in gradients.items():
        torch.testing.assert_close(
            ours[name].grad,
            expected,
            rtol=0,
            atol=float(1e-4 * expected.abs().max() + 1e-9 * largest),
            msg=f"{name} differs",
        )
