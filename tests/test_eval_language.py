"""Encoders with text towers: the references' own logits, prompts, zero-shot rows beside those of every probe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cohorts import fitted, made_up
from helpers.golden import GOLDEN
from helpers.towers import (
    SHAPES,
    made_up_language,
    open_clip_folder,
    pictures_of_shapes,
    save_tokenizer,
    trained_clip,
    two_towers,
)
from safetensors.torch import load_file

from eval import probe, report, sweep
from eval.config import TaskConfig, ZeroShotConfig
from eval.data import features
from eval.data.examples import Picture
from eval.encoders import encoder, language
from eval.probes import prompts
from eval.reporting import comparison
from meddap.settings import SettingsError, load
from pretrain.weights.published import WeightsError

pytest.importorskip("transformers")
LABELS = ["a bright square", "dark healthy tissue", "lesion"]


def task(**changes) -> TaskConfig:
    return TaskConfig(data="none", bf16=False, **changes)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_probabilities_are_those_of_transformers_own_pipeline(kind: str, tmp_path: Path) -> None:
    """The same picture and labels through zero-shot-image-classification: equal to 1e-5, logits of the model too."""
    import transformers
    from PIL import Image

    model = two_towers(kind, tmp_path)
    grey = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    colours = Image.fromarray(np.stack([grey] * 3, axis=-1))
    own = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    processor = transformers.CLIPImageProcessorPil(do_resize=False, do_center_crop=False, **own)
    pipeline = transformers.ZeroShotImageClassificationPipeline(
        model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path), image_processor=processor
    )
    found = {row["label"]: row["score"] for row in pipeline(colours, LABELS, hypothesis_template="{}")}
    mine = encoder.load(str(tmp_path), task())
    tower = language.of(mine)
    assert not isinstance(tower, str) and tower.sigmoid == (kind == "siglip")
    tokens = features.encode(mine, [Picture(grey[None], ("x",), "unit8", (0, 32, 0, 32))], 32, [-1])
    logits = tower.logits(tower.images(tokens[0][0]), tower.texts(LABELS))[0]
    scores = logits.sigmoid() if tower.sigmoid else logits.softmax(dim=0)
    np.testing.assert_allclose(scores, [found[label] for label in LABELS], atol=1e-5)
    inputs = pipeline.preprocess(colours, LABELS, hypothesis_template="{}")
    with torch.inference_mode():
        theirs = model(pixel_values=inputs["pixel_values"], **inputs["text_inputs"][0]).logits_per_image[0]
    torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=1e-5)


def test_biomedclips_layout_gives_open_clips_numbers(tmp_path: Path) -> None:
    """Tokens, image features, text features and logits of open_clip itself on the same weights: to 1e-5."""
    open_clip_folder(tmp_path)
    save_tokenizer(tmp_path, ("[CLS]", "[SEP]"))
    theirs = load_file(GOLDEN / "biomedclip_towers.safetensors")
    mine = encoder.load(str(tmp_path), task())
    tower = language.of(mine)
    assert not isinstance(tower, str) and mine.patch_size == 8 and mine.depth == 2 and tower.width == 24
    ((cls, patches),) = mine.features(mine.prepare(theirs["images"]), [-1])
    torch.testing.assert_close(torch.cat([cls[:, None], patches], dim=1), theirs["tokens"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tower.project(cls), theirs["image_features"], atol=1e-5, rtol=1e-4)
    asked = task(windows=[[-1000.0, 0.0], [-160.0, 240.0], [0.0, 500.0]], windows_as="channels")
    three = encoder.load(str(tmp_path), asked)  # its three channels, for as many windows of a slice
    ((same, _),) = three.features(three.prepare(theirs["images"].repeat(1, 3, 1, 1)), [-1])
    torch.testing.assert_close(same, cls, atol=1e-5, rtol=1e-4)
    words = {number: word for word, number in tokenizer_words(tmp_path).items()}
    texts = [" ".join(words[int(each)] for each in row if int(each) > 3) for row in theirs["ids"]]
    torch.testing.assert_close(tower.encode(texts), theirs["text_features"], atol=1e-5, rtol=1e-4)
    logits = tower.logits(tower.images(cls), tower.texts(texts))  # scaled by 20
    torch.testing.assert_close(logits, theirs["logits"], atol=1e-4, rtol=1e-4)


def tokenizer_words(folder: Path) -> dict[str, int]:
    """Words by number, of a tokenizer's file."""
    words: dict[str, int] = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return words


def test_what_a_folder_of_two_towers_lacks_is_said(tmp_path: Path) -> None:
    """No tokenizer, one of another model, a text too long, another pooling, weights that are missing or not finite."""
    two_towers("clip", tmp_path / "clip")
    assert language.of(encoder.load("pixels", task())) == "it has no text tower"
    (tmp_path / "clip" / "tokenizer.json").unlink()
    assert "clip holds no tokenizer; copy tokenizer.json" in language.lacking(
        encoder.load(str(tmp_path / "clip"), task())
    )
    save_tokenizer(tmp_path / "clip", ("[BOS]", "[EOS]"), [f"word{number}" for number in range(60)])
    tower = language.of(encoder.load(str(tmp_path / "clip"), task()))
    with pytest.raises(SettingsError, match="its tokenizer is of another model: the text tower knows"):
        tower.texts(["word59"])
    with pytest.raises(SettingsError, match="102 tokens, the text tower takes 64; shorten it"):
        tower.texts(["word1 " * 100])
    folder = tmp_path / "bio"
    folder.mkdir()
    open_clip_folder(folder)
    assert "bio holds no tokenizer" in language.lacking(encoder.load(str(folder), task()))
    file = folder / "open_clip_config.json"
    said = json.loads(file.read_text())
    said["model_cfg"]["text_cfg"]["hf_pooler_type"] = "max_pooler"
    file.write_text(json.dumps(said))
    assert "pools by max_pooler" in language.lacking(encoder.load(str(folder), task()))
    file.write_text("{}")
    with pytest.raises(WeightsError, match="open_clip_config.json: no model_cfg"):
        encoder.load(str(folder), task())
    open_clip_folder(folder)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds neither of open_clip_model.safetensors"):
        encoder.load(str(folder), task())


def test_images_are_normalised_as_the_folder_says_in_either_file(tmp_path: Path, caplog) -> None:
    """preprocessor_config.json, or the processor_config.json that transformers 5 writes for both towers; without either
    ImageNet's statistics are taken, with a warning."""
    import transformers

    two_towers("clip", tmp_path)
    assert encoder.preprocessing(encoder.load(str(tmp_path), task()), 32)["mean"] == [0.5, 0.4, 0.3]
    (tmp_path / "preprocessor_config.json").unlink()
    assert not caplog.records
    assumed = encoder.load(str(tmp_path), task())
    assert encoder.preprocessing(assumed, 32)["mean"] == [0.485, 0.456, 0.406]
    assert "says no mean and deviation of images; ImageNet's are taken" in caplog.text
    caplog.clear()
    images = transformers.CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    transformers.CLIPProcessor(image_processor=images, tokenizer=words).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    found = encoder.load(str(tmp_path), task())
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) and not caplog.records


def test_another_text_tower_is_another_encoder(tmp_path: Path) -> None:
    """What is said in words depends on the text tower: the digest does, so that results are not mixed up."""
    model = two_towers("clip", tmp_path)
    first = encoder.load(str(tmp_path), task()).digest
    with torch.no_grad():
        model.text_projection.weight.add_(0.1)
    model.save_pretrained(tmp_path)
    assert encoder.load(str(tmp_path), task()).digest != first
    with torch.no_grad():
        model.text_projection.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="text_projection.weight holds NaN or infinity"):
        encoder.load(str(tmp_path), task())


def test_phrases_templates_and_attributes_make_texts() -> None:
    """Every phrase in every template; attributes in all combinations, for the classes that have them; names without
    prompts; absence from templates without attributes."""
    asked = task(
        prompts={"cyst": ["cyst", "fluid"]},
        templates=["scan of {}", "a {shape} {colour} {}"],
        attributes={"cyst": {"shape": ["round", "oval"], "colour": ["dark"]}},
        absent_prompts={"left_lung": ["bare chest"]},
        absence="without {}",
    )
    said = prompts.of_task(asked, ["cyst", "left_lung"])
    round_, oval = (f"a {shape} dark" for shape in ("round", "oval"))
    assert set(said.present[0]) == {
        *("scan of cyst", "scan of fluid"),
        *(f"{shape} {phrase}" for shape in (round_, oval) for phrase in ("cyst", "fluid")),
    }
    assert said.present[1] == ("scan of left lung",) and len(said) == 7
    assert said.absent == (("scan of without cyst", "scan of without fluid"), ("scan of bare chest",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": {"cist": ["x"]}}, "prompts.cist: the task has no such class or label; it has cyst, mass"),
        ({"templates": ["a scan"]}, "'a scan' says nothing of a class"),
        ({"templates": ["a {"]}, "templates: 'a {'"),
        ({"templates": ["a {:>5}"]}, "write {} or {attribute}"),
        ({"templates": ["a {shape} {}"]}, "no class has attributes.CLASS.shape"),
        ({"attributes": {"cyst": {"shape": ["round"]}}}, "no template has {shape}"),
        (
            {"templates": ["a {shape} {}"], "attributes": {"cyst": {"shape": ["round"]}}},
            "none can be filled for mass",
        ),
    ],
)
def test_prompts_that_say_nothing_are_refused(changes: dict, words: str) -> None:
    """One line with key and value."""
    with pytest.raises(SettingsError) as caught:
        prompts.of_task(task(**changes), ["cyst", "mass"])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_example_says_what_it_should() -> None:
    """eval/configs/pneumonia_zero_shot.yaml: phrases alone, in a template, and an opacity in all its forms."""
    file = Path(probe.__file__).parent / "configs" / "pneumonia_zero_shot.yaml"
    said = prompts.of_task(load(TaskConfig, file, ["data=none"]), ["positive"])
    assert len(said) == 2 + 2 + 4 and "a chest radiograph of clear lungs" in said.absent[0]
    assert "a chest radiograph with a patchy white opacity in the lower lobe" in said.present[0]


def test_an_ensemble_is_the_mean_of_unit_features() -> None:
    """By hand: long features do not outweigh short ones."""
    tower = made_up_language(4)
    long = replace(tower, encode=lambda texts: tower.encode(texts) * torch.tensor([[len(text)] for text in texts]))
    parts = [torch.nn.functional.normalize(tower.encode([text]), dim=1)[0] for text in ("one", "eleven")]
    wanted = (parts[0] + parts[1]) / 2
    found = prompts.ensemble(long, [["one", "eleven"], ["one"]])
    torch.testing.assert_close(found, torch.stack([wanted / wanted.norm(), parts[0]]))


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass", "anomaly", "segmentation"])
def test_labels_are_scored_as_the_towers_were_trained(kind: str, tmp_path: Path) -> None:
    """Softmax over classes; against absence; a SigLIP's label by itself unless absence is named: by hand to 1e-6."""
    base = made_up(kind)
    cls = torch.from_numpy(base.features.cls[:, -1])
    tower = made_up_language(cls.shape[1])
    for sigmoid, given in ((False, {}), (True, {}), (True, {"absent_prompts": {base.examples.names[0]: ["none"]}})):
        asked = replace(base, task=replace(base.task, templates=["{}"], **given))
        mine = replace(tower, sigmoid=sigmoid, bias=-1.0 if sigmoid else 0.0)
        made, test = fitted("zero_shot", asked, tmp_path, mine)
        rows = [list(base.examples.keys).index(key) for key in test.keys]
        names = base.examples.names
        logits = mine.logits(mine.images(cls[rows]), mine.texts(names))
        if kind == "multiclass":
            wanted = logits.softmax(dim=1)
        else:
            absent = [(given.get("absent_prompts") or {}).get(name, [f"no {name}"])[0] for name in names]
            against = mine.logits(mine.images(cls[rows]), mine.texts(absent))
            wanted = logits.sigmoid() if sigmoid and not given else (logits - against).sigmoid()
        (outcome,) = made.predict(test)
        np.testing.assert_allclose(outcome.prediction.scores[0], wanted, atol=1e-6)
    pair = replace(base, task=replace(base.task, zero_shot=ZeroShotConfig("pair")))
    scored = fitted("zero_shot", pair, tmp_path, replace(tower, sigmoid=True))[0].choices["scored"]
    assert scored == ("against the other classes" if kind == "multiclass" else "against its absence")


def test_a_volume_is_scored_by_the_mean_or_the_maximum_of_its_slices(tmp_path: Path) -> None:
    """Logits of slices, pooled as the task says."""
    base = made_up("binary", "volume")
    tower = made_up_language(base.features.cls.shape[2])
    found = {}
    for how in ("mean", "max"):
        made, test = fitted("zero_shot", replace(base, task=replace(base.task, pool=how)), tmp_path, tower)
        slices = made.logits(test)[:, 0]
        each = [getattr(slices[test.unit == unit], how)() for unit in range(len(test))]
        found[how] = made.predict(test)[0].prediction.scores[0][:, 0]
        np.testing.assert_allclose(found[how], 1 / (1 + np.exp(-np.array(each, np.float64))), atol=1e-6)
    assert (found["max"] > found["mean"]).all()


def test_shapes_are_named_by_a_model_that_learned_them_and_stand_in_one_table(tmp_path: Path, capsys) -> None:
    """A tiny CLIP that saw captions beats chance without a label, by the bound of its interval; one that did not is at
    chance; an encoder without words has its other rows, and one line says why this one is missing."""
    data = pictures_of_shapes(tmp_path / "data")
    trained_clip(tmp_path / "trained")
    two_towers("clip", tmp_path / "untrained", seed=3)
    file = tmp_path / "task.yaml"
    file.write_text(
        f"data: {data}\nname: shapes\nsource: folders\nkind: multiclass\nsize: 32\nprobes: [knn, zero_shot]\n"
        "metrics: [auroc, accuracy]\ndraws: 200\nbf16: false\nprompts: {disc: [disc], ring: [ring]}\n"
        "templates: ['{}', 'the scan with a {}', 'a {} on the {place}']\n"
        "attributes: {disc: {place: [left, right]}, ring: {place: [left, right]}}\n"
    )

    def rows_of(checkpoint: str) -> dict[tuple[str, str], dict]:
        out = tmp_path / "out" / Path(checkpoint).name
        assert probe.main(["--checkpoint", checkpoint, "--task", str(file), "--output", str(out)]) == 0
        written = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        return {(row["probe"], row["metric"]): row for row in written if row["label"] in ("macro", "all")}

    good, bad = rows_of(str(tmp_path / "trained")), rows_of(str(tmp_path / "untrained"))
    chance, figure = 1 / len(SHAPES), bad["zero_shot", "accuracy"]
    assert good["zero_shot", "accuracy"]["low"] > max(chance + 0.2, figure["high"])
    assert figure["low"] < chance < figure["high"]
    row = good["zero_shot", "auroc"]
    assert row["chosen_on_val"] == {"texts": 2 + 4 + 4, "scored": "against the other classes"}
    assert row["preprocessing"]["channels"] == 3 and row["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert row["patients"] == good["knn", "auroc"]["patients"] == 60
    capsys.readouterr()
    floor = rows_of("pixels")
    assert {name for name, _ in floor} == {"knn"}
    assert "zero_shot: no row for pixels: it has no text tower" in capsys.readouterr().err
    out = tmp_path / "out"
    pairs = comparison.compare(out / "pixels", out / "trained")
    assert {row["probe"] for row in pairs} == {"knn"}  # what both have
    checkpoints = ["pixels", str(tmp_path / "trained")]
    settings = load(TaskConfig, file, [])
    board = sweep.run(sweep.plan(checkpoints, [32], settings, tmp_path / "sweep"), str(file), [])
    places = {(row["name"], row["probe"]): row["parameters"] for row in board}
    assert places["trained", "knn"] == places["trained", "zero_shot"] > 10_000 and ("pixels", "zero_shot") not in places
    assert "| trained |" in sweep.table(board)
    runs = [str(out / name) for name in ("pixels", "trained")]
    assert report.main(["--runs", *runs, "--output", str(tmp_path / "report.html")]) == 0
    assert "zero_shot" in (tmp_path / "report.html").read_text()
    with pytest.raises(SettingsError, match="zero_shot: no row for pixels: it has no text tower; name a probe"):
        probe.run("pixels", task(source="folders", kind="multiclass", probes=["zero_shot"]), tmp_path / "none")
