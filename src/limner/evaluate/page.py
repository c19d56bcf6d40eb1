"""A report as one HTML page that needs nothing else: scores, and every picture with what was seen in it."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from limner.evaluate.composition import PROTOCOL, overall, spelled
from limner.evaluate.prompts import GENEVAL
from limner.evaluate.report import Report, percent, shares
from limner.evaluate.run import Judged
from limner.evaluate.sheets import failures
from limner.models.detector import Seen

SHOWN = 20  # failures at the top
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
body { color: #1c1f23; background: #fafafa; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.mean td { font-weight: 600; border-top: 1px solid #999; border-bottom: 1px solid #999; }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 600; padding: .5rem 0; }
section { display: flex; gap: .8rem; padding: .6rem 0; border-top: 1px solid #e2e2e2; }
section > h3 { flex: 0 0 13rem; font-size: 1rem; font-weight: 500; margin: 0; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; width: 128px; font-size: 11px; overflow-wrap: anywhere; }
.picture { position: relative; width: 128px; height: 128px; border-radius: 6px; overflow: hidden; }
.picture { background: #ddd; } .picture img { width: 100%; height: 100%; display: block; }
.right .picture { outline: 3px solid #2c9a4b; } .wrong .picture { outline: 3px solid #d23c3c; }
i { position: absolute; border: 1.5px solid #fff; outline: 1px solid #000; opacity: 0; border-radius: 2px; }
.picture:hover i { opacity: .9; }
figcaption b { color: #b02a2a; font-weight: 600; display: block; }
figcaption { color: #555; padding-top: 5px; }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; }
dd { margin: 0; } dt { color: #666; }
"""


def page(report: Report) -> str:
    """The whole page; what prompts, files and errors say is escaped. Hovering shows the detector's boxes."""
    about = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in report.about.items())
    tasks = groupby(report.judged, lambda one: one.prompt.task)
    parts = [*_failed(report), *(_task(task, list(judged)) for task, judged in tasks), *_left_out(report)]
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{PROTOCOL}</title>\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{STYLE}</style>\n<h1>{PROTOCOL}</h1>\n<dl>{about}</dl>\n{_table(report)}\n"
        f"<p>Hover over a picture to see where the detector saw what it lists.</p>\n{''.join(parts)}</html>\n"
    )


def _table(report: Report) -> str:
    scores = report.scores
    columns = [shares(scores), *(shares(other) for other in report.beside.values())]
    six, own = ([task for task in scores if (task in GENEVAL) == inside] for inside in (True, False))
    rows = [
        _cells("th", ["task", "right", *report.beside]),
        *(_cells("td", [task, *(percent(column.get(task)) for column in columns)]) for task in six),
        _cells("td", ["overall, mean of the six", *(percent(overall(c)) for c in columns)], "mean"),
        *(_cells("td", [task, *(percent(column.get(task)) for column in columns)]) for task in own),
        *(_cells("td", [name, f"{value:.4g}"]) for name, value in report.distances.items()),
    ]
    return f"<table>{''.join(rows)}</table>"


def _cells(tag: str, texts: Iterable[str], kind: str = "") -> str:
    return f'<tr class="{kind}">' + "".join(f"<{tag}>{_text(text)}</{tag}>" for text in texts) + "</tr>"


def _failed(report: Report) -> Iterator[str]:
    """Some of what went wrong, from all tasks."""
    if shown := failures(report.judged, SHOWN):
        wrong = sum(not one.verdict.right for one in report.judged)
        told = f"{len(shown)} of {wrong} pictures that were wrong"
        figures = "".join(_figure(one, prompt=True) for one in shown)
        yield f'<details open><summary>{told}</summary>\n<div class="row">{figures}</div></details>\n'


def _left_out(report: Report) -> Iterator[str]:
    if report.left_out:
        told = f"{len(report.left_out)} prompts that the detector cannot judge were left out"
        rows = "".join(f"<dt>{_text(one.text)}</dt><dd>{_text(one.reason)}</dd>" for one in report.left_out)
        yield f"<details><summary>{told}</summary>\n<dl>{rows}</dl></details>\n"


def _task(task: str, judged: Sequence[Judged]) -> str:
    right = sum(one.verdict.right for one in judged)
    sections = []
    for text, ones in groupby(judged, lambda one: one.prompt.text):
        figures = "".join(_figure(one) for one in ones)
        sections.append(f'<section><h3>{_text(text)}</h3><div class="row">{figures}</div></section>\n')
    told = f"{task}: {percent(right / len(judged))} of {len(judged)} pictures"
    return f"<details><summary>{_text(told)}</summary>\n{''.join(sections)}</details>\n"


def _figure(one: Judged, *, prompt: bool = False) -> str:
    picture = ""
    if one.thumbnail:
        data = base64.b64encode(one.thumbnail).decode()
        picture = f'<img alt="seed {one.seed}" src="data:image/webp;base64,{data}">'
    boxes = "" if one.seen is None else "".join(_boxes(one.seen))
    seen = "" if one.seen is None else _text(_told(one.seen))
    reasons = "".join(f"<b>{_text(reason)}</b>" for reason in one.verdict.reasons)
    kind = "right" if one.verdict.right else "wrong"
    asked = f"“{_text(one.prompt.text)}” " if prompt else ""
    return (
        f'<figure class="{kind}"><div class="picture">{picture}{boxes}</div>'
        f"<figcaption>{asked}{reasons}{seen} · seed {one.seed}</figcaption></figure>"
    )


def _boxes(seen: Seen) -> Iterator[str]:
    for thing in (*seen.objects, *seen.letters):
        left, top, right, bottom = (100 * side for side in thing.box)
        place = f"left:{left:.1f}%;top:{top:.1f}%;width:{right - left:.1f}%;height:{bottom - top:.1f}%"
        yield f'<i style="{place}" title="{_text(f"{thing.label} {thing.score:.2f}")}"></i>'


def _told(seen: Seen) -> str:
    """ "cat 0.98 red, dog 0.41; the word "HI"; flat on blue"."""
    things = [
        " ".join(filter(None, (thing.label, f"{thing.score:.2f}", thing.colour))) for thing in seen.objects
    ]
    word = spelled(seen)
    parts = [", ".join(things) or "no object", *([f'the word "{word}"'] if word else [])]
    return "; ".join([*parts, f"{seen.style}, {seen.background}"])


def _text(value: object) -> str:
    return escape(str(value))
