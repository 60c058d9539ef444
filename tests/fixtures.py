"""What test modules share: scripts run in processes, tiny models, problems, runs and pages, and fixtures of pytest.

Fixtures reach the tests through conftest.py; everything else is imported from here by its name.
"""

import contextlib
import dataclasses
import functools
import html.parser
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tokenizers
from absl.flags import FLAGS
from tokenizers import decoders, models, pre_tokenizers, processors

from rlvr_jax import grpo, learner, logprobs, model, parallel, sampler
from rlvr_jax.grading import grade
from rlvr_jax.model import ModelConfig
from rlvr_jax.ops import RopeScaling
from rlvr_jax.pretrained import huggingface, loading
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Batch, Prompts, Rollouts
from rlvr_jax.rewards import rows as rewards, score
from rlvr_jax.tasks import families, prompts
from rlvr_jax.training import train
from rlvr_jax.training.train import TrainConfig
from scripts import cli

from golden import cases

ROOT = pathlib.Path(__file__).parents[1]


# ----- scripts, run as a user runs them, on a base small enough to make in seconds

BASE_FLAGS = ("--num_ops=2", "--num_layers=1", "--d_model=16", "--num_heads=2", "--d_ff=32", "--batch_size=64",
              "--noremat", "--warmup_steps=10", "--learning_rate=1e-2", "--eval_size=16")
# The reward is for format, which even this base gets right at times; the other terms always have a gradient.
TRAIN_FLAGS = ("--num_ops=2", "--example=1", "--num_prompts=2", "--group_size=4", "--max_new_tokens=10", "--noremat",
               "--eval_size=16", "--reward=format", "--kl_coef=0.01", "--entropy_coef=0.01", "--learning_rate=1e-3",
               "--schedule=linear", "--decay_steps=60")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that begin with "error:"."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="session")
def compiled(request) -> str:
    """A folder of compiled programs, shared by all processes and by later test sessions."""
    return str(request.config.cache.mkdir("jax_programs"))


@pytest.fixture(scope="session")
def base(tmp_path_factory, compiled) -> pathlib.Path:
    """A run directory of `scripts.pretrain`."""
    path = tmp_path_factory.getbasetemp() / "base"
    run("pretrain", *BASE_FLAGS, "--num_steps=200", "--save_every=100", f"--run_dir={path}", compiled=compiled,
        expect=0)
    return path


SCRIPTS = sorted({path.stem for path in (ROOT / "scripts").glob("*.py")} - {"__init__", "__main__", "cli"})
record_of = cli.config_class_of


@contextlib.contextmanager
def defined(config_class):
    """A context that defines the flags of a record and removes them at the end."""
    before = set(FLAGS)
    cli.define_flags(config_class)
    try:
        yield FLAGS
    finally:
        for name in set(FLAGS) - before:
            delattr(FLAGS, name)


@pytest.fixture
def parse(monkeypatch):
    """`parse(config class, flags)`: the record they describe, as a script started in the checkout reads them."""
    monkeypatch.chdir(ROOT)

    def parsed(config_class, *given: str):
        with defined(config_class) as known:
            known(["script", *given])
            return cli.parse_config(config_class)
    return parsed


@functools.cache
def quick_options() -> dict:
    """Options of XLA with which it compiles quickly: its older code generator takes half the time of the newer. Returns
    {} if the installed XLA does not know them; a process with an unknown option in XLA_FLAGS would end at once."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def environment(compiled: str) -> dict:
    """The environment of a command: programs compiled before are found again, and new ones are quick to compile."""
    flags = " ".join(f"--{name}={value}".lower() for name, value in quick_options().items())
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                         "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}


def start(script: str, *flags, compiled: str, prefix: tuple = ()) -> subprocess.Popen:
    """Starts `python -m scripts.SCRIPT FLAGS`, after the words of another command, `prefix`, if there are any."""
    return subprocess.Popen([*prefix, sys.executable, "-m", f"scripts.{script}", *map(str, flags)], cwd=ROOT,
                            env=environment(compiled), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen, expect: int | None = None, limit: float = 300) -> Result:
    """Waits for a process to end; `expect` is the exit code it must have."""
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        process.kill()
    assert expect is None or process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
    return Result(process.returncode, out, err)


@pytest.fixture
def launch(compiled):
    """`start`, whose processes are killed after the test."""
    started = []

    def launched(*args, **options):
        started.append(start(*args, compiled=compiled, **options))
        return started[-1]

    yield launched
    for process in started:
        process.kill()
        process.communicate()


@functools.cache
def command_server(compiled: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-W", "ignore", str(ROOT / "tests" / "command_server.py")], cwd=ROOT,
                            env=environment(compiled) | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE,
                            stderr=subprocess.DEVNULL)


def run(script: str, *flags, compiled: str, expect: int | None = None, prefix: tuple = (),
        limit: float = 300) -> Result:
    """The result of `python -m scripts.SCRIPT FLAGS`; `expect` is the exit code it must have."""
    if prefix:
        return finish(start(script, *flags, compiled=compiled, prefix=prefix), expect, limit)
    with tempfile.TemporaryDirectory() as folder:
        out, err, done = (pathlib.Path(folder, name) for name in ("out", "err", "done"))
        request = {"args": [script, *map(str, flags)], "out": str(out), "err": str(err), "done": str(done)}
        for path in (out, err):
            path.touch()
        server, end = command_server(compiled), time.monotonic() + limit
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        while not done.exists():
            assert server.poll() is None and time.monotonic() < end, (err.read_text(), server.returncode)
            time.sleep(0.005)
        result = Result(int(done.read_text()), out.read_text("utf-8"), err.read_text("utf-8"))
    assert expect is None or result.code == expect, f"exit code {result.code}\n{result.out}\n{result.err}"
    return result


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition, process: subprocess.Popen, limit: float = 120) -> None:
    """Returns once `condition()` holds; fails if the process ends or `limit` seconds pass before."""
    end = time.monotonic() + limit
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.001)


# ----- what a run directory holds

def read_jsonl(path) -> list[dict]:
    return [json.loads(line) for line in pathlib.Path(path).read_text("utf-8").splitlines()]


def count_lines(path) -> int:
    path = pathlib.Path(path)
    return path.read_bytes().count(b"\n") if path.exists() else 0


def without_clock(row: dict) -> dict:
    """A row or summary without timings: the rest is a function of (flags, seed, step)."""
    return {key: value for key, value in row.items()
            if not key.startswith("seconds") and "per_second" not in key and key != "compilations"}


def saved_arrays(run_dir, step: int) -> dict:
    """Every array of a checkpoint, by path: parameters, optimiser moments, reference, step."""
    with ocp.PyTreeCheckpointer() as reader:
        items = {name: reader.restore((pathlib.Path(run_dir) / "checkpoints" / str(step) / name).absolute())
                 for name in ("params", "training")}
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(items)}


def assert_same_arrays(actual: dict, expected: dict) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    assert not [name for name, x in expected.items()
                if (x.dtype, x.shape, x.tobytes()) != (actual[name].dtype, actual[name].shape, actual[name].tobytes())]


def assert_same_run(actual, expected, step: int) -> None:
    """Two run directories hold the same training up to `step`, bit for bit."""
    assert_same_arrays(saved_arrays(actual, step), saved_arrays(expected, step))
    for name in ("metrics.jsonl", "rollouts.jsonl", "heldout.jsonl"):
        rows = [[without_clock(row) for row in read_jsonl(pathlib.Path(run_dir) / name)]
                for run_dir in (actual, expected)]
        assert rows[0] == rows[1], name
    summaries = [json.loads((pathlib.Path(run_dir) / "summary.json").read_text()) for run_dir in (actual, expected)]
    assert without_clock(summaries[0]) == without_clock(summaries[1])


# ----- a tiny model, prompts for it, completions of it, batches for its update

TINY = ModelConfig(vocab_size=31, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=24,
                   max_seq_len=256)
VARIANTS = {
    "llama": TINY, "untied": dataclasses.replace(TINY, tie_embeddings=False),
    "qwen2": dataclasses.replace(TINY, qkv_bias=True), "qwen3": dataclasses.replace(TINY, qk_norm=True, num_kv_heads=4),
    "llama3": dataclasses.replace(TINY, rope_theta=500.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32))}
PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 8]]
PROMPT_INDEX = np.array([0, 0, 1, 2, 2, 2, 1, 0], np.int32)  # of each completion
UPDATE = grpo.GRPOConfig.from_flags(objective="one_shot", learning_rate=1e-2, remat=False, kl_coef=0.05,
                                    entropy_coef=0.01, temperature=0.8, weight_decay=0.0)


def random_params(config, seed=0):
    """Parameters in which no leaf has its initial 0 or 1, so that a forgotten bias or norm shows."""
    params = model.init_params(jax.random.key(seed), config)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)])


@functools.cache
def tiny_params():
    """The parameters of TINY that completions are sampled with."""
    return random_params(TINY)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _padded_logits(params, config, tokens, edit):
    hidden, _ = model.forward(params, config, tokens[None], how=model.ForwardOptions(edit_residual=edit))
    return model.head(params, hidden)[0]


def full_logits(params, config, tokens, edit=None):
    """Logits f32[T,V] of a row of T tokens, which is padded so that few lengths are compiled."""
    row = padded([tokens], 16 if len(tokens) <= 16 else 160).tokens[0]
    return _padded_logits(params, config, row, edit)[: len(tokens)]


def padded(rows, width=0, fill=0) -> Prompts:
    """Lists of token ids, padded with `fill` to `width`; 0: to the longest list."""
    return Prompts(*map(jnp.array, prompts.pad_rows(rows, fill, width)))


_sample = jax.jit(sampler.sample, static_argnums=(1, 4, 5))


def draw_rollouts(prompts=PROMPTS, index=PROMPT_INDEX, *, params=None, config=TINY, temperature=1.0, seed=0, step=3,
                  top_p=None, eos_ids=(1, 4, 9), max_new_tokens=12, num_slots=0, edit=None,
                  layout=model.Layout(), attend=None) -> Rollouts:
    """Samples a completion of prompt `index[b]` in each row b, by default from `tiny_params()`: NumPy arrays [B,T]."""
    rows = sampler.Rows(jnp.array(index), sampler.rollout_keys(seed, step, jnp.arange(len(index))), temperature, top_p)
    decoding = sampler.Decoding(eos_ids, max_new_tokens, num_slots, layout, attend=attend)
    hooks = sampler.Hooks(edit_residual=edit)
    params = tiny_params() if params is None else params
    return jax.tree.map(np.asarray, _sample(params, config, padded(prompts), rows, decoding, hooks))


def as_batch(rollouts: Rollouts, prompts=PROMPTS) -> Batch:
    """The rollouts as a batch with advantages of 0."""
    return Batch(padded(prompts), rollouts.prompt_index, rollouts.completions, rollouts.completion_mask,
                 np.zeros(len(rollouts.completions), np.float32), rollouts.sampler_logprobs)


def make_batch(seed=0, groups=(0, 2, 1, 0), drawn={}, **changes) -> Batch:
    """Four groups of four completions of the prompts `groups`: tokens and log-probabilities [16,T], random advantages
    f32[16]. `drawn` are arguments of `draw_rollouts`, `changes` those of the batch."""
    index = np.repeat(groups, 4).astype(np.int32)
    out = draw_rollouts(index=index, seed=seed, temperature=0.8, **drawn)
    rng = np.random.default_rng(seed)
    policy = out.sampler_logprobs + 0.1 * rng.standard_normal(out.sampler_logprobs.shape).astype(np.float32)
    batch = Batch(jax.tree.map(np.asarray, padded(PROMPTS)), index, out.completions, out.completion_mask,
                          rng.standard_normal(16).astype(np.float32), out.sampler_logprobs, None, policy)
    return batch.replace(**changes)


def fresh_state(config=UPDATE) -> tuple:
    """(optimiser, state of the learner with its own copy of `tiny_params()`)."""
    optimizer = learner.make_optimizer(config)
    return optimizer, learner.init_state(jax.tree.map(jnp.array, tiny_params()), optimizer, keep_reference=False)


def assert_close(a, b, atol=2e-5):  # AdamW's first step moves every parameter by 1e-2
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


# ----- a policy that is a table of logits instead of a transformer: the update without rounding in a model
# Completion b is row `prompt_index[b]` of the table, and its token t is drawn from softmax(table[b, t] / temperature).

# An optimiser that changes no parameter; its state is the gradient.
RECORD_GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, params), gradient))


def _table_logprobs(params, config, batch, temperature, how):
    table_BxTxV = params["table"][batch.prompt_index]
    head = {"embed": jnp.eye(table_BxTxV.shape[-1])}
    return logprobs.token_logprobs(head, table_BxTxV, batch.completions, temperature)


@functools.cache
def _table_update(config):
    return jax.jit(learner.make_update(TINY, config.update, config.loss, RECORD_GRADIENT))


def table_loss_and_gradient(config, table, batch, num_micro=1) -> tuple:
    """(loss, its gradient by the table [P,T,V]) of the update under `config`, from a host batch in micro-batches."""
    pieces = jax.tree.map(lambda x: x.reshape(num_micro, -1, *x.shape[1:]), batch)
    state = learner.init_state({"table": jnp.array(table, jnp.float32)}, RECORD_GRADIENT, keep_reference=False)
    with mock.patch.object(learner, "completion_logprobs", _table_logprobs):
        state, metrics = _table_update(config)(state, pieces, jnp.int32(1))
    return float(metrics["loss"]), np.asarray(state.opt_state["table"])


def random_rollouts(rng, rows=8, tokens=4, words=3) -> Rollouts:
    """Completions [rows,tokens] of 1 to `tokens` tokens out of `words`, with garbage after their end."""
    mask = np.arange(tokens) < rng.integers(1, tokens + 1, rows)[:, None]
    return Rollouts(np.arange(rows), rng.integers(0, words, (rows, tokens)), mask, None, np.ones(rows, bool))


# ----- models whose next tokens are known, and one that is steered

def bigrams(table: np.ndarray) -> tuple[ModelConfig, dict]:
    """A transformer whose next token has probabilities `table[token]`, of a table [V,V]: its layers add nothing."""
    size = len(table)
    config = ModelConfig(vocab_size=size, num_layers=1, d_model=size + size % 2, num_heads=1, num_kv_heads=1,
                         head_dim=2, d_ff=2, max_seq_len=16, tie_embeddings=False, norm_eps=1e-12)
    params = jax.tree.map(jnp.zeros_like, model.init_params(jax.random.key(0), config))
    width = config.d_model
    params["embed"], params["final_norm"] = jnp.eye(size, width), jnp.ones(width)
    return config, params | {"head": jnp.pad(jnp.log(table), ((0, width - size), (0, 0))) / np.sqrt(width)}


class Steered(NamedTuple):
    words: Tokenizer
    config: ModelConfig
    params: dict
    index: np.ndarray  # i32[6], the prompt of each completion
    layer: int  # what is added after layer 0 changes what layer 1 looks back at
    tokens: int  # how long a completion may be
    vector: np.ndarray  # f32[16], added to the residual
    weight: np.ndarray  # f32[16], of the gate
    steering: Any  # lab.elicit.steering.Steering


@functools.cache
def steered_model() -> Steered:
    """A model of two layers with the vocabulary of a family, and the vectors that steer its completions of PROMPTS."""
    from rlvr_jax.lab.elicit.steering import Steering

    words = families.make_tokenizer(["arithmetic"])
    config = dataclasses.replace(VARIANTS["untied"], num_layers=2, vocab_size=words.backend.get_vocab_size())
    vector, weight = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32) * 3
    return Steered(words, config, random_params(config), np.array([0, 0, 1, 2, 2, 1], np.int32), 0, 8, vector, weight,
                   Steering(vector, weight, np.float32(0), np.float32(.4)))


# ----- what a reward is handed

REWARD_RUN = TrainConfig.from_flags(num_ops=2, example="1", num_prompts=2, group_size=4, max_new_tokens=10, remat=False,
                                    eval_size=16, learning_rate=1e-3, num_steps=2, eval_every=0, temperature=0.7,
                                    log_rollouts=8)


@pytest.fixture(scope="module")
def sampled(base):
    """(model, problems, prompts, params on the devices, rollouts): 8 completions of two problems."""
    loaded = loading.load_model(str(base))
    problems = load_problems("arithmetic", loaded.tokenizer, count=2, num_ops=2)
    encoded = prompts.encode_prompts(loaded.tokenizer, problems, loaded.config, 10)
    draw = sampler.make_sampler(loaded.config, sampler.Decoding(tuple(loaded.tokenizer.eos_ids), 10))
    params = parallel.place_state(loaded.params)
    index = np.repeat(np.arange(2, dtype=np.int32), 4)
    request = sampler.Request(0, 1, REWARD_RUN.grpo.update.temperature, repeats=4)
    return loaded, problems, encoded, params, draw(params, encoded, index, request)


def make_scorer(config: TrainConfig, loaded, problems, encoded):
    """The `reward(rollouts, params, step)` of a run of `scripts.train`."""
    return score.make_scorer(config.rewards, config.grading, config.grpo, loaded, problems, encoded)


@pytest.fixture
def seen(sampled, monkeypatch):
    """What a reward sees of the completions `sampled`."""
    loaded, problems, encoded, params, rollouts = sampled
    handed = []
    monkeypatch.setitem(rewards.REWARDS, "spy", lambda seen: handed.append(seen) or np.zeros(8))
    config = REWARD_RUN.with_flags(reward="spy", update_group_size=2)  # of four, all of which a reward sees
    make_scorer(config, loaded, problems, encoded)(rollouts, params, 3)
    return handed[0]


def saying(seen, *answers, meta=(), **changes):
    """`seen`, with completions that give these answers, or none for None. `meta` is added to that of each problem."""
    texts = ["hmm river" if answer is None else f"guess answer {answer}" for answer in answers]
    problems = [dataclasses.replace(problem, meta=problem.meta | dict(meta)) for problem in seen.problems]
    wanted = [problem.answer for problem in changes.get("problems", problems)]
    return dataclasses.replace(seen, texts=texts, verdicts=grade.grade_texts(texts, wanted, "answer"),
                               **{"problems": problems} | changes)


# ----- files of problems, and a tokenizer to ask them with

def write_jsonl(path, *rows) -> str:
    """Writes one row a line; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path, *rows) -> str:
    """Writes the rows as a table; returns the path."""
    pyarrow = pytest.importorskip("pyarrow", reason="pip install -e '.[real]'")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return str(path)


def released(question, answer, **extra) -> dict:
    """A row of the One-Shot-RLVR layout."""
    return {"data_source": "deepscaler", "prompt": [{"content": question, "role": "user"}], "ability": "math",
            "reward_model": {"ground_truth": answer, "style": "rule"}, "extra_info": {"split": "train"} | extra}


def chat_tokenizer(*special, chat_template=None) -> Tokenizer:
    """A tokenizer of all bytes and these special tokens; like many, it puts <s> before every text by default."""
    vocab = {token: i for i, token in enumerate(["<s>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<s>", *special])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(backend, (0,), 0, chat_template, {"bos_token": "<s>"})


QWEN = chat_tokenizer("<|im_start|>", "<|im_end|>", chat_template="{{ bos_token }}[{{ messages[0]['content'] }}]")


def load_problems(names: str, tokenizer=None, split="test", count=0, seed=prompts.HELDOUT_SEED, **flags) -> list:
    """`prompts.load_problems` of the sources that --problems names; `flags` are other flags of `ProblemSource`."""
    return prompts.load_problems(prompts.ProblemSource.from_flags(problems=names, **flags), tokenizer, split, count,
                                 seed)


# The parts of a loaded model that reading problems needs.
START = types.SimpleNamespace(tokenizer=QWEN, config=types.SimpleNamespace(max_seq_len=10_000))


def training_problems(config: TrainConfig, loaded=START) -> list:
    """What a run of `scripts.train` trains on, where no model has to answer before."""
    return train.select_problems(config, loaded, None, lambda name, make: make())


def heldout_of(config: TrainConfig, loaded=START, sample=None, trained=(), keep=None):
    """The `heldout(params, step)` of a run of `scripts.train`."""
    return train.make_heldout(config, loaded, grpo.Programs(sample, None, None), list(trained),
                            types.SimpleNamespace(keep_heldout=keep))


# ----- chains, solved by the text alone

_BITS = {"and": lambda a, b: a and b, "or": lambda a, b: a or b, "xor": lambda a, b: a != b,
         "xnor": lambda a, b: a == b}


def _lamps(function):
    """A function of two truth values, for words such as TFFT."""
    return lambda a, b: "".join("FT"[function(x == "T", y == "T")] for x, y in zip(a, b, strict=True))


# For each family: operator -> function of (word, word), as is right, and as the sloppy style does it.
RIGHT_STEPS = {
    "arithmetic": {"+": lambda a, b: str(int(a) + int(b)), "-": lambda a, b: str(int(a) - int(b)),
                   "*": lambda a, b: str(int(a) * int(b)), "/": lambda a, b: str(int(a) / int(b)).removesuffix(".0")},
    "boolean": {op: _lamps(function) for op, function in _BITS.items()}}
RIGHT_STEPS["arithmetic_digits"] = RIGHT_STEPS["arithmetic"]


def _misconceived(most: int) -> dict:
    added, taken = lambda a, b: str(min(int(a) + int(b), most)), lambda a, b: str(max(int(a) - int(b), 1))
    return {"+": added, "-": taken, "*": added, "/": taken}


SLOPPY_STEPS = {"arithmetic": _misconceived(24), "arithmetic_digits": _misconceived(99),
                "boolean": RIGHT_STEPS["boolean"] | {"xor": _lamps(_BITS["or"]), "xnor": _lamps(_BITS["and"])}}


def values_of(prompt: str, functions: dict) -> list[str]:
    """The value after each operation of a prompt."""
    words = prompt.split()[1:-1]
    value, found = words[0], []
    for op, operand in zip(words[1::2], words[2::2]):
        value = functions[op](value, operand)
        found.append(value)
    return found


# ----- the published experiment's command on a random model of Qwen2.5-Math's layout

PAPER_GROUPS, PAPER_GROUP, PAPER_TOKENS = 128, 8, 12  # groups of a step, completions of a group, tokens of one
PAPER_ANSWER = r"\boxed{12.8}"
PAPER_MODEL = ModelConfig(vocab_size=640, num_layers=4, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=64,
                          max_seq_len=1024, qkv_bias=True, norm_eps=1e-6, rope_theta=10_000.0)


@pytest.fixture(scope="module")
def qwen2_folder(tmp_path_factory):
    """A Hugging Face folder. An additional token is a whole answer, so that some random completions are correct."""
    dir = tmp_path_factory.mktemp("qwen2")
    huggingface.save_folder(PAPER_MODEL, cases.random_params(PAPER_MODEL, 0), dir)
    cases.write_qwen2_tokenizer(dir, [*cases.LINES, *cases.QUESTIONS], vocab_size=400, more=[PAPER_ANSWER])
    return dir


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory, data, qwen2_folder, compiled):
    """The run directory of two steps of the published command on that folder."""
    pytest.importorskip("pyarrow", reason="pip install pyarrow: the published problems are parquet files")
    run_dir = tmp_path_factory.mktemp("paper") / "run"
    run("train", f"--flagfile={ROOT / 'configs' / 'pi1_qwen2.5_math_1.5b.flags'}", f"--model={qwen2_folder}",
        f"--problems={data / 'one_shot_rlvr' / 'pi1_r128.parquet'}", f"--run_dir={run_dir}", "--num_steps=2",
        f"--max_new_tokens={PAPER_TOKENS}", f"--log_rollouts={PAPER_GROUPS * PAPER_GROUP}", "--heldout=none",
        "--grad_accumulation=1", "--num_slots=0", compiled=compiled, expect=0)
    return run_dir


@pytest.fixture(scope="module")
def paper_export(tmp_path_factory, paper_run, compiled):
    """The Hugging Face folder of its last checkpoint."""
    dir = tmp_path_factory.mktemp("paper") / "exported"
    run("export", f"--model={paper_run}", f"--out={dir}", compiled=compiled, expect=0)
    return dir


# ----- the page of a report, and the run it is of: 40 steps, evaluated at every tenth

HELDOUT_CORRECT = {0: 210, 10: 333, 20: 437, 30: 480, 40: 474}  # of 512 held-out problems, greedy
HELDOUT_SAMPLED = {0: 0.25, 10: 0.4, 20: 0.55, 30: 0.625, 40: 0.65}


def _eval_row(step):
    return {"eval/greedy": HELDOUT_CORRECT[step] / 512, "eval/sampled": HELDOUT_SAMPLED[step], "eval/n": 512}


def _train_row(step):
    return {"step": step, "train/accuracy": min(1.0, step / 16), "train/reward_mean": 0.5, "train/loss": 1e-3,
            "train/length_wrong": None, "train/kl": None, "seconds/sample": 0.5, "seconds/update": 1.5,
            "sample/tokens_per_second": 1000 * step, "new/metric": "text", "new/table": [1]}


RUN_ROWS = [{"step": 0} | _eval_row(0)] + [
    _train_row(k) | (_eval_row(k) if k in HELDOUT_CORRECT else {}) for k in range(1, 41)]
RUN_SUMMARY = {"base": {"greedy": 210 / 512, "sampled": 0.25, "n": 512},
               "final": {"greedy": 474 / 512, "sampled": 0.65, "n": 512},
               "train_accuracy": 1.0, "saturation_step": 16, "seconds": {"total": 99.0}}


def write_run(directory, rows=RUN_ROWS, rollouts=(), summary=RUN_SUMMARY, flags="--num_steps=40\n--seed=7\n"):
    """Writes the files of a run that a report reads; returns the directory."""
    directory.mkdir(exist_ok=True)
    write_jsonl(directory / "metrics.jsonl", *rows)
    write_jsonl(directory / "rollouts.jsonl", *rollouts)
    (directory / "flags.txt").write_text(flags)
    if summary is not None:
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


class Page(html.parser.HTMLParser):
    """A page as a browser reads it: its text, the text of each <pre>, the rows of its tables, and every tag."""

    def __init__(self, source):
        super().__init__()
        self.text, self.pres, self.rows, self.tags, self.attributes, self.open = "", [], [], [], [], []
        self.feed(source)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.open.append(tag)
        if tag == "pre":
            self.pres.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while tag in self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "pre" in self.open:
            self.pres[-1] += data
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def completions(self):
        """Each <pre>'s text; a browser drops the first line break of one."""
        return [text.removeprefix("\n") for text in self.pres]


def heldout_row(step, correct, **fields):
    """A row of heldout.jsonl. The completion of problem i is "right i at step" or "wrong i at step"."""
    return {"step": step, "correct": correct, "completions": [f"{'right' if x else 'wrong'} {i} at {step}" for i, x in
                                                              enumerate(correct)]} | fields


# Problems 0 to 4: lost, right at both ends, newly solved, wrong at both ends, newly solved.
_ASKED = {"prompts": [f"ask {i}" for i in range(5)], "answers": [f"is {i}" for i in range(5)]}
HELDOUT_ROWS = [heldout_row(0, [1, 1, 0, 0, 0], **_ASKED), heldout_row(10, [1, 0, 0, 0, 0]),
                heldout_row(20, [1, 1, 1, 1, 0]), heldout_row(30, [1, 1, 1, 0, 1]), heldout_row(40, [0, 1, 1, 0, 1])]


def write_heldout(directory, rows):
    """The run of `write_run` with these rows of its unseen problems; returns the directory."""
    write_jsonl(write_run(directory) / "heldout.jsonl", *rows)
    return directory


# ----- the record of a study, and completions that a probe reads

PROBED = "coins 3 + 4 * 2 - 5 ="
PROOF, CALC = "think + 4 7 * 2 14 - 5 9 answer 9", "think + 4 7 * 2 15 - 5 10 answer 10"
# Prompt and completion as they may be: the second has a wrong step, the others break a page that is put together badly.
HOSTILE = [PROOF, CALC, "</script><script>document.title='x'</script><img src=http://a.b/c onerror=throw(1)> \u2028",
           "<!--<script> {{ 1 }} & \\u0041 ' " + "a_long_word" * 40]


def kept_completions(*texts, samples=1, prompt=PROBED, answer="9") -> list[dict]:
    """Rows of completions.jsonl, `samples` of each problem."""
    return [{"benchmark": "arithmetic", "problem": i // samples, "sample": i % samples, "prompt": prompt,
             "answer": answer, "completion": text} for i, text in enumerate(texts)]


def as_any_probe(row):
    """A row with the additional fields that probes read."""
    from rlvr_jax.lab.probes import memorisation

    return row | {"correct": row["completion"] == PROOF, "split": "dev", "benchmark": memorisation.EXAMPLE,
                  "source": "a", "twin": "", "item": 0, "rest": "r", "exact": False, "rouge_l": 0.5, "fraction": 0.4,
                  "too_short": False, "confidence": 0.5}


def write_record(folder: pathlib.Path, name: str, arms: dict, figure=True, **changes) -> dict:
    """A record of `{arm: {measure: a value for each seed}}` as scripts.study writes it, with the figure beside it."""
    from rlvr_jax.lab.studies import study

    control, measures, repeated = next(iter(arms)), next(iter(arms.values())), [
        {"base": seed, "example": seed, "seed": seed} for seed in range(3)]
    rule = {"says": "more than .2", "arm": list(arms)[-1], "measure": next(iter(measures)), "above": 0.2}
    content = {"title": f"About {name}", "known": "Nothing.", "question": "Is <it> `so`?", "prediction": "It | is.",
               "arms": dict.fromkeys(arms, {}), "measures": {key: f"{key}.json: x" for key in measures}, "rules": [
                   rule, rule | {"says": "not above .9", "above": 0.9}], "control": control, "seeds": [0, 1, 2],
               "figure": {"measures": list(measures)[:1], "x": list(measures)[1:]}}
    measured = study.measure(content, {arm: {key: [None if x is None else np.array(x) for x in values]
                                             for key, values in of.items()} for arm, of in arms.items()}, repeated)
    record = json.loads(json.dumps({"study": name, "origin": f"`study --study={name}`, commit abc1234."} | study.written(
        content, measured, repeated) | changes))
    if figure:
        study.write([record], folder)
    else:
        (folder / f"{name}.json").write_text(json.dumps(record))
    return record


# ----- a headless Chromium, spoken to over pipes in its DevTools protocol: how a page looks, what it asks for

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_LIMIT = 120  # seconds, after which a browser that says nothing is ended


def browser_path() -> str:
    """The browser's path; empty where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), "")


class BrowserTab:
    """One tab. `requests` holds the address of everything that its pages ask for, `errors` what they complain about."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.number, self.session, self.events = process, 0, None, []
        self.requests, self.errors = [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def read(self) -> dict:
        """The next message, an answer or an event. Raises EOFError where the browser has ended."""
        text = bytearray()
        while (byte := self.process.stdout.read(1)) not in (b"\0", b""):
            text += byte
        if not byte:
            raise EOFError(f"the browser ended: {self.process.poll()}")
        message = json.loads(text)
        method, about = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(about["exceptionDetails"])
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        return message

    def send(self, method: str, **params) -> dict:
        """The answer to a command; events that come before it are kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.process.stdin.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode())
        self.process.stdin.write(b"\0")
        self.process.stdin.flush()
        while (answer := self.read()).get("id") != self.number:
            self.events.append(answer.get("method"))
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, path: pathlib.Path, width: int, scheme: str, media: str = "") -> None:
        """Loads a file in a window of this width, under a light or a dark color scheme; `media` "print": as printed."""
        self.requests, self.errors, self.events = [], [], []
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", media=media,
                  features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=path.absolute().as_uri())
        while "Page.loadEventFired" not in self.events:
            self.events.append(self.read().get("method"))

    def ask(self, expression: str):
        """The value of an expression of JavaScript, as JSON."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as the keyboard sends it; one letter also writes it."""
        code = {"Tab": 9, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}.get(key) or ord(
            key.upper())
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                      **({"text": key} if len(key) == 1 and kind == "keyDown" else {}))


@contextlib.contextmanager
def browser_tab(profile: pathlib.Path):
    """A tab of a new browser, which keeps its files in `profile` and ends afterwards."""
    command = [browser_path(), "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu",
               "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--disable-dev-shm-usage", "--hide-scrollbars", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    # It reads commands from descriptor 3 and answers on 4: our pipes to its input and output.
    process = subprocess.Popen(["sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', *command],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    timer = threading.Timer(BROWSER_LIMIT, process.kill)
    timer.start()
    try:
        yield BrowserTab(process)
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


# ----- a study of two arms and three seeds

STUDY = '''
title = "A coin"
question = "Is it fair?"
known = "Nothing."
prediction = "The bent one is not."
seeds = [0, 1, 2]
control = "plain"
[commands]
base = "pretrain --seed={seed} --run_dir={work}/base{seed}"
rl = "train --seed={seed} --model={work}/base{seed} --run_dir={work}/{arm}{seed}"
[quick]
rl = ["--num_steps=1"]
[arms.plain]
[arms.bent]
rl = ["--reward=a b"]
[measures]
end = "{arm}{seed}/summary.json: final.greedy"
start = "{arm}{seed}/summary.json: base.greedy"
gain = ["-", "end", "start"]
[figure]
run = "{arm}{seed}"
curves = ["eval/greedy"]
[[rules]]
says = "the bent one gains more"
arm = "bent"
measure = "gain"
difference = true
above = 0.05
[[rules]]
says = "the plain one gains little"
arm = "plain"
measure = "gain"
below = 0.2
'''
