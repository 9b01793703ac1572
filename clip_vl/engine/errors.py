"""The ways a program ends early; each carries the exit code that the launch scripts return."""

import difflib
import multiprocessing
import os
import sys
import unicodedata
from pathlib import Path

JOINERS = "\u200c\u200d"  # parts of words and of emoji


def printable(value, keep=""):
    """The text of a foreign name, safe on a terminal and in a log, with everything that is no sign as an escape.

    Escapes stand for control characters, new lines, signs that change the direction or hide, and half surrogate pairs.
    keep: characters that stay, such as "\\n" of a whole message
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
    """An expected failure: its message is the one sentence the user reads, without a traceback.

    Further arguments are lines below it, such as a table's.
    """

    exit_code = 1

    def __str__(self):
        return "\n".join(map(str, self.args))

    def lines(self):
        return self.args

    def printed(self):
        """The message as it may be printed: names in it come from files of others."""
        return "\n".join(map(printable, self.lines()))


class UserError(ProgramError):
    """A flag, a path or a combination that cannot work (exit 2)."""

    exit_code = 2


class DataError(ProgramError):
    """A file whose content is missing, damaged or of the wrong form (exit 3). Names the file and the place in it."""

    exit_code = 3


class Diverged(ProgramError):
    """Too many updates with a non-finite loss or gradient (exit 4)."""

    exit_code = 4


class Interrupted(BaseException):
    """Stopped by a signal after saving (exit 75, EX_TEMPFAIL: requeue the job and it resumes).

    A signal may raise it anywhere: like KeyboardInterrupt it passes by every `except Exception`.
    """

    exit_code = 75


class Finished(Exception):
    """There is nothing more to do: the two updates of a dry run are made (exit 0)."""


def run_alone(main, flags):
    """Run `main(flags)` of a program that is one process and needs no torch; an expected failure ends with its
    sentence and its code.
    """
    try:
        main(flags)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except ProgramError as error:
        print(error.printed(), file=sys.stderr)
        sys.exit(error.exit_code)


def claim_exit_file(code, sentence):
    """Write `code sentence` to $CLIP_VL_EXIT_FILE, for the launch script, if no other rank has; True for the first."""
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
    """End loader workers that still live: they ignore SIGTERM, and the interpreter would wait for them."""
    for child in multiprocessing.active_children():
        child.kill()


def leave(code, sentence, quiet=False):
    """End now: no clean-up of process groups, which would wait for peers, but no orphaned loader workers either.

    quiet: say nothing where another rank has said why
    """
    name = f"rank {os.environ.get('RANK', 0)}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    first = claim_exit_file(code, name + sentence)
    if first or not quiet:
        print(f"{name}{sentence}", file=sys.stderr, flush=True)
    kill_children()
    sys.stdout.flush()
    os._exit(code)
