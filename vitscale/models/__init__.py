"""The model families, each a folder with `arch.py` (numbers, no torch) and `net.py` (the network).

Nothing heavy is loaded here: asking what a model costs does not load torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vitscale.models.counts import Counting, Head, Macs, Params

if TYPE_CHECKING:
    from torch import nn

Sizes = Mapping[str, Mapping[str, Any]]


@runtime_checkable
class Arch(Protocol):
    """What every family's `Arch` offers; a frozen dataclass of the numbers that define the network."""

    @property
    def family(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def ratio(self) -> int: ...
    @property
    def feature_width(self) -> int: ...
    def problems(self, resolution: int) -> list[str]: ...
    def tokens(self, resolution: int) -> int: ...
    def params(self, resolution: int, head: Head) -> Params: ...
    def macs(self, resolution: int, head: Head, counting: Counting = "dense") -> Macs: ...


@cache
def families() -> tuple[str, ...]:
    """Names of the folders here that hold a family."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if m.ispkg and m.name != "convert"))


def parse(name: str, *, stem: str = "standard", sizes: Sizes | None = None) -> Arch | None:
    """The architecture behind a name of the literature or of a study's own sizes; None where there is none."""
    for family in families():
        arch: Arch | None = import_module(f"{__name__}.{family}.arch").parse(name, stem=stem, sizes=sizes or {})
        if arch is not None:
            return arch
    return None


def names(sizes: Sizes | None = None) -> list[str]:
    """Names that `parse` knows, a selection of patches and widths each."""
    return [name for family in families() for name in import_module(f"{__name__}.{family}.arch").names(sizes or {})]


def to_dict(arch: Arch) -> dict[str, Any]:
    """The numbers that define the network, ready for JSON."""
    return {"family": arch.family, **asdict(arch)}  # type: ignore[call-overload]


def from_dict(numbers: Mapping[str, Any]) -> Arch:
    """The inverse of `to_dict`."""
    module = import_module(f"{__name__}.{numbers['family']}.arch")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in numbers.items()}
    del fields["family"]
    arch: Arch = module.Arch(**fields)
    return arch


def build(
    arch: Arch,
    *,
    num_classes: int,
    resolution: int,
    pre_logits: bool = False,
    dropout: float = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """The network of an architecture, initialised as published from torch's generator.

    `forward(images)` maps [batch, 3, resolution, resolution] in [-1, 1] to logits [batch, num_classes],
    `features(images)` to the representation [batch, feature_width] behind the pre-logits layer.
    """
    net = import_module(f"{__name__}.{arch.family}.net")
    head = Head(num_classes=num_classes, pre_logits=pre_logits)
    module: nn.Module = net.Net(arch, resolution=resolution, head=head, dropout=dropout, head_bias=head_bias)
    return module


def create(
    name: str, *, num_classes: int, resolution: int, stem: str = "standard", sizes: Sizes | None = None, **options: Any
) -> nn.Module:
    """`build` by name, e.g. `create("ViT-B/16", num_classes=1000, resolution=224)`.

    Raises:
        ValueError: the name is unknown, or the network impossible at this resolution.
    """
    arch = parse(name, stem=stem, sizes=sizes)
    if arch is None:
        raise ValueError(f"unknown model {name!r}")
    if found := arch.problems(resolution):
        raise ValueError(f"{name}: {'; '.join(found)}")
    return build(arch, num_classes=num_classes, resolution=resolution, **options)
