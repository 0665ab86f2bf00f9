"""`python -m orchestrator` is `cleansweep`."""

import io
import os
import sys
from contextlib import suppress


def main() -> None:
    for number in range(3):  # one that is closed would be the number of the next file that is opened, and be printed into
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows few characters

    from orchestrator.commands.cli import run

    try:
        code = run(sys.argv[1:])
    except SystemExit as end:  # argparse's, after --help
        code = int(end.code or 0)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to be written is not tried again as Python ends
        if not isinstance(error, BrokenPipeError) and code == 0:
            code = 1
            with suppress(OSError):
                print(f"cleansweep: the output cannot be written: {error.strerror}.", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
