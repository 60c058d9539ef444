"""Pages of HTML: the templates beside this file, what they have in common, and text made safe for them."""

import pathlib
import re

import jinja2
import markupsafe


def environment() -> jinja2.Environment:
    """Where templates are found by name; what they show is escaped."""
    found = jinja2.Environment(loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True,
                               trim_blocks=True, lstrip_blocks=True)
    found.filters["marked"] = marked
    return found


def marked(text: str) -> markupsafe.Markup:
    """Text with its `code` and **bold** as HTML, and nothing else of Markdown."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(markupsafe.escape(text)))
    return markupsafe.Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html, flags=re.DOTALL))
