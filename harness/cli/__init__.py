"""The command line: one file per verb; heavy imports happen inside the verb that needs them."""


def main() -> None:
    """Entry point of the console scripts `benchmark` and `petlbench`."""
    from petlbench.harness.cli.app import main as run

    run()
