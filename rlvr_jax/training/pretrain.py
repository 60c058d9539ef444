"""Pre-trains the tiny base model on solutions of synthetic problems, with the update that all runs share."""

import pathlib
from typing import Callable

import jax
import numpy as np

from rlvr_jax import learner, model
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.evaluation.measure import HeldoutConfig, Sampler
from rlvr_jax.learner import OptimizerConfig, UpdateConfig
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
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, encode_prompts, load_problems, pad_rows
from rlvr_jax.training import kernels
from rlvr_jax.training.driver import SHOW, RunCallbacks, make_meta, train_supervised


class ShapeConfig(Config):
    """The size of the model."""

    num_layers: int = flag(3, "layers of the model", minimum=1)
    d_model: int = flag(64, "width of the residual stream", minimum=1)
    num_heads: int = flag(4, "attention heads", minimum=1)
    d_ff: int = flag(256, "width of the feed-forward layers", minimum=1)


class PretrainConfig(Config):
    """The tiny base model, pre-trained on synthetic problems with solutions in several styles, careful and careless."""

    run: RunConfig = RunConfig(eval_every=500, save_every=500)
    machine: MachineConfig = MachineConfig()
    processes: ProcessConfig = ProcessConfig()
    loop: LoopConfig = LoopConfig(num_steps=2000)
    optimizer: OptimizerConfig = OptimizerConfig(3e-3, warmup_steps=100, schedule="cosine", adam_b2=0.98)
    update: UpdateConfig = UpdateConfig()
    measured: HeldoutConfig = nested(HeldoutConfig(), heldout_split="split of the families to measure on")
    styles: StyleConfig = StyleConfig()
    shape: ShapeConfig = ShapeConfig()
    task_shares: str = flag("arithmetic", "what to train on: a synthetic family, or several with their shares of each "
                            "step's problems, such as arithmetic:0.5,boolean:0.5", lambda: FAMILIES, listed=True)
    batch_size: int = flag(128, "problems per step", minimum=1)
    num_ops: int = flag(6, "operations in a problem", minimum=1)
    window: int = flag(0, "window of the model (most tokens of prompt and completion), if longer than problems of "
                       "num_ops need; the problems trained on do not get longer", minimum=0)
    leaked: str = flag("", "JSONL file of texts to mix into the run: rows with a text and how many times to "
                       "show it, as scripts.plant writes them; empty: none")


def pretrain(config: PretrainConfig) -> dict:
    """Trains a base model from random parameters and returns the summary, which is also `run_dir/summary.json`.
    Step s learns from problems drawn with the random seed (seed, s). None of the problems is in a held-out split."""
    check_config(config)
    shares = families.parse_shares(config.task_shares)
    tokenizer = families.make_tokenizer(shares)
    model_config = make_model_config(config, shares, tokenizer)
    data, heldout = make_data(config, shares, tokenizer), make_heldout(config, shares, tokenizer, model_config)
    with Run(config.run, config, config.loop.num_steps, "pretrain", first=1) as run:  # step 0 is not measured
        callbacks = RunCallbacks(run, make_meta(config, model_config, tokenizer), lambda row: (row, []), SHOW, heldout)
        make_params = lambda: model.init_params(jax.random.key(config.loop.seed), model_config)
        return train_supervised(callbacks, config, model_config, make_params, data)


def check_config(config: PretrainConfig) -> None:
    """Raises UserError for flags that cannot work together, before anything is computed."""
    learner.micro_rows(config.update, config.batch_size, "--batch_size")  # raises UserError if rows do not divide
    kernels.check_kernel(config.update.attention, "float32")
    if not config.measured.eval_size:
        raise UserError("--eval_size=0: this is the number of problems to draw from the families: give 1 or more")
    if config.shape.d_model % (2 * config.shape.num_heads):
        raise UserError(f"--d_model={config.shape.d_model} does not divide into --num_heads={config.shape.num_heads} "
                        "even heads")
    for name in families.parse_shares(config.task_shares):
        families.draw_problems(name, np.random.default_rng(0), 64, "pretrain", config.num_ops)  # raises if faulty
        styles = FAMILIES[name].styles.values()
        if len(config.styles.style_shares or FAMILIES[name].shares) != len(styles):
            raise UserError(f"--style_shares needs {len(styles)} numbers, for the styles of {name}: "
                            + ", ".join(styles))


def make_model_config(config: PretrainConfig, shares: dict[str, float], tokenizer: Tokenizer) -> ModelConfig:
    shape = config.shape
    return ModelConfig(**shape.as_flags(), vocab_size=tokenizer.backend.get_vocab_size(), num_kv_heads=shape.num_heads,
                       head_dim=shape.d_model // shape.num_heads, max_seq_len=max_window(config, shares))


def make_heldout(config: PretrainConfig, shares: dict[str, float], tokenizer: Tokenizer,
                 model_config: ModelConfig) -> Callable:
    """Returns `heldout(params, step) -> {"eval/NAME": value}`, which measures accuracy on held-out problems:
    `eval_size` in all, divided among the families by `shares`, {family: share}."""
    _, max_new_tokens = max_lengths(config, shares)
    sample = make_sampler(model_config, Decoding(tokenizer.eos_ids, max_new_tokens))
    problems = [problem for name, count in families.divide(shares, config.measured.eval_size).items()
                for problem in load_problems(ProblemSource(name, PromptConfig(config.num_ops)), tokenizer,
                                             config.measured.heldout_split, count)]
    prompts = encode_prompts(tokenizer, problems, model_config, max_new_tokens)
    return lambda params, step: measure.measure_heldout(Sampler(sample, params, tokenizer), problems, prompts,
                                                        Request(config.loop.seed, step))


def max_lengths(config: PretrainConfig, names) -> tuple[int, int]:
    """Returns (most tokens of a prompt, most tokens of a solution) over the families `names`."""
    prompts, solutions = zip(*(FAMILIES[name].lengths(config.num_ops) for name in names))
    return max(prompts), max(solutions)


def max_window(config: PretrainConfig, names) -> int:
    """Returns the model's window, the most tokens of prompt and completion: --window, or what `names` need if more."""
    return max(config.window, sum(max_lengths(config, names)))


def make_data(config: PretrainConfig, shares: dict[str, float], tokenizer: Tokenizer) -> Callable[[int], Batch]:
    """Returns `make_batch(step) -> Batch`: `batch_size` problems with their solutions, divided among the families by
    `shares`. The style of a solution is drawn with the family's probabilities for the problem. The step's part of the
    texts of --leaked replaces its first problems. Every advantage is 1, so that the loss is cross-entropy."""
    # For each family, a function from N drawn problems to the probabilities of S styles, [N,S].
    habits = {name: FAMILIES[name].habits_of(config.styles, config.loop.seed, config.num_ops) for name in shares}
    for name in shares:
        families.check_solutions(name, config.styles, config.num_ops, habits[name])
    size = config.batch_size
    if absent := shares.keys() - families.divide(shares, size):
        raise UserError(f"--task_shares={config.task_shares}: {', '.join(sorted(absent))} has less than a row of "
                        f"--batch_size={size}, and would never be trained on")
    leaks = read_leaked(config, tokenizer, max_window(config, shares))
    widths = max_lengths(config, shares)  # tokens of a prompt and of a completion
    if leaks:  # the first word of a text is its prompt, the rest is learnt
        widths = widths[0], max(widths[1], *(len(tokenizer.encode(text)) for text in leaks))

    def encode(texts: list[str], width: int) -> tuple[np.ndarray, np.ndarray]:
        return pad_rows([tokenizer.encode(text) for text in texts], tokenizer.pad_id, width)

    def make_batch(step: int) -> Batch:
        rng, questions, solutions = np.random.default_rng((config.loop.seed, step)), [], []
        for name, count in families.divide(shares, size).items():
            family = FAMILIES[name]
            drawn = family.generate(rng, count, "pretrain", config.num_ops)
            cumulative = np.cumsum(habits[name](drawn), -1)
            styles = (cumulative[:, :-1] < rng.random(count)[:, None]).sum(-1)  # a random index by these probabilities
            solutions += family.solve(rng, drawn, styles, config.styles)
            questions += [problem.prompt for problem in family.to_problems(drawn)]
        num_steps = config.loop.num_steps  # the leaked texts are spread evenly over all steps
        for row, text in enumerate(leaks[len(leaks) * (step - 1) // num_steps : len(leaks) * step // num_steps]):
            questions[row], _, solutions[row] = text.partition(" ")
        prompts = Prompts(*encode(questions, widths[0]))
        completions, lengths = encode([f"{solution} <eos>" for solution in solutions], widths[1])
        return Batch(prompts, np.arange(size, dtype=np.int32), completions,
                     np.arange(widths[1]) < lengths[:, None], np.ones(size, np.float32))
    return make_batch


def read_leaked(config: PretrainConfig, tokenizer: Tokenizer, longest: int) -> list[str]:
    """Returns the texts of --leaked, each as often as its row's "times" says, shuffled; [] without the flag. `longest`
    is the model's window in tokens. UserError for a text that cannot be learnt, or more texts than the run has rows."""
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
                raise UserError(f"{file}, line {number}: needs a text of two words or more and its times, a "
                                "positive integer")
        if (length := len(tokenizer.encode(text))) >= longest:
            raise UserError(f"{file}, line {number}: {length} words and an end token are more than the "
                            f"model's window of {longest}; --window makes it longer")
        if unknown := tokenizer.unknown_words(text.split()):
            raise UserError(f"{file}, line {number}: {unknown[0]!r} is no word of --task_shares={config.task_shares}")
    if len(texts) > config.batch_size * config.loop.num_steps:
        raise UserError(f"{file}: {len(texts)} texts are more than --num_steps={config.loop.num_steps} of --batch_size="
                        f"{config.batch_size} have room for")
    return np.random.default_rng(config.loop.seed).permutation(texts).tolist()
