"""A format as a list of entries, each of which says what one tensor of ours is there; both directions come from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from vitscale import models
from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.models import Arch
from vitscale.models.vit.arch import Arch as ViT

State = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Way:
    """How one tensor of ours becomes theirs, and how it comes back; `back(*forth(x))` is `x`, bit for bit."""

    forth: Callable[[Tensor], Sequence[Tensor]]
    back: Callable[..., Tensor]


SAME = Way(lambda x: (x,), lambda x: x)
THIRDS = Way(lambda x: x.chunk(3), lambda *parts: torch.cat(parts))  # q, k and v under each other
ONE_BY_ONE = Way(lambda x: (x[:, :, None, None],), lambda x: x[:, :, 0, 0])  # a dense layer as a convolution


@dataclass(frozen=True, slots=True)
class Entry:
    """The tensor `ours` is `theirs` there: one key, or the parts of a fused tensor.

    Entries of one `group` may be absent, but only together.
    """

    ours: str
    theirs: tuple[str, ...]
    way: Way = SAME
    group: str = ""


def pair(ours: str, theirs: str, *names: str, ways: Sequence[Way] = (SAME, SAME), group: str = "") -> list[Entry]:
    """The entries of a layer's weight and bias, whose `names` there are those of torch unless given."""
    names = names or ("weight", "bias")
    return [
        Entry(f"{ours}.{own}", (theirs + name,), way, group)
        for own, name, way in zip(("weight", "bias"), names, ways, strict=True)
    ]


def units(blocks: Iterable[int]) -> list[tuple[int, int, int]]:
    """(index in our flat list, stage, block in its stage), all from 0; the first block of a stage has a projection."""
    pairs = [(stage, unit) for stage, count in enumerate(blocks) for unit in range(count)]
    return [(index, stage, unit) for index, (stage, unit) in enumerate(pairs)]


@dataclass(frozen=True, slots=True)
class Model:
    """The architecture that a state belongs to, and what a message calls it."""

    arch: Arch
    label: str

    @classmethod
    def of(cls, name: str | Arch) -> Model:
        """Raises VitscaleError where no model has this name (exit 2)."""
        if not isinstance(name, str):
            return cls(name, f"the {name.family} of width {name.width} and depth {name.depth}")
        arch = models.parse(name)
        if arch is None:
            near = get_close_matches(name, models.names(), 1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "`vitscale ls models` lists some"
            raise VitscaleError(f"unknown model {name!r}", hint=hint, exit_code=USAGE)
        return cls(arch, name)

    def without(self, layout: str, lacks: str) -> VitscaleError:
        """What to raise where a layout cannot hold the model, which `lacks` says of it."""
        return VitscaleError(
            f"{layout} cannot hold {self.label}: it {lacks}",
            hint="export it as safetensors, which holds every model",
            exit_code=USAGE,
        )

    def check_head(self, layout: str, state: State) -> None:
        """Raises VitscaleError for a ResNet with a pre-logits layer, of which none was published (exit 2)."""
        if self.arch.family == "resnet" and "pre_logits.weight" in state:
            raise self.without(layout, "has a pre-logits layer")

    def check_positions(self, layout: str) -> None:
        """Raises VitscaleError for variants of the transformer that were never published (exit 2)."""
        positions, attention = getattr(self.arch, "pos_embedding", "1d"), getattr(self.arch, "attention", "full")
        if positions not in ("1d", "none"):
            raise self.without(layout, f"has {positions} position embeddings")
        if attention != "full":
            raise self.without(layout, f"has {attention} attention")


def token_and_positions(arch: ViT, ours: str, token: str, positions: str) -> list[Entry]:
    """Of what stands before the blocks, as much as the architecture has."""
    found = [Entry(f"{ours}class_token", (token,))] if arch.pool == "token" else []
    return [*found, *([Entry(f"{ours}pos_embedding", (positions,))] if arch.pos_embedding == "1d" else [])]


def to_theirs(state: State, entries: Sequence[Entry], model: Model) -> dict[str, Tensor]:
    """Copies of a state's tensors under the names and in the shapes that they have there."""
    entries = _present(entries, state, lambda entry: (entry.ours,))
    expected = _shapes(model.arch, {e.ours: state[e.ours].numel() for e in entries if e.ours in state})
    _compare("the state", state, {e.ours: expected[e.ours] for e in entries if e.ours in expected}, model)
    out = {}
    for entry in entries:
        for key, tensor in zip(entry.theirs, entry.way.forth(state[entry.ours].detach()), strict=True):
            out[key] = tensor.clone(memory_format=torch.contiguous_format)
    return out


def to_ours(weights: State, entries: Sequence[Entry], model: Model, origin: str) -> dict[str, Tensor]:
    """The inverse of `to_theirs`; `origin` is what a message calls the source of the weights."""
    entries = _present(entries, weights, lambda entry: entry.theirs)
    counts = {e.ours: sum(weights[key].numel() for key in e.theirs if key in weights) for e in entries}
    own = _shapes(model.arch, counts)
    expected: Shapes = {}
    for entry in entries:
        parts = entry.way.forth(torch.empty(own[entry.ours], device="meta"))
        expected |= {key: tuple(part.shape) for key, part in zip(entry.theirs, parts, strict=True)}
    _compare(origin, weights, expected, model)
    out = {}
    for entry in entries:
        tensor = entry.way.back(*(weights[key].detach() for key in entry.theirs))
        out[entry.ours] = tensor.clone(memory_format=torch.contiguous_format)
    return out


def is_own(weights: State, model: Model) -> bool:
    """Whether the names are ours rather than some other format's."""
    names = _own_names(model.arch)
    return len(names & set(weights)) > len(names) // 2


def own(weights: State, model: Model, origin: str) -> dict[str, Tensor]:
    """A state of ours, checked like any other format's."""
    optional = {f"{stem}pre_logits.{part}" for stem in ("", "vit.") for part in ("weight", "bias")}
    names = [*_own_names(model.arch), *(optional & set(weights))]
    return to_ours(weights, [Entry(name, (name,)) for name in names], model, origin)


def _own_names(arch: Arch) -> set[str]:
    with torch.device("meta"):
        return set(models.build(arch, num_classes=1, resolution=arch.ratio).state_dict())


def with_class_position(weights: State, token: str, position: str) -> dict[str, Tensor]:
    """Weights whose class token gets its position only afterwards, as if its position embedding were 0.

    big_vision, and timm's `no_embed_class`, learn [1, side^2, width]; the original has 1 + side^2 of them.
    """
    out = dict(weights)
    if token in out and position in out and out[position].ndim == 3:
        learned = out[position]
        if math.isqrt(learned.shape[1]) ** 2 == learned.shape[1]:
            out[position] = torch.cat([learned.new_zeros(1, 1, learned.shape[2]), learned], dim=1)
    return out


def _present(entries: Sequence[Entry], source: State, keys: Callable[[Entry], Iterable[str]]) -> list[Entry]:
    """Without those groups of which the source has nothing."""
    groups = {entry.group for entry in entries if any(key in source for key in keys(entry))}
    return [entry for entry in entries if not entry.group or entry.group in groups]


def _shapes(arch: Arch, counts: Mapping[str, int]) -> Shapes:
    """Shapes of our tensors. `counts`, in elements, gives what an architecture leaves open: the number of classes,
    the width of the pre-logits layer and the number of positions, which must be a square's and the class token's.
    """
    with torch.device("meta"):
        net = models.build(arch, num_classes=1, resolution=arch.ratio)
    shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    stem = "vit." if "vit.head.weight" in shapes else ""
    width = inputs = arch.feature_width
    for layer in (f"{stem}pre_logits", f"{stem}head"):
        if f"{layer}.weight" in counts or f"{layer}.bias" in counts:
            outputs = counts.get(f"{layer}.bias") or counts.get(f"{layer}.weight", 0) // max(inputs, 1)
            shapes[f"{layer}.weight"], shapes[f"{layer}.bias"] = (outputs, inputs), (outputs,)
            inputs = outputs
    if f"{stem}pos_embedding" in shapes:
        tokens = int(f"{stem}class_token" in counts)
        side = math.isqrt(max(counts.get(f"{stem}pos_embedding", 0) // width - tokens, 1))
        shapes[f"{stem}pos_embedding"] = (1, side * side + tokens, width)
    return shapes


def _compare(origin: str, weights: State, expected: Shapes, model: Model) -> None:
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    wrong = [key for key, shape in expected.items() if found.get(key) != shape]
    extra = [key for key in found if key not in expected]
    if not wrong and not extra:
        return
    shown = [*wrong[:3], *extra[:2]]
    more = len(wrong) + len(extra) - len(shown)
    differences = [_difference(key, found.get(key), expected.get(key)) for key in shown]
    raise VitscaleError(
        f"{origin} does not fit {model.label}: {'; '.join(differences)}{f'; and {more} more' if more else ''}",
        hint="name the model whose weights these are: its size, patch and stem",
        exit_code=MISSING,
    )


def _difference(key: str, found: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> str:
    if found is None:
        return f"{key} is absent"
    return f"{key} {found} has no place" if expected is None else f"{key} is {found}, not {expected}"
