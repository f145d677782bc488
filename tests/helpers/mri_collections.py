"""Miniatures of public collections of MR images: trees, names, label values and clutter as downloads have them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from helpers.miniatures import AFFINE, Miniature, Write, apple_double, ct, drawn, mr, save, say

TUMOUR = {"1": "necrotic and non-enhancing tumor core", "4": "enhancing tumor"}
FOUR = ("t1", "t1c", "t2", "flair")


def nnunet(root: Path) -> Miniature:
    """nnU-Net with a channel per sequence."""
    base = root / "Dataset001_BrainTumour"
    names = {"0": "FLAIR", "1": "T1w", "2": "T1gd", "3": "T2w"}
    for case in range(3):
        for channel, sequence in enumerate(("flair", "t1", "t1c", "t2")):
            save(base / "imagesTr" / f"BRATS_{case:03d}_{channel:04d}.nii.gz", mr(sequence, case))
        save(base / "labelsTr" / f"BRATS_{case:03d}.nii.gz", drawn(case))
    labels = {"background": 0, "edema": 1, "enhancing tumor": 2}
    say(base / "dataset.json", {"channel_names": names, "labels": labels, "file_ending": ".nii.gz"})
    return Miniature("nnunet", 3, 3, FOUR, 3, {"1": "edema", "2": "enhancing tumor"}, plain=False)


def decathlon(root: Path) -> Miniature:
    """The Decathlon's brain tumours: four sequences along the fourth axis of one file."""
    base = root / "Task01_BrainTumour"
    names = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    for case in (1, 2, 3):
        stacked = np.stack([mr(sequence, case) for sequence in ("flair", "t1", "t1c", "t2")], axis=3)
        apple_double(save(base / "imagesTr" / f"BRATS_{case:03d}.nii.gz", stacked))
        apple_double(save(base / "labelsTr" / f"BRATS_{case:03d}.nii.gz", drawn(case, 1, 3)))
    labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    say(base / "dataset.json", {"tensorImageSize": "4D", "modality": names, "labels": labels})
    wanted = {"1": "edema", "3": "enhancing tumour"}
    return Miniature("msd", 3, 3, FOUR, 3, wanted, plain=False)


def decathlon_prostate(root: Path) -> Miniature:
    """The Decathlon's prostate: T2 and ADC in one file; one file has a channel that the description lacks."""
    base = root / "Task05_Prostate"
    for case in (0, 1, 2):
        names = ("t2", "adc", "pd") if case == 2 else ("t2", "adc")
        stacked = np.stack([mr(sequence, case) for sequence in names], axis=3)
        save(base / "imagesTr" / f"prostate_{case:02d}.nii.gz", stacked)
        save(base / "labelsTr" / f"prostate_{case:02d}.nii.gz", drawn(case))
    described = {"tensorImageSize": "4D", "modality": {"0": "T2", "1": "ADC"}}
    say(base / "dataset.json", {**described, "labels": {"0": "background", "1": "PZ", "2": "TZ"}})
    console, labels = ("described as 2 channels",), {"1": "PZ", "2": "TZ"}
    return Miniature("msd", 2, 2, ("t2", "adc"), 2, labels, console=console, plain=False)


def decathlon_single(root: Path) -> Miniature:
    """The Decathlon's hippocampus and, without a sequence that is known, its left atrium: one image in a file."""
    names = {"Task02_Heart": ("la", "mr"), "Task04_Hippocampus": ("hippocampus", "t1")}
    for folder, (name, sequence) in names.items():
        for case in (3, 7):
            save(root / folder / "imagesTr" / f"{name}_{case:03d}.nii.gz", mr(sequence, case))
            save(root / folder / "labelsTr" / f"{name}_{case:03d}.nii.gz", drawn(case))
        described = {
            "tensorImageSize": "3D",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "first", "2": "second"},
        }
        say(root / folder / "dataset.json", described)
    return Miniature("msd", 4, 4, ("mr", "t1"), 4, {"1": "first", "2": "second"}, plain=False)


def amos(root: Path) -> Miniature:
    """AMOS: CT and MR in the same folders, MR from number 507."""
    base = root / "amos22"
    for case, part in ((507, "Tr"), (510, "Tr"), (600, "Va")):
        save(base / f"images{part}" / f"amos_{case:04d}.nii.gz", mr("mr", case))
        save(base / f"labels{part}" / f"amos_{case:04d}.nii.gz", drawn(case, 1, 6))
    save(base / "imagesTr" / "amos_0001.nii.gz", ct(1))
    save(base / "labelsTr" / "amos_0001.nii.gz", drawn(1, 1, 6))
    return Miniature("amos", 3, 3, ("mr",), 3, {"1": "spleen", "6": "liver"}, plain=False)


def totalsegmentator(root: Path) -> Miniature:
    """TotalSegmentator MRI."""
    for case in (1, 2, 3):
        save(root / f"s{case:04d}" / "mri.nii.gz", mr("mr", case))
        for name, values in (("liver", (1, 0)), ("spleen", (0, 1))):
            save(root / f"s{case:04d}" / "segmentations" / f"{name}.nii.gz", drawn(case, *values))
    say(root / "meta.csv", "image_id;age;gender;split\ns0001;60;m;train\n")
    return Miniature("totalsegmentator_mri", 3, 3, ("mr",), 3, {"1": "liver", "2": "spleen"}, plain=False)


def brats18(root: Path) -> Miniature:
    """BraTS 2018: high and low grade apart."""
    base = root / "MICCAI_BraTS_2018_Data_Training"
    for grade, case in (("HGG", "Brats18_2013_10_1"), ("HGG", "Brats18_CBICA_AAB_1"), ("LGG", "Brats18_TCIA09_141_1")):
        _brats(base / grade / case, case, seed=len(case))
    say(base / "survival_data.csv", "Brats18ID,Age,Survival\n")
    return Miniature("brats", 3, 3, FOUR, 3, TUMOUR)


def brats20(root: Path) -> Miniature:
    """BraTS 2020: uncompressed copies, and patient 355, whose label map has another name."""
    base = root / "BraTS2020_TrainingData" / "MICCAI_BraTS2020_TrainingData"
    for number in (1, 2, 355):
        case = f"BraTS20_Training_{number:03d}"
        _brats(base / case, case, seed=number, ending=".nii")
    (base / case / f"{case}_seg.nii").rename(base / case / "W39_1998.09.19_Segm.nii")
    say(base / "name_mapping.csv", "Grade,BraTS_2020_subject_ID\n")
    return Miniature("brats", 3, 3, FOUR, 3, TUMOUR)


def brats21(root: Path) -> Miniature:
    """BraTS 2021."""
    for number in (0, 2, 3):
        case = f"BraTS2021_{number:05d}"
        _brats(root / case, case, seed=number)
    return Miniature("brats", 3, 3, FOUR, 3, TUMOUR)


def brats23(root: Path) -> Miniature:
    """BraTS 2023 and 2024: patients who were imaged more than once."""
    base = root / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
    for case in ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000", "BraTS-GLI-02062-100"):
        for suffix, sequence in (("t1n", "t1"), ("t1c", "t1c"), ("t2w", "t2"), ("t2f", "flair")):
            save(base / case / f"{case}-{suffix}.nii.gz", mr(sequence, int(case[-7:-4])))
        save(base / case / f"{case}-seg.nii.gz", drawn(int(case[-7:-4]), 1, 3))
    labels = {"1": "non-enhancing tumor core", "3": "enhancing tumor"}
    return Miniature("brats2023", 3, 4, FOUR, 4, labels)


def brats_peds(root: Path) -> Miniature:
    """BraTS-PEDs: label values whose meaning changed from one year to the next."""
    for case in ("BraTS-PED-00001-000", "BraTS-PED-00002-000"):
        for suffix, sequence in (("t1n", "t1"), ("t1c", "t1c"), ("t2w", "t2"), ("t2f", "flair")):
            save(root / case / f"{case}-{suffix}.nii.gz", mr(sequence))
        save(root / case / f"{case}-seg.nii.gz", drawn(0, 1, 3))
    return Miniature("brats_ped", 2, 2, FOUR, 2)


def brats_men_rt(root: Path) -> Miniature:
    """BraTS-MEN-RT: one sequence, as acquired, and the volume that was treated."""
    for number in (2, 3, 5):
        case = f"BraTS-MEN-RT-{number:04d}-1"
        save(root / case / f"{case}_t1c.nii.gz", mr("t1c", number))
        save(root / case / f"{case}_gtv.nii.gz", drawn(number, 1, 0))
    return Miniature("brats_men_rt", 3, 3, ("t1c",), 3, {"1": "gross tumor volume"})


def ixi(root: Path) -> Miniature:
    """IXI: a folder per sequence, other kinds beside; some patients lack a sequence."""
    for number, site in ((2, "Guys-0828"), (12, "HH-1211"), (13, "HH-1212")):
        name = f"IXI{number:03d}-{site}"
        for sequence in ("t1", "t2", "pd"):
            if (number, sequence) != (13, "pd"):
                kind = sequence.upper()
                save(root / f"IXI-{kind}" / f"{name}-{kind}.nii.gz", mr(sequence, number))
        save(root / "IXI-MRA" / f"{name}-MRA.nii.gz", mr("mr", number))
        save(root / "IXI-DTI" / f"{name}-DTI-00.nii.gz", mr("dwi", number))
    say(root / "IXI.xls")
    return Miniature("ixi", 3, 3, ("t1", "t2", "pd"), console=("angiogram", "one direction of diffusion"))


def fomo(root: Path) -> Miniature:
    """FOMO60K: sessions of subjects, with the plain names of sequences."""
    base = root / "fomo-60k"
    for subject, session, names in ((1, 1, ("t1", "t2")), (1, 2, ("t1",)), (11043, 1, ("t1", "flair", "t1c"))):
        for name in names:
            save(base / f"sub_{subject}" / f"ses_{session}" / f"{name}.nii.gz", mr(name, subject + session))
    say(base / "participants.tsv", "participant_id\tage\nsub_1\t60\n")
    return Miniature("fomo", 2, 3, ("t1", "t2", "flair", "t1c"))


def oasis1(root: Path) -> Miniature:
    """OASIS-1: Analyze; scans, their average, and the average on an atlas with and without skull, with tissues."""
    _oasis1(root)
    console = ("registered to an atlas", "one of the scans")
    return Miniature("oasis1", 2, 3, ("t1",), console=console, plain=False)


def oasis1_atlas(root: Path) -> Miniature:
    """OASIS-1 as its second layout reads it, which has label maps."""
    _oasis1(root)
    labels = {"1": "cerebrospinal fluid", "3": "white matter"}
    words = ("--layout", "oasis1_atlas")
    return Miniature("oasis1_atlas", 2, 3, ("t1",), 3, labels, words, plain=False)


def oasis2(root: Path) -> Miniature:
    """OASIS-2: visits of patients, each with several scans as NIfTI in two files."""
    for number, visit in ((1, 1), (1, 2), (2, 1)):
        for scan in (1, 2, 3):
            path = root / "OAS2_RAW_PART1" / f"OAS2_{number:04d}_MR{visit}" / "RAW" / f"mpr-{scan}.nifti.img"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = nibabel.Nifti1Pair(mr("t1", number + visit), AFFINE)
            image.header.set_xyzt_units("mm")
            nibabel.save(image, path)
    return Miniature("oasis2", 2, 3, ("t1",), plain=False)


def oasis3(root: Path) -> Miniature:
    """OASIS-3 from XNAT: visits by their day, a folder per scan."""
    for subject, day in ((1, "d0129"), (1, "d0757"), (2, "d0653")):
        visit = root / f"OAS3{subject:04d}_MR_{day}"
        for scan, suffix, sequence in (("anat2", "T1w", "t1"), ("anat4", "T2w", "t2"), ("anat5", "FLAIR", "flair")):
            name = f"sub-OAS3{subject:04d}_ses-{day}_{suffix}"
            save(visit / scan / "NIFTI" / f"{name}.nii.gz", mr(sequence, subject))
            say(visit / scan / "BIDS" / f"{name}.json", "{}")
    return Miniature("oasis3", 2, 3, ("t1", "t2", "flair"))


def bids(root: Path) -> Miniature:
    """Generic BIDS: sessions, repeated scans, derivatives, label maps among them."""
    say(root / "dataset_description.json", {"Name": "example", "BIDSVersion": "1.8.0"})
    say(root / "participants.tsv", "participant_id\nsub-01\nsub-02\n")
    images = (("run-1_T1w", "t1"), ("run-2_T1w", "t1"), ("ce-gadolinium_T1w", "t1c"), ("FLAIR", "flair"))
    for seed, (subject, session) in enumerate((("01", "1"), ("01", "2"), ("02", "1"))):
        name = f"sub-{subject}_ses-{session}"
        folder = root / f"sub-{subject}" / f"ses-{session}" / "anat"
        for suffix, sequence in images:
            save(folder / f"{name}_{suffix}.nii.gz", mr(sequence, seed))
        derived = root / "derivatives" / "lesions" / f"sub-{subject}" / f"ses-{session}" / "anat"
        save(derived / f"{name}_space-T1w_desc-brain_T1w.nii.gz", mr("t1", seed))
        save(derived / f"{name}_space-T1w_dseg.nii.gz", drawn(seed))
    return Miniature("bids", 2, 3, ("t1", "t1c", "flair"), 3)


def _brats(folder: Path, case: str, seed: int, ending: str = ".nii.gz") -> None:
    for suffix, sequence in (("t1", "t1"), ("t1ce", "t1c"), ("t2", "t2"), ("flair", "flair")):
        save(folder / f"{case}_{suffix}{ending}", mr(sequence, seed))
    save(folder / f"{case}_seg{ending}", drawn(seed, 1, 4))


def _oasis1(root: Path) -> None:
    for seed, visit in enumerate(("OAS1_0001_MR1", "OAS1_0002_MR1", "OAS1_0002_MR2")):
        head = mr("t1", seed)  # axes run to the left, back and head
        average, atlas = head.transpose(1, 2, 0)[::-1], head[:, ::-1]  # front, head, left; left, front, head
        tissues = drawn(seed, 1, 3)[:, ::-1]
        base, name = root / "disc1" / visit, f"{visit}_mpr_n4_anon"
        for scan in (1, 2, 3, 4):
            _analyze(base / "RAW" / f"{visit}_mpr-{scan}_anon.img", average, (2, 3, 2))
        _analyze(base / "PROCESSED" / "MPRAGE" / "SUBJ_111" / f"{name}_sbj_111.img", average, (2, 3, 2))
        registered = base / "PROCESSED" / "MPRAGE" / "T88_111"
        for kind in ("t88_gfc", "t88_masked_gfc"):
            _analyze(registered / f"{name}_111_{kind}.img", atlas, (2, 2, 3))
        _analyze(base / "FSL_SEG" / f"{name}_111_t88_masked_gfc_fseg.img", tissues, (2, 2, 3))
        say(base / "FSL_SEG" / f"{name}_111_t88_masked_gfc_fseg.txt")
        say(base / f"{visit}.xml", "<xml/>")
        say(registered / f"{name}_111_t88_gfc_tra_90.gif", "GIF89a")


def _analyze(path: Path, values: np.ndarray, zooms: tuple[float, float, float]) -> None:
    """Write Analyze 7.5, big-endian, with a fourth axis of one, as OASIS has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nibabel.AnalyzeHeader(endianness=">")
    header.set_data_dtype(np.int16)
    header.set_data_shape((*values.shape, 1))
    header.set_zooms((*zooms, 1))
    nibabel.AnalyzeImage(values[..., None].astype(np.int16), None, header).to_filename(path)


COLLECTIONS: dict[str, Write] = {
    one.__name__: one
    for one in (
        *(nnunet, decathlon, decathlon_prostate, decathlon_single, amos, totalsegmentator),
        *(brats18, brats20, brats21, brats23, brats_peds, brats_men_rt),
        *(ixi, fomo, oasis1, oasis1_atlas, oasis2, oasis3, bids),
    )
}
