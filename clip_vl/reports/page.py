"""A run as one page, report.html: curves, score table and images. One file that needs no network and no server.

Everything on it comes from files that may hold foreign text (answers, questions, file names), so the template escapes
all of it, images are checked to be base64 of an image type, and the content policy of the page forbids any request.
"""

import re
from datetime import datetime
from pathlib import Path

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_write
from clip_vl.engine.readers.json_files import is_number, parse_json, read_bounded, read_object
from clip_vl.engine.readers.text import written
from clip_vl.reports.scores import headline, score_groups

IMAGE_URI = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


def write_report(folder):
    """Render <folder>/report.html from args.json, log.jsonl, result.json and gallery.json, each optional but the first.

    returns: the path of the page
    raises:  UserError if `folder` holds no run, DataError naming a file of the wrong form
    """
    run = read_run(folder)
    gallery, panels = read_object(run["folder"] / "gallery.json") or {}, []
    confusion = None
    if run["series"]:
        from clip_vl.reports.curves import panels_of

        panels = panels_of(run["series"])
    if gallery.get("confusion") is not None:
        from clip_vl.reports.confusion import confusion_panel

        confusion = confusion_panel(gallery, run["folder"] / "gallery.json")
    page = _render(
        "report.html",
        run=run,
        facts=_facts(run),
        panels=panels,
        scores=score_groups(run["result"]),
        cards=_cards(gallery, run["folder"] / "gallery.json"),
        note=str(gallery.get("note", "")),
        confusion=confusion,
    )
    path = run["folder"] / "report.html"
    try:
        atomic_write(path, written(page))
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error
    return path


def read_run(folder):
    """What a run left: dict of folder, name, args (the record), result, headline, series, rows and seconds."""
    folder = Path(folder)
    record = read_object(folder / "args.json")
    if record is None:
        raise UserError(f"{folder} holds no run: there is no args.json in it.")
    record = _of_form(record)
    rows, series = _read_rows(folder / "log.jsonl"), {}
    if rows:
        from clip_vl.reports.curves import series_of

        series = series_of(rows)
    result = read_object(folder / "result.json") or {}
    return {
        "folder": folder,
        "name": str(record.get("name") or folder.name),
        "record": record,
        "rows": rows,
        "series": series,
        "result": result,
        "headline": headline(result),
        "seconds": sum(row["seconds"] for row in rows if is_number(row.get("seconds"))),
    }


def _of_form(record):
    """args.json with every entry that the page shows in its type, whatever the file holds."""
    resumed = record.get("resumed") if isinstance(record.get("resumed"), list) else []
    resumed = [entry for entry in resumed if isinstance(entry, dict)]
    entries = {name: record.get(name) if isinstance(record.get(name), dict) else {}
               for name in ("args", "machine", "versions")}  # fmt: skip
    return record | entries | {
        "program": str(record.get("program") or ""),
        "resumed": [{"at": str(entry.get("at")), "changed": _texts(entry.get("changed"))} for entry in resumed],
    }  # fmt: skip


def _texts(values):
    return [str(value) for value in values] if isinstance(values, list) else []


def duration(seconds):
    """3 d 4 h, 2 h 13 min, 5 min 20 s, 12 s."""
    seconds = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next((index for index, (_, size) in enumerate(units) if seconds >= size), 3)
    parts = []
    for unit, size in units[first : first + 2]:
        count, seconds = divmod(seconds, size)
        if count or not parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts)


# ---- contents of the page


def _facts(run):
    """(name, value) pairs for the head of the page; unknown values are left out."""
    record, result, rows = run["record"], run["result"], run["rows"]
    machine = record["machine"]
    processes = machine["processes"] if is_number(machine.get("processes")) else 1
    commit = str(record.get("commit") or "")
    resumed = len(record["resumed"])
    last = {name: row[name] for row in rows for name in row if name in ("step", "epoch") and is_number(row[name])}
    facts = {
        "started": _date(record.get("started")),
        "training time": duration(run["seconds"]) if 0 < run["seconds"] < 1e12 else "",
        "device": f"{machine.get('device', '')}{f' × {processes}' if processes > 1 else ''}",
        "commit": commit[:10] + (" + local changes" if commit.endswith("-dirty") else ""),
        "last row": ", ".join(f"{name} {value:,}" for name, value in last.items()),
        "resumed": f"{resumed} ×" if resumed else "",
        "split": result.get("split"),
        "checkpoint": result.get("checkpoint"),
    }
    return [(name, value) for name, value in facts.items() if value]


def _date(text):
    try:
        return datetime.fromisoformat(text).strftime("%-d %B %Y, %H:%M")
    except (TypeError, ValueError):
        return ""


def _cards(gallery, path):
    """Checked gallery cards: strings are strings, numbers numbers, and images base64 of an image type."""
    try:
        return [_card(card) for card in gallery.get("cards", [])]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: a card is not of the expected form ({type(error).__name__}: {error}).") from error


def _card(card):
    truth = [(str(answer), None if score is None else float(score)) for answer, score in card["truth"]]
    right = {answer: score or 0.0 for answer, score in truth}
    return {
        "image": card["image"] if IMAGE_URI.fullmatch(card["image"]) else None,
        "title": str(card["title"]),
        "truth": truth,
        "truth_label": str(card.get("truth_label", "people said")),
        "predictions": [(str(answer), float(score), right.get(answer, 0.0)) for answer, score in card["predictions"]],
        "correct": bool(card["correct"]),
        "note": str(card.get("note", "")),
        "saliency": [(str(text), image) for text, image in card.get("saliency", []) if IMAGE_URI.fullmatch(image)],
    }


# ---- files


def _read_rows(path):
    """The rows of a log; lines that are not rows (a run may be writing the last one right now) are skipped."""
    rows = []
    for line in (read_bounded(path) or b"").split(b"\n"):
        try:
            rows.append(parse_json(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def _render(template, **values):
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
