"""One latent of a sparse autoencoder, added once: at the first generated token (arXiv 2601.08058).

The autoencoder is of the residual after one layer over the model's own completions. Which latent is a contrast: it is
active where a completion opens carefully more than elsewhere. How often it is added is chosen on the dev split.
P problems, N tokens, D width, F latents.
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
from rlvr_jax.evaluation.measure import Benchmark, make_sampler, measure
from rlvr_jax.lab.elicit import openings, vectors
from rlvr_jax.lab.elicit.activations import Activations, stream
from rlvr_jax.lab.elicit.sae import Recipe, Sae, encode, quality, train
from rlvr_jax.lab.elicit.steering import Steering, steered_sample_fn
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem
from rlvr_jax.runs import files
from rlvr_jax.runs.log import progress
from rlvr_jax.sampler import CHOOSE, Request
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.prompts import encode_prompts


class LatentConfig(Config):
    """The autoencoder, and which of its latents is added."""

    latent: str = flag("contrast", "latent that sae adds", lambda: LATENTS)
    num_latents: int = flag(512, "latents of the autoencoder of sae", minimum=1)
    active: int = flag(8, "latents that are active at a token, at most", minimum=1)
    sae_steps: int = flag(2000, "updates of the autoencoder", minimum=1)
    strengths: tuple[float, ...] = flag((1.0, 2.0, 4.0, 8.0, 16.0), "times that sae adds a direction of length 1; "
                                        "the one that is best on the dev split counts", minimum=0)


def contrast(scores_F: np.ndarray, seed: int) -> int:
    """The latent that separates careful openings from others best."""
    return int(np.argmax(scores_F))


def random(scores_F: np.ndarray, seed: int) -> int:
    """Another latent, by the seed, of those that are active somewhere at the end of a prompt: a control."""
    others = np.setdiff1d(np.flatnonzero(np.isfinite(scores_F)), contrast(scores_F, seed))
    if not len(others):
        raise UserError("--latent=random: only one latent is active at the ends of prompts; raise --active")
    return int(np.random.default_rng((seed, 3)).choice(others))


# --latent -> (score of each latent, -inf for those that are never active there; seed) -> which one is added
LATENTS: dict[str, Callable] = {"contrast": contrast, "random": random}


def choose_latent(config: LatentConfig, steering: vectors.SteeringConfig, loaded: LanguageModel,
           num_samples: int) -> tuple[Steering, dict]:
    """What is added, and its numbers for a summary: `latent`, its `contrast`, `strength`, accuracy on `dev` by
    strength, and the autoencoder's `explained` and `dead` shares (`sae.quality`).

    Raises UserError for a layer that the model lacks, and for problems without other splits.
    """
    kept = steering.kept
    vectors.check_layer(steering, loaded)
    sae, scores_F, numbers = dictionary(config, steering, loaded, num_samples)
    latent = LATENTS[config.latent](scores_F, kept.seed)
    added = {strength: Steering(*(np.asarray(x, np.float32) for x in (
        strength * sae.decoder[latent], np.zeros(len(sae.pre_bias)), 0, 0))) for strength in config.strengths}
    benchmark = make_benchmark(kept, loaded, "dev", vectors.problems_apart(steering, loaded, "dev"))
    sampler, accuracy = make_sampler(loaded, kept.sampling, sample_fn=steered_sample_fn("first", steering.layer),
                                     params={}), {}
    with progress(len(added), 0, "strengths", unit="strength") as bar:
        for strength, values in added.items():
            params = parallel.place_state({"model": loaded.params, "steering": values})
            rows = measure(sampler._replace(params=params), benchmark, Request(kept.seed, 0), kept.rows_per_call)
            accuracy[strength] = float(np.mean([row["correct"] for row in rows]))
            bar.update()
    best = max(accuracy, key=accuracy.get)  # of equal ones the first
    return added[best], numbers | {"latent": latent, "contrast": float(scores_F[latent]), "strength": best,
                                   "dev": {f"{strength:g}": value for strength, value in accuracy.items()}}


def dictionary(config: LatentConfig, steering: vectors.SteeringConfig, loaded: LanguageModel,
               num_samples: int) -> tuple[Sae, np.ndarray, dict]:
    """(autoencoder, score f[F] of each latent, `sae.quality`): from sae.npz of --out, or fitted and kept there. A score
    is -inf where the latent is not active at the end of any prompt."""
    path = pathlib.Path(steering.kept.out) / "sae.npz"
    leaves = [*flags_of(steering), *flags_of(config)]
    flags = {leaf.name: leaf.value for leaf in leaves if not leaf.meta["free"]} | {"num_samples": num_samples}
    key = json.loads(json.dumps(flags))  # as it comes back from the file
    if path.is_file():
        with np.load(path) as held:
            if key.items() <= json.loads(str(held["key"])).items():
                return Sae(*(held[name] for name in Sae._fields)), held["scores"], json.loads(str(held["told"]))
    problems = vectors.problems_apart(steering, loaded, "example")
    rows, streamed, ends_N = sample_activations(steering, loaded, problems, num_samples)
    x_NxD = streamed.at(steering.layer)[streamed.positions >= ends_N[streamed.row]]
    recipe = Recipe(config.num_latents, min(config.active, config.num_latents), num_steps=config.sae_steps)
    with progress(recipe.num_steps, 0, "autoencoder", unit="step") as bar:
        sae = Sae(*map(np.asarray, train(x_NxD, recipe, steering.kept.seed, bar.update)))
    numbers = quality(sae, recipe.active, x_NxD)
    scores_F = opening_scores(steering, loaded, problems, rows, lambda x: np.asarray(
        encode(sae, jnp.asarray(x, jnp.float32), recipe.active)))
    with files.name_in_errors(path), open(path.with_suffix(".part"), "wb") as file:
        np.savez(file, key=json.dumps(key), told=json.dumps(numbers), scores=scores_F, **sae._asdict())
    path.with_suffix(".part").replace(path)
    return sae, scores_F, numbers


def sample_activations(config: vectors.SteeringConfig, loaded: LanguageModel, problems: list[Problem],
                       num_samples: int) -> tuple[list[dict], Activations, np.ndarray]:
    """What the autoencoder is fitted on: (rows of completions at temperature 1 with their "ids", activations of each
    with its prompt, the place of each prompt's last token)."""
    kept = config.kept
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, kept.sampling.max_new_tokens,
                             kept.source.prompt.max_prompt_tokens)
    benchmark = Benchmark("example", problems, prompts, lambda texts, problems: [{}] * len(texts), num_samples, 1.0)
    rows = list(measure(
        make_sampler(loaded, kept.sampling), benchmark, Request(kept.seed, 0, stream=CHOOSE), kept.rows_per_call,
        more=lambda rollouts, texts, judged: [{"ids": ids[mask]} for ids, mask in zip(
            rollouts.completions, rollouts.completion_mask)]))
    lengths_N = prompts.lengths[[row["problem"] for row in rows]]
    texts = [np.concatenate([prompts.tokens[row["problem"]][:n], row["ids"]]) for row, n in zip(rows, lengths_N)]
    return rows, stream(loaded, texts, [config.layer], pathlib.Path(kept.out) / "activations"), lengths_N - 1


def opening_scores(config: vectors.SteeringConfig, loaded: LanguageModel, problems: list[Problem], rows: list[dict],
                   read: Callable) -> np.ndarray:
    """f64[F]: how much more active each latent is, in the mean, at the end of prompts where a careful completion
    follows than where another does; for a model of no synthetic family, after --opening than before it."""
    family = FAMILIES.get(config.kept.source.problems)

    def ends(asked):
        return read(openings.at_last_token(loaded, asked)[0][config.layer])

    z_PxF = ends(problems)
    if family is None:
        with_PxF = ends(openings.continued(problems, config.opening))
        scores_F, active_F = (with_PxF - z_PxF).mean(0), (with_PxF + z_PxF).any(0)
    else:
        careful_P = openings.carefully(family, loaded.tokenizer, [row["ids"][0] for row in rows]).reshape(
            len(problems), -1).mean(-1)
        if not 0 < careful_P.sum() < len(problems):
            raise UserError("--method=sae: the model's completions open carefully always or never, and there have to "
                            "be some and others; raise --num_fit")
        scores_F = np.average(z_PxF, 0, careful_P) - np.average(z_PxF, 0, 1 - careful_P)
        active_F = z_PxF.any(0)
    return np.where(active_F, scores_F, -np.inf)
