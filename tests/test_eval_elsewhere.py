"""What was forgotten, and the floor: compare probes the same weights where no results lie yet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eval import compare, probe

OWN = """
import torch
class Own:
    source, digest, patch_size, embed_dim, depth, window = "{name}", "{name}", 8, 64, 1, (-1000, 1000)
    def prepare(self, images):
        return images * {factor}
    def features(self, images, blocks, present=None):
        tokens = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        return [(tokens.mean(dim=1), tokens) for _ in blocks]
"""
WORDS = ["source=medmnist", "kind=binary", "probes=[knn]", "knn.k=[3]", "draws=50", "size=16", "pictures=0"]


def images(path: Path, seed: int) -> Path:
    rng, arrays = np.random.default_rng(seed), {}
    for split, count in (("train", 24), ("val", 12), ("test", 16)):
        labels = np.arange(count)[:, None] % 2
        pixels = rng.integers(0, 120, (count, 16, 16))
        pixels[:, :, ::2] += 100 * labels[:, :, None]  # stripes
        arrays[f"{split}_labels"], arrays[f"{split}_images"] = labels, pixels.astype(np.uint8)
    np.savez(path, **arrays)
    return path


@pytest.fixture
def probes(tmp_path: Path) -> list[str]:
    """Two encoders probed on the domain that was adapted to; a task of another domain beside them."""
    near, far = images(tmp_path / "near.npz", 0), images(tmp_path / "far.npz", 1)
    (tmp_path / "near.yaml").write_text(f"{{name: near, data: '{near}'}}\n")
    (tmp_path / "far.yaml").write_text(f"{{name: far, data: '{far}', size: 16}}\n")
    for name, factor in (("one", 1), ("two", 0)):
        (tmp_path / f"{name}.py").write_text(OWN.format(name=name, factor=factor))
    for place, name in (("before", "one"), ("after", "two")):
        words = ["--checkpoint", f"{tmp_path}/{name}.py:Own", "--task", str(tmp_path / "near.yaml"), *WORDS]
        assert probe.main([*words, "--output", str(tmp_path / "probe" / place)]) == 0
    return ["--runs", str(tmp_path / "probe" / "before"), str(tmp_path / "probe" / "after")]


def opened(folder: Path) -> int:
    return len((folder / "test_opened.jsonl").read_text().splitlines())


def test_a_task_is_probed_elsewhere_by_the_same_encoders(probes: list[str], tmp_path: Path, capsys) -> None:
    """--elsewhere TASK.yaml key=value: probed once, beside the folders; rows say that they are of elsewhere."""
    asked = [*probes, "--elsewhere", str(tmp_path / "far.yaml"), *WORDS, "--output", str(tmp_path / "c.jsonl")]
    for _ in range(2):
        assert compare.main(asked) == 0
        out = capsys.readouterr().out
        assert "Elsewhere: far: far-after against far-before is a LOSS" in out and "| far: knn | auroc |" in out
    places = [tmp_path / "probe" / f"far-{name}" for name in ("before", "after")]
    assert [opened(place) for place in places] == [1, 1]
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert {row.get("elsewhere", False) for row in rows} == {True, False}
    assert compare.main([*probes, "--elsewhere", *map(str, places)]) == 0
    assert "| far: knn | auroc |" in capsys.readouterr().out


def test_what_is_neither_a_task_nor_two_folders_is_refused(probes: list[str], tmp_path: Path, capsys) -> None:
    """One folder; weights that changed since; another task of the same name: a line each, and nothing is made."""
    assert compare.main([*probes, "--elsewhere", str(tmp_path / "probe")]) == 1
    assert "give two folders of probes, BEFORE AFTER, or TASK.yaml key=value" in capsys.readouterr().err
    far = [*probes, "--elsewhere", str(tmp_path / "far.yaml"), *WORDS]
    assert compare.main(far) == 0
    capsys.readouterr()
    assert compare.main([*far, "knn.k=[5]"]) == 1
    assert "far-before: probes another task; give this one another name=" in capsys.readouterr().err
    (tmp_path / "one.py").write_text(OWN.format(name="changed", factor=1))
    assert compare.main([*far, "name=third"]) == 1
    assert "one.py:Own has other weights now than" in capsys.readouterr().err
    assert not (tmp_path / "probe" / "third-before").exists()


def test_the_floor_is_made_where_there_is_none(probes: list[str], tmp_path: Path, capsys) -> None:
    """--floor DIR probes the pixels on the very task of AFTER, once."""
    for _ in range(2):
        assert compare.main([*probes, "--floor", str(tmp_path / "floor")]) == 0
        assert "Floor: pixels " in capsys.readouterr().out and opened(tmp_path / "floor") == 1


def test_heads_name_no_path(probes: list[str], tmp_path: Path) -> None:
    """Rows say which checkpoint was probed; a head, which is handed on, does not say where it lay."""
    row = json.loads((tmp_path / "probe" / "before" / "results.jsonl").read_text().splitlines()[0])
    assert row["checkpoint"] == f"{tmp_path}/one.py:Own" and row["tested"] == "given"
    kept = b"".join(
        path.read_bytes() for path in (tmp_path / "probe" / "before" / "heads").rglob("*") if path.is_file()
    )
    assert kept and str(tmp_path).encode() not in kept
