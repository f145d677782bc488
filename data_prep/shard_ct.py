"""CT from a folder of NIfTI volumes and DICOM series to WebDataset shards.

python data_prep/shard_ct.py --input DIR --output DIR [--masks DIR] [--config FILE] [key=value …]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: this folder must not shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import command
from data_prep.config import CtConfig
from data_prep.sharding.convert_ct import convert


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = command.parser(
        "shard_ct.py",
        "Turn CT (DICOM, NIfTI, NRRD, MetaImage) into WebDataset shards. A label map lies beside its image "
        "(seg.nii.gz, NAME_seg.nii.gz) or is a DICOM-SEG of the series.",
        "air.threshold_hu, geometry.tilt, grid.in_plane_mm, labels.1 …",
    )
    return command.run(parser.parse_intermixed_args(arguments), "CT", CtConfig, convert)


if __name__ == "__main__":
    sys.exit(main())
