"""Published formats of weights, in and out: the JAX code's `.npz`, timm's state dicts, Hugging Face's ViT.

A state is what `vitscale.models.create(name).state_dict()` holds. `name` is a model's name, or an `Arch` where the
sizes or the stem are a study's own. The number of classes, the resolution (from the position embeddings) and the
width of a pre-logits layer are the file's. Tensors keep their dtype and are copies; only layouts change:

                    ours               .npz                               timm             Hugging Face
    dense           [out, in]          [in, out]                          as ours          as ours
    convolution     [out, in, h, w]    [h, w, in, out]                    as ours
    q, k, v         [3 width, width]   3 of [width, heads, width / heads] as ours          3 of [width, width]
    hybrid's norms  [channels]         [1, 1, 1, channels]                as ours
    ResNet's head   [classes, width]   [1, 1, width, classes]             [classes, width, 1, 1]

What a layout does not say must be said to `create`: timm's hybrids want `weight_standardization="timm"` and
`group_norm_eps=1e-5`, its BiT `weight_standardization="timm"`; a network that averages its tokens `pool="gap"`, and
here the `Arch` of it (`vitscale.models.with_options`). 2-D and relative positions and axial attention have no place in
any of these formats.

Sources of names: google-research/vision_transformer (`vit_jax`), google-research/big_vision (`models/vit.py`,
`models/bit_paper.py`), google-research/big_transfer, huggingface/pytorch-image-models, huggingface/transformers.

Every function raises `VitscaleError`, with the first keys and shapes that differ, where weights do not fit the named
model (exit 5), and where the name is unknown (exit 2). Nothing is ever unpickled.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from vitscale.files import disk_errors, write_whole
from vitscale.models import Arch
from vitscale.models.convert import hf, npz, timm
from vitscale.models.convert.entries import Model, State, is_own, own
from vitscale.models.convert.reading import read_npz, read_tensors

__all__ = [
    "from_file",
    "from_npz",
    "from_timm",
    "read_state",
    "to_hf",
    "to_npz",
    "to_timm",
    "write_npz",
    "write_safetensors",
]


def from_file(file: str | Path, name: str | Arch) -> dict[str, Tensor]:
    """The state in a file of any of these formats, or in one of ours: an `.npz`, else a state dict.

    Raises:
        VitscaleError: as `from_npz`, `read_state` and `from_timm`.
    """
    path, model = Path(file), Model.of(name)
    if path.suffix == ".npz":
        return from_npz(path, name)
    weights = read_tensors(path)
    return own(weights, model, str(path)) if is_own(weights, model) else timm.read(weights, model, str(path))


def from_npz(file: str | Path, name: str | Arch) -> dict[str, Tensor]:
    """The state in a file of the JAX code.

    ViTs and hybrids in the layouts before and since flax's linen, big_vision's with its scanned blocks and with
    position embeddings of the patches alone (the class token's is 0); BiT's ResNets as published and as big_vision
    saves them. Of a whole training state (`params/`, `opt/target/`) the weights are taken and the optimizer's
    (`opt/`), `chrono/` and `extra/` are left; any other key that has no place is an error, and so is a missing head.
    """
    path = Path(file)
    return npz.read(read_npz(path), Model.of(name), str(path))


def to_npz(state: State, name: str | Arch) -> dict[str, np.ndarray]:
    """The arrays of a file in the layout that arXiv 2010.11929 and 1912.11370 published, for `write_npz`.

    numpy has no bfloat16: such tensors become float32, exactly.
    """
    tensors = npz.write(state, Model.of(name))
    return {key: (t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy() for key, t in tensors.items()}


def write_npz(file: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the file whole or not at all. Raises VitscaleError where the disk refuses (exit 5)."""
    path, buffer = Path(file), io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's signature has allow_pickle among the names
    with disk_errors(path.parent):
        write_whole(path, buffer.getvalue())


def write_safetensors(file: str | Path, state: State) -> None:
    """Writes the file whole or not at all. Raises VitscaleError where the disk refuses (exit 5)."""
    path = Path(file)
    with disk_errors(path.parent):
        write_whole(path, save({key: tensor.contiguous().cpu() for key, tensor in state.items()}))


def from_timm(state: State, name: str | Arch) -> dict[str, Tensor]:
    """Our state from a state dict of timm's (`read_state` reads a file of one).

    The layer `pre_logits.fc` of timm until 0.6 is kept where it is there.
    """
    return timm.read(state, Model.of(name))


def to_timm(state: State, name: str | Arch) -> dict[str, Tensor]:
    """timm's state dict from ours; a pre-logits layer becomes `pre_logits.fc`, which only timm until 0.6 loads."""
    return timm.write(state, Model.of(name))


def to_hf(state: State, name: str | Arch, folder: str | Path) -> None:
    """Writes `config.json`, `model.safetensors` and `preprocessor_config.json` for `from_pretrained(folder)`.

    Raises:
        VitscaleError: also for what `ViTForImageClassification` cannot express (exit 2): hybrids, ResNets,
            a pre-logits layer, a network without class token or positions; and where the disk refuses (exit 5).
    """
    hf.write(state, Model.of(name), Path(folder))


def read_state(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a state dict that `torch.save` wrote.

    Raises:
        VitscaleError: it cannot be read, or would need unpickling of more than tensors (exit 5).
    """
    return read_tensors(Path(file))
