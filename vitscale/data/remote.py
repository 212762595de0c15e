"""Files on servers, through fsspec: the right bytes of the right file, or a `VitscaleError` that names the URL."""

from __future__ import annotations

import importlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.locations import is_tar

TIMEOUT = 60.0  # seconds without a byte: no server that still works is silent for so long
TRIES = 5
PAUSE = 0.5  # seconds before the second try, doubled before each later one: with TRIES, at most 7.5 s of waiting
CHUNK = 16 * 2**20  # bytes of one request in a stream
REFUSED = {401: "access is refused", 403: "access is refused", 404: "there is no such file", 410: "the file is gone"}
REMEMBERED = 5.0  # seconds at least for which a file that was given up is not asked for again
AGAIN = (408, 425, 429)  # of HTTP's 4xx: the server asks to come again
MODULES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
CUT = ("ClientPayloadError", "IncompleteReadError", "ResponseStreamingError", "RemoteProtocolError")
SELF_RETRYING = ("gs", "hf")  # their clients have tried again, with pauses, before they raise

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stat:
    """What tells a file from another at its place. `version`: its ETag or what stands for it; "" where unknown."""

    size: int
    version: str = ""


class UnreachableError(VitscaleError):
    """The server says that there is no such file, or that it is not for us."""


class GivenUpError(VitscaleError):
    """The server did not give what it was asked for, often as it was asked."""


class NoRanges(Exception):  # noqa: N818
    """The server sends whole files only. `whole` asks for this one, from its start."""

    def __init__(self, whole: Callable[[], Iterator[bytes]]) -> None:
        super().__init__("the server sends whole files only")
        self.whole = whole


class Failure(Exception):  # noqa: N818
    """Of one try. `status`: HTTP's, where the server answered; `passing`: the next try may go well."""

    def __init__(self, reason: str, *, status: int | None = None, passing: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.passing = passing


@runtime_checkable
class Client(Protocol):
    """How a protocol is spoken. Errors are whatever its library raises; `_failure` knows them."""

    def stat(self, url: str) -> Stat: ...

    def read(self, url: str, start: int, end: int) -> tuple[Stat, bytes]: ...

    def list(self, url: str) -> list[str]: ...


def timeout() -> float:
    """Seconds without a byte after which a server is given up: VITSCALE_TIMEOUT. Raises `VitscaleError` (exit 2)."""
    given = os.environ.get("VITSCALE_TIMEOUT", str(TIMEOUT))
    if not re.fullmatch(r"\d+(\.\d+)?", given) or not 0 < float(given) < 1e6:
        hint = "seconds, for example 60"
        raise VitscaleError(f"VITSCALE_TIMEOUT={given!r} is no number of seconds", hint=hint, exit_code=USAGE)
    return float(given)


def stat(url: str) -> Stat:
    """Size and version of a file. Raises `VitscaleError` (exit 5), as all here."""
    return _tried(url, lambda: client(url).stat(url))


def shards(url: str) -> list[str]:
    """Names of the tars in a remote folder, sorted."""
    folder = url.rstrip("/") + "/"
    names = [place.rstrip("/").rpartition("/")[2] for place in _tried(url, lambda: client(url).list(folder))]
    return sorted({name for name in names if is_tar(name) and not name.startswith(".")})


def read(url: str, start: int, end: int, expected: Stat) -> bytes:
    """Bytes `start` to `end` of the expected file. Raises `NoRanges` where the server would send all of it."""

    def once() -> bytes:
        found, data = client(url).read(url, start, end)
        check(url, found, expected)
        if len(data) != end - start:
            raise Failure(f"the transfer was cut off: {len(data):,} of {end - start:,} bytes", passing=True)
        return data

    return _tried(url, once)


def check(url: str, found: Stat, expected: Stat) -> None:
    """Raises `VitscaleError` for another file than the index was made from."""
    changed = found.version != expected.version and bool(found.version and expected.version)
    if found.size != expected.size or changed:
        what = "its version" if found.size == expected.size else f"{found.size:,} bytes, not {expected.size:,}"
        raise VitscaleError(
            f"{_shown(url)}: the shard was replaced: it is not the one that was indexed ({what})",
            hint="make the index again: `vitscale data index LOCATION --again`; other data make other runs",
            exit_code=MISSING,
        )


def stream(url: str, expected: Stat) -> Iterator[bytes]:
    """All of the file, in order. After a failure it goes on where it was."""
    done = 0
    try:
        while done < expected.size:
            data = read(url, done, min(done + CHUNK, expected.size), expected)
            done += len(data)
            yield data
    except NoRanges as server:
        yield from _stream_whole(url, expected.size, server.whole)


def _stream_whole(url: str, size: int, whole: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
    """What the server sends again after a failure is passed over."""
    done = failures = 0
    while done < size:
        position = 0
        try:
            for data in whole():
                fresh = data[max(done - position, 0) :]
                position += len(data)
                done += len(fresh)
                if done > size:
                    raise Failure(f"the server sends more than the {size:,} bytes that it spoke of")
                if fresh:
                    yield fresh
            if done < size:
                raise Failure(f"the transfer was cut off: {done:,} of {size:,} bytes", passing=True)
        except Exception as error:
            failures += 1
            _wait(url, error, failures)


def content(url: str) -> bytes:
    """A small file."""
    return b"".join(stream(url, stat(url)))


def _tried(url: str, call: Callable[[], T]) -> T:
    failures = 0
    begun = time.monotonic()
    while True:
        _check_given_up(url)
        try:
            return call()
        except (NoRanges, VitscaleError):
            raise
        except Exception as error:
            failures += 1
            _wait(url, error, failures, time.monotonic() - begun)


_given_up: dict[str, tuple[float, GivenUpError]] = {}


def _check_given_up(url: str) -> None:
    """Raises the error of a file that was given up a moment ago.

    Whoever waited while another thread tried gets that thread's error, and does not begin with tries of its own.
    """
    until, error = _given_up.get(url, (0.0, None))
    if error is not None and time.monotonic() < until:
        raise GivenUpError.of(error.problems, exit_code=error.exit_code)


def _wait(url: str, error: Exception, failures: int, took: float = 0.0) -> None:
    """Before the next try; after the last one, or where none would help, raises `VitscaleError`.

    `took`: seconds since the first try, for which the error is remembered.
    """
    failure = _failure(url, error)
    if failure.passing and failures < TRIES:
        # Drawn, so that the processes of a run that failed together don't all come back together.
        time.sleep(PAUSE * 2 ** (failures - 1) * random.uniform(0.5, 1.0))
        return
    tries = f" ({failures} tries)" if failures > 1 else ""
    if failure.status in REFUSED:
        hint = "check the name, and the credentials in the environment (docs/data.md)"
        raise UnreachableError(f"{_shown(url)}: {failure}", hint=hint, exit_code=MISSING) from error
    hint = "check the connection and the server; VITSCALE_TIMEOUT is how many seconds a silent one is waited for"
    final = GivenUpError(f"{_shown(url)}: {failure}{tries}", hint=hint, exit_code=MISSING)
    _given_up[url] = time.monotonic() + max(took, REMEMBERED), final
    raise final from error


def _failure(url: str, error: Exception) -> Failure:
    """What an exception of one of the clients means. They have no base in common."""
    if isinstance(error, Failure):
        return error
    status = _status(error)
    if status is not None and status >= 400:
        again = status in AGAIN or status >= 500
        return Failure(f"{REFUSED.get(status, 'the server answers')} ({status})", status=status, passing=again)
    if isinstance(error, TimeoutError):
        return Failure(f"no byte came for {timeout():g} s", passing=True)
    name, library = type(error).__name__, type(error).__module__.partition(".")[0]
    reason = "the transfer was cut off" if name in CUT else f"{name}: {' '.join(str(error).split())[:300]}"
    broken = isinstance(error, OSError | EOFError) or library in ("aiohttp", "botocore", "aiobotocore", "httpx2")
    return Failure(reason.rstrip(": "), passing=broken and url.partition("://")[0] not in SELF_RETRYING)


def _status(error: BaseException) -> int | None:
    """HTTP's status of an answer that a client raised."""
    if isinstance(error, FileNotFoundError):
        return 404
    if isinstance(error, PermissionError):
        return 403
    if type(error).__name__ == "HttpError":  # gcsfs's
        status = getattr(error, "code", None)
    elif isinstance(error.__cause__, Exception) and isinstance(getattr(error.__cause__, "response", None), dict):
        return _status(error.__cause__)  # s3fs's, of what botocore raised
    else:
        response = getattr(error, "response", None)
        told = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        status = told.get("HTTPStatusCode") or getattr(response, "status_code", None) or getattr(error, "status", None)
    return int(status) if isinstance(status, int | str) and str(status).isdigit() else None


def _shown(url: str) -> str:
    """Without the secrets that a URL may hold: a password, or a signature in its query."""
    return re.sub(r"(?<=://)[^/@]*@|\?.*", "", url)


_clients: dict[tuple[int, str], Client] = {}


def client(url: str) -> Client:
    """The client of a URL's protocol in this process: a connection, or an event loop, does not survive a fork."""
    protocol = url.partition("://")[0]
    key = (os.getpid(), protocol)
    if key not in _clients:
        try:
            importlib.import_module(MODULES[protocol])
        except ImportError:
            extra = protocol.removesuffix("s") if protocol == "https" else protocol
            raise VitscaleError(
                f"{_shown(url)}: {protocol}:// needs the package {MODULES[protocol]}",
                hint=f"pip install 'vitscale[{extra}]'",
                exit_code=MISSING,
            ) from None
        from vitscale.data import clients

        _clients.setdefault(key, clients.make(protocol, timeout()))
    return _clients[key]
