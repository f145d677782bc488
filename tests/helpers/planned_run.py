"""A small configuration, a plain stage and one with Gram anchoring, that counts, memory and plans are tested on."""

from __future__ import annotations

from meddap.settings import merge
from pretrain.config import Config

TINY = {
    "name": "tiny",
    "data": {"root": "none"},
    "model": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "registers": 3},
    "dino_head": {"prototypes": 40, "hidden_dim": 24, "bottleneck_dim": 16},
    "ibot_head": {"prototypes": 56, "hidden_dim": 24, "bottleneck_dim": 16},
    "stages": {
        "adapt": {"steps": 1, "crops": {"global_size": 48, "local_size": 24, "local_number": 3}},
        "gram": {
            "steps": 1,
            "crops": {"global_size": 48, "local_size": 24, "local_number": 3},
            "gram": {"teacher_from": "adapt", "size": 64},
            "loss": {"koleo_group": 2},
        },
    },
}


def config_of(*layers: dict, **more: object) -> Config:
    """Return the configuration; `layers` and then `more` override it."""
    return merge(Config, ("tiny", TINY), *(("layer", layer) for layer in layers), ("more", more))
