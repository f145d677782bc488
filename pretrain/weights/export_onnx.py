"""A backbone as one ONNX file that takes any number of images of any whole number of patches."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from pretrain.weights.encoder import Encoder

_LARGEST = 512  # patches a side
_SIZES = ((1, 3, 5), (3, 2, 2))  # (images, rows, columns in patches) that are compared


class Tokens(nn.Module):
    """(N, C, h, w) normalised images → cls (N, D), registers (N, R, D), patches (N, P, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = self.model(images)
        return found.cls, found.registers, found.patches


def write(loaded: Encoder, output: Path, normalisation: dict) -> None:
    """Write the file, whole or not at all; normalisation and source lie in its metadata. Raises ImportError."""
    import onnxscript  # noqa: F401  needed by torch.onnx: fail before minutes are spent

    patch = loaded.model.patch_size
    count, rows, columns = (
        torch.export.Dim("images"),
        *(torch.export.Dim(name, min=1, max=_LARGEST) for name in ("rows", "columns")),
    )
    example = torch.randn(3, loaded.config.channels, 6 * patch, 4 * patch)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Tokens(loaded.model).eval(),
            (example,),
            dynamo=True,
            dynamic_shapes={"images": {0: count, 2: patch * rows, 3: patch * columns}},
            input_names=["images"],
            output_names=["cls", "registers", "patches"],
        )
    assert program is not None  # which it is only without dynamo
    said = {"source": loaded.source, "patch_size": patch, **normalisation}
    program.model.metadata_props.update({name: str(value) for name, value in said.items()})
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    program.save(temporary)
    temporary.replace(output)


def difference(loaded: Encoder, path: Path) -> float:
    """Return the largest difference of features on random images of several sizes. Raises ImportError."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    patch, found = loaded.model.patch_size, []
    for images, rows, columns in _compared(loaded):
        shape = images, loaded.config.channels, rows * patch, columns * patch
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            expected = Tokens(loaded.model)(drawn)
        theirs = session.run(None, {"images": drawn.numpy()})
        pairs = [(one, torch.from_numpy(other)) for one, other in zip(expected, theirs) if one.numel()]
        found += [float((one - other).abs().max()) for one, other in pairs]
    return max(found)


def grids(loaded: Encoder) -> tuple[tuple[int, int], ...]:
    """Return rows and columns, in patches, of the images that `difference` compares."""
    return tuple((rows, columns) for _, rows, columns in _compared(loaded))


def _compared(loaded: Encoder) -> tuple[tuple[int, int, int], ...]:
    grid = loaded.config.grid
    return _SIZES + (((2, grid, grid),) if grid else ())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports every optional package that is missing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
