"""A real Slurm with two nodes on this machine, as root; without slurm-wlm and munge its tests fail."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONF = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/d.%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
MailProg=/bin/true
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path, *settings: str) -> Iterator[dict[str, str]]:
    """The environment in which `srun` reaches it; `settings`: further lines of its configuration."""
    port = 20_000 + os.getpid() % 4_000 * 3
    names = {"folder": folder, "host": socket.gethostname().partition(".")[0]}
    conf = folder / "slurm.conf"
    conf.write_text("\n".join([CONF.format(**names, port=port, first=port + 1, second=port + 2), *settings, ""]))
    (folder / "ctld").mkdir()
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    daemons = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in ("n1", "n2"))]
    with munge(folder):
        started = [
            subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for words in daemons
        ]
        try:
            _until_ready(environment)
            yield environment
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(timeout=30)


def _until_ready(environment: dict[str, str]) -> None:
    end = time.monotonic() + 60
    while True:
        asked = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%t"], env=environment, capture_output=True, text=True, check=False
        )
        if set(asked.stdout.split()) == {"idle"}:
            return
        assert time.monotonic() < end, asked
        time.sleep(0.2)


@contextmanager
def munge(folder: Path) -> Iterator[None]:
    """The daemon that vouches for users, with a key and a socket of its own."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    daemon = subprocess.Popen(
        ["/usr/sbin/munged", "--foreground", "--force", f"--socket={folder}/munge", *files], stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 30
        while subprocess.run(["munge", "-n", f"--socket={folder}/munge"], capture_output=True, check=False).returncode:
            assert time.monotonic() < end
            assert daemon.poll() is None
            time.sleep(0.1)
        yield
    finally:
        daemon.terminate()
        daemon.wait()
