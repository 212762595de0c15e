"""Training from a server: the same run, the same weights, and shards that were asked for before they were needed."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from servers import file_server
from vitscale.data.indexing import build
from vitscale.data.shards import Shards
from vitscale.errors import DONE
from vitscale.launch.folders import prepare
from vitscale.locations import locate
from vitscale.study.load import load
from vitscale.study.plan import plan
from vitscale.train import upstream
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    result = run.result()
    assert result is not None
    return load_file(run.folder / "checkpoints" / result["checkpoint"] / "model.safetensors")


def asked_for(data: upstream.Upstream, step: int) -> list[int]:
    """The steps whose samples are fetched ahead while `step` is read."""
    asked: list[list[int]] = []
    data.shards = Watched(data.shards, asked)  # type: ignore[assignment]
    data.fetch_ahead(step)
    batches = {tuple(data.positions(other)[0].tolist()): other for other in range(12)}
    return [batches[tuple(index)] for index in asked]


class Watched:
    """Shards that note what they are asked to fetch."""

    def __init__(self, shards: Shards, asked: list[list[int]]) -> None:
        self.access = shards.access
        self.prefetch = lambda index: asked.append(index.tolist())


def test_a_run_over_http_is_the_local_run(base: Path, tmp_path: Path, rundir: Callable[..., RunDir]) -> None:
    local = rundir(runs="local")
    assert work(local, Stop()) == DONE
    with file_server(base) as server:
        build(locate(f"{server.url}/train/fractals-000000.tar"))
        study = load(base / "study.toml", base=base, settings=[f"data.shards={server.url}/train/fractals-000000.tar"])
        job = plan(study, {}).jobs[0]
        assert job.id == local.id
        remote = RunDir(prepare(job, tmp_path / "remote", base=base, machine={"threads": 1}))
        assert asked_for(upstream.Upstream(remote), 0) == list(range(1, 12))
        assert asked_for(upstream.Upstream(remote), 9) == [10, 11]  # the run has 12 steps
        assert work(remote, Stop()) == DONE
    ours, theirs = weights(remote), weights(local)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
