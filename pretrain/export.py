"""Hand out a trained backbone in layouts that others load.

    python -m pretrain.export --checkpoint RUN --format huggingface|dinov3|onnx --output PATH [--which teacher]

`huggingface` writes a folder for `transformers.AutoModel.from_pretrained`: weights, configuration, normalisation and a
model card. `dinov3` writes one `.pth` in the layout of Meta's releases, `onnx` one file for images of any size. Each is
read again and its features are compared with ours before the command says that it is done. `--which both` writes
teacher and student below PATH.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_prep.disk import write_atomic
from data_prep.settings import SettingsError
from pretrain import build, card, encoder, export_onnx, initialise, published
from pretrain.checkpoint import CheckpointError
from pretrain.config import ModelConfig, head_count
from pretrain.encoder import Encoder
from pretrain.published import Tensors, WeightsError
from pretrain.tokens import Features
from pretrain.vit import VisionTransformer

_SUFFIX = {"huggingface": "", "dinov3": ".pth", "onnx": ".onnx"}
_CLOSE = 1e-4  # largest difference of features between ours and what was handed out
_NAMES = {
    "dinov3": (
        (r"^blocks\.", "layer."),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
        (r"\.attn\.(q|k|v)\.", r".attention.\1_proj."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"^norm\.", "norm."),
    ),
    "dinov2": (
        (r"^blocks\.", "encoder.layer."),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"\.attn\.q\.", ".attention.attention.query."),
        (r"\.attn\.k\.", ".attention.attention.key."),
        (r"\.attn\.v\.", ".attention.attention.value."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"^norm\.", "layernorm."),
    ),
}
_SHARED = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^storage_tokens$", "embeddings.register_tokens"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
)
_FFN = {
    "mlp": ((r"\.mlp\.fc1\.", ".mlp.up_proj."), (r"\.mlp\.fc2\.", ".mlp.down_proj.")),
    "swiglu": (
        (r"\.mlp\.w1\.", ".mlp.gate_proj."),
        (r"\.mlp\.w2\.", ".mlp.up_proj."),
        (r"\.mlp\.w3\.", ".mlp.down_proj."),
    ),
}


class ExportError(RuntimeError):
    """What cannot be handed out; one line that says why."""


def huggingface(loaded: Encoder, output: Path, words: str) -> None:
    """A folder that transformers loads. Raises ExportError for an architecture that it does not have."""
    config = loaded.config
    kind = "dinov3" if config.position == "rope" else "dinov2"
    if kind == "dinov2" and (config.ffn != "mlp" or config.ffn_ratio % 1):
        raise ExportError(
            "learned positions with SwiGLU or a broken ffn_ratio: transformers has none; use --format dinov3"
        )
    output.mkdir(parents=True, exist_ok=True)
    weights = _renamed(
        _split(_weights(loaded.model), config, kind),
        (*_SHARED, *_NAMES[kind], *(_FFN[config.ffn] if kind == "dinov3" else ())),
    )
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    _write(output / "config.json", _config(config, kind, weights))
    _write(output / "preprocessor_config.json", _preprocessing(loaded))
    write_atomic(output / "README.md", words.encode())


def dinov3(loaded: Encoder, output: Path) -> None:
    """One file in the layout of Meta's releases: the backbone's state dict, one input channel."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    weights = dict(loaded.model.state_dict())
    if names := loaded.model.sequences:  # a row each, under its name
        rows = weights.pop("sequence_embed.weight")
        weights |= {f"sequence_embed.{name}": row.clone() for name, row in zip(names, rows)}
    torch.save(weights, temporary)
    temporary.replace(output)


def check(loaded: Encoder, output: Path) -> float:
    """Read what was written and compare features on random images; the largest difference.

    By transformers where it is installed and a folder was written, by onnxruntime for ONNX, by our own reader for the
    other two. Raises ExportError.
    """
    if output.suffix == ".onnx":
        return _close(output, export_onnx.difference(loaded, output))
    patch = loaded.model.patch_size
    side = (loaded.config.grid or 4) * patch
    channels = max(len(loaded.model.sequences), 1)
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = _joined(loaded.model(images))
        found = [_ours(loaded, output)(images)]
        if output.is_dir() and (theirs := _transformers(output)) is not None:
            found.append(theirs(images).last_hidden_state)
    difference = max(
        float((expected - (_joined(each) if isinstance(each, Features) else each)).abs().max()) for each in found
    )
    return _close(output, difference)


def _close(output: Path, difference: float) -> float:
    if not difference <= _CLOSE:
        raise ExportError(f"{output}: features differ by {difference:.1e} from the checkpoint's; do not use it")
    return difference


def _joined(features: Features) -> torch.Tensor:
    patches = features.patches.reshape(len(features.cls), -1, features.patches.shape[-1])
    return torch.cat([features.cls[:, None], features.registers, patches], dim=1)


def _ours(loaded: Encoder, output: Path) -> VisionTransformer:
    found = published.read(output)
    config = loaded.config
    if config.layer_scale is None and "blocks.0.ls1.gamma" in found.weights:  # written as ones: transformers wants it
        for name in [name for name in found.weights if name.endswith(".gamma")]:
            del found.weights[name]
    if config.local_norm and "local_cls_norm.weight" not in found.weights:  # of training alone
        own = loaded.model.state_dict()
        found.weights.update({name: own[name] for name in own if name.startswith("local_cls_norm.")})
    config = replace(config, num_heads=head_count(config))
    model = build.backbone(config).eval()
    left = found.usual | {"local_norm", "qkv_bias"}
    settings = {name: value for name, value in found.settings.items() if name not in left}
    initialise.load(model, replace(found, settings=settings), config, None)
    return model


def _transformers(folder: Path) -> torch.nn.Module | None:
    try:
        from transformers import AutoModel
    except ImportError:
        return None
    return AutoModel.from_pretrained(folder).eval()


def _weights(model: VisionTransformer) -> Tensors:
    skipped = initialise.buffers(model)
    return {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if name not in skipped and not name.startswith("local_cls_norm.")
    }


def _split(weights: Tensors, config: ModelConfig, kind: str) -> Tensors:
    """Query, key and value apart; LayerScale of ones where there is none; the mask token in transformers' shape."""
    ours: Tensors = {}
    for name, value in weights.items():
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", value.chunk(3)):
                if not (part == "k" and name.endswith("bias") and config.mask_k_bias and kind == "dinov3"):
                    zero = part == "k" and name.endswith("bias") and config.mask_k_bias
                    ours[name.replace(".qkv.", f".{part}.")] = torch.zeros_like(piece) if zero else piece.clone()
        else:
            ours[name] = value
    if config.layer_scale is None:
        for block in range(config.depth):
            for number in (1, 2):
                ours[f"blocks.{block}.ls{number}.gamma"] = torch.ones(config.embed_dim)
    if kind == "dinov3":
        ours["mask_token"] = ours["mask_token"].reshape(1, 1, -1)
        ours.setdefault("storage_tokens", torch.zeros(1, 0, config.embed_dim))
    return ours


def _renamed(weights: Tensors, rules: tuple[tuple[str, str], ...]) -> Tensors:
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _config(config: ModelConfig, kind: str, weights: Tensors) -> dict:
    shared = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": head_count(config),
        "patch_size": config.patch_size,
        "num_channels": 1,
        "layer_norm_eps": config.norm_eps,
        "layerscale_value": 1.0,
    }
    if kind == "dinov3":
        wide = weights["layer.0.mlp.up_proj.weight"].shape[0]
        gated = config.ffn == "swiglu"
        return {
            **shared,
            "architectures": ["DINOv3ViTModel"],
            "model_type": "dinov3_vit",
            "image_size": 14 * config.patch_size,
            "intermediate_size": wide,
            "hidden_act": "silu" if gated else "gelu",
            "use_gated_mlp": gated,
            "num_register_tokens": config.registers,
            "query_bias": config.qkv_bias,
            "key_bias": config.qkv_bias and not config.mask_k_bias,
            "value_bias": config.qkv_bias,
            "rope_theta": config.rope_base,
        }
    with_registers = config.registers > 0
    return {
        **shared,
        "architectures": ["Dinov2WithRegistersModel" if with_registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if with_registers else "dinov2",
        "image_size": config.grid * config.patch_size,
        "mlp_ratio": int(config.ffn_ratio),
        "qkv_bias": config.qkv_bias,
        **({"num_register_tokens": config.registers} if with_registers else {}),
    }


def _preprocessing(loaded: Encoder) -> dict:
    """Normalisation of HU in the words of an image processor: (HU − mean) / std, after clipping to the window."""
    low, high = loaded.intensity.window
    width = high - low
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "do_center_crop": False,
        "do_rescale": False,
        "do_normalize": True,
        "image_mean": [low + loaded.intensity.mean * width],
        "image_std": [loaded.intensity.std * width],
        "clip": [low, high],  # HU; of MR shares of the way from the foreground's 0.5th to its 99.5th percentile
    }


def _write(path: Path, content: dict) -> None:
    write_atomic(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def hand_out(checkpoint: Path, which: str, kind: str, output: Path, sequence: str | None) -> None:
    """Write one network of a checkpoint, read it again and say so. Raises ExportError.

    sequence  of a model of several: the one that is handed out, None for all (`dinov3` alone can)
    """
    if output.exists():
        raise ExportError(f"{output}: is there already; name another --output")
    loaded = encoder.load_encoder(checkpoint, which)
    if sequence is not None:
        loaded = encoder.of_one_sequence(loaded, sequence)
    elif loaded.model.sequences and kind != "dinov3":
        names = ", ".join(loaded.model.sequences)
        raise ExportError(f"{output}: --format {kind} has one sequence; give --sequence NAME, one of {names}")
    if kind == "huggingface":
        huggingface(loaded, output, card.card(encoder.find(checkpoint), loaded))
    elif kind == "dinov3":
        dinov3(loaded, output)
    else:
        export_onnx.write(loaded, output, _preprocessing(loaded))
    difference = check(loaded, output)
    print(f"{output}: {loaded.source}; read again, features equal to {difference:.0e}")


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pretrain.export", description="Hand out a trained backbone.")
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR", help="a run, stage or step folder")
    parser.add_argument("--format", required=True, choices=tuple(_SUFFIX))
    parser.add_argument("--output", required=True, type=Path, metavar="PATH", help="a new folder, .pth or .onnx file")
    parser.add_argument("--which", default="teacher", choices=("teacher", "student", "both"))
    parser.add_argument("--sequence", metavar="NAME", help="of a model of several sequences the one to hand out")
    options = parser.parse_args(arguments)
    suffix, output = _SUFFIX[options.format], options.output
    both = options.which == "both"
    try:
        if suffix and not both and output.suffix != suffix:
            raise ExportError(f"{output}: --format {options.format} writes one file; name it {output.name}{suffix}")
        for which in ("teacher", "student") if both else (options.which,):
            path = output / f"{which}{suffix}" if both else output
            hand_out(options.checkpoint, which, options.format, path, options.sequence)
    except (ExportError, CheckpointError, WeightsError, SettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"error: --format onnx needs {error.name}; pip install 'meddap[onnx]'", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
