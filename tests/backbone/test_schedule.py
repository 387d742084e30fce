"""Schedule mathematics against diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from vision3d.backbone import schedule

KINDS = ("epsilon", "v_prediction", "sample")


def scheduler(kind: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        set_alpha_to_one=False, clip_sample=False, prediction_type=kind,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [0, 4, -1])
def test_ddim_steps_are_diffusers_steps(kind: str, index: int) -> None:
    theirs = scheduler(kind)
    theirs.set_timesteps(10)
    steps = schedule.ddim_timesteps(10)
    assert steps.tolist() == theirs.timesteps.tolist()
    sample, out = torch.randn(2, 1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    t = int(steps[index])
    previous, x0 = schedule.ddim_step(out, t, sample, 10, kind)
    expected = theirs.step(out, t, sample)
    torch.testing.assert_close(previous, expected.prev_sample, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(x0, expected.pred_original_sample, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_network_recovers_the_clean_sample(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 3, 4, 6, 6, generator=generator, dtype=torch.float64)
    t = torch.tensor([1, 500, 999])
    noisy = schedule.add_noise(x0, noise, t)
    target = schedule.training_target(x0, noise, t, kind)
    torch.testing.assert_close(schedule.to_x0(target, noisy, t, kind), x0)
    torch.testing.assert_close(schedule.to_epsilon(target, noisy, t, kind), noise)


def test_first_noise_levels_are_the_published_ones() -> None:
    abar = schedule.alphas_cumprod()
    assert abar.dtype.name == "float64"
    assert abar[1] == pytest.approx(0.998296, abs=1e-6)
    assert (1 - abar[1]) ** 0.5 == pytest.approx(0.0412792, abs=1e-7)
