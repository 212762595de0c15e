"""DeepSpeed's hostfiles, and every mistake in one."""

from pathlib import Path

import pytest

from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.launch import over_ssh
from vitscale.launch.hostfile import Host, hosts_of


def read(folder: Path, text: str, *, nodes: int | None = None, devices: int | None = None) -> tuple[Host, ...]:
    path = folder / "hostfile"
    path.write_text(text)
    return hosts_of(path, nodes=nodes, devices=devices)


def test_names_slots_and_comments(tmp_path: Path) -> None:
    text = "# the rack\nworker-1 slots=4\n\n10.0.0.7\tslots = 8  # the large one\nuser@b slots=2\n"
    first, second, third = Host(name="worker-1", slots=4), Host(name="10.0.0.7", slots=8), Host(name="user@b", slots=2)
    assert read(tmp_path, text) == (first, second, third)
    assert read(tmp_path, text, nodes=2) == (first, second)
    assert {host.slots for host in read(tmp_path, text, devices=2)} == {2}


def test_all_mistakes_are_named_by_their_lines(tmp_path: Path) -> None:
    with pytest.raises(VitscaleError) as caught:
        read(tmp_path, "a slots=2\nb\na slots=2\nc slots=0\nd slots=2 e\n", nodes=2)
    assert caught.value.exit_code == USAGE
    said = [problem.message.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]
    assert said == [
        "hostfile:2: b has no slots",
        "hostfile:3: a stands there twice",
        "hostfile:4: 'c slots=0' is not NAME slots=DEVICES",
        "hostfile:5: 'd slots=2 e' is not NAME slots=DEVICES",
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a slots=2\n", {"nodes": 2}, "names 1 host, fewer than --nodes 2"),
        ("# nobody\n", {}, "names no host"),
        ("a slots=2\n", {"devices": 4}, "a has 2 slots, fewer than --devices 4"),
    ],
)
def test_too_few_are_refused(tmp_path: Path, text: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(VitscaleError) as caught:
        read(tmp_path, text, **options)
    assert caught.value.exit_code == USAGE
    assert message in str(caught.value)


def test_without_an_ssh_client_it_is_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_SSH", "/nowhere/ssh")
    with pytest.raises(VitscaleError) as error:
        over_ssh.check([Host(name="a", slots=1)])
    assert error.value.exit_code == MISSING
    assert str(error.value).splitlines() == [
        "error: host a: cannot start /nowhere/ssh: No such file or directory",
        "hint: install an ssh client, or name one in VITSCALE_SSH",
    ]


def test_no_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(VitscaleError, match="no hostfile at") as caught:
        hosts_of(tmp_path / "none", nodes=None, devices=None)
    assert caught.value.exit_code == MISSING
