"""`python -m orchestrator` is `cleansweep`."""

import io
import os
import sys
from contextlib import suppress


def main() -> None:
    for number in range(3):  # a closed one's number would go to the next file that is opened, and output would be printed into that
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal with few characters

    from orchestrator.commands.cli import run

    try:
        code = run(sys.argv[1:])
    except SystemExit as end:  # argparse's, after --help
        code = int(end.code or 0)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python must not try to write the rest again as it ends
        if not isinstance(error, BrokenPipeError) and code == 0:
            code = 1
            with suppress(OSError):
                print(f"cleansweep: the output cannot be written: {error.strerror}.", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
