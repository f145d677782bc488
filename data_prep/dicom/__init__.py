"""DICOM: from headers to series, stacks and segmentations."""
