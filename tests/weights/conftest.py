"""A server on loopback that fails in every way that servers fail, and a home of its own for each test."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vision3d.weights import manifest as manifests
from vision3d.weights.download import Policy

FAST = Policy(attempts=8, backoff=0.01, longest_wait=5.0, stall=0.6, wrong=4)


@dataclass
class Served:
    """One file of the server.

    Attributes:
        content: its bytes.
        faults: what to do to the next requests, one each; then it is served well.
        etag: entity tag; empty for a server that sends none.
        rate: bytes per second; None for all at once.
        ranges: whether parts may be asked for.
    """

    content: bytes
    faults: deque[str] = field(default_factory=deque)
    etag: str = '"v1"'
    rate: float | None = None
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class FaultyServer(http.server.ThreadingHTTPServer):
    """Serves ``files`` by path, and notes every request."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.documents: dict[str, Any] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.rng = random.Random(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, path: str, content: bytes, *faults: str, **options: Any) -> Served:
        self.files[path] = Served(content, deque(faults), **options)
        return self.files[path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests die; that is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if path in self.server.documents:
            self.plain(200, json.dumps(self.server.documents[path]).encode(), "application/json")
            return
        served = self.server.files.get(path)
        if served is None:
            self.plain(404, b"no such file", "text/plain")
            return
        fault = served.faults.popleft() if served.faults and body else ""
        if fault.isdigit():
            self.plain(int(fault), b"not now", "text/plain")
        elif fault.startswith("wait "):  # "wait 503 0": an error with Retry-After
            _, code, seconds = fault.split(" ", 2)
            self.plain(int(code), b"later", "text/plain", {"Retry-After": seconds})
        elif fault.startswith("redirect"):
            _, code, target = fault.split()
            self.plain(int(code), b"", "text/plain", {"Location": target})
        elif fault == "html":
            self.plain(200, b"<html>please log in</html>", "text/html")
        else:
            self.serve(served, fault, body)

    def plain(self, code: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def serve(self, served: Served, fault: str, body: bool) -> None:
        content, start = served.content, 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if match and served.ranges and condition in (None, served.etag):
            start = int(match[1])
            if start >= len(content):
                self.plain(416, b"", "text/plain", {"Content-Range": f"bytes */{len(content)}"})
                return
        if fault == "short":  # a complete answer, by its own account
            content = content[: max(start + 1, len(content) // 2)]
        part = content[start:]
        if fault == "corrupt":
            spot = self.server.rng.randrange(len(part))
            part = part[:spot] + bytes([part[spot] ^ 0xFF]) + part[spot + 1 :]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        if fault != "endless":
            self.send_header("Content-Length", str(len(part)))
        else:
            self.send_header("Connection", "close")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if served.etag:
            self.send_header("ETag", served.etag)
        for name, value in served.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        ends = len(part)
        if fault in ("drop", "stall"):
            ends = self.server.rng.randrange(1, max(2, len(part)))
        with suppress(OSError):
            self.send_slowly(part[:ends], served.rate)
            if fault == "stall":
                self.wfile.flush()
                time.sleep(2.5)
        if fault in ("drop", "stall", "endless"):
            self.close_connection = True

    def send_slowly(self, data: bytes, rate: float | None) -> None:
        if rate is None:
            self.wfile.write(data)
            return
        step = 1 << 15
        for i in range(0, len(data), step):
            self.wfile.write(data[i : i + step])
            time.sleep(step / rate)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """The server, running."""
    running = FaultyServer()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def fast() -> Policy:
    """Patience for a server that is near."""
    return FAST


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``VISION3D_HOME`` and ``HF_HOME``; downloads are allowed."""
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("VISION3D_MANIFEST", raising=False)
    return tmp_path / "home"


@pytest.fixture
def use_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Adds entries (TOML) to the manifest."""

    def use(text: str) -> Path:
        path = tmp_path / "manifest.toml"
        path.write_text(text)
        manifests._load.cache_clear()
        monkeypatch.setenv("VISION3D_MANIFEST", str(path))
        return path

    return use


@pytest.fixture
def vision3d() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        import os

        return subprocess.run(
            [sys.executable, "-m", "vision3d", *words],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture(scope="session")
def blob() -> bytes:
    """1.5 MB that do not compress."""
    return random.Random(7).randbytes(1_500_000)
