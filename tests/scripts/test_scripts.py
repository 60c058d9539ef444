"""The commands that a user types: what they print and write; and the layers of the package below them."""

import ast
import hashlib
import json
import pathlib
import re
import subprocess
import sys

import pytest

from rlvr_jax.config import flags_of
from rlvr_jax.evaluation.benchmarks import EvaluateConfig
from rlvr_jax.pretrained import loading
from scripts import cli

from fixtures import BASE_FLAGS, ROOT, SCRIPTS, load_problems, read_jsonl, record_of, run, saved_arrays
from golden.cases import assert_same_params

MODULES = {".".join(path.relative_to(ROOT / "rlvr_jax").with_suffix("").parts): path
           for path in (ROOT / "rlvr_jax").rglob("*.py") if path.stem != "__init__"}
PROMPT = "coins 7 + 5 - 3 ="


# ----- evaluate

@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, base, compiled):
    """(what was printed, summary, rows) of 4 samples each of 10 problems."""
    out = tmp_path_factory.mktemp("evaluated") / "deep" / "er"
    printed = run("evaluate", f"--model={base}", f"--out={out}", "--num_ops=2", "--max_new_tokens=10",
                  "--num_samples=4", "--temperature=1", "--max_problems=10", "--rows_per_call=16", compiled=compiled, expect=0).out
    return printed, json.loads((out / "summary.json").read_text()), read_jsonl(out / "completions.jsonl")


def test_evaluate_writes_its_summary(evaluated):
    printed, summary, rows = evaluated
    assert set(summary) == {"n", "num_samples", "temperature", "accuracy", "accuracy_of_ended", "interval", "pass@k",
                            "maj@k", "intervals", "truncated", "timed_out", "num_tokens", "graded_by", "styles", "flags"}
    assert (summary["n"], summary["num_samples"], list(summary["pass@k"])) == (10, 4, ["1", "2", "4"])
    assert summary["accuracy"] == sum(row["correct"] for row in rows) / 40 == pytest.approx(summary["pass@k"]["1"])
    assert set(summary["flags"]) == EvaluateConfig().as_flags().keys()
    assert summary["flags"]["temperature"] == 1 and set(summary["styles"]) == {"careful", "sloppy", "guess", "ramble"}
    assert f"| arithmetic | 10 | avg@4, T=1 | {summary['accuracy']:.3f} [" in printed
    assert summary["graded_by"] in printed and printed.rstrip().endswith("/deep/er/summary.json")


def test_evaluate_keeps_every_completion(evaluated, base):
    rows = evaluated[2]
    assert [(row["problem"], row["sample"]) for row in rows] == [(i, j) for i in range(10) for j in range(4)]
    problems = load_problems("arithmetic", loading.load_model(str(base)).tokenizer, count=10, num_ops=2)
    for row in rows:
        assert set(row) == {"benchmark", "problem", "sample", "prompt", "answer", "completion", "extracted", "correct",
                            "timed_out", "graded_by", "truncated", "num_tokens"}
        assert (row["prompt"], row["answer"]) == (problems[row["problem"]].prompt, problems[row["problem"]].answer)
        words = row["completion"].split()
        assert row["correct"] == (words[-2:] == ["answer", row["answer"]])
        assert len(words) + (not row["truncated"]) <= row["num_tokens"] <= 10  # end-of-text and padding are not printed
    assert len({row["completion"] for row in rows if row["problem"] == 0}) > 1


# ----- sample

def test_sample_writes_rows_that_depend_on_the_seed(tmp_path, base, compiled):
    def rows(*flags):
        out = tmp_path / "rows.jsonl"
        printed = run("sample", f"--model={base}", f"--prompt={PROMPT}", "--num_samples=5", "--max_new_tokens=8",
                      f"--out={out}", *flags, compiled=compiled, expect=0).out
        return printed, read_jsonl(out)

    printed, first = rows()
    words = loading.load_model(str(base)).tokenizer
    assert printed.count("--- ") == 5 and "\x1b" not in printed
    for row in first:
        assert set(row) == {"prompt", "completion", "completion_ids", "sampler_logprobs", "stop_reason"}
        assert row["prompt"] == PROMPT and row["completion"] in printed
        assert row["completion"] == words.backend.decode(row["completion_ids"], skip_special_tokens=True)
        assert len(row["completion_ids"]) == len(row["sampler_logprobs"]) <= 8 and max(row["sampler_logprobs"]) < 0
        assert row["stop_reason"] == ("eos" if row["completion_ids"][-1] in words.eos_ids else "length")
    assert [row["completion"] for row in rows("--seed=1")[1]] != [row["completion"] for row in first]


def test_a_step_of_a_run_can_be_named(base):
    earlier, newest = loading.load_model(f"{base}@100"), loading.load_model(str(base))
    for loaded, step in ((earlier, 100), (newest, 200)):
        assert (loaded.params["embed"] == saved_arrays(base, step)["params/embed"]).all()
    assert (earlier.params["embed"] != newest.params["embed"]).any()


# ----- pretrain, export

def test_pretrain_writes_a_run_directory(base):
    rows, summary = read_jsonl(base / "metrics.jsonl"), json.loads((base / "summary.json").read_text())
    assert [row["step"] for row in rows] == list(range(1, 201)) and rows[-1]["train/loss"] < rows[0]["train/loss"] / 1.5
    assert set(summary) == {"base", "final", "train_accuracy", "saturation_step", "steps", "after_saturation",
                            "graded_by", "seconds", "trained"}
    assert summary["trained"] == sum(x.size for name, x in saved_arrays(base, 200).items() if name.startswith("params/"))
    assert summary["steps"] == 200 and summary["final"]["n"] == 16
    flags = (base / "flags.txt").read_text().splitlines()
    assert set(BASE_FLAGS) - set(flags) == {"--noremat", "--learning_rate=1e-2"}  # the same, as --remat=False and 0.01


def test_a_flag_file_runs_it_again(tmp_path, base, compiled):
    run("pretrain", f"--flagfile={base / 'flags.txt'}", "--num_steps=1", "--decay_steps=200",
        f"--run_dir={tmp_path / 'run'}", compiled=compiled, expect=0)
    again, first = (read_jsonl(path / "metrics.jsonl")[0]["train/loss"] for path in (tmp_path / "run", base))
    assert again == first


def test_the_export_of_a_run_is_the_same_model_with_a_card_of_the_sums_of_its_files_and_the_runs_flags(
        tmp_path, base, compiled):
    out = tmp_path / "hf"

    def export():
        assert run("export", f"--model={base}", f"--out={out}", compiled=compiled, expect=0).out.strip() == str(out)

    export()
    ours, theirs = loading.load_model(str(base)), loading.load_model(str(out))
    assert_same_params(theirs.params, ours.params)
    assert (theirs.config, theirs.tokenizer.to_json()) == (ours.config, ours.tokenizer.to_json())
    card, summary = (out / "README.md").read_text(), json.loads((base / "summary.json").read_text())
    assert f"| greedy | {summary['final']['greedy']:.3f} |" in card and "scripts.pretrain" in card
    sums = dict(re.findall(r"^\| (\S+) \| ([0-9a-f]{64}) \|$", card, re.M))
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()
                    if path.name != "README.md"} and "model.safetensors" in sums
    assert (out / "flags.txt").read_bytes() == (base / "flags.txt").read_bytes()
    (out / ".git").mkdir()
    (out / "model.safetensors").write_bytes(b"of an earlier export")
    export()
    assert (out / "README.md").read_text() == card  # its own card is made again, folders are left out
    (out / "README.md").write_text("mine")
    export()
    assert (out / "README.md").read_text() == "mine"


# ----- the command line

@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_the_flags_of_the_script_alone(script, compiled):
    """Every flag with its default and a description, under its configuration's docstring; none of absl's own. --help has
    the first ones alone, on a screen, where there are many."""
    printed, first = (run(script, how, compiled=compiled, expect=0).out for how in ("--helpfull", "--help"))
    assert first == printed or len(first.splitlines()) <= 42 and f"scripts.{script} --helpfull" in first
    source = (ROOT / "scripts" / f"{script}.py").read_text()
    listed = re.findall(r"^  --(\w+)(?:=(.*?))?:((?: .*)?(?:\n      .*)*)$", printed, re.M)
    values = record_of(script)().as_flags()
    assert {name for name, *_ in listed} == values.keys() | {"traceback", "flagfile"}
    assert all(len(text) > 8 for *_, text in listed)
    for name, default, _ in listed:
        value = values.get(name)
        assert isinstance(value, (bool, tuple)) or default == ("" if value is None else str(value)) or name == "traceback"
    assert " ".join(record_of(script).__doc__.split()) in " ".join(printed.split())
    assert ast.get_docstring(ast.parse(source)).splitlines()[0] in printed


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_names_functions_that_exist(script):
    names = re.findall(r'"(rlvr_jax\.[\w.]+)"', (ROOT / "scripts" / f"{script}.py").read_text())
    assert names and all(callable(cli.import_name(name)) for name in names)


def test_importing_a_script_runs_nothing_and_loads_no_jax():
    code = f"import sys, {', '.join(f'scripts.{name}' for name in SCRIPTS)}; sys.exit('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_setting_is_there_once_and_is_read(script):
    """As an attribute of its configuration; the command line reads flags of the machine by name."""
    names = [leaf.name for leaf in flags_of(record_of(script))]
    assert len(set(names)) == len(names)
    text = "\n".join(path.read_text() for folder in ("rlvr_jax", "scripts") for path in (ROOT / folder).rglob("*.py"))
    assert not [name for name in names if not re.search(rf'\.{name}\b|(values\[|values\.get\(|\(|, )"{name}"', text)]


# ----- layers

# The core, the files at the root, knows only arrays. The library's folders, the lowest layer first, handle text, files
# and runs; the lab experiments with both. Modules import only from their own or lower layers, without cycles.
CORE = {"errors", "config", "records", "ops", "model", "adapters", "parallel", "sampler", "logprobs", "objectives",
        "batches", "learner", "grpo"}
LAYERS = [CORE, {"grading", "runs"}, {"pretrained"}, {"tasks"}, {"evaluation", "rewards"}, {"training"}, {"report"},
          {"bench", "chips", "lab"}]
LAYER = {folder: number for number, folders in enumerate(LAYERS) for folder in folders}
PUBLIC = [name for name in MODULES if LAYER[name.split(".")[0]] < LAYER["report"]]  # core and library


def imported(path: pathlib.Path) -> set[str]:
    """Every name that a file imports, at the top or inside a function, whether a module or a name in one."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are by their whole name"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def imports(path: pathlib.Path) -> set[str]:
    """The modules of the package, "runs.files", that a file imports."""
    return {name.removeprefix("rlvr_jax.") for name in imported(path) if name.startswith("rlvr_jax.")} & MODULES.keys()


GRAPH = {name: imports(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downward(name):
    mine = LAYER[name.split(".")[0]]
    assert not [other for other in GRAPH[name] if LAYER[other.split(".")[0]] > mine]
    assert "scripts" not in {other.split(".")[0] for other in imported(MODULES[name])}


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_needs_jax_and_numpy_alone(name):
    """No flags, files, text or progress bars: all it needs is tokens and a function that scores them."""
    packages = {other.split(".")[0] for other in imported(MODULES[name])}
    assert packages <= {"rlvr_jax", "jax", "flax", "optax", "numpy"} | sys.stdlib_module_names


def test_the_graph_sees_imports(tmp_path):
    assert GRAPH["training.train"] >= {"grpo", "rewards.score", "runs.run"} and GRAPH["grpo"] >= {"sampler", "learner"}
    assert "runs.processes" in imports(ROOT / "scripts" / "cli.py")  # inside a function
    (tmp_path / "m.py").write_text("def f():\n    from absl import flags\n    import tqdm.auto\n")
    assert imported(tmp_path / "m.py") == {"absl", "absl.flags", "tqdm.auto"}


def test_imports_have_no_cycle():
    left = dict(GRAPH)
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left


def test_every_folder_says_in_one_sentence_what_is_in_it():
    for path in (ROOT / "rlvr_jax").rglob("*/__init__.py"):
        module = ast.parse(path.read_text())
        assert len(module.body) == 1 and ast.get_docstring(module).count(".") == 1, path


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_longer_than_a_screen_and_no_file_than_340_lines(name):
    text = MODULES[name].read_text("utf-8")
    assert len(text.splitlines()) <= 340
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name


def arguments(node: ast.FunctionDef, method: bool) -> int:
    """The number of a function's arguments; *args and **kwargs count as one each, self and cls not at all."""
    given = node.args
    static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)
    return (len(given.posonlyargs + given.args + given.kwonlyargs) + bool(given.vararg) + bool(given.kwarg)
            - (method and not static))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_takes_six_arguments_at_most(name):
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    functions = [(node, False) for node in tree.body] + [(node, True) for each in classes for node in each.body]
    found = {node.name: arguments(node, method) for node, method in functions
             if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__")}
    assert not {function: count for function, count in found.items() if count > 6}


def test_only_parallel_knows_about_devices():
    words = ("pmap(", "multihost_utils", "jax.distributed", "jax.process_")
    found = {(name, word) for name, path in MODULES.items() for word in words if word in path.read_text()}
    assert {name for name, _ in found} <= {"parallel", "runs.processes"}


# ----- the tests

def test_no_test_module_is_imported():
    """Test modules share tests/fixtures.py instead, so that each can change or move alone."""
    assert not [(path.name, name) for path in (ROOT / "tests").rglob("*.py") for name in imported(path)
                if any(part.startswith("test_") for part in name.split("."))]
