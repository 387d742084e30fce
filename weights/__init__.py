"""Which weights a pipeline takes: a given path, or the ones that ship with the package."""

from __future__ import annotations

from pathlib import Path

from vision3d.errors import WeightsError

MINI = Path(__file__).parent / "mini"


def resolve(pipeline: str, source: str | Path | None = None) -> tuple[Path, str]:
    """Path of a pipeline's weights and the name they go by in provenance.

    Args:
        pipeline: short name, such as ``primedepth``.
        source: a file or folder; ``"mini"`` or None is the embedded set.

    Raises:
        WeightsError: nothing there.
    """
    if source is None or str(source) == "mini":
        folder = MINI / pipeline
        if not folder.is_dir():
            raise WeightsError(f"no embedded weights for {pipeline}", "give a checkpoint with --weights")
        return folder, f"vision3d mini ({pipeline})"
    path = Path(source).expanduser()
    if not path.exists():
        raise WeightsError(f"{source}: no such weights", "give a checkpoint file, a folder, or 'mini'")
    return path, path.name
