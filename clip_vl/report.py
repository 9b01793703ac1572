"""Reports: render a run's page again, and print the scores of several runs side by side.

    python -m clip_vl.report snap/vqa/NAME             writes snap/vqa/NAME/report.html
    python -m clip_vl.report snap/vqa/A snap/vqa/B     the same for both, and a table

Reads what runs leave behind (args.json, log.jsonl, result.json, gallery.json) and never changes it.
"""

from dataclasses import dataclass

from clip_vl.flags.parser import flag, parse


@dataclass
class ReportFlags:
    """Reports"""

    runs: list[str] = flag([], "Run folders.", positional=True)


FLAGS = parse(ReportFlags, __doc__) if __name__ == "__main__" else None


from clip_vl.engine.errors import UserError, printable, run_alone
from clip_vl.engine.readers.json_files import is_number
from clip_vl.reports.page import read_run, write_report


def comparison_table(runs):
    """Lines of a table: name, split, headline score with its 95 % interval, number of samples."""
    lines = [("run", "split", "score", "95 % interval", "n")]
    for run in runs:
        score = run["headline"]
        if score is None:
            lines.append((run["name"], "", "no result yet", "", ""))
            continue
        interval = "" if score["low"] is None else f"{score['low']:.2f} to {score['high']:.2f}"
        n = "" if score["n"] is None else f"{score['n']:,}"
        lines.append((run["name"], str(run["result"].get("split", "")), f"{score['value']:.2f}", interval, n))
    majority = [run["result"].get("majority_accuracy") for run in runs]
    majority = [value for value in majority if is_number(value)]
    if majority:
        lines.insert(1, ("majority answer", lines[1][1], f"{majority[0]:.2f}", "", lines[1][4]))
    lines = [tuple(map(printable, line)) for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def main(args):
    if not args.runs:
        raise UserError("name at least one run folder, such as snap/vqa/NAME")
    for folder in args.runs:
        page = write_report(folder)
    if len(args.runs) > 1:
        print("\n".join(comparison_table([read_run(folder) for folder in args.runs])))
    print(f"report: {printable(page)}")


if __name__ == "__main__":
    run_alone(main, FLAGS)
