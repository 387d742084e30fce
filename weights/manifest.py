"""The manifest: which checkpoints were released, where they lie, how large they are and under which licence."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vision3d.errors import WeightsError

MANIFEST = Path(__file__).with_name("manifest.toml")
KINDS = ("hf", "url", "torch-hub", "hand")
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Licence:
    """Terms of use.

    Attributes:
        name: as people call it.
        url: its text; empty if nobody published one.
        ask: it restricts use, so a person has to accept it before the first pull.
    """

    name: str
    url: str
    ask: bool


@dataclass(frozen=True)
class RemoteFile:
    """One file of a checkpoint.

    Attributes:
        path: relative to the checkpoint's folder.
        size: bytes, where they are published.
        sha256: 64 hexadecimal digits, or the first ones where only these are published.
        url: direct link, for checkpoints that are no repository.
        layout: what its tensors must look like; empty if anything goes.
        unpack: a zip archive, of which the content is kept.
    """

    path: str
    size: int | None = None
    sha256: str = ""
    url: str = ""
    layout: str = ""
    unpack: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """One entry of the manifest; the attributes are explained at the head of ``manifest.toml``."""

    name: str
    title: str
    tasks: tuple[str, ...]
    kind: str
    licence: Licence
    files: tuple[RemoteFile, ...] = ()
    patterns: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    repo: str = ""
    revision: str = "main"
    page: str = ""
    about: int | None = None
    layout: str = ""
    official: str = ""
    gated: bool = False
    needs: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    note: str = ""

    @property
    def size(self) -> int | None:
        """Bytes in all: the sum of the published sizes, else the approximate size, else unknown."""
        sizes = [file.size for file in self.files]
        if sizes and None not in sizes:
            return sum(size for size in sizes if size is not None)
        return self.about

    @property
    def source(self) -> str:
        """Where it comes from, in one word."""
        if self.kind == "hf":
            return self.repo
        return self.page if self.kind == "hand" else urlsplit(self.files[0].url).netloc

    @property
    def repositories(self) -> tuple[str, ...]:
        """Where it is or was published on the hub, under any of its names."""
        return (self.repo, *self.mirrors, *(name.partition(" ")[0].rstrip(":") for name in self.withdrawn))

    @property
    def web_page(self) -> str:
        """Where a person finds it in a browser."""
        if self.kind == "hf":
            return f"https://huggingface.co/{self.repo}"
        return self.page or self.files[0].url

    def wants(self, path: str) -> bool:
        """Whether a file of the repository belongs to this checkpoint."""
        if self.files:
            return any(file.path == path for file in self.files)
        return any(fnmatch.fnmatch(path, p) for p in self.patterns) and not any(
            fnmatch.fnmatch(path, p) for p in self.ignore
        )

    def file(self, path: str) -> RemoteFile:
        """What is known of one of its files."""
        known = next((file for file in self.files if file.path == path), RemoteFile(path))
        if not known.layout and self.layout and path.endswith(WEIGHT_SUFFIXES):
            values = {field.name: getattr(known, field.name) for field in fields(known)}
            known = RemoteFile(**{**values, "layout": self.layout})
        return known


@dataclass(frozen=True)
class Manifest:
    """All checkpoints by name."""

    checkpoints: Mapping[str, Checkpoint]

    def __getitem__(self, name: str) -> Checkpoint:
        """The checkpoint of this name.

        Raises:
            WeightsError: there is none.
        """
        if name not in self.checkpoints:
            import difflib

            near = difflib.get_close_matches(name, self.checkpoints, n=1)
            hint = f"did you mean {near[0]}?" if near else "`vision3d weights list` shows all"
            raise WeightsError(f"no weights are called {name!r}", hint)
        return self.checkpoints[name]

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoints

    @property
    def tasks(self) -> list[str]:
        """Every task that something is for."""
        return sorted({task for checkpoint in self.checkpoints.values() for task in checkpoint.tasks})

    def official(self, pipeline: str) -> Checkpoint | None:
        """The checkpoint that a pipeline takes when nothing else is asked for."""
        return next((c for c in self.checkpoints.values() if c.official == pipeline), None)

    def with_needs(self, name: str) -> list[Checkpoint]:
        """A checkpoint and all that it cannot be used without, each once, itself first."""
        found: dict[str, Checkpoint] = {}

        def add(one: str) -> None:
            if one not in found:
                found[one] = self[one]
                for other in found[one].needs:
                    add(other)

        add(name)
        return list(found.values())


def manifest() -> Manifest:
    """The manifest that ships with the package, and the one that ``$VISION3D_MANIFEST`` names, if any.

    Entries of the second replace those of the first with the same name: for mirrors inside an organisation,
    and for checkpoints of one's own.

    Raises:
        WeightsError: a manifest is missing or makes no sense.
    """
    own = os.environ.get("VISION3D_MANIFEST", "")
    return _load(MANIFEST, Path(own).expanduser() if own else None)


@lru_cache(maxsize=4)
def _load(shipped: Path, own: Path | None) -> Manifest:
    licences: dict[str, Licence] = {}
    checkpoints: dict[str, Checkpoint] = {}
    for path in (shipped, own):
        if path is not None:
            document = _read_toml(path)
            licences |= _licences(document.get("licences", {}), path)
            for entry in document.get("checkpoint", []):
                checkpoint = _checkpoint(entry, licences, path)
                checkpoints[checkpoint.name] = checkpoint
    for checkpoint in checkpoints.values():
        for other in (*checkpoint.needs, *checkpoint.extras):
            if other not in checkpoints:
                raise _invalid(own or shipped, f"{checkpoint.name} needs {other}, which is not in it")
    return Manifest(checkpoints)


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot read this manifest ({error.strerror})", "check VISION3D_MANIFEST"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(path, str(error)) from error


def _invalid(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path}: {reason}", "correct this manifest")


def _licences(table: Mapping[str, Any], path: Path) -> dict[str, Licence]:
    try:
        return {key: Licence(**value) for key, value in table.items()}
    except TypeError as error:
        raise _invalid(path, f"licences: {error}") from error


def _checkpoint(entry: Mapping[str, Any], licences: Mapping[str, Licence], path: Path) -> Checkpoint:
    name = entry.get("name", "")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise _invalid(path, f"{name!r} is no name for weights")
    if entry.get("licence") not in licences:
        raise _invalid(path, f"{name}: no licence {entry.get('licence')!r}")
    try:
        files = tuple(RemoteFile(**file) for file in entry.get("files", ()))
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        values |= {"files": files, "licence": licences[entry["licence"]]}
        checkpoint = Checkpoint(**values)
    except TypeError as error:
        raise _invalid(path, f"{name}: {error}") from error
    if reason := _nonsense(checkpoint):
        raise _invalid(path, f"{name}: {reason}")
    return checkpoint


def _nonsense(checkpoint: Checkpoint) -> str:
    """What is wrong with an entry, or nothing."""
    if checkpoint.kind not in KINDS:
        return f"kind {checkpoint.kind!r} is none of {', '.join(KINDS)}"
    if bool(checkpoint.files) == bool(checkpoint.patterns):
        return "give either files or patterns"
    if checkpoint.kind == "hf" and not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint.repo):
        return "give its repo as owner/name"
    if checkpoint.kind == "hand" and not checkpoint.page:
        return "give the page where a person finds it"
    for file in checkpoint.files:
        if not is_plain_path(file.path):
            return f"{file.path!r} leads out of the folder"
        if file.sha256 and not re.fullmatch(r"[0-9a-f]{6,64}", file.sha256):
            return f"{file.path}: {file.sha256!r} is no SHA-256"
        if checkpoint.kind in ("url", "torch-hub") and not is_safe_url(file.url):
            return f"{file.path}: give an https link"
    return ""


def is_plain_path(path: str) -> bool:
    """Whether a path stays in its folder, on every operating system."""
    parts = path.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or ":" in part or "\0" in part for part in parts)


def is_safe_url(url: str) -> bool:
    """Whether a link is encrypted or stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    )
