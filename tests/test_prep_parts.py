"""A data set made in parts and merged is the data set made whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_prep import identity, merge, schema, shard_ct, verify
from data_prep.sharding import archive_parts
from meddap.settings import SettingsError


def shard(source: Path, output: Path, *words: str) -> int:
    """Run the command in this process."""
    return shard_ct.main(["--input", str(source), "--output", str(output), "samples_per_shard=10", *words])


def samples(root: Path) -> dict[str, tuple[str, bytes]]:
    """key → (split, bytes in the shard) of a finished data set."""
    found = {}
    for name in schema.SPLITS:
        split = schema.Split(root, name)
        found |= {split[number].key: (name, split.read(number)) for number in range(len(split))}
    return found


@pytest.mark.parametrize("count", [3, 11])
def test_parts_merged_hold_what_the_whole_holds(count: int, patients: Path, tmp_path: Path) -> None:
    """Same samples to the byte, same manifest, statistics and labels; every patient in one part; parts may be empty."""
    assert shard(patients, tmp_path / "whole") == 0
    for number in range(count, 0, -1):  # in any order
        assert shard(patients, tmp_path / "parts", f"part={number}/{count}") == 0
    assert merge.main([str(tmp_path / "parts")]) == 0
    assert samples(tmp_path / "parts") == samples(tmp_path / "whole")
    merged, whole = (schema.read_dataset(tmp_path / name) for name in ("parts", "whole"))
    for key in ("statistics", "labels", "sequences"):
        assert merged[key] == whole[key]
    for name in ("manifest.jsonl", "histograms.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    owners = [
        {row["subject"] for row in map(json.loads, (path / "manifest.jsonl").read_text().splitlines())}
        for path in archive_parts.folders(tmp_path / "parts")
    ]
    assert sum(len(each) for each in owners) == len(set.union(*owners)) > 6
    assert verify.main([str(tmp_path / "parts")]) == 0
    before = (tmp_path / "parts" / "dataset.json").read_bytes()
    assert shard(patients, tmp_path / "parts", f"part=2/{count}") == 0 and merge.main([str(tmp_path / "parts")]) == 0
    assert (tmp_path / "parts" / "dataset.json").read_bytes() == before


def test_a_part_is_a_pure_function_of_the_hashed_patient() -> None:
    """Every patient belongs to exactly one part of any division; shares are even."""
    hashes = [identity.hashed(b"s", "patient", str(number)) for number in range(4000)]
    for count in (1, 7, 64):
        division = [archive_parts.ArchivePart(number, count) for number in range(1, count + 1)]
        owners = [[part.number for part in division if part.takes(each)] for each in hashes]
        assert all(len(each) == 1 for each in owners)
        sizes = [sum(each[0] == part.number for each in owners) for part in division]
        assert max(abs(size - 4000 / count) for size in sizes) < 6 * (4000 / count) ** 0.5


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/3", "1/0"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    """The line says what is expected."""
    with pytest.raises(SettingsError, match="expected NUMBER/COUNT"):
        archive_parts.parse(text)


def test_a_merge_needs_all_parts_made_alike(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Missing, unfinished or differently made parts, and two divisions in one output, are refused in one line."""
    out = tmp_path / "out"

    def refused(expected: str) -> bool:
        status, lines = merge.main([str(out)]), capsys.readouterr().err.splitlines()
        return status == 1 and expected in lines[-1] and not (out / "dataset.json").exists()

    out.mkdir()
    assert refused("holds no parts")
    assert shard(patients, out, "part=1/3") == 0
    assert refused("2 parts are not finished: 2, 3")
    assert shard(patients, out, "part=2/3") == 0 and shard(patients, out, "part=3/3", "min_slices=2") == 0
    assert refused("made with other settings")
    shutil.rmtree(out / "part-003-of-003")
    assert shard(patients, out, "part=3/3") == 0
    (out / "part-002-of-003" / "dataset.json").rename(out / "part-002-of-003" / "aside.json")
    assert refused("part 2 is not finished; start it again")
    (out / "part-002-of-003" / "aside.json").rename(out / "part-002-of-003" / "dataset.json")
    assert shard(patients, out, "part=1/2") == 0
    assert refused("holds parts of [2, 3]")
    assert shard(patients, out) == 1 and "holds parts" in capsys.readouterr().err
    assert shard(patients, tmp_path / "whole") == 0 and shard(patients, tmp_path / "whole", "part=1/2") == 1
    assert "was begun without parts" in capsys.readouterr().err


def test_a_licence_is_kept_in_parts_and_in_what_names_them_as_one(patients: Path, tmp_path: Path) -> None:
    """`license=` is in dataset.json of each part and of the merged data set; without it there is none."""
    for number in (1, 2):
        assert shard(patients, tmp_path / "parts", f"part={number}/2", "license=CC-BY-4.0") == 0
    assert merge.main([str(tmp_path / "parts")]) == 0 and shard(patients, tmp_path / "plain") == 0
    for folder in (tmp_path / "parts", *archive_parts.folders(tmp_path / "parts")):
        assert schema.license_of(schema.read_dataset(folder)) == "CC-BY-4.0"
    assert schema.license_of(schema.read_dataset(tmp_path / "plain")) is None
