"""The tiny base: next-token training on solutions of synthetic problems, by the same update as everything else."""

import pathlib
from typing import Callable

import jax
import numpy as np

from rlvr_jax import learner, model, parallel
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.evaluation.measure import HeldoutConfig, Sampler
from rlvr_jax.learner import SUPERVISED, OptimizerConfig, UpdateConfig
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Batch, LoopConfig, Prompts
from rlvr_jax.runs.files import read_lines
from rlvr_jax.runs.machine import MachineConfig, ProcessConfig
from rlvr_jax.runs.run import Run, RunConfig
from rlvr_jax.sampler import Decoding, Request, make_sampler
from rlvr_jax.tasks import families
from rlvr_jax.tasks.chains import StyleConfig
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, encode_prompts, load_problems, padded
from rlvr_jax.training import kernels
from rlvr_jax.training.driver import Learnt, RunCallbacks, supervise


class ShapeConfig(Config):
    """The size of the model."""

    num_layers: int = flag(3, "layers of the model", minimum=1)
    d_model: int = flag(64, "width of the residual stream", minimum=1)
    num_heads: int = flag(4, "attention heads", minimum=1)
    d_ff: int = flag(256, "width of the feed-forward layers", minimum=1)


class PretrainConfig(Config):
    """The tiny base: a transformer trained on solutions of synthetic families in a mixture of styles."""

    run: RunConfig = RunConfig(eval_every=500, save_every=500)
    machine: MachineConfig = MachineConfig()
    processes: ProcessConfig = ProcessConfig()
    loop: LoopConfig = LoopConfig(num_steps=2000)
    optimizer: OptimizerConfig = OptimizerConfig(3e-3, warmup_steps=100, schedule="cosine", adam_b2=0.98)
    update: UpdateConfig = UpdateConfig()
    measured: HeldoutConfig = nested(HeldoutConfig(), heldout_split="split of the families to measure on")
    styles: StyleConfig = StyleConfig()
    shape: ShapeConfig = ShapeConfig()
    task_shares: str = flag("arithmetic", "what to train on: a synthetic family, or several with their shares of a "
                            "step's problems, such as arithmetic:0.5,boolean:0.5", lambda: FAMILIES, listed=True)
    batch_size: int = flag(128, "problems of a step", minimum=1)
    num_ops: int = flag(6, "operations in a problem", minimum=1)
    window: int = flag(0, "most tokens of prompt and completion that the model takes, where that is more than a "
                       "problem of num_ops needs; it is not trained on longer ones", minimum=0)
    leaked: str = flag("", "JSONL file of texts to mix in, each as often as its times says, spread over the run: "
                       "rows with text and times, as scripts.plant writes them; empty: none")


def pretrain(config: PretrainConfig) -> dict:
    """Trains a base from random parameters and returns the summary, which `run_dir/summary.json` holds too.

    Step s learns from problems drawn from (seed, s), none of them of a held-out split.
    """
    check(config)
    shares, loop = families.parse_shares(config.task_shares), config.loop
    tokenizer = families.make_tokenizer(shares)
    model_config = shape_of(config, shares, tokenizer)
    solved_problems = make_data(config, shares, tokenizer)
    optimizer = learner.make_optimizer(config.optimizer, loop.num_steps * config.update.updates_per_batch)
    update = learner.map_update(model_config, config.update, SUPERVISED, optimizer, loop.seed)
    meta = {"model": model_config.to_json(), "tokenizer": tokenizer.to_json(), "flags": config.as_flags()}
    heldout = make_heldout(config, shares, tokenizer, model_config)
    with Run(config.run, config, loop.num_steps, "pretrain", first=1) as run:
        params = model.init_params(jax.random.key(loop.seed), model_config)
        callbacks = RunCallbacks(run, meta, row_of, ("train/loss", "eval/greedy", "eval/sampled"), heldout)
        with parallel.init_device(config.update.divide_state):
            state = learner.init_state(params, optimizer, keep_reference=False)
        return callbacks.finish(supervise(state, solved_problems, update, callbacks, loop.num_steps, config.update.divide_state))


def row_of(learnt: Learnt) -> tuple[dict, list]:
    return {"step": learnt.step} | learnt.metrics, []


def check(config: PretrainConfig) -> None:
    """Refuses settings that cannot work together before anything is computed."""
    learner.micro_rows(config.update, config.batch_size, "--batch_size")
    kernels.check(config.update.attention, "float32")
    if not config.measured.eval_size:
        raise UserError("--eval_size=0: problems of a family are drawn, as many as this says: give 1 or more")
    if config.shape.d_model % (2 * config.shape.num_heads):
        raise UserError(f"--d_model={config.shape.d_model} does not divide into --num_heads={config.shape.num_heads} "
                        "even heads")
    for name in families.parse_shares(config.task_shares):
        families.draw_problems(name, np.random.default_rng(0), 64, "pretrain", config.num_ops)  # or says its fault
        styles = FAMILIES[name].styles.values()
        if len(config.styles.style_shares or FAMILIES[name].shares) != len(styles):
            raise UserError(f"--style_shares needs {len(styles)} numbers, for the styles of {name}: "
                            + ", ".join(styles))


def shape_of(config: PretrainConfig, shares: dict[str, float], tokenizer: Tokenizer) -> ModelConfig:
    shape = config.shape
    return ModelConfig(
        vocab_size=tokenizer.backend.get_vocab_size(), num_layers=shape.num_layers, d_model=shape.d_model,
        num_heads=shape.num_heads, num_kv_heads=shape.num_heads, head_dim=shape.d_model // shape.num_heads,
        d_ff=shape.d_ff, max_seq_len=window(config, shares))


def make_heldout(config: PretrainConfig, shares: dict[str, float], tokenizer: Tokenizer,
                 model_config: ModelConfig) -> Callable:
    """`heldout(params, step)`: accuracy on each family's share of held-out problems, as eval/* metrics."""
    _, size = sizes(config, shares)
    sample = make_sampler(model_config, Decoding(tokenizer.eos_ids, size))
    problems = [problem for name, count in families.divide(shares, config.measured.eval_size).items()
                for problem in load_problems(ProblemSource(name, PromptConfig(config.num_ops)), tokenizer,
                                             config.measured.heldout_split, count)]
    prompts = encode_prompts(tokenizer, problems, model_config, size)
    return lambda params, step: measure.heldout(Sampler(sample, params, tokenizer), problems, prompts,
                                                Request(config.loop.seed, step))


def sizes(config: PretrainConfig, names) -> tuple[int, int]:
    """Most tokens of a prompt, and of a solution, in any of the families."""
    prompts, solutions = zip(*(FAMILIES[name].lengths(config.num_ops) for name in names))
    return max(prompts), max(solutions)


def window(config: PretrainConfig, names) -> int:
    """Most tokens of prompt and completion together that the base takes."""
    return max(config.window, sum(sizes(config, names)))


def make_data(config: PretrainConfig, shares: dict[str, float], tokenizer: Tokenizer) -> Callable[[int], Batch]:
    """`batch(step)`: each family's share of problems, solved in styles drawn from its habits; advantage 1 each."""
    habits = {name: FAMILIES[name].habits_of(config.styles, config.loop.seed, config.num_ops) for name in shares}
    for name in shares:
        families.refuse_faulty_solutions(name, config.styles, config.num_ops, habits[name])
    size = config.batch_size
    leaks = leaked_texts(config, tokenizer, window(config, shares))
    widths = sizes(config, shares)
    if leaks:  # all words of a text but the first are learnt
        widths = widths[0], max(widths[1], *(len(tokenizer.encode(text)) for text in leaks))

    def encode(texts: list[str], width: int) -> tuple[np.ndarray, np.ndarray]:
        return padded([tokenizer.encode(text) for text in texts], tokenizer.pad_id, width)

    def batch(step: int) -> Batch:
        rng, questions, solutions = np.random.default_rng((config.loop.seed, step)), [], []
        for name, count in families.divide(shares, size).items():
            family = FAMILIES[name]
            drawn = family.generate(rng, count, "pretrain", config.num_ops)
            cumulative = np.cumsum(habits[name](drawn), -1)
            styles = (cumulative[:, :-1] < rng.random(count)[:, None]).sum(-1)
            solutions += family.solve(rng, drawn, styles, config.styles)
            questions += [problem.prompt for problem in family.to_problems(drawn)]
        for row, text in enumerate(leaks[len(leaks) * (step - 1) // config.loop.num_steps :
                                         len(leaks) * step // config.loop.num_steps]):
            questions[row], _, solutions[row] = text.partition(" ")
        prompts = Prompts(*encode(questions, widths[0]))
        completions, lengths = encode([f"{solution} <eos>" for solution in solutions], widths[1])
        return Batch(prompts, np.arange(size, dtype=np.int32), completions,
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
        if (length := len(tokenizer.encode(text))) >= longest:
            raise UserError(f"{file}, line {number}: {length} words and an end token are more than the "
                            f"model's window of {longest}; --window makes it longer")
        if unknown := tokenizer.lacks(text.split()):
            raise UserError(f"{file}, line {number}: {unknown[0]!r} is no word of --task_shares={config.task_shares}")
    if len(texts) > config.batch_size * config.loop.num_steps:
        raise UserError(f"{file}: {len(texts)} texts are more than --num_steps={config.loop.num_steps} of --batch_size="
                        f"{config.batch_size} have room for")
    return np.random.default_rng(config.loop.seed).permutation(texts).tolist()
