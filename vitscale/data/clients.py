"""How fsspec's file systems are spoken to: their time-outs, and no retries but ours where they can be told so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.asyn import sync

from vitscale.data.remote import Client, Failure, NoRanges, Stat

VERSIONS = ("ETag", "etag", "blob_id")
STREAMED = 2**20  # bytes at a time from a server that sends whole files


def make(protocol: str, timeout: float) -> Client:
    if protocol in ("http", "https"):
        return Http(timeout)
    return Stored(protocol, _options(protocol, timeout))


def _options(protocol: str, timeout: float) -> dict[str, Any]:
    if protocol == "s3":
        retries = {"total_max_attempts": 1, "mode": "standard"}
        config = {"connect_timeout": timeout, "read_timeout": timeout, "retries": retries}
        return {"config_kwargs": config, "use_listings_cache": False}
    if protocol == "gs":
        from aiohttp import ClientTimeout

        wait = ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"requests_timeout": wait, "use_listings_cache": False}
    if protocol == "hf" and "HF_HUB_DOWNLOAD_TIMEOUT" not in os.environ:
        from huggingface_hub import constants

        constants.HF_HUB_DOWNLOAD_TIMEOUT = max(1, round(timeout))
    return {}


def _file_system(protocol: str) -> Any:
    if protocol == "gs":
        # The one that is registered asks another service over gRPC, for minutes, what kind of bucket it has.
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem
    return fsspec.get_filesystem_class(protocol)


class Stored:
    """Objects in a store that states size and version of each."""

    def __init__(self, protocol: str, options: dict[str, Any]) -> None:
        self.fs = _file_system(protocol)(skip_instance_cache=True, **options)
        self.fs.retries = 1  # s3fs's own, which know no back-off of some length
        # The hub's file system asks for the one file then, not for its whole folder, and reads nothing ahead.
        self._afresh = {"refresh": True, "expand_info": True} if protocol == "hf" else {}
        self._unbuffered = {"cache_type": "none"} if protocol == "hf" else {}

    def stat(self, url: str) -> Stat:
        facts = self.fs.info(url, **self._afresh)
        if facts["type"] != "file":
            raise FileNotFoundError(url)
        return Stat(int(facts["size"]), next((str(facts[key]) for key in VERSIONS if facts.get(key)), ""))

    def read(self, url: str, start: int, end: int) -> tuple[Stat, bytes]:
        return self.stat(url), self.fs.cat_file(url, start=start, end=end, **self._unbuffered)

    def list(self, url: str) -> list[str]:
        return [str(name) for name in self.fs.ls(url, detail=False)]


class Http:
    """fsspec's session and loop, with requests of our own: its `info` takes any failure for a missing file, and its
    `cat_file` reads all of a file from a server that knows no ranges.
    """

    def __init__(self, timeout: float) -> None:
        from aiohttp import ClientTimeout

        wait = ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        self.fs = fsspec.filesystem(
            "http", skip_instance_cache=True, client_kwargs={"timeout": wait, "trust_env": True}
        )
        self._without_ranges: set[str] = set()

    def stat(self, url: str) -> Stat:
        return sync(self.fs.loop, self._stat, url)

    async def _stat(self, url: str) -> Stat:
        # Not HEAD, which signed URLs and some servers refuse; a body that comes all the same is not read.
        response = await self._get(url, "bytes=0-0")
        try:
            if response.status == 206:
                await response.read()  # one byte, after which the connection can be used again
            elif response.status == 200:
                self._without_ranges.add(url)
            return _stat_of(response)
        finally:
            response.close()

    async def _get(self, url: str, wanted: str = "") -> Any:
        session = await self.fs.set_session()
        headers = {"Accept-Encoding": "identity", **({"Range": wanted} if wanted else {})}
        response = await session.get(self.fs.encode_url(url), headers=headers)
        if response.status >= 400 and response.status != 416:
            response.close()
            response.raise_for_status()
        return response

    def read(self, url: str, start: int, end: int) -> tuple[Stat, bytes]:
        if url in self._without_ranges:
            raise NoRanges(lambda: self._whole(url))
        return sync(self.fs.loop, self._read, url, start, end)

    async def _read(self, url: str, start: int, end: int) -> tuple[Stat, bytes]:
        response = await self._get(url, f"bytes={start}-{end - 1}")
        try:
            if response.status == 200:
                raise NoRanges(lambda: self._whole(url))
            found = _stat_of(response)
            if response.status == 416:
                return found, b""
            if not response.headers["Content-Range"].startswith(f"bytes {start}-"):
                raise Failure("the server sends other bytes than it was asked for")
            return found, await response.read()
        finally:
            response.close()

    def _whole(self, url: str) -> Iterator[bytes]:
        response = sync(self.fs.loop, self._get, url)
        try:
            while data := sync(self.fs.loop, response.content.read, STREAMED):
                yield data
        finally:
            self.fs.loop.call_soon_threadsafe(response.close)

    def list(self, url: str) -> list[str]:
        # The page of a folder is read anew each time; links to other folders are not ours.
        return [name for name in self.fs.ls(url, detail=False) if str(name).rpartition("/")[0] + "/" == url]


def _stat_of(response: Any) -> Stat:
    headers = response.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] if response.status in (206, 416) else ""
    total = total or headers.get("Content-Length", "")
    if not total.isdigit():
        raise Failure("the server does not say how long the file is")
    return Stat(int(total), headers.get("ETag") or headers.get("Last-Modified") or "")
