"""The command line: one file per verb; heavy imports happen inside the verb that needs them."""


def main() -> None:
    """Entry point of the console scripts `benchmark` and `petlbench`."""
    import os
    from pathlib import Path

    from petlbench.harness.cli.app import main as run

    # Ray's workers have working folders of their own, where a relative path would be another.
    if chosen := os.environ.get("PETLBENCH_CACHE"):
        os.environ["PETLBENCH_CACHE"] = str(Path(chosen).expanduser().absolute())
    run()
