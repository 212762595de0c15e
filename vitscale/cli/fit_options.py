"""The options of `vitscale fit`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class FormName(StrEnum):
    auto = "auto"
    power = "power"
    saturating = "saturating"
    zhai = "zhai"
    m4 = "m4"
    broken = "broken"
    parametric = "parametric"
    isoflop = "isoflop"
    envelope = "envelope"


class MeasureName(StrEnum):
    accuracy = "accuracy"
    error = "error"
    loss = "loss"


Source = Annotated[
    str | None,
    typer.Argument(metavar="STUDY|FILE", help="A study file, a folder in results/, or a .csv, .tsv or .parquet."),
]
X = Annotated[str | None, typer.Option("--x", help="Column that the law is in, e.g. flops or examples.")]
Y = Annotated[
    str, typer.Option("--y", help="Column of accuracies, errors or losses; several, with commas: their mean.")
]
N = Annotated[str | None, typer.Option("--n", help="Column of model sizes, for parametric and isoflop.")]
D = Annotated[str | None, typer.Option("--d", help="Column of data sizes, for parametric.")]
By = Annotated[
    str | None, typer.Option("--by", help="Columns, with commas: a curve for each value. Of a study: family.")
]
Label = Annotated[str | None, typer.Option(help="Columns, with commas, that name a configuration of the envelope.")]
RelativeTo = Annotated[
    str | None, typer.Option(metavar="CURVE", help="Say how many times each other curve's compute this one needs.")
]
Form = Annotated[
    FormName | None, typer.Option("--form", help="The law. Default: auto, or parametric with --n and --d.")
]
YIs = Annotated[MeasureName | None, typer.Option("--y-is", help="What y is. Default: by its name; else an accuracy.")]
At = Annotated[
    list[str] | None,
    typer.Option(
        "--at",
        metavar="X",
        help="Forecast here: X, or N,D; of parametric and isoflop, a budget of FLOPs: its best size. "
        "Can be given again.",
    ),
]
Flops = Annotated[
    str | None,
    typer.Option(help="Column of each run's FLOPs, for parametric's budgets. Default: 6 N D; of a study: flops."),
]
Where = Annotated[str | None, typer.Option(help="Fit these rows only, e.g. \"task == 'digits'\".")]
Low = Annotated[float | None, typer.Option("--from", help="Leave out smaller x (of parametric: N times D).")]
High = Annotated[float | None, typer.Option("--to", help="Leave out larger x (of parametric: N times D).")]
Cluster = Annotated[
    str | None,
    typer.Option(help="Column whose equal values are not independent. Of a study: the pre-training run."),
]
Trials = Annotated[float | None, typer.Option(min=1, help="Test images behind each accuracy. Default: column n_test.")]
# Memory grows with resamples times points, and of more the ends of an interval move no further.
Resamples = Annotated[int, typer.Option(min=100, max=100_000, help="Of the bootstrap.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the bootstrap.")]
SelfTest = Annotated[
    bool, typer.Option("--selftest", help="Fit data whose law is known, say what was found, and nothing else.")
]
