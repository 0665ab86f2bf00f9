"""`python -m orchestrator` is `cleansweep`."""

import io
import os
import sys
from contextlib import suppress


def main() -> None:
    for number in range(3):  # else the next file that is opened gets the number of the closed stream, and output is printed into it
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal whose encoding lacks characters

    from orchestrator.commands.cli import run

    try:
        code = run(sys.argv[1:])
    except SystemExit as end:  # argparse exits after --help
        code = int(end.code or 0)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries to write the rest again when it exits
        if not isinstance(error, BrokenPipeError) and code == 0:
            code = 1
            with suppress(OSError):
                print(f"cleansweep: the output cannot be written: {error.strerror}.", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
