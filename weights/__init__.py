"""Which weights a pipeline takes: the pulled ones, the ones that ship with the package, or a given path."""

from __future__ import annotations

from pathlib import Path

from vision3d.errors import WeightsError
from vision3d.paths import as_path

MINI = Path(__file__).parent / "mini"


def resolve(pipeline: str, source: str | Path | None = None) -> tuple[Path, str]:
    """Path of a pipeline's weights and the name they go by in provenance.

    Args:
        pipeline: short name, such as ``primedepth``.
        source: a name of the manifest, a file or a folder; ``"mini"`` is the embedded set; None is the
            official weights if they were pulled, else the embedded set.

    Raises:
        WeightsError: nothing there, not pulled, or damaged since.
    """
    from vision3d.progress import warn
    from vision3d.weights import registry
    from vision3d.weights.manifest import manifest

    if source is None:
        official = manifest().official(pipeline)
        try:
            record = registry.pulled(official.name) if official else None
        except WeightsError as error:
            warn(f"{error}; the embedded weights are used instead")
            record = None
        if official is not None and record is not None:
            return registry.entry(official.name), record.label
        hint = f"get the official ones with `vision3d weights pull {official.name}`" if official else None
        return _embedded(pipeline, hint)
    if str(source) == "mini":
        return _embedded(pipeline)
    path = as_path(source)
    if str(source) in manifest() and not (isinstance(source, Path) and path.exists()):
        record = registry.pulled(str(source))
        if record is None:
            raise registry.not_pulled(str(source))
        return registry.entry(str(source)), record.label
    if not path.exists():
        raise WeightsError(
            f"{source}: no such weights",
            "give a checkpoint file, a folder, 'mini', or a name that `vision3d weights list` shows",
        )
    return path, path.name


def _embedded(pipeline: str, hint: str | None = None) -> tuple[Path, str]:
    folder = MINI / pipeline
    if not folder.is_dir():
        raise WeightsError(f"no embedded weights for {pipeline}", hint or "give a checkpoint with --weights")
    return folder, f"vision3d mini ({pipeline})"
