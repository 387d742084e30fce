"""PLY, GLB and OBJ, read back by trimesh, plyfile and Open3D."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.mesh import TriangleMesh
from vision3d.geometry.points import PointCloud
from vision3d.io.mesh import TO_Y_UP, write_glb, write_obj, write_ply


def square() -> TriangleMesh:
    """A square two units ahead, one triangle up right and one down left, with a texture of four colours."""
    texture = np.zeros((32, 32, 3), np.uint8)
    texture[:16, :16] = [255, 0, 0]  # top left is red
    texture[:16, 16:] = [0, 255, 0]
    texture[16:, :16] = [0, 0, 255]
    texture[16:, 16:] = 255
    return TriangleMesh(
        np.array([[-1, -1, 2], [1, -1, 2], [-1, 1, 2], [1, 1, 2]], np.float32),
        np.array([[0, 2, 1], [1, 2, 3]], np.int32),
        uv=np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32),
        texture=texture,
    )


def test_points_are_read_by_plyfile_and_open3d(tmp_path: Path) -> None:
    from plyfile import PlyData

    rng = np.random.default_rng(0)
    cloud = PointCloud(
        rng.normal(size=(50, 3)).astype(np.float32),
        rng.integers(0, 255, (50, 3), dtype=np.uint8),
        rng.normal(size=(50, 3)).astype(np.float32),
    )
    write_ply(tmp_path / "p.ply", cloud, comments=("in metres",))
    data = PlyData.read(tmp_path / "p.ply")
    assert data.comments == ["in metres"]
    vertex = data["vertex"]
    np.testing.assert_array_equal(np.stack([vertex[n] for n in "xyz"], -1), cloud.positions)
    np.testing.assert_array_equal(np.stack([vertex[n] for n in ("red", "green", "blue")], -1), cloud.colours)
    np.testing.assert_array_equal(np.stack([vertex[n] for n in ("nx", "ny", "nz")], -1), cloud.normals)
    o3d = pytest.importorskip("open3d")
    read = o3d.io.read_point_cloud(str(tmp_path / "p.ply"))
    np.testing.assert_allclose(np.asarray(read.points), cloud.positions)
    np.testing.assert_allclose(np.asarray(read.colors), cloud.colours / 255)


def test_meshes_in_ply(tmp_path: Path) -> None:
    import trimesh

    write_ply(tmp_path / "m.ply", square())
    read = trimesh.load(tmp_path / "m.ply", process=False)
    np.testing.assert_array_equal(read.vertices, square().vertices)
    np.testing.assert_array_equal(read.faces, square().faces)


def test_no_points_at_all(tmp_path: Path) -> None:
    from plyfile import PlyData

    write_ply(tmp_path / "p.ply", PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)))
    assert len(PlyData.read(tmp_path / "p.ply")["vertex"].data) == 0


def test_glb_is_y_up_textured_and_faces_the_camera(tmp_path: Path) -> None:
    import trimesh

    write_glb(tmp_path / "m.glb", square(), extras={"scale": "metres"})
    scene = trimesh.load(tmp_path / "m.glb", process=False)
    (read,) = scene.geometry.values()
    np.testing.assert_array_equal(read.vertices, square().vertices * TO_Y_UP)
    assert (read.vertices[:, 2] < 0).all()
    assert (read.face_normals[:, 2] > 0.99).all()
    texture = np.asarray(read.visual.material.baseColorTexture)
    for corner in range(4):
        x, y = read.vertices[corner, :2]
        u, v = read.visual.uv[corner]  # trimesh counts v from the bottom
        pixel = texture[int(np.clip((1 - v) * 32, 2, 29)), int(np.clip(u * 32, 2, 29))]
        expected = {(-1, 1): [255, 0, 0], (1, 1): [0, 255, 0], (-1, -1): [0, 0, 255], (1, -1): [255] * 3}
        np.testing.assert_allclose(pixel, expected[(int(x), int(y))], atol=8)


def test_glb_follows_the_specification(tmp_path: Path) -> None:
    import pygltflib

    camera = Intrinsics.from_fov(60, 320, 240)
    mesh = square()
    mesh.normals = np.tile(np.float32([0, 0, -1]), (4, 1))
    write_glb(tmp_path / "m.glb", mesh, name="desk", camera=camera, extras={"scale": "metres"}, max_texture=8)
    read = pygltflib.GLTF2().load(str(tmp_path / "m.glb"))
    assert read.asset.version == "2.0"
    assert read.asset.extras == {"scale": "metres"}
    assert read.extensionsUsed == ["KHR_materials_unlit"]
    perspective = read.cameras[0].perspective
    assert np.degrees(perspective.yfov) == pytest.approx(camera.fov_y)
    assert perspective.aspectRatio == pytest.approx(4 / 3)
    wide = Intrinsics(600.0, 400.0, 320.0, 240.0, 640, 480)
    write_glb(tmp_path / "w.glb", mesh, camera=wide)
    seen = pygltflib.GLTF2().load(str(tmp_path / "w.glb")).cameras[0].perspective
    across = 2 * np.degrees(np.arctan(seen.aspectRatio * np.tan(seen.yfov / 2)))
    assert across == pytest.approx(wide.fov_x, rel=1e-3)
    position = read.accessors[read.meshes[0].primitives[0].attributes.POSITION]
    assert position.min == [-1, -1, -2]
    assert position.max == [1, 1, -2]
    assert all(view.byteOffset % 4 == 0 for view in read.bufferViews)
    data = read.binary_blob()
    assert len(data) % 4 == 0
    image = read.bufferViews[read.images[0].bufferView]
    picture = Image.open(io.BytesIO(data[image.byteOffset : image.byteOffset + image.byteLength]))
    assert (picture.format, picture.size) == ("JPEG", (8, 8))
    indices = read.bufferViews[read.accessors[read.meshes[0].primitives[0].indices].bufferView]
    read_faces = np.frombuffer(data[indices.byteOffset : indices.byteOffset + indices.byteLength], "<u4")
    np.testing.assert_array_equal(read_faces.reshape(-1, 3), mesh.faces)


def test_glb_with_vertex_colours(tmp_path: Path) -> None:
    import trimesh

    mesh = square()
    mesh.texture = mesh.uv = None
    mesh.colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    write_glb(tmp_path / "m.glb", mesh)
    (read,) = trimesh.load(tmp_path / "m.glb", process=False).geometry.values()
    np.testing.assert_array_equal(read.visual.vertex_attributes["color"][:, :3], mesh.colours)


def test_a_mesh_without_triangles_is_refused(tmp_path: Path) -> None:
    mesh = square()
    mesh.faces = mesh.faces[:0]
    with pytest.raises(InputError, match="without triangles"):
        write_glb(tmp_path / "m.glb", mesh)


def test_obj_with_its_texture(tmp_path: Path) -> None:
    import trimesh

    write_obj(tmp_path / "Küche.obj", square())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Küche.jpg", "Küche.mtl", "Küche.obj"]
    read = trimesh.load(tmp_path / "Küche.obj", process=False, force="mesh")
    np.testing.assert_allclose(read.vertices, square().vertices * TO_Y_UP)
    assert (read.face_normals[:, 2] > 0.99).all()
    np.testing.assert_allclose(read.visual.uv, [[0, 1], [1, 1], [0, 0], [1, 0]], atol=1e-6)
    assert read.visual.material.image.size == (32, 32)


def test_equal_meshes_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_glb(tmp_path / name / "m.glb", square())
        write_obj(tmp_path / name / "m.obj", square())
        write_ply(tmp_path / name / "m.ply", square())
    for suffix in ("glb", "obj", "ply", "jpg", "mtl"):
        assert (tmp_path / f"a/m.{suffix}").read_bytes() == (tmp_path / f"b/m.{suffix}").read_bytes()
