"""Crops of several sizes in one row of tokens: what each gives alone, by every kernel, compiled or not."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from helpers.tiny_run import CONFIG

from meddap.settings import SettingsError
from pretrain import distillation, train
from pretrain.model import attention, compiling, tokens
from pretrain.model.tokens import Crops, Run
from pretrain.model.vit import VisionTransformer

SHAPES = {"rope": {}, "learned": {"position": "learned", "grid": 4, "registers": 0}}


def model_of(shape: str = "rope", **options) -> VisionTransformer:
    """A small transformer with every weight drawn."""
    torch.manual_seed(0)
    model = VisionTransformer(patch_size=8, embed_dim=32, depth=3, num_heads=2, **SHAPES[shape], **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def crops() -> list[Crops]:
    """Two sizes and counts, the first with masked patches."""
    torch.manual_seed(1)
    return [Crops(torch.randn(3, 1, 32, 48), torch.rand(3, 24) < 0.3), Crops(torch.randn(5, 1, 16, 16), local=True)]


def test_a_row_holds_every_token_of_every_sample_once() -> None:
    """Packed and unpacked it is what it was."""
    groups = [torch.randn(3, 7, 2), torch.randn(5, 4, 2), torch.randn(1, 1, 2)]
    row, runs = tokens.pack(groups)
    assert row.shape == (3 * 7 + 5 * 4 + 1, 2) and runs == (Run(3, 7), Run(5, 4), Run(1, 1))
    assert all(torch.equal(one, other) for one, other in zip(tokens.unpack(row, runs), groups))


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_crops_give_what_each_size_gives_alone(shape: str) -> None:
    """cls, registers and patches, and the gradients of all weights, to 1e-5: no sample sees another's tokens."""
    model, groups = model_of(shape), crops()
    together = model.packed(groups)
    apart = [model(group.images, group.mask) for group in groups]
    for one, other in zip(together, apart):
        for part in ("cls", "registers", "patches"):
            torch.testing.assert_close(getattr(one, part), getattr(other, part), atol=1e-5, rtol=1e-5)
    gradients = []
    for found in (together, apart):
        model.zero_grad()
        sum(each.cls.square().sum() + each.patches.abs().sum() for each in found).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias) -> torch.Tensor:
    """xFormers' call with plain products: (1, T, heads, d) and a bias that can be written out."""
    written = attn_bias.materialize((query.shape[1], key.shape[1]), dtype=query.dtype, device=query.device)
    scores = torch.einsum("bihd,bjhd->bhij", query, key) / query.shape[-1] ** 0.5 + written
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(dim=-1), value)


class BlockDiagonal:
    """The part of xFormers' bias that is used, for machines without it."""

    def __init__(self, lengths: list[int]) -> None:
        self.owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    @classmethod
    def from_seqlens(cls, lengths: list[int], device: torch.device) -> BlockDiagonal:
        return cls(lengths)

    def materialize(self, shape, dtype, device) -> torch.Tensor:
        assert shape == (len(self.owner), len(self.owner))
        apart = self.owner[:, None] != self.owner[None, :]
        return torch.zeros(shape, dtype=dtype).masked_fill(apart, -torch.inf)


@pytest.fixture
def xformers_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """xFormers' layout with plain products in place of its kernels; its own bias where it is installed."""
    try:
        from xformers import ops
        from xformers.ops.fmha import attn_bias
    except ImportError:
        package, ops, fmha, attn_bias = (
            types.ModuleType(name)
            for name in ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
        )
        package.ops, ops.fmha, fmha.attn_bias, attn_bias.BlockDiagonalMask = ops, fmha, attn_bias, BlockDiagonal
        for module in (package, ops, fmha, attn_bias):
            monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(ops, "memory_efficient_attention", dense, raising=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_samples_in_one_call_give_the_same(shape: str, xformers_on_the_cpu) -> None:
    """The block-diagonal call's packing and unpacking: features and gradients of the runs taken one by one."""
    model, groups, found = model_of(shape), crops(), {}
    for kernel in (attention.by_run, attention.at_once):
        model.attend_with(kernel)
        features = model.packed(groups)
        model.zero_grad()
        sum(each.cls.square().sum() + each.patches.abs().sum() for each in features).backward()
        found[kernel] = [*(each.patches for each in features), model.blocks[0].attn.qkv.weight.grad.clone()]
    for one, other in zip(*found.values()):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_xformers_on_a_gpu_gives_the_same_numbers() -> None:
    """The real kernels, float32, against PyTorch's."""
    pytest.importorskip("xformers.ops")
    device = torch.device("cuda")
    torch.manual_seed(0)
    model = VisionTransformer(patch_size=8, embed_dim=128, depth=3, num_heads=2).to(device).eval()
    model.init_weights(torch.Generator(device).manual_seed(0))
    groups = [Crops(torch.randn(n, 1, side, side, device=device)) for n, side in ((4, 64), (8, 32))]
    found = []
    for kernel in (attention.by_run, attention.at_once):
        model.attend_with(kernel)
        found.append(model.packed(groups))
    for one, other in zip(*found):
        torch.testing.assert_close(one.patches, other.patches, atol=1e-4, rtol=1e-4)


def test_the_kernel_is_named_or_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto is PyTorch's own on the CPU; xFormers where it cannot run, or a word that is none, is one line."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert attention.pick("auto", cpu) is attention.pick("sdpa", gpu) is attention.by_run
    with pytest.raises(SettingsError, match="machine.attention: 'flash'; use auto, sdpa or xformers"):
        attention.pick("flash", cpu)
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    assert attention.pick("auto", gpu) is attention.by_run
    with pytest.raises(SettingsError, match=r"pip install 'meddap\[xformers\]'"):
        attention.pick("xformers", gpu)


def test_xformers_is_refused_on_the_cpu(xformers_on_the_cpu) -> None:
    """Asked for where it has no kernels it is one line, not a crash in the first step."""
    with pytest.raises(SettingsError, match="no kernels for the CPU"):
        attention.pick("xformers", torch.device("cpu"))
    assert attention.pick("auto", torch.device("cuda")) is attention.at_once


@pytest.mark.stress  # compiled blocks against the references are in test_pretrain_step.py
def test_compiled_blocks_give_the_same_and_stay_compiled() -> None:
    """Features and gradients to 1e-5 of the eager ones; a second call of the same shapes makes no new graph."""
    pytest.importorskip("torch._inductor")
    model, groups, found = model_of(), crops(), {}
    for how in ("eager", "compiled"):
        if how == "compiled":
            compiling.compile_blocks(model)
        features = model.packed(groups)
        model.zero_grad()
        sum(each.cls.square().sum() + each.patches.abs().sum() for each in features).backward()
        weights = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found[how] = [*(each.patches for each in features), *weights]
    for one, other in zip(*found.values()):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert list(model.state_dict()) == list(model_of().state_dict())
    with torch.compiler.set_stance("fail_on_recompile"):
        model.packed(groups)


def test_a_compiler_that_fails_and_a_full_gpu_are_one_line_each(tiny_dataset, tmp_path, monkeypatch, capsys) -> None:
    """The reason and what to do; another RuntimeError is a defect and keeps its traceback."""
    from torch._inductor.exc import InductorError

    (tmp_path / "c.yaml").write_text(CONFIG)
    words = ["--config", str(tmp_path / "c.yaml"), f"output={tmp_path}", f"data.root={tiny_dataset()}"]
    broken = InductorError(ImportError("x.so: invalid ELF header"), None)
    cases = {
        "remove the folder that TORCHINDUCTOR_CACHE_DIR names": broken,
        "error: CUDA out of memory. Set machine.accumulate=2": torch.OutOfMemoryError("CUDA out of memory.\nmore"),
    }
    for number, (expected, error) in enumerate(cases.items()):
        monkeypatch.setattr(distillation, "backward", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        assert train.main([*words, f"name=run{number}"]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and expected in lines[0]
    monkeypatch.setattr(distillation, "backward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        train.main([*words, "name=other"])
