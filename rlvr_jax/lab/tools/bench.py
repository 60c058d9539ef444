"""Times sampling and the update beside torch + transformers, in one process."""

import importlib.util
import statistics
import time
from typing import Callable, Optional

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import logprobs, model, sampler
from rlvr_jax.logprobs import Scoring
from rlvr_jax.model import ModelConfig
from rlvr_jax.records import Batch, Prompts, checked, setting
from rlvr_jax.runs.flags import flag_lines
from rlvr_jax.runs.log import progress
from rlvr_jax.runs.machine import MachineConfig
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.runs.origin import commit

ROWS, TOKENS = 16, 128  # of the update


@checked
class BenchConfig:
    """Side-by-side timings."""

    machine: MachineConfig = MachineConfig()
    out: str = setting("", "Markdown file for the table; empty: only print")
    repeats: int = setting(5, "timed runs of each side, alternating; the median is reported", minimum=1)
    rollouts: int = setting(64, "completions decoded together from one prompt", minimum=1)
    prompt_tokens: int = setting(64, "length of the prompt", minimum=1)
    new_tokens: int = setting(64, "tokens decoded for each completion", minimum=2)
    num_layers: int = setting(30, "layers; 30 is SmolLM2-135M", minimum=1)


def run(config: BenchConfig) -> str:
    """A Markdown table of medians and ratios."""
    shapes = ModelConfig(vocab_size=49_152, num_layers=config.num_layers, d_model=576, num_heads=9, num_kv_heads=3,
                         head_dim=64, d_ff=1536, max_seq_len=2048)
    params = jax.jit(model.init_params, static_argnums=1)(jax.random.key(0), shapes)
    theirs = TorchModel(shapes) if importlib.util.find_spec("transformers") else None
    prompt = np.random.default_rng(0).integers(0, 49_152, config.prompt_tokens)
    tokens = config.rollouts * config.new_tokens

    def samplers(new_tokens):
        return (our_sampler(shapes, params, prompt, config.rollouts, new_tokens),
                theirs and theirs.sampler(prompt, config.rollouts, new_tokens))

    pairs = {
        f"sampling {config.rollouts} x {config.new_tokens} tokens after one {config.prompt_tokens}-token prompt":
            samplers(config.new_tokens),
        "of that, the first token (prefill)": samplers(1),
        f"update, forward and backward, {ROWS} rows x {TOKENS} tokens":
            (our_gradient(shapes, params, 1), theirs and theirs.gradient(shapes)),
        f"the same rows with their {TOKENS // 2}-token prompt shared":
            (our_gradient(shapes, params, TOKENS // 2), theirs and theirs.gradient(shapes)),
    }
    timed = {}
    with progress(len(pairs), what="bench", unit="pair") as bar:
        for name, pair in pairs.items():
            timed[name] = alternate(pair, config.repeats)
            bar.update()
    (whole, first), names = list(timed.values())[:2], list(timed)
    decode = [None if b is None else a - b for a, b in zip(whole, first)]
    rows = [(names[0], *whole), ("of that, decoding after the first token", *decode)]
    rows += [(name, *timed[name]) for name in names[2:]]
    lines = ["# Sampling and update against torch + transformers", "",
             f"SmolLM2-135M shapes, {config.num_layers} layers, float32, random weights. {versions()} Matmul peak "
             f"measured in the same run: {matmul_peak():.0f} GFLOP/s.", "",
             markdown_table(["what", "ours, s", "theirs, s", "theirs / ours"],
                            [[name, f"{a:.2f}", *(("-", "-") if b is None else (f"{b:.2f}", f"{b / a:.2f}"))]
                             for name, a, b in rows]),
             "", f"Ours end to end: {tokens / whole[0]:.0f} tokens/s; decoding alone: "
             f"{tokens * (1 - 1 / config.new_tokens) / decode[0]:.0f} tokens/s.", "",
             f"`{command(config)}`, commit {commit()}; medians of {config.repeats} alternating runs.", ""]
    return "\n".join(lines)


def command(config: BenchConfig) -> str:
    """The command with all its flags, so that later defaults do not change it; without those that name files."""
    flags = [line for line in flag_lines(config) if not line.startswith(("--out=", "--compilation_cache="))]
    return " ".join(["python -m scripts.bench", *flags])


def alternate(pair, repeats: int) -> tuple[float, Optional[float]]:
    """Median seconds of each of two functions, called in turn after one warm-up each."""
    seconds: tuple = ([], [])
    for i in range(repeats + 1):
        for fn, mine in zip(pair, seconds):
            if fn is not None:
                start = time.perf_counter()
                fn()
                if i:
                    mine.append(time.perf_counter() - start)
    return tuple(statistics.median(mine) if mine else None for mine in seconds)


def matmul_peak() -> float:
    """GFLOP/s of a large float32 product."""
    size = 2048
    x = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    seconds, _ = alternate((lambda: product(x, x).block_until_ready(), None), 10)
    return 2 * size**3 / seconds / 1e9


def versions() -> str:
    text = f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    if importlib.util.find_spec("transformers"):
        import torch
        import transformers
        text += (f", torch {torch.__version__} with {torch.get_num_threads()} threads, transformers "
                 f"{transformers.__version__}")
    return text + "."


def our_sampler(shapes: ModelConfig, params, prompt, count: int, new_tokens: int) -> Callable:
    prompts = Prompts(jnp.array(prompt, jnp.int32)[None], jnp.array([len(prompt)], jnp.int32))
    rows = sampler.Rows(jnp.zeros(count, jnp.int32), sampler.rollout_keys(0, 0, jnp.arange(count)))
    decoding = sampler.Decoding((), new_tokens)
    sample = jax.jit(lambda params: sampler.sample(params, shapes, prompts, rows, decoding))
    return lambda: jax.block_until_ready(sample(params))


def our_gradient(shapes: ModelConfig, params, prompt_tokens: int) -> Callable:
    """Gradient of the mean log-probability of the rows' tokens after the prompt, which all rows share."""
    rng = np.random.default_rng(0)
    prompts = Prompts(jnp.array(rng.integers(0, 49_152, (1, prompt_tokens)), jnp.int32), jnp.array([prompt_tokens]))
    completions = jnp.array(rng.integers(0, 49_152, (ROWS, TOKENS + (prompt_tokens == 1) - prompt_tokens)), jnp.int32)
    batch = Batch(prompts, jnp.zeros(ROWS, jnp.int32), completions, jnp.ones_like(completions, bool), jnp.ones(ROWS))

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: -jnp.mean(
            logprobs.completion_logprobs(p, shapes, batch, 1.0, Scoring(remat=True))[0]))(params)

    return lambda: jax.block_until_ready(gradient(params))


class TorchModel:
    """The same shapes in transformers, as its users run it."""

    def __init__(self, shapes: ModelConfig):
        import torch
        import transformers

        self.torch = torch
        self.model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=shapes.vocab_size, hidden_size=shapes.d_model, intermediate_size=shapes.d_ff,
            num_hidden_layers=shapes.num_layers, num_attention_heads=shapes.num_heads,
            num_key_value_heads=shapes.num_kv_heads, max_position_embeddings=shapes.max_seq_len,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=0)).eval()

    def sampler(self, prompt, count: int, new_tokens: int) -> Callable:
        ids = self.torch.tensor(np.array(prompt))[None]
        def generate():
            with self.torch.no_grad():
                self.model.generate(ids, attention_mask=self.torch.ones_like(ids), do_sample=True, temperature=1.0,
                                    top_k=0, num_return_sequences=count, max_new_tokens=new_tokens)
        return generate

    def gradient(self, shapes: ModelConfig) -> Callable:
        ids = self.torch.tensor(np.random.default_rng(0).integers(0, shapes.vocab_size, (ROWS, TOKENS)))
        def backward():
            self.model.zero_grad()
            self.model(ids, labels=ids).loss.backward()
        return backward
