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
    return locate(source)


def locate(source: str | Path) -> tuple[Path, str]:
    """The file or folder that a person means, and the name it goes by in provenance; nothing is downloaded.

    Args:
        source: a name of the manifest, a file or a folder, or a repository (pulled, or in the cache of
            huggingface_hub).

    Raises:
        WeightsError: nothing there, not pulled, or damaged since; it names where the weights can be had.
    """
    from vision3d.weights import hub, registry
    from vision3d.weights.manifest import manifest

    name, path = str(source), as_path(source)
    if name in manifest() and not (isinstance(source, Path) and path.exists()):
        record = registry.pulled(name)
        if record is None:
            raise registry.not_pulled(name)
        return registry.entry(name), record.label
    if path.exists():
        return path, path.name
    published = [c for c in manifest().checkpoints.values() if name in c.repositories]
    for checkpoint in published:
        record = registry.pulled(checkpoint.name)
        if record is not None:
            return registry.entry(checkpoint.name), record.label
    snapshot = hub.cached_snapshot(name)
    if snapshot is not None:
        return snapshot, f"{name}@{(snapshot if snapshot.is_dir() else snapshot.parent).name[:8]}"
    if published:
        pulls = " or ".join(f"`vision3d weights pull {c.name}`" for c in published)
        repos = ", ".join(dict.fromkeys(repo for c in published for repo in (c.repo, *c.mirrors)))
        raise WeightsError(f"{name}: not on this machine", f"{pulls} gets it from {repos}")
    raise WeightsError(
        f"{source}: no such weights",
        "give a checkpoint file, a folder, or a name that `vision3d weights list` shows",
    )


def _embedded(pipeline: str, hint: str | None = None) -> tuple[Path, str]:
    folder = MINI / pipeline
    if not folder.is_dir():
        raise WeightsError(f"no embedded weights for {pipeline}", hint or "give a checkpoint with --weights")
    return folder, f"vision3d mini ({pipeline})"
