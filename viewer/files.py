"""Plain GLB, glTF, OBJ and PLY files as layers."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vision3d.camera import Intrinsics, convert_pose
from vision3d.errors import InputError
from vision3d.geometry.mesh import TriangleMesh
from vision3d.geometry.points import PointCloud
from vision3d.viewer.scene import CameraLayer, Item, Layer, MeshLayer, PointsLayer

SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
Up = Literal["auto", "y", "-y", "z"]
# Rotations to the viewer's world (y down, z forward), by the axis that points up in the file.
_TO_WORLD = {
    "-y": np.eye(3),
    "y": np.diag([1.0, -1.0, -1.0]),
    "z": np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]),
}
_OWN_PLY = b"OpenCV camera axes"
_PLAIN_GREY = 200


def file_item(path: Path, *, up: Up = "auto") -> Item:
    """A file as an item.

    Args:
        path: with one of :data:`SUFFIXES`.
        up: the axis that points up in it. By default y; in PLY files of this package, which say so, -y.

    Raises:
        InputError: no such file, or another suffix. What is wrong inside is said when its layers are read.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}", "check the path")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path} is no file that can be viewed", f"give a result folder or a {', '.join(SUFFIXES)} file"
        )
    unit = _stated_unit(path)
    note = "lengths in metres" if unit else "lengths in the file's own unit"
    return Item(path.name, lambda: read_layers(path, up=up), unit=unit, note=note)


def _stated_unit(path: Path) -> str | None:
    """The unit that a file of this package states, or None."""
    with path.open("rb") as file:
        head = file.read(2048)
    if path.suffix.lower() == ".ply" and _OWN_PLY in head:
        return "m" if _OWN_PLY + b" (x right, y down, z forward); m\n" in head else None
    if path.suffix.lower() == ".glb" and head[:4] == b"glTF":
        try:
            return "m" if glb_document(path)["asset"]["extras"]["scale"] == "m" else None
        except (InputError, KeyError, TypeError):
            return None
    return None


def read_layers(path: Path, *, up: Up = "auto") -> list[Layer]:
    """Mesh, points and cameras of a file, in world axes.

    Raises:
        InputError: damaged, or without anything to draw.
    """
    import trimesh

    try:
        # not by its name, which need not be text that trimesh can encode
        scene = trimesh.load_scene(
            io.BytesIO(path.read_bytes()),
            file_type=path.suffix[1:].lower(),
            resolver=trimesh.resolvers.FilePathResolver(str(path.parent)),
            process=False,
        )
        shapes = [(scene.geometry[name], matrix) for matrix, name in _placed(scene)]
    except Exception as error:  # trimesh and Pillow raise anything for damaged files
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason})", "check that the file is whole") from error
    turn = _TO_WORLD[_resolve_up(path, up)]
    parts: list[TriangleMesh] = []
    clouds: list[PointCloud] = []
    for shape, matrix in shapes:
        if isinstance(shape, trimesh.Trimesh) and len(shape.faces):
            parts.append(_mesh(shape, turn, matrix))
        elif isinstance(shape, trimesh.PointCloud) or (
            isinstance(shape, trimesh.Trimesh) and len(shape.vertices)
        ):
            clouds.append(_cloud(shape, turn, matrix))
    parts = [part for part in parts if len(part.faces)]
    clouds = [cloud for cloud in clouds if len(cloud)]
    layers: list[Layer] = []
    if parts:
        layers.append(MeshLayer(name="mesh", parts=parts))
    if clouds:
        layers.append(PointsLayer(name="points", cloud=_merged(clouds)))
    if not layers:
        raise InputError(f"{path} holds no triangles and no points", "check that the file is whole")
    if path.suffix.lower() == ".glb":
        layers += _cameras(path, scene, turn)
    return layers


def _placed(scene: Any) -> list[tuple[np.ndarray, str]]:
    """(4, 4) placement and geometry name of every node that has one."""
    return [scene.graph[node] for node in scene.graph.nodes_geometry]


def _resolve_up(path: Path, up: Up) -> str:
    if up != "auto":
        return up
    if path.suffix.lower() == ".ply":
        with path.open("rb") as file:
            return "-y" if _OWN_PLY in file.read(2048) else "y"
    return "y"


def _move(points: Any, turn: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    return ((points @ matrix[:3, :3].T + matrix[:3, 3]) @ turn.T).astype(np.float32)


def _mesh(shape: Any, turn: np.ndarray, matrix: np.ndarray) -> TriangleMesh:
    vertices = _move(shape.vertices, turn, matrix)
    faces = np.asarray(shape.faces, np.int32)
    faces = faces[np.isfinite(vertices).all(axis=1)[faces].all(axis=1)]
    uv = texture = colours = None
    visual = shape.visual
    if visual.kind == "texture":
        material = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if image is not None and visual.uv is not None and len(visual.uv) == len(vertices):
            texture = np.asarray(image.convert("RGB"))
            # trimesh counts v from the bottom, whatever the file does.
            uv = np.array(visual.uv, np.float32)
            uv[:, 1] = 1 - uv[:, 1]
        else:
            colours = np.broadcast_to(np.asarray(material.main_color)[:3], vertices.shape)
    elif visual.kind in ("vertex", "face"):
        colours = visual.vertex_colors[:, :3]
    if texture is None and colours is None:
        colours = np.full(vertices.shape, _PLAIN_GREY)
    if colours is not None:
        colours = np.ascontiguousarray(colours, dtype=np.uint8)
    vertices = np.nan_to_num(vertices, posinf=0, neginf=0)  # left over: no triangle uses them
    return TriangleMesh(vertices, faces, uv=uv, colours=colours, texture=texture)


def _cloud(shape: Any, turn: np.ndarray, matrix: np.ndarray) -> PointCloud:
    points = _move(shape.vertices, turn, matrix)
    there = np.isfinite(points).all(axis=1)
    colours = getattr(shape, "colors", None)
    if colours is None or np.shape(colours)[:1] != (len(points),):
        return PointCloud(points[there])
    return PointCloud(points[there], np.ascontiguousarray(np.asarray(colours)[there, :3], dtype=np.uint8))


def _merged(clouds: list[PointCloud]) -> PointCloud:
    if len(clouds) == 1:
        return clouds[0]
    grey = [np.full((len(c), 3), _PLAIN_GREY, np.uint8) if c.colours is None else c.colours for c in clouds]
    return PointCloud(np.concatenate([c.positions for c in clouds]), np.concatenate(grey))


def glb_document(path: Path) -> dict[str, Any]:
    """The JSON of a GLB file. Raises InputError if it has none."""
    try:
        with path.open("rb") as file:
            magic, _, _, length, kind = struct.unpack("<4sIII4s", file.read(20))
            if magic == b"glTF" and kind == b"JSON":
                document = json.loads(file.read(length))
                if isinstance(document, dict):
                    return document
    except (OSError, ValueError, struct.error):
        pass
    raise InputError(f"{path} is no GLB file", "check that the file is whole")


def _cameras(path: Path, scene: Any, turn: np.ndarray) -> list[Layer]:
    """Perspective cameras of a GLB; trimesh keeps their nodes but not their lenses."""
    document = glb_document(path)
    layers: list[Layer] = []
    for node in document.get("nodes", ()):
        name = node.get("name")
        try:
            lens = document["cameras"][node["camera"]]["perspective"]
            matrix = scene.graph[name][0]
            aspect = float(lens.get("aspectRatio", 4 / 3))
            fov_y = np.degrees(float(lens["yfov"]))
            fov_x = np.degrees(2 * np.arctan(np.tan(np.radians(fov_y) / 2) * aspect))
            camera = Intrinsics.from_fov(fov_x, round(1000 * aspect), 1000, fov_y)
            world = np.eye(4)
            world[:3, :3] = turn
            pose = convert_pose(world @ matrix, "opengl", "opencv")
        except (KeyError, IndexError, TypeError, ValueError, InputError):
            continue  # no camera, an orthographic one, or one that says too little
        scale = np.linalg.norm(pose[:3, 0])
        if scale < 1e-9:
            continue
        pose[:3, :3] /= scale
        taken = {layer.name for layer in layers} | {"mesh", "points"}
        label = next(n for n in (str(name), *(f"{name} {i}" for i in range(2, 9999))) if n not in taken)
        layers.append(CameraLayer(name=label, camera=camera, pose=pose))
    return layers
