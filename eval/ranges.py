"""The range of each number of a task and its probes, as a table."""

from __future__ import annotations

from meddap.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Allowed

_TRAINED = {"lr": POSITIVE, "epochs": NOT_NEGATIVE, "batch_size": COUNT, "weight_decay": NOT_NEGATIVE}
_DECODER = {**_TRAINED, "cells": COUNT, "channels": COUNT}
_NETWORK = {**_TRAINED, "warmup": SHARE, "channels": COUNT}
_TUNED = {**_NETWORK, "layer_decay": Allowed(0, 1, above=True), "rank": COUNT, "alpha": NOT_NEGATIVE}

_PROBES = {
    "knn": {"k": COUNT, "temperature": POSITIVE},
    "logistic": {"strengths": COUNT, "low": POSITIVE, "high": POSITIVE, "steps": COUNT},
    "linear": {"lr": POSITIVE, "blocks": COUNT, "steps": COUNT, "batch_size": COUNT, "momentum": SHARE},
    "attentive": {**_TRAINED, "heads": COUNT},
    "mil": {
        "lr": POSITIVE,
        "hidden": COUNT,
        "epochs": NOT_NEGATIVE,
        "dropout": SHARE,
        "weight_decay": NOT_NEGATIVE,
    },
    "few_shot": {"shots": COUNT, "draws": COUNT, "strength": POSITIVE},
    "fractions": {"percent": Allowed(0, 100, above=True), "draws": COUNT},
    "region": {"strength": POSITIVE, "cells": COUNT},
    "retrieval": {"k": COUNT},
    "anomaly": {"memory": COUNT, "neighbours": COUNT, "top": SHARE},
    "few_shot_anomaly": {
        **dict.fromkeys(("normal", "draws", "depths", "width", "epochs", "batch_size", "memory"), COUNT),
        "abnormal": NOT_NEGATIVE,
        "lr": POSITIVE,
        "top": SHARE,
    },
    "ridge": {"strengths": NOT_NEGATIVE},
    "cox": {"components": COUNT, "penalties": NOT_NEGATIVE},
    "drawing": {"thresholds": SHARE, "tolerance_mm": NOT_NEGATIVE},
    **dict.fromkeys(("segmentation", "primus", "unet_decoder"), _DECODER),
    "patch_knn": {"k": COUNT, "temperature": POSITIVE, "bank": COUNT, "cells": COUNT},
    "stack3d": {**_DECODER, "depth": COUNT, "layers": NOT_NEGATIVE},
    **dict.fromkeys(("lora", "bitfit", "finetune"), _TUNED),
    **dict.fromkeys(("unet", "transunet", "cnn"), _NETWORK),
}
TASK = {
    "mean": Allowed(),
    "std": POSITIVE,
    "window": Allowed(length=2, rising=True),
    "split.train": NOT_NEGATIVE,
    "split.val": NOT_NEGATIVE,
    "split.test": NOT_NEGATIVE,
    "split.folds": Allowed(2),
    "files.plane_stride": COUNT,
    "files.ignore": NOT_NEGATIVE,
    "files.max_labels_outside": SHARE,
    "files.limits.volume_gb": POSITIVE,
    "stride.train": COUNT,
    "stride.val": COUNT,
    "stride.test": COUNT,
    "labelled_share": Allowed(0, 1, above=True),
    "size": Allowed(1, 16384),
    "min_pixels": NOT_NEGATIVE,
    "subgroup_patients": Allowed(2),
    "head_gb": POSITIVE,
    "draws": COUNT,
    "seed": Allowed(0, 2**63 - 1),
    "pictures": NOT_NEGATIVE,
    "patch_map.patients": Allowed(0, 1000),
    "patch_map.slices": Allowed(1, 1000),
    "patch_map.pixels": Allowed(32, 1024),
    "patch_map.error": Allowed(0, 1, above=True),
    "patch_map.memory_gb": POSITIVE,
    "batch_size": COUNT,
    **{f"{probe}.{key}": allowed for probe, table in _PROBES.items() for key, allowed in table.items()},
}
EMBED = {
    "window": Allowed(length=2, rising=True),
    **{"size": Allowed(1, 16384), "blocks": Allowed(1, 4), "stride": COUNT, "workers": COUNT, "batch_size": COUNT},
}
PREDICT = {"stride": COUNT, "workers": COUNT, "batch_size": COUNT}
CURATE = {
    "duplicates.radius": Allowed(0, 256),
    "duplicates.neighbours": COUNT,
    "duplicates.slice": Allowed(0, 1, above=True),
    "duplicates.similar": Allowed(0, 1, above=True),
    "duplicates.series": Allowed(0, 1, above=True),
    "duplicates.keep": SHARE,
    **dict.fromkeys(("clusters.passes", "clusters.nearest", "batch_size"), COUNT),
    **dict.fromkeys(("body_parts.k", "body_parts.most"), COUNT),
    **dict.fromkeys(("body_parts.agreement", "body_parts.accuracy"), SHARE),
    "clusters.rounds": NOT_NEGATIVE,
    "clusters.memory_gb": POSITIVE,
    "clusters.seed": Allowed(0, 2**63 - 1),
    "size": Allowed(1, 16384),
    "max_weight": Allowed(1, 1000),
    "min_weight": SHARE,
    "workers": COUNT,
}
