"""The walk over the UNet against diffusers' own forward, and what early exit leaves out."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from vision3d.backbone.unet import denoise, read_taps, tap_name, walk
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
