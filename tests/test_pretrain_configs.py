"""Every stage of every configuration that is shipped learns: three steps of it, at a tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.corpora import write_pictures
from helpers.datasets import write_dataset
from safetensors.torch import load_file

import pretrain
from pretrain import checks, train
from pretrain.config import Config, CropsConfig, StageConfig, load

FOLDER = Path(pretrain.__file__).parent / "configs"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
STEPS, BATCH = 3, 4
BUFFERS = ("periods", "bias_mask")
SCHEDULES = ("optim.lr", "optim.weight_decay", "optim.teacher_momentum", "optim.teacher_temp", "loss.dino_local")


def attribute(tree: object, path: str) -> object:
    for name in path.split("."):
        tree = getattr(tree, name)
    return tree


def tiny(config: Config) -> list[str]:
    """Words that make a configuration small and short, each number that was named still taking effect."""
    heads = [name for name in ("dino_head", "ibot_head") if getattr(config, name) is not None]
    words = ["model.embed_dim=16", "model.num_heads=2", "model.depth=2"]
    words += [f"{head}.{key}={value}" for head in heads for key, value in (("hidden_dim", 16), ("bottleneck_dim", 8))]
    words += [f"{head}.prototypes={2 if config.classifier == 'prototypes' else 16}" for head in heads]
    words += ["model.grid=4"] if config.model.grid else []
    for name in config.stages:
        words += [f"stages.{name}.{word}" for word in short(checks.stage(config, name), config.model.patch_size)]
    return words + ["machine.device=cpu", "machine.precision=float32", "machine.tensorboard=false", "save.every=100"]


def short(stage: StageConfig, patch: int) -> list[str]:
    words = [f"steps={STEPS}", f"batch_size={BATCH}", f"crops.global_size={4 * patch}", f"crops.local_size={2 * patch}"]
    words += [f"crops.local_number={min(stage.crops.local_number, 2)}", f"gram.size={6 * patch}"]
    if stage.crops.mixture:
        pairs = [
            f"{{ratio: {pair.ratio}, global_size: {(4 + place % 2) * patch}, local_size: {2 * patch}}}"
            for place, pair in enumerate(stage.crops.mixture)
        ]
        words += [f"crops.mixture=[{', '.join(pairs)}]"]
    words += ["loss.koleo_group=2"] if stage.loss.koleo_group else []
    for path in (*SCHEDULES, *(["gram.weight"] if stage.gram.teacher_from else [])):
        schedule = attribute(stage, path)
        words += [f"{path}.warmup_steps=1"] if schedule.warmup_steps else []
        words += [f"{path}.cosine_steps=2"] if schedule.cosine_steps else []
    for key in ("freeze_last_layer_steps", "freeze_backbone_steps"):
        words += [f"optim.{key}=1"] if getattr(stage.optim, key) else []
    if stage.gram.teacher_from:
        words += [f"gram.teacher_from={stage.gram.teacher_from.partition('/')[0]}"]
        words += ["gram.refresh_every=2"] if stage.gram.refresh_every else []
    return words


def several(config: Config, *roots: Path) -> list[str]:
    """Words that give the first sources data, CT and MR by turns, and leave out those for which there are none."""
    names = list(config.data.sources)
    kinds = dict(zip(names, (roots[0], roots[2], roots[1])))
    words = [f"data.sources.{name}.root={kinds.get(name, 'none')}" for name in names]
    return words + [f"data.sources.{name}.weight=0" for name in names if name not in kinds]


def changes(folder: Path, network: str) -> dict[str, torch.Tensor]:
    """What a stage's steps changed of each tensor."""
    before, after = (load_file(folder / f"{step:08d}" / f"{network}.safetensors") for step in (0, STEPS))
    return {key: after[key].float() - before[key].float() for key in after}


def should_rest(name: str, stage: StageConfig) -> bool:
    """Whether nothing that a stage weighs reaches a parameter of the student."""
    unread = {"dino_head": stage.loss.dino, "ibot_head": stage.loss.ibot, "backbone.mask_token": stage.loss.ibot}
    return any(name.startswith(part) and not weight for part, weight in unread.items())


@pytest.mark.parametrize("file", FILES)
def test_every_parameter_that_should_move_moves_in_every_stage(
    file: str, tiny_dataset, brain_shards: Path, radiograph_shards: Path, tmp_path: Path
) -> None:
    """From a stage's first checkpoint to its last, all tensors of the student and of its teacher."""
    plain = load(FOLDER / file, needs_data=False)
    words = [f"output={tmp_path}", "name=run"]
    if plain.data.sources:
        words += several(plain, tiny_dataset(), write_dataset(tmp_path / "more", {"train": 3}, seed=1), brain_shards)
    else:
        pictures = tmp_path / "pictures"
        made = {"ct": tiny_dataset, "xray": lambda: radiograph_shards, "image": lambda: write_pictures(pictures)}
        words += [f"data.root={made.get(plain.data.sequences[0], lambda: brain_shards)()}"]
    words += ["data.labels=[tumour]"] if "mm_" in file else []
    config = load(FOLDER / file, words)
    assert train.main(["--config", str(FOLDER / file), *words, *tiny(config)]) == 0
    for name in config.stages:
        stage, folder = checks.stage(config, name), tmp_path / "run" / name
        student, teacher = (changes(folder, network) for network in ("student", "teacher"))
        wanted = {key for key in student if not key.endswith(BUFFERS) and not should_rest(key, stage)}
        resting = {key for key in wanted if not student[key].any()}
        assert wanted and not resting, (name, sorted(resting)[:5])
        # a teacher whose momentum is near 1 moves by less than float32's last digit at first
        share = 1 - stage.optim.teacher_momentum.values(STEPS).max()
        resting = {key for key in wanted if (student[key].abs() * share).max() > 1e-6 and not teacher[key].any()}
        assert any(each.any() for each in teacher.values()) and not resting, (name, sorted(resting)[:5])


def test_crops_are_told_in_words() -> None:
    """Local crops of which there are none are not named."""
    assert CropsConfig(global_size=64, local_size=32, local_number=4).described == "2 × 64, 4 × 32"
    assert CropsConfig(global_size=64, local_number=0).described == "2 × 64"
