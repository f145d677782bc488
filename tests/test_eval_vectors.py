"""Vectors that were written before are a task: what meddap embed writes, and folders of others, a file per patient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eval import embed, probe
from eval.config import TaskConfig
from eval.data import sources
from meddap.settings import SettingsError, load

CONFIG = Path(probe.__file__).parent / "configs" / "vectors.yaml"
WORDS = ["draws=50", "logistic.strengths=4", "linear.steps=60", "split.salt=a"]


def folder_of(root: Path, name: str = "embedding", shape: tuple[int, ...] = (16,)) -> Path:
    """Forty patients, a file each, whose vectors say their label with noise; a CSV of the labels beside them."""
    rng, rows = np.random.default_rng(0), ["id,sick"]
    (root / "vectors").mkdir(parents=True)
    for number in range(40):
        vector = rng.normal(size=shape).astype(np.float32)
        vector[..., :3] += 3 * (number % 2)
        np.savez(root / "vectors" / f"sub_{number:02d}.npz", **{name: vector})
        rows.append(f"sub_{number:02d},{number % 2}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root / "vectors"


def asked(data: Path, *words: str) -> list[str]:
    return [f"data={data}", f"table.file={data.parent / 'labels.csv'}", *WORDS, *words]


@pytest.mark.parametrize(("name", "shape"), [("embedding", (16,)), ("vectors", (1, 16)), ("features", (3, 16))])
def test_a_file_per_patient_is_a_task(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """One vector or several of each patient, whatever the array is called; the linear probe finds the label."""
    data = folder_of(tmp_path, name, shape)
    common = ["--checkpoint", "vectors", "--task", str(CONFIG), *asked(data)]
    assert probe.main([*common, "--output", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {row["probe"] for row in rows} == {"knn", "logistic", "linear"}
    assert min(row["value"] for row in rows if row["metric"] == "auroc") > 0.9
    assert rows[0]["encoder"] == "vectors of an encoder that is not named" and not (tmp_path / "out" / "heads").exists()


@pytest.mark.parametrize("level", ["patient", "slice"])
def test_what_embed_writes_is_read(level: str, tiny_dataset, tmp_path: Path) -> None:
    """A folder and a file of meddap embed: the same vectors by patient, series and slice, and what made them."""
    data = tiny_dataset(patients={"train": 6, "val": 3, "test": 3})
    for place in ("folder", "file.npz"):
        words = ["--checkpoint", "pixels", "--data", str(data), "--output", str(tmp_path / place), "--level", level]
        assert embed.main([*words, "size=64"]) == 0
    with np.load(tmp_path / "file.npz") as stored:
        values, patients = stored["vectors"], stored["patient"]
    people = sorted(set(patients.tolist()))
    (tmp_path / "labels.csv").write_text("id,sick\n" + "".join(f"{name},{n % 2}\n" for n, name in enumerate(people)))
    for place in ("folder", "file.npz"):
        task = load(TaskConfig, CONFIG, asked(tmp_path / place))
        examples = sources.load(task, tmp_path)
        assert len(examples) == len(values) and examples.subjects.tolist() == patients.tolist()
        assert np.array_equal(examples.targets[:, 0], [people.index(name) % 2 for name in patients])


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    """Two arrays, another width, NaN, probes of patches, an encoder beside vectors: what to do."""
    data = folder_of(tmp_path)

    def message(checkpoint: str = "vectors", *words: str) -> str:
        with pytest.raises(SettingsError) as caught:
            probe.run(checkpoint, load(TaskConfig, CONFIG, asked(data, *words)), tmp_path / "out")
        return str(caught.value)

    assert "go together" in message("pixels")
    assert "reads images or patches" in message("vectors", "level=slice", "probes=[attentive]")
    assert "leave them out" in message("vectors", "windows=[[0,1],[1,2]]")
    good = data / "sub_00.npz"
    for arrays, text in (
        ({"a": np.zeros(16), "b": np.zeros(16)}, "2 arrays of floats and none called vectors; keep one"),
        ({"vectors": np.full(16, np.nan)}, "holds NaN or infinite values"),
        ({"vectors": np.zeros(8)}, "give those of one encoder"),
        ({"vectors": np.zeros((2, 16)), "patient": np.array(["a"])}, "2 vectors, but other numbers of patient"),
        ({"vectors": np.array([object()])}, "cannot be read as an .npz of plain arrays"),
    ):
        np.savez(good, **arrays)
        assert text in message() and "sub_0" in message()
