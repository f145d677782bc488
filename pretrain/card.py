"""The model card that goes with exported weights: data, recipe, how to use them, and their limits."""

from __future__ import annotations

from collections.abc import Iterator

from pretrain import metrics
from pretrain.checkpoint import Checkpoint
from pretrain.config import StageConfig, load, stage
from pretrain.encoder import Encoder


def card(found: Checkpoint, loaded: Encoder) -> str:
    """Markdown with the front matter that hubs read."""
    config = load(found.path / "config.yaml")
    model, (low, high) = loaded.config, loaded.intensity.window
    mean, std = loaded.intensity.mean, loaded.intensity.std
    return f"""---
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [medical, radiology, dino, self-supervised]
---
# {config.name}

A vision transformer ({model.embed_dim} wide, {model.depth} deep, patches of {model.patch_size} pixels, one input
channel) adapted to medical images by self-distillation with MedDAP. Weights: {loaded.source}.

## Use

```python
from transformers import AutoModel
model = AutoModel.from_pretrained(FOLDER).eval()
# hu: (N, 1, h, w) axial slices{_unit(low, high)}
image = ((hu.clip({low:g}, {high:g}) - {low:g}) / {high - low:g} - {mean:g}) / {std:g}
tokens = model(image).last_hidden_state   # cls, {model.registers} registers, patches row by row
```

Height and width are multiples of {model.patch_size}. Rows run front to back, columns from the patient's right to left.

## Data

{", ".join(config.data.sequences)} slices of split `{config.data.split}` of the data set with digest \
`{found.state["data_digest"][:16]}`; patients of the other splits were not seen.

## Recipe

{_stages(found)}
Loss (mean of a tenth of the stage's steps before each point) and, where it was asked for, the AUROC of nearest
neighbours on validation patients:

{_curves(found)}
Seed {config.seed}. Commit {found.state.get("git_commit") or "unknown"}.

## Limits

Features for research. Not a medical device, not validated for diagnosis; scanners, body parts and populations that are
not in the training data may be served badly. Measure on your own patients before you rely on it.
"""


def _unit(low: float, high: float) -> str:
    return ", here MR signal: its foreground's 0.5th percentile is 0, the 99.5th is 1" if (low, high) == (0, 1) else ""


def _walked(found: Checkpoint) -> Iterator[tuple[str, StageConfig, list[dict]]]:
    """The stages up to the checkpoint's: name, settings and the rows of its metrics."""
    config, run = load(found.path / "config.yaml"), found.path.parent.parent
    for name in config.stages:
        yield name, stage(config, name), metrics.read(run / name / "metrics.jsonl")
        if name == found.stage:
            return


def _stages(found: Checkpoint) -> str:
    lines = ["| stage | steps | batch | peak lr | crops in pixels | loss at its end |", "|---|---|---|---|---|---|"]
    for name, each, rows in _walked(found):
        end = f"{rows[-1]['loss/total']:.3f}" if rows else "not run"
        crops = f"2 × {each.crops.global_size}, {each.crops.local_number} × {each.crops.local_size}"
        lines.append(
            f"| {name} | {len(rows)} of {each.steps} | {each.batch_size} | {each.optim.lr.peak:g} | {crops} | {end} |"
        )
    return "\n".join(lines) + "\n"


def _curves(found: Checkpoint) -> str:
    shares = (0.1, 0.25, 0.5, 0.75, 1.0)
    lines = ["| stage | " + " | ".join(f"{share:.0%}" for share in shares) + " |", "|---" * (len(shares) + 1) + "|"]
    for name, _, rows in _walked(found):
        ends = [max(1, round(share * len(rows))) for share in shares]
        means = [_mean("loss/total", rows[max(0, end - max(1, len(rows) // 10)) : end]) for end in ends]
        lines.append(f"| {name}, loss | " + " | ".join(means) + " |")
        asked = [[row for row in rows[:end] if "knn/auroc" in row][-1:] for end in ends]
        if any(asked):
            lines.append(f"| {name}, kNN | " + " | ".join(_mean("knn/auroc", each) for each in asked) + " |")
    return "\n".join(lines) + "\n"


def _mean(key: str, rows: list[dict]) -> str:
    return f"{sum(row[key] for row in rows) / len(rows):.3f}" if rows else "–"
