"""Several data sets in one training: shares, order, resumption, metrics of each, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import SEVERAL, overrides, write_corpus, write_pictures, write_weights
from helpers.datasets import write_dataset
from helpers.tiny_run import CONFIG, rows, stop_after_every_step, weights

from data_prep import schema
from pretrain import train
from pretrain.config import load
from pretrain.corpora import open_corpus
from pretrain.data import order, stream
from pretrain.data.mixture import Mixture, chain_seed
from pretrain.data.order import Chain
from pretrain.runtime import checkpoint
from pretrain.shares import divide

SIZES, SHARE = (1000, 37, 200, 5), np.array([0.5, 0.3, 0.15, 0.05])


def mixture(seed: int = 3) -> Mixture:
    """Four sources, each with a chain of its own."""
    return Mixture([Chain(size, chain_seed(seed, number)) for number, size in enumerate(SIZES)], SHARE, seed)


def test_shares_are_met_over_every_stretch_and_in_every_batch() -> None:
    """Of positions before any p, each source has p · share to within 2; of any batch of 64, to within 4."""
    source = order.source_of(mixture().positions(0, 20_000)[0])
    counts = np.stack([np.cumsum(source == number) for number in range(4)])
    assert np.abs(counts - SHARE[:, None] * np.arange(1, 20_001)).max() < 2
    for start in range(0, 19_000, 61):
        found = np.bincount(source[start : start + 64], minlength=4)
        assert np.abs(found - 64 * SHARE).max() < 4
    far = mixture().counts(3 * 10**11)
    assert far.sum() == 3 * 10**11 and np.abs(far / 3e11 - SHARE).max() < 1e-7


def test_any_position_is_found_without_those_before_it() -> None:
    """Positions in pieces of any size equal those in one go; `counts` agrees; another seed mixes otherwise."""
    whole = mixture().positions(0, 5000)
    chain, found = mixture(), []
    for start, end in zip([0, 1, 8, 100, 101, 999, 3000], [1, 8, 100, 101, 999, 3000, 5000]):
        found.append(chain.positions(start, end - start))
        expected = np.bincount(order.source_of(whole[0][:end]), minlength=4)
        assert chain.counts(end).tolist() == expected.tolist()
    for ours, theirs in zip(map(np.concatenate, zip(*found)), whole):
        assert np.array_equal(ours, theirs)
    assert not np.array_equal(mixture(4).positions(0, 5000)[0], whole[0])


def test_each_source_has_its_own_epochs() -> None:
    """A source's samples come once in each of its epochs, which follow each other; a small one has many."""
    sample, epoch = mixture().positions(0, 20_000)
    for number, size in enumerate(SIZES):
        mine = order.source_of(sample) == number
        numbers, epochs = order.number_of(sample[mine]), epoch[mine]
        assert (np.diff(epochs) >= 0).all() and epochs[-1] == (len(epochs) - 1) // size
        for each in range(int(epochs[-1])):
            assert sorted(numbers[epochs == each].tolist()) == list(range(size))


def test_one_source_is_the_order_of_its_own_chain() -> None:
    """A mixture of one has the samples, as numbers, and epochs of the chain alone."""
    alone = Mixture([Chain(23, 5)], np.ones(1), 5)
    for ours, theirs in zip(alone.positions(7, 60), Chain(23, 5).positions(7, 60)):
        assert np.array_equal(ours, theirs)
    assert alone.counts(60).tolist() == [60]


def test_weights_are_shares_and_sizes_divide_the_rest() -> None:
    """All weights: their ratios. Some: shares, the rest by size. None: by size, flattened by the temperature."""
    names = ("a", "b", "c")
    assert divide(names, (1, 1, 1), (2, 1, 1)).tolist() == [0.5, 0.25, 0.25]
    assert divide(names, (9, 300, 100), (0.6, None, None)).tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert divide(names, (100, 300, 100), (None,) * 3).tolist() == pytest.approx([0.2, 0.6, 0.2])
    assert divide(names, (100, 400, 100), (None,) * 3, 0.5).tolist() == pytest.approx([0.25, 0.5, 0.25])
    assert divide(names, (1, 1000, 10), (None,) * 3, 0.0).tolist() == pytest.approx([1 / 3] * 3)


def test_a_sample_comes_as_often_as_its_weight_says() -> None:
    """⌊w⌋ or ⌈w⌉ times an epoch of as many entries as samples, w on average; repeats are told apart."""
    weight = np.random.default_rng(0).gamma(0.5, size=500).astype(np.float32)
    weight[:20] = 0
    chain, exact = Chain(500, 1, weight), weight / weight.mean(dtype=np.float64)
    total = np.zeros(500)
    for number in range(400):
        sample, epoch = chain.batch(number, 500)
        assert (epoch == number).all() and len(np.unique(sample)) == 500
        counts = np.bincount(order.number_of(sample), minlength=500)
        assert (counts >= np.floor(exact - 1e-6)).all() and (counts <= np.ceil(exact + 1e-6)).all()
        total += counts
    assert np.abs(total / 400 - exact).max() < 4 * 0.5 / np.sqrt(400)
    even = Chain(100, 1, np.full(100, 0.3, np.float32)).batch(0, 100)[0]
    assert sorted(even.tolist()) == list(range(100))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Roots of the three sources by name; to be read only."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_mixed_batch_holds_each_slice_as_it_is_stored(threads: int, corpus, tmp_path: Path) -> None:
    """Of slices of three sizes, the batch's largest changing from one to the next: stored values, air around them and
    in all sequences that a slice does not have or its source does not give; each once an epoch, memory used again."""
    (tmp_path / "c.yaml").write_text(SEVERAL)
    config = load(
        tmp_path / "c.yaml",
        [*overrides(corpus), "data.sources.brains.sequences=[t1,flair]", "data.sources.brains.weight=0.7"],
    )
    sources, names = open_corpus(config), tuple(config.data.sequences)
    shapes, batches = set(), stream.batches(sources, batch_size=2, seed=1, sequences=names, threads=threads)
    for _ in range(40):
        batch = next(batches)
        shapes.add(tuple(batch.pixels.shape[2:]))
        for row, sample in enumerate(batch.sample.numpy()):
            source = sources.sources[int(order.source_of(sample))]
            stored, (height, width) = source.split[int(order.number_of(sample))], batch.pixels.shape[2:]
            for place, name in enumerate(names):
                expected = np.full((height, width), int(schema.span(name, (schema.AIR_HU, 0))[0]), np.int16)
                given = name in stored.sequences and (source.name != "brains" or name in ("t1", "flair"))
                assert bool(batch.present[row, place]) == given
                if given:
                    plane = schema.signed(stored.pixels[stored.sequences.index(name)].copy())
                    expected[: plane.shape[0], : plane.shape[1]] = plane
                assert np.array_equal(batch.pixels[row, place].numpy(), expected), (row, name)
    batches.close()
    assert len(shapes) == 3


@pytest.fixture
def run(corpus: dict[str, Path], tmp_path: Path):
    """run(name, *words) trains the tiny configuration on three sources and returns the exit status."""
    config = tmp_path / "tiny.yaml"
    config.write_text(SEVERAL)

    def start(name: str, *words: str, sources: dict[str, Path] = corpus) -> int:
        fixed = ["--config", str(config), f"name={name}", f"output={tmp_path}", *overrides(sources)]
        return train.main([*fixed, *words])

    return start


def test_a_mixed_run_stopped_at_every_step_is_the_run_that_was_not(run, tmp_path: Path, monkeypatch) -> None:
    """CT and MR of two and three sequences in batches of three sources, killed after every step: the same bits."""
    assert run("whole") == 0
    assert stop_after_every_step(lambda: run("stopped"), monkeypatch) == 11
    for stage, last in (("adapt", "00000008"), ("second", "00000003")):
        assert rows(tmp_path / "whole" / stage) == rows(tmp_path / "stopped" / stage)
        ours, theirs = (weights(tmp_path / name / stage / last) for name in ("whole", "stopped"))
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_metrics_of_each_source_add_up_to_the_batch(run, tmp_path: Path) -> None:
    """Images of the sources are the batch, samples their sums; the losses' mean over images is the batch's."""
    assert run("a", "stage_defaults.loss.koleo=0", "data.sources.few.weight=0.1") == 0
    seen = dict.fromkeys(("body", "brains", "few"), 0)
    for row in rows(tmp_path / "a" / "adapt"):
        images = {name: row[f"source/{name}/images"] for name in seen}
        assert sum(images.values()) == row["batch"]
        for name in seen:
            seen[name] += images[name]
            assert row[f"source/{name}/samples"] == seen[name]
        losses = [images[name] * row[f"source/{name}/loss"] for name in seen if images[name]]
        assert sum(losses) / row["batch"] == pytest.approx(row["loss/total"], rel=1e-5)
    assert any("source/body/cls_spread" in row for row in rows(tmp_path / "a" / "adapt"))
    state = checkpoint.newest(tmp_path / "a" / "adapt").state
    assert {name: each["samples"] for name, each in state["stream"]["sources"].items()} == seen
    assert sum(seen.values()) == state["stream"]["samples"] == 64


def test_micro_batches_change_nothing_of_a_mixed_run(run, tmp_path: Path) -> None:
    """Gram anchoring, distorted slices, windows, two or three sequences or one: two micro-batches are one, to 1e-5."""
    words = ["stages.second.gram.teacher_from=adapt", "stages.second.gram.size=32", "stage_defaults.loss.koleo_group=2"]
    words += ["stage_defaults.augment.slice.noise_p=0.5", "stage_defaults.augment.slice.gamma_p=0.5"]
    words += ["data.sources.few.window=[-100,200]", "data.sources.few.weight=0.3"]
    assert run("one", *words) == 0 and run("two", *words, "machine.accumulate=2") == 0
    for stage in ("adapt", "second"):
        for ours, theirs in zip(rows(tmp_path / "one" / stage), rows(tmp_path / "two" / stage), strict=True):
            assert ours.keys() == theirs.keys() and ours["samples"] == theirs["samples"]
            for key, value in ours.items():
                assert value == theirs[key] or value == pytest.approx(theirs[key], rel=1e-5, abs=1e-5), key


def test_one_source_with_a_name_is_the_run_of_its_root(corpus, tmp_path: Path) -> None:
    """`data.sources` of one data set: the samples, metrics and weights of `data.root`, to the bit."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    common = ["--config", str(tmp_path / "c.yaml"), f"output={tmp_path}", "--stage", "adapt"]
    assert train.main([*common, "name=root", f"data.root={corpus['body']}"]) == 0
    assert train.main([*common, "name=named", f"data.sources.body.root={corpus['body']}"]) == 0
    ours, theirs = (tmp_path / name / "adapt" for name in ("root", "named"))
    assert rows(ours) == rows(theirs)
    one, other = weights(ours / "00000008"), weights(theirs / "00000008")
    assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.root=x"], "data.root=x: there are data.sources too; give one of the two"),
        (["data.sources.body.weight=-1"], "data.sources.body.weight=-1.0: expected 0 or more"),
        (["data.sources.body.weight=nan"], "data.sources.body.weight=nan: expected 0 or more"),
        (
            [f"data.sources.{name}.weight=0" for name in ("body", "brains", "few")],
            "the weights of body, brains, few sum to 0; give one of them a weight above 0",
        ),
        (["data.sources.body.weight=1.5"], "the weights sum to 1.5, which leaves nothing for brains, few"),
        (["data.temperature=2"], "data.temperature=2.0: expected from 0 to 1"),
        (
            [*(f"data.sources.{name}.weight=1" for name in ("body", "brains", "few")), "data.temperature=0.5"],
            "data.temperature=0.5: every source has a weight, so sizes do not count",
        ),
        (
            ["data.sources.body.wieght=1"],
            "unknown key data.sources.body.wieght; did you mean data.sources.body.weight?",
        ),
        (["data.sources.b/c.root=x"], "data.sources.b/c: a name has letters, digits, _ and - alone"),
        (["data.sources.body.window=[3,2]"], "data.sources.body.window=[3.0, 2.0]: expected 2 numbers"),
        (["data.sources.brains.sequences=[t1,adc]"], "adc is not among the sequences that are read"),
        (["data.sources.body.sequences=[t1]"], "body.sequences: ROOT has no t1; it has ct"),
        (["data.sources.brains.sequences=[t1,t1]"], "duplicate name"),
        (["model.sequences=[ct]"], "data.sources.brains: ROOT has t1, t2, flair, none of the sequences that are read"),
        (
            ["data.sources.none.root=/nowhere"],
            "data.sources.none.root: /nowhere/dataset.json: not found; no finished data",
        ),
        (["data.sources.none.weight=1"], "data.sources.none.root is required"),
        (["data.labels=[tumour]"], "data.labels: tumour is not a label column of ROOT or ROOT or ROOT"),
        (["data.split=tset"], "no split 'tset'"),
        (["data.sources.few.sampling=none"], "data.sources.few.sampling=none: ROOT/none.weights.json: No such file"),
        (["data.sources.body.window=[3,3]"], "expected 2 numbers, finite numbers, the first below the second"),
        (
            ["data.sources.brains.window=[0,80]"],
            "brains.window=[0.0, 80.0]: ROOT has t1, t2, flair, no ct, and a window",
        ),
        (["data.sources.body.weight=1e-9"], "data.sources.body: its share of the samples is 1.0e-09, and the least is"),
        (
            ["data.sources.body=shards"],
            "data.sources.body: expected keys, e.g. data.sources.body.root=VALUE, not shards",
        ),
        (["data.sources=[a,b]"], "data.sources: expected names, each with keys of its own, not ['a', 'b']"),
        (["model=large"], "model: expected keys, e.g. model.patch_size=VALUE, not large"),
    ],
)
def test_what_does_not_fit_is_one_line(words: list[str], said: str, run, corpus, tmp_path: Path, capsys) -> None:
    """Names, weights, windows, sequences and labels that do not fit the data or each other, before anything is done."""
    assert run("bad", *words) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for root in corpus.values():
        said, errors[-1] = said.replace(str(root), "ROOT"), errors[-1].replace(str(root), "ROOT")
    assert len(errors) == 1 and said in errors[0], errors


def test_a_name_twice_an_empty_source_colours_and_one_data_set_twice(run, corpus, tmp_path: Path, capsys) -> None:
    """A key that YAML has twice, no training slices, colour where the model knows grey, two names of one data set."""
    twice = tmp_path / "twice.yaml"
    twice.write_text("name: x\ndata:\n  sources:\n    a: {root: x}\n    a: {root: y}\nstages: {s: {steps: 1}}\n")
    assert train.main(["--config", str(twice)]) == 1
    assert "line 5: found duplicate key a" in capsys.readouterr().err
    empty = write_dataset(tmp_path / "empty", {"train": 0, "val": 1, "test": 1})
    assert run("a", f"data.sources.empty.root={empty}") == 1
    assert f"data.sources.empty.root={empty}: split 'train' holds no slices" in capsys.readouterr().err
    colour = write_pictures(tmp_path / "colour")
    assert run("a", f"data.sources.colour.root={colour}") == 1
    assert f"data.sources.colour: {colour} has image, none of the sequences" in capsys.readouterr().err
    assert run("a", f"data.sources.colour.root={colour}", "model.sequences=[ct,t1,t2,flair,image]") == 1
    said = f"data.sources.colour: image of {colour} is in colour, and model.channels=1 takes grey; set model.channels=3"
    assert said in capsys.readouterr().err
    assert run("a", f"data.sources.again.root={corpus['body']}") == 1
    assert "again and body are the same data set; leave one out" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_sources(run, corpus, tmp_path: Path, capsys) -> None:
    """Added, removed, renamed, changed or weighted otherwise between start and resumption: one line that says which."""
    assert run("a", "--stage", "adapt", "data.sources.body.weight=0.5") == 0
    capsys.readouterr()
    small = write_dataset(tmp_path / "small", {"train": 2, "val": 1, "test": 1}, seed=9)
    without = {name: root for name, root in corpus.items() if name != "few"}
    cases = [
        ({**corpus, "more": small}, [], "the source more was not there when this run began"),
        (without, [], "the source few that this run began with is gone; name it again"),
        ({**without, "less": corpus["few"]}, [], "the source few that this run began with is now called less"),
        ({**corpus, "few": small}, [], "the shards of the source few changed since this run began"),
        (corpus, ["data.sources.body.weight=0.6"], "share of the source body was 0.5 when this run began, now 0.6"),
        (corpus, ["data.sources.brains.sequences=[t1]"], "sequences of the source brains was ['flair', 't1', 't2']"),
        (corpus, ["data.sources.body.window=[0,80]"], "window of the source body was None when this run began, now [0"),
    ]
    for roots, words, said in cases:
        weighted = ["data.sources.body.weight=0.5", *words]
        assert run("a", "--stage", "adapt", *weighted, sources=roots) == 1
        assert said in capsys.readouterr().err, said
    assert run("a", "--stage", "adapt", "data.sources.body.weight=0.5") == 0


def test_weights_of_samples_are_of_the_data_set_that_they_name(
    run, corpus, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Drawn by them; of other data, damaged, negative, all 0 or of another number: one line; changed: not resumed."""
    root = write_dataset(tmp_path / "own", {"train": 3, "val": 1, "test": 1}, seed=5)
    sources, words = {"own": root, "few": corpus["few"]}, ["data.sources.own.sampling=mine", "--stage", "adapt"]
    good = np.ones(18, np.float32)
    good[:9] = 0
    monkeypatch.setattr(schema, "MOST_WEIGHT", 10)
    write_weights(root, "mine", good)
    assert run("a", *words, sources=sources) == 0
    capsys.readouterr()
    for wrong, other, said in (
        (good[:5], {}, "5 weights for 18 samples"),
        (-good, {}, "has weight -1.0; give finite ones from 0 on"),
        (good * np.nan, {}, "has weight nan"),
        (good * 0, {}, "all weights are 0"),
        (good.astype(np.float64), {}, "does not hold one row per sample"),
        (np.eye(1, 18, dtype=np.float32)[0], {}, "a weight of 18 times the mean; at most 10 times are taken"),
        (good, {"digest": "f" * 64}, "digest ffffffffffffffff, but"),
        (good, {"split": "val"}, "split val, but"),
        (good[::-1], {}, "sampling of the source own was"),
    ):
        write_weights(root, "mine", wrong, **other)
        assert run("a", *words, sources=sources) == 1
        assert said in capsys.readouterr().err, said
