"""The model families, each a folder with `arch.py` (numbers, no torch) and `net.py` (the network).

Nothing heavy is loaded here: asking what a model costs does not load torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, fields, replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

from vitscale.models.counts import Activations, Counting, Head, Macs, Params

if TYPE_CHECKING:
    from torch import nn

Sizes = Mapping[str, Mapping[str, Any]]


@runtime_checkable
class Arch(Protocol):
    """What every family's `Arch` offers; a frozen dataclass of the numbers that define the network."""

    def __hash__(self) -> int: ...
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
    def problems(self, resolution: int, *, trained_at: int | None = None) -> list[str]: ...
    def tokens(self, resolution: int) -> int: ...
    def params(self, resolution: int, head: Head) -> Params: ...
    def macs(self, resolution: int, head: Head, counting: Counting = "dense") -> Macs: ...
    def activations(self, resolution: int, head: Head, *, recompute: bool = False) -> Activations: ...


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
    """The numbers that define the network, ready for JSON; options at their defaults are left out."""
    usual = {f.name: f.default for f in _fields(arch) if f.metadata.get("option")}
    numbers = asdict(arch)  # type: ignore[call-overload]
    return {"family": arch.family, **{k: v for k, v in numbers.items() if k not in usual or v != usual[k]}}


def from_dict(numbers: Mapping[str, Any]) -> Arch:
    """The inverse of `to_dict`."""
    module = import_module(f"{__name__}.{numbers['family']}.arch")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in numbers.items()}
    del given["family"]
    arch: Arch = module.Arch(**given)
    return arch


def with_options(arch: Arch, options: Mapping[str, Any]) -> Arch:
    """The architecture with some of its numbers replaced, e.g. `{"pool": "gap", "depth": 6}`.

    Raises:
        ValueError: the family has no such option, or not with such a value.
    """
    if unknown := foreign(arch, options):
        raise ValueError(f"a {arch.family} has no option {', '.join(map(repr, unknown))}")
    hints = _types(type(arch))
    for key, value in options.items():
        if hints[key] in (int, float) and not (isinstance(value, int | float) and value > 0):
            raise ValueError(f"{key} is {value!r}, and must be a number above 0")
        if get_origin(hints[key]) is Literal and value not in get_args(hints[key]):
            raise ValueError(f"{key} is {value!r}, not one of {', '.join(map(repr, get_args(hints[key])))}")
    return replace(arch, **options)  # type: ignore[type-var]


@cache
def _types(family: type) -> dict[str, Any]:
    return get_type_hints(family)


def foreign(arch: Arch, options: Iterable[str]) -> list[str]:
    """The names among `options` that mean nothing to the family."""
    return sorted(set(options) - {f.name for f in _fields(arch)})


def _fields(arch: Arch) -> tuple[Field[Any], ...]:
    return fields(arch)  # type: ignore[arg-type]


def build(
    arch: Arch,
    *,
    num_classes: int,
    resolution: int,
    pre_logits: int | None = None,
    patches: int = 0,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """The network of an architecture, initialised as published from torch's generator.

    `forward(images)` maps [batch, 3, resolution, resolution] in [-1, 1] to logits [batch, num_classes],
    `features(images)` to the representation [batch, features] that the head reads: behind the pre-logits layer of
    width `pre_logits` where there is one, else `arch.feature_width` wide. `forward(images, features_only=True)` does,
    too: ZeRO's third stage brings a module's weights together when the module itself is called.
    `net.recompute = True` turns activation checkpointing on: each block keeps only its input for the backward pass.

    With `patches`, of ViTs only, the network predicts that many corrupted patches: see `vitscale.models.vit.masked`.
    """
    net = import_module(f"{__name__}.{arch.family}.{'masked' if patches else 'net'}")
    head = Head(num_classes=num_classes, pre_logits=pre_logits, patches=patches)
    module: nn.Module = net.Net(arch, resolution=resolution, head=head, dropout=dropout, head_bias=head_bias)
    import_module(f"{__name__}.stochastic_depth").set_rates(module.residual_blocks, stochastic_depth)
    return module


def create(
    name: str,
    *,
    num_classes: int,
    resolution: int,
    stem: str = "standard",
    sizes: Sizes | None = None,
    pre_logits: int | None = None,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    head_bias: float = 0.0,
    **options: Any,
) -> nn.Module:
    """`build` by name, e.g. `create("ViT-B/16", num_classes=1000, resolution=224)`.

    `options` are fields of the family's `Arch`, each as published for the family where it is not given:
    `gelu="exact"|"tanh"`, `pool="token"|"gap"`, `pos_embedding="1d"|"2d"|"none"|"relative"`,
    `attention="full"|"axial"` (ViT, hybrid); `weight_standardization="jax"|"timm"|"bit"`, `group_norm_eps=`
    (hybrid, ResNet).

    Raises:
        ValueError: the name or an option is unknown, or the network impossible at this resolution.
    """
    if stem not in ("standard", "small"):
        raise ValueError(f"stem is {stem!r}, not 'standard' or 'small'")
    if pre_logits is not None and (isinstance(pre_logits, bool) or pre_logits < 1):
        raise ValueError(f"pre_logits is {pre_logits!r}: the width of the layer, or None")
    arch = parse(name, stem=stem, sizes=sizes)
    if arch is None:
        raise ValueError(f"unknown model {name!r}")
    arch = with_options(arch, options)
    if found := arch.problems(resolution):
        raise ValueError(f"{name}: {'; '.join(found)}")
    return build(
        arch,
        num_classes=num_classes,
        resolution=resolution,
        pre_logits=pre_logits,
        dropout=dropout,
        stochastic_depth=stochastic_depth,
        head_bias=head_bias,
    )
