"""The report of a finished run: one HTML file that needs nothing else and asks nobody."""

import base64
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from limner.train import log
from limner.train.speed import TIMES

CLOCKS = ("step", "images_seen", "skipped", "broken", "samples")  # what of a line is no curve
POINTS = 400  # of a curve at most; each is the mean of its share of the steps
SHEETS = 8  # at most, spread evenly over the run
NAMED = 200  # broken samples, at most
WIDTH, HEIGHT = 640, 180  # of a curve
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
body { color: #1c1f23; background: #fafafa; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top; }
td + td { font-variant-numeric: tabular-nums; }
figure { margin: 0 0 1.2rem; } figcaption { color: #555; font-size: 13px; }
.curves { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.curves figure { flex: 1 1 26rem; } svg { width: 100%; height: auto; background: #fff; }
polyline { fill: none; stroke: #2667b0; stroke-width: 1.5; }
text { font: 11px system-ui, sans-serif; fill: #777; }
img { max-width: 100%; } pre { overflow-x: auto; background: #f0f0f0; padding: .8rem; }
"""


def write(folder: Path, figures: Mapping[str, float]) -> Path:
    """Write report.html of the run in `folder`, from its log, its sheets and run.json; `figures` are those of
    the evaluation. The file holds the old report or the whole new one."""
    path = folder / "report.html"
    beside = path.with_suffix(".partial")
    beside.write_text(page(folder, figures), "utf-8")
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)
    return path


def page(folder: Path, figures: Mapping[str, float]) -> str:
    """The whole page; whatever files say is escaped."""
    run = json.loads((folder / "run.json").read_text())
    lines = log.read(folder)
    name = escape(str(run["name"]))
    parts = [
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{name}</title>',
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n<h1>{name}</h1>',
        _table(_facts(lines)),
        *(("<h2>Evaluation</h2>", _table(figures)) if figures else ()),
        "<h2>Curves</h2>",
        f'<div class="curves">{"".join(_curves(lines))}</div>',
        *_sheets(folder),
        *_broken(lines),
        f"<h2>Settings</h2>\n<pre>{escape(json.dumps(run, indent=2))}</pre>",
    ]
    return "\n".join(parts) + "\n</html>\n"


def curve(points: Sequence[tuple[float, float]], name: str) -> str:
    """Points (x, y), x rising, as an SVG figure with its range in words."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right, low, high = xs[0], xs[-1], min(ys), max(ys)
    across, up = (right - left) or 1.0, (high - low) or 1.0
    dots = " ".join(
        f"{(x - left) / across * WIDTH:.1f},{HEIGHT - (y - low) / up * (HEIGHT - 20) - 5:.1f}"
        for x, y in points
    )
    told = f"{escape(name)}: {ys[0]:.4g} at the start, {ys[-1]:.4g} at the end"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{told}</title>'
        f'<polyline points="{dots}"/><text x="2" y="11">{high:.4g}</text>'
        f'<text x="2" y="{HEIGHT - 8}">{low:.4g}</text></svg><figcaption>{told}</figcaption></figure>'
    )


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS`: each the mean of neighbours, so that a long run's curve is smooth and small."""
    share = max(1, math.ceil(len(points) / POINTS))
    groups = (points[i : i + share] for i in range(0, len(points), share))
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _facts(lines: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    if not lines:
        return {"steps": 0}
    last = lines[-1]
    facts: dict[str, object] = {
        "steps": last["step"],
        "pictures seen": f"{last['images_seen']:,}",
        "skipped steps, not finite": last["skipped"],
        "broken samples": last.get("broken", 0),
    }
    rates = [line["pictures/s"] for line in lines if line.get("pictures/s")]
    if rates:
        facts["pictures/s, median"] = f"{sorted(rates)[len(rates) // 2]:.1f}"
    for name, what in (("of peak", "of the machine's matrix products"), ("waiting", "waiting for data")):
        shares = [line[name] for line in lines if line.get(name) is not None]
        if shares:
            facts[what] = f"{sum(shares) / len(shares):.1%}"
    return facts


def _curves(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = dict.fromkeys(name for line in lines for name in line if name not in (*CLOCKS, *TIMES))
    for name in (*names, "pictures/s"):
        held = [
            (float(line["images_seen"]), float(line[name])) for line in lines if line.get(name) is not None
        ]
        if held:
            yield curve(thinned(held), name)


def _sheets(folder: Path) -> Iterator[str]:
    paths = sorted(path for path in (folder / "sheets").glob("*.png") if path.stem.isdecimal())
    if not paths:
        return
    yield "<h2>Samples over time</h2>"
    count = min(SHEETS, len(paths))
    for index in sorted({round(i * (len(paths) - 1) / max(1, count - 1)) for i in range(count)}):
        path = paths[index]
        data = base64.b64encode(path.read_bytes()).decode()
        told = f"{int(path.stem):,} pictures seen"
        picture = f'<img src="data:image/png;base64,{data}" alt="{told}">'
        yield f"<figure>{picture}<figcaption>{told}</figcaption></figure>"


def _broken(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    named = [name for line in lines for name in line.get("samples", ())]
    if named:
        yield "<h2>Samples that could not be read</h2>"
        yield "<ul>" + "".join(f"<li>{escape(name)}</li>" for name in named[:NAMED]) + "</ul>"
        if len(named) > NAMED:
            yield f"<p>... and {len(named) - NAMED:,} more, in log.jsonl.</p>"


def _table(rows: Mapping[str, object]) -> str:
    cells = (
        f"<tr><td>{escape(name)}</td><td>{escape(f'{v:.4g}' if isinstance(v, float) else str(v))}</td></tr>"
        for name, v in rows.items()
    )
    return f"<table>{''.join(cells)}</table>"
