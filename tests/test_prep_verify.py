"""The verifier finds every kind of damage, and finds none where there is none."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep import generate, identity, schema, shard_ct, verify
from meddap.disk import file_sha256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set of six synthetic patients."""
    folder = tmp_path_factory.mktemp("verify")
    generate.generate(folder / "in", generate.GenerateConfig(patients=6, slices=6, size=40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(identity.VARIABLE, "tests")
        words = ["--input", str(folder / "in"), "--output", str(folder / "out"), "samples_per_shard=10"]
        assert shard_ct.main([*words, "split.train=0.5", "split.test=0.3"]) == 0
    return folder / "out"


def dataset(root: Path) -> dict:
    """dataset.json as it stands."""
    return json.loads((root / "dataset.json").read_text())


def save(root: Path, content: dict) -> None:
    """Write dataset.json, its digest made to fit."""
    content["digest"] = schema.dataset_digest(content["splits"])
    (root / "dataset.json").write_text(json.dumps(content))


def first(root: Path) -> tuple[str, dict]:
    """The first training shard's name and row."""
    row = dataset(root)["splits"]["train"]["shards"][0]
    return row["name"], row


def reseal(root: Path, name: str) -> None:
    """Make sums and sizes in dataset.json fit a shard that was tampered with: only its content can betray it."""
    content = dataset(root)
    for part in content["splits"].values():
        for row in part["shards"]:
            if row["name"] == name:
                path = root / name
                row["bytes"], row["sha256"] = path.stat().st_size, file_sha256(path)
                row["index_sha256"] = file_sha256(schema.index_of(path))
    save(root, content)


def flip(root: Path) -> None:
    """One bit in the middle of a shard."""
    path = root / first(root)[0]
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 1
    path.write_bytes(payload)


def cut(root: Path) -> None:
    """The end of a shard is missing."""
    path = root / first(root)[0]
    path.write_bytes(path.read_bytes()[:-2000])


def folder_for_shard(root: Path) -> None:
    """A folder has a shard's name."""
    path = root / first(root)[0]
    path.unlink()
    path.mkdir()


def remove_shard(root: Path) -> None:
    """A shard is gone."""
    (root / first(root)[0]).unlink()


def remove_index(root: Path) -> None:
    """An index is gone."""
    schema.index_of(root / first(root)[0]).unlink()


def stray(root: Path) -> None:
    """A shard that nobody names."""
    shutil.copy(root / first(root)[0], root / "train" / "999999.tar")


def sum_edited(root: Path) -> None:
    """dataset.json was edited, its digest not."""
    content = dataset(root)
    content["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    (root / "dataset.json").write_text(json.dumps(content))


def count_edited(root: Path) -> None:
    """dataset.json says another number of patients."""
    content = dataset(root)
    content["splits"]["train"]["subjects"] += 1
    save(root, content)


def unpayloaded(root: Path) -> None:
    """A compressed image is overwritten; all sums fit."""
    name, _ = first(root)
    path = root / name
    payload = bytearray(path.read_bytes())
    payload[512 : 512 + 64] = bytes(64)
    path.write_bytes(payload)
    reseal(root, name)


def climbing(root: Path) -> None:
    """A member whose name climbs out of the folder; all sums fit."""
    name, _ = first(root)
    path = root / name
    memory = io.BytesIO(path.read_bytes()[: -len(schema.TAR_END)])
    memory.seek(0, 2)
    memory.write(schema.tar_block("../../evil.json", b"{}") + schema.TAR_END)
    path.write_bytes(memory.getvalue())
    reseal(root, name)


def linked(root: Path) -> None:
    """A member that is a link; all sums fit."""
    name, _ = first(root)
    path = root / name
    info = tarfile.TarInfo("a.json")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path.write_bytes(path.read_bytes()[: -len(schema.TAR_END)] + info.tobuf(tarfile.USTAR_FORMAT) + schema.TAR_END)
    reseal(root, name)


def index_shifted(root: Path) -> None:
    """The index says the next sample's place for the first; all sums fit."""
    name, _ = first(root)
    path = schema.index_of(root / name)
    index = np.load(path)
    index["offset"][0] = index["offset"][1]
    np.save(path, index)
    reseal(root, name)


def index_of_another(root: Path) -> None:
    """The index names another patient; all sums fit."""
    name, _ = first(root)
    path = schema.index_of(root / name)
    index = np.load(path)
    index["subject"][0] += 1
    np.save(path, index)
    reseal(root, name)


def two_splits(root: Path) -> None:
    """A training shard is a test shard too: its patients are in both, its keys come twice."""
    name, row = first(root)
    (root / "test").mkdir(exist_ok=True)
    for path in (root / name, schema.index_of(root / name)):
        shutil.copy(path, root / "test" / path.name.replace("000000", "000099"))
    content = dataset(root)
    content["splits"]["test"]["shards"].append({**row, "name": "test/000099.tar"})
    save(root, content)


def manifest_row_lost(root: Path) -> None:
    """An accepted series has no row in the manifest."""
    lines = (root / "manifest.jsonl").read_text().splitlines(keepends=True)
    lost = next(line for line in lines if '"accepted"' in line)
    (root / "manifest.jsonl").write_text("".join(line for line in lines if line != lost))


def slices_lost(root: Path) -> None:
    """The manifest accepted more slices than there are."""
    lines = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    row = next(row for row in lines if row["status"] == "accepted")
    row["slices"] += 3
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


def histogram_edited(root: Path) -> None:
    """The statistics are not those of the histograms."""
    (root / "histograms.json").write_text('{"ct": {"0": 5, "7": 2}}')


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (flip, "SHA-256 is not that of dataset.json"),
    (cut, "bytes, dataset.json says"),
    (folder_for_shard, "is missing"),
    (remove_shard, "is missing"),
    (remove_index, "is missing"),
    (stray, "train/999999.tar: is not named by dataset.json"),
    (sum_edited, "digest is not that of its shards"),
    (count_edited, "train: "),
    (unpayloaded, "sample 0: "),
    (climbing, "'../../evil.json' is not a file of a sample"),
    (linked, "'a.json' is not a file of a sample"),
    (index_shifted, "leaves gaps"),
    (index_of_another, "names another patient"),
    (two_splits, "patients are in test and in train"),
    (manifest_row_lost, "in the shards and not in manifest.jsonl"),
    (slices_lost, "3 slices of accepted series are in no shard"),
    (histogram_edited, "statistics are not those of histograms.json"),
]


def test_a_good_data_set_passes(whole: Path, capsys: pytest.CaptureFixture) -> None:
    """Exit status 0, and the counts."""
    assert verify.main([str(whole), "workers=2"]) == 0
    assert "all is as it should be" in capsys.readouterr().err


@pytest.mark.parametrize(("damage", "expected"), DAMAGE, ids=[damage.__name__ for damage, _ in DAMAGE])
def test_damage_is_found(damage: Callable, expected: str, whole: Path, tmp_path: Path, capsys) -> None:
    """Exit status 1, and a line that names what is wrong."""
    shutil.copytree(whole, tmp_path / "out")
    damage(tmp_path / "out")
    assert verify.main([str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(expected in line for line in lines), lines
    assert "problems, named above" in lines[-1] and not any("Traceback" in line for line in lines)


def test_a_shard_that_the_system_does_not_read_is_named(whole: Path, tmp_path: Path) -> None:
    """Whoever reads a sample has one line with the shard's name, not that of an output."""
    shutil.copytree(whole, tmp_path / "out")
    folder_for_shard(tmp_path / "out")
    split = schema.Split(tmp_path / "out", first(tmp_path / "out")[0].partition("/")[0])
    with pytest.raises(schema.SchemaError, match=r"/000000.tar: Is a directory; copy it again"):
        split[0]


def test_what_is_no_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A folder without dataset.json, parts that are not merged, a misspelt key: one line each."""
    assert verify.main([str(tmp_path)]) == 1 and "no finished data set there" in capsys.readouterr().err
    (tmp_path / "part-001-of-002").mkdir()
    assert verify.main([str(tmp_path)]) == 1 and "not merged" in capsys.readouterr().err
    assert verify.main([str(tmp_path), "wokers=2"]) == 1 and "did you mean workers?" in capsys.readouterr().err
