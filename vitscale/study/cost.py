"""What a run costs before it is built: FLOPs and bytes, by the counting of arXiv 2010.11929, Table 6."""

from __future__ import annotations

from math import ceil

MOMENTS = 2  # that AdamW keeps of each parameter; SGD keeps one
KEPT = 2
"""Checkpoints of a run, unless --keep-last says otherwise: where the last is damaged, there is one before it."""
BUCKET = 2**26
"""Numbers of the gradients that ZeRO sums over the devices at a time: 256 MB; DeepSpeed's own 2 GB are more than most
of these models."""


def training_flops(macs: int, examples: int) -> int:
    """FLOPs to train on `examples` images: 3 x 2 x MACs each (forward, and backward at twice its price)."""
    return 6 * macs * examples


def forward_flops(macs: int, examples: int) -> int:
    """FLOPs of the forward pass alone."""
    return 2 * macs * examples


def model_state_bytes(
    params: int,
    *,
    stage: int = 0,
    devices: int = 1,
    offload: bool = False,
    averaged: bool = False,
    moments: int = MOMENTS,
) -> int:
    """Bytes on each device of weights, gradients, the optimizer's moments and buffers of their sums, all in fp32.

    At most, over a step of DeepSpeed 0.19 at a ZeRO stage, activations left out; `averaged`: with a moving average.
    """
    kept = moments + averaged
    if stage == 0:
        return 4 * params * (2 + kept + (devices > 1))  # gradients are summed in a copy
    bucket = min(params, BUCKET)
    share = ceil(params / devices) * ((0 if offload else 2 + kept) + (stage == 3))
    # Beside its share, of which it has a copy and flat gradients: at stage 3 weights, those to come, gradients and
    # their sum are there for as many layers as a bucket holds.
    whole = {1: 2 * params + bucket, 2: params + 2 * bucket, 3: 4 * bucket}[stage]
    return 4 * (whole + share)


def checkpoint_bytes(params: int, *, averaged: bool = False, moments: int = MOMENTS) -> int:
    """Bytes on the disk of one checkpoint: fp32 weights, moments (of AdamW), the moving average where there is one."""
    return 4 * params * (1 + moments + averaged)
