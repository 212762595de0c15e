"""`python -m vitscale`, as torchrun starts it: `torchrun ... -m vitscale pretrain ...`."""

from vitscale.cli.main import main

if __name__ == "__main__":
    main()
