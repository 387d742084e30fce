"""A scene from one photograph: camera, metric and relative depth, normals, and the one surface fused of them."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.io.files import DAMAGED, json_bytes, write_npy
from vision3d.prediction import GeometryLimits, Prediction, Provenance, Writer, plain, read_record

if TYPE_CHECKING:
    from PIL import Image

    from vision3d.geometry.align import RobustFit
    from vision3d.geometry.mesh import TriangleMesh
    from vision3d.geometry.points import PointCloud
    from vision3d.io.images import Photo

_AXES = "OpenCV camera axes (x right, y down, z forward)"
SCALE_NOISE = 0.05
"""Relative error of a metric depth's overall scale where nothing better is known."""
DEPTH_NOISE = 0.05
"""Relative error of metric depth within a photograph, likewise."""


@dataclass(frozen=True)
class FusionOptions:
    """How a scene's maps become one surface.

    Attributes:
        max_size: longest side at which depth and normals are fused; the surface has the maps' size in any case.
        depth_noise: of the metric depth, relative; None takes what the depth's weights say of themselves, or
            :data:`DEPTH_NOISE` where nothing is known; with ``normal_noise`` it sets the size of structure below which
            normals decide (see :func:`vision3d.geometry.integration.fuse_depth_normals`).
        normal_noise: of the normals in degrees.
        threshold: relative difference up to which metric and aligned relative depth agree.
        scale_noise: relative error of the metric scale, for the uncertainty of what is measured; None takes the depth
            noise of the depth's weights, or :data:`SCALE_NOISE` if that is larger or nothing is known.
    """

    max_size: int = 1024
    depth_noise: float | None = None
    normal_noise: float = 10.0
    threshold: float = 0.15
    scale_noise: float | None = None

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            InputError: naming the value.
        """
        if self.max_size < 16:
            raise InputError(f"fusion at {self.max_size} pixels", "give at least 16")
        for name, low, high in (
            ("depth_noise", 0, 1),
            ("normal_noise", 0, 90),
            ("threshold", 0, 1),
            ("scale_noise", 0, 1),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if not low < value < high:
                raise InputError(f"{name} {value}", f"give a number between {low} and {high}")


@dataclass(frozen=True)
class Measurement:
    """A distance between two points that were picked in a photograph.

    Attributes:
        metres: the distance.
        sigma: its standard deviation in metres: of the metric scale, of both depths, and of the camera if known.
        start, end: (3,) points in metres, OpenCV camera axes.
    """

    metres: float
    sigma: float
    start: np.ndarray
    end: np.ndarray

    def __float__(self) -> float:
        return self.metres

    def __str__(self) -> str:
        digits = 2 if self.metres < 100 else 0
        return f"{self.metres:.{digits}f} m ± {self.sigma:.{digits}f}"


@dataclass(eq=False, repr=False)
class ScenePrediction(Prediction):
    """What one photograph shows, in metres; all maps have one size and one camera.

    Attributes:
        fused: (H, W) float32 z-depth in metres of the surface fused from all maps; NaN where there is none (sky).
        metric: (H, W) float32 z-depth in metres as the metric method gave it.
        normals: (H, W, 3) float32 as the normals method gave them: unit, camera axes, towards the camera, 0 for none.
        relative: (H, W) float32 affine-invariant inverse depth as its method gave it, or None.
        sky: (H, W) bool, or None if there is none.
        covariance: (4, 4) of fx, fy, cx, cy in pixels², or None.
        alignment: how the relative depth was brought to metres: scale, shift, inlier_share, spread, threshold; None
            without it.
        options: of the fusion.
        sources: provenance of each part: "camera", "metric depth", "relative depth", "normals".

    Raises:
        InputError: shapes that do not fit, or no camera.
    """

    kind: ClassVar[str] = "scene"
    formats: ClassVar[tuple[str, ...]] = ("obj", "exr", "npz")

    fused: np.ndarray
    metric: np.ndarray
    normals: np.ndarray
    relative: np.ndarray | None = None
    sky: np.ndarray | None = None
    covariance: np.ndarray | None = None
    alignment: dict[str, float] | None = None
    options: FusionOptions = field(default_factory=FusionOptions)
    sources: dict[str, Provenance] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fused = np.ascontiguousarray(self.fused, dtype=np.float32)
        if self.fused.ndim != 2 or 0 in self.fused.shape:
            raise InputError(f"fused depth of shape {self.fused.shape}", "give an array of shape (H, W)")
        for name in ("metric", "normals", "relative"):
            value = getattr(self, name)
            if value is None:
                continue
            value = np.ascontiguousarray(value, dtype=np.float32)
            setattr(self, name, value)
            wanted = (*self.size, 3) if name == "normals" else self.size
            if value.shape != wanted:
                raise InputError(
                    f"{name} of shape {value.shape} with fused depth of {self.size}", "resize it"
                )
        if self.sky is not None:
            self.sky = np.asarray(self.sky, dtype=bool)
            if self.sky.shape != self.size:
                raise InputError(
                    f"sky of shape {self.sky.shape} with fused depth of {self.size}", "resize it"
                )
        if self.covariance is not None and np.shape(self.covariance) != (4, 4):
            raise InputError(
                f"covariance of shape {np.shape(self.covariance)}", "give (4, 4) of fx, fy, cx, cy"
            )
        if self.camera is None:
            raise InputError("a scene without a camera", "give camera=Intrinsics(...)")
        if (self.camera.height, self.camera.width) != self.size:
            raise InputError(f"a camera for {self.camera} with maps of {self.size}", "resize the camera")

    # ------------------------------------------------------------------ making

    @classmethod
    def from_maps(
        cls,
        *,
        camera: Intrinsics,
        metric: np.ndarray,
        normals: np.ndarray,
        relative: np.ndarray | None = None,
        sky: np.ndarray | None = None,
        photo: Photo | None = None,
        options: FusionOptions | None = None,
        **rest: Any,
    ) -> ScenePrediction:
        """Align, merge and fuse the maps of one photograph.

        The relative depth is aligned to the metric one robustly and lends it its edges; the result and the normals are
        fused by bilateral normal integration.

        Args:
            camera: intrinsics for the maps' size.
            metric: (H, W) z-depth in metres; not finite or not positive where there is none.
            normals: (H, W, 3) unit, camera axes; zero where there are none.
            relative: (H, W) affine-invariant inverse depth, or None.
            sky: (H, W) bool, left out of the surface.
            photo: the photograph.
            options: of the fusion.
            rest: further attributes, such as ``sources`` and ``covariance``.

        Raises:
            InputError: shapes that do not fit, or nothing to build a surface from.
        """
        from vision3d.geometry.align import align_inverse_to_metric, merge_depths
        from vision3d.geometry.integration import fuse_depth_normals, resize_surface
        from vision3d.progress import warn

        options = options or FusionOptions()
        options.check()
        # Shapes and the camera are checked by the class before any work.
        cls(
            fused=metric,
            metric=metric,
            normals=normals,
            relative=relative,
            sky=sky,
            camera=camera,
            photo=photo,
        )
        metric = np.asarray(metric, dtype=np.float32)
        with np.errstate(invalid="ignore"):
            surface = np.isfinite(metric) & (metric > 0)
        if sky is not None:
            surface &= ~np.asarray(sky, bool)
        if photo is not None and photo.opaque is not None:
            surface &= nearest_resize(photo.opaque, (metric.shape[0], metric.shape[1]))
        if not surface.any():
            raise InputError("no pixel has a metric depth", "there is nothing to build a scene from")
        depth, alignment = np.where(surface, metric, np.nan), None
        if relative is not None:
            try:
                fit = align_inverse_to_metric(relative, depth, surface, threshold=options.threshold)
            except InputError as error:
                warn(f"the relative depth is left out: {error.message}")
            else:
                depth = np.where(surface, merge_depths(depth, relative, fit), np.nan)
                alignment = describe_fit(fit)
        size = working_size(metric.shape[0], metric.shape[1], options.max_size)
        small, directions = nearest_resize(depth, size), _resize_normals(normals, size)
        fused = fuse_depth_normals(
            small,
            directions,
            camera.resized(size[1], size[0]),
            nearest_resize(surface, size),
            depth_noise=DEPTH_NOISE if options.depth_noise is None else options.depth_noise,
            normal_noise=options.normal_noise,
        ).depth
        fused = np.where(surface, resize_surface(fused, metric.shape), np.nan)
        return cls(
            fused=fused,
            metric=metric,
            normals=normals,
            relative=relative,
            sky=sky,
            camera=camera,
            photo=photo,
            alignment=alignment,
            options=options,
            **rest,
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], photo: Photo | None = None) -> ScenePrediction:
        """A scene that was saved to ``folder``; the photograph is not among the files and may be given.

        Raises:
            InputError: there is no complete scene in the folder.
        """
        folder = Path(folder)
        record = read_record(folder)
        if record is None or record.get("kind") != cls.kind:
            raise InputError(f"{folder} holds no scene", "give a folder that vision3d scene wrote")
        try:
            camera = json.loads((folder / "camera.json").read_text(encoding="utf-8"))
            description = json.loads((folder / "scene.json").read_text(encoding="utf-8"))
            maps = {
                name: np.load(folder / file) for name, file in _MAP_FILES.items() if (folder / file).is_file()
            }
            sky = maps.pop("sky", None)
            return cls(
                **maps,
                sky=sky,
                photo=photo,
                camera=Intrinsics.from_dict(camera),
                camera_source=camera["source"],
                covariance=None if camera["covariance"] is None else np.array(camera["covariance"]),
                alignment=description["alignment"],
                options=FusionOptions(**description["fusion"]),
                sources={name: _read_provenance(entry) for name, entry in description["sources"].items()},
                provenance=_read_provenance(record),
            )
        except DAMAGED as error:
            raise InputError(f"the scene in {folder} cannot be read ({error})", "make it again") from error

    # ------------------------------------------------------------------ using

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.fused.shape[0], self.fused.shape[1]

    def usable(self) -> np.ndarray:
        """(H, W) bool: where there is a surface."""
        with np.errstate(invalid="ignore"):
            return np.isfinite(self.fused) & (self.fused > 0)

    def fused_normals(self) -> np.ndarray:
        """(H, W, 3) float32 normals of the fused surface; zero where there is none."""
        from vision3d.geometry.normals import normals_from_depth

        return normals_from_depth(self.fused, self.intrinsics)

    def depth_sigma(self) -> float:
        """Relative standard deviation of a single depth, from how metric and fused depth differ from place to place."""
        there = (
            self.usable()
            & np.isfinite(self.metric)
            & (np.where(np.isfinite(self.metric), self.metric, 0) > 0)
        )
        if not there.any():
            return 0.0
        ratio = np.log(self.metric[there]) - np.log(self.fused[there])
        return 1.4826 * float(np.median(np.abs(ratio - np.median(ratio))))

    def point(self, pixel: tuple[float, float]) -> np.ndarray:
        """(3,) point in metres, camera axes, that is seen at ``pixel`` (x, y; pixel centres at +0.5).

        Raises:
            InputError: outside the image, or there is no surface.
        """
        x, y = (float(v) for v in pixel)
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"pixel ({x:g}, {y:g}) lies outside the image", f"it has {width}×{height} pixels"
            )
        z = float(self.fused[int(y), int(x)])
        if not (math.isfinite(z) and z > 0):
            raise InputError(f"there is no surface at pixel ({x:g}, {y:g})", "choose a point that is not sky")
        return self.intrinsics.unproject((x, y), z)

    def measure(self, start: tuple[float, float], end: tuple[float, float]) -> Measurement:
        """Distance in metres between what is seen at two pixels (x, y), and its standard deviation.

        Three errors are taken as independent: that of the metric scale, which both points share
        (``options.scale_noise``); that of either depth along its ray (:meth:`depth_sigma`); and that of the camera, if
        its covariance is known.

        Raises:
            InputError: as :meth:`point`.
        """
        p, q = self.point(start), self.point(end)
        distance = float(np.linalg.norm(q - p))
        noise = self.options.scale_noise
        variance = ((SCALE_NOISE if noise is None else noise) * distance) ** 2
        if distance > 0:
            direction = (q - p) / distance
            for point in (p, q):
                variance += (self.depth_sigma() * float(direction @ point)) ** 2
            if self.covariance is not None:
                slope = self._camera_slope(start, end, float(p[2]), float(q[2]))
                variance += float(slope @ np.asarray(self.covariance, np.float64) @ slope)
        return Measurement(distance, math.sqrt(max(variance, 0.0)), p, q)

    def _camera_slope(
        self, start: tuple[float, float], end: tuple[float, float], z0: float, z1: float
    ) -> np.ndarray:
        """(4,) derivative of the distance by fx, fy, cx, cy, depths held."""
        c = self.intrinsics
        x0, y0 = (start[0] - c.cx) / c.fx, (start[1] - c.cy) / c.fy
        x1, y1 = (end[0] - c.cx) / c.fx, (end[1] - c.cy) / c.fy
        gap = np.array([x1 * z1 - x0 * z0, y1 * z1 - y0 * z0, z1 - z0])
        distance = float(np.linalg.norm(gap))
        return np.array(
            [
                -gap[0] * gap[0] / c.fx,
                -gap[1] * gap[1] / c.fy,
                -gap[0] * (z1 - z0) / c.fx,
                -gap[1] * (z1 - z0) / c.fy,
            ]
        ) / max(distance, 1e-12)

    def colours(self) -> np.ndarray:
        """(H, W, 3) uint8: the photograph at the maps' size, or the depth's colours without one."""
        from vision3d.colour import colour_depth

        if self.photo is None:
            return colour_depth(self.fused, self.usable())
        return self.photo.shown_at(self.size)

    def mesh(self, limits: GeometryLimits | None = None) -> TriangleMesh:
        """Textured mesh in metres, OpenCV camera axes, without sky, cut at depth edges, without crumbs.

        Raises:
            InputError: nothing is left of it after cutting.
        """
        from vision3d.geometry.mesh import drop_crumbs, grid_mesh
        from vision3d.geometry.unproject import unproject_depth

        limits = limits or GeometryLimits()
        mesh = grid_mesh(
            unproject_depth(self.fused, self.intrinsics),
            self.usable(),
            max_vertices=limits.max_vertices,
            max_jump=limits.max_jump,
            max_incidence=limits.max_incidence,
        )
        mesh = drop_crumbs(mesh)
        mesh.texture = self.photo.rgb8 if self.photo is not None else self.colours()
        return mesh

    def points(self, max_points: int = GeometryLimits.max_points) -> PointCloud:
        """Coloured points with normals in metres, OpenCV camera axes; sky is left out."""
        from vision3d.geometry.points import grid_points
        from vision3d.geometry.unproject import unproject_depth

        there, normals = self.usable(), self.fused_normals()
        there &= np.square(normals).sum(-1) > 0.25
        cloud = grid_points(
            unproject_depth(self.fused, self.intrinsics), there, self.colours(), max_points=max_points
        )
        cloud.normals = grid_points(normals, there, max_points=max_points).positions
        return cloud

    def pictures(self) -> dict[str, np.ndarray]:
        """Every map as a picture (H, W, 3) uint8 of the maps' size: those it was fused from, and the fused depth."""
        from vision3d.colour import colour_depth, colour_normals

        metric_there = np.isfinite(self.metric) if self.sky is None else np.isfinite(self.metric) & ~self.sky
        relative = (
            {} if self.relative is None else {"relative depth": colour_depth(self.relative, inverse=True)}
        )
        return relative | {
            "metric depth": colour_depth(self.metric, metric_there),
            "normals": colour_normals(self.normals),
            "depth": colour_depth(self.fused, self.usable()),
        }

    def preview(self) -> Image.Image:
        """A sheet: photograph, relative and metric depth, normals, fused depth and its relief."""
        from vision3d.colour import contact_sheet, shade_normals

        titles = {
            "relative depth": "relative depth (near is red)",
            "depth": f"fused depth: {self._range_text()}",
        }
        panels = [("photograph", self.colours())] if self.photo is not None else []
        panels += [(titles.get(name, name), picture) for name, picture in self.pictures().items()]
        panels.append(("fused surface", shade_normals(self.fused_normals())))
        return contact_sheet(panels)

    def export(self, path: str | os.PathLike[str], limits: GeometryLimits | None = None) -> Path:
        """Write the scene as one file by its suffix: ``.glb`` or ``.obj`` (textured), ``.ply`` (mesh with colours).

        Raises:
            InputError: another suffix, or nothing is left of the mesh.
            OutputError: the file cannot be written.
        """
        from vision3d.io.files import atomic_path, output_errors, staged_folder
        from vision3d.io.mesh import write_glb, write_obj, write_ply

        path, limits = Path(path), limits or GeometryLimits()
        suffix = path.suffix.lower()
        if suffix not in (".glb", ".obj", ".ply"):
            raise InputError(
                f"{path}: no scene can be written as {suffix or 'a file without suffix'}",
                "use .glb, .obj or .ply",
            )
        mesh = self.mesh(limits)
        if suffix == ".obj":  # three files
            with output_errors(path), staged_folder(path.parent, last=path.name) as staging:
                write_obj(staging / path.name, mesh, max_texture=limits.max_texture)
            return path
        with atomic_path(path) as temporary:
            if suffix == ".glb":
                write_glb(
                    temporary,
                    mesh,
                    name="scene",
                    camera=self.intrinsics,
                    extras=self._glb_extras(),
                    max_texture=limits.max_texture,
                )
            else:
                write_ply(temporary, self._coloured(mesh), comments=(f"{_AXES}; m",))
        return path

    def _coloured(self, mesh: TriangleMesh) -> TriangleMesh:
        """The mesh with the colours of its vertices' pixels."""
        assert mesh.uv is not None
        height, width = self.size
        rows = np.clip((mesh.uv[:, 1] * height).astype(int), 0, height - 1)
        columns = np.clip((mesh.uv[:, 0] * width).astype(int), 0, width - 1)
        mesh.colours = self.colours()[rows, columns]
        return mesh

    def _glb_extras(self) -> dict[str, Any]:
        return {"unit": "m", "camera": "at the origin, looking along -z, y up"}

    # ------------------------------------------------------------------ files

    def writers(self, formats: tuple[str, ...], limits: GeometryLimits) -> dict[str, tuple[str, Writer]]:
        """See :class:`Prediction`."""
        from vision3d.io import depth as depth_files
        from vision3d.io import mesh as mesh_files
        from vision3d.io.normals import write_normals_png
        from vision3d.progress import warn

        there = self.usable()
        scaling = depth_files.png_scaling(self.fused, there, metric=True)
        files: dict[str, tuple[str, Writer]] = {
            "fused_depth.npy": (
                "z-depth of the fused surface in m, float32 (H, W), NaN where there is none",
                lambda path: write_npy(path, self.fused),
            ),
            "fused_depth.png": (
                "z-depth of the fused surface in m, 16 bits: value = offset + scale * number, 0 is no value",
                lambda path: depth_files.write_depth_png(path, self.fused, there, scaling, {"unit": "m"}),
            ),
            "metric_depth.npy": (
                "z-depth in m as the metric method gave it, float32 (H, W)",
                lambda path: write_npy(path, self.metric),
            ),
            "normals.npy": (
                f"unit normals, float32 (H, W, 3), {_AXES}, towards the camera, zero where there are none",
                lambda path: write_npy(path, self.normals),
            ),
            "normals.png": (
                f"16 bits per channel: n = number / 65535 * 2 - 1, {_AXES}, white where there are none",
                lambda path: write_normals_png(path, self.normals, np.square(self.normals).sum(-1) > 0.25),
            ),
        }
        if self.relative is not None:
            relative = self.relative
            files["relative_depth.npy"] = (
                "affine-invariant inverse depth, float32 (H, W), near is large",
                lambda path: write_npy(path, relative),
            )
        if self.sky is not None:
            sky = self.sky
            files["sky.npy"] = ("where there is sky, bool (H, W)", lambda path: write_npy(path, sky))
        files |= {
            "camera.json": (
                "intrinsics in pixels of the maps, with covariance",
                lambda path: _write_json(path, self._camera_entry()),
            ),
            "points.ply": (
                f"coloured points with normals, {_AXES}, m",
                lambda path: mesh_files.write_ply(
                    path, self.points(limits.max_points), comments=(f"{_AXES}; m",)
                ),
            ),
            "preview.png": ("all maps on one sheet", lambda path: self.preview().save(path)),
        }
        try:
            mesh = self.mesh(limits)
        except InputError as error:
            warn(f"no mesh for {self.photo.name if self.photo else 'this scene'}: {error.message}")
            mesh = None
        if mesh is not None:
            files |= self._mesh_writers(mesh, formats, limits)
        if "exr" in formats:
            files["fused_depth.exr"] = (
                "z-depth of the fused surface in m, 32-bit float, channel Y",
                lambda path: depth_files.write_exr(path, {"Y": self.fused}, {"unit": "m"}),
            )
        if "npz" in formats:
            files["scene.npz"] = ("all maps and K in one file", self._write_npz)
        files["scene.json"] = (
            "what the scene is made of",
            lambda path: _write_json(path, self.summary(mesh)),
        )
        return files

    def _mesh_writers(
        self, mesh: TriangleMesh, formats: tuple[str, ...], limits: GeometryLimits
    ) -> dict[str, tuple[str, Writer]]:
        from vision3d.io.mesh import write_glb, write_obj, write_ply

        files: dict[str, tuple[str, Writer]] = {
            "scene.glb": (
                "mesh textured by the photograph, y up, the camera looks along -z, m",
                lambda path: write_glb(
                    path,
                    mesh,
                    name="scene",
                    camera=self.intrinsics,
                    extras=self._glb_extras(),
                    max_texture=limits.max_texture,
                ),
            ),
            "scene.ply": (
                f"the same mesh with a colour at each vertex, {_AXES}, m",
                lambda path: write_ply(path, self._coloured(mesh), comments=(f"{_AXES}; m",)),
            ),
        }
        if "obj" in formats:
            files["scene.obj"] = (
                "the same mesh with its texture, y up, m",
                lambda path: write_obj(path, mesh, max_texture=limits.max_texture),
            )
        return files

    def _write_npz(self, path: Path) -> None:
        arrays = {"fused": self.fused, "metric": self.metric, "normals": self.normals, "K": self.intrinsics.K}
        for name in ("relative", "sky"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def _camera_entry(self) -> dict[str, Any]:
        camera, source = self.resolved_camera()
        return {
            **camera.to_dict(),
            "fov_x_degrees": camera.fov_x,
            "fov_y_degrees": camera.fov_y,
            "pixel_centres": "+0.5",
            "source": source,
            "order": ["fx", "fy", "cx", "cy"],
            "covariance": self.covariance,
        }

    def summary(self, mesh: TriangleMesh | None = None) -> dict[str, Any]:
        """Content of scene.json."""
        there = self.usable()
        values = self.fused[there]
        box = None if mesh is None else [mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)]
        return {
            "unit": "m",
            "axes": f"{_AXES}; GLB and OBJ: y up, the camera looks along -z",
            "width": self.size[1],
            "height": self.size[0],
            "camera": self._camera_entry(),
            "depth_range": [float(values.min()), float(values.max())] if values.size else None,
            "bounding_box": box,
            "surface_share": float(there.mean()),
            "sky_share": 0.0 if self.sky is None else float(self.sky.mean()),
            "mesh": None if mesh is None else {"vertices": len(mesh.vertices), "triangles": len(mesh.faces)},
            "alignment": self.alignment,
            "fusion": asdict(self.options),
            "depth_sigma": self.depth_sigma(),
            "sources": {name: asdict(source) for name, source in self.sources.items()},
        }

    def describe(self) -> dict[str, Any]:
        """See :class:`Prediction`."""
        content = self.summary()
        kept = (
            "unit",
            "depth_range",
            "surface_share",
            "sky_share",
            "alignment",
            "fusion",
            "depth_sigma",
            "sources",
        )
        return {
            **{name: content[name] for name in kept},
            "conventions": {
                "values": "z along the optical axis",
                "camera_axes": content["axes"],
                "geometry": "metres",
            },
        }

    def _range_text(self) -> str:
        values = self.fused[self.usable()]
        return f"{values.min():.2f} … {values.max():.2f} m" if values.size else "no surface"

    def __repr__(self) -> str:
        height, width = self.size
        camera, source = self.resolved_camera()
        return (
            f"{type(self).__name__} {width}×{height}: {self._range_text()}, "
            f"{camera.fov_x:.0f}° × {camera.fov_y:.0f}° view ({source}); by {self.provenance.method} "
            f"({self.provenance.weights})"
        )


_MAP_FILES = {
    "fused": "fused_depth.npy",
    "metric": "metric_depth.npy",
    "normals": "normals.npy",
    "relative": "relative_depth.npy",
    "sky": "sky.npy",
}


def describe_fit(fit: RobustFit) -> dict[str, float]:
    """The numbers of an alignment."""
    return {
        "scale": fit.affine.scale,
        "shift": fit.affine.shift,
        "inlier_share": fit.inlier_share,
        "spread": fit.spread,
        "threshold": fit.threshold,
    }


def working_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) scaled down to a longest side of at most ``longest``."""
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def nearest_resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest samples (half-pixel centres): no mixture of two depths, nor of a class and another."""
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(np.int64), m - 1)
        for n, m in zip(size, values.shape[:2], strict=True)
    )
    return values[np.ix_(rows, columns)]


def _resize_normals(normals: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if normals.shape[:2] == tuple(size):
        return normals
    import cv2

    small = cv2.resize(np.asarray(normals, np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    length = np.linalg.norm(small, axis=-1, keepdims=True)
    return np.where(length > 0.5, small / np.where(length > 0.5, length, 1), 0)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(json_bytes(plain(content)))


def _read_provenance(entry: dict[str, Any]) -> Provenance:
    return Provenance(
        entry["method"],
        entry["weights"],
        entry["weights_sha256"],
        entry["settings"],
        entry["seed"],
        entry["version"],
    )
