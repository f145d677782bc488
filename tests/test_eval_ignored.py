"""Voxels that nobody annotated are out of loss and score; nnU-Net's dataset.json of both versions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from data_prep import shard_ct
from eval import probe
from eval.config import TaskConfig
from eval.data import sources
from eval.data.examples import Examples, Picture
from eval.data.sources.shards import presence
from eval.networks import segmentation, volume_scores
from eval.networks.segmentation import PixelCounts
from eval.probes import patch_bank
from meddap.settings import SettingsError, load

CASES = Path(__file__).parents[2] / "shared" / "cases"
CONFIG = Path(probe.__file__).parent / "configs" / "nnunet.yaml"
V1 = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}}
V2 = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}}


def drawn(hidden: int = 0) -> np.ndarray:
    """(24, 24, 6) labels 1 and 2; the upper half of all slices `hidden`."""
    labels = np.zeros((24, 24, 6), np.uint8)
    labels[6:10, 6:18, 1:5], labels[14:18, 6:18, 1:5] = 1, 2
    if hidden:
        labels[:, 12:] = hidden
        labels[:, :, 5] = hidden
    return labels


def data_set(folder: Path, described: dict, labels: np.ndarray, cases: int = 1) -> Path:
    """Raw data in nnU-Net's layout."""
    for number in range(cases):
        hu = np.full(labels.shape, -1000, np.int16)
        hu[3:21, 3:21] = np.random.default_rng(number).integers(-50, 90, (18, 18, labels.shape[2]))
        for name, values in ((f"imagesTr/c{number}_0000", hu), (f"labelsTr/c{number}", labels)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 2, 1])), folder / f"{name}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def read(data: Path, cache: Path, *words: str) -> Examples:
    """The examples of a data set."""
    return sources.load(load(TaskConfig, CONFIG, [f"data={data}", *words]), cache)


def test_both_versions_of_dataset_json_name_the_same(tmp_path: Path) -> None:
    """Number → name, name → number, numbers as text, a region of one value."""
    odd = {**V2, "labels": {"background": "0", "liver": "1", "tumour": [2]}}
    for number, described in enumerate((V1, V2, odd)):
        examples = read(data_set(tmp_path / str(number), described, drawn()), tmp_path)
        assert examples.names == ("liver", "tumour") and examples.values == (1, 2) and examples.ignored == (255,)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            {"background": 0, "whole": [1, 2], "core": [2]},
            "label 'whole' is a region of values .1, 2.; regions",
        ),
        ({"background": 0, "liver": "one"}, "names no labels and channels"),
        ([0, 1], "names no labels and channels"),
        ({"background": 0, "liver": None}, "names no labels and channels"),
    ],
)
def test_labels_that_cannot_be_read_are_refused_in_one_line(labels, said: str, tmp_path: Path) -> None:
    """The file and what is wrong with it; values that the user names are read all the same."""
    data = data_set(tmp_path / "n", {**V2, "labels": labels}, drawn())
    with pytest.raises(SettingsError, match=said) as error:
        read(data, tmp_path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(data / "dataset.json"))
    if "region" in said:
        assert read(data, tmp_path, "organs={part: 2}").values == (2,)


@pytest.mark.parametrize(("value", "labels"), [(3, {**V2["labels"], "ignore": 3}), (255, V2["labels"])])
def test_what_is_ignored_is_neither_a_structure_nor_known(value: int, labels: dict, tmp_path: Path) -> None:
    """nnU-Net's "ignore", and 255 that dataset.json does not name; an absent structure of such a slice is unknown."""
    data = data_set(tmp_path / "n", {**V2, "labels": labels}, drawn(value))
    examples = read(data, tmp_path, "min_pixels=1")
    assert examples.names == ("liver", "tumour") and value in examples.ignored
    assert (examples.targets[1:5] == 1).all() and np.isnan(examples.targets[[0, 5]]).all()
    wanted = segmentation.targets(np.stack([examples.read(2).labelmap]), examples)
    assert torch.equal(wanted.isnan().any(dim=1)[0], torch.from_numpy(examples.read(2).labelmap == value))
    named = read(data, tmp_path, "min_pixels=1", f"organs={{hidden: {value}}}")
    assert named.values == (value,) and value not in named.ignored


def test_ct_that_is_not_in_hu_is_read_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Many public data sets are windowed; the task can refuse them."""
    labels = np.repeat(drawn(), 4, axis=2)
    data = data_set(tmp_path / "n", V2, labels, cases=2)
    read(data, tmp_path)
    assert "read as HU" not in capsys.readouterr().err
    for path in (data / "imagesTr").iterdir():
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.clip(image.get_fdata(), -20, 60).astype(np.int16), image.affine), path)
    examples = read(data, tmp_path)
    assert len(examples.keys) and examples.read(0).pixels.min() == -20
    assert "2 of 2 volumes are read as HU against: " in capsys.readouterr().err
    with pytest.raises(SettingsError, match="c0_0000.nii.gz: .*(HU|windowed)"):
        read(data, tmp_path, "files.values=check")


def test_255_that_dataset_json_names_is_a_structure(tmp_path: Path) -> None:
    """Masks of 0 and 255."""
    data = data_set(tmp_path / "n", {**V2, "labels": {"background": 0, "organ": 255}}, (drawn() > 0) * np.uint8(255))
    examples = read(data, tmp_path, "min_pixels=1")
    assert examples.values == (255,) and examples.ignored == () and (examples.targets[1:5] == 1).all()


def test_shards_say_what_is_ignored(tmp_path: Path) -> None:
    """From label maps to the examples of a task: as from nnU-Net's layout."""
    data = data_set(tmp_path / "n", V2, drawn(9))
    words = ("labels.9=ignore", "labels.1=liver", "labels.2=tumour", "split.train=1", "split.val=0", "split.test=0")
    command = ["--input", str(data / "imagesTr"), "--masks", str(data / "labelsTr"), "--output", str(tmp_path / "out")]
    assert shard_ct.main([*command, *words]) == 0
    task = TaskConfig(data=str(tmp_path / "out"), source="shards", kind="segmentation", min_pixels=1)
    task.stride.train = 1
    examples = sources.load(task, tmp_path / "cache")
    assert examples.names == ("liver", "tumour") and examples.ignored == (9, 255)
    assert np.isnan(examples.targets[np.isin(examples.orders, (0, 5))]).all()
    assert (examples.targets[np.isin(examples.orders, (1, 2, 3, 4))] == 1).all()


def test_presence_is_unknown_beside_pixels_that_nobody_annotated() -> None:
    """Seen is seen; what is not seen may be hidden."""
    plane = np.array([[0, 1, 1], [0, 0, 0]], np.uint8)
    assert presence(plane, [1, 2], [True, True], 2, (7,)) == [1.0, 0.0]
    plane[1, 2] = 7
    found = presence(plane, [1, 2], [True, True], 2, (7,))
    assert found[0] == 1.0 and np.isnan(found[1])


def test_the_loss_does_not_see_what_is_ignored() -> None:
    """The same value and gradient whatever is drawn there, none there; all as before where nothing is ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 8, 8, generator=generator)
    targets = (torch.rand(3, 2, 8, 8, generator=generator) > 0.7).float()
    annotated = torch.tensor([[True, True], [True, False], [False, False]])
    plain = segmentation.masked_loss(logits, targets, annotated)
    known = torch.ones(3, 2, 8, 8, dtype=torch.bool)
    known[:, :, :, 4:] = False
    hidden = targets.masked_fill(~known, torch.nan)
    values = []
    for change in (0.0, 50.0):
        changed = (logits + change * ~known).requires_grad_()
        value = segmentation.masked_loss(changed, hidden, annotated)
        value.backward()
        assert (changed.grad[~known] == 0).all() and (changed.grad[:2, 0, :, :4] != 0).all()
        values.append(float(value.detach()))
    assert values[0] == values[1] != float(plain)
    half = segmentation.masked_loss(logits[..., :4], targets[..., :4], annotated)
    assert values[0] == pytest.approx(float(half), rel=1e-5)
    nothing = segmentation.masked_loss(logits, torch.full_like(targets, torch.nan), annotated)
    assert float(nothing) == 0 and torch.isfinite(nothing)


def world(true: np.ndarray, ignored: tuple[int, ...]) -> SimpleNamespace:
    """Test patients: (N, H, W) label maps of one study each."""
    count, height, width = true.shape

    def reader(row: int) -> Picture:
        pixels = np.zeros((1, height, width), np.int16)
        return Picture(pixels, ("ct",), "hu", (0, height, 0, width), labelmap=true[row])

    columns = {name: np.array([f"{number}" for number in range(count)]) for name in ("keys", "subjects", "studies")}
    examples = Examples(
        **columns,
        names=("organ",),
        sites=np.full(count, ""),
        splits=np.full(count, "test"),
        orders=np.zeros(count, np.int64),
        positions=np.zeros(count),
        digests=np.zeros(count, np.uint64),
        targets=np.ones((count, 1)),
        annotated=np.ones((count, 1), bool),
        reader=reader,
        version="",
        values=(1,),
        ignored=ignored,
    )
    return SimpleNamespace(examples=examples, names=("organ",))


def test_scores_do_not_see_what_is_ignored() -> None:
    """A drawing that is right where it is annotated has a Dice of 1, whatever it draws elsewhere."""
    true = np.zeros((2, 16, 16), np.uint8)
    true[:, 4:8, 4:8] = 1
    true[:, :, 10:] = 255
    maps = torch.from_numpy((true > 0).astype(np.float32))[:, None]
    config = TaskConfig(data="").drawing
    for ignored, expected in (((255,), 1.0), ((), 2 * 16 / (16 + 16 + 96))):
        test = world(true, ignored)
        table = volume_scores.measure(lambda _, rows: maps[rows], np.array([0.5]), test, config)
        assert np.allclose(table.values["dice"], expected)


def test_thresholds_are_chosen_by_what_is_annotated() -> None:
    """Counts of pixels leave out what is drawn where nobody annotated."""
    true = np.zeros((2, 16, 16), np.uint8)
    true[:, 4:8, 4:8] = 1
    true[:, :, 10:] = 255
    maps = torch.from_numpy(np.where(true == 1, 0.9, np.where(true == 255, 0.8, 0.1)).astype(np.float32))[:, None]
    val = world(true, (255,))
    val.rows, val.maps = np.arange(2), lambda _: true
    assert segmentation.choose(lambda _, rows: maps[rows], val, TaskConfig(data="").drawing)[1] == 1.0
    assert PixelCounts(np.array(["0"]), 1).dice().shape == (1, 1)


def test_a_patch_that_is_known_in_part_does_not_vote() -> None:
    """Neither for a structure nor against it; without a vote it takes no neighbour's place either."""
    features = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    structures = torch.zeros(1, 1, 4, 4)
    structures[0, 0, :2, :2] = 1
    structures[0, 0, :2, 3] = torch.nan
    bank = patch_bank.collect([(features, structures, torch.tensor([[True]]))], 4, 100, 2, 0)
    known = torch.nn.functional.normalize(features[0, [0, 2, 3]], dim=1)
    assert torch.allclose(bank.tokens, known, atol=1e-3) and bank.annotated[:, 0].tolist() == [1, 1, 1]
    assert not bank.drawn.isnan().any()


@pytest.mark.parametrize(
    ("case", "names", "ignored"),
    [("141-v1-labels", ("liver", "tumour"), (255,)), ("143-ignore", ("liver",), (2, 255)), ("142-regions", None, None)],
)
def test_the_cases_that_were_wrong(case: str, names, ignored, tmp_path: Path) -> None:
    """Read, or refused in one line."""
    if not (CASES / case).is_dir():
        pytest.skip(f"no {case} in ../shared/cases")
    if names is None:
        with pytest.raises(SettingsError, match="regions are not read"):
            read(CASES / case, tmp_path)
    else:
        examples = read(CASES / case, tmp_path)
        assert (examples.names, examples.ignored) == (names, ignored)
