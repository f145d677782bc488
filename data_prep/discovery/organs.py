"""Label maps with a binary file per organ, as TotalSegmentator writes them, made one.

s0001/ct.nii.gz    s0001/segmentations/liver.nii.gz    s0001/segmentations/spleen.nii.gz
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from data_prep.config import PrepConfig
from data_prep.volumes import geometry, images
from data_prep.volumes.volume import RejectedSeries

_FOLDERS = {
    *("segmentation", "segmentations", "seg", "segs", "mask", "masks", "label", "labels", "structures", "organs"),
    *("rois", "annotations"),
}
# A name made of these words alone names an organ; any other one might name a patient
_ANATOMY = set(
    "left right upper lower middle anterior posterior superior inferior common lobe of the and total whole "
    "abdominal thoracic cervical lumbar autochthon atrial appendage "
    "adrenal aorta artery arteries atrium auricle bladder body bone bones bowel brain brachiocephalic bronchi breast "
    "cardiac carotid cartilage cartilages cava caval cavity cecum cerebellum clavicula clavicle coccyx colon cord "
    "coronary costal cyst descending disc discs duodenum esophagus oesophagus eye eyes face fat femoral femur fibula "
    "gallbladder gland gluteus heart hip humerus iliac iliopsoas intestine jugular kidney kidneys larynx lens lesion "
    "liver lung lungs lymph mandible maximus medius minimus muscle muscles myocardium nerve node nodes nodule optic "
    "pancreas parotid patella pelvis pharynx pleura portal prostate pulmonary quadriceps radius rectum rib ribs sacrum "
    "scapula skin skull small large spinal spine spleen splenic sternum stomach subclavian submandibular tibia thyroid "
    "tongue tooth teeth torso trachea trunk tumor tumour ulna ureter urinary uterus vein veins vena ventricle "
    "vertebra vertebrae vessel vessels wall".split()
)
_NUMBERED = re.compile(r"[ctls]?\d{1,2}|[lr]")


@dataclass
class OrganFiles:
    """The organ files of all images.

    folders  folder that holds the image, or the image itself → its organ files
    organs   organ file → name of its organ, where that is not the file's name
    values   name of an organ, lower case → its label value, the same for every image
    names    label value → name, of the organs whose names may be kept
    unnamed  how many names are not kept, because only one folder has them and they might name a patient
    """

    folders: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    organs: dict[str, str] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    unnamed: int = 0

    def value_of(self, name: str) -> int:
        """Return the label value of an organ file."""
        return self.values[self.organ_of(name).lower()]

    def organ_of(self, name: str) -> str:
        """Return the organ of a file, as it is spelt there."""
        return self.organs.get(name) or images.stem(os.path.basename(name))

    def number(self, config: PrepConfig) -> None:
        """Give each organ a label value: that which `labels` names, else by the order of the organs' names."""
        holders: dict[str, set[str]] = defaultdict(set)
        spelt: dict[str, str] = {}
        for above, files in self.folders.items():
            for name in files:
                organ = self.organ_of(name)
                holders[organ.lower()].add(above)
                spelt.setdefault(organ.lower(), organ)
        configured = {name.strip().lower(): int(value) for value, name in config.labels.items()}
        taken = {0, *configured.values(), *config.ignore}
        free = (value for value in range(1, 100_000) if value not in taken)
        for organ in sorted(holders):
            value = configured[organ] if organ in configured else next(free)
            self.values[organ] = value
            if organ not in configured and (len(holders[organ]) > 1 or _is_anatomy(organ)):
                self.names[str(value)] = spelt[organ]
            elif organ not in configured:
                self.unnamed += 1


def is_folder(path: str) -> bool:
    """Return whether a folder's name says that label maps lie in it."""
    return os.path.basename(path).lower() in _FOLDERS


def collect(candidates: Iterable[str], beside: Mapping[str, Sequence[str]]) -> OrganFiles:
    """Return those of `candidates` (files in folders for which `is_folder`) that are organs of one image.

    beside  folder → images and series that lie in it. One at least must lie beside the folder of organs, and no file
            among the organs may have an image's name: then it is the label map of that image

    Their values are given by `OrganFiles.number`.
    """
    found = OrganFiles()
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in candidates:
        grouped[os.path.dirname(name)].append(name)
    for folder, files in sorted(grouped.items()):
        above = os.path.dirname(folder)
        own = {_organ(name) for name in beside.get(above, ()) if images.is_image(name)}
        if beside.get(above) and not own & {_organ(name) for name in files}:
            found.folders[above] += sorted(files)
    return found


def in_tree(image: PurePath, masks: Path) -> list[str]:
    """Return the organ files below `masks` of an image or of a series' folder: in its folder, or in one named after it.

    image  its path below the input. masks/s0001/liver.nii.gz and masks/s0001/segmentations/liver.nii.gz belong to
           s0001/ct.nii.gz, and to s0001.nii.gz
    """
    if images.is_image(image.name):
        places = [image.with_name(images.stem(image.name)), image.parent]
    else:
        places = [image]
    for folder in (masks / place for place in places if place != PurePath(".")):
        below = sorted(path for path in folder.iterdir() if is_folder(str(path))) if folder.is_dir() else []
        for start in (folder, *below):
            there = start.iterdir() if start.is_dir() else ()
            if files := sorted(str(path) for path in there if images.is_image(path.name)):
                return files
    return []


def read(
    files: Sequence[tuple[str, int]], config: PrepConfig, ignored: Collection[int]
) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Return (I, J, K) uint8 labels, their affine and notes from (path, value) of binary files on one grid.

    A voxel belongs to an organ where its file is not 0. Where organs overlap the last one wins; the notes count such
    voxels. Raises RejectedSeries for files that are not binary or lie on different grids, and for too many organs.
    """
    if max(value for _, value in files) > 255 or any(value in ignored for _, value in files):
        raise RejectedSeries("more organs than the label values of a map; labels can number those to keep")
    total: np.ndarray | None = None
    affine, overlapping = np.eye(4), 0
    notes: dict[str, object] = {"organ_files": len(files)}
    for path, value in files:
        labels, own, found = images.read_labels(path, config)
        notes |= found
        if len(np.unique(labels[labels > 0])) > 1:
            raise RejectedSeries("a file among the organs holds several labels; expected one organ per file")
        if total is None:
            total, affine = np.zeros_like(labels), own
        if labels.shape != total.shape or not geometry.same_grid(own, affine, labels.shape):
            raise RejectedSeries("organs on different grids")
        inside = labels > 0
        overlapping += int(np.count_nonzero(total[inside]))
        total[inside] = value
    assert total is not None  # an image without organ files has no such label map
    return total, affine, {**notes, "overlapping_label_voxels": overlapping} if overlapping else notes


def _organ(name: str) -> str:
    return images.stem(os.path.basename(name)).lower()


def _is_anatomy(organ: str) -> bool:
    return all(word in _ANATOMY or _NUMBERED.fullmatch(word) for word in re.split(r"[^a-z0-9]+", organ) if word)
