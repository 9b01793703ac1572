"""A table of all results: every result.json below a folder, on the screen and in files.

    python -m clip_vl.results snap/          prints the table; writes snap/results.md, results.csv and results.json

results.md has one line per run, with its main score; results.csv one line per metric, with interval and n; results.json
all that the runs wrote.
"""

from dataclasses import dataclass

from clip_vl.flags.parser import flag, parse


@dataclass
class ResultsFlags:
    """Results"""

    folders: list[str] = flag(
        [], "Folders that are searched for results; the files are written into the first one [snap].", positional=True
    )
    output: str | None = flag(None, "Folder of the files that are written [the first of the folders].")


FLAGS = parse(ResultsFlags, __doc__) if __name__ == "__main__" else None

import csv
import io
import sys
from pathlib import Path

from clip_vl.engine.errors import DataError, UserError, printable, run_alone
from clip_vl.engine.files import atomic_json, atomic_write
from clip_vl.engine.readers.json_files import read_object
from clip_vl.engine.readers.text import written
from clip_vl.reports.scores import headline, score_groups

HEAD = ("run", "program", "split", "metric", "score", "95 % interval", "n")
LONG = ("run", "program", "split", "checkpoint", "group", "metric", "value", "low", "high", "n")


def find_results(folders):
    """[(name of the run, content)] of every result.json and result_<split>.json below the folders, by name."""
    found, left_out = {}, 0
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name one that holds runs, such as snap")
        for path in (*folder.rglob("result.json"), *folder.rglob("result_*.json")):
            name = path.parent.relative_to(folder) if path.parent != folder else Path(folder.resolve().name)
            try:
                content = read_object(path)
            except DataError as error:
                print(printable(f"warning: left out: {error}"), file=sys.stderr)
                left_out += 1
                continue
            if content is None:  # it has just been removed
                continue
            key = str(name) if path.stem == "result" else f"{name} ({path.stem.removeprefix('result_')})"
            found[f"{folder}/{key}" if key in found else key] = content
    if left_out and not found:
        raise DataError(f"none of {left_out:,} results below {', '.join(map(str, folders))} can be read")
    return sorted(found.items())


def summary(results):
    """Rows of `HEAD`, strings: one per run, with its main score."""
    for name, result in results:
        score = headline(result) or {"label": "", "value": None, "low": None, "high": None, "n": None}
        value = "no score" if score["value"] is None else f"{score['value']:.2f}"
        interval = "" if score["low"] is None else f"{score['low']:.2f} to {score['high']:.2f}"
        n = "" if score["n"] is None else f"{score['n']:,}"
        yield (name, _text(result.get("program")), _split(result), score["label"], value, interval, n)


def metrics(results):
    """Rows of `LONG`: one per metric of a run."""
    for name, result in results:
        head = (name, _text(result.get("program")), _split(result), _text(result.get("checkpoint")))
        for group in score_groups(result):
            for row in group["rows"]:
                yield (*head, group["title"], row["label"], row["value"], row["low"], row["high"], row["n"])


def _split(result):
    return " ".join(dict.fromkeys(filter(None, (_text(result.get("dataset")), _text(result.get("split"))))))


def _text(value):
    return "" if value is None else " ".join(str(value).split())


def as_text(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def as_markdown(rows):
    lines = [f"| {' | '.join(cell.replace('|', '&#124;').replace('<', '&lt;') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(HEAD), *lines[1:]]) + "\n"


def as_csv(rows):
    """CSV in which a cell that a spreadsheet would read as a formula begins with an apostrophe."""
    file = io.StringIO()
    cells = (
        [f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@" and cell else cell for cell in row] for row in rows
    )
    csv.writer(file, lineterminator="\n").writerows([LONG, *cells])
    return file.getvalue()


def main(args):
    folders = args.folders or ["snap"]
    results = find_results(folders)
    if not results:
        raise UserError(f"no result.json below {', '.join(folders)}: no finished run is there")
    rows = [HEAD, *summary(results)]
    print(as_text([[printable(cell) for cell in row] for row in rows]))
    output = Path(args.output or folders[0])
    try:
        output.mkdir(parents=True, exist_ok=True)
        atomic_write(output / "results.md", written(as_markdown(rows)))
        atomic_write(output / "results.csv", written(as_csv(metrics(results))))
        atomic_json(output / "results.json", dict(results))
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from None
    print(f"{len(results)} results: {printable(output)}/results.md, .csv, .json")


if __name__ == "__main__":
    run_alone(main, FLAGS)
