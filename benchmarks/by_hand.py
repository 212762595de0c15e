"""The pre-training script that everybody writes, in the manner of timm's train.py: the peer of benchmarks/pretrain.py.

webdataset reads the shards of a run of ours. Each worker process of torch's DataLoader decodes, crops, resizes and
mirrors with Pillow, as timm's RandomResizedCropAndInterpolation and RandomHorizontalFlip do, and adds the images to a
batch of bytes (its ToNumpy and fast_collate), which is normalised as a whole. Network, loss, AdamW and clipping are the
run's. Prints one JSON document: images/s from the end of the first step to that of the last, the share of it that was
spent waiting for data, and when the first step had ended, in seconds since 1970.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitscale.config import Data
from vitscale.train.objective import to_device
from vitscale.train.optim import make_optimizer
from vitscale.train.pretrain import new_net
from vitscale.train.rundir import RunDir

RATIO = (3 / 4, 4 / 3)
TRIES = 10  # of a box that fits, before the whole image is taken
BUFFER = 512  # samples that each worker shuffles; full before the first one comes, so that none is read twice as often


class Transform:
    """The training transform of a decoded image: [3, resolution, resolution] bytes."""

    def __init__(self, data: Data) -> None:
        self.side, self.area, self.flips = data.resolution, data.crop_area, data.flip

    def __call__(self, sample: dict[str, Any]) -> tuple[np.ndarray, int]:
        image = Image.open(io.BytesIO(sample.get("jpg") or sample["png"])).convert("RGB")
        square = image.crop(self.box(*image.size)).resize((self.side, self.side), Image.Resampling.BILINEAR)
        if self.flips and random.random() < 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.rollaxis(np.array(square, dtype=np.uint8), 2), int(sample["cls"])

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(TRIES):
            area = random.uniform(self.area, 1.0) * width * height
            ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= width and h <= height:
                left, top = random.randint(0, width - w), random.randint(0, height - h)
                return left, top, left + w, top + h
        return 0, 0, width, height


def collate(samples: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    images = torch.zeros((len(samples), *samples[0][0].shape), dtype=torch.uint8)
    for i, (image, _) in enumerate(samples):
        images[i] += torch.from_numpy(image)
    return images, torch.tensor([label for _, label in samples])


def loader(shards: Path, data: Data, batch_size: int, workers: int) -> DataLoader:
    pipeline = wds.DataPipeline(
        wds.SimpleShardList([str(path) for path in sorted(shards.glob("*.tar"))]),
        wds.detshuffle(),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(BUFFER, initial=BUFFER),
        wds.map(Transform(data)),
    ).repeat()
    return DataLoader(
        pipeline,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
    )


def train(run: RunDir, workers: int, steps: int) -> dict[str, float]:
    recipe, device = run.run.recipe, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = new_net(run).to(device).train()
    optimizer = make_optimizer(net, recipe, "adamw")
    batches = iter(loader(Path(run.machine["shards"]), run.run.data, recipe.batch_size, workers))
    waited = started = first_step_ended = 0.0
    for step in range(steps):
        before = time.perf_counter()
        images, labels = next(batches)
        waited += time.perf_counter() - before
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = net(to_device(images, device))
        loss = nn.functional.cross_entropy(logits.float(), labels.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            loss.item()  # which waits for the device
            waited, started, first_step_ended = 0.0, time.perf_counter(), time.time()
    assert math.isfinite(loss.item())
    seconds = time.perf_counter() - started
    rate = (steps - 1) * recipe.batch_size / seconds
    return {"images_per_second": rate, "wait": waited / seconds, "first_step_ended": first_step_ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of vitscale pretrain")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(train(RunDir(given.run), given.workers, given.steps)))


if __name__ == "__main__":
    main()
