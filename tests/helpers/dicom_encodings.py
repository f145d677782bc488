"""Random volumes in random legal DICOM encodings: a case is reproduced by its number."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from helpers import dicom_files, truth
from helpers.truth import FLIP, Truth

AIR = -1024
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
PACKED = (RLELossless, JPEG2000Lossless)
SYNTAXES = (*PLAIN, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, *PACKED)
# By which two volumes at the same places are told apart
BOTH: tuple[tuple[str | int, object, object], ...] = (
    ("AcquisitionNumber", 1, 2),
    ("AcquisitionTime", "101010.5", "101042.25"),
    ("ContentTime", "101010", "101042"),
    ("TemporalPositionIdentifier", 1, 2),
    ("TriggerTime", "12.5", "340"),
    ("NominalPercentageOfCardiacPhase", 40.0, 75.0),
    ("SeriesDescription", "arterial", "portal venous"),
    ("ContrastBolusAgent", "", "agent"),
    ("ScanOptions", "HELIX", "AXIAL"),
    ("StackID", "1", "2"),
    ("SeriesNumber", 4, 5),
    ("WindowCenter", "40", "-600"),
    ("ImageComments", "first", "second"),
)
TRAITS = {
    "CT": (
        *BOTH,
        ("ConvolutionKernel", "B30f", "B70f"),
        ("KVP", "80", "140"),
        ("FilterType", "A", "B"),
        ("XRayTubeCurrent", 100, 300),
        ("ReconstructionDiameter", "250", "400"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL", "E1"], ["ORIGINAL", "PRIMARY", "AXIAL", "E2"]),
    ),
    "MR": (
        *BOTH,
        ("EchoTime", "2.46", "4.92"),
        ("EchoNumbers", 1, 2),
        ("InversionTime", "300", "900"),
        ("DiffusionBValue", 0.0, 1000.0),
        ("DiffusionGradientOrientation", [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]),
        (0x0019100C, "0", "800"),
        ("FlipAngle", "5", "26"),
        ("RepetitionTime", "500", "3000"),
        ("SequenceName", "*ep_b0", "*ep_b1000t"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
    ),
}
# The same in an enhanced file: functional group, attribute and two values
GROUPS = {
    "CT": (
        ("FrameContentSequence", "TemporalPositionIndex", 1, 2),
        ("FrameContentSequence", "StackID", "1", "2"),
        ("FrameContentSequence", "FrameAcquisitionNumber", 1, 2),
        ("CTReconstructionSequence", "ConvolutionKernel", "B30f", "B70f"),
        ("CTXRayDetailsSequence", "KVP", 80.0, 140.0),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", 40.0, 75.0),
    ),
    "MR": (
        ("FrameContentSequence", "TemporalPositionIndex", 1, 2),
        ("FrameContentSequence", "StackID", "1", "2"),
        ("MREchoSequence", "EffectiveEchoTime", 2.5, 80.0),
        ("MRDiffusionSequence", "DiffusionBValue", 0.0, 1000.0),
        ("MRModifierSequence", "InversionTimes", [100.0], [900.0]),
        ("MRImageFrameTypeSequence", "ComplexImageComponent", "MAGNITUDE", "PHASE"),
        ("TemporalPositionSequence", "TemporalPositionTimeOffset", 0.0, 12.0),
    ),
}


@dataclass
class Case:
    """paths of one series, what must come out, and the reason for which it may be refused ("" if for none)."""

    paths: list[Path]
    modality: str
    truths: list[Truth]
    refusal: str
    words: dict[str, object] = field(default_factory=dict)


@dataclass
class Coding:
    """How stored values stand for others. slope, intercept  one for each slice, as text of the header."""

    bits: int
    allocated: int
    signed: bool
    slopes: list[str]
    intercepts: list[str]
    padding: tuple[int, int] | None
    inverted: bool
    spare: bool

    @property
    def low(self) -> int:
        """The smallest stored value."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def high(self) -> int:
        """The largest stored value."""
        return self.low + (1 << self.bits) - 1

    def meant(self, stored: np.ndarray, modality: str) -> np.ndarray:
        """Return HU or signal of (I, J, K) stored values."""
        planes = []
        for k in range(stored.shape[2]):
            plane = stored[:, :, k].astype(np.int64)
            outside = np.zeros(plane.shape, bool)
            if self.padding:
                outside = (plane >= self.padding[0]) & (plane <= self.padding[1])
            if self.inverted and modality == "MR":
                plane = self.high + self.low - plane
            if modality == "MR" and outside.any() and not outside.all():
                plane = np.where(outside, plane[~outside].min(), plane)
            values = plane * float(self.slopes[k]) + float(self.intercepts[k])
            if modality == "CT":
                values = np.where(outside, AIR, np.clip(np.rint(values), AIR, 32767))
            planes.append(values)
        return np.stack(planes, axis=2)


def _coding(rng: np.random.Generator, modality: str, count: int) -> Coding:
    allocated, bits = [(16, 16), (16, 12), (16, 12), (16, 10), (16, 14), (8, 8), (16, 8), (32, 32), (32, 20)][
        rng.choice(9, p=[0.25, 0.2, 0.15, 0.1, 0.05, 0.1, 0.05, 0.05, 0.05])
    ]
    signed = bool(rng.random() < 0.5)
    kind = rng.choice(["one", "whole", "fraction", "slices"])
    slope = {"one": "1", "whole": "2", "fraction": str(rng.choice(["0.5", "1.25", "0.732143", "3.1E-01"]))}
    ground = str(rng.choice(["-1024", "-1000", "0", "-1024.5", "-8192", "1.0E+01"]))
    if kind == "slices":
        slopes = [f"{value:.6g}" for value in rng.uniform(0.3, 2, count)]
        grounds = [f"{value:.6g}" for value in rng.uniform(-1024, 10, count)]
    else:
        slopes, grounds = [slope[kind]] * count, [ground] * count
    coding = Coding(bits, allocated, signed, slopes, grounds, None, bool(rng.random() < 0.2), bool(rng.random() < 0.15))
    if rng.random() < 0.25:
        first = int(rng.integers(coding.low, coding.high))
        coding.padding = first, min(first + int(rng.choice([0, 0, 3])), coding.high)
    return coding


def case(seed: int, folder: Path) -> Case:
    """Write a random series into `folder`."""
    rng = np.random.default_rng(seed)
    modality = str(rng.choice(["CT", "MR"]))
    many, enhanced = rng.random() < 0.35, rng.random() < 0.3
    shape = tuple(int(n) for n in (*rng.integers(5, 12, 2), rng.integers(4, 10)))
    kind = str(rng.choice(["axial", "axial", "sagittal", "coronal", "any", "slight", "oblique", "tilt"]))
    coding = _coding(rng, modality, shape[2])
    syntax = SYNTAXES[rng.choice(len(SYNTAXES), p=[0.3, 0.2, 0.1, 0.1, 0.2, 0.1])]
    # what pydicom's encoders do not write rightly
    if syntax in PACKED and (coding.allocated == 32 or (coding.allocated, coding.bits) == (16, 8)):
        syntax = ExplicitVRLittleEndian
    if syntax == JPEG2000Lossless:
        shape = 33, 35, min(shape[2], 8)  # its encoder takes none smaller
    affine = truth.grid(rng, shape, kind.replace("tilt", "axial"))
    if kind == "tilt":
        affine = truth.tilted(rng, affine, shape)
        truths = [truth.field(rng, shape, affine) for _ in range(2 if many else 1)]
        coding = Coding(12, 16, False, ["1"] * shape[2], ["0"] * shape[2], None, False, False)
        stored = [one.values.astype(int) for one in truths]
    else:
        stored = [_drawn(rng, shape, coding) for _ in range(2 if many else 1)]
    words = dict(modality=modality, shape=shape, kind=kind, syntax=syntax.name, coding=coding, enhanced=enhanced)
    write = _enhanced if enhanced else _classic
    paths = write(rng, folder, modality, stored, affine, coding, syntax, words)
    if kind != "tilt":
        truths = [Truth(coding.meant(one, modality), affine) for one in stored]
    refusal = truth.refuses(truths[0]) if kind != "tilt" else ""
    if many and not words["trait"] and not words.get("indices"):
        refusal = "no attribute tells the volumes apart"
    return Case(paths, modality, truths, refusal, words)


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], coding: Coding) -> np.ndarray:
    low, high = coding.low, coding.high
    if coding.bits > 16:
        low, high = max(low, -40000), min(high, 40000)
    return truth.distinct(rng, shape, low, high)


def _base(rng: np.random.Generator, modality: str, coding: Coding, stored: np.ndarray, packed: bool) -> Dataset:
    """Return what all files share; what may be missing is missing now and then."""
    dataset = dicom_files.header(modality, PixelSpacing=None, ImageOrientationPatient=None)
    if modality == "CT":
        del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = coding.allocated, coding.bits, coding.bits - 1
    dataset.PixelRepresentation = int(coding.signed)
    dataset.PhotometricInterpretation = "MONOCHROME1" if coding.inverted else "MONOCHROME2"
    dataset.Columns, dataset.Rows = stored.shape[:2]
    if coding.padding:
        first, last = coding.padding if rng.random() < 0.5 else coding.padding[::-1]
        width = "US" if not coding.signed else "SS"
        if coding.allocated == 16 or max(abs(first), abs(last)) < 1 << 15:
            if coding.signed and rng.random() < 0.3:  # stated unsigned
                first, last, width = first & 0xFFFF, last & 0xFFFF, "US"
            dataset.add_new("PixelPaddingValue", width, first)
            if first != last:
                dataset.add_new("PixelPaddingRangeLimit", width, last)
        else:
            coding.padding = None
    for name in ("PatientID", "FrameOfReferenceUID", "SamplesPerPixel", "HighBit", "SliceThickness"):
        if packed and name == "SamplesPerPixel":
            continue  # the encoders need it
        if rng.random() < 0.1 and name in dataset:
            del dataset[name]
        elif rng.random() < 0.1 and name in ("PatientID", "SliceThickness"):
            setattr(dataset, name, None)
    letters = [None, "ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 87"], "GB18030"][rng.integers(5)]
    if letters is not None:
        dataset.SpecificCharacterSet = letters
        dataset.PatientName = "Müller^Ä" if letters in ("ISO_IR 100", "ISO_IR 192") else "Yamada^Tarou"
    if rng.random() < 0.3:
        private = dataset.private_block(0x0029, "SOME MAKER", create=True)
        private.add_new(0x10, "OB", rng.bytes(int(rng.choice([8, 3000, 70000]))))
        private.add_new(0x11, "SQ", [Dataset()])
    if rng.random() < 0.3:
        items = []
        for n in range(int(rng.choice([1, 60]))):
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, f"1.2.3.{n}"
            item.Rows, item.PixelSpacing = 7, [9, 9]  # these are not the image's
            items.append(item)
        dataset.ReferencedImageSequence = items
        dataset["ReferencedImageSequence"].is_undefined_length = bool(rng.random() < 0.5)
    return dataset


def _pixels(planes: Sequence[np.ndarray], coding: Coding, rng: np.random.Generator, spare: bool) -> bytes:
    """Return (rows, columns) planes as bytes; bits above BitsStored hold an overlay, if `spare`."""
    width = coding.allocated // 8
    stored = np.stack([plane.T for plane in planes]).astype(np.int64)
    if spare and coding.bits < coding.allocated:
        free = coding.allocated - coding.bits
        stored = (stored & ((1 << coding.bits) - 1)) | rng.integers(0, 1 << free, stored.shape) << coding.bits
    return (stored & ((1 << coding.allocated) - 1)).astype(f"<u{width}").tobytes()


def _save(
    rng: np.random.Generator, dataset: Dataset, path: Path, payload: bytes, syntax: str, big: int, whole: bool
) -> Path:
    """Write one file; without its preamble or packed by gzip now and then, unless it must be `whole`."""
    if syntax == ExplicitVRBigEndian and big > 1:
        payload = np.frombuffer(payload, f"<u{big}").astype(f">u{big}").tobytes()
    payload += b"\0" * (len(payload) % 2)
    dataset.PixelData = payload
    dataset["PixelData"].VR = "OB" if big == 1 and syntax != ImplicitVRLittleEndian else "OW"
    if syntax in PACKED:
        dicom_files.save(dataset, path, ExplicitVRLittleEndian)
        dataset.compress(syntax, generate_instance_uid=False)
        frames = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))
        pieces = int(rng.choice([1, 2])) if syntax == JPEG2000Lossless else 1
        dataset.PixelData = encapsulate(frames, fragments_per_frame=pieces, has_bot=bool(rng.random() < 0.5))
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path, enforce_file_format=True)
    else:
        dicom_files.save(dataset, path, syntax)
    content = path.read_bytes()
    if not whole and rng.random() < 0.1:
        content = content[132:]
    if not whole and rng.random() < 0.1:
        content = gzip.compress(content, 1)
    path.write_bytes(content)
    return path


def _text(value: float) -> str:
    """Return a decimal of at most 16 characters."""
    for digits in range(12, 4, -1):
        if len(text := f"{value:.{digits}g}") <= 16:
            return text
    raise AssertionError(value)


def _place(affine: np.ndarray, k: int, off: np.ndarray | int = 0) -> list[str]:
    return [_text(value) for value in FLIP @ (affine[:3, 3] + affine[:3, 2] * k + off)]


def _axes(affine: np.ndarray) -> list[str]:
    units = FLIP @ affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    return [_text(round(value, 10)) for value in units.T.ravel()]


def _classic(
    rng: np.random.Generator,
    folder: Path,
    modality: str,
    stored: list[np.ndarray],
    affine: np.ndarray,
    coding: Coding,
    syntax: str,
    words: dict,
) -> list[Path]:
    """One file per slice, in any order of names and numbers."""
    base = _base(rng, modality, coding, stored[0], syntax in PACKED)
    columns, rows = np.linalg.norm(affine[:3, :2], axis=0)
    count = stored[0].shape[2]
    pairs = [(number, k) for number in range(len(stored)) for k in range(count)]
    if rng.random() < 0.2:
        pairs += [pairs[n] for n in rng.choice(len(pairs), 2, replace=False)]  # stored twice
        words["duplicates"] = True
    told = len(stored) > 1 and rng.random() < 0.9
    trait = TRAITS[modality][rng.integers(len(TRAITS[modality]))] if told else None
    numbering = str(rng.choice(["rising", "falling", "missing", "restarting", "same", "any"]))
    jitter = rng.random() < 0.2 and words["kind"] != "tilt"
    slopes = modality == "CT" or coding.slopes != ["1"] * count or coding.intercepts != ["0"] * count
    words |= dict(trait=trait, numbering=numbering, jitter=jitter, sequence="ReferencedImageSequence" in base)
    names, paths = rng.permutation(len(pairs)), []
    drawn = rng.permutation(500)
    for n, (number, k) in enumerate(pairs):
        dataset = Dataset()
        dataset.update(base)
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(folder), str(n)])
        dataset.ImagePositionPatient = _place(affine, k, rng.uniform(-4e-3, 4e-3, 3) if jitter else 0)
        dataset.ImageOrientationPatient = _axes(affine)
        turns = 1 + 1e-6 * (n % 2) if jitter else 1
        dataset.PixelSpacing = [_text(rows * turns), _text(columns)]
        if slopes:
            dataset.RescaleSlope, dataset.RescaleIntercept = coding.slopes[k], coding.intercepts[k]
        numbers = dict(rising=k + count * number, falling=900 - n, restarting=k, same=1, any=int(drawn[n]))
        if numbering != "missing":
            dataset.InstanceNumber = numbers[numbering]
        if trait is not None and isinstance(trait[0], int):
            dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", trait[1 + number])
        elif trait is not None:
            setattr(dataset, trait[0], trait[1 + number])
        path = folder / f"{names[n]:03d}"
        payload = _pixels([stored[number][:, :, k]], coding, rng, coding.spare and syntax in PLAIN)
        paths.append(_save(rng, dataset, path, payload, syntax, coding.allocated // 8, False))
    return sorted(paths)


def _enhanced(
    rng: np.random.Generator,
    folder: Path,
    modality: str,
    stored: list[np.ndarray],
    affine: np.ndarray,
    coding: Coding,
    syntax: str,
    words: dict,
) -> list[Path]:
    """One multi-frame file, or one per volume; what all frames share is in either group."""
    base = _base(rng, modality, coding, stored[0], syntax in PACKED)
    base.SOPClassUID = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    told = len(stored) > 1 and rng.random() < 0.8
    trait = GROUPS[modality][rng.integers(len(GROUPS[modality]))] if told else None
    columns, rows = np.linalg.norm(affine[:3, :2], axis=0)
    count = stored[0].shape[2]
    pairs = [(number, k) for number in range(len(stored)) for k in range(count)]
    pairs = [pairs[n] for n in rng.permutation(len(pairs))] if rng.random() < 0.6 else pairs
    split = len(stored) > 1 and rng.random() < 0.4
    indices = rng.random() < 0.6
    shared = Dataset()
    slopes = modality == "CT" or coding.slopes != ["1"] * count or coding.intercepts != ["0"] * count
    steady = len(set(coding.slopes)) == len(set(coding.intercepts)) == 1
    everywhere: dict[str, Callable[[int], dict[str, object]]] = {
        "PlaneOrientationSequence": lambda k: dict(ImageOrientationPatient=_axes(affine)),
        "PixelMeasuresSequence": lambda k: dict(PixelSpacing=[_text(rows), _text(columns)]),
    }
    if slopes:
        everywhere["PixelValueTransformationSequence"] = lambda k: dict(
            RescaleSlope=coding.slopes[k], RescaleIntercept=coding.intercepts[k], RescaleType="HU"
        )
    inside = {name for name in everywhere if rng.random() < 0.5}
    if slopes and not steady:
        inside.add("PixelValueTransformationSequence")
    for name in set(everywhere) - inside:
        setattr(shared, name, [_item(everywhere[name](0))])
    base.SharedFunctionalGroupsSequence = [shared]
    words |= dict(trait=trait, split=split, indices=indices, inside=sorted(inside))
    paths = []
    for part in range(2 if split else 1):
        members = [pair for pair in pairs if not split or pair[0] == part]
        dataset, groups = Dataset(), []
        dataset.update(base)
        for number, k in members:
            group, content = Dataset(), dict[str, object]()
            group.PlanePositionSequence = [_item(dict(ImagePositionPatient=_place(affine, k)))]
            for name in inside:
                setattr(group, name, [_item(everywhere[name](k))])
            if indices:
                content |= dict(DimensionIndexValues=[number + 1, k + 1], InStackPositionNumber=k + 1)
            if trait is not None and trait[0] == "FrameContentSequence":
                content[trait[1]] = trait[2 + number]
            elif trait is not None:
                setattr(group, trait[0], [_item({trait[1]: trait[2 + number]})])
            if content:
                group.FrameContentSequence = [_item(content)]
            groups.append(group)
        dataset.PerFrameFunctionalGroupsSequence = groups
        dataset.NumberOfFrames = len(members)
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(folder), str(part)])
        planes = [stored[number][:, :, k] for number, k in members]
        payload = _pixels(planes, coding, rng, coding.spare and syntax in PLAIN)
        path = folder / f"enhanced{part}"
        paths.append(_save(rng, dataset, path, payload, syntax, coding.allocated // 8, False))
    return paths


def _item(values: dict[str, object]) -> Dataset:
    item = Dataset()
    dicom_files.put(item, values)
    return item
