"""The procedural world: images with exact depth, normals, intrinsics, parts, keypoints and captions.

:func:`render_sample` makes one sample from a seed; :class:`WorldStream` many, in worker processes;
:class:`ShardCache` keeps them on disk for training; :func:`augment` makes them look less clean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision3d.synthetic.cache import ShardCache
    from vision3d.synthetic.photometric import augment
    from vision3d.synthetic.render import render_sample
    from vision3d.synthetic.sample import Sample
    from vision3d.synthetic.stream import WorldStream

__all__ = ["Sample", "ShardCache", "WorldStream", "augment", "render_sample"]

_HOMES = {
    "Sample": "sample",
    "ShardCache": "cache",
    "WorldStream": "stream",
    "augment": "photometric",
    "render_sample": "render",
}


def __getattr__(name: str) -> Any:
    # Open3D and OpenCV load when something is rendered, not with the package.
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"vision3d.synthetic.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
