"""The local page and its data over HTTP, for this machine alone.

Binds 127.0.0.1, answers only requests to that name or `localhost` (another site whose name was pointed here is refused:
DNS rebinding), reads only the files of the page and of the runs it was started with, and changes nothing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ponder.errors import PonderError, UserError
from ponder.runs.files import plain
from ponder.viewing.catalog import Catalog

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HOST = "127.0.0.1"
OWN_NAME = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
"""What `Host` may be; with any port, since a tunnel may have another one."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MOST_LINES = 256
"""Rows that are asked for in full at once."""


class Server(ThreadingHTTPServer):
    """Serves a catalog of runs. Raises `UserError` for a port that cannot be used."""

    daemon_threads = True
    # Elsewhere than on Windows it only allows a port whose last connections are still closing.
    allow_reuse_address = os.name != "nt"

    def __init__(self, catalog: Catalog, port: int = 0) -> None:
        self.catalog = catalog
        try:
            super().__init__((HOST, port), Handler)
        except OverflowError:
            raise UserError(f"--port {port}: give a number from 0 (any free port) to 65535") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"--port {port}: is in use (by another viewer?); give another one, or 0 for any free port"
                ) from None
            raise UserError(f"--port {port}: cannot be used: {error.strerror or error}") from None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that has gone is no error."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "ponder"
    sys_version = ""
    timeout = 60

    def setup(self) -> None:
        super().setup()
        # Small answers must not wait for the acknowledgement of their headers.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or OWN_NAME.fullmatch(hosts[0]) is None:
            self._answer(HTTPStatus.FORBIDDEN, {"error": "this page is for this machine: use http://127.0.0.1"})
            return
        try:
            asked = urlsplit(self.path)
            given = {k: v[-1] for k, v in parse_qs(asked.query, keep_blank_values=True).items()}
            if asked.path in (files := page_files()):
                path = files[asked.path]
                self._send(HTTPStatus.OK, f"{TYPES[path.suffix]}; charset=utf-8", path.read_bytes())
            elif asked.path in ROUTES:
                self._answer(HTTPStatus.OK, ROUTES[asked.path](self.server.catalog, given))
            else:
                self._answer(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except (KeyError, IndexError, ValueError) as error:
            said = str(error) if isinstance(error, PonderError) else f"a wrong request ({error!r})"
            self._answer(HTTPStatus.BAD_REQUEST, {"error": said})
        except OSError as error:
            self._answer(HTTPStatus.GONE, {"error": f"{error.filename}: cannot be read: {error.strerror or error}"})
        except Exception as error:  # the page says it, and the other questions are still answered
            said = f"{type(error).__name__}: {error}; this is a bug of the viewer"
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": said})

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, value: Any) -> None:
        try:
            text = json.dumps(value, allow_nan=False, separators=(",", ":"))
        except ValueError:
            text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
        self._send(status, "application/json", text.encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal stays quiet."""


def page_files() -> dict[str, Path]:
    """The files of the page by their address: these and no others are served."""
    files = {f"/{p.name}": p for p in sorted(PAGE.iterdir()) if p.suffix in TYPES}
    return files | {"/": PAGE / "index.html"}


def _run(catalog: Catalog, given: Mapping[str, str], name: str = "run") -> int:
    number = int(given[name])
    if not 0 <= number < len(catalog.runs):
        raise IndexError(f"there is no run {number}")
    return number


def _state(catalog: Catalog, given: Mapping[str, str]) -> Any:
    run = catalog.runs[_run(catalog, given)]
    after, metrics = (max(0, int(given.get(name, "0"))) for name in ("after", "metrics_after"))
    return run.state(given.get("generation", ""), after, metrics)


def _lines(catalog: Catalog, given: Mapping[str, str]) -> Any:
    numbers = [int(n) for n in given["n"].split(",")][:MOST_LINES]
    return {"lines": catalog.runs[_run(catalog, given)].lines(given.get("generation", ""), numbers)}


def _search(catalog: Catalog, given: Mapping[str, str]) -> Any:
    return {"found": catalog.runs[_run(catalog, given)].search(given["q"])}


ROUTES: dict[str, Callable[[Catalog, Mapping[str, str]], Any]] = {
    "/api/runs": lambda catalog, _: catalog.listed(),
    "/api/state": _state,
    "/api/lines": _lines,
    "/api/search": _search,
    "/api/about": lambda catalog, given: catalog.runs[_run(catalog, given)].about(),
    "/api/compare": lambda catalog, given: catalog.compare(_run(catalog, given, "a"), _run(catalog, given, "b")),
}
