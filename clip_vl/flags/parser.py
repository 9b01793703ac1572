"""Command lines from dataclasses: one field, one flag, one sentence.

    @dataclass
    class Args:
        \"\"\"Optimisation\"\"\"                                   # the docstring titles the flags in --help
        lr: float = flag(1e-4, "Peak learning rate of the transformer.")
        batch_size: int = flag(256, "Samples per process.", "--batchSize")

    args = parse(Args, __doc__)

Every flag answers to its own name and to its published spellings, with dashes or underscores, to any unambiguous prefix
of either, and booleans also to `--no-x`. Nothing here imports torch, so `--help` answers at once.
"""

import argparse
import dataclasses
import difflib
import inspect
import re
import sys
import types
import typing

from clip_vl.engine import signals
from clip_vl.engine.errors import UserError, claim_exit_file
from clip_vl.engine.readers.text import split_lines


def flag(default, help, *aliases, choices=None, positional=False, dead=None):
    """A dataclass field that is a command-line flag.

    default:    a value, or a list (the flag then takes several values)
    help:       one sentence
    aliases:    published spellings that stay valid, such as "--batchSize"
    dead:       why the published flag does nothing; using it warns once
    """
    metadata = {"help": help, "aliases": aliases, "choices": choices, "positional": positional, "dead": dead}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(cls, doc, argv=None):
    """The command line as an instance of the dataclass `cls`; exits with 2 and one sentence on a mistake."""
    if argv is None:
        signals.listen()
        argv = sys.argv[1:]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a file name that is not UTF-8 ends no program
    parser = _build_parser(cls, doc)
    found = vars(parser.parse_args(_complete(list(argv), parser)))
    args = cls(**found)
    args.given = frozenset(found)
    for field in dataclasses.fields(cls):
        if field.metadata.get("dead") and getattr(args, field.name) != field.default:
            print(f"warning: --{field.name} has no effect: {field.metadata['dead']}", file=sys.stderr)
    return args


def given(args):
    """The names of the flags that the command line holds; without one, of those that differ from their default."""
    if hasattr(args, "given"):
        return args.given
    return frozenset(field.name for field in dataclasses.fields(args) if getattr(args, field.name) != _default(field))


def _default(field):
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """One sentence, once for all ranks, in the place of the usage of a hundred flags."""
        if claim_exit_file(UserError.exit_code, message):
            print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(UserError.exit_code)


def _build_parser(cls, doc):
    program = re.search(r"python -m (clip_vl\.\w+)", doc or "")
    parser = _Parser(
        prog=f"python -m {program.group(1)}" if program else None,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(cls)
    groups = {}
    for field in dataclasses.fields(cls):
        owner = next(c for c in cls.__mro__ if field.name in inspect.get_annotations(c))
        title = split_lines(owner.__doc__ or "flags")[0].rstrip(".")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], field, hints[field.name])
    return parser


def _add_flag(group, field, hint):
    value_type, many = _value_type(hint)
    options = {"help": _sentence(field), "default": argparse.SUPPRESS}
    if field.metadata["positional"]:
        options |= {"nargs": "*" if many else "?", "metavar": field.name.upper()}
        group.add_argument(field.name, type=value_type, **options)
        return
    names = [f"--{field.name}", *field.metadata["aliases"]]
    if value_type is bool:
        group.add_argument(*names, dest=field.name, action="store_true", **options)
        options["help"] = argparse.SUPPRESS
        group.add_argument(*[f"--no-{n[2:]}" for n in names], dest=field.name, action="store_false", **options)
        return
    many = {"nargs": "*"} if many else {}
    options |= {"choices": field.metadata["choices"], "metavar": value_type.__name__.upper()} | many
    group.add_argument(*names, dest=field.name, type=value_type, **options)


def _sentence(field):
    """The help text, with the default and without surprises from argparse's % formatting."""
    text = field.metadata["help"]
    if field.metadata["dead"]:
        text = f"{text} (accepted, no effect: {field.metadata['dead']})"
    elif field.default not in (None, False, "", dataclasses.MISSING):
        text = f"{text} [{field.default}]"
    return text.replace("%", "%%")


def _value_type(hint):
    """(type of one value, takes several) from a field's annotation: int, str | None, list[str], ..."""
    if isinstance(hint, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def _complete(argv, parser):
    """Replace prefixes by full spellings, so that a published `--epoch 5` keeps working when flags are added."""
    names = {name: action.dest for action in parser._actions for name in action.option_strings}
    completed = []
    for token in argv:
        name, equals, value = token.partition("=")
        if name.startswith("--") and len(name) > 2 and name not in names:
            name = _unique(_dashed(name, names), names, parser)
        completed.append(name + equals + value)
    return completed


def _dashed(name, names):
    """The spelling in `names` that differs from `name` in dashes and underscores alone, or `name` itself."""
    same = [known for known in names if known[2:].replace("-", "_") == name[2:].replace("-", "_")]
    return same[0] if same else name


def _unique(prefix, names, parser):
    if prefix in names:
        return prefix
    matches = [name for name in names if name[2:].replace("-", "_").startswith(prefix[2:].replace("-", "_"))]
    if len({names[name] for name in matches}) == 1:
        return matches[0]
    if matches:
        parser.error(f"{prefix} could mean {', '.join(sorted(matches))}; write one of them out")
    near = difflib.get_close_matches(prefix, names, n=1)
    parser.error(f"unknown flag {prefix}" + (f"; did you mean {near[0]}?" if near else "; --help lists them all"))
