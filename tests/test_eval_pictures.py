"""Folders of pictures of every kind reach an encoder with their contrast, or are refused in one line."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pretrain
from data_prep import schema
from eval import probe
from eval.config import FilesConfig, TaskConfig
from eval.data import images
from eval.data.examples import Examples
from eval.data.sources import folders
from meddap.settings import SettingsError
from pretrain import train

CASES = Path(__file__).resolve().parent.parent.parent / "shared" / "cases" / "150-folders-modes"


def examples(root: Path, tmp_path: Path, **files: str) -> Examples:
    """Return the examples of a folder of classes."""
    task = TaskConfig(name="t", source="folders", kind="multiclass", data=str(root), probes=["knn"])
    return folders.load(replace(task, files=FilesConfig(**files)), tmp_path)  # type: ignore[arg-type]


def inputs(found: Examples, number: int = 0) -> np.ndarray:
    """Return what an encoder with a window of −1000 to 1000 HU sees of a picture, (H, W) in 0…1."""
    picture = found.read(number)
    return images.unit(images.image(picture, picture.pixels.shape[1]), picture, (-1000.0, 1000.0))[0].numpy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; the second holds a plain picture, the first what a test puts there."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
    Image.fromarray(np.arange(1024, dtype=np.uint16).astype(np.uint8).reshape(32, 32)).save(
        tmp_path / "images" / "b" / "b.png"
    )
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("uint8", 0, 255), ("uint16", 0, 4095), ("uint16", 900, 65000), ("int32", -1000, 2000)]
)
@pytest.mark.parametrize("range_", ["auto", "robust"])
def test_contrast_is_that_of_the_picture(
    folder: Path, tmp_path: Path, kind: str, low: int, high: int, range_: str
) -> None:
    """A ramp of any type becomes a ramp from 0 to 1, within the percent that the percentiles cut."""
    ramp = np.linspace(low, high, 4096).reshape(64, 64)
    Image.fromarray(np.rint(ramp).astype(kind)).save(folder / "a" / "a.tif")
    seen = inputs(examples(folder, tmp_path, range=range_))
    assert np.abs(seen - (ramp - low) / (high - low)).max() < 0.011


def test_pictures_in_hu_go_through_the_window(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """files.range=hu: −1000 becomes 0 and 0 becomes 0.5; without it the percentiles count and that is said; 8 bits and
    values without air are refused."""
    (folder / "b" / "b.png").unlink()
    for name, high in (("a", 1000), ("b", 500)):
        hu = np.linspace(-1000, high, 4096, dtype=np.float32).reshape(64, 64)
        Image.fromarray(hu).save(folder / name / "x.tif")
    found = examples(folder, tmp_path, range="hu")
    assert found.read(0).scale == "hu" and abs(inputs(found)[0, 0]) < 1e-3 and abs(inputs(found)[63, 63] - 1) < 1e-3
    assert abs(inputs(found, 1)[63, 63] - 0.75) < 1e-3
    capsys.readouterr()
    assert inputs(examples(folder, tmp_path), 1)[63, 63] == 1
    assert "2 of 2 pictures, range: float32 values by their percentiles" in capsys.readouterr().err
    Image.fromarray((hu + 1024).astype(np.uint16)).save(folder / "b" / "y.png")
    with pytest.raises(SettingsError, match="y.png: uint16 values from 24 on are not HU"):
        examples(folder, tmp_path, range="hu")


def test_a_fraction_is_not_cut_to_two_greys(folder: Path, tmp_path: Path) -> None:
    """Floats in 0…1, by their percentiles and from 0 to 1 with files.range=full."""
    ramp = np.linspace(0.2, 0.8, 4096, dtype=np.float32).reshape(64, 64)
    Image.fromarray(ramp).save(folder / "a" / "a.tif")
    assert np.abs(inputs(examples(folder, tmp_path, range="full")) - ramp).max() < 1e-3
    assert len(np.unique(examples(folder, tmp_path).read(0).pixels)) == 4096


def test_decisions_are_said_and_can_be_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Colour, several pictures in a file, transparent pixels: a line on the console, or an error that names the file
    and the setting."""
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    Image.fromarray(colours[..., :3]).save(folder / "a" / "a.png")
    examples(folder, tmp_path)
    assert "1 of 2 pictures, colour: grey by the luma of BT.601" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="a.png: in colour; files.colour=grey or keep takes it; mend or remove it"):
        examples(folder, tmp_path, colour="refuse")
    Image.fromarray(colours).save(folder / "a" / "a.png")
    with pytest.raises(SettingsError, match="files.alpha=black, white or drop"):
        examples(folder, tmp_path)
    assert examples(folder, tmp_path, alpha="drop").digests[0] != examples(folder, tmp_path, alpha="black").digests[0]
    (folder / "a" / "a.png").unlink()
    pages = [Image.fromarray(colours[..., 0]), Image.fromarray(colours[..., 1])]
    pages[0].save(folder / "a" / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(SettingsError, match="a.tif: holds several pictures"):
        examples(folder, tmp_path)


def test_the_shared_pictures(folder: Path, tmp_path: Path) -> None:
    """Every kind of picture in one folder: hundreds of greys of a ramp stay apart, whatever they are stored as."""
    if not CASES.is_dir():
        pytest.skip("../shared/cases is not here")
    for path in CASES.iterdir():
        if path.name not in ("RGBA.png", "multi.tif"):
            shutil.copy(path, folder / "a" / path.name)
    found = examples(folder, tmp_path)
    assert len(found) == len(list(CASES.iterdir())) - 1
    for number, path in enumerate(sorted((folder / "a").iterdir())):
        seen = inputs(found, number)
        assert seen.min() < 0.02 and seen.max() > 0.98
        assert len(np.unique(seen)) == 2 if path.name == "1.png" else len(np.unique(seen)) > 30, path.name


def test_radiographs_are_trained_on_and_probed(
    radiograph_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """radiographs_small.yaml for two steps, then kNN on the classes that the folders gave; a folder that holds the same
    pictures is found to have been seen, by its pixels, whatever the files are called."""
    configs = Path(pretrain.__file__).parent / "configs"
    words = [f"data.root={radiograph_shards}", f"output={tmp_path}", "name=run", "model.embed_dim=32", "model.depth=2"]
    words += ["model.num_heads=2", "stages.adapt.steps=2", "stages.adapt.batch_size=4", "machine.tensorboard=false"]
    words += [f"stages.adapt.optim.{key}" for key in ("lr.warmup_steps=0", "teacher_temp.warmup_steps=0")]
    words += ["stages.adapt.optim.freeze_last_layer_steps=0", "stages.adapt.optim.teacher_temp.start=null"]
    assert train.main(["--config", str(configs / "radiographs_small.yaml"), *words]) == 0
    task = tmp_path / "task.yaml"
    task.write_text("name: sick\nkind: binary\nsize: 28\nprobes: [knn]\nstride: {train: 1, val: 1, test: 1}\n")
    common = ["--checkpoint", str(tmp_path / "run"), "--task", str(task), "draws=50"]
    words = [f"data={radiograph_shards}", "label=class"]
    assert probe.main([*common, "--output", str(tmp_path / "probe"), *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "probe" / "results.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in rows} >= {"auroc"}
    split, counts = schema.Split(radiograph_shards, "train"), Counter[int]()
    for sample in (split[number] for number in range(len(split))):
        slope, intercept = sample.scales[0]
        values = np.rint(sample.pixels[0] * slope + intercept)
        if values.max() <= 255:  # a picture
            label, count = int(sample.labels["class"]), counts.total()
            name = tmp_path / "again" / schema.SPLITS[count % 3] / f"class{label}" / f"{count}.png"
            counts[label] += 1
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(name)
    assert min(counts.values()) >= 2 and counts.total() >= 3
    words = [f"data={tmp_path / 'again'}", "source=folders", "leaks=refuse"]
    capsys.readouterr()
    assert probe.main([*common, "--output", str(tmp_path / "leak"), *words]) == 1
    assert "have slices with the very pixels of pretraining's" in capsys.readouterr().err
