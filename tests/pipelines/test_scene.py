"""The four tasks together: what each is given, how often an autoencoder encodes, what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from vision3d.backbone.featurecache import LatentCache
from vision3d.backbone.sharing import shared_moments
from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.io.photo import Photo
from vision3d.pipelines.scene import SceneOptions, Tasks, build_scene
from vision3d.pipelines.scene.pipeline import CommonView, find_sky
from vision3d.prediction import Provenance
from vision3d.results import DepthPrediction

TRUE_CAMERA = Intrinsics(170.0, 170.0, 80.0, 60.0, 160, 120)


@dataclass
class Methods:
    """Stand-ins for the published methods: they prepare the photograph as those do, encode it, and know the truth."""

    vae: AutoencoderKL
    cache: LatentCache
    runs: list[tuple[int, ...]] = field(default_factory=list)
    seen: list[tuple[int, int]] = field(default_factory=list)

    def encode(self, images: torch.Tensor) -> None:
        def run(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.runs.append(tuple(batch.shape))
            moments = self.vae.quant_conv(self.vae.encoder(batch * 2 - 1))
            mean, logvar = moments.chunk(2, dim=1)
            return mean, logvar

        with torch.no_grad():
            shared_moments(self.vae, images, cache=self.cache, encode=run)

    def tensor(self, photo: Photo) -> torch.Tensor:
        self.seen.append(photo.size)
        return torch.from_numpy(photo.rgb8.copy()).permute(2, 0, 1)[None].float() / 255

    def scale(self, photo: Photo) -> tuple[Intrinsics, np.ndarray]:
        """Camera and true depth as this version of the photograph (whole, or on a canvas) shows it."""
        h, w = photo.size
        inside = photo.rgb8.any(axis=-1)
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        camera = TRUE_CAMERA.resized(columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        camera = camera.cropped(-int(columns[0]), -int(rows[0]), w, h)
        return camera, 3 / (1 + 0.2 * camera.rays()[..., 0])

    def calibrate(self, photo: Photo) -> SimpleNamespace:
        side = max(photo.size)
        image = self.tensor(photo)
        pad = [(side - n) // 2 for n in photo.size]
        canvas = torch.zeros(1, 3, side, side)
        canvas[..., pad[0] : pad[0] + photo.size[0], pad[1] : pad[1] + photo.size[1]] = image
        self.encode(canvas)
        camera = TRUE_CAMERA.resized(photo.size[1], photo.size[0])
        return SimpleNamespace(
            camera=camera,
            covariance=np.diag([1.0, 1.0, 1.0, 1.0]),
            camera_source="estimated",
            provenance=Provenance("DM-Calib", "w", "1"),
        )

    def metric_depth(self, photo: Photo, camera: Intrinsics) -> DepthPrediction:
        image = self.tensor(photo)
        pad = [-n % 8 for n in photo.size]
        self.encode(torch.nn.functional.pad(image, (0, pad[1], 0, pad[0]), mode="replicate"))
        truth_camera, depth = self.scale(photo)
        assert camera.fx == pytest.approx(truth_camera.fx, rel=0.02)
        assert camera.cx == pytest.approx(truth_camera.cx, abs=0.5)
        return DepthPrediction(depth, "metric depth", provenance=Provenance("DM-Calib", "w", "1"))

    def relative_depth(self, photo: Photo) -> DepthPrediction:
        self.encode(self.tensor(photo))
        depth = self.scale(photo)[1]
        return DepthPrediction(
            2 / depth - 0.3, "affine-invariant inverse depth", provenance=Provenance("PrimeDepth", "w", "2")
        )

    def normals(self, photo: Photo) -> SimpleNamespace:
        x = self.tensor(photo) * 2 - 1  # StableNormal holds images in [-1, 1]
        self.encode((x + 1) / 2)
        n = np.array([-0.2, 0, -1]) / np.hypot(0.2, 1)
        field_ = np.broadcast_to(n, (*photo.size, 3)).astype(np.float32)
        return SimpleNamespace(normals=field_, provenance=Provenance("StableNormal", "w", "3"))

    @property
    def tasks(self) -> Tasks:
        return Tasks(self.calibrate, self.metric_depth, self.relative_depth, self.normals, 50.0)


@pytest.fixture
def methods() -> Methods:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()
    return Methods(vae, LatentCache())


@pytest.fixture
def photo() -> Photo:
    pixels = np.random.default_rng(0).integers(1, 255, (120, 160, 3), dtype=np.uint8)
    return Photo(pixels, "room")


def test_published_preprocessings_encode_once_each(methods: Methods, photo: Photo) -> None:
    """120 × 160: the calibration's padded square is one image, what the three dense tasks see is another."""
    scene = build_scene(photo, methods.tasks)
    assert methods.runs == [(1, 3, 160, 160), (1, 3, 120, 160)]
    assert scene.size == (120, 160)


def test_the_common_preprocessing_encodes_once_in_all(methods: Methods, photo: Photo) -> None:
    scene = build_scene(photo, methods.tasks, SceneOptions(common_preprocessing=True), canvas=96)
    assert methods.runs == [(1, 3, 96, 96)]
    assert methods.seen == [(72, 96), (96, 96), (96, 96), (96, 96)]
    assert scene.size == (120, 160)
    again = build_scene(photo, methods.tasks, SceneOptions(common_preprocessing=True), canvas=96)
    assert len(methods.runs) == 1
    np.testing.assert_array_equal(again.fused, scene.fused)


@pytest.mark.parametrize("canvas", [None, 96])
def test_the_scene_is_the_plane_that_all_tasks_saw(
    methods: Methods, photo: Photo, canvas: int | None
) -> None:
    seconds: dict[str, float] = {}
    scene = build_scene(photo, methods.tasks, SceneOptions(), canvas=canvas, seconds=seconds)
    truth = 3 / (1 + 0.2 * TRUE_CAMERA.rays()[..., 0])
    assert np.abs(scene.fused / truth - 1).max() < (1e-3 if canvas is None else 0.01)
    assert scene.camera is not None and scene.camera.fx == pytest.approx(170, rel=1e-6)
    assert set(seconds) == {"camera", "metric depth", "relative depth", "normals", "fusion"}
    assert set(scene.sources) == {"camera", "metric depth", "relative depth", "normals"}
    assert "PrimeDepth w" in scene.provenance.weights
    factor = 1.0 if canvas is None else (160 / 96) ** 2
    np.testing.assert_allclose(np.diag(scene.covariance), factor, rtol=1e-6)


def test_a_scene_without_relative_depth(methods: Methods, photo: Photo) -> None:
    tasks = Tasks(methods.calibrate, methods.metric_depth, None, methods.normals)
    scene = build_scene(photo, tasks)
    assert scene.relative is None and scene.alignment is None and scene.usable().all()


def test_the_common_view_and_back() -> None:
    gradient = np.broadcast_to(np.linspace(0, 255, 200)[None, :, None], (75, 200, 3)).astype(np.uint8)
    view = CommonView.of(Photo(gradient, "strip", focal_px=100.0), 96)
    assert view.small.size == (36, 96) and view.canvas.size == (96, 96)
    assert view.small.focal_px == pytest.approx(48.0)
    assert (view.left, view.top) == (0, 30)
    assert not view.canvas.rgb8[:30].any() and not view.canvas.rgb8[66:].any()
    np.testing.assert_array_equal(view.canvas.rgb8[30:66], view.small.rgb8)
    back = view.back(view.canvas.rgb8[..., 0].astype(np.float32))
    assert back.shape == (75, 200)
    assert np.abs(back - gradient[..., 0])[:, 4:-4].max() < 3
    camera = view.camera(Intrinsics(50.0, 50.0, 48.0, 18.0, 96, 36))
    assert (camera.cx, camera.cy, camera.height) == (48.0, 48.0, 96)


def test_sky_is_where_it_is_seen_or_where_depth_ends() -> None:
    from vision3d.synthetic.ade20k import INDEX

    metric = np.full((4, 6), 10.0)
    metric[0] = 149.0
    metric[1] = 80.0
    labels = np.full((4, 6), 0, np.uint8)
    labels[1], labels[2, :3] = INDEX["sky"], INDEX["sky"]
    sky = find_sky(metric, labels, 150.0)
    assert sky is not None
    np.testing.assert_array_equal(sky.any(axis=1), [True, True, False, False])
    assert find_sky(np.ones((2, 2)), None, 50.0) is None


def test_options_are_checked() -> None:
    for wrong, message in (
        ({"canvas": 100, "fast": True}, "canvas of 100"),
        ({"canvas": 128}, "without the common preprocessing"),
        ({"domain": "sea"}, "domain 'sea'"),
    ):
        with pytest.raises(InputError, match=message):
            SceneOptions(**wrong).check()
    assert SceneOptions(fast=True).calibration(20)["steps"] < 20
    assert SceneOptions(fast=True).calibration(1)["steps"] == 1  # never more than the weights are made for
    assert SceneOptions(fast=True).normals()["turbo"]
    assert not SceneOptions(domain="indoor").may_have_sky


def test_equal_settings_and_weights_have_equal_fingerprints() -> None:
    parts = {"camera": Provenance("DM-Calib", "w", "1")}
    one = SceneOptions(seed=1).provenance(parts)
    assert one.fingerprint(None) == SceneOptions(seed=1).provenance(parts).fingerprint(None)
    assert one.fingerprint(None) != SceneOptions(seed=2).provenance(parts).fingerprint(None)
    other = SceneOptions(seed=1).provenance({"camera": Provenance("DM-Calib", "w", "2")})
    assert one.fingerprint(None) != other.fingerprint(None)
