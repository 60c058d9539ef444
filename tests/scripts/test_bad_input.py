"""What a user can get wrong: one line that begins with "error:", exit code 1, no traceback, nothing lost."""

import concurrent.futures
import hashlib
import pathlib
import re
import shutil

import pytest

from rlvr_jax.runs import checkpoint

from fixtures import TRAIN_FLAGS, read_jsonl, run

FLAGS = (*TRAIN_FLAGS, "--num_steps=6", "--eval_every=0")
GO = ("--model={work}/base", *FLAGS, "--run_dir={work}/new")
NEW = "--run_dir={work}/new"

# name -> (script, flags, what the error must say)
CASES = {
    "unknown flag": ("train", ["--bogus=1"], "bogus"),
    "unknown value": ("train", ["--resume=perhaps"], "--resume=perhaps: value should be one of <never|auto|must>"),
    "missing flag file": ("train", ["--flagfile={work}/nowhere.flags"], "error: Unable to open flagfile"),
    "argument without a flag": ("evaluate", ["runs/base"], "'runs/base'; flags are written --name=value"),
    "style shares, three": ("pretrain", [NEW, "--style_shares=1,1,1"], "--style_shares needs 4"),
    "family not pre-trained on": ("evaluate", ["--model={work}/base", "--out={work}/new", "--problems=boolean"],
                                  "pre-train a base model on them, scripts.pretrain --task_shares=boolean"),
    "odd batch": ("pretrain", [NEW, "--batch_size=31", "--grad_accumulation=2"], "--batch_size = 31 rows do not divide"),
    "no model": ("evaluate", ["--out={work}/new"], "--model is required"),
    "no out": ("evaluate", ["--model={work}/base"], "--out is required"),
    "nothing to continue": ("train", [*GO, "--resume=must"], "--resume=must, but {work}/new"),
    "no run_dir": ("train", ["--model={work}/base", *FLAGS], "--run_dir is required"),
    "no prompt": ("sample", ["--model={work}/base"], "--prompt is required"),
    "folder without a checkpoint": ("sample", ["--model={work}/empty", "--prompt=x"], "{work}/empty has no checkpoint"),
    "missing step": ("sample", ["--model={work}/base@7", "--prompt=x"], "no checkpoint of step 7; it has 100, 200"),
    "all of a family": ("train", [*GO, "--eval_size=0"], "--eval_size=0 is all of a file, and problems of arithmetic "
                        "are drawn: give their number, or --heldout=none to measure nothing"),
    "all of a family, before there is a model": ("pretrain", [NEW, "--eval_size=0"], "give 1 or more"),
    "folder without config.json": ("sample", ["--model={work}/weights", "--prompt=x"],
                                   "--model={work}/weights: a Hugging Face folder without its config.json"),
    "full disk": ("sample", ["--model={work}/base", "--prompt=coins", "--max_new_tokens=5", "--out=/dev/full"],
                  "/dev/full: No space left"),
    "step that is no number": ("sample", ["--model={work}/base@last", "--prompt=x"], "{work}/base@last"),
    "empty prompt": ("sample", ["--model={work}/base", "--prompt= ", "--max_new_tokens=5"],
                     "a prompt has 0 tokens: ' '; give the model words"),
    "minibatches of what is learnt from": ("train", [*GO, "--update_group_size=1", "--num_minibatches=4"],
                                           "--num_prompts x --update_group_size = 2"),
    "group that does not divide": ("train", [*GO, "--update_group_size=3"],
                                   "--group_size=4 is not a multiple of --update_group_size=3"),
    "example that is no number": ("train", [*GO, "--example=-1"], "--example=-1"),
    "line break in a flag": ("train", [*GO, "--instruction=a\nb"], "--instruction holds a line break"),
    "run_dir is a file": ("train", ["--model={work}/base", *FLAGS, "--run_dir={work}/text.jsonl"],
                          "--run_dir={work}/text.jsonl is a file: name a directory")}


@pytest.fixture(scope="module")
def work(tmp_path_factory, base) -> pathlib.Path:
    """A folder of good and bad inputs."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(base, work / "base")
    for name in ("empty", "weights"):
        (work / name).mkdir()
    (work / "weights" / "model.safetensors").touch()
    (work / "text.jsonl").write_text("What is 1 + 1?\n")
    return work


def contents(folder: pathlib.Path) -> dict:
    """The hash of each file in a folder, except the locks, which name their last holder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file() and path.name != "lock.txt"}


def test_every_mistake_is_one_line(work, compiled):
    def attempt(name):
        script, given, says = CASES[name]
        new = f"new{list(CASES).index(name)}"  # two cases run at a time, each in its own run directory
        result = run(script, *(flag.replace("{work}/new", f"{work}/{new}").replace("{work}", str(work))
                               for flag in given), compiled=compiled)
        wanted = says.replace("{work}", str(work))
        right = (result.code == 1 and len(result.errors) == 1 and wanted in result.errors[0]
                 and "Traceback" not in result.err and result.err.splitlines()[-1] == result.errors[0])
        return None if right else f"--- {name}: exit code {result.code}, wanted {wanted!r}\n{result.err[-3000:]}"

    before = contents(work)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        wrong = [report for report in pool.map(attempt, CASES) if report]
    assert not wrong, "\n".join(wrong)
    after = contents(work)
    assert {name: after.get(name) for name in before} == before
    # A run that was refused late has made its folder, but no step, and nothing that would stop a later run.
    logs = re.compile(r"new\d+/(flags.txt|origin.json|code.diff|metrics.jsonl|rollouts.jsonl|heldout.jsonl)")
    assert not [name for name in after.keys() - before.keys() if not logs.fullmatch(name)]


def test_traceback_shows_where(work, compiled):
    result = run("sample", f"--model={work / 'nowhere'}", "--prompt=x", "--traceback", compiled=compiled)
    assert result.code == 1 and "Traceback" in result.err and "load_model" in result.err


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path, base, compiled):
    """No file may grow beyond the log plus `spare` half kilobytes, so the next row or a checkpoint does not fit."""
    run_dir = tmp_path / "run"

    def train(*flags, **options):
        return run("train", *FLAGS, f"--model={base}", f"--run_dir={run_dir}", "--save_every=2", "--log_rollouts=1",
                   *flags, compiled=compiled, **options)

    train("--num_steps=3", expect=0)
    assert checkpoint.steps(run_dir) == [2, 3]
    newest = contents(run_dir / "checkpoints" / "3")
    for spare, says in ((0, "metrics.jsonl: File too large"), (10, "cannot write a checkpoint in")):
        blocks = (run_dir / "metrics.jsonl").stat().st_size // 512 + spare
        result = train(prefix=("sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh"))
        assert result.code == 1 and "Traceback" not in result.err, result.err
        line, = result.errors
        assert says in line and str(run_dir) in line
        assert max(checkpoint.steps(run_dir)) == 3 and contents(run_dir / "checkpoints" / "3") == newest
    assert "already" not in train(expect=0).out  # now there is room
    assert [row["step"] for row in read_jsonl(run_dir / "metrics.jsonl")] == list(range(7))
