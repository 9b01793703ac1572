"""Compare two evaluations sample by sample: whether the difference is significant, and which samples changed.

    python -m clip_vl.compare snap/retrieval/A snap/retrieval/B                    two results folders
    python -m clip_vl.compare A/result.json B/result.json --at 5                   retrieval at rank 5 instead of 1
    python -m clip_vl.compare A/minival_predict.json B/minival_predict.json        answers alone: those that differ

Reads samples.jsonl: rows with an id and `correct` (or else a `score` in 0..1). Prints for each group of rows both
scores, their difference with the 95 % interval of a paired bootstrap (rows about one image are resampled together) and
McNemar's exact test, which takes rows as independent.
"""

from dataclasses import dataclass

from clip_vl.flags.parser import flag, parse


@dataclass
class CompareFlags:
    """Comparison"""

    runs: list[str] = flag([], "Two results folders, files result.json, or files of rows.", positional=True)
    at: int = flag(1, "Largest rank that counts as correct, of rows with a rank.")
    show: int = flag(10, "Number of changed samples listed in each direction.")
    output: str | None = flag(None, "JSON file of the comparison, with all changed samples.")
    seed: int = flag(0, "Seed of the bootstrap.")


FLAGS = parse(CompareFlags, __doc__) if __name__ == "__main__" else None

import json
from pathlib import Path

from clip_vl.engine.errors import DataError, UserError, printable, run_alone
from clip_vl.engine.files import atomic_json
from clip_vl.engine.readers.json_files import is_number, parse_json, read_bounded, read_object
from clip_vl.engine.readers.text import id_of, split_lines
from clip_vl.engine.record import changed_flags
from clip_vl.engine.run_folder import NOT_INPUTS
from clip_vl.evaluation.comparison import compare

SAMPLES = "samples.jsonl"
MAX_ROWS_BYTES = 2**30
TEXTS = ("query", "label", "prediction", "answer")  # what is shown of a sample beside its id


def rows_path(given):
    """The file of rows that an argument means."""
    path = Path(given)
    folder = path.parent if path.name == "result.json" else path
    if not folder.is_dir():
        if path.is_file():
            return path
        raise UserError(f"{given} is not there: name a results folder, its result.json, or a file of rows")
    if (folder / SAMPLES).is_file():
        return folder / SAMPLES
    predictions = sorted(folder.glob("*_predict.json"))
    if len(predictions) != 1:
        raise UserError(
            f"{folder} has no {SAMPLES}, and {len(predictions)} files *_predict.json: name the file of rows"
        )
    return predictions[0]


def read_rows(path):
    """{id: row} of a file: JSON lines, or a list as the servers of the answering tasks take it."""
    try:
        text = (read_bounded(path, MAX_ROWS_BYTES) or b"").decode("utf-8-sig")
        is_lines = path.suffix == ".jsonl"
        rows = [parse_json(line) for line in split_lines(text) if line.strip()] if is_lines else parse_json(text)
    except ValueError as error:
        raise DataError(f"{path} is not a file of rows: {error}") from None
    found = {}
    for number, row in enumerate(rows if isinstance(rows, list) else [None], 1):
        name = (
            next((row[k] for k in ("id", "question_id", "questionId") if k in row), None)
            if isinstance(row, dict)
            else None
        )
        try:
            key = id_of(name, whole=False)
            problem = f"has the id {name} of an earlier one" if key in found else None
        except ValueError as error:
            problem = "has no id" if name is None else f"cannot be named: {error}"
        if problem:
            raise DataError(f'{path}: row {number} {problem}; rows such as {{"id": ..., "correct": 1}} are expected')
        wrong = next((key for key in ("correct", "score", "rank") if not _is_score(row.get(key))), None)
        if wrong:
            raise DataError(f"{path}: row {number} has the {wrong} {row[wrong]!r:.40}; a number is expected")
        found[key] = row
    return found


def _is_score(value):
    return value is None or isinstance(value, bool | str) or is_number(value)


def score_of(row, at):
    """What a row earned, 0..1; None for a row without a score, such as one whose image was missing."""
    if at != 1 and "rank" in row:
        return float(row["rank"] <= at) if is_number(row["rank"]) else None
    value = row.get("correct", row.get("score"))
    return None if value is None or isinstance(value, str) else float(value)


def group_of(row):
    return str(row.get("group") or "") or "/".join(str(row[key]) for key in ("probe", "subset") if key in row)


def paired(first, second, at):
    """{group: [(id, score, score, image)]} of the ids that both have a score for, first the rows all together."""
    groups = {}
    for name in first.keys() & second.keys():
        scores = score_of(first[name], at), score_of(second[name], at)
        if None not in scores:
            image = first[name].get("image", name)
            groups.setdefault(group_of(first[name]), []).append((name, *scores, str(image)))
    return {group: sorted(groups[group]) for group in sorted(groups)}


def flips(pairs, first, second):
    """(worse, better): the samples whose score fell, and rose, the largest changes first."""
    changed = sorted(pairs, key=lambda pair: (-abs(pair[2] - pair[1]), pair[0]))
    return tuple([_described(name, first[name], second[name]) for name, a, b, _ in changed if (b - a) * sign > 0]
                 for sign in (-1, 1))  # fmt: skip


def _described(name, one, two):
    said = {key: one[key] for key in TEXTS if key in one and one[key] == two.get(key)}
    differ = {key: [one.get(key), two.get(key)] for key in (*TEXTS, "rank") if one.get(key) != two.get(key)}
    return {"id": name, **said, **differ}


def changes(paths):
    """What differs between the runs that left the rows: lines such as "lr: 0.0001 -> 0.0005"."""
    records = [read_object(path.parent / "args.json") or {} for path in paths]
    results = [read_object(path.parent / "result.json") or {} for path in paths]
    flags = [record.get("args") if isinstance(record.get("args"), dict) else {} for record in records]
    given = [{k: v for k, v in values.items() if k not in NOT_INPUTS} for values in flags]
    lines = changed_flags(*given) if all(given) else []
    for name in ("program", "split", "data_digest"):
        values = [result.get(name, "") for result in results]
        lines += [f"{name}: {values[0]} -> {values[1]}"] if values[0] != values[1] else []
    commits = [record.get("commit") for record in records]
    return lines + ([f"commit: {commits[0]} -> {commits[1]}"] if commits[0] != commits[1] else [])


def _line(example):
    return printable(f"  {json.dumps(example, ensure_ascii=False)}")


def table(compared):
    """Lines of a table, a group a line."""
    lines = [("", "n", "A", "B", "B - A", "95 % interval", "A only", "B only", "McNemar p")]
    for group, found in compared.items():
        interval, tests = f"{found['low']:+.2f} to {found['high']:+.2f}", [""] * 3
        if "lost" in found:
            tests = [f"{found['lost']:,}", f"{found['won']:,}", f"{found['mcnemar_p']:.2g}"]
        scores = (f"{found['first']:.2f}", f"{found['second']:.2f}", f"{found['difference']:+.2f}")
        lines.append((printable(group) or "all", f"{found['n']:,}", *scores, interval, *tests))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def main(args):
    if len(args.runs) != 2:
        raise UserError(f"name two evaluations to compare, not {len(args.runs)}")
    if args.at < 1 or args.show < 0:
        raise UserError(f"--at {args.at} must be at least 1 and --show {args.show} at least 0")
    paths = [rows_path(given) for given in args.runs]
    first, second = map(read_rows, paths)
    shared = first.keys() & second.keys()
    if not shared:
        raise UserError(f"{paths[0]} and {paths[1]} have no id in common: they are of different samples")
    print(f"A  {printable(paths[0])}\nB  {printable(paths[1])}")
    for name, rows in (("A", first), ("B", second)):
        if len(rows) > len(shared):
            print(f"only in {name}, and left out: {len(rows) - len(shared):,} of {len(rows):,} rows")
    changed = changes(paths)
    lines = ["what changed:", *(f"  {printable(line)}" for line in changed)]
    print("\n".join(lines) if changed else "no other flags or data")

    groups = paired(first, second, args.at)
    report = {"first": str(paths[0]), "second": str(paths[1]), "changed": changed, "groups": {}}
    if not groups:
        differ = sorted(name for name in shared if first[name] != second[name])
        print(f"the rows have no scores; {len(differ):,} of {len(shared):,} differ")
        for name in differ[: args.show]:
            print(_line(_described(name, first[name], second[name])))
        report["differ"] = differ
    else:
        compared = {}
        for group, pairs in groups.items():
            _, one, two, images = zip(*pairs)
            compared[group] = compare(one, two, images, args.seed)
        print("\n".join(table(compared)))
        for group, pairs in groups.items():
            worse, better = flips(pairs, first, second)
            for kind, found in (("worse", worse), ("better", better)):
                print(f"{printable(group) or 'all'}: {len(found):,} {kind} in B" + (":" if found[: args.show] else ""))
                for example in found[: args.show]:
                    print(_line(example))
            report["groups"][group or "all"] = compared[group] | {"worse": worse, "better": better}
    if args.output:
        try:
            atomic_json(args.output, report)
        except OSError as error:
            raise UserError(f"cannot write {args.output}: {error.strerror}") from None


if __name__ == "__main__":
    run_alone(main, FLAGS)
