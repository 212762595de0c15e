"""The columns of a result part, once. One row is one measured number, or one failure.

A new column is one line here: parts written before it read as null, so `SCHEMA` stays.
`SCHEMA` rises when a column changes its meaning; readers refuse a part that is newer than they are, and know what the
numbers of older ones are worth: up to 1, `flops_segment` of a fine-tuning was that of one of its trainings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 2

Type = Literal["string", "int64", "float64", "bool", "timestamp", "json"]


class Column(NamedTuple):
    name: str
    type: Type
    meaning: str


# FLOPs are float64: a run of 1e20 does not fit into 64-bit integers.
COLUMNS = (
    Column("study", "string", "name of the study file, without .toml"),
    Column("run_id", "string", "id of the run that produced the row"),
    Column("parent_id", "string", "id of the pre-training run that was transferred; null for pre-training"),
    Column(
        "trunk_id",
        "string",
        "id of the run from whose checkpoint this pre-training started; its own rows say what that took",
    ),
    Column("attempt", "int64", "which try of the run this is, from 1; the newest that is done counts"),
    Column("status", "string", "done or failed"),
    Column("failure", "string", "what it failed of: out of memory, not finite, bad data, killed, time, setup or code"),
    Column("reason", "string", "why it failed"),
    Column(
        "role",
        "string",
        "cell (a point of the study), tuning (chose a setting; in no curve), trunk (trained once for several cells;"
        " in no curve), baseline",
    ),
    Column("init", "string", "of transfers: pretrained, untrained (with finetune: from scratch) or pixels"),
    Column("family", "string", "vit, hybrid, resnet; raw for the pixel baseline"),
    Column("model", "string", "name of the model, e.g. ViT-L/16"),
    Column("width", "int64", "channels of the features that the head reads"),
    Column("depth", "int64", "blocks"),
    Column("patch", "int64", "down-sampling ratio of the whole network, in pixels"),
    Column("resolution", "int64", "side of the square image that the network saw, in pixels; of a transfer, its own"),
    Column("params_embedding", "int64", "parameters of stem, patch and position embeddings"),
    Column("params_blocks", "int64", "parameters of the blocks"),
    Column("params_head", "int64", "parameters of the pre-logits layer and the head"),
    Column("params_total", "int64", "all parameters"),
    Column("dataset", "string", "name of the pre-training set"),
    Column("examples", "int64", "unique pre-training images"),
    Column("excluded", "int64", "images of the set left out as near-duplicates of test images (`data.exclude`)"),
    Column("subset_seed", "int64", "which images the subset holds"),
    Column("epochs", "float64", "passes over the subset"),
    Column("examples_seen", "int64", "pre-training images with repetition"),
    Column("seed", "int64", "seed of the pre-training run"),
    Column("lr", "float64", "peak learning rate, chosen or given"),
    Column("lr_at_edge", "bool", "the chosen rate is the smallest or largest that was tried; null: it was not chosen"),
    Column(
        "tried",
        "json",
        "what the settings of this row were chosen from: each combination with its validation `score`; null: not tuned",
    ),
    Column(
        "settings",
        "json",
        "the dotted config fields that vary in the study, with this run's values;"
        " of transfers also those of the transfer (`transfer.steps`)",
    ),
    Column("flops_per_example", "float64", "training FLOPs of one pre-training image: 3 x 2 x MACs"),
    Column("flops_standalone", "float64", "training FLOPs of this point had it been trained alone: the x axis"),
    Column(
        "flops_segment",
        "float64",
        "training FLOPs that this run computed (a fine-tuning: all its trainings, those of its rates included,"
        " a rate that diverged with the steps that it took); like the next three and `device_seconds` the run's,"
        " on each of its rows",
    ),
    Column("flops_eval", "float64", "FLOPs spent on evaluation"),
    Column(
        "flops_tuning",
        "float64",
        "training FLOPs of what this point's settings were chosen from, each as if it were trained alone;"
        " of a fine-tuning's rates what they computed",
    ),
    Column(
        "flops_lost",
        "float64",
        "FLOPs computed again after an interruption, to the last logged step (5 s at most are missed each time)",
    ),
    Column("host", "string", "name of the machine, or of all of them"),
    Column("device", "string", "name of the device"),
    Column("n_devices", "int64", "devices used at once"),
    Column(
        "device_seconds",
        "float64",
        "wall-clock seconds of training, validations and checkpoints between its steps included, times devices, of all"
        " attempts (after a kill, to its last logged step); what starting, ending and the test take is not in it",
    ),
    Column(
        "mfu",
        "float64",
        "share of the device's peak for matrix products over the whole pre-training; null where unknown",
    ),
    Column("task", "string", "downstream task, or upstream_val, upstream_test"),
    Column("task_version", "int64", "version of the task file; two versions are never mixed"),
    Column("protocol", "string", "pretrain, fewshot or finetune"),
    Column("shots", "int64", "few-shot: labelled images a class"),
    Column("draw", "int64", "few-shot: draw of the support set; finetune: repetition"),
    Column(
        "metric", "string", "accuracy (0 to 1) or loss; upstream of masked-patch runs patch_accuracy and patch_loss"
    ),
    Column("value", "float64", "the measurement; null for a failure"),
    Column("value_se", "float64", "standard error of the value over the test images"),
    Column("n_test", "int64", "images it was measured on"),
    Column("git_commit", "string", "commit of the code that produced the row"),
    Column("git_dirty", "bool", "the code differed from that commit"),
    Column(
        "git_diff", "string", "file in `_changes`, beside the parts, that holds the difference; null: there is none"
    ),
    Column("code_hash", "string", "SHA-256 over the source files that can change a trained result"),
    Column(
        "earlier_code",
        "json",
        "other code that trained the run before, to a checkpoint that it went on from (its own, or its trunk's):"
        " commit, changes and hash of each; null: there is none",
    ),
    Column("versions", "json", "versions of torch, deepspeed, numpy, python and vitscale"),
    Column("schema", "int64", "version of this table"),
    Column("started", "timestamp", "UTC"),
    Column("ended", "timestamp", "UTC"),
)
NAMES = tuple(column.name for column in COLUMNS)


def arrow_schema() -> pa.Schema:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "json": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    return pa.schema([pa.field(column.name, types[column.type]) for column in COLUMNS])
