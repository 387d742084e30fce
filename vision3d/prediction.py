"""The base of all results: provenance, the record beside the files, saving that is all or nothing.

Every result type derives from :class:`Prediction` and only declares what its files are; writing them so that
they are either complete or absent, listing them with checksums in ``result.json``, and telling later whether
a folder is complete is done once, here.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vision3d.camera import ASSUMED_FOV_DEGREES, Intrinsics
from vision3d.errors import InputError, OutputError, check_seed
from vision3d.io.files import json_bytes, sha256_file, staged_folder

if TYPE_CHECKING:
    from PIL import Image

    from vision3d.io.images import Photo

RECORD = "result.json"
RECORD_FORMAT = 1
Writer = Callable[[Path], None]


def _version() -> str:
    from vision3d import __version__

    return __version__


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from; no dates, so that equal runs give equal files.

    Attributes:
        method: name of the method, e.g. "PrimeDepth".
        weights: name or source of its weights, e.g. "mini (embedded)".
        weights_sha256: checksum of their tensors or files.
        settings: everything that changes the result.
        seed: of the random numbers, or None if there are none.
        version: of vision3d.
        remarks: what happened to this result alone, such as tiles for want of memory; no part of the fingerprint.
    """

    method: str
    weights: str
    weights_sha256: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    version: str = field(default_factory=_version)
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seed is not None:
            check_seed(self.seed)

    def fingerprint(self, photo: Photo | None) -> str:
        """Checksum of all that decides the result: method, weights, settings, seed, the photo and its lens.

        Known before the method runs. The version is not part of it: an update does not redo finished work.
        """
        subject = [self.method, self.weights, self.weights_sha256, plain(self.settings), self.seed]
        if photo is not None:
            subject += [photo.sha256, photo.focal_px]
        return hashlib.sha256(json.dumps([RECORD_FORMAT, *subject], sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """What JSON can hold: arrays and tuples as lists; paths, dtypes, NaN and infinity as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [
            plain(item) for item in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)
        ]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


@dataclass(frozen=True)
class GeometryLimits:
    """How large and how clean the points and meshes of a result get.

    Attributes:
        max_points: points.ply is thinned evenly to at most so many points.
        max_vertices: mesh.glb is thinned evenly to at most so many vertices.
        max_texture: longest side of the mesh's texture, in pixels.
        max_jump: relative depth step, beyond that of the surface, at which the mesh is cut.
        max_incidence: angle in degrees between surface normal and view at which the mesh is cut.
    """

    max_points: int = 1_000_000
    max_vertices: int = 250_000
    max_texture: int = 4096
    max_jump: float = 0.05
    max_incidence: float = 85.0


@dataclass(eq=False)
class Prediction(ABC):
    """Base of all results of a photograph.

    A result type names its ``kind`` and the ``formats`` it knows beyond its standard files, and implements
    :meth:`writers`, :meth:`describe` and :meth:`preview`.

    Attributes:
        photo: the photograph, or None.
        camera: its intrinsics for the size of the result if the method found or was given them, else None.
        provenance: where the result comes from.
    """

    kind: ClassVar[str]
    formats: ClassVar[tuple[str, ...]] = ()

    photo: Photo | None = field(default=None, kw_only=True)
    camera: Intrinsics | None = field(default=None, kw_only=True)
    camera_source: str | None = field(default=None, kw_only=True)
    provenance: Provenance = field(default_factory=lambda: Provenance("unknown", "unknown"), kw_only=True)

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""

    @abstractmethod
    def writers(self, formats: tuple[str, ...], limits: GeometryLimits) -> dict[str, tuple[str, Writer]]:
        """File name → (what it holds, function that writes it, and perhaps further files beside it)."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What result.json says of this kind of result: conventions, units, scales."""

    @abstractmethod
    def preview(self) -> Image.Image:
        """A picture that a person can judge the result by."""

    @property
    def intrinsics(self) -> Intrinsics:
        """The camera, of a result that always has one."""
        assert self.camera is not None
        return self.camera

    def resolved_camera(self) -> tuple[Intrinsics, str]:
        """The camera for geometry and where it comes from: the result, EXIF, or an assumed angle of view."""
        height, width = self.size
        if self.camera is not None:
            return self.camera, self.camera_source or "given with the result"
        if self.photo is not None and self.photo.focal_px:
            h, w = self.photo.size
            return Intrinsics.from_focal(self.photo.focal_px, w, h).resized(
                width, height
            ), "EXIF focal length"
        assumption = f"assumed: {ASSUMED_FOV_DEGREES:g}° field of view along the longer side"
        return Intrinsics.assumed(width, height), assumption

    @property
    def fingerprint(self) -> str:
        """See :meth:`Provenance.fingerprint`."""
        return self.provenance.fingerprint(self.photo)

    def save(
        self,
        folder: str | os.PathLike[str],
        formats: Iterable[str] = (),
        *,
        limits: GeometryLimits | None = None,
    ) -> list[Path]:
        """Write all files of the result into ``folder``, in place of those of an earlier result of this kind.

        Everything is written to a hidden folder first; ``result.json`` comes last and marks a complete
        result.

        Args:
            folder: made if it is not there.
            formats: further formats, see the class's ``formats``.
            limits: sizes of points and meshes.

        Returns:
            The files, ``result.json`` last.

        Raises:
            InputError: an unknown format.
            OutputError: the folder cannot be written, or holds a result of another kind.
        """
        folder = Path(folder)
        wanted = tuple(dict.fromkeys(f.lower().lstrip(".") for f in formats))
        for name in wanted:
            if name not in self.formats:
                raise InputError(f"format {name!r} for {self.kind}", f"choose from {', '.join(self.formats)}")
        earlier = refuse_other_kind(folder, self.kind)
        with staged_folder(folder, last=RECORD) as staging:
            meanings = {}
            for name, (meaning, write) in self.writers(wanted, limits or GeometryLimits()).items():
                write(staging / name)
                meanings[name] = meaning
            record = self._record(staging, meanings, wanted)
            (staging / RECORD).write_bytes(json_bytes(record))
        for name in set((earlier or {}).get("files", {})) - set(record["files"]):
            if Path(name).name == name:  # never follow a damaged record out of the folder
                (folder / name).unlink(missing_ok=True)
        return [*(folder / name for name in record["files"]), folder / RECORD]

    def _record(self, staging: Path, meanings: dict[str, str], formats: tuple[str, ...]) -> dict[str, Any]:
        camera, source = self.resolved_camera()
        files = {}
        beside = sorted(path.name for path in staging.iterdir() if path.name not in meanings)
        for name in [*meanings, *beside]:
            path = staging / name
            files[name] = {
                "what": meanings.get(name, "belongs to the files above"),
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
        p = self.provenance
        return plain(
            {
                "format": RECORD_FORMAT,
                "kind": self.kind,
                "method": p.method,
                "weights": p.weights,
                "weights_sha256": p.weights_sha256,
                "settings": p.settings,
                "seed": p.seed,
                "version": p.version,
                **({"remarks": p.remarks} if p.remarks else {}),
                "input": _describe_photo(self.photo),
                "width": self.size[1],
                "height": self.size[0],
                **self.describe(),
                "camera": {
                    **camera.to_dict(),
                    "fov_x_degrees": camera.fov_x,
                    "fov_y_degrees": camera.fov_y,
                    "pixel_centres": "+0.5",
                    "source": source,
                },
                "fingerprint": self.fingerprint,
                "formats": list(formats),
                "files": files,
            }
        )

    def show(self) -> None:
        """Look at it in 3D: in a notebook below the cell, else in the browser (see :mod:`vision3d.viewer`)."""
        from importlib import import_module

        # By name, as the command line finds its verbs: the viewer stands above this module.
        import_module("vision3d.viewer").show(self)

    def _repr_png_(self) -> bytes:
        """Notebooks show a result as its preview."""
        import io

        buffer = io.BytesIO()
        self.preview().save(buffer, "PNG")
        return buffer.getvalue()


def _describe_photo(photo: Photo | None) -> dict[str, Any] | None:
    if photo is None:
        return None
    height, width = photo.size
    return {
        "name": photo.path.name if photo.path else photo.name,
        "width": width,
        "height": height,
        "pixels_sha256": photo.sha256,
        "exif_focal_px": photo.focal_px,
        "truncated": photo.truncated,
    }


def read_record(folder: str | os.PathLike[str], name: str = RECORD) -> dict[str, Any] | None:
    """The ``result.json`` (or another record) of a folder, or None if there is none that can be read."""
    try:
        record = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def refuse_other_kind(folder: str | os.PathLike[str], kind: str) -> dict[str, Any] | None:
    """The record of an earlier result of this kind in a folder, or None if there is no result.

    Raises:
        OutputError: there is one of another kind, which must not be mixed with this one.
    """
    earlier = read_record(folder)
    if earlier is not None and earlier.get("kind") != kind:
        raise OutputError(
            f"{folder} already holds a result of kind {earlier.get('kind')!r}", "choose another output folder"
        )
    return earlier


def is_complete(folder: str | os.PathLike[str], fingerprint: str, formats: Iterable[str] = ()) -> bool:
    """Whether ``folder`` holds a finished result of exactly this work, with every file as it was written.

    Args:
        folder: output folder of one input.
        fingerprint: of the work, see :meth:`Provenance.fingerprint`.
        formats: formats wanted beyond the standard files.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record is None or record.get("format") != RECORD_FORMAT or record.get("fingerprint") != fingerprint:
        return False
    if not {f.lower().lstrip(".") for f in formats} <= set(record.get("formats", ())):
        return False
    files = record.get("files")
    if not isinstance(files, dict) or not files:
        return False
    try:
        return all(
            (folder / name).stat().st_size == entry["bytes"] and sha256_file(folder / name) == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, KeyError, TypeError):
        return False
