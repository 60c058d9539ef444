"""The findings: the studies of a directory of records on one page, index.html, and as the table of its README.

`findings.html.jinja` says in words what this file reads and chooses.
"""

import os
import pathlib
import posixpath
import re

import markupsafe

from rlvr_jax.errors import UserError
from rlvr_jax.lab import pages
from rlvr_jax.lab.studies import findings_figure, records, rejudge, rules, study
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

ORDER = ("one_shot", "long_run", "boolean")  # as one reads them; then the others by name
SEARCH = "_dev"  # how the name of a study ends that chooses settings on the dev split, and finds nothing out
BEGIN = "<!-- findings, by `python -m scripts.report --all --readme=results/README.md` -->"
END = "<!-- end of findings -->"


def write(results: str, readme: str = "") -> list[pathlib.Path]:
    """Judges the records again, writes RESULTS/index.html, and the table of the file `readme` anew; returns the paths.
    Raises UserError naming a damaged record or figure, a directory without a record and a file without the table."""
    rejudge.folder(pathlib.Path(results))
    found = read(pathlib.Path(results))
    if not found:
        raise UserError(f"--results={results}: there is no record of a study, STUDY.json, as scripts.study writes it")
    written = [pathlib.Path(results) / "index.html"]
    files.write_whole(written[0], page(found, pathlib.Path(results)))
    if readme:
        path = pathlib.Path(readme)
        files.write_whole(path, with_table(path, found, os.path.relpath(results, path.parent)))
        written.append(path)
    return written


def read(folder: pathlib.Path) -> list[dict]:
    """The records in a directory, in their order; one of before has the words of its page from configs/studies."""
    found = [worded(record) for path in sorted(folder.glob("*.json")) if (record := records.read(path))]
    found.sort(key=lambda record: record["study"])
    return sorted(found, key=lambda record: [*ORDER, record["study"]].index(record["study"]))


def worded(record: dict) -> dict:
    """A record with a title and what was known."""
    name, words = record["study"], {"title": record["study"], "known": ""}
    if not words.keys() <= record.keys() and (study.FOLDER / f"{name}.toml").is_file():
        content = study.load(name)[1]
        words |= {key: content[key] for key in records.WORDS if key in content}
    return words | record


def measured(record: dict) -> str:
    """The primary rule with what was measured, in one line."""
    if not record["rules"]:
        return "-"
    rule = rules.primary(record["rules"])
    return f"{rule['says']}: {records.shown(rule)}"


def row(record: dict) -> tuple:
    """What a row of the figure shows of a record: where it is drawn, the rule, what was measured, level and tally."""
    rule = rules.primary(record["rules"]) if record["rules"] else None
    return (findings_figure.row(record), rule, records.shown(rule) if rule else "", records.level(rule) if rule else "",
            rules.tally(record["rules"]))


def probes(folder: pathlib.Path) -> list[tuple[str, str]]:
    """(path from `folder`, title) of the pages that scripts.probe wrote below probes/ there."""
    made = {path: re.search(r"<title>(.*?)</title>|$", path.read_text("utf-8"))[1]
            for path in sorted((folder / "probes").rglob("*.html"))}
    return [(path.relative_to(folder).as_posix(), markupsafe.Markup(title or path.stem).unescape())
            for path, title in made.items()]


def page(found: list[dict], folder: pathlib.Path) -> str:
    """The findings as one page that loads nothing."""
    names = {record["study"] for record in found}
    elsewhere = [path.stem for path in sorted(study.FOLDER.glob("*.toml"))
                 if path.stem not in names and (folder / f"{path.stem}.md").is_file()]
    studies = [record for record in found if not record["study"].endswith(SEARCH)]
    verdicts = [record["verdict"] for record in studies]
    return pages.environment(__file__).get_template("findings.html.jinja").render(
        studies=studies, counts={"all": len(studies)} | {word: verdicts.count(word) for word in records.VERDICTS},
        searches=[record for record in found if record["study"].endswith(SEARCH)],
        pictures={name: pages.picture(folder / f"{name}.png") for name in names}, elsewhere=elsewhere,
        rowed=row, probes=probes(folder), records=records, zip=zip)


def table(found: list[dict], folder: str) -> str:
    """The studies as a table of Markdown, with links to their pages in `folder`; searches are left out."""
    rows = [[f"[{name}]({posixpath.normpath(f'{folder}/{name}.md')})", record.get("short") or record["question"],
             measured(record), record["verdict"], rules.tally(record["rules"])]
            for record in found if not (name := record["study"]).endswith(SEARCH)]
    return markdown_table(["study", "question", "primary rule: measured", "verdict", "other rules"],
                          [[cell.replace("|", "\\|") for cell in row] for row in rows])


def with_table(path: pathlib.Path, found: list[dict], folder: str) -> str:
    """The text of a file with the table between its two marks written anew."""
    text = path.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise UserError(f"{path}: the table of findings goes between two lines, {BEGIN} and {END}; it needs each once")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n\n" + table(found, folder) + "\n\n" + text[text.index(END) :]
