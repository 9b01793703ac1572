"""Make the pictures of README.md from two finished runs: docs/report.png and docs/curve.svg.

    python docs/make_pictures.py snap/retrieval/first snap/align/first

The report needs Chromium for a screenshot of report.html (apt-get install chromium); without it only the curve is made,
which is drawn from log.jsonl.
"""

import html
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PAGE, CUT = (1240, 1935), 930  # CSS pixels of the report that are shown, and where its second column begins
WIDTH = 1400  # pixels of report.png
COLOURS = 192  # of its palette
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CURVES = (("Training loss", "loss_align", "training loss, by optimizer step"),
          ("Validation score", "valid_mean_recall", "mean recall of held-out pairs, %"))  # fmt: skip


def draw_report(run):
    """docs/report.png: the top of a report's page, in two columns."""
    from PIL import Image

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("no report.png: Chromium is not installed (apt-get install chromium)", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        f"--window-size={PAGE[0]},{PAGE[1]}", f"--screenshot={shot}",
                        (run / "report.html").resolve().as_uri()], check=True, capture_output=True)  # fmt: skip
        page = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    columns = Image.new("RGB", (2 * PAGE[0], max(CUT, PAGE[1] - CUT)), page.getpixel((0, 0)))
    columns.paste(page.crop((0, 0, PAGE[0], CUT)), (0, 0))
    columns.paste(page.crop((0, CUT, *PAGE)), (PAGE[0], 0))
    columns = columns.resize((WIDTH, round(columns.height * WIDTH / columns.width)), Image.LANCZOS)
    columns.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / "report.png", optimize=True)


def draw_curve(run):
    """docs/curve.svg: the loss of a training run and its validation score, against optimizer steps."""
    sys.path.insert(0, str(FOLDER.parent))
    from clip_vl.reports.curves import panels_of, series_of

    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    panels = {panel["title"]: panel for panel in panels_of(series_of(rows))}
    drawn = [panel(panels[title], curve, label) for title, curve, label in CURVES if title in panels]
    height = 250 * len(drawn)
    parts = "".join(f'<g transform="translate(0 {250 * index})">{part}</g>' for index, part in enumerate(drawn))
    style = "text{font:13px sans-serif;fill:#555}.title{font-weight:bold;fill:#1c1c22}path{fill:none}"
    (FOLDER / "curve.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 440 {height}" width="440" height="{height}">'
        f'<style>{style}</style><rect width="440" height="{height}" fill="#fff"/>{parts}</svg>\n'
    )


def panel(drawn, name, label):
    """One curve of a panel of the report as SVG of 440 x 250: its box is 360 x 170 at (56, 40)."""
    curve = next(curve for curve in drawn["curves"] if curve["label"] == name)
    lines = [f'<text class="title" x="56" y="24">{html.escape(label)}</text>']
    for percent, text in drawn["y_ticks"]:
        y = 210 - 1.7 * percent
        lines.append(f'<path d="M56 {y:.1f}h360" stroke="#e4e4e0"/>')
        lines.append(f'<text x="48" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for percent, text in drawn["x_ticks"]:
        lines.append(f'<text x="{56 + 3.6 * percent:.1f}" y="230" text-anchor="middle">{text}</text>')
    place = 'transform="translate(56 40) scale(.36 .17)" vector-effect="non-scaling-stroke" stroke="#1f6fb2"'
    if curve["raw"]:
        lines.append(f'<path d="{curve["raw"]}" {place} stroke-opacity=".25"/>')
    lines.append(f'<path d="{curve["path"]}" {place} stroke-width="2"/>')
    lines.append(f'<path d="{curve["dots"]}" {place} stroke-width="6" stroke-linecap="round"/>')
    return "".join(lines)


if __name__ == "__main__":
    evaluated, trained = map(Path, sys.argv[1:])
    draw_report(evaluated)
    draw_curve(trained)
