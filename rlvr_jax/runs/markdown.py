"""Markdown tables."""


def markdown_table(header: list, rows: list[list]) -> str:
    """A Markdown table; white space in a cell becomes single spaces, since a line break would end the table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(" ".join(str(cell).split()) for cell in line) + " |" for line in lines)
