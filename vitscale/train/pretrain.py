"""Pre-training: a run folder in, checkpoints and upstream accuracies out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vitscale import models
from vitscale.config import PROBE_SHOTS, Run
from vitscale.errors import MISSING, VitscaleError
from vitscale.results import spent
from vitscale.sampling import DROPOUT, stream_key
from vitscale.study.archs import default_head_bias
from vitscale.study.cost import KEPT, forward_flops
from vitscale.study.datasets import Dataset
from vitscale.study.subsets import num_classes
from vitscale.train import checkpoint, group
from vitscale.train.branching import damaged_at_start, start_of
from vitscale.train.capacity import Work, engine_settings
from vitscale.train.checkpoint import Progress
from vitscale.train.device import peak_flops, random_states, restore_random_states
from vitscale.train.engine import Engine
from vitscale.train.evaluate import CHUNK, Score
from vitscale.train.keeping import Keep, Writer
from vitscale.train.loop import Loop
from vitscale.train.masked import MaskedScore
from vitscale.train.monitors import Monitors
from vitscale.train.objective import Classification
from vitscale.train.probes import Probes
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.upstream import Upstream


def new_net(rundir: RunDir) -> nn.Module:
    """The network at its initialisation; a function of the architecture, the head and the seed alone."""
    torch.manual_seed(rundir.run.seed)
    recipe = rundir.run.recipe
    return models.build(
        rundir.arch,
        num_classes=rundir.head.num_classes,
        resolution=rundir.run.data.resolution,
        pre_logits=rundir.head.pre_logits,
        patches=rundir.head.patches,
        dropout=recipe.dropout,
        stochastic_depth=recipe.stochastic_depth,
        head_bias=_head_bias(rundir.run),
    )


def _head_bias(run: Run) -> float:
    return default_head_bias(run.recipe) if run.model.head_bias is None else run.model.head_bias


def trained_net(rundir: RunDir) -> nn.Module:
    """The network with the weights of the checkpoint that the finished run kept; of one that predicted patches, its
    trunk under a head of zeros."""
    result = rundir.result()
    if result is None or result["status"] != "done":
        raise VitscaleError(f"run {rundir.id} is not finished", hint="finish its pre-training first", exit_code=MISSING)
    try:
        kept = checkpoint.load(rundir.folder / "checkpoints" / result["checkpoint"])
    except VitscaleError as error:
        hint = f"delete {rundir.folder} and sweep with --retry-failed: it is then trained again"
        raise VitscaleError(error.problems[0].message, hint=hint, exit_code=MISSING) from None
    net = new_net(rundir)
    checkpoint.load_weights(net, kept.best_weights, kept.folder)
    return _classifier(net, rundir) if rundir.head.patches else net


def _classifier(masked: nn.Module, rundir: RunDir) -> nn.Module:
    """The trunk of a network that predicted patches under a head of zeros for the classes of its data set."""
    classes = num_classes(Dataset.from_facts(rundir.document["dataset"]), rundir.run.data)
    net = models.build(rundir.arch, num_classes=classes, resolution=rundir.run.data.resolution)
    own = net.state_dict()
    trunk = {name: t for name, t in masked.state_dict().items() if name in own and not name.startswith("head.")}
    net.load_state_dict({**own, **trunk})
    return net


def pretrain(rundir: RunDir, stop: Stop) -> dict[str, Any]:
    """Trains the run from its last checkpoint to the end and measures it; returns its result."""
    run = rundir.run
    data = Upstream(rundir)
    probes = Probes(rundir)
    engine, progress = _begun(rundir, data, stop)
    data.at_once = min(CHUNK, engine.micro_batch)  # no more may fit, and a signal waits no longer than in training
    flops_per_step = rundir.document["flops_per_example"] * run.recipe.batch_size
    macs = rundir.document["flops_per_example"] // 6
    machine = rundir.machine
    keep = Keep(
        last=machine.get("keep_last", KEPT),
        every=machine.get("keep_every"),
        branches=rundir.branches,
        damaged=damaged_at_start(rundir) if rundir.writes else frozenset(),
    )
    writer = Writer(rundir.folder, keep, rundir.check_held)
    monitors = Monitors(rundir, progress.step)

    def save(progress: Progress) -> None:
        if rundir.writes:
            writer.wait()  # first: there is room for one copy
        tensors = {"weights": engine.weights(), "averages": engine.averaged_weights(), "optimizer": engine.state()}
        if rundir.writes:
            tensors["optimizer"] |= random_states()
            writer.submit(progress, **tensors)

    def amend(progress: Progress) -> None:
        if rundir.writes:
            writer.amend(progress)

    def written() -> None:
        writer.wait()
        group.wait_for_all()  # of all processes one writes, and all of them read what is kept

    def validate(step: int) -> tuple[float | None, float]:
        score, flops = None, probes.flops
        with engine.for_evaluation() as network:
            if run.data.val_examples:
                validations[step] = found = data.score_validation(network, stop)
                score, flops = found.value, flops + forward_flops(macs, found.images)
            accuracies = probes.accuracies(network, stop, data.at_once)
        if accuracies:
            monitors.log("probe", {"step": step, "shots": PROBE_SHOTS, "accuracy": accuracies})
        return score, float(flops)

    validations: dict[int, Score | MaskedScore] = {}
    every = run.recipe.validate_every
    loop = Loop(
        engine=engine,
        steps=rundir.document["steps"],
        batch_of=data.batch,
        keys_of=data.keys,
        log=monitors.log,
        stop=stop,
        after_step=lambda: data.share_bad(data.images),
        save=save,
        amend=amend,
        save_every=machine.get("save_every", 60.0),
        saves_at=keep.at,
        written=written,
        validate=validate if run.data.val_examples or run.recipe.probe else None,
        validate_every=None if every is None else max(every // run.recipe.batch_size, 1),
        validate_last=not rundir.is_trunk,
        score_name=data.masked.score_name if data.masked else "accuracy",
        keep_best=run.recipe.keep == "best",
        flops_per_step=flops_per_step,
        skip_nonfinite=machine.get("skip_nonfinite", 0),
    )
    with writer, monitors:
        progress = loop.run(_count_lost(rundir, progress, flops_per_step))
    engine.close()
    if rundir.is_trunk:
        return _trunk_trained(rundir, progress)
    return _finished(rundir, data, progress, macs, validations, stop)


def _begun(rundir: RunDir, data: Upstream, stop: Stop) -> tuple[Engine, Progress]:
    """The engine as the run's last checkpoint left it, whatever devices wrote that; or at the start."""
    recipe, net = rundir.run.recipe, new_net(rundir)
    # All processes go on from the same one; that it is whole is looked at once.
    folder = group.agreed(start_of(rundir) if group.is_first() else None)
    start = None if folder is None else checkpoint.load(folder, verify=False)
    if start is not None:
        checkpoint.load_weights(net, start.weights, start.folder)
    objective = data.masked or Classification(recipe)
    work = Work(
        net=net,
        recipe=recipe,
        objective=objective,
        blank=data.blank,
        activations=lambda recompute: rundir.arch.activations(data.how.resolution, rundir.head, recompute=recompute),
    )
    engine = Engine(net, recipe, objective=objective, **engine_settings(rundir, work, stop))
    progress = Progress(step=0)
    if start is not None:
        progress = start.progress
        engine.load_state(start.optimizer, start.averages, progress.step - progress.skipped)
        restore_random_states(start.optimizer)
    if not group.is_first():  # whose draws the checkpoint holds; the others' must not be the same
        torch.manual_seed(stream_key(DROPOUT, rundir.run.seed, group.rank(), progress.step))
    return engine, progress


def _count_lost(rundir: RunDir, progress: Progress, flops_per_step: float) -> Progress:
    """Adds up what earlier attempts had computed after the checkpoints that the next ones began with, and its time."""
    before = spent.of_pretraining([rundir.events()])
    now = max(before.reached - progress.step, 0)
    if now:
        rundir.log("lost", {"steps": now})
    return replace(
        progress,
        flops_lost=(before.lost + now) * flops_per_step,
        flops_eval=max(progress.flops_eval, before.flops_eval),
        device_seconds=max(progress.device_seconds, before.device_seconds),
    )


def _finished(
    rundir: RunDir,
    data: Upstream,
    progress: Progress,
    macs: int,
    validations: dict[int, Score | MaskedScore],
    stop: Stop,
) -> dict[str, Any]:
    """Measures the checkpoint that is kept, as it lies on the disk."""
    run = rundir.run
    kept = progress.best_step if run.recipe.keep == "best" and progress.best_step is not None else progress.step
    folder = checkpoint.folder_of(rundir.folder, kept)
    net = new_net(rundir)
    checkpoint.load_weights(net, checkpoint.load(folder).best_weights, folder)
    network = net.to(group.device()).eval()
    scores: dict[str, Score | MaskedScore] = {}
    flops_eval = progress.flops_eval
    if run.data.val_examples:
        validation = validations.get(kept)
        if validation is None:  # it was measured by an earlier attempt
            validation = data.score_validation(network, stop)
            flops_eval += forward_flops(macs, validation.images)
        scores["upstream_val"] = validation
    test = data.score_test(network, stop)
    if test is not None:
        scores["upstream_test"] = test
        flops_eval += forward_flops(macs, test.images)
    common = _spent(rundir, replace(progress, flops_eval=flops_eval))
    rows = [{**common, "task": task, **row} for task, score in scores.items() for row in score.rows()]
    if not rows:
        rows.append({**common, "task": "upstream_train", "metric": "steps", "value": float(progress.step)})
    return {
        "status": "done",
        "checkpoint": folder.name,
        "score": scores["upstream_val"].value if "upstream_val" in scores else None,
        "rows": rows,
    }


def _trunk_trained(rundir: RunDir, progress: Progress) -> dict[str, Any]:
    """Nothing is measured of what others go on from but what it took."""
    row = {**_spent(rundir, progress), "task": "upstream_train", "metric": "steps", "value": float(progress.step)}
    folder = checkpoint.folder_of(rundir.folder, progress.step)
    return {"status": "done", "checkpoint": folder.name, "score": None, "reached": progress.step, "rows": [row]}


def _spent(rundir: RunDir, progress: Progress) -> dict[str, Any]:
    """What all rows of a run have in common: what it took, its trunk left out."""
    recipe = rundir.run.recipe
    steps = progress.step - progress.branched_at
    flops = float(rundir.document["flops_per_example"] * recipe.batch_size * steps)
    return {
        "flops_segment": flops,
        "flops_eval": progress.flops_eval,
        "flops_lost": progress.flops_lost,
        "device_seconds": progress.device_seconds,
        "mfu": _mfu(rundir, flops, progress.device_seconds),
        "trunk_id": _trunk(rundir) if progress.branched_at else None,
        "protocol": "pretrain",
        "lr": recipe.lr,
    }


def _trunk(rundir: RunDir) -> str | None:
    """The trunk that the run has left: whoever goes on with it may know of none."""
    left = [event["trunk"] for event in rundir.events() if event["event"] == "branch"]
    told = rundir.document["branch"]
    return left[-1] if left else told and told["trunk"]


def _mfu(rundir: RunDir, flops: float, device_seconds: float) -> float | None:
    """Over all attempts, waits, validations and saving included; None unless all had devices of one known kind."""
    devices = {event["device"] for event in rundir.events() if event["event"] == "start" and event["device"]}
    peak = peak_flops(rundir.run.recipe.precision)
    return None if len(devices) > 1 or not peak or not device_seconds else flops / (device_seconds * peak)
