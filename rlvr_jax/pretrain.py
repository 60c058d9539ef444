"""The tiny base: next-token training on solutions of the synthetic task, by the same update as everything else."""

import dataclasses

import jax
import numpy as np

from rlvr_jax import learner, model, parallel, sampler
from rlvr_jax.config import PretrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained import tokenizer
from rlvr_jax.runs.log import timed
from rlvr_jax.runs.run import Run
from rlvr_jax.tasks import arithmetic
from rlvr_jax.tasks.prompts import encode_prompts, load_problems


def pretrain(config: PretrainConfig) -> dict:
    """Trains a base from random parameters and returns the summary, which `run_dir/summary.json` holds too.

    Step s learns from problems drawn from (seed, s), none of them of a held-out split.
    """
    check(config)
    words = arithmetic.make_tokenizer()
    model_config = ModelConfig(
        vocab_size=len(arithmetic.VOCAB), num_layers=config.num_layers, d_model=config.d_model,
        num_heads=config.num_heads, num_kv_heads=config.num_heads, head_dim=config.d_model // config.num_heads,
        d_ff=config.d_ff, max_seq_len=2 * config.num_ops + 3 + arithmetic.solution_length(config.num_ops))
    habits = arithmetic.make_habits(config.seed, config.style_shares, config.habit_strength, config.num_ops)
    optimizer = learner.make_optimizer(config)
    update = learner.map_update(model_config, config, optimizer)
    draw = sampler.make_sampler(model_config, eos_ids=words.eos_ids,
                                max_new_tokens=arithmetic.solution_length(config.num_ops))
    heldout = load_problems("arithmetic", words, count=config.eval_size, split=config.heldout_split,
                            num_ops=config.num_ops)
    prompts = encode_prompts(words, heldout, model_config, arithmetic.solution_length(config.num_ops))
    meta = {"model": model_config.to_json(), "tokenizer": tokenizer.to_json(words), "flags": dataclasses.asdict(config)}

    with Run(config, "pretrain") as run:
        params = model.init_params(jax.random.key(config.seed), model_config)
        state = parallel.replicate(run.restore(learner.init_state(params, optimizer, keep_reference=False)))
        for step in run.steps():
            seconds = {}
            with timed(seconds, "data"):
                batch = solved_problems(config, habits, step)
            with timed(seconds, "update"):
                state, updated = update(state, batch, step)
            row = {"step": step} | updated
            if run.due(step, config.eval_every, row):
                with timed(seconds, "eval"):
                    row |= measure.heldout(draw, state.params, words, heldout, prompts, seed=config.seed, step=step,
                                           answer_format="answer", synthetic=True)
            run.log(row | seconds, ("train/loss", "eval/greedy", "eval/sampled"))
            if run.due(step, config.save_every):
                run.save(state, meta)
        return run.finish(state, meta)


def check(config: PretrainConfig) -> None:
    """Refuses settings that cannot work together before anything is computed."""
    parts = config.num_minibatches * config.grad_accumulation * parallel.device_count()
    if config.batch_size % parts:
        raise UserError(f"--batch_size={config.batch_size} does not divide into --num_minibatches x "
                        f"--grad_accumulation x devices = {parts} equal parts")
    if config.d_model % (2 * config.num_heads):
        raise UserError(f"--d_model={config.d_model} does not divide into --num_heads={config.num_heads} even heads")
    if len(config.style_shares) != len(arithmetic.STYLES):
        raise UserError(f"--style_shares needs {len(arithmetic.STYLES)} numbers, for " + ", ".join(arithmetic.STYLES))


def solved_problems(config: PretrainConfig, habits: arithmetic.Habits, step: int) -> learner.Batch:
    """The batch of a step: every problem once, solved in a style drawn from its habits; advantage 1 each."""
    rng, size = np.random.default_rng((config.seed, step)), config.batch_size
    chains = arithmetic.generate(rng, size, "pretrain", config.num_ops)
    cumulative = np.cumsum(arithmetic.style_probabilities(habits, chains), -1)
    styles = (cumulative[:, :-1] < rng.random(size)[:, None]).sum(-1)
    completions, mask = arithmetic.solve(rng, chains, styles, config.early_stop, config.slip)
    tokens = arithmetic.prompt_ids(chains)
    prompts = model.Prompts(tokens, np.full(size, tokens.shape[1], np.int32))
    return learner.Batch(prompts, np.arange(size, dtype=np.int32), completions, mask, np.ones(size, np.float32))
