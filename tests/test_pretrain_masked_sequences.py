"""Batches of MRI with any sequences missing: stream, views, whole-sequence masks, labels, and runs over them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_run import CONFIG, MRI, SHORT, rows, stop_after_every_step, weights

from data_prep.schema import MR_LOW, SchemaError, Split
from pretrain import distillation, train
from pretrain.data import labels, masking, stream, views
from pretrain.data.intensity import Intensity
from pretrain.data.labels import Labelling
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.heads import ClassHeads
from pretrain.model.student_teacher import Model
from pretrain.objective import losses
from pretrain.objective.sinkhorn import SoftTargets, scalings
from pretrain.runtime import checkpoint, metrics
from pretrain.weights import encoder

NAMES = ("t1", "t1c", "t2", "flair")
SETTINGS = views.ViewSettings(
    global_size=24,
    global_scale=(0.5, 1.0),
    local_size=12,
    local_scale=(0.2, 0.5),
    local_number=2,
    intensity=Intensity((-1000, 1000), 0.449, 0.226),
    sequences=NAMES,
    min_body=0.3,
)
# MM-DINOv2's way: prototypes that are the classes, one head, a moving centre
PROTOTYPES = ["classifier=prototypes", "dino_head.prototypes=2", "dino_head.learned_gain=true", "ibot_head=null"]
PROTOTYPES += ["stages.adapt.loss.targets=centring", "stages.second.loss.targets=centring"]


@pytest.fixture
def split(brain_shards: Path) -> Split:
    """Training slices of the synthetic brains."""
    return Split(brain_shards, "train")


def take(split: Split, count: int = 1, **options) -> list[stream.Batch]:
    """The first `count` batches."""
    batches = stream.batches(split, **{"batch_size": 12, "seed": 3, "sequences": NAMES} | options)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def test_a_batch_holds_what_each_sample_has(split: Split) -> None:
    """Pixels are the stored ones less 32,768, presence and labels those of the slice, absent sequences air."""
    batch = take(split, labels=Labelling(("tumour",)))[0]
    assert not batch.present.all()
    for row, number in enumerate(batch.sample.tolist()):
        sample = split[number]
        assert batch.labels[row].tolist() == [sample.labels["tumour"]]
        for place, name in enumerate(NAMES):
            assert batch.present[row, place] == (name in sample.sequences)
            plane = batch.pixels[row, place].numpy().astype(int) + 32768
            if name in sample.sequences:
                assert np.array_equal(plane, sample.pixels[sample.sequences.index(name)])
            else:
                assert (plane == MR_LOW).all()


def test_a_sample_without_any_wanted_sequence_is_named(split: Split) -> None:
    """Neither air is trained on nor the sample passed over in silence."""
    with pytest.raises(SchemaError, match=r"sample \d+: has t1.*, none of data.sequences=\['adc'\]"):
        take(split, sequences=("adc",))


def test_geometry_is_shared_and_intensity_is_drawn_for_each_sequence(split: Split) -> None:
    """The same picture in every channel: equal without augmentation, unequal with it, equal again where it is undone;
    what one sequence draws does not depend on which others there are."""
    batch = take(split)[0]
    same = replace(batch, pixels=batch.pixels[:, 2:3].expand(-1, 4, -1, -1).clone(), present=torch.ones(12, 4).bool())
    plain = views.make(same, SETTINGS, 0).global_crops
    assert all(torch.equal(plain[:, :, 0], plain[:, :, place]) for place in range(4))
    augmented = replace(SETTINGS, mr_shift=0.2, window_stretch=0.2)
    drawn = views.make(same, augmented, 0).global_crops
    for one, other in itertools.combinations(range(4), 2):
        assert (drawn[:, :, one] - drawn[:, :, other]).abs().max() > 0.1
    parameters = views.sample_parameters(same, augmented, 0, "global", 0)
    assert parameters.low.shape == (12, 4) and parameters.boxes.shape == (12, 4, 4)
    first_two = replace(augmented, sequences=NAMES[:2])
    fewer = views.make(replace(same, pixels=same.pixels[:, :2]), first_two, 0).global_crops
    assert torch.equal(fewer, drawn[:, :, :2])


def test_views_of_mr_are_its_percentiles_at_0_and_1(split: Split) -> None:
    """Whatever the scanner's gain: nearly all of the foreground lies between the two, standardised."""
    crops = views.make(take(split)[0], SETTINGS, 0).global_crops * 0.226 + 0.449
    assert crops.min() >= -1e-6 and crops.max() <= 1 + 1e-6 and 0.2 < crops.std() < 0.5


def masks_of(present: torch.Tensor, probability: float, count: int = 1, patches: int = 9) -> torch.Tensor:
    """(2, B, S, P) masks with a shared patch mask of three patches."""
    sample = torch.arange(len(present))
    shared = torch.zeros(2 * len(present), patches, dtype=torch.bool)
    shared[:, 2:5] = True
    found = masking.over_sequences(shared, present, sample, sample * 0, 1, probability=probability, count=count)
    return found.unflatten(1, (present.shape[1], patches)).unflatten(0, (2, -1))


def test_whole_sequences_are_masked_and_never_all() -> None:
    """Exactly k of the present ones, all where k is too large but one; in union with the shared patch mask; absent
    ones nowhere; every sequence is as likely as another."""
    present = torch.rand(600, 4, generator=torch.Generator().manual_seed(0)) < 0.7
    present[:, 0] |= ~present.any(dim=1)
    for count in (1, 2):
        found = masks_of(present, 1.0, count)
        whole = found.all(dim=3)
        assert torch.equal(whole.sum(dim=2), (present.sum(dim=1) - 1).clamp(max=count).expand(2, -1))
        assert not found[:, ~present].any() and found[:, present][..., 2:5].all()
        assert not found[..., [0, 1, 5, 6, 7, 8]][~whole].any()
    everyone = masks_of(torch.ones(2000, 4, dtype=torch.bool), 0.5)
    chosen = everyone.all(dim=3).float().mean(dim=(0, 1))
    assert torch.allclose(chosen, torch.full((4,), 0.125), atol=0.02)
    assert not masks_of(torch.ones(50, 4, dtype=torch.bool), 0.0).all(dim=3).any()


def test_a_single_sequence_has_the_masks_it_had() -> None:
    """Where there is one sequence nothing is added."""
    sample = torch.arange(20)
    plain = masking.sample((6, 6), sample, sample * 0, 1, probability=0.5, ratio=(0.1, 0.5))
    one = torch.ones(20, 1, dtype=torch.bool)
    assert torch.equal(plain, masking.over_sequences(plain, one, sample, sample * 0, 1, probability=1.0, count=1))


def test_the_target_is_the_teachers_token_of_the_unmasked_sequence() -> None:
    """What the student must say of a masked sequence is what the teacher says who sees it, by sequence and patch."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 2, 16, 16, generator=generator)
    present = torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    from pretrain.model.heads import ProjectionHead
    from pretrain.model.vit import VisionTransformer

    backbone = VisionTransformer(patch_size=8, embed_dim=16, depth=1, num_heads=1, layer_scale=None, sequences=NAMES)
    head = dict(prototypes=8, hidden_dim=16, bottleneck_dim=8)
    teacher = Model(backbone, ProjectionHead(16, **head), ProjectionHead(16, **head))
    teacher.init_weights(generator)
    masks = torch.zeros(6, 2, 4, dtype=torch.bool)
    masks[0, 1], masks[5, 0, 3] = True, True
    crops = views.Views(images, images[:0], None, present, ("t1", "flair"))
    (goal,), found = distillation.teacher_targets(
        teacher, [MicroBatch(crops, masks.flatten(1))], distillation.StepWeights(teacher_temp=0.07)
    )
    with torch.no_grad():
        seen = backbone(images.flatten(0, 1), present=present.repeat(2, 1), sequences=("t1", "flair"))
        tokens = torch.cat([seen.patches[1], seen.patches[8, 3:]])  # images are 5 of each crop
        logits = teacher.ibot_head(tokens)
        expected = SoftTargets(logits.unsqueeze(0), 0.07, *scalings([[logits]], 0.07)).rows(slice(None))[0]
    torch.testing.assert_close(goal.patches.rows(slice(None))[0], expected)
    entropy = torch.special.entr(expected[:4].mean(dim=0)).sum()  # all lost patches are of one sequence
    torch.testing.assert_close(found["sequences/marginal"], entropy)


def test_the_class_loss_is_smoothed_weighted_cross_entropy_times_the_labelled_share() -> None:
    """Equal to PyTorch's on the labelled where weights are 1; unlabelled samples take no part; parts add up."""
    generator = torch.Generator().manual_seed(0)
    logits, known = torch.randn(10, 3, generator=generator), torch.tensor([0, 2, -1, 1, -1, -1, 0, 1, 2, -1])
    labelled = known >= 0
    plain = torch.nn.functional.cross_entropy(logits[labelled], known[labelled], label_smoothing=0.1) * 0.6
    torch.testing.assert_close(losses.class_loss(logits, known, torch.ones(3), 0.1), plain)
    balance = torch.tensor([2.0, 0.5, 1.0])
    each = torch.nn.functional.cross_entropy(logits[labelled], known[labelled], reduction="none")
    torch.testing.assert_close(
        losses.class_loss(logits, known, balance, 0.0), (each * balance[known[labelled]]).sum() / 10
    )
    parts = [losses.class_loss(logits[rows], known[rows], balance, 0.1) for rows in (slice(0, 4), slice(4, 10))]
    torch.testing.assert_close(0.4 * parts[0] + 0.6 * parts[1], losses.class_loss(logits, known, balance, 0.1))
    assert losses.class_loss(logits[:1], known[2:3], balance, 0.1) == 0


def test_inverse_frequency_weights_are_1_on_average() -> None:
    """Rare classes weigh more; the mean over samples is 1; a class that nobody has weighs nothing."""
    found = np.array(labels.balanced([30, 10, 0]))
    assert found[2] == 0 and found[1] == 3 * found[0] and (found * [30, 10, 0]).sum() / 40 == pytest.approx(1)


def test_a_share_of_the_patients_is_whole_patients_of_each_class_and_grows(split: Split) -> None:
    """ceil(share · patients) of each class, all slices of each; a larger share holds a smaller one."""
    subjects = split.index["subject"]
    classes = np.array([split.labels(number)["tumour"] for number in range(len(split))])
    before = np.zeros(len(split), bool)
    for share in (0.0, 0.1, 0.4, 1.0):
        known = labels.known(split, share, ["tumour"])
        for kind in np.unique(classes):
            patients = len(np.unique(subjects[classes == kind]))
            assert len(np.unique(subjects[known & (classes == kind)])) == np.ceil(share * patients)
        assert not set(subjects[known]) & set(subjects[~known]) and (known | ~before).all()
        before = known
    chosen = labels.known(split, 0.4, ["tumour"])
    only = take(split, 3, labels=Labelling(("tumour",), chosen, np.flatnonzero(chosen)))
    assert all((each.labels >= 0).all() and chosen[each.sample].all() for each in only)
    some = take(split, 3, labels=Labelling(("tumour",), chosen))
    assert all(torch.equal(each.labels[:, 0] >= 0, torch.from_numpy(chosen[each.sample])) for each in some)


def test_heads_of_several_columns_learn_from_their_own_labels() -> None:
    """Two columns, one without labels in the batch: its head gets a gradient of zero, the other's does not."""
    heads = ClassHeads(6, {"tumour": 2, "grade": 3})
    heads.init_weights(torch.Generator().manual_seed(0))
    logits = heads(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))
    given = torch.tensor([[0, -1], [1, -1], [-1, -1], [1, -1]])
    weight = distillation.StepWeights(teacher_temp=0.07, class_weights={"tumour": (1.0, 1.0), "grade": (1.0, 1.0, 1.0)})
    distillation.class_term(logits, given, weight).backward()
    assert heads["tumour"].weight.grad.abs().max() > 0 and not heads["grade"].weight.grad.any()


@pytest.fixture
def run(brain_shards: Path, tmp_path: Path):
    """run(name, *words) trains the tiny configuration on the synthetic brains."""
    config = tmp_path / "mri.yaml"
    lines = [line for line in CONFIG.splitlines() if not line.startswith("model:")]
    config.write_text("\n".join(lines) + MRI)

    def start(name: str, *words: str) -> int:
        fixed = [f"name={name}", f"output={tmp_path}", f"data.root={brain_shards}"]
        fixed += ["stages.adapt.masks.sequence_probability=1.0"]
        return train.main(["--config", str(config), *fixed, *words])

    return start


@pytest.mark.parametrize("words", [[], PROTOTYPES], ids=["sinkhorn", "mm_dinov2"])
def test_a_run_on_mri_stopped_at_every_step_ends_the_same(run, words, tmp_path: Path, monkeypatch) -> None:
    """Presence, whole-sequence masks, labels and moving centres: resumed equals not stopped, to the bit."""
    assert run("whole", *words) == 0 and stop_after_every_step(lambda: run("stopped", *words), monkeypatch) == 11
    for stage, last in (("adapt", "00000008"), ("second", "00000003")):
        one, other = tmp_path / "whole" / stage, tmp_path / "stopped" / stage
        assert rows(one) == rows(other)
        ours, theirs = weights(one / last), weights(other / last)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    row = metrics.read(tmp_path / "whole" / "adapt" / "metrics.jsonl")[-1]
    assert {"loss/classes", "sequences/loss", "sequences/marginal"} <= row.keys()
    assert ("gradient/class_heads" in row) == ("gradient/ibot_head" in row) == (not words)
    kept = checkpoint.read(tmp_path / "whole" / "second" / "00000003")
    assert kept.has("centres") == bool(words) and (not words or kept.tensors("centres")["head0"].abs().max() > 0)
    state = checkpoint.read(tmp_path / "whole" / "adapt" / "00000008").state
    assert state["classes"] == {"tumour": ["match", "mismatch"]}


def test_names_are_added_to_trained_weights_in_any_order(run, tmp_path: Path) -> None:
    """init_from a model of two sequences: their rows follow their names, a new name gets a fresh row; and a model
    without a vocabulary becomes one with."""
    two = ["data.sequences=[t2,t1]", "model.sequences=[t2,t1]", "stages.adapt.steps=2", *SHORT]
    assert run("two", *two, "--stage", "adapt") == 0
    words = ["model.sequences=[adc,t1,t2,t1c,flair]", f"stages.adapt.init_from={tmp_path / 'two'}"]
    assert run("more", *words, "stages.adapt.steps=1", *SHORT, "--stage", "adapt") == 0
    old = encoder.load_encoder(tmp_path / "two").model.sequence_embed.weight
    start = checkpoint.read(tmp_path / "more" / "adapt" / "00000000").tensors("student")
    new = start["backbone.sequence_embed.weight"]
    assert torch.equal(new[2], old[0]) and torch.equal(new[1], old[1]) and len(new) == 5
    assert new[0].norm() > 0 and not torch.equal(new[0], new[3])
    single = ["data.sequences=[t1]", "model.sequences=[]", "stages.adapt.steps=1", *SHORT, "--stage", "adapt"]
    assert run("single", *single) == 1  # some patients have no T1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.sequences=[t1,t2]"], "data.sequences: t1c is not in model.sequences"),
        (["model.sequences=[]"], "model.sequences is empty; set model.sequences="),
        (["data.sequences=[t1,t1]"], "duplicate name"),
        (["data.labels=[grade]"], "grade is not a label column of"),
        (["data.labels=[]", "data.only_labelled=true"], "no label column is named"),
        ([*PROTOTYPES, "dino_head.prototypes=3"], "tumour has 2 (match, mismatch); set dino_head.prototypes=2"),
        (["classifier=prototypes", "data.labels=[]"], "data.labels names 0; name one, or set classifier=linear"),
        (["dino_head.learned_gain=true", "dino_head.unit_norm_rows=false"], "learned_gain=true needs unit_norm_rows"),
        (["stages.adapt.loss.targets=softmax"], "loss.targets: Invalid value 'softmax', expected one of"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(run, words: list[str], said: str, capsys) -> None:
    """One line that names the key."""
    assert run("bad", *words) == 1
    printed = capsys.readouterr().err
    assert said in printed and printed.count("error:") == 1
