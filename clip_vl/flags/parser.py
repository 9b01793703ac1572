"""Command lines from dataclasses: one field, one flag, one sentence.

    @dataclass
    class Args:
        \"\"\"Optimisation\"\"\"                                   # the docstring titles the flags in --help
        lr: float = flag(1e-4, "Peak learning rate of the transformer.")
        batch_size: int = flag(256, "Samples per process.", "--batchSize", at_least=1)

    args = parse(Args, __doc__)

Every flag answers to its own name and to its published spellings, with dashes or underscores, to any unambiguous prefix
of either, and switches also to `--no-x`. `IGNORED` of a dataclass names published flags that have no effect
(flags/published.py). Nothing here imports torch, so `--help` answers at once.
"""

import argparse
import dataclasses
import inspect
import os
import re
import sys
import types
import typing

from clip_vl.engine import signals
from clip_vl.engine.errors import UserError, claim_exit_file, nearest
from clip_vl.engine.readers.text import split_lines


def flag(default, help, *aliases, choices=None, at_least=None, required=False, positional=False):
    """A dataclass field that is a command-line flag.

    default:  a value, or a list (the flag then takes several values)
    help:     one sentence
    aliases:  published spellings that stay valid, such as "--batchSize"
    choices:  the values that it may have; of words, case does not matter
    at_least: the smallest number that it may be
    required: the program cannot run without it
    """
    metadata = {"help": help, "aliases": aliases, "choices": choices, "at_least": at_least, "required": required,
                "positional": positional}  # fmt: skip
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(cls, doc, argv=None):
    """The command line as an instance of the dataclass `cls`; exits with 2 and one sentence on a mistake."""
    if argv is None:
        _hand_over(cls)
        signals.listen()
        argv = sys.argv[1:]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a file name that is not UTF-8 ends no program
    parser = _build_parser(cls, doc)
    found = vars(parser.parse_args(_complete(list(argv), parser)))
    args = cls(**found)
    args.given = frozenset(found)
    for field in _flags(cls):
        _check(parser, field, getattr(args, field.name))
    if is_first_process():
        for name, reason in parser.without_effect.items():
            print(f"warning: {name} has no effect: {reason}", file=sys.stderr)
    return args


def is_first_process():
    """Whether this process is the one that prints for all."""
    return os.environ.get("RANK", "0") == "0"


def _hand_over(cls):
    """Become the program that a flag names in `MOVED` of the dataclass, with the same command line."""
    for name, program in getattr(cls, "MOVED", {}).items():
        written = [token.partition("=")[0].replace("-", "_") for token in sys.argv[1:]]
        if any(len(word) > 5 and f"__{name[2:]}".startswith(word) for word in written):
            os.execv(sys.executable, [sys.executable, "-m", program, *sys.argv[1:]])


def _check(parser, field, value):
    least = field.metadata["at_least"]
    if least is not None and value is not None and value < least:
        parser.error(f"--{field.name} is {value}; it must be at least {least}")
    if field.metadata["required"] and value is None:
        parser.error(f"--{field.name} is needed: {field.metadata['help']}")


def values_of(group, kind, /, **others):
    """A dataclass `kind` with the values of a group's flags that are called as its fields are, and with `others`."""
    names = {field.name for field in dataclasses.fields(kind)} - others.keys()
    return kind(**{name: getattr(group, name) for name in names if hasattr(group, name)}, **others)


def run_settings(flags):
    """The `RunSettings` of a group of flags, which record all of them."""
    from clip_vl.engine.run import RunSettings

    return values_of(flags, RunSettings, flags=dataclasses.asdict(flags))


def given(args):
    """The names of the flags that the command line holds; without one, of those that differ from their default."""
    if hasattr(args, "given"):
        return args.given
    return frozenset(field.name for field in dataclasses.fields(args) if getattr(args, field.name) != _default(field))


def _default(field):
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


class _Parser(argparse.ArgumentParser):
    """without_effect: {spelling as it was written: why} of the published flags on the command line that do nothing."""

    def error(self, message):
        """One sentence, once for all ranks, instead of the usage of a hundred flags."""
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
        add_help=False,
    )
    parser.without_effect, parser.moved = {}, getattr(cls, "MOVED", {})
    parser.usage = _usage(parser.prog, _flags(cls))
    hints = typing.get_type_hints(cls)
    groups = {}
    for title, field in _in_order(cls):
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], field, hints[field.name])
    _add_help(parser.add_argument_group("Help"), _ignored(cls))
    return parser


def _flags(cls):
    """The fields of a dataclass that are flags of its program."""
    ignored = _ignored(cls)
    return [field for field in dataclasses.fields(cls) if f"--{field.name}" not in ignored]


def _ignored(cls):
    """{spelling: `Ignored`} of a dataclass and all that it derives from."""
    return {name: entry for c in reversed(cls.__mro__) for name, entry in vars(c).get("IGNORED", {}).items()}


def _usage(program, fields):
    needed = [f" --{field.name} {field.name.upper()}" for field in fields if field.metadata["required"]]
    places = [f" [{field.name.upper()} ...]" for field in fields if field.metadata["positional"]]
    return "".join([program, *needed, *places, " [flags]"]).replace("%", "%%")


def _in_order(cls):
    """(title of its group, field): what is required first, then the groups as `cls` names them."""
    owners, rows, first = list(cls.__mro__), [], {}
    for field in _flags(cls):
        owner = next(c for c in owners if field.name in inspect.get_annotations(c))
        needed = field.metadata["required"] or field.metadata["positional"]
        title = "Required" if needed else split_lines(owner.__doc__ or "flags")[0].rstrip(".")
        place = -1 if needed else owners.index(owner)
        first[title] = min(place, first.get(title, place))
        rows.append((title, field))
    return sorted(rows, key=lambda row: first[row[0]])


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
    choices = field.metadata["choices"]
    options |= {"nargs": "*"} if many else {}
    options["metavar"] = "{" + ",".join(map(str, choices)) + "}" if choices else value_type.__name__.upper()
    options["type"] = _one_of(choices) if choices else value_type
    group.add_argument(*names, dest=field.name, **options)


def _one_of(choices):
    """word -> the choice that it is, whatever its case; else a sentence with the nearest one."""
    known = {str(choice).lower(): choice for choice in choices}

    def choose(word):
        if word.lower() in known:
            return known[word.lower()]
        raise argparse.ArgumentTypeError(f"{word} is not one of {', '.join(map(str, choices))}{nearest(word, choices)}")

    return choose


def _sentence(field):
    """The help text, with the default and without surprises from argparse's % formatting."""
    text = field.metadata["help"]
    if field.default not in (None, False, "", dataclasses.MISSING):
        text = f"{text} [{field.default}]"
    return text.replace("%", "%%")


def _add_help(group, ignored):
    """--help, and where the program has any: its published flags without effect, and --help_published."""
    group.add_argument("--help", "-h", action="help", help="Show this text; --no-NAME turns a switch off.")
    for name, entry in ignored.items():
        names = [name] if entry.values else [name, f"--no-{name[2:]}"]
        options = {"nargs": entry.values, "entry": entry, "help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        group.add_argument(*names, dest=entry.reason, action=_WithoutEffect, **options)
    if ignored:
        text = "Show the published flags that have no effect here, and why."
        group.add_argument("--help_published", nargs=0, action=_ShowIgnored, entries=ignored, help=text)


class _WithoutEffect(argparse.Action):
    """Notes a published flag that does nothing; its values are passed over."""

    def __init__(self, entry, nargs, **options):
        super().__init__(nargs=None if nargs == 1 else nargs, **options)
        self.entry = entry

    def __call__(self, parser, namespace, values, name=None):
        if self.entry.warns or name.startswith("--no-"):
            parser.without_effect[name] = self.entry.reason


class _ShowIgnored(argparse.Action):
    def __init__(self, entries, **options):
        super().__init__(default=argparse.SUPPRESS, **options)
        self.entries = entries

    def __call__(self, parser, namespace, values, name=None):
        print(f"{parser.prog} takes these flags of published commands, which have no effect:")
        for spelling, entry in sorted(self.entries.items()):
            value = " VALUE" if entry.values else ""
            print(f"  {spelling + value:32s} {entry.reason}")
        parser.exit()


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
    for moved, program in parser.moved.items():
        if moved == prefix:
            parser.error(f"{moved} is a program of its own: python -m {program} takes the same flags")
    hint = nearest(prefix, [name for name in names if not name.startswith("--no-")])
    parser.error(f"unknown flag {prefix}" + (hint or "; --help lists them all"))
