"""What goes into a vision transformer and what comes out: crops of images, features of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Features:
    """Tokens after the final norm.

    cls        (N, D)
    registers  (N, R, D)
    patches    (M, P, D) of each present sequence of each sample, in row-major order of `present`; patches row by row.
               M is N where there is one sequence, N·S where all are present
    present    (N, S) bool on the host, or None: all
    """

    cls: torch.Tensor
    registers: torch.Tensor
    patches: torch.Tensor
    present: torch.Tensor | None = None

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """(n, D) the patch tokens at some of the M·P places (`masking.Masked.places`)."""
        return self.patches.flatten(0, 1)[places]

    def merged(self) -> torch.Tensor:
        """(N, P, D) the mean over each sample's sequences of the patches at a place."""
        count = len(self.cls)
        if self.present is None or bool(self.present.all()):
            return self.patches.unflatten(0, (count, -1)).mean(dim=1) if len(self.patches) > count else self.patches
        owner = self.present.nonzero()[:, 0].to(self.patches.device)
        total = self.patches.new_zeros(count, *self.patches.shape[1:]).index_add_(0, owner, self.patches)
        return total / self.present.sum(dim=1).to(total).view(-1, 1, 1)


@dataclass(frozen=True)
class Asked:
    """Tokens that were asked for, after the final norm: cls (N, D), and patches (n, D) those at `Crops.asked`."""

    cls: torch.Tensor
    patches: torch.Tensor


@dataclass(frozen=True)
class Crops:
    """Images of one size, one part of a packed call.

    images   (N, S·C, h, w): S sequences of C channels (S = 1 where the model knows no sequences); h and w are
             multiples of the patch size
    mask     (N, S·P) bool, patches that the mask token replaces, or None
    local    they are local crops, whose cls token and registers have a norm of their own in training
    drop     (depth, 2, N) uniform numbers in [0, 1) on the host that drop path compares, needed in training where there
             is any
    stretch  factors of RoPE's coordinates, one for all blocks or one for each; needed in training where the model has
             `rope_rescale`
    present  (N, S) bool on the host, which sequences a sample has, or None: all. The others' pixels are not looked at
    sequences  names of the S sequences; (): all that the model knows, in its order
    asked    (n,) int64 on the host: which patches are read beside the cls tokens (places of Features.at), so that the
             last block's other tokens are not computed; None: everything is
    """

    images: torch.Tensor
    mask: torch.Tensor | None = None
    local: bool = False
    drop: torch.Tensor | None = None
    stretch: tuple[float, ...] | None = None
    present: torch.Tensor | None = None
    sequences: tuple[str, ...] = ()
    asked: torch.Tensor | None = None
