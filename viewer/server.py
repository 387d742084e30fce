"""A small web server for pages that are made here: it answers one browser on one address, and nobody else's pages."""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import Self, override

from vision3d.errors import InputError, Vision3DError
from vision3d.progress import show_traceback, warn

LOOPBACK = "127.0.0.1"
PORT = 8080
STRANGERS = "only pages of this server may ask"
_LONGEST_QUESTION = 8 << 20  # bytes

Answer = tuple[str, bytes]
"""Content type and body."""


def address_of(host: str) -> str:
    """The address that a name stands for: of several one of version 4, and one at which this machine can listen.

    Raises:
        InputError: the name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"host {host!r} is unknown", "give an address such as 127.0.0.1") from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    # link-local addresses of version 6 say on which interface
    places: list[list[Any]] = [list(entry[4]) for entry in found]
    addresses = [f"{place[0]}%{place[3]}" if any(place[3:]) else str(place[0]) for place in places]
    return next((address for address in addresses if _can_listen(address)), addresses[0])


def family_of(address: str) -> socket.AddressFamily:
    """Version 6 or 4."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _can_listen(address: str) -> bool:
    try:
        with socket.socket(family_of(address), socket.SOCK_STREAM) as trial:
            trial.bind((address, 0))
            return True
    except OSError:
        return False


def check_address(host: str, port: int) -> int:
    """The first free port from ``port`` on.

    Raises:
        InputError: the host is not an address of this machine, or the port is out of range.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port}", "give a number from 0 (any free one) to 65535")
    address = address_of(host)
    for number in [port, *range(port + 1, min(port + 100, 65536))] if port else [0]:
        try:
            with socket.socket(family_of(address), socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((address, number))
                return trial.getsockname()[1]
        except OSError as error:
            if isinstance(error, PermissionError):
                raise InputError(
                    f"no permission to listen on port {number}", "give one above 1023"
                ) from error
            if error.errno != errno.EADDRINUSE:
                raise InputError(
                    f"cannot listen on {host}:{number} ({error.strerror})", f"give --host {LOOPBACK}"
                ) from error
    raise InputError(f"ports {port} to {port + 99} are all taken", "give another --port")


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "ip6-localhost", "ip6-loopback")


def is_foreign(host: str, origin: str | None, listening: str) -> bool:
    """Whether something is asked by another site's page, or on a loopback address under a name that is not its own.

    Args:
        host, origin: what the browser says that it asks, and of which page.
        listening: the address that is listened on.
    """
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return True
    return is_loopback(listening) and not is_loopback(urlsplit(f"//{host}").hostname or "")


def url_of(host: str, port: int) -> str:
    """Where a browser on this machine finds what listens on an address."""
    name = LOOPBACK if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


class Running(ABC):
    """Something that listens until it is stopped, or its ``with`` block ends."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def wait(self) -> None:
        """Until :meth:`stop` or Ctrl-C."""
        while not self._closed.wait(0.5):
            pass

    def stop(self) -> None:
        """Close the server."""
        if not self._closed.is_set():
            self._closed.set()
            self._close()

    @abstractmethod
    def _close(self) -> None:
        """What :meth:`stop` does, once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class PageServer(Running):
    """A running server.

    What is asked by another site's page is refused, and on a loopback address also what was asked under another name
    than this machine's.

    Args:
        get: the answer to a path, or None if there is nothing.
        post: the answer to a path and what was sent to it, decoded from JSON; a :class:`Vision3DError` becomes a
            message for the page.
        host: address to listen on.
        port: to listen on, or the next free one; 0 is any free one.

    Attributes:
        url: where to look.

    Raises:
        InputError: a host or port that cannot be used.
    """

    def __init__(
        self,
        get: Callable[[str], Answer | None],
        post: Callable[[str, Any], Answer | None] | None = None,
        *,
        host: str,
        port: int,
    ) -> None:
        super().__init__()
        free = check_address(host, port)
        self.host = host

        class Handler(_Handler):
            answers = staticmethod(get), staticmethod(post) if post is not None else None
            listening = host

        address = address_of(host)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = family_of(address)

            def handle_error(self, request: Any, client_address: Any) -> None:
                """One line, and none where the browser went away."""
                error = sys.exc_info()[1]
                if not isinstance(error, (ConnectionError, TimeoutError)):
                    warn(f"a page could not be answered ({type(error).__name__}: {error})")

        self._server = Server((address, free), Handler)
        self.port = self._server.server_port
        self.url = url_of(host, self.port)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="vision3d pages",
            daemon=True,
        )
        self._thread.start()

    @override
    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    answers: tuple[Any, Any]
    listening: str
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if self._is_welcome():
            self._reply(lambda: self.answers[0](urlsplit(self.path).path))

    def do_POST(self) -> None:
        if not self._is_welcome():
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 <= length <= _LONGEST_QUESTION:
                raise ValueError
            sent = json.loads(self.rfile.read(length))
        except ValueError:
            self.close_connection = True
            self._send(400, "text/plain", b"this is no question that can be answered")
            return
        post = self.answers[1]
        self._reply(lambda: None if post is None else post(urlsplit(self.path).path, sent))

    def _is_welcome(self) -> bool:
        if is_foreign(self.headers.get("Host", ""), self.headers.get("Origin"), self.listening):
            self.close_connection = True
            self._send(403, "text/plain", STRANGERS.encode())
            return False
        return True

    def _reply(self, answer: Callable[[], Answer | None]) -> None:
        try:
            found = answer()
        except Vision3DError as error:
            self._send(400, "text/plain", str(error).encode("utf-8", "replace"))
            return
        except Exception as error:  # the page must hear of it, too
            show_traceback(error)
            warn(f"{self.path} could not be answered ({type(error).__name__}: {error})")
            self._send(500, "text/plain", b"this could not be answered; the terminal says why")
            return
        if found is None:
            self._send(404, "text/plain", b"there is nothing here")
        else:
            self._send(200, *found)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing: the terminal belongs to the program."""
