"""Samples that skip a block's branch: what multiplying by zero would give, without the work."""

from __future__ import annotations

import pytest
import torch
from helpers.transformers import model_of
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model import compiling
from pretrain.model.tokens import Crops
from pretrain.model.vit import VisionTransformer

RATE = 0.5


def groups_of(draws: torch.Tensor, whole: int = 3) -> list[Crops]:
    """Crops of two sizes, `whole` of the larger one; draws (depth, 2, all of them)."""
    generator = torch.Generator().manual_seed(1)
    counts = whole, draws.shape[-1] - whole
    large, small = (torch.randn(count, 1, side, side, generator=generator) for count, side in zip(counts, (32, 16)))
    return [Crops(large, drop=draws[..., :whole]), Crops(small, local=True, drop=draws[..., whole:])]


def multiplied(model: VisionTransformer, crops: Crops) -> torch.Tensor:
    """(N, D) cls tokens when each branch is computed for all samples and multiplied by 0 or by 1 / share."""
    tokens, (packing, *_), _ = model.embed([crops])
    for block, draws in zip(model.blocks, crops.drop):
        share = 1 - block.drop_path
        factors = ((draws < share) / share).repeat_interleave(packing.runs[0].length, dim=1).unsqueeze(-1)
        tokens = tokens + factors[0] * block.ls1(block.attn(block.norm1(tokens), packing))
        tokens = tokens + factors[1] * block.ls2(block.mlp(block.norm2(tokens)))
    return model.norm(tokens.unflatten(0, packing.runs[0]))[:, 0]


def test_a_skipped_branch_is_one_multiplied_by_zero() -> None:
    """Features and all gradients to 1e-5; also where no sample of a size, or of all, goes through a branch."""
    model, draws = model_of(drop_path=RATE), torch.rand(3, 2, 8, generator=torch.Generator().manual_seed(2))
    draws[1, 0, 3:], draws[2, 1] = 0.9, 0.9
    found = []
    for features in (
        [each.cls for each in model.packed(groups_of(draws))],
        [multiplied(model, crops) for crops in groups_of(draws)],
    ):
        model.zero_grad()
        sum(each.square().sum() for each in features).backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found.append([*features, *gradients])
    assert len(found[0]) == 2 + len(list(model.parameters()))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_a_skipped_branch_costs_nothing() -> None:
    """Products of a model whose branches three quarters of the samples skip: a quarter of the blocks' own."""
    model, counts = model_of(depth=5, drop_path=RATE), []
    for block in model.blocks:
        block.drop_path = RATE
    for stays in (8, 2):
        draws = torch.full((5, 2, 8), 0.9)
        draws[..., torch.tensor([0, 3]) if stays == 2 else slice(None)] = 0.1
        with FlopCounterMode(display=False) as counter:
            sum(each.cls.sum() for each in model.packed(groups_of(draws))).backward()
        counts.append(counter.get_flop_counts()["Global"])
    linear = [each[torch.ops.aten.addmm] for each in counts]
    tokens = [3 * 21 + 5 * 9, 21 + 9]
    assert linear[1] / linear[0] == pytest.approx(tokens[1] / tokens[0], abs=0.03)


def test_training_without_draws_is_refused() -> None:
    """They are given, so that a run can be repeated; in evaluation nobody skips."""
    model = model_of(drop_path=RATE)
    with pytest.raises(ValueError, match="drop_path: training needs draws"):
        model(torch.zeros(1, 1, 16, 16))
    assert model.eval()(torch.zeros(1, 1, 16, 16)).cls.isfinite().all()


@pytest.mark.stress
def test_compiled_blocks_take_any_number_of_samples_without_a_new_graph() -> None:
    """Four steps warm up; then other samples, and other numbers of them, skip. Same features as the eager blocks'."""
    pytest.importorskip("torch._inductor")
    eager, model = model_of(depth=2, drop_path=RATE), model_of(depth=2, drop_path=RATE)
    compiling.compile_blocks(model)

    def run(seed: int, network: VisionTransformer = model) -> list[torch.Tensor]:
        groups = groups_of(torch.rand(2, 2, 36, generator=torch.Generator().manual_seed(seed)), 14)
        network.zero_grad()
        found = network.packed(groups)
        sum(each.cls.square().sum() for each in found).backward()
        return [*(each.cls for each in found), network.blocks[1].attn.qkv.weight.grad]

    for seed in range(4):
        run(seed)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in range(4, 10):
            for one, other in zip(run(seed), run(seed, eager)):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
