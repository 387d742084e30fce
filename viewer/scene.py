"""What a viewer draws, before anyone draws it: layers of points, meshes and cameras, and where to look from.

Results and files become :class:`Item` s of layers; the live viewer and the exported page draw layers and know
nothing of where they come from. All of it lives in one world with OpenCV axes (x right, y down, z forward),
in which the camera of a single photograph stands at the origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from vision3d.camera import Intrinsics, look_at, transform_points
from vision3d.errors import InputError
from vision3d.geometry.mesh import TriangleMesh
from vision3d.geometry.points import PointCloud

UP = (0.0, -1.0, 0.0)
PLAIN_FOV_DEGREES = 45.0  # of the view of things that no photograph was taken of
_SEED = 0
PageKind = Literal["space", "pairs"]


@dataclass(eq=False, kw_only=True)
class Layer:
    """Something that is switched on and off as one.

    Attributes:
        name: unique within its item.
        visible: at the start.
        opacity: 0 … 1 at the start.
    """

    name: str
    visible: bool = True
    opacity: float = 1.0


@dataclass(eq=False, kw_only=True)
class MeshLayer(Layer):
    """Triangle meshes.

    Attributes:
        parts: in world axes; each with a texture, colours, or neither.
        looks: name → (h, w, 3) uint8 image that can be laid over the parts' textures (same ``uv``).
    """

    parts: Sequence[TriangleMesh]
    looks: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(eq=False, kw_only=True)
class PointsLayer(Layer):
    """A point cloud.

    Attributes:
        cloud: in world axes.
        looks: name → (N, 3) uint8 colours that can be laid over the cloud's own.
        seen_from: (3,) centre of the camera whose pixels the points are, or None. Such points lie the farther
            apart the farther they are from it, and are drawn larger where that can be done.
    """

    cloud: PointCloud
    looks: dict[str, np.ndarray] = field(default_factory=dict)
    seen_from: np.ndarray | None = None

    @cached_property
    def _apart(self) -> tuple[np.ndarray, np.ndarray]:
        """A sample of points (n, 3), and the distance (n,) of each to its nearest neighbour."""
        from scipy.spatial import cKDTree

        every = self.cloud.positions
        sample = every[np.random.default_rng(_SEED).permutation(len(every))[:2000]]
        if len(every) < 2:
            return sample, np.full(len(sample), 0.01)
        distances = cKDTree(every).query(sample, k=2)[0][:, 1]
        apart = distances > 0
        return (sample[apart], distances[apart]) if apart.any() else (sample[:1], np.array([0.01]))

    @property
    def spacing(self) -> float:
        """Distance of three points in four to their nearest neighbour: so large points close a surface."""
        return float(np.percentile(self._apart[1], 75))

    @property
    def angular_spacing(self) -> float:
        """Median distance to the nearest neighbour as a share of that from ``seen_from``."""
        sample, distances = self._apart
        away = np.linalg.norm(sample - (0 if self.seen_from is None else self.seen_from), axis=1)
        return float(np.median(distances / np.maximum(away, 1e-9)))


@dataclass(eq=False, kw_only=True)
class CameraLayer(Layer):
    """A photograph's camera, drawn as a frustum with the photograph in it.

    Attributes:
        camera: its intrinsics.
        pose: (4, 4) camera-to-world.
        photo: (h, w, 3) uint8, or None.
        looks: name → (h, w, 3) uint8 image that can be laid over the photograph.
        size: distance of the drawn image plane from the centre, or None for a share of the scene's size.
    """

    camera: Intrinsics
    pose: np.ndarray = field(default_factory=lambda: np.eye(4))
    photo: np.ndarray | None = None
    looks: dict[str, np.ndarray] = field(default_factory=dict)
    size: float | None = None


@dataclass(eq=False)
class Item:
    """One result or file with its layers, which are read when they are first asked for.

    Attributes:
        name: what to call it.
        load: reads the layers.
        unit: of the world's lengths: "m" or None for arbitrary ones, in which nothing can be measured.
        note: one line on what is shown: method, weights, meaning of the values.
        alone: whether it shares its place with others (all photographs are taken from the origin), so that
            only one of them is shown at the start.
        page: what shows it: the viewer of things in space, or that of pairs of photographs.
    """

    name: str
    load: Callable[[], Sequence[Layer]]
    unit: str | None = None
    note: str = ""
    alone: bool = False
    page: PageKind = "space"

    @cached_property
    def layers(self) -> list[Layer]:
        """Its layers.

        Raises:
            InputError: files that are missing or damaged, or nothing to draw.
        """
        layers = list(self.load())
        if not layers:
            raise InputError(f"{self.name} holds nothing that can be drawn", "give a mesh, points or a depth")
        names: set[str] = set()
        for layer in layers:
            if layer.name in names:
                raise ValueError(f"two layers of {self.name} are called {layer.name!r}")
            names.add(layer.name)
        return layers

    @property
    def looks(self) -> list[str]:
        """Names of the pictures that can be laid over its layers, without repetition."""
        return list(dict.fromkeys(name for layer in self.layers for name in getattr(layer, "looks", {})))


@dataclass(frozen=True)
class View:
    """Where to look from.

    Attributes:
        name: "overview" or "photograph".
        eye, target, up: (3,) in world axes.
        fov_x, fov_y: radians that must at least be in view.
    """

    name: str
    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    up: tuple[float, float, float]
    fov_x: float
    fov_y: float

    def vertical_fov(self, aspect: float) -> float:
        """Radians of a window ``aspect`` times as wide as high, so that both angles are in view."""
        return 2 * math.atan(max(math.tan(self.fov_y / 2), math.tan(self.fov_x / 2) / aspect))


def page_of(items: Sequence[Item]) -> PageKind:
    """What shows these items.

    Raises:
        InputError: they cannot be shown together.
    """
    pairs = [item.name for item in items if item.page == "pairs"]
    if not pairs:
        return "space"
    if len(pairs) < len(items):
        raise InputError(f"{pairs[0]}, a pair of photographs, among things in space", "view them one by one")
    return "pairs"


def shown_at_start(items: Sequence[Item]) -> list[bool]:
    """Which items are visible at the start: of those that share a place only the first."""
    shown, occupied = [], False
    for item in items:
        shown.append(not (item.alone and occupied))
        occupied |= item.alone
    return shown


def positions(layers: Sequence[Layer]) -> np.ndarray:
    """(N, 3) float64 points that outline meshes and clouds, evenly thinned to a few ten thousand each."""
    found = []
    for layer in layers:
        if isinstance(layer, MeshLayer):
            found += [part.vertices for part in layer.parts]
        elif isinstance(layer, PointsLayer):
            found.append(layer.cloud.positions)
    thinned = [p[:: max(1, len(p) // 20_000)] for p in found if len(p)]
    return np.concatenate(thinned).astype(np.float64) if thinned else np.zeros((0, 3))


def bounds(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (3,) and radius of what matters: the box of all but the outermost percent on each side."""
    if not len(points):
        return np.zeros(3), 1.0
    low, high = np.percentile(points, [1, 99], axis=0)
    return (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, 1e-6)


def frustum_size(layer: CameraLayer, points: np.ndarray) -> float:
    """How far from the centre the image of a frustum is drawn: well before what the camera saw."""
    if layer.size is not None:
        return layer.size
    if not len(points):
        return 1.0
    depth = transform_points(np.linalg.inv(layer.pose), points)[:, 2]
    ahead = depth[depth > 0]
    return 0.3 * float(np.percentile(ahead, 5)) if len(ahead) else 0.2 * bounds(points)[1]


def views(layers: Sequence[Layer]) -> list[View]:
    """The overview first, then the photograph's own view if there is one.

    The overview of a photograph is its camera's view from a step back, up and to the side, so that it shows
    at once what was seen and that it has depth. Without a camera it is one from the front and above that holds
    everything.
    """
    points = positions(layers)
    centre, radius = bounds(points)
    camera = next((layer for layer in layers if isinstance(layer, CameraLayer)), None)
    if camera is None:
        fov = math.radians(PLAIN_FOV_DEGREES)
        direction = np.array([0.35, -0.35, -1.0])
        eye = centre + direction / np.linalg.norm(direction) * radius / math.sin(fov / 2)
        return [_view("overview", eye, centre, np.array(UP), fov, fov)]

    pose, lens = camera.pose, camera.camera
    fov_x, fov_y = math.radians(lens.fov_x), math.radians(lens.fov_y)
    origin, right, up, forward = pose[:3, 3], pose[:3, 0], -pose[:3, 1], pose[:3, 2]
    if len(points):
        depth = transform_points(np.linalg.inv(pose), points)[:, 2]
        reach = float(np.median(depth[depth > 0])) if (depth > 0).any() else radius
    else:
        reach = 3 * frustum_size(camera, points)
    target = origin + reach * forward
    eye = origin - 0.5 * reach * forward + 0.26 * reach * right + 0.16 * reach * up
    return [
        _view("overview", eye, target, up, fov_x, fov_y),
        _view("photograph", origin, target, up, fov_x, fov_y),
    ]


def _view(name: str, eye: np.ndarray, target: np.ndarray, up: np.ndarray, fov_x: float, fov_y: float) -> View:
    def triple(v: np.ndarray) -> tuple[float, float, float]:
        return float(v[0]), float(v[1]), float(v[2])

    return View(name, triple(eye), triple(target), triple(up), fov_x, fov_y)


def view_pose(view: View) -> np.ndarray:
    """(4, 4) camera-to-world pose of a view in OpenCV axes."""
    return look_at(view.eye, view.target, view.up)


def blend(base: np.ndarray, over: np.ndarray, strength: float) -> np.ndarray:
    """uint8 mixture of two pictures or colour lists; ``over`` is resized to ``base`` if need be."""
    if over.shape != base.shape and base.ndim == 3:
        from PIL import Image

        height, width = base.shape[:2]
        over = np.asarray(Image.fromarray(over).resize((width, height), Image.Resampling.BILINEAR))
    mixed = base.astype(np.float32) * (1 - strength) + over.astype(np.float32) * strength
    return np.round(mixed).astype(np.uint8)


def thinned(cloud_size: int, share: float) -> np.ndarray:
    """(N,) bool: an even random choice of points, the same at every call, growing with ``share``."""
    return np.random.default_rng(_SEED).random(cloud_size) < share
