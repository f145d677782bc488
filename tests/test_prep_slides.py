"""Whole slides and micrographs as tiles: which, at which resolution, pixel for pixel, and never whole in memory."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import peaks, slide_files
from helpers.absent import absent

from data_prep import overview, schema, shard_images, verify
from data_prep.sharding import description

DISCS = ((300, 280, 200), (750, 800, 230))


@pytest.fixture(autouse=True)
def salted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDAP_SALT", "tests")


def sharded(tmp_path: Path, *words: str, status: int = 0, output: str = "out") -> Path:
    root = tmp_path / output
    assert shard_images.main(["--input", str(tmp_path / "in"), "--output", str(root), *words]) == status
    assert status or verify.main([str(root)]) == 0
    return root


def samples(root: Path) -> list[schema.Slice]:
    found = [split[n] for name in schema.SPLITS for split in [schema.Split(root, name)] for n in range(len(split))]
    return sorted(found, key=lambda sample: (sample.series, sample.order))


def values(sample: schema.Slice) -> np.ndarray:
    """(S, H, W) values as they were before they were put on a scale."""
    slope, intercept = sample.scales[0]
    return sample.pixels * slope + intercept


def accepted(root: Path) -> dict:
    (row,) = {row["stack"]: row for row in description.read_manifest(root) if row["status"] == "accepted"}.values()
    return row


def rejected(root: Path) -> list[str]:
    return [row["reason"] for row in description.read_manifest(root) if row["status"] == "rejected"]


def share(pixels: np.ndarray) -> float:
    """The share of stained pixels of (H, W, 3)."""
    return float((pixels.max(axis=2).astype(int) - pixels.min(axis=2) > 30).mean())


@pytest.mark.parametrize("kind", ["svs", "tif"])
def test_tiles_with_tissue_come_out_pixel_for_pixel(tmp_path: Path, kind: str) -> None:
    """Of a slide by OpenSlide and of a pyramid by tifffile: every tile with tissue at its place, no other; counts."""
    pixels = slide_files.tissue(1100, 1000, DISCS)
    write = slide_files.svs if kind == "svs" else slide_files.pyramid
    write(tmp_path / "in" / f"a.{kind}", pixels)
    root = sharded(tmp_path, "tiles.size=128", "colour=keep", "tiles.min_tissue=0.5")
    found = {tuple(sample.meta["tile"]): sample for sample in samples(root)}
    rows, columns = [n * (1100 - 128) // 8 for n in range(9)], [n * (1000 - 128) // 7 for n in range(8)]
    places = [(row, column) for row in rows for column in columns]
    shares = {place: share(pixels[place[0] : place[0] + 128, place[1] : place[1] + 128]) for place in places}
    assert {place for place in places if shares[place] > 0.52} <= set(found)
    assert set(found) <= {place for place in places if shares[place] > 0.48}
    for (row, column), sample in found.items():
        tile = np.moveaxis(pixels[row : row + 128, column : column + 128], -1, 0)
        assert np.array_equal(np.rint(values(sample)), tile)
    row = accepted(root)
    assert row["air_slices"] == row["notes"]["tiles_without_tissue"] == len(places) - len(found) > 10
    assert row["notes"]["tissue"].startswith("saturation above 0.1") and "Otsu" in row["notes"]["tissue"]
    assert overview.main([str(root)]) == 0


def test_a_slide_in_dicom_is_one_series_of_its_patient(tmp_path: Path) -> None:
    """A file a resolution, two slides of one patient in a folder: tiles of the one asked for, the label unread."""
    pixels = [slide_files.tissue(700, 600, [(300, 280, 200)], seed=seed) for seed in (0, 1)]
    for number, each in enumerate(pixels):
        slide_files.dicom(tmp_path / "in" / f"s{number}", each, SeriesInstanceUID=f"1.2.3.{number}")
    root = sharded(tmp_path, "tiles.size=64", "tiles.mpp=1", "colour=keep")
    splits = schema.read_dataset(root)["splits"].values()
    assert sum(split["subjects"] for split in splits) == 1 and sum(split["series"] for split in splits) == 2
    small = {slide_files.halved(each).tobytes(): slide_files.halved(each) for each in pixels}
    found = samples(root)
    for sample in found:
        row, column = (place // 2 for place in sample.meta["tile"])
        tiles = [each[row : row + 64, column : column + 64] for each in small.values()]
        assert any(np.array_equal(np.rint(values(sample)), np.moveaxis(tile, -1, 0)) for tile in tiles)
        assert np.allclose(sample.spacing, 0.001)
    assert len(found) > 20 and rejected(root) == []


@pytest.mark.parametrize(
    ("wanted", "level", "step"), [(0.5, 0, 1), (1.0, 1, 2), (0.98, 1, 2), (2.04, 2, 4), (3.0, 2, 6), (1.5, 1, 3)]
)
def test_the_resolution_is_the_one_that_is_asked_for(tmp_path: Path, wanted: float, level: int, step: float) -> None:
    """Stored resolutions within 5 % as they are, others reduced from the next finer one; spacing says which."""
    gradient = np.add.outer(np.arange(1200), np.arange(1200)) / 12
    pixels = np.stack([gradient, 255 - gradient, np.full_like(gradient, 60)], axis=-1).astype(np.uint8)
    slide_files.svs(tmp_path / "in" / "a.svs", pixels, mpp=0.5)
    root = sharded(tmp_path, "tiles.size=64", f"tiles.mpp={wanted}", "colour=keep", "tiles.min_spread=0")
    found = samples(root)
    exact = abs(wanted / (0.5 * 2**level) - 1) <= 0.05
    micrometres = 0.5 * 2**level if exact else wanted
    assert np.allclose(np.array(found[0].spacing) * 1000, micrometres, rtol=1e-3)
    small = pixels
    for _ in range(level):
        small = slide_files.halved(small)
    length = 1200 / step
    assert len(found) == (-(-int(length) // 64)) ** 2
    for sample in found:
        row, column = (place / step for place in sample.meta["tile"])
        if exact:
            first, second = round(row), round(column)
            tile = np.moveaxis(small[first : first + 64, second : second + 64], -1, 0)
            assert np.abs(values(sample) - tile).max() < 0.5
        else:  # a gradient's mean over a pixel is its value at the pixel's middle
            middle = (np.add.outer(row + np.arange(64), column + np.arange(64)) + 1) * step - 1
            inner = (slice(None), slice(4, -4), slice(4, -4))
            assert np.abs(values(sample)[:1][inner] - (middle / 12)[inner[1:]]).max() < 1.5


def test_a_resolution_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Coarser than asked for, unknown, or no size of tiles: a line each; `assumed_mpp` is said and noted."""
    pixels = slide_files.tissue(600, 600, [(300, 300, 250)])
    slide_files.svs(tmp_path / "in" / "a.svs", pixels, mpp=0.5)
    sharded(tmp_path, "tiles.size=64", "tiles.mpp=0.25", status=1)
    assert "0.5 µm a pixel are coarser than tiles.mpp=0.25" in capsys.readouterr().err
    sharded(tmp_path, status=1, output="none")
    assert "a whole slide of 600 × 600 pixels; tiles.size=N cuts it into tiles" in capsys.readouterr().err
    (tmp_path / "in" / "a.svs").unlink()
    slide_files.pyramid(tmp_path / "in" / "b.tif", pixels, resolution=(72, 72), resolutionunit="INCH")
    reason = "does not say its micrometres a pixel; tiles.assumed_mpp does, or leave out tiles.mpp"
    words = ("tiles.size=64", "tiles.mpp=1")
    sharded(tmp_path, *words, status=1, output="unknown")
    assert reason in capsys.readouterr().err
    root = sharded(tmp_path, *words, "tiles.assumed_mpp=0.5", output="given")
    assert accepted(root)["notes"]["mpp"] == "1 µm by tiles.assumed_mpp"
    assert np.allclose(samples(root)[0].spacing, 0.001)


@pytest.mark.parametrize(
    ("said", "mpp"),
    [
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (101600, 101600), "resolutionunit": "INCH"}, 0.25),
        ({"metadata": {"axes": "YX", "PhysicalSizeX": 4.0, "PhysicalSizeXUnit": "nm"}, "ome": True}, None),
        (
            {
                "metadata": {"axes": "YX", **{f"PhysicalSize{a}": 4.0 for a in "XY"}}
                | {f"PhysicalSize{a}Unit": "nm" for a in "XY"},
                "ome": True,
            },
            0.004,
        ),
        ({"imagej": True, "resolution": (10.0, 10.0), "metadata": {"unit": "um"}, "tile": None}, None),
    ],
)
def test_micrometres_a_pixel_are_read_where_files_keep_them(tmp_path: Path, said: dict, mpp: float | None) -> None:
    """Tags of TIFF, OME; one length alone does not count, and ImageJ's small files without tiles are pictures."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'meddap[slides]'")
    pixels = np.random.default_rng(0).integers(0, 65535, (300, 300)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", pixels, **{"tile": (64, 64), "photometric": "minisblack", **said})
    root = sharded(tmp_path, "tiles.size=64")
    spacing = np.array(samples(root)[0].spacing)
    assert np.allclose(spacing * 1000, mpp) if mpp else np.array_equal(spacing, [1, 1])
    assert np.allclose(accepted(root)["spacing_mm"][1:], spacing, rtol=1e-4)
    assert overview.main([str(root)]) == 0


@pytest.mark.parametrize(
    "layout",
    [
        {"tile": (64, 64)},
        {"tile": (64, 64), "compression": "zlib", "predictor": True},
        {"tile": (64, 64), "compression": "lzw", "byteorder": ">"},
        {"tile": (64, 64), "compression": "zstd", "bigtiff": True},
    ],
)
@pytest.mark.parametrize("kind", ["uint16", "float32", "int16"])
def test_micrographs_of_many_bits(tmp_path: Path, layout: dict, kind: str) -> None:
    """Values come back but for rounding to the scale, which is one for all tiles; a stack gives all its planes."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'meddap[slides]'")
    rng = np.random.default_rng(1)
    planes = (rng.normal(0, 1, (3, 200, 150)) * 500 + 6000).astype(kind)
    (tmp_path / "in").mkdir()
    options = {"photometric": "minisblack", "metadata": {"axes": "ZYX"}, "ome": True, **layout}
    tifffile.imwrite(tmp_path / "in" / "cells.ome.tif", planes, **options)
    root = sharded(tmp_path, "tiles.size=64")
    found = samples(root)
    assert len(found) == 3 * 4 * 3 and accepted(root)["notes"]["planes"] == "Z=3"
    for sample in found:
        row, column = sample.meta["tile"]
        tile = planes[sample.order // 12, row : row + 64, column : column + 64].astype(float)
        assert np.abs(values(sample)[0] - tile).max() <= abs(sample.scales[0][0]) * 0.51
    assert len({sample.scales for sample in found}) == 3


def test_strips_of_a_file_larger_than_pillow_reads(tmp_path: Path) -> None:
    """20,000 × 20,000 of 16 bits in strips, as microscopes write them: with less than 300 MB over the start."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'meddap[slides]'")
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "em.tif"
    stored = tifffile.memmap(path, shape=(20000, 20000), dtype="uint16", photometric="minisblack", bigtiff=True)
    ramp = np.arange(20000, dtype=np.uint16)
    stored[5000:5300] = ramp
    stored[12000:12100] = ramp[::-1]
    stored.flush()
    del stored
    peak, root = measured(tmp_path, "tiles.size=256", "tiles.most=200")
    assert peak < 300, f"{peak:.0f} MB"
    notes = accepted(root)["notes"]
    every = (-(-20000 // 256)) ** 2
    assert notes["tiles_not_drawn"] == every - 200
    assert notes["tiles_empty"] + len(samples(root)) == 200
    for sample in samples(root):
        row, column = sample.meta["tile"]
        tile = np.zeros((256, 256))
        tile[max(5000 - row, 0) : max(5300 - row, 0)] = ramp[column : column + 256]
        tile[max(12000 - row, 0) : max(12100 - row, 0)] = ramp[::-1][column : column + 256]
        clipped = np.clip(tile, *(np.array([0, 65535]) * sample.scales[0][0] + sample.scales[0][1]))
        assert np.abs(values(sample)[0] - clipped).max() <= sample.scales[0][0]
    path.unlink()


@pytest.mark.stress
def test_a_slide_is_never_whole_in_memory(tmp_path: Path) -> None:
    """20,000 × 20,000 pixels in colour without a smaller resolution: less than 300 MB over the start."""
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'meddap[slides]'")
    (tmp_path / "in").mkdir()
    stained = slide_files.tissue(1024, 1024, [(512, 512, 600)])
    glass = slide_files.tissue(1024, 1024, [])

    def tiles() -> object:
        for row in range(20):
            for column in range(20):
                yield stained if (row, column) in ((3, 4), (10, 11)) else glass

    said = slide_files.APERIO.format(20000, 20000, 0.25)
    options = {"tile": (1024, 1024), "photometric": "rgb", "metadata": None, "compression": "jpeg"}
    with tifffile.TiffWriter(tmp_path / "in" / "a.svs", bigtiff=True) as file:
        file.write(tiles(), shape=(20000, 20000, 3), dtype="uint8", description=said, **options)
    peak, root = measured(tmp_path, "tiles.size=512")
    assert peak < 300, f"{peak:.0f} MB"
    assert 8 <= len(samples(root)) <= 24
    assert all(2900 < row < 11300 for row, _ in (sample.meta["tile"] for sample in samples(root)))


def measured(tmp_path: Path, *words: str) -> tuple[float, Path]:
    """Return how many MB sharding takes more than with a slide of 600 × 600, and the data set."""
    root = tmp_path / "measured"
    slide_files.svs(tmp_path / "small" / "a.svs", slide_files.tissue(600, 600, [(300, 300, 250)]))
    _, start, _ = peaks.run("shard_images.py", tmp_path / "small", tmp_path / "first", *words)
    _, peak, _ = peaks.run("shard_images.py", tmp_path / "in", root, *words)
    return peak.largest - start.largest, root


def test_the_draw_is_the_same_at_every_start(tmp_path: Path) -> None:
    """`tiles.most` of a slide and of a picture that is read whole: so many, the same with other workers; counted."""
    pixels = slide_files.tissue(600, 600, [(300, 300, 500)])
    slide_files.svs(tmp_path / "in" / "a.svs", pixels)
    words = ("tiles.size=64", "tiles.most=7", "tiles.overlap=16")
    first = sharded(tmp_path, *words)
    again = sharded(tmp_path, *words, "workers=2", output="again")
    assert [sample.meta for sample in samples(first)] == [sample.meta for sample in samples(again)]
    assert len(samples(first)) == 7
    count = -(-(600 - 16) // 48)
    assert accepted(first)["notes"]["tiles_not_drawn"] == count**2 - 7


def test_overlap_is_the_least_that_neighbours_share(tmp_path: Path) -> None:
    """Tiles of 64 with 16: no step is above 48, and the picture is covered."""
    slide_files.svs(tmp_path / "in" / "a.svs", slide_files.tissue(300, 333, [(150, 150, 300)]))
    root = sharded(tmp_path, "tiles.size=64", "tiles.overlap=16")
    for axis, length in enumerate((300, 333)):
        starts = sorted({sample.meta["tile"][axis] for sample in samples(root)})
        assert starts[0] == 0 and starts[-1] == length - 64 and max(np.diff(starts)) <= 48


def test_settings_of_tiles_that_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An overlap as large as the tile, and settings of tiles without a size, are a line before anything is read."""
    (tmp_path / "in").mkdir()
    sharded(tmp_path, "tiles.size=64", "tiles.overlap=64", status=1)
    assert "tiles.overlap=64: has to be below tiles.size=64" in capsys.readouterr().err
    sharded(tmp_path, "tiles.mpp=0.5", status=1)
    assert "without tiles.size" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["svs", "tif"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_a_file_that_was_cut_is_one_line(tmp_path: Path, kind: str, kept: float) -> None:
    """At its start, its middle or near its end; slides beside it are read."""
    write = slide_files.svs if kind == "svs" else slide_files.pyramid
    path = write(tmp_path / "in" / f"cut.{kind}", slide_files.tissue(600, 600, [(300, 300, 250)]))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    slide_files.svs(tmp_path / "in" / "whole.svs", slide_files.tissue(600, 600, [(300, 300, 250)]))
    root = sharded(tmp_path, "tiles.size=128")
    (reason,) = rejected(root)
    assert "cut short" in reason or "damaged" in reason or "cannot be read" in reason
    assert accepted(root)["slices"] > 5


def test_hostile_slides(tmp_path: Path) -> None:
    """Text, nothing, noise, a slide in a zip archive, one of glass alone: a line each."""
    good = slide_files.svs(tmp_path / "in" / "good.svs", slide_files.tissue(600, 600, [(300, 300, 250)]))
    (tmp_path / "in" / "text.svs").write_text("no slide")
    (tmp_path / "in" / "empty.ndpi").write_bytes(b"")
    (tmp_path / "in" / "noise.mrxs").write_bytes(np.random.default_rng(0).bytes(9999))
    slide_files.svs(tmp_path / "in" / "glass.svs", slide_files.tissue(600, 600, []))
    with zipfile.ZipFile(tmp_path / "in" / "z.zip", "w") as archive:
        archive.write(good, "inner.svs")
    damaged = bytearray(good.read_bytes())
    damaged[4:8] = b"\xff\xff\xff\x7f"  # where its first directory lies
    (tmp_path / "in" / "lost.svs").write_bytes(damaged)
    root = sharded(tmp_path, "tiles.size=128")
    reasons = sorted(rejected(root))
    assert len(reasons) == 6 and all("\n" not in reason and len(reason) < 120 for reason in reasons)
    assert sum("no tile holds tissue" in reason for reason in reasons) == 1
    assert sum("unpack it" in reason for reason in reasons) == 1


def test_slides_of_tcga_are_of_the_patients_that_their_barcodes_name(tmp_path: Path) -> None:
    """The first three fields, in folders of their own as downloaded or in one; a pattern counts before it."""
    for number, name in enumerate(
        ("TCGA-A1-A0SB-01Z-00-DX1.A", "TCGA-A1-A0SB-11A-02-TS2.B", "TCGA-B6-A0RS-01Z-00-DX1.C")
    ):
        pixels = slide_files.tissue(300, 300, [(150, 150, 120)], seed=number)
        slide_files.svs(tmp_path / "in" / f"folder{number}" / f"{name}.svs", pixels)
    root = sharded(tmp_path, "tiles.size=64")
    assert sum(split["subjects"] for split in schema.read_dataset(root)["splits"].values()) == 2
    assert schema.read_dataset(root)["made_with"]["found"]["layouts"][0]["name"] == "tcga_slides"
    alone = sharded(tmp_path, "tiles.size=64", "layout=none", output="alone")
    assert sum(split["subjects"] for split in schema.read_dataset(alone)["splits"].values()) == 3


def test_slides_of_camelyon(tmp_path: Path) -> None:
    """CAMELYON17: a patient's nodes are one patient, masks are left out."""
    for number, name in enumerate(("patient_000_node_0", "patient_000_node_1", "patient_001_node_0")):
        pixels = slide_files.tissue(300, 300, [(150, 150, 120)], seed=number)
        slide_files.pyramid(tmp_path / "in" / "images" / f"{name}.tif", pixels, levels=2)
    slide_files.pyramid(tmp_path / "in" / "masks" / "patient_000_node_0_mask.tif", pixels[..., 0], levels=2)
    root = sharded(tmp_path, "tiles.size=64")
    assert sum(split["subjects"] for split in schema.read_dataset(root)["splits"].values()) == 2
    assert len(rejected(root)) == 1


def test_slides_of_camelyon16(tmp_path: Path) -> None:
    """Each is a patient, of training and test; masks beside them are left out."""
    for number, name in enumerate(
        ("training/normal/normal_001", "training/tumor/tumor_001", "testing/images/test_001")
    ):
        pixels = slide_files.tissue(300, 300, [(150, 150, 120)], seed=number)
        slide_files.pyramid(tmp_path / "in" / f"{name}.tif", pixels, levels=2)
    slide_files.pyramid(tmp_path / "in" / "training" / "tumor" / "tumor_001_mask.tif", pixels[..., 0], levels=2)
    root = sharded(tmp_path, "tiles.size=64", "split_from=hash")
    dataset = schema.read_dataset(root)
    assert sum(split["subjects"] for split in dataset["splits"].values()) == 3
    assert {one["name"] for one in dataset["made_with"]["found"]["layouts"]} == {"camelyon16"}
    assert len(rejected(root)) == 1


def test_without_the_libraries_a_slide_is_left_out_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One line that says what to install."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.svs").write_bytes(b"x")
    absent("openslide", tmp_path, monkeypatch)
    sharded(tmp_path, "tiles.size=64", status=1)
    assert "pip install 'meddap[slides]'" in capsys.readouterr().err
