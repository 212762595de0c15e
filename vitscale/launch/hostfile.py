"""Hosts in DeepSpeed's format: one a line, `NAME slots=DEVICES`; the first is where the processes meet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import MISSING, USAGE, Problem, VitscaleError
from vitscale.wording import count

LINE = re.compile(r"(?P<name>\S+)\s+slots\s*=\s*(?P<slots>[1-9]\d*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    name: str
    """As ssh knows it."""
    slots: int
    """Processes that it starts, one for each device."""


def hosts_of(path: Path, *, nodes: int | None, devices: int | None) -> tuple[Host, ...]:
    """The first `nodes` hosts (None: all), each with its slots, or with `devices` of them.

    Raises:
        VitscaleError: every mistake of the file (exit 2); there is none (exit 5).
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise VitscaleError(
            f"no hostfile at {path}: {error.strerror}", hint="a line a host: NAME slots=DEVICES", exit_code=MISSING
        ) from None
    except UnicodeDecodeError:
        raise VitscaleError(
            f"{path} is no text", hint="a hostfile has a line a host: NAME slots=DEVICES", exit_code=USAGE
        ) from None
    found: dict[str, Host] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        host = LINE.fullmatch(text)
        if host and host["name"] not in found:
            found[host["name"]] = Host(name=host["name"], slots=int(host["slots"]))
        elif text:
            problems.append(_problem(f"{path}:{number}", text, found))
    hosts = tuple(found.values())[:nodes]
    if not problems and len(hosts) < (nodes or 1):
        named = f"{count(len(hosts), 'host')}, fewer than --nodes {nodes}" if hosts else "no host"
        problems.append(Problem(f"{path} names {named}", "a line a host: NAME slots=DEVICES"))
    problems += [
        Problem(f"{path}: {host.name} has {host.slots} slots, fewer than --devices {devices}", "give fewer --devices")
        for host in hosts
        if devices and devices > host.slots
    ]
    if problems:
        raise VitscaleError.of(problems, exit_code=USAGE)
    return tuple(Host(name=host.name, slots=devices or host.slots) for host in hosts)


def _problem(where: str, text: str, found: dict[str, Host]) -> Problem:
    name = text.split()[0]
    if name in found:
        return Problem(f"{where}: {name} stands there twice", "one line a host, with all of its slots")
    if "slots" not in text:
        return Problem(f"{where}: {name} has no slots", f"write {name} slots=4 for four devices")
    return Problem(f"{where}: {text!r} is not NAME slots=DEVICES", f"write {name} slots=4 for four devices")
