"""The step of self-distillation as one writes it first: what `benchmarks/step.py` measures ours beside.

Straightforward modules, one forward pass for each size of crops, all logits at once, one Sinkhorn after the other,
eager, a loop over parameters for the moving average. Its weights have the names of ours: both start from the same ones.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn


class PlainAttention(nn.Module):
    """Multi-head self-attention; the rotation turns the patches' queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        count, length, dim = tokens.shape
        query, key, value = self.qkv(tokens).reshape(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key = turned(query, rotation), turned(key, rotation)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(count, length, dim))


def turned(tokens: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(N, heads, T, d) with the last tokens, the patches, turned by their place."""
    sine, cosine = rotation
    prefix = tokens.shape[2] - len(sine)
    patches = tokens[:, :, prefix:]
    first, second = patches.chunk(2, dim=-1)
    patches = patches * cosine + torch.cat([-second, first], dim=-1) * sine
    return torch.cat([tokens[:, :, :prefix], patches.to(tokens.dtype)], dim=2)


class PlainMlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(tokens)))


class PlainScale(nn.Module):
    """LayerScale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * self.gamma


class PlainBlock(nn.Module):
    """Pre-norm transformer block; drop path multiplies what a sample's branch gave."""

    def __init__(self, dim: int, heads: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = PlainAttention(dim, heads)
        self.ls1 = PlainScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = PlainMlp(dim, hidden)
        self.ls2 = PlainScale(dim)
        self.drop_path = drop_path

    def forward(
        self, tokens: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], draws: torch.Tensor | None
    ) -> torch.Tensor:
        tokens = tokens + self.dropped(self.ls1(self.attn(self.norm1(tokens), rotation)), draws, 0)
        return tokens + self.dropped(self.ls2(self.mlp(self.norm2(tokens))), draws, 1)

    def dropped(self, branch: torch.Tensor, draws: torch.Tensor | None, which: int) -> torch.Tensor:
        if draws is None or not self.drop_path:
            return branch
        share = 1 - self.drop_path
        return branch * ((draws[which] < share) / share).view(-1, 1, 1)


class PlainPatches(nn.Module):
    """Patch embedding by a strided convolution."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, dim, patch, patch)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class PlainTransformer(nn.Module):
    """(N, 1, h, w) images → cls tokens (N, D) and patch tokens (N, P, D) after the norm."""

    def __init__(self, patch: int, dim: int, depth: int, heads: int, registers: int, drop_path: float) -> None:
        super().__init__()
        self.patch, self.head_dim = patch, dim // heads
        self.patch_embed = PlainPatches(patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.storage_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        rates = [drop_path] * depth
        self.blocks = nn.ModuleList(PlainBlock(dim, heads, 4 * dim, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(
        self, images: torch.Tensor, mask: torch.Tensor | None = None, draws: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        patches = self.patch_embed(images)
        if mask is not None:
            patches = torch.where(mask.unsqueeze(-1), self.mask_token, patches)
        cls = self.cls_token if mask is not None else self.cls_token + 0 * self.mask_token
        prefix = torch.cat([cls, self.storage_tokens], dim=1).expand(len(images), -1, -1)
        tokens = torch.cat([prefix, patches], dim=1)
        rotation = self.rotation(images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, rotation, None if draws is None else draws[number])
        tokens = self.norm(tokens)
        return tokens[:, 0], tokens[:, prefix.shape[1] :]

    def rotation(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sine and cosine of each patch's angles, (P, d) (DINOv3, section 3.2)."""
        periods = 100.0 ** (2 * torch.arange(self.head_dim // 4) / (self.head_dim // 2))
        down, across = (torch.arange(0.5, side) / side * 2 - 1 for side in (rows, columns))
        places = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * math.pi * places.unsqueeze(-1) / periods).flatten(1).tile(2)
        return angles.sin(), angles.cos()


class PlainHead(nn.Module):
    """MLP, L2 normalisation, prototypes."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        layers = [nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last_layer = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))


class PlainModel(nn.Module):
    """A backbone and its two heads."""

    def __init__(self, backbone: PlainTransformer, dino_head: PlainHead, ibot_head: PlainHead) -> None:
        super().__init__()
        self.backbone, self.dino_head, self.ibot_head = backbone, dino_head, ibot_head


@torch.no_grad()
def sinkhorn(logits: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """(M, K) logits → assignments whose rows sum to 1, prototypes used equally (SwAV)."""
    table = torch.exp(logits.float() / temperature).t()
    table /= table.sum()
    for _ in range(iterations):
        table /= table.sum(dim=1, keepdim=True)
        table /= table.shape[0]
        table /= table.sum(dim=0, keepdim=True)
        table /= table.shape[1]
    return (table * table.shape[1]).t()


def cross_entropy(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(…, K) logits against (…, K) probabilities."""
    return -(target * F.log_softmax(student.float() / 0.1, dim=-1)).sum(dim=-1)


def koleo(cls: torch.Tensor) -> torch.Tensor:
    """Minus the mean log distance to the nearest neighbour."""
    cls = F.normalize(cls.float(), dim=-1)
    similarity = cls @ cls.t()
    similarity.fill_diagonal_(-1)
    nearest = similarity.argmax(dim=1)
    return -torch.log(F.pairwise_distance(cls, cls[nearest], eps=1e-8) + 1e-8).mean()


class PlainStep:
    """Student, teacher and optimizer; a call is one step and gives the losses by the names that ours have."""

    def __init__(self, student: PlainModel, groups: list[dict], teacher_temp: float, momentum: float) -> None:
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)
        self.temperature, self.momentum = teacher_temp, momentum
        self.optimizer = torch.optim.AdamW(groups)

    def __call__(
        self, whole: torch.Tensor, local: torch.Tensor, mask: torch.Tensor, draws: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Global (2, B, 1, h, w) and local (L, B, 1, l, l) crops, masks (2·B, P), drop path's (depth, 2, 2 + L, B)."""
        self.optimizer.zero_grad()
        losses = self.losses(whole, local, mask, draws)
        losses["total"].backward()
        for part in self.student.children():
            nn.utils.clip_grad_norm_(part.parameters(), 3.0)
        self.optimizer.step()
        with torch.no_grad():
            for kept, fresh in zip(self.teacher.parameters(), self.student.parameters()):
                kept.mul_(self.momentum).add_(fresh, alpha=1 - self.momentum)
        return {name: loss.detach() for name, loss in losses.items()}

    def losses(
        self, whole: torch.Tensor, local: torch.Tensor, mask: torch.Tensor, draws: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The terms and their weighted sum."""
        crops, images = local.shape[:2]
        of_whole = None if draws is None else draws[:, :, :2].flatten(2)
        of_local = None if draws is None else draws[:, :, 2:].flatten(2)
        with torch.no_grad():
            cls, patches = self.teacher.backbone(whole.flatten(0, 1))
            wanted = sinkhorn(self.teacher.dino_head(cls), self.temperature).unflatten(0, (2, images))
            wanted_patches = sinkhorn(self.teacher.ibot_head(patches[mask]), self.temperature)
        cls, patches = self.student.backbone(whole.flatten(0, 1), mask, of_whole)
        local_cls, _ = self.student.backbone(local.flatten(0, 1), None, of_local)
        seen = self.student.dino_head(cls).unflatten(0, (2, images))
        seen_local = self.student.dino_head(local_cls).unflatten(0, (crops, images))
        local_losses = [cross_entropy(each, target).mean() for each in seen_local for target in wanted]
        first, second = cls.chunk(2)
        weight = (1 / mask.sum(dim=1).clamp(min=1)).unsqueeze(1).expand_as(mask)[mask]
        terms = {
            "dino_global": (cross_entropy(seen[0], wanted[1]).mean() + cross_entropy(seen[1], wanted[0]).mean()) / 2,
            "dino_local": torch.stack(local_losses).mean(),
            "ibot": (cross_entropy(self.student.ibot_head(patches[mask]), wanted_patches) * weight).sum() / len(mask),
            "koleo": (koleo(first) + koleo(second)) / 2,
        }
        dino = (2 * terms["dino_global"] + 2 * crops * terms["dino_local"]) / (2 + 2 * crops)
        return {**terms, "total": dino + terms["ibot"] + 0.2 * terms["koleo"]}
