"""How each kind of result is shown: ``@shows(kind)`` registers the function that makes its layers.

``kind`` is what ``result.json`` says. The viewer asks here and nowhere else, so a new kind of result is shown by
registering one function; until then :func:`generic_layers` shows the files and the camera that every kind
may have.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.mesh import TriangleMesh
from vision3d.geometry.points import PointCloud
from vision3d.io.files import DAMAGED
from vision3d.io.images import natural_key
from vision3d.paths import as_path, numbered
from vision3d.prediction import RECORD, Prediction, read_record
from vision3d.viewer.files import SUFFIXES, Up, file_item, read_layers
from vision3d.viewer.scene import CameraLayer, Item, Layer, MeshLayer, PageKind, PointsLayer


@dataclass(frozen=True)
class ResultFolder:
    """A finished result on disk.

    Attributes:
        path: the folder.
        record: its ``result.json``.
    """

    path: Path
    record: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> ResultFolder:
        """Raises InputError if ``path`` has no readable record."""
        record = read_record(path)
        if record is None or not isinstance(record.get("kind"), str):
            raise InputError(f"{path / RECORD} cannot be read", "compute the result again with --overwrite")
        return cls(path, record)

    @property
    def kind(self) -> str:
        """Of result."""
        return self.record["kind"]

    @property
    def unit(self) -> str | None:
        """Of its geometry: "m" or None."""
        unit = self.record.get("unit")
        return unit if isinstance(unit, str) else None

    @property
    def note(self) -> str:
        """What is shown, in one line."""
        conventions = self.record.get("conventions")
        geometry = conventions.get("geometry") if isinstance(conventions, dict) else None
        parts = [self.record.get("method"), self.record.get("weights"), self.record.get("space"), geometry]
        return " · ".join(str(part) for part in parts if part)

    def file(self, name: str) -> Path | None:
        """A file that the record lists, or None if it lists no such file.

        Raises:
            InputError: it is listed but not there.
        """
        files = self.record.get("files")
        if not isinstance(files, dict) or name not in files or Path(name).name != name:
            return None
        path = self.path / name
        if not path.is_file():
            raise InputError(f"{path} is missing", "compute the result again with --overwrite")
        return path

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the result."""
        height, width = self.record.get("height"), self.record.get("width")
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    @cached_property
    def camera(self) -> Intrinsics | None:
        """The photograph's camera at the result's size."""
        entry = self.record.get("camera")
        if not isinstance(entry, dict):
            return None
        try:
            return Intrinsics.from_dict(entry)
        except (KeyError, TypeError, InputError) as error:
            raise InputError(
                f"the camera in {self.path / RECORD} is damaged", "compute the result again with --overwrite"
            ) from error

    @cached_property
    def pose(self) -> np.ndarray:
        """(4, 4) camera-to-world: what the record says, else the camera is the world's origin."""
        entry = self.record.get("camera")
        stated = entry.get("cam_to_world") if isinstance(entry, dict) else None
        pose = np.eye(4) if stated is None else np.asarray(stated, np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise InputError(f"the camera pose in {self.path / RECORD} is damaged", "give a 4×4 matrix")
        return pose

    def array(self, name: str) -> np.ndarray | None:
        """A ``.npy`` file of the record, or None. Raises InputError if it is damaged."""
        path = self.file(name)
        if path is None:
            return None
        try:
            return np.load(path, allow_pickle=False)
        except DAMAGED as error:
            raise InputError(f"{path} is damaged", "compute the result again with --overwrite") from error

    def image(self, name: str) -> np.ndarray | None:
        """An image file of the record as (h, w, 3) uint8, or None. Raises InputError if it is damaged."""
        from PIL import Image

        path = self.file(name)
        if path is None:
            return None
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged", "compute the result again with --overwrite") from error

    @cached_property
    def mesh(self) -> list[TriangleMesh]:
        """The parts of ``mesh.glb`` or ``scene.glb``; none if the result has no mesh."""
        path = self.file("mesh.glb") or self.file("scene.glb")
        layers = read_layers(path) if path is not None else []
        return [part for layer in layers if isinstance(layer, MeshLayer) for part in layer.parts]

    @cached_property
    def points(self) -> PointCloud | None:
        """``points.ply``."""
        path = self.file("points.ply")
        layers = read_layers(path) if path is not None else []
        return next((layer.cloud for layer in layers if isinstance(layer, PointsLayer)), None)

    @cached_property
    def photo(self) -> np.ndarray | None:
        """(h, w, 3) uint8 of the photograph as far as the result holds it, or None.

        The mesh is textured by it; without a mesh, it is the first panel of a preview that starts with it.
        """
        if not isinstance(self.record.get("input"), dict):
            return None
        textured = [part.texture for part in self.mesh if part.texture is not None]
        if len(textured) == 1:
            return textured[0]
        preview = self.image("preview.png")
        if preview is None or self.size is None:
            return None
        if not str(self.record["files"]["preview.png"].get("what")).startswith("photograph"):
            return None  # a sheet of maps
        height, width = self.size
        scale = min(1.0, 1600 / max(height, width))  # as vision3d.colour.side_by_side has it
        return preview[: max(1, round(height * scale)), : max(1, round(width * scale))]


Shower = Callable[[ResultFolder], Iterable[Layer]]
_SHOWERS: dict[str, Shower] = {}
_PAGES: dict[str, PageKind] = {}


def shows(kind: str, page: PageKind = "space") -> Callable[[Shower], Shower]:
    """Register the function that makes the layers of results of this kind, and what shows these."""

    def register(shower: Shower) -> Shower:
        if kind in _SHOWERS:
            raise ValueError(f"how {kind!r} is shown is registered already")
        _SHOWERS[kind] = shower
        _PAGES[kind] = page
        return shower

    return register


def registered() -> list[str]:
    """Kinds that have their own way of being shown."""
    import vision3d.viewer.kinds
    import vision3d.viewer.matches  # noqa: F401 - these register the kinds of this package

    return sorted(_SHOWERS)


def layers_of(result: ResultFolder) -> list[Layer]:
    """The layers of a result, by its kind's registered function or, without one, by its files."""
    registered()
    return list(_SHOWERS.get(result.kind, generic_layers)(result))


def generic_layers(
    result: ResultFolder, looks: dict[str, np.ndarray] | None = None, *, photo: np.ndarray | None = None
) -> list[Layer]:
    """Camera with photograph, mesh and points, as far as a result has them.

    Args:
        result: of any kind.
        looks: name → (H, W, 3) uint8 pictures of the result's size to lay over the photograph, the mesh that it
            textures, and the points.
        photo: the photograph, by default the one that the result holds.
    """
    looks = looks or {}
    photo = result.photo if photo is None else photo
    layers: list[Layer] = []
    camera = result.camera
    if camera is not None and (photo is not None or looks or result.mesh or result.points):
        layers.append(CameraLayer(name="camera", camera=camera, pose=result.pose, photo=photo, looks=looks))
    if result.mesh:
        single = len(result.mesh) == 1 and result.mesh[0].uv is not None
        layers.append(MeshLayer(name="mesh", parts=result.mesh, looks=looks if single else {}))
    if result.points is not None:
        over = {} if camera is None else _at_points(result.points, looks, camera, result.pose)
        # Both at once hide each other; the mesh shows more.
        layers.append(
            PointsLayer(
                name="points",
                cloud=result.points,
                looks=over,
                visible=not result.mesh,
                seen_from=None if camera is None else result.pose[:3, 3],
            )
        )
    return layers


def _at_points(
    cloud: PointCloud, looks: dict[str, np.ndarray], camera: Intrinsics, pose: np.ndarray
) -> dict[str, np.ndarray]:
    """The colours that pictures have where the camera sees the points."""
    from vision3d.camera import invert_pose, transform_points

    if not looks:
        return {}
    pixels, _ = camera.project(transform_points(invert_pose(pose), cloud.positions))
    share = np.nan_to_num(pixels / [camera.width, camera.height])
    colours = {}
    for name, picture in looks.items():
        height, width = picture.shape[:2]
        columns = np.clip((share[:, 0] * width).astype(int), 0, width - 1)
        rows = np.clip((share[:, 1] * height).astype(int), 0, height - 1)
        colours[name] = picture[rows, columns]
    return colours


def result_item(path: Path, name: str | None = None) -> Item:
    """A result folder as an item. Raises InputError if it has no readable record."""
    result = ResultFolder.open(path)
    registered()
    return Item(
        name or path.resolve().name,
        lambda: layers_of(result),
        unit=result.unit,
        note=result.note,
        alone=result.camera is not None and "cam_to_world" not in result.record["camera"],
        page=_PAGES.get(result.kind, "space"),
    )


Showable = str | os.PathLike[str] | Prediction | TriangleMesh | PointCloud | Item


def items_of(things: Sequence[Showable], *, up: Up = "auto") -> list[Item]:
    """Everything that can be shown, as items with names that tell them apart.

    Args:
        things: result folders, folders of these or of plain files, plain files; results, meshes and points in
            memory.
        up: the axis that points up in plain files.

    Raises:
        InputError: nothing given, nothing there, nothing that can be shown.
    """
    if not things:
        raise InputError("nothing to view", "name a result folder or a GLB, OBJ or PLY file")
    items: list[Item] = []
    for thing in things:
        if isinstance(thing, Item):
            items.append(thing)
        elif isinstance(thing, (TriangleMesh, PointCloud)):
            items.append(_shape_item(thing))
        elif isinstance(thing, Prediction):
            items.append(_prediction_item(thing))
        else:
            items += _path_items(as_path(thing), up)
    taken: set[str] = set()
    for item in items:
        item.name = numbered(item.name, taken.__contains__, "{} ({})")
        taken.add(item.name)
    return items


def _path_items(path: Path, up: Up) -> list[Item]:
    if not path.exists():
        raise InputError(f"no such file or folder: {path}", "check the path")
    if path.name == RECORD:
        path = path.parent
    if not path.is_dir():
        return [file_item(path, up=up)]
    try:
        if (path / RECORD).exists():
            return [result_item(path)]
        visible = [
            p for p in path.rglob(RECORD) if not any(x.startswith(".") for x in p.relative_to(path).parts)
        ]
        folders = sorted((p.parent for p in visible), key=natural_key)
        if folders:
            return [result_item(p, p.relative_to(path).as_posix()) for p in folders]
        files = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check its permissions") from error
    if not files:
        raise InputError(
            f"{path} holds no result and no {', '.join(SUFFIXES)} file", "name a folder with a result.json"
        )
    return [file_item(p, up=up) for p in sorted(files, key=natural_key)]


def _shape_item(shape: TriangleMesh | PointCloud) -> Item:
    layer: Layer
    if isinstance(shape, TriangleMesh):
        layer = MeshLayer(name="mesh", parts=[shape])
    else:
        layer = PointsLayer(name="points", cloud=shape)
    return Item(layer.name, lambda: [layer], note=repr(shape))


def _prediction_item(prediction: Prediction) -> Item:
    """A result in memory, shown exactly as it is when it is saved."""
    with tempfile.TemporaryDirectory(prefix="vision3d-") as folder:
        name = prediction.photo.name if prediction.photo is not None else prediction.kind
        prediction.save(Path(folder) / "result")
        item = result_item(Path(folder) / "result", name)
        _ = item.layers  # read while the files are there
    return item
