"""Steers with one latent of a sparse autoencoder: adds its direction at the first generated token (arXiv 2601.08058).

The autoencoder is fitted on the residual after one layer over the model's own completions. The chosen latent is one
that is more active at the end of a prompt if its completions start in the careful style (such as "think ..."). Its
strength is chosen on dev, or on --fit_problems. P problems, R completions of them, N tokens, D width, F latents.
"""

import json
import pathlib
from typing import Callable

import jax.numpy as jnp
import numpy as np

from rlvr_jax import parallel
from rlvr_jax.config import Config, flag, flags_of
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import make_benchmark
from rlvr_jax.evaluation.measure import make_sampler, sample_and_grade
from rlvr_jax.lab.elicit import vectors
from rlvr_jax.lab.elicit.activations import read_prompt_ends, read_tokens, sample_texts
from rlvr_jax.lab.elicit.sae import Recipe, Sae, encode, measure_quality, train
from rlvr_jax.lab.elicit.steering import Steering, steered_sample_fn
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem
from rlvr_jax.runs import files
from rlvr_jax.runs.log import progress
from rlvr_jax.sampler import Request
from rlvr_jax.tasks.families import FAMILIES


class LatentConfig(Config):
    """Settings of steering with a latent of a sparse autoencoder (--method=sae)."""

    latent: str = flag("contrast", "which latent sae adds", lambda: LATENTS)
    num_latents: int = flag(512, "number of latents of the autoencoder of sae", minimum=1)
    active: int = flag(8, "largest number of latents that are active at one token", minimum=1)
    sae_steps: int = flag(2000, "training steps of the autoencoder", minimum=1)
    strengths: tuple[float, ...] = flag((1.0, 2.0, 4.0, 8.0, 16.0), "lengths of the vector that sae adds: the one "
                                        "with the highest accuracy on the dev split is used", minimum=0)


def contrast(scores_F: np.ndarray, seed: int) -> int:
    """The latent that is most specific to prompts whose completions start in the careful style."""
    return int(np.argmax(scores_F))


def random(scores_F: np.ndarray, seed: int) -> int:
    """A control: a latent other than that of contrast, active at the end of some prompt. UserError if no other is."""
    others = np.setdiff1d(np.flatnonzero(np.isfinite(scores_F)), contrast(scores_F, seed))  # inactive: -inf
    if not len(others):
        raise UserError("--latent=random: only one latent is active at the ends of prompts; raise --active")
    return int(np.random.default_rng((seed, 3)).choice(others))


# --latent -> function of (scores of `score_latents`, seed) that returns the index of the latent to add
LATENTS: dict[str, Callable] = {"contrast": contrast, "random": random}


def choose_latent(config: LatentConfig, steering: vectors.SteeringConfig, loaded: LanguageModel,
                  num_samples: int) -> tuple[Steering, dict]:
    """Chooses a latent, and its strength by accuracy. The autoencoder is fitted on `num_samples` completions of
    each problem. Returns (a Steering with the latent's direction times the strength, numbers). The numbers: `latent`,
    its index; `contrast`, its score; `strength`; `dev`, {strength as text: accuracy}; and, of the autoencoder, the
    share of variance it has `explained` and the share of `dead` latents (`sae.measure_quality`). Raises UserError for a
    layer that the model lacks, and if --problems is a file, which has one split only, and --fit_problems is empty."""
    kept = steering.kept
    vectors.check_layer(steering, loaded)
    sae, scores_F, numbers = load_or_fit(config, steering, loaded, num_samples)
    latent = LATENTS[config.latent](scores_F, kept.seed)
    weight_D, zero = np.zeros(len(sae.pre_bias), np.float32), np.zeros((), np.float32)  # no gate: "first" uses none
    candidates = {strength: Steering(np.asarray(strength * sae.decoder[latent], np.float32), weight_D, zero, zero)
                  for strength in config.strengths}
    benchmark = make_benchmark(kept, loaded, "dev", vectors.load_fit_problems(steering, loaded, "dev"))
    sampler = make_sampler(loaded, kept.sampling, sample_fn=steered_sample_fn("first", steering.layer), params={})
    accuracy = {}
    with progress(len(candidates), 0, "strengths") as bar:
        for strength, values in candidates.items():
            params = parallel.place_state({"model": loaded.params, "steering": values})
            rows = sample_and_grade(sampler._replace(params=params), benchmark, Request(kept.seed, 0),
                                    kept.rows_per_call)
            accuracy[strength] = float(np.mean([row["correct"] for row in rows]))
            bar.update()
    best = max(accuracy, key=accuracy.get)  # of ties, the first
    return candidates[best], numbers | {"latent": latent, "contrast": float(scores_F[latent]), "strength": best,
                                        "dev": {f"{strength:g}": value for strength, value in accuracy.items()}}


def load_or_fit(config: LatentConfig, steering: vectors.SteeringConfig, loaded: LanguageModel,
                num_samples: int) -> tuple[Sae, np.ndarray, dict]:
    """Returns (autoencoder, scores f[F] of `score_latents`, numbers of `sae.measure_quality`). Loads them from sae.npz
    in --out if it has the same `num_samples` and flags, but for `free` flags such as --out; else computes and saves."""
    path = pathlib.Path(steering.kept.out) / "sae.npz"
    fixed = {item.name: item.value for item in (*flags_of(steering), *flags_of(config)) if not item.meta["free"]}
    key = json.loads(json.dumps(fixed | {"num_samples": num_samples}))  # tuples become lists, as in sae.npz
    if path.is_file():
        with np.load(path) as saved:
            if key.items() <= json.loads(str(saved["key"])).items():
                return Sae(*(saved[name] for name in Sae._fields)), saved["scores"], json.loads(str(saved["told"]))
    problems = vectors.load_fit_problems(steering, loaded, "example")
    sampler = make_sampler(loaded, steering.kept.sampling)
    texts, lengths_R = sample_texts(steering.kept, loaded.config, sampler, problems, num_samples, temperature=1.0)
    x_NxD = read_tokens(loaded, texts, lengths_R - 1, steering.layer).residual  # from the last token of a prompt on
    recipe = Recipe(config.num_latents, min(config.active, config.num_latents), num_steps=config.sae_steps)
    with progress(recipe.num_steps, 0, "autoencoder") as bar:
        sae = Sae(*map(np.asarray, train(x_NxD, recipe, steering.kept.seed, bar.update)))
    numbers = measure_quality(sae, recipe.active, x_NxD)
    first_R = [text[length] for text, length in zip(texts, lengths_R)]
    scores_F = score_latents(steering, loaded, problems, first_R, lambda x: np.asarray(
        encode(sae, jnp.asarray(x, jnp.float32), recipe.active)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.name_in_errors(path), open(path.with_suffix(".part"), "wb") as file:
        np.savez(file, key=json.dumps(key), told=json.dumps(numbers), scores=scores_F, **sae._asdict())
    path.with_suffix(".part").replace(path)
    return sae, scores_F, numbers


def score_latents(config: vectors.SteeringConfig, loaded: LanguageModel, problems: list[Problem], first_R: list[int],
                  read: Callable) -> np.ndarray:
    """f[F]: a score of each latent. If --problems is a synthetic family, it is the latent's mean activation at the end
    of a prompt over completions that start in the careful style, minus the mean over all other completions. Otherwise
    it is the mean activation at the end of prompts followed by --opening, minus the mean at the end of prompts alone.
    It is -inf for a latent that is inactive at all of these prompt ends. `first_R` has the first token of each
    completion, in the order of the problems; `read` maps residuals f[P,D] to latents f[P,F]. Raises UserError if all
    completions of a synthetic family start in the careful style, or if none does."""
    def read_ends(problems):
        residuals_LxPxD, _ = read_prompt_ends(loaded, problems)
        return read(residuals_LxPxD[config.layer])

    family, z_PxF = FAMILIES.get(config.kept.source.problems), read_ends(problems)
    if family is None:
        opened_PxF = read_ends(vectors.append_words(problems, config.opening))
        return np.where((opened_PxF + z_PxF).any(0), (opened_PxF - z_PxF).mean(0), -np.inf)
    careful_R = vectors.is_careful(family, loaded.tokenizer, first_R)
    careful_P = careful_R.reshape(len(problems), -1).mean(-1)  # each problem's share of careful completions
    if not 0 < careful_P.sum() < len(problems):
        raise UserError(f"--method=sae: {careful_R.sum()} of {len(careful_R)} completions start in the careful style; "
                        "some that do and some that do not are needed: raise --num_fit")
    scores_F = np.average(z_PxF, 0, careful_P) - np.average(z_PxF, 0, 1 - careful_P)
    return np.where(z_PxF.any(0), scores_F, -np.inf)
