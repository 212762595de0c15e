"""The command, also as torchrun starts it: `torchrun ... -m vitscale pretrain ...`."""

import sys


def main() -> None:
    """The entry point: Ctrl-C takes a line as well while the verbs are being loaded, which takes most of a second."""
    try:
        from vitscale.cli.main import main as command

        command()
    except KeyboardInterrupt:
        from vitscale.errors import INTERRUPTED

        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
