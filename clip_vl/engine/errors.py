"""Exceptions that end a program, with the exit codes that the launch scripts return."""

import difflib
import multiprocessing
import os
import sys
import unicodedata
from pathlib import Path

JOINERS = "\u200c\u200d"  # parts of words and of emoji


def printable(value, keep=""):
    """The text of a name that others may have chosen, safe on a terminal and in a log.

    Control characters, new lines, direction marks, invisible characters and half surrogate pairs become escapes.
    keep: characters that are not escaped, such as "\\n" in a whole message
    """
    return "".join(c if c in keep or _is_sign(c) else ascii(c)[1:-1] for c in str(value))


def _is_sign(character):
    if character.isprintable() or character in JOINERS:
        return True
    return unicodedata.category(character) in ("Zs", "Cn", "Co")


def nearest(name, known):
    """The end of a sentence about an unknown name: the known one that is most like it; "" where none is."""
    lower = {str(candidate).lower(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return f"; did you mean {lower[close[0]]}?" if close else ""


class ProgramError(Exception):
    """An expected failure: the user reads its message, one sentence, without a traceback.

    Further arguments are lines below the message, such as those of a table.
    """

    exit_code = 1

    def __str__(self):
        return "\n".join(map(str, self.args))

    def lines(self):
        return self.args

    def printed(self):
        """The message with `printable` names."""
        return "\n".join(map(printable, self.lines()))


class UserError(ProgramError):
    """A flag, a path or a combination of them that cannot work (exit code 2)."""

    exit_code = 2


class DataError(ProgramError):
    """A file whose content is missing, damaged or of the wrong form (exit code 3); names the file and the line."""

    exit_code = 3


class Diverged(ProgramError):
    """Too many steps with a non-finite loss or gradient (exit code 4)."""

    exit_code = 4


class Interrupted(BaseException):
    """Stopped by a signal after saving (exit code 75, EX_TEMPFAIL: requeue the job and it resumes).

    A signal can raise it anywhere: like KeyboardInterrupt it is not caught by `except Exception`.
    """

    exit_code = 75


class Finished(Exception):
    """A dry run has made its two steps (exit code 0)."""


def run_alone(main, flags):
    """Run `main(flags)` of a program of one process without torch; an expected failure prints its message and exits."""
    try:
        main(flags)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except ProgramError as error:
        print(error.printed(), file=sys.stderr)
        sys.exit(error.exit_code)


def claim_exit_file(code, sentence):
    """Write `code sentence` to $CLIP_VL_EXIT_FILE, for the launch script; False where another rank has done so."""
    path = os.environ.get("CLIP_VL_EXIT_FILE")
    if not path:
        return True
    try:
        with Path(path).open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{code} {sentence}\n")
        return True
    except OSError:
        return False


def kill_children():
    """Kill the loader workers that are still alive: they ignore SIGTERM, and the interpreter would wait for them."""
    for child in multiprocessing.active_children():
        child.kill()


def leave(code, sentence, quiet=False):
    """Exit at once, without the clean-up of process groups, which waits for peers; loader workers are killed.

    quiet: print nothing if another rank has printed the reason
    """
    name = f"rank {os.environ.get('RANK', 0)}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    first = claim_exit_file(code, name + sentence)
    if first or not quiet:
        print(f"{name}{sentence}", file=sys.stderr, flush=True)
    kill_children()
    sys.stdout.flush()
    os._exit(code)
