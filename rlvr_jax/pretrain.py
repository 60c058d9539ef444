"""The tiny base: next-token training on solutions of synthetic problems, by the same update as everything else."""

import dataclasses
import pathlib
from typing import Callable

import jax
import numpy as np

from rlvr_jax import learner, model, parallel, sampler
from rlvr_jax.config import PretrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.runs.files import read_lines
from rlvr_jax.runs.log import timed
from rlvr_jax.runs.run import Run
from rlvr_jax.tasks import families
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.prompts import encode_prompts, load_problems


def pretrain(config: PretrainConfig) -> dict:
    """Trains a base from random parameters and returns the summary, which `run_dir/summary.json` holds too.

    Step s learns from problems drawn from (seed, s), none of them of a held-out split.
    """
    check(config)
    shares = families.parse_shares(config.task_shares)
    tokenizer, (_, solution_size) = families.make_tokenizer(shares), sizes(config, shares)
    model_config = ModelConfig(
        vocab_size=tokenizer.backend.get_vocab_size(), num_layers=config.num_layers, d_model=config.d_model,
        num_heads=config.num_heads, num_kv_heads=config.num_heads, head_dim=config.d_model // config.num_heads,
        d_ff=config.d_ff, max_seq_len=window(config, shares))
    solved_problems = make_data(config, shares, tokenizer)
    optimizer = learner.make_optimizer(config)
    update = learner.map_update(model_config, config, optimizer)
    sample = sampler.make_sampler(model_config, eos_ids=tokenizer.eos_ids, max_new_tokens=solution_size)
    heldout = [problem for name, count in families.divide(shares, config.eval_size or 512).items()
               for problem in load_problems(name, tokenizer, count=count, split=config.heldout_split,
                                            num_ops=config.num_ops)]
    prompts = encode_prompts(tokenizer, heldout, model_config, solution_size)
    meta = {"model": model_config.to_json(), "tokenizer": tokenizer.to_json(), "flags": dataclasses.asdict(config)}

    with Run(config, "pretrain") as run:
        params = model.init_params(jax.random.key(config.seed), model_config)
        state = parallel.place_state(run.restore(learner.init_state(params, optimizer, keep_reference=False)))
        for step in run.steps():
            seconds = {}
            with timed(seconds, "data"):
                batch = solved_problems(step)
            with timed(seconds, "update"):
                state, updated = update(state, batch, step)
            row = {"step": step} | updated
            if run.due(step, config.eval_every, row):
                with timed(seconds, "eval"):
                    row |= measure.heldout(sample, state.params, tokenizer, heldout, prompts, seed=config.seed,
                                           step=step)
            run.log(row | seconds, ("train/loss", "eval/greedy", "eval/sampled"))
            if run.due(step, config.save_every):
                run.save(state, meta)
        return run.finish(state, meta)


def check(config: PretrainConfig) -> None:
    """Refuses settings that cannot work together before anything is computed."""
    learner.micro_rows(config, config.batch_size, parallel.device_count(), "--batch_size")
    if config.d_model % (2 * config.num_heads):
        raise UserError(f"--d_model={config.d_model} does not divide into --num_heads={config.num_heads} even heads")
    for name in families.parse_shares(config.task_shares):
        styles = FAMILIES[name].styles.values()
        if len(config.style_shares) != len(styles):
            raise UserError(f"--style_shares needs {len(styles)} numbers, for the styles of {name}: "
                            + ", ".join(styles))


def sizes(config: PretrainConfig, names) -> tuple[int, int]:
    """Most tokens of a prompt, and of a solution, in any of the families."""
    prompts, solutions = zip(*(FAMILIES[name].lengths(config.num_ops) for name in names))
    return max(prompts), max(solutions)


def window(config: PretrainConfig, names) -> int:
    """Most tokens of prompt and completion together that the base takes."""
    return max(config.window, sum(sizes(config, names)))


def make_data(config: PretrainConfig, shares: dict[str, float], tokenizer: Tokenizer) -> Callable[[int], learner.Batch]:
    """`batch(step)`: each family's share of problems, solved in styles drawn from its habits; advantage 1 each."""
    habits = {name: FAMILIES[name].habits(config) for name in shares}
    ids, size = tokenizer.backend.get_vocab(), config.batch_size
    leaks = leaked_texts(config, tokenizer, window(config, shares))
    widths = sizes(config, shares)
    if leaks:  # all words of a text but the first are learnt
        widths = widths[0], max(widths[1], *(len(text.split()) for text in leaks))

    def encode(texts: list[str], width: int) -> tuple[np.ndarray, np.ndarray]:
        rows = [[ids[word] for word in text.split()] for text in texts]
        return (np.array([row + [tokenizer.pad_id] * (width - len(row)) for row in rows], np.int32),
                np.array([len(row) for row in rows], np.int32))

    def batch(step: int) -> learner.Batch:
        rng, questions, solutions = np.random.default_rng((config.seed, step)), [], []
        for name, count in families.divide(shares, size).items():
            family = FAMILIES[name]
            drawn = family.generate(rng, count, "pretrain", config.num_ops)
            cumulative = np.cumsum(habits[name](drawn), -1)
            styles = (cumulative[:, :-1] < rng.random(count)[:, None]).sum(-1)
            solutions += family.solve(rng, drawn, styles, config)
            questions += [problem.prompt for problem in family.to_problems(drawn)]
        for row, text in enumerate(leaks[len(leaks) * (step - 1) // config.num_steps :
                                         len(leaks) * step // config.num_steps]):
            questions[row], _, solutions[row] = text.partition(" ")
        prompts = model.Prompts(*encode(questions, widths[0]))
        completions, lengths = encode([f"{solution} <eos>" for solution in solutions], widths[1])
        return learner.Batch(prompts, np.arange(size, dtype=np.int32), completions,
                             np.arange(widths[1]) < lengths[:, None], np.ones(size, np.float32))
    return batch


def leaked_texts(config: PretrainConfig, tokenizer: Tokenizer, longest: int) -> list[str]:
    """Each text of --leaked as often as its times says, shuffled. Raises UserError for what cannot be learnt."""
    if not config.leaked:
        return []
    file, texts = pathlib.Path(config.leaked), []
    if not file.is_file():
        raise UserError(f"--leaked={config.leaked}: no such file; scripts.plant writes one")
    for number, row in read_lines(file):
        match row:
            case {"text": str(text), "times": int(times)} if len(text.split()) > 1 and times > 0:
                texts += [" ".join(text.split())] * times
            case _:
                raise UserError(f"{file}, line {number}: needs a text of two words or more and its times, a whole "
                                "number above 0")
        if len(text.split()) >= longest:
            raise UserError(f"{file}, line {number}: {len(text.split())} words and an end token are more than the "
                            f"model's window of {longest}; --window makes it longer")
        if unknown := tokenizer.lacks(text.split()):
            raise UserError(f"{file}, line {number}: {unknown[0]!r} is no word of --task_shares={config.task_shares}")
    if len(texts) > config.batch_size * config.num_steps:
        raise UserError(f"{file}: {len(texts)} texts are more than --num_steps={config.num_steps} of --batch_size="
                        f"{config.batch_size} have room for")
    return np.random.default_rng(config.seed).permutation(texts).tolist()
