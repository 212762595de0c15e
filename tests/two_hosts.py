"""Two hosts on one machine: network namespaces with names of their own, a switch between them and an sshd in each.

Root, iproute2 and openssh-server are needed; without them the tests that need hosts fail, rather than pass unseen.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NAMES = ("node0", "node1")
SSHD = """
Port 22
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
"""
CLIENT = """
IdentityFile {folder}/key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


def sh(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Hosts:
    folder: Path
    tag: str

    @property
    def namespaces(self) -> tuple[str, str]:
        return f"{self.tag}0", f"{self.tag}1"

    @property
    def switch(self) -> str:
        return f"{self.tag}s"

    def on(self, node: int, *words: str) -> list[str]:
        """The command line that runs words on a host."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname {NAMES[node]}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", self.namespaces[node], *named, *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "VITSCALE_SSH": f"ssh -F {self.folder}/client"}

    def start(self, node: int, *arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
        """`python -m vitscale` on a host."""
        return subprocess.Popen(
            self.on(node, sys.executable, "-m", "vitscale", *arguments),
            cwd=cwd,
            env={**self.environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hostfile(self, slots: Sequence[int] = (2, 2)) -> str:
        path = self.folder / "hostfile"
        path.write_text("".join(f"{name} slots={count}\n" for name, count in zip(NAMES, slots, strict=False)))
        return str(path)

    def cut_off(self, node: int) -> None:
        """Pulls the host's cable."""
        sh("ip", "-n", self.switch, "link", "set", f"port{node}", "down")

    def connect(self, node: int) -> None:
        sh("ip", "-n", self.switch, "link", "set", f"port{node}", "up")

    def processes(self, node: int, of: Path) -> list[int]:
        """What works on a run folder there."""
        found = []
        for pid in map(int, sh("ip", "netns", "pids", self.namespaces[node]).split()):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if "vitscale.train.worker" in words and any(word.endswith(of.name) for word in words):
                    found.append(pid)
        return sorted(found)


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    hosts = Hosts(folder, f"v{os.getpid()}-")
    Path("/run/sshd").mkdir(parents=True, exist_ok=True)
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
    (folder / "sshd").write_text(SSHD.format(folder=folder))
    (folder / "client").write_text(CLIENT.format(folder=folder))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        sh("ip", "netns", "add", hosts.switch)
        sh("ip", "-n", hosts.switch, "link", "add", "bridge", "type", "bridge")
        sh("ip", "-n", hosts.switch, "link", "set", "bridge", "up")
        for node in range(2):
            _add_host(hosts, node)
            daemons.append(subprocess.Popen(hosts.on(node, "/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd"))))
        yield hosts
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()
        for namespace in (*hosts.namespaces, hosts.switch):
            for pid in subprocess.run(
                ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
            ).stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            subprocess.run(["ip", "netns", "del", namespace], check=False)
            (Path("/etc/netns") / namespace / "hosts").unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                (Path("/etc/netns") / namespace).rmdir()


def _add_host(hosts: Hosts, node: int) -> None:
    namespace = hosts.namespaces[node]
    names = Path("/etc/netns") / namespace
    names.mkdir(parents=True)
    lines = [f"10.99.0.{number + 1} {name}\n" for number, name in enumerate(NAMES)]
    (names / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
    sh("ip", "netns", "add", namespace)
    port = ("peer", "name", f"port{node}", "netns", hosts.switch)
    sh("ip", "link", "add", "eth0", "netns", namespace, "type", "veth", *port)
    sh("ip", "-n", hosts.switch, "link", "set", f"port{node}", "master", "bridge", "up")
    sh("ip", "-n", namespace, "address", "add", f"10.99.0.{node + 1}/24", "dev", "eth0")
    sh("ip", "-n", namespace, "link", "set", "eth0", "up")
    sh("ip", "-n", namespace, "link", "set", "lo", "up")
