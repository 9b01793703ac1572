"""The scores of a result, in groups, for pages and tables."""

from clip_vl.engine.readers.json_files import is_number

NOT_SCORES = ("step", "epoch", "update", "n")
COMPANIONS = ("_n", "_low", "_high")  # count and interval of a score, as endings of its name


def headline(result):
    """The main score of a result: the first with an interval, or the first number of all; None without a result."""
    rows = [row for group in score_groups(result)[:1] for row in group["rows"]]
    return next((row for row in rows if row["low"] is not None), rows[0] if rows else None)


def score_groups(result):
    """[{title, rows}] of a flat result: `accuracy` is overall, `accuracy/answer_type/number` goes under answer type.

    Each row: label, value, and from the companions `<key>_n`, `<key>_low`, `<key>_high` (or None) n, low, high.
    """
    groups = {}
    for key, value in result.items():
        base = next((key.removesuffix(end) for end in COMPANIONS if key.endswith(end)), None)
        if not is_number(value) or key in NOT_SCORES or base in result:
            continue
        metric, *rest = key.split("/", 2)
        title = f"{metric} by {rest[0]}".replace("_", " ").capitalize() if len(rest) == 2 else "Overall"
        row = {"label": rest[1] if len(rest) == 2 else key.replace("_", " "), "value": value}
        row |= {end[1:]: _companion(result, key + end) for end in COMPANIONS}
        if None in (row["low"], row["high"]):
            row |= {"low": None, "high": None}
        groups.setdefault(title, []).append(row)
    ordered = sorted(groups, key=lambda title: title != "Overall")
    return [{"title": title, "rows": groups[title]} for title in ordered]


def _companion(result, key):
    return result[key] if is_number(result.get(key)) else None


def compact(value):
    """A short number for an axis: 0.5, 5e-5, 1,200, 35k, 1.2M."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
