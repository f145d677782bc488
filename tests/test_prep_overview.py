"""The overview of a data set: one page that holds its counts, its pictures and what was left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import dicom_files
from helpers.mri_files import head, write

from data_prep import generate, merge, overview, schema, shard_ct, shard_mri


def page_of(root: Path) -> str:
    """The page that the command writes."""
    assert overview.main([str(root)]) == 0
    return (root / "overview.html").read_text()


def test_the_page_of_ct_holds_what_the_data_set_holds(tmp_path: Path) -> None:
    """Patients and slices by split, scanner, body part, spacing, labels, reasons, pictures; nothing from outside."""
    generate.generate(tmp_path / "in", generate.GenerateConfig(patients=5, slices=6, size=40))
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "labels.2=liver"]
    assert shard_ct.main(words) == 0
    page = page_of(tmp_path / "out")
    dataset = schema.read_dataset(tmp_path / "out")
    for name, part in dataset["splits"].items():
        assert re.search(rf"<td>{name}</td><td class=\"n\">{part['subjects']}</td>.*?>{part['samples']}<", page)
    for text in ("Synthetic", "liver", "localizer", "voxels are NaN or infinite", "Examples", "Spacing"):
        assert text in page, text
    # histogram, two of spacing, bars of sequence, body part and scanner, examples of each split
    splits = sum(part["samples"] > 0 for part in dataset["splits"].values())
    assert page.count("data:image/png;base64,") == 5 + splits
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page


def test_the_page_of_mri_tells_which_sequences_studies_have(tmp_path: Path) -> None:
    """Counts of every set of sequences, how they were known, and field strength where headers state it."""
    for number in range(3):
        folder = tmp_path / "in" / f"p{number}"
        write(folder / "a_T1w.nii.gz", head(seed=number))
        if number:
            write(folder / "a_FLAIR.nii.gz", head(seed=number + 5))
    voxels = head((20, 20, 6)).transpose(2, 1, 0)
    kept = dict(SeriesDescription="t2 tse", MagneticFieldStrength=3, Manufacturer="GE", PatientID="q")
    dicom_files.series(tmp_path / "in" / "d", voxels, modality="MR", **kept)
    assert shard_mri.main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    page = page_of(tmp_path / "out")
    assert "Sequences of a study" in page and "Field strength" in page and "How the sequence was known" in page
    assert "3 of 4" not in page and "4 of 4 series or studies have no label map" in page


def test_the_page_of_merged_parts(tmp_path: Path) -> None:
    """Parts that were named as one data set have one page."""
    generate.generate(tmp_path / "in", generate.GenerateConfig(patients=5, slices=6, size=40, odd=False))
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert all(shard_ct.main([*words, f"part={number}/2"]) == 0 for number in (1, 2))
    assert merge.main([str(tmp_path / "out")]) == 0
    assert "Nothing: all 5 series were used." in page_of(tmp_path / "out")


def test_an_unfinished_data_set_has_no_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One line, exit status 1, nothing written."""
    assert overview.main([str(tmp_path)]) == 1
    assert "no finished data set there" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_resampled_slices_say_their_spacing(tmp_path: Path) -> None:
    """grid.in_plane_mm and grid.size: pixels, label maps and the spacing of every sample follow."""
    generate.generate(tmp_path / "in", generate.GenerateConfig(patients=2, slices=6, size=64, odd=False))
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "split.train=1", "split.val=0"]
    assert shard_ct.main([*words, "split.test=0", "grid.in_plane_mm=10", "grid.size=48"]) == 0
    split = schema.Split(tmp_path / "out", "train")
    for number in range(len(split)):
        sample = split[number]
        assert sample.pixels.shape == (1, 48, 48) and sample.labelmap.shape == (48, 48)
        assert sample.spacing == pytest.approx((10, 10), rel=0.02)
        assert set(np.unique(sample.labelmap)) <= {0, *sample.annotated}


def test_text_in_settings_and_names_stays_text(tmp_path: Path) -> None:
    """A label's name and a setting that hold HTML are shown, not obeyed."""
    generate.generate(tmp_path / "in", generate.GenerateConfig(patients=2, slices=4, size=40, odd=False))
    hostile = {
        "labels": {"2": "<script>alert('liver')</script>"},
        "label_maps": {"x-*": "</pre><script>alert(1)</script>"},
    }
    (tmp_path / "labels.yaml").write_text(json.dumps(hostile))  # which is YAML
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert shard_ct.main([*words, "--config", str(tmp_path / "labels.yaml"), "split.train=1", "split.test=0"]) == 0
    page = page_of(tmp_path / "out")
    assert "<script" not in page and "</pre><" not in page.replace("</pre></details>", "")
    assert "&lt;script&gt;alert(&#x27;liver&#x27;)" in page and "&lt;script&gt;alert(1)" in page


def test_weights_beside_the_shards_are_shown_and_stale_ones_are_said(tmp_path: Path) -> None:
    """What a training draws by weights: range, never drawn, shares before and after. Of other data: a warning."""
    generate.generate(tmp_path / "in", generate.GenerateConfig(patients=5, slices=6, size=40, odd=False))
    root = tmp_path / "shards"
    words = ["--input", str(tmp_path / "in"), "--output", str(root), "split.train=1", "split.val=0", "split.test=0"]
    assert shard_ct.main(words) == 0
    split, digest = schema.Split(root, "train"), schema.read_dataset(root)["digest"]
    assert "Draws of a training" not in page_of(root)
    scanners = {f"s{number}": [0.1, 0.1] for number in range(10)}
    shares = {
        "body_part": {"HEAD <b>": [0.75, 0.5], "NECK": [0.25, 0.5]},
        "scanner": scanners,
    }
    about = {"digest": digest, "split": "train", "made_with": {}, "shares": shares}
    for name, change in (
        ("curated", {}),
        ("old", {"digest": "0" * 64}),
        ("odd", {"shares": {"body_part": {"HEAD": [1]}}}),
    ):
        np.save(root / f"{name}.weights.npy", np.linspace(0, 2, len(split)).astype(np.float32))
        (root / f"{name}.weights.json").write_text(json.dumps({**about, **change}))
    page = page_of(root)
    section = page.split("Draws of a training")[1].split("<h2>")[0]
    assert (
        section.count("data:image/png;base64,") == 2 and f"{len(split)} slices of train, drawn 0 to 2 times" in section
    )
    assert "; 1 never." in section and "HEAD &lt;b&gt;: 75.0 to 50.0 %" in section and "2 others" not in section
    assert (
        section.count("Warning: ") == 2 and "digest 0000000000000000" in section and "shares are not pairs" in section
    )
