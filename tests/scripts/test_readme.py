"""The documents: every command is run as it is written, on a tiny model, or named here with what it lacks; so are the
recipes; figures are those of `results/`, links lead somewhere, and the maps have every file."""

import ast
import contextlib
import importlib
import inspect
import json
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
from unittest import mock

import pytest

from rlvr_jax import adapters, grpo, objectives
from rlvr_jax.config import Config
from rlvr_jax.lab.studies import study
from rlvr_jax.lab.studies.commands import commands as study_commands
from rlvr_jax.rewards import rows as rewards
from rlvr_jax.tasks import families
from rlvr_jax.training import pretrain
from scripts import cli

from fixtures import ROOT, SCRIPTS, defined, environment, record_of, released, write_jsonl, write_parquet

# What the commands need and the test cannot have: (pattern of the command, reason). Their flags are read all the same.
NOT_HERE = [
    (r"\bpip install\b|^hf download|^make (demo|test|parity|small|chips)|python[\d.]* -m venv", "installs packages from the network"),
    (r"activate", "the suite runs in an environment already"),
    (r"--run_dir=runs/gpu", "needs a GPU"), (r"--run_dir=runs/tpu", "needs a TPU"),
    (r"--coordinator_address=", "needs several hosts; tests/test_distributed.py has two processes"),
    (r"(--run_dir|--model)=runs/(pi1|evening|qwen)\b",
     "needs published weights; tests/scripts/test_paper_command.py trains on random ones"),
    (r"scripts\.hybrid", "needs a model that was trained for more than a step; tests/lab/elicit/test_hybrid.py has one"),
    (r"--model=runs/wager |--fit_on",
     "needs a model that states confidences; tests/lab/probes/test_probes.py has its rows"),
    (r"^python mine\.py", "has the README's recipe, which a test of its own runs"),
    (r"scripts\.study", "trains three bases from scratch, which takes an hour"),
    (r"--chip=", "needs the compilers of chips; tests/targets has them"),
    (r"scripts\.bench", "times shapes of 135 M parameters; tests/bench/test_bench.py has small ones"),
    (r"scripts\.report\s+--all", "draws all figures; tests/lab/studies/test_findings.py compares what it writes")]
TINY = ["--num_layers=1", "--d_model=16", "--num_heads=2", "--d_ff=32", "--batch_size=16"]
STEP = ["--num_steps=1", "--eval_size=8", "--noremat"]
# A base of whole words in the place of a language model, which knows no instruction.
WORDS = ["--model=checkpoints/tiny_base", "--prompt_style=plain", "--instruction=", "--max_new_tokens=8", "--group_size=4"]
# (pattern of the command, flags that make it small enough to run here); the first pattern found holds.
HERE = [
    (r"scripts\.plant", ["--times=1", "--num_problems=2"]), (r"scripts\.pretrain", [*TINY, *STEP]),
    (r"configs/tiny\.flags", [*STEP, "--example=0", "--heldout=none"]),  # auto needs a base that solves something
    (r"smollm2\.flags.*--question", [*STEP, *WORDS, "--question='coins 7 + 5 ='"]),
    (r"smollm2\.flags", [*STEP, *WORDS]), (r"--num_samples=64", ["--max_problems=2"]),
    (r"scripts\.(elicit|when)", ["--max_problems=2"]), (r"scripts\.diagnose", ["--max_problems=2", "--num_samples=2"]),
    (r"scripts\.critique", ["--num_attempts=4"]), (r"scripts\.finetune", [*STEP, "--batch_size=4"]),
    (r"--probe=memory", ["--example='coins 7 + 5 * 2 - 4 * 1 + 3 - 3 ='", "--max_problems=2"]),  # 0 was not chosen
    (r"--probe=contamination", ["--max_new_tokens=8"]),
    (r"scripts\.(report|evaluate|sample|export|select_example|grade|compile|readout|probe)", [])]
INDEX = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "README.md").read_text("utf-8"))  # in the order of reading
PAGES = ["README.md", "docs/README.md", *(f"docs/{name}" for name in INDEX), "BUILD.md"]
TEXT = {name: (ROOT / name).read_text("utf-8") for name in [*PAGES, "CONTRIBUTING.md", "results/README.md"]}
README = TEXT["README.md"]


def blocks(text: str, language: str = "") -> list[str]:
    """The code blocks of a document that name this language, or none."""
    return [body for name, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if name == language]


def commands(text: str) -> list[str]:
    """The lines of the blocks without a language, continued lines joined; comments and ! are left out."""
    lines = "".join(blocks(text)).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+# .*", "", line).strip().lstrip("!") for line in lines) if line]


COMMANDS = list(dict.fromkeys(command for name in PAGES for command in commands(TEXT[name])))


def reason(command: str) -> str:
    """Why a command cannot run here; empty if it can."""
    return next((why for pattern, why in NOT_HERE if re.search(pattern, command)), "")


def prepared(command: str) -> tuple:
    """(main, configuration record) of `python -m scripts.X ...`, its flags read as the script reads them."""
    script, given = re.search(r"python -m scripts\.(\w+)(.*)", command).groups()
    with defined(record_of(script)) as known:
        assert not known([script, *shlex.split(given)])[1:]
        return importlib.import_module(f"scripts.{script}").main, cli.parse_config(record_of(script))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with the flag files, and tiny files under the names that the commands give."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "DIR").symlink_to("checkpoints/tiny_base")
    for name in ("FILE", "math500", "aime24"):
        write_jsonl(tmp_path / f"{name}.jsonl", {"question": "coins 7 + 5 - 3 =", "answer": 9})
    (tmp_path / "acc_step_500.json").write_text('{"3": [0, 1], "8": [1, 1]}')
    return tmp_path


# ----- commands

def test_every_command_is_run_or_has_a_reason_not_to_be():
    assert len(COMMANDS) > 20
    unknown = [command for command in COMMANDS if not reason(command)
               and not any(re.search(pattern, command) for pattern, _ in HERE)]
    assert not unknown, "add these to HERE, or to NOT_HERE with a reason"
    assert all(any(re.search(pattern, command) for command in COMMANDS) for pattern, _ in [*HERE, *NOT_HERE])


def test_every_script_has_a_command():
    shown = set(re.findall(r"python -m scripts\.(\w+)", "\n".join(COMMANDS)))
    assert shown == set(SCRIPTS)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "-m scripts." in command and reason(command)])
def test_a_command_that_cannot_run_here_has_flags_that_exist(command, folder):
    prepared(command.replace("--flagfile=... ", ""))


def test_the_commands_run_in_their_order(folder, capsys):
    for package in ("matplotlib", "math_verify"):
        pytest.importorskip(package, reason="pip install -e '.[plot,real]'")
    write_parquet(folder / "dsr_sub.parquet", released("a", "1", index=3), released("b", "2", index=8))
    done = set()
    for command in COMMANDS:
        general = re.sub(r"runs/\w+", "runs/NAME", re.sub(" +", " ", command))  # BUILD repeats some with other names
        if not reason(command) and general not in done:
            print(command)  # a failure shows which it was
            done.add(general)
            small = next(small for pattern, small in HERE if re.search(pattern, command))
            main, config = prepared(" ".join([command, *small]))
            main(config)
    printed = capsys.readouterr().out
    assert pathlib.Path("runs/demo/report.html").is_file() and "runs/demo/summary.json" in printed
    assert json.loads(pathlib.Path("runs/demo/passk/summary.json").read_text())["num_samples"] == 64
    assert len(re.findall(r"^--- \d of 4", printed, re.M)) == 4 and "3   0.25000" in printed
    assert pathlib.Path("runs/exported/config.json").is_file()
    assert "of 9), graded by" in printed and "| H100 | 1 | " in printed  # one sample of math500's problem, 8 of aime24's


# ----- the README, its links and the loop

def test_the_readme_is_short_and_begins_with_a_command():
    lines = README.splitlines()
    assert len(lines) <= 150 and lines.index("```") + 2 <= 25


@pytest.mark.parametrize("name", TEXT)
def test_links_lead_somewhere(name):
    """A relative link is a file of the repository, and what stands behind # a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[name]):
        path, _, heading = target.partition("#")
        if not re.match(r"\w+:", target):
            file = (ROOT / name).parent / path if path else ROOT / name
            assert file.is_file(), target
            if heading:
                titles = re.findall(r'^(?:#+ |<a id=")(.*?)(?:"></a>)?$', file.read_text("utf-8"), re.M)
                assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], target


def without_docstring(function) -> str:
    """The source of a function, its docstring left out."""
    source = textwrap.dedent(inspect.getsource(function))
    first, lines = ast.parse(source).body[0].body[0], source.splitlines(keepends=True)
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        del lines[first.lineno - 1 : first.end_lineno]
    return "".join(lines)


def test_the_readme_has_the_loop_as_it_is():
    assert without_docstring(grpo.grpo_step) in blocks(README, "python")


# ----- recipes

SMALL = {"num_steps": 1, "eval_size": 8, "remat": False}
TABLES = {"reward": rewards.REWARDS, "objective": objectives.OBJECTIVES, "family": families.FAMILIES,
          "adapter": adapters.ADAPTERS}
RECIPES = {name: [code for code in blocks(TEXT[name], "python") if "import" in code]
           for name in ("README.md", "docs/extending.md")}


def test_the_program_of_the_readme_trains_a_model_on_a_file_with_its_own_reward(folder, compiled):
    (folder / "mine.py").write_text(RECIPES["README.md"][0])
    command, = (command for command in commands(README) if command.startswith("python mine.py"))
    ended = subprocess.run([sys.executable, *shlex.split(command)[1:], *STEP, *WORDS[1:]], cwd=folder, text=True,
                           capture_output=True, env=environment(compiled) | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stderr
    row = json.loads((folder / "runs/mine/rollouts.jsonl").read_text().splitlines()[0])
    assert {"reward/short", "reward/format"} <= row.keys()
    assert json.loads((folder / "runs/mine/summary.json").read_text())["steps"] == 1


def test_the_recipes_run_as_shown_and_say_how_they_ended(folder, monkeypatch, capsys, caplog):
    runs, added = ["short", "above_mean", "mod7", "attention"], list(TABLES)
    bases = {"num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 32, "batch_size": 16} | SMALL
    trains = SMALL | {"example": "0", "heldout": "none", "num_prompts": 2, "group_size": 4}
    from_flags = Config.from_flags.__func__
    monkeypatch.setattr(Config, "from_flags", classmethod(lambda config_class, **given: from_flags(
        config_class, **given | (bases if config_class is pretrain.PretrainConfig else trains))))
    names = {}
    with contextlib.ExitStack() as restored:
        sizes = {key: len(restored.enter_context(mock.patch.dict(table))) for key, table in TABLES.items()}
        for recipe in RECIPES["docs/extending.md"]:
            exec(recipe, names)
        shown = [line for line in capsys.readouterr().out.splitlines() if line]
        assert len(shown) == len(runs) and all(line.endswith("}") for line in shown)
        assert not [record.message for record in caplog.records if record.levelname != "INFO"]
        assert [key for key, table in TABLES.items() if len(table) == sizes[key] + 1] == added
    for run in runs:
        assert json.loads((folder / "runs" / run / "summary.json").read_text())["steps"] == 1


def test_the_recipes_are_short():
    for recipe in [*RECIPES["README.md"], *RECIPES["docs/extending.md"], *blocks(TEXT["docs/studies.md"], "toml")]:
        assert len(recipe.splitlines()) <= 15, recipe
    assert [len(codes) for codes in RECIPES.values()] == [1, 5]


def test_the_study_of_the_recipes_is_one(folder):
    text, = blocks(TEXT["docs/studies.md"], "toml")
    (folder / "random.toml").write_text(text)
    _, found = study.load("random.toml")
    for arm, reward in (("correct", "correct"), ("random", "random")):
        given = study_commands(found, {"arm": arm, "seed": "0", "base": "0", "work": "runs/random"}, False, "bank")
        base, = re.findall(r"--run_dir=(\S+)", given[0])
        assert base.startswith("bank/pretrain-")
        assert re.findall(r"--(?:run_dir|model)=(\S+)", given[1]) == [base, f"runs/random/{arm}0"]
        assert ("--reward=random" in given[1]) == (reward == "random")
        for line in given:
            prepared(f"python -m scripts.{line}")


# ----- figures

NUMBER = r"(?<![\d.])[-+]?\d?\.\d{3}(?!\d)"
TRIPLE = re.compile(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]")  # a mean with its interval


def measures(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())["measures"]


def of_record(name: str) -> tuple[set, set]:
    """(all numbers that a reader may quote from a study's record, its means with their intervals), to three places."""
    path = ROOT / "results" / f"{name}.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    found = [one for of in record.get("measures", {}).values() for measure in of.values()
             for one in (measure, measure.get("difference")) if one]
    found += [*record.get("rules", ()), *record.get("succeeded", {}).values()] if "study" in record else []
    numbers = [x for one in found for x in (one.get("mean"), one.get("median"), *(one.get("interval") or ()),
                                            *one.get("seeds", ())) if x is not None]
    return {round(x, 3) for x in numbers}, {tuple(round(x, 3) for x in (one["mean"], *one["interval"]))
                                            for one in found if one.get("interval")}


def test_the_sizes_of_the_readme_are_those_of_the_records():
    """What the tiny run reached, and hours and memory of runs compiled for chips: seconds a step, 40 % and full."""
    base, end = (measures("demo")["demo"][f"{when}, greedy"] for when in ("base", "end"))
    text, shown = " ".join(README.split()), "{:.3f} to {:.3f} [{:.3f}, {:.3f}]".format(
        base["mean"], end["mean"], *end["interval"])
    assert f"{shown}, mean of ten such runs |" in text and f"from {shown} (ten seeds, this base model)" in text
    assert f"seed happens to be the best of them, {end['seeds'][0]:.3f};" in text and end["seeds"][0] == max(end["seeds"])
    chips = {re.search(r"chips/(\w[\w.-]*)\.flags", name)[1]: one["verdict"]
             for name, one in json.loads((ROOT / "results" / "chips.json").read_text()).items() if "/chips/" in name}
    rows = re.findall(r"chips/([\w.-]+)\.flags\) \|[^|]*\| (\d+) steps: at least ([\d.]+) / ([\d.]+) (hours|days) \| ([\d.]+) GB", README)
    assert len(rows) == 4
    for name, steps, least, most, unit, size in rows:
        largest, full, average = map(float, re.search(
            r"fits: (\S+) of .* at best (\S+) s a step, (\S+) at 40 %", chips[name]).groups())
        times = [int(steps) * seconds / {"hours": 3600, "days": 86400}[unit] for seconds in (average, full)]
        assert [f"{x:.1f}" for x in (*times, largest)] == [least, most, size], name


def not_on(text: str, pages: list[str]) -> list[str]:
    """The figures of a text, .000 in form, that stand on none of these pages of results/, nor in their records; a mean
    with an interval stands there as the two together."""
    there = "\n".join((ROOT / "results" / page).read_text("utf-8") for page in pages)
    found = [of_record(page.removesuffix(".md")) for page in pages]
    numbers = {float(x) for x in re.findall(NUMBER, there)}.union(*(numbers for numbers, _ in found))
    triples = {tuple(map(float, x)) for x in TRIPLE.findall(there)}.union(*(triples for _, triples in found))
    return [x for x in re.findall(NUMBER, text) if float(x) not in numbers] + [
        x[0] for x in TRIPLE.finditer(text) if tuple(map(float, x.groups())) not in triples]


@pytest.mark.parametrize("text", [
    *re.sub(r"<!-- findings.*?<!-- end of findings -->", "", TEXT["results/README.md"], flags=re.S).split("\n\n"),
    *re.search(r"^## Findings\n(.*?)^## ", README, re.M | re.S)[1].splitlines()], ids=lambda text: text[:30])
def test_every_figure_stands_on_a_page_that_its_paragraph_links(text):
    assert not not_on(" ".join(text.split()), re.findall(r"\]\((?:results/)?(\w+\.md)[#)]", text))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.flags")), ids=lambda path: path.stem)
def test_a_flag_file_says_what_it_reproduces_or_that_it_was_not_run(path):
    head = " ".join(line[1:].strip() for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    if "Not run here." not in head:
        assert all(f"{word}" in head for word in ("Reproduces: ", "Number (results/", "Hardware: ", "Time")), head
        assert re.search(r"Time: not measured\.|Time \(results/", head)
        assert not not_on(head, re.findall(r"results/(\w+\.md)", head)), head
        for name, shown in re.findall(r"Time \(results/(\w+)\.json\): ([\d, ]+) s in", head):
            runs = json.loads((ROOT / "results" / f"{name}.json").read_text())["summaries"]
            arm = re.search(r"the arm `([^`]+)`|$", head)[1] or "rl"
            assert shown == ", ".join(f"{sum(run['seconds'].values()):.0f}" for run in runs[arm].values())


def test_the_timings_are_those_of_the_page():
    page = (ROOT / "results" / "bench_cpu.md").read_text("utf-8")
    header, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| ")

    def ratio(what: str, peer: str) -> str:
        cells, = (cells for cells in rows if cells[0].startswith(what))
        return cells[header.index(f"{peer} / ours")]
    read = " ".join(TEXT["docs/large.md"].split())
    assert (f"a whole step is {ratio('a whole', 'trl')} times as fast as TRL's, sampling "
            f"{ratio('sampling 64', 'transformers')} times as fast as that of transformers, a gradient "
            f"{ratio('the same,', 'transformers')} times as fast where the prompt is shared, and "
            f"{ratio('gradient', 'transformers')} times as fast where nothing is shared") in read


def test_none_of_smollm2s_continuations_is_exact_as_it_says():
    page = (ROOT / "results" / "contamination_smollm2.md").read_text("utf-8")
    exact = dict(re.findall(r"^\| (\w+) \| ([^|]* of \d+) \| .*%", page, re.M))
    assert exact == dict.fromkeys(("gsm8k", "math500", "svamp"), "0.000 [0.000, 0.037] of 100")


# ----- maps

PACKAGE = ROOT / "rlvr_jax"
CORE = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def section(name: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(^## |\Z)", TEXT[name], re.M | re.S)[1]


def test_the_map_of_the_readme_names_every_folder():
    shown = set(re.findall(r"`(?:rlvr_jax/)?(\w+)/`", section("README.md", "Map")))
    there = {path.parent.name for path in PACKAGE.rglob("__init__.py")}
    assert shown == there | {"scripts", "configs", "checkpoints", "results", "docs"}


def test_the_readme_names_the_files_of_the_core_which_is_small():
    part = section("README.md", "Map")
    assert set(re.findall(r"`(\w+)`", part)) == CORE and len(CORE) == 13
    most, = re.findall(r"The thirteen files at the root of `rlvr_jax/`, together at most ([\d,]+) lines", part)
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in PACKAGE.glob("*.py"))
    assert lines <= int(most.replace(",", ""))
    shown, = re.findall(r"lines of Python, tests aside \(our core: [\d,]+\) \| ([\d,]+) \|", README)
    every = sum(len(path.read_text("utf-8").splitlines()) for name in ("rlvr_jax", "scripts")
                for path in (ROOT / name).rglob("*.py"))
    assert abs(every - int(shown.replace(",", ""))) < 0.02 * every


def test_the_index_of_the_docs_has_every_page():
    assert {"README.md", *INDEX} == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_map_in_docs_names_every_module():
    shown = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\|.*?\|(?: .*\|)?", TEXT["docs/map.md"], re.M)))
    there = [path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    assert set(shown) == set(there)
