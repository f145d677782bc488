"""Zip archives: read as folders, without trusting them."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import ct_collections, dicom_files, mri_collections, mri_files, radiographs
from helpers.prepared import converted, discovered, names, pixels, problems
from PIL import Image

from data_prep import schema, shard_ct, shard_images
from data_prep.config import CtConfig, LimitConfig, MriConfig, PrepConfig

VOLUME = np.where(np.indices((16, 14, 6))[0] > 4, 40, -1000).astype(np.int16)
VOLUME += np.random.default_rng(0).integers(0, 30, VOLUME.shape, dtype=np.int16)
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def packed(path: Path, folder: Path, method: int = zipfile.ZIP_DEFLATED, top: str = "") -> Path:
    """A zip archive of all files below `folder`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.write(file, os.path.join(top, file.relative_to(folder)))
    return path


def archive_of(path: Path, members: dict[str, bytes] | list[tuple[zipfile.ZipInfo, bytes]]) -> Path:
    """A zip archive of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, payload in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, payload)
    return path


def write(path: Path) -> None:
    """VOLUME in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(VOLUME, AFFINE)
    if path.name == "dicom":
        dicom_files.series(path, VOLUME.T)
    elif path.name == "dcm.gz":
        for file in dicom_files.series(path, VOLUME.T):
            file.with_suffix(".dcm.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    elif path.name.endswith(".img"):
        nibabel.save(nibabel.Nifti1Pair(VOLUME, AFFINE), path)
    elif path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(image, path)
    else:
        itk = pytest.importorskip("SimpleITK", reason="needs SimpleITK: pip install 'meddap[itk]'")
        volume = itk.GetImageFromArray(VOLUME.T)
        volume.SetSpacing((2, 2, 3))
        itk.WriteImage(volume, str(path), useCompression="packed" in path.name)


def nii() -> bytes:
    """VOLUME as NIfTI."""
    return nibabel.Nifti1Image(VOLUME, AFFINE).to_bytes()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name",
    ["dicom", "dcm.gz", "ct.nii", "ct.nii.gz", "ct.mha", "packed.mha", "ct.mhd", "packed.mhd", "ct.nrrd", "packed.nrrd"]
    + ["ct.nhdr", "packed.nhdr", "ct.img"],
)
def test_what_a_folder_gives_its_archive_gives_too(name: str, method: int, tmp_path: Path) -> None:
    """Voxel by voxel, for every format and method; nothing is left beside the archive."""
    write(tmp_path / "plain" / "p1" / "study" / name)
    ((_, whole),) = converted(tmp_path / "a", tmp_path / "plain").values()
    packed(tmp_path / "zipped" / "p1" / "study.zip", tmp_path / "plain" / "p1" / "study", method)
    ((source, (rows, samples)),) = converted(tmp_path / "b", tmp_path / "zipped").items()
    assert source == os.path.join("p1", "study.zip", name) and [row["status"] for row in rows] == ["accepted"]
    assert np.array_equal(pixels(samples), pixels(whole)) and len(samples) == 6
    assert samples[0].subject == whole[0].subject and samples[0].meta == whole[0].meta
    assert [file.name for file in (tmp_path / "zipped" / "p1").iterdir()] == ["study.zip"]


EVERY = [
    pytest.param(modality, write, id=f"{modality}-{tree}")
    for modality, trees in (("CT", ct_collections.COLLECTIONS), ("MR", mri_collections.COLLECTIONS))
    for tree, write in trees.items()
]
FEW = {"CT-nnunet", "CT-kits19", "CT-openkbp", "CT-tcia", "MR-bids", "MR-oasis1"}


@pytest.mark.parametrize(
    ("modality", "write"),
    [case if case.id in FEW else pytest.param(*case.values, id=case.id, marks=pytest.mark.stress) for case in EVERY],
)
def test_a_collection_in_an_archive_is_what_it_is_in_a_folder(modality: str, write, tmp_path: Path) -> None:
    """Layouts, their descriptions, patients, label maps, organs and every voxel: the archive is the input."""
    write(tmp_path / "tree")
    archive = packed(tmp_path / "tree.zip", tmp_path / "tree")
    config = CtConfig() if modality == "CT" else MriConfig()
    expected = converted(tmp_path / "a", tmp_path / "tree", modality=modality, config=config)
    found = converted(tmp_path / "b", archive, modality=modality, config=config)
    assert found.keys() == expected.keys()
    for name, (rows, samples) in expected.items():
        own_rows, own_samples = found[name]
        for row in [*rows, *own_rows]:
            row.pop("fingerprint")
        assert own_rows == rows and len(own_samples) == len(samples)
        for own, sample in zip(own_samples, samples):
            assert np.array_equal(own.pixels, sample.pixels) and own.subject == sample.subject
            assert (own.labelmap is None) == (sample.labelmap is None)
            assert own.labelmap is None or np.array_equal(own.labelmap, sample.labelmap)
    whole, packed_ = (discovered(each, modality=modality, config=config) for each in (tmp_path / "tree", archive))
    assert (packed_.labels, packed_.organ_files.names) == (whole.labels, whole.organ_files.names)
    assert (packed_.layouts, packed_.mapped) == (whole.layouts, whole.mapped)


@pytest.mark.parametrize("name", ["png", "radiograph", "npz"])
def test_pictures_may_lie_in_archives(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture, a radiograph, the images of a MedMNIST file: as from a folder; a damaged one is refused."""
    monkeypatch.setenv("MEDDAP_SALT", "x")
    rng = np.random.default_rng(0)
    (tmp_path / "made" / "p").mkdir(parents=True)
    for number in range(2):
        path = tmp_path / "made" / "p" / f"{number}.{name}"
        if name == "png":
            Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(path)
        elif name == "npz":
            arrays = {f"{split}_images": rng.integers(0, 256, (2, 9, 9), np.uint8) for split in schema.SPLITS}
            arrays |= {f"{split}_labels": np.array([[0], [1]]) for split in schema.SPLITS}
            np.savez(path, **arrays)
        else:
            radiographs.write(path, rng.integers(0, 4096, (20, 30)).astype(np.uint16))
    archive = packed(tmp_path / "in" / "a.zip", tmp_path / "made", zipfile.ZIP_STORED)
    shares = ("split.train=1", "split.val=0", "split.test=0")
    results = []
    for source in (tmp_path / "made", archive):
        output = tmp_path / f"{source.name}-out"
        assert shard_images.main(["--input", str(source), "--output", str(output), *shares]) == 0
        split = schema.Split(output, "train")
        results.append({split[number].key: split[number].pixels.tobytes() for number in range(len(split))})
    assert results[0] == results[1] and results[0]
    with zipfile.ZipFile(archive) as opened:
        info = opened.infolist()[-1]
    flip(archive, info.header_offset + 30 + len(info.filename) + info.compress_size // 2)
    output = tmp_path / "damaged-out"
    assert shard_images.main(["--input", str(archive), "--output", str(output), *shares]) == 0
    rows = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    reasons = [row["reason"] for row in rows if row["status"] == "rejected"]
    assert len(reasons) == 1 and "damaged in its zip archive" in reasons[0]


def test_nothing_of_an_archive_is_written_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the archive, of folders and files in it and texts of headers are in no file, temporary ones included."""
    pytest.importorskip("SimpleITK", reason="needs SimpleITK: pip install 'meddap[itk]'")
    monkeypatch.setenv("MEDDAP_SALT", "x")
    write(tmp_path / "made" / "CANARY" / "ct.mhd")
    dicom_files.series(tmp_path / "made" / "dicom", VOLUME.T, PatientID="CANARY", PatientName="CANARY")
    packed(tmp_path / "in" / "CANARY.zip", tmp_path / "made")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert shard_ct.main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["accepted", "accepted"]
    for path in (tmp_path / "out").rglob("*"):
        assert "CANARY" not in str(path) and not (path.is_file() and b"CANARY" in path.read_bytes())
    assert not list((tmp_path / "tmp").iterdir())


def test_studies_in_archives_make_a_data_set(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command: archives as patients and in patients' folders, label maps in them; a second start finds all done."""
    monkeypatch.setenv("MEDDAP_SALT", "x")
    for number in range(4):
        folder = tmp_path / f"made{number}"
        nibabel.save(nibabel.Nifti1Image(VOLUME + np.int16(number), AFFINE), folder.with_suffix(".nii.gz"))
        (folder / "a").mkdir(parents=True)
        folder.with_suffix(".nii.gz").rename(folder / "a" / "ct.nii.gz")
        labels = np.zeros(VOLUME.shape, np.uint8)
        labels[6:8, 6:8] = 1
        nibabel.save(nibabel.Nifti1Image(labels, AFFINE), folder / "a" / "seg.nii.gz")
        packed(tmp_path / "in" / (f"p{number}.ZIP" if number < 2 else f"p{number}/study.zip"), folder)
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "workers=2"]
    assert shard_ct.main(words) == 0
    assert "4 zip archives read like folders\n" in capsys.readouterr().err
    dataset = schema.read_dataset(tmp_path / "out")
    assert sum(split["subjects"] for split in dataset["splits"].values()) == 4 and "1" in dataset["labels"]
    assert shard_ct.main(words) == 0 and "finished before" in capsys.readouterr().err
    os.utime(tmp_path / "in" / "p0.ZIP", ns=(1, 1))
    assert shard_ct.main(words) == 1 and "the input has changed" in capsys.readouterr().err


def test_an_archive_may_be_the_input(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone or beside a folder; a tar archive or a file is one line."""
    monkeypatch.setenv("MEDDAP_SALT", "x")
    write(tmp_path / "plain" / "p1" / "ct.nii.gz")
    write(tmp_path / "plain" / "p2" / "dicom")
    alone = packed(tmp_path / "all.zip", tmp_path / "plain")
    found = discovered(alone)
    assert names(found.sources) == ["p1/ct.nii.gz", "p2/dicom"] and found.sources[0].patient == "p1"
    (tmp_path / "more" / "p3").mkdir(parents=True)
    mri_files.write(tmp_path / "more" / "p3" / "ct.nii.gz", VOLUME)
    both = discovered(alone, tmp_path / "more")
    assert names(both.sources) == ["all.zip/p1/ct.nii.gz", "all.zip/p2/dicom", "more/p3/ct.nii.gz"]
    assert [source.patient for source in both.sources] == ["p1", "someone", "p3"]
    for name, words in (("x.tar.gz", "a .tar.gz archive; unpack it"), ("x.nii.gz", "none of 1 inputs could be used")):
        (tmp_path / name).write_bytes(b"")
        assert shard_ct.main(["--input", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 1
        assert words in capsys.readouterr().err


def test_a_sequence_of_a_study_may_lie_in_an_archive(tmp_path: Path) -> None:
    """MR: files of one archive are one study, as those of a folder are."""
    for name in ("t1", "t2"):
        mri_files.write(tmp_path / "made" / f"x_{name}.nii.gz", mri_files.head(seed=len(name)))
    packed(tmp_path / "in" / "p.zip", tmp_path / "made")
    (source,) = discovered(tmp_path / "in", modality="MR", config=MriConfig()).sources
    assert source.patient == "p" and len(source.series) == 2


def test_members_that_lead_out_or_are_links_encrypted_or_archives_are_refused(tmp_path: Path) -> None:
    """One row of the archive names them all; the rest of it is read; nothing outside is touched."""
    (tmp_path / "secret_ct.nii").write_bytes(nii())

    def info(name: str, **attributes: int) -> zipfile.ZipInfo:
        made = zipfile.ZipInfo(name)
        for key, value in attributes.items():
            setattr(made, key, value)
        return made

    inside = archive_of(tmp_path / "inner.zip", {"ct.nii": nii()}).read_bytes()
    members = [
        (info("good/ct.nii"), nii()),
        (info("back\\slash\\ct.nii"), nii()),
        *((info(name), nii()) for name in ("../../secret_ct.nii", "/etc/ct.nii", "C:\\ct.nii", "a/../../b_ct.nii")),
        (info("link_ct.nii", create_system=3, external_attr=(stat.S_IFLNK | 0o777) << 16), b"/etc/passwd"),
        *((info(name), inside) for name in ("inner.zip", "x.tar.gz", "x.7Z")),
        (info("__MACOSX/good/._ct.nii"), b"\0\5\x16\7 of macOS"),
        (info("twice_ct.nii"), nii()),
        (info("./twice_ct.nii"), nii()),
        (info("notes.txt"), b"hello"),
    ]
    path = archive_of(tmp_path / "in" / "p.zip", members)
    payload = bytearray(path.read_bytes())
    at = payload.rindex(b"notes.txt") - 46  # its entry of the central directory
    payload[at + 8] |= 1
    path.write_bytes(bytes(payload))
    found = discovered(tmp_path / "in")
    assert names(found.sources) == ["p.zip/back/slash/ct.nii", "p.zip/good/ct.nii"]
    assert problems(found.sources) == {
        "p.zip": "zip archive: 4 with a path that leads out of it, 1 that are links or devices, 3 that are archives "
        "themselves (unpack it), 2 of several with one name, 1 encrypted (unpack it)"
    }
    assert found.ignored == 1  # of macOS


def flip(path: Path, at: int) -> None:
    """Another byte."""
    payload = bytearray(path.read_bytes())
    payload[at] ^= 0x55
    path.write_bytes(bytes(payload))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["ct.nii", "ct.img", "ct.mha", "ct.mhd", "ct.nrrd", "dicom"])
def test_a_damaged_member_costs_itself(name: str, method: int, tmp_path: Path) -> None:
    """A flipped byte among the voxels is told by the checksum, whatever the method; others of the archive are read."""
    write(tmp_path / "made" / "bad" / name)
    write(tmp_path / "made" / "good" / "ct.nii")
    path = packed(tmp_path / "in" / "p.zip", tmp_path / "made", method)
    with zipfile.ZipFile(path) as archive:
        members = [
            info for info in archive.infolist() if info.filename.startswith("bad") and ".mhd" not in info.filename
        ]
    flip(path, members[-1].header_offset + 30 + len(members[-1].filename) + members[-1].compress_size * 3 // 4)
    found = converted(tmp_path / "out", tmp_path / "in", config=CtConfig(values="trust", min_slices=2))
    good = found.pop("p.zip/good/ct.nii")
    assert [row["status"] for row in good[0]] == ["accepted"]
    rejected = [row["reason"] for rows, _ in found.values() for row in rows if row["status"] == "rejected"]
    assert rejected and all("damaged" in reason for reason in rejected)
    assert sum(len(samples) for _, samples in found.values()) == (5 if name == "dicom" else 0)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.stress)])
def test_changed_bytes_of_an_archive_give_its_slices_or_none(count: int, tmp_path: Path) -> None:
    """Bits flipped anywhere, stretches cut or repeated: what is accepted has the pixels that were packed."""
    draws = random.Random(count)
    write(tmp_path / "made" / "a" / "ct.nii")
    write(tmp_path / "made" / "b" / "ct.nii.gz")
    write(tmp_path / "made" / "c" / "dicom")
    wholes = [packed(tmp_path / f"{n}.zip", tmp_path / "made", n).read_bytes() for n in (0, zipfile.ZIP_DEFLATED)]
    config = CtConfig(values="trust", min_slices=1)
    slices = {
        sample.pixels.tobytes()
        for _, samples in converted(tmp_path / "out", tmp_path / "made", config=config).values()
        for sample in samples
    }
    used = 0
    for number in range(count):
        payload = bytearray(draws.choice(wholes))
        at, to = sorted(draws.randrange(len(payload)) for _ in range(2))
        if (kind := draws.randrange(4)) < 2:
            for _ in range(2 ** draws.randrange(4)):
                payload[draws.randrange(len(payload))] ^= 1 << draws.randrange(8)
        else:
            payload[at:to] = b"" if kind == 2 else payload[at:to] * 2
        path = tmp_path / "in" / str(number) / "p.zip"
        path.parent.mkdir(parents=True)
        path.write_bytes(payload)
        found = converted(tmp_path / "out" / str(number), path.parent, config=config)
        assert all(row["status"] == "accepted" or row["reason"] for rows, _ in found.values() for row in rows) and found
        mine = [sample.pixels.tobytes() for _, samples in found.values() for sample in samples]
        assert slices.issuperset(mine), number
        used += bool(mine)
        shutil.rmtree(path.parent)
        shutil.rmtree(tmp_path / "out" / str(number))
    assert 0 < used < count


def test_bombs_are_refused_by_what_they_claim_and_by_what_they_hold(tmp_path: Path) -> None:
    """An archive over limits.zip_gb; one that claims less than it holds."""
    archive_of(tmp_path / "in" / "big.zip", {f"{n}.dcm": bytes(300_000) for n in range(4)})
    config = PrepConfig(limits=LimitConfig(zip_gb=0.001))
    reason = problems(discovered(tmp_path / "in", config=config).sources)["big.zip"]
    assert reason == "a zip archive that unpacks to 0.0012 GB, more than limits.zip_gb=0.001"
    lying = tmp_path / "other" / "p.zip"
    lying.parent.mkdir()
    with zipfile.ZipFile(lying, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ct.nii", nii() + bytes(50_000_000))
    payload = lying.read_bytes()
    claimed = (len(nii()) + 50_000_000).to_bytes(4, "little")
    lying.write_bytes(payload.replace(claimed, len(nii()).to_bytes(4, "little")))
    ((rows, samples),) = converted(tmp_path / "out", tmp_path / "other").values()
    assert not samples and "damaged in its zip archive" in rows[0]["reason"]


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "without files", "directory cut"])
def test_a_damaged_archive_is_one_row(kind: str, tmp_path: Path) -> None:
    """Whatever is wrong with it as a whole."""
    path = archive_of(tmp_path / "in" / "p.zip", {} if kind == "without files" else {"ct.nii": nii()})
    payload = path.read_bytes()
    damaged = {
        "cut": payload[: len(payload) // 2],
        "text": b"hello",
        "empty": b"",
        "without files": payload,
        "directory cut": payload[:-60] + payload[-22:],
    }
    path.write_bytes(damaged[kind])
    reasons = problems(discovered(tmp_path / "in").sources)
    assert list(reasons) == ["p.zip"] and "zip archive" in reasons["p.zip"]


def test_a_header_in_an_archive_does_not_reach_files_outside(tmp_path: Path) -> None:
    """MetaImage and NRRD name the file of their voxels: by absolute path, by .., or one that is not in the archive."""
    pytest.importorskip("SimpleITK", reason="needs SimpleITK: pip install 'meddap[itk]'")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "v.raw").write_bytes(VOLUME.T.tobytes())
    head = "ObjectType = Image\nNDims = 3\nDimSize = 16 14 6\nElementType = MET_SHORT\nElementDataFile = {}\n"
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: 16 14 6\nencoding: raw\nendian: little\ndata file: {}\n\n"
    for number, target in enumerate((tmp_path / "in" / "v.raw", "../v.raw", "v.raw")):
        members = {
            f"{number}a_ct.mhd": head.format(target).encode(),
            f"{number}b_ct.nhdr": nrrd.format(target).encode(),
        }
        archive_of(tmp_path / "in" / f"p{number}.zip", members)
    found = converted(tmp_path / "out", tmp_path / "in")
    assert len(found) == 6
    for rows, samples in found.values():
        assert not samples and rows[0]["reason"] == "the file with its voxels is not beside it in the zip archive"


def test_names_in_old_and_new_letters_are_kept_apart(tmp_path: Path) -> None:
    """CP437 and UTF-8, umlauts in both."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Müller/ct.nii", nii())
        archive.writestr("Mxller/ct.nii", nii())
    payload = buffer.getvalue().replace(b"Mxller", b"M\x81ller")  # ü in CP437, without the flag of UTF-8
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.zip").write_bytes(payload.replace("Müller".encode(), "Möller".encode()))
    found = discovered(tmp_path / "in")
    assert names(found.sources) == ["p.zip/Möller/ct.nii", "p.zip/Müller/ct.nii"]
    (tmp_path / "in" / "p.zip").rename(tmp_path / "in" / "İstanbul.zip")  # whose first letter is two in lower case
    rows = [rows for rows, _ in converted(tmp_path / "out", tmp_path / "in").values()]
    assert len(rows) == 2 and all(row["status"] == "accepted" for own in rows for row in own)


def test_an_archive_beside_what_was_unpacked_from_it_is_left_out(tmp_path: Path) -> None:
    """In a folder of its name, or beside it; one that holds more is read."""
    write(tmp_path / "made" / "x" / "ct.nii.gz")
    for name, place in (("a", "a/x"), ("b", "x")):
        packed(tmp_path / "in" / name / f"{name}.zip", tmp_path / "made")
        write(tmp_path / "in" / name / place / "ct.nii.gz")
    write(tmp_path / "made" / "y" / "ct.nii.gz")
    packed(tmp_path / "in" / "c" / "c.zip", tmp_path / "made")
    write(tmp_path / "in" / "c" / "c" / "x" / "ct.nii.gz")
    found = discovered(tmp_path / "in")
    assert [name for name in names(found.sources) if ".zip" in name] == ["c/c.zip/x/ct.nii.gz", "c/c.zip/y/ct.nii.gz"]
    assert "2 zip archives left out: what was unpacked from them lies beside them" in found.lines


def test_other_archives_are_said(tmp_path: Path) -> None:
    """Each has a row with its reason; a compressed image is none of them."""
    write(tmp_path / "in" / "ct.nii.gz")
    for name in ("a.tar", "b.TAR.GZ", "c.tgz", "d.7z", "e.rar", "f.tar.xz", "g.zip.001", "h.z02"):
        (tmp_path / "in" / name).write_bytes(b"")
    found = discovered(tmp_path / "in")
    assert [reason.split()[1] for reason in problems(found.sources).values()] == [
        *(".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".tar.xz", ".zip.001", ".z02")
    ]
    assert names(found.sources) == ["ct.nii.gz"] and found.ignored == 0
