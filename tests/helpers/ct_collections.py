"""Miniatures of public collections of CT: trees, names, label values and clutter as downloads have them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from helpers import dicom_files, openkbp_files
from helpers.miniatures import AFFINE, Miniature, Write, apple_double, ct, drawn, mr, organ, save, say

ABDOMEN = {"1": "spleen", "6": "liver"}
PERMUTED = AFFINE[:, [2, 1, 0, 3]]  # KiTS: slices along the first axis


def nnunet(root: Path) -> Miniature:
    """nnU-Net, version 2: three labelled cases and a test case."""
    base = root / "nnUNet_raw" / "Dataset006_Lung"
    for case in range(4):
        part = "Tr" if case < 3 else "Ts"
        save(base / f"images{part}" / f"lung_{case:03d}_0000.nii.gz", ct(case))
        if case < 3:
            save(base / "labelsTr" / f"lung_{case:03d}.nii.gz", drawn(case))
    labels = {"background": 0, "nodule": 1, "vessel": 2}
    say(base / "dataset.json", {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"})
    return Miniature("nnunet", 4, 4, labelled=3, labels={"1": "nodule", "2": "vessel"})


def decathlon(root: Path) -> Miniature:
    """The Decathlon's liver task, with the files that macOS left in its archive."""
    base = root / "Task03_Liver"
    for case in range(3):
        apple_double(save(base / "imagesTr" / f"liver_{case}.nii.gz", ct(case)))
        apple_double(save(base / "labelsTr" / f"liver_{case}.nii.gz", drawn(case)))
    save(base / "imagesTs" / "liver_132.nii.gz", ct(9))
    described = {"name": "Liver", "tensorImageSize": "3D", "modality": {"0": "CT"}}
    say(base / "dataset.json", {**described, "labels": {"0": "background", "1": "liver", "2": "cancer"}})
    return Miniature("msd", 4, 4, labelled=3, labels={"1": "liver", "2": "cancer"})


def btcv(root: Path) -> Miniature:
    """BTCV's abdomen: img and label, Training and Testing."""
    base = root / "Abdomen" / "RawData"
    for case in (1, 2, 3):
        save(base / "Training" / "img" / f"img{case:04d}.nii.gz", ct(case))
        save(base / "Training" / "label" / f"label{case:04d}.nii.gz", drawn(case, 1, 6))
    save(base / "Testing" / "img" / "img0061.nii.gz", ct(61))
    return Miniature("btcv", 4, 4, labelled=3, labels=ABDOMEN)


def btcv_renamed(root: Path) -> Miniature:
    """BTCV as repositories of code want it: in the Decathlon's folders, under its own names."""
    for case in (1, 2, 3):
        save(root / "imagesTr" / f"img{case:04d}.nii.gz", ct(case))
        save(root / "labelsTr" / f"label{case:04d}.nii.gz", drawn(case, 1, 6))
    save(root / "imagesTs" / "img0061.nii.gz", ct(61))
    say(
        root / "dataset_0.json",
        {"training": [{"image": "imagesTr/img0001.nii.gz", "label": "labelsTr/label0001.nii.gz"}]},
    )
    return Miniature("btcv", 4, 4, labelled=3, labels=ABDOMEN)


def amos(root: Path) -> Miniature:
    """AMOS: CT and MR in the same folders, MR from number 507."""
    base = root / "amos22"
    for case, part in ((1, "Tr"), (4, "Tr"), (8, "Va")):
        save(base / f"images{part}" / f"amos_{case:04d}.nii.gz", ct(case))
        save(base / f"labels{part}" / f"amos_{case:04d}.nii.gz", drawn(case, 1, 6))
    save(base / "imagesTr" / "amos_0507.nii.gz", mr("mr", 507))
    save(base / "labelsTr" / "amos_0507.nii.gz", drawn(507, 1, 6))
    save(base / "imagesTs" / "amos_0010.nii.gz", ct(10))
    say(base / "dataset.json", {"name": "AMOS", "labels": {"0": "background", "1": "spleen", "8": "arota"}})
    return Miniature("amos", 4, 4, labelled=3, labels=ABDOMEN)


def flare21(root: Path) -> Miniature:
    """FLARE 2021: label maps without the channel's number."""
    for case in range(3):
        save(root / "TrainingImg" / f"train_{case:03d}_0000.nii.gz", ct(case))
        save(root / "TrainingMask" / f"train_{case:03d}.nii.gz", drawn(case))
    save(root / "ValidationImg" / "validation_001_0000.nii.gz", ct(9))
    return Miniature("flare21", 4, 4, labelled=3, labels={"1": "liver", "2": "kidney"})


def flare22(root: Path) -> Miniature:
    """FLARE 2022: few cases with label maps, many without."""
    labelled = root / "Training" / "FLARE22_LabeledCase50"
    for case in (1, 2):
        save(labelled / "images" / f"FLARE22_Tr_{case:04d}_0000.nii.gz", ct(case))
        save(labelled / "labels" / f"FLARE22_Tr_{case:04d}.nii.gz", drawn(case))
        save(root / "Training" / "FLARE22_UnlabeledCase1-1000" / f"Case_{case:05d}_0000.nii.gz", ct(10 + case))
    save(root / "Validation" / "FLARETs_0001_0000.nii.gz", ct(20))
    return Miniature("flare22", 5, 5, labelled=2, labels={"1": "liver", "2": "right kidney"})


def flare23(root: Path) -> Miniature:
    """FLARE 2023: partial label maps."""
    for case in (1, 2, 3):
        save(root / "imagesTr2200" / f"FLARE23_{case:04d}_0000.nii.gz", ct(case))
        save(root / "labelsTr2200" / f"FLARE23_{case:04d}.nii.gz", drawn(case, 1, 14))
    save(root / "unlabelTr1800" / "FLARE23_3000_0000.nii.gz", ct(9))
    return Miniature("flare23", 4, 4, labelled=3, labels={"1": "liver", "14": "tumor"})


def word(root: Path) -> Miniature:
    """WORD: three parts with label maps."""
    base = root / "WORD-V0.1.0"
    for case, part in ((2, "Tr"), (3, "Tr"), (1, "Val"), (7, "Ts")):
        save(base / f"images{part}" / f"word_{case:04d}.nii.gz", ct(case))
        save(base / f"labels{part}" / f"word_{case:04d}.nii.gz", drawn(case))
    say(base / "dataset.json", {"name": "WORD"})
    return Miniature("word", 4, 4, labelled=4, labels={"1": "liver", "2": "spleen"})


def kits19(root: Path) -> Miniature:
    """KiTS 2019 and, but for cysts, 2023: slices along the first axis, a folder of single annotations beside."""
    for case in range(3):
        folder = root / "data" / f"case_{case:05d}"
        save(folder / "imaging.nii.gz", ct(case).transpose(2, 1, 0), PERMUTED)
        save(folder / "segmentation.nii.gz", drawn(case).transpose(2, 1, 0), PERMUTED)
        for structure, place in (("kidney", 1), ("tumor", 2)):
            one = drawn(case, *(int(number == place) for number in (1, 2)))
            name = f"{structure}_instance-1_annotation-1.nii.gz"
            save(folder / "instances" / name, one.transpose(2, 1, 0), PERMUTED)
    say(root / "data" / "kits.json", "[]")
    return Miniature("kits", 3, 3, labelled=3, labels={"1": "kidney", "2": "tumor"})


def kits21(root: Path) -> Miniature:
    """KiTS 2021: annotations united in three ways."""
    for case in range(3):
        folder = root / "kits21" / "data" / f"case_{case:05d}"
        save(folder / "imaging.nii.gz", ct(case).transpose(2, 1, 0), PERMUTED)
        for way, values in (("MAJ", (1, 3)), ("OR", (1, 0)), ("AND", (0, 3))):
            save(folder / f"aggregated_{way}_seg.nii.gz", drawn(case, *values).transpose(2, 1, 0), PERMUTED)
        one = drawn(case, 1, 0).transpose(2, 1, 0)
        save(folder / "segmentations" / "kidney_instance-1_annotation-1.nii.gz", one, PERMUTED)
        say(folder / "raw" / "kidney" / "session_1.json", "{}")
    return Miniature("kits", 3, 3, labelled=3, labels={"1": "kidney", "3": "cyst"})


def lits(root: Path) -> Miniature:
    """LiTS: batches, uncompressed."""
    for batch, cases in ((1, (0, 1)), (2, (28, 29))):
        for case in cases:
            save(root / f"Training Batch {batch}" / f"volume-{case}.nii", ct(case))
            save(root / f"Training Batch {batch}" / f"segmentation-{case}.nii", drawn(case))
    save(root / "LITS-Challenge-Test-Data" / "test-volume-0.nii", ct(99))
    return Miniature("lits", 5, 5, labelled=4, labels={"1": "liver", "2": "tumor"})


def lits_apart(root: Path) -> Miniature:
    """LiTS as it is offered again elsewhere: volumes in parts, all segmentations in one folder."""
    for part, cases in ((1, (0, 1)), (2, (11, 12))):
        for case in cases:
            save(root / f"volume_pt{part}" / f"volume-{case}.nii", ct(case))
            save(root / "segmentations" / f"segmentation-{case}.nii", drawn(case))
    return Miniature("lits", 4, 4, labelled=4, labels={"1": "liver", "2": "tumor"})


def totalsegmentator(root: Path) -> Miniature:
    """TotalSegmentator: a file per organ, the same ones for every case, most of them empty."""
    base = root / "Totalsegmentator_dataset_v201"
    for case in (0, 1, 4):
        save(base / f"s{case:04d}" / "ct.nii.gz", ct(case))
        for name, values in (("liver", (1, 0)), ("spleen", (0, 1)), ("gallbladder", (0, 0))):
            save(base / f"s{case:04d}" / "segmentations" / f"{name}.nii.gz", drawn(case, *values))
    say(base / "meta.csv", "image_id;age;gender;institute;study_type;split\ns0000;60;m;A;ct abdomen;train\n")
    labels = {"2": "liver", "3": "spleen"}
    return Miniature("totalsegmentator", 3, 3, labelled=3, labels=labels)


def ct_rate(root: Path) -> Miniature:
    """CT-RATE as it was first released: no spacing, values without their intercept; some hold HU nevertheless."""
    for number in (1, 2):
        folder = root / "dataset" / "train" / f"train_{number}" / f"train_{number}_a"
        for reconstruction in (1, 2):
            save(folder / f"train_{number}_a_{reconstruction}.nii.gz", ct(number))
    lost = np.clip(ct(3, shift=1024), 0, None)
    save(root / "dataset" / "valid" / "valid_1" / "valid_1_a" / "valid_1_a_1.nii.gz", lost)
    save(root / "dataset" / "valid" / "valid_2" / "valid_2_a" / "valid_2_a_1.nii.gz", ct(4))
    row = 'train_1_a_1.nii.gz,1,-1024,"[0.7, 0.7]",1.0\n'
    say(root / "dataset" / "metadata" / "train_metadata.csv", f"VolumeName,RescaleSlope,RescaleIntercept\n{row}")
    return Miniature("ct_rate", 3, 5, console=("train_fixed", "none below 0"))


def ct_rate_fixed(root: Path) -> Miniature:
    """CT-RATE with its first release and the corrected volumes beside each other."""
    for number in (1, 2):
        for folder, shift in (("train", 1024), ("train_fixed", 0)):
            place = root / "dataset" / folder / f"train_{number}" / f"train_{number}_a"
            save(place / f"train_{number}_a_1.nii.gz", ct(number, shift=shift))
    return Miniature("ct_rate_fixed", 2, 2, console=("the fixed volumes are used",))


def lidc(root: Path) -> Miniature:
    """LIDC-IDRI as NBIA's Data Retriever writes it: CT, a radiograph and annotations in XML."""
    base = root / "manifest-1600709154662"
    say(base / "metadata.csv", "Series UID,Collection,Study UID,Subject ID\n1.2,LIDC-IDRI,1.1,LIDC-IDRI-0001\n")
    for number in (1, 2):
        patient = f"LIDC-IDRI-{number:04d}"
        study = base / "LIDC-IDRI" / patient / f"01-01-2000-NA-NA-3017{number}"
        ids = {"PatientID": patient, "StudyInstanceUID": f"1.3.{number}", "SeriesInstanceUID": f"1.3.{number}.1"}
        _series(study / f"300056{number}.000000-NA-03192", ct(number), **ids)
        say(study / f"300056{number}.000000-NA-03192" / "069.xml", "<LidcReadMessage/>")
        say(study / f"300056{number}.000000-NA-03192" / "LICENSE")
    projection = study / "300057.000000-NA-03193"
    ids |= {"SeriesInstanceUID": "1.3.2.2", "Modality": "DX"}
    dicom_files.series(projection, np.zeros((1, 8, 8), np.int16), names=["1-1.dcm"], **ids)
    return Miniature("lidc", 2, 2)


def tcia(root: Path) -> Miniature:
    """Another collection by NBIA's Data Retriever, in two studies of a patient; headers have lost their PatientID."""
    base = root / "manifest-1599764098812"
    say(base / "metadata.csv", "Series UID,Collection,Study UID,Subject ID\n1.2,Example,1.1,AB-001\n")
    for number, (patient, study) in enumerate((("AB-001", "1"), ("AB-001", "2"), ("AB-002", "3"))):
        folder = base / "Example" / patient / f"05-06-2001-NA-CHEST-0{study}" / "2.000000-AXIAL-12345"
        ids = {"PatientID": "", "StudyInstanceUID": f"1.4.{study}", "SeriesInstanceUID": f"1.4.{study}.1"}
        _series(folder, ct(number), **ids)
    return Miniature("tcia", 2, 3)


def rsna(root: Path) -> Miniature:
    """RSNA 2019: slices of all patients in one folder, unordered; one patient's intercept is wrong by a bit of 12."""
    base = root / "rsna-intracranial-hemorrhage-detection"
    warnings.filterwarnings("ignore", "Invalid value for VR UI")
    rows, names = ["ID,Label"], iter(f"ID_{number:09x}" for number in range(7, 10_000, 13))
    for number in (1, 2, 3):
        hu = ct(number)
        if number == 3:  # air wrapped in 12 bits: −1000 is stored as 3096
            hu = np.where(hu < -1024 + 400, hu + 4096, hu)
        ids = {  # none of them a UID
            "PatientID": f"ID_{number:08x}",
            "StudyInstanceUID": f"ID_5{number}",
            "SeriesInstanceUID": f"ID_6{number}",
        }
        labels = [next(names) for _ in range(hu.shape[2])]
        _series(base / "stage_2_train", hu, names=[f"{name}.dcm" for name in labels], **ids)
        rows += [f"{name}_{kind},0" for name in labels for kind in ("epidural", "any")]
    say(base / "stage_2_train.csv", "\n".join(rows))
    return Miniature("rsna_hemorrhage", 2, 2, console=("not in HU",))


def openkbp(root: Path) -> Miniature:
    """OpenKBP: CT, dose and structures as CSV files of sparse voxels."""
    for part, number in (("train-pats", 1), ("train-pats", 2), ("validation-pats", 201)):
        rows_first = ct(number).transpose(1, 0, 2)[:, :, ::-1]  # to the back, to the left, to the feet
        masks = {}
        for place, name in enumerate(("Brainstem", "Mandible"), 1):
            mask = np.zeros(ct().shape, bool)
            mask[organ(place, number)] = True
            masks[name] = mask.transpose(1, 0, 2)[:, :, ::-1]
        folder = openkbp_files.patient(root / "provided-data" / part / f"pt_{number}", rows_first, masks)
        for name in ("dose", "possible_dose_mask", "PTV70"):
            openkbp_files.sparse(folder / f"{name}.csv", np.arange(50), np.ones(50) if name == "dose" else None)
    labels = {"1": "Brainstem", "7": "Mandible"}
    return Miniature("openkbp", 3, 3, labelled=3, labels=labels, console=("− 1024, as OpenKBP",), plain=False)


def _series(folder: Path, hu: np.ndarray, names: list[str] | None = None, **ids: str) -> None:
    """Write (I, J, K) HU on AFFINE as a DICOM series, stored from 0 with an intercept."""
    planes = (hu.transpose(2, 1, 0).astype(np.int32) + 1024).clip(0, 4095)
    names = names or [f"1-{place + 1:03d}.dcm" for place in range(len(planes))]
    dicom_files.series(folder, planes, names=names, RescaleIntercept=-1024, PixelRepresentation=0, **ids)


COLLECTIONS: dict[str, Write] = {
    one.__name__: one
    for one in (
        *(
            nnunet,
            decathlon,
            btcv,
            btcv_renamed,
            amos,
            flare21,
            flare22,
            flare23,
            word,
            kits19,
            kits21,
            lits,
            lits_apart,
        ),
        *(totalsegmentator, ct_rate, ct_rate_fixed, lidc, tcia, rsna, openkbp),
    )
}
