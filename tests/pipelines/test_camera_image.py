"""The Camera Image codec against closed forms, scikit-image's fit, and itself under noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.pipelines.dmcalib.camera_image import (
    CameraFit,
    angles_to_channels,
    decode_angles,
    decode_intrinsics,
    encode_angles,
    encode_camera_image,
    unproject_angles,
)

CAMERA = Intrinsics(130.0, 141.0, 70.0, 52.0, 128, 96)


def picture_of(camera: Intrinsics, noise: float = 0.0, outliers: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    picture = (angles_to_channels(encode_angles(camera)) + 1) / 2
    picture = np.clip(picture + rng.normal(0, noise, picture.shape), 0, 1)
    wrong = rng.random(picture.shape[1:]) < outliers
    picture[:, wrong] = rng.random((2, int(wrong.sum())))
    return picture.astype(np.float32)


def test_angles_are_those_of_the_rays() -> None:
    rays = CAMERA.rays(unit=True).astype(np.float64)
    theta, phi = encode_angles(CAMERA)
    np.testing.assert_allclose(theta, np.arctan2(rays[..., 0], rays[..., 2]), atol=1e-6)
    np.testing.assert_allclose(phi, np.arccos(rays[..., 1]), atol=1e-6)


def test_angles_and_depth_give_the_points_of_the_pinhole_camera() -> None:
    depth = np.random.default_rng(0).uniform(1, 5, (96, 128))
    points = unproject_angles(encode_angles(CAMERA), depth)
    np.testing.assert_allclose(points, CAMERA.unproject(CAMERA.pixel_centres(), depth), rtol=1e-5, atol=1e-5)


def test_the_third_channel_is_the_grey_photograph() -> None:
    rgb = np.random.default_rng(0).random((96, 128, 3), dtype=np.float32)
    picture = encode_camera_image(CAMERA, rgb)
    luma = 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]
    np.testing.assert_allclose(picture[2], 2 * luma - 1, atol=1e-6)
    with pytest.raises(InputError, match="resize the camera"):
        encode_camera_image(CAMERA, rgb[:50])


def test_decoding_inverts_encoding() -> None:
    fit = decode_intrinsics(picture_of(CAMERA))
    np.testing.assert_allclose(fit.values, [130, 141, 70, 52], atol=1e-3)
    assert fit.inlier_ratio == 1 and not fit.mirrored


def test_reference_mode_counts_whole_columns() -> None:
    fit = decode_intrinsics(picture_of(CAMERA), mode="reference")
    np.testing.assert_allclose(fit.values, [130, 141, 69.5, 51.5], atol=1e-3)
    assert fit.covariance is None


def test_reference_mode_is_scikit_images_ransac_where_every_pixel_counts() -> None:
    from skimage.measure import LineModelND, ransac

    picture = picture_of(CAMERA, noise=0.02).astype(np.float64)
    theta, phi = decode_angles(picture)
    u, v = np.meshgrid(np.arange(128.0), np.arange(96.0))
    expected = []
    for x, y in ((np.tan(theta), u), (1 / (np.tan(phi) * np.cos(theta)), v)):
        data = np.stack([x.ravel(), y.ravel()], axis=1)
        model, _ = ransac(data, LineModelND, min_samples=2, residual_threshold=1, max_trials=1000)
        expected.append((model.predict_y([0, 1])[1] - model.predict_y([0])[0], model.predict_y([0])[0]))
    (fx, cx), (fy, cy) = expected
    fit = decode_intrinsics(picture, mode="reference")
    np.testing.assert_allclose(fit.values, [fx, fy, cx, cy], rtol=1e-6)


@pytest.mark.parametrize("outliers", [0.1, 0.4, 0.6])
def test_robust_mode_ignores_wrong_pixels(outliers: float) -> None:
    fit = decode_intrinsics(picture_of(CAMERA, 0.005, outliers))
    assert abs(fit.fx / 130 - 1) < 0.004 and abs(fit.fy / 141 - 1) < 0.004
    assert abs(fit.cx - 70) < 0.15 and abs(fit.cy - 52) < 0.15
    assert fit.inlier_ratio == pytest.approx(1 - outliers, abs=0.03)


def test_the_covariance_is_that_of_repeated_fits() -> None:
    fits = [decode_intrinsics(picture_of(CAMERA, 0.02, seed=seed)) for seed in range(60)]
    scatter = np.std([fit.values for fit in fits], axis=0)
    covariances = [fit.covariance for fit in fits if fit.covariance is not None]
    stated = np.sqrt(np.mean([np.diag(c) for c in covariances], axis=0))
    np.testing.assert_allclose(stated, scatter, rtol=0.35)
    bias = np.mean([fit.values for fit in fits], axis=0) - [130, 141, 70, 52]
    assert (np.abs(bias) < 4 * scatter / math.sqrt(60) + 0.02).all()


def test_correlated_errors_widen_the_covariance() -> None:
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.normal(0, 0.02, (2, 12, 16)), np.ones((1, 8, 8)))
    independent = rng.normal(0, 0.02, (2, 96, 128))
    exact = (angles_to_channels(encode_angles(CAMERA)) + 1) / 2
    spreads = [decode_intrinsics(np.clip(exact + e, 0, 1)).covariance for e in (blocks, independent)]
    assert spreads[0][0, 0] > 10 * spreads[1][0, 0]  # type: ignore[index]


def test_constraints_hold_exactly() -> None:
    picture = picture_of(Intrinsics(130, 130, 64, 48, 128, 96), 0.02)
    square = decode_intrinsics(picture, square_pixels=True)
    assert square.fx == pytest.approx(square.fy, rel=1e-9)
    centred = decode_intrinsics(picture, centered=True)
    assert (centred.cx, centred.cy) == (64, 48)
    known = decode_intrinsics(picture, focal=129.0)
    assert (known.fx, known.fy) == (129, 129)
    everything = decode_intrinsics(picture, focal=129.0, centered=True)
    np.testing.assert_array_equal(everything.values, [129, 129, 64, 48])
    free = decode_intrinsics(picture)
    assert square.covariance[0, 0] < free.covariance[0, 0]  # type: ignore[index]
    with pytest.raises(InputError, match="reference"):
        decode_intrinsics(picture, mode="reference", centered=True)


def test_square_pixels_of_an_unevenly_resized_photograph() -> None:
    picture = picture_of(Intrinsics(130, 143, 64, 48, 128, 96), 0.01)
    fit = decode_intrinsics(picture, square_pixels=True, pixel_aspect=1.1)
    assert fit.fy / fit.fx == pytest.approx(1.1, rel=1e-9)
    assert fit.fx == pytest.approx(130, rel=0.005)


def test_clipped_angles_do_not_bend_the_fit() -> None:
    wide = Intrinsics(30.0, 30.0, 64.0, 48.0, 128, 96)
    assert (np.abs(angles_to_channels(encode_angles(wide))) == 1).mean() > 0.1
    np.testing.assert_allclose(decode_intrinsics(picture_of(wide, 0.01)).values, wide_values(wide), rtol=0.01)


def wide_values(camera: Intrinsics) -> list[float]:
    return [camera.fx, camera.fy, camera.cx, camera.cy]


def test_large_pictures_are_read_on_a_lattice() -> None:
    camera = Intrinsics(800.0, 810.0, 390.0, 300.0, 768, 576)
    picture = picture_of(camera, 0.01)
    some, every = decode_intrinsics(picture), decode_intrinsics(picture, pixels=None)
    np.testing.assert_allclose(some.values, wide_values(camera), rtol=0.003)
    np.testing.assert_allclose(every.values, wide_values(camera), rtol=0.0015)
    assert every.covariance[0, 0] < some.covariance[0, 0]  # type: ignore[index]


def test_a_mirrored_picture_is_no_camera() -> None:
    fit = decode_intrinsics(picture_of(CAMERA, 0.005)[:, :, ::-1])
    assert fit.mirrored
    with pytest.raises(InputError, match="mirrored"):
        _ = fit.intrinsics


def test_a_fit_of_the_resized_picture_is_the_cameras() -> None:
    small = CameraFit(10.0, 20.0, 5.0, 6.0, 20, 10, np.eye(4))
    large = small.resized(40, 40)
    np.testing.assert_allclose(large.values, [20, 80, 10, 24])
    np.testing.assert_allclose(np.diag(large.covariance), [4, 16, 4, 16])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((3, 40, 40)), "lie within its range"),
        (np.full((3, 40, 40), 0.5), "flat"),
        (np.full((3, 40, 40), np.nan), "NaN"),
        (np.zeros((40, 40)), "shape"),
    ],
)
def test_pictures_without_a_camera_are_refused(picture: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_intrinsics(picture)
