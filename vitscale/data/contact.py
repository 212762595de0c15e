"""A contact sheet of a data set: some images of each class, side by side."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64
from PIL import Image, ImageDraw, ImageFont

from vitscale.data.decode import BadImage, decode
from vitscale.data.order import key_hashes, stream
from vitscale.data.shards import Shards
from vitscale.sampling import choose_classes

ROWS, COLUMNS = 12, 10
TILE, GAP = 96, 4  # pixels
NAME_WIDTH = 160
PAPER, INK, BROKEN = (255, 255, 255), (30, 30, 30), (200, 60, 60)


def contact_sheet(shards: Shards, *, seed: int = 0) -> Image.Image:
    """At most 12 classes with 10 images each, the same ones for a seed; a red tile stands for an unreadable one."""
    present = np.unique(shards.labels[shards.labels >= 0]).tolist()
    classes = choose_classes(present, ROWS, seed=seed)
    font = ImageFont.load_default(16)
    sheet = Image.new("RGB", (NAME_WIDTH + COLUMNS * (TILE + GAP), len(classes) * (TILE + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(classes):
        top = GAP + row * (TILE + GAP)
        draw.text((GAP, top + TILE // 2 - 8), _name(shards, label, font), fill=INK, font=font)
        for column, i in enumerate(_some(shards, label, seed)):
            sheet.paste(_tile(shards, int(i)), (NAME_WIDTH + column * (TILE + GAP), top))
    return sheet


def _some(shards: Shards, label: int, seed: int) -> Int64[np.ndarray, " k"]:
    of_class = np.flatnonzero(shards.labels == label)
    order = np.argsort(key_hashes(shards.keys[of_class], stream(seed)), kind="stable")
    return of_class[order[:COLUMNS]]


def _tile(shards: Shards, i: int) -> Image.Image:
    """The image as it is, small ones enlarged by whole numbers, on a square."""
    try:
        image = Image.fromarray(decode(shards.read(i)))
    except BadImage:
        return Image.new("RGB", (TILE, TILE), BROKEN)
    enlarged = TILE // max(image.size)
    if enlarged >= 1:
        image = image.resize((image.width * enlarged, image.height * enlarged), Image.Resampling.NEAREST)
    else:
        image.thumbnail((TILE, TILE))
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    tile.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    return tile


def _name(shards: Shards, label: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The class's name, cut to the margin."""
    name = shards.classes[label] if label < len(shards.classes) else str(label)
    while font.getlength(name) > NAME_WIDTH - 2 * GAP:
        name = name.removesuffix("…")[:-1] + "…"
    return name
