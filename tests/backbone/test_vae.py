"""The lean autoencoder against diffusers' forward."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder

from vision3d.backbone import vae as lean


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval().requires_grad_(False)  # fmt: skip


@pytest.fixture(autouse=True)
def many_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of tests count as large ones."""
    monkeypatch.setattr(lean, "STRIP_BYTES", 1 << 12)


@pytest.mark.parametrize("size", [(64, 64), (77, 45), (16, 200)])
def test_encoding_is_diffusers_encoding(autoencoder: AutoencoderKL, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean, logvar = lean.encode_moments(autoencoder, images)
        posterior = autoencoder.encode(images * 2 - 1).latent_dist
    torch.testing.assert_close(mean, posterior.mean, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(logvar, posterior.logvar, atol=2e-6, rtol=1e-5)


def test_small_images_run_through_diffusers_modules(
    autoencoder: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "STRIP_BYTES", 4 * 32 * 40 * 48)
    with torch.no_grad():
        for images, stock in ((torch.rand(3, 3, 40, 48), True), (torch.rand(3, 3, 40, 56), False)):
            moments = lean.encode_moments(autoencoder, images)
            same = torch.equal(moments[0], autoencoder.encode(images * 2 - 1).latent_dist.mean)
            latents = moments[0]
            decoded = torch.equal(lean.decode(autoencoder, latents), autoencoder.decode(latents).sample)
            assert (same, decoded) == (stock, stock)


@pytest.mark.parametrize("strip_bytes", [1 << 12, 1 << 16])
def test_decoding_in_strips_is_diffusers_decoding(
    autoencoder: AutoencoderKL, strip_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "STRIP_BYTES", strip_bytes)
    latents = torch.randn(2, 4, 7, 10, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(
            lean.decode(autoencoder, latents), autoencoder.decode(latents).sample, atol=2e-5, rtol=0
        )


def test_decoding_leaves_its_input_alone(autoencoder: AutoencoderKL) -> None:
    latents = torch.randn(1, 4, 4, 4)
    kept = latents.clone()
    with torch.no_grad():
        lean.decode(autoencoder, latents)
    assert torch.equal(latents, kept)


def test_doubling_then_convolving_is_four_small_convolutions() -> None:
    torch.manual_seed(3)
    conv = torch.nn.Conv2d(5, 6, 3, padding=1).double()
    x = torch.randn(2, 5, 4, 7, dtype=torch.float64)
    with torch.no_grad():
        expected = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        torch.testing.assert_close(lean.double_and_convolve(conv, x), expected)


def test_training_goes_through_the_stock_modules() -> None:
    decoder = Decoder(8, 3, ("UpDecoderBlock2D",) * 2, (8, 8), 1, 8)
    z = torch.randn(1, 8, 3, 3)
    lean.decode_features(decoder, z).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in decoder.parameters())
    with torch.no_grad():
        torch.testing.assert_close(lean.decode_features(decoder, z), decoder(z), atol=1e-5, rtol=0)


def test_group_norm_statistics_of_a_far_off_mean() -> None:
    norm = torch.nn.GroupNorm(4, 16).double().float()
    x = 300 + torch.randn(2, 16, 31, 33, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        scale, shift = lean.scale_shift(norm, x)
        expected = F.group_norm(x.double(), 4, eps=norm.eps)
        torch.testing.assert_close((x * scale + shift).double(), expected, atol=2e-3, rtol=0)


def test_flat_pictures_lose_no_digits(autoencoder: AutoencoderKL) -> None:
    """Equal terms add up to a systematic error where they are summed one by one."""
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(5))
    images[..., 40:, :] = 0.0  # a canvas that the picture does not fill
    with torch.no_grad():
        exact = copy.deepcopy(autoencoder).double().encode(images.double() * 2 - 1).latent_dist.mean
        error = (lean.encode_moments(autoencoder, images)[0] - exact).abs().max()
        stock = (autoencoder.encode(images * 2 - 1).latent_dist.mean - exact).abs().max()
    assert error < 4 * stock
