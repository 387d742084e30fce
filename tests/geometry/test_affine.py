"""Batched scale and shift against NumPy's least squares."""

from __future__ import annotations

import numpy as np
import torch

from vision3d.geometry.affine import fit_scale_shift


def test_fits_are_numpys_least_squares_over_valid_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    values, target = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    valid = torch.rand(3, 5, 7, generator=generator) > 0.3
    scale, shift = fit_scale_shift(values, target, valid)
    for i in range(3):
        x, y = values[i][valid[i]].numpy(), target[i][valid[i]].numpy()
        expected = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0]
        np.testing.assert_allclose([scale[i].item(), shift[i].item()], expected, rtol=1e-9)


def test_an_affine_copy_is_recovered_without_a_mask() -> None:
    values = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale, shift = fit_scale_shift(values, 3 * values - 2)
    torch.testing.assert_close(scale.flatten(), torch.full((2,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(shift.flatten(), torch.full((2,), -2.0, dtype=torch.float64))
