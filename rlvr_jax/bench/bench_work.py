"""The cases that `bench` times, and `Ours`, which makes the calls of this package for each case."""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import grpo, logprobs, model, parallel, sampler
from rlvr_jax.config import Config, flag
from rlvr_jax.grpo import GRPOConfig, Policy
from rlvr_jax.logprobs import Scoring
from rlvr_jax.model import ModelConfig
from rlvr_jax.records import Batch, Prompts
from rlvr_jax.runs.machine import MachineConfig

# Name of a package in `bench_peers` -> what is timed of it.
PEERS = {"transformers": "sampling and gradients", "trl": "whole steps of GRPOTrainer"}
ROWS, TOKENS = 16, 128  # shape of the batch in the cases "rows" and "shared"
END = 0  # id of the token that ends completions
PEAK = 1e11  # FLOPs of the matrix products that measure the peak
MOVED = 2**29  # bytes that are read, and then written, to measure the bandwidth


class BenchConfig(Config):
    """Timings of this package and of others."""

    machine: MachineConfig = MachineConfig()
    out: str = flag("", "Markdown file for the table; empty: only print")
    against: str = flag("", "other packages to time after this one, joined by commas; the extra `parity` installs "
                        "them (pip install -e '.[parity]')", lambda: PEERS, listed=True)
    repeats: int = flag(5, "timed calls of each case; the best is reported", minimum=1)
    rollouts: int = flag(64, "completions of one prompt in a step", minimum=1)
    prompt_tokens: int = flag(64, "length of the prompt", minimum=1)
    new_tokens: int = flag(64, "tokens of each completion", minimum=2)
    micro_rows: int = flag(16, "completions in a micro-batch of the update", minimum=1)
    remat: bool = flag(True, "recompute layers in the backward pass, in this package and in trl")
    tail_rollouts: int = flag(128, "completions in the long-tail cases, whose lengths vary", minimum=1)
    tail_tokens: int = flag(256, "most tokens of a long-tail completion; the median is about an eighth", minimum=8)
    num_layers: int = flag(30, "layers; 30 is SmolLM2-135M", minimum=1)
    exponents: bool = flag(False, "also time half and twice the completions, their length and the layers, and fit how "
                           "the cost grows with each")
    profile: str = flag("", "folder for a trace of one update and one call of the sampler; the page then lists the "
                        "operations that take longest")


class Case(NamedTuple):
    """What is timed as one call."""

    description: str
    sampled: int = 0  # tokens sampled
    learnt: int = 0  # tokens learnt from


def cases(config: BenchConfig) -> dict[str, Case]:  # by name, in the order of the page
    tokens, tail = config.rollouts * config.new_tokens, tail_lengths(config)
    long = f"{config.tail_rollouts} completions, median {int(np.median(tail))}, longest {tail.max()} tokens"
    return {
        "sampling": Case(f"sampling {config.rollouts} x {config.new_tokens} tokens after one prompt of "
                         f"{config.prompt_tokens}", tokens),
        "first": Case("of that, the first token (prefill)", config.rollouts),
        "update": Case("update on them", 0, tokens),
        "step": Case("a whole GRPO step of both", tokens, tokens),
        "rows": Case(f"gradient of {ROWS} x {TOKENS} tokens, separate rows", 0, ROWS * TOKENS),
        "shared": Case(f"the same, their {TOKENS // 2}-token prompt shared", 0, ROWS * TOKENS // 2),
        "tail": Case(f"sampling {long}", int(tail.sum())),
        "tail_update": Case("update on these", 0, int(tail.sum())),
    }


def shape_of(config: BenchConfig) -> ModelConfig:
    """Returns SmolLM2-135M's configuration, with `num_layers` layers."""
    return ModelConfig(vocab_size=49_152, num_layers=config.num_layers, d_model=576, num_heads=9, num_kv_heads=3,
                       head_dim=64, d_ff=1536, max_seq_len=2048)


def num_parameters(config: BenchConfig) -> tuple[int, int]:
    """Returns how many parameters each token is multiplied with: (in all layers' matrices, in the output head)."""
    shape = shape_of(config)
    shapes = jax.eval_shape(lambda: model.init_params(jax.random.key(0), shape))
    return sum(x.size for x in jax.tree.leaves(shapes["layers"]) if x.ndim == 3), shape.vocab_size * shape.d_model


def prompt_of(config: BenchConfig) -> np.ndarray:  # token ids
    return np.random.default_rng(0).integers(1, 49_152, config.prompt_tokens)


def tail_lengths(config: BenchConfig) -> np.ndarray:
    """Returns i64[tail_rollouts]: the lengths of the long-tail completions in tokens, which are log-normal."""
    lengths = np.exp(np.random.default_rng(0).normal(np.log(config.tail_tokens / 8), 1.0, config.tail_rollouts))
    return np.clip(lengths, 1, config.tail_tokens).astype(int)


def lengths_of(case: str, config: BenchConfig) -> np.ndarray:
    """Returns i64[rows]: the lengths in tokens of the completions of any case but "rows" and "shared"."""
    if case.startswith("tail"):
        return tail_lengths(config)
    return np.full(config.rollouts, 1 if case == "first" else config.new_tokens)


class Ours:
    """The side "ours", this package. Cases with the same number of layers share a state, which their updates change."""

    def __init__(self, config: BenchConfig):
        jax.config.update("jax_num_cpu_devices", config.machine.host_devices)
        self.states = {}  # {number of layers: state}, the last one only, since each takes much memory

    def make(self, name: str, config: BenchConfig) -> Callable[[], None]:
        """Returns the call that is timed as the case `name`, "peak" or "bandwidth", or that writes the "profile"."""
        if name in ("peak", "bandwidth"):
            return make_products(config) if name == "peak" else make_copy()
        if name == "profile":
            return self.make_trace(config)
        if name in ("rows", "shared"):
            params = jax.tree.map(lambda x: x[0], self.state(config).params)  # the first device's copy
            return make_gradient(config, params, 1 if name == "rows" else TOKENS // 2)
        lengths = lengths_of(name, config)
        step_config, prompt = grpo_config(config, lengths), prompt_of(config)
        policy, decoding = Policy(shape_of(config), None, (END,)), sampler.Decoding((END,), int(lengths.max()))
        run_sampler = sampler.make_sampler(policy.config, decoding, sample_fn=make_sample_fn(lengths))
        programs = grpo.compile_programs(policy, step_config)._replace(sample=run_sampler)
        prompts = Prompts(prompt[None].astype(np.int32), np.array([len(prompt)], np.int32))
        problems, index = grpo.Problems(prompts, np.ones(1, int)), np.zeros(len(lengths), np.int32)
        noise = np.random.default_rng(0).normal(size=len(lengths)).astype(np.float32)  # as rewards and advantages
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        batch = Batch(prompts, index, np.where(mask, 7, END).astype(np.int32), mask, noise, np.zeros_like(mask, "f4"))

        def sample():
            run_sampler(self.state(config).params, prompts, index, sampler.Request(0, 1, repeats=len(lengths)))

        def update():
            self.states[config.num_layers], _metrics = programs.update(self.state(config), batch, 1)

        def step():
            self.states[config.num_layers], _record = grpo.grpo_step(
                programs, problems, lambda *_: grpo.Scored(noise), step_config, self.state(config), 1)
        return {"sampling": sample, "first": sample, "tail": sample, "update": update, "tail_update": update,
                "step": step}[name]

    def make_trace(self, config: BenchConfig) -> Callable[[], None]:
        calls = [self.make(name, config) for name in ("sampling", "update")]
        for call in calls:
            call()  # compiles, so that the trace does not show it

        def trace():
            with jax.profiler.trace(config.profile):
                for call in calls:
                    call()
        return trace

    def state(self, config: BenchConfig):  # the LearnerState, on the devices
        if config.num_layers not in self.states:
            params = jax.jit(model.init_params, static_argnums=1)(jax.random.key(0), shape_of(config))
            flags = grpo_config(config, np.full(config.rollouts, config.new_tokens))
            self.states = {config.num_layers: parallel.place_state(
                grpo.initial_state(Policy(shape_of(config), params, (END,)), flags))}
        return self.states[config.num_layers]


def grpo_config(config: BenchConfig, lengths: np.ndarray) -> GRPOConfig:
    """Returns the GRPOConfig of a step with one group, whose completions have these lengths."""
    num_micro = max(len(lengths) // (config.micro_rows * config.machine.host_devices), 1)
    return GRPOConfig.from_flags(num_prompts=1, group_size=len(lengths), max_new_tokens=int(lengths.max()),
                                 grad_accumulation=num_micro, remat=config.remat, track_kl=False)


def make_sample_fn(lengths: np.ndarray) -> Callable:
    """Returns `sampler.sample` with an END token forced at these lengths. By chance a completion may end earlier."""
    def sample_fn(params, shape, prompts, rows, decoding):
        last_B = jnp.array(lengths, jnp.int32)[rows.numbers] - 1
        given = jnp.full((len(last_B), decoding.max_new_tokens), -1, jnp.int32)  # -1: a token to sample
        given = given.at[jnp.arange(len(last_B)), last_B].set(END)
        return sampler.sample(params, shape, prompts, rows._replace(given=given), decoding)
    return sample_fn


def make_gradient(config: BenchConfig, params, prompt_tokens: int) -> Callable:
    """Returns a call that computes the gradient of the mean negative log-probability of ROWS completions of a prompt,
    with a forward pass over the prompt that all share. With `prompt_tokens` 1 the rows are separate, of TOKENS each."""
    rng, shape = np.random.default_rng(0), shape_of(config)
    num_tokens = TOKENS if prompt_tokens == 1 else TOKENS - prompt_tokens
    prompts = Prompts(jnp.array(rng.integers(0, 49_152, (1, prompt_tokens)), jnp.int32), jnp.array([prompt_tokens]))
    completions = jnp.array(rng.integers(0, 49_152, (ROWS, num_tokens)), jnp.int32)
    batch = Batch(prompts, jnp.zeros(ROWS, jnp.int32), completions, jnp.ones_like(completions, bool), jnp.ones(ROWS))
    how = Scoring(remat=config.remat)
    run = jax.jit(jax.grad(lambda p: -jnp.mean(logprobs.completion_logprobs(p, shape, batch, 1.0, how)[0])))
    return lambda: jax.block_until_ready(run(params))


def make_products(config: BenchConfig) -> Callable:
    """Returns a call that multiplies matrices of a micro-batch's feed-forward layer until `PEAK` FLOPs are computed."""
    shape, rows = shape_of(config), config.micro_rows * config.new_tokens
    x, y = jnp.ones((rows, shape.d_model)), jnp.ones((shape.d_model, shape.d_ff))
    matmul, num_products = jax.jit(jnp.matmul), round(PEAK / (2 * rows * shape.d_model * shape.d_ff))

    def multiply():
        for _ in range(num_products):  # keeping all products would add the time to allocate their memory
            product = matmul(x, y)
        product.block_until_ready()
    return multiply


def make_copy() -> Callable:
    """Returns a function that reads and writes `MOVED` bytes in place, to time memory."""
    array_in_list, add = [jnp.ones(MOVED // 4)], jax.jit(lambda x: x + 1, donate_argnums=0)

    def move():
        array_in_list[0] = add(array_in_list[0]).block_until_ready()  # in place: the argument is donated
    return move
