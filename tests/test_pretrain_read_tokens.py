"""Tokens that nobody asks for are not computed behind the last block: the others are what they were."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import transformers
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model import compiling
from pretrain.model.tokens import Crops, Features, SelectedFeatures
from pretrain.model.vit import VisionTransformer

SEQUENCES = ("t1", "t2", "flair")
ASKED = torch.tensor([0, 5, 17, 40, 41])


def model_of(*, recompute: bool = False, **more) -> VisionTransformer:
    """The small transformer of drop path's tests with a norm of local crops; without drop path unless it is given."""
    model = transformers.model_of(**{"registers": 2, "local_norm": True} | more)
    model.recompute = recompute
    return model


def groups_of(model: VisionTransformer) -> list[Crops]:
    """Global crops, local crops and others: each group asks for less than the one after it."""
    generator = torch.Generator().manual_seed(1)
    count, present = max(len(model.sequences), 1), None
    if model.sequences:
        present = torch.tensor([[True, False, True], [True, True, True], [False, True, False], [True, True, False]])
    groups = []
    for side, local in ((32, False), (16, True), (24, False)):
        images = torch.randn(4, count, side, side, generator=generator)
        drop = torch.rand(3, 2, 4, generator=generator)
        groups.append(Crops(images, local=local, drop=drop, present=present))
    return groups


@pytest.mark.parametrize(
    "more",
    [{}, {"drop_path": 0.6}, {"sequences": SEQUENCES}, {"sequences": SEQUENCES, "drop_path": 0.6}, {"recompute": True}],
    ids=["plain", "drop path", "sequences", "sequences and drop path", "recompute"],
)
def test_what_is_asked_for_is_what_it_would_be(more: dict) -> None:
    """Cls tokens, patches and all gradients to 1e-5, beside a group of which everything is computed."""
    model = model_of(**more)
    read_tokens = (ASKED, torch.empty(0, dtype=torch.int64), None)
    some = [replace(group, read_tokens=places) for group, places in zip(groups_of(model), read_tokens)]
    found = []
    for groups in (groups_of(model), some):
        model.zero_grad()
        whole, local, third = model.packed(groups)
        patches = whole.at(ASKED) if isinstance(whole, Features) else whole.patches
        tokens = [whole.cls, patches, local.cls, third.cls, third.registers, third.patches]
        sum(each.square().sum() for each in tokens).backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        found.append([*(each.detach() for each in tokens), *(each.clone() for each in gradients)])
    assert isinstance(whole, SelectedFeatures) and isinstance(local, SelectedFeatures)
    assert local.patches.shape == (0, 32)
    assert isinstance(third, Features) and len(found[0]) == len(found[1])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_the_rest_costs_nothing() -> None:
    """Of the last block the products behind attention are those of the tokens that are asked for, forward and back."""
    model, counts = model_of(depth=1), []
    for read_tokens in (None, ASKED):
        groups = [replace(groups_of(model)[0], read_tokens=read_tokens)]
        with FlopCounterMode(display=False) as counter:
            (found,) = model.packed(groups)
            (found.cls.sum() + found.patches.sum()).backward()
        counts.append(counter.get_total_flops())
    tokens, left, behind = 4 * 19, 4 + len(ASKED), 2 * (32 * 32 + 2 * 32 * 128)
    assert counts[0] - counts[1] == 3 * (tokens - left) * behind


@pytest.mark.stress
def test_compiled_blocks_take_any_number_of_patches_without_a_new_graph() -> None:
    """Two steps warm up; then other numbers of masked patches are asked for. Same tokens as the eager blocks'."""
    pytest.importorskip("torch._inductor")
    eager, model = model_of(depth=2), model_of(depth=2)
    compiling.compile_blocks(model)

    def run(count: int, network: VisionTransformer = model) -> list[torch.Tensor]:
        read_tokens = torch.arange(count), torch.empty(0, dtype=torch.int64)
        groups = [
            replace(group, drop=None, read_tokens=places) for group, places in zip(groups_of(network), read_tokens)
        ]
        network.zero_grad()
        found = network.packed(groups)
        sum(each.cls.square().sum() + each.patches.square().sum() for each in found).backward()
        return [*(each.cls for each in found), found[0].patches, network.blocks[-1].attn.qkv.weight.grad]

    for count in (7, 20):
        run(count)
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (3, 41, 0, 64):
            for one, other in zip(run(count), run(count, eager)):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
