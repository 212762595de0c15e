"""Servers on loopback that give files, and fail in the ways that servers fail."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote


@dataclass(frozen=True)
class Fault:
    """`status`: the answer is this one. `cut`: the connection ends after so many bytes of the body, `stall`: nothing
    comes after them, `short`: the body ends there and the headers say so.
    """

    kind: Literal["status", "cut", "stall", "short"]
    value: int


class FileServer(ThreadingHTTPServer):
    """Files of a folder over HTTP."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.ranges = True
        self.faults: list[Fault] = []  # of the next requests for bodies, one each
        self.always: Fault | None = None
        self.requests: list[tuple[str, str | None]] = []  # (path, range) of each request for a body
        self.probes = 0  # requests for one byte, which ask for the size
        self.released = threading.Event()  # ends what stalls
        self.hold: threading.Event | None = None  # answers wait for it
        self.arrived = threading.Semaphore(0)  # one for each body that was asked for
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""

    def fault(self) -> Fault | None:
        with self.lock:
            return self.faults.pop(0) if self.faults else self.always


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.server.folder / unquote(self.path.split("?")[0]).lstrip("/")
        if path.is_dir():
            names = "".join(f'<a href="{entry.name}">{entry.name}</a>\n' for entry in sorted(path.iterdir()))
            return self._answer(200, names.encode(), {"Content-Type": "text/html"})
        wanted = self.headers.get("Range")
        probe = wanted == "bytes=0-0"
        with self.server.lock:
            self.server.probes += probe
            if not probe:
                self.server.requests.append((self.path.lstrip("/"), wanted))
        self.server.arrived.release()
        if self.server.hold is not None and not probe:
            self.server.hold.wait(30)
        fault = None if probe else self.server.fault()
        if fault and fault.kind == "status":
            return self._answer(fault.value, b"")
        if not path.is_file():
            return self._answer(404, b"")
        return self._file(path.read_bytes(), wanted, fault)

    def _file(self, data: bytes, wanted: str | None, fault: Fault | None) -> None:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"'}
        if not self.server.ranges or wanted is None:
            return self._answer(200, data, headers, fault)
        start, end = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        if start >= len(data):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        body = data[start : end + 1]
        headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(data)}"
        return self._answer(206, body, headers, fault)

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        if fault and fault.kind == "short":
            body = body[: fault.value]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body if fault is None or fault.kind == "short" else body[: fault.value])
            self.wfile.flush()
        if fault and fault.kind == "stall":
            self.server.released.wait(30)
        if fault and fault.kind in ("cut", "stall"):
            self.close_connection = True


@contextlib.contextmanager
def file_server(folder: Path, kind: type[FileServer] | None = None) -> Iterator[FileServer]:
    server = (kind or FileServer)(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class HubServer(FileServer):
    """As much of the Hugging Face Hub as reading a data set needs: the repository is the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.RequestHandlerClass = _HubHandler


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/datasets/") and "/tree/" in path:
            return self._json([self._facts(file) for file in sorted(self.server.folder.iterdir())])
        if path.startswith("/api/datasets/"):
            return self._json({"id": "people/set", "sha": "f" * 40, "siblings": [], "private": False, "downloads": 0})
        self.path = path.partition("/resolve/main")[2] or path
        return super().do_GET()

    def do_POST(self) -> None:
        fields = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        files = [self.server.folder / name for name in fields["paths"]]
        return self._json([self._facts(file) for file in files if file.is_file()])

    def _facts(self, file: Path) -> dict[str, object]:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": digest[:40]}

    def _json(self, document: object) -> None:
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


class BucketServer(FileServer):
    """As much of Google Cloud Storage as reading needs: the bucket is the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.RequestHandlerClass = _BucketHandler


class _BucketHandler(_HubHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        name = unquote(path.partition("/o/")[2])
        if "alt=media" in query:
            self.path = "/" + name
            return _Handler.do_GET(self)
        if not name:
            found = [self._facts(file) for file in sorted(self.server.folder.iterdir())]
            return self._json({"kind": "storage#objects", "items": found})
        file = self.server.folder / name
        return self._json(self._facts(file)) if file.is_file() else self._answer(404, b"")

    def _facts(self, file: Path) -> dict[str, object]:
        etag = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        return {
            "bucket": "shards",
            "name": file.name,
            "size": str(file.stat().st_size),
            "etag": etag,
            "kind": "storage#object",
        }
