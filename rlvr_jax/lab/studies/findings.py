"""The findings: all studies of a directory of records on one page, index.html, and in the table of its README.
This module chooses what is shown; the words are in `findings.html.jinja`."""

import pathlib
import re

import markupsafe

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import findings_figure, records, rules, study
from rlvr_jax.report import pages
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

SEARCH = "_dev"  # suffix of studies that choose settings on the dev split; they are no findings
TABLE = re.compile(r"(?s)(?<=<!-- findings, by `python -m scripts.report --all` -->\n).*?(?=<!-- end of findings -->)")


def write(results: str) -> list[pathlib.Path]:
    """Judges the records in a directory again. Writes them, their pages and figures, index.html, its drawing
    findings.png and, if there is a README.md, the table in that file. Returns the paths of the pages and the drawing.
    Raises UserError for a damaged record, a directory without a record, and a README without a place for the table."""
    folder = pathlib.Path(results)
    readme, drawing = (folder / name for name in ("README.md", "findings.png"))
    found = [study.again(record) for record in records.read_all(folder)]
    if not found:
        raise UserError(f"--results={results}: there is no record of a study, STUDY.json, as scripts.study writes it")
    texts = {readme: with_table(readme, found)} if readme.is_file() else {}  # {path: new text of the file}
    pages_of_studies = study.write(found, folder)
    findings_figure.picture([record for record in found if not is_search(record)], drawing)
    texts[folder / "index.html"] = format_page(found, folder)
    for path, text in texts.items():
        files.write_whole(path, text)
    return [*pages_of_studies, drawing, *texts]


def is_search(record: dict) -> bool:
    return record["study"].endswith(SEARCH)


def probes(folder: pathlib.Path) -> list[tuple[str, str]]:
    """(path relative to `folder`, title) of each page in probes/ of the folder, as scripts.probe wrote them."""
    titles = {path: re.search(r"<title>(.*?)</title>|$", path.read_text("utf-8"))[1]  # None without a title
              for path in sorted((folder / "probes").rglob("*.html"))}
    return [(path.relative_to(folder).as_posix(), markupsafe.Markup(title or path.stem).unescape())
            for path, title in titles.items()]


def format_page(found: list[dict], folder: pathlib.Path) -> str:
    """The findings as one HTML page that loads no other file, from the records `found` in the directory `folder`."""
    names = {record["study"] for record in found}
    elsewhere = [path.stem for path in sorted(study.FOLDER.glob("*.toml"))  # studies with a page, but without a record
                 if path.stem not in names and (folder / f"{path.stem}.md").is_file()]
    studies = [record for record in found if not is_search(record)]
    verdicts = [record["verdict"] for record in studies]
    counts = {"all": len(studies)} | {word: verdicts.count(word) for word in records.VERDICTS}
    return pages.environment(__file__).get_template("findings.html.jinja").render(
        studies=studies, searches=list(filter(is_search, found)), elsewhere=elsewhere, probes=probes(folder),
        pictures={name: pages.picture(folder / f"{name}.png") for name in names}, counts=counts,
        drawn=findings_figure.svg, records=records, rules=rules, links=records.links(found, folder))


def uses_oracle(record: dict) -> bool:
    """Whether the study's commands choose the training example by its label of style, which no real model has."""
    file = study.FOLDER / f"{record['study']}.toml"
    content = study.load(record["study"])[1] if file.is_file() else {}
    return "--example=auto_by_style" in str([content.get("commands"), content.get("arms")])


def table(found: list[dict], folder: pathlib.Path) -> str:
    """The studies, except those of SEARCH, as a Markdown table with links into the directory `folder`."""
    links = records.links(found, folder)
    rows = [[f"[{record['study']}]({links[record['study']]})", record.get("short") or record["question"],
             records.first_sentence(records.answer(record)),
             records.seeds(record) + (", oracle" if uses_oracle(record) else ""), records.VERDICTS[record["verdict"]]]
            for record in found if not is_search(record)]
    return markdown_table(["study", "question", "answer", "seeds", "prediction"],
                          [[cell.replace("|", "\\|") for cell in row] for row in rows])


def with_table(path: pathlib.Path, found: list[dict]) -> str:
    """The text of the file `path` with a new table between its two marks; UserError unless it has each mark once."""
    text = path.read_text("utf-8")
    if len(TABLE.findall(text)) != 1:
        raise UserError(f"{path}: the table of findings goes between two lines, once each: <!-- findings, by `python "
                        "-m scripts.report --all` --> and <!-- end of findings -->")
    return TABLE.sub(lambda _: f"\n{table(found, path.parent)}\n\n", text)
