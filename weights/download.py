"""One file over HTTP: resumed where it stopped, and kept only if it is the file that was meant.

Bytes go to ``NAME.part``; beside it ``NAME.part.json`` remembers which version of the file they belong to. A
later attempt, in this process or another, asks the server for the rest of *that* version (``Range`` with
``If-Range``) and starts again if it has another one. Size and SHA-256 are checked before the file gets its
name, so that whatever happens a file under its own name is whole.

Repositories on the Hugging Face hub are not fetched here but by huggingface_hub (see ``hub.py``).
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import random
import re
import shutil
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from vision3d import __version__
from vision3d.errors import OutputError, WeightsError
from vision3d.io.files import atomic_write_json, fsync_path, make_folder, output_errors, sha256_file
from vision3d.progress import say
from vision3d.weights.manifest import is_safe_url

CHUNK = 1 << 18
DISK_RESERVE = 64 << 20
"""Bytes that stay free on the disk."""


@dataclass(frozen=True)
class Policy:
    """How patient a download is.

    Attributes:
        attempts: failures in a row without a single new byte before it gives up.
        backoff: seconds before the second attempt; doubled for each further one.
        longest_wait: most seconds between two attempts.
        stall: seconds without a byte, or below ``slowest``, after which the connection counts as stuck.
        slowest: bytes per second that are still progress.
        wrong: whole downloads with a wrong checksum before the server is not believed any more.
    """

    attempts: int = 6
    backoff: float = 1.0
    longest_wait: float = 120.0
    stall: float = 30.0
    slowest: float = 512.0
    wrong: int = 3


class _Retry(Exception):
    """This attempt failed, another one may not; ``wait`` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Unavailable(Exception):
    """This address will not give the file, however often it is asked."""


@dataclass
class _Version:
    """Which version of a file the bytes of a ``.part`` belong to."""

    url: str = ""
    etag: str = ""
    modified: str = ""
    total: int | None = None

    @property
    def validator(self) -> str:
        """What ``If-Range`` takes: a strong entity tag, else the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None = None,
    sha256: str = "",
    policy: Policy | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> str:
    """Downloads a file to ``target`` and returns its SHA-256.

    Args:
        urls: where it lies, in order of preference.
        target: its name; replaced atomically.
        size: bytes, if they are published.
        sha256: hexadecimal digest, if it is published, or its first digits.
        policy: how patient to be.
        advance: told how many more bytes are there (negative when a download starts again).

    Raises:
        WeightsError: no address gives the file, or what they give is another one.
        OutputError: the disk is full or cannot be written.
    """
    policy = policy or Policy()
    make_folder(target.parent)
    reasons = []
    for url in urls:
        if not is_safe_url(url):
            reasons.append(f"{url} is not encrypted")
            continue
        try:
            return _Download(url, target, size, sha256, policy, advance).run()
        except _Unavailable as error:
            reasons.append(f"{url}: {error}")
    raise WeightsError(f"cannot get {target.name}: {'; '.join(reasons)}", "try again later")


class _Download:
    """Attempts at one address, until the file is there and right."""

    def __init__(
        self,
        url: str,
        target: Path,
        size: int | None,
        sha256: str,
        policy: Policy,
        advance: Callable[[int], None],
    ) -> None:
        self.url, self.target, self.size, self.sha256 = url, target, size, sha256
        self.policy, self._advance = policy, advance
        self.part = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self._shown = 0
        self._total: int | None = None
        self._opener = urllib.request.build_opener(_Redirects)

    def run(self) -> str:
        failures = wrong = 0
        furthest = self._have()
        while True:
            try:
                self._attempt()
                digest = self._checked()
                self._place()
                return digest
            except _Wrong as error:
                wrong += 1
                self._discard()
                if wrong >= self.policy.wrong:
                    raise _Unavailable(str(error)) from error
                say(f"{self.target.name}: {error}; downloading it again")
            except _Retry as error:
                failures = 1 if self._have() > furthest else failures + 1
                furthest = max(furthest, self._have())
                if failures >= self.policy.attempts:
                    raise _Unavailable(f"{error}, {failures} times in a row") from error
                self._pause(error, failures)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _pause(self, error: _Retry, failures: int) -> None:
        """Waits as the server asked, or twice as long as last time and a little more or less."""
        longest = self.policy.longest_wait
        if error.wait is not None:
            if error.wait > longest:
                raise _Unavailable(f"{error}, and asks to come back in {error.wait:.0f} s")
            wait = error.wait
        else:
            wait = min(longest, self.policy.backoff * 2 ** (failures - 1)) * random.uniform(0.75, 1.25)
        if wait >= 2:
            say(f"{self.target.name}: {error}; next attempt in {wait:.0f} s")
        time.sleep(wait)

    def _attempt(self) -> None:
        """Fetches what is missing.

        Raises:
            _Retry: the connection broke or the server was not able to.
            _Unavailable: the server will not.
        """
        version = self._known()
        self._total, have = version.total, self._have()
        self._show(have)
        if have and version.total == have:
            return
        headers = {"User-Agent": f"vision3d/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if version.validator:
                headers["If-Range"] = version.validator
        try:
            response = self._opener.open(
                urllib.request.Request(self.url, headers=headers), timeout=self.policy.stall
            )
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, have)
            return
        except (OSError, http.client.HTTPException) as error:
            raise _Retry(_reason(error)) from error
        with response:
            offset, version = self._offered(response, have)
            self._total = version.total
            if offset == 0:
                self._discard()
                with output_errors(self.note):
                    atomic_write_json(self.note, asdict(version))
            if version.total is not None:
                check_space(self.target.parent, version.total - offset, self.target.name)
            self._receive(response, offset, version.total)

    def _known(self) -> _Version:
        """What the bytes at hand belong to; they are thrown away where nothing could prove it in the end."""
        try:
            version = _Version(**json.loads(self.note.read_text()))
        except (OSError, ValueError, TypeError):
            version = _Version()
        provable = bool(self.sha256) or (bool(version.validator) and version.url == self.url)
        longest = self.size if self.size is not None else version.total
        if not provable or (longest is not None and self._have() > longest):
            self._discard()
            return _Version()
        return version

    def _refused(self, error: urllib.error.HTTPError, have: int) -> None:
        if error.code == 416:
            # Nothing is left of this version: it is complete, or ours is longer than theirs.
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if total and int(total[1]) == have:
                return
            self._discard()
            raise _Retry("the server has a shorter file")
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Retry(f"the server answers {error.code}", _retry_after(error.headers)) from error
        meaning = {
            401: "it wants a login",
            403: "access is refused",
            404: "it is not there",
            410: "it is gone",
        }
        raise _Unavailable(f"{meaning.get(error.code, 'no')} ({error.code})") from error

    def _offered(self, response: Any, have: int) -> tuple[int, _Version]:
        """Where the bytes of this answer begin in the file, and which version it is."""
        headers = response.headers
        length = headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        offset = 0
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if not have or span is None or int(span[1]) != have:
                self._discard()
                raise _Retry("the server answers with another part than was asked for")
            offset, total = have, int(span[2]) if span[2].isdigit() else None
        elif response.status != 200:
            raise _Retry(f"the server answers {response.status}")
        if self.size is not None and total is not None and total != self.size:
            raise _Unavailable(f"it has {total} bytes there, not the published {self.size}")
        if headers.get_content_type() == "text/html" and not self.target.name.endswith(".html"):
            raise _Unavailable("a web page is there, not the file")
        if total is None:
            total = self.size
        return offset, _Version(self.url, headers.get("ETag", ""), headers.get("Last-Modified", ""), total)

    def _receive(self, response: Any, offset: int, total: int | None) -> None:
        """Appends an answer's bytes; a connection that gives next to nothing counts as stuck."""
        with output_errors(self.target), self.part.open("ab", buffering=0) as file:
            have = offset
            started, since = time.monotonic(), have
            while True:
                try:
                    chunk = response.read1(CHUNK)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    raise _Retry(_reason(error)) from error
                if not chunk:
                    break
                if total is not None and have + len(chunk) > total:
                    chunk = chunk[: total - have]
                _write_all(file, chunk)
                have += len(chunk)
                self._show(have)
                if total is not None and have >= total:
                    return
                elapsed = time.monotonic() - started
                if elapsed > self.policy.stall:
                    if (have - since) / elapsed < self.policy.slowest:
                        raise _Retry("the connection is stuck")
                    started, since = time.monotonic(), have
        if total is not None and have < total:
            raise _Retry(f"the connection ended after {have} of {total} bytes")

    def _checked(self) -> str:
        """The SHA-256 of the complete download.

        Raises:
            _Wrong: it is not the published file.
        """
        have, wanted = self._have(), self.size if self.size is not None else self._total
        if wanted is not None and have != wanted:
            raise _Wrong(f"{have} bytes came instead of {wanted}")
        digest = sha256_file(self.part)
        if self.sha256 and not digest.startswith(self.sha256):
            raise _Wrong(f"its SHA-256 is {digest[:12]}…, published is {self.sha256[:12]}…")
        if not self.sha256 and (fault := damage(self.part, self.target.suffix)):
            raise _Wrong(fault)
        return digest

    def _place(self) -> None:
        with output_errors(self.target):
            fsync_path(self.part)
            os.replace(self.part, self.target)  # noqa: PTH105 - the atomic call, by its name
            fsync_path(self.target.parent)
            self.note.unlink(missing_ok=True)

    def _discard(self) -> None:
        with output_errors(self.part):
            self.part.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)
        self._show(0)

    def _show(self, have: int) -> None:
        self._advance(have - self._shown)
        self._shown = have


class _Wrong(Exception):
    """A complete download is not the published file."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from an encrypted address to a plain one."""

    max_redirections = 10

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_safe_url(newurl):
            raise _Unavailable(f"it redirects to {newurl.partition('?')[0]}, which is not encrypted")
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def _write_all(file: IO[bytes], data: bytes) -> None:
    """Writes to an unbuffered file, which may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _reason(error: BaseException) -> str:
    """What went wrong with a connection, in a few words."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "the connection is stuck"
    text = str(inner.strerror if isinstance(inner, OSError) and inner.strerror else inner)
    return text.splitlines()[0][:120] if text else type(error).__name__


def _retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait (a number or a date), or None."""
    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d+", value):
        return float(value)
    with contextlib.suppress(TypeError, ValueError):
        when = email.utils.parsedate_to_datetime(value)
        return max(0.0, when.timestamp() - time.time())
    return None


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuses a download for which the disk has no room.

    Raises:
        OutputError: fewer bytes are free than it needs and a little more.
    """
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed + DISK_RESERVE > free:
        raise OutputError(
            f"{what} needs {human_bytes(needed)}, and {human_bytes(free)} are free at {folder}",
            "free some space, or set VISION3D_HOME (and HF_HOME) to a larger disk",
        )


def human_bytes(count: int | None) -> str:
    """``5.2 GB``, as people and disks count; ``?`` for an unknown number."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def damage(path: Path, suffix: str) -> str:
    """What is wrong with a file by its own account, or nothing: the only check where no checksum is published.

    Archives (among them what ``torch.save`` writes) hold a CRC of each member; a safetensors file says how long
    it is; JSON has to be JSON.
    """
    import zipfile

    if path.stat().st_size == 0:
        return "it is empty"
    with path.open("rb") as file:
        head = file.read(8)
        if suffix == ".safetensors":
            length = int.from_bytes(head, "little")
            try:
                header = json.loads(file.read(length)) if length < 1 << 28 else None
                ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]  # type: ignore[union-attr]
            except (ValueError, AttributeError, KeyError, TypeError, UnicodeDecodeError):
                return "it is no safetensors file"
            whole = 8 + length + max(ends, default=0)
            return "" if whole == path.stat().st_size else f"it should have {whole} bytes by its own account"
    if head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            return f"{bad} inside is damaged" if bad else ""
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
            return f"it is a damaged archive ({error})"
    if suffix == ".zip":
        return "it is no zip archive"
    if suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError:
            return "it is no JSON"
    return ""
