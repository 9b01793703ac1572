"""The ways a program ends early; each carries the exit code that the launch scripts return."""

import os
import sys
from pathlib import Path


class ProgramError(Exception):
    """An expected failure: its message is the one sentence the user reads, without a traceback."""

    exit_code = 1


class UserError(ProgramError):
    """A flag, a path or a combination that cannot work (exit 2)."""

    exit_code = 2


class DataError(ProgramError):
    """A file whose content is missing, damaged or of the wrong form (exit 3). Names the file and the place in it."""

    exit_code = 3


class Diverged(ProgramError):
    """Too many updates with a non-finite loss or gradient (exit 4)."""

    exit_code = 4


class Interrupted(ProgramError):
    """Stopped by a signal after saving (exit 75, EX_TEMPFAIL: requeue the job and it resumes)."""

    exit_code = 75


def run_alone(main, args):
    """Run `main(args)` of a program that is one process and needs no torch; an expected failure ends with its sentence
    and its code.
    """
    try:
        main(args)
    except ProgramError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def claim_exit_file(code, sentence):
    """Write `code sentence` to $CLIP_VL_EXIT_FILE, for the launch script, if no other rank has; True for the first."""
    path = os.environ.get("CLIP_VL_EXIT_FILE")
    if not path:
        return True
    try:
        with Path(path).open("x") as file:
            file.write(f"{code} {sentence}\n")
        return True
    except OSError:
        return False
