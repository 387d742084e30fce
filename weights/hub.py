"""Files of repositories on the Hugging Face hub, through huggingface_hub.

It keeps them in its own cache (``HF_HOME``), resumes, and knows ``HF_ENDPOINT``, ``HF_HUB_OFFLINE`` and logins.
Here its files are chosen, and its many errors become one line each.
"""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision3d.errors import WeightsError
from vision3d.io.files import as_output_error
from vision3d.weights.manifest import WEIGHT_SUFFIXES, Checkpoint, is_plain_path


def is_offline() -> bool:
    """Whether downloads are forbidden by ``HF_HUB_OFFLINE``."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it: path, bytes, and SHA-256 if it is a large one."""

    path: str
    size: int | None
    sha256: str


@dataclass(frozen=True)
class Listing:
    """The files of a checkpoint in one repository at one commit.

    Attributes:
        repo: as ``owner/name``.
        commit: its 40 digits.
        files: those that belong to the checkpoint.
        revision: under which the commit is asked for; a branch, so that other programs find the files in the
            cache under that name, too.
    """

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    revision: str


class Refused(Exception):
    """A repository does not give what is asked for; ``str()`` of it says why."""


class Unreachable(Refused):
    """The hub does not answer, or may not be asked."""


def list_files(checkpoint: Checkpoint, repo: str) -> Listing:
    """What the hub has of a checkpoint.

    Raises:
        Refused: no such repository or revision, no access, or files are missing there.
    """
    from huggingface_hub import HfApi

    with _refusals(repo):
        info = HfApi(library_name="vision3d").model_info(
            repo, revision=checkpoint.revision, files_metadata=True, timeout=30
        )
    files = []
    for sibling in info.siblings or ():
        if checkpoint.wants(sibling.rfilename) and is_plain_path(sibling.rfilename):
            sha256 = sibling.lfs.sha256 if sibling.lfs is not None else ""
            files.append(HubFile(sibling.rfilename, sibling.size, sha256))
    _all_there(checkpoint, repo, [file.path for file in files])
    return Listing(repo, info.sha or checkpoint.revision, tuple(files), checkpoint.revision)


def cached_files(checkpoint: Checkpoint, repo: str) -> Listing:
    """The same, of what is in the local cache already: the revision that is asked for, else the newest.

    Raises:
        Refused: it is not, or not all of it.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    refusal: Refused = Unreachable("HF_HUB_OFFLINE is set")
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        raise refusal from None
    revisions = [r for c in cached if c.repo_id == repo and c.repo_type == "model" for r in c.revisions]
    revisions.sort(key=lambda r: (checkpoint.revision in {*r.refs, r.commit_hash}, r.last_modified))
    for revision in reversed(revisions):
        there = {f.file_path.relative_to(revision.snapshot_path).as_posix(): f for f in revision.files}
        files = [HubFile(p, f.size_on_disk, "") for p, f in sorted(there.items()) if checkpoint.wants(p)]
        try:
            _all_there(checkpoint, repo, [file.path for file in files])
        except Refused as error:
            refusal = Unreachable(f"HF_HUB_OFFLINE is set, and of the cached files, {error}")
            continue
        return Listing(repo, revision.commit_hash, tuple(files), revision.commit_hash)
    raise refusal


def cached_snapshot(repo: str) -> Path | None:
    """What a loader is given of a repository in huggingface_hub's cache; None if it is not there. Asks nobody.

    Returns:
        its folder, or its one weight file where no configuration lies in it.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (OSError, ValueError) as error:  # not there, not all of it, or no name of a repository
        part = getattr(error, "snapshot_path", None)
        if part is None:
            return None
        folder = Path(part)
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return to_load(folder, paths, alternatives=True)


def to_load(folder: Path, paths: Iterable[str], *, alternatives: bool) -> Path:
    """What a loader is given of a checkpoint: its one weight file, or the folder.

    Args:
        folder: where it lies.
        paths: of its files in there.
        alternatives: several weight files are the same in other formats.
    """
    files = list(paths)
    weights = sorted(path for path in files if path.endswith(WEIGHT_SUFFIXES))
    if any(path.endswith("config.json") for path in files) or not weights:
        return folder
    if len(weights) == 1 or alternatives:
        safe = [path for path in weights if path.endswith(".safetensors")]
        return folder / (safe or weights)[0]
    return folder


def _all_there(checkpoint: Checkpoint, repo: str, paths: list[str]) -> None:
    missing = [file.path for file in checkpoint.files if file.path not in paths]
    if missing:
        raise Refused(f"{repo} has no {', '.join(missing[:3])}" + (" ..." if len(missing) > 3 else ""))
    if not any(not fnmatch.fnmatch(path, "*.json") for path in paths):
        raise Refused(f"{repo} has none of {', '.join(checkpoint.patterns)}")


def fetch(listing: Listing, file: HubFile, *, again: bool, advance: Callable[[int], None]) -> Path:
    """One file's place in the hub's cache, downloaded if it is not there.

    Args:
        listing: the repository and commit.
        file: one of its files.
        again: do not trust the cached copy.
        advance: told how many more bytes are there.

    Raises:
        Refused: the hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    with _refusals(listing.repo):
        path = Path(
            hf_hub_download(
                listing.repo,
                file.path,
                revision=listing.revision,
                force_download=again,
                library_name="vision3d",
                tqdm_class=_reporting(advance),
            )
        )
    if listing.commit not in path.parts:
        raise Refused(f"{listing.repo} was changed while it was pulled; pull it once more")
    return path


def _reporting(advance: Callable[[int], None]) -> Any:
    """A bar for huggingface_hub that draws nothing and passes on what it is told."""
    from tqdm import tqdm

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            advance(int(kwargs.get("initial") or 0))
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            advance(int(n or 0))
            return super().update(n)

    return Reporter


def forget(repo: str, commit: str) -> int:
    """Removes a commit from the hub's cache and returns the bytes that were freed."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return 0
    commits = [
        revision.commit_hash
        for cached in cache.repos
        if cached.repo_id == repo
        for revision in cached.revisions
        if revision.commit_hash == commit
    ]
    plan = cache.delete_revisions(*commits)
    plan.execute()
    return int(plan.expected_freed_size)


@contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """Says in one line what huggingface_hub's errors mean."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise Refused(
            f"{repo} wants its terms accepted: do that at {page}, then log in with `hf auth login`"
        ) from error
    except errors.DisabledRepoError as error:
        raise Refused(f"{repo} was disabled") from error
    except errors.RepositoryNotFoundError as error:
        raise Refused(f"{repo} is not there (withdrawn, private or misspelt)") from error
    except errors.RevisionNotFoundError as error:
        raise Refused(f"{repo} has no such revision") from error
    except errors.RemoteEntryNotFoundError as error:
        raise Refused(f"{repo} lacks a file") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        offline = is_offline() or isinstance(error, errors.OfflineModeIsEnabled)
        raise Unreachable("HF_HUB_OFFLINE is set" if offline else "the hub does not answer") from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code == 404:
            raise Refused(f"{repo} is not there (withdrawn, private or misspelt)") from error
        if code in (401, 403):
            raise Refused(
                f"{repo} wants a login: `hf auth login`, and its terms accepted at {page}"
            ) from error
        raise Refused(f"{repo}: the hub answers {code}") from error
    except WeightsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            from huggingface_hub import constants

            raise as_output_error(error, Path(constants.HF_HUB_CACHE)) from error
        raise Unreachable(_plain(error)) from error
    except Exception as error:
        # The HTTP library below huggingface_hub has an exception family of its own, and has changed once.
        family = type(error).__module__.partition(".")[0]
        if family.startswith("http") or family in ("requests", "urllib3"):
            raise Unreachable(_plain(error)) from error
        if isinstance(error, (errors.HFValidationError, ValueError)):
            raise Refused(f"{repo}: {_plain(error)}") from error
        raise


def _plain(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"the hub does not answer ({text[:120]})" if text else "the hub does not answer"
