"""Where a data set lies: a folder of tars, tars one by one, or the same on a server; and where a copy is kept."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from vitscale.errors import MISSING, USAGE, VitscaleError

DESCRIPTION = "dataset.json"
SCHEMES = {  # and what has to follow each
    "http": ("host", "host/folder/"),
    "https": ("host", "host/folder/"),
    "s3": ("bucket", "bucket/folder/"),
    "gs": ("bucket", "bucket/folder/"),
    "hf": ("repository", "datasets/people/set/"),
}
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
LONGEST = 255  # bytes of a name, on all usual file systems
MOST_SHARDS = 1_000_000  # a pattern with more is a slip of the keyboard, and its names alone would fill the memory
CACHE_SIZE = 100 * 10**9  # bytes: most of ImageNet-1k, on the disk of most workstations
UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
EXAMPLES = "a folder, a .tar, train-{0000..1023}.tar, a.tar::b.tar, a .txt with one shard a line, or the URL of one"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, slots=True)
class Location:
    """A data set's place. `names` are its shards', relative to `root`; None: all the tars in the folder `root`."""

    text: str
    """What says the same from any working directory."""
    root: str
    """A path or a URL without a slash at its end; empty where the shards have no folder in common."""
    names: tuple[str, ...] | None = None

    @property
    def remote(self) -> bool:
        return any(_SCHEME.match(place) for place in (self.root, *(self.names or ())))

    @property
    def folder(self) -> Path | None:
        """The local folder that this is; None for anything else."""
        return None if self.remote or self.names is not None else Path(self.root)

    def shard(self, name: str) -> str:
        """Path or URL of a shard."""
        return f"{self.root}/{name}" if self.root else name

    @property
    def kept(self) -> Path:
        """The folder in the cache for the index of a set that cannot keep it beside its shards."""
        names = [self.root, *(self.names or ())]
        return (
            cache_folder()
            / "index"
            / hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        )

    @property
    def described(self) -> Path | None:
        """The folder that holds the set's description and index; None where it has none yet."""
        folder = self.folder
        if folder is not None and (folder / DESCRIPTION).exists():
            return folder
        return self.kept if (self.kept / DESCRIPTION).exists() else None

    @property
    def at_hand(self) -> bool:
        return self.described is not None or (self.folder is not None and self.folder.exists())


def is_url(text: str) -> bool:
    return _SCHEME.match(text) is not None


def path_of(place: str) -> str:
    """A path, or that of a URL without its query."""
    return re.split(r"[?#]", place)[0] if is_url(place) else place


def is_tar(place: str) -> bool:
    """Whether the name is that of a tar, plain or compressed."""
    return path_of(place).lower().endswith(TARS)


def is_compressed(place: str) -> bool:
    return not path_of(place).lower().endswith(".tar")


def locate(text: str, *, base: Path | None = None) -> Location:
    """The place that `text` names; relative paths are looked up from `base`, or else from the working directory.

    Raises:
        VitscaleError: it is none (exit 2), or it is a list that cannot be read (exit 5).
    """
    base = base or Path()
    if not text:
        raise _wrong("a data set needs a name", f"for example {EXAMPLES}")
    parts = [_absolute(part, base) for part in text.split("::")]
    if len(parts) == 1 and _is_folder(parts[0]):
        return Location(parts[0].rstrip("/") or "/", parts[0].rstrip("/") or "/")
    shards = _listed(Path(parts[0])) if parts[0].endswith(".txt") and len(parts) == 1 else _expanded(parts)
    twice = next((shard for shard, times in Counter(shards).items() if times > 1), None)
    if twice is not None:
        raise _wrong(f"{text}: names {twice} twice", "name each shard once")
    root, names = _common(shards)
    return Location("::".join(parts), root, names)


def _wrong(message: str, hint: str) -> VitscaleError:
    return VitscaleError(message, hint=hint, exit_code=USAGE)


def _absolute(part: str, base: Path) -> str:
    scheme = _SCHEME.match(part)
    if scheme is None:
        if "{" not in part and any(len(os.fsencode(name)) > LONGEST for name in part.split("/")):
            raise _wrong(f"{part[:40]}...: no file has a name of more than {LONGEST} bytes", f"for example {EXAMPLES}")
        return os.path.realpath(base / part) if part else part  # of a plan of thousands of runs `resolve` takes a tenth
    if scheme[1].lower() == "file":
        return str(Path(part[len(scheme[0]) :]).resolve())
    if scheme[1] not in SCHEMES:
        near = difflib.get_close_matches(scheme[1].lower(), SCHEMES, n=1, cutoff=0.5)
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise _wrong(
            f"{part}: unknown scheme {scheme[0]!r}",
            f"did you mean '{near[0]}://'?" if near else f"one of {known}, or a local path",
        )
    what, example = SCHEMES[scheme[1]]
    if part == scheme[0] or part[len(scheme[0])] == "/":
        raise _wrong(f"{part}: names no {what}", f"for example {scheme[0]}{example}")
    return part


def _is_folder(part: str) -> bool:
    if is_url(part):
        return not is_tar(part) and not part.endswith(".txt")
    path = Path(part)
    with suppress(OSError):  # a pattern may be longer than a name
        if path.is_dir():
            return True
    return not (is_tar(part) or (part.endswith(".txt") and path.is_file()))


def _listed(path: Path) -> list[str]:
    """Shards of a text file: one location a line, relative to the file; from # on it is a comment."""
    try:
        lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text in UTF-8"
        raise VitscaleError(
            f"{path}: the list of shards cannot be read: {reason}",
            hint="a list is a local text file with one shard a line",
            exit_code=MISSING,
        ) from None
    shards = _expanded([_absolute(part, path.parent) for line in lines if line for part in line.split("::")])
    if not shards:
        raise _wrong(f"{path}: lists no shards", "write one shard a line")
    return shards


def _expanded(parts: list[str]) -> list[str]:
    shards: list[str] = []
    for part in parts:
        if not is_tar(part):
            what = f"{part!r} in a list of shards is no .tar" if part else "a list of shards has an empty place"
            raise _wrong(what, f"lists hold shards, not folders: {EXAMPLES}")
        shards += [part] if not is_url(part) and Path(part).is_file() else expand(part)
    return shards


def expand(pattern: str) -> list[str]:
    """The names that a brace pattern stands for: `{000..127}` counts and keeps its zeros, `{a,b}` chooses.

    Raises:
        VitscaleError: a range runs backwards, braces don't pair, or the names are too many (exit 2).
    """
    pieces = _GROUP.split(pattern)  # text, group, text, group, ..., text
    if any(brace in text for text in pieces[::2] for brace in "{}"):
        raise _wrong(f"{pattern}: its braces don't pair", f"for example {EXAMPLES}")
    count = 1
    choices: list[list[str]] = []
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            choices.append([piece])
            continue
        match = _RANGE.fullmatch(piece)
        count *= int(match[2]) - int(match[1]) + 1 if match else piece.count(",") + 1
        if not 0 < count <= MOST_SHARDS:
            raise _wrong(
                f"{pattern}: names {count:,} shards" if count > 0 else f"{pattern}: {piece} runs backwards",
                "for example {0000..1023}",
            )
        choices.append(_counted(match[1], match[2]) if match else piece.split(","))
    return ["".join(chosen) for chosen in product(*choices)]


def _counted(first: str, last: str) -> list[str]:
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _common(shards: list[str]) -> tuple[str, tuple[str, ...]]:
    """The folder that all shards lie in, and their names from there."""
    paths = [shard.split("/") for shard in shards]
    depth = 0
    while all(len(path) > depth + 1 and path[depth] == paths[0][depth] for path in paths):
        depth += 1
    root = "/".join(paths[0][:depth])
    if not root or (is_url(root + "/") and depth < 3):
        return "", tuple(shards)
    return root, tuple("/".join(path[depth:]) for path in paths)


def config_file() -> Path:
    """The user's own settings, of all studies: `vitscale/config.toml` in XDG_CONFIG_HOME or `~/.config`."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  # there may be no home
    return Path(home) / "vitscale" / "config.toml"


def cache_folder() -> Path:
    """Where indexes and pieces of remote shards are kept: VITSCALE_CACHE, or else `vitscale` in the user's cache."""
    given = os.environ.get("VITSCALE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(given).expanduser().absolute() if given else Path(home).expanduser().absolute() / "vitscale"
    except RuntimeError:
        hint = "set VITSCALE_CACHE to a folder"
        raise VitscaleError("there is no home folder for the cache", hint=hint, exit_code=MISSING) from None


def cache_size() -> int:
    """The most bytes of shards that the cache may hold: VITSCALE_CACHE_SIZE. Raises `VitscaleError` (exit 2)."""
    given = os.environ.get("VITSCALE_CACHE_SIZE")
    if not given:
        return CACHE_SIZE
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", given.strip().lower())
    size = round(float(match[1]) * (1024 if match[3] else 1000) ** UNITS[match[2]]) if match else 0
    if size < 1:
        raise _wrong(f"VITSCALE_CACHE_SIZE={given!r} is no size", "bytes with a unit, for example 200GB or 64GiB")
    return size
