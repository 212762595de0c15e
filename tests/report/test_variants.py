import json

from test_curves import table

from vitscale.analysis.curves import curves
from vitscale.analysis.variants import tuned_settings, variants

FINE = {"protocol": "finetune", "task": "digits", "parent_id": "trunk", "seed": 0, "init": "pretrained"}


def drawn(*rows: dict[str, object], trunk: str = "{}") -> dict[str, float]:
    """The transfers' values by variant, beside a pre-training run of the settings `trunk`."""
    points = curves(table({"run_id": "trunk", "seed": 0, "value": 0.5, "settings": trunk}, *rows)).points
    found = points[points["protocol"] != "pretrain"]
    return dict(zip(found["variant"], found["value"], strict=True))


def test_transfers_that_differ_in_steps_or_resolution_are_lines_of_their_own() -> None:
    rows = [
        {**FINE, "value": value, "settings": f'{{"transfer.steps": {steps}, "transfer.resolution": {size}}}'}
        for steps, size, value in ((4, "null", 0.6), (400, "null", 0.9), (400, 56, 0.95))
    ]
    assert drawn(*rows) == {
        "resolution=null, steps=4": 0.6,
        "resolution=null, steps=400": 0.9,
        "resolution=56, steps=400": 0.95,
    }


def test_a_transfer_s_settings_are_named_even_while_the_other_transfer_is_not_done() -> None:
    assert drawn({**FINE, "value": 0.6, "settings": '{"transfer.steps": 4}'}) == {"steps=4": 0.6}


def test_a_word_that_two_settings_share_is_written_out() -> None:
    trunk = {"recipe.steps": 100, "data.resolution": 14}
    settings = json.dumps({**trunk, "transfer.steps": 4, "transfer.resolution": 28})
    shown = drawn({**FINE, "value": 0.6, "settings": settings}, trunk=json.dumps(trunk))
    assert shown == {"transfer.resolution=28, steps=4": 0.6}


def test_other_shots_of_one_protocol_make_no_lines_unless_they_overlap() -> None:
    few = {**FINE, "protocol": "fewshot"}
    one = {**few, "shots": 1, "value": 0.5, "settings": '{"transfer.shots": [1]}'}
    five = {**few, "shots": 5, "value": 0.7, "settings": '{"transfer.shots": [5, 10]}'}
    again = {**few, "shots": 5, "value": 0.7, "settings": '{"transfer.shots": [1, 5]}'}
    assert set(drawn(one, five)) == {""}
    assert set(drawn(five, again)) == {"shots=[5, 10]", "shots=[1, 5]"}


def test_a_tuned_setting_that_differs_within_a_cell_splits_that_model_only() -> None:
    frame = table(
        {"model": "A", "seed": 0, "examples": 1000, "value": 0.5, "settings": '{"recipe.lr": 0.1}'},
        {"model": "A", "seed": 0, "examples": 1000, "value": 0.6, "settings": '{"recipe.lr": 0.2}'},
        {"model": "B", "seed": 0, "examples": 1000, "value": 0.7, "settings": '{"recipe.lr": 0.1}'},
        {"model": "B", "seed": 0, "examples": 4000, "value": 0.8, "settings": '{"recipe.lr": 0.2}'},
    )
    assert list(variants(frame, frozenset({"recipe.lr"}))["variant"]) == ["lr=0.1", "lr=0.2", "", ""]
    assert list(variants(frame)["variant"]) == ["lr=0.1", "lr=0.2", "lr=0.1", "lr=0.2"]


def test_what_tuning_runs_of_one_cell_differ_in_is_tuned() -> None:
    frame = table(
        {"seed": 0, "settings": '{"recipe.lr": 0.1, "recipe.schedule": "cosine"}'},
        {"seed": 0, "settings": '{"recipe.lr": 0.2, "recipe.schedule": "cosine"}'},
        {"seed": 0, "examples": 4000, "settings": '{"recipe.lr": 0.1, "recipe.schedule": "rsqrt"}'},
    )
    assert tuned_settings(frame) == {"recipe.lr"}
    assert tuned_settings(frame.iloc[:0]) == frozenset()
