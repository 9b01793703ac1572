"""The table of probe scores as lines of text."""

from clip_vl.evaluation.probe_ranks import KS


def table_lines(table, defects):
    """Lines of text: one per row, then one per defect of the data. table: rows of `table_of` with `references`"""
    titles = ("probe", "row", "metric", "n", "missing", "ties", "score", "ties wrong", "chance", "blind")
    lines = [(*titles, "95 % interval", "published")]
    for row in table:
        counts = [f"{row[name]:,}" for name in ("n", "missing", "ties")]
        known = ", ".join(f"{who} {score:.2f}" for who, score in row["references"].items())
        values = (row[name] for name in ("score", "pessimistic", "chance", "blind"))
        scores = ["" if value is None else f"{value:.2f}" for value in values]
        scores.append("" if row["score"] is None else f"{row['low']:.2f} - {row['high']:.2f}")
        lines.append((row["probe"], row["row"], row["metric"], *counts, *scores, known))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        cells = [text.ljust(w) if i < 3 or i > 9 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths))]
        yield "  ".join(cells).rstrip()
    for name, counts in defects.items():
        for defect, count in counts.items():
            yield f"{name}: {defect}: {count:,}"


def rank_lines(facts):
    """One line of text for each file. facts: {name of a probe: its facts, with those of `rank_facts` among them}"""
    for name, of_probe in facts.items():
        for subset, found in of_probe.get("ranks", {}).items():
            recalls = "  ".join(f"R@{k} {found[f'R@{k}']:.2f} (std {found[f'R@{k} std']:.2f})" for k in KS)
            ranks = f"mean rank {found['mean rank']:.2f}, median {found['median rank']}"
            yield f"{name} {subset}: {recalls}  {ranks}, n {found['n']:,}"
