"""The page of a probe: its figure, its tables, and its items to leaf through. `probe.html.jinja` draws it."""

import collections
import pathlib

from rlvr_jax.lab.probes.rows import Result
from rlvr_jax.report import pages

MAX_ITEMS, MAX_BYTES, MAX_TEXT, MAX_STEPS = 2_000, 8_000_000, 20_000, 60  # of a page, its texts, a text, an item
TEXTS = {"prompt": "Prompt", "rest": "Hidden from the model", "completion": "Completion"}


def html(stem: pathlib.Path, title: str, about: str, result: Result, choices: dict[str, str], made_by: str) -> str:
    """The page beside STEM_items.jsonl, with the figure STEM.png if it is there.

    `choices` are the items' keys that one can filter by, with their names on the page; empty: all that are true or
    false. Where there are several files, the file is one more. `made_by` stands at the end.
    """
    file, items = f"{stem.name}_items.jsonl", pages.evenly(result.items, MAX_ITEMS)
    choices = choices or {key: key.replace("_", " ") for item in items for key in item if isinstance(item[key], bool)}
    size = sum(len(text) for item in items for text in texts(item).values())
    room = MAX_TEXT if size <= MAX_BYTES else MAX_BYTES // sum(len(texts(item)) for item in items)
    cards = [card(item, choices | {"file": "file"}, room, file) for item in items]
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for shown in cards:
        for label, value in shown["verdicts"].items():
            counts[label][value] += 1
    made = pages.environment(__file__).get_template("probe.html.jinja").render(
        title=title, about=about, text=result.page, items=cards, file=file,
        picture=pages.picture(stem.with_name(f"{stem.name}.png")), total=len(result.items),
        choices={label: values for label, values in counts.items() if len(values) > 1}, made_by=made_by)
    return made.encode("utf-8", "replace").decode()


def texts(item: dict) -> dict[str, str]:
    """What is shown whole, by its heading."""
    by_heading = {label: item[key] for key, label in TEXTS.items() if isinstance(item.get(key), str)}
    if isinstance(item.get("completions"), dict):
        by_heading |= {f"Completion of {name}": text for name, text in item["completions"].items()}
    return by_heading


def card(item: dict, choices: dict[str, str], room: int, file: str) -> dict:
    """What the page has of an item: texts of at most `room` bytes, verdicts, other facts, and the steps."""
    steps = item["steps"] if isinstance(item.get("steps"), list) else []
    facts = {key.replace("_", " "): ", ".join(f"{name} {plain(x)}" for name, x in value.items())
             if isinstance(value, dict) else plain(value) for key, value in item.items()
             if key not in (*choices, *TEXTS, "completions") and isinstance(value, (str, int, float, dict))}
    return {"texts": {label: pages.cut(text, room, file) for label, text in texts(item).items()},
            "verdicts": {label: plain(item[key]) for key, label in choices.items() if key in item},
            "facts": facts | ({"steps": str(len(steps))} if len(steps) > MAX_STEPS else {}),
            "steps": [step | {"text": pages.cut(step["text"], 1000, file)} for step in steps[:MAX_STEPS]]}


def plain(value) -> str:
    """A value in a line of the page."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else pages.cut(value, 300, "the items")
