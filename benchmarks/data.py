"""From shards to a batch of crops beside timm's way of doing it, and from memory at the size of small images.

The images are made here: noise whose spectrum falls as that of photographs, as JPEGs of quality 90, packed by vitscale.
A round is one shard. In each round every way has its turn, so that what else the machine does falls on all alike: read
the ratios. All but the last lines use one thread.

timm's way is what its loader does by default (create_transform(224, is_training=True) and fast_collate): Pillow decodes
to RGB, crops, resizes bilinearly or bicubically at random (here: in turn) and mirrors half of the images; ToNumpy turns
the axes, and each image is added to a batch of zeros. The boxes are those of ours; its colour jitter is left out.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import cpuinfo
import numpy as np
import PIL
import simplejpeg
import torch
from photographs import write_images
from PIL import Image
from tables import FEWEST_ROUNDS, at_least, interval, table

from vitscale.data.images import ArrayImages, Images
from vitscale.data.order import uniform
from vitscale.data.pack import Plan, pack
from vitscale.data.preprocess import DRAWS, InceptionCrops, Preprocess
from vitscale.data.resize import whole_factor
from vitscale.data.shards import Shards, open_shards
from vitscale.data.sources import open_source

CROP_AREA = 0.08  # timm's default
SMALL = (28, 32)
SMALL_BATCH, SMALL_BATCHES = 256, 16

Way = Callable[[np.ndarray], object]
"""Does its work for these samples."""


def make_shards(folder: Path, options: argparse.Namespace) -> Shards:
    width, height = options.size
    write_images(folder / "images", options.rounds * options.shard, width, height)
    pack(open_source(folder / "images"), folder / "shards", Plan(name="photos", shard_samples=options.shard))
    shards = open_shards(folder / "shards")
    for i in range(len(shards)):
        shards.read(i)  # so that everybody finds the files in memory
    return shards


def boxes(index: np.ndarray, width: int, height: int) -> list[tuple[int, int, int, int]]:
    crops = InceptionCrops(uniform(0, np.zeros_like(index), index, DRAWS), CROP_AREA)
    return [tuple(int(edge) for edge in crops.box(b, width, height)) for b in range(len(index))]  # type: ignore[misc]


def read_tar(shards: Shards) -> Way:
    def work(index: np.ndarray) -> None:
        with tarfile.open(shards.shard(int(index[0]))) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                file.read()

    return work


def timm(shards: Shards, resolution: int, filters: Sequence[Image.Resampling]) -> Way:
    def work(index: np.ndarray) -> torch.Tensor:
        batch = torch.zeros((len(index), 3, resolution, resolution), dtype=torch.uint8)
        mirrored = uniform(0, np.zeros_like(index), index, 1)[:, 0] < 0.5
        for b, box in enumerate(boxes(index, *shards.image_size)):  # type: ignore[misc]
            image = Image.open(io.BytesIO(shards.read(int(index[b])))).convert("RGB")
            square = image.crop(box).resize((resolution, resolution), filters[b % len(filters)])
            if mirrored[b]:
                square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            batch[b] += torch.from_numpy(np.rollaxis(np.array(square, dtype=np.uint8), 2))
        return batch

    return work


def pillow_decoding(shards: Shards) -> Way:
    def work(index: np.ndarray) -> None:
        for i in index.tolist():
            Image.open(io.BytesIO(shards.read(i))).convert("RGB")

    return work


def full_decoding(shards: Shards) -> Way:
    def work(index: np.ndarray) -> None:
        for i in index.tolist():
            simplejpeg.decode_jpeg(shards.read(i))

    return work


def scaled_decoding(shards: Shards, resolution: int) -> Way:
    """libjpeg-turbo alone, at the smallest scale that leaves the boxes as large as the resolution."""
    width, height = shards.image_size or (0, 0)

    def work(index: np.ndarray) -> None:
        for i, box in zip(index.tolist(), boxes(index, width, height), strict=True):
            factor = whole_factor(box, resolution)
            simplejpeg.decode_jpeg(
                shards.read(i),
                fastupsample=True,
                min_factor=factor,
                min_width=-(-width // factor),
                min_height=-(-height // factor),
            )

    return work


def fitted_decoding(shards: Shards, resolution: int) -> Way:
    """libjpeg-turbo alone, at the smallest scale at which the whole image is as large as the resolution: 5/8 here,
    for which it has no vector code.
    """

    def work(index: np.ndarray) -> None:
        for i in index.tolist():
            simplejpeg.decode_jpeg(shards.read(i), min_width=resolution, min_height=resolution)

    return work


def ours(shards: Shards, how: Preprocess, workers: int = 1) -> Way:
    images = Images(shards, memory_bytes=0, workers=workers)
    return lambda index: images.train_batch(index, np.zeros_like(index), how, seed=0)


def ways(shards: Shards, resolution: int) -> dict[str, Way]:
    bilinear, bicubic = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
    crop = {"resolution": resolution, "crop": "inception", "crop_area": CROP_AREA, "flip": True}
    settings = {
        f'decode = "{decode}", resize = "{resize}"': Preprocess(**crop, decode=decode, resize=resize)  # type: ignore[arg-type]
        for decode in ("full", "scaled")
        for resize in ("pillow", "torch", "bilinear")
    }
    return {
        TIMM: timm(shards, resolution, (bilinear, bicubic)),
        "timm's way, bilinear only": timm(shards, resolution, (bilinear,)),
        "reading the tar": read_tar(shards),
        "bare decoding, Pillow": pillow_decoding(shards),
        "bare decoding, libjpeg-turbo": full_decoding(shards),
        BARE: scaled_decoding(shards, resolution),
        "bare decoding, libjpeg-turbo, whole image to the resolution": fitted_decoding(shards, resolution),
        **{name: ours(shards, how) for name, how in settings.items()},
        **{f"{name}, 2 workers": ours(shards, how, 2) for name, how in settings.items() if "bilinear" not in name},
    }


TIMM, BARE = "timm's way", "bare decoding, libjpeg-turbo, scaled"


def measure(found: dict[str, Way], shards: Shards, shard: int) -> dict[str, list[float]]:
    """Seconds an image of each way and round; who is first changes from round to round."""
    index = np.arange(len(shards))
    names = list(found)
    for way in found.values():
        way(index[:shard])  # threads are started and libraries loaded
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for start in range(0, len(index), shard):
        turn = start // shard % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            found[name](index[start : start + shard])
            seconds[name].append((time.perf_counter() - began) / shard)
    return seconds


COLUMNS = ("way", "images/s", "times timm's", "95 %", "times scaled decoding", "times one worker", "95 %")


def rows(seconds: dict[str, list[float]]) -> list[list[str]]:
    found = []
    for name, mine in seconds.items():
        alone = seconds.get(name.removesuffix(", 2 workers")) if name.endswith("2 workers") else None
        found.append(
            [
                name,
                f"{1 / median(mine):,.0f}",
                *ratio(seconds[TIMM], mine),
                ratio(seconds[BARE], mine)[0],
                *(ratio(alone, mine) if alone else ("", "")),
            ]
        )
    return found


def ratio(reference: Sequence[float], mine: Sequence[float]) -> tuple[str, str]:
    middle, low, high = interval([one / other for one, other in zip(reference, mine, strict=True)])
    return f"{middle:.2f}", f"{low:.2f} to {high:.2f}"


SMALL_COLUMNS = ("from memory", "1 worker, images/s", "2 workers, images/s")


def small_rows(rounds: int) -> list[list[str]]:
    """Batches of 256 at the size at which the images are kept."""
    found = []
    for side in SMALL:
        pixels = np.random.default_rng(0).integers(0, 256, (20_000, side, side, 3), dtype=np.uint8)
        for name, crop, flip in (
            ("whole", "none", False),
            ("flip", "none", True),
            ("inception, flip", "inception", True),
        ):
            how = Preprocess(resolution=side, crop=crop, crop_area=0.05, flip=flip)  # type: ignore[arg-type]
            rates = [f"{small_rate(pixels, how, workers, rounds):,.0f}" for workers in (1, 2)]
            found.append([f"{side} px, {name}", *rates])
    return found


def small_rate(pixels: np.ndarray, how: Preprocess, workers: int, rounds: int) -> float:
    images = ArrayImages(pixels)
    images.workers = workers
    index = np.random.default_rng(1).integers(0, len(pixels), (SMALL_BATCHES, SMALL_BATCH))
    seconds = []
    for epoch in range(rounds):
        began = time.perf_counter()
        for batch in index:
            images.train_batch(batch, np.full(SMALL_BATCH, epoch), how, seed=0)
        seconds.append(time.perf_counter() - began)
    return index.size / median(seconds)


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cpuinfo.get_cpu_info().get('brand_raw', 'CPU')}, {cores} core{'s' if cores > 1 else ''}; "
        f"Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}, torch {torch.__version__}, "
        f"numpy {np.__version__}"
    )


def size(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in text.split("x"))
    return width, height


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(FEWEST_ROUNDS), default=32, help="and as many shards")
    parser.add_argument("--shard", type=at_least(1), default=64, help="images in a shard")
    parser.add_argument("--size", type=size, default=(500, 375), help="of the images; 500x375 where not given")
    parser.add_argument("--resolution", type=at_least(1), default=224, help="of the crops")
    parser.add_argument("--only", choices=["shards", "memory"], help="one of the two tables")
    parser.add_argument("--markdown", action="store_true", help="the tables as Markdown")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)  # as in a worker of torch's loader
    print(machine(), flush=True)
    if options.only != "memory":
        with tempfile.TemporaryDirectory() as folder:
            shards = make_shards(Path(folder), options)
            mean = int(shards.places[:, 2].mean())
            width, height = options.size
            print(f"{len(shards):,} JPEGs of {width} x {height}, {mean / 1e3:.0f} KB each, to {options.resolution} px")
            seconds = measure(ways(shards, options.resolution), shards, options.shard)
            shards.close()
        print(table(COLUMNS, rows(seconds), markdown=options.markdown), flush=True)
    if options.only != "shards":
        print(table(SMALL_COLUMNS, small_rows(options.rounds), markdown=options.markdown))


if __name__ == "__main__":
    main()
