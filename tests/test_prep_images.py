"""Pictures and radiographs as shards: every value again, shown as the header says, under their patient and class."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import radiographs
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import RLELossless

from data_prep import overview, schema, shard_images, verify
from data_prep.config import ImagesConfig
from data_prep.discovery.archive import Source
from data_prep.discovery.inputs import Inputs
from data_prep.discovery.studies import Series
from data_prep.sharding import description
from data_prep.sharding.convert_images import convert
from data_prep.sharding.staging import Job, guarded, read_record
from data_prep.volumes import pictures

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def salted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDAP_SALT", "tests")


def sharded(tmp_path: Path, *words: str, status: int = 0) -> Path:
    """Shard tmp_path/in; the output verifies."""
    output = tmp_path / "out"
    assert shard_images.main(["--input", str(tmp_path / "in"), "--output", str(output), *words]) == status
    if not status:
        assert verify.main([str(output)]) == 0
    return output


def samples(output: Path) -> list[schema.Slice]:
    """Every sample of a data set."""
    splits = schema.read_dataset(output)["splits"]
    return [split[number] for split in (schema.Split(output, name) for name in splits) for number in range(len(split))]


def decoded(sample: schema.Slice) -> np.ndarray:
    """The values that a sample's pixels stand for, (S, H, W)."""
    return np.stack([plane * slope + intercept for plane, (slope, intercept) in zip(sample.pixels, sample.scales)])


def unit(sample: schema.Slice) -> np.ndarray:
    """What a network sees of the first plane, 0…1."""
    low, high = schema.span(sample.sequences[0], (0, 1))
    return np.clip((schema.signed(sample.pixels[0].copy()) - low) / (high - low), 0, 1)


def grey(height: int = 20, width: int = 30, most: int = 255, kind: type = np.uint8) -> np.ndarray:
    """Random values, 0 and the largest among them."""
    values = RNG.integers(0, most + 1, (height, width)).astype(kind)
    values[0, :2] = 0, most
    return values


def save(path: Path, values: np.ndarray) -> np.ndarray:
    """Write a picture; return its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def rejected(output: Path) -> list[str]:
    """The reasons of the manifest's rows of what was left out."""
    return sorted(row["reason"] for row in description.read_manifest(output) if row["status"] == "rejected")


def test_pictures_keep_their_values(tmp_path: Path) -> None:
    """8 bits, 12 bits in 16, a page after the other, negative values; each file is a patient; names are nowhere."""
    written = [
        save(tmp_path / "in" / "JaneDoe.png", grey()),
        save(tmp_path / "in" / "deep.tif", grey(9, 9, 4095, np.uint16)),
    ]
    written.append(save(tmp_path / "in" / "low.tif", grey(9, 9, 900, np.int32) - 500))
    pages = [grey(12, 12), grey(12, 12)]
    Image.fromarray(pages[0]).save(tmp_path / "in" / "m.tif", save_all=True, append_images=[Image.fromarray(pages[1])])
    (tmp_path / "in" / "readme.txt").write_text("no picture")
    (tmp_path / "in" / "damaged.png").write_bytes((tmp_path / "in" / "JaneDoe.png").read_bytes()[:100])
    save(tmp_path / "in" / "flat.png", np.full((9, 9), 7, np.uint8))
    output = sharded(tmp_path, "sequence=xray")
    assert overview.main([str(output)]) == 0
    found = samples(output)
    assert {sample.sequences for sample in found} == {("xray",)} and len({s.subject for s in found}) == 4
    values = [np.rint(decoded(sample)[0]) for sample in found]
    for expected in [*written, *pages]:
        assert any(np.array_equal(each, expected) for each in values)
    assert rejected(output) == ["all its pixels have one value", "cannot be read as an image (it is cut short)"]
    orders = sorted(sample.order for sample in found if sample.pixels.shape[1:] == (12, 12))
    assert orders == [0, 1]
    written_bytes = b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
    assert b"JaneDoe" not in written_bytes and b"deep.tif" not in written_bytes


@pytest.mark.parametrize(
    ("stored", "attributes"),
    [
        (grey(most=4095, kind=np.uint16), {"WindowCenter": 2000, "WindowWidth": 3000}),
        (grey(most=4095, kind=np.uint16), {"WindowCenter": [1500, 9], "WindowWidth": [2000, 2]}),
        (
            grey(most=4095, kind=np.uint16),
            {"WindowCenter": 2000, "WindowWidth": 3000, "VOILUTFunction": "LINEAR_EXACT"},
        ),
        (grey(most=4095, kind=np.uint16), {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"}),
        (
            grey(most=4095, kind=np.uint16),
            {"WindowCenter": 3500, "WindowWidth": 6000, "RescaleSlope": 2, "RescaleIntercept": 10},
        ),
        (grey(most=255), {"WindowCenter": 128, "WindowWidth": 256}),
        (grey(most=4095, kind=np.uint16).astype(np.int16) - 1000, {"WindowCenter": 500, "WindowWidth": 3000}),
    ],
)
@pytest.mark.parametrize("inverted", [False, True])
def test_radiographs_are_shown_as_their_header_says(
    tmp_path: Path, stored: np.ndarray, attributes: dict, inverted: bool
) -> None:
    """As pydicom shows them, within one of 2,048 greys; MONOCHROME1 inverted; linear windows cut no value."""
    if inverted:
        attributes = {**attributes, "PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    made = radiographs.dataset(stored, **attributes)
    radiographs.write(tmp_path / "in" / "x.dcm", stored, **attributes)
    (sample,) = samples(sharded(tmp_path))
    modality = apply_modality_lut(stored, made)
    shown = apply_voi_lut(modality, made).astype(float)
    signed = stored.dtype.kind == "i"
    low = float(made.get("RescaleIntercept", 0)) - (1 << made.BitsStored - 1) * signed
    expected = (shown - low) / (float(made.get("RescaleSlope", 1)) * ((1 << made.BitsStored) - 1))
    assert np.abs(unit(sample) - (1 - expected if inverted else expected)).max() < 1 / 2048
    if attributes.get("VOILUTFunction") != "SIGMOID":
        assert np.abs(decoded(sample)[0] - modality).max() < 0.51
    assert sample.spacing == (0.2, 0.2) and sample.meta["view"] == "PA" and sample.meta["body_part"] == "CHEST"


def test_lookup_tables_of_the_header(tmp_path: Path) -> None:
    """A modality LUT, then a VOI LUT: what pydicom makes of them, on the whole grey scale."""
    stored = grey(most=255, kind=np.uint16)
    luts = {}
    for name, values in (
        ("ModalityLUTSequence", np.arange(256) ** 2 // 16),
        ("VOILUTSequence", np.linspace(0, 1, 4096) ** 0.5 * 1023),
    ):
        item = Dataset()
        item.LUTDescriptor = [len(values), 0, 16 if name[0] == "M" else 10]
        item.LUTData = values.astype("<u2").tobytes()
        item["LUTData"].VR = "OW"
        luts[name] = [item]
    luts["ModalityLUTSequence"][0].ModalityLUTType = "US"
    made = dcmread(radiographs.write(tmp_path / "in" / "x.dcm", stored, **luts))
    (sample,) = samples(sharded(tmp_path))
    expected = apply_voi_lut(apply_modality_lut(stored, made), made) / 1023
    assert np.abs(unit(sample) - expected).max() < 1e-3 and len(np.unique(unit(sample))) > 100


def test_a_radiograph_without_a_file_header(tmp_path: Path) -> None:
    """Implicit data from the first element on, with a modality LUT: the same as with its header."""
    stored, item = grey(most=255, kind=np.uint16), Dataset()
    item.LUTDescriptor, item.LUTData = [256, 0, 16], list(range(0, 512, 2))
    item["LUTData"].VR, item.ModalityLUTType = "US", "US"
    made = dcmread(radiographs.write(tmp_path / "in" / "x.dcm", stored, ModalityLUTSequence=[item]))
    dcmwrite(tmp_path / "in" / "y.dcm", made, implicit_vr=True, little_endian=True, force_encoding=True)
    content = (tmp_path / "in" / "y.dcm").read_bytes()
    (tmp_path / "in" / "y.dcm").write_bytes(content[content.index(b"\x08\0\x08\0") :])
    first, second = samples(sharded(tmp_path))
    assert np.array_equal(first.pixels, second.pixels) and np.array_equal(np.rint(decoded(first)[0]), 2 * stored)


def test_a_radiograph_without_a_window_is_scaled_by_what_was_exposed(tmp_path: Path) -> None:
    """Percentiles of the pixels beside the padding; padding is black, in MONOCHROME1 too; radiographs.window=range."""
    stored = RNG.integers(1000, 3000, (40, 40)).astype(np.uint16)
    stored[:10] = 4095
    for name, more in (
        ("a", {}),
        ("b", {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}),
    ):
        window = {"WindowCenter": 3000, "WindowWidth": 3000}
        radiographs.write(tmp_path / "in" / f"{name}.dcm", stored, name * 3, PixelPaddingValue=4095, **window, **more)
    found = samples(sharded(tmp_path, "radiographs.window=range"))
    assert len(found) == 2
    for sample in found:
        seen = unit(sample)
        assert (seen[:10] == seen[10:].min()).all() and seen[10:].min() < 0.02 and seen.max() > 0.98
        assert np.array_equal(np.rint(decoded(sample)[0][10:]), stored[10:])


def test_compressed_and_multi_frame_images(tmp_path: Path) -> None:
    """RLE gives the same pixels; every second frame of a run of five; ultrasound in colour if asked for."""
    stored = grey(most=4095, kind=np.uint16)
    radiographs.write(tmp_path / "in" / "rle.dcm", stored, "rle", RLELossless)
    run = np.stack([grey() for _ in range(5)])
    radiographs.write(tmp_path / "in" / "run.dcm", run, "run", Modality="RF")
    colours = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    radiographs.write(tmp_path / "in" / "us.dcm", colours, "us", Modality="US")
    output = sharded(tmp_path, "frame_stride=2", "radiographs.modalities=[DX,RF,US]")
    found = samples(output)
    assert any(np.array_equal(np.rint(decoded(sample)[0]), stored) for sample in found)
    frames = sorted((each for each in found if each.meta["modality"] == "RF"), key=lambda each: each.order)
    assert [np.rint(decoded(each)[0]).tolist() for each in frames] == [run[n].tolist() for n in (0, 2, 4)]
    (us,) = (sample for sample in found if sample.meta["modality"] == "US")
    assert np.array_equal(np.rint(decoded(us)[0]), pictures.grey(colours))


@pytest.mark.parametrize(
    ("attributes", "reason", "word"),
    [
        (
            {"PhotometricInterpretation": "MONOCHROME1"},
            "PhotometricInterpretation MONOCHROME1 against PresentationLUTShape IDENTITY; radiographs.polarity="
            "photometric or shape says which counts",
            "radiographs.polarity=shape",
        ),
        (
            {"PresentationIntentType": "FOR PROCESSING"},
            "raw image FOR PROCESSING; radiographs.for_processing=keep takes it",
            "radiographs.for_processing=keep",
        ),
        (
            {"WindowCenter": 60000, "WindowWidth": 10},
            "its window shows 0% of its pixels; radiographs.window=range takes `range`",
            "radiographs.window=range",
        ),
        (
            {"Modality": "US"},
            "modality US; radiographs.modalities names those that are taken",
            "radiographs.modalities=[US]",
        ),
        (
            {"BurnedInAnnotation": "YES"},
            "BurnedInAnnotation is YES; stacks.burned_in=keep takes it",
            "stacks.burned_in=keep",
        ),
    ],
)
def test_what_is_refused_can_be_taken(tmp_path: Path, attributes: dict, reason: str, word: str) -> None:
    """One reason with the setting that takes it, and the setting does; the rest of the folder is not lost."""
    stored = grey(most=4095, kind=np.uint16)
    radiographs.write(tmp_path / "in" / "x.dcm", stored, **attributes)
    save(tmp_path / "in" / "other.png", grey())
    assert rejected(sharded(tmp_path)) == [reason]
    (tmp_path / "out").rename(tmp_path / "before")
    assert len(samples(sharded(tmp_path, word))) == 2


def test_damaged_radiographs_cost_themselves_only(tmp_path: Path) -> None:
    """Cut in the pixels, cut in the header, 16 bits of which 12 are left-justified, a CT, a text named .dcm."""
    stored = grey(most=4095, kind=np.uint16)
    whole = radiographs.write(tmp_path / "in" / "a.dcm", stored).read_bytes()
    (tmp_path / "in" / "b.dcm").write_bytes(whole[: len(whole) - 300])
    (tmp_path / "in" / "c.dcm").write_bytes(whole[:400])
    radiographs.write(tmp_path / "in" / "d.dcm", stored, HighBit=15)
    radiographs.write(tmp_path / "in" / "e.dcm", stored, Modality="CT")
    (tmp_path / "in" / "f.dcm").write_text("no image")
    output = sharded(tmp_path)
    assert len(samples(output)) == 1 and len(rejected(output)) == 5
    assert not any("a.dcm" in reason or "\n" in reason for reason in rejected(output))


def test_folders_are_splits_and_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """train and test as the folders say, a class for each folder, patients by a pattern; without them a line says what
    could be asked for."""
    for split, count in (("train", 12), ("test", 10)):
        for number in range(count):
            for name in ("NORMAL", "PNEUMONIA"):
                save(tmp_path / "in" / split / name / f"{split}person{number}_{name}.png", grey())
    output = sharded(tmp_path, "class_from=folder", "patient=(person\\d+)_", "split_from=hash")
    dataset = schema.read_dataset(output)
    assert dataset["classes"]["class"]["names"] == ["NORMAL", "PNEUMONIA"]
    assert sum(split["subjects"] for split in dataset["splits"].values()) == 12
    output.rename(tmp_path / "hash")
    capsys.readouterr()
    output = sharded(tmp_path)
    said = capsys.readouterr().err
    assert "44 of 44 pictures have no patient: each counts as one" in said
    assert "splits as the data name them: train 24, val 0, test 20; split_from=hash splits them anew" in said
    assert "2 folders hold all pictures: if they are classes, class_from=folder labels them" in said
    dataset = schema.read_dataset(output)
    assert {name: split["samples"] for name, split in dataset["splits"].items()} == {"train": 24, "val": 0, "test": 20}
    assert not dataset["classes"]
    (tmp_path / "out").rename(tmp_path / "none")
    assert sharded(tmp_path, "patient=(person\\d+)_", status=1)
    assert "10 of 12 patients lie in more than one split of the data's own" in capsys.readouterr().err


def test_labels_of_a_csv_meet_pictures_by_path_or_stem(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By the whole path, by the file's name, by its stem as the study; a column of the CSV named as the data's own is
    an error."""
    for name in ("a/1", "a/2", "b/3", "b/4"):
        save(tmp_path / "in" / f"{name}.png", grey())
    rows = "patient,study,sick\na/1.png,,yes\n2.png,,no\n,3,yes\n,b/4,no\n"
    (tmp_path / "labels.csv").write_text(rows)
    output = sharded(tmp_path, "--labels", str(tmp_path / "labels.csv"))
    assert sorted(sample.labels["sick"] for sample in samples(output)) == [0, 0, 1, 1]
    (tmp_path / "labels.csv").write_text(rows.replace("sick", "class"))
    output.rename(tmp_path / "first")
    sharded(tmp_path, "--labels", str(tmp_path / "labels.csv"), "class_from=folder", status=1)
    assert "class: a column of --labels, and of the data" in capsys.readouterr().err


def test_patients_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A folder for each picture is refused as classes: their names might be patients'."""
    for number in range(12):
        save(tmp_path / "in" / f"doe{number}" / "x.png", grey())
    sharded(tmp_path, "class_from=folder", status=1)
    assert "class: 12 classes of 12 pictures; are the folders classes?" in capsys.readouterr().err


def medmnist(path: Path, channels: tuple[int, ...] = (), columns: int = 1) -> dict[str, np.ndarray]:
    """Write a file in MedMNIST's form; return its arrays."""
    arrays = {}
    for split, count in (("train", 9), ("val", 4), ("test", 5)):
        arrays[f"{split}_images"] = RNG.integers(0, 256, (count, 10, 10, *channels)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count)[:, None] + np.arange(columns)) % 2
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.parametrize(("channels", "columns"), [((), 1), ((3,), 2)])
def test_medmnist_files(tmp_path: Path, channels: tuple[int, ...], columns: int) -> None:
    """Every image in its own split with its labels, and with the digests by which probes of the file find leaks."""
    from eval.config import TaskConfig
    from eval.data.sources import medmnist as source

    arrays = medmnist(tmp_path / "in" / "set.npz", channels, columns)
    output = sharded(tmp_path)
    names = ["class"] if columns == 1 else ["label 0", "label 1"]
    assert list(schema.read_dataset(output)["classes"]) == names
    kind = "binary" if columns == 1 else "multilabel"
    task = TaskConfig(name="t", source="medmnist", kind=kind, data=str(tmp_path / "in" / "set.npz"), probes=["knn"])
    digests = source.load(task, tmp_path).digests
    start = 0
    for name in schema.SPLITS:
        split = schema.Split(output, name)
        assert len(split) == len(arrays[f"{name}_images"])
        assert set(split.content().tolist()) == set(digests[start : start + len(split)].tolist())
        start += len(split)
        found = sorted((int(split[n].labels[names[0]]), decoded(split[n])[0, 0, 0].round()) for n in range(len(split)))
        if not channels:
            labels, images = arrays[f"{name}_labels"][:, 0], arrays[f"{name}_images"]
            assert found == sorted((int(label), float(image[0, 0])) for label, image in zip(labels, images))


def test_hostile_arrays(tmp_path: Path) -> None:
    """Objects that would run code, a cut file, other arrays, labels that are no classes: a row each."""
    arrays = medmnist(tmp_path / "in" / "good.npz")
    np.savez(tmp_path / "in" / "object.npz", **{**arrays, "train_labels": np.array([[object()]] * 9)})
    content = (tmp_path / "in" / "good.npz").read_bytes()
    (tmp_path / "in" / "cut.npz").write_bytes(content[: len(content) // 2])
    np.savez(tmp_path / "in" / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "in" / "float.npz", **{**arrays, "train_labels": np.zeros((9, 1))})
    output = sharded(tmp_path)
    assert len(samples(output)) == 18
    assert [reason.partition("(")[0] for reason in rejected(output)] == [
        "cannot be read as an .npz of plain arrays ",
        "cannot be read as an .npz of plain arrays ",
        "its labels are not whole numbers, so no classes",
        "lacks train_images, train_labels, val_images, val_labels, test_images, test_labels; expected a MedMNIST file",
    ]


def test_colours_are_three_channels_of_one_sequence_if_asked_for(tmp_path: Path) -> None:
    """Red, green and blue on one scale in one member, grey pictures beside them; refused by a setting."""
    colours = save(tmp_path / "in" / "c.png", RNG.integers(0, 256, (9, 9, 3)).astype(np.uint8))
    save(tmp_path / "in" / "g.png", grey(9, 9))
    output = sharded(tmp_path, "colour=keep")
    by_channels = {sample.channels: sample for sample in samples(output)}
    assert {sample.sequences for sample in by_channels.values()} == {("image",)} and set(by_channels) == {1, 3}
    coloured = by_channels[3]
    assert coloured.planes.shape == (1, 3, 9, 9)
    back = coloured.pixels * coloured.scales[0][0] + coloured.scales[0][1]
    assert np.array_equal(np.rint(back), np.moveaxis(colours, -1, 0))
    dataset = schema.read_dataset(output)
    assert dataset["channels"] == {"image": 3} and dataset["sequences"] == {"image": 2}
    rows = {row.get("channels", 1): row for row in description.read_manifest(output)}
    assert set(rows) == {1, 3} and rows[3]["slices"] == 1
    assert overview.main([str(output)]) == 0
    output.rename(tmp_path / "keep")
    assert rejected(sharded(tmp_path, "colour=refuse")) == ["in colour; colour=grey or keep takes it"]


def test_webdataset_reads_colours_as_one_member(tmp_path: Path) -> None:
    """A plain reader of tar files finds `image.b2`, three planes of uint16, and their number in the .json."""
    webdataset = pytest.importorskip("webdataset")
    colours = save(tmp_path / "in" / "c.png", RNG.integers(0, 256, (9, 7, 3)).astype(np.uint8))
    output = sharded(tmp_path, "colour=keep")
    (shard,) = [row["name"] for part in schema.read_dataset(output)["splits"].values() for row in part["shards"]]
    (sample,) = webdataset.WebDataset(str(output / shard), shardshuffle=False, empty_check=False)
    assert {"image.b2", "json"} == {key for key in sample if not key.startswith("__")}
    record, planes = json.loads(sample["json"]), np.empty((3, 9, 7), np.uint16)
    schema.decompress_into(sample["image.b2"], planes)
    (slope, intercept), *_ = record["scales"]
    assert record["channels"] == 3 and record["shape"] == [9, 7]
    assert np.array_equal(np.rint(planes * slope + intercept), np.moveaxis(colours, -1, 0))


def test_another_number_of_channels_than_stated_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """verify compares dataset.json with the samples; a sample of two channels is refused when it is read."""
    save(tmp_path / "in" / "c.png", RNG.integers(0, 256, (9, 9, 3)).astype(np.uint8))
    output = sharded(tmp_path, "colour=keep")
    dataset = json.loads((output / "dataset.json").read_text())
    (output / "dataset.json").write_text(json.dumps({**dataset, "channels": {}}))
    assert verify.main([str(output)]) == 1
    assert "image: its samples have up to 3 channels, dataset.json says 1" in capsys.readouterr().err
    sample = samples(output)[0]
    with pytest.raises(schema.SchemaError, match=r"are \(2, 9, 9\) uint16 of 2 channels, expected \(2, H, W\)"):
        schema.encode(replace(sample, pixels=sample.pixels[:2], channels=2))
    with pytest.raises(schema.SchemaError, match="2 channels; 1 and 3 are read"):
        schema.channels_in({"channels": 2})


def test_large_pictures_become_smaller(tmp_path: Path) -> None:
    """longest=50 halves a picture of 100 pixels, with its spacing, and leaves smaller ones; mm where they are known."""
    picture = np.add.outer(np.arange(100), np.arange(60)).astype(np.uint8)
    save(tmp_path / "in" / "a.png", picture)
    save(tmp_path / "in" / "b.png", grey(20, 30))
    radiographs.write(tmp_path / "in" / "c.dcm", picture)
    output = sharded(tmp_path, "longest=50")
    assert sorted(sample.pixels.shape for sample in samples(output)) == [(1, 20, 30), (1, 50, 30), (1, 50, 30)]
    spacings = {sample.spacing for sample in samples(output)}
    assert spacings == {(1.0, 1.0), (0.4, 0.4)}
    seen = next(sample for sample in samples(output) if sample.pixels.shape[1] == 50)
    halved = picture.reshape(50, 2, 30, 2).mean(axis=(1, 3))
    assert np.abs(decoded(seen)[0][2:-2, 2:-2] - halved[2:-2, 2:-2]).max() < 1
    output.rename(tmp_path / "first")
    output = sharded(tmp_path, "grid.in_plane_mm=0.8")
    assert [sample.pixels.shape for sample in samples(output)] == [(1, 25, 15)]
    assert set(rejected(output)) == {"its spacing is unknown, and grid.in_plane_mm needs it; longest=N needs none"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sequence=ct", "sequence=ct: take up to 16 small letters"),
        ("sequence=X.y", "sequence=X.y: take up to 16 small letters"),
        ("patient=(", "patient=(: not a regular expression"),
        ("label_maps={a: b}", "label_maps: does nothing for pictures, radiographs and PET; leave it out"),
        ("ignore=[3]", "ignore: does nothing for pictures, radiographs and PET; leave it out"),
        ("pet.top=0", "pet.top=0"),
        ("longest=0", "longest=0"),
        ("frame_stride=0", "frame_stride=0"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture, word: str, said: str) -> None:
    """One line that names the key."""
    save(tmp_path / "in" / "a.png", grey())
    sharded(tmp_path, word, status=1)
    assert said in capsys.readouterr().err


def test_a_second_start_and_parts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Finished before; other settings are refused; two parts hold what one start holds."""
    from data_prep import merge

    for number in range(8):
        save(tmp_path / "in" / f"{number}.png", grey())
    output = sharded(tmp_path)
    capsys.readouterr()
    sharded(tmp_path)
    assert "finished before, 8 slices" in capsys.readouterr().err
    sharded(tmp_path, "sequence=xray", status=1)
    assert "was begun with sequence=image, now xray" in capsys.readouterr().err
    for part in ("1/2", "2/2"):
        words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "parts"), f"part={part}"]
        assert shard_images.main(words) == 0
    assert merge.main([str(tmp_path / "parts")]) == 0 and verify.main([str(tmp_path / "parts")]) == 0
    whole, parts = (
        {json.dumps([s.key, s.subject, s.pixels.tolist()]) for s in samples(root)}
        for root in (output, tmp_path / "parts")
    )
    assert whole == parts


def test_what_a_loss_of_power_took_is_staged_again(tmp_path: Path) -> None:
    """A staged file of zeros, one that is missing, a record that is cut: none is taken for staged; another class is not
    either."""
    written = grey()
    save(tmp_path / "in" / "a.png", written)
    inputs = Inputs.of([tmp_path / "in"])
    series = Series("a.png", ("a.png",), dicom=False, uid="a.png")
    job = Job(Source((series,), "a", "a"), inputs, tmp_path, b"salt", ImagesConfig(), {"class": 0})
    tar, record = tmp_path / f"{job.name}.tar", tmp_path / f"{job.name}.json"
    for damage in (
        lambda: tar.write_bytes(bytes(tar.stat().st_size)),
        lambda: tar.unlink(),
        lambda: record.write_bytes(record.read_bytes()[:50]),
        lambda: record.write_bytes(b""),
    ):
        assert convert(job) == read_record(job)
        assert read_record(replace(job, labels={"class": 1})) is None
        damage()
        assert read_record(job) is None


@pytest.mark.parametrize(("name", "dicom"), [("a.png", False), ("a.dcm", True), ("a.npz#train-000000", False)])
def test_an_input_that_vanishes_is_no_error_of_the_output(tmp_path: Path, name: str, dicom: bool) -> None:
    """A file that was there when the folder was read and is gone now: its row says so, the run goes on."""
    series = Series(name, (name.partition("#")[0],), dicom=dicom, uid=name)
    job = Job(Source((series,), "a", "a"), Inputs.of([tmp_path]), tmp_path, b"salt", ImagesConfig())
    (row,) = guarded(convert, job).rows
    assert row["status"] == "rejected" and row["reason"].startswith("cannot be read (No such file")


def test_the_full_range_of_a_radiograph_is_that_of_its_bits(tmp_path: Path) -> None:
    """12 bits in 16 without a window: 4,095 is white with range=full, and with a rescale what it makes of the bits."""
    stored = grey(most=4095, kind=np.uint16) // 2
    radiographs.write(tmp_path / "in" / "a.dcm", stored)
    radiographs.write(tmp_path / "in" / "b.dcm", stored, "other", RescaleSlope=2, RescaleIntercept=-100)
    for sample in samples(sharded(tmp_path, "range=full")):
        assert np.abs(unit(sample) - stored / 4095).max() < 1e-3


def test_a_pattern_that_names_nobody(tmp_path: Path) -> None:
    """An optional group that is empty is no patient."""
    save(tmp_path / "in" / "p1_a.png", grey())
    save(tmp_path / "in" / "a.png", grey())
    output = sharded(tmp_path, "patient=(p\\d)?_?a")
    assert rejected(output) == ["its path does not match the pattern `patient`, or names nobody by it"]


def test_large_pictures_are_cut_into_tiles(tmp_path: Path) -> None:
    """Tiles of 16 that cover 40 × 30 pixels, each at its place, without the empty ones, which are counted; a smaller
    picture stays whole, one that is empty everywhere is left out."""
    picture = grey(40, 30)
    picture[:16, :16] = 200
    save(tmp_path / "in" / "large.png", picture)
    save(tmp_path / "in" / "small.png", grey(12, 16))
    empty = np.full((40, 40), 9, np.uint8)
    empty[0, 0] = 10
    save(tmp_path / "in" / "empty.png", empty)
    output = sharded(tmp_path, "tiles.size=16")
    tiles = {each.order: np.rint(decoded(each)[0]) for each in samples(output) if each.pixels.shape[1:] == (16, 16)}
    places = [(row, column) for row in (0, 12, 24) for column in (0, 14)][1:]
    assert len(tiles) == len(places)
    for order, (row, column) in enumerate(places):
        assert np.array_equal(tiles[order], picture[row : row + 16, column : column + 16])
    rows = {row["slices"]: row for row in description.read_manifest(output) if row["status"] == "accepted"}
    assert rows[5]["air_slices"] == 1 and rows[1]["air_slices"] == 0
    assert rejected(output) == ["all its tiles are empty; tiles.min_spread says what is"]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("xray_{}.png", "xray_{}_mask.png"),
        ("CXR/{}.png", "leftMask/{}.png"),
        ("ISIC_Input/{}.png", "ISIC_GroundTruth/{}_segmentation.png"),
        ("train/image/{}.bmp", "train/label/{}.bmp"),
        ("benign/benign ({}).png", "benign/benign ({})_mask_1.png"),
        ("images/{}_training.tif", "1st_manual/{}_manual1.tif"),
    ],
)
def test_masks_of_pictures_are_no_pictures(image: str, mask: str, tmp_path: Path) -> None:
    """What its name or folder calls a mask is left out beside other pictures, unless it is asked for."""
    for number in range(3):
        save(tmp_path / "in" / image.format(number), grey() + np.uint8(number))
        drawn = np.zeros((20, 30), np.uint8)
        drawn[5 : 10 + number, 5:15] = 255
        save(tmp_path / "in" / mask.format(number), drawn)
    split = ("split_from=hash", "split.train=1", "split.val=0", "split.test=0")
    output = sharded(tmp_path, *split)
    assert [len(np.unique(sample.pixels)) > 2 for sample in samples(output)] == [True] * 3
    assert (
        rejected(output)
        == ["its name or folder says a mask or segmentation, not a picture; drawings=keep takes it"] * 3
    )
    output.rename(tmp_path / "before")
    assert len(samples(sharded(tmp_path, *split, "drawings=keep"))) == 6
