"""What a ViT makes of corrupted patch embeddings, and whom a loss of its predictions reaches."""

import pytest
import torch
import torch.nn.functional as F

from vitscale import models
from vitscale.models.vit.masked import Net

SIZES = {"nano": {"width": 64, "depth": 2, "mlp": 128, "heads": 4}}
OPTIONS = [
    {},
    {"pool": "gap"},
    {"pos_embedding": "2d"},
    {"pos_embedding": "none"},
    {"pos_embedding": "relative"},
    {"pool": "gap", "attention": "axial"},
]
IMAGES = torch.randn(2, 3, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
PLACES = torch.tensor([[1, 4, 7], [0, 2, 15]])
SOURCES = torch.stack([torch.arange(16), torch.arange(16)])
SOURCES[0, 1], SOURCES[0, 4], SOURCES[1, 2] = -1, 9, -1  # the other three are kept


def net_of(**options: str) -> Net:
    torch.manual_seed(0)
    arch = models.parse("ViT-nano/7", sizes=SIZES)
    assert arch is not None
    net = models.build(models.with_options(arch, options), num_classes=5, resolution=28, patches=3).double()
    with torch.no_grad():
        for parameter in net.parameters():  # zeros would hide what reaches what
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert isinstance(net, Net)
    return net


@pytest.mark.parametrize("options", OPTIONS)
def test_predictions_are_those_of_the_corrupted_tokens_one_by_one(options: dict[str, str]) -> None:
    net = net_of(**options)
    first = int(net.class_token is not None)
    for image, places, sources, found in zip(IMAGES, PLACES, SOURCES, net(IMAGES, PLACES, SOURCES), strict=True):
        embedded = [
            net.patches(image[:, 7 * row : 7 * row + 7, 7 * column : 7 * column + 7])[:, 0, 0]
            for row in range(4)
            for column in range(4)
        ]
        shown = [net.mask_token[0, 0] if source < 0 else embedded[source] for source in sources]
        tokens = net.encoded(torch.stack(shown)[None])[0, first:]
        for place, prediction in zip(places, found, strict=True):
            own = F.layer_norm(tokens[place], (64,), net.norm.weight, net.norm.bias, eps=1e-6)
            torch.testing.assert_close(prediction, net.head(own))


def test_without_corruption_its_tokens_are_those_of_a_classification() -> None:
    net, places = net_of(), torch.tensor([[3], [3]])
    plain = models.build(models.parse("ViT-nano/7", sizes=SIZES), num_classes=5, resolution=28).double()
    plain.load_state_dict({name: tensor for name, tensor in net.state_dict().items() if name != "mask_token"})
    tokens = plain.norm(plain.encoded(plain.embedded(IMAGES)))
    own = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(net(IMAGES, places, own)[:, 0], plain.head(tokens[:, 4]))


def test_a_loss_reaches_every_parameter_and_only_the_pixels_that_are_shown() -> None:
    net, images = net_of(), IMAGES.clone().requires_grad_()
    net(images, PLACES, SOURCES)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert images.grad is not None
    seen = images.grad.abs().sum(dim=1).unflatten(2, (4, 7)).unflatten(1, (4, 7)).sum(dim=(2, 4)).flatten(1)
    assert (seen[0] == 0).nonzero().flatten().tolist() == [1, 4]  # masked, and replaced by patch 9
    assert (seen[1] == 0).all()  # the other image


@pytest.mark.parametrize("places", [[[1]], [[4]]])
def test_the_mask_token_is_trained_only_where_it_stands(places: list[list[int]]) -> None:
    net, sources = net_of(), torch.arange(16)[None].clone()
    sources[0, 4] = 9
    net(IMAGES[:1], torch.tensor(places), sources).sum().backward()
    assert net.mask_token.grad is not None
    assert (net.mask_token.grad == 0).all()


def test_the_embedding_of_another_patch_has_no_place_of_its_own() -> None:
    """It is moved before positions are added: a patch and a copy of it at its place are one and the same."""
    net, sources = net_of(), torch.arange(16)[None].clone()
    sources[0, 4] = 9
    copied = IMAGES[:1].clone()
    copied[:, :, 7:14, 0:7] = IMAGES[:1, :, 14:21, 7:14]
    places = torch.arange(16)[None]
    torch.testing.assert_close(net(IMAGES[:1], places, sources), net(copied, places, places))


@pytest.mark.parametrize("name", ["R5", "R5+ViT-nano/7"])
def test_other_families_have_no_such_network(name: str) -> None:
    sizes = {**SIZES, "R5": {"blocks": [1], "channels": 8, "groups": 4}}
    arch = models.parse(name, stem="small", sizes=sizes)
    assert arch is not None
    with pytest.raises(ModuleNotFoundError):
        models.build(arch, num_classes=5, resolution=28, patches=3)
