"""The weights on this machine: found, pulled, taken from a person's hand, verified, removed.

Each checkpoint of the manifest has a folder ``$VISION3D_HOME/weights/NAME/``: its files under ``files/``, and
``record.json`` with their sizes and checksums, written when all of them were found right. Files of hub
repositories lie in huggingface_hub's cache, and ``files/`` links to them. Without a record, or with a file that
no longer agrees with it, there are no weights: nothing else in the package reads that folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vision3d.errors import InputError, OutputError, WeightsError
from vision3d.io.files import (
    atomic_path,
    atomic_write_json,
    make_folder,
    output_errors,
    sha256_file,
)
from vision3d.paths import home
from vision3d.progress import Progress, progress, say
from vision3d.weights import hub
from vision3d.weights.download import Policy, check_space, damage, fetch, human_bytes
from vision3d.weights.manifest import (
    WEIGHT_SUFFIXES,
    Checkpoint,
    Licence,
    Manifest,
    RemoteFile,
    is_plain_path,
    manifest,
)

RECORD = "record.json"


def folder_of(name: str) -> Path:
    """Where a checkpoint's files and record are kept (it need not exist)."""
    return home() / "weights" / name


@dataclass
class StoredFile:
    """What was true of a file when it was last verified.

    Attributes:
        size: bytes.
        sha256: of its content.
        published: whether that checksum was published, or only recorded at the first pull.
        modified: time of the last change in nanoseconds; an unchanged file is not hashed again.
    """

    size: int
    sha256: str
    published: bool
    modified: int


@dataclass
class Record:
    """Everything that is known of a pulled checkpoint.

    Attributes:
        name: of the checkpoint.
        source: repository or address that it came from, or ``by hand``.
        revision: commit of the repository, where it is one.
        licence: that the person accepted, or was told.
        files: by path below ``files/``.
    """

    name: str
    source: str
    revision: str
    licence: str
    files: dict[str, StoredFile] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str) -> Record | None:
        """The record of a checkpoint, or None where there is none that makes sense."""
        try:
            content = json.loads((folder_of(name) / RECORD).read_text())
            files = {path: StoredFile(**values) for path, values in content.pop("files").items()}
            record = cls(**content, files=files)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return record if record.name == name and files and all(map(is_plain_path, files)) else None

    def write(self) -> None:
        """Keeps it; from then on the checkpoint counts as pulled."""
        content = {**vars(self), "files": {path: vars(file) for path, file in self.files.items()}}
        atomic_write_json(folder_of(self.name) / RECORD, content)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files.values())

    @property
    def label(self) -> str:
        """What results say about their weights."""
        commit = f"@{self.revision[:8]}" if self.revision else ""
        return f"{self.name} ({self.source}{commit})"


def root_of(name: str) -> Path:
    """The folder below which a pulled checkpoint's files lie."""
    return folder_of(name) / "files"


def pulled(name: str) -> Record | None:
    """The record of a checkpoint that is here, complete and right; None if it was never pulled.

    Files that changed since they were last verified are hashed again.

    Raises:
        WeightsError: a file is missing or was changed.
    """
    record = Record.read(name)
    if record is None or not _is_whole(record):
        return None
    changed = False
    for path, stored in record.files.items():
        changed |= _check_stored(name, path, stored, always=False)
    if changed:
        with contextlib.suppress(OutputError):  # then the next use hashes once more
            record.write()
    return record


def _is_whole(record: Record) -> bool:
    """Whether a record covers all files of its checkpoint, also of a later manifest's."""
    known = manifest()
    if record.name not in known:
        return False
    return all(_has(record, file) for file in known[record.name].files)


def _check_stored(name: str, path: str, stored: StoredFile, *, always: bool) -> bool:
    """Compares a file with its record; True if the record's time was out of date."""
    file = root_of(name) / path
    again = f"get it again with `vision3d weights pull {name}`"
    try:
        stat = file.stat()
        if stat.st_size != stored.size:
            raise WeightsError(f"{file}: {stat.st_size} bytes instead of {stored.size}", again)
        if not always and stat.st_mtime_ns == stored.modified:
            return False
        if sha256_file(file) != stored.sha256:
            raise WeightsError(f"{file}: its content is not what was pulled", again)
    except OSError as error:
        raise WeightsError(f"{file}: {error.strerror or error}", again) from error
    newer = stat.st_mtime_ns != stored.modified
    stored.modified = stat.st_mtime_ns
    return newer


def entry(name: str) -> Path:
    """What a loader is given of a pulled checkpoint: its one weight file, or the folder."""
    root, record = root_of(name), Record.read(name)
    if record is None:
        return root
    return hub.to_load(root, record.files, alternatives=bool(manifest()[name].patterns))


# Pulling ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Consent:
    """How licences are agreed to.

    Attributes:
        accept: the person agreed on the command line.
        ask: puts a question to a person and returns the answer; None where nobody is there.
    """

    accept: bool = False
    ask: Callable[[str], str] | None = None

    @classmethod
    def of_terminal(cls, accept: bool = False) -> Consent:
        """Asks on the terminal, if there is one."""
        there = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
        return cls(accept, _ask_on_terminal if there else None)

    def give(self, checkpoint: Checkpoint) -> None:
        """Shows a licence and makes sure that it is accepted.

        Raises:
            WeightsError: it is not.
        """
        licence = checkpoint.licence
        text = _terms(checkpoint, licence)
        if not licence.ask or self.accept:
            say(text)
            return
        if self.ask is None:
            raise WeightsError(text, "read it, then pull with --accept-license")
        if self.ask(f"{text}\nDo you accept it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise WeightsError(f"{checkpoint.name}: the licence was not accepted", "nothing was downloaded")


def _terms(checkpoint: Checkpoint, licence: Licence) -> str:
    where = f" ({licence.url})" if licence.url else f" (see {checkpoint.web_page})"
    note = f"; {checkpoint.note}" if checkpoint.note else ""
    return f"{checkpoint.name}: licence {licence.name}{where}{note}"


def _ask_on_terminal(question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


@dataclass
class Outcome:
    """What became of one checkpoint.

    Attributes:
        name: of the checkpoint.
        state: ``pulled``, ``there already``, ``incomplete`` or ``failed``.
        message: more about it.
        path: what a loader is given.
        size: bytes.
    """

    name: str
    state: str
    message: str = ""
    path: str = ""
    size: int = 0


def pull(
    name: str,
    *,
    consent: Consent | None = None,
    policy: Policy | None = None,
    again: bool = False,
) -> Outcome:
    """Downloads a checkpoint, unless it is here and right.

    Args:
        name: of the manifest.
        consent: how its licence is agreed to; by default it is asked for on the terminal.
        policy: patience with direct links.
        again: download even what is here.

    Raises:
        WeightsError: the licence was not accepted, no source gives the files, or they are not the published
            ones; where a person can fetch them by hand, it says how.
        OutputError: the disk is full or cannot be written.
    """
    checkpoint = manifest()[name]
    with _lock(name):
        if not again:
            try:
                record = pulled(name)
            except WeightsError as error:
                say(f"{error.message}; it is pulled again")
                record = None
            if record is not None:
                return Outcome(name, "there already", record.label, str(entry(name)), record.size)
        if checkpoint.kind == "hand":
            raise by_hand(checkpoint, "these weights have no direct link")
        consent = consent or Consent.of_terminal()
        if checkpoint.kind == "hf":
            record = _pull_from_hub(checkpoint, consent, again)
        else:
            record = _pull_links(checkpoint, consent, policy, again)
        record.write()
    return Outcome(name, "pulled", record.label, str(entry(name)), record.size)


def by_hand(checkpoint: Checkpoint, reason: str) -> WeightsError:
    """The one line for a person who has to download a checkpoint in another way."""
    if checkpoint.kind == "hf":
        what = ", ".join(f.path for f in checkpoint.files) or " or ".join(checkpoint.patterns)
        where = f"{what} from {checkpoint.web_page}"
    elif checkpoint.kind == "hand":
        where = f"{', '.join(f.path for f in checkpoint.files)} as {checkpoint.page} says"
    else:
        where = ", ".join(file.url for file in checkpoint.files)
    many = len(checkpoint.files) > 1 or _is_folder(checkpoint)
    given = "FOLDER" if many else "FILE"
    return WeightsError(
        f"{checkpoint.name}: {reason}",
        f"download {where} by hand and give it with `vision3d weights pull {checkpoint.name} --from {given}`, "
        f"which keeps it in {root_of(checkpoint.name)}",
    )


def _is_folder(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint whose files are not known by name is a folder with configurations."""
    return any("/" in pattern or pattern.endswith(".json") for pattern in checkpoint.patterns)


def _agree(checkpoint: Checkpoint, consent: Consent) -> None:
    """Makes sure of the licence, once the files are known to be within reach."""
    earlier = Record.read(checkpoint.name)
    if earlier is None or earlier.licence != checkpoint.licence.name:
        consent.give(checkpoint)


def _pull_from_hub(checkpoint: Checkpoint, consent: Consent, again: bool) -> Record:
    listing, offline = None, hub.is_offline()
    reasons = []
    for repo in (checkpoint.repo, *checkpoint.mirrors):
        try:
            listing = (hub.cached_files if offline else hub.list_files)(checkpoint, repo)
            break
        except hub.Refused as error:
            reasons.append(str(error))
    if listing is None:
        raise by_hand(checkpoint, "; ".join(dict.fromkeys(reasons)))
    _agree(checkpoint, consent)
    record = Record(checkpoint.name, listing.repo, listing.commit, checkpoint.licence.name)
    earlier = None if again else Record.read(checkpoint.name)
    total = sum(file.size or 0 for file in listing.files) or checkpoint.size or 0
    if not offline:
        check_space(_hub_cache(), _not_cached(listing, total), checkpoint.name)
    with _bytes_bar(checkpoint.name, total) as advance:
        for file in listing.files:
            known = checkpoint.file(file.path)
            published, size = known.sha256 or file.sha256, known.size or file.size
            stored = _reusable(earlier, file.path, published, size)
            if stored is None:
                try:
                    stored = _hub_file(checkpoint, listing, file, again and not offline, advance)
                except hub.Refused as error:
                    raise by_hand(checkpoint, str(error)) from error
            record.files[file.path] = stored
    return record


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _not_cached(listing: hub.Listing, total: int) -> int:
    """Bytes that the hub's cache lacks."""
    from huggingface_hub import try_to_load_from_cache

    there = 0
    for file in listing.files:
        found = try_to_load_from_cache(listing.repo, file.path, revision=listing.commit)
        there += (file.size or 0) if isinstance(found, str) else 0
    return max(0, total - there)


def _hub_file(
    checkpoint: Checkpoint,
    listing: hub.Listing,
    file: hub.HubFile,
    again: bool,
    advance: Callable[[int], None],
) -> StoredFile:
    """Fetches one file, twice if the first copy is not right, and links it into the checkpoint's folder."""
    known = checkpoint.file(file.path)
    published = known.sha256 or file.sha256
    size = known.size if known.size is not None else file.size
    fault = ""
    for attempt in range(2):
        cached = hub.fetch(listing, file, again=again or attempt > 0, advance=advance)
        digest = sha256_file(cached)
        fault = _fault(cached, file.path, digest, published, size)
        if not fault:
            target = root_of(checkpoint.name) / file.path
            _link(cached, target)
            stat = target.stat()
            return StoredFile(stat.st_size, digest, bool(published), stat.st_mtime_ns)
        if hub.is_offline():
            break
        say(f"{checkpoint.name}: {fault}; downloading it again")
    raise hub.Refused(f"{listing.repo}: {fault}")


def _fault(file: Path, name: str, digest: str, published: str, size: int | None) -> str:
    """How a file differs from what was published of it, or nothing."""
    actual = file.stat().st_size
    if size is not None and actual != size:
        return f"{name} has {actual} bytes, published are {size}"
    if published:
        if digest.startswith(published):
            return ""
        return f"{name} has the SHA-256 {digest[:12]}…, published is {published[:12]}…"
    broken = damage(file, Path(name).suffix)
    return f"{name}: {broken}" if broken else ""


def _reusable(earlier: Record | None, path: str, published: str, size: int | None) -> StoredFile | None:
    """What an earlier, unfinished pull or a person's hand left of a file, if it is right."""
    stored = earlier.files.get(path) if earlier is not None else None
    if earlier is None or stored is None:
        return None
    if (size is not None and stored.size != size) or not stored.sha256.startswith(published):
        return None
    try:
        _check_stored(earlier.name, path, stored, always=False)
    except WeightsError:
        return None
    return stored


def _link(cached: Path, target: Path) -> None:
    """Makes ``target`` a name of a file in the hub's cache; a copy where the disk knows no links."""
    with output_errors(target):
        make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.link")
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(cached.absolute())
        except OSError:
            shutil.copyfile(cached, temporary)
        os.replace(temporary, target)  # noqa: PTH105 - the atomic call, by its name


def _pull_links(checkpoint: Checkpoint, consent: Consent, policy: Policy | None, again: bool) -> Record:
    if hub.is_offline():
        raise by_hand(checkpoint, "HF_HUB_OFFLINE is set")
    _agree(checkpoint, consent)
    record = Record(checkpoint.name, checkpoint.source, "", checkpoint.licence.name)
    earlier = None if again else Record.read(checkpoint.name)
    root = root_of(checkpoint.name)
    with _bytes_bar(checkpoint.name, checkpoint.size or 0) as advance:
        for file in checkpoint.files:
            stored = _reusable(earlier, file.path, file.sha256, file.size)
            if stored is None:
                urls = [file.url, *(f"{mirror.rstrip('/')}/{file.path}" for mirror in checkpoint.mirrors)]
                try:
                    digest = fetch(
                        urls,
                        root / file.path,
                        size=file.size,
                        sha256=file.sha256,
                        policy=policy,
                        advance=advance,
                    )
                except WeightsError as error:
                    raise by_hand(checkpoint, error.message) from error
                stored = _stat(root / file.path, digest, bool(file.sha256))
            record.files |= _kept(checkpoint.name, file, stored)
    return record


def _stat(file: Path, digest: str, published: bool) -> StoredFile:
    stat = file.stat()
    return StoredFile(stat.st_size, digest, published, stat.st_mtime_ns)


def _kept(name: str, file: RemoteFile, stored: StoredFile) -> dict[str, StoredFile]:
    """What the record says of a file: itself, or the content of an archive, which is unpacked."""
    root = root_of(name)
    if not file.unpack:
        return {file.path: stored}
    folder = file.path.rpartition(".")[0]
    _unpack(root / file.path, root / folder)
    (root / file.path).unlink()
    paths = sorted(p for p in (root / folder).rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): _stat(p, sha256_file(p), False) for p in paths}


def _unpack(archive: Path, folder: Path) -> None:
    """Replaces ``folder`` by an archive's content, without the archive's own top folder of the same name.

    Raises:
        WeightsError: the archive is damaged, or would write elsewhere.
        OutputError: there is no room.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with output_errors(folder), zipfile.ZipFile(archive) as source:
            members = [m for m in source.infolist() if not m.is_dir() and not _is_litter(m.filename)]
            check_space(folder.parent, sum(m.file_size for m in members), folder.name)
            for member in members:
                path = member.filename.removeprefix(f"{folder.name}/")
                if not is_plain_path(path):
                    raise WeightsError(f"{archive.name}: {member.filename!r} leads out of its folder")
                target = staging / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with source.open(member) as content, target.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
            if not members:
                raise WeightsError(f"{archive.name}: this archive is empty", "download it again")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(staging, folder)  # noqa: PTH105
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{archive.name}: damaged archive ({error})", "download it again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_litter(path: str) -> bool:
    return path.startswith("__MACOSX/") or path.rpartition("/")[2] in (".DS_Store", "Thumbs.db")


@contextmanager
def _bytes_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that counts megabytes."""
    done = shown = 0
    bar: Progress[None] = progress(total=total // 1_000_000 or None, description=f"{name} (MB)")
    with bar:

        def advance(count: int) -> None:
            nonlocal done, shown
            done += count
            if steps := done // 1_000_000 - shown:
                shown += steps
                bar.advance(steps)

        yield advance


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """Only one process at a time changes a checkpoint's folder; the lock goes when its process does."""
    from filelock import FileLock, Timeout

    folder = make_folder(folder_of(name))
    with output_errors(folder):
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{name}: waiting for another process that pulls it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


# By hand ----------------------------------------------------------------------------------------------------


def take(name: str, sources: Sequence[Path]) -> Outcome:
    """Takes files that a person downloaded, if they are the checkpoint's.

    Args:
        name: of the manifest.
        sources: files, or a folder that holds them.

    Raises:
        InputError: nothing there.
        WeightsError: a file is none of the checkpoint's, damaged, or of another network.
        OutputError: it cannot be copied.
    """
    checkpoint = manifest()[name]
    say(_terms(checkpoint, checkpoint.licence))
    chosen: dict[str, Path] = {}
    for source in sources:
        chosen |= _matches(checkpoint, Path(source).expanduser())
    with _lock(name):
        earlier = Record.read(name)
        record = Record(name, "by hand", "", checkpoint.licence.name)
        if earlier is not None:
            record.files = {p: f for p, f in earlier.files.items() if _reusable(earlier, p, "", None)}
        for path, source in chosen.items():
            record.files |= _take_file(checkpoint, path, source)
        record.write()
    missing = [f.path for f in checkpoint.files if not _has(record, f)]
    if missing:
        message = f"still missing: {', '.join(missing[:4])}" + (" ..." if len(missing) > 4 else "")
        return Outcome(name, "incomplete", message, str(root_of(name)), record.size)
    return Outcome(name, "pulled", record.label, str(entry(name)), record.size)


def _matches(checkpoint: Checkpoint, source: Path) -> dict[str, Path]:
    """Which of a checkpoint's files a file or folder holds, by their paths in the checkpoint."""
    if not source.exists():
        raise InputError(f"{source}: no such file or folder", "check the path")
    wanted = ", ".join([f.path for f in checkpoint.files][:4]) or ", ".join(checkpoint.patterns)
    if source.is_dir():
        found: dict[str, Path] = {}
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            path = file.relative_to(source).as_posix()
            named = [f.path for f in checkpoint.files if path == f.path or path.endswith(f"/{f.path}")]
            if named or (checkpoint.patterns and checkpoint.wants(path)):
                found.setdefault(named[0] if named else path, file)
        if not any(path.endswith((*WEIGHT_SUFFIXES, ".zip")) for path in found):
            raise WeightsError(
                f"{source}: none of the files of {checkpoint.name} in it", f"it needs {wanted}"
            )
        if _is_folder(checkpoint) and not any(path.endswith(".json") for path in found):
            raise WeightsError(
                f"{source}: weights of {checkpoint.name} without a configuration", f"it needs {wanted}"
            )
        return found
    named = [f.path for f in checkpoint.files if f.path.rpartition("/")[2] == source.name]
    if len(named) == 1:
        return {named[0]: source}
    parts = source.as_posix()
    if longest := [path for path in named if parts.endswith("/" + path)]:
        return {longest[0]: source}
    if len(named) > 1:
        raise InputError(
            f"{source.name}: this can be {' or '.join(named)}", "give the folder that holds them"
        )
    if _is_folder(checkpoint):
        raise WeightsError(
            f"{source.name}: {checkpoint.name} is a folder with configurations, not a file",
            f"give the folder; it needs {wanted}",
        )
    if checkpoint.patterns and checkpoint.wants(source.name):
        return {source.name: source}
    only = checkpoint.files[0] if len(checkpoint.files) == 1 else None
    if only is not None and Path(only.path).suffix == source.suffix:
        return {only.path: source}  # browsers rename: "weights (1).pth"
    raise WeightsError(f"{source.name}: not one of the files of {checkpoint.name}", f"it needs {wanted}")


def _take_file(checkpoint: Checkpoint, path: str, source: Path) -> dict[str, StoredFile]:
    """Copies one file into the checkpoint's folder, if it is right."""
    known = checkpoint.file(path)
    digest = sha256_file(source)
    hint = f"download it again from {checkpoint.web_page}"
    if fault := _fault(source, source.name, digest, known.sha256, known.size):
        raise WeightsError(f"{fault}; it is not taken for {checkpoint.name}", hint)
    check_layout(source, known.layout, checkpoint.name)
    target = root_of(checkpoint.name) / path
    check_space(target.parent, source.stat().st_size, source.name)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        if sha256_file(temporary) != digest:
            raise WeightsError(f"{source}: it changed while it was copied", "try again")
    return _kept(checkpoint.name, known, _stat(target, digest, bool(known.sha256)))


def check_layout(file: Path, layout: str, name: str) -> None:
    """Makes sure that a file's tensors are those of a layout.

    Raises:
        WeightsError: they are another network's, which is named.
    """
    if not layout:
        return
    from vision3d.weights.layouts import check

    check(file, layout, name)


def _has(record: Record, file: RemoteFile) -> bool:
    folder = file.path.rpartition(".")[0]
    return file.path in record.files or (
        file.unpack and any(path.startswith(f"{folder}/") for path in record.files)
    )


# Afterwards -------------------------------------------------------------------------------------------------


def verify(name: str) -> Outcome:
    """Hashes every file of a pulled checkpoint again and looks at its tensors.

    Raises:
        WeightsError: it was not pulled, or a file is missing, changed or of another network.
    """
    checkpoint, record = manifest()[name], Record.read(name)
    if record is None or not _is_whole(record):
        raise not_pulled(name)
    for path, stored in record.files.items():
        _check_stored(name, path, stored, always=True)
        check_layout(root_of(name) / path, checkpoint.file(path).layout, name)
    with contextlib.suppress(OutputError):
        record.write()
    unpublished = sum(not file.published for file in record.files.values())
    note = f", {unpublished} of them against the first pull" if unpublished else ""
    return Outcome(name, "right", f"{len(record.files)} files{note}", str(entry(name)), record.size)


def not_pulled(name: str) -> WeightsError:
    """The one line for weights that are asked for and not here."""
    return WeightsError(
        f"{name}: these weights are not here", f"get them with `vision3d weights pull {name}`"
    )


def remove(name: str, *, keep_cache: bool = False) -> Outcome:
    """Removes a pulled checkpoint and returns how many bytes that freed.

    Args:
        name: of the manifest.
        keep_cache: leave the files in huggingface_hub's cache.

    Raises:
        WeightsError: it was not pulled.
        OutputError: it cannot be removed.
    """
    folder = folder_of(name)
    if name not in manifest() or not folder.is_dir():
        raise not_pulled(manifest()[name].name)
    with _lock(name), output_errors(folder):
        record = Record.read(name)
        paths = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
        freed = sum(p.stat().st_size for p in paths)
        (folder / RECORD).unlink(missing_ok=True)
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child.name != ".lock":
                child.unlink()
    if record is not None and record.revision and not keep_cache and not _shared(record):
        freed += hub.forget(record.source, record.revision)
    with contextlib.suppress(OSError):
        (folder / ".lock").unlink()
        folder.rmdir()
    return Outcome(name, "removed", f"{human_bytes(freed)} freed", str(folder), freed)


def _shared(record: Record) -> bool:
    """Whether another pulled checkpoint lies in the same commit of the same repository."""
    others = (Record.read(name) for name in manifest().checkpoints if name != record.name)
    return any(o and (o.source, o.revision) == (record.source, record.revision) for o in others)


def states(names: Sequence[str] | None = None) -> dict[str, str]:
    """For each checkpoint ``pulled``, ``incomplete``, ``damaged`` or nothing."""
    known: Manifest = manifest()
    result: dict[str, str] = {}
    for name in names if names is not None else known.checkpoints:
        record = Record.read(name)
        if record is None:
            result[name] = "incomplete" if root_of(name).is_dir() else ""
            continue
        try:
            result[name] = "pulled" if pulled(name) else "incomplete"
        except WeightsError:
            result[name] = "damaged"
    return result
