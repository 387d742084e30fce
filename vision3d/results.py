"""What pipelines return: arrays with their convention and provenance, which save and show themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.io.files import write_npy
from vision3d.prediction import (
    RECORD,
    GeometryLimits,
    Prediction,
    Provenance,
    Writer,
    is_complete,
    read_record,
)

if TYPE_CHECKING:
    from PIL import Image

    from vision3d.geometry.mesh import TriangleMesh
    from vision3d.geometry.points import PointCloud

__all__ = [
    "RECORD",
    "CameraPrediction",
    "DepthPrediction",
    "DepthSpace",
    "GeometryLimits",
    "Intrinsics",
    "NormalPrediction",
    "Prediction",
    "Provenance",
    "is_complete",
    "read_record",
]

DepthSpace = Literal["affine-invariant inverse depth", "affine-invariant depth", "metric depth"]
# Affine-invariant depth has no scale and no shift. To look at it in 3D it is spread over this range (nearest
# 1, farthest 10 units), which suits rooms and streets alike; nothing can be measured in it.
VIEWING_RANGE = (1.0, 10.0)
_VIEWING_NOTE = "values spread over z = {:g} … {:g} to look at; not metric".format(*VIEWING_RANGE)


@dataclass(eq=False, repr=False)
class DepthPrediction(Prediction):
    """A depth map of one photograph.

    Attributes:
        depth: (H, W) float32, in the method's own space.
        space: what the numbers are. In "affine-invariant inverse depth", ``1 / z ≈ scale * depth + shift``
            with unknown scale > 0 and shift (near is large); in "affine-invariant depth", ``z ≈ scale * depth
            + shift``; "metric depth" is z-depth along the optical axis.
        unit: "m" for metric depth, else None.
        valid: (H, W) bool, or None if every pixel is.
        segmentation: (H, W) uint8 class indices (255: none), or None.

    Raises:
        InputError: shapes or space that do not fit.
    """

    kind: ClassVar[str] = "depth"
    formats: ClassVar[tuple[str, ...]] = ("exr", "npz", "obj")

    depth: np.ndarray
    space: DepthSpace
    unit: str | None = None
    valid: np.ndarray | None = None
    segmentation: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.depth = np.ascontiguousarray(self.depth, dtype=np.float32)
        if self.depth.ndim != 2 or 0 in self.depth.shape:
            raise InputError(f"depth of shape {self.depth.shape}", "give an array of shape (H, W)")
        if self.space not in get_args(DepthSpace):
            raise InputError(f"depth space {self.space!r}", f"use one of: {', '.join(get_args(DepthSpace))}")
        if self.space == "metric depth" and self.unit is None:
            self.unit = "m"
        for name in ("valid", "segmentation"):
            other = getattr(self, name)
            if other is not None and other.shape != self.depth.shape:
                raise InputError(
                    f"{name} of shape {other.shape} with depth of shape {self.depth.shape}", "resize it"
                )
        if self.camera is not None and (self.camera.height, self.camera.width) != self.size:
            raise InputError(
                f"a camera for {self.camera} with depth of shape {self.depth.shape}", "resize the camera"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.depth.shape[0], self.depth.shape[1]

    @property
    def stem(self) -> str:
        """Name of its files: metric depth is told from depth of unknown unit by name, too."""
        return "metric_depth" if self.space == "metric depth" else "depth"

    @property
    def is_inverse(self) -> bool:
        """Whether near is large."""
        return self.space == "affine-invariant inverse depth"

    def usable(self) -> np.ndarray:
        """(H, W) bool: valid and finite; in metric depth also positive (infinite depth is sky)."""
        there = np.isfinite(self.depth)
        if self.valid is not None:
            there &= self.valid.astype(bool)
        return there & (self.depth > 0) if self.space == "metric depth" else there

    def normalised(self) -> np.ndarray:
        """(H, W) float32: the method's own values, least 0 and greatest 1; NaN where unusable."""
        there = self.usable()
        if not there.any():
            return np.full(self.size, np.nan, np.float32)
        low, high = float(self.depth[there].min()), float(self.depth[there].max())
        spread = (high - low) or 1.0
        return np.where(there, (self.depth - np.float32(low)) / np.float32(spread), np.nan).astype(np.float32)

    def to_depth(self) -> np.ndarray:
        """(H, W) float32 positive z-depth to build geometry from; NaN where unusable.

        Metric depth is returned as it is. Affine-invariant results are spread over :data:`VIEWING_RANGE`
        (inverse depth is spread between the inverses of its ends): plausible to look at, never metric.
        """
        if self.space == "metric depth":
            return np.where(self.usable(), self.depth, np.nan).astype(np.float32)
        near, far = VIEWING_RANGE
        share = self.normalised()
        if self.is_inverse:
            return 1 / (share * np.float32(1 / near - 1 / far) + np.float32(1 / far))
        return share * np.float32(far - near) + np.float32(near)

    def colours(self) -> np.ndarray:
        """(H, W, 3) uint8: the photograph at the result's size, or the depth's colours without one."""
        from vision3d.colour import colour_depth

        if self.photo is None:
            return colour_depth(self.depth, self.usable(), inverse=self.is_inverse)
        return self.photo.shown_at(self.size)

    def points(self, max_points: int = GeometryLimits.max_points) -> PointCloud:
        """Coloured points in OpenCV camera axes, in metres for metric depth, else for looking at only."""
        from vision3d.geometry.points import grid_points
        from vision3d.geometry.unproject import unproject_depth

        points = unproject_depth(self.to_depth(), self.resolved_camera()[0])
        return grid_points(points, self.usable(), self.colours(), max_points=max_points)

    def mesh(self, limits: GeometryLimits | None = None) -> TriangleMesh:
        """Mesh in OpenCV camera axes, cut at depth edges and textured by the photograph.

        Raises:
            InputError: nothing is left of it after cutting.
        """
        from vision3d.geometry.mesh import grid_mesh
        from vision3d.geometry.unproject import unproject_depth

        limits = limits or GeometryLimits()
        mesh = grid_mesh(
            unproject_depth(self.to_depth(), self.resolved_camera()[0]),
            self.usable(),
            max_vertices=limits.max_vertices,
            max_jump=limits.max_jump,
            max_incidence=limits.max_incidence,
        )
        mesh.texture = self.photo.rgb8 if self.photo is not None else self.colours()
        return mesh

    def preview(self) -> Image.Image:
        """The photograph beside its depth in Spectral colours (near is red) and its segmentation, if any."""
        from vision3d.colour import colour_depth, colour_labels, side_by_side

        panels = [self.colours()] if self.photo is not None else []
        panels.append(colour_depth(self.depth, self.usable(), inverse=self.is_inverse))
        if self.segmentation is not None:
            panels.append(colour_labels(self.segmentation))
        return side_by_side(panels)

    def writers(self, formats: tuple[str, ...], limits: GeometryLimits) -> dict[str, tuple[str, Writer]]:
        """See :class:`Prediction`."""
        from vision3d.io import depth as depth_files
        from vision3d.io import mesh as mesh_files

        unit = f" in {self.unit}" if self.unit else ""
        stem = self.stem
        text = {"space": self.space, **({"unit": self.unit} if self.unit else {})}
        scaling = self._png_scaling()
        axes = "OpenCV camera axes (x right, y down, z forward)"
        scale = f"{self.unit}" if self.unit else "scale for looking at only, not metric"

        def write_points(path: Path) -> None:
            cloud = self.points(limits.max_points)
            mesh_files.write_ply(path, cloud, comments=(f"{axes}; {scale}",))

        files: dict[str, tuple[str, Writer]] = {
            f"{stem}.npy": (f"{self.space}{unit}, float32 (H, W)", lambda path: write_npy(path, self.depth)),
            f"{stem}.png": (
                f"{self.space}{unit}, 16 bits: value = offset + scale * number, 0 is no value",
                lambda path: depth_files.write_depth_png(path, self.depth, self.usable(), scaling, text),
            ),
            "preview.png": (
                "photograph beside its depth, near is red",
                lambda path: self.preview().save(path),
            ),
            "points.ply": (f"coloured points, {axes}, {scale}", write_points),
        }
        if self.segmentation is not None:
            labels = self.segmentation
            files["segmentation.png"] = (
                "class indices, 255 is none",
                lambda path: _write_labels(path, labels),
            )
        files |= self._mesh_writers(formats, limits, scale)
        if "exr" in formats:
            files[f"{stem}.exr"] = (
                f"{self.space}{unit}, 32-bit float, channel Y",
                lambda path: depth_files.write_exr(path, {"Y": self.depth}, text),
            )
        if "npz" in formats:
            files[f"{stem}.npz"] = ("depth, valid, K and space in one file", self._write_npz)
        return files

    def _mesh_writers(
        self, formats: tuple[str, ...], limits: GeometryLimits, scale: str
    ) -> dict[str, tuple[str, Writer]]:
        from vision3d.io.mesh import write_glb, write_obj

        try:
            mesh = self.mesh(limits)
        except InputError as error:
            from vision3d.progress import warn

            warn(f"no mesh for {self.photo.name if self.photo else 'this result'}: {error.message}")
            return {}
        camera = self.resolved_camera()[0]
        extras = {"space": self.space, "scale": scale, "camera": "at the origin, looking along -z, y up"}
        axes = "y up, the camera looks along -z"
        files: dict[str, tuple[str, Writer]] = {
            "mesh.glb": (
                f"mesh textured by the photograph, {axes}, {scale}",
                lambda path: write_glb(
                    path, mesh, name="depth", camera=camera, extras=extras, max_texture=limits.max_texture
                ),
            )
        }
        if "obj" in formats:
            files["mesh.obj"] = (
                f"the same mesh, {axes}",
                lambda path: write_obj(path, mesh, max_texture=limits.max_texture),
            )
        return files

    def _png_scaling(self) -> Any:
        from vision3d.io.depth import png_scaling

        return png_scaling(self.depth, self.usable(), metric=self.space == "metric depth")

    def _write_npz(self, path: Path) -> None:
        arrays = {"depth": self.depth, "valid": self.usable(), "K": self.resolved_camera()[0].K}
        if self.segmentation is not None:
            arrays["segmentation"] = self.segmentation
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays, space=np.array(self.space))  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        """See :class:`Prediction`."""
        scaling = self._png_scaling()
        meaning = {
            "affine-invariant inverse depth": "1/z = scale * value + shift, scale > 0; near is large",
            "affine-invariant depth": "z = scale * value + shift, scale > 0; near is small",
            "metric depth": "z along the optical axis",
        }[self.space]
        there = self.usable()
        return {
            "space": self.space,
            "unit": self.unit,
            "range": [float(self.depth[there].min()), float(self.depth[there].max())]
            if there.any()
            else None,
            "valid_share": float(there.mean()),
            "depth_png": {"scale": scaling.scale, "offset": scaling.offset, "no_value": 0},
            "conventions": {
                "values": meaning,
                "camera_axes": "OpenCV: x right, y down, z forward; GLB and OBJ: y up, looking along -z",
                "geometry": "metres" if self.unit == "m" else _VIEWING_NOTE,
            },
        }

    def __repr__(self) -> str:
        height, width = self.size
        there = self.usable()
        values = self.depth[there]
        span = f"{values.min():.3g} … {values.max():.3g}" if values.size else "no valid pixel"
        camera, source = self.resolved_camera()
        return (
            f"DepthPrediction {width}×{height}: {self.space}{f' in {self.unit}' if self.unit else ''}, "
            f"{span}; by {self.provenance.method} ({self.provenance.weights}); "
            f"{camera.fov_x:.0f}° × {camera.fov_y:.0f}° view ({source})"
        )


@dataclass(eq=False, repr=False)
class NormalPrediction(Prediction):
    """Surface normals of one photograph.

    Attributes:
        normals: (H, W, 3) float32, unit vectors in OpenCV camera axes (x right, y down, z forward), pointing to the
            camera's side of the surface; zero where invalid.
        valid: (H, W) bool, or None if every pixel is.
        uncertainty: (H, W) float32, degrees between an ensemble's members and their mean, or None.
        file_frame: frame that files are written in: one of ``vision3d.geometry.normals.FRAMES``, or "world".
        pose: (4, 4) camera-to-world, needed for the frame "world".
        effective: what the method did in numbers, defaults filled in, for the record.

    Raises:
        InputError: shapes or frame that do not fit.
    """

    kind: ClassVar[str] = "normals"
    formats: ClassVar[tuple[str, ...]] = ("exr", "png8", "npz")

    normals: np.ndarray
    valid: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    file_frame: str = "opencv"
    pose: np.ndarray | None = None
    effective: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        from vision3d.geometry.normals import FRAMES

        self.normals = np.ascontiguousarray(self.normals, dtype=np.float32)
        if self.normals.ndim != 3 or self.normals.shape[-1] != 3 or 0 in self.normals.shape:
            raise InputError(f"normals of shape {self.normals.shape}", "give an array of shape (H, W, 3)")
        for name in ("valid", "uncertainty"):
            other = getattr(self, name)
            if other is not None and other.shape != self.size:
                raise InputError(f"{name} of shape {other.shape} with normals of {self.size}", "resize it")
        if self.valid is not None:
            self.valid = self.valid.astype(bool)
            self.normals = np.where(self.valid[..., None], self.normals, np.float32(0))
        if self.file_frame != "world" and self.file_frame not in FRAMES:
            raise InputError(
                f"no frame is called {self.file_frame!r}", f"choose from {', '.join([*FRAMES, 'world'])}"
            )
        if self.file_frame == "world" and self.pose is None:
            raise InputError("normals in world axes without a pose", "give the camera-to-world matrix")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.normals.shape[0], self.normals.shape[1]

    def usable(self) -> np.ndarray:
        """(H, W) bool: valid and not zero."""
        there = np.square(self.normals).sum(-1) > 0.25
        return there if self.valid is None else there & self.valid

    def in_frame(self, frame: str, pose: np.ndarray | None = None) -> np.ndarray:
        """(H, W, 3) float32 normals in another frame, "world" with a camera-to-world pose (the result's own).

        Raises:
            InputError: no such frame, or no pose.
        """
        from vision3d.geometry.normals import convert_normals, rotate_normals

        if frame != "world":
            return convert_normals(self.normals, "opencv", frame)
        pose = self.pose if pose is None else pose
        if pose is None:
            raise InputError("normals in world axes without a pose", "give the camera-to-world matrix")
        return rotate_normals(self.normals, pose)

    def preview(self) -> Image.Image:
        """The photograph beside its normals (red to the right, green up, blue to the camera) and uncertainty."""
        from vision3d.colour import colour_normals, colour_uncertainty, side_by_side

        panels = [] if self.photo is None else [self.photo.shown_at(self.size)]
        panels.append(colour_normals(self.normals))
        if self.uncertainty is not None:
            panels.append(colour_uncertainty(self.uncertainty, self.usable()))
        return side_by_side(panels)

    def writers(self, formats: tuple[str, ...], limits: GeometryLimits) -> dict[str, tuple[str, Writer]]:
        """See :class:`Prediction`."""
        from vision3d.io import normals as files_of
        from vision3d.io.depth import write_exr

        field, there = self.in_frame(self.file_frame), self.usable()
        frame = f"frame {self.file_frame}"
        files: dict[str, tuple[str, Writer]] = {
            "normals.npy": (
                f"unit normals, float32 (H, W, 3), {frame}, zero where invalid",
                lambda path: write_npy(path, field),
            ),
            "normals.png": (
                f"16 bits per channel: n = number / 65535 * 2 - 1, {frame}, white where invalid",
                lambda path: files_of.write_normals_png(path, field, there),
            ),
            "preview.png": (
                "photograph beside its normals: red to the right, green up, blue to the camera",
                lambda path: self.preview().save(path),
            ),
        }
        if self.uncertainty is not None:
            uncertainty = self.uncertainty
            files["uncertainty.npy"] = (
                "degrees between the ensemble's members and their mean, float32 (H, W)",
                lambda path: write_npy(path, uncertainty),
            )
        if "exr" in formats:
            channels = {name: field[..., i] for i, name in enumerate("RGB")}
            files["normals.exr"] = (
                f"x, y, z in R, G, B, 32-bit float, {frame}",
                lambda path: write_exr(path, channels, {"frame": self.file_frame}),
            )
        if "png8" in formats:
            files["normals8.png"] = (
                f"8 bits per channel, truncated as published: (n + 1) / 2 * 255, {frame}, white where invalid",
                lambda path: files_of.write_normals_png8(path, field, there),
            )
        if "npz" in formats:
            files["normals.npz"] = (
                "normals, valid and K in one file",
                lambda path: self._write_npz(path, field),
            )
        return files

    def _write_npz(self, path: Path, field: np.ndarray) -> None:
        arrays = {"normals": field, "valid": self.usable(), "K": self.resolved_camera()[0].K}
        if self.uncertainty is not None:
            arrays["uncertainty"] = self.uncertainty
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays, frame=np.array(self.file_frame))  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        """See :class:`Prediction`."""
        axes = {
            "opencv": "x right, y down, z forward (into the scene)",
            "opengl": "x right, y up, z to the viewer",
            "marigold": "x right, y up, z to the viewer",
            "directx": "x right, y down, z to the viewer",
            "stablenormal": "x left, y up, z to the viewer",
            "world": "the world axes of the given camera-to-world pose",
        }[self.file_frame]
        return {
            "frame": self.file_frame,
            "unit": "unit vectors",
            "valid_share": float(self.usable().mean()),
            "mean_uncertainty_degrees": None
            if self.uncertainty is None
            else float(self.uncertainty[self.usable()].mean())
            if self.usable().any()
            else None,
            "pose": self.pose,
            "effective_settings": self.effective,
            "conventions": {"axes": axes, "preview": "red to the right, green up, blue to the camera"},
        }

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"NormalPrediction {width}×{height}: unit normals in OpenCV camera axes, "
            f"{100 * float(self.usable().mean()):.0f} % of pixels; by {self.provenance.method} "
            f"({self.provenance.weights})"
        )


@dataclass(eq=False, repr=False)
class CameraPrediction(Prediction):
    """The intrinsics of one photograph, and its metric depth if that was asked for.

    ``camera`` holds the intrinsics for the photograph as it was given, whatever the size it was processed at.

    Attributes:
        covariance: (4, 4) of (fx, fy, cx, cy) in pixels² of the photograph, or None where it is not known.
        inlier_ratio: share of the predicted rays that agree with the camera, in [0, 1].
        samples: (E, 4) fx, fy, cx, cy of each sample of the ensemble, in pixels of the photograph, or None.
        camera_image: (3, h, w) float32 in [0, 1], what the network predicted, without padding; or None.
        depth: metric depth, or None.
        depth_noise: relative error of the depth, as its weights state it, or None.
        shared_by: number of photographs that share this camera.

    Raises:
        InputError: no camera, or a covariance or depth that does not fit it.
    """

    kind: ClassVar[str] = "camera"
    formats: ClassVar[tuple[str, ...]] = DepthPrediction.formats

    covariance: np.ndarray | None = None
    inlier_ratio: float = 1.0
    samples: np.ndarray | None = None
    camera_image: np.ndarray | None = None
    depth: DepthPrediction | None = None
    depth_noise: float | None = None
    shared_by: int = 1

    def __post_init__(self) -> None:
        if self.camera is None:
            raise InputError("a camera prediction without a camera", "give camera=Intrinsics(...)")
        if self.covariance is not None and np.shape(self.covariance) != (4, 4):
            raise InputError(
                f"covariance of shape {np.shape(self.covariance)}", "give (4, 4) of fx, fy, cx, cy"
            )
        if self.depth is not None and self.depth.size != self.size:
            raise InputError(
                f"depth of {self.depth.size[1]}×{self.depth.size[0]} with a camera for {self.camera}",
                "resize one of them",
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the photograph."""
        return self.intrinsics.height, self.intrinsics.width

    @property
    def sigma(self) -> np.ndarray | None:
        """(4,) standard deviations of fx, fy, cx, cy in pixels, or None."""
        if self.covariance is None:
            return None
        return np.sqrt(np.clip(np.diag(self.covariance), 0, None))

    @property
    def exif(self) -> Intrinsics | None:
        """What the photograph's EXIF says of the focal length, as a camera with its centre in the middle."""
        if self.photo is None or not self.photo.focal_px:
            return None
        height, width = self.photo.size
        return Intrinsics.from_focal(self.photo.focal_px, width, height)

    def to_dict(self) -> dict[str, Any]:
        """Content of camera.json: all lengths in pixels of the photograph, pixel centres at +0.5."""
        camera, sigma, exif = self.intrinsics, self.sigma, self.exif
        return {
            **camera.to_dict(),
            "fov_x_degrees": camera.fov_x,
            "fov_y_degrees": camera.fov_y,
            "pixel_centres": "+0.5",
            "order": ["fx", "fy", "cx", "cy"],
            "covariance": None if self.covariance is None else np.asarray(self.covariance).tolist(),
            "sigma": None if sigma is None else sigma.tolist(),
            "inlier_ratio": float(self.inlier_ratio),
            "samples": None if self.samples is None else np.asarray(self.samples).tolist(),
            "shared_by": self.shared_by,
            **({} if self.depth is None or self.depth_noise is None else {"depth_noise": self.depth_noise}),
            "exif": None
            if exif is None
            else {
                "focal_px": exif.fx,
                "fov_x_degrees": exif.fov_x,
                "estimate_relative_to_exif": camera.fx / exif.fx,
            },
        }

    def summary(self) -> str:
        """One line: the angles of view, the focal length with its uncertainty, and EXIF's beside it."""
        camera, sigma, exif = self.intrinsics, self.sigma, self.exif
        spread = "" if sigma is None else f" ± {sigma[0]:.0f}"
        text = (
            f"{camera.fov_x:.1f}° × {camera.fov_y:.1f}°, fx {camera.fx:.0f}{spread} px, fy {camera.fy:.0f} px, "
            f"centre ({camera.cx:.0f}, {camera.cy:.0f}) of {camera.width}×{camera.height}"
        )
        if exif is None:
            return f"{text}; no focal length in EXIF"
        return f"{text}; EXIF: {exif.fx:.0f} px, {exif.fov_x:.1f}° ({camera.fx / exif.fx - 1:+.1%} to it)"

    def preview(self) -> Image.Image:
        """The photograph, the predicted Camera Image, and the depth, side by side."""
        from PIL import Image as pil

        from vision3d.colour import colour_depth, side_by_side

        height, width = self.size
        panels = [self.photo.on_white] if self.photo is not None else []
        if self.camera_image is not None:
            picture = np.round(255 * np.clip(self.camera_image, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
            panels.append(np.asarray(pil.fromarray(picture).resize((width, height))))
        if self.depth is not None:
            panels.append(colour_depth(self.depth.depth, self.depth.usable(), inverse=False))
        if not panels:
            panels.append(np.full((height, width, 3), 127, np.uint8))
        return side_by_side(panels)

    def writers(self, formats: tuple[str, ...], limits: GeometryLimits) -> dict[str, tuple[str, Writer]]:
        """See :class:`Prediction`; with depth also everything that metric depth writes."""
        from vision3d.io.files import json_bytes
        from vision3d.prediction import plain

        def write_camera(path: Path) -> None:
            path.write_bytes(json_bytes(plain(self.to_dict())))

        files = {} if self.depth is None else self.depth.writers(formats, limits)
        files |= {
            "camera.json": ("intrinsics of the photograph in pixels, with covariance", write_camera),
            "preview.png": (
                "photograph, predicted Camera Image, and depth if there is one",
                lambda path: self.preview().save(path),
            ),
        }
        return files

    def describe(self) -> dict[str, Any]:
        """See :class:`Prediction`."""
        content = self.to_dict()
        said = ("covariance", "sigma", "inlier_ratio", "shared_by", "exif")
        described: dict[str, Any] = {"calibration": {name: content[name] for name in said}}
        if self.depth is not None:
            described |= self.depth.describe()
        return described

    def __repr__(self) -> str:
        depth = "" if self.depth is None else ", with metric depth"
        return f"CameraPrediction: {self.summary()}{depth}; by {self.provenance.method} ({self.provenance.weights})"


def _write_labels(path: Path, labels: np.ndarray) -> None:
    """8-bit palette PNG: the numbers are the classes, a viewer shows colours."""
    from PIL import Image

    from vision3d.colour import label_palette

    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(label_palette().tobytes())  # makes the grey image a palette one
    image.save(path)
