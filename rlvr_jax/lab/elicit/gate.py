"""When to steer: a probe of the base, fitted to where a trained model's likeliest token is another (arXiv 2510.07364).

P problems, N tokens that are fitted on, D width.
"""

import dataclasses
import pathlib
from typing import Optional

import numpy as np
import scipy.optimize
import scipy.special

from rlvr_jax import parallel
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.calibration import auroc
from rlvr_jax.evaluation.measure import make_sampler
from rlvr_jax.lab.elicit import vectors
from rlvr_jax.lab.elicit.activations import stream
from rlvr_jax.lab.elicit.steering import Steering
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.sampler import CHOOSE, Request
from rlvr_jax.tasks.prompts import encode_prompts

PENALTY = 1e-3  # of the gate's weights, squared and halved, beside the mean loss of a token


@dataclasses.dataclass(frozen=True)
class Fitted:
    """All that steering needs once the gate is fitted. From here on the trained model is not run."""

    problems: list[Problem]
    vector_D: np.ndarray
    weight_D: np.ndarray  # of the gate
    scores_N: np.ndarray  # of the gate, at the tokens it was fitted on
    gate: dict  # its numbers for a summary (`fit_gate`)

    def steering(self, strength: float, rate: float) -> Steering:
        """Acts at this share of the tokens that the gate was fitted on."""
        threshold = np.quantile(self.scores_N, 1 - rate)
        values = strength * self.vector_D, self.weight_D, threshold, rate
        return Steering(*(np.asarray(value, np.float32) for value in values))


def fit(config: vectors.SteeringConfig, loaded: LanguageModel, trained: Optional[LanguageModel]) -> Fitted:
    """The vector, and the gate where there is a trained model to fit it to. Raises UserError for a layer that the model
    lacks, and for problems that have no split to fit on."""
    vectors.check_layer(config, loaded)
    problems = vectors.problems_apart(config, loaded, "example")
    vector_D = vectors.VECTORS[config.vector](config, loaded, problems)
    nothing = np.zeros(len(vector_D)), np.zeros(1), {}
    return Fitted(problems, vector_D, *(fit_gate(config, loaded, trained, problems) if trained else nothing))


def load_trained(config: vectors.SteeringConfig, loaded: LanguageModel) -> LanguageModel:
    """--trained. Raises UserError where it is not given, or is a model of another kind."""
    if not config.trained:
        raise UserError("--trained is required: the model that the gate is fitted to")
    choice = config.kept.choice
    trained = loading.load_model(config.trained, choice.dtype, choice.dtype)
    if trained.config != loaded.config:
        raise UserError(f"--trained={config.trained} has another shape than --model={choice.model}; take a model that "
                        "was trained from it")
    return trained


def fit_gate(config: vectors.SteeringConfig, loaded: LanguageModel, trained: LanguageModel,
             problems: list[Problem]) -> tuple[np.ndarray, np.ndarray, dict]:
    """(weight f64[D], scores f64[N], numbers for a summary) of a gate fitted to where the likeliest tokens differ.

    A logistic regression on the base's residuals over greedy completions of both models. One in five problems is left
    out of it: `auroc` is of these. `differ` is the share of tokens that differ, `differ_first` that of first tokens,
    `first_of_differ` the share of the differing ones that are first.
    """
    kept = config.kept
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, kept.sampling.max_new_tokens,
                             kept.source.prompt.max_prompt_tokens)
    texts = greedy_texts(config, loaded, trained, prompts)
    folder = pathlib.Path(kept.out) / "activations"
    base, other = stream(loaded, texts, [config.layer], folder / "base"), stream(trained, texts, [], folder / "trained")
    owners_N = base.row % len(problems)
    steps_N = base.positions - prompts.lengths[owners_N] + 1
    lengths_N = np.array(list(map(len, texts)))[base.row]
    generated_N = (steps_N >= 0) & (base.positions < lengths_N - 1)  # nothing is generated after the last token
    differ_N, steps_N = (base.likeliest != other.likeliest)[generated_N], steps_N[generated_N]
    x_NxD, fitted_N = base.at(config.layer)[generated_N].astype(np.float64), owners_N[generated_N] % 5 > 0
    if not (differ_N & fitted_N).any():
        raise UserError(f"--trained={config.trained} has the likeliest tokens of --model everywhere: there is no gate "
                        "to fit")
    weight_D = logistic(x_NxD[fitted_N], differ_N[fitted_N])
    scores_N = x_NxD @ weight_D
    return weight_D, scores_N[fitted_N], {
        "n": len(differ_N), "differ": float(differ_N.mean()), "differ_first": float(differ_N[steps_N == 0].mean()),
        "first_of_differ": float((steps_N[differ_N] == 0).mean()),
        "auroc": auroc(scores_N[~fitted_N], differ_N[~fitted_N])}


def greedy_texts(config: vectors.SteeringConfig, loaded: LanguageModel, trained: LanguageModel,
                 prompts: Prompts) -> list[np.ndarray]:
    """Token ids of each prompt with its greedy completion by the base, then of each with that by the trained model."""
    sampler, texts = make_sampler(loaded, config.kept.sampling), []
    for params in (sampler.params, parallel.place_state(trained.params)):
        out = sampler.sample(params, prompts, np.arange(len(prompts.lengths)), Request(config.kept.seed, 0, 0.0,
                                                                                  stream=CHOOSE))
        texts += [np.concatenate([tokens[:length], ids[mask]]) for tokens, length, ids, mask
                  in zip(prompts.tokens, prompts.lengths, out.completions, out.completion_mask)]
    return texts


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
