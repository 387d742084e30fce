"""One HTML file that shows a scene anywhere, without a network, a server or a Python.

The page holds a small WebGL2 viewer of its own (``page/viewer.js``), a JSON description of the scene, and one
blob of base64 text for each array and picture. Arrays are stored losslessly: their bytes are sorted by
significance (all first bytes, then all second ones …), which lets deflate find what neighbours share, and
indices are stored as differences.
"""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vision3d.camera import transform_points
from vision3d.geometry.mesh import TriangleMesh
from vision3d.io.files import atomic_write_bytes
from vision3d.io.mesh import encode_texture
from vision3d.viewer.picking import POINT_TOLERANCE
from vision3d.viewer.scene import (
    CameraLayer,
    Item,
    Layer,
    MeshLayer,
    PointsLayer,
    View,
    bounds,
    frustum_size,
    page_of,
    positions,
    shown_at_start,
    views,
)

Background = Literal["night", "day", "black", "white"]
MAX_POINTS = 300_000
MAX_TEXTURE = 2048
_MAX_LOOK = 1024  # maps are smooth
_GREY = 200


def export_page(
    items: Sequence[Item],
    path: Path,
    *,
    title: str | None = None,
    background: Background = "night",
    point_size: float | None = None,
    max_points: int = MAX_POINTS,
    max_texture: int = MAX_TEXTURE,
) -> int:
    """Write the page, whole or not at all.

    Args:
        items: what it shows.
        path: of the page; missing folders are made.
        title: by default the items' names.
        background: at the start.
        point_size: diameter of points in the scene's unit; by default they just close the surface.
        max_points: clouds are thinned evenly to so many points.
        max_texture: longest side of pictures, in pixels.

    Returns:
        Its size in bytes.

    Raises:
        InputError: an item that cannot be read.
        OutputError: it cannot be written.
    """
    text = page_html(
        items,
        title=title,
        background=background,
        point_size=point_size,
        max_points=max_points,
        max_texture=max_texture,
    )
    data = text.encode("utf-8", "replace")  # a file's name may hold what UTF-8 does not
    atomic_write_bytes(path, data)
    return len(data)


def page_html(
    items: Sequence[Item],
    *,
    title: str | None = None,
    background: Background = "night",
    point_size: float | None = None,
    max_points: int = MAX_POINTS,
    max_texture: int = MAX_TEXTURE,
) -> str:
    """The page as text; see :func:`export_page`."""
    title = title or title_of(items)
    if page_of(items) == "pairs":
        from vision3d.viewer.matches import pairs_page

        return pairs_page(items, title=title, background=background, max_side=max_texture)
    blobs = Blobs(max_points, max_texture)
    shown = shown_at_start(items)
    visible = [layer for item, on in zip(items, shown, strict=True) if on for layer in item.layers]
    centre, radius = bounds(positions(visible))
    scene = {
        "title": title,
        "note": items[0].note if len(items) == 1 else f"{len(items)} results",
        "background": background,
        "centre": centre.tolist(),
        "radius": radius,
        "tolerance": POINT_TOLERANCE,
        "items": [_item(item, on, blobs, point_size) for item, on in zip(items, shown, strict=True)],
    }
    return fill_page(["viewer"], title, scene, blobs)


def title_of(items: Sequence[Item]) -> str:
    """The names of the first few."""
    return ", ".join(item.name for item in items[:3]) + (" …" if len(items) > 3 else "")


def fill_page(
    programs: Sequence[str], title: str, scene: dict[str, Any], blobs: Blobs, *, may_ask: bool = False
) -> str:
    """A page as text.

    Args:
        programs: names of its scripts in ``page/``, and of their styles where they have one.
        title: of the page.
        scene: what the script is to know, for JSON.
        blobs: arrays and pictures that ``scene`` refers to.
        may_ask: the script may ask the server that the page came from.
    """
    page = files("vision3d.viewer") / "page"
    styles = [page / f"{name}.css" for name in dict.fromkeys(("viewer", *programs))]
    # "<" cannot end a script element when it is escaped, whatever a file is called.
    description = json.dumps(scene, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "style": "".join(style.read_text(encoding="utf-8") for style in styles if style.is_file()),
        "script": "".join(
            (page / f"{name}.js").read_text(encoding="utf-8") for name in ("common", *programs)
        ),
        "connect": "; connect-src 'self'" if may_ask else "",
        "scene": description,
        "blobs": "\n".join(blobs.elements()),
    }
    # One pass over the template: nothing that is filled in is searched for place-holders again.
    pieces = (page / "page.html").read_text(encoding="utf-8").split("{{")
    text = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        text += [parts[name], rest]
    return "".join(text)


class Blobs:
    """A page's binary data, each distinct array or picture once."""

    def __init__(self, max_points: int = MAX_POINTS, max_texture: int = MAX_TEXTURE) -> None:
        self.max_points, self.max_texture = max_points, max_texture
        self._texts: list[str] = []
        self._pictures: dict[int, tuple[np.ndarray, dict[str, Any]]] = {}

    def _add(self, data: bytes) -> int:
        self._texts.append(base64.b64encode(data).decode("ascii"))
        return len(self._texts) - 1

    def array(self, values: np.ndarray) -> dict[str, Any]:
        """An array of float32, float16 or uint8."""
        values = np.ascontiguousarray(values)
        kind = {"float32": "f4", "float16": "f2", "uint8": "u1"}[values.dtype.name]
        return self._planes(values, kind)

    def indices(self, faces: np.ndarray) -> dict[str, Any]:
        """(M, 3) indices, stored as zigzag-coded differences."""
        steps = np.diff(faces.astype(np.int64).reshape(-1), prepend=0)
        return self._planes(((steps << 1) ^ (steps >> 63)).astype(np.uint32).reshape(faces.shape), "d4")

    def _planes(self, values: np.ndarray, kind: str) -> dict[str, Any]:
        little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
        flat = little.reshape(-1).view(np.uint8).reshape(-1, values.dtype.itemsize)
        blob = self._add(zlib.compress(flat.T.tobytes(), 6))
        return {"blob": blob, "dtype": kind, "shape": list(values.shape)}

    def picture(self, pixels: np.ndarray, max_side: int) -> dict[str, Any]:
        """An (h, w, 3) uint8 picture as JPEG."""
        known = self._pictures.get(id(pixels))
        if known is None:
            # The array is kept beside its entry, so that its id is not given to another one.
            entry = {"blob": self._add(encode_texture(pixels, max_side=max_side, quality=90))}
            known = self._pictures[id(pixels)] = pixels, entry
        return known[1]

    def elements(self) -> list[str]:
        """The script elements that hold the data."""
        return [
            f'<script type="application/octet-stream" id="blob{number}">{text}</script>'
            for number, text in enumerate(self._texts)
        ]


def _item(item: Item, visible: bool, blobs: Blobs, point_size: float | None) -> dict[str, Any]:
    outline = positions(item.layers)
    return {
        "name": item.name,
        "note": item.note,
        "unit": item.unit,
        "visible": visible,
        "views": [_view(view) for view in views(item.layers)],
        "layers": [_layer(layer, blobs, point_size, outline) for layer in item.layers],
    }


def _view(view: View) -> dict[str, Any]:
    return {name: getattr(view, name) for name in ("name", "eye", "target", "up", "fov_x", "fov_y")}


def _layer(layer: Layer, blobs: Blobs, point_size: float | None, outline: np.ndarray) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": layer.name, "visible": layer.visible, "opacity": layer.opacity}
    if isinstance(layer, MeshLayer):
        looks = {name: blobs.picture(image, _MAX_LOOK) for name, image in layer.looks.items()}
        return entry | {"kind": "mesh", "parts": [_part(p, blobs) for p in layer.parts], "looks": looks}
    if isinstance(layer, PointsLayer):
        cloud = layer.cloud
        keep = np.linspace(0, len(cloud) - 1, min(len(cloud), blobs.max_points)).astype(np.int64)
        # Fewer points lie farther apart: their area grows by what is left out.
        grown = (len(cloud) / len(keep)) ** 0.5
        by_distance = layer.seen_from is not None and point_size is None
        size = point_size or grown * (2.2 * layer.angular_spacing if by_distance else 1.25 * layer.spacing)
        colours = np.full((len(cloud), 3), _GREY, np.uint8) if cloud.colours is None else cloud.colours
        return entry | {
            "kind": "points",
            "positions": blobs.array(cloud.positions[keep].astype(np.float32)),
            "colours": blobs.array(colours[keep]),
            "size": size,
            "seen_from": layer.seen_from.tolist() if by_distance and layer.seen_from is not None else None,
            "looks": {name: blobs.array(values[keep]) for name, values in layer.looks.items()},
        }
    if isinstance(layer, CameraLayer):
        return entry | {
            "kind": "camera",
            "centre": layer.pose[:3, 3].tolist(),
            "corners": frustum_corners(layer, frustum_size(layer, outline)).tolist(),
            "photo": None if layer.photo is None else blobs.picture(layer.photo, blobs.max_texture),
            "looks": {name: blobs.picture(image, _MAX_LOOK) for name, image in layer.looks.items()},
        }
    raise TypeError(f"exported pages cannot show a {type(layer).__name__} yet")


def frustum_corners(layer: CameraLayer, size: float) -> np.ndarray:
    """(4, 3) corners of the image plane at depth ``size``, clockwise from the image's top left, in world axes."""
    lens = layer.camera
    pixels = [[0, 0], [lens.width, 0], [lens.width, lens.height], [0, lens.height]]
    return transform_points(layer.pose, lens.unproject(pixels, size))


def _part(part: TriangleMesh, blobs: Blobs) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "positions": blobs.array(part.vertices.astype(np.float32)),
        "indices": blobs.indices(part.faces),
    }
    if part.uv is not None and part.texture is not None:
        entry["uv"] = blobs.array(part.uv.astype(np.float32))
        entry["texture"] = blobs.picture(part.texture, blobs.max_texture)
    elif part.colours is not None:
        entry["colours"] = blobs.array(part.colours)
    else:
        entry["colours"] = blobs.array(np.full((len(part.vertices), 3), _GREY, np.uint8))
    return entry
