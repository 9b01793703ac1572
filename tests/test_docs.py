"""README.md and docs/ hold: every command parses, every file, flag and link that they name exists.

python -m tests.test_docs README.md docs/training.md     run the commands of pages, as printed, on the built-in data
"""

import functools
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clip_vl.flags.parser import parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = sorted(path.stem for path in (ROOT / "clip_vl").glob("*.py") if path.stem != "__init__")
ELSEWHERE = {"--nproc_per_node", "--snake_case"}  # torchrun's, and the spelling itself
FREE = ("export", "source", "git")  # commands that are the shell's own
LONGEST = 132


def names(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    """The text of each ```bash block, with continued lines joined."""
    found = re.findall(r"^```bash\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(r"\\\n\s*", " ", block) for block in found]


def commands(path):
    """The commands of a page as lists of words; variables that the page sets are put in."""
    variables = {}
    for line in "\n".join(blocks(path)).splitlines():
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line.strip()):
            variables[assigned[1]] = assigned[2]
            continue
        line = re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), line)
        words = shlex.split(line, comments=True)
        if "||" in words:
            words = words[: words.index("||")]
        if words and words[0] not in (*FREE, "{"):
            yield words


@functools.cache
def flags_class(program):
    module = importlib.import_module(f"clip_vl.{program}")
    cls = next(v for k, v in vars(module).items() if k.endswith("Flags") and v.__module__ == module.__name__)
    return cls, module.__doc__


def check(words):
    """Assert that a command names a program that is there, with flags that it has."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "srun":
        check(shlex.split(words[-1]))
    elif words[0] == "python" and words[1] == "-m":
        assert re.fullmatch(r"clip_vl\.\w+", words[2]) and words[2][8:] in PROGRAMS, words[2]
        parse(*flags_class(words[2][8:]), words[3:])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words[1]
    else:
        assert words[0] == "bash" and (ROOT / words[1]).is_file(), words
        check_script(ROOT / words[1], words[2:])


def check_script(script, words):
    text = script.read_text()
    if script.parent.name == "recipes":
        script, words = script.parent.parent / re.search(r"\.\./(\w+\.bash)", text)[1], ["0", "n", "0", "1", *words]
        text = script.read_text()
    if launched := re.search(r'(?:launch|named_run)\.bash" (\w+)', text):
        gpus, name, port, processes = words[:4]
        assert re.fullmatch(r"cpu|\d+(,\d+)*", gpus) and not name.startswith("-"), words
        assert port.isdigit() and processes.isdigit(), words
        parse(*flags_class(launched[1]), words[4:])
    else:
        assert all((ROOT / word).is_file() or word in text for word in words), words


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_every_command_parses(path):
    for words in commands(path):
        try:
            check(words)
        except SystemExit:
            pytest.fail(f"{path.name}: {shlex.join(words)}")


def known_flags():
    """Every spelling of every program's flags, with underscores and in small letters."""
    from clip_vl.flags.parser import _build_parser

    found = {"--help"} | ELSEWHERE
    for program in PROGRAMS:
        for action in _build_parser(*flags_class(program))._actions:
            found |= {"--" + name[2:].replace("-", "_") for name in action.option_strings}
    sources = [path.read_text() for path in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("scripts/*.bash"))]
    return found | {flag for text in sources for flag in re.findall(r"--\w+", text)}


def test_every_flag_in_the_prose_exists():
    known = known_flags()
    for path in PAGES:
        for code in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)):
            for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", code):
                name = "--" + flag[2:].replace("-", "_")
                assert name in known or any(other.startswith(name) for other in known), f"{path.name}: {flag}"


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_every_link_and_file_exists(path):
    text = path.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        page = (path.parent / target).resolve() if target else path
        assert page.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in map(slug, re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)), link
    for name in re.findall(r"`(?:python )?((?:clip_vl|scripts|tests|benchmarks|docs)/[\w/]*(?:\.\w+)?)[ `]", text):
        assert (ROOT / name).exists(), f"{path.name}: {name}"


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_lines_are_short(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("|")]
    assert not [line for line in lines if len(line) > LONGEST]


def test_the_readme_is_short_and_names_every_program_and_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert {program for program in PROGRAMS if f"`{program}`" not in text} == set()
    assert {path.name for path in (ROOT / "docs").glob("*.md") if f"(docs/{path.name})" not in text} == set()


def test_the_pictures_are_small():
    for name in ("report.png", "curve.svg"):
        assert (ROOT / "docs" / name).stat().st_size < 150_000


def walk(path):
    """Run the blocks of a page in their order, but for those that need real data, weights, GPUs or a cluster."""
    for block in blocks(path):
        if not block.startswith(("# needs", "#SBATCH")):
            subprocess.run(["bash", "-eux", "-c", f"source .venv/bin/activate\n{block}"], cwd=ROOT, check=True)


if __name__ == "__main__":
    for page in sys.argv[1:]:
        walk(Path(page))
