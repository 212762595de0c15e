import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from vitscale.analysis.curves import curves
from vitscale.errors import VitscaleError
from vitscale.report import paper
from vitscale.report.document import _cell
from vitscale.report.figures import upstream_vs_downstream
from vitscale.report.notes import Note, notes
from vitscale.report.page import Report, facts, write
from vitscale.report.table import Cell, run_table
from vitscale.results.store import Held


@pytest.fixture(scope="module")
def written(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write(frame, tmp_path_factory.mktemp("report"), "<script>alert('x')</script> & more")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def markup(written: Report) -> str:
    """The page without what is in its scripts, which are not HTML."""
    page = written.page.read_text("utf-8")
    return re.sub(r"(<script[^>]*>).*?(</script>)", r"\1\2", page, flags=re.DOTALL)


def test_the_page_needs_no_network_and_only_its_own_scripts_run(written: Report) -> None:
    tags = Tags()
    tags.feed(markup(written))
    assert {"link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in tags.found)
    policy = next(attributes["content"] for tag, attributes in tags.found if tag == "meta" and "content" in attributes
                  and str(attributes["content"]).startswith("default-src 'none'"))  # fmt: skip
    assert "connect-src" not in str(policy)
    page = written.page.read_text("utf-8")
    scripts = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", page, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert [digest in str(policy) for digest in digests] == [True, True]
    for _, attributes in tags.found:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert sum(tag == "svg" for tag, _ in tags.found) == len(written.figures) / 3


def test_text_of_a_study_stays_text(written: Report) -> None:
    page = written.page.read_text("utf-8")
    assert "<h1>&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more</h1>" in page


def test_every_reference_inside_the_page_has_one_target(written: Report) -> None:
    page = markup(written)
    targets = re.findall(r'\bid="([^"]+)"', page)
    references = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert len(targets) == len(set(targets))
    assert references <= set(targets)


def test_a_figure_in_the_page_has_its_places_to_a_hundredth_and_scales_of_letters_whole(written: Report) -> None:
    figures = "".join(re.findall(r"<figure.*?</figure>", written.page.read_text("utf-8"), re.DOTALL))
    digits = [len(part) for part in re.findall(r"\.(\d+)", re.sub(r"scale\([^)]*\)", "", figures))]
    assert max(digits) == 2
    assert "scale(0.015625)" in figures  # of outlines in 1/64 of a point
    assert "<!--" not in figures


def test_the_page_is_small_enough_to_send(written: Report) -> None:
    assert written.page.stat().st_size < 2_000_000


def test_the_table_holds_mean_spread_and_count(written: Report, frame: pd.DataFrame) -> None:
    rows = [dict(zip(written.cells.header, (cell.text for cell in row), strict=True)) for row in written.cells.rows]
    cell = next(row for row in rows if row["model"] == "ViT-nano/4" and row["images"] == "4k")
    values = frame.query(
        "family == 'vit' and examples == 4000 and task == 'upstream_test' and metric == 'accuracy'"
    )["value"]  # fmt: skip
    assert cell["Upstream, test set"] == f"{100 * values.mean():.1f} ± {100 * values.std():.1f}"
    assert (cell["images seen"], cell["seeds"]) == ("880k", "3")
    assert "raw pixels" in {row["model"] for row in rows}
    table = pd.read_csv(written.page.parent / "table.csv")
    assert {"value", "sd", "n", "flops"} <= set(table.columns)


def test_the_box_names_failures_gaps_edges_and_what_was_left_out(written: Report) -> None:
    text = {note.text: " ".join(note.details) for note in written.notes}
    box = json.dumps(text, ensure_ascii=False)
    assert "1 run failed" in box
    assert "loss is not finite at step 120" in box
    assert "R+ViT-nano/4, 16,000 images, 880,000 seen, seed 1: nothing measured" in box
    assert "ViT-nano/4, 1,000 images, 880,000 seen, pre-training: lr 0.001" in box
    assert "1 tuning run left out" in box
    assert "different code" not in box
    assert "FLOPs an image differ" not in box


def changed(frame: pd.DataFrame, where: Any, **values: Any) -> str:
    edited = frame.copy()
    for name, value in values.items():
        edited.loc[where, name] = value
    found = curves(edited)
    return " ".join(f"{note.text} {' '.join(note.details)}" for note in notes(edited, found))


def test_the_box_tells_of_runs_that_several_versions_of_the_code_trained(frame: pd.DataFrame) -> None:
    one_run = (frame["family"] == "vit") & (frame["examples"] == 4000) & (frame["seed"] == 0)
    before = json.dumps([{"git_commit": "b" * 40, "git_dirty": False, "code_hash": "b" * 64, "git_diff": None}])
    text = changed(frame, one_run & (frame["protocol"] == "pretrain"), earlier_code=before)
    assert "1 run trained by several versions of the code, one after another." in text
    assert f"seed 0: {'b' * 10}, then {'0' * 10}" in text


def test_the_box_tells_of_different_code_in_one_curve(frame: pd.DataFrame) -> None:
    one_run = (frame["family"] == "vit") & (frame["examples"] == 4000)
    assert "Rows of one curve come from different code" in changed(frame, one_run, code_hash="b" * 64)
    assert "3 runs trained by code with uncommitted changes" in changed(
        frame, one_run & (frame["protocol"] == "pretrain"), git_dirty=True
    )


def test_the_box_tells_of_families_that_do_not_cost_the_same(frame: pd.DataFrame) -> None:
    assert "differ by 40% between models" in changed(frame, frame["family"] == "resnet", flops_per_example=5.6e7 * 1.35)


def test_the_box_tells_what_a_rate_was_chosen_from(frame: pd.DataFrame) -> None:
    tuned = (frame["family"] == "vit") & (frame["examples"] == 1000) & (frame["protocol"] == "pretrain")
    tried = json.dumps([{"recipe.lr": 1e-3, "score": 0.25}, {"recipe.lr": 0.01, "score": None}])
    text = changed(frame, tuned, tried=tried)
    assert text.count("0.001, of lr 0.001 (0.25); lr 0.01 (failed)") == 2, "its grid's edge, and what tuning has chosen"


def test_the_box_names_the_setting_at_the_edge_and_not_the_rate_beside_it(frame: pd.DataFrame) -> None:
    tuned = (frame["family"] == "vit") & (frame["examples"] == 1000) & (frame["protocol"] == "pretrain")
    grid = [(1e-3, 0.1, 0.4), (1e-2, 0.1, 0.5), (1e-1, 0.1, 0.3), (1e-2, 0.3, 0.2), (1e-2, 0.5, None)]
    tried = [{"recipe.lr": lr, "recipe.weight_decay": decay, "score": score} for lr, decay, score in grid]
    text = changed(frame, tuned, tried=json.dumps(tried), lr=1e-2, lr_at_edge=True)
    assert "pre-training: weight_decay 0.1, of lr 0.001, weight_decay 0.1 (0.4)" in text
    assert "pre-training: lr" not in text


def test_two_versions_of_a_task_are_refused_with_the_way_out(frame: pd.DataFrame, tmp_path: Path) -> None:
    older = (frame["task"] == "digits") & (frame["seed"] == 0)
    mixed = frame.assign(task_version=frame["task_version"].mask(older, 2))
    with pytest.raises(VitscaleError, match="task digits was measured in versions 1 and 2") as refused:
        write(mixed, tmp_path / "report", "mixed")
    assert "vitscale sweep" in refused.value.problems[0].hint
    assert not (tmp_path / "report").exists()


def test_the_box_tells_of_a_transfer_that_is_not_done_yet(frame: pd.DataFrame) -> None:
    undone = (frame["protocol"] == "finetune") & (frame["family"] == "vit") & (frame["examples"] == 4000)
    found = changed(frame[~undone], frame["seed"] == -1)
    assert "ViT-nano/4, 4,000 images, 880,000 seen, seed 2: no digits, fine-tuned" in found


def test_the_box_tells_of_curves_that_do_not_clear_their_baseline(frame: pd.DataFrame) -> None:
    rows = frame["role"] == "baseline"
    pixels = rows & (frame["init"] == "pixels") & (frame["shots"] == 5)
    untrained = rows & (frame["model"] == "ViT-nano/4") & (frame["protocol"] == "finetune")
    assert "do not clear" not in changed(frame, rows, value=0.0)
    assert "say nothing about pre-training: 3 of " in changed(frame, pixels, value=1.0)
    found = changed(frame, untrained, value=1.0)
    assert "say nothing about pre-training: 1 of " in found
    assert "ViT-nano/4, digits, fine-tuned: " in found
    assert "from scratch 100.0%" in found


def test_the_box_tells_of_missing_baselines_and_lone_seeds(frame: pd.DataFrame) -> None:
    bare = frame[(frame["role"] != "baseline") & (frame["seed"] == 0)]
    found = changed(bare, bare["seed"] == -1)
    assert "No baseline recorded yet" in found
    assert "18 cells measured with one seed only" in found


def test_an_unfinished_study_is_drawn_as_far_as_it_goes(frame: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "accuracy_by_flops.png").write_bytes(b"of an earlier report")
    started = frame[(frame["protocol"] == "pretrain") & (frame["examples_seen"] == 880_000)]
    report = write(started, tmp_path, "started")
    assert {path.stem for path in report.figures} == {"accuracy_by_set_size"}
    assert not (tmp_path / "accuracy_by_flops.png").exists()
    assert any(note.text.startswith("Not drawn: accuracy against training compute") for note in report.notes)


def test_a_study_without_any_result_says_so(frame: pd.DataFrame, tmp_path: Path) -> None:
    report = write(frame[frame["status"] == "failed"], tmp_path, "failed")
    assert report.figures == ()
    assert "1 run failed" in report.page.read_text("utf-8")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only box and tables matter: figures take most of a report's time."""
    monkeypatch.setattr("vitscale.report.page.FIGURES", {})


@pytest.mark.usefixtures("without_figures")
def test_runs_that_left_the_study_are_not_drawn_and_counted(frame: pd.DataFrame, tmp_path: Path) -> None:
    every = frozenset(frame["run_id"])
    gone = frozenset(frame.loc[frame["family"] == "resnet", "run_id"]) - {"base"}
    report = write(frame, tmp_path, "edited", Held(every - gone | {"not yet", "nor this"}))
    note = next(note for note in report.notes if "but not in the study" in note.text)
    assert note.text.startswith(f"{len(gone)} runs left out")
    assert note.details == tuple(sorted(gone))
    assert "R26x0.5" not in {row[0].text for row in report.cells.rows}
    want = f"Unfinished: 2 of the study's {len(every) - len(gone) + 2} runs have no result yet."
    assert want in [note.text for note in report.notes]


def test_cells_that_a_finished_study_never_held_are_not_missing(frame: pd.DataFrame) -> None:
    uneven = frame[(frame["family"] != "vit") | (frame["examples"] != 4000)]
    found, every = curves(uneven), frozenset(uneven["run_id"].dropna())

    def missing(plan: Held | None) -> bool:
        return any("missing or incomplete" in note.text for note in notes(uneven, found, plan))

    assert missing(None)
    assert not missing(Held(every))
    assert missing(Held(every | {"not yet"}))
    assert missing(Held(every, waiting=1))


def test_where_each_model_has_lengths_of_its_own_others_do_not_lack_them(frame: pd.DataFrame) -> None:
    """As in an isoFLOP study; a seed that one of them lacks is still missed."""
    own = frame[(frame["role"] == "cell") & frame["family"].isin(["vit", "resnet"])]
    own = own.assign(examples_seen=own["examples_seen"] * own["family"].map({"vit": 1, "resnet": 7}))
    assert not any("missing or incomplete" in note.text for note in notes(own, curves(own)))
    gone = own["run_id"].eq("vit4000x880000s1") | own["parent_id"].eq("vit4000x880000s1")
    rest = own[~gone.fillna(False)]
    (missing,) = (note for note in notes(rest, curves(rest)) if "missing or incomplete" in note.text)
    assert missing.text.startswith("1 cell missing")


def test_transfers_of_failed_runs_are_one_line(frame: pd.DataFrame) -> None:
    trunks = [f"vit4000x880000s{seed}" for seed in range(3)]
    failed = frame[frame["run_id"].isin(trunks)].drop_duplicates("run_id").assign(status="failed", value=None)
    orphans = pd.concat(
        [
            failed.assign(run_id=failed["run_id"] + f"t{number}", parent_id=failed["run_id"], attempt=0)
            for number in range(4)
        ]
    ).assign(protocol="finetune", task="digits", reason="its pre-training failed")
    rest = frame[~frame["run_id"].isin(trunks) & ~frame["parent_id"].isin(trunks)]
    frame = pd.concat([rest, failed, orphans], ignore_index=True)
    found = notes(frame, curves(frame))
    assert Note("12 transfers of 3 failed runs could not be tried.") in found
    assert next(len(note.details) for note in found if "4 runs failed" in note.text) == 4
    assert "its pre-training failed" not in str(found)


def test_transfers_with_other_settings_are_complete_beside_one_another(frame: pd.DataFrame) -> None:
    """Neither the upstream panel nor the figure of pairs suffers from lines that only a transfer has."""
    fine = frame["protocol"] == "finetune"
    settings = frame["settings"].fillna("{}")
    short, long = (
        frame[fine].assign(
            settings=[json.dumps({**json.loads(text), "transfer.steps": steps}) for text in settings[fine]]
        )
        for steps in (4, 400)
    )
    long = long.assign(run_id=long["run_id"] + "long")
    edited = pd.concat([frame[~fine], short, long], ignore_index=True)
    found = curves(edited)
    assert set(found.points["variant"]) == {"", "steps=4", "steps=400"}
    assert set(found.baselines["variant"]) == {"", "steps=4", "steps=400"}
    missing = next(note for note in notes(edited, found) if "missing or incomplete" in note.text)
    assert all("R+ViT-nano/4" in detail and "nothing measured" in detail for detail in missing.details)
    drawn = upstream_vs_downstream(found)
    assert drawn is not None
    names = {text.get_text() for text in drawn.axes[-1].texts}
    assert names == {f"{name}, steps={n}" for name in ("ViT", "Hybrid", "ResNet") for n in (4, 400)}
    plt.close(drawn)
    undone = edited["settings"].str.contains('steps": 400') & (edited["family"] == "vit") & (edited["examples"] == 4000)
    rest = edited[~undone.fillna(False)]
    assert "no digits, fine-tuned, steps=400" in str(notes(rest, curves(rest)))


def with_masked_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The study with its ViTs a second time, pre-trained on masked patches."""

    def told(settings: str, objective: str) -> str:
        return json.dumps({**json.loads(settings), "recipe.objective": objective})

    masked = frame[(frame["family"] == "vit") & (frame["role"] == "cell")].copy()
    masked["run_id"], masked["parent_id"] = masked["run_id"] + "m", masked["parent_id"] + "m"
    masked["settings"] = [told(settings, "masked-patch") for settings in masked["settings"]]
    upstream = masked["protocol"] == "pretrain"
    masked.loc[upstream, "metric"] = "patch_" + masked.loc[upstream, "metric"]
    cells = frame["role"] == "cell"
    known = [told(s, "classification") if cell else s for s, cell in zip(frame["settings"], cells, strict=True)]
    return pd.concat([frame.assign(settings=known), masked], ignore_index=True)


@pytest.mark.usefixtures("without_figures")
def test_how_well_patches_are_predicted_is_told_and_never_drawn_as_an_accuracy(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    both = with_masked_runs(frame)
    written = write(both, tmp_path, "both")
    rows = [dict(zip(written.cells.header, (cell.text for cell in row), strict=True)) for row in written.cells.rows]
    mine = [row for row in rows if row["model"] == "ViT-nano/4, masked-patch"]
    assert len(mine) == 6
    assert {row["Upstream, test set"] for row in mine} == {""}
    assert all(row["digits, fine-tuned"] for row in mine)
    box = {note.text: note.details for note in written.notes}
    told = box["Pre-trained without labels: no upstream accuracy, and so in no upstream panel."]
    assert len(told) == 6 * 2 * 2  # sizes and budgets, two sets, two metrics
    assert any(
        re.fullmatch(
            r"ViT-nano/4, masked-patch, 1,000 images, 880,000 seen, upstream, test set: patch_accuracy 0\.\d+",
            line,
        )
        for line in told
    )
    assert not any("masked-patch" in line for text, lines in box.items() if "missing" in text for line in lines)
    figure = upstream_vs_downstream(curves(both))
    assert figure is not None
    assert not any("masked" in text.get_text() for text in figure.findobj(plt.Text))
    plt.close(figure)


def test_runs_without_any_upstream_accuracy_are_drawn_downstream(frame: pd.DataFrame, tmp_path: Path) -> None:
    both = with_masked_runs(frame)
    both = both[both["shots"].isna() | (both["shots"] == 1)]
    alone = both[both["run_id"].str.endswith("m") | (both["role"] == "baseline")]
    written = write(alone, tmp_path, "masked alone")
    assert "accuracy_by_set_size.svg" in {path.name for path in written.figures}
    assert not (tmp_path / "upstream_vs_downstream.svg").exists()


def test_a_run_s_several_transfers_are_all_told_and_none_is_chosen() -> None:
    made = {"measures": [{"metric": "accuracy", "title": "digits"}], "runs": [{"id": "a", "model": "m", "seed": 1234567}],
            "values": {"run": [0, 0], "measure": [0, 0], "value": [0.91468, 0.920497]}}  # fmt: skip
    header, rows = run_table(made)
    cell = rows[0][header.index("digits")]
    assert cell.text == "91.5 / 92.0"
    assert cell.number is None


@pytest.mark.parametrize(
    ("number", "written"), [(1234567, "1234567"), (1_434_525_696_000.0, "1434525696000"), (0.920497, "0.920497")]
)
def test_numbers_of_a_table_keep_their_digits(number: float, written: str) -> None:
    assert f'data-value="{written}"' in _cell(Cell("", number))


def test_a_published_table_lacks_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitscale.report.page.FIGURES", {})
    texts = [note.text for note in write(paper.table(), tmp_path, "theirs", published=True).notes]
    assert not any("baseline" in text or "missing" in text or "Not drawn" in text for text in texts)


def test_a_lone_run_is_told_in_the_singular(frame: pd.DataFrame) -> None:
    one = frame[(frame["run_id"] == "vit4000x880000s1") & (frame["task"] == "upstream_test")]
    assert facts(one[one["metric"] == "accuracy"], curves(one)).startswith("1 run, 1 row, ")
