"""Small real data sets for the tests of this folder."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vitscale.data.pack import Packed, Plan, pack
from vitscale.data.sources import Options, open_source


def pixels(seed: int, width: int = 12, height: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(seed: int, fmt: str = "PNG", *, width: int = 12, height: int = 10) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(seed, width, height)).save(out, format=fmt)
    return out.getvalue()


def saved(image: Image.Image, fmt: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=fmt, **options)  # type: ignore[arg-type]
    return out.getvalue()


def photo(seed: int, width: int = 240, height: int = 180) -> Image.Image:
    """Smooth shapes under some noise, as a camera gives them."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = generator.integers(-10, 11, (height, width, 3))
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def photos(folder: Path, count: int) -> Path:
    """A shard of JPEGs."""
    members = {}
    for i in range(count):
        members |= {f"{i}.jpg": saved(photo(i), "JPEG", quality=90), f"{i}.cls": b"0"}
    write_tar(folder / "photos.tar", members)
    return folder


def class_folders(root: Path, *, classes: int = 3, per_class: int = 8, size: tuple[int, int] = (12, 10)) -> Path:
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(per_class):
            data = encoded(100 * c + i, width=size[0], height=size[1])
            (root / f"class{c}" / f"{i:03d}.png").write_bytes(data)
    return root


def packed(tmp_path: Path, *, plan: Plan | None = None, name: str = "set", **made: int) -> Packed:
    source = class_folders(tmp_path / f"{name}-images", **made)
    return pack(open_source(source), tmp_path / name, plan or Plan(name=name, shard_samples=10))


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def idx_folder(folder: Path, images: np.ndarray, labels: np.ndarray, *, zipped: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    return folder


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def foreign(folder: Path, *, shards: int = 3, samples: int = 6, side: int = 12) -> Path:
    """Shards from elsewhere: s-0000.tar, s-0001.tar, ...; keys and images are all different."""
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for i in range(shard * samples, (shard + 1) * samples):
            members |= {f"{i:05d}.jpg": encoded(i, "JPEG", width=side, height=side), f"{i:05d}.cls": b"%d" % (i % 3)}
        write_tar(folder / f"s-{shard:04d}.tar", members)
    return folder


def source_of(path: Path, **options: object):
    return open_source(path, options=Options(**options))  # type: ignore[arg-type]
