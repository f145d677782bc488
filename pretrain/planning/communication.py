"""Messages between the devices of a training in a step: their number and size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.config import Config, StageConfig
from pretrain.planning import counting

_BUCKET = 25 * 2**20  # bytes of gradients in one of DDP's messages; the first has 1 MB


@dataclass(frozen=True)
class Message:
    """Messages of one kind in a step, and the bytes of them that each device sends."""

    what: str
    count: int
    sent: float


def messages(
    config: Config, stage: StageConfig, images: int, devices: int, accumulate: int = 1, first_pass: bool = False
) -> list[Message]:
    """Return the messages of a step between `devices` devices with `images` each; none where there is one device.

    accumulate  micro-batches of the batch; first_pass, whether KoLeo's groups span them (`pretrain.objective.koleo`)
    """
    if devices == 1:
        return []
    known = counting.costs(config)
    others = (devices - 1) / devices  # a ring sends everything but one part, for a sum twice
    columns, dim, sums = sum(known.columns), known.dim, 1 + stage.loss.sinkhorn_iterations
    said = [
        Message("Sinkhorn's sums", sums, sums * 4 * columns * 2 * others),
        Message("cls tokens for KoLeo", 2 if first_pass else 2 * accumulate, 4 * 2 * images * dim * (devices - 1)),
        Message("cls tokens for the monitors", 1, 4 * 2 * images * (dim + 2) * (devices - 1)),
        Message("losses and timing", 1, 8 * 32 * (devices - 1)),
    ]
    if config.machine.parallel == "ddp":
        size = 4 * known.parameters
        count = 1 + math.ceil(max(size - 2**20, 0) / _BUCKET)
        return [Message("gradients", count, 2 * size * others), *said]
    depth, width = config.model.depth, 2 if config.machine.precision != "float32" else 4
    blocks, rest = known.block_parameters, known.parameters - known.block_parameters
    # the teacher's for each part, the student's too, and again for its gradients where they did not stay
    times = (3 if config.machine.reshard else 2) * accumulate
    extra = accumulate if first_pass and config.machine.reshard else 0  # its backbone's in the first pass
    anchors = extra + (accumulate if stage.gram.teacher_from else 0)
    gathered = times * (width * blocks + 4 * rest)
    count = times * (depth + 3) + anchors * (depth + 1)
    return [
        Message("parameters", count, (gathered + anchors * width * blocks) * others),
        Message("gradients", accumulate * (depth + 3), accumulate * 4 * known.parameters * others),
        *said,
    ]
