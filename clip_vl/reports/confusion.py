"""A confusion matrix for the report: a table of few classes, of many the most confused, and the commonest mistakes."""

from clip_vl.engine.errors import DataError

MOST_CLASSES = 40  # in one table
MOST_PAIRS = 20


def confusion_panel(gallery, path):
    """What the page shows of gallery["confusion"], or None: title, columns, rows, pairs, left_out.

    rows:  (class, n, [(count, share of the class, on the diagonal)]);  pairs: (class, prediction, count, share)
    """
    value = gallery.get("confusion")
    if value is None:
        return None
    try:
        classes = [str(name) for name in value["classes"]]
        columns = [str(name) for name in value["columns"] or classes]
        cells = {(int(c), int(p)): int(n) for c, p, n in value["counts"]}
        if not all(0 <= c < len(classes) and 0 <= p < len(columns) for c, p in cells):
            raise ValueError("a cell lies outside of the matrix")
        return _panel(str(value["title"]), classes, columns, cells, same=not value["columns"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: the confusion matrix is not of the expected form ({type(error).__name__}: {error})."
        ) from error


def _panel(title, classes, columns, cells, same):
    totals = [0] * len(classes)
    for (c, _), count in cells.items():
        totals[c] += count
    wrong = {cell: n for cell, n in cells.items() if not (same and cell[0] == cell[1])}
    shown = _most_confused(wrong, len(classes)) if same else list(range(min(len(classes), MOST_CLASSES)))
    across = shown if same else list(range(min(len(columns), MOST_CLASSES)))

    def cell(c, p):
        count = cells.get((c, p), 0)
        return count, count / max(totals[c], 1), same and c == p

    rows = [(classes[c], totals[c], [cell(c, p) for p in across]) for c in shown]
    commonest = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:MOST_PAIRS] if same else []
    return {
        "title": title,
        "columns": [columns[p] for p in across],
        "rows": rows,
        "pairs": [(classes[c], columns[p], n, n / max(totals[c], 1)) for (c, p), n in commonest],
        "left_out": len(classes) - len(shown),
    }


def _most_confused(wrong, C):
    """All classes, or where they are too many those with most mistakes in their row and column, in their order."""
    if C <= MOST_CLASSES:
        return list(range(C))
    mistakes = [0] * C
    for (c, p), count in wrong.items():
        mistakes[c] += count
        mistakes[p] += count
    return sorted(sorted(range(C), key=lambda c: (-mistakes[c], c))[:MOST_CLASSES])
