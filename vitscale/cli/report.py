"""`vitscale report`: figures and one self-contained page from what is in results/."""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.cli.screen import print_json, reports_errors, say
from vitscale.errors import MISSING, USAGE, VitscaleError

if TYPE_CHECKING:
    from vitscale.report.page import Report


class Overlay(StrEnum):
    paper = "paper"


@reports_errors
def report(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY]...", help="Study files, or names of folders in results/. Default: all of them."
        ),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder that holds a folder of result parts for each study.")] = Path(
        "results"
    ),
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page and figures. Default: results/STUDY/_report.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder of the run folders: loss curves and commands of those that are there.")
    ] = Path("runs"),
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Draw the paper's own Table 6 instead of a study, its Figure 5 among others."),
    ] = False,
    overlay: Annotated[
        Overlay | None,
        typer.Option("--overlay", help="Draw the paper's own Tables 5 and 6 beside, where its tasks are the study's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print paths, notes and table as JSON.")] = False,
) -> None:
    """Draw accuracy against data and compute, with what to doubt, as PNG, SVG, PDF and one HTML page.

    An unfinished study is drawn as far as it goes; the page says what is missing.
    """
    if paper:
        _paper(studies, overlay, out, results / "_paper", as_json=as_json)
        return
    folders = [results_folder(study, results) for study in studies or []] or _all(results)

    from vitscale.cli.report_sources import sources
    from vitscale.files import disk_errors
    from vitscale.results import store

    with ThreadPoolExecutor(max_workers=1) as thread:  # thousands of parts are read while matplotlib is imported
        first = thread.submit(store.read, folders[0][0])
        from vitscale.report import page
        from vitscale.report.folder import refuse_others

    documents, refused = [], []
    for number, (folder, study) in enumerate(folders):
        # Parquet readers skip folders that begin with an underscore.
        target = folder / "_report" if out is None else out / folder.name if len(folders) > 1 else out
        try:
            with disk_errors(target):
                if out is not None:
                    refuse_others(target)
                rows, plan = first.result() if number == 0 else store.read(folder), store.read_plan(folder)
                beside = sources(study, folder.name, runs, rows["run_id"].dropna().unique())
                title = _title(study, folder.name)
                written = page.write(rows, target, title, plan, beside, overlay=overlay is not None)
        except VitscaleError as error:  # the other studies are drawn all the same
            refused.append(error)
            continue
        documents.append(_document(folder.name, written))
    if as_json:
        print_json({"reports": documents})
    else:
        _print(documents)
    if refused:
        raise VitscaleError.of([p for error in refused for p in error.problems], exit_code=refused[0].exit_code)


def _paper(
    studies: list[str] | None, overlay: Overlay | None, named: Path | None, default: Path, *, as_json: bool
) -> None:
    if studies or overlay:
        also = "a study was named" if studies else "--overlay given"
        raise VitscaleError(
            f"--paper draws the paper's table alone, and {also}, too",
            hint="leave one of them out",
            exit_code=USAGE,
        )
    from vitscale.files import disk_errors
    from vitscale.report import page
    from vitscale.report.folder import refuse_others
    from vitscale.report.paper import NOTES, SOURCE, TITLE, table

    out = named or default
    with disk_errors(out):
        if named is not None:
            refuse_others(out)
        documents = [_document("paper", page.write(table(), out, TITLE, first=NOTES, published=True))]
    if as_json:
        print_json({"source": SOURCE, "reports": documents})
    else:
        _print(documents)


def _document(name: str, written: Report) -> dict[str, Any]:
    return {
        "study": name,
        "page": str(written.page),
        "figures": [str(path) for path in written.figures],
        "notes": [{"text": note.text, "details": list(note.details)} for note in written.notes],
        "table": [
            dict(zip(written.cells.header, (cell.text for cell in row), strict=True)) for row in written.cells.rows
        ],
    }


def results_folder(study: str, results: Path) -> tuple[Path, Path | None]:
    """The folder of a study's parts and its TOML file, if that is known; STUDY is either of them or a name."""
    path = Path(study)
    if path.suffix == ".toml":
        if not path.is_file():
            raise VitscaleError(
                f"{path}: no such study file", hint="`ls studies` shows those that ship", exit_code=MISSING
            )
        return results / path.stem, path
    folder = path if path.is_dir() and path.resolve().parent == results.resolve() else results / study
    if not folder.is_dir() and path.is_dir():
        folder = path
    file = Path("studies") / f"{folder.name}.toml"
    return folder, file if file.is_file() else None


def _all(results: Path) -> list[tuple[Path, Path | None]]:
    names = sorted({path.parent.name for path in results.glob("*/*.parquet")})
    if not names:
        raise VitscaleError(
            f"{results}: no results of any study here",
            hint="run `vitscale sweep STUDY` first, or name another folder with --results",
            exit_code=MISSING,
        )
    return [results_folder(name, results) for name in names]


def _title(study: Path | None, name: str) -> str:
    """The study's own title; a report on results must not fail because a study file is being edited."""
    from vitscale.files import text_of

    try:
        title = tomllib.loads(text_of(study)).get("title") if study else None
    except (tomllib.TOMLDecodeError, OSError):
        title = None
    return title if isinstance(title, str) and title.strip() else name


def _print(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        for note in document["notes"]:
            say(f"{document['study']}: {note['text']}")
        for path in (document["page"], *document["figures"]):
            print(path)
