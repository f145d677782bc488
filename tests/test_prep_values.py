"""What speaks for HU and what against it, in volumes of both kinds: real CT passes, everything else is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from data_prep.config import CtConfig
from data_prep.dicom.series_reader import read_series
from data_prep.synthetic import phantom
from data_prep.volumes import hounsfield, images
from data_prep.volumes.scaling import ToHounsfield
from data_prep.volumes.volume import RejectedSeries, Volume

CASES = Path(__file__).resolve().parent.parent.parent / "shared" / "cases"


def trunk(seed: int = 0) -> np.ndarray:
    """(12, 128, 128) float HU of a synthetic patient, with the noise of air too."""
    rng = np.random.default_rng(seed)
    return phantom.make(rng, slices=12, size=128).hu + rng.normal(0, 10, (12, 128, 128))


def head(seed: int = 0) -> np.ndarray:
    """(10, 96, 96) float HU: brain in a skull, air around it, a sinus."""
    z, y, x = np.indices((10, 96, 96))
    radius = np.hypot(x - 48, (y - 48) * 0.85)
    hu = np.where(radius < 38, 1100.0, -1000.0)
    hu[radius < 35.5] = 35
    hu[np.hypot(x - 52, y - 54) < 4] = 5  # a ventricle
    hu[np.hypot(x - 48, y - 30) < 6] = -1000
    hu[(radius >= 38) & (radius < 40)] = -90  # fat of the scalp
    return ndimage.gaussian_filter(hu, 0.7) + np.random.default_rng(seed).normal(0, 5, hu.shape)


def judged(stored: np.ndarray, **settings: str) -> dict[str, object]:
    """Notes on values as they come from a file."""
    convert = ToHounsfield()
    return hounsfield.check(convert(stored), convert.notes(), CtConfig(**settings))


def windowed(low: float, high: float):
    """Cut values off at both ends."""
    return lambda hu: np.clip(hu, low, high)


def wrapped(hu: np.ndarray) -> np.ndarray:
    """12 bits that wrapped: what is below 0 is counted down from 4096."""
    return np.rint(hu).astype(int) % 4096 + 1


def masked(hu: np.ndarray) -> np.ndarray:
    """Only what is denser than fat; 0 elsewhere, as brain extraction leaves it."""
    return np.where(hu > -80, hu, 0)


NOT_HU = {
    "lost intercept": lambda hu: hu + 1024,
    "lost intercept, no negatives": lambda hu: np.maximum(hu + 1024, 0),
    "intercept twice": lambda hu: hu - 1024,
    "12 bits": wrapped,
    "12 bits, another intercept": lambda hu: wrapped(hu) - 1024,
    "z-scores": lambda hu: (hu - hu.mean()) / hu.std(),
    "minus 1 to 1": lambda hu: np.clip(hu / 1000, -1, 1),
    "0 to 1": lambda hu: np.clip((hu + 1000) / 2000, 0, 1),
    "0 to 255": lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255),
    "signed bytes": lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255) - 128,
    "abdominal window": windowed(-160, 240),
    "lung window": windowed(-1000, 40),
    "brain window": windowed(0, 80),
    "wide soft window": windowed(-500, 300),
    "a tenth": lambda hu: hu / 10,
    "half": lambda hu: hu / 2,
    "shifted by 200": lambda hu: hu + 200,
    "shifted by 500": lambda hu: hu + 500,
    "inverted": lambda hu: -hu,
    "attenuation": lambda hu: (hu / 1000 + 1) * 0.19,
    "masked with 0": masked,
    "lost intercept, padded with -2000": lambda hu: padded(-2000)(hu + 1024),
    "lost intercept, padded with -1024": lambda hu: padded(-1024)(hu + 1024),
    "lost intercept, padded with loss": lambda hu: (
        padded(-2000)(hu + 1024) + np.random.default_rng(3).normal(0, 3, hu.shape)
    ),
    "12 bits, padded": lambda hu: padded(-2000)(wrapped(hu)),
}


@pytest.mark.parametrize("body", [trunk, head], ids=["trunk", "head"])
@pytest.mark.parametrize("kind", NOT_HU)
def test_what_is_not_in_hu_is_refused(kind: str, body) -> None:
    """Shifted, wrapped, scaled, windowed, masked: with the evidence in numbers; values=trust takes it and notes why."""
    values = NOT_HU[kind](body())
    with pytest.raises(RejectedSeries, match=r"\d.*") as caught:
        judged(values)
    trusted = judged(values, values="trust")["values_trusted"]
    assert trusted == caught.value.reason.removesuffix("; values=trust takes it")


def padded(value: float):
    """Everything outside a circle has one value."""

    def pad(hu: np.ndarray) -> np.ndarray:
        y, x = np.indices(hu.shape[1:])
        outside = np.hypot(x - hu.shape[2] / 2, y - hu.shape[1] / 2) > hu.shape[1] / 2
        return np.where(outside, value, hu)

    return pad


def metal(hu: np.ndarray) -> np.ndarray:
    """A prosthesis at the top of 12 bits, with streaks far below air."""
    hu = hu.copy()
    hu[:, 40:60, 40:56] = 3071
    hu[:, 60:64] = np.random.default_rng(1).normal(-1400, 300, hu[:, 60:64].shape)
    return hu


REAL = {
    "as it is": lambda hu: hu,
    "noisy": lambda hu: hu + np.random.default_rng(2).normal(0, 60, hu.shape),
    "smooth": lambda hu: ndimage.gaussian_filter(hu, 1),
    "padded with -1024": padded(-1024),
    "padded with -2000": padded(-2000),
    "padded with -3024": padded(-3024),
    "padding compressed with loss": lambda hu: padded(-2000)(hu) + np.random.default_rng(3).normal(0, 3, hu.shape),
    "air of one value": lambda hu: np.where(hu < -900, -1000, hu),
    "air at -1024": lambda hu: np.where(hu < -900, -1024, hu),
    "contrast": lambda hu: np.where((hu > 30) & (hu < 60), hu + 300, hu),
    "metal": metal,
    "steps of 8": lambda hu: np.rint(hu / 8) * 8,
    "steps of 25": lambda hu: np.rint(hu / 25) * 25,
    "without air": lambda hu: hu[:, 40:72, 40:72],  # soft tissue and some fat
    "without air, padded": lambda hu: padded(-2000)(hu[:, 36:66, 36:66]),
    "tissue alone, the rest -1024": lambda hu: np.where((hu > -200) & (hu < 300), hu, -1024),
    "one slice": lambda hu: hu[5:6],
    "four times as wide": lambda hu: np.pad(hu, ((0, 0), (192, 192), (192, 192)), constant_values=-1000),
    "floats": lambda hu: hu + 0.3,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("body", [trunk, head], ids=["trunk", "head"])
@pytest.mark.parametrize("kind", REAL)
def test_what_is_in_hu_is_taken(kind: str, body, seed: int) -> None:
    """Padding, contrast, metal, coarse steps, cut-outs and single slices are CT."""
    assert "values_trusted" not in judged(REAL[kind](body(seed)), values="trust")


def test_a_volume_of_air_is_left_to_others() -> None:
    """It is no evidence; the conversion says that no slice holds a body."""
    assert judged(np.full((14, 30, 30), -1000)) == {}


def test_what_is_too_small_for_evidence_is_noted() -> None:
    """A few voxels: files must hold something below 0; where a header says CT, they are taken; both are noted."""
    few, notes = np.arange(100, 500, dtype=np.int16).reshape(4, 10, 10), ToHounsfield().notes()
    assert "values_unchecked" in hounsfield.check(few, notes, CtConfig(), declared=True)
    assert "values_unchecked" in hounsfield.check(few - np.int16(200), notes, CtConfig())
    with pytest.raises(RejectedSeries, match="none below 0"):
        hounsfield.check(few, notes, CtConfig())


def test_what_is_odd_but_in_hu_is_noted() -> None:
    """Bone cut off at 1000 and a fifth of the image set to 0 around a body in air."""
    bone = head()
    bone[:, 40:60, 30:60] = np.random.default_rng(0).uniform(-100, 1500, (10, 20, 30))
    assert judged(np.minimum(bone, 1000)) == {"values_cut_off_at": 1000}
    assert (
        judged(padded(0)(np.pad(head(), ((0, 0), (20, 20), (20, 20)), constant_values=-1000)))["values_masked_with"]
        == 0
    )


@pytest.mark.parametrize("low, high", [(-1000, 400), (-1024, 600), (-1000, 300)])
def test_what_is_cut_off_above_soft_tissue_is_taken_and_noted(low: int, high: int) -> None:
    """Many public CTs are clipped so; air and soft tissue are whole."""
    bone = head()
    bone[:, 40:60, 30:60] = np.random.default_rng(0).uniform(-100, 1500, (10, 20, 30))
    assert judged(np.clip(bone, low, high)) == {"values_cut_off_at": high}
    with pytest.raises(RejectedSeries, match="windowed"):
        judged(np.clip(bone, low, 150))
    with pytest.raises(RejectedSeries, match="values=trust"):
        judged(np.clip(bone, -400, high))


def test_the_setting_counts_for_files_and_for_dicom(tmp_path: Path) -> None:
    """Both readers ask for evidence, and both take the user's word."""
    path = tmp_path / "ct.nii.gz"
    values = np.rint(trunk() + 1024).astype(np.int16).transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, -1, 3, 1.0])), path)
    with pytest.raises(RejectedSeries, match="values=trust"):
        images.read_ct(path, CtConfig())
    assert "values_trusted" in images.read_ct(path, CtConfig(values="trust")).notes


@pytest.mark.parametrize("name", ["24-unsigned-intercept-0", "24b-rsna-intercept+1"])
def test_dicom_cases_without_their_intercept(name: str) -> None:
    """Air at 0, and air at 3096: refused with the range; values=trust takes them and notes it."""
    paths = sorted(str(path) for path in (CASES / name).rglob("*.dcm"))
    if not paths:
        pytest.skip(f"needs shared/cases/{name}")
    (found,) = read_series(paths, "CT", CtConfig())
    assert isinstance(found, RejectedSeries) and "not in HU" in found.reason
    (taken,) = read_series(paths, "CT", CtConfig(values="trust"))
    assert not isinstance(taken, RejectedSeries)
    assert isinstance(taken[0], Volume) and "not in HU" in str(taken[0].notes["values_trusted"])


@pytest.mark.parametrize("name", ["65-ct-zscored", "65b-ct-minus1-1", "66-ct-plus1024-ringing"])
def test_nifti_cases_that_are_not_in_hu(name: str) -> None:
    """Z-scores, −1 to 1, and a shift by 1024 with ringing below 0."""
    path = CASES / name / "ct.nii.gz"
    if not path.is_file():
        pytest.skip(f"needs shared/cases/{name}")
    with pytest.raises(RejectedSeries, match="not in HU"):
        images.read_ct(path, CtConfig())


def test_every_real_ct_is_taken(data_dir: Path) -> None:
    """A sample of the research CTs: head and neck, abdomen, chest, a vertebra without air around it."""
    paths = sorted(data_dir.glob("ct_openkbp/pt_*/ct.nii.gz"))[::8]
    paths += sorted(data_dir.glob("ct_totalsegmentator/**/example_ct*.nii.gz"))
    paths += sorted(data_dir.glob("spine_tptbox/sample_ct/*_ct.nii.gz"))
    assert len(paths) > 20
    for path in paths:
        assert "values_trusted" not in images.read_ct(path, CtConfig(values="trust")).notes, path


def cut_out(hu: np.ndarray) -> np.ndarray:
    """A body in exactly −1024, as treatment planning leaves it: no noise tells where the air was."""
    body = ndimage.binary_opening(hu > -300, iterations=1)
    return np.pad(np.where(body, hu, -1024), ((0, 0), (60, 60), (60, 60)), constant_values=-1024)


CUT_OUT_NOT_HU = {
    "intercept twice": lambda hu: hu - 1024,
    "shifted by -1000": lambda hu: hu - 1000,
    "shifted by -200": lambda hu: hu - 200,
    "ten times": lambda hu: hu * 10,
    "signed 12 bits that wrapped": lambda hu: (np.rint(hu).astype(int) + 1024 + 2048) % 4096 - 2048,
    "lost intercept": lambda hu: hu + 1024,
    "lost intercept of 1000": lambda hu: hu + 1000,
    "abdominal window": windowed(-150, 250),
    "lung window": windowed(-1350, 150),
    "z-scores": lambda hu: (hu - hu.mean()) / hu.std(),
}


@pytest.mark.parametrize("body", [trunk, head], ids=["trunk", "head"])
@pytest.mark.parametrize("kind", CUT_OUT_NOT_HU)
def test_a_body_without_air_around_it_shows_by_its_tissue(kind: str, body) -> None:
    """Fat and soft tissue are where they are in HU, or the volume is refused; or none of it counts as body."""
    hu = cut_out(body())
    assert "values_trusted" not in judged(hu, values="trust")
    changed = CUT_OUT_NOT_HU[kind](hu)
    if changed.max() < -500:
        assert judged(changed) == {}  # nothing but air: the conversion finds no slice with a body
        return
    with pytest.raises(RejectedSeries, match="not in HU|windowed|masked"):
        judged(changed)


def test_real_cts_are_taken_and_their_variants_are_not(data_dir: Path) -> None:
    """Real scans: head and neck cut out, abdomen, chest, a vertebra without air. The thresholds fit all known ones."""
    paths = [data_dir / f"ct_openkbp/pt_{n}/ct.nii.gz" for n in (4, 10, 89)]
    paths += [data_dir / "ct_totalsegmentator/example_ct_sm.nii.gz"]
    variants = {**NOT_HU, **CUT_OUT_NOT_HU}
    for name in ("shifted by 200", "half", "a tenth", "masked with 0", "wide soft window", "inverted", "ten times"):
        del variants[name]  # what some bodies hide: fat and soft tissue stay near 0
    del variants[
        "lost intercept, padded with loss"
    ]  # of a head in much air: as many brains look, with skull and no fat
    for path in paths:
        if not path.is_file():
            continue
        hu = images.read_ct(path, CtConfig()).voxels.astype(np.float64)
        taken = []
        for name, change in variants.items():
            try:
                judged(change(hu))
            except RejectedSeries:
                continue
            taken.append(name)
        assert not taken, (path.parent.name, taken)
