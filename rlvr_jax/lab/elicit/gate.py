"""The gate, which decides at which tokens to steer: a linear probe of the base model's residual, fitted to predict
where the most likely token of a trained model differs from the base model's (arXiv 2510.07364).
P problems, R = 2P texts, N tokens of these texts, D width, E = D + 1 for the weights and an intercept.
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
from rlvr_jax.lab.elicit.activations import read_tokens, sample_texts
from rlvr_jax.lab.elicit.steering import Steering
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem

PENALTY = 1e-3  # L2 penalty: PENALTY / 2 times the sum of squared weights, added to the mean loss of a token


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fitted steering vector and gate. Steering with them runs the base model alone, never the trained model."""

    problems: list[Problem]  # the problems that vector and gate were fitted on
    vector_D: np.ndarray  # f64
    weight_D: np.ndarray  # f64, weights of the gate
    scores_N: np.ndarray  # f64, `residual @ weight_D` at the tokens that the gate was fitted on
    gate: dict  # numbers about the gate, for a summary (`fit_gate`)

    def steering(self, strength: float, rate: float) -> Steering:
        """The vector times `strength`, and a gate that acts at the share `rate` of the tokens it was fitted on."""
        threshold = np.quantile(self.scores_N, 1 - rate)
        return Steering(vector=np.asarray(strength * self.vector_D, np.float32), rate=np.asarray(rate, np.float32),
                        weight=np.asarray(self.weight_D, np.float32), threshold=np.asarray(threshold, np.float32))


def fit(config: vectors.SteeringConfig, loaded: LanguageModel, trained: Optional[LanguageModel]) -> Fitted:
    """Computes the vector of --vector, and fits a gate unless `trained` is None: then the gate is zeros and its numbers
    are {}. Raises UserError for a layer that the model lacks, for a file of --problems without --fit_problems, and if
    the vector or the gate cannot be fitted."""
    vectors.check_layer(config, loaded)
    problems = vectors.load_fit_problems(config, loaded, "example")
    vector_D = vectors.VECTORS[config.vector](config, loaded, problems)
    if trained is None:
        return Fitted(problems, vector_D, np.zeros(len(vector_D)), np.zeros(1), {})
    return Fitted(problems, vector_D, *fit_gate(config, loaded, trained, problems))


def fit_gate(config: vectors.SteeringConfig, loaded: LanguageModel, trained: LanguageModel,
             problems: list[Problem]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Fits a logistic regression on the greedy completions of both models. It predicts from the base model's residual
    after --layer whether the most likely next tokens of the two models differ. One in five problems is held out.
    Returns (weight f64[D]; scores f64[N], `residual @ weight` at the tokens that were fitted on; numbers). The numbers:
    `n`, how many tokens the completions have; `differ`, the share of these tokens where the models differ, and
    `differ_first`, that share of first tokens; `first_of_differ`, the share of first tokens among those that differ;
    `auroc`, on the held-out problems. Raises UserError if the models differ at none of the tokens to fit on."""
    sampler, texts = make_sampler(loaded, config.kept.sampling), []
    for params in (sampler.params, parallel.place_state(trained.params)):
        sampled, lengths_P = sample_texts(config.kept, loaded.config, sampler._replace(params=params), problems)
        texts += sampled  # P texts of the base model, then P of the trained one; both have the same prompts
    starts_R = np.tile(lengths_P, 2) - 1  # the last prompt token of each text predicts the first generated token
    base, other = read_tokens(loaded, texts, starts_R, config.layer), read_tokens(trained, texts, starts_R)
    within_N = base.position < np.array(list(map(len, texts)))[base.text] - 1  # no token follows a text's last one
    differ_N = (base.likeliest != other.likeliest)[within_N]
    first_N = (base.position == starts_R[base.text])[within_N]
    fitted_N = (base.text % len(problems) % 5 > 0)[within_N]  # text i and text P + i are of problem i
    x_NxD = base.residual[within_N].astype(np.float64)
    if not (differ_N & fitted_N).any():
        raise UserError(f"--trained={config.trained} has the same most likely token as --model everywhere: there is no "
                        "gate to fit; take a model whose completions differ")
    weight_D = logistic_weights(x_NxD[fitted_N], differ_N[fitted_N])
    scores_N = x_NxD @ weight_D
    return weight_D, scores_N[fitted_N], {
        "n": len(differ_N), "differ": float(differ_N.mean()), "differ_first": float(differ_N[first_N].mean()),
        "first_of_differ": float(first_N[differ_N].mean()),
        "auroc": auroc(scores_N[~fitted_N], differ_N[~fitted_N])}


def logistic_weights(x_NxD: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """f64[D]: weights of a logistic regression of the bools y on x, fitted on standardised columns and scaled back to
    x. An intercept is fitted but not returned, because the gate's threshold takes its place."""
    scale_D = x_NxD.std(0) + 1e-6
    z_NxE = np.column_stack([(x_NxD - x_NxD.mean(0)) / scale_D, np.ones(len(x_NxD))])
    sign_N, penalty_E = np.where(y_N, 1.0, -1.0), np.append(np.full(len(scale_D), PENALTY), 0.0)

    def loss_and_gradient(w_E):
        margin_N = sign_N * (z_NxE @ w_E)
        slope_N = -sign_N * scipy.special.expit(-margin_N) / len(sign_N)
        return np.logaddexp(0, -margin_N).mean() + penalty_E @ w_E**2 / 2, slope_N @ z_NxE + penalty_E * w_E

    start_E = np.zeros(len(penalty_E))
    return scipy.optimize.minimize(loss_and_gradient, start_E, jac=True, method="L-BFGS-B").x[:-1] / scale_D
