"""The networks that all tasks share: Stable Diffusion and DINO, loaded once, encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision3d.backbone.backbone import Backbone

__all__ = ["Backbone"]


def __getattr__(name: str) -> Any:
    """Imports torch only when the backbone is asked for."""
    if name == "Backbone":
        from vision3d.backbone.backbone import Backbone

        return Backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
