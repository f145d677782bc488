"""What a training on several sources leaves behind: labels by name, neighbours, card, report, leak checks, pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import SEVERAL, overrides, write_corpus
from helpers.datasets import body_slice, write_dataset
from helpers.tiny_run import rows

from data_prep import schema
from eval import report
from eval.config import StrideConfig, TaskConfig
from eval.data import leaks, sources, splits
from eval.encoders import encoder as encoders
from eval.encoders import windows
from eval.intake import preparation
from meddap.settings import SettingsError
from pretrain import plan, train
from pretrain.config import load
from pretrain.corpora import class_weights, classes, open_corpus
from pretrain.data import order, stream
from pretrain.weights import card, encoder
from slurm import pipeline, submit
from slurm.pipeline import PipelineError

NAMES = ("body", "brains", "few")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on three sources, one of them with a licence, its data beside it; to be read only."""
    root = tmp_path_factory.mktemp("finished")
    roots = write_corpus(root)
    path = roots["few"] / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "license": "CC-BY-4.0"}))
    for folder in roots.values():
        (folder / "manifest.jsonl").write_text("")
    (root / "c.yaml").write_text(SEVERAL)
    words = ["knn.every=8", "data.sources.few.weight=0.1", "data.sources.few.window=[-100,200]", "--stage", "adapt"]
    assert train.main(["--config", str(root / "c.yaml"), f"output={root}", *overrides(roots), *words]) == 0
    return root / "tiny"


def test_neighbours_are_asked_of_each_source_that_has_labels(finished: Path) -> None:
    """The scores of the sources with organs, and their mean; the one without labels is left out."""
    last = rows(finished / "adapt")[-1]
    scores = [last[f"knn/{name}/auroc"] for name in ("body", "few") if f"knn/{name}/auroc" in last]
    assert scores and last["knn/auroc"] == pytest.approx(np.mean(scores)) and "knn/brains/auroc" not in last


def test_the_card_names_all_data_sets(finished: Path) -> None:
    """Name, share, sequences, window, digest and licence of each."""
    text = card.card(encoder.find(finished), encoder.load_encoder(finished), "equal")
    for name in NAMES:
        digest = schema.read_dataset(finished.parent / name)["digest"]
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert f"`{digest[:16]}`" in row
        assert ("CC-BY-4.0" in row and "-100 to 200" in row and "| 10.0% |" in row) == (name == "few")
        assert ("flair, t1, t2" in row) == (name == "brains")
    one = encoder.of_one_sequence(encoder.load_encoder(finished), "t1")  # MR or a picture: the model does not know
    assert "in radiographs and other pictures black is 0" in card.card(encoder.find(finished), one, "equal")


def test_the_report_says_what_was_seen_of_each_source(finished: Path, tmp_path: Path) -> None:
    """A section of data for each, and a table of samples, shares and losses; a source that is gone is said."""
    assert report.main(["--runs", str(finished), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text().replace("\n", "")
    last = rows(finished / "adapt")[-1]
    for name in NAMES:
        seen = last[f"source/{name}/samples"]
        assert f"<h3>{name}</h3>" in page and f'<td>{name}</td><td class="n">{seen}</td>' in page
        digest = schema.read_dataset(finished.parent / name)["digest"][:16]
        row = page.split(f"<td>{name}</td>")[1].split("</tr>")[0]  # what is read of each comes first
        assert (
            digest in row
            and ("flair, t1, t2" in row) == (name == "brains")
            and ("-100 to 200" in row) == (name == "few")
        )
    assert "Loss and spread of the features of each source." in page
    assert "licensed as CC-BY-4.0" in page


def test_test_patients_of_any_source_are_found(finished: Path, tmp_path: Path) -> None:
    """A probe on the data of a source knows that source's training patients, whichever of the sources it is."""
    for name in ("body", "few"):
        task = TaskConfig(data=str(finished.parent / name), size=64, stride=StrideConfig(1, 1, 1), probes=["knn"])
        examples = sources.load(task, tmp_path)
        clean = leaks.check(str(finished), task, examples, splits.folds(examples, task), tmp_path)
        assert len(clean.checked) == 3 and not clean.found
        turned = {"train": "test", "val": "val", "test": "train"}
        examples.splits[:] = [turned[each] for each in examples.splits]
        seen = leaks.check(str(finished), task, examples, splits.folds(examples, task), tmp_path)
        assert len(seen.by_id) == len(seen.by_pixels) == seen.patients > 0


def test_a_source_is_probed_in_the_window_that_training_read_it_in(finished: Path, tmp_path: Path) -> None:
    """Its own for the shards of a source with one, the encoder's for others; the task's own word goes before both.

    Other data are said to have been read otherwise in part. Raw images need to be told which source they are like.
    """
    plain = encoders.load(str(finished), TaskConfig(data="x"))
    for data, words, expected, said in (
        (finished.parent / "few", {}, (-100.0, 200.0), "window -100 to 200 HU, as training read few"),
        (finished.parent / "body", {}, plain.window, ""),
        (finished.parent / "few", {"window": [0.0, 80.0]}, (0.0, 80.0), ""),
        (write_dataset(tmp_path / "new", {"train": 1}, seed=4), {}, plain.window, "others (few -100 to 200 HU)"),
    ):
        task, about = windows.chosen(str(finished), TaskConfig(data=str(data), **words))
        found = encoders.load(str(finished), task)
        assert found.window == expected and said in about and bool(said) == bool(about)
        assert (found.digest == plain.digest) == (expected == plain.window)
    with pytest.raises(SettingsError, match=r"was trained on several data sets, body \(.*--like SHARDS"):
        preparation.of_checkpoint(str(finished), None, None)


def test_a_pipeline_of_several_sources_leaves_the_data_to_its_tasks(tmp_path: Path, monkeypatch, capsys) -> None:
    """No data= for probes, no --shard, and a relative root is refused as elsewhere; a plan needs no data at all."""
    made = pipeline.steps("c.yaml", [], run="run", data="", stages=["adapt"], tasks=["task.yaml"])
    assert not any("data=" in word for step in made for command in step.commands for word in command)
    with pytest.raises(PipelineError, match="data.sources; shard each of them first"):
        pipeline.steps("c.yaml", [], run="run", data="", stages=["adapt"], shard=["ct", "1", "--input", "in"])
    (tmp_path / "c.yaml").write_text(SEVERAL)
    monkeypatch.chdir(tmp_path)
    words = [str(tmp_path / "c.yaml"), f"output={tmp_path}", "data.sources.a.root=near", "--local"]
    assert submit.main(words) == 1
    assert "error: near: all steps run in" in capsys.readouterr().err
    assert plan.main([str(tmp_path / "c.yaml"), "data.sources.a.root=none", "--no-memory"]) == 0


def labelled(number: int, name: str):
    """A slice function whose patients have one class in a column."""

    def make(rng: np.random.Generator, subject: int, place: int, size: int) -> schema.Slice:
        drawn = body_slice(rng, 100 * number + subject, place, size)
        return schema.Slice(**{**vars(drawn), "labels": {name: float(subject % 2)}})

    return make


def test_labels_go_by_name_across_sources(tmp_path: Path) -> None:
    """Columns and classes by their names, whatever their numbers; a source without the column is unlabelled."""
    said = {"a": ("kind", ["good", "bad"]), "b": ("kind", ["bad", "other"]), "c": ("side", ["left", "right"])}
    for number, (name, (column, names)) in enumerate(said.items()):
        counts = {"names": names, "samples": {"train": [6, 6], "val": [0, 0], "test": [0, 0]}, "patients": {}}
        write_dataset(
            tmp_path / name,
            {"train": 4},
            slices=3,
            make=labelled(number, column),
            classes={column: counts},
            seed=number,
        )
    (tmp_path / "c.yaml").write_text(SEVERAL)
    roots = overrides({name: tmp_path / name for name in said})
    config = load(tmp_path / "c.yaml", [*roots, "data.labels=[kind]", "model.sequences=[ct]"])
    corpus = open_corpus(config)
    assert classes(config.data, corpus) == {"kind": ["good", "bad", "other"]}
    assert class_weights(config.data, corpus)["kind"] == pytest.approx((4 / 3, 2 / 3, 4 / 3))
    batches = stream.batches(corpus, batch_size=36, seed=0)
    batch = next(batches)
    batches.close()
    for sample, label in zip(batch.sample.numpy(), batch.labels[:, 0].tolist()):
        name = list(said)[int(order.source_of(sample))]
        own = int(corpus.sources[list(said).index(name)].split.labels(int(order.number_of(sample))).get("kind", -1))
        assert label == (["good", "bad", "other"].index(said[name][1][own]) if name != "c" else -1)
    assert batch.labels.unique().tolist() == [-1, 0, 1, 2]
