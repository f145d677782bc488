"""Names that other projects give to a vision transformer's weights, turned into ours.

The kind of a file shows in its names: Hugging Face's, Meta's (with MM-DINOv2's and FlexiCT's additions) or timm's.
Wrappers of compiled, parallel and recomputed modules leave words in the names, which are dropped.
"""

from __future__ import annotations

import re

import torch

Tensors = dict[str, torch.Tensor]

_WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|module|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.)+")
_RENAMED = {
    "huggingface": (
        (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.register_tokens$", "storage_tokens"),
        (r"^embeddings\.", ""),
        (r"^(model\.|encoder\.)?layer\.", "blocks."),
        (r"\.attention\.(attention\.)?(q_proj|query)\.", ".attn.q."),
        (r"\.attention\.(attention\.)?(k_proj|key)\.", ".attn.k."),
        (r"\.attention\.(attention\.)?(v_proj|value)\.", ".attn.v."),
        (r"\.attention\.(o_proj|output\.dense)\.", ".attn.proj."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.gate_proj\.", ".mlp.w1."),
        (r"\.mlp\.weights_in\.", ".mlp.w12."),
        (r"\.mlp\.weights_out\.", ".mlp.w3."),
        (r"^layernorm\.", "norm."),
    ),
    "meta": (
        (r"^mri_seq_embed\.", "sequence_embed."),
        (r"^register_tokens$", "storage_tokens"),
        (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),  # blocks in chunks
        (r"^(patch_embed|rope_embed)_2D\.", r"\1."),  # FlexiCT
    ),
    "timm": (
        (r"^reg_token$", "storage_tokens"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
        (r"^rope\.", "rope_embed."),
        (r"\.attn\.([qkv])_bias$", r".attn.\1.bias"),
        (r"\.mlp\.fc1_g\.", ".mlp.w1."),
        (r"\.mlp\.fc1_x\.", ".mlp.w2."),
    ),
}
# names that gated and plain blocks of one kind share
_GATED = {
    "huggingface": {".mlp.up_proj.": ".mlp.w2.", ".mlp.down_proj.": ".mlp.w3."},
    "timm": {".mlp.fc2.": ".mlp.w3."},
}
_PLAIN = {"huggingface": {".mlp.up_proj.": ".mlp.fc1.", ".mlp.down_proj.": ".mlp.fc2."}}
# buffers that follow from the architecture, and FlexiCT's way into the same blocks for volumes
_DERIVED = re.compile(
    r"(^(patch_embed|rope_embed)_3D\..*|bias_mask|rope_embed\.(periods|inv_freq)|rope_embeddings\.inv_freq|inv_freq)$"
)
_HEADS = re.compile(r"(head|fc_norm|classifier|pooler|dino_head|ibot_head)\b")


def unwrapped(name: str) -> str:
    """Return the name without the words of torch.compile, DataParallel, checkpoint_wrapper and FSDP."""
    return _WRAPPERS.sub(r"\1", name)


def kind_of(tensors: Tensors, embedded: bool) -> str:
    """Return huggingface, meta or timm. `embedded`: the tokens are in `embeddings.`"""
    if embedded:
        return "huggingface"
    if any(name == "reg_token" or ".gamma_1" in name or name.startswith("rope.") for name in tensors):
        return "timm"
    return "meta"


def renamed(tensors: Tensors, kind: str) -> Tensors:
    """Return the same tensors in the same order under our names."""
    gated = any(".mlp.gate_proj." in name or ".mlp.fc1_g." in name for name in tensors)
    found = {}
    for name, value in tensors.items():
        for pattern, replacement in _RENAMED[kind]:
            name = re.sub(pattern, replacement, name)
        for old, new in (_GATED if gated else _PLAIN).get(kind, {}).items():
            name = name.replace(old, new)
        found[name] = value
    return found


def kept(name: str) -> bool:
    """Whether a tensor of this name (one of ours) is a backbone's weight: no head, nothing that follows from others."""
    return not _DERIVED.search(name) and not _HEADS.match(name)


def one_matrix(tensors: Tensors) -> Tensors:
    """Join query, key and value, where a missing bias is zero, and split the two inputs of SwiGLU."""
    ours: Tensors = {}
    parts: dict[str, Tensors] = {}
    for name, value in tensors.items():
        head, dot, tail = name.rpartition("attn.")
        if dot and tail[:2] in ("q.", "k.", "v."):
            parts.setdefault(f"{head}attn.qkv.{tail[2:]}", {})[tail[0]] = value
        elif ".mlp.w12." in name:
            ours[name.replace("w12", "w1")], ours[name.replace("w12", "w2")] = value.chunk(2)
        else:
            ours[name] = value
    for name, found in parts.items():
        absent = torch.zeros_like(next(iter(found.values())))
        ours[name] = torch.cat([found.get(part, absent) for part in "qkv"])
    return ours
