"""A study file: what is read, and every mistake at once with its line."""

import json
from pathlib import Path

import pytest

from studies import STUDY, describe, write
from vitscale.cli.report import _title
from vitscale.errors import INVALID_STUDY, MISSING, VitscaleError
from vitscale.study import datasets
from vitscale.study.load import load
from vitscale.study.plan import plan


def mistakes(folder: Path, text: str, settings: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    path = write(folder, text)
    with pytest.raises(VitscaleError) as caught:
        load(path, base=folder, settings=settings)
    assert caught.value.exit_code == INVALID_STUDY
    return [(problem.message.replace(str(path), "study.toml"), problem.hint) for problem in caught.value.problems]


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_axes_are_a_product_over_the_defaults(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path)
    assert [(c.run.model.name, c.run.data.examples, c.run.seed) for c in study.cells] == [
        (model, examples, seed) for model in ("ViT-nano/7", "R5") for examples in (100, 400) for seed in (0, 1)
    ]
    assert {c.run.recipe.batch_size for c in study.cells} == {50}
    assert study.title == "A small study"


def test_five_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = (
        STUDY.replace("batch_size = 50\n", "batch_size = 'many'\n", 1)
        .replace("lr = 1e-3\n", "learning_rate = 1e-3\n", 1)
        .replace('"R5"]\n', '"R5o"]\n', 1)
        .replace('task = "digits"', 'task = "digit"', 1)
        .replace("[100, 400]", "[100, 5_000]", 1)
    )
    found = mistakes(tmp_path, text)
    at = {part: line_of(text, part) for part in ("'many'", "learning_rate", '"R5o"', '"digit"', "5_000")}
    assert {(message, hint) for message, hint in found} == {
        (
            f"study.toml:{at[chr(39) + 'many' + chr(39)]}: recipe.batch_size: 'many' is not a valid integer",
            "'recipe.batch_size' takes int",
        ),
        (f"study.toml:{at['learning_rate']}: unknown key 'recipe.learning_rate'", "did you mean 'recipe.lr'?"),
        (f"study.toml:{at[chr(34) + 'R5o' + chr(34)]}: unknown model 'R5o'", "did you mean 'R5'?"),
        (f"study.toml:{at[chr(34) + 'digit' + chr(34)]}: unknown task 'digit'", "did you mean 'digits'?"),
        (
            f"study.toml:{at['5_000']}: data.examples is 5,000, but there are 900 training images",
            "ask for fewer; images are never repeated in silence",
        ),
    }


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('stem = "small"', 'stem = "small"\npool = "gap"', "model.pool means nothing to R5", "an [[axes]] table of their own"),
        ('stem = "small"', 'stem = "small"\npatch = 14', "model.patch means nothing to R5", "an [[axes]] table of their own"),
        ('stem = "small"', 'stem = "small"\ndepth = 0', "model.depth is 0", "above 0"),
        ('stem = "small"', 'stem = "small"\npool = "mean"', "model.pool: 'mean' is not 'token' or 'gap'", "one of 'token', 'gap'"),
        ("resolution = 28", "resolution = 30", "ViT-nano/7: patch 7 does not divide resolution 30", "fit"),
        ("heads = 2", "heads = 3", "ViT-nano/7: 3 heads do not divide width 64", "fit"),
        ("examples = 500\n", "", "the run has no duration", "recipe.steps"),
        ("examples = 500\n", "examples = 500\nsteps = 5\n", "recipe.steps and recipe.examples are both given", "one"),
        ("val_examples = 100", "val_examples = 0", "keep = 'best' has no upstream validation", "val_examples"),
        ("val_examples = 100", "val_examples = 1000", "data.val_examples is 1,000 of 1,000 images", "leave some"),
        ("batch_size = 50", "batch_size = 0", "recipe.batch_size is 0", "at least 1"),
        ("warmup_steps = 2", "warmup_steps = -1", "recipe.warmup_steps is -1", "at least 0"),
        ("lr = 1e-3", 'lr = "high"', "recipe.lr: 'high' is not a valid number", "float"),
        ('crop = "none"', 'crop = "nine"', "data.crop: 'nine' is not 'none' or 'inception'", "takes one of 'none', 'inception'"),
        ("seed = [0, 1]", "seed = []", "'seed' has no values", "at least one"),
        ("seed = [0, 1]", "seed = [0, 1, 2]\nzip = true", "zip = true needs lists of one length", "as many values"),
        ("seed = [0, 1]", "seed = [0, 9223372036854775807]\n'data.subset_seed' = -1", "data.subset_seed is -1", "from 0 to"),
        ("shots = [1, 5]\n", "shots = [1, 5]\n[[transfer]]\ntask = 'digits'\nshots = [10]\n", "to digits differs in its shots alone", "in one"),
        ("shots = [1, 5]", "shots = [1, 98]", "shots = [1, 98] for task digits", "from 1 to 97"),
        ("shots = [1, 5]", "shots = [1, 500]", "shots = [1, 500] for task digits", "from 1 to 97"),
        ('protocol = "finetune"', 'protocol = "tune"', "transfer.protocol: 'tune' is not 'fewshot' or 'finetune'", "takes one of"),
        ('by = "upstream_val"', 'by = "digits"', "cannot select by 'digits'", "test labels never choose"),
        ('per = ["model.name"]', 'per = ["model.nam"]', "unknown key 'model.nam'", "did you mean 'model.name'?"),
        ("[sizes.R5]", "[sizes.five]", "sizes.five is no name for a ResNet's size", "Rfive"),
        ("depth = 2", "depht = 2", "unknown key 'sizes.nano.depht'", "did you mean 'depth'?"),
        ('stem = "small"', 'name = "ViT\\n"', "model.name: 'ViT\\n' holds '\\n'", "takes"),
        ('stem = "small"', 'checkpoint = "\\u0000"', "model.checkpoint: '\\x00' holds '\\x00'", "takes"),
        ("depth = 2", "depth = [1, 2]", "sizes.nano.depth is [1, 2]", "one each"),
        ("depth = 2\n", "", "sizes.nano lacks depth", "width, depth, mlp and heads"),
        ('title = "A small study"', "titel = 'x'", "unknown key 'titel'", "did you mean 'title'?"),
        ("warmup_steps = 2", "warmup_steps = 10", "warmup_steps is 10 and the run has 10 steps", "--set recipe.warmup_steps=1, or"),
        ("examples = 500\n", "epochs = 0.001\n", "the run has no step", "longer"),
        ("lr = 1e-3\n", "lr = nan\n", "recipe.lr is nan", "at least 0"),
        ("lr = 1e-3\n", "lr = inf\n", "recipe.lr is inf", "a finite number"),
        ("examples = 500\n", "epochs = nan\n", "recipe.epochs is nan", "above 0"),
        ("examples = 500\n", "epochs = inf\n", "recipe.epochs is inf", "at most 9,223"),
        ("examples = 500\n", "epochs = 1e308\n", "recipe.epochs is 1e+308", "at most 9,223"),
        ("examples = 500\n", "epochs = 1e18\n", "recipe.epochs is 1e+18", "a run sees at most 9,223"),
        ("examples = 500\n", "steps = 1e18\n", "recipe.steps is 1,000,000,000,000,000,000", "a run sees at most 9,223"),
        ("examples = 500\n", "steps = 100_000_000_000_000_000_000\n", "recipe.steps is 100000", "at most 9,223"),
        ('stem = "small"', 'stem = "small"\ngroup_norm_eps = inf', "model.group_norm_eps is inf", "at most"),
        ('stem = "small"', 'stem = "small"\nhead_bias = nan', "model.head_bias is nan", "a number"),
        ("val_examples = 100", "val_examples = 100\nsize = 100_000_000_000_000_000_000", "data.size is 100000", "at most"),
        ("depth = 2", "depth = 100_000_000_000_000_000_000", "sizes.nano.depth is 100000", "above 0"),
        ("steps = 5\n", "steps = 100_000_000_000_000_000_000\n", "transfer.steps is 100000", "at most"),
        ("lr = 1e-3\n", "lr = 1e-3\nprobe = ['digts']\n", "unknown task 'digts'", "did you mean 'digits'?"),
        ("lr = 1e-3\n", "lr = 1e-3\nprobe = 'cars'\n", "unknown task 'cars'", "known: digits; or the path"),
        ("lr = 1e-3\n", "lr = 1e-3\nprobe = ['digits', 'digits']\n", "two probes are named 'digits'", "keep one"),
        ("lr = 1e-3\n", "beta2 = 1.0\n", "recipe.beta2 is 1.0", "below 1"),
        ("[1e-3, 3e-3, 1e-2]", "[1e-3, -3e-3]", "recipe.lr is -0.003", "at least 0"),
        ('{ "recipe.lr" = [1e-3, 3e-3, 1e-2] }', '{ "recipe.epochs" = [1] }', "both given", "exactly one"),
        ('{ "recipe.lr" = [1e-3, 3e-3, 1e-2] }', '{ "model.name" = ["ViT-nope/7"] }', "unknown model 'ViT-nope/7'", ""),
        ('{ "recipe.lr" = [1e-3, 3e-3, 1e-2] }', "3", "select.over is not a table", "recipe.lr"),
        ('per = ["model.name"]', 'per = "model.name"', "select.per is not a list", '["model.name"]'),
        ("shots = [1, 5]", "shots = [1, 5]\nresolution = 30", "ViT-nano/7: patch 7 does not divide resolution 30", "transfer"),
        ("warmup_steps = 2", "warmup_steps = 2\ncooldown = 0.9", "2 steps of warm-up and 9 of cool-down overlap", "shorten"),
        ("[1e-3, 3e-3, 1e-2]", "[]", "select.over: 'recipe.lr' has no values", "at least one"),
        ("seed = [0, 1]", "seed = [0, 1]\n'recipe.lr' = [1e-3]", "'recipe.lr' stands on an axis and in select.over", "keep one"),
        ("seed = [0, 1]", "seed = [0, 1]\nzip = 'no'", "zip is 'no'", "zip = true"),
        ("lr = [0.01, 0.03]", "lr = [nan]", "lr = [nan]", "above 0"),
        ("lr = [0.01, 0.03]", "lr = [0.01]\nema = 1.0", "transfer.ema is 1.0", "from 0 to below 1"),
        ('task = "digits"\n', "", "no task is named", "digits"),
        ('per = ["model.name"]', 'per = ["model.name"]\nat = { "model.name" = ["R5"] }', "near model.name = 'ViT-nano/7'", "list it"),
        ('{ "recipe.lr" = [1e-3, 3e-3, 1e-2] }', "{ seed = [2, 3] }", "'seed' is chance", "put it on an axis"),
        ('{ "recipe.lr" = [1e-3, 3e-3, 1e-2] }', '{ "data.subset_seed" = [2, 3] }', "'data.subset_seed' is chance", "on an axis"),
        ('per = ["model.name"]', 'per = ["recipe.batch_size"]\nat = { "recipe.batch_size" = [5] }', "[select] tunes at recipe.batch_size = 5, but no", "select.at takes"),
        ("shots = [1, 5]", "shots = [1, 5]\nlr = 0.1", "transfer.lr means nothing to protocol = 'fewshot'", "leave it out"),
        ("shots = [1, 5]", "shots = [1, 5]\nema = 0.5", "transfer.ema means nothing to protocol = 'fewshot'", "leave it out"),
        ("lr = [0.01, 0.03]", "shots = 1", "transfer.shots means nothing to protocol = 'finetune'", "leave it out"),
        ("val_examples = 100", "val_examples = 100\nnum_classes = 12", "train has 10 classes", "leave it out"),
        ("val_examples = 100", "val_examples = 100\nfraction = 0.5", "data.examples and data.fraction are both given", "keep one"),
        ('"data.examples" = [100, 400]', '"data.fraction" = [0.0]', "data.fraction is 0.0", "above 0, at most 1"),
        ('"data.examples" = [100, 400]', '"data.fraction" = [nan]', "data.fraction is nan", "above 0, at most 1"),
        ('"data.examples" = [100, 400]', '"data.fraction" = [1e308]', "data.fraction is 1e+308", "above 0, at most 1"),
        ('"data.examples" = [100, 400]', '"data.fraction" = [0.001]\n"data.classes" = [2]', "leaves no training images of 2 classes", "ask for more"),
        ("val_examples = 100", "val_examples = 100\nclasses = 11", "data.classes is 11, but 10 classes of train have images", "fewer"),
        ("val_examples = 100", "val_examples = 100\nclasses = 4", "data.examples is 400, but there are 360 training images of 4 classes", "never repeated"),
        ("val_examples = 100", "val_examples = 1\nclasses = 2", "none of the 1 validation images are of 2 classes", "hold out more"),
        ("val_examples = 100", "val_examples = 100\nmax_bad = 1.5", "data.max_bad is 1.5", "a share from 0 to 1"),
        ("val_examples = 100", "val_examples = 100\nexclude = 'no.json'", "no.json: No such file", "vitscale data dedup TRAIN"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_a_way_out(
    tmp_path: Path, old: str, new: str, message: str, hint: str
) -> None:
    assert old in STUDY
    text = STUDY.replace(old, new, 1)
    found = mistakes(tmp_path, text)
    assert any(message in told and hint in way for told, way in found), found
    assert all(told.startswith("study.toml:") for told, _ in found), found


@pytest.mark.parametrize(("warmups", "ok"), [("[1, 2]", True), ("[1, 90]", False)])
def test_what_is_tuned_must_fit_the_length_of_a_run_and_its_default_need_not(
    tmp_path: Path, warmups: str, ok: bool
) -> None:
    """The cells' own value is one of those that are tried."""
    text = STUDY.replace("warmup_steps = 2\n", "").replace(
        '"recipe.lr" = [1e-3', f'"recipe.warmup_steps" = {warmups}, "recipe.lr" = [1e-3'
    )
    if ok:
        load(write(tmp_path, text), base=tmp_path)
        return
    ((told, _),) = mistakes(tmp_path, text)
    assert "recipe.warmup_steps is 90 and the run has 10 steps" in told
    assert told.startswith("study.toml:")


def test_settings_of_a_protocol_that_is_misspelt_are_not_called_idle(tmp_path: Path) -> None:
    found = mistakes(tmp_path, STUDY.replace('protocol = "finetune"', 'protocol = "finetun"', 1))
    assert ["protocol" in told for told, _ in found] == [True], found


def test_a_value_that_is_named_twice_is_one_wherever_values_are_listed(tmp_path: Path) -> None:
    twice = (
        STUDY.replace("seed = [0, 1]", "seed = [0, 1, 0]")
        .replace("[1e-3, 3e-3, 1e-2]", "[1e-3, 3e-3, 1e-3, 1e-2]")
        .replace("shots = [1, 5]", "shots = [1, 1, 5]")
        .replace("lr = [0.01, 0.03]", "lr = [0.01, 0.03, 0.01]")
    )
    once, again = (load(write(tmp_path, text), base=tmp_path) for text in (STUDY, twice))
    assert again == once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("select = 3", "select is not a table"),
        ("model = 3", "model is not a table"),
        ("axes = [1]", "axes is not an array of tables"),
        ("transfer = [1]", "transfer is not an array of tables"),
        ("sizes = []", "sizes is not a table"),
    ],
)
def test_what_should_be_a_table_and_is_not_is_told(tmp_path: Path, text: str, message: str) -> None:
    assert mistakes(tmp_path, text)[0][0] == f"study.toml:1: {message}"


def test_a_study_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(b"title = '\xff'")
    with pytest.raises(VitscaleError, match="not a text in UTF-8") as caught:
        load(path)
    assert caught.value.exit_code == INVALID_STUDY


def test_relative_positions_are_not_carried_to_another_resolution(tmp_path: Path) -> None:
    text = STUDY.replace('"ViT-nano/7", "R5"', '"ViT-nano/7"').replace("shots = [1, 5]", "shots = [1]\nresolution = 56")
    load(write(tmp_path, text), base=tmp_path)
    found = mistakes(tmp_path, text, ("model.pos_embedding=relative",))
    assert [message.split(": ", 1)[1] for message, _ in found] == [
        "ViT-nano/7: relative positions learned at 28 px mean other distances at 56 px"
    ]


def test_a_mistake_in_the_second_table_of_axes_names_its_line(tmp_path: Path) -> None:
    text = STUDY.replace("[select]", '[[axes]]\n"data.examples" = 4_321\n\n[select]', 1)
    where = f"study.toml:{line_of(text, '4_321')}: data.examples is 4,321"
    assert any(message.startswith(where) for message, _ in mistakes(tmp_path, text))


def test_a_setting_that_is_set_is_not_tuned(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path, settings=["recipe.lr=0.5"])
    assert study.select is None
    assert {c.run.recipe.lr for c in study.cells} == {0.5}


def test_a_cut_shard_is_found_before_anything_runs(tmp_path: Path) -> None:
    path = write(tmp_path)
    facts = json.loads((tmp_path / "train" / "dataset.json").read_text())
    (tmp_path / "train" / "a.tar").write_bytes(b"half")
    facts["shards"] = [{"name": "a.tar", "bytes": 8, "samples": 1000}]
    (tmp_path / "train" / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(VitscaleError, match=r"a\.tar: the shard has 4 bytes and should have 8") as caught:
        plan(load(path, base=tmp_path), {})
    assert caught.value.exit_code == MISSING


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    text = STUDY.replace("[recipe]", "[recipe", 1)
    ((message, _),) = mistakes(tmp_path, text)
    assert message.startswith(f"study.toml:{line_of(text, '[recipe')}: not TOML")


def test_a_missing_study_names_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(VitscaleError) as caught:
        load(tmp_path / "stduy.toml")
    assert caught.value.exit_code == MISSING
    assert "study.toml" in caught.value.problems[0].hint


def test_set_replaces_what_the_file_says_axes_too(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path, settings=["recipe.batch_size=20", "seed=7", "data.crop=inception"])
    assert {c.run.recipe.batch_size for c in study.cells} == {20}
    assert {c.run.seed for c in study.cells} == {7}
    assert len(study.cells) == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [("recipe.lr", "not of the form key=value"), ("recipe.rl=1", "unknown key 'recipe.rl'"), ("seed=a", "seed: ")],
)
def test_a_wrong_set_is_told(tmp_path: Path, setting: str, message: str) -> None:
    assert any(message in told for told, _ in mistakes(tmp_path, STUDY, (setting,)))


def test_data_of_a_known_size_can_be_planned_without_being_there(tmp_path: Path) -> None:
    text = STUDY.replace('shards = "train"', 'shards = "gone"\nsize = 303_000_000\nnum_classes = 18_291', 1)
    study = load(write(tmp_path, text), base=tmp_path)
    assert len(study.cells) == 8


def test_a_task_of_ones_own_is_checked_against_its_shards(tmp_path: Path) -> None:
    describe(tmp_path / "t", samples=50)
    task = 'name = "mine"\nversion = 1\nsource = "shards"\nnum_classes = 12\ntrain = "t"\ntest = "t"\n'
    (tmp_path / "mine.toml").write_text(task)
    found = mistakes(tmp_path, STUDY.replace('task = "digits"', 'task = "mine.toml"', 1))
    assert any("num_classes is 12, but its shards have 10" in message for message, _ in found)


@pytest.mark.parametrize(
    ("old", "new"), [("depth = 2\n", ""), ('"model.name" = [', '"model.name" = [] #'), ("seed = [0, 1]", "seed = []")]
)
def test_a_mistake_is_not_told_a_second_time_as_another_one(tmp_path: Path, old: str, new: str) -> None:
    assert old in STUDY
    found = mistakes(tmp_path, STUDY.replace(old, new, 1))
    assert len(found) == 1, found


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    found = mistakes(tmp_path, STUDY, ("recipe.batch_size=0", "recipe.lr=high", "recipe.what=1", "nothing"))
    assert [message for message, _ in found] == [
        "--set: recipe.lr: 'high' is not a valid number",
        "--set: unknown key 'recipe.what'",
        "--set: nothing is not of the form key=value",
        "--set: recipe.batch_size is 0",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("num_classes = 0", "num_classes is 0, and must be at least 2"),
        ("draws = 0", "draws is 0, and must be at least 1"),
        ("dev_fraction = 2.0", "dev_fraction is 2.0, and must lie between 0 and 1"),
        ('metric = "f1"', "'f1' is not 'accuracy'"),
        ('source = "web"', "'web' is not 'digits' or 'shards'"),
        ("num_classes = 5", "digits has 10 classes and 1,797 images, not 5 classes"),
        ("", "lacks num_classes"),
    ],
)
def test_a_task_file_with_a_mistake_is_named(tmp_path: Path, line: str, message: str) -> None:
    values = {"name": '"own"', "version": "1", "source": '"digits"', "train_examples": "1000", "test_examples": "797"}
    if line:
        values["num_classes"] = "10"
        key, _, value = line.partition(" = ")
        values[key] = value
    (tmp_path / "own.toml").write_text("\n".join(f"{key} = {value}" for key, value in values.items()))
    found = mistakes(tmp_path, STUDY.replace('task = "digits"', 'task = "own.toml"'))
    assert any(message in told for told, _ in found), found


def test_a_task_whose_shards_are_missing_is_missing_data(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'name = "own"\nversion = 1\nsource = "shards"\nnum_classes = 3\ntrain = "gone"\ntest = "gone"\n'
    )
    path = write(tmp_path, STUDY.replace('task = "digits"', 'task = "own.toml"'))
    with pytest.raises(VitscaleError, match="no data set at") as caught:
        load(path, base=tmp_path)
    assert caught.value.exit_code == MISSING


def test_a_tuned_duration_stands_for_itself_once_it_is_chosen(tmp_path: Path) -> None:
    text = STUDY.replace('{ "recipe.lr" = [1e-3, 3e-3, 1e-2] }', '{ "recipe.steps" = [10, 20] }')
    ((message, hint),) = mistakes(tmp_path, text.replace("examples = 500\n", ""))
    where = f"study.toml:{line_of(text, 'over =') - 1}: "
    assert message == where + "'recipe.steps' stands in select.over, and the run has no duration before it is chosen"
    assert hint.startswith("give it one by recipe.steps, too")
    study = load(write(tmp_path, text.replace("examples = 500", "steps = 10")), base=tmp_path)
    assert {job.steps for job in plan(study, {}).jobs if job.role == "tuning"} == {10, 20}


def test_a_mark_before_the_text_is_no_part_of_it(tmp_path: Path) -> None:
    """Some editors put one before UTF-8; of a study and of a task file."""
    ours = Path(datasets.__file__).parents[1] / "data" / "tasks" / "digits.toml"
    (tmp_path / "own.toml").write_text(ours.read_text("utf-8"), "utf-8-sig")
    path = write(tmp_path, STUDY.replace('task = "digits"', 'task = "own.toml"'))
    path.write_text(path.read_text("utf-8"), "utf-8-sig")
    assert {task.name for _, task in load(path, base=tmp_path).transfers} == {"digits"}
    path.write_text('title = "Größe"\n', "utf-8-sig")
    assert _title(path, "of the folder") == "Größe"


def test_a_relative_path_that_leads_nowhere_is_said_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen from the folder where the command runs, which may not be that of the study."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VitscaleError, match=f"no data set at gone: there is no folder {tmp_path / 'gone'}"):
        datasets.describe("gone", base=Path())
    with pytest.raises(VitscaleError, match=f"no data set at {tmp_path / 'gone'}: there is no such folder"):
        datasets.describe("gone", base=tmp_path)


def test_a_test_set_of_other_classes_is_refused(tmp_path: Path) -> None:
    text = STUDY.replace("[data]\n", '[data]\ntest = "test"\n', 1)
    path = write(tmp_path, text)
    describe(tmp_path / "test", samples=50, classes=10)
    for folder, names in (("train", list("abcdefghij")), ("test", list("abcdefghik"))):
        (tmp_path / folder / "classes.json").write_text(json.dumps(names))
    with pytest.raises(VitscaleError, match="class 9 is 'j' in train and 'k' in test"):
        load(path, base=tmp_path)
    describe(tmp_path / "test", samples=50, classes=9)
    with pytest.raises(VitscaleError, match="test has 9 classes and train 10"):
        load(path, base=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no list of exclusions (TypeError"),
        ('{"schema": 2}', "no list of exclusions (ValueError: schema 2)"),
        ('{"schema": 1, "excluded": [{"key": "a"}]}', "no list of exclusions (KeyError: 'label')"),
        ('{"schema": 1, "excluded": [], "fingerprint": "beef"}', "was made for another data set than train"),
    ],
)
def test_a_list_of_exclusions_that_does_not_fit_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dup.json").write_text(content)
    found = mistakes(tmp_path, STUDY.replace("val_examples = 100", "val_examples = 100\nexclude = 'dup.json'"))
    assert any(message in told for told, _ in found), found


def test_a_set_with_too_many_bad_samples_is_refused_before_anything_runs(tmp_path: Path) -> None:
    write(tmp_path)
    facts = json.loads((tmp_path / "train" / "dataset.json").read_text())
    (tmp_path / "train" / "dataset.json").write_text(json.dumps({**facts, "problems": 2}))
    with pytest.raises(VitscaleError, match="2 of 1,000 images of train cannot be trained on") as error:
        load(tmp_path / "study.toml", base=tmp_path)
    assert error.value.problems[0].hint == "data.max_bad allows 0.10%; vitscale data verify train names them"
    load(tmp_path / "study.toml", base=tmp_path, settings=["data.max_bad=0.002"])
