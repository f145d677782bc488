"""Fitted heads on the disk: they predict what they predicted, name their encoder, and hold nothing that is executed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.cohorts import WIDTH, fitted, made_up
from helpers.encoders import Pixels, random_transformer
from helpers.towers import made_up_language

from eval import contract, probe
from eval.config import DecoderConfig, NetworkConfig, StrideConfig, TaskConfig, TaskSplitConfig, TuneConfig
from eval.data import features, sources
from eval.data.cohorts import Base, Cohort
from eval.data.files import FileError
from eval.encoders.encoder import CheckpointEncoder, FrozenEncoder
from eval.kept import head
from eval.probes import registry
from eval.reporting import results
from eval.statistics.predictions import Prediction
from meddap.settings import SettingsError

CASES = [
    *(("knn", "multiclass", "slice"), ("knn", "regression", "slice"), ("logistic", "multilabel", "slice")),
    *(("linear", "multiclass", "slice"), ("linear", "binary", "volume"), ("attentive", "multilabel", "slice")),
    *(("mil", "multiclass", "volume"), ("anomaly", "anomaly", "slice"), ("ridge", "regression", "volume")),
    *(("cox", "survival", "volume"), ("segmentation", "segmentation", "slice"), ("primus", "segmentation", "slice")),
    *(("zero_shot", "multilabel", "slice"), ("zero_shot", "multiclass", "volume")),
    *(("unet_decoder", "segmentation", "slice"), ("patch_knn", "segmentation", "slice")),
    *(("stack3d", "segmentation", "slice"), ("stack3d", "binary", "volume"), ("stack3d", "regression", "volume")),
    *(("unet", "segmentation", "slice"), ("cnn", "regression", "slice"), ("transunet", "segmentation", "slice")),
]


def test_every_probe_that_can_be_kept_is_tested_here_or_with_a_network() -> None:
    """A probe without a way to keep it says why; the others are below, or need an encoder with weights."""
    tested = {name for name, _, _ in CASES}
    for name, row in registry.PROBES.items():
        if isinstance(row.keeping, str):
            assert len(row.keeping) > 20 and name not in tested
        else:
            assert name in tested or name in ("lora", "bitfit", "finetune")


def kept(name: str, kind: str, level: str, folder: Path) -> tuple[contract.Fitted, contract.Fitted, head.Head, list]:
    """A fitted probe, itself read from the disk again, its card, and what the first one says of the test patients."""
    base = made_up(kind, level)
    decoder, network = DecoderConfig(blocks=[1], epochs=1), NetworkConfig(epochs=1, channels=8)
    quick = dict.fromkeys(("segmentation", "primus", "unet_decoder"), decoder)
    quick |= dict.fromkeys(("unet", "transunet", "cnn"), network)
    base = replace(base, task=replace(base.task, size=32, **quick))
    probe, test = fitted(name, base, folder / "cache")
    card = head.Head(
        probe=name,
        fold="",
        task=base.task,
        names=base.examples.names,
        values=base.examples.values,
        ignored=(),
        sequences=(),
        encoder={"source": "pixels", "digest": Pixels.digest, "window": [-1000.0, 500.0]},
        prepared={"source": "shards"},
        patients={"train": 30},
        training=(),
        choices=probe.choices,
        refitted=probe.refitted,
    )
    assert head.keep(folder, card, probe, base.examples.digests[:7]) == ""
    stored = head.read(folder / name)
    assert stored.digests.tolist() == list(range(7))
    return probe, stored.fitted(Encoder(), folder / "cache"), stored.head, test


class Encoder(Pixels):
    """The encoder of the made-up patients has two blocks and a text tower."""

    depth, language = 2, made_up_language(WIDTH)


@pytest.mark.parametrize(("name", "kind", "level"), CASES)
def test_a_head_that_is_read_again_predicts_what_it_predicted(name: str, kind: str, level: str, tmp_path: Path) -> None:
    """Every array of every prediction of the test patients to 1e-6, and the same choices."""
    before, after, card, test = kept(name, kind, level, tmp_path)
    assert after.choices == before.choices and card.choices == before.choices
    pairs = list(zip(before.predict(test), after.predict(test), strict=True))
    for one, other in pairs:
        assert one.variant == other.variant
        for field, value in vars(one.prediction).items():
            mine = getattr(other.prediction, field)
            flat = ((each.values() if isinstance(each, dict) else [each]) for each in (value, mine))
            for first, second in zip(*flat, strict=True):
                if isinstance(first, np.ndarray) and first.dtype.kind == "f":
                    np.testing.assert_allclose(first, second, atol=1e-6)
    assert pairs


@pytest.fixture
def transformer(monkeypatch: pytest.MonkeyPatch) -> CheckpointEncoder:
    """A random transformer in place of whatever --checkpoint names."""
    made = random_transformer()
    monkeypatch.setattr(probe.encoder, "load", lambda checkpoint, task: made)
    return made


def task(data: Path, *names: str, **changes) -> TaskConfig:
    """Settings of seconds on the tiny data set."""
    quick = {name: TuneConfig(lr=[1e-3], epochs=1, batch_size=16) for name in ("lora", "bitfit", "finetune")}
    quick |= {"segmentation": DecoderConfig(epochs=2), "stride": StrideConfig(1, 1, 1), "draws": 20, "pictures": 1}
    return TaskConfig(data=str(data), size=48, probes=list(names), **(quick | changes))


def predictions_of(task: TaskConfig, folder: Path, name: str, encoder: FrozenEncoder) -> Prediction:
    """What the head `name` of a probe's folder says of the test patients of the task's data."""
    stored = head.read(folder / name)
    examples = sources.load(task, folder / "cache")
    blocks = registry.blocks([stored.probe], stored.head.task, encoder.depth)
    found = features.extract(encoder, examples, stored.head.task, folder / "cache", blocks)
    base = Base(examples, found, stored.head.task, folder / "cache", encoder.window, stored.head.sequences or None)
    test = Cohort("test", base, np.flatnonzero(examples.splits == "test"))
    (outcome,) = stored.fitted(encoder, folder / "cache").predict(test)
    return outcome.prediction


@pytest.mark.parametrize("kind", ["segmentation", "multilabel"])
def test_an_encoder_that_was_trained_further_is_kept_as_what_was_trained(
    kind: str, tiny_dataset, transformer: CheckpointEncoder, tmp_path: Path
) -> None:
    """LoRA, BitFit and full fine-tuning: the test figures again to 1e-6; the small ones without the frozen encoder."""
    data = tiny_dataset(patients={"train": 4, "val": 2, "test": 2}, slices=4)
    settings = task(data, "lora", "bitfit", "finetune", kind=kind)
    probe.run("any", settings, tmp_path / "out")
    _, written = results.read_predictions(tmp_path / "out")
    size = {}
    for name in settings.probes:
        again, before = predictions_of(settings, tmp_path / "out", name, random_transformer()), written[name]
        if kind == "multilabel":
            np.testing.assert_allclose(again.scores, before.scores, atol=1e-6)
        for metric, values in getattr(before, "values", {}).items():
            np.testing.assert_allclose(again.values[metric], values, atol=1e-6, err_msg=f"{name} {metric}")
        size[name] = (tmp_path / "out" / "heads" / name / "head.safetensors").stat().st_size
    assert size["finetune"] > 4 * sum(each.numel() for each in transformer.model.parameters())
    assert size["lora"] < 0.6 * size["finetune"] and size["bitfit"] < 0.6 * size["finetune"]


def test_a_probe_keeps_its_heads_with_a_card(tiny_dataset, transformer, tmp_path: Path, capsys) -> None:
    """Patients by salted hash, figures, choices, encoder; what is not kept is said; no path of this machine inside."""
    data = tiny_dataset(patients={"train": 5, "val": 2, "test": 2}, slices=6)
    settings = task(data, "knn", "logistic", "region", "segmentation")
    rows = probe.run("any", settings, tmp_path / "out")
    said = capsys.readouterr().err
    assert "heads kept for meddap predict: knn, logistic, segmentation" in said
    assert "region: its head is not kept: it names structures under masks that are given" in said
    assert sorted(each.name for each in (tmp_path / "out" / "heads").iterdir()) == ["knn", "logistic", "segmentation"]
    stored = head.read(tmp_path / "out" / "logistic")
    examples = sources.load(settings, tmp_path / "cache")
    seen = np.unique(examples.subjects[examples.splits != "test"])
    assert stored.head.training == tuple(seen) and stored.head.patients == {"train": 5, "val": 2, "test": 2}
    assert set(stored.digests) == set(examples.digests[examples.splits != "test"])
    (row,) = [
        row for row in rows if row["probe"] == "logistic" and row["metric"] == "auroc" and row["label"] == "macro"
    ]
    kept = {key: value for key, value in row.items() if key != "checkpoint"}
    assert kept in stored.head.figures and stored.head.choices == row["chosen_on_val"]
    text = (tmp_path / "out" / "heads" / "logistic" / "card.md").read_text()
    for word in (transformer.digest, f"{row['value']:.3f}", "5 train, 2 val, 2 test", "medical device"):
        assert word in text
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in (tmp_path / "out" / "heads").rglob("*.*"))


def test_folds_keep_a_head_each(tiny_dataset, transformer, tmp_path: Path) -> None:
    """k-fold: a head for every fold, each with its own training patients."""
    data = tiny_dataset(patients={"train": 6, "val": 3, "test": 3}, slices=6)
    split = TaskSplitConfig(by="kfold", folds=3)
    probe.run("any", task(data, "logistic", split=split), tmp_path / "out")
    with pytest.raises(SettingsError, match="holds the heads logistic-fold1, logistic-fold2, logistic-fold3; name one"):
        head.read(tmp_path / "out")
    seen = [set(head.read(tmp_path / "out" / f"logistic-fold{number}").head.training) for number in (1, 2, 3)]
    assert all(len(each) == 8 for each in seen) and len(seen[0] | seen[1]) == 12


def test_a_head_that_cannot_be_used_is_one_line(tiny_dataset, transformer, tmp_path: Path) -> None:
    """Missing, another encoder, another window, damaged, another version, too large to keep."""
    data = tiny_dataset(patients={"train": 5, "val": 2, "test": 2}, slices=6)
    out = tmp_path / "out"
    probe.run("any", task(data, "logistic"), out)
    with pytest.raises(SettingsError, match="no fitted head there; name a folder that meddap probe wrote"):
        head.read(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="knn: no such head; there are logistic"):
        head.read(out / "knn")
    stored = head.read(out)  # the only one
    with pytest.raises(SettingsError, match="random: other weights than the head logistic was fitted on"):
        stored.fitted(random_transformer(seed=1), tmp_path)
    narrow = random_transformer()
    narrow.window = (-100.0, 200.0)
    with pytest.raises(SettingsError, match="another window"):
        stored.fitted(narrow, tmp_path)
    card = out / "heads" / "logistic" / "head.json"
    record = json.loads(card.read_text())
    for change, words in (({"version": 99}, "version 99"), ({"probe": "magic"}, "'magic' is unknown")):
        card.write_text(json.dumps(record | change))
        with pytest.raises(FileError, match=words):
            head.read(out)
    card.write_text(json.dumps(record | {"task": record["task"] | {"sise": 3}}))
    with pytest.raises(SettingsError, match="unknown key sise"):
        head.read(out)
    card.write_text(card.read_text()[:-100])
    with pytest.raises(FileError, match="head.json: cut or damaged"):
        head.read(out)
    card.write_text(json.dumps(record))
    arrays = out / "heads" / "logistic" / "head.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-8] + bytes(8))
    with pytest.raises(FileError, match="head.safetensors: damaged, or of another head"):
        head.read(out)
    for change in ({"head_gb": 1e-9}, {"keep_heads": False}):
        probe.run("any", task(data, "logistic"), tmp_path / "small")
        assert head.read(tmp_path / "small").head.name == "logistic"
        probe.run("any", task(data, "logistic", **change), tmp_path / "small")  # its results are of another head
        with pytest.raises(SettingsError, match="no fitted head there"):
            head.read(tmp_path / "small")
