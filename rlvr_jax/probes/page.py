"""The page of a probe: its figure, its tables, and its items to leaf through. `studies/probe.html.jinja` draws it."""

import collections
import pathlib

from rlvr_jax.config import ProbeConfig
from rlvr_jax.probes.rows import Found, short_names
from rlvr_jax.studies import pages

MAX_ITEMS, MAX_BYTES, MAX_TEXT, MAX_STEPS = 2_000, 8_000_000, 20_000, 60  # of a page, its texts, a text, an item
TEXTS = {"prompt": "Prompt", "rest": "Hidden from the model", "completion": "Completion"}


def html(config: ProbeConfig, found: Found, about: str, choices: dict[str, str], made_by: str) -> str:
    """The page, for a folder that has the probe's figure and items. `choices` names, by their key, the verdicts that
    items are chosen by; empty: all that are true or false. The file is another one, too, where there are several.
    `made_by` stands at the end."""
    file, shown = f"{config.probe}_items.jsonl", pages.evenly(found.items, MAX_ITEMS)
    choices = choices or {key: key.replace("_", " ") for one in shown for key in one if isinstance(one[key], bool)}
    size = sum(len(text) for one in shown for text in texts(one).values())
    room = MAX_TEXT if size <= MAX_BYTES else MAX_BYTES // sum(len(texts(one)) for one in shown)
    items = [card(one, choices | {"file": "file"}, room, file) for one in shown]
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for one in items:
        for label, said in one["verdicts"].items():
            counts[label][said] += 1
    names = short_names(config.completions.split(",")) if config.completions else [pathlib.Path(config.model).name]
    made = pages.environment().get_template("probe.html.jinja").render(
        title=f"{config.probe} of {', '.join(names)}", about=about, text=found.page, items=items, file=file,
        picture=pages.picture(pathlib.Path(config.out) / f"{config.probe}.png"), total=len(found.items),
        choices={label: said for label, said in counts.items() if len(said) > 1}, made_by=made_by)
    return made.encode("utf-8", "replace").decode()


def texts(item: dict) -> dict[str, str]:
    """What is shown whole, by its heading."""
    own = {label: item[key] for key, label in TEXTS.items() if isinstance(item.get(key), str)}
    if isinstance(item.get("completions"), dict):
        own |= {f"Completion of {name}": text for name, text in item["completions"].items()}
    return own


def card(item: dict, choices: dict[str, str], room: int, file: str) -> dict:
    """What the page has of an item: texts of at most `room` bytes, verdicts, other facts, and the steps."""
    steps = item["steps"] if isinstance(item.get("steps"), list) else []
    facts = {key.replace("_", " "): ", ".join(f"{name} {plain(one)}" for name, one in value.items())
             if isinstance(value, dict) else plain(value) for key, value in item.items()
             if key not in (*choices, *TEXTS, "completions") and isinstance(value, (str, int, float, dict))}
    return {"texts": {label: pages.cut(text, room, file) for label, text in texts(item).items()},
            "verdicts": {label: plain(item[key]) for key, label in choices.items() if key in item},
            "facts": facts | ({"steps": str(len(steps))} if len(steps) > MAX_STEPS else {}),
            "steps": [step | {"text": pages.cut(step["text"], 1000, file)} for step in steps[:MAX_STEPS]]}


def plain(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else pages.cut(value, 300, "the items")
