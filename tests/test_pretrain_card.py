"""The code in a model card is run as it stands: every way that it shows gives the encoder's own features."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.tiny_run import CONFIG, SHORT

from pretrain import export, train
from pretrain.weights import encoder

pytest.importorskip("transformers")
NAMES = ["t1", "flair"]
RUNS = {
    # its data, its words, the sequence that is handed out
    "ct": ("ct", [], None),
    "one of several": ("mr", [f"data.sequences=[{','.join(NAMES)}]", f"model.sequences=[{','.join(NAMES)}]"], "t1"),
    "one MR sequence": ("mr", ["data.sequences=[t2]"], None),
}


def blocks(folder: Path, **given: object):
    """The namespace after each Python block of the folder's card."""
    namespace = {"FOLDER": str(folder), **given}
    for code in re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE):
        exec(code, namespace)
        yield namespace


@pytest.mark.parametrize("kind", RUNS)
def test_the_card_runs(kind: str, tiny_dataset, brain_shards: Path, tmp_path: Path) -> None:
    """AutoModel, image processor and pipeline on one image, one with a channel and a batch: ours to 1e-4, with values
    beyond the window, infinite ones too. What is not clipped differs; a pipeline's own call is refused as it says."""
    data, words, sequence = RUNS[kind]
    (tmp_path / "c.yaml").write_text(CONFIG)
    root = tiny_dataset() if data == "ct" else brain_shards
    shorter = ["stages.adapt.steps=1", "stages.second.steps=1", *SHORT, "intensity.window=[-250.5,450]"]
    whole = ["--config", str(tmp_path / "c.yaml"), f"output={tmp_path}", f"data.root={root}", *shorter, *words]
    assert train.main(whole) == 0
    run, folder = tmp_path / "tiny", tmp_path / "out"
    chosen = ["--sequence", sequence] if sequence else []
    assert export.main(["--checkpoint", str(run), "--format", "huggingface", "--output", str(folder), *chosen]) == 0
    name, (low, high) = ("hu", (-250.5, 450.0)) if data == "ct" else ("share", (0.0, 1.0))
    images = np.random.default_rng(0).uniform(low - (high - low), high + (high - low), (2, 1, 24, 40))
    images[0, 0, 0, :2] = -np.inf, np.inf
    loaded = encoder.load_encoder(run)
    with torch.inference_mode():
        pixels = loaded.intensity.normalise(torch.from_numpy(images), torch.tensor(low), torch.tensor(high - low))
        ours = loaded.model(pixels, sequences=(sequence,) if sequence else ())
    expected = torch.cat([ours.cls[:, None], ours.registers, ours.patches], dim=1)
    ways = []
    for image in (images[0, 0], images[0], images):
        ways.append(0)
        for namespace in blocks(folder, **{name: image}):
            torch.testing.assert_close(namespace["tokens"], expected[: len(namespace["tokens"])], atol=1e-4, rtol=0)
            assert len(namespace["tokens"]) == (2 if image.ndim == 4 else 1)
            ways[-1] += 1
    assert ways == [3, 3, 3]
    model, processor = namespace["model"], namespace["processor"]
    with torch.inference_mode():
        unclipped = processor(images[1].astype(np.float32), return_tensors="pt")
        assert (model(**unclipped).last_hidden_state - expected[1:]).abs().max() > 1e-2
        drawn = PIL.Image.fromarray(namespace["clipped"](images[1])[0, 0])
        assert drawn.mode == "F"
        found = model(**processor(drawn, return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(found, expected[1:], atol=1e-4, rtol=0)
    with pytest.raises((ValueError, RuntimeError)):
        namespace["extractor"](drawn)
