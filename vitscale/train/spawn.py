"""Several processes for one run on this machine: `python -m vitscale.train.spawn DEVICES RUN_FOLDER ...`.

torchrun without its command line, which ends with 1 whatever a worker ended with.
"""

from __future__ import annotations

import os
import signal
import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vitscale.errors import DONE, INTERRUPTED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(devices: int, folders: list[str]) -> int:
    """Starts the workers and waits; the exit code of the one that failed first ends all of them."""
    # Passed on to the workers, who then write a checkpoint; any other would leave them behind as orphans.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in SIGNALS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked by the launcher while Python started
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        run_id=str(os.getpid()),
        nproc_per_node=devices,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        max_restarts=0,  # the sweep tries again, from the last checkpoint
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "vitscale.train.worker", *folders)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code  # killed by a signal, in a shell's words
    except SignalException:
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
