"""Tables that are read on a screen and on a page."""


def markdown_table(header: list, rows: list[list]) -> str:
    """A table of Markdown; a line break within a cell would end it, so there is none."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(" ".join(str(cell).split()) for cell in line) + " |" for line in lines)
