"""What a user can get wrong: one line that begins with "error:", exit code 1, no traceback, nothing lost."""

import concurrent.futures
import hashlib
import json
import pathlib
import re
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlvr_jax.runs import checkpoint

from fixtures import TRAIN_FLAGS, read_jsonl, run

FLAGS = (*TRAIN_FLAGS, "--num_steps=6", "--eval_every=0")
GO = ("--model={work}/base", *FLAGS, "--run_dir={work}/new")
MEASURE = ("--model={work}/base", "--out={work}/new")
NEW = "--run_dir={work}/new"

# name -> (script, flags, what the error must say)
CASES = {
    "unknown flag": ("train", ["--bogus=1"], "bogus"),
    "unknown value": ("train", ["--resume=perhaps"], "--resume=perhaps: value should be one of <never|auto|must>"),
    "not a number": ("train", ["--num_steps=many"], "--num_steps=many"),
    "missing flag file": ("train", ["--flagfile={work}/nowhere.flags"], "error: Unable to open flagfile"),
    "argument without a flag": ("evaluate", ["runs/base"], "'runs/base'; flags are written --name=value"),
    "style shares, words": ("pretrain", [NEW, "--style_shares=a,b,c,d"], "--style_shares=a,b,c,d"),
    "style shares, three": ("pretrain", [NEW, "--style_shares=1,1,1"], "--style_shares needs 4"),
    "style shares, negative": ("pretrain", [NEW, "--style_shares=1,1,-1,1"],
                              "--style_shares=1,1,-1,1: not finite numbers > 0"),
    "family not pre-trained on": ("evaluate", [*MEASURE, "--problems=boolean", "--num_ops=2", "--max_new_tokens=9"],
                                  "pre-train a base model on them, scripts.pretrain --task_shares=boolean"),
    "directory of a run": ("evaluate", ["--model={work}/base", "--out={work}/base", "--num_ops=2", "--max_new_tokens=9"],
                           "scripts.evaluate needs a directory of its own: choose another --out"),
    "odd batch": ("pretrain", [NEW, "--batch_size=31", "--grad_accumulation=2"], "--batch_size = 31 rows do not divide"),
    "no model": ("evaluate", ["--out={work}/new"], "--model is required"),
    "no out": ("evaluate", ["--model={work}/base"], "--out is required"),
    "nothing to continue": ("train", [*GO, "--resume=must"], "--resume=must, but {work}/new"),
    "no run_dir": ("train", ["--model={work}/base", *FLAGS], "--run_dir is required"),
    "report of no run": ("report", ["--run_dir={work}/nowhere"], "{work}/nowhere"),
    "no prompt": ("sample", ["--model={work}/base"], "--prompt is required"),
    "missing model": ("evaluate", ["--model={work}/nowhere", "--out={work}/new"], "--model={work}/nowhere"),
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
    "corrupt safetensors": ("sample", ["--model={work}/garbled", "--prompt=x"], "{work}/garbled/model.safetensors"),
    "corrupt config": ("sample", ["--model={work}/noconfig", "--prompt=x"], "{work}/noconfig/config.json"),
    "not a GGUF": ("sample", ["--model={work}/fake.gguf", "--prompt=x"], "fake.gguf"),
    "missing problems": ("evaluate", [*MEASURE, "--problems={work}/no.jsonl"], "{work}/no.jsonl"),
    "problems without answers": ("train", [*GO, "--problems={work}/noanswer.jsonl"],
                                 "{work}/noanswer.jsonl, line 2: needs"),
    "long prompt": ("sample", ["--model={work}/base", "--prompt=" + "coins " * 99, "--max_new_tokens=5"], "a prompt has 99 tokens"),
    "question that the model lacks": ("train", [*GO, "--example=auto", "--question=koins 1 + 1 =", "--answer=2"],
                                      "the model does not know 'koins'"),
    "empty prompt": ("sample", ["--model={work}/base", "--prompt= ", "--max_new_tokens=5"],
                     "a prompt has 0 tokens: ' '; give the model words"),
    "empty question": ("train", [*GO, "--example=auto", "--question= ", "--answer=2"], "--question and --answer are"),
    "no room for completions": ("train", [*GO, "--max_new_tokens=500"], "--max_new_tokens=500"),
    "batch that does not divide": ("train", [*GO, "--grad_accumulation=3"], "--num_prompts x --group_size = 8"),
    "minibatches of what is learnt from": ("train", [*GO, "--update_group_size=1", "--num_minibatches=4"],
                                           "--num_prompts x --update_group_size = 2"),
    "group that does not divide": ("train", [*GO, "--update_group_size=3"],
                                   "--group_size=4 is not a multiple of --update_group_size=3"),
    "example that is no number": ("train", [*GO, "--example=-1"], "--example=-1"),
    "question without an answer": ("train", [*GO, "--question=1 + 1"], "--question and --answer are one problem"),
    "question beside problems": ("train", [*GO, "--question=1", "--answer=1", "--problems={work}/text.jsonl"],
                                 "leave out --problems={work}/text.jsonl"),
    "greedy training": ("train", [*GO, "--temperature=0"], "--temperature=0"),
    "line break in a flag": ("train", [*GO, "--instruction=a\nb"], "--instruction holds a line break"),
    "run_dir is a file": ("train", ["--model={work}/base", *FLAGS, "--run_dir={work}/text.jsonl"],
                          "--run_dir={work}/text.jsonl is a file: name a directory"),
    "out is a file": ("evaluate", [*MEASURE[:1], "--out={work}/text.jsonl", "--num_ops=2", "--max_new_tokens=9"],
                      "--out={work}/text.jsonl is a file: name a directory"),
    "reward without its weight": ("train", [*GO, "--reward=format:"], "--reward=format:: 'format:' is none of")}


@pytest.fixture(scope="module")
def work(tmp_path_factory, base, compiled) -> pathlib.Path:
    """A folder of good and bad inputs."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(base, work / "base")
    (work / "empty").mkdir()
    run("export", f"--model={base}", f"--out={work / 'good'}", compiled=compiled, expect=0)
    for name in ("garbled", "noconfig", "weights"):
        shutil.copytree(work / "good", work / name)
    (work / "weights" / "config.json").unlink()
    weights = (work / "good" / "model.safetensors").read_bytes()
    (work / "garbled" / "model.safetensors").write_bytes(bytes(byte ^ 0x55 for byte in weights))
    (work / "noconfig" / "config.json").write_text("{")
    (work / "fake.gguf").write_bytes(b"GGUF, not really")
    (work / "noanswer.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n{"question": "1 + 1"}\n')
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
    logs = re.compile(r"new\d+/(flags.txt|origin.json|metrics.jsonl|rollouts.jsonl|heldout.jsonl)")
    assert not [name for name in after.keys() - before.keys() if not logs.fullmatch(name)]


def test_traceback_shows_where(work, compiled):
    result = run("sample", f"--model={work / 'nowhere'}", "--prompt=x", "--traceback", compiled=compiled)
    assert result.code == 1 and "Traceback" in result.err and "load_model" in result.err


@pytest.fixture
def begun(tmp_path, base, compiled):
    """`begun(*flags)` runs scripts.train in tmp_path/run, which holds the checkpoints of steps 2 and 3 already."""
    def train(*flags, **options):
        return run("train", *FLAGS, f"--model={base}", f"--run_dir={tmp_path / 'run'}", "--save_every=2",
                   "--log_rollouts=1", *flags, compiled=compiled, **options)
    train("--num_steps=3", expect=0)
    assert checkpoint.steps(tmp_path / "run") == [2, 3]
    return train


def check_one_line(result, *says):
    assert result.code == 1 and "Traceback" not in result.err and len(result.errors) == 1, result.err
    for text in says:
        assert text in result.errors[0]


@pytest.mark.parametrize("spare, says", [(0, "metrics.jsonl: File too large"), (10, "cannot write a checkpoint in")])
def test_a_full_disk_is_named_and_nothing_is_lost(begun, tmp_path, spare, says):
    """No file may grow beyond the log plus `spare` half kilobytes, so the next row or a checkpoint does not fit."""
    run_dir = tmp_path / "run"
    old = contents(run_dir / "checkpoints")
    blocks = (run_dir / "metrics.jsonl").stat().st_size // 512 + spare
    check_one_line(begun(prefix=("sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh")), says, str(run_dir))
    assert max(checkpoint.steps(run_dir)) == 3
    after = contents(run_dir / "checkpoints")
    assert {name: after.get(name) for name in old if name.startswith("3/")} == {
        name: digest for name, digest in old.items() if name.startswith("3/")}
    assert "already" not in begun(expect=0).out  # now there is room
    assert [row["step"] for row in read_jsonl(run_dir / "metrics.jsonl")] == list(range(7))


@pytest.mark.parametrize("weight, says", [
    (np.inf, "/bad/checkpoints/200 holds numbers that are not finite (NaN or infinite); use "),
    (3e38, "not finite at step 1")])
def test_a_model_that_is_not_finite_is_refused_and_one_that_overflows_stopped(tmp_path, base, compiled, weight, says):
    bad = pathlib.Path(shutil.copytree(base, tmp_path / "bad"))
    item = bad / "checkpoints" / "200" / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpoint.restore_model(str(base))[1]
        params["final_norm"] = np.full_like(params["final_norm"], weight)
        shutil.rmtree(item)
        checkpointer.save(item, params)
    meta = item.parent / "meta" / "metadata"  # as a version without digests saved it
    meta.write_text(json.dumps({name: x for name, x in json.loads(meta.read_text()).items() if name != "digests"}))
    result = run("train", *FLAGS, f"--model={bad}", f"--run_dir={tmp_path / 'run'}", compiled=compiled)
    check_one_line(result, says)
    assert checkpoint.steps(tmp_path / "run") == []
