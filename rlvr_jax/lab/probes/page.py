"""The HTML page of a probe: its figure, its tables, and its items to leaf through. Template: `probe.html.jinja`."""

import collections
import pathlib

from rlvr_jax.lab.probes.rows import Result
from rlvr_jax.report import pages

MAX_ITEMS, MAX_BYTES = 2_000, 8_000_000  # most items of a page, and most bytes of all their texts together
MAX_TEXT, MAX_STEPS = 20_000, 60  # most bytes of one text of an item, and most steps of an item
HEADINGS = {"prompt": "Prompt", "rest": "Hidden from the model", "completion": "Completion"}  # key of a text -> heading


def render_page(stem: pathlib.Path, title: str, about: str, result: Result, made_by: str) -> str:
    """Returns the HTML of the page, to be saved beside STEM_items.jsonl. It begins with `about`, on the probe, ends
    with the sentence `made_by`, and shows STEM.png if that exists. Readers can filter items by `result.filters`."""
    items_file, items = f"{stem.name}_items.jsonl", pages.evenly(result.items, MAX_ITEMS)
    booleans = {key: key.replace("_", " ") for item in items for key in item if isinstance(item[key], bool)}
    # {key of an item: label}; an item's "file" is the name of the completions file that it was made from
    filters = (result.filters or booleans) | {"file": "file"}
    texts = [full_texts(item) for item in items]  # {heading: text} of each item
    lengths = [pages.num_bytes(text) for by_heading in texts for text in by_heading.values()]
    max_bytes = MAX_TEXT if sum(lengths) <= MAX_BYTES else MAX_BYTES // len(lengths)  # of one text
    cards = [make_card(item, by_heading, filters, max_bytes, items_file) for item, by_heading in zip(items, texts)]
    counts: dict[str, collections.Counter] = {}  # label of a filter -> how many items have each value
    for label, value in (verdict for card in cards for verdict in card["verdicts"].items()):
        counts.setdefault(label, collections.Counter())[value] += 1
    html = pages.environment(__file__).get_template("probe.html.jinja").render(
        title=title, about=about, text=result.page, items=cards, file=items_file, total=len(result.items),
        made_by=made_by, picture=pages.picture(stem.with_name(f"{stem.name}.png")),
        choices={label: values for label, values in counts.items() if len(values) > 1})
    return html.encode("utf-8", "replace").decode()  # lone surrogates, which UTF-8 cannot encode, become "?"


def full_texts(item: dict) -> dict[str, str]:
    """Returns {heading: text} with the prompt, the hidden rest and the completions of an item."""
    by_heading = {label: item[key] for key, label in HEADINGS.items() if isinstance(item.get(key), str)}
    if isinstance(item.get("completions"), dict):
        by_heading |= {f"Completion of {name}": text for name, text in item["completions"].items()}
    return by_heading


def make_card(item: dict, texts: dict[str, str], filters: dict[str, str], max_bytes: int, file: str) -> dict:
    """Returns what the page shows of an item: "texts", {heading: text}, each cut to `max_bytes` with a note that `file`
    has all of it; "verdicts", {label: value} for `filters`, {key: label}; "facts", {name: other value}; and "steps"."""
    steps, facts = item["steps"] if isinstance(item.get("steps"), list) else [], {}
    for key in [key for key in item if key not in (*filters, *HEADINGS, "completions")]:
        name, value = key.replace("_", " "), item[key]
        if isinstance(value, dict):
            facts[name] = ", ".join(f"{inner} {format_value(x)}" for inner, x in value.items())
        elif isinstance(value, (str, int, float)):
            facts[name] = format_value(value)
    return {"texts": {heading: pages.cut(text, max_bytes, file) for heading, text in texts.items()},
            "verdicts": {label: format_value(item[key]) for key, label in filters.items() if key in item},
            "facts": facts | ({"steps": str(len(steps))} if len(steps) > MAX_STEPS else {}),
            "steps": [step | {"text": pages.cut(step["text"], 1000, file)} for step in steps[:MAX_STEPS]]}


def format_value(value) -> str:
    """A value as text for one line of the page."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else pages.cut(value, 300, "the items")
