"""`python -m edgekd` is the `edgekd` command."""

from edgekd.commands.cli import main

main()
