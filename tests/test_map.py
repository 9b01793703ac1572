"""The drawing of the house holds: who imports whom, every recipe parses, --help is quick."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "clip_vl").rglob("*.py"))
PROGRAMS = {path.stem for path in FILES if path.parent.name == "clip_vl"} - {"__init__"}
PARTS = ("datasets", "models", "losses", "evaluation")
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.bash"))


def imported(path):
    """Modules of clip_vl that a file imports, as tuples such as ("datasets", "images")."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {tuple(name.split(".")[1:]) for name in names if name.startswith("clip_vl.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_drawing(path):
    folder = path.parent.name
    for module in imported(path):
        assert module[0] not in PROGRAMS, f"{path} imports the program {module[0]}"
        if folder == "engine":
            assert module[0] == "engine", f"the engine knows nothing of {module}"
        if folder in PARTS:
            assert module[0] in (folder, "engine"), f"{path} imports {module}: parts do not know each other"


def flags_of_script(path):
    """The flags a launch script or recipe hands to its program."""
    text = re.sub(r"\\\n", " ", path.read_text())
    line = next(line for line in text.splitlines() if line.startswith("exec"))
    return [word for word in shlex.split(line) if word.startswith("--") and not word.startswith("--$")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_flag_of_every_recipe_exists(path):
    from clip_vl.flags.parser import _build_parser, _complete

    script = ROOT / "scripts" / re.search(r"\.\./(\w+\.bash)", path.read_text())[1]
    program = re.search(r'launch\.bash" (\w+)', script.read_text())[1]
    module = importlib.import_module(f"clip_vl.{program}")
    cls = next(v for k, v in vars(module).items() if k.endswith("Flags") and v.__module__ == module.__name__)
    parser = _build_parser(cls, "doc")
    for name in flags_of_script(path) + flags_of_script(script):
        assert _complete([name], parser), name


PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "faiss": "faiss-cpu", "open_clip": "open-clip-torch",
            "open_clip_train": "open-clip-torch", "yaml": "pyyaml"}  # fmt: skip
NEVER_NEEDED = {"apex"}  # --apex uses it where it is installed
OUTSIDE = {"adapters", "clip_benchmark"}  # one script makes golden files and one benchmark compares, as their heads say


def packages(folder):
    """What the files of a folder import beside the standard library and the repository, as pip spells it."""
    files = sorted((ROOT / folder).rglob("*.py"))
    ours = {"clip_vl"} | {path.stem for path in files}
    found = set()
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
        found |= {alias.name.partition(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
    found -= set(sys.stdlib_module_names) | ours | NEVER_NEEDED | OUTSIDE
    return {PACKAGES.get(name, name.replace("_", "-")) for name in found}


def pinned(path):
    lines = [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines), f"{path} pins every package"
    return {line.partition("==")[0] for line in lines}


def test_every_import_is_named_in_the_requirements():
    needed = packages("clip_vl")
    assert needed <= pinned("requirements.txt")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert pinned("requirements.txt") == {re.match(r"[\w-]+", line)[0] for line in declared}
    benchmarks = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    beside = packages("tests") | packages("benchmarks")
    assert {name for name in beside if name.replace("-", "_") not in benchmarks} <= pinned("requirements.txt") | pinned(
        "tests/requirements.txt"
    )


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_help_answers_before_torch_is_loaded(program):
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", f"clip_vl.{program}", "--help"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("usage")
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    assert time.perf_counter() - began < 10  # a second where nothing else runs


def test_the_readme_is_short_and_its_files_exist():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 250
    for name in re.findall(r"`((?:clip_vl|scripts|tests|benchmarks)/[\w/]+\.\w+)`", text):
        assert (ROOT / name).exists(), name
