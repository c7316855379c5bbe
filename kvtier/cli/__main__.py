"""`python -m kvtier.cli`: the command without its script."""

from kvtier.cli.main import main

main()
