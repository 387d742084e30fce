"""One photograph to a metric, textured scene: four dense tasks that share their encodes, and one fused surface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision3d.pipelines.scene.options import SceneOptions
    from vision3d.pipelines.scene.pipeline import Scene, ScenePipeline, Tasks, build_scene

_PLACES = {
    "Scene": "pipeline",
    "SceneOptions": "options",
    "ScenePipeline": "pipeline",
    "Tasks": "pipeline",
    "build_scene": "pipeline",
}

__all__ = ["Scene", "SceneOptions", "ScenePipeline", "Tasks", "build_scene"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a pipeline is asked for, so that the command line answers at once."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
