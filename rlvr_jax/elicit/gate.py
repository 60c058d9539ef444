"""When to steer: a probe of the base that says where a trained model's likeliest token is another (arXiv 2510.07364).

P problems, N tokens that are fitted on, D width.
"""

import dataclasses
import pathlib
from typing import Optional

import numpy as np
import scipy.optimize
import scipy.special

from rlvr_jax import parallel, sampler
from rlvr_jax.config import SteeringConfig
from rlvr_jax.elicit.activations import stream
from rlvr_jax.elicit.steering import Steering
from rlvr_jax.elicit.vectors import VECTORS
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.calibration import auroc
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.loading import LanguageModel
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import encode_prompts, is_drawn, load_problems

PENALTY = 1e-3  # of the gate's weights, squared and halved, beside the mean loss of a token


@dataclasses.dataclass(frozen=True)
class Fitted:
    """All that steering needs at test time, and nothing of the trained model but this."""

    problems: list[Problem]
    vector_D: np.ndarray
    weight_D: np.ndarray  # of the gate
    scores_N: np.ndarray  # of the gate, at the tokens it was fitted on
    gate: dict  # what is known of it, for a summary

    def steering(self, strength: float, rate: float) -> Steering:
        """Acts at this share of the tokens that the gate was fitted on."""
        threshold = np.quantile(self.scores_N, 1 - rate)
        values = strength * self.vector_D, self.weight_D, threshold, rate
        return Steering(*(np.asarray(value, np.float32) for value in values))


def fit(config: SteeringConfig, loaded: LanguageModel, trained: Optional[LanguageModel]) -> Fitted:
    """The vector, and the gate where there is a trained model to fit it to.

    Raises UserError for a layer that the model lacks, and for problems that have no split to fit on.
    """
    if config.layer >= loaded.config.num_layers:
        raise UserError(f"--layer={config.layer}: the layers of the model are 0 to {loaded.config.num_layers - 1}")
    problems = problems_of(config, loaded, "example", config.num_fit)
    vector_D = VECTORS[config.vector](config, loaded, problems)
    nothing = np.zeros(len(vector_D)), np.zeros(1), {}
    return Fitted(problems, vector_D, *(fit_gate(config, loaded, trained, problems) if trained else nothing))


def problems_of(config: SteeringConfig, loaded: LanguageModel, split: str, count: int) -> list[Problem]:
    """Problems that are not measured: those of another split of --problems, or of --fit_problems."""
    source = config.fit_problems or config.problems
    if not config.fit_problems and not all(map(is_drawn, source.split(","))):
        raise UserError(f"--problems={source} has one split, which is measured: name a file to fit on, --fit_problems")
    return load_problems(source, loaded.tokenizer, count=count, num_ops=config.num_ops, split=split,
                         prompt_style=config.prompt_style, instruction=config.instruction,
                         ignore_columns=config.ignore_columns)


def load_trained(config: SteeringConfig, loaded: LanguageModel) -> LanguageModel:
    """--trained. Raises UserError where it is not given, or is a model of another kind."""
    if not config.trained:
        raise UserError("--trained is required: the model that the gate is fitted to")
    trained = loading.load_model(config.trained, config.dtype, config.dtype)
    if trained.config != loaded.config:
        raise UserError(f"--trained={config.trained} has another shape than --model={config.model}; take a model that "
                        "was trained from it")
    return trained


def fit_gate(config: SteeringConfig, loaded: LanguageModel, trained: LanguageModel,
             problems: list[Problem]) -> tuple[np.ndarray, np.ndarray, dict]:
    """(weight f64[D], scores f64[N], what is known of the gate): where the trained model's likeliest token differs.

    A logistic regression on the base's residuals over greedy completions of both models. One in five problems is left
    out of it: `auroc` is of these. `differ` is the share of tokens that differ, `differ_first` that of first tokens,
    `first_of_differ` the share of the differing ones that are first.
    """
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, config.max_new_tokens, config.max_prompt_tokens)
    sample = sampler.make_sampler(loaded.config, eos_ids=loaded.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
                                  num_slots=config.num_slots)
    texts = []
    for each in (loaded, trained):
        out = sample(parallel.place_state(each.params), prompts, np.arange(len(problems)), config.seed, 0, 0.0,
                     stream=sampler.CHOOSE)
        texts += [np.concatenate([tokens[:length], ids[mask]]) for tokens, length, ids, mask
                  in zip(prompts.tokens, prompts.lengths, out.completions, out.completion_mask)]
    folder = pathlib.Path(config.out) / "activations"
    base, other = stream(loaded, texts, [config.layer], folder / "base"), stream(trained, texts, [], folder / "trained")
    owners_N = base.row % len(problems)
    steps_N = base.positions - prompts.lengths[owners_N] + 1
    asked_N = (steps_N >= 0) & (base.positions < np.array(list(map(len, texts)))[base.row] - 1)  # nothing after the end
    differ_N, steps_N = (base.said != other.said)[asked_N], steps_N[asked_N]
    x_NxD, fitted_N = base.at(config.layer)[asked_N].astype(np.float64), owners_N[asked_N] % 5 > 0
    if not (differ_N & fitted_N).any():
        raise UserError(f"--trained={config.trained} says what --model says everywhere: there is no gate to fit")
    weight_D = logistic(x_NxD[fitted_N], differ_N[fitted_N])
    scores_N = x_NxD @ weight_D
    return weight_D, scores_N[fitted_N], {
        "n": len(differ_N), "differ": float(differ_N.mean()), "differ_first": float(differ_N[steps_N == 0].mean()),
        "first_of_differ": float((steps_N[differ_N] == 0).mean()),
        "auroc": auroc(scores_N[~fitted_N], differ_N[~fitted_N])}


def logistic(x_NxD: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """f64[D], weights of a logistic regression of y on x, its columns first brought to one scale; without the constant,
    of which the gate's threshold takes the place."""
    scale_D = x_NxD.std(0) + 1e-6
    z_NxE = np.column_stack([(x_NxD - x_NxD.mean(0)) / scale_D, np.ones(len(x_NxD))])
    sign_N, shrunk_E = np.where(y_N, 1.0, -1.0), np.append(np.full(len(scale_D), PENALTY), 0.0)

    def loss(w_E):
        margin_N = sign_N * (z_NxE @ w_E)
        slope_N = -sign_N * scipy.special.expit(-margin_N) / len(sign_N)
        return np.logaddexp(0, -margin_N).mean() + shrunk_E @ w_E**2 / 2, slope_N @ z_NxE + shrunk_E * w_E

    return scipy.optimize.minimize(loss, np.zeros(len(shrunk_E)), jac=True, method="L-BFGS-B").x[:-1] / scale_D
