"""What is part of the id of a run and of a transfer, and what is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from studies import STUDY, describe, finished, ids, only_model, planned, pretraining, untuned, write
from vitscale.study.load import load
from vitscale.study.plan import plan


def test_ids_are_twelve_hex_digits_and_each_once(tmp_path: Path) -> None:
    found = [job.id for job in planned(tmp_path).jobs]
    assert len(set(found)) == len(found)
    assert all(len(id_) == 12 and int(id_, 16) >= 0 for id_ in found)


@pytest.mark.parametrize(
    "setting",
    ["model.head_bias=-3.0", "recipe.weight_decay=0.2", "data.flip=false", "data.resolution=21", "recipe.examples=600", "recipe.loss=sigmoid",
     "data.subset_seed=5", "recipe.validate_every=300", "data.shuffle_block=8", "recipe.precision=bf16", "data.decode=scaled", "data.resize=torch", "data.eval_crop=center",
     "data.randaugment_layers=2", "recipe.mixup=0.2"],
)  # fmt: skip
def test_what_changes_the_outcome_changes_the_id(tmp_path: Path, setting: str) -> None:
    assert not set(ids(planned(tmp_path))) & {
        job.id for job in planned(tmp_path, settings=(setting,)).jobs if job.kind == "pretrain"
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("examples = 500\n", "steps = 10\n"),  # the same duration in other words
        ('shards = "train"', 'shards = "elsewhere/again"'),  # the same samples in another place
        ("[sizes.nano]", "[sizes.tiny]"),  # the same numbers under another name
        ("lr = 1e-3\n", "lr = 1e-3\nbeta1 = 0.9\n"),  # a default, written out
        ('crop = "none"', 'crop = "none"\nmax_bad = 0.5'),
        ("lr = 1e-3\n", 'lr = 1e-3\nprobe = ["digits"]\n'),
        ("lr = 1e-3\n", 'lr = 1e-3\ncooldown_shape = "sqrt"\n'),  # of no cool-down
        ('crop = "none"', 'crop = "none"\nclasses = 10'),  # all there are
        ('"data.examples" = [100, 400]', '"data.fraction" = [0.1111, 0.44444]'),  # the same numbers of 900
        ('title = "A small study"', 'title = "Another"'),
        ('crop = "none"', 'crop = "none"\neval_crop_ratio = 0.5\nrandaugment_magnitude = 3\nresize = "pillow"'),
    ],
)
def test_what_does_not_change_the_outcome_keeps_the_id(tmp_path: Path, old: str, new: str) -> None:
    describe(tmp_path / "elsewhere" / "again")
    text = STUDY.replace(old, new)
    if "tiny" in new:
        text = text.replace("ViT-nano/7", "ViT-tiny/7")
    assert ids(planned(tmp_path, text)) == ids(planned(tmp_path))


@pytest.mark.parametrize(
    ("schedule", "matters"),
    [("'constant'", False), ("'rsqrt'", False), ("'rsqrt'\ncooldown = 0.2", True), ("'cosine'", True)],
)
def test_an_end_that_the_rate_never_falls_to_is_no_part_of_the_id(tmp_path: Path, schedule: str, matters: bool) -> None:
    text = STUDY.replace("lr = 1e-3\n", f"lr = 1e-3\nschedule = {schedule}\n")
    ended = text.replace("lr = 1e-3\n", "lr = 1e-3\nend_lr = 1e-5\n")
    assert (ids(planned(tmp_path, text)) != ids(planned(tmp_path, ended))) is matters


TRANSFER = """
[[transfer]]
task = "digits"
shots = [1]
"""


def test_an_average_is_part_of_the_id_of_what_is_fine_tuned(tmp_path: Path) -> None:
    text = only_model("name = 'ViT-nano/7'") + "[[transfer]]\ntask = 'digits'\nprotocol = 'finetune'\n"
    plain, zero, averaged = (
        {job.id for job in planned(tmp_path, text + line).jobs if job.kind == "transfer"}
        for line in ("", "ema = 0.0\n", "ema = 0.9\n")
    )
    assert plain == zero
    assert plain != averaged


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ("gelu = 'exact'", False), ("pool = 'token'", False), ("attention = 'full'", False), ("patch = 7", False),
        ("depth = 2", False), ("pos_embedding = '1d'", False), ("mlp = 128", False),
        ("gelu = 'tanh'", True), ("pool = 'gap'", True), ("patch = 14", True), ("depth = 3", True), ("width = 32", True),
        ("pos_embedding = 'relative'", True), ("pool = 'gap'\nattention = 'axial'", True), ("heads = 4", True),
    ],
)  # fmt: skip
def test_an_option_of_the_model_changes_the_id_unless_it_is_what_it_was(
    tmp_path: Path, option: str, changes: bool
) -> None:
    plain = planned(tmp_path, only_model("name = 'ViT-nano/7'"))
    other = planned(tmp_path, only_model(f"name = 'ViT-nano/7'\n{option}"))
    assert (ids(other) != ids(plain)) == changes


def test_what_means_nothing_to_a_model_is_not_in_its_id(tmp_path: Path) -> None:
    resnet = only_model("name = 'R5'")
    before = ids(planned(tmp_path, resnet))
    for setting in ("model.pre_logits=false", "recipe.dropout=0.1", "model.head_bias=0.0"):
        assert ids(planned(tmp_path, resnet, settings=(setting,))) == before
    sigmoid = planned(tmp_path, resnet, settings=("recipe.loss=sigmoid",))
    said = planned(tmp_path, resnet, settings=("recipe.loss=sigmoid", "model.head_bias=-10.0"))
    assert ids(said) == ids(sigmoid)


def test_an_untrained_network_of_a_published_checkpoint_is_not_that_of_a_run(tmp_path: Path) -> None:
    """It has no pre-logits layer, which moves what the generator gives the rest."""
    (tmp_path / "a.npz").write_bytes(b"never read in planning")

    def untrained(model: str) -> set[str]:
        jobs = planned(tmp_path, only_model(model) + TRANSFER).jobs
        return {job.id for job in jobs if job.run.transfer and job.run.transfer.init == "untrained"}

    published = untrained("name = 'ViT-nano/7'\ncheckpoint = 'a.npz'")
    assert published.isdisjoint(untrained("name = 'ViT-nano/7'"))
    assert published == untrained("name = 'ViT-nano/7'\ncheckpoint = 'a.npz'\npre_logits = false")
    assert published == untrained("name = 'ViT-nano/7'\npre_logits = false")


def test_a_patch_is_the_number_meant_also_where_a_published_name_means_another(tmp_path: Path) -> None:
    text = only_model("name = 'R+ViT-Ti/32'").replace("resolution = 28", "resolution = 224")
    text += '[[axes]]\n"model.patch" = [8, 16, 32]\n'
    jobs = pretraining(planned(tmp_path, text))
    assert [job.arch.ratio for job in jobs] == [8, 16, 32]
    assert jobs[0].label == "R+ViT-Ti/32 (patch=8)"


def test_an_option_may_stand_on_an_axis(tmp_path: Path) -> None:
    text = (
        only_model("name = 'ViT-nano/7'\n") + '[[axes]]\n"model.depth" = [1, 2, 4]\n"model.pool" = ["token", "gap"]\n'
    )
    jobs = pretraining(planned(tmp_path, text))
    assert [(job.arch.depth, job.arch.tokens(28)) for job in jobs] == [
        (depth, tokens) for depth in (1, 2, 4) for tokens in (17, 16)
    ]
    assert jobs[1].varied == {"model.depth": 1, "model.pool": "gap"}


def test_fewer_classes_are_another_run_with_a_smaller_head(tmp_path: Path) -> None:
    text = STUDY.replace('"data.examples" = [100, 400]', '"data.classes" = [3, 6, 10]')
    runs = {
        (job.run.data.classes, job.run.seed): job
        for job in pretraining(planned(tmp_path, untuned(text)))
        if "R5" in job.label
    }
    assert [runs[c, 0].head.num_classes for c in (3, 6, 10)] == [3, 6, 10]
    assert [runs[c, 0].examples for c in (3, 6, 10)] == [270, 540, 900]
    assert len({job.id for job in runs.values()}) == len(runs)
    assert runs[3, 0].macs < runs[10, 0].macs


def test_a_fraction_of_all_is_not_as_many_examples_of_the_chosen_classes(tmp_path: Path) -> None:
    by = {
        key: planned(
            tmp_path, STUDY.replace('"data.examples" = [100, 400]', f'"data.{key}" = [{value}]\n"data.classes" = [5]')
        )
        for key, value in (("fraction", 0.2), ("examples", 90))
    }
    assert {job.examples for found in by.values() for job in pretraining(found)} == {90}
    assert not {job.id for job in pretraining(by["fraction"])} & {job.id for job in pretraining(by["examples"])}


def test_excluded_images_are_counted_and_are_part_of_the_id(tmp_path: Path) -> None:
    for name, keys in (("none.json", []), ("a.json", ["x", "y"]), ("b.json", ["y", "x"])):
        excluded = [{"key": key, "label": 0} for key in keys]
        (tmp_path / name).write_text(json.dumps({"schema": 1, "fingerprint": "f00d", "excluded": excluded}))
    found = {
        name: planned(
            tmp_path, STUDY.replace('crop = "none"', f'crop = "none"\nexclude = "{name}"').replace("400]", "898]")
        )
        for name in ("a.json", "b.json")
    }
    assert ids(found["a.json"]) == ids(found["b.json"])
    assert {job.dataset.excluded for job in found["a.json"].jobs} == {2}
    trained = {job.id for job in pretraining(planned(tmp_path))}
    assert not {job.id for job in pretraining(found["a.json"])} & trained
    empty = planned(tmp_path, STUDY.replace('crop = "none"', 'crop = "none"\nexclude = "none.json"'))
    assert ids(empty) == ids(planned(tmp_path))


def test_classes_without_images_make_another_run(tmp_path: Path) -> None:
    """They are in no key and no label, but in the head."""
    before, after = planned(tmp_path), planned(tmp_path, classes=12, empty_classes=2)
    assert {job.id for job in pretraining(before)}.isdisjoint(job.id for job in pretraining(after))


def test_what_an_untrained_network_depends_on_is_in_its_id(tmp_path: Path) -> None:
    def untrained(text: str = STUDY, **facts: Any) -> set[str]:
        jobs = planned(tmp_path, text, **facts).jobs
        return {job.id for job in jobs if job.run.transfer and job.run.transfer.init == "untrained"}

    before = untrained()
    assert len(before) == 4
    assert untrained(fingerprint="other") == before
    assert untrained(classes=11).isdisjoint(before)
    assert untrained(STUDY.replace('stem = "small"', 'stem = "small"\npre_logits = false')).isdisjoint(before)


def test_other_samples_in_the_same_place_make_another_run(tmp_path: Path) -> None:
    before = ids(planned(tmp_path))
    study = load(write(tmp_path), base=tmp_path)
    describe(tmp_path / "train", fingerprint="beef")
    after = {job.id for job in plan(study, {}).jobs if job.role != "baseline"}
    assert not set(before) & after


def test_the_whole_set_has_no_subset_seed(tmp_path: Path) -> None:
    text = STUDY.replace("[100, 400]", "900")
    whole = planned(tmp_path, text, ("data.subset_seed=1",))
    assert ids(whole) == ids(planned(tmp_path, text, ("data.subset_seed=2",)))
    assert ids(planned(tmp_path, settings=("data.subset_seed=1",))) != ids(
        planned(tmp_path, settings=("data.subset_seed=2",))
    )


def test_a_transfer_s_id_is_that_of_its_content(tmp_path: Path) -> None:
    before = {j.id for j in finished(load(write(tmp_path), base=tmp_path)).jobs if j.kind == "transfer"}
    same = STUDY.replace("shots = [1, 5]", "shots = [1, 5]\nresolution = 28").replace(
        "steps = 5\n", "steps = 5\nseeds = 1\n"
    )
    assert {j.id for j in finished(load(write(tmp_path, same), base=tmp_path)).jobs if j.kind == "transfer"} == before
    bf16 = load(write(tmp_path), base=tmp_path, settings=["recipe.precision=bf16"])
    scratch = [
        j.id
        for j in finished(bf16).jobs
        if j.run.transfer and (j.run.transfer.protocol, j.role) == ("finetune", "baseline")
    ]
    assert len(scratch) == 2
    assert not set(scratch) & before


def test_a_task_file_is_known_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    ids = []
    for name in ("one.toml", "two.toml"):
        describe(tmp_path / "t", samples=500, fingerprint="t")
        task = 'name = "mine"\nversion = 1\nsource = "shards"\nnum_classes = 10\ntrain = "t"\ntest = "t"\n'
        (tmp_path / name).write_text(task)
        text = STUDY.replace('task = "digits"', f'task = "{name}"')
        ids.append({j.id for j in finished(load(write(tmp_path, text), base=tmp_path)).jobs})
    assert ids[0] == ids[1]


def test_a_task_s_preprocessing_is_its_own_and_the_run_s_that_of_its_pre_training(tmp_path: Path) -> None:
    describe(tmp_path / "t", samples=500, fingerprint="t")
    task = 'name = "mine"\nversion = 1\nsource = "shards"\nnum_classes = 10\ntrain = "t"\ntest = "t"\n'
    text = STUDY.replace('task = "digits"', 'task = "task.toml"')

    def baselines(settings: tuple[str, ...] = ()) -> set[str]:
        jobs = finished(load(write(tmp_path, text), base=tmp_path, settings=list(settings))).jobs
        return {job.id for job in jobs if job.role == "baseline"}

    (tmp_path / "task.toml").write_text(task)
    plain = baselines()
    assert baselines(("data.decode=scaled", "data.eval_crop=center")) == plain
    (tmp_path / "task.toml").write_text(task + 'eval_crop = "center"\n')
    assert not baselines() & plain
