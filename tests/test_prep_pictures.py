"""Pictures of every kind keep their values, or are refused with the reason."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.volumes import pictures
from data_prep.volumes.volume import RejectedSeries

CASES = Path(__file__).resolve().parent.parent.parent / "shared" / "cases" / "150-folders-modes"
RULES = pictures.Rules()


def ramp(high: float, kind: type | str, low: float = 0) -> np.ndarray:
    """Return (24, 40) values from `low` to `high`."""
    return np.linspace(low, high, 24 * 40).reshape(24, 40).astype(kind)


def png(path: Path, pixels: np.ndarray, bits: int, colour: int, filters: int = -1, interlaced: bool = False) -> Path:
    """Write (H, W, C) integers as a PNG of that depth and colour type; rows have filter `filters`, −1: by turns."""
    height, width, _ = pixels.shape
    raw = b""
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    for row, column, down, right in passes:
        part = pixels[row::down, column::right]
        stored = np.ascontiguousarray(part.astype(">u2" if bits == 16 else np.uint8))
        lines = stored.reshape(len(part), -1).view(np.uint8)
        size, before = part.shape[2] * bits // 8, np.zeros(lines.shape[1] if lines.size else 0, int)
        for number, line in enumerate(lines.astype(int) if lines.size else []):
            kind = number % 5 if filters < 0 else filters
            left, corner = (np.concatenate([np.zeros(size, int), each[:-size]]) for each in (line, before))
            guess = left + before - corner
            near = np.abs([guess - left, guess - before, guess - corner]).argmin(axis=0)
            paeth = np.choose(near, [left, before, corner])
            minus = [0 * line, left, before, (left + before) // 2, paeth][kind]
            raw += bytes([kind]) + ((line - minus) % 256).astype(np.uint8).tobytes()
            before = line
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced)))]
    chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    write_chunks(path, chunks)
    return path


def write_chunks(path: Path, chunks: list[tuple[bytes, bytes]]) -> None:
    """Write a PNG of these chunks."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content)


def value_of(path: Path, rules: pictures.Rules = RULES) -> np.ndarray:
    """Return the values of the one picture in a file."""
    return pictures.single(path, rules).values


def refused(path: Path, rules: pictures.Rules = RULES) -> str:
    """Return the reason for which a file is refused."""
    with pytest.raises(RejectedSeries) as error:
        list(pictures.frames(path, rules))
    return error.value.reason


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bit.png", ramp(1.4, bool)),
        ("bit.tif", ramp(1.4, bool)),
        ("eight.png", ramp(255, np.uint8)),
        ("eight.bmp", ramp(255, np.uint8)),
        ("eight.tif", ramp(255, np.uint8)),
        ("sixteen.png", ramp(65535, np.uint16)),
        ("twelve.tif", ramp(4095, np.uint16)),
        ("long.tif", ramp(100_000, np.int32)),
        ("negative.tif", ramp(1000, np.int32, -1000)),
        ("float.tif", ramp(1, np.float32)),
        ("hu.tif", ramp(3000, np.float32, -1024)),
    ],
)
def test_grey_values_are_kept(tmp_path: Path, name: str, values: np.ndarray) -> None:
    """1, 8, 16 and 32 bits, negative values and floats, to the last bit; 1 bit as 0 and 255."""
    Image.fromarray(values).save(tmp_path / name)
    expected = values.astype(np.uint8) * 255 if values.dtype == bool else values
    assert np.array_equal(value_of(tmp_path / name), expected)
    assert len(np.unique(value_of(tmp_path / name))) == len(np.unique(values))


@pytest.mark.parametrize("filters", [0, 1, 2, 3, 4, -1])
@pytest.mark.parametrize("interlaced", [False, True])
def test_colours_of_sixteen_bits_are_kept(tmp_path: Path, filters: int, interlaced: bool) -> None:
    """Red, green, blue, and with alpha, and grey with alpha: every filter of PNG and its seven passes; Pillow, which
    keeps 8 bits, agrees on those."""
    pixels = np.random.default_rng(filters + 1).integers(0, 65536, (13, 11, 4), np.uint16)
    pixels[..., 3] = 65535
    keep = pictures.Rules(colour="keep")
    for colour, channels in ((2, [0, 1, 2]), (6, [0, 1, 2, 3]), (4, [0, 3])):
        path = png(tmp_path / "deep.png", pixels[..., channels], 16, colour, filters, interlaced)
        expected = pixels[..., 0] if colour == 4 else pixels[..., :3]
        values = value_of(path, keep)
        assert values.dtype == np.uint16 and np.array_equal(values, expected)
        if colour != 4:
            assert np.abs(np.asarray(Image.open(path))[..., :3].astype(int) - values // 256).max() <= 1
    assert np.array_equal(value_of(path, keep), pixels[..., 0])


def test_colours_become_grey_by_their_luma(tmp_path: Path) -> None:
    """As Pillow's own conversion does, noted; equal channels are grey and need no note; refused where asked."""
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "c.png")
    found = pictures.single(tmp_path / "c.png", RULES)
    assert np.array_equal(found.values, np.asarray(Image.fromarray(colours).convert("L"))) and "colour" in found.notes
    assert refused(tmp_path / "c.png", pictures.Rules(colour="refuse")) == "in colour; colour=grey or keep takes it"
    assert np.array_equal(value_of(tmp_path / "c.png", pictures.Rules(colour="keep")), colours)
    equal = np.repeat(colours[..., :1], 3, axis=2)
    Image.fromarray(equal).save(tmp_path / "e.png")
    found = pictures.single(tmp_path / "e.png", pictures.Rules(colour="refuse"))
    assert np.array_equal(found.values, equal[..., 0]) and not found.notes
    Image.fromarray(equal).quantize(256).save(tmp_path / "p.png")
    assert np.array_equal(value_of(tmp_path / "p.png"), np.asarray(Image.open(tmp_path / "p.png").convert("L")))
    inks = Image.fromarray(colours).convert("CMYK")
    inks.save(tmp_path / "k.tif")
    assert "inks" in pictures.single(tmp_path / "k.tif", RULES).notes


def test_transparent_pixels_are_refused_or_laid_over_a_ground(tmp_path: Path) -> None:
    """Opaque alpha is dropped; half of it is refused, or becomes half black, half white, or the colours as stored."""
    grey = np.full((8, 8), 100, np.uint8)
    for alpha, over_white in ((255, 100), (128, 177), (0, 255)):
        channels = np.stack([grey, np.full_like(grey, alpha)], axis=2)
        Image.fromarray(channels).save(tmp_path / "a.png")
        Image.fromarray(channels[..., [0, 0, 0, 1]]).save(tmp_path / "a.webp", lossless=True, exact=True)
        for name in ("a.png", "a.webp"):
            path = tmp_path / name
            if alpha == 255:
                assert (value_of(path) == 100).all()
                continue
            assert refused(path) == "100.0% of its pixels are transparent; alpha=black, white or drop"
            assert (value_of(path, pictures.Rules(alpha="black")) == round(100 * alpha / 255)).all()
            assert (value_of(path, pictures.Rules(alpha="white")) == over_white).all()
            assert (value_of(path, pictures.Rules(alpha="drop")) == 100).all()
    keyed = ramp(255, np.uint8)
    Image.fromarray(keyed).save(tmp_path / "key.png", transparency=int(keyed[0, 0]))
    assert "transparent" in refused(tmp_path / "key.png")
    palette = Image.fromarray(keyed).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=3)
    assert "transparent" in refused(tmp_path / "palette.png")


def test_pictures_lie_upright(tmp_path: Path) -> None:
    """All eight orientations, in EXIF and in TIFF, as Pillow's own function turns them."""
    from PIL import ImageOps

    values = ramp(65535, np.uint16)
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(values).save(tmp_path / "o.png", exif=exif)
        Image.fromarray(values).save(tmp_path / "o.tif", tiffinfo={274: number})
        eight = Image.fromarray((values // 256).astype(np.uint8))
        eight.save(tmp_path / "o.webp", exif=exif, lossless=True)
        with Image.open(tmp_path / "o.png") as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(value_of(tmp_path / "o.png"), expected), number
        assert np.array_equal(value_of(tmp_path / "o.tif"), expected), number
        assert np.array_equal(value_of(tmp_path / "o.webp"), expected // 256), number


def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path: Path) -> None:
    """8 and 16 bits; what Pillow would leave as it is."""
    for kind in (np.uint8, np.uint16):
        values = ramp(np.iinfo(kind).max, kind)
        Image.fromarray(values).save(tmp_path / "w.tif", tiffinfo={262: 0})
        content = (tmp_path / "w.tif").read_bytes()
        assert struct.pack("<HHIHH", 262, 3, 1, 0, 0) in content
        stored = np.asarray(Image.open(tmp_path / "w.tif"))
        expected = stored if kind == np.uint8 else np.iinfo(kind).max - stored
        assert np.array_equal(value_of(tmp_path / "w.tif"), expected)


def test_unsigned_and_signed_tiff_values_do_not_wrap(tmp_path: Path) -> None:
    """Unsigned 32 bits above 2³¹, signed 8 and 16 bits, which Pillow reads as other numbers or as they are."""
    high = ramp(4_000_000_000, np.uint32)
    tiff(tmp_path / "high.tif", high, 1)
    assert np.array_equal(value_of(tmp_path / "high.tif"), high)
    for kind in (np.int8, np.int16):
        low = ramp(100, kind, -100)
        tiff(tmp_path / "low.tif", low, 2)
        assert np.array_equal(value_of(tmp_path / "low.tif"), low)


def tiff(path: Path, values: np.ndarray, sample_format: int) -> None:
    """Write (H, W) integers as a plain little-endian TIFF."""
    height, width = values.shape
    bits = values.dtype.itemsize * 8
    entries = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    entries += [(277, 3, 1), (278, 3, height), (279, 4, values.nbytes), (339, 3, sample_format)]
    body = values.astype(values.dtype.newbyteorder("<")).tobytes()
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHI", tag, kind, 1) + (
            struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
        )
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + b"\0\0\0\0")


def test_files_of_several_pictures(tmp_path: Path) -> None:
    """TIFF, GIF, WebP and PNG give all of them in order, and are refused where one is expected; previews are none."""
    planes = [np.full((9, 7), 40 * number, np.uint8) for number in range(1, 4)]
    images = [Image.fromarray(plane) for plane in planes]
    for name, more in (("m.tif", {}), ("m.gif", {}), ("m.webp", {"lossless": True}), ("m.png", {})):
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], **more)
        found = [frame.values for frame in pictures.frames(tmp_path / name, RULES)]
        assert len(found) == 3 and all(np.array_equal(*pair) for pair in zip(found, planes)), name
        with pytest.raises(RejectedSeries, match="several pictures"):
            pictures.single(tmp_path / name, RULES)
    Image.fromarray(ramp(255, np.uint8)).save(
        tmp_path / "t.tif", save_all=True, append_images=[Image.fromarray(planes[0])], tiffinfo={254: 0}
    )
    assert [frame.values.shape for frame in pictures.frames(tmp_path / "t.tif", RULES)] == [(24, 40), (9, 7)]
    content = bytearray((tmp_path / "t.tif").read_bytes())
    content[content.rindex(struct.pack("<HHII", 254, 4, 1, 0)) + 8] = 1  # the second is a thumbnail
    (tmp_path / "t.tif").write_bytes(bytes(content))
    assert np.array_equal(value_of(tmp_path / "t.tif"), ramp(255, np.uint8))
    cut = (tmp_path / "m.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(cut[: len(cut) * 2 // 3])
    assert refused(tmp_path / "cut.gif").startswith("cannot be read as an image")


@pytest.mark.parametrize("name", ["d.png", "d.jpg", "d.tif", "d.bmp", "d.webp", "d.gif"])
def test_cut_files_are_refused(tmp_path: Path, name: str) -> None:
    """At a third, a half, nine tenths, and 20 bytes before the end."""
    values = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(values).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for length in (0, 3, len(content) // 3, len(content) // 2, len(content) * 9 // 10, len(content) - 20):
        (tmp_path / name).write_bytes(content[:length])
        assert refused(tmp_path / name).startswith("cannot be read as an image"), length


def test_every_flipped_bit_of_a_png_is_found(tmp_path: Path) -> None:
    """100 single bits, grey and colours of 16 bits: refused, or the pixels are the same."""
    draw = np.random.default_rng(2)
    Image.fromarray(ramp(65535, np.uint16)).save(tmp_path / "g.png")
    png(tmp_path / "c.png", draw.integers(0, 65536, (9, 9, 3), np.uint16), 16, 2)
    for name in ("g.png", "c.png"):
        content, keep = (tmp_path / name).read_bytes(), pictures.Rules(colour="keep")
        before = value_of(tmp_path / name, keep)
        for place in draw.integers(0, len(content) * 8, 50):
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
            (tmp_path / name).write_bytes(bytes(damaged))
            with contextlib.suppress(RejectedSeries):
                assert np.array_equal(value_of(tmp_path / name, keep), before)


def test_hostile_files_are_refused_in_a_line(tmp_path: Path) -> None:
    """A picture of billions of pixels, 16 bits of colour in TIFF, NaN, a text, a program."""
    write_chunks(
        tmp_path / "bomb.png",
        [(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")],
    )
    assert "pixels; cut it into tiles" in refused(tmp_path / "bomb.png")
    write_chunks(
        tmp_path / "deep.png",
        [
            *[(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0))],
            *[(b"IDAT", zlib.compress(bytes(10_000_000))), (b"IEND", b"")],
        ],
    )
    assert "bytes of pixels" in refused(tmp_path / "deep.png")
    values = ramp(1, np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "nan.tif")
    assert refused(tmp_path / "nan.tif") == "pixels are NaN or infinite"
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("text.png", "program.png"):
        assert refused(tmp_path / name) == "cannot be read as an image (UnidentifiedImageError)"


@pytest.mark.parametrize("name", [path.name for path in sorted(CASES.glob("*"))] or ["missing"])
def test_the_shared_cases(name: str) -> None:
    """Each kind of picture keeps its grey values, 32 × 32 of them, or is refused."""
    if name == "missing":
        pytest.skip("../shared/cases is not here")
    if name == "multi.tif":
        assert len(list(pictures.frames(CASES / name, RULES))) == 2
        return
    if name == "RGBA.png":
        assert "transparent" in refused(CASES / name)
        return
    found = pictures.single(CASES / name, RULES).values
    with Image.open(CASES / name) as image:
        if image.mode in ("L", "F", "I", "I;16"):
            assert np.array_equal(found, np.asarray(image))
    stored, _, notes = pictures.encode(found, RULES)
    assert len(np.unique(stored)) == len(np.unique(found))
    assert set(notes) == ({"values_rounded"} if name == "I32.tif" else set())


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        (ramp(255, np.uint8), True),
        (ramp(4095, np.uint16), True),
        (np.arange(16384, dtype=np.uint16).reshape(128, 128), True),
        (ramp(1000, np.int32, -1000), True),
        (np.arange(65536, dtype=np.uint16).reshape(256, 256), False),
    ],
)
def test_scales_keep_up_to_fourteen_bits(values: np.ndarray, exact: bool) -> None:
    """stored · slope + intercept is the value again, by either range; of 16 bits within two steps, which is noted."""
    for range_ in ("auto", "robust"):
        stored, scale, notes = pictures.encode(values, pictures.Rules(range=range_))  # type: ignore[arg-type]
        back = np.rint(stored * scale.slope + scale.intercept)
        assert stored.dtype == np.uint16 and np.abs(back - values).max() <= (0 if exact else 2)
        assert ("values_rounded" in notes) is not exact


def test_the_range_of_a_picture_does_not_follow_its_borders() -> None:
    """A third of black collimation, one bright marker: the percentiles are those of the rest; one value is no error."""
    values = np.random.default_rng(0).integers(1000, 3000, (60, 60)).astype(np.uint16)
    values[:20] = 0
    values[40, 40] = 65535
    low, high = pictures.ends(values, RULES)
    assert 1000 <= low < 1050 and 2950 < high <= 3000
    assert pictures.encode(values, RULES)[2]["values_clipped"] == 1
    flat = np.full((5, 5), 7, np.uint16)
    assert len(np.unique(pictures.encode(flat, RULES)[0])) == 1
    with pytest.raises(RejectedSeries, match="-5 to 7 have no known ends; range=robust takes them"):
        pictures.ends(np.array([[-5, 7]], np.int32), pictures.Rules(range="full"))


ENCODINGS = {  # what a format keeps to the last bit: kinds of values, and how Pillow is told to write them
    "png": (("bool", "uint8", "uint16", "rgb"), ({}, {"compress_level": 1}, {"optimize": True})),
    "tif": (
        ("bool", "uint8", "uint16", "int32", "float32", "rgb"),
        (
            {},
            {"compression": "tiff_lzw"},
            {"compression": "tiff_deflate"},
            {"compression": "packbits"},
            {"big_tiff": True},
        ),
    ),
    "bmp": (("bool", "uint8", "rgb"), ({},)),
    "webp": (("uint8", "rgb"), ({"lossless": True, "method": 0},)),
    "gif": (("uint8",), ({}, {"interlace": 0})),
}


def check_random_encodings(count: int, folder: Path) -> None:
    """Write `count` random pictures in random encodings; each comes out value by value."""
    draw, keep = np.random.default_rng(7), pictures.Rules(colour="keep")
    for _ in range(count):
        ending = str(draw.choice(list(ENCODINGS)))
        kinds, ways = ENCODINGS[ending]
        kind, way = str(draw.choice(kinds)), ways[draw.integers(len(ways))]
        shape = (int(draw.integers(1, 70)), int(draw.integers(1, 70)))
        values = draw.integers(0, 256, (*shape, 3)).astype(np.uint8)
        if kind == "float32":
            values = draw.normal(0, 1000, shape).astype(np.float32)
        elif kind != "rgb":
            low, high = {"bool": (0, 2), "uint8": (0, 256), "uint16": (0, 65536), "int32": (-(2**31), 2**31)}[kind]
            values = draw.integers(low, high, shape).astype(kind)
        path = folder / f"x.{ending}"
        Image.fromarray(values).save(path, **way)
        expected = values.astype(np.uint8) * 255 if kind == "bool" else values
        found = value_of(path, keep)
        assert np.array_equal(found, expected[..., 0] if found.ndim < expected.ndim else expected), (ending, kind, way)


def test_random_pictures_in_random_encodings(tmp_path: Path) -> None:
    """Every kind of value in every format that keeps it, in any size from one pixel on: 150."""
    check_random_encodings(150, tmp_path)


@pytest.mark.stress
def test_many_random_pictures_in_random_encodings(tmp_path: Path) -> None:
    """The same, 3,000."""
    check_random_encodings(3000, tmp_path)


def check_damage(count: int, folder: Path) -> None:
    """Overwrite bytes of every format, `count` times each: refused in a line, or read; never another exception."""
    draw = np.random.default_rng(8)
    for ending in (*ENCODINGS, "jpg"):
        Image.fromarray(draw.integers(0, 256, (40, 40)).astype(np.uint8)).save(folder / f"x.{ending}")
        content = (folder / f"x.{ending}").read_bytes()
        for _ in range(count):
            damaged = bytearray(content)
            for place in draw.integers(0, len(content), draw.integers(1, 9)):
                damaged[place] = draw.integers(0, 256)
            (folder / f"x.{ending}").write_bytes(bytes(damaged))
            try:
                for frame in pictures.frames(folder / f"x.{ending}", RULES):
                    assert frame.values.ndim == 2
            except RejectedSeries as error:
                assert error.reason and "\n" not in error.reason and str(folder) not in error.reason


def test_damaged_pictures_of_every_format(tmp_path: Path) -> None:
    """60 of each."""
    check_damage(60, tmp_path)


@pytest.mark.stress
def test_many_damaged_pictures_of_every_format(tmp_path: Path) -> None:
    """2,000 of each."""
    check_damage(2000, tmp_path)
