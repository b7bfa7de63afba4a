"""`python -m petlbench` is the `benchmark` command."""

from petlbench.harness.cli import main

main()
