"""Layers, views, picking, files and the registry, against closed forms and other libraries' readers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from scipy.spatial import ConvexHull

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.mesh import TriangleMesh
from vision3d.geometry.points import PointCloud
from vision3d.io.images import Photo
from vision3d.io.mesh import encode_glb, write_ply
from vision3d.results import DepthPrediction, Provenance
from vision3d.viewer.files import read_layers
from vision3d.viewer.picking import distance_text, pick, ray_mesh
from vision3d.viewer.registry import ResultFolder, generic_layers, items_of, registered, shows
from vision3d.viewer.scene import (
    CameraLayer,
    MeshLayer,
    PointsLayer,
    View,
    blend,
    shown_at_start,
    thinned,
    view_pose,
    views,
)

HEIGHT, WIDTH = 48, 64


def photo() -> Photo:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([rows * 5, columns * 4, np.full_like(rows, 90)], axis=-1).astype(np.uint8)
    return Photo(pixels, "room", Path("room.jpg"), 60.0)


def prediction(**changes: Any) -> DepthPrediction:
    """A metric slope: z grows from 2 m at the bottom to 4 m at the top."""
    depth = np.linspace(4, 2, HEIGHT, dtype=np.float32)[:, None].repeat(WIDTH, axis=1)
    fields: dict[str, Any] = {
        "depth": depth,
        "space": "metric depth",
        "photo": photo(),
        "provenance": Provenance("Test", "none"),
    }
    return DepthPrediction(**(fields | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prediction().save(tmp_path / "room")
    return tmp_path / "room"


def layer(item: Any, kind: type) -> Any:
    (found,) = [x for x in item.layers if isinstance(x, kind)]
    return found


# ---- results


def test_a_depth_result_is_camera_mesh_and_points_with_depth_and_normals_to_lay_over(folder: Path) -> None:
    (item,) = items_of([folder])
    assert item.name == "room"
    assert item.unit == "m"
    assert "Test" in item.note
    assert item.looks == ["depth", "normals"]
    camera = layer(item, CameraLayer)
    assert camera.camera == Intrinsics.from_focal(60, WIDTH, HEIGHT)
    # The photograph comes back from the mesh's JPEG texture.
    assert np.abs(camera.photo.astype(int) - photo().pixels).mean() < 3
    mesh, points = layer(item, MeshLayer), layer(item, PointsLayer)
    assert mesh.visible
    assert not points.visible
    np.testing.assert_allclose(
        np.sort(points.cloud.positions[:, 2]), np.sort(prediction().depth.reshape(-1)), rtol=1e-6
    )
    pixels, z = camera.camera.project(mesh.parts[0].vertices)
    np.testing.assert_allclose(
        z, np.interp(pixels[:, 1], np.arange(HEIGHT) + 0.5, prediction().depth[:, 0]), rtol=1e-5
    )
    np.testing.assert_allclose(mesh.parts[0].uv, pixels / [WIDTH, HEIGHT], atol=1e-5)


def test_looks_of_points_are_those_of_their_pixels(folder: Path) -> None:
    (item,) = items_of([folder])
    points = layer(item, PointsLayer)
    pixels, _ = Intrinsics.from_focal(60, WIDTH, HEIGHT).project(points.cloud.positions)
    columns, rows = np.floor(pixels).astype(int).T
    depth = layer(item, CameraLayer).looks["depth"]
    assert depth.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(points.looks["depth"], depth[rows, columns])


def test_invalid_pixels_have_no_colour_of_depth(tmp_path: Path) -> None:
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[:10] = False
    prediction(valid=valid).save(tmp_path / "a")
    depth = layer(items_of([tmp_path / "a"])[0], CameraLayer).looks["depth"]
    assert (depth[:10] == 128).all()
    assert not (depth[10:] == 128).all(axis=-1).any()


def test_a_result_in_memory_is_shown_as_it_is_when_saved(folder: Path) -> None:
    (saved,), (memory,) = items_of([folder]), items_of([prediction()])
    assert memory.name == "room"
    np.testing.assert_array_equal(
        layer(memory, MeshLayer).parts[0].vertices, layer(saved, MeshLayer).parts[0].vertices
    )


def test_a_folder_of_results_is_all_of_them_and_the_first_is_shown(tmp_path: Path) -> None:
    for name in ("img10", "img2", "sub/img1"):
        prediction().save(tmp_path / name)
    items = items_of([tmp_path])
    assert [item.name for item in items] == ["img2", "img10", "sub/img1"]
    assert shown_at_start(items) == [True, False, False]
    assert [item.name for item in items_of([tmp_path / "img2", tmp_path / "img2" / "result.json"])] == [
        "img2",
        "img2 (2)",
    ]


def test_a_new_kind_is_shown_by_its_files_or_by_a_registered_function(folder: Path) -> None:
    record = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(record | {"kind": "holograms"}))
    (item,) = items_of([folder])
    assert [x.name for x in item.layers] == ["camera", "mesh", "points"]
    assert item.looks == []

    from vision3d.viewer import registry

    try:

        @shows("holograms")
        def hologram(result: ResultFolder) -> list[Any]:
            return [x for x in generic_layers(result) if x.name == "points"]

        (item,) = items_of([folder])
        assert [x.name for x in item.layers] == ["points"]
        assert "holograms" in registered()
        with pytest.raises(ValueError, match="already"):
            shows("holograms")(hologram)
    finally:
        del registry._SHOWERS["holograms"]


def test_the_viewer_names_no_method() -> None:
    import vision3d.pipelines
    import vision3d.viewer

    methods = [
        p.stem for p in Path(vision3d.pipelines.__file__).parent.iterdir() if not p.stem.startswith("_")
    ]
    methods.remove("scene")  # the word for all that a viewer shows
    assert "primedepth" in methods
    for file in Path(vision3d.viewer.__file__).parent.rglob("*"):
        if file.suffix in (".py", ".js", ".html"):
            text = file.read_text(encoding="utf-8").lower()
            assert not [m for m in methods if m in text], file


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "mesh.glb").write_bytes(b"glTF"), "mesh.glb cannot be read"),
        (
            lambda f: (f / "points.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 9\n"),
            "points.ply",
        ),
        (lambda f: (f / "metric_depth.npy").write_bytes(b"nothing"), "metric_depth.npy is damaged"),
        (lambda f: (f / "metric_depth.npy").unlink(), "metric_depth.npy is missing"),
        (lambda f: np.save(f / "metric_depth.npy", np.zeros((2, 2), np.float32)), "sizes"),
        (lambda f: (f / "metric_depth.png").write_bytes(b"png"), "depth.png"),
    ],
)
def test_damaged_results_are_refused_in_one_line(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message) as refusal:
        _ = items_of([folder])[0].layers
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    for given, message in [
        ([], "nothing to view"),
        ([tmp_path / "no"], "no such file"),
        ([tmp_path], "holds no result"),
    ]:
        with pytest.raises(InputError, match=message):
            items_of(given)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result.json cannot be read"):
        items_of([tmp_path])
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="no file that can be viewed"):
        items_of([tmp_path / "photo.jpg"])


# ---- plain files


def box(**extra: Any) -> trimesh.Trimesh:
    return trimesh.creation.box(extents=(1, 2, 3), **extra)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_plain_meshes_are_turned_from_y_up(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"box{suffix}"
    shape = box()
    shape.apply_translation([0, 5, 0])
    shape.export(path)
    (mesh,) = read_layers(path)
    assert isinstance(mesh, MeshLayer)
    (part,) = mesh.parts
    assert len(part.faces) == 12
    np.testing.assert_allclose(np.ptp(part.vertices, axis=0), [1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(
        (part.vertices.max(axis=0) + part.vertices.min(axis=0)) / 2, [0, -5, 0], atol=1e-6
    )
    (turned,) = read_layers(path, up="z")
    np.testing.assert_allclose(np.ptp(turned.parts[0].vertices, axis=0), [1, 3, 2], atol=1e-6)
    # Turned, not mirrored: the volume inside stays positive.
    for layers in (mesh, turned):
        part = layers.parts[0]
        assert trimesh.Trimesh(part.vertices, part.faces, process=False).volume == pytest.approx(6)


def test_placed_and_coloured_parts_of_a_scene(tmp_path: Path) -> None:
    red, textured = box(), box()
    red.visual.vertex_colors = [255, 0, 0, 255]
    uv = np.random.default_rng(0).random((len(textured.vertices), 2))
    from PIL import Image

    picture = Image.new("RGB", (4, 4), (10, 200, 30))
    textured.visual = trimesh.visual.TextureVisuals(uv=uv, image=picture)
    scene = trimesh.Scene()
    scene.add_geometry(red, transform=trimesh.transformations.translation_matrix([10, 0, 0]))
    scene.add_geometry(textured)
    scene.export(tmp_path / "two.glb")
    (mesh,) = read_layers(tmp_path / "two.glb")
    assert len(mesh.parts) == 2
    by_place = sorted(mesh.parts, key=lambda part: part.vertices[:, 0].mean())
    assert by_place[0].texture is not None
    assert tuple(by_place[0].texture[0, 0]) == (10, 200, 30)
    np.testing.assert_allclose(by_place[0].uv[:, 1], 1 - uv[:, 1], atol=1e-6)
    assert by_place[1].vertices[:, 0].mean() == pytest.approx(10)
    assert (by_place[1].colours == [255, 0, 0]).all()


def test_points_of_this_package_keep_their_axes_and_unit(tmp_path: Path) -> None:
    positions = np.float32([[0, 0, 1], [1, 2, 3]])
    cloud = PointCloud(positions, np.uint8([[1, 2, 3], [4, 5, 6]]))
    axes = "OpenCV camera axes (x right, y down, z forward)"
    write_ply(tmp_path / "own.ply", cloud, comments=(f"{axes}; m",))
    write_ply(tmp_path / "relative.ply", cloud, comments=(f"{axes}; scale for looking at only, not metric",))
    write_ply(tmp_path / "other.ply", cloud)
    own, relative, other = items_of([tmp_path / n for n in ("own.ply", "relative.ply", "other.ply")])
    np.testing.assert_array_equal(layer(own, PointsLayer).cloud.positions, positions)
    np.testing.assert_array_equal(layer(own, PointsLayer).cloud.colours, cloud.colours)
    np.testing.assert_array_equal(layer(other, PointsLayer).cloud.positions, positions * [1, -1, -1])
    assert (own.unit, relative.unit, other.unit) == ("m", None, None)


def test_a_camera_in_a_glb_is_where_the_photograph_was(folder: Path) -> None:
    (item,) = items_of([folder / "mesh.glb"])
    assert item.unit == "m"
    camera = layer(item, CameraLayer)
    np.testing.assert_allclose(camera.pose, np.eye(4), atol=1e-6)
    assert camera.camera.fov_y == pytest.approx(Intrinsics.from_focal(60, WIDTH, HEIGHT).fov_y, abs=1e-3)
    assert camera.camera.fov_x == pytest.approx(Intrinsics.from_focal(60, WIDTH, HEIGHT).fov_x, abs=0.1)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.glb", b""),
        ("a.glb", b"glTF" + b"\0" * 40),
        ("a.obj", b"hello"),
        ("a.ply", b"ply\n"),
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement vertex 0\n"
            b"property float x\nproperty float y\nproperty float z\nend_header\n",
        ),
        ("a.gltf", b"{}"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name) as refusal:
        _ = items_of([tmp_path / name])[0].layers
    assert "\n" not in str(refusal.value)


def test_encoded_opacity_and_repeating_textures_reach_the_glb() -> None:
    quad = TriangleMesh(
        np.float32([[0, 0, 1], [1, 0, 1], [0, 1, 1]]),
        np.int32([[0, 1, 2]]),
        uv=np.float32([[0, 0], [3, 0], [0, 3]]),
        texture=np.zeros((2, 2, 3), np.uint8),
    )
    data = encode_glb(quad, opacity=0.25)
    document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    (material,) = document["materials"]
    assert material["alphaMode"] == "BLEND"
    assert material["pbrMetallicRoughness"]["baseColorFactor"] == [1, 1, 1, 0.25]
    assert document["samplers"][0]["wrapS"] == 10497
    assert b"alphaMode" not in encode_glb(quad)


# ---- views


def test_views_of_a_photograph_start_at_its_camera(folder: Path) -> None:
    (item,) = items_of([folder])
    overview, photograph = views(item.layers)
    assert photograph.eye == (0, 0, 0)
    np.testing.assert_allclose(view_pose(photograph), np.eye(4), atol=1e-6)
    # The overview stands behind, above and beside it, and looks at the middle of what it saw.
    x, y, z = overview.eye
    assert x > 0
    assert y < 0
    assert z < 0
    assert overview.target[2] == pytest.approx(3, abs=0.1)


def test_a_view_of_a_plain_thing_holds_all_of_it() -> None:
    rng = np.random.default_rng(0)
    cloud = PointCloud((rng.standard_normal((500, 3)) * [1, 2, 3] + 7).astype(np.float32))
    (view,) = views([PointsLayer(name="points", cloud=cloud)])
    local = (cloud.positions - np.array(view.eye)) @ view_pose(view)[:3, :3]
    assert (local[:, 2] > 0).all()
    assert (np.abs(local[:, :2] / local[:, 2:]) < math.tan(view.fov_y / 2) * 1.25).all()


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.6, 3.0])
def test_both_angles_of_a_view_are_in_the_window(aspect: float) -> None:
    view = View("v", (0, 0, 0), (0, 0, 1), (0, -1, 0), math.radians(60), math.radians(40))
    fov = view.vertical_fov(aspect)
    fov_x = 2 * math.atan(math.tan(fov / 2) * aspect)
    assert fov >= view.fov_y - 1e-9
    assert fov_x >= view.fov_x - 1e-9
    assert fov == pytest.approx(view.fov_y) or fov_x == pytest.approx(view.fov_x)


def test_point_spacing_of_a_grid() -> None:
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(30)), axis=-1).reshape(-1, 2) * 0.25
    cloud = PointCloud(np.column_stack([grid, np.full(len(grid), 100.0)]).astype(np.float32))
    points = PointsLayer(name="points", cloud=cloud, seen_from=np.zeros(3))
    assert points.spacing == pytest.approx(0.25)
    assert points.angular_spacing == pytest.approx(0.0025, rel=0.01)
    single = PointsLayer(name="points", cloud=PointCloud(np.float32([[0, 0, 1]])))
    assert single.spacing > 0


def test_blending_and_thinning() -> None:
    base, over = np.zeros((4, 6, 3), np.uint8), np.full((2, 3, 3), 200, np.uint8)
    assert (blend(base, over, 0.25) == 50).all()
    assert (blend(base, over, 0) == base).all()
    few, many = thinned(10_000, 0.2), thinned(10_000, 0.6)
    assert few.mean() == pytest.approx(0.2, abs=0.02)
    assert (many[few]).all()  # more opacity only adds points
    assert thinned(10, 1).all()


# ---- picking


def test_rays_hit_a_convex_solid_where_its_half_spaces_say() -> None:
    shape = trimesh.creation.icosphere(subdivisions=3, radius=2)
    planes = ConvexHull(shape.vertices).equations  # outward normal n and offset d: n · x + d <= 0 inside
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        origin = rng.standard_normal(3)
        origin *= 6 / np.linalg.norm(origin)
        direction = rng.standard_normal(3) * 1.5 - origin
        direction /= np.linalg.norm(direction)
        distance = ray_mesh(shape.vertices, shape.faces, origin, direction)
        slope, height = planes[:, :3] @ direction, planes[:, :3] @ origin + planes[:, 3]
        crossing = -height / slope
        enters, leaves = crossing[slope < 0].max(), crossing[slope > 0].min()
        if enters < leaves:
            hits += 1
            assert distance == pytest.approx(enters, rel=1e-6)
        else:
            assert distance is None
    assert 20 < hits < 60


def test_the_nearest_layer_is_hit_and_points_within_their_radius() -> None:
    wall = MeshLayer(
        name="wall",
        parts=[TriangleMesh(np.float32([[-9, -9, 5], [9, -9, 5], [0, 9, 5]]), np.int32([[0, 1, 2]]))],
    )
    points = PointsLayer(name="p", cloud=PointCloud(np.float32([[0.05, 0, 3], [0.0, 0, -3], [0.4, 0, 2]])))
    origin, ahead = np.zeros(3), np.array([0, 0, 2.0])
    assert pick([wall], origin, ahead).position == pytest.approx([0, 0, 5])
    assert pick([wall, points], origin, ahead).position == pytest.approx([0, 0, 5])  # passes the points by
    assert pick([wall, points], origin, ahead, point_size=0.12).position == pytest.approx([0.05, 0, 3])
    assert pick([wall, points], origin, np.array([0.4, 0, 2])).position == pytest.approx([0.4, 0, 2])
    assert pick([wall, points], origin, np.array([0, 0, -1.0])).distance == pytest.approx(3)
    assert pick([wall], origin, np.array([0, 0, -1.0])) is None
    assert pick([], origin, ahead) is None


def test_a_click_on_a_slanted_cloud_takes_the_point_under_it_but_never_one_behind_another_surface() -> None:
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 201), np.linspace(-0.5, 0.5, 201))
    slanted = np.stack([x, y, 3 + 4 * x], axis=-1).reshape(-1, 3).astype(np.float32)
    behind = np.float32([[0, 0, 9]])
    for cloud in (slanted, np.concatenate([slanted, behind])):
        hit = pick([PointsLayer(name="p", cloud=PointCloud(cloud))], np.zeros(3), np.array([0, 0, 1.0]))
        assert hit is not None
        assert hit.position == pytest.approx([0, 0, 3], abs=1e-6)
    front = np.float32([[0.012, 0, 2.5]])  # a little aside, in front
    layer = PointsLayer(name="p", cloud=PointCloud(np.concatenate([slanted, behind, front])))
    assert pick([layer], np.zeros(3), np.array([0, 0, 1.0])).position == pytest.approx([0.012, 0, 2.5])


def test_lengths_say_whether_they_are_real() -> None:
    assert distance_text(1.23456, "m") == "1.235 m"
    assert distance_text(1.23456, None) == "1.235 (not metric)"
