"""The findings: the studies of a directory of records on one page, index.html, and as the table of its README.

`findings.html.jinja` says in words what this file reads and chooses.
"""

import pathlib
import re

import markupsafe

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import findings_figure, records, rules, study
from rlvr_jax.report import pages
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

SEARCH = "_dev"  # how the name of a study ends that chooses settings on the dev split, and finds nothing out
TABLE = re.compile(r"(?s)(?<=<!-- findings, by `python -m scripts.report --all` -->\n).*?(?=<!-- end of findings -->)")


def write(results: str) -> list[pathlib.Path]:
    """Judges the records again and writes them, their pages and figures, RESULTS/index.html, its drawing as
    RESULTS/findings.png, and the table of RESULTS/README.md, if it is there; returns the paths. Raises UserError naming
    a damaged record, a directory without a record, and a README without a place for the table."""
    folder = pathlib.Path(results)
    found, readme = [study.again(record) for record in records.read_all(folder)], folder / "README.md"
    if not found:
        raise UserError(f"--results={results}: there is no record of a study, STUDY.json, as scripts.study writes it")
    texts = {readme: with_table(readme, found)} if readme.is_file() else {}
    written = study.write(found, folder) + [folder / "findings.png"]
    findings_figure.picture([record for record in found if not is_search(record)], written[-1])
    texts[folder / "index.html"] = format_page(found, folder)
    for path, text in texts.items():
        files.write_whole(path, text)
    return written + list(texts)


def is_search(record: dict) -> bool:
    return record["study"].endswith(SEARCH)


def probes(folder: pathlib.Path) -> list[tuple[str, str]]:
    """(path from `folder`, title) of the pages that scripts.probe wrote below probes/ there."""
    made = {path: re.search(r"<title>(.*?)</title>|$", path.read_text("utf-8"))[1]
            for path in sorted((folder / "probes").rglob("*.html"))}
    return [(path.relative_to(folder).as_posix(), markupsafe.Markup(title or path.stem).unescape())
            for path, title in made.items()]


def format_page(found: list[dict], folder: pathlib.Path) -> str:
    """The findings as one page that loads nothing."""
    names = {record["study"] for record in found}
    elsewhere = [path.stem for path in sorted(study.FOLDER.glob("*.toml"))
                 if path.stem not in names and (folder / f"{path.stem}.md").is_file()]
    studies = [record for record in found if not is_search(record)]
    verdicts = [record["verdict"] for record in studies]
    counts = {"all": len(studies)} | {word: verdicts.count(word) for word in records.VERDICTS}
    return pages.environment(__file__).get_template("findings.html.jinja").render(
        studies=studies, searches=list(filter(is_search, found)), elsewhere=elsewhere, probes=probes(folder),
        pictures={name: pages.picture(folder / f"{name}.png") for name in names}, counts=counts,
        drawn=findings_figure.svg, records=records, rules=rules, links=records.links(found, folder))


def table(found: list[dict], folder: pathlib.Path) -> str:
    """The studies as a table of Markdown, with links to their pages; searches are left out. The answer is the first
    sentence of the abstract."""
    links = records.links(found, folder)
    rows = [[f"[{record['study']}]({links[record['study']]})", record.get("short") or record["question"],
             records.first_sentence(records.answer(record)), records.seeds(record), records.VERDICTS[record["verdict"]]]
            for record in found if not is_search(record)]
    return markdown_table(["study", "question", "answer", "seeds", "prediction"],
                          [[cell.replace("|", "\\|") for cell in row] for row in rows])


def with_table(path: pathlib.Path, found: list[dict]) -> str:
    """The text of a file with the table between its two marks written anew."""
    text = path.read_text("utf-8")
    if len(TABLE.findall(text)) != 1:
        raise UserError(f"{path}: the table of findings goes between two lines, once each: <!-- findings, by `python "
                        "-m scripts.report --all` --> and <!-- end of findings -->")
    return TABLE.sub(lambda _: f"\n{table(found, path.parent)}\n\n", text)
