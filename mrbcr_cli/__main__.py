"""`python -m mrbcr_cli`: the same as `mrbcr`."""

from mrbcr_cli.cli import main

if __name__ == "__main__":
    main()
