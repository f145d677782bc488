"""Text headers of NRRD and MetaImage: what ITK does not heed (unit, orientation, scale), and compressed content."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.volumes.volume import RejectedSeries

LONGEST = 1 << 16  # bytes within which a header ends
_CHUNK = 1 << 20
_MM = {
    **{"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "millimetre": 1.0, "cm": 10.0, "centimeter": 10.0},
    **{"centimeters": 10.0, "m": 1000.0, "meter": 1000.0, "meters": 1000.0, "metre": 1000.0, "um": 0.001},
    **{"micron": 0.001, "microns": 0.001, "micrometer": 0.001, "micrometers": 0.001, "µm": 0.001, "μm": 0.001},
}
_UNKNOWN = {"", "???", "none", "unknown", "pixel", "pixels", "voxel"}
_ORIENTED = {
    *("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps"),
}

_BYTES = {"uchar", "unsigned char", "uint8", "uint8_t", "signed char", "int8", "int8_t"}
# Fields of a MetaImage; others are ignored by whoever reads it
_META = {
    *("objecttype", "ndims", "binarydata", "binarydatabyteordermsb", "elementbyteordermsb", "compresseddata"),
    *("compresseddatasize", "transformmatrix", "orientation", "rotation", "offset", "position", "origin"),
    *("centerofrotation", "anatomicalorientation", "elementspacing", "elementsize", "dimsize", "elementtype"),
    *("elementnumberofchannels", "elementdatafile", "headersize", "distanceunits", "modality", "comment", "name"),
    *("elementtointensityfunctionslope", "elementtointensityfunctionoffset", "elementmin", "elementmax", "id"),
    *("parentid", "objectsubtype", "transformtype", "color", "sequenceid", "acquisitiondate"),
}


@dataclass(frozen=True)
class TextHeader:
    """What ITK does not say about an NRRD or MetaImage file.

    factor    its unit of length in mm; None if none is stated
    oriented  whether it says how its axes run in the patient
    default   whether its format has an orientation for files that state none: to the left, back and head
    big       whether its content is big-endian
    packed    files of its compressed content and where that starts in them, in order; none if it is not compressed
    encoding  how they are compressed
    """

    factor: float | None
    oriented: bool
    default: bool
    big: bool
    packed: tuple[tuple[Path, int], ...]
    encoding: str

    def content(self) -> bytes:
        """Return the decompressed content. Raises what gzip, bz2 and zlib raise for damage, EOFError if it is cut."""
        return b"".join(_unpacked(path, start, self.encoding) for path, start in self.packed)


def read(path: Path) -> TextHeader:
    """Read a header. Raises RejectedSeries for what would be read otherwise than it is meant."""
    with path.open("rb") as file:
        start = file.read(LONGEST)
    return _nrrd(path, start) if start.startswith(b"NRRD") else _metaimage(path, start)


def _nrrd(path: Path, start: bytes) -> TextHeader:
    fields, lines, end = _nrrd_fields(start)
    space = fields.get("space", "").lower()
    encoding = {"gz": "gzip", "bz2": "bzip2"}.get(name := fields.get("encoding", "").lower(), name)
    if encoding not in ("raw", "gzip", "bzip2", "txt", "text", "ascii", "hex"):
        raise RejectedSeries("an NRRD in an unknown encoding; raw, gzip, bzip2, ascii and hex are read")
    if "spacedirections" not in fields and "spacings" not in fields:
        raise RejectedSeries('it states no spacing; set "space directions" or "spacings" in its header')
    units = fields.get("spaceunits") or fields.get("units", "")
    other = fields.get("datafile", "")
    parts = tuple(_listed(path, other, lines)) if other else ()
    _check_parts(parts)
    packed: tuple[tuple[Path, int], ...] = ()
    endian = fields.get("endian", "").lower()
    narrow = fields.get("type", "").lower() in _BYTES
    if endian not in ("little", "big") and not (narrow or encoding in ("txt", "text", "ascii", "hex")):
        raise RejectedSeries("an NRRD that does not say whether it is little or big endian; set endian in its header")
    if encoding in ("gzip", "bzip2"):
        if int(fields.get("lineskip", 0) or 0) or int(fields.get("byteskip", 0) or 0):
            raise RejectedSeries("a compressed NRRD with line skip or byte skip; save it without")
        packed = tuple((part, 0) for part in parts) or ((path, end),)
    return TextHeader(
        factor=_factor([unit.strip() for unit in units.split('"')[1::2]] or units.split()),
        oriented=space in _ORIENTED,
        default=False,
        big=endian == "big",
        packed=packed,
        encoding=encoding,
    )


def _nrrd_fields(start: bytes) -> tuple[dict[str, str], list[str], int]:
    """Return the fields by their names without spaces in lower case, the lines, and where the header ends.

    It ends at an empty line, or with the file.
    """
    ends = [start.find(mark) + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if mark in start]
    end = min(ends, default=len(start))
    lines = [line for line in start[:end].decode("utf-8", "replace").splitlines() if not line.startswith("#")]
    pairs = [line.partition(":") for line in lines if ":=" not in line]
    return {key.replace(" ", "").lower(): value.strip() for key, _, value in pairs}, lines, end


def _listed(path: Path, other: str, lines: list[str]) -> list[Path]:
    """Return the files of a content that lies in others: one, a LIST behind the header, or a pattern with numbers."""
    words = other.split()
    if words[0].upper() == "LIST":
        first = next(n for n, line in enumerate(lines) if line.lower().replace(" ", "").startswith("datafile:"))
        names = [line.strip() for line in lines[first + 1 :] if line.strip()]
    elif "%" in words[0] and len(words) >= 4:
        low, high, step = map(int, words[1:4])
        names = [words[0] % n for n in range(low, high + (1 if step > 0 else -1), step)]
    else:
        names = [other]
    return [path.parent / name for name in names]


def _check_parts(parts: Sequence[Path]) -> None:
    if missing := sum(not part.is_file() for part in parts):
        raise RejectedSeries(f"{missing} of {len(parts)} files that its header names are missing: they hold its voxels")


def _metaimage(path: Path, start: bytes) -> TextHeader:
    fields, end = _meta_fields(start)
    for name in set(fields) - _META:
        if near := [known for known in sorted(_META) if len(known) == len(name) and _differences(name, known) == 1]:
            raise RejectedSeries(f"a field of its header is nearly {near[0]}: damaged, or misspelt?")
    if not ({"elementspacing", "elementsize"} & set(fields)):
        raise RejectedSeries("it states no spacing; set ElementSpacing in its header")
    slope = float(fields.get("elementtointensityfunctionslope", 1))
    offset = float(fields.get("elementtointensityfunctionoffset", 0))
    if (slope, offset) != (1, 0):
        raise RejectedSeries(
            f"ElementToIntensityFunction of slope {slope:g} and offset {offset:g}, which most programs ignore: apply "
            "it to the values, or take it out"
        )
    other = fields.get("elementdatafile", "")
    several = other.upper().startswith("LIST") or "%" in other
    if not several and other.upper() != "LOCAL":
        _check_parts((path.parent / other,))
    packed: tuple[tuple[Path, int], ...] = ()
    if fields.get("compresseddata", "").lower().startswith("t"):
        if several:
            raise RejectedSeries("a compressed MetaImage in several files; save it as one")
        packed = ((path, end),) if other.upper() == "LOCAL" else ((path.parent / other, 0),)
    turned = {"transformmatrix", "orientation", "rotation"} & set(fields)
    return TextHeader(
        factor=_factor([fields.get("distanceunits", "")]),
        oriented=bool(turned),
        default=True,
        big=any(
            fields.get(name, "").lower().startswith("t") for name in ("binarydatabyteordermsb", "elementbyteordermsb")
        ),
        packed=packed,
        encoding="zlib",
    )


def _differences(one: str, other: str) -> int:
    return sum(mine != yours for mine, yours in zip(one, other))


def _meta_fields(start: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header by their names in lower case, and where it ends: behind ElementDataFile."""
    fields, end = dict[str, str](), 0
    while "elementdatafile" not in fields and end < len(start):
        stop = start.find(b"\n", end) + 1 or len(start)
        key, _, value = start[end:stop].decode("latin-1").partition("=")
        fields[key.strip().lower()] = value.strip()
        end = stop
    return fields, end


def _factor(units: list[str]) -> float | None:
    """Return mm of the unit of lengths. Raises RejectedSeries for one that is unknown, and for several."""
    known = {unit.lower() for unit in units} - _UNKNOWN
    if not known:
        return None
    if any(unit not in _MM for unit in known):
        raise RejectedSeries("its header states an unknown unit of length; mm, cm, m and um are read")
    if len({_MM[unit] for unit in known}) > 1 or len(known) < len({unit.lower() for unit in units}):
        raise RejectedSeries("its header states several units of length")
    return _MM[known.pop()]


def _unpacked(path: Path, start: int, encoding: str) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        if encoding == "bzip2":
            return bz2.decompress(file.read())
        first = file.read(2)
        file.seek(start)
        return gzip.GzipFile(fileobj=file).read() if first == b"\x1f\x8b" else _inflated(file)


def _inflated(file: BinaryIO) -> bytes:
    inflate, pieces = zlib.decompressobj(), []
    while not inflate.eof:
        packed = file.read(_CHUNK)
        if not packed:
            raise EOFError("the compressed content ends too early")
        pieces.append(inflate.decompress(packed))
    return b"".join(pieces)
