"""A real Slurm with two nodes on this machine, as root; without slurm-wlm and munge its tests fail.

One that keeps accounts needs slurmdbd and mariadb-server as well.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from vitscale.processes import signal_at_parent_death

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
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
MailProg=/bin/true
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=2 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NO_ACCOUNTS = ("AccountingStorageType=accounting_storage/none",)
ACCOUNTS = (
    "AccountingStorageType=accounting_storage/slurmdbd",
    "AccountingStorageHost=127.0.0.1",
    "AccountingStoragePort={port}",
    "AccountingStoragePass={folder}/munge",  # the socket
)
DBD_CONF = """
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
LogFile={folder}/dbd.log
PidFile={folder}/dbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""
PORTS = 4
"""Of the controller, two nodes and the accounts."""


@contextmanager
def slurm(folder: Path, *settings: str) -> Iterator[dict[str, str]]:
    """The environment in which `srun` reaches it; `settings`: further lines of its configuration."""
    with munge(folder):
        environment = _configure(folder, *NO_ACCOUNTS, *settings)
        with _cluster(environment):
            yield environment


@contextmanager
def slurm_with_accounts(folder: Path, *settings: str) -> Iterator[tuple[dict[str, str], subprocess.Popen[bytes]]]:
    """The same with a slurmdbd, whose process comes as well, and a database of its own."""
    with munge(folder), _database(folder) as database:
        accounts = [line.format(folder=folder, port=_port() + 3) for line in ACCOUNTS]
        environment = _configure(folder, *accounts, *settings)
        with _daemon(["slurmdbd", "-D"], {**environment, **database}) as slurmdbd:
            _until_answered(["sacctmgr", "-i", "add", "cluster", "lab"], environment)
            with _cluster(environment):
                yield environment, slurmdbd


def _port() -> int:
    """The first of those that this process takes."""
    return 20_000 + os.getpid() % 3_000 * PORTS


def _configure(folder: Path, *settings: str) -> dict[str, str]:
    port = _port()
    names = {"folder": folder, "host": socket.gethostname().partition(".")[0]}
    conf = folder / "slurm.conf"
    conf.write_text("\n".join([CONF.format(**names, port=port, first=port + 1, second=port + 2), *settings, ""]))
    dbd_conf = folder / "slurmdbd.conf"
    dbd_conf.write_text(DBD_CONF.format(**names, port=port + 3))
    dbd_conf.chmod(0o600)  # slurmdbd insists
    # Slurm gives out any two devices as GPUs.
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    (folder / "ctld").mkdir()
    return {**os.environ, "SLURM_CONF": str(conf)}


@contextmanager
def _cluster(environment: Mapping[str, str]) -> Iterator[None]:
    """The controller and the nodes; nothing of their jobs is left afterwards."""
    daemons = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in ("n1", "n2"))]
    try:
        with ExitStack() as stack:
            for words in daemons:
                stack.enter_context(_daemon(words, environment))
            _until(lambda: set(_asked(["sinfo", "-h", "-N", "-o", "%t"], environment).stdout.split()) == {"idle"})
            yield
    finally:
        _kill_all_of(environment["SLURM_CONF"])


def _kill_all_of(conf: str) -> None:
    """Steps outlive the daemon of their node."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if f"SLURM_CONF={conf}".encode() in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


@contextmanager
def _database(folder: Path) -> Iterator[dict[str, str]]:
    """What a client needs to find it."""
    data, at = folder / "database", folder / "database.socket"
    own = ["--no-defaults", f"--datadir={data}", "--user=root"]
    subprocess.run(
        ["mariadb-install-db", *own, "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True,
        capture_output=True,
    )
    small = ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"]
    server = ["mariadbd", *own, f"--socket={at}", f"--pid-file={folder}/database.pid", "--skip-networking", *small]
    with _daemon(server, os.environ):
        _until_answered(["mariadb-admin", "--no-defaults", f"--socket={at}", "ping"], os.environ)
        yield {"MYSQL_UNIX_PORT": str(at)}


@contextmanager
def munge(folder: Path) -> Iterator[None]:
    """The daemon that vouches for users, with a key and a socket of its own."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    with _daemon(["/usr/sbin/munged", "--foreground", "--force", f"--socket={folder}/munge", *files], os.environ):
        _until_answered(["munge", "-n", f"--socket={folder}/munge"], os.environ)
        yield


@contextmanager
def _daemon(words: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with this block, and with whoever runs it."""
    process = subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=partial(signal_at_parent_death, signal.SIGTERM),
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _asked(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)


def _until_answered(words: Sequence[str], environment: Mapping[str, str]) -> None:
    _until(lambda: _asked(words, environment).returncode == 0)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 240  # of a machine that is busy
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
