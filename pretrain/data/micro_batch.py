"""Some images of a batch as the networks get them: crops, masks and the student's draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from pretrain.data.masking import Masked, masked
from pretrain.data.randomness import Draws
from pretrain.data.views import Views
from pretrain.model.tokens import Crops, repeated
from pretrain.runtime.device import to_device_async

_NO_PATCHES = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class MicroBatch:
    """Some images of a batch, or all of them.

    masks   (2·B, S·P) bool on the host, all crops of global crop 0 first
    counts  images of this micro-batch on each rank, in the order of ranks; empty where there is one rank
    """

    views: Views
    masks: torch.Tensor
    draws: Draws = Draws()
    counts: tuple[int, ...] = ()

    @property
    def images(self) -> int:
        """Images of this rank."""
        return self.views.global_crops.shape[1]

    @property
    def all_counts(self) -> tuple[int, ...]:
        """Images on each rank, also where there is one."""
        return self.counts or (self.images,)

    @property
    def sequences(self) -> int:
        """How many sequences an image may have."""
        return max(len(self.views.sequences), 1)

    @cached_property
    def masked(self) -> Masked:
        """The masks on the device of the crops, and which patches they are: known without asking the device."""
        present = repeated(self.views.present, 2)
        return masked(self.masks, present, self.sequences, self.views.global_crops.device)

    @cached_property
    def patch_image(self) -> torch.Tensor:
        """(M,) int64 which image each masked patch belongs to, on the device of the crops."""
        owner = self.masks.nonzero()[:, 0] % self.images
        return to_device_async(owner, self.views.global_crops.device)

    def teacher_crops(self) -> Crops:
        """The whole global crops, of which cls tokens and the patches that the student has masked are read."""
        return self._crops(self.views.global_crops, read_tokens=self.masked.listed)

    def masked_crops(self, *, patches: bool = True, all_patches: bool = False) -> Crops:
        """The global crops as the student sees them; beside the cls tokens the masked patches are read, all or none."""
        read = None if all_patches else self.masked.listed if patches else _NO_PATCHES
        return self._crops(
            self.views.global_crops,
            mask=self.masked.patches,
            drop=self.draws.of_crops(slice(2)),
            rope_scale=self.draws.rope_scale[0],
            read_tokens=read,
        )

    def local_crops(self) -> Crops:
        """The local crops as the student sees them, of which cls tokens are read."""
        return self._crops(
            self.views.local_crops,
            local=True,
            drop=self.draws.of_crops(slice(2, None)),
            rope_scale=self.draws.rope_scale[1],
            read_tokens=_NO_PATCHES,
        )

    def gram_crops(self) -> Crops:
        """The Gram teacher's crops. Raises ValueError where there are none."""
        if self.views.gram_crops is None:
            raise ValueError("a Gram teacher needs crops of its own: Views.gram_crops")
        return self._crops(self.views.gram_crops)

    def _crops(
        self,
        images: torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
        local: bool = False,
        drop: torch.Tensor | None = None,
        rope_scale: tuple[float, ...] | None = None,
        read_tokens: torch.Tensor | None = None,
    ) -> Crops:
        """Group (2 or L, B, S, h, w) crops for a network."""
        return Crops(
            images.flatten(0, 1),
            mask=mask,
            local=local,
            drop=drop,
            rope_scale=rope_scale,
            present=repeated(self.views.present, len(images)),
            sequences=self.views.sequences,
            read_tokens=read_tokens,
        )


def micro_batches(
    views: Views, masks: torch.Tensor, draws: Draws, counts: Sequence[tuple[int, ...]], rank: int = 0
) -> list[MicroBatch]:
    """Divide a batch into micro-batches, in order; `counts` are the images of each on every rank."""
    whole, start, found = masks.unflatten(0, (2, -1)), 0, []
    for each in counts:
        rows = slice(start, start + each[rank])
        found.append(MicroBatch(views.select(rows), whole[:, rows].flatten(0, 1), draws.select(rows), tuple(each)))
        start += each[rank]
    return found
