"""Images for benchmarks: noise whose spectrum falls as that of photographs, as JPEGs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WINDOWS = 16  # large pictures from which the images are cut
FALLOFF = 1.1  # of the amplitude with the frequency; 1 in photographs on the average, less detail above
QUALITY = 90


def picture(seed: int, width: int, height: int) -> np.ndarray:
    """Coloured noise with the spectrum of photographs, 0 to 255."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    light, red, blue = (
        np.fft.irfft2(np.fft.rfft2(generator.normal(size=(height, width))) / frequency**FALLOFF, (height, width))
        for _ in range(3)
    )
    channels = np.stack([light + 0.3 * red, light, light + 0.3 * blue], axis=2)
    return np.clip(127.5 + 50 * (channels - channels.mean()) / channels.std(), 0, 255).astype(np.uint8)


def write_images(folder: Path, count: int, width: int, height: int, classes: int = 1) -> None:
    """Windows of some large pictures, so that thousands are made in a minute; a folder for each class."""
    for label in range(classes):
        (folder / f"photos-{label}").mkdir(parents=True)
    large = [picture(seed, 3 * width, 3 * height) for seed in range(min(WINDOWS, count))]
    corners = np.random.default_rng(1).integers(0, (2 * width, 2 * height), (count, 2))
    for i, (x, y) in enumerate(corners.tolist()):
        window = np.ascontiguousarray(large[i % len(large)][y : y + height, x : x + width])
        Image.fromarray(window).save(folder / f"photos-{i % classes}" / f"{i:05d}.jpg", quality=QUALITY)
