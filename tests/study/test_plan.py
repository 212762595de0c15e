"""Ids, jobs, selection and prices of a study."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studies import STUDY, describe, write
from vitscale import models
from vitscale.study.job import Job
from vitscale.study.load import Study, load
from vitscale.study.plan import Plan, plan
from vitscale.study.select import choose, edges


def planned(folder: Path, text: str = STUDY, settings: tuple[str, ...] = (), **facts: Any) -> Plan:
    """The plan of a study over data with these facts."""
    return plan(load(write(folder, text, **facts), base=folder, settings=settings), {})


def ids(result: Plan) -> list[str]:
    return [job.id for job in [*result.jobs, *result.waiting]]


def untuned(text: str) -> str:
    """The study without its [select]: every cell has its id at once."""
    start = text.index("[select]")
    return text[:start] + text[text.index("[[transfer]]") :]


def finished(study: Study, best: float = 3e-3) -> Plan:
    """The plan after a tuning in which the rate `best` won."""
    scores = {job.id: 1.0 if job.run.recipe.lr == best else 0.5 for job in plan(study, {}).jobs if job.role == "tuning"}
    return plan(study, scores)


def pretraining(result: Plan) -> list[Job]:
    return [job for job in result.jobs if job.kind == "pretrain"]


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


def only_model(model: str) -> str:
    """The small study with one model and its options, none of which is tuned."""
    before, rest = STUDY.split("[model]")
    head, _ = rest.split("[[axes]]")
    return f"{before}[model]\n{model}\n{head}"


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


def test_cells_wait_until_every_tuning_run_has_ended(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path)
    first = plan(study, {})
    tuning = [job for job in first.jobs if job.role == "tuning"]
    assert len(tuning) == 6
    assert sum(job.kind == "pretrain" for job in first.waiting) == 8 - 2  # two will be one of their trials
    assert len(plan(study, {job.id: 0.5 for job in tuning[:-1]}).waiting) == 3 + 8  # one family is decided
    assert finished(study).waiting == ()


def test_what_waits_is_counted_once(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path)
    first, last = plan(study, {}), finished(study)
    assert len(first.jobs) + len(first.waiting) == len(last.jobs)
    assert sum(job.flops for job in [*first.jobs, *first.waiting]) == sum(job.flops for job in last.jobs)


def test_settings_that_make_one_run_are_paid_for_once(tmp_path: Path) -> None:
    # Without a cool-down its shape has no effect: two combinations for each rate, and one run.
    over = '"recipe.lr" = [1e-3, 3e-3, 1e-2], "recipe.cooldown_shape" = ["linear", "sqrt"]'
    study = load(write(tmp_path, STUDY.replace('"recipe.lr" = [1e-3, 3e-3, 1e-2]', over)), base=tmp_path)
    assert sum(job.role == "tuning" for job in plan(study, {}).jobs) == 6
    first = next(job for job in pretraining(finished(study, best=3e-3)) if job.role == "cell")
    assert first.flops_tuning == 2 * first.flops


def test_what_stands_twice_in_a_study_waits_once(tmp_path: Path) -> None:
    transfer = STUDY[STUDY.index("[[transfer]]") : STUDY.rindex("[[transfer]]")]
    shapes = '"recipe.cooldown_shape" = ["linear", "sqrt"]\nseed'  # of no cool-down
    once = load(write(tmp_path), base=tmp_path)
    again = load(write(tmp_path, STUDY.replace("seed", shapes, 1) + transfer), base=tmp_path)
    assert sorted(ids(plan(again, {}))) == sorted(ids(plan(once, {})))


def test_the_choice_is_the_best_by_validation_and_is_shared_with_its_cell(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path)
    result = finished(study, best=3e-3)
    cells = [job for job in pretraining(result) if job.role == "cell"]
    assert {job.run.recipe.lr for job in cells} == {3e-3}
    assert all(job.at_edge is False for job in cells)
    assert sum(job.role == "tuning" for job in result.jobs) == 4  # of 6 two became cells
    assert len({job.id for job in cells}) == 8
    first = cells[0]
    assert first.flops_tuning == 2 * first.flops  # beside itself
    assert first.tried == tuple({"recipe.lr": lr, "score": 0.5 + 0.5 * (lr == 3e-3)} for lr in (1e-3, 3e-3, 1e-2))
    assert cells[1].flops_tuning == 3 * first.flops


def test_an_edge_is_that_of_each_setting_alone() -> None:
    grid = [(1e-3, 0.1, 0.4), (1e-2, 0.1, 0.5), (1e-1, 0.1, None), (1e-2, 0.3, 0.2)]
    tried = [
        {"recipe.lr": lr, "recipe.weight_decay": decay, "recipe.ema": True, "recipe.loss": "softmax", "score": score}
        for lr, decay, score in grid
    ]
    assert edges(tried) == {"recipe.weight_decay": 0.1}
    assert edges([{**trial, "score": None} for trial in tried]) == {}
    assert edges(tried[:1]) == {}
    scores = [(trial, trial["score"]) for trial in tried if trial["score"] is not None]
    choice = choose(scores, tried)
    assert choice.rate_at_edge is False
    without = [{key: value for key, value in trial.items() if key != "recipe.lr"} for trial in tried]
    assert choose([(trial, 1.0) for trial in without], without).rate_at_edge is None


def test_an_optimum_on_the_edge_is_flagged_and_a_failed_trial_is_passed_over(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path)
    assert all(job.at_edge for job in pretraining(finished(study, best=1e-2)) if job.role == "cell")
    tuning = [job for job in plan(study, {}).jobs if job.role == "tuning"]
    scores = {job.id: None if job.run.recipe.lr == 1e-2 else job.run.recipe.lr for job in tuning}
    cells = [job for job in pretraining(plan(study, scores)) if job.role == "cell"]
    assert {job.run.recipe.lr for job in cells} == {3e-3}
    assert cells[0].tried[-1] == {"recipe.lr": 1e-2, "score": None}


def test_sizes_that_are_not_tuned_take_the_nearest_choice(tmp_path: Path) -> None:
    text = STUDY.replace('per = ["model.name"]', 'per = ["data.examples"]\nat = { "data.examples" = [100, 800] }')
    text = text.replace("[100, 400]", "[100, 200, 400, 800]")
    study = load(write(tmp_path, text), base=tmp_path)
    best = {100: 1e-3, 800: 1e-2}
    scores = {
        job.id: float(job.run.recipe.lr == best[job.examples]) for job in plan(study, {}).jobs if job.role == "tuning"
    }
    assert len(scores) == 6
    chosen = {job.examples: job.run.recipe.lr for job in pretraining(plan(study, scores)) if job.role == "cell"}
    assert chosen == {100: 1e-3, 200: 1e-3, 400: 1e-2, 800: 1e-2}


def test_every_cell_is_transferred_and_each_baseline_stands_once(tmp_path: Path) -> None:
    result = finished(load(write(tmp_path), base=tmp_path))
    transfers = [job for job in result.jobs if job.kind == "transfer" and job.role == "cell"]
    cells = {job.id for job in pretraining(result) if job.role == "cell"}
    assert {job.parent for job in transfers} == cells
    assert len(transfers) == 2 * len(cells)
    baselines = [job for job in result.jobs if job.role == "baseline"]
    kinds = sorted((j.run.transfer.protocol, j.run.transfer.init, j.arch.family) for j in baselines if j.run.transfer)
    assert kinds == [
        ("fewshot", "pixels", "vit"),
        ("fewshot", "untrained", "resnet"),
        ("fewshot", "untrained", "vit"),
        ("finetune", "untrained", "resnet"),
        ("finetune", "untrained", "vit"),
    ]
    assert all(job.parent is None and job.pretrain_flops == 0 for job in baselines)


def test_flops_follow_the_paper_s_convention(tmp_path: Path) -> None:
    text = 'seed = 0\n[model]\nname = "ViT-B/16"\npre_logits = false\n[data]\nsize = 303_000_000\nnum_classes = 18_291\n[recipe]\nepochs = 7\n'
    (job,) = planned(tmp_path, text).jobs
    assert job.pretrain_flops == pytest.approx(224e18, rel=0.005)  # arXiv 2010.11929, Table 6: 224 exaFLOPs
    assert job.flops == job.pretrain_flops


def test_a_fine_tuning_with_several_rates_is_priced_with_its_search(tmp_path: Path) -> None:
    result = finished(load(write(tmp_path), base=tmp_path))
    job = next(j for j in result.jobs if j.run.transfer and j.run.transfer.protocol == "finetune" and j.role == "cell")
    macs = job.arch.macs(28, replace(job.head, num_classes=10, pre_logits=False)).total
    assert job.flops == 6 * macs * 5 * 10 * 3  # two rates and the final training


def test_transfers_of_one_task_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    text = STUDY + '\n[[transfer]]\ntask = "digits"\nprotocol = "finetune"\nlr = 0.01\nsteps = 50\nbatch_size = 10\n'
    result = finished(load(write(tmp_path, text), base=tmp_path))
    tuned = [j for j in result.jobs if j.run.transfer and j.run.transfer.protocol == "finetune" and j.role == "cell"]
    assert {j.varied["transfer.steps"] for j in tuned} == {5, 50}
    assert all("transfer.batch_size" not in j.varied for j in tuned)
    assert not any(
        "transfer.steps" in j.varied for j in result.jobs if j.run.transfer and j.run.transfer.protocol == "fewshot"
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


def test_a_thousand_runs_are_planned_in_a_second_of_this_process(tmp_path: Path) -> None:
    text = STUDY[: STUDY.index("[[axes]]")] + '[[axes]]\n"model.name" = ["ViT-nano/7", "R5"]\nseed = [{}]\n'.format(
        ", ".join(map(str, range(500)))
    )
    study = load(write(tmp_path, text), base=tmp_path)
    start = time.process_time()
    assert len(plan(study, {}).jobs) == 1000
    assert time.process_time() - start < 10  # far above the aim: it catches a square, not a slow machine


def test_a_job_s_document_names_the_architecture_by_its_numbers(tmp_path: Path) -> None:
    job = planned(tmp_path).jobs[0]
    document = job.document()
    assert models.from_dict(document["arch"]) == job.arch
    assert document["steps"] == 10
    assert document["id"] == job.id


def test_memory_is_states_and_the_activations_of_a_micro_batch(tmp_path: Path) -> None:
    job = plan(load(write(tmp_path), base=tmp_path), {}).jobs[0]
    batch, params = job.run.recipe.batch_size, job.params.total
    kept = job.arch.activations(job.run.data.resolution, job.head)
    assert job.memory_bytes() == 16 * params + kept.bytes(batch)
    assert job.memory_bytes(devices=2, micro_batch=batch) == 20 * params + kept.bytes(batch // 2)
    assert job.memory_bytes(micro_batch=1) == 16 * params + kept.bytes(1)
    half, *_ = pretraining(planned(tmp_path, settings=("recipe.precision=bf16",)))
    assert half.memory_bytes() == 16 * params + kept.bytes(batch, "bf16") < job.memory_bytes()
    again = job.arch.activations(job.run.data.resolution, job.head, recompute=True)
    assert job.memory_bytes(recompute=True) == 16 * params + again.peak_bytes(batch)
