"""DM-Calib: camera intrinsics and metric depth of single photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision3d.pipelines.dmcalib.camera_image import CameraFit, decode_intrinsics, encode_camera_image
    from vision3d.pipelines.dmcalib.edits import Edit, detect_edit, restore
    from vision3d.pipelines.dmcalib.pipeline import DMCalib

_PLACES = {
    "CameraFit": "camera_image",
    "DMCalib": "pipeline",
    "Edit": "edits",
    "decode_intrinsics": "camera_image",
    "detect_edit": "edits",
    "encode_camera_image": "camera_image",
    "restore": "edits",
}

__all__ = [
    "CameraFit",
    "DMCalib",
    "Edit",
    "decode_intrinsics",
    "detect_edit",
    "encode_camera_image",
    "restore",
]


def __getattr__(name: str) -> Any:
    """Imports torch only when a network is asked for, so that the command line answers at once."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
