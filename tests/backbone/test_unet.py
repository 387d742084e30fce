"""The walk over the UNet against diffusers' own forward, and what early exit leaves out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from vision3d.backbone.unet import MANY_WEIGHTS, convolve, denoise, read_taps, tap_name, walk
from vision3d.errors import InputError

SD2 = {
    "block_out_channels": (32, 64, 64, 64),
    "attention_head_dim": (2, 4, 4, 4),
    "cross_attention_dim": 48,
    "use_linear_projection": True,
}
SD1 = {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 4, "cross_attention_dim": 40}


def make(config: dict) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**config).eval().requires_grad_(False)


def inputs(unet: UNet2DConditionModel, size: tuple[int, int] = (9, 14)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, *size, generator=generator)
    context = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    return sample, torch.tensor([3, 741]), context


@pytest.mark.parametrize("config", [SD1, SD2], ids=["sd1", "sd2"])
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (5, 3)])
def test_walk_computes_what_diffusers_computes(config: dict, size: tuple[int, int]) -> None:
    unet = make(config)
    sample, t, context = inputs(unet, size)
    torch.testing.assert_close(
        denoise(unet, sample, t, context), unet(sample, t, context).sample, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("tap", ["d0", "d5", "mid", "in3", "s5", "s4", "s3", "dift1", "u2a0"])
def test_early_exit_gives_the_same_bits_and_runs_nothing_after_the_tap(tap: str) -> None:
    unet = make(SD2)
    sample, t, context = inputs(unet)
    whole = {step.name: step.tensor for step in walk(unet, sample, t, context)}
    ran: list[str] = []
    for name, module in unet.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    early = read_taps(unet, sample, t, context, [tap])[tap]
    assert torch.equal(early, whole[tap_name(unet, tap)])
    counted = len(ran)
    ran.clear()
    for step in walk(unet, sample, t, context):
        if step.name == tap_name(unet, tap):
            break
    assert len(ran) == counted
    assert "conv_out" not in ran
    if tap in ("d0", "d5", "mid"):
        assert not any(name.startswith("up_blocks") for name in ran)


def test_attention_maps_change_nothing_and_sum_to_what_softmax_gives() -> None:
    unet = make(SD2)
    sample, t, context = inputs(unet)
    plain = denoise(unet, sample, t, context)
    steps = list(walk(unet, sample, t, context, attention_maps=True))
    torch.testing.assert_close(steps[-1].tensor, plain, atol=1e-5, rtol=0)
    maps = {step.name: step.maps for step in steps if step.maps is not None}
    assert set(maps) == {"d1", "d2", "d4", "d5", "d7", "d8", "mid"} | {
        f"u{b}a{j}" for b in (1, 2, 3) for j in range(3)
    }
    heads, tokens = 4, 7
    assert maps["mid"].shape == (2, heads * (64 + tokens), 2, 2)
    cross = maps["mid"][:, heads * 64 :].unflatten(1, (heads, tokens))
    torch.testing.assert_close(cross.sum(2), torch.ones(2, heads, 2, 2))
    pooled = maps["mid"][:, : heads * 64].unflatten(1, (heads, 64))
    torch.testing.assert_close(pooled.amax(dim=(2, 3, 4)), torch.ones(2, heads))


def test_timesteps_and_time_add_are_per_row() -> None:
    unet = make(SD1)
    sample, t, context = inputs(unet)
    add = torch.randn(2, 128, generator=torch.Generator().manual_seed(2))
    both = denoise(unet, sample, t, context, time_add=add)
    rows = [
        denoise(unet, sample[i : i + 1], t[i : i + 1], context[i : i + 1], time_add=add[i : i + 1])
        for i in (0, 1)
    ]
    torch.testing.assert_close(both, torch.cat(rows), atol=1e-5, rtol=0)
    assert not torch.allclose(both, denoise(unet, sample, t, context))


def test_one_context_row_serves_the_batch() -> None:
    unet = make(SD1)
    sample, t, context = inputs(unet)
    one = denoise(unet, sample, t, context[:1])
    assert torch.equal(one, denoise(unet, sample, t, context[:1].expand(2, -1, -1)))


def test_unknown_tap_is_named() -> None:
    unet = make(SD1)
    with pytest.raises(InputError, match="s9"):
        read_taps(unet, *inputs(unet), ["s9"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 6), (3, 4, 4), (1, 1, 1)], ids=str)
def test_large_convolutions_of_few_pixels_are_one_matrix_product(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1280, 1024, 3, padding=1).requires_grad_(False)
    assert conv.weight.numel() >= MANY_WEIGHTS
    batch, height, width = shape
    x = torch.randn(batch, 1280, height, width)
    expected = conv(x)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.Conv2d, "forward", None)
        out = convolve(conv, x)
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("conv", "x"),
    [
        (torch.nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 4, 4)),
        (torch.nn.Conv2d(1280, 1024, 3, padding=1), torch.randn(1, 1280, 16, 17)),
        (torch.nn.Conv2d(1280, 1024, 3, padding=1, stride=2), torch.randn(1, 1280, 8, 8)),
        (torch.nn.Conv2d(2048, 2048, 3, padding=1, groups=2), torch.randn(1, 2048, 2, 2)),
    ],
    ids=["few weights", "many pixels", "stride", "groups"],
)
def test_other_convolutions_are_left_to_torch(conv: torch.nn.Conv2d, x: torch.Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(convolve(conv, x), conv(x))


def test_gradients_flow_through_large_convolutions() -> None:
    conv = torch.nn.Conv2d(1280, 1024, 3, padding=1)
    convolve(conv, torch.randn(1, 1280, 2, 2)).sum().backward()
    assert conv.weight.grad is not None


@pytest.mark.parametrize("config", [SD1, SD2], ids=["sd1", "sd2"])
@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
@torch.no_grad()
def test_matrix_products_change_nothing(
    config: dict, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = make(config)
    sample, t, context = inputs(unet, size)
    expected = unet(sample, t, context).sample
    monkeypatch.setattr("vision3d.backbone.unet.MANY_WEIGHTS", 0)
    multiplied: list[tuple[int, ...]] = []
    unfold = F.unfold
    monkeypatch.setattr(F, "unfold", lambda x, *a, **k: multiplied.append(x.shape) or unfold(x, *a, **k))
    torch.testing.assert_close(denoise(unet, sample, t, context), expected, atol=1e-5, rtol=0)
    assert len(multiplied) == sum(
        isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3) and layer.stride == (1, 1)
        for part in (unet.down_blocks, unet.mid_block, unet.up_blocks)
        for layer in part.modules()
    )


@torch.no_grad()
def test_hooks_see_what_torch_would_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision3d.backbone.unet.MANY_WEIGHTS", 0)
    unet = make(SD2)
    sample, t, context = inputs(unet, (8, 8))
    ran: list[str] = []
    for name in ("mid_block.resnets.0", "mid_block.resnets.1.conv2", "up_blocks.0.upsamplers.0.conv"):
        unet.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    denoise(unet, sample, t, context)
    assert ran == ["mid_block.resnets.0", "mid_block.resnets.1.conv2", "up_blocks.0.upsamplers.0.conv"]


@torch.no_grad()
def test_maps_leave_the_memory_layout_as_it_is() -> None:
    """In another layout, every convolution after a transformer would copy its weights."""
    unet = make(SD2)
    sample, t, context = inputs(unet)
    assert all(step.tensor.is_contiguous() for step in walk(unet, sample, t, context, attention_maps=True))
