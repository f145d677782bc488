"""The quick header reader gives what pydicom gives, or leaves the file to it."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers import dicom_files
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from data_prep import schema
from data_prep.config import StackConfig
from data_prep.dicom import frames, headers
from data_prep.dicom.scan import AnyHeader, once, part, scan, tags_of


def same(path: Path) -> bool:
    """Whether the file is of the usual kind; asserts that every value, and where the pixels begin, is pydicom's."""
    with open(path, "rb") as file:
        found = scan(file)
        at = file.tell()
    if found is None:
        assert at == 0
        return False
    with open(path, "rb") as file:
        expected = pydicom.dcmread(file, stop_before_pixels=True)
        assert file.tell() == at
    for element in [*expected, *expected.file_meta]:
        name = keyword_for_tag(element.tag)
        if name and element.VR != "SQ":
            assert found.get(name) == element.value and type(found.get(name)) is type(element.value), name
            assert name in found
    assert found.get("PatientTelephoneNumbers", "none") == expected.get("PatientTelephoneNumbers", "none")
    return True


def test_real_files_read_the_same(data_dir: Path) -> None:
    """Every value of every header that the quick reader takes on; it takes on most."""
    files = [path for path in (data_dir / "dicom").rglob("*") if path.is_file() and pydicom.misc.is_dicom(path)]
    taken = sum(same(path) for path in files)
    assert taken > len(files) / 2 and taken < len(files)


def test_what_is_unusual_is_left_to_pydicom(tmp_path: Path) -> None:
    """Other letters, several frames, sequences of undefined length: None. A defined length is skipped."""
    plane = np.zeros((1, 8, 8), np.int16)

    def made(name: str, **attributes: object) -> Path:
        return dicom_files.series(tmp_path / name, plane, **attributes)[0]

    inner = Dataset()
    inner.CodeValue = "1"
    open_ended = Sequence([inner])
    assert same(made("usual", PatientName="Doe^Jane", ContrastBolusAgent="", WindowCenter=[40, 300]))
    assert same(made("latin", SpecificCharacterSet="ISO_IR 100", InstitutionName="Zürich"))
    assert same(made("sequence", ProcedureCodeSequence=[inner]))
    assert not same(made("utf8", SpecificCharacterSet="ISO_IR 192", PatientID="Zoë"))
    path = made("undefined", ProcedureCodeSequence=open_ended)
    dataset = pydicom.dcmread(path)
    dataset["ProcedureCodeSequence"].is_undefined_length = True
    dataset.save_as(path)
    assert not same(path)
    enhanced = dicom_files.enhanced(tmp_path / "enhanced", plane, [(0, 0, 0)])
    assert not same(enhanced)


@given(st.binary(max_size=600))
def test_no_bytes_break_it(tail: bytes) -> None:
    """Anything after the prefix is read or left alone, never an error."""
    import io

    file = io.BytesIO(bytes(128) + b"DICM" + tail)
    assert scan(file) is None or file.tell() >= 132


@given(st.from_regex(r"[0-9a-z_-]{1,60}\.(ct\.b2|json)", fullmatch=True), st.binary(max_size=2000))
def test_a_tar_member_is_tarfiles_own(name: str, payload: bytes) -> None:
    """Header, payload and padding to the byte."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(payload), 0o644
    expected = info.tobuf(format=tarfile.USTAR_FORMAT) + payload + bytes(-len(payload) % 512)
    assert schema.tar_block(name, payload) == expected


def test_a_tar_member_with_a_name_too_long_is_refused() -> None:
    """Rather than cut."""
    with pytest.raises(schema.SchemaError, match="up to 100 letters"):
        schema.tar_block("x" * 101, b"")


def test_what_files_share_is_worked_out_once(tmp_path: Path) -> None:
    """For files that agree in the chosen elements, and again for one that does not; another element is an error."""
    plane, tags = np.zeros((1, 8, 8), np.int16), tags_of("PatientSex", "Rows", "KVP")
    calls: list[str] = []

    def sex(header: AnyHeader, word: str) -> str:
        calls.append(word)
        return f"{header.get('PatientSex')} {word} {'KVP' in header}"

    def of(name: str, **attributes: object) -> AnyHeader:
        with open(dicom_files.series(tmp_path / name, plane, **attributes)[0], "rb") as file:
            found = scan(file)
        assert found is not None
        return part(tags, found.raw(tags))

    one, other, third = of("a", PatientSex="F", KVP=120), of("b", PatientSex="F", KVP=120), of("c", PatientSex="M")
    assert [once(header, sex, "x") for header in (one, other, third)] == ["F x True", "F x True", "M x False"]
    assert once(other, sex, "y") == "F y True" and calls == ["x", "x", "y"]
    for look in (lambda: one.get("Columns"), lambda: "Columns" in one, lambda: one.Columns):
        with pytest.raises(KeyError):
            look()
    dataset = pydicom.Dataset()
    dataset.PatientSex = "O"
    assert once(dataset, sex, "x") == "O x False"


@pytest.mark.parametrize(
    "text", ["1\\2\\3", "-1.5\\+2.25e1\\3E-2 ", "1.\\.5\\0", " 1\\2 \\3", "1\\\\3", "", "1,5\\0\\0", "nan\\0\\0", "1"]
)
def test_decimals_are_those_of_pydicom(text: str, tmp_path: Path) -> None:
    """Usual numbers are read at once with the values of pydicom's; whatever else is left to it."""
    path = dicom_files.series(tmp_path, np.zeros((1, 8, 8), np.int16))[0]
    content = path.read_bytes()
    with open(path, "rb") as file:
        found = scan(file)
    assert found is not None
    stored = found.raw(tags_of("ImagePositionPatient"))[0]
    assert stored is not None
    old = (0x0020).to_bytes(2, "little") + (0x0032).to_bytes(2, "little") + b"DS"
    at = content.index(old)
    value = text.encode() + b" " * (len(text) % 2)
    new = old + len(value).to_bytes(2, "little") + value
    path.write_bytes(content[:at] + new + content[at + 8 + len(stored[1]) :])
    with open(path, "rb") as file:
        found = scan(file)
    assert found is not None
    quick = found.decimals("ImagePositionPatient")
    if quick is None:
        assert text not in ("1\\2\\3", "-1.5\\+2.25e1\\3E-2 ", "1")
        return
    expected = pydicom.dcmread(path).ImagePositionPatient
    assert quick == [float(each) for each in (expected if len(quick) > 1 else [expected])]


def test_a_file_of_a_series_that_differs_is_judged_by_itself(tmp_path: Path) -> None:
    """What is kept of one file is never said of another: scale, padding, bits and patient of each are its own."""
    plane = np.zeros((1, 8, 8), np.int16)
    shared: dict[str, Any] = {"SeriesInstanceUID": "1.2.3", "PatientID": "p"}
    changes: list[dict[str, Any]] = [
        {},
        {"RescaleSlope": 2},
        {"RescaleIntercept": -5},
        {"PixelPaddingValue": 7},
        {"PixelSpacing": [2, 3]},
        {"place": (1, 2, 3)},
        {},
    ]
    seen = []
    for number, change in enumerate(changes):
        place = change.pop("place", (0, 0, 0))
        path = dicom_files.series(tmp_path / str(number), plane, [place], **{**shared, **change})[0]
        ((frame, _),) = frames.read(str(path), "CT", StackConfig())
        seen.append((frame.slope, frame.intercept, frame.padding, frame.spacing, tuple(frame.position)))
    assert seen[0] == seen[-1] and len(set(seen)) == len(changes) - 1
    assert (seen[1][0], seen[2][1], seen[3][2], seen[4][3], seen[5][4]) == (2, -5, (7, 7), (2, 3), (1, 2, 3))
    paths = [dicom_files.series(tmp_path / who, plane, **{**shared, "PatientID": who})[0] for who in ("a", "b")]
    assert [headers.read_header(path).patient for path in paths] == ["a", "b"]
    assert headers.read_if_dicom(paths[0]) == headers.read_header(paths[0])
