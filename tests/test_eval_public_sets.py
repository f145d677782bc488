"""Public segmentation sets as they are downloaded: MSD, BTCV, AMOS and KiTS in miniature, read by their own layouts."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_prep.discovery.layouts import rules
from eval import probe
from eval.config import TaskConfig
from eval.data import sources
from eval.reporting import published
from meddap.errors import MeddapError
from meddap.settings import load

FOLDER = Path(probe.__file__).parent / "configs" / "segmentation"
SETS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "sets")
MSD = {
    "brain_tumour": ("BRATS", ["FLAIR", "T1w", "t1gd", "T2w"], ["edema", "non-enhancing tumor", "enhancing tumour"]),
    "heart": ("la", ["MRI"], ["left atrium"]),
    "liver": ("liver", ["CT"], ["liver", "cancer"]),
    "hippocampus": ("hippocampus", ["MRI"], ["Anterior", "Posterior"]),
    "prostate": ("prostate", ["T2", "ADC"], ["PZ", "TZ"]),
    "lung": ("lung", ["CT"], ["cancer"]),
    "pancreas": ("pancreas", ["CT"], ["pancreas", "cancer"]),
    "hepatic_vessel": ("hepaticvessel", ["CT"], ["Vessel", "Tumour"]),
    "spleen": ("spleen", ["CT"], ["spleen"]),
    "colon": ("colon", ["CT"], ["colon cancer primaries"]),
}
AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])


def write(image: Path, labels: Path | None, ct: bool, values: int, channels: int = 1) -> None:
    """A small body with one block for each label value, brighter the larger the value."""
    rng = np.random.default_rng(len(str(image)))
    maps = np.zeros((32, 32, 3), np.uint8)
    volume = np.full((32, 32, 3, channels), -1000.0 if ct else 0.0)
    volume[3:29, 3:29] = (20 if ct else 200) + rng.normal(0, 4, (26, 26, 3, channels))
    for value in range(1, values + 1):
        row, column = 4 + 6 * ((value - 1) // 4), 4 + 6 * ((value - 1) % 4)
        maps[row : row + 5, column : column + 5] = value
        volume[row : row + 5, column : column + 5] += 30 * value
    for path, content in ((image, volume if channels > 1 else volume[..., 0]), (labels, maps)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = content if content.dtype == np.uint8 else content.astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(content, AFFINE), path)


def decathlon(root: Path, word: str, modality: list[str], names: list[str]) -> None:
    for number in range(1, 11):
        file = f"{word}_{number:03d}.nii.gz"
        write(root / "imagesTr" / file, root / "labelsTr" / file, modality == ["CT"], len(names), len(modality))
        (root / "imagesTr" / f"._{file}").write_bytes(b"a resource fork of macOS")
    write(root / "imagesTs" / f"{word}_099.nii.gz", None, modality == ["CT"], 0, len(modality))
    described = {
        "modality": dict(enumerate(modality)),
        "labels": dict(enumerate(["background", *names])),
        "training": [],
    }
    (root / "dataset.json").write_text(json.dumps(described))


def download(root: Path, name: str) -> None:
    """Write what is downloaded of a set."""
    if name == "btcv":
        for number in range(1, 11):
            label = root / f"labelsTr/label{number:04d}.nii.gz"
            write(root / f"imagesTr/img{number:04d}.nii.gz", label, True, 13)
        write(root / "imagesTs/img0061.nii.gz", None, True, 0)
    elif name.startswith("amos"):
        for number in [*range(1, 9), *range(501, 509)]:
            split = "Va" if number % 100 > 6 else "Tr"
            file = f"amos_{number:04d}.nii.gz"
            write(root / f"images{split}" / file, root / f"labels{split}" / file, number < 500, 15)
        write(root / "imagesTs" / "amos_0009.nii.gz", None, True, 0)
    elif name == "kits":
        for number in range(10):
            case = root / f"case_{number:05d}"
            write(case / "imaging.nii.gz", case / "segmentation.nii.gz", True, 3)
        write(root / "case_00588" / "imaging.nii.gz", None, True, 0)
    else:
        decathlon(root, *MSD[name.partition("_")[2]])


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read_as_it_is_downloaded(name: str, tmp_path: Path) -> None:
    """All cases with labels and no others, the values of its labels, its channels, and published rows where it has."""
    download(tmp_path, name)
    task = load(TaskConfig, FOLDER / f"{name}.yaml", [f"data={tmp_path}"])
    examples = sources.load(task, tmp_path / "cache")
    count = 8 if name.startswith("amos") else 10
    assert len(np.unique(examples.subjects)) == count and len(examples) == 3 * count
    assert examples.names == tuple(task.organs) and examples.values == tuple(task.organs.values())
    assert examples.annotated.all() and (examples.targets == 1).all()
    first = examples.read(0)
    assert first.scale == ("hu" if task.files.modality == "CT" else "mr16")
    wanted = len(MSD[name.partition("_")[2]][1]) if name.startswith("msd") else 1
    assert len(first.pixels) == len(first.sequences) == wanted
    assert {*np.unique(first.labelmap)} == {0, *task.organs.values()}
    assert not task.published or published.find(task.published) is not None
    assert not name.startswith("msd") or not task.published  # labels of its test are hidden: nothing to compare with


def test_there_is_a_task_for_every_set() -> None:
    """The ten of the Decathlon, BTCV, AMOS in CT and MR, and KiTS."""
    assert {name for name in SETS if name.startswith("msd")} == {
        f"msd{place:02d}_{name}" for place, name in enumerate(MSD, 1)
    }
    assert {"btcv", "amos_ct", "amos_mr", "kits"} < {*SETS}


def test_folds_of_a_downloaded_set_are_probed_beside_published_rows(tmp_path: Path, capsys) -> None:
    """KiTS: every case is tested once; ten cases are not the 489 of the paper, and that is said."""
    download(tmp_path / "kits", "kits")
    words = ["size=32", "draws=20", "split.folds=2", "split.val=0.3", "probes=[segmentation]", "segmentation.epochs=2"]
    words += ["segmentation.lr=[1e-2]", "drawing.surfaces=false", "pictures=0", "keep_heads=false"]
    command = ["--checkpoint", "pixels", "--task", str(FOLDER / "kits.yaml"), f"data={tmp_path / 'kits'}", *words]
    assert probe.main([*command, "--output", str(tmp_path / "out")]) == 0
    out, said = capsys.readouterr()
    assert "KiTS, kidney tumor segmentation (2019, 2021, 2023): 10 cases with labels, ct" in said
    assert "| nnU-Net ResEnc L | 0.882 |" in out and "Not comparable: 10 units are tested here, 489 there" in out
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows if row["metric"] == "dice"} == {"kidney", "tumor", "cyst", "macro"}
    assert {row["patients"] for row in rows if row["metric"] == "dice"} == {10}


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    """Another layout than the one asked for, two sets in one folder, the wrong modality: what to do."""
    download(tmp_path / "btcv", "btcv")
    task = FOLDER / "btcv.yaml"
    for words, text in (
        ([f"data={tmp_path / 'btcv'}", "files.layout=kits"], "layout=kits: no folder of the input has"),
        ([f"data={tmp_path / 'btcv'}", "files.layout=nnunet"], "dataset.json: No such file"),
        ([f"data={tmp_path / 'btcv'}", "files.layout=none_such"], "layout=none_such: no such layout"),
        ([f"data={tmp_path / 'btcv'}", "files.modality=MR"], "as it is downloaded, whose images are of files.modality"),
    ):
        with pytest.raises(MeddapError) as caught:
            sources.load(load(TaskConfig, task, words), tmp_path / "cache")
        assert text in str(caught.value)
    download(tmp_path / "kits", "kits")
    with pytest.raises(MeddapError, match="name one with files.layout, or give its folder"):
        sources.load(load(TaskConfig, task, [f"data={tmp_path}"]), tmp_path / "cache")
    found = sources.load(load(TaskConfig, task, [f"data={tmp_path}", "files.layout=btcv"]), tmp_path / "cache")
    assert len(found) == 30 and "btcv" in {layout.name for layout in rules.every()}
