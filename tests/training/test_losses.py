from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vision3d.training import losses

SHAPE = (2, 12, 15)


def random_maps(seed: int = 0, invalid: float = 0.2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(SHAPE, generator=g),
        torch.randn(SHAPE, generator=g),
        torch.rand(SHAPE, generator=g) > invalid,
    )


def numpy_ssi(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray, trim: float) -> float:
    """The definition, image by image, in numpy."""

    def align(values: np.ndarray) -> np.ndarray:
        median = np.sort(values)[(len(values) - 1) // 2]
        return (values - median) / np.abs(values - median).mean()

    totals = []
    for p, t, m in zip(prediction, target, valid, strict=True):
        errors = np.sort(np.abs(align(p[m]) - align(t[m])))
        totals.append(errors[: math.ceil(len(errors) * (1 - trim))].mean())
    return float(np.mean(totals))


def test_ssi_loss_is_the_numpy_definition():
    p, t, m = random_maps()
    expected = numpy_ssi(p.double().numpy(), t.double().numpy(), m.numpy(), 0.2)
    assert losses.scale_shift_invariant_loss(p.double(), t.double(), m).item() == pytest.approx(
        expected, rel=1e-9
    )


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(1e-2, 1e3),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 100),
    who=st.sampled_from("pt"),
)
def test_scale_and_shift_of_either_map_do_not_change_the_loss(scale, shift, seed, who):
    p, t, m = (x.double() if x.is_floating_point() else x for x in random_maps(seed))
    before = losses.affine_invariant_loss(p, t, m)[0]
    p, t = (p * scale + shift, t) if who == "p" else (p, t * scale + shift)
    torch.testing.assert_close(losses.affine_invariant_loss(p, t, m)[0], before, rtol=1e-6, atol=1e-9)


def test_an_affine_prediction_is_perfect_and_a_mirrored_one_is_not():
    p, _, m = random_maps()
    assert losses.affine_invariant_loss(3 * p - 7, p, m)[0] < 1e-5
    assert losses.affine_invariant_loss(-p, p, m)[0] > 1


def test_values_and_gradients_at_invalid_pixels_do_not_matter():
    p, t, m = random_maps()
    before = losses.affine_invariant_loss(p, t, m)[0]
    wild = torch.where(m, t, torch.full_like(t, torch.inf))
    spoiled = torch.where(m, p, torch.full_like(p, 1e9)).requires_grad_()
    loss = losses.affine_invariant_loss(spoiled, wild, torch.ones_like(m))[0]
    torch.testing.assert_close(loss, before)
    loss.backward()
    assert torch.isfinite(spoiled.grad).all()
    assert (spoiled.grad[~m] == 0).all()
    assert (spoiled.grad[m] != 0).any()


def test_a_fifth_of_wild_labels_is_trimmed_away():
    p = torch.linspace(0, 1, 1000).reshape(1, 20, 50).double()
    errors = torch.zeros_like(p).flatten()
    errors[::5] = 100.0
    valid = torch.ones_like(p, dtype=torch.bool)
    assert losses.trimmed_mean(errors.reshape_as(p), valid).item() == 0
    errors[1] = 100.0
    assert losses.trimmed_mean(errors.reshape_as(p), valid).item() == pytest.approx(100 / 800)
    assert losses.trimmed_mean(errors.reshape_as(p), valid, trim=0).item() == pytest.approx(100 * 201 / 1000)


def test_images_without_enough_pixels_are_left_out():
    p, t, m = random_maps()
    m[1] = False
    both = losses.affine_invariant_loss(p, t, m)[0]
    alone = losses.affine_invariant_loss(p[:1], t[:1], m[:1])[0]
    torch.testing.assert_close(both, alone)
    p.requires_grad_()
    nothing = losses.affine_invariant_loss(p, t, torch.zeros_like(m))[0]
    nothing.backward()
    assert nothing.item() == 0
    assert (p.grad == 0).all()


def test_a_constant_prediction_has_a_finite_gradient():
    _, t, m = random_maps()
    p = torch.zeros(SHAPE, requires_grad=True)
    losses.affine_invariant_loss(p, t, m)[0].backward()
    assert torch.isfinite(p.grad).all()


def test_gradient_matching_of_a_ramp_has_its_closed_form():
    # Residual 0.5 x: every level sees a difference of 0.5 * 2^k between neighbours, on (w-1)/w of the pixels.
    h, w = 16, 16
    ramp = 0.5 * torch.arange(w).float().expand(1, h, w)
    valid = torch.ones(1, h, w, dtype=torch.bool)
    expected = sum(0.5 * 2**k * (w // 2**k - 1) / (w // 2**k) for k in range(4))
    assert losses.gradient_matching_loss(ramp, torch.zeros_like(ramp), valid).item() == pytest.approx(
        expected
    )
    assert losses.gradient_matching_loss(ramp + 3, ramp, valid).item() == 0


def test_gradient_matching_ignores_differences_across_invalid_pixels():
    step = torch.zeros(1, 16, 16)
    step[..., 8:] = 5
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    valid[..., 8] = False
    masked = losses.gradient_matching_loss(step, torch.zeros_like(step), valid, scales=1)
    assert masked.item() == 0
    assert (
        losses.gradient_matching_loss(step, torch.zeros_like(step), valid | True, scales=1).item() == 5 / 16
    )


def test_segmentation_loss_of_uniform_logits_is_log_of_the_classes():
    logits = torch.zeros(2, 150, 4, 4, requires_grad=True)
    labels = torch.randint(0, 150, (2, 4, 4))
    labels[0] = 255
    assert losses.segmentation_loss(logits, labels).item() == pytest.approx(math.log(150), rel=1e-6)
    nothing = losses.segmentation_loss(logits, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing.item() == 0
    assert (logits.grad == 0).all()


def test_aligned_absrel_is_what_the_evaluation_computes():
    """Against the evaluation's own fit and metric, on maps whose fit stays away from the pole."""
    from vision3d.evaluation.metrics import align_inverse_depth, depth_metrics

    g = torch.Generator().manual_seed(3)
    depth = 2 + 6 * torch.rand(SHAPE, generator=g)
    depth[:, :2] = torch.inf
    depth[:, 2:4] = 200.0
    inverse = torch.where(torch.isfinite(depth), 1 / depth, torch.zeros_like(depth))
    prediction = 3 * inverse + 0.4 + 0.05 * torch.randn(SHAPE, generator=g)
    ours = losses.aligned_absrel(prediction, inverse, torch.ones(SHAPE, dtype=torch.bool))
    expected = []
    for p, d in zip(prediction.numpy(), depth.numpy(), strict=True):
        there = d < 80
        fitted, _ = align_inverse_depth(p, d, there, 1e-3, 80.0)
        expected.append(depth_metrics(fitted, d, there).abs_rel)
    assert ours.item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_aligned_absrel_has_a_finite_gradient_where_the_fit_passes_through_zero():
    inverse = torch.full((1, 8, 8), 0.5)
    inverse[:, :4] = 0.02
    prediction = torch.linspace(-1, 1, 64).reshape(1, 8, 8).requires_grad_()
    loss = losses.aligned_absrel(prediction, inverse, torch.ones(1, 8, 8, dtype=torch.bool))
    loss.backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()
    assert (prediction.grad[:, :2] != 0).all()
    assert loss.item() > 0.3
    nothing = losses.aligned_absrel(prediction, torch.zeros(1, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool))
    assert nothing.item() == 0


def test_segmentation_loss_takes_uint8_labels():
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 1] = 50
    assert (
        losses.segmentation_loss(logits, torch.tensor([[[1, 1], [255, 1]]], dtype=torch.uint8)).item() < 1e-6
    )


def test_reconstruction_loss_sees_lost_edges_but_not_their_brightness():
    edges = torch.zeros(1, 3, 16, 16)
    edges[..., 8:] = 1
    assert losses.reconstruction_loss(edges, edges)[0].item() == 0
    brighter, terms = losses.reconstruction_loss(edges + 0.1, edges)
    assert brighter.item() == pytest.approx(0.1, rel=1e-5)
    assert terms["edges"].item() < 1e-6
    blurred = torch.nn.functional.avg_pool2d(edges, 5, 1, 2, count_include_pad=False)
    assert losses.reconstruction_loss(blurred, edges)[1]["edges"] > 0.01


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.4), (-2.0, 3.0)])
def test_kl_is_that_of_torch_distributions(mean, std):
    from torch.distributions import Normal, kl_divergence

    m, s = torch.full((1, 4, 2, 2), mean), torch.full((1, 4, 2, 2), std)
    expected = kl_divergence(Normal(m, s), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(losses.kl_to_standard_normal(m, 2 * s.log()), expected)
