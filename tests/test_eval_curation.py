"""`meddap curate`: planted duplicates are found, patients in two splits are named, weights even out draws."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.anatomy import body, copied
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import duplicates as bench
from data_prep import schema
from eval import curate
from eval.curation import balance, catalogue, descriptors, duplicates, pairs, search
from eval.curation.alignment import agreement
from eval.curation.pairs import Pairs
from pretrain.data.order import Chain, number_of


def weights(root: Path, name: str = "curated") -> np.ndarray:
    return schema.read_weights(schema.Split(root, "train"), name)


def run(root: Path, output: Path, *words: str) -> int:
    return curate.main(["--data", str(root), "--output", str(output), *words])


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Training patients 0 to 5, two of one maker; 6 copies three slices of 0, and 20 of test is 1 through a window."""
    makers = ["A", "A", "A", "A", "B", "B"]
    train = [body(who, order, manufacturer=makers[who]) for who in range(6) for order in range(8)]
    train += [copied(body(0, order, manufacturer="A"), 6) for order in (2, 3, 4)]
    grey = bench.eight_bits(-160, 240)
    test = [copied(one, 20, pixels=grey(one.pixels)) for one in (body(1, order) for order in range(8))]
    test += [body(21, order) for order in range(8)]
    return bench.write(tmp_path / "shards", {"train": train, "test": test})


def test_duplicates_count_once_and_patients_in_two_splits_are_named(planted, tmp_path, capsys) -> None:
    """The three copies share the draws of their sources; the leak is said with both patients' hashes."""
    assert run(planted, tmp_path / "out") == 0
    said = capsys.readouterr().err
    one, other = body(1, 0).subject[:16], body(20, 0).subject[:16]
    assert f"LEAK: patient {one} of train is patient {other} of test" in said and said.count("LEAK: patient") == 1
    found = json.loads((tmp_path / "out" / "curation.json").read_text())["duplicates"]
    assert found["leaks"] == [["train", one, "test", other]]
    assert (
        sorted([body(0, 0).subject[:16], body(6, 0).subject[:16]]) in found["patients"] and len(found["patients"]) == 2
    )
    split, drawn = schema.Split(planted, "train"), weights(planted)
    copies = split.index["subject"] == schema.short_hash(body(6, 0).subject)
    sources = (split.index["subject"] == schema.short_hash(body(0, 0).subject)) & np.isin(
        split.index["order"], (2, 3, 4)
    )
    assert drawn.mean() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(drawn[copies], drawn[sources], rtol=1e-5)
    single = drawn[(split.index["subject"] == schema.short_hash(body(0, 0).subject)) & ~sources]
    np.testing.assert_allclose(drawn[copies] + drawn[sources], single[0], rtol=1e-5)


def test_a_training_draws_by_the_weights(planted, tmp_path) -> None:
    """In 400 epochs every slice comes as often as its weight says, within 0.1; copies come too, less often."""
    assert run(planted, tmp_path / "out", "balance.manufacturer=0") == 0
    split, drawn = schema.Split(planted, "train"), weights(planted)
    chain = Chain(len(split), 0, drawn)
    times = np.bincount(number_of(chain.positions(0, 400 * len(split))[0]), minlength=len(split)) / 400
    np.testing.assert_allclose(times, drawn, atol=0.1)
    copies = split.index["subject"] == schema.short_hash(body(6, 0).subject)
    assert times[copies].min() > 0.3 and times[copies].max() < 0.65 * times.max()


def test_makers_share_the_draws_as_asked(planted, tmp_path) -> None:
    """Strength 1: as often from either maker; 0: as without; the page and the record say both."""
    assert run(planted, tmp_path / "out", "balance.manufacturer=1") == 0
    split = schema.Split(planted, "train")
    maker = np.array([split[number].meta["manufacturer"] for number in range(len(split))])
    drawn = weights(planted)
    assert drawn[maker == "B"].sum() / drawn.sum() == pytest.approx(0.5, abs=1e-3)
    shares = json.loads((tmp_path / "out" / "curation.json").read_text())["weights"]["shares"]["manufacturer"]["words"]
    assert shares["B"] == pytest.approx([16 / 51, 0.5], abs=1e-3)
    page = (tmp_path / "out" / "curation.html").read_text()
    assert "manufacturer" in page and body(1, 0).subject[:16] in page
    assert run(planted, tmp_path / "none", "balance.manufacturer=0", "name=flat", "duplicates.keep=1") == 0
    np.testing.assert_allclose(weights(planted, "flat"), 1, atol=1e-5)


def test_patients_who_leak_are_left_out_or_refused(planted, tmp_path, capsys) -> None:
    """leave_out: weight 0 for the training half, above 0 for the others; refuse: one line, and no weights."""
    assert run(planted, tmp_path / "out", "leaks=leave_out") == 0
    leaking = schema.Split(planted, "train").index["subject"] == schema.short_hash(body(1, 0).subject)
    drawn = weights(planted)
    assert (drawn[leaking] == 0).all() and (drawn[~leaking] > 0).all()
    capsys.readouterr()
    assert run(planted, tmp_path / "other", "leaks=refuse", "name=never") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: leaks=refuse: 1 patients are in two splits")
    assert not schema.weights_of(planted, "never")[0].exists()


def test_a_second_start_writes_the_same_and_other_weights_are_not_overwritten(planted, tmp_path, capsys) -> None:
    """Byte by byte, from the folder of the first one as from scratch by three threads."""
    for output in (tmp_path / "out", tmp_path / "out", tmp_path / "elsewhere"):
        assert run(planted, output, "workers=3" if output.name == "elsewhere" else "workers=1") == 0
    first, second = ((tmp_path / name / "curation.json").read_bytes() for name in ("out", "elsewhere"))
    assert first == second
    before = weights(planted)
    capsys.readouterr()
    assert run(planted, tmp_path / "out", "max_weight=2") == 1
    assert "other weights have this name; give name=OTHER" in capsys.readouterr().err
    np.testing.assert_array_equal(weights(planted), before)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["balance.scanner=1"], "balance.scanner: unknown; take body_part, manufacturer, model, sequence"),
        (["balance.model=2"], "balance.model=2.0: expected from 0 to 1"),
        (["split=val"], "split=val: no slices there; it has train, test"),
        (["duplicates.slice=0.5"], "duplicates.similar=0.85: above duplicates.slice"),
        (["max_weight=0.5"], "max_weight=0.5: expected from 1 to 1000"),
        (["duplicates.radius=-1"], "duplicates.radius=-1: expected from 0 to 256"),
        (["name=a/b"], "name=a/b"),
    ],
)
def test_bad_settings_are_one_line(words, line, planted, tmp_path, capsys) -> None:
    """Before anything is read or written."""
    assert run(planted, tmp_path / "out", *words) == 1
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [name for name in bench.CHANGES if name not in ("mirrored", "cropped by 4 %")])
def test_a_slice_agrees_with_its_copies_and_not_with_others(kind) -> None:
    """Better than with any slice of twelve other patients, by the threshold of the defaults."""
    sample = body(3, 2)
    made = descriptors.describe(sample.pixels[0], True)
    copy = descriptors.describe(bench.CHANGES[kind](sample.pixels)[0], True)
    others = [descriptors.describe(body(who, order).pixels[0], True) for who in range(30, 42) for order in range(3)]
    score = agreement(made.thumbnail[None], copy.thumbnail[None])[0]
    strangers = agreement(
        np.repeat(made.thumbnail[None], len(others), axis=0), np.stack([other.thumbnail for other in others])
    )
    assert score >= 0.975 > strangers.max()
    assert np.unpackbits(made.hash ^ copy.hash).sum() <= 64


def test_a_linear_map_of_signal_changes_no_descriptor_and_empty_slices_are_plain() -> None:
    """MR: other slope and intercept. A slice of one value is plain, whatever its values."""
    plane = (body(4, 1).pixels[0].astype(np.int64) + 1000).clip(0).astype(np.uint16)
    one, other = descriptors.describe(plane, False), descriptors.describe(plane * np.uint16(7) + np.uint16(300), False)
    assert np.abs(one.thumbnail.astype(int) - other.thumbnail.astype(int)).max() <= 1
    assert agreement(one.thumbnail[None], other.thumbnail[None])[0] > 0.999 and not one.plain
    for value in (0, 700):
        assert descriptors.describe(np.full((60, 70), value, np.int16), value == 0).plain


@pytest.mark.parametrize("by", ["numpy", "numpy 1", "faiss"])
def test_search_finds_every_hash_within_the_radius(by, monkeypatch) -> None:
    """As comparing each with each does; radius 256 pairs all."""
    if by == "faiss" and importlib.util.find_spec("faiss") is None:
        pytest.skip("faiss is not installed")
    if by == "numpy 1":  # without bitwise_count
        monkeypatch.delattr(np, "bitwise_count", raising=False)
        by = "numpy"
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (300, descriptors.BYTES), np.uint8)
    hashes[200:] = hashes[:100] ^ (rng.random((100, descriptors.BYTES)) < 0.2).astype(np.uint8)
    distances = np.unpackbits(hashes[:, None] ^ hashes[None], axis=2).sum(axis=2)
    for radius, most in ((6, 10), (256, 300)):
        crowded = np.ones(300, bool)
        blocks = list(search.near(hashes, radius, most, crowded, by=by))
        found = [pair for first, second, _ in blocks for pair in zip(first.tolist(), second.tolist())]
        close = np.argwhere(np.triu(distances <= radius, 1))
        assert sorted(found) == sorted(map(tuple, close.tolist())) and not crowded.any()
    list(search.near(hashes, 256, 10, crowded, by=by))
    assert crowded.all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_members_of_a_cluster_are_duplicates_of_one_slice(count, seed) -> None:
    """Whatever the pairs: a chain of neighbours is not one cluster, and every pair touches a cluster of two or more."""
    rng = np.random.default_rng(seed)
    linked = np.triu(rng.random((count, count)) < rng.random() * 0.3, 1)
    first, second = np.nonzero(linked)
    mine = duplicates.clusters(count, Pairs(first, second, np.ones(len(first), np.float32)))
    both = linked | linked.T | np.eye(count, dtype=bool)
    for number in range(mine.max() + 1):
        members = np.flatnonzero(mine == number)
        assert both[np.ix_(members, members)].all(axis=1).any()
    sizes = np.bincount(mine)[mine]
    assert all(sizes[one] > 1 or sizes[other] > 1 for one, other in zip(first, second))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(1.5, 20), st.floats(0, 0.5))
def test_weights_keep_their_bounds_and_meet_their_shares(seed, strength, most, least) -> None:
    """Mean 1, within cap and floor; where nothing is missed, two attributes at once have their shares."""
    rng = np.random.default_rng(seed)
    codes = {name: rng.choice(3, 400, p=rng.dirichlet(np.ones(3) * 3)) for name in ("part", "maker")}
    start = balance.once(rng.integers(0, 300, 400), 0.0)
    wanted = {name: (mine, balance.targets(mine, start, strength, 0)) for name, mine in codes.items()}
    fit = balance.balanced(start, wanted, most, least)
    assert fit.weights.mean() == pytest.approx(1, abs=1e-4)
    assert fit.weights.max() <= most * 1.001 and fit.weights.min() >= least * 0.999
    for mine, shares in wanted.values():
        drawn = np.bincount(mine, fit.weights, len(shares)) / fit.weights.sum()
        np.testing.assert_allclose(drawn, shares, atol=fit.missed + 1e-4)
    assert 1 <= balance.effective(fit.weights) <= 400.1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(2, 9))
def test_draws_are_shared_as_the_strength_says(seed, strength, words) -> None:
    """Known words by their share to the power of 1 − strength: 1 makes them equal, 0 leaves them as they are; slices
    that say nothing keep their share. A cap of 1000 and no floor leave nothing of that out."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(words + 1, 600, p=rng.dirichlet(np.ones(words + 1)))
    start = balance.once(rng.integers(0, 300, 600), 0.0)
    before = np.bincount(codes, start, words + 1) / start.sum()
    fit = balance.balanced(start, {"part": (codes, balance.targets(codes, start, strength, 0))}, 1000, 0)
    after = np.bincount(codes, fit.weights, words + 1) / fit.weights.sum(dtype=np.float64)
    known = np.flatnonzero(before[1:] > 0) + 1
    powers = before[known] ** (1 - strength)
    expected = powers / powers.sum() * (1 - before[0]) if len(known) else np.empty(0)
    np.testing.assert_allclose(after[known], expected, atol=2e-4)
    assert after[0] == pytest.approx(before[0], abs=2e-4)
    if strength == 1:
        assert np.ptp(after[known]) < 4e-4


def test_a_damaged_cache_is_one_line_and_one_of_other_shards_is_made_again(planted, tmp_path, capsys) -> None:
    """A cut array names itself and what to delete; what belongs to other shards is never read."""
    output = tmp_path / "out"
    assert run(planted, output) == 0
    (output / "work" / "thumbnails.npy").write_bytes(b"\x93NUMPY cut")
    capsys.readouterr()
    assert run(planted, output) == 1
    assert "thumbnails.npy: damaged or cut" in capsys.readouterr().err
    other = bench.write(tmp_path / "more", {"train": [body(who, order) for who in (50, 51) for order in range(4)]})
    assert len(catalogue.read(other, output / "work")) == 8


def test_planted_series_and_slices_are_scored(tmp_path) -> None:
    """The benchmark on invented bodies: copies of series are found, nothing is wrong."""
    slices, kinds, came_from = bench.plant([body(who, order) for who in range(12) for order in range(9)], patients=1)
    root = bench.write(tmp_path / "shards", {"train": slices})
    rows = {
        row[0]: row for row in bench.table(catalogue.read(root, tmp_path / "work"), tmp_path / "work", kinds, came_from)
    }
    for name in ("exact copy", "8 bits, −160 to 240 HU", "whole series, 8 bits", "every second slice"):
        assert rows[name][3] == "1.000" and rows[name][4].startswith("0 of ")


@pytest.mark.parametrize("count", [1, 4])
def test_slices_that_show_nothing_are_no_duplicates(count, tmp_path) -> None:
    """One slice, or several of air alone: each keeps weight 1."""
    slices = [bench.renamed(body(who, 0), who, 0, np.zeros_like if count > 1 else np.array) for who in range(count)]
    root = bench.write(tmp_path / "shards", {"train": slices})
    assert run(root, tmp_path / "out") == 0
    np.testing.assert_array_equal(weights(root), np.ones(count))


@pytest.mark.parametrize("most", [3, 64])
def test_a_search_that_was_killed_goes_on_and_finds_each_pair_once(most, tmp_path, monkeypatch) -> None:
    """Killed before its third block of 16 slices: the pairs are those of a search that was not; no block is read twice,
    and other settings start afresh. With most=3 all slices have more near hashes than are compared."""
    monkeypatch.setattr(search, "block_rows", lambda count, by="": 16)
    monkeypatch.setattr(pairs, "SECONDS", -1.0)
    slices = [copied(body(0, order % 5), 100 + order) for order in range(60)]
    slices = catalogue.read(bench.write(tmp_path / "shards", {"train": slices}), tmp_path / "work")
    whole = pairs.find(slices, tmp_path / "whole", 64, most, 0.85)
    assert whole.full == (60 if most == 3 else 0) and len(whole) == len(set(zip(whole.first, whole.second)))
    assert (whole.first < whole.second).all()
    looked: list[int] = []

    def dying(*given):
        for block in near(*given):
            looked.append(block[2])
            if len(looked) == 3:
                raise KeyboardInterrupt
            yield block

    near = search.near
    monkeypatch.setattr(search, "near", dying)
    with pytest.raises(KeyboardInterrupt):
        pairs.find(slices, tmp_path / "killed", 64, most, 0.85)
    again = pairs.find(slices, tmp_path / "killed", 64, most, 0.85)
    assert looked == [16, 32, 48, 48, 60]
    for name in ("first", "second", "score"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert not len(pairs.find(slices, tmp_path / "killed", 64, most, 1.0))
    assert looked[5:] == [16, 32, 48, 60]


def test_two_shoulders_of_one_size_are_one_body() -> None:
    """Smoothed, halved or lossily stored, what joins the parts may go: the outline stays, within a pixel or two."""
    plane = np.full((128, 128), -1000, np.int16)
    plane[50:80, 10:60] = plane[50:80, 64:118] = 40
    plane[64:66, 60:64] = -90
    joined = np.asarray(descriptors.describe(plane, True).thumbnail, float)
    plane[64:66, 60:64] = -300
    parted = np.asarray(descriptors.describe(plane, True).thumbnail, float)
    assert (joined[20, :17] > 100).all() and (joined[20, 23:] > 100).all()
    assert np.abs(joined - parted).mean() < 2
