import json

import pytest
from typer.testing import CliRunner

from vitscale.cli.main import app
from vitscale.errors import USAGE


def listed(*options: str) -> dict[str, dict[str, object]]:
    done = CliRunner().invoke(app, ["ls", "models", "--json", *options])
    assert done.exit_code == 0, done.output
    return {model["name"]: model for model in json.loads(done.stdout)["models"]}


def test_models_are_listed_with_what_they_cost() -> None:
    models = listed("--classes", "1000", "--resolution", "224")
    assert {model["family"] for model in models.values()} == {"vit", "hybrid", "resnet"}
    assert models["ViT-B/16"]["params"] == 86_567_656
    assert models["ViT-B/16"]["tokens"] == 197
    parts = models["ViT-B/16"]["macs_by_part"]
    assert sum(parts.values()) == models["ViT-B/16"]["macs"]  # type: ignore[attr-defined]
    assert models["ViT-B/16"]["activation_bytes"] > models["ViT-B/16"]["activation_bytes_checkpointed"]  # type: ignore[operator]
    assert models["R+ViT-Ti/16"]["params"] == models["R+ViT-Ti/32"]["params"] == 6_337_704
    assert models["R50x1"]["macs"] > listed("--counting", "valid")["R50x1"]["macs"]  # type: ignore[operator]


@pytest.mark.parametrize(("resolution", "absent"), [(224, "none"), (28, "ViT-B/16")])
def test_only_models_that_fit_the_resolution_are_listed(resolution: int, absent: str) -> None:
    assert absent not in listed("--resolution", str(resolution))


def test_a_resolution_that_nothing_fits_is_a_mistake() -> None:
    done = CliRunner().invoke(app, ["ls", "models", "--resolution", "2"])
    assert done.exit_code == USAGE
    assert done.stderr.startswith("error: no model of the literature fits images of 2 px\nhint: ")
