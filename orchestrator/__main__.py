"""`python -m orchestrator` is `cleansweep`."""

import sys


def main() -> None:
    from orchestrator.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
