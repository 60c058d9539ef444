"""Pages as a browser draws them: wide and narrow, light and dark, on paper, and without asking for anything."""

import base64

import numpy as np
import pytest

from rlvr_jax.lab.probes import probe
from rlvr_jax.lab.studies import findings
from rlvr_jax.report import report

from fixtures import (BROWSERS, HELDOUT_ROWS, HOSTILE, ROOT, as_any_probe, browser_path, browser_tab, kept_completions,
                      write_heldout, write_jsonl, write_record)

pytest.importorskip("matplotlib", reason="pip install -e '.[plot]'")

pytestmark = pytest.mark.skipif(not browser_path(), reason=f"none of {', '.join(BROWSERS)} is on the PATH: "
                                "apt-get install chromium")

PROBES = ("boundary", "coherence", "contamination", "memory")  # pages of results/probes
# Whatever is drawn, with its size; a picture that cannot be read has no width of its own.
FIGURES = """[...document.querySelectorAll("figure svg:first-of-type, figure img")].map(x => {
  const box = x.getBoundingClientRect();
  return [box.width, box.height, x.tagName == "IMG" ? x.naturalWidth : 1];
})"""
OVERFLOW = "[document.documentElement.scrollWidth, document.body.scrollWidth].map(x => x - innerWidth)"
# Of each text: its color and that of the ground it stands on, as [r, g, b] of 0 to 255.
COLORS = """(() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number), found = [];
  for (const x of document.querySelectorAll("h1, h2, h3, p, td, th, b, a, summary, code, pre, li, label, \
select, button, output, .quiet")) {
    let ground = x;
    while (ground && !(numbers(getComputedStyle(ground).backgroundColor)[3] ?? 1)) ground = ground.parentElement;
    if (x.getClientRects().length)
      found.push([x.tagName + "." + x.className, numbers(getComputedStyle(x).color),
                  ground ? numbers(getComputedStyle(ground).backgroundColor) : [255, 255, 255]]);
  }
  return found;
})()"""


def luminance(color: list) -> float:
    """As WCAG 2 has it."""
    parts = np.array(color[:3]) / 255
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(color: list, ground: list) -> float:
    low, high = sorted((luminance(color), luminance(ground)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser_tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The findings of the repository, those of a study with many arms, the report of a run, and the page of a probe."""
    folder, rng = tmp_path_factory.mktemp("pages"), np.random.default_rng(0)
    write_record(folder, "many", {f"{2**i} numbers after layer {i % 3}": {
        "held-out accuracy, greedy": list(rng.uniform(size=3)), "trained numbers": [2.0**i] * 3,
        "training accuracy": list(rng.uniform(size=3))} for i in range(24)},
        known="a_long_word_without_a_place_to_break_it" * 4)
    findings.write(str(folder))
    write_heldout(folder, HELDOUT_ROWS)
    (folder / "rollouts.jsonl").write_text("")
    report.write_report(str(folder))
    kept = write_jsonl(folder / "a.jsonl", *map(as_any_probe, kept_completions(*HOSTILE)))
    probe.run_probe(probe.ProbeConfig.from_flags(completions=kept, out=str(folder)))
    return {"results": ROOT / "results" / "index.html", "many arms": folder / "index.html",
            "run": folder / "report.html", "probe": folder / "coherence.html"} | {
            name: ROOT / "results" / "probes" / name / f"{name}.html" for name in PROBES}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["results", "many arms", "run", "probe", *PROBES])
def test_a_page_is_drawn_within_its_window_and_asks_for_nothing(tab, pages, name, width, scheme):
    tab.open(pages[name], width, scheme)
    sizes = tab.ask(FIGURES)
    assert sizes and all(min(size) > 0 and size[1] > 50 for size in sizes)
    assert max(tab.ask(OVERFLOW)) <= 0
    assert [url for url in tab.requests if not url.startswith("data:")] == [pages[name].absolute().as_uri()]
    assert not tab.errors
    ground = tab.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (luminance(ground) < 0.2) == (scheme == "dark")
    faint = [row for row in tab.ask(COLORS) if contrast(*row[1:]) < 4.5]
    assert not faint


# Of each text of a drawing: its height, its sides, its color, and that of the page.
LETTERS = """(() => {
  const color = (x, key) => getComputedStyle(x)[key].match(/[\\d.]+/g).map(Number);
  return [...document.querySelectorAll(".drawn svg text")].map(x => {
    const box = x.getBoundingClientRect();
    return [box.height, box.left, innerWidth - box.right, color(x, "fill"),
            color(document.body, "backgroundColor")];
  });
})()"""
# Names of the rows and of the sections that can be seen.
SEEN = """["figure li .found a", "section h2"].map(selector => [...document.querySelectorAll(selector)].filter(
    x => x.getClientRects().length).map(x => (x.closest("section")?.id ?? x.textContent).replace(".md", "")))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_figure_of_the_findings_can_be_read(tab, pages, width, scheme):
    tab.open(pages["results"], width, scheme)
    letters = tab.ask(LETTERS)
    assert len(letters) > 100
    for height, left, right, color, ground in letters:
        assert height >= 12 and min(left, right) >= 0 and contrast(color, ground) >= 4.5
    assert tab.ask('document.querySelector(".rows li").getBoundingClientRect().top') < 450  # seen without scrolling


def test_a_verdict_is_chosen_with_the_keyboard_and_a_row_leads_to_its_study(tab, pages, tmp_path):
    for name, verdict in (("a", "agree"), ("b", "undecided"), ("c", "agree"), ("d_dev", "agree")):
        write_record(tmp_path, name, {"plain": {"end": [.1, .2, .1]}, "bent": {"end": [.5, .6, .7]}}, verdict=verdict)
    findings.write(str(tmp_path))
    tab.open(tmp_path / "index.html", 390, "light")
    assert tab.ask(SEEN) == [["a", "b", "c"], ["a", "b", "c", "d_dev"]]
    tab.ask('document.querySelector("summary").focus()')
    tab.press("Tab")
    for names in (["a", "c"], [], ["b"]):
        tab.press("ArrowRight")
        assert tab.ask(SEEN) == [names, names]
        outline = 'getComputedStyle(document.querySelector("label:has(:focus-visible)")).outlineStyle'
        assert tab.ask(outline) == "solid"
    tab.ask("""(() => { const box = document.querySelector('li[data-verdict=undecided] svg').getBoundingClientRect();
        document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2).click(); })()""")
    assert tab.ask("[location.hash, document.getElementById('b').getBoundingClientRect().top < 400]") == ["#b", True]


def test_every_measure_can_be_sorted_and_filtered(tab, pages):
    tab.open(pages["many arms"], 1280, "light")
    rows = """[...document.querySelectorAll("#many .all tr")].slice(1).filter(x => x.getClientRects().length).map(
        x => [x.cells[1].textContent, parseFloat(x.cells[2].textContent.replace(/,/g, ""))])"""
    tab.ask('document.querySelector("#many details").open = true')
    count = len(tab.ask(rows))
    tab.ask("""(() => { const box = document.querySelector("#many input[type=search]"); box.value = "trained NUMBERS";
        box.dispatchEvent(new Event("input")); document.querySelectorAll("#many .all button")[2].click(); })()""")
    found = tab.ask(rows)
    assert (count, len(found)) == (72, 24) and {name for name, _ in found} == {"trained numbers"}
    assert [value for _, value in found] == sorted(value for _, value in found) and found[-1][1] == 2**23


def test_the_letters_of_a_figure_can_be_read_on_a_narrow_screen(tab, pages):
    """At 150 dots an inch the 9 points of a letter are 19 dots of the file; at half of that, 9 on the screen."""
    tab.open(pages["many arms"], 390, "light")
    shown, natural = tab.ask('(({width, naturalWidth}) => [width, naturalWidth])(document.querySelector("figure img"))')
    assert shown >= 0.45 * natural and shown > 390  # it scrolls within its box


def test_a_figure_stands_on_white_in_the_dark(tab, pages):
    tab.open(pages["many arms"], 1280, "dark")
    assert tab.ask('getComputedStyle(document.querySelector("figure img")).backgroundColor') == "rgb(255, 255, 255)"


def test_paper_has_every_seed_and_no_box_that_scrolls(tab, pages):
    tab.open(pages["many arms"], 800, "dark")
    assert not tab.ask('document.querySelector("details").open')
    pdf = base64.b64decode(tab.send("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF") and tab.ask('document.querySelector("details").open')
    tab.open(pages["many arms"], 800, "dark", media="print")
    assert tab.ask('getComputedStyle(document.querySelector(".scroll")).overflowX') == "visible"
    assert tab.ask('document.querySelector("figure img").getBoundingClientRect().right <= innerWidth')
    assert luminance(tab.ask("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")) < 0.1


# What has the focus, and whether it can be seen that it has.
FOCUS = """(() => {
  const at = document.activeElement, style = getComputedStyle(at);
  return [at.id || at.name || at.textContent || at.tagName,
          style.outlineStyle != "none" && parseFloat(style.outlineWidth) > 0];
})()"""
PLACE = 'document.querySelector("output").textContent'


@pytest.mark.parametrize("width", [1280, 390])
def test_items_are_walked_with_the_keyboard(tab, pages, width):
    tab.open(pages["probe"], width, "light")
    seen = []
    while "Next →" not in seen and len(seen) < 40:
        tab.press("Tab")
        name, visible = tab.ask(FOCUS)
        assert visible, name
        seen.append(name)
    assert seen[-6:] == ["browser", "coherent", "valid", "right", "← Previous", "Next →"]
    tab.press("ArrowLeft")
    assert tab.ask(PLACE) == "item 1 of 4"  # the end holds
    for key, place in [("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1), ("End", 4), ("j", 4), ("Home", 1),
                       ("j", 2)]:
        tab.press(key)
        assert tab.ask(PLACE) == f"item {place} of 4", key
        shown = tab.ask('[...document.querySelectorAll("article pre")].map(x => x.textContent)')
        assert shown[1] == HOSTILE[place - 1]
        assert max(tab.ask(OVERFLOW)) <= 0 and tab.ask(FOCUS)[0] == "Next →"
    tab.ask('document.querySelector("select").focus()')
    tab.press("n")  # "no"
    tab.press("j")  # in a filter keys choose among its values alone
    assert tab.ask('document.querySelector("select").value') == "no" and tab.ask(PLACE) == "item 1 of 3"
    assert tab.ask('document.querySelector("article b").textContent') == "✗ not coherent"
    assert not tab.errors and all(url.startswith(("data:", "file:")) for url in tab.requests)


def test_a_step_says_its_verdict_in_words_and_in_color(tab, pages):
    tab.open(pages["probe"], 390, "dark")
    tab.ask('document.getElementById("browser").focus()')
    tab.press("j")
    found = tab.ask("""[...document.querySelectorAll("article li")].map(x => [x.textContent.trim(),
        getComputedStyle(x.querySelector("b")).color])""")
    assert [text for text, _ in found] == ["+ 4 7 ✓ sound", "* 2 15 ✗ calc: a op b is not what the step says",
                                           "- 5 10 ✓ sound"]
    assert found[0][1] == found[2][1] != found[1][1]
