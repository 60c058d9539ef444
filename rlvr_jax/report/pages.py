"""Pages of HTML: where their templates are, and text and pictures made safe for them."""

import base64
import pathlib
import re
import struct

import jinja2
import markupsafe

from rlvr_jax.errors import UserError

NO_FIGURE = {"data": "", "width": 0, "height": 0}
UNSEEN = (*range(9), *range(11, 32), 127, *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # controls, text direction


def environment(module: str) -> jinja2.Environment:
    """Loads templates beside the module (its `__file__`), and those that pages share, beside this one. Escapes text."""
    folders = [pathlib.Path(file).parent for file in (module, __file__)]
    made = jinja2.Environment(loader=jinja2.FileSystemLoader(folders), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True)
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    made.filters |= {"marked": marked, "cut": cut, "blocks": blocks}
    return made


def marked(text: str) -> markupsafe.Markup:
    """Text as HTML, where `code` and **bold** are all that is read of Markdown."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(markupsafe.escape(text)))
    return markupsafe.Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html, flags=re.DOTALL))


def blocks(text: str) -> list[tuple[str, list]]:
    """The blocks of Markdown that this program wrote: ("table", rows of cells), ("list", lines) or ("text", lines)."""
    made: list[tuple[str, list]] = []
    for block in filter(None, re.split(r"\n\s*\n", text.strip())):
        lines = block.splitlines()
        if block.startswith("| "):
            cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
            made.append(("table", cells[:1] + cells[2:]))
        elif block.startswith("- "):
            made.append(("list", [line.removeprefix("- ") for line in lines]))
        else:
            made.append(("text", lines))
    return made


def picture(path: pathlib.Path) -> dict:
    """A PNG as text for a page, with its size in pixels; NO_FIGURE if there is none. UserError for a damaged one."""
    if not path.is_file():
        return NO_FIGURE
    content = path.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[-8:-4] != b"IEND":
        raise UserError(f"{path} is no PNG, or not whole: write it again, or take it away")
    width, height = struct.unpack(">II", content[16:24])
    return {"data": base64.b64encode(content).decode(), "width": width, "height": height}


def evenly(items: list, count: int) -> list:
    """At most `count` of the items, at even distances, with the first and the last."""
    return items if len(items) <= count else [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def cut(text, room: int, file: str = "rollouts.jsonl") -> str:
    """Text with control characters spelt out. Where it would take more than `room` bytes of HTML its middle is left
    out, with a note that `file` has all of it."""
    text = str(text).translate({c: f"\\u{c:04x}" for c in UNSEEN})
    size = len(markupsafe.escape(text).encode("utf-8", "replace"))
    if size <= room:
        return text
    gap = len(text) - len(text) * room // size
    start = 2 * (len(text) - gap) // 3
    return f"{text[:start]}\n[… {gap:,} characters left out, whole in {file} …]\n{text[start + gap :]}"
