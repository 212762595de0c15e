"""Public data sets by name: found on this machine, or fetched, checked and packed."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vitscale.data.idx import open_idx
from vitscale.data.index import read_description
from vitscale.data.pack import Packed, Plan, Progress, is_whole, pack
from vitscale.data.sources import Options, fail
from vitscale.files import disk_errors, write_whole

TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True, slots=True)
class Public:
    """A data set of IDX files. `files`: name to SHA-256 of what gzip holds: its header differs between copies."""

    name: str
    installed: Path
    url: str
    files: dict[str, str]
    classes: tuple[str, ...]


FASHION_MNIST = Public(
    name="fashion-mnist",
    installed=Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    files={
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    classes=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
)  # fmt: skip

SETS = {public.name: public for public in (FASHION_MNIST,)}


def fetch(
    public: Public, out: Path, *, progress: Progress | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Packed]:
    """Packs the two splits as `out/NAME-train` and `out/NAME-test`; nothing is read again where both are whole.

    Raises `VitscaleError` (exit 5) naming the file that cannot be fetched or is not the published one.
    """
    folders = {split: out / f"{public.name}-{split}" for split in ("train", "test")}
    if all(is_whole(folder) for folder in folders.values()):
        return [Packed(folder, read_description(folder) or {}, [], was_there=True) for folder in folders.values()]
    with disk_errors(out):
        folder = _files(public, out, say)
    done = []
    for split, target in folders.items():
        source = open_idx(folder, Options(split=split, num_classes=len(public.classes)))
        # Where the files lay on this machine is no property of the data set.
        source = replace(source, classes=public.classes, path=Path(f"{public.name} {split}"))
        done.append(pack(source, target, Plan(name=f"{public.name}-{split}"), progress=progress))
    return done


def _files(public: Public, out: Path, say: Callable[[str], None]) -> Path:
    """The folder with the four files, checked: the installed one, or one that they are downloaded to."""
    if all((public.installed / name).is_file() for name in public.files):
        say(f"reading {public.installed}")
        for name, digest in public.files.items():
            _check(public.installed / name, (public.installed / name).read_bytes(), digest)
        return public.installed
    folder = out / f"{public.name}-download"
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in public.files.items():
        path = folder / name
        if path.is_file():
            _check(path, path.read_bytes(), digest)
            continue
        url = f"{public.url}/{name}"
        say(f"fetching {url}")
        data = _download(url)
        _check(url, data, digest)
        write_whole(path, data)
    return folder


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            data: bytes = answer.read()
            return data
    except (OSError, http.client.HTTPException) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        hint = "check the network, or install Debian's package dataset-fashion-mnist"
        raise fail(f"{url}: cannot be fetched ({reason})", hint) from error


def _check(where: Path | str, data: bytes, digest: str) -> None:
    try:
        found = hashlib.sha256(gzip.decompress(data)).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise fail(f"{where}: not a whole gzip file ({error})", "delete the file and run the command again") from error
    if found != digest:
        raise fail(f"{where}: SHA-256 {found[:12]}... and not {digest[:12]}...", "this is not the published file")
