"""MM-DINOv2's step: its moving centre, its prototypes that are classes, and heads that are shared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pretrain.data.masking import over_sequences
from pretrain.data.micro_batch import MicroBatch, micro_batches
from pretrain.data.randomness import Draws
from pretrain.data.views import Views
from pretrain.distillation import StepWeights, backward
from pretrain.model.heads import ProjectionHead
from pretrain.model.student_teacher import Model
from pretrain.model.vit import VisionTransformer
from pretrain.objective.losses import batch_class_weights
from pretrain.objective.sinkhorn import Centring

ROWS = ("t1", "t1c", "t2", "flair")  # of the reference's sequence embedding
THEIRS = {
    "sequence_embed": "mri_seq_embed",
    "last_layer_gain": "last_layer.weight_g",
    "last_layer.weight": "last_layer.weight_v",
}


def their_name(name: str) -> str:
    """What the reference calls one of our parameters."""
    ours = next((ours for ours in THEIRS if name.endswith(ours) or f".{ours}." in name), None)
    return name if ours is None else name.replace(ours, THEIRS[ours])


def model_of(tensors: dict[str, torch.Tensor], role: str, metadata: dict, column: str | None) -> Model:
    """The student or teacher of a golden step, on one channel."""
    sizes, heads = metadata["sizes"], metadata["heads"]
    how = {"hidden_dim": heads["hidden"], "bottleneck_dim": heads["bottleneck"], "layers": heads["nlayers"]}
    counts = metadata["changes"].get("prototypes", heads["prototypes"]), heads["ibot_prototypes"]
    model = Model(
        VisionTransformer(
            patch_size=sizes["patch"],
            embed_dim=sizes["width"],
            depth=sizes["depth"],
            num_heads=sizes["heads"],
            position="learned",
            grid=sizes["grid"],
            registers=0,
            norm_eps=1e-6,
            layer_scale=1.0,
            sequences=ROWS,
        ),
        *(
            ProjectionHead(sizes["width"], prototypes=count, unit_norm_rows=True, learned_gain=True, **how)
            for count in counts
        ),
        prototype_column=column,
    )
    weights = {name: tensors[f"{role}.{their_name(name)}"] for name in model.state_dict()}
    # the reference repeats a grey image in three channels
    kernel = "backbone.patch_embed.proj.weight"
    model.load_state_dict({**weights, kernel: weights[kernel].sum(dim=1, keepdim=True)})
    return model


@pytest.mark.parametrize("case", ["centring", "labels"])
def test_every_term_and_gradient_of_the_step_is_the_references(case: str, golden_dir: Path) -> None:
    """With the moving centre, and with labels that three prototypes learn: terms to 1e-6, gradients to 1e-5."""
    path = golden_dir / f"mm_step_{case}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
    tensors, settings = load_file(path), metadata["case"]
    column = "class" if case == "labels" else None
    student, teacher = (model_of(tensors, role, metadata, column) for role in ("student", "teacher"))
    views = Views(
        tensors["input.global_crops"],
        tensors["input.local_crops"],
        sequences=tuple(metadata["order"]),
        labels=tensors["input.labels"].unsqueeze(1),
    )
    weights = StepWeights(
        teacher_temp=settings["teacher_temp"],
        koleo=settings["koleo"],
        classes=metadata["changes"].get("semi", 0.0),
        class_temp=0.1 if column else None,
    )
    centring = None
    if case == "centring":
        centring = Centring([head.last_layer.out_features for head in (student.dino_head, student.ibot_head)])
    part = MicroBatch(views, tensors["input.masks"].bool())
    found = backward(student.train(), teacher.eval(), [part], weights, centring=centring)
    pairs = 2 + 2 * settings["locals"]
    # theirs are weighted already: by the pairs of crops, KoLeo by its weight, the labels by nothing
    expected = {
        "dino_global": tensors["loss.dino_global_crops_loss"] * pairs / 2,
        "dino_local": tensors["loss.dino_local_crops_loss"] * pairs / (pairs - 2),
        "ibot": tensors["loss.ibot_loss"] * 2,
        "koleo": tensors["loss.koleo_loss"] / settings["koleo"],
    }
    if column:
        expected["classes"] = tensors["loss.labeled_loss"] * tensors["loss.labeled_ratio"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-6, atol=0)
    for name, parameter in student.named_parameters():
        reference = tensors[f"grad.{their_name(name)}"]
        if name.endswith("patch_embed.proj.weight"):
            reference = reference[:, :1]  # each of the three equal channels has this gradient
        difference = (parameter.grad - reference).abs().max() / reference.abs().max()
        assert difference <= 1e-5, (name, difference.item())


def small(head: bool, seed: int = 0, column: str | None = None) -> Model:
    """A small model with a head of its own for patches, or without."""
    heads = [ProjectionHead(16, prototypes=3, hidden_dim=12, bottleneck_dim=8, unit_norm_rows=True) for _ in range(2)]
    backbone = VisionTransformer(patch_size=4, embed_dim=16, depth=2, num_heads=2, layer_scale=None)
    model = Model(backbone, heads[0], heads[1] if head else None, prototype_column=column)
    model.init_weights(torch.Generator().manual_seed(seed))
    if head:
        model.ibot_head.load_state_dict(model.dino_head.state_dict())
    return model


def batch_of(images: int = 6) -> tuple[Views, torch.Tensor]:
    """Views and masks of some images, half of them labelled."""
    generator = torch.Generator().manual_seed(3)
    crops = [torch.randn(count, images, 1, size, size, generator=generator) for count, size in ((2, 16), (2, 8))]
    masks = torch.rand(2 * images, 16, generator=generator) < 0.3
    present = torch.ones(images, 1, dtype=torch.bool)
    numbers = torch.arange(images)
    masks = over_sequences(masks, present, numbers, numbers * 0, 0, probability=0.0, count=1)
    labels = torch.tensor([[0], [-1], [2], [-1], [0], [-1]])[:images]
    return Views(*crops, labels=labels), masks


@pytest.mark.parametrize("targets", ["sinkhorn", "centring"])
def test_a_shared_head_gets_the_gradients_of_both_of_its_uses(targets: str) -> None:
    """The same terms as with two heads of equal weights, and the sum of their gradients."""
    views, masks = batch_of()
    weights, found, models = StepWeights(teacher_temp=0.05), [], []
    for head in (False, True):
        student, teacher = small(head).train(), small(head, seed=1).eval()
        centring = Centring([3, 3]) if targets == "centring" else None
        found.append(backward(student, teacher, [MicroBatch(views, masks)], weights, centring=centring))
        models.append(student)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)
    shared, apart = models
    for name, parameter in shared.dino_head.named_parameters():
        both = sum(dict(head.named_parameters())[name].grad for head in (apart.dino_head, apart.ibot_head))
        torch.testing.assert_close(parameter.grad, both)
    assert "ibot_head" not in dict(shared.named_children())


def test_classes_weigh_by_their_number_in_the_whole_batch_whatever_its_parts() -> None:
    """Parts of a batch, one of them without a label of some class, give the whole batch's terms and gradients."""
    views, masks = batch_of()
    weights, found = replace(StepWeights(teacher_temp=0.05, koleo=0.0), class_temp=0.1), []
    for counts in ([(6,)], [(1,), (3,), (2,)]):
        student, teacher = small(True, column="class").train(), small(True, seed=1, column="class").eval()
        batch = micro_batches(views, masks, Draws(), counts)
        terms = backward(student, teacher, batch, weights)
        found.append({**terms, **{name: each.grad for name, each in student.named_parameters()}})
    for name in found[0].keys() - {"koleo"}:  # which weighs nothing here
        largest = max(float(found[0][name].abs().max()), 1.0)
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-5 * largest, msg=name)
    assert found[0]["classes"] > 0


def test_rare_classes_weigh_more_and_a_batch_without_labels_weighs_nothing() -> None:
    """ln(N / n) of each class; all 0 where nothing is labelled."""
    weights = batch_class_weights(torch.tensor([2.0, 6.0, 0.0]))
    torch.testing.assert_close(weights[:2], torch.tensor([4.0, 8 / 6]).log())
    assert weights[2] > 10 and not batch_class_weights(torch.zeros(3)).any()


def test_a_centre_follows_the_logits_and_stays_where_there_are_none() -> None:
    """A tenth of the way to each batch's mean, for each head on its own; no masked patch moves nothing."""
    centring, logits = Centring([4, 2]), torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    centring.move([[logits], [torch.empty(0, 2)]])
    torch.testing.assert_close(centring.centres[0], 0.1 * logits[0])
    assert not centring.centres[1].any()
    torch.testing.assert_close(centring.scalings(0.5)[0], -0.2 * logits[0])
