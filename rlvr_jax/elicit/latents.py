"""One latent of a sparse autoencoder, added once: at the first generated token (arXiv 2601.08058).

The autoencoder is of the residual after one layer over the model's own completions. Which latent is a contrast: it is
active where a completion opens carefully more than elsewhere. How often it is added is chosen on the dev split.
P problems, N tokens, D width, F latents.
"""

import dataclasses
import json
import pathlib
from typing import Callable

import jax.numpy as jnp
import numpy as np

from rlvr_jax import parallel, sampler
from rlvr_jax.config import ElicitConfig
from rlvr_jax.elicit.activations import stream
from rlvr_jax.elicit.gate import problems_of
from rlvr_jax.elicit.sae import Recipe, Sae, encode, quality, train
from rlvr_jax.elicit.steering import Steering, steered_draw
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import by_answer, measure
from rlvr_jax.pretrained.loading import LanguageModel
from rlvr_jax.runs import files
from rlvr_jax.runs.log import progress
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import encode_prompts
from rlvr_jax.tools import readout


def contrast(scores_F: np.ndarray, seed: int) -> int:
    """The latent that tells careful openings from others best."""
    return int(np.argmax(scores_F))


def random(scores_F: np.ndarray, seed: int) -> int:
    """Another latent, by the seed, of those that are active somewhere at the end of a prompt: a control."""
    others = np.setdiff1d(np.flatnonzero(np.isfinite(scores_F)), contrast(scores_F, seed))
    if not len(others):
        raise UserError("--latent=random: only one latent is active at the ends of prompts; raise --active")
    return int(np.random.default_rng((seed, 3)).choice(others))


# --latent -> (score of each latent, -inf for those that are never active there; seed) -> which one is added
LATENTS: dict[str, Callable] = {"contrast": contrast, "random": random}


def chosen(config: ElicitConfig, loaded: LanguageModel) -> tuple[Steering, dict]:
    """What is added, and what is known of it: `latent`, its `contrast`, `strength`, accuracy on `dev` by strength, and
    the autoencoder's `explained` and `dead` shares (`sae.quality`).

    Raises UserError for a layer that the model lacks, and for problems without other splits.
    """
    if config.layer >= loaded.config.num_layers:
        raise UserError(f"--layer={config.layer}: the layers of the model are 0 to {loaded.config.num_layers - 1}")
    sae, scores_F, told = dictionary(config, loaded)
    latent = LATENTS[config.latent](scores_F, config.seed)
    added = {strength: Steering(*(np.asarray(x, np.float32) for x in (
        strength * sae.decoder[latent], np.zeros(len(sae.pre_bias)), 0, 0))) for strength in config.strengths}
    dev = problems_of(config, loaded, "dev", config.num_fit)
    prompts = encode_prompts(loaded.tokenizer, dev, loaded.config, config.max_new_tokens, config.max_prompt_tokens)
    sample = make_sampler(config, loaded, steered_draw("first", config.layer))
    judge, accuracy = by_answer(config.answer_format, config.grader, "lenient"), {}
    with progress(len(added), 0, "strengths", unit="strength") as bar:
        for strength, steering in added.items():
            rows = measure(sample, parallel.place_state({"model": loaded.params, "steering": steering}),
                           loaded.tokenizer, dev, prompts, temperature=0.0, num_samples=1, judge=judge,
                           seed=config.seed, step=0, rows_per_call=config.rows_per_call)
            accuracy[strength] = float(np.mean([row["correct"] for row in rows]))
            bar.update()
    best = max(accuracy, key=accuracy.get)  # of equal ones the first
    return added[best], told | {"latent": latent, "contrast": float(scores_F[latent]), "strength": best,
                                "dev": {f"{strength:g}": value for strength, value in accuracy.items()}}


def dictionary(config: ElicitConfig, loaded: LanguageModel) -> tuple[Sae, np.ndarray, dict]:
    """(autoencoder, score f[F] of each latent, what is known of it): from sae.npz of `config.out`, or fitted and kept
    there. A score is -inf where the latent is not active at the end of any prompt."""
    path = pathlib.Path(config.out) / "sae.npz"
    key = json.dumps({f.name: getattr(config, f.name) for f in dataclasses.fields(config) if not f.metadata["free"]})
    if path.is_file():
        with np.load(path) as kept:
            if str(kept["key"]) == key:
                return Sae(*(kept[name] for name in Sae._fields)), kept["scores"], json.loads(str(kept["told"]))
    problems = problems_of(config, loaded, "example", config.num_fit)
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, config.max_new_tokens, config.max_prompt_tokens)
    rows = list(measure(
        make_sampler(config, loaded), parallel.place_state(loaded.params), loaded.tokenizer, problems, prompts,
        temperature=1.0, num_samples=config.num_samples, judge=lambda texts, problems: [{}] * len(texts),
        seed=config.seed, step=0, rows_per_call=config.rows_per_call, stream=sampler.CHOOSE,
        tell=lambda rollouts, texts, judged: [{"ids": ids[mask]} for ids, mask in zip(
            rollouts.completions, rollouts.completion_mask)]))
    lengths_N = prompts.lengths[[row["problem"] for row in rows]]
    texts = [np.concatenate([prompts.tokens[row["problem"]][:n], row["ids"]]) for row, n in zip(rows, lengths_N)]
    streamed = stream(loaded, texts, [config.layer], path.parent / "activations")
    x_NxD = streamed.at(config.layer)[streamed.positions >= lengths_N[streamed.row] - 1]  # from the prompt's end on
    recipe = Recipe(config.num_latents, min(config.active, config.num_latents), num_steps=config.sae_steps)
    with progress(recipe.num_steps, 0, "autoencoder", unit="step") as bar:
        sae = Sae(*map(np.asarray, train(x_NxD, recipe, config.seed, bar.update)))
    told = quality(sae, recipe.active, x_NxD)
    scores_F = opening_scores(config, loaded, problems, rows, lambda x: np.asarray(
        encode(sae, jnp.asarray(x, jnp.float32), recipe.active)))
    with files.naming(path), open(path.with_suffix(".part"), "wb") as file:
        np.savez(file, key=key, told=json.dumps(told), scores=scores_F, **sae._asdict())
    path.with_suffix(".part").replace(path)
    return sae, scores_F, told


def opening_scores(config: ElicitConfig, loaded: LanguageModel, problems: list[Problem], rows: list[dict],
                   read: Callable) -> np.ndarray:
    """f64[F]: how much more active each latent is, in the mean, at the end of prompts where a careful completion
    follows than where another does; for a model of no synthetic family, after --opening than before it."""
    family = FAMILIES.get(config.problems)

    def ends(asked):
        prompts = encode_prompts(loaded.tokenizer, asked, loaded.config, 1)
        return read(readout.at_last_token(loaded.params, loaded.config, prompts)[0][config.layer])

    z_PxF = ends(problems)
    if family is None:
        with_PxF = ends([dataclasses.replace(one, prompt=f"{one.prompt} {config.opening}") for one in problems])
        scores_F, active_F = (with_PxF - z_PxF).mean(0), (with_PxF + z_PxF).any(0)
    else:
        careful_P = np.array([readout.carefully(family, loaded.tokenizer, [row["ids"][0] for row in rows])]).reshape(
            len(problems), -1).mean(-1)
        if not 0 < careful_P.sum() < len(problems):
            raise UserError("--method=sae: the model's completions open carefully always or never, and there have to "
                            "be some and others; raise --num_fit")
        scores_F = np.average(z_PxF, 0, careful_P) - np.average(z_PxF, 0, 1 - careful_P)
        active_F = z_PxF.any(0)
    return np.where(active_F, scores_F, -np.inf)


def make_sampler(config: ElicitConfig, loaded: LanguageModel, draw=None) -> Callable:
    return sampler.make_sampler(loaded.config, eos_ids=loaded.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
                                num_slots=config.num_slots, draw=draw)
