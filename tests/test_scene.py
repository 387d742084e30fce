"""Scenes built from exact maps of the procedural world: measured, saved, read by other programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.io.photo import Photo
from vision3d.scene import FusionOptions, ScenePrediction, working_size

CAMERA = Intrinsics(130.0, 130.0, 64.0, 48.0, 128, 96)


def room(sky: bool = True) -> dict:
    """A floor 1.5 m below the camera up to 6 m, a wall there, a box in front, and a window to the sky."""
    rays = CAMERA.rays().astype(np.float64)
    with np.errstate(divide="ignore"):
        floor = np.where(rays[..., 1] > 0, 1.5 / rays[..., 1], np.inf)
    depth = np.minimum(floor, 6.0)
    normals = np.where((floor < 6.0)[..., None], [0, -1.0, 0], [0, 0, -1.0])
    depth[40:80, 30:60] = 2.5
    normals[40:80, 30:60] = [0, 0, -1]
    window = np.zeros(depth.shape, bool)
    window[5:25, 80:110] = sky
    depth[window], normals[window] = np.inf, 0
    relative = np.where(window, 0.02, 1 / np.where(window, 1, depth)) * 4 - 0.7
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    return {
        "camera": CAMERA,
        "metric": depth,
        "normals": normals,
        "relative": relative,
        "sky": window if sky else None,
        "photo": Photo(pixels, "room"),
    }


@pytest.fixture(scope="module")
def scene() -> ScenePrediction:
    return ScenePrediction.from_maps(**room())


def test_exact_maps_come_through(scene: ScenePrediction) -> None:
    truth = room()["metric"]
    there = np.isfinite(truth)
    np.testing.assert_array_equal(scene.usable(), there)
    error = np.abs(scene.fused[there] / truth[there] - 1)
    assert error.mean() < 2e-3 and np.quantile(error, 0.99) < 0.02
    assert scene.alignment is not None
    assert scene.alignment["scale"] == pytest.approx(1 / 4, rel=1e-3)
    assert scene.alignment["shift"] == pytest.approx(0.7 / 4, rel=1e-3)
    assert scene.alignment["inlier_share"] == 1


def test_what_is_transparent_has_no_surface() -> None:
    maps = room()
    alpha = np.ones((96, 128), np.float32)
    alpha[:, :50] = 0.2
    maps["photo"] = Photo(maps["photo"].pixels, "room", alpha=alpha)
    scene = ScenePrediction.from_maps(**maps)
    np.testing.assert_array_equal(scene.usable(), np.isfinite(maps["metric"]) & (alpha > 0.5))
    assert (scene.colours()[:, :50] >= 203).all()  # 0.8 white


def test_distances_are_metres(scene: ScenePrediction) -> None:
    """Two corners of the box: 29 × 39 pixels apart at 2.5 m."""
    measured = scene.measure((30.5, 40.5), (59.5, 79.5))
    assert measured.metres == pytest.approx(2.5 * np.hypot(29, 39) / 130, rel=5e-3)
    # Both ends are equally far away, so the camera and the scale alone are uncertain.
    assert measured.sigma == pytest.approx(0.05 * measured.metres, rel=0.05)
    assert str(measured) == f"{measured.metres:.2f} m ± {measured.sigma:.2f}"
    assert float(measured) == measured.metres


def test_the_uncertainty_is_that_of_simulated_errors() -> None:
    maps = room()
    covariance = np.diag([4.0, 4.0, 2.0, 2.0]) ** 2
    scene = ScenePrediction.from_maps(**maps, covariance=covariance, options=FusionOptions(scale_noise=0.03))
    scene.metric = scene.fused * np.exp(0.02 * np.random.default_rng(1).normal(size=scene.size)).astype(
        np.float32
    )
    start, end = (45.0, 60.0), (100.0, 60.0)
    rng = np.random.default_rng(0)
    z0, z1 = float(scene.point(start)[2]), float(scene.point(end)[2])
    distances = []
    for _ in range(4000):
        fx, fy, cx, cy = rng.multivariate_normal([CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy], covariance)
        camera = Intrinsics(fx, fy, cx, cy, 128, 96)
        scale = 1 + 0.03 * rng.normal()
        ends = [
            camera.unproject(p, z * scale * (1 + 0.02 * rng.normal())) for p, z in ((start, z0), (end, z1))
        ]
        distances.append(np.linalg.norm(ends[1] - ends[0]))
    assert scene.measure(start, end).sigma == pytest.approx(np.std(distances), rel=0.08)


def test_points_without_a_surface_are_refused(scene: ScenePrediction) -> None:
    with pytest.raises(InputError, match="no surface at pixel"):
        scene.measure((90, 10), (50, 50))
    with pytest.raises(InputError, match="outside the image"):
        scene.measure((50, 50), (128, 10))


def test_the_mesh_is_cut_between_the_box_and_the_floor_and_at_the_window(scene: ScenePrediction) -> None:
    mesh = scene.mesh()
    z = mesh.vertices[mesh.faces][..., 2]
    assert (z.max(axis=1) / z.min(axis=1)).max() < 1.3
    assert not ((z.min(axis=1) < 2.6) & (z.max(axis=1) > 3.2)).any()
    pixels, _ = CAMERA.project(mesh.vertices[mesh.faces].mean(axis=1))
    inside = (pixels[:, 0] > 82) & (pixels[:, 0] < 108) & (pixels[:, 1] > 7) & (pixels[:, 1] < 23)
    assert not inside.any()


def test_all_files_are_there_and_say_what_they_are(scene: ScenePrediction, tmp_path: Path) -> None:
    files = {path.name for path in scene.save(tmp_path / "room", ["obj", "exr", "npz"])}
    assert files >= {
        *(
            "metric_depth.npy",
            "normals.npy",
            "normals.png",
            "fused_depth.npy",
            "relative_depth.npy",
            "camera.json",
            "sky.npy",
        ),
        *("scene.glb", "scene.ply", "points.ply", "scene.json", "preview.png", "result.json"),
        *("scene.obj", "scene.mtl", "scene.jpg", "fused_depth.exr", "scene.npz"),
    }
    summary = json.loads((tmp_path / "room" / "scene.json").read_text())
    assert summary["unit"] == "m"
    assert summary["depth_range"] == [pytest.approx(2.5, rel=0.01), pytest.approx(6, rel=0.01)]
    assert summary["sky_share"] == pytest.approx(20 * 30 / (96 * 128))
    # The visible floor starts where the lowest row sees it; the box stands 1.5 / 0.37 m away.
    box = np.array(summary["bounding_box"])
    assert box[1, 1] == pytest.approx(1.5, abs=0.02)
    assert box[1, 2] == pytest.approx(6.0, abs=0.06)
    again = ScenePrediction.load(tmp_path / "room", scene.photo)
    np.testing.assert_array_equal(again.fused, scene.fused)
    np.testing.assert_array_equal(again.sky, scene.sky)
    assert again.camera == scene.camera and again.options == scene.options
    assert again.measure((40, 50), (100, 60)).metres == scene.measure((40, 50), (100, 60)).metres
    with pytest.raises(InputError, match="holds no scene"):
        ScenePrediction.load(tmp_path)


def test_saving_twice_gives_equal_bytes(scene: ScenePrediction, tmp_path: Path) -> None:
    first, second = (scene.save(tmp_path / name) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_a_map_of_no_bytes_is_named(scene: ScenePrediction, tmp_path: Path) -> None:
    scene.save(tmp_path)
    (tmp_path / "normals.npy").write_bytes(b"")
    with pytest.raises(InputError, match="make it again"):
        ScenePrediction.load(tmp_path)


def test_trimesh_and_open3d_read_the_glb_in_metres(scene: ScenePrediction, tmp_path: Path) -> None:
    import trimesh

    path = scene.export(tmp_path / "room.glb")
    read = trimesh.load(path, process=False)
    low, _ = read.bounds
    assert low[2] == pytest.approx(-6.0, abs=0.06) and low[1] == pytest.approx(-1.5, abs=0.02)
    (geometry,) = read.geometry.values()
    assert geometry.visual.material.baseColorTexture.size == (128, 96)
    o3d = pytest.importorskip("open3d")
    mesh = o3d.io.read_triangle_mesh(str(path))
    assert len(mesh.triangles) == len(geometry.faces)
    assert np.asarray(mesh.vertices)[:, 2].min() == pytest.approx(low[2], abs=1e-4)
    cloud_path = tmp_path / "s"
    scene.save(cloud_path)
    cloud = o3d.io.read_point_cloud(str(cloud_path / "points.ply"))
    assert cloud.has_normals() and cloud.has_colors()
    assert np.asarray(cloud.points)[:, 2].max() == pytest.approx(6.0, abs=0.06)


def validator() -> list[str] | None:
    """Command that runs npm's gltf-validator on a file and prints its report, if it is installed."""
    node = shutil.which("node")
    if node is None:
        return None
    script = (
        "const v=require('gltf-validator'),fs=require('fs');"
        "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))"
        ".then(r=>console.log(JSON.stringify(r)),e=>{console.error(e);process.exit(1)})"
    )
    roots = [os.environ.get("NODE_PATH", "")]
    npm = shutil.which("npm")
    if npm is not None:
        roots.append(subprocess.run([npm, "root", "-g"], capture_output=True, text=True).stdout.strip())
    for root in filter(None, roots):
        for folder in root.split(os.pathsep):
            if (Path(folder) / "gltf-validator").is_dir():
                return ["env", f"NODE_PATH={folder}", node, "-e", script]
    return None


def test_the_official_validator_accepts_the_glb(scene: ScenePrediction, tmp_path: Path) -> None:
    command = validator()
    if command is None:
        pytest.skip("needs node and npm's gltf-validator (npm install -g gltf-validator, or NODE_PATH)")
    path = scene.export(tmp_path / "room.glb")
    run = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    report = json.loads(run.stdout)
    assert report["issues"]["numErrors"] == 0 and report["issues"]["numWarnings"] == 0, report["issues"]
    assert report["info"]["totalTriangleCount"] == len(scene.mesh().faces)


def test_other_exports(scene: ScenePrediction, tmp_path: Path) -> None:
    from plyfile import PlyData

    ply = PlyData.read(scene.export(tmp_path / "deep" / "room.ply"))
    assert len(ply["face"].data) == len(scene.mesh().faces)
    assert scene.export(tmp_path / "obj" / "room.obj").with_suffix(".jpg").exists()
    with pytest.raises(InputError, match="no scene can be written"):
        scene.export(tmp_path / "room.stl")


def test_a_relative_depth_that_disagrees_is_left_out(capsys: pytest.CaptureFixture) -> None:
    maps = room()
    maps["relative"] = -maps["relative"]
    scene = ScenePrediction.from_maps(**maps)
    assert scene.alignment is None
    assert "left out" in capsys.readouterr().err


def test_blurred_metric_depth_gets_the_edges_of_the_relative_one() -> None:
    import cv2

    maps = room(sky=False)
    truth = maps["metric"].copy()
    maps["metric"] = cv2.GaussianBlur(truth, (0, 0), 3)
    edge = np.zeros(truth.shape, bool)
    edge[42:60, 26:34] = True  # across the left side of the box, with the wall and floor behind
    blurred = np.abs(maps["metric"] / truth - 1)[edge].mean()
    fused = np.abs(ScenePrediction.from_maps(**maps).fused / truth - 1)[edge].mean()
    assert fused < 0.3 * blurred


def test_large_maps_are_fused_at_a_smaller_size(scene: ScenePrediction) -> None:
    small = ScenePrediction.from_maps(**room(), options=FusionOptions(max_size=64))
    there = small.usable() & scene.usable()
    assert np.median(np.abs(small.fused / scene.fused - 1)[there]) < 0.01
    assert working_size(3000, 4000, 1024) == (768, 1024)
    assert working_size(30, 40, 1024) == (30, 40)


def test_bad_maps_are_named() -> None:
    maps = room()
    with pytest.raises(InputError, match="normals of shape"):
        ScenePrediction.from_maps(**{**maps, "normals": maps["normals"][:50]})
    with pytest.raises(InputError, match="a camera for"):
        ScenePrediction.from_maps(**{**maps, "camera": CAMERA.resized(64, 48)})
    with pytest.raises(InputError, match="no pixel has a metric depth"):
        ScenePrediction.from_maps(**{**maps, "metric": np.full((96, 128), np.nan)})
    with pytest.raises(InputError, match="depth_noise"):
        ScenePrediction.from_maps(**maps, options=FusionOptions(depth_noise=0))


def test_the_sheet_shows_all_maps(scene: ScenePrediction) -> None:
    sheet = np.asarray(scene.preview())
    assert sheet.shape[1] == 3 * 128 + 2 * 8 and sheet.shape[0] == 2 * (96 + 22 + 8) - 8
    np.testing.assert_array_equal(sheet[22 : 22 + 96, :128], scene.colours())
    assert "2.50 … 6.00 m" in repr(scene)
