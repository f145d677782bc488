"""The cost of one training step on paper: operations of its matrix products, network by network, and bytes.

A multiply-add counts as two operations. Products are counted as the mathematics needs them: what is computed twice to
save memory is apart (`Step.again`) and what a fused kernel does is not looked at, so that a rate by `Step.model` tells
how fast a training goes, not how busy a machine is. Norms, activations and RoPE are left out: they cost bytes, not
operations.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace

import torch
from torch import nn

from pretrain import build
from pretrain.config import Config, LossConfig, MaskConfig, StageConfig, most_sequences
from pretrain.model.layers import Block
from pretrain.model.student_teacher import Model

_WORD = 4  # bytes of a float32
# times that a step reads or writes its logits: the teacher's once and in each iteration, the student's
_TARGET_PASSES, _ITERATION_PASSES, _LOSS_PASSES = 8, 8, 18
# the same of every weight: AdamW 7 (weight, gradient, two moments), clipping 3, moving average 3, copies in bf16 3
_UPDATE_PASSES = 16


@dataclass(frozen=True)
class Products:
    """Operations of one network's matrix products.

    embedding   pixels to patch tokens, and learned positions to their grid
    linear      queries, keys and values, output, feed-forward of all blocks
    attention   queries by keys, and weights by values
    heads       what lies before the prototypes
    prototypes  logits over them
    """

    embedding: float = 0.0
    linear: float = 0.0
    attention: float = 0.0
    heads: float = 0.0
    prototypes: float = 0.0

    def __add__(self, other: Products) -> Products:
        return Products(*(one + two for one, two in zip(astuple(self), astuple(other))))

    def __mul__(self, times: float) -> Products:
        return Products(*(times * each for each in astuple(self)))

    @property
    def total(self) -> float:
        return sum(astuple(self))


@dataclass(frozen=True)
class Step:
    """One step of `images` images.

    student, gradient   forward and backward pass over global and local crops
    again     what is computed a second time: by activation checkpointing, and by KoLeo's first pass
    teacher   over global crops, and `gram_teacher` over its finer ones: forward alone
    losses    similarities of Gram anchoring, KoLeo and the monitors, cross-entropies; float32
    views     crop, resize and blur of every crop; float32
    logit_bytes   read and written by Sinkhorn and the losses
    update_bytes  read and written by clipping, optimizer and moving average
    """

    images: float
    student: Products
    gradient: Products
    again: Products
    teacher: Products
    gram_teacher: Products
    losses: float
    views: float
    logit_bytes: float
    update_bytes: float

    @property
    def model(self) -> float:
        """Operations that the method needs, by which the share of a machine's matrix rate is computed."""
        networks = (self.student, self.gradient, self.teacher, self.gram_teacher)
        return sum(each.total for each in networks) + self.losses

    @property
    def total(self) -> float:
        """All operations of the step, views and repetitions included."""
        return self.model + self.again.total + self.views

    @property
    def float32(self) -> float:
        """Operations of `total` that stay float32 where the rest is bfloat16."""
        return self.losses + self.views


@dataclass(frozen=True)
class Costs:
    """Operations by what goes through a network: from the shapes of its matrices.

    prefix      tokens before the patches; grid, side of the learned positions, 0 for RoPE
    embedding   of a patch
    linear      of a token, all blocks
    attention   of a pair of tokens of one sample, all blocks
    last        of a token behind the last block's attention: spared where the token is not read
    stays       expected share of samples that drop path sends through a branch in training, the mean over blocks and
                the last one's
    heads, prototypes   of a row through the DINO and through the iBOT head
    parameters  of the backbone with both heads, backbone_parameters and block_parameters of these
    """

    patch_size: int
    prefix: int
    grid: int
    dim: int
    embedding: float
    linear: float
    attention: float
    last: float
    stays: tuple[float, float]
    heads: tuple[float, float]
    prototypes: tuple[float, float]
    columns: tuple[int, int]
    parameters: int
    backbone_parameters: int
    block_parameters: int

    @classmethod
    def of(cls, model: Model) -> Costs:
        """Return the costs of a network, which may be without memory (device "meta")."""
        backbone, dino, patch = model.backbone, model.dino_head, model.patch_head
        blocks = [block for block in backbone.blocks if isinstance(block, Block)]
        last = blocks[-1]
        return cls(
            patch_size=backbone.patch_size,
            prefix=1 + backbone.register_count,
            grid=math.isqrt(backbone.pos_embed.shape[1] - 1) if hasattr(backbone, "pos_embed") else 0,
            dim=backbone.embed_dim,
            embedding=2.0 * backbone.patch_embed.proj.weight.numel(),
            linear=2.0 * _matrices(backbone.blocks),
            attention=4.0 * backbone.embed_dim * backbone.depth,
            last=2.0 * (_matrices(last.attn.proj) + _matrices(last.mlp)),
            stays=(1 - sum(block.drop_path for block in blocks) / backbone.depth, 1 - last.drop_path),
            heads=(2.0 * _matrices(dino.mlp), 2.0 * _matrices(patch.mlp)),
            prototypes=(2.0 * dino.last_layer.weight.numel(), 2.0 * patch.last_layer.weight.numel()),
            columns=(dino.last_layer.out_features, patch.last_layer.out_features),
            parameters=_numbers(model),
            backbone_parameters=_numbers(backbone),
            block_parameters=_numbers(backbone.blocks),
        )

    def crops(self, count: float, size: int, sequences: int = 1) -> Products:
        """Return the products of `count` crops of `size` pixels through the backbone, each of so many sequences."""
        side = size // self.patch_size
        tokens = self.tokens(size, sequences)
        patches = tokens - self.prefix
        positions = 2.0 * side * self.grid * (self.grid + side) * self.dim if count else 0.0
        return Products(
            embedding=count * patches * self.embedding + positions,
            linear=count * tokens * self.linear,
            attention=count * tokens**2 * self.attention,
        )

    def tokens(self, size: int, sequences: int) -> int:
        """Return the tokens of a crop."""
        return self.prefix + sequences * (size // self.patch_size) ** 2

    def rows(self, cls: float, patches: float) -> Products:
        """Return the products of cls tokens through the DINO head and patches through the iBOT head."""
        heads, prototypes = (cls * one + patches * two for one, two in (self.heads, self.prototypes))
        return Products(heads=heads, prototypes=prototypes)


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _matrices(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def unlabelled(config: Config) -> Config:
    """Return a configuration without labels, which cost next to nothing and whose classes only the data know."""
    return replace(config, classifier="linear")


def costs(config: Config) -> Costs:
    """Return the costs of the student that a configuration describes."""
    with torch.device("meta"):
        return Costs.of(build.networks(unlabelled(config))[0])


def masked_share(masks: MaskConfig, sequences: int = 1) -> float:
    """Expected share of the global crops' patches that are masked, and go through the iBOT head."""
    patches = masks.probability * sum(masks.ratio) / 2
    lost = masks.sequence_probability * min(masks.sequence_count, sequences - 1) / sequences
    return lost + (1 - lost) * patches


def views(stage: StageConfig, pixels: tuple[int, int], planes: int = 1) -> float:
    """Operations of one image's crops from planes of (height, width) pixels: two products each, two more to blur."""
    crops, blurred = stage.crops, any(stage.augment.blur_p) and stage.augment.blur_sigma[1] > 0
    total = 2 * _view(crops.global_size, pixels, blurred)
    total += crops.local_number * _view(crops.local_size, pixels, blurred)
    if stage.gram.teacher_from:
        total += 2 * _view(stage.gram.size, pixels, False)
    return planes * total


def _view(size: int, pixels: tuple[int, int], blurred: bool) -> float:
    height, width = pixels
    resized = 2.0 * height * width * size + 2.0 * size * height * size
    return resized + (2.0 * size * size * (height + width) if blurred else 0.0)


def step(
    config: Config,
    stage: StageConfig,
    images: int,
    *,
    pixels: tuple[int, int] = (512, 512),
    sequences: int | None = None,
    masked: float | None = None,
    first_pass: bool = False,
    known: Costs | None = None,
) -> Step:
    """One step of a stage with one pair of crop sizes (a variant of `build.crop_variants`).

    pixels     of a slice
    sequences  that every image has; None: all that are read, of several sources those of the one with most
    masked     patches of the 2 · images global crops that are masked; None: as many as are expected
    first_pass KoLeo's groups span micro-batches (`pretrain.objective.koleo`)
    known      `costs(config)`, where they are at hand
    """
    found, crops = known or costs(config), stage.crops
    count = most_sequences(config) if sequences is None else sequences
    patches = count * (crops.global_size // found.patch_size) ** 2
    if masked is None:
        masked = 2 * images * patches * masked_share(stage.masks, count)
    whole = found.crops(2 * images, crops.global_size, count)
    everything = whole + found.crops(crops.local_number * images, crops.local_size, count)
    anchored = bool(stage.gram.teacher_from)
    # of the last block's tokens cls tokens and masked patches are read, by Gram anchoring all of the global crops
    unread = 2 * images * (found.tokens(crops.global_size, count) - 1) - masked
    of_student = 0 if anchored else unread
    of_student += crops.local_number * images * (found.tokens(crops.local_size, count) - 1)
    # branches that drop path skips cost nothing
    stays, last_stays = found.stays
    student = replace(
        everything,
        linear=stays * everything.linear - last_stays * of_student * found.last,
        attention=stays * everything.attention,
    )
    unread_first = 2 * images * (found.tokens(crops.global_size, count) - 1)
    first = replace(
        whole,
        linear=stays * whole.linear - last_stays * unread_first * found.last,
        attention=stays * whole.attention,
    )
    forward = student + found.rows((2 + crops.local_number) * images, masked)
    # a product has two in its gradient, but the pixels need none
    gradient = forward * 2 + Products(embedding=-forward.embedding)
    dino_columns, patch_columns = found.columns
    logits = _WORD * (2 * images * dino_columns + masked * patch_columns)
    learned = _WORD * ((2 + crops.local_number) * images * dino_columns + masked * patch_columns)
    return Step(
        images=images,
        student=forward,
        gradient=gradient,
        again=Products(linear=student.linear, attention=student.attention) * config.machine.recompute
        + first * first_pass,
        teacher=whole + Products(linear=-unread * found.last) + found.rows(2 * images, masked),
        gram_teacher=found.crops(2 * images, stage.gram.size, count) if anchored else Products(),
        losses=_losses(found, stage, images, masked, count),
        views=images * views(stage, pixels, count * config.model.channels),
        logit_bytes=logits * (_TARGET_PASSES + _ITERATION_PASSES * stage.loss.sinkhorn_iterations)
        + learned * _LOSS_PASSES,
        update_bytes=_WORD * found.parameters * _UPDATE_PASSES,
    )


def _losses(known: Costs, stage: StageConfig, images: int, masked: float, sequences: int) -> float:
    """Products within the losses and monitors."""
    crops, (cls, patches) = stage.crops, known.columns
    # every student crop by both of the teacher's, and a masked patch by its own target; the targets have no gradient
    total = 2 * 2.0 * (2 * (2 + crops.local_number) * images * cls + masked * patches)
    total += 2 * _koleo(images, stage.loss, known.dim)
    total += 2.0 * (2 * images) ** 2 * known.dim  # the monitors' covariance
    if stage.gram.teacher_from:
        patches = (crops.global_size // known.patch_size) ** 2
        # the student's similarities with their gradient, and the Gram teacher's
        total += 4 * 2 * images * sequences * 2.0 * patches**2 * known.dim
    return total


def _koleo(images: int, loss: LossConfig, dim: int) -> float:
    size = loss.koleo_group or images
    groups = [size] * (images // size) + [images % size]
    return sum(2.0 * each**2 * dim for each in groups if each > 1)
