"""The model card that goes with exported weights: data, recipe, how to use them, and their limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pretrain.config import Config, ModelConfig, StageConfig, load, recorded
from pretrain.runtime import metrics
from pretrain.runtime.checkpoint import Checkpoint
from pretrain.weights import lineage
from pretrain.weights.encoder import Encoder
from pretrain.weights.export_huggingface import takes_pictures
from pretrain.weights.lineage import RUN, Link


def card(found: Checkpoint, loaded: Encoder, compared: str, licence: str = "") -> str:
    """Return Markdown with the front matter that hubs read; `compared` says how equal the exported features are.

    licence  of the weights; "" where nobody names one
    The Python blocks run one after the other in one namespace that has FOLDER and the image they name.
    """
    config = load(found.path / "config.yaml")
    model, chain = loaded.config, lineage.of_checkpoint(found)
    return f"""---
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [medical, dino, self-supervised]
window: {list(loaded.intensity.window)}
{"".join(line + chr(10) for line in lineage.front_matter(chain, licence))}---
# {config.name}

A vision transformer ({model.embed_dim} wide, {model.depth} deep, patches of {model.patch_size} pixels,
{_channels(model)}) adapted to medical images by self-distillation with MedDAP. Weights: {loaded.source}.

## Use

{_use(loaded)}
Read again when it was exported: {compared}.
Height and width are multiples of {model.patch_size}. Rows of axial slices run front to back, columns from the patient's
right to left; other pictures are as their files have them.

## Data

{_data(found, config)}

## Licence and descent

{_descent(chain, licence)}

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


def _data(found: Checkpoint, config: Config) -> str:
    """Name the data sets by digest, with their licences where those who sharded them said so."""
    sources, licenses, split = found.state.get("sources", {}), found.state.get("licenses", {}), config.data.split
    names = ", ".join(config.data.sequences)
    if len(sources) < 2:
        licensed = f", licensed as {_cell(each)}" if (each := next(iter(licenses.values()), None)) else ""
        return (
            f"{names} slices of split `{split}` of the data set with digest `{found.state['data_digest'][:16]}`"
            f"{licensed}; patients of the other splits were not seen."
        )
    heads, rows = sources_table(found)
    quoted = [[*row[:-2], f"`{row[-2]}`", _cell(row[-1])] for row in rows]  # the digest
    lines = [
        f"{names} slices of split `{split}` of {len(sources)} data sets; patients of the other splits were not seen. "
        "Window, mean and standard deviation are those of this card unless others are named.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *quoted)),
    ]
    return "\n".join(lines)


def _descent(chain: Sequence[Link], licence: str) -> str:
    """Say the licence, what began as what, the first weights first, and what their licences ask for."""
    said = (
        f"Licence of these weights: {_cell(licence)}."
        if licence
        else "Nobody has named a licence for these weights yet."
    )
    lines = [said, "", "| | weights | SHA-256 | licence |", "|---|---|---|---|"]
    for link in chain:
        own = _cell(link.license) or ("that above" if link.kind == RUN else "not named")
        lines.append(f"| {link.kind} | {_cell(link.name)} | `{link.sha256[:16] or 'not known'}` | {own} |")
    return "\n".join([*lines, *(f"\n{notice}" for notice in lineage.notices(chain))])


def sources_table(found: Checkpoint) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows on the data sets of a training, one for each source; no rows where it has one alone."""
    sources, licenses = found.state.get("sources", {}), found.state.get("licenses", {})
    heads = ["data set", "share of the samples", "slices", "sampling", "sequences", "window in HU"]
    heads += ["mean, std", "digest", "licence"]
    rows = []
    for name, each in sources.items() if len(sources) > 1 else ():
        window = "–" if each["window"] is None else "{:g} to {:g}".format(*each["window"])
        shown = [name, f"{each['share']:.1%}", f"{each['samples']:,}", "by weights" if each["sampling"] else "uniform"]
        levels = [_level(each.get(key)) for key in ("mean", "std")]
        shown += [", ".join(each["sequences"]), window, "; ".join(levels) if any(levels) else "–"]
        shown += [each["digest"][:16], licenses.get(name, "not named")]
        rows.append(shown)
    return heads, rows


def _cell(text: str) -> str:
    """Return a text of others for a line or a table of Markdown: in one line, and without ends of cells."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(line.split()).replace("|", "\\|")


def _channels(model: ModelConfig) -> str:
    return "one input channel" if model.channels == 1 else "three input channels: red, green and blue"


def _level(value: float | list[float] | None) -> str:
    """Return a mean or deviation as text, "" where the training's own was taken."""
    if value is None:
        return ""
    return " ".join(f"{each:g}" for each in (value if isinstance(value, list) else [value]))


def _use_in_colour(loaded: Encoder) -> str:
    """Return code that turns colour pictures into features."""
    return f"""`picture`: an image of Pillow, or (h, w, 3) of red, green and blue from 0 to 255. Grey pictures are given
three times (`picture.convert("RGB")`). The image processor normalises them:

```python
import torch
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained(FOLDER).eval()
processor = AutoImageProcessor.from_pretrained(FOLDER)
with torch.inference_mode():
    tokens = model(**processor(picture, return_tensors="pt")).last_hidden_state
    # cls, {loaded.config.registers} registers, patches row by row
```
"""


def _use(loaded: Encoder) -> str:
    """Return code that turns pixels into features. It clips by itself, since no image processor does."""
    if takes_pictures(loaded):
        return _use_in_colour(loaded)
    low, high = loaded.intensity.window
    three = loaded.config.channels == 3
    levels = (loaded.intensity.means, loaded.intensity.stds)
    mean, std = (f"np.float32({list(each)!r}).reshape(3, 1, 1)" if three else repr(each[0]) for each in levels)
    name, unit = "hu", "axial slices in HU"
    if (low, high) == (0, 1):
        name = "share"
        unit = (
            "images without a unit: in MR the foreground's 0.5th percentile is 0 and its 99.5th is 1, in radiographs "
            "and other pictures black is 0 and white is 1"
        )
    processor = "" if three else _processor(loaded, name)
    return f"""`{name}`: {unit}; an array of shape (h, w), (1, h, w) or (N, 1, h, w). It is clipped to
{low:g} … {high:g}, then normalised:

```python
import numpy as np
import torch
from transformers import AutoModel

def clipped({name}):
    values = np.asarray({name}, np.float32).clip({low!r}, {high!r})
    return values.reshape(-1, 1, *values.shape[-2:])

def prepare({name}):
    return torch.from_numpy(((clipped({name}) - {low!r}) / {high - low!r} - {mean}) / {std})

model = AutoModel.from_pretrained(FOLDER).eval()
with torch.inference_mode():
    tokens = model(prepare({name})).last_hidden_state  # cls, {loaded.config.registers} registers, patches row by row
```
{processor}"""


def _processor(loaded: Encoder, name: str) -> str:
    """Return code for the image processor and pipelines of grey images."""
    return f"""
The image processor normalises and does not clip; it takes (1, h, w), (N, 1, h, w) and images of Pillow's mode F:

```python
from transformers import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained(FOLDER)
with torch.inference_mode():
    tokens = model(**processor(clipped({name}), return_tensors="pt")).last_hidden_state
```

A pipeline that is called with an image makes it RGB of eight bits, which this model refuses; `forward` takes pixels:

```python
from transformers import pipeline

extractor = pipeline("image-feature-extraction", model=FOLDER)
tokens = extractor.forward({{"pixel_values": prepare({name})}}).last_hidden_state
```
"""


def _walked(found: Checkpoint) -> Iterator[tuple[str, StageConfig, list[dict]]]:
    """Yield the stages up to the checkpoint's: name, settings and the rows of its metrics."""
    config, run = load(found.path / "config.yaml"), found.path.parent.parent
    for name in config.stages:
        yield name, recorded(config, name), metrics.read(run / name / "metrics.jsonl")
        if name == found.stage:
            return


def _stages(found: Checkpoint) -> str:
    lines = ["| stage | steps | batch | highest lr | crops in pixels | loss at its end |", "|---|---|---|---|---|---|"]
    for name, each, rows in _walked(found):
        end = f"{rows[-1]['loss/total']:.3f}" if rows else "not run"
        done, rate = f"{len(rows)} of {each.steps}", f"{each.optim.lr.highest:g}"
        lines.append(f"| {name} | {done} | {each.batch_size} | {rate} | {each.crops.described} | {end} |")
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
