"""What a run costs before it is built: FLOPs and bytes, by the counting of arXiv 2010.11929, Table 6."""

from __future__ import annotations

BYTES_PER_PARAMETER = 16  # fp32 weight, gradient and AdamW's two moments


def training_flops(macs: int, examples: int) -> int:
    """FLOPs to train on `examples` images: 3 x 2 x MACs each (forward, and backward at twice its price)."""
    return 6 * macs * examples


def forward_flops(macs: int, examples: int) -> int:
    """FLOPs of the forward pass alone."""
    return 2 * macs * examples


def model_state_bytes(params: int) -> int:
    """Bytes of weights, gradients and AdamW's moments in fp32 on one device, activations left out."""
    return BYTES_PER_PARAMETER * params
