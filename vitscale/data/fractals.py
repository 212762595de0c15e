"""A formula-driven pre-training set: random iterated function systems as classes, their variations as images.

After FractalDB (Kataoka et al. 2020, arXiv 2101.08515): systems of 2 to 8 affine maps with coefficients in [-1, 1],
chosen with probabilities by |det|, kept when they fill enough of the picture; an instance multiplies one of the six
coefficients of all maps by 0.8 to 1.2, and varies the flip and the 3 x 3 patch that is drawn at a point.
Unlike there, weights and patches are drawn from the whole range instead of 25 and 10 fixed ones, so that a class has
any number of images, and maps contract, without which half of all systems are clouds at 32 pixels.
Class c depends on (seed, resolution, c) and instance j of it on j: smaller sets lie inside larger ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from vitscale.data.decode import BadImage, encode_png
from vitscale.data.order import hashes, stream, unit
from vitscale.data.pack import SHARD_SAMPLES, Packed, Plan, Progress, pack
from vitscale.data.sources import Encoded, Source
from vitscale.sampling import CHAINS, FRACTALS, INSTANCES

VERSION = 1  # raised when the same seed gives other pictures; part of every key
MAX_MAPS = 8
CANDIDATES = 8  # coefficients drawn for a map; the first that contract are taken
FILL = 0.2  # smallest share of the picture that a system covers, as in FractalDB
POINTS_PER_PIXEL = 0.76  # 100,000 points on 362 x 362 pixels, as in FractalDB
CHAINS_PER_IMAGE = 64  # of the chaos game, side by side; points of one chain come one after another
BURN_IN = 24  # steps before a chain's points are taken to lie on the attractor
TRIES = 4  # weights tried for an instance before it falls back to its class's own system
SEARCHED = 256  # systems looked at in one go

Maps = Float64[np.ndarray, "b 8 6"]


@dataclass(frozen=True)
class Systems:
    """Iterated function systems: x' = a x + b y + e, y' = c x + d y + f."""

    maps: Maps
    """Coefficients a, b, c, d, e, f of each map; unused maps are never chosen."""
    table: UInt8[np.ndarray, "b 256"]
    """Which map a random byte chooses: the probabilities, in steps of 1/256."""


def draw_systems(key: np.ndarray) -> Systems:
    """One random system for each 64-bit key."""
    draws = unit(hashes(key[:, None], np.arange(1 + 6 * MAX_MAPS * CANDIDATES)))
    count = 2 + np.floor(draws[:, 0] * (MAX_MAPS - 1)).astype(np.int64)
    candidates = (2 * draws[:, 1:] - 1).reshape(-1, MAX_MAPS, CANDIDATES, 6)
    first = (_norm(candidates) < 1).argmax(axis=2)
    maps = np.take_along_axis(candidates, first[..., None, None], axis=2)[:, :, 0]
    weight = np.abs(maps[..., 0] * maps[..., 3] - maps[..., 1] * maps[..., 2])
    weight[np.arange(MAX_MAPS) >= count[:, None]] = 0
    steps = np.cumsum(weight, axis=1)
    steps /= steps[:, -1:]
    middle = (np.arange(256) + 0.5) / 256
    table = (middle[None, :, None] >= steps[:, None, :-1]).sum(axis=2, dtype=np.uint8)
    return Systems(maps, table)


def _norm(maps: Float64[np.ndarray, "... 6"]) -> Float64[np.ndarray, " ..."]:
    """Largest singular value of a map's matrix."""
    a, b, c, d = (maps[..., i] for i in range(4))
    square = (a * a + b * b + c * c + d * d) / 2
    norm: np.ndarray = np.sqrt(square + np.sqrt(np.maximum(square * square - (a * d - b * c) ** 2, 0)))
    return norm


def play(
    systems: Systems, key: np.ndarray, steps: int
) -> tuple[Float64[np.ndarray, "t b m"], Float64[np.ndarray, "t b m"]]:
    """The chaos game: points x, y of all chains after each of `steps` steps; inf or nan where a system diverges."""
    b, m = len(key), CHAINS_PER_IMAGE
    total = -(-(BURN_IN + steps) // 8) * 8
    # A hash is eight random bytes: one for each of eight steps.
    bits = hashes(key[:, None], np.arange(m * total // 8)).astype("<u8").view(np.uint8).reshape(b, m, total)
    choice = systems.table[np.arange(b)[:, None, None], bits].astype(np.int64)
    choice = np.ascontiguousarray(choice.transpose(2, 0, 1)) + np.arange(b)[:, None] * MAX_MAPS
    a, bb, c, d, e, f = (np.ascontiguousarray(systems.maps[..., i]).reshape(-1) for i in range(6))
    x, y = np.zeros((b, m)), np.zeros((b, m))
    xs, ys = np.empty((steps, b, m)), np.empty((steps, b, m))
    with np.errstate(all="ignore"):
        for t in range(BURN_IN + steps):
            which = choice[t]
            x, y = a[which] * x + bb[which] * y + e[which], c[which] * x + d[which] * y + f[which]
            if t >= BURN_IN:
                xs[t - BURN_IN], ys[t - BURN_IN] = x, y
    return xs, ys


def draw(systems: Systems, key: np.ndarray, side: int) -> Bool[np.ndarray, "b s s"]:
    """Pictures of side x side pixels, stretched to what a system covers in both directions; black where it diverges."""
    steps = -(-int(POINTS_PER_PIXEL * side * side) // CHAINS_PER_IMAGE)
    pad = max(1, round(side * 6 / 362))
    places = np.zeros((2, steps, len(key), CHAINS_PER_IMAGE), dtype=np.int64)
    good = np.ones(len(key), dtype=bool)
    with np.errstate(all="ignore"):
        for place, points in zip(places, play(systems, key, steps), strict=True):
            low, high = points.min(axis=(0, 2)), points.max(axis=(0, 2))
            width = high - low
            fine = np.isfinite(width) & (width > 1e-9) & (width < 1e6)
            good &= fine
            scale = np.where(fine, (side - 1 - 2 * pad) / width, 0)
            low = np.where(fine, low, 0)
            position = (points - low[:, None]) * scale[:, None] + (pad + 0.5)
            position[:, ~fine] = 0
            place[:] = position
    picture = np.zeros(len(key) * side * side, dtype=bool)
    picture[np.arange(len(key))[:, None] * (side * side) + places[1] * side + places[0]] = True
    pictures: np.ndarray = picture.reshape(len(key), side, side)
    pictures[~good] = False
    return pictures


def fill_rate(picture: Bool[np.ndarray, "b s s"]) -> Float64[np.ndarray, " b"]:
    rate: np.ndarray = picture.mean(axis=(1, 2))
    return rate


def find_classes(count: int, *, seed: int, side: int) -> Systems:
    """A system for each class: the first of its candidates that fills enough of the picture."""
    maps = np.zeros((count, MAX_MAPS, 6))
    table = np.zeros((count, 256), dtype=np.uint8)
    pending = np.arange(count)
    attempt = 0
    while len(pending):
        # Several candidates of each class at once, so that the last few classes do not take a round each.
        each = max(1, SEARCHED // len(pending))
        found = []
        for part in np.array_split(pending, -(-len(pending) * each // SEARCHED)):
            tries = attempt + np.arange(each)
            key = hashes(hashes(stream(FRACTALS, VERSION, seed), part)[:, None], tries).reshape(-1)
            systems = draw_systems(key)
            full = (fill_rate(draw(systems, key, side)) >= FILL).reshape(len(part), each)
            rows = np.flatnonzero(full.any(axis=1))
            best = rows * each + full[rows].argmax(axis=1)
            maps[part[rows]], table[part[rows]] = systems.maps[best], systems.table[best]
            found.append(part[rows])
        pending = np.setdiff1d(pending, np.concatenate(found))
        attempt += each
    return Systems(maps, table)


def _side(resolution: int) -> int:
    """Small pictures are drawn at three times their size and averaged, or their shapes are lost in the grain."""
    return resolution * (3 if resolution < 128 else 1)


def render(
    classes: Systems, label: Int64[np.ndarray, " b"], instance: Int64[np.ndarray, " b"], *, seed: int, resolution: int
) -> UInt8[np.ndarray, "b r r"]:
    """Grey images of any instances of any classes; an image is the same in whatever company it is drawn."""
    key = hashes(hashes(stream(INSTANCES, VERSION, seed), label), instance)
    draws = unit(hashes(key[:, None], np.arange(3 + 2 * TRIES)))
    side = _side(resolution)
    picture = np.zeros((len(label), side, side), dtype=bool)
    pending = np.arange(len(label))
    for attempt in range(TRIES + 1):
        maps = classes.maps[label[pending]].copy()
        if attempt < TRIES:
            column = np.floor(draws[pending, 3 + 2 * attempt] * 6).astype(np.int64)
            maps[np.arange(len(pending)), :, column] *= 0.8 + 0.4 * draws[pending, 4 + 2 * attempt, None]
        chain = hashes(stream(CHAINS, attempt), key[pending])
        drawn = draw(Systems(maps, classes.table[label[pending]]), chain, side)
        full = (fill_rate(drawn) >= FILL) | (attempt == TRIES)
        picture[pending[full]] = drawn[full]
        pending = pending[~full]
        if not len(pending):
            break
    picture = _patched(picture, 1 + np.floor(draws[:, 0] * 511).astype(np.int64))
    mirrored, upside_down = draws[:, 1] < 0.5, draws[:, 2] < 0.5
    picture[mirrored] = picture[mirrored, :, ::-1]
    picture[upside_down] = picture[upside_down, ::-1]
    n = side // resolution
    lit = picture.reshape(-1, resolution, n, resolution, n).sum(axis=(2, 4), dtype=np.int64)
    grey: np.ndarray = (lit * 255 // (n * n)).astype(np.uint8)
    return grey


def _patched(picture: Bool[np.ndarray, "b s s"], patch: Int64[np.ndarray, " b"]) -> Bool[np.ndarray, "b s s"]:
    """Every point drawn as a 3 x 3 patch; bit k of `patch` says whether its pixel (k // 3, k % 3) is set."""
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(picture)
    _, height, width = picture.shape
    for k in range(9):
        rows = np.flatnonzero(patch >> k & 1)
        dy, dx = divmod(k, 3)
        out[rows] |= padded[rows, dy : dy + height, dx : dx + width]
    return out


def source(*, classes: int, per_class: int, resolution: int, seed: int) -> Source:
    """The set as a source of images that are drawn when they are asked for."""
    systems = find_classes(classes, seed=seed, side=_side(resolution))
    recipe = f"fractal{VERSION}-{resolution}px-s{seed}"

    def read(index: Int64[np.ndarray, " b"]) -> list[Encoded | BadImage]:
        images = render(systems, index // per_class, index % per_class, seed=seed, resolution=resolution)
        return [Encoded("png", encode_png(image), (resolution, resolution)) for image in images]

    return Source(
        kind="fractals",
        path=Path(recipe),
        keys=[f"{recipe}-{c:05d}-{i:06d}" for c in range(classes) for i in range(per_class)],
        labels=np.repeat(np.arange(classes), per_class),
        classes=tuple(f"{c:05d}" for c in range(classes)),
        read=read,
        where=lambda i: f"{recipe}: image {i}",
        chunk=max(1, min(64, 2**18 // _side(resolution) ** 2)),
    )


def write(
    out: Path,
    *,
    classes: int,
    per_class: int,
    resolution: int,
    seed: int,
    workers: int | None = None,
    name: str = "fractals",
    shard_samples: int = SHARD_SAMPLES,
    progress: Progress | None = None,
) -> Packed:
    """Writes the set as a packed folder: the same bytes for the same arguments, whatever the number of workers."""
    made = source(classes=classes, per_class=per_class, resolution=resolution, seed=seed)
    return pack(made, out, Plan(name=name, seed=seed, shard_samples=shard_samples), workers=workers, progress=progress)
