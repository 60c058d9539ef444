"""What HTML pages share: the loader of templates, and functions that make text and pictures safe to embed."""

import base64
import pathlib
import re
import struct

import jinja2
import markupsafe

from rlvr_jax.errors import UserError

NO_FIGURE = {"data": "", "width": 0, "height": 0}
UNSEEN = (*range(9), *range(11, 32), 127, *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # controls, text directions


def environment(module: str) -> jinja2.Environment:
    """An environment that escapes text, with templates from the folders of `module` (a `__file__`) and of this file."""
    folders = [pathlib.Path(file).parent for file in (module, __file__)]
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(folders), autoescape=True, trim_blocks=True,
                                   lstrip_blocks=True)
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    templates.filters |= {"marked": marked, "cut": cut, "blocks": blocks}
    return templates


def marked(text: str) -> markupsafe.Markup:
    """Returns Markdown as HTML. Only `code` and **bold** are rendered; all other text is escaped."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(markupsafe.escape(text)))
    return markupsafe.Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html, flags=re.DOTALL))


def blocks(text: str) -> list[tuple[str, list]]:
    """Splits Markdown of this project into blocks, in order: ("table", rows), ("list", items) or ("text", lines)."""
    parts: list[tuple[str, list]] = []
    for block in filter(None, re.split(r"\n\s*\n", text.strip())):
        lines = block.splitlines()
        if block.startswith("| "):
            cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
            parts.append(("table", cells[:1] + cells[2:]))  # without the rule below the header
        elif block.startswith("- "):
            parts.append(("list", [line.removeprefix("- ") for line in lines]))
        else:
            parts.append(("text", lines))
    return parts


def picture(path: pathlib.Path) -> dict:
    """A PNG as {"data": base64, "width", "height" in pixels}; NO_FIGURE without a file, UserError for a damaged one."""
    if not path.is_file():
        return NO_FIGURE
    content = path.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[-8:-4] != b"IEND":
        raise UserError(f"{path} is no PNG, or not whole: write it again, or take it away")
    width, height = struct.unpack(">II", content[16:24])
    return {"data": base64.b64encode(content).decode(), "width": width, "height": height}


def evenly(items: list, count: int) -> list:
    """All items, or if there are more than `count`, `count` of them at even distances, with the first and the last."""
    return items if len(items) <= count else [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def num_bytes(text: str) -> int:
    """How many bytes of HTML a text takes."""
    return len(markupsafe.escape(text).encode("utf-8", "replace"))


def cut(text, room: int, file: str = "rollouts.jsonl") -> str:
    """The text with control characters escaped. If it would take more than about `room` bytes of HTML, its middle is
    replaced by a note that `file` has the whole text."""
    text = str(text).translate({c: f"\\u{c:04x}" for c in UNSEEN})
    size = num_bytes(text)
    if size <= room:
        return text
    gap = len(text) - len(text) * room // size  # characters to leave out
    start = 2 * (len(text) - gap) // 3  # two thirds of what is shown are before the gap
    return f"{text[:start]}\n[… {gap:,} characters left out, whole in {file} …]\n{text[start + gap :]}"
