"""Random volumes in random legal NIfTI, NRRD and MetaImage files: a case is reproduced by its number."""

from __future__ import annotations

import bz2
import gzip
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np

from helpers import truth
from helpers.truth import FLIP, Truth

KINDS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
_NRRD = {
    **{"uint8": "uchar", "int8": "signed char", "int16": "short", "uint16": "unsigned short", "int32": "int"},
    **{"uint32": "uint", "int64": "longlong", "uint64": "unsigned long long", "float32": "float", "float64": "double"},
}
_META = {
    **{"uint8": "MET_UCHAR", "int8": "MET_CHAR", "int16": "MET_SHORT", "uint16": "MET_USHORT", "int32": "MET_INT"},
    **{"uint32": "MET_UINT", "float32": "MET_FLOAT", "float64": "MET_DOUBLE"},
}
_UNITS = {"mm": 1.0, "um": 0.001, "m": 1000.0, "cm": 10.0}


@dataclass
class Case:
    """reader  ct, mr or labels; refusal  the reason for which the file may be refused, "" if for none."""

    path: Path
    reader: str
    truth: Truth
    refusal: str
    words: dict[str, object] = field(default_factory=dict)


def _values(rng: np.random.Generator, reader: str, kind: str, shape: tuple[int, ...], slope: float, ground: float):
    """Return stored values of `kind`, whose scaled ones are what `reader` takes."""
    limits = np.iinfo(kind) if np.dtype(kind).kind in "iu" else None
    if reader == "labels":
        return truth.distinct(rng, shape, 0, 127 if kind == "int8" else 255).astype(kind)
    low, high = (-1024, 3000) if reader == "ct" else (-2000, 30000)
    ends = sorted(((low - ground) / slope, (high - ground) / slope))
    if limits:
        ends = [max(ends[0], limits.min), min(ends[1], limits.max)]
        ends = ends if ends[0] < ends[1] else [limits.min, limits.max]
    stored = truth.distinct(rng, shape, int(np.ceil(ends[0])), int(np.floor(ends[1])))
    if limits is None and rng.random() < 0.5:
        return (stored + rng.choice([0.25, -0.3, 1e-4], shape)).astype(kind)
    return stored.astype(kind)


def nifti(seed: int, folder: Path) -> Case:
    """Write a NIfTI file: header and pixels by hand, so that nothing is adapted on the way."""
    rng = np.random.default_rng(seed)
    reader = str(rng.choice(["ct", "mr", "labels"]))
    kind = str(rng.choice(KINDS))
    shape = tuple(int(n) for n in rng.integers(4, 11, 3))
    turn = str(rng.choice(["axial", "sagittal", "coronal", "any", "any", "slight", "oblique"]))
    affine = truth.grid(rng, shape, turn)
    slope, ground = [(0.0, 0.0), (np.nan, np.nan), (1.0, 0.0), (1.0, -1024.0), (0.5, -1000.0), (2.0, -2048.0)][
        rng.integers(6)
    ]
    if reader == "labels":
        slope, ground = [(0.0, 0.0), (1.0, 0.0), (np.nan, 0.0)][rng.integers(3)]
    scaled = np.isfinite(slope) and slope != 0
    if reader == "ct" and kind[0] == "u" and not (scaled and ground < 0):
        kind = kind[1:]  # values of a CT lie below 0 too
    stored = _values(rng, reader, kind, shape, slope if scaled else 1.0, ground if scaled else 0.0)
    meant = stored.astype(np.float64) * slope + ground if scaled else stored.astype(np.float64)
    second, big = rng.random() < 0.3, rng.random() < 0.3
    header = (nibabel.Nifti2Header if second else nibabel.Nifti1Header)(endianness=">" if big else "<")
    header.set_data_dtype(kind)
    extent = (*shape, 1) if rng.random() < 0.2 else shape
    header.set_data_shape(extent)
    code, factor = [(2, 1.0), (2, 1.0), (1, 1000.0), (3, 0.001), (2 + 8, 1.0), (0, 1.0)][rng.integers(6)]
    written = affine.copy()
    written[:3] /= factor
    which = str(rng.choice(["sform", "qform", "both", "both", "neither"]))
    header.set_sform(written, int(rng.integers(1, 5)) if which in ("sform", "both") else 0)
    header.set_qform(written, int(rng.integers(1, 5)) if which in ("qform", "both") else 0)
    if which == "sform" and rng.random() < 0.3:
        header["pixdim"][1:4] = 0  # some writers leave it out
    if rng.random() < 0.2:
        header["qform_code"] = 0 if which == "sform" else header["qform_code"]
        header["quatern_b"] = header["quatern_b"] if which in ("qform", "both") else 7.0  # means nothing then
    header["xyzt_units"], header["scl_slope"], header["scl_inter"] = code, slope, ground
    header["cal_min"], header["cal_max"] = 40, 80
    extension = bool(rng.random() < 0.3)
    start = header.sizeof_hdr + 4 + (32 if extension else int(rng.choice([0, 16, 160])))
    pair = bool(rng.random() < 0.15)
    header["magic"] = header.pair_magic if pair else header.single_magic
    header["vox_offset"] = 0 if pair else start
    body = stored.astype(np.dtype(kind).newbyteorder(">" if big else "<")).tobytes(order="F")
    content = header.binaryblock
    if extension:
        size = np.array([32, 6], ">i4" if big else "<i4").tobytes()
        content += b"\1\0\0\0" + size + b"a comment".ljust(24, b"\0")
    packed = bool(rng.random() < 0.5)
    folder.mkdir(exist_ok=True)
    if pair:
        path = folder / ("image.img.gz" if packed else "image.img")
        (folder / ("image.hdr.gz" if packed else "image.hdr")).write_bytes(
            gzip.compress(content, 1) if packed else content
        )
        path.write_bytes(gzip.compress(body, 1) if packed else body)
    else:
        path = folder / ("image.nii.gz" if packed else "image.nii")
        whole = content.ljust(start, b"\0") + body
        path.write_bytes(gzip.compress(whole, 1) if packed else whole)
    refusal = ""
    if which == "neither":
        refusal = "sform_code and qform_code are 0"
    elif reader != "labels":
        refusal = truth.refuses(Truth(stored, affine))
    words = dict(reader=reader, kind=kind, shape=extent, turn=turn, slope=slope, ground=ground, second=second, big=big)
    words["lengths"] = bool(header["pixdim"][1])
    words |= dict(code=code, which=which, extension=extension, pair=pair, packed=packed)
    return Case(path, reader, Truth(_meant(meant, reader), affine), refusal, words)


def _meant(values: np.ndarray, reader: str) -> np.ndarray:
    return np.clip(np.rint(values), -1024, 32767) if reader == "ct" else values


def nrrd(seed: int, folder: Path) -> Case:
    """Write an NRRD file by hand: spaces, units, encodings, content beside it or in several files."""
    rng = np.random.default_rng(seed)
    reader, kind, shape, stored, affine = _drawn(rng, sorted(_NRRD))
    space = str(rng.choice(["LPS", "left-posterior-superior", "RAS", "right-anterior-superior", "LAS", "3D", "none"]))
    unit = str(rng.choice(["", "", "mm", "um", "m", "cm", "parsec"]))
    signs = {"L": FLIP, "l": FLIP, "R": np.eye(3), "r": np.eye(3)}.get(space[0], np.eye(3))
    if space == "LAS":
        signs = np.diag([-1.0, 1.0, 1.0])
    written = signs @ affine[:3] / _UNITS.get(unit, 1.0)
    encoding = str(rng.choice(["raw", "gzip", "gz", "bzip2", "ascii", "hex"], p=[0.35, 0.3, 0.1, 0.1, 0.1, 0.05]))
    big = bool(rng.random() < 0.3)
    lines = ["NRRD0005", "# made for a test", f"type: {_NRRD[kind]}", "dimension: 3"]
    if space != "none":
        lines.append("space dimension: 3" if space == "3D" else f"space: {space}")
    lines.append("sizes: " + " ".join(map(str, shape)))
    if space == "none":
        lines.append("spacings: " + " ".join(f"{v:.12g}" for v in np.linalg.norm(written[:, :3], axis=0)))
    else:
        lines.append("space directions: " + " ".join(_vector(v) for v in written[:, :3].T))
        lines.append(f"space origin: {_vector(written[:, 3])}")
    if unit:
        name = "space units" if space != "none" else "units"
        lines.append(f"{name}: " + " ".join([f'"{unit}"'] * 3))
    lines += ["kinds: domain domain domain", f"encoding: {encoding}"]
    if encoding not in ("ascii",):
        lines.append(f"endian: {'big' if big else 'little'}")
    where = str(rng.choice(["inside", "inside", "beside", "list", "pattern"]))
    folder.mkdir(exist_ok=True)
    body = _ordered(stored, kind, big)
    if where in ("list", "pattern") and encoding in ("raw", "gzip", "gz"):
        per = len(body) // shape[2]
        names = [f"part{k:02d}.bin" for k in range(shape[2])]
        for k, name in enumerate(names):
            (folder / name).write_bytes(_encoded(body[k * per : (k + 1) * per], encoding, kind, big))
        path = folder / "image.nhdr"
        target = "LIST" if where == "list" else f"part%02d.bin 0 {shape[2] - 1} 1"
        listed = [*names] if where == "list" else []
        path.write_text("\n".join([*lines, f"data file: {target}", *listed]) + ("\n" if where == "list" else "\n\n"))
    elif where == "beside":
        skip = int(rng.choice([0, 0, 16])) if encoding == "raw" else 0
        path = folder / "image.nhdr"
        extra = [f"byte skip: {skip}"] if skip else []
        (folder / "image.bin").write_bytes(rng.bytes(skip) + _encoded(body, encoding, kind, big))
        path.write_text("\n".join([*lines, *extra, "data file: image.bin"]) + "\n")
    else:
        path = folder / "image.nrrd"
        path.write_bytes(("\n".join(lines) + "\n\n").encode() + _encoded(body, encoding, kind, big))
    refusal = ""
    if space in ("3D", "none"):
        refusal = "no orientation|unknown unit|bzip2"
    elif encoding == "bzip2":
        refusal = "bzip2|unknown unit"
    elif unit == "parsec":
        refusal = "unit"
    elif reader != "labels":
        refusal = truth.refuses(Truth(stored, affine))
    words = dict(reader=reader, kind=kind, shape=shape, space=space, unit=unit, encoding=encoding, big=big, where=where)
    return Case(path, reader, Truth(_meant(stored.astype(float), reader), affine), refusal, words)


def metaimage(seed: int, folder: Path) -> Case:
    """Write a MetaImage by hand: spellings of its fields, content inside, beside or in several files."""
    rng = np.random.default_rng(seed)
    reader, kind, shape, stored, affine = _drawn(rng, sorted(_META))
    written = FLIP @ affine[:3]
    spacing = np.linalg.norm(written[:, :3], axis=0)
    packed, big = bool(rng.random() < 0.4), bool(rng.random() < 0.3)
    where = str(rng.choice(["inside", "beside", "list"]))
    if where == "list":
        packed = False
    body = _ordered(stored, kind, big)
    content = zlib.compress(body) if packed else body
    orientation = str(rng.choice(["TransformMatrix", "Orientation", "Rotation", "none"]))
    if orientation == "none":
        affine = affine.copy()
        affine[:3, :3] = FLIP * spacing
        written = FLIP @ affine[:3]
    origin = str(rng.choice(["Offset", "Position", "Origin"]))
    unit = str(rng.choice(["", "", "mm", "um", "cm"]))
    scale = [None, None, (1.0, 0.0), (2.0, -100.0)][rng.integers(4)] if reader != "labels" else None
    lines = ["ObjectType = Image", "NDims = 3", f"BinaryData = {rng.choice(['True', 'T', 'true'])}"]
    lines.append(f"{rng.choice(['BinaryDataByteOrderMSB', 'ElementByteOrderMSB'])} = {big}")
    lines.append(f"CompressedData = {packed}")
    if packed and rng.random() < 0.6:
        lines.append(f"CompressedDataSize = {len(content)}")
    factor = _UNITS.get(unit, 1.0)
    if orientation != "none":
        units = written[:, :3] / spacing
        lines.append(f"{orientation} = " + " ".join(f"{v:.12g}" for v in units.T.ravel()))
    lines.append(f"{origin} = " + " ".join(f"{v / factor:.12g}" for v in written[:, 3]))
    lines += ["CenterOfRotation = 0 0 0"] * int(rng.integers(2))
    lines.append("ElementSpacing = " + " ".join(f"{v / factor:.12g}" for v in spacing))
    if unit:
        lines.append(f"DistanceUnits = {unit}")
    if scale is not None:
        lines += [f"ElementToIntensityFunctionSlope = {scale[0]}", f"ElementToIntensityFunctionOffset = {scale[1]}"]
    lines += ["DimSize = " + " ".join(map(str, shape)), "AnatomicalOrientation = ???", f"ElementType = {_META[kind]}"]
    folder.mkdir(exist_ok=True)
    if where == "inside":
        path = folder / "image.mha"
        path.write_bytes(("\n".join([*lines, "ElementDataFile = LOCAL"]) + "\n").encode() + content)
    elif where == "beside":
        path = folder / "image.mhd"
        (folder / "image.raw").write_bytes(content)
        path.write_text("\n".join([*lines, "ElementDataFile = image.raw"]) + "\n")
    else:
        path, per = folder / "image.mhd", len(body) // shape[2]
        names = [f"part{k:02d}.raw" for k in range(shape[2])]
        for k, name in enumerate(names):
            (folder / name).write_bytes(body[k * per : (k + 1) * per])
        path.write_text("\n".join([*lines, "ElementDataFile = LIST 2", *names]) + "\n")
    meant = stored.astype(float)
    if scale is not None:
        meant = meant * scale[0] + scale[1]
    refusal = "" if reader == "labels" else truth.refuses(Truth(stored, affine))
    if scale is not None and scale != (1.0, 0.0):
        refusal = "ElementToIntensityFunction of slope 2 and offset -100"
    words = dict(reader=reader, kind=kind, shape=shape, packed=packed, big=big, where=where, orientation=orientation)
    words |= dict(origin=origin, unit=unit, scale=scale)
    return Case(path, reader, Truth(_meant(meant, reader), affine), refusal, words)


def _drawn(rng: np.random.Generator, kinds: list[str]):
    reader, kind = str(rng.choice(["ct", "mr", "labels"])), str(rng.choice(kinds))
    if reader == "ct" and kind.startswith("u"):
        kind = "int16"
    shape = tuple(int(n) for n in rng.integers(4, 11, 3))
    affine = truth.grid(rng, shape, str(rng.choice(["axial", "any", "any", "slight", "oblique"])))
    return reader, kind, shape, _values(rng, reader, kind, shape, 1.0, 0.0), affine


def _ordered(stored: np.ndarray, kind: str, big: bool) -> bytes:
    return stored.astype(np.dtype(kind).newbyteorder(">" if big else "<")).tobytes(order="F")


def _encoded(body: bytes, encoding: str, kind: str, big: bool) -> bytes:
    if encoding in ("gzip", "gz"):
        return gzip.compress(body, 1)
    if encoding == "bzip2":
        return bz2.compress(body)
    if encoding == "hex":
        return body.hex().encode()
    if encoding == "ascii":
        values = np.frombuffer(body, np.dtype(kind).newbyteorder(">" if big else "<"))
        return " ".join(repr(value.item()) for value in values).encode() + b"\n"
    return body


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(f"{value:.12g}" for value in values) + ")"
