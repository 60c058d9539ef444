"""When to steer: a probe of the base model, fitted to where a trained model's likeliest token differs (arXiv
2510.07364).

P problems, N tokens to fit on, D width.
"""

import dataclasses
from typing import Optional

import numpy as np
import scipy.optimize
import scipy.special

from rlvr_jax import parallel
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.calibration import auroc
from rlvr_jax.evaluation.measure import make_sampler
from rlvr_jax.lab.elicit import vectors
from rlvr_jax.lab.elicit.activations import read_tokens
from rlvr_jax.lab.elicit.steering import Steering
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.sampler import CHOOSE, Request
from rlvr_jax.tasks.prompts import encode_prompts

PENALTY = 1e-3  # of half the gate's squared weights, added to the mean loss of a token


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A vector and a gate, fitted: steering with them never runs the trained model."""

    problems: list[Problem]
    vector_D: np.ndarray
    weight_D: np.ndarray  # of the gate
    scores_N: np.ndarray  # of the gate, at the tokens it was fitted on
    gate: dict  # its numbers for a summary (`fit_gate`)

    def steering(self, strength: float, rate: float) -> Steering:
        """Steers at this share of the tokens that the gate was fitted on."""
        threshold = np.quantile(self.scores_N, 1 - rate)
        values = strength * self.vector_D, self.weight_D, threshold, rate
        return Steering(*(np.asarray(value, np.float32) for value in values))


def fit(config: vectors.SteeringConfig, loaded: LanguageModel, trained: Optional[LanguageModel]) -> Fitted:
    """The vector, and the gate if there is a trained model. Raises UserError for a layer that the model lacks, and for
    problems without a split to fit on."""
    vectors.check_layer(config, loaded)
    problems = vectors.load_fit_problems(config, loaded, "example")
    vector_D = vectors.VECTORS[config.vector](config, loaded, problems)
    nothing = np.zeros(len(vector_D)), np.zeros(1), {}
    return Fitted(problems, vector_D, *(fit_gate(config, loaded, trained, problems) if trained else nothing))


def fit_gate(config: vectors.SteeringConfig, loaded: LanguageModel, trained: LanguageModel,
             problems: list[Problem]) -> tuple[np.ndarray, np.ndarray, dict]:
    """(weight f64[D], scores f64[N], numbers for a summary) of a gate fitted to where the likeliest tokens differ.

    It is a logistic regression on the base model's residuals over greedy completions of both models. One in five
    problems is held out for `auroc`. `differ` is the share of tokens that differ, `differ_first` the share of first
    tokens that do, `first_of_differ` the share of differing tokens that are first. Raises UserError if no token
    differs.
    """
    kept = config.kept
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, kept.sampling.max_new_tokens,
                             kept.source.prompt.max_prompt_tokens)
    texts, starts_R = greedy_texts(config, loaded, trained, prompts), np.tile(prompts.lengths, 2) - 1
    base, other = read_tokens(loaded, texts, starts_R, config.layer), read_tokens(trained, texts, starts_R)
    within_N = base.position < np.array(list(map(len, texts)))[base.text] - 1  # no token follows the last one
    differ_N = (base.likeliest != other.likeliest)[within_N]
    first_N, fitted_N = ((base.position == starts_R[base.text])[within_N],
                         (base.text % len(problems) % 5 > 0)[within_N])
    x_NxD = base.residual[within_N].astype(np.float64)
    if not (differ_N & fitted_N).any():
        raise UserError(f"--trained={config.trained} has the likeliest tokens of --model everywhere: there is no gate "
                        "to fit")
    weight_D = logistic_weights(x_NxD[fitted_N], differ_N[fitted_N])
    scores_N = x_NxD @ weight_D
    return weight_D, scores_N[fitted_N], {
        "n": len(differ_N), "differ": float(differ_N.mean()), "differ_first": float(differ_N[first_N].mean()),
        "first_of_differ": float(first_N[differ_N].mean()),
        "auroc": auroc(scores_N[~fitted_N], differ_N[~fitted_N])}


def greedy_texts(config: vectors.SteeringConfig, loaded: LanguageModel, trained: LanguageModel,
                 prompts: Prompts) -> list[np.ndarray]:
    """Token ids of each prompt with the base model's greedy completion, then of each with the trained model's."""
    sampler, texts = make_sampler(loaded, config.kept.sampling), []
    for params in (sampler.params, parallel.place_state(trained.params)):
        out = sampler.sample(params, prompts, np.arange(len(prompts.lengths)),
                             Request(config.kept.seed, 0, 0.0, stream=CHOOSE))
        texts += [np.concatenate([tokens[:length], ids[mask]]) for tokens, length, ids, mask
                  in zip(prompts.tokens, prompts.lengths, out.completions, out.completion_mask)]
    return texts


def logistic_weights(x_NxD: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """f64[D], weights of a logistic regression of y on the standardised columns of x, for x as it is. There is no
    intercept: the gate's threshold takes its place."""
    scale_D = x_NxD.std(0) + 1e-6
    z_NxE = np.column_stack([(x_NxD - x_NxD.mean(0)) / scale_D, np.ones(len(x_NxD))])
    sign_N, penalty_E = np.where(y_N, 1.0, -1.0), np.append(np.full(len(scale_D), PENALTY), 0.0)

    def loss_and_gradient(w_E):
        margin_N = sign_N * (z_NxE @ w_E)
        slope_N = -sign_N * scipy.special.expit(-margin_N) / len(sign_N)
        return np.logaddexp(0, -margin_N).mean() + penalty_E @ w_E**2 / 2, slope_N @ z_NxE + penalty_E * w_E

    start_E = np.zeros(len(penalty_E))
    return scipy.optimize.minimize(loss_and_gradient, start_E, jac=True, method="L-BFGS-B").x[:-1] / scale_D
