"""The quick header reader gives what pydicom gives, or leaves the file to it."""

from __future__ import annotations

import tarfile
from pathlib import Path

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
from data_prep.dicom.scan import scan


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
