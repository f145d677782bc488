"""Curation by features: clusters of clusters in bounded memory, even draws at every level, body parts by neighbours."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.anatomy import body
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.format import open_memmap

from benchmarks import duplicates as bench
from data_prep import schema
from eval import curate
from eval.config import BodyPartConfig
from eval.curation import body_parts, hierarchy, kmeans
from eval.curation.body_parts import Guessed
from meddap.settings import SettingsError


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def blobs(counts: list[int], width: int, seed: int = 0, spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Rows around as many orthogonal centres, and whose each is."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(len(counts)), counts)
    centres = np.linalg.qr(rng.normal(size=(width, len(counts))))[0].T
    rows = centres[of] + spread * rng.normal(size=(len(of), width)) / width**0.5
    return unit(rows).astype(np.float32), of


@pytest.mark.parametrize("memory", [1.0, 1e5, 1e9])
def test_kmeans_is_lloyd_whatever_the_block(memory) -> None:
    """The centroids of scikit-learn from the same start, to 1e-4."""
    cluster = pytest.importorskip("sklearn.cluster")
    rows, _ = blobs([300, 200, 400, 100, 150], 12, spread=1.0)
    start = rows[:6]
    found = kmeans.fit(rows, start, 15, memory)
    reference = cluster.KMeans(6, init=start, n_init=1, max_iter=15, tol=0, algorithm="lloyd").fit(rows)
    np.testing.assert_allclose(found.centroids, reference.cluster_centers_, atol=1e-4)
    assert (found.nearest == reference.labels_).mean() > 0.999


def test_a_centroid_without_rows_goes_where_rows_are_far() -> None:
    """Two of three start beside each other and a third far from all: in the end all three blobs have one."""
    rows, of = blobs([200, 200, 200], 8)
    start = np.stack([rows[0], rows[0] + 1e-3, np.full(8, 50.0)])
    found = kmeans.fit(rows, start, 12, 1e9)
    assert len({(int(one), int(blob)) for one, blob in zip(found.nearest, of)}) == 3


def test_what_is_rare_is_drawn_as_often_as_what_is_frequent() -> None:
    """Four kinds of 20,000 to 50 slices: each gets a quarter of the draws, within 0.1."""
    rows, of = blobs([20000, 300, 100, 50], 16)
    levels = hierarchy.build(rows.astype(np.float16), [60, 4], 2, 8, 8, 1e8, 0)
    wanted = hierarchy.shares(levels, np.ones(len(rows)), 1.0)
    drawn = np.bincount(of, (wanted / np.bincount(levels[0], minlength=len(wanted)).clip(1))[levels[0]])
    np.testing.assert_allclose(drawn, 0.25, atol=0.1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_shares_go_down_the_levels(seed, strength) -> None:
    """They sum to 1: strength 0 leaves them as they are; 1 divides evenly among what is filled at each level."""
    rng = np.random.default_rng(seed)
    levels = [rng.integers(0, 12, 200), rng.integers(0, 5, 12), rng.integers(0, 2, 5)]
    weights = rng.random(200) + 0.1
    mass = np.bincount(levels[0], weights, 12) / weights.sum()
    assert hierarchy.shares(levels, weights, strength).sum() == pytest.approx(1)
    np.testing.assert_allclose(hierarchy.shares(levels, weights, 0.0), mass, atol=1e-12)
    even = hierarchy.shares(levels, weights, 1.0)
    for top in np.unique(levels[2][levels[1][levels[0]]]):
        inside = levels[2][levels[1]] == top
        assert even[inside].sum() == pytest.approx(1 / len(np.unique(levels[2][levels[1][levels[0]]])))
    for parent in range(5):
        parts = even[(levels[1] == parent) & (mass > 0)]
        assert len(parts) == 0 or parts.std() < 1e-12


@pytest.mark.parametrize(
    ("count", "width", "sizes", "memory"),
    [(40_000, 32, [500, 20], 2e7), pytest.param(1_000_000, 64, [2000, 100, 10], 2e8, marks=pytest.mark.stress)],
)
def test_memory_is_what_the_formula_says(count, width, sizes, memory, tmp_path) -> None:
    """Rows in float16 on the disk: what NumPy holds at most is between a quarter of `peak_bytes` and all of it."""
    rng, path = np.random.default_rng(0), tmp_path / "rows.npy"
    rows = open_memmap(path, "w+", np.float16, (count, width))
    for start in range(0, count, 50_000):
        rows[start : start + 50_000] = rng.normal(size=(min(50_000, count - start), width))
    rows.flush()
    rows = np.load(path, mmap_mode="r")
    tracemalloc.start()
    hierarchy.build(rows, sizes, 1, 4, 2, memory, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    limit = kmeans.peak_bytes(count, width, sizes[0], memory)
    print(f"{count} × {width}: peak {peak / 1e6:.0f} MB, formula {limit / 1e6:.0f} MB")
    assert limit / 4 < peak <= limit


def test_five_million_rows_fit_into_eight_gigabytes() -> None:
    """By the formula, with the usual numbers of clusters and the default memory; rows are on the disk."""
    sizes = hierarchy.usual_sizes(5_000_000)
    assert sizes == [100_000, 10_000, 1000]
    assert kmeans.peak_bytes(5_000_000, 384, sizes[0], 1e9) < 4e9


def test_body_parts_are_guessed_where_labelled_neighbours_agree() -> None:
    """Right where guessed, unknown far from all; with shuffled labels, or those of one patient, none is guessed."""
    rows, of = blobs([200, 200, 200, 40], 16)
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 8, len(rows))
    codes = np.where((of < 3) & (rng.random(len(rows)) < 0.2), of + 1, 0)
    words = ["not stated", "HEAD", "CHEST", "PELVIS"]
    found = body_parts.guessed(Guessed(words, codes, {}), rows, patients, BodyPartConfig(), 0)
    known, far = (found.codes > 0) & (of < 3), of == 3
    assert (found.codes[known] == of[known] + 1).all() and known.sum() > 500
    assert (found.codes[far] == 0).all() and (found.codes[codes > 0] == codes[codes > 0]).all()
    assert found.figures["guessed"] + found.figures["unknown"] + found.figures["stated"] == len(rows)
    shuffled = np.where(codes > 0, rng.integers(1, 4, len(rows)), 0)
    found = body_parts.guessed(Guessed(words, shuffled, {}), rows, patients, BodyPartConfig(), 0)
    np.testing.assert_array_equal(found.codes, shuffled)
    assert "right in fewer than 0.9" in found.figures["why"]
    one = body_parts.guessed(Guessed(words, codes, {}), rows, np.zeros(len(rows), int), BodyPartConfig(), 0)
    assert "fewer than 2 patients" in one.figures["why"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name,body_part\na,HEAD\n", "no column slice"),
        ("slice,body_part\na,\n", "line 2: '' is not a body part"),
        ("slice,body_part\na,HEAD\na,NECK\n", "line 3: slice a is there twice"),
        ("slice,body_part\n", "names no slice"),
        ("", "no column slice"),
    ],
)
def test_a_bad_table_of_body_parts_is_one_line(text, line, tmp_path) -> None:
    """It names the file, the line and the value."""
    path = tmp_path / "parts.csv"
    path.write_text(text)
    with pytest.raises(SettingsError, match=line):
        body_parts.read_labels(path)


@pytest.fixture
def scanned(tmp_path: Path) -> Path:
    """Eight patients of two parts, 6 slices each; the headers of half of the patients say which a slice shows."""
    slices = []
    for who in range(8):
        for order in range(12):
            part = {"body_part": "HEAD" if order < 6 else "CHEST"} if who < 4 else {}
            made = body(who % 2, order if order < 6 else 40 + order, **part)
            moved = bench.renamed(made, who, order, lambda pixels: pixels)
            slices.append(moved)
    return bench.write(tmp_path / "shards", {"train": slices})


def run(root: Path, output: Path, *words: str) -> int:
    return curate.main(["--data", str(root), "--output", str(output), "--checkpoint", "pixels", "size=64", *words])


def test_the_command_clusters_and_guesses_and_can_be_told_not_to(scanned, tmp_path, capsys) -> None:
    """Half are guessed; body_parts.guess=false leaves them unknown; a user's word counts over the header."""
    assert run(scanned, tmp_path / "out", "clusters.sizes=[8,2]", "duplicates.radius=0") == 0
    said = capsys.readouterr().err
    assert "body part: stated of 48 slices, guessed of" in said and "balance.cluster: group" in said
    record = json.loads((tmp_path / "out" / "curation.json").read_text())
    assert record["body_parts"]["guessed"] > 36 and record["encoder"].startswith("pixels ")
    assert record["weights"]["shares"]["body_part"]["words"]["HEAD"][0] > 0.3
    assert run(scanned, tmp_path / "plain", "body_parts.guess=false", "name=plain") == 0
    words = json.loads((tmp_path / "plain" / "curation.json").read_text())["weights"]["shares"]["body_part"]["words"]
    assert words["HEAD"][0] == words["CHEST"][0] == 0.25 and words["not stated"][0] == 0.5
    table = tmp_path / "parts.csv"
    key = schema.Split(scanned, "train")[0].key
    table.write_text(f"slice,body_part\n{key},knee\n")
    assert run(scanned, tmp_path / "own", "body_parts.guess=false", "name=own", "--body-parts", str(table)) == 0
    words = json.loads((tmp_path / "own" / "curation.json").read_text())["weights"]["shares"]["body_part"]["words"]
    assert words["KNEE"][0] == pytest.approx(1 / 96, abs=1e-5) and words["HEAD"][0] < 0.25
    capsys.readouterr()
    table.write_text("slice,body_part\nnobody-00001,knee\n")
    assert run(scanned, tmp_path / "own", "name=own", "--body-parts", str(table)) == 1
    assert "1 of 1 slices are not in the split" in capsys.readouterr().err
    assert run(scanned, tmp_path / "own", "clusters.sizes=[8,9]") == 1
    assert "clusters.sizes=[8, 9]: 9 of 8; give numbers that fall" in capsys.readouterr().err
