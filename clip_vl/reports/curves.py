"""From the rows of a log to panels of curves: which numbers share a panel, how they are thinned, smoothed and scaled.

A panel is a dict that the page's template draws without further arithmetic: paths in a 1000 x 1000 box that the browser
stretches, ticks in percent of it, and the points that appear under the pointer.
"""

import math

import numpy as np

from clip_vl.engine.readers.json_files import is_number
from clip_vl.reports.scores import COMPANIONS, compact

BOX = 1000
MAX_POINTS = 400  # per curve, after thinning
MAX_LINES = 8  # per panel
SMOOTH_FROM = 40  # curves with fewer points are drawn as measured, with their points
VALIDATION = ("valid", "val", "eval", "minival", "test")
PANELS = ("Training loss", "Validation loss", "Validation score", "Learning rate", "Throughput")  # first, in this order
LARGEST = 1e100  # numbers beyond are not drawn: their differences overflow
POSITIONS = ("step", "epoch", "samples")  # where a row stands, not what was measured


def series_of(rows):
    """{name: (steps, values)} float arrays of every number in the rows of a log; null becomes NaN.

    Rows without `step` stand at the step of the row before. `throughput` is added where rows tell `seconds`.
    """
    points, step = {}, 0.0
    for row in rows:
        previous, step = step, _number(row.get("step"), step)
        values = {name: value for name, value in row.items() if _is_curve(name, row)}
        if seconds := _number(row.get("seconds")):
            samples = _number(row.get("samples"))
            values["samples per second" if samples else "steps per second"] = (samples or step - previous) / seconds
        for name, value in values.items():
            if value is None or _number(value) is not None:
                points.setdefault(name, []).append((step, math.nan if value is None else value))
    return {name: tuple(np.array(pairs, dtype=np.float64).T) for name, pairs in points.items()}


def panels_of(series):
    """Panels of the curves of one run: losses, validation, learning rates, throughput, then each other number alone.

    A single point is no curve, and a count that never left zero says nothing: both are left out.
    """
    groups = {}
    for name, line in series.items():
        title, label = _title_and_label(name)
        if len(line[0]) > 1 and (title in PANELS or np.any(line[1])):
            groups.setdefault(title, {})[label] = line
    ranks = {title: rank for rank, title in enumerate(PANELS)}
    return [draw(title, groups[title]) for title in sorted(groups, key=lambda title: ranks.get(title, len(PANELS)))]


def draw(title, lines):
    """One panel of {label: (steps, values)}; the first MAX_LINES labels are drawn and `left_out` counts the others."""
    shown = dict(list(lines.items())[:MAX_LINES])
    curves = [_curve(label, *line) for label, line in shown.items()]
    x_range = _padded(np.concatenate([curve["x"] for curve in curves] or [[]]), 0.0)
    y_range = _padded(np.concatenate([curve["extent"] for curve in curves] or [[]]), 0.06, title)
    for curve in curves:
        _place(curve, x_range, y_range)
    return {
        "title": title,
        "curves": curves,
        "left_out": len(lines) - len(shown),
        "x_ticks": [(_percent(tick, x_range), compact(tick)) for tick in ticks(*x_range) if tick == int(tick)],
        "y_ticks": [(_percent(tick, y_range), compact(tick)) for tick in ticks(*y_range)],
        "pointer": {
            "x_range": x_range,
            "y_range": y_range,
            "curves": [{"label": curve["label"], **curve["points"]} for curve in curves],
        },
    }


def ticks(low, high, about=5):
    """Round numbers from low to high, at most about twice `about` of them."""
    if (high - low) / about < 1 / LARGEST:
        return [low]
    size = 10.0 ** math.floor(math.log10((high - low) / about))
    size *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= about + 1)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [float(f"{index * size:.10g}") for index in range(first, last + 1)]


def _number(value, otherwise=None):
    return value if is_number(value) and abs(value) < LARGEST else otherwise


def _is_curve(name, row):
    base = next((name.removesuffix(end) for end in COMPANIONS if name.endswith(end)), None)
    return name not in POSITIONS and not name.startswith("seconds") and base not in row


def _title_and_label(name):
    """valid_accuracy/answer_type/yes/no -> ("Validation accuracy by answer type", "yes/no")."""
    if name.endswith("per second"):
        return "Throughput", name
    metric, *group = name.split("/", 2)
    if len(group) == 2:
        stem = metric.partition("_")[2] if _is_validation(metric) else metric
        where = "Validation" if _is_validation(metric) else "Training"
        return f"{where} {stem} by {group[0]}".replace("_", " "), group[1]
    if _is_validation(name):
        return ("Validation loss" if "loss" in name else "Validation score"), name
    if "loss" in name:
        return "Training loss", name
    if name == "lr" or name.startswith("lr_") or name.endswith("_lr"):
        return "Learning rate", name
    return name.replace("_", " ").capitalize(), name


def _is_validation(name):
    return name.partition("_")[0].partition("/")[0] in VALIDATION


def _curve(label, steps, values):
    """Thinned and smoothed points of one curve: x and y under the pointer, raw behind, extent for the axis."""
    finite = np.isfinite(values)
    x, y = steps[finite], values[finite]
    many = len(x) >= SMOOTH_FROM
    line_x, mean = _bins(x, np.mean), _bins(y, np.mean)
    line_y = _smooth(mean) if many else mean
    extent = np.concatenate([line_y, np.percentile(y, [1, 99])]) if len(y) else y
    return {
        "label": label,
        "x": line_x,
        "y": line_y,
        "raw": (np.repeat(line_x, 2), np.stack([_bins(y, np.min), _bins(y, np.max)], 1).ravel()) if many else None,
        "lost": steps[~finite],
        "last": compact(y[-1]) if len(y) else "none",
        "extent": extent,
    }


def _bins(values, reduce):
    if len(values) <= MAX_POINTS:
        return values
    return np.array([reduce(part) for part in np.array_split(values, MAX_POINTS)])


def _smooth(values):
    """Centred triangular window over about a thirtieth of the curve; without the lag of a running average."""
    reach = max(1, len(values) // 60)
    window = np.bartlett(2 * reach + 3)[1:-1]
    weights = np.convolve(np.ones(len(values)), window, "same")
    return np.convolve(values, window, "same") / weights


def _padded(values, share, title=""):
    """(low, high) with room around it; learning rates and throughput start at 0, where they are measured from."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if title in ("Learning rate", "Throughput"):
        low = 0.0
    if high == low:
        low, high = low - (abs(low) / 10 or 1.0) * (share > 0), high + (abs(high) / 10 or 1.0)
    room = share * (high - low)
    return low - room * (low != 0.0), high + room


def _place(curve, x_range, y_range):
    """Replace the arrays of a curve by what the template needs: SVG paths, and lists for the pointer."""
    pairs = _to_box(curve["x"], curve["y"], x_range, y_range)
    curve["path"] = _polyline(pairs)
    curve["dots"] = "" if curve["raw"] else "".join(f"M{x:.1f} {y:.1f}h0" for x, y in pairs)
    curve["raw"] = _polyline(_to_box(*curve["raw"], x_range, y_range)) if curve["raw"] else ""
    lost = curve.pop("lost")
    curve["lost"] = "".join(f"M{x:.1f} {BOX}v-40" for x, _ in _to_box(lost, lost, x_range, y_range))
    curve["points"] = {"x": curve.pop("x").tolist(), "y": [float(f"{y:.5g}") for y in curve.pop("y")]}
    del curve["extent"]


def _to_box(x, y, x_range, y_range):
    """Pairs of coordinates in the drawing's box, whose y points down."""
    return [(a * BOX / 100, BOX - b * BOX / 100) for a, b in zip(_percent(x, x_range), _percent(y, y_range))]


def _polyline(pairs):
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pairs) if pairs else ""


def _percent(value, bounds):
    low, high = bounds
    return (value - low) / (high - low) * 100
