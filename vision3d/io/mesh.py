"""Points and meshes to files: PLY in OpenCV axes, glTF (GLB) and OBJ turned to their own y-up axes.

The writers are small and leave out what changes from run to run (dates, generators), so that equal results
are equal files.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision3d.errors import InputError

if TYPE_CHECKING:
    from vision3d.camera import Intrinsics
    from vision3d.geometry.mesh import TriangleMesh
    from vision3d.geometry.points import PointCloud

TO_Y_UP = np.array(
    [1, -1, -1], np.float32
)  # OpenCV axes to glTF's and OBJ's: y up, the camera looks along -z
_CLAMP, _REPEAT = 33071, 10497
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_FLOAT, _UNSIGNED_INT, _UNSIGNED_BYTE = 5126, 5125, 5121


def write_ply(path: Path, shape: PointCloud | TriangleMesh, *, comments: tuple[str, ...] = ()) -> None:
    """Binary little-endian PLY of points or of a mesh, with colours and normals where there are any.

    Args:
        path: file to write.
        shape: what to write, in OpenCV axes (kept).
        comments: lines for the header.
    """
    positions = shape.positions if hasattr(shape, "positions") else shape.vertices
    faces = getattr(shape, "faces", None)
    columns: list[tuple[str, str, np.ndarray]] = [(n, "float", positions[:, i]) for i, n in enumerate("xyz")]
    if shape.normals is not None:
        columns += [(f"n{n}", "float", shape.normals[:, i]) for i, n in enumerate("xyz")]
    if shape.colours is not None:
        columns += [(n, "uchar", shape.colours[:, i]) for i, n in enumerate(("red", "green", "blue"))]
    table = np.empty(
        len(positions), [(name, "<f4" if kind == "float" else "u1") for name, kind, _ in columns]
    )
    for name, _, values in columns:
        table[name] = values
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {' '.join(c.split())}" for c in comments)]
    header += [f"element vertex {len(positions)}", *(f"property {kind} {name}" for name, kind, _ in columns)]
    if faces is not None:
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    with path.open("wb") as file:
        file.write(("\n".join([*header, "end_header"]) + "\n").encode())
        file.write(table.tobytes())
        if faces is not None:
            rows = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", (3,))])
            rows["count"], rows["corners"] = 3, faces
            file.write(rows.tobytes())


def encode_texture(texture: np.ndarray, *, max_side: int = 4096, quality: int = 92) -> bytes:
    """JPEG of an (h, w, 3) uint8 texture, made smaller if its longer side exceeds ``max_side``."""
    from PIL import Image

    image = Image.fromarray(texture)
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def write_glb(
    path: Path,
    mesh: TriangleMesh,
    *,
    name: str = "mesh",
    camera: Intrinsics | None = None,
    extras: dict[str, Any] | None = None,
    max_texture: int = 4096,
) -> None:
    """Write what :func:`encode_glb` makes to a file."""
    path.write_bytes(encode_glb(mesh, name=name, camera=camera, extras=extras, max_texture=max_texture))


def encode_glb(
    mesh: TriangleMesh,
    *,
    name: str = "mesh",
    camera: Intrinsics | None = None,
    extras: dict[str, Any] | None = None,
    max_texture: int = 4096,
    opacity: float = 1.0,
) -> bytes:
    """Binary glTF 2.0 of a mesh, its texture embedded as JPEG and shown unlit (a photo has its light in it).

    Args:
        mesh: in OpenCV axes; turned to glTF's (+y up; what the camera saw lies along -z).
        name: of the mesh in the viewer's outliner.
        camera: the photograph's camera, added at the origin so that viewers can take its view.
        extras: what the file should say about itself (``asset.extras``).
        max_texture: longest side of the texture in pixels.
        opacity: below 1 the mesh is blended over what is behind it.

    Raises:
        InputError: a mesh without triangles, which glTF cannot hold.
    """
    if not len(mesh.faces):
        raise InputError("a mesh without triangles", "nothing to write")
    blob = _Blob()
    vertices = mesh.vertices.astype(np.float32) * TO_Y_UP
    attributes = {"POSITION": blob.accessor(vertices, "VEC3", _ARRAY_BUFFER, bounds=True)}
    if mesh.normals is not None:
        attributes["NORMAL"] = blob.accessor(mesh.normals.astype(np.float32) * TO_Y_UP, "VEC3", _ARRAY_BUFFER)
    material: dict[str, Any] = {
        "doubleSided": True,
        "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1},
    }
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "vision3d", **({"extras": extras} if extras else {})},
        "scene": 0,
        "materials": [material],
    }
    if mesh.uv is not None and mesh.texture is not None:
        attributes["TEXCOORD_0"] = blob.accessor(mesh.uv.astype(np.float32), "VEC2", _ARRAY_BUFFER)
        image = blob.view(encode_texture(mesh.texture, max_side=max_texture))
        wrap = _CLAMP if mesh.uv.min() >= 0 and mesh.uv.max() <= 1 else _REPEAT
        document |= {
            "images": [{"bufferView": image, "mimeType": "image/jpeg", "name": name}],
            "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": wrap, "wrapT": wrap}],
            "textures": [{"source": 0, "sampler": 0}],
            "extensionsUsed": ["KHR_materials_unlit"],
        }
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        material["extensions"] = {"KHR_materials_unlit": {}}
    elif mesh.colours is not None:
        rgba = np.concatenate([mesh.colours, np.full((len(mesh.colours), 1), 255, np.uint8)], axis=1)
        attributes["COLOR_0"] = blob.accessor(rgba, "VEC4", _ARRAY_BUFFER, normalised=True)
    if opacity < 1:
        material["pbrMetallicRoughness"]["baseColorFactor"] = [1, 1, 1, opacity]
        material["alphaMode"] = "BLEND"
    indices = blob.accessor(mesh.faces.astype(np.uint32).reshape(-1), "SCALAR", _ELEMENT_ARRAY_BUFFER)
    primitive = {"attributes": attributes, "indices": indices, "material": 0, "mode": 4}
    nodes: list[dict[str, Any]] = [{"mesh": 0, "name": name}]
    if camera is not None:
        reach = float(np.abs(vertices[:, 2]).max())
        document["cameras"] = [
            {
                "type": "perspective",
                "name": "photograph",
                "perspective": {
                    "yfov": float(np.radians(camera.fov_y)),
                    "aspectRatio": camera.width * camera.fy / (camera.height * camera.fx),
                    "znear": reach * 1e-4,
                    "zfar": reach * 10,
                },
            }
        ]
        nodes.append({"camera": 0, "name": "photograph"})
    document |= {
        "meshes": [{"name": name, "primitives": [primitive]}],
        "nodes": nodes,
        "scenes": [{"nodes": list(range(len(nodes)))}],
        **blob.document(),
    }
    return _chunks(document, bytes(blob.data))


class _Blob:
    """The binary chunk of a GLB under construction."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, target: int | None = None) -> int:
        """Append bytes at a multiple of 4 and return the buffer view's index."""
        self.data += b"\0" * (-len(self.data) % 4)
        entry: dict[str, Any] = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(entry | ({"target": target} if target else {}))
        self.data += data
        return len(self.views) - 1

    def accessor(
        self, array: np.ndarray, kind: str, target: int, *, bounds: bool = False, normalised: bool = False
    ) -> int:
        """Append an array and return its accessor's index."""
        component = {"float32": _FLOAT, "uint32": _UNSIGNED_INT, "uint8": _UNSIGNED_BYTE}[array.dtype.name]
        entry: dict[str, Any] = {
            "bufferView": self.view(np.ascontiguousarray(array).tobytes(), target),
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            entry |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        if normalised:
            entry["normalized"] = True
        self.accessors.append(entry)
        return len(self.accessors) - 1

    def document(self) -> dict[str, Any]:
        """The glTF entries that describe the chunk."""
        return {
            "accessors": self.accessors,
            "bufferViews": self.views,
            "buffers": [{"byteLength": len(self.data)}],
        }


def _chunks(document: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    total = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, total),
            struct.pack("<I4s", len(text), b"JSON") + text,
            struct.pack("<I4s", len(binary), b"BIN\0") + binary,
        ]
    )


def write_obj(path: Path, mesh: TriangleMesh, *, max_texture: int = 4096) -> None:
    """Wavefront OBJ in y-up axes; a texture goes into ``.mtl`` and ``.jpg`` of the same stem beside it."""
    textured = mesh.uv is not None and mesh.texture is not None
    with path.open("w", encoding="utf-8", newline="\n") as file:
        if textured:
            file.write(f"mtllib {path.stem}.mtl\nusemtl photo\n")
        file.write(_lines("v %.7g %.7g %.7g", mesh.vertices * TO_Y_UP))
        if textured and mesh.uv is not None:
            # OBJ counts v from the bottom.
            file.write(_lines("vt %.6f %.6f", np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], axis=-1)))
        corners = mesh.faces + 1
        pattern = "f %d/%d %d/%d %d/%d" if textured else "f %d %d %d"
        file.write(_lines(pattern, np.repeat(corners, 2, axis=1) if textured else corners))
    if textured and mesh.texture is not None:
        path.with_suffix(".mtl").write_text(
            f"newmtl photo\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {path.stem}.jpg\n", encoding="utf-8"
        )
        path.with_suffix(".jpg").write_bytes(encode_texture(mesh.texture, max_side=max_texture))


def _lines(pattern: str, rows: np.ndarray) -> str:
    """All rows through one %-pattern at once, which is ten times faster than row by row."""
    return ((pattern + "\n") * len(rows)) % tuple(rows.reshape(-1).tolist())
