"""Files of weights, read without running anything that is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vitscale.errors import MISSING, VitscaleError


def read_npz(file: Path) -> dict[str, Tensor]:
    """The arrays of an `.npz`; JAX's bfloat16, which numpy stores as two nameless bytes, keeps its type."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {key: _tensor(arrays[key]) for key in arrays.files}
    except Exception as error:  # of a damaged file, numpy and zipfile raise all kinds
        reason = "it is damaged, or not an .npz of numbers alone"
        raise _unreadable(file, error, reason, "nothing in it is ever unpickled: np.savez plain arrays") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file, or what `torch.save` wrote of a state dict, bare or under "state_dict" or "model"."""
    try:
        found = load_file(file) if file.suffix == ".safetensors" else _load(file)
    except Exception as error:  # of a damaged file, torch raises all kinds
        reason = "it is damaged, or holds more than tensors"
        hint = "no code in it is ever run: save the state dict alone, best as safetensors"
        raise _unreadable(file, error, reason, hint) from None
    return _state_dict(file, found)


def _load(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _state_dict(file: Path, found: Any) -> dict[str, Tensor]:
    if isinstance(found, dict):
        for key in ("state_dict", "model"):
            found = found[key] if isinstance(found.get(key), dict) else found
        if found and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()):
            return dict(found)
    raise VitscaleError(f"{file} holds no state dict", hint="save model.state_dict()", exit_code=MISSING)


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _unreadable(file: Path, error: Exception, reason: str, hint: str) -> VitscaleError:
    if isinstance(error, FileNotFoundError):
        reason, hint = "there is no such file", "check the path"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return VitscaleError(f"{file} cannot be read: {reason}", hint=hint, exit_code=MISSING)
