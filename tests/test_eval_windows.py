"""A fair window: several that validation patients choose from, or at once as channels; every row says what was seen."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from eval import compare, probe, report, sweep, validation
from eval.config import TaskConfig, check
from eval.data import features, sources, splits
from eval.data.examples import Picture
from eval.encoders import encoder, windows
from eval.kept import head
from meddap.settings import SettingsError, load

SOFT, LUNG, BONE = [-160.0, 240.0], [-1000.0, 0.0], [200.0, 1200.0]
CONFIG = Path(probe.__file__).parent / "configs" / "nnunet.yaml"
OWN = """
import torch
class Own:
    source, digest, patch_size, embed_dim, depth, window = "{name}", "{digit}" * 64, 8, 64, 1, {window}
    def prepare(self, images):
        return images
    def features(self, images, blocks, present=None):
        tokens = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        return [(tokens.amax(dim=1), tokens) for _ in blocks]
"""


def chest(path: Path, spot: float, seed: int) -> None:
    """Four slices of a thorax, spots of `spot` HU in the lung of every other one; beside it the label map."""
    rng = np.random.default_rng(seed)
    volume = np.full((32, 32, 4), -1000.0) + rng.normal(0, 3, (32, 32, 4))
    volume[4:28, 4:28] = 40 + rng.normal(0, 8, (24, 24, 4))
    volume[8:24, 8:24] = -880 + rng.normal(0, 20, (16, 16, 4))
    labels = np.zeros(volume.shape, np.uint8)
    labels[12:18, 12:18, ::2] = 1
    volume[labels > 0] = spot + rng.normal(0, 5, labels.sum())
    for kind, values in (("images", volume.astype(np.int16)), ("labels", labels)):
        split = "Ts" if "test" in path.name else "Tr"
        name = f"{path.name}_0000.nii.gz" if kind == "images" else f"{path.name}.nii.gz"
        file = path.parent / f"{kind}{split}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-2.0, -2.0, 5.0, 1.0])), file)


@pytest.fixture(scope="module")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spots of −600 HU, which a window of soft tissue shows as black as the lung around them."""
    folder = tmp_path_factory.mktemp("lungs")
    for number in range(20):
        chest(folder / f"p{number:02d}{'test' * (number >= 14)}", -600, number)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spot": 1}}
    (folder / "dataset.json").write_text(json.dumps(described))
    (folder / "soft.py").write_text(OWN.format(name="soft", digit=1, window=tuple(SOFT)))
    (folder / "lung.py").write_text(OWN.format(name="lung", digit=2, window=tuple(LUNG)))
    return folder


def task(lungs: Path, *words: str) -> TaskConfig:
    """Whether a slice holds a spot, by kNN on the pixels of patches."""
    common = ["kind=multilabel", "probes=[knn]", "size=32", "draws=200", "min_pixels=1", "split.by=given", "pictures=0"]
    return load(TaskConfig, CONFIG, [f"data={lungs}", "name=lungs", "knn.k=[5]", *common, *words])


def auroc(rows: Sequence[dict]) -> float:
    return next(row["value"] for row in rows if row["metric"] == "auroc")


def test_the_fixed_window_loses_and_the_chosen_one_does_not(lungs: Path, tmp_path: Path, capsys) -> None:
    """An encoder of natural images sees no lung in its window; among several, validation patients take the lung's."""
    fixed = probe.run(f"{lungs}/soft.py:Own", task(lungs), tmp_path / "fixed")
    assert auroc(fixed) < 0.75 and {str(row["window"]["by"]) for row in fixed} == {"encoder"}
    asked = task(lungs, f"windows=[{BONE},{SOFT},{LUNG}]")
    chosen = probe.run(f"{lungs}/soft.py:Own", asked, tmp_path / "chosen")
    assert auroc(chosen) > 0.95
    for row in chosen:
        assert row["window"] == {"hu": [LUNG], "by": "validation", "tried": [BONE, SOFT, LUNG]}
        assert row["weights"] == fixed[0]["weights"] and row["digest"] != fixed[0]["digest"]
    said = capsys.readouterr().err
    assert "window: -1000 to 0 HU, by knn auroc on validation patients (200 to 1200 HU 0." in said
    assert "sees -1000 to 0 HU (chosen on validation patients among 3)" in said
    stored = head.read(tmp_path / "chosen")
    assert stored.head.task.window == LUNG and not stored.head.task.windows
    again = encoder.load(f"{lungs}/soft.py:Own", stored.head.task)
    stored.fitted(again, tmp_path)  # new patients are seen as the head was fitted
    assert "HU -1000 … 0 become 0 … 1" in (tmp_path / "chosen" / "heads" / "knn" / "card.md").read_text()


def test_test_patients_have_no_say(tmp_path: Path) -> None:
    """Where test patients have their spots in another window, the one of validation patients is taken all the same."""
    for number in range(16):
        test = number >= 12
        chest(tmp_path / "in" / f"p{number:02d}{'test' * test}", 200.0 if test else -600.0, number)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spot": 1}}
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(described))
    rows = probe.run("pixels", task(tmp_path / "in", f"windows=[{BONE},[-1000,-500]]"), tmp_path / "out")
    assert rows[0]["window"]["hu"] == [[-1000.0, -500.0]]


def test_every_fold_chooses_by_its_own_validation_patients(lungs: Path, tmp_path: Path) -> None:
    """k folds: each tells its window; the head of each fold keeps the one that it saw."""
    asked = task(lungs, f"windows=[{SOFT},{LUNG}]", "split.by=kfold", "split.folds=2")
    rows = probe.run(f"{lungs}/soft.py:Own", asked, tmp_path / "out")
    assert auroc(rows) > 0.9 and rows[0]["patients"] == 20 and rows[0]["window"]["by"] == "validation"
    kept = [head.read(path) for path in sorted((tmp_path / "out" / "heads").iterdir())]
    assert len(kept) == 2 and {tuple(each.head.encoder["window"]) for each in kept} <= {tuple(SOFT), tuple(LUNG)}


def test_the_cache_tells_windows_apart(lungs: Path, tmp_path: Path) -> None:
    """Features of each window in a folder of their own; those of the encoder's own window are found again."""
    asked = task(lungs)
    examples = sources.load(asked, tmp_path)
    soft = encoder.load(f"{lungs}/soft.py:Own", asked)
    for window, count in ((SOFT, 1), (LUNG, 2), (SOFT, 2), (LUNG, 2)):
        one = encoder.with_window(soft, window)
        features.extract(one, examples, asked, tmp_path / "cache")
        assert len(list((tmp_path / "cache").glob("features-*"))) == count
    assert (
        encoder.with_window(soft, SOFT) is soft and encoder.weights_digest(encoder.with_window(soft, LUNG)) == "1" * 64
    )
    back = encoder.with_window(encoder.with_window(soft, LUNG), SOFT)
    assert encoder.weights_digest(back) == soft.digest


def test_before_and_after_say_what_they_saw(lungs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Fixed against its own: the console and the report state both windows and warn; the same choice for both: no."""
    for name, words in (("fixed", []), ("fair", [f"windows=[{SOFT},{LUNG}]"])):
        for place, own in (("before", "soft"), ("after", "lung")):
            probe.run(f"{lungs}/{own}.py:Own", task(lungs, *words), tmp_path / name / place)
    mine = [str(tmp_path / "fixed" / place) for place in ("before", "after")]
    assert compare.main(["--runs", *mine]) == 0
    out = capsys.readouterr().out
    sentence = "Window: before saw -160 to 240 HU (the encoder's own), after -1000 to 0 HU (the encoder's own)."
    assert sentence in out and "saw other windows, which alone may make the difference" in out
    page = html.unescape(report.report([Path(each) for each in mine]))
    assert sentence in page and "Beware: lungs: before and after saw other windows" in page
    report.write([Path(each) for each in mine], tmp_path / "report.html")
    assert "-160 to 240 HU (the encoder's own)" in (tmp_path / "report.csv").read_text()
    mine = [str(tmp_path / "fair" / place) for place in ("before", "after")]
    assert compare.main(["--runs", *mine]) == 0
    out = capsys.readouterr().out
    assert "Window: both saw -1000 to 0 HU (chosen on validation patients among 2)." in out
    assert "saw other windows" not in out


def three(images: torch.Tensor) -> torch.Tensor:
    """ImageNet's normalisation of (N, 3, h, w)."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images - mean) / std


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_three_windows_are_the_three_channels(kind: str, tmp_path: Path) -> None:
    """What the library gives for an image whose channels are the windows; an image without HU is grey in all three."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32)
    torch.manual_seed(0)
    if kind == "dinov2":
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    else:
        config = transformers.ViTConfig(**sizes, intermediate_size=64)
        theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path / "net")
    values = np.random.default_rng(0).integers(-1000, 1200, (1, 32, 32)).astype(np.int16)
    picture = Picture(values, ("ct",), "hu", (0, 32, 0, 32))
    asked = TaskConfig(data="x", bf16=False, windows=[LUNG, SOFT, BONE], windows_as="channels")
    found = encoder.load(str(tmp_path / "net"), asked)
    ((cls, patches),) = features.encode(found, [picture], 32, [-1])
    planes = torch.from_numpy(values.astype(np.float32))
    stacked = torch.cat([((planes - low) / (high - low)).clamp(0, 1) for low, high in (LUNG, SOFT, BONE)])[None]
    with torch.inference_mode():
        expected = theirs(three(stacked)).last_hidden_state
    torch.testing.assert_close(torch.cat([cls[:, None], patches], dim=1), expected, atol=1e-4, rtol=1e-3)
    one = encoder.load(str(tmp_path / "net"), TaskConfig(data="x", bf16=False, window=SOFT))
    ((alone, _),) = features.encode(one, [picture], 32, [-1])
    grey = Picture(
        np.random.default_rng(0).integers(0, 255, (1, 32, 32)).astype(np.uint8), ("x",), "unit8", (0, 32, 0, 32)
    )
    ((first, _),), ((second, _),) = (features.encode(each, [grey], 32, [-1]) for each in (found, one))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(alone, cls) and found.digest != one.digest


def test_channels_are_stated_and_what_cannot_take_them_is_refused(lungs: Path, tmp_path: Path) -> None:
    """Rows of three channels; an encoder of one channel and a probe of images are errors that say what to do."""
    own = OWN.format(name="rgb", digit=3, window=tuple(SOFT)).replace("depth, window", "depth, channels, window")
    own = own.replace(" 64, 1, ", " 192, 1, 3, ")
    (tmp_path / "rgb.py").write_text(own)
    words = [f"windows=[{LUNG},{SOFT},{BONE}]", "windows_as=channels"]
    rows = probe.run(f"{tmp_path}/rgb.py:Own", task(lungs, *words), tmp_path / "out")
    assert auroc(rows) > 0.95 and rows[0]["window"] == {"hu": [LUNG, SOFT, BONE], "by": "channels", "tried": []}
    assert windows.told(rows[0]).endswith("200 to 1200 HU (several at once, as channels)")
    card = (tmp_path / "out" / "heads" / "knn" / "card.md").read_text()
    assert "HU -1000 … 0; -160 … 240; 200 … 1200 become 0 … 1, each in a channel of its own" in card
    with pytest.raises(SettingsError, match="soft takes 1 channel, but windows has 3; windows_as=choice lets"):
        probe.run(f"{lungs}/soft.py:Own", task(lungs, *words), tmp_path / "soft")
    with pytest.raises(SettingsError, match="windows_as=channels: cnn reads images of one window; leave it out"):
        probe.run(f"{tmp_path}/rgb.py:Own", task(lungs, *words, "probes=[knn,cnn]"), tmp_path / "cnn")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"window": SOFT, "windows": [SOFT, LUNG]}, "give one of the two"),
        ({"windows": [[240.0, -160.0]]}, "expected pairs [LOW, HIGH] in HU, the first below the second"),
        ({"windows": [[1.0, 2.0, 3.0]]}, "expected pairs"),
        ({"windows": [[float("nan"), 2.0]]}, "expected pairs"),
        ({"windows": [SOFT, SOFT]}, "a window is named twice"),
        ({"windows_as": "channels"}, "give windows=[[LOW,HIGH],[LOW,HIGH],[LOW,HIGH]] too"),
    ],
)
def test_windows_that_are_none_are_refused(words: dict, text: str) -> None:
    """Beside window, reversed, of three numbers, NaN, twice, or channels without windows: one line."""
    with pytest.raises(SettingsError) as caught:
        check(TaskConfig(data="x", **words))
    assert text in str(caught.value)


def test_images_without_hu_have_no_window(tmp_path: Path) -> None:
    """MedMNIST's bytes: windows are refused, and rows say that there was none."""
    arrays = {}
    for split, count in (("train", 12), ("val", 8), ("test", 8)):
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
        arrays[f"{split}_images"] = (np.arange(count * 256).reshape(count, 16, 16) % 251).astype(np.uint8)
    np.savez(tmp_path / "set.npz", **arrays)
    words = [f"data={tmp_path}/set.npz", "source=medmnist", "kind=binary", "probes=[knn]", "knn.k=[3]", "draws=20"]
    with pytest.raises(SettingsError, match="are not in HU; leave it out"):
        probe.run("pixels", load(TaskConfig, None, [*words, f"windows=[{SOFT},{LUNG}]"]), tmp_path / "out")
    rows = probe.run("pixels", load(TaskConfig, None, words), tmp_path / "out")
    assert rows[0]["window"]["hu"] == [] and windows.told(rows[0]) == "images that are not in HU, without a window"


def test_a_sweep_with_windows_starts_again(lungs: Path, tmp_path: Path) -> None:
    """Each point chooses its window; a second start takes the same weights in another window for the same weights."""
    words = [f"data={lungs}", "kind=multilabel", "probes=[knn]", "knn.k=[5]", "draws=50", "min_pixels=1", "pictures=0"]
    words += [f"windows=[{SOFT},{LUNG}]".replace(" ", ""), "split.by=given"]
    asked = ["--checkpoints", f"{lungs}/soft.py:Own", "--sizes", "32", "--task", str(CONFIG)]
    for _ in range(2):
        assert sweep.main([*asked, "--output", str(tmp_path / "sweep"), *words]) == 0
    (path,) = (tmp_path / "sweep").glob("*/results.jsonl")
    assert json.loads(path.read_text().splitlines()[0])["window"]["hu"] == [LUNG]


def test_no_figure_for_any_window_is_an_error(lungs: Path, tmp_path: Path) -> None:
    """Validation patients without a single spot cannot choose."""
    asked = task(lungs, f"windows=[{SOFT},{LUNG}]")
    examples = sources.load(asked, tmp_path)
    (fold,) = splits.folds(examples, asked)
    without = fold.rows["val"][examples.targets[fold.rows["val"], 0] == 0]
    bad = splits.Fold("", {**fold.rows, "val": without})
    with pytest.raises(SettingsError, match="no window can be chosen; give them more patients"):
        validation.best(encoder.load("pixels", asked), asked, examples, bad, tmp_path)
