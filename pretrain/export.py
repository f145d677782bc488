"""Export a trained backbone in layouts that others load.

    python -m pretrain.export --checkpoint RUN --format huggingface|dinov3|onnx --output PATH [--which teacher]

`huggingface` writes a folder for `transformers.AutoModel.from_pretrained`: weights, configuration, normalisation and a
model card. `dinov3` writes one `.pth` in the layout of Meta's releases, `onnx` one file for images of any size. Each is
read again and its features are compared with ours, at its native size and at another, before the command says that it
is done. `--which both` writes teacher and student below PATH. What the weights descend from and their licence go with
them (pretrain.weights.lineage); `--show-lineage` prints it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from data_prep.schema import CT
from meddap import console
from meddap.disk import disk_errors, write_atomic
from pretrain import build
from pretrain.config import head_count, load
from pretrain.model.tokens import Features
from pretrain.model.vit import VisionTransformer
from pretrain.weights import card, encoder, export_huggingface, export_onnx, initialise, lineage, published
from pretrain.weights.encoder import Encoder
from pretrain.weights.export_huggingface import ExportError

_SUFFIX = {"huggingface": "", "dinov3": ".pth", "onnx": ".onnx"}
_CLOSE = 1e-4  # largest difference of features between ours and the exported ones
_OTHER = (5, 9)  # rows and columns of patches beside the native size: oblong, so never native


@dataclass(frozen=True)
class Comparison:
    """Exported features beside ours.

    grids       (rows, columns) in patches of the images on which they are equal
    difference  the largest on these
    otherwise   the largest at _OTHER by transformers, which resamples learned positions of plain DINOv2 without the
                offset of 0.1 that it was trained with; None: equal there, too
    """

    grids: tuple[tuple[int, int], ...]
    difference: float
    otherwise: float | None = None

    def __str__(self) -> str:
        grids = [f"{rows} × {columns}" for rows, columns in self.grids]
        joined = " and ".join([", ".join(grids[:-1]), grids[-1]]) if len(grids) > 1 else grids[0]
        equal = f"features equal to {self.difference:.0e} at {joined} patches"
        if self.otherwise is None:
            return equal
        rows, columns = _OTHER
        return (
            f"{equal}; at {rows} × {columns} patches transformers interpolates positions otherwise "
            f"and differs by {self.otherwise:.0e}"
        )


def dinov3(loaded: Encoder, output: Path) -> None:
    """Write one file in the layout of Meta's releases: the backbone's state dict, as many channels as the model has."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    weights = dict(loaded.model.state_dict())
    if names := loaded.model.sequences:  # a row each, under its name
        rows = weights.pop("sequence_embed.weight")
        weights |= {f"sequence_embed.{name}": row.clone() for name, row in zip(names, rows)}
    with open(temporary, "wb") as file:  # by its path, PyTorch raises a RuntimeError that does not say which file
        torch.save(weights, file)
    temporary.replace(output)


def check(loaded: Encoder, output: Path) -> Comparison:
    """Read what was written and compare features on random images of two sizes, native and oblong.

    By transformers where it is installed and a folder was written, by onnxruntime for ONNX, by our own reader for the
    other two. Raises ExportError where they differ, unless it is transformers' way with learned positions off their
    grid that does.
    """
    if output.suffix == ".onnx":
        grids = export_onnx.grids(loaded)
        return Comparison(grids, _close(output, export_onnx.difference(loaded, output)))
    side = loaded.config.grid or 4
    native, ours = (side, side), _ours(loaded, output)
    found = [_difference(loaded, ours, grid) for grid in (native, _OTHER)]
    theirs = _transformers(output) if output.is_dir() else None
    if theirs is None:
        return Comparison((native, _OTHER), _close(output, max(found)))
    found.append(_difference(loaded, theirs, native))
    other = _difference(loaded, theirs, _OTHER)
    if loaded.config.position == "learned" and other > _CLOSE:
        return Comparison((native,), _close(output, max(found)), other)
    return Comparison((native, _OTHER), _close(output, max(*found, other)))


def _difference(loaded: Encoder, other: torch.nn.Module, grid: tuple[int, int]) -> float:
    """Return the largest difference of features on random images of (rows, columns) patches."""
    rows, columns = (count * loaded.model.patch_size for count in grid)
    planes = max(len(loaded.model.sequences), 1) * loaded.config.channels
    images = torch.randn(2, planes, rows, columns, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = _joined(loaded.model(images)), other(images)
    found = _joined(found) if isinstance(found, Features) else found.last_hidden_state
    return float((expected - found).abs().max())


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
        from transformers.utils import logging as their_console
    except ImportError:
        return None
    shown = their_console.is_progress_bar_enabled()
    their_console.disable_progress_bar()  # a bar for a file that was written a moment ago
    try:
        return AutoModel.from_pretrained(folder).eval()
    finally:
        if shown:
            their_console.enable_progress_bar()


def export(
    checkpoint: Path, which: str, kind: str, output: Path, sequence: str | None = None, named: str | None = None
) -> None:
    """Write one network of a checkpoint, read it again and say so. Raises MeddapError.

    sequence  which one of a model of several sequences, None for all (`dinov3` alone can)
    named     the licence; needed where the weights began from others' of which nothing states one
    """
    if output.exists():
        raise ExportError(f"{output}: exists; name another --output")
    found, loaded = encoder.find(checkpoint), encoder.load_encoder(checkpoint, which)
    chain = lineage.of_checkpoint(found)
    descent = {"lineage": lineage.as_records(chain), "license": (licence := lineage.to_name(chain, named))}
    if not loaded.model.sequences and load(found.path / "config.yaml").data.sequences != [CT]:
        loaded = encoder.of_shares(loaded)
    if sequence is not None:
        loaded = encoder.of_one_sequence(loaded, sequence)
    elif loaded.model.sequences and kind != "dinov3":
        names = ", ".join(loaded.model.sequences)
        raise ExportError(f"{output}: --format {kind} has one sequence; give --sequence NAME, one of {names}")
    try:
        compared = _write_and_check(loaded, kind, output, descent)
        if kind == "huggingface":
            write_atomic(output / "README.md", card.card(found, loaded, str(compared), licence).encode())
    except ImportError as error:
        raise ExportError(f"--format onnx needs {error.name}; pip install 'meddap[onnx]'") from error
    console.show(f"{output}: {loaded.source}; read again, {compared}")
    if (stated := " ".join(lineage.stated_license(chain).split())) and stated != licence:
        console.say(f"warning: licence {licence}, as --license says; the weights that these began from state {stated}")
    for line in lineage.notices(chain):
        console.say(f"licence {licence}: {line}")


def _write_and_check(loaded: Encoder, kind: str, output: Path, descent: dict) -> Comparison:
    if kind != "huggingface":
        said = {"meddap": {**asdict(loaded.intensity), **descent}}
        write_atomic(lineage.beside(output), (json.dumps(said, indent=1, sort_keys=True) + "\n").encode())
    if kind == "huggingface":
        export_huggingface.write(loaded, output, descent)
    elif kind == "dinov3":
        dinov3(loaded, output)
    else:
        # HU; for MR, shares of the way from the foreground's 0.5th to its 99.5th percentile
        clip = {"clip": list(loaded.intensity.window)}
        export_onnx.write(loaded, output, export_huggingface.preprocessing(loaded) | clip)
    return check(loaded, output)


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Export a run's encoder; return the exit status."""
    parser = console.parser(
        "Write a trained encoder for others to load, and check that what was written gives the same features.",
        "huggingface: a folder for transformers.AutoModel. dinov3: a .pth file in Meta's layout. onnx: an .onnx file.",
    )
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR", help="a run, stage or step folder")
    parser.add_argument("--format", choices=tuple(_SUFFIX))
    parser.add_argument("--output", type=Path, metavar="PATH", help="a new folder, .pth or .onnx file")
    parser.add_argument(
        "--which", default="teacher", choices=("teacher", "student", "both"), help="both: two exports below PATH"
    )
    parser.add_argument("--sequence", metavar="NAME", help="which sequence of a model of several")
    parser.add_argument("--license", metavar="NAME", help="of the weights; needed where that of their start is unknown")
    parser.add_argument(
        "--show-lineage", action="store_true", help="print what the weights descend from, and write nothing"
    )
    options = parser.parse_args(arguments)
    if options.show_lineage:
        for link in lineage.of_weights(options.checkpoint):
            console.show(str(link))
        return 0
    if options.format is None or options.output is None:
        parser.error("--format and --output are needed (or --show-lineage)")
    suffix, output = _SUFFIX[options.format], options.output
    both = options.which == "both"
    if suffix and not both and output.suffix != suffix:
        raise ExportError(f"{output}: --format {options.format} writes one file; name it {output.name}{suffix}")
    for which in ("teacher", "student") if both else (options.which,):
        path = output / f"{which}{suffix}" if both else output
        with disk_errors(path):
            export(options.checkpoint, which, options.format, path, options.sequence, options.license)
    return 0


if __name__ == "__main__":
    console.launch(main)
