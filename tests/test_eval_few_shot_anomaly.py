"""MVFA's residual adapters: the reference's numbers, the pass through an encoder, anomalies from few slices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cohorts import task
from helpers.encoders import Pixels, random_transformer
from helpers.golden import GOLDEN
from helpers.towers import two_towers
from safetensors.torch import load_file

from eval.config import FewShotAnomalyConfig, TaskConfig, TaskSplitConfig
from eval.contract import Context
from eval.data import splits
from eval.data.cohorts import Base, Cohort
from eval.data.examples import Picture, flat
from eval.encoders import encoder, language
from eval.networks import residual_adapters
from eval.networks.residual_adapters import Adapter, ResidualAdapters
from eval.probes import few_shot_anomaly, prompts
from eval.reporting import main_figure, results
from eval.statistics import bootstrap
from eval.statistics.predictions import Binned, Scored
from meddap.settings import SettingsError

QUICK = FewShotAnomalyConfig(normal=6, abnormal=[0, 6], draws=2, depths=2, width=32, epochs=[2, 6], memory=400)


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    """What the reference's code gave."""
    return load_file(GOLDEN / "mvfa_pieces.safetensors")


def test_an_adapter_is_the_references(theirs: dict[str, torch.Tensor]) -> None:
    """Middle, output and the gradients of input and weights: to 1e-5."""
    adapter = Adapter(24, 16)
    adapter.load_state_dict({name: theirs[f"adapter.weights.{name}"] for name in ("fc1.0.weight", "fc2.0.weight")})
    tokens = theirs["adapter.in"].clone().requires_grad_()
    middle, out = adapter(tokens)
    torch.testing.assert_close(middle, theirs["adapter.bottleneck"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out, theirs["adapter.out"], atol=1e-5, rtol=1e-5)
    (out.mean() + middle.square().mean()).backward()
    torch.testing.assert_close(tokens.grad, theirs["adapter.grad_in"], atol=1e-7, rtol=1e-4)
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[f"adapter.grad.{name}"], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", ["focal", "dice"])
def test_losses_of_places_are_the_references(name: str, theirs: dict[str, torch.Tensor]) -> None:
    """Value and gradient; pixels that nobody annotated change neither."""
    masks = theirs["segmentation.mask"]

    def loss_of(logits: torch.Tensor, masks: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        chances = logits.softmax(dim=1)
        of = residual_adapters.focal if name == "focal" else residual_adapters.dice
        return of(chances if name == "focal" else chances[:, 1], masks, known)

    logits = theirs["segmentation.logits"].clone().requires_grad_()
    found = loss_of(logits, masks, torch.ones_like(masks))
    torch.testing.assert_close(found, theirs[f"segmentation.{name}"], atol=1e-6, rtol=1e-5)
    found.backward()
    torch.testing.assert_close(logits.grad, theirs[f"segmentation.{name}_grad_logits"], atol=1e-7, rtol=1e-4)
    wider = torch.nn.functional.pad(theirs["segmentation.logits"], (0, 2), value=3.0)
    known = torch.nn.functional.pad(torch.ones_like(masks), (0, 2))
    again = loss_of(wider, torch.nn.functional.pad(masks, (0, 2), value=1.0), known)
    torch.testing.assert_close(again, theirs[f"segmentation.{name}"], atol=1e-6, rtol=1e-5)


def test_memory_and_changed_slices_are_the_references(theirs: dict[str, torch.Tensor]) -> None:
    """Distance to the nearest of the memory; eleven versions of images and masks, in the reference's order."""
    found = residual_adapters.distances(theirs["memory.patches"], theirs["memory.bank"])
    torch.testing.assert_close(found, theirs["memory.score"], atol=1e-5, rtol=1e-5)
    for name in ("", "_masks"):
        given = theirs["augment.images" if not name else "augment.masks"]
        torch.testing.assert_close(
            residual_adapters.augmented(given), theirs[f"augment.out{name}"], atol=1e-5, rtol=1e-5
        )


def encoder_of(kind: str, folder: Path) -> encoder.FrozenEncoder:
    """A backbone of ours, or a CLIP, both with random weights."""
    if kind == "ours":
        return random_transformer(position="learned", grid=4)
    two_towers("clip", folder)
    return encoder.load(str(folder), TaskConfig(data="none", bf16=False))


@pytest.mark.parametrize("kind", ["ours", "clip"])
def test_what_goes_on_between_blocks_is_what_was_asked(kind: str, tmp_path: Path) -> None:
    """Tokens that go on as they are give the encoder's own features; changed ones reach the next block and carry
    gradients, and the encoder is as before afterwards."""
    pytest.importorskip("transformers")
    frozen = encoder_of(kind, tmp_path)
    frozen.precision = torch.autocast("cpu", enabled=False)
    images = frozen.prepare(torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    ((before, _),) = frozen.features(images, [-1])
    seen: dict[int, torch.Tensor] = {}

    def kept(number: int, tokens: torch.Tensor) -> torch.Tensor:
        seen[number] = tokens
        return tokens

    frozen.adapted(images, [0, 1], kept)
    assert sorted(seen) == [0, 1] and seen[0].shape == (3, 18 if kind == "ours" else 17, frozen.embed_dim)
    plain, factor = dict(seen), torch.tensor(2.0, requires_grad=True)

    def doubled(number: int, tokens: torch.Tensor) -> torch.Tensor:
        seen[number] = tokens
        return tokens * factor if number == 0 else tokens

    frozen.adapted(images, [0, 1], doubled)
    torch.testing.assert_close(seen[0], plain[0])
    assert not torch.allclose(seen[1], plain[1])
    (slope,) = torch.autograd.grad(seen[1].square().sum(), factor)
    step = 1e-2
    ends = []
    for value in (2 - step, 2 + step):
        factor = torch.tensor(value)
        frozen.adapted(images, [0, 1], doubled)
        ends.append(float(seen[1].double().square().sum()))
    assert float(slope) == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-2)
    torch.testing.assert_close(frozen.features(images, [-1])[0][0], before)


def test_adapters_add_to_what_goes_on() -> None:
    """0.8 of the tokens and 0.1 of each adapter's output; class vectors of texts stay, others are learned."""
    vectors = torch.nn.functional.normalize(torch.randn(2, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    adapters = ResidualAdapters([1], 8, 5, vectors, torch.Generator().manual_seed(0))
    tokens, middles = torch.randn(2, 3, 8), residual_adapters.empty_middles()
    found = adapters.change(1, tokens, middles)
    outs = [adapters.adapters[kind]["1"](tokens) for kind in ("places", "presence")]
    torch.testing.assert_close(found, 0.8 * tokens + 0.1 * outs[0][1] + 0.1 * outs[1][1])
    torch.testing.assert_close(middles["presence"][1], outs[1][0])
    torch.testing.assert_close(adapters.logits(vectors), 100 * vectors @ vectors.T)
    assert not adapters.vectors.requires_grad
    assert ResidualAdapters([1], 8, 5, None, torch.Generator()).vectors.requires_grad


PATIENTS, SLICES = 40, 3


def lesions(seed: int = 0, planes: int = 1) -> Base:
    """Patients whose slices are a disc with texture; two thirds of the slices hold a bright square somewhere in it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    pixels, maps, abnormal = [], [], []
    for number in range(PATIENTS * SLICES):
        disc = np.hypot(rows - 16, columns - 16) < 14
        image, drawn = 30 + 90 * disc + rng.normal(0, 8, (32, 32)), np.zeros((32, 32), np.uint8)
        if number % SLICES:
            row, column = rng.integers(8, 18, 2)
            drawn[row : row + 7, column : column + 7] = 1
        each = np.stack([image + 80 * drawn] * planes)
        pixels.append(np.clip(each, 1, 255).astype(np.uint8))
        maps.append(drawn)
        abnormal.append(float(drawn.any()))
    names = tuple(f"s{plane}" for plane in range(planes))
    subjects = np.repeat([f"{number:03d}" for number in range(PATIENTS)], SLICES)
    examples = flat(
        np.array([f"{number:04d}" for number in range(len(pixels))]),
        np.array(abnormal)[:, None],
        range(len(pixels)),
        lambda number: Picture(pixels[number], names, "unit8", (0, 32, 0, 32), labelmap=maps[number]),
        names=("abnormal",),
        values=(1,),
        subjects=subjects,
        studies=subjects,
    )
    settings = replace(task("anomaly"), size=32, few_shot_anomaly=QUICK, templates=["{}"])
    return Base(examples, None, settings, Path())


def fitted(base: Base, frozen: object, cache: Path) -> tuple[few_shot_anomaly.FewShotAnomaly, Cohort]:
    """The probe and the test patients."""
    base = replace(base, cache=cache, task=replace(base.task, split=TaskSplitConfig("patient", 0.5, 0.2, 0.3)))
    (fold,) = splits.folds(base.examples, base.task)
    train, val, test = (Cohort(name, base, fold.rows[name]) for name in ("train", "val", "test"))
    return few_shot_anomaly.fit(train, val, Context(base.task, frozen, cache)), test


@pytest.mark.parametrize("kind", ["ours", "clip"])
def test_lesions_are_found_from_few_slices(kind: str, tmp_path: Path) -> None:
    """Slices and pixels, above chance by the bound of the interval over patients and draws, with normal slices alone
    and with abnormal ones; better with the latter. No figure of a slice depends on the other test slices."""
    pytest.importorskip("transformers")
    made, test = fitted(lesions(), encoder_of(kind, tmp_path / "towers"), tmp_path)
    outcomes = made.predict(test)
    assert [(each.variant["abnormal"], type(each.prediction)) for each in outcomes] == [
        *((0, Scored), (0, Binned), (6, Scored), (6, Binned)),
    ]
    figures = {}
    for outcome in outcomes:
        metric = outcome.prediction.metrics()[0]
        (figure,) = bootstrap.figures(outcome.prediction, metric, 200, 0).values()
        figures[outcome.variant["abnormal"], metric] = figure
        assert figure.low > 0.5 and figure.fits == 2, (outcome.variant, metric, figure)
    assert figures[6, "auroc"].value > 0.8 and figures[6, "pixel_auroc"].value > 0.8
    results.save_predictions(tmp_path / "predictions.npz", {"few_shot_anomaly": outcomes}, made.task)
    _, kept = results.read_predictions(tmp_path)  # slices and pixels each have a name
    assert [type(each) for each in kept.values()] == [Scored, Binned, Scored, Binned]
    assert str(main_figure.find("anomaly", (), "", kept)) == "few_shot_anomaly abnormal 0 auroc"
    assert made.choices["0 abnormal"]["epochs"] == 0 and made.choices["6 abnormal"]["epochs"] in (2, 6)
    some = np.arange(5)
    alone = made.predict(test.only(some))
    for whole, few in zip(outcomes[::2], alone[::2]):
        np.testing.assert_allclose(few.prediction.scores, whole.prediction.scores[:, some], atol=1e-5)


def test_without_label_maps_slices_alone_are_scored(tmp_path: Path) -> None:
    """Adapters of presence take the place of those of places: above chance, and no figure of pixels."""
    base = lesions()
    quick = replace(base.task, few_shot_anomaly=replace(QUICK, abnormal=[6], draws=1))
    bare = replace(base, task=quick, examples=replace(base.examples, values=()))
    made, test = fitted(bare, random_transformer(), tmp_path)
    (outcome,) = made.predict(test)
    assert bootstrap.figures(outcome.prediction, "auroc", 200, 0)["all"].low > 0.5
    assert made.fits[6][0].kind == "presence"


def test_shuffled_labels_are_not_found(tmp_path: Path) -> None:
    """Where slices are called normal or abnormal by chance, and maps with them, the figure is near 0.5."""
    values, quick = [], replace(QUICK, draws=1, epochs=[2])
    for seed in range(3):
        base = lesions(seed)
        base = replace(base, task=replace(base.task, few_shot_anomaly=quick))
        order = np.random.default_rng(seed).permutation(len(base.examples))
        shuffled = base.examples.take(order)
        pictures = [(base.examples.read(row), shuffled.read(row).labelmap) for row in range(len(order))]
        examples = replace(
            shuffled,
            subjects=base.examples.subjects,
            keys=base.examples.keys,
            reader=lambda number, pictures=pictures: replace(pictures[number][0], labelmap=pictures[number][1]),
        )
        made, test = fitted(replace(base, examples=examples), random_transformer(), tmp_path / str(seed))
        values += [
            bootstrap.figures(each.prediction, "auroc", 10, 0)["all"].value
            for each in made.predict(test)
            if isinstance(each.prediction, Scored)
        ]
    assert abs(np.mean(values) - 0.5) < 0.15, values


def test_class_vectors_are_what_the_task_says_of_normal_and_abnormal(tmp_path: Path) -> None:
    """Absence first, then presence, as ensembles; none without a text tower."""
    pytest.importorskip("transformers")
    frozen = encoder_of("clip", tmp_path)
    said = TaskConfig(
        data="x", prompts={"abnormal": ["lesion"]}, absent_prompts={"abnormal": ["healthy tissue"]}, templates=["{}"]
    )
    tower = language.of(frozen)
    assert not isinstance(tower, str)
    found = few_shot_anomaly.class_vectors(Context(said, frozen, tmp_path), ["abnormal"])
    torch.testing.assert_close(found, prompts.ensemble(tower, [["healthy tissue"], ["lesion"]]))
    assert few_shot_anomaly.class_vectors(Context(said, random_transformer(), tmp_path), ["abnormal"]) is None


def test_sequences_pass_one_by_one_and_absent_ones_do_not() -> None:
    """A slice of two sequences alike, of which one is absent in the first slice: the same features for both."""
    passing = few_shot_anomaly.Passing(random_transformer(), (0, 3))
    image = torch.rand(1, 1, 32, 32)
    images = torch.cat([torch.cat([image, torch.zeros_like(image)], dim=1), torch.cat([image, image], dim=1)])
    middles, owner, patches = passing(images, None)
    assert owner.tolist() == [0, 1, 1] and patches == 16
    found = residual_adapters.mean_by(middles["places"][3], owner, 2)
    torch.testing.assert_close(found[0], found[1])


def test_what_cannot_be_adapted_or_is_too_few_is_one_line(tmp_path: Path) -> None:
    """An encoder without blocks, one of several sequences, more slices than there are."""
    assert "no blocks between which" in few_shot_anomaly.lacking(Pixels())
    several = random_transformer(sequences=["t1", "t2"])
    assert "takes several sequences at once" in few_shot_anomaly.lacking(several)
    with pytest.raises(SettingsError, match="few_shot_anomaly: it has no blocks"):
        fitted(lesions(), Pixels(), tmp_path)
    base = lesions()
    many = replace(base.task, few_shot_anomaly=replace(QUICK, abnormal=[0, 500]))
    with pytest.raises(SettingsError, match=r"few_shot_anomaly.abnormal=500: \d+ abnormal training slices; give"):
        fitted(replace(base, task=many), random_transformer(), tmp_path)
