"""Interprets trained vectors: which tokens they make likelier, and which directions of the base model they resemble.

A trained vector is added to the residual after one layer; its model has one for each layer (scripts.train --trainable).
A cosine compares a vector with a direction of the residual after the same layer. For random directions the cosine has
mean 0 and standard deviation 1/sqrt(D). L layers, D width, P problems, V vocabulary.
"""

import dataclasses
import pathlib
from typing import Optional

import jax.numpy as jnp
import numpy as np

from rlvr_jax import adapters, model
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit.activations import read_prompt_ends
from rlvr_jax.lab.elicit.vectors import difference_of_means, is_careful, opening_words, trained_vectors
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.runs import files
from rlvr_jax.runs.machine import MachineConfig
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks.families import FAMILIES, Family
from rlvr_jax.tasks.prompts import ProblemSource, check_style, load_problems

TOKENS = 8  # how many of the most raised, and of the most lowered, tokens are shown


class ReadoutConfig(Config):
    """An interpretation of the vectors of a trained model."""

    choice: loading.ModelChoice = loading.ModelChoice()
    machine: MachineConfig = MachineConfig()
    beside: str = flag("", "other models with vectors of the same shape, to compare with; joined by commas")
    source: ProblemSource = nested(
        ProblemSource(), problems="problems whose prompts the models are run on: a synthetic family or a file",
        prompt_style="how a question of a file becomes a prompt",
        ignore_columns="columns of a file to ignore, joined by commas")
    heldout_split: str = flag("dev", "split of a synthetic family to run on", ["dev", "test"])
    num_problems: int = flag(512, "number of problems; 0: all of a file, 512 of a family", minimum=0)
    out: str = flag("", "directory for readout.json and readout.md")


def readout(config: ReadoutConfig) -> dict:
    """Interprets the vectors of --model; returns the result, and writes it to readout.json and readout.md in --out.
    `layers` maps the number of each layer whose vector is not zero, as text, to the vector's norm, tokens and cosines.
    `careful` is the share of problems whose first token opens the careful style, without and with the vectors. It and
    the cosines with `cosine_difference_of_means` and `cosine_opener` are None unless --problems is a synthetic family.
    The base model is --model without its vectors. UserError without vectors, or if --beside's have another shape."""
    if not config.out:
        raise UserError("--out is required: the directory for readout.json and readout.md")
    check_style(config.source)
    config = config.with_flags(model=loading.pin_step(config.choice.model))
    loaded, source = loading.load_fixed(config.choice), config.source
    vectors_LxD = trained_vectors("model", config.choice.model, loaded)
    names = [loading.pin_step(name) for name in config.beside.split(",") if name]
    others = [trained_vectors("beside", name, loading.load_model(name), vectors_LxD.shape) for name in names]
    problems = load_problems(source, loaded.tokenizer, config.heldout_split, config.num_problems)
    base = dataclasses.replace(loaded, params=adapters.base_params(loaded.params))
    family, longest = FAMILIES.get(source.problems), source.prompt.max_prompt_tokens
    residuals_LxPxD, base_tokens_P = read_prompt_ends(base, problems, longest)
    _, tokens_P = read_prompt_ends(loaded, problems, longest)
    base_careful_P = is_careful(family, loaded.tokenizer, base_tokens_P) if family else None
    careful_P = is_careful(family, loaded.tokenizer, tokens_P) if family else None
    opener_D = opener_direction(family, loaded.tokenizer, base.params) if family else None
    scale = float(np.sqrt(np.mean(residuals_LxPxD[-1] ** 2, -1)).mean())  # an argument of `direct_logits`
    layers = {}
    for i in np.flatnonzero(vectors_LxD.any(-1)):
        vector_D, norm = vectors_LxD[i], float(np.linalg.norm(vectors_LxD[i]))
        layers[str(i)] = {
            "norm": norm, "norm_over_residual": norm / float(np.linalg.norm(residuals_LxPxD[i], axis=-1).mean()),
            **extreme_tokens(loaded.tokenizer, direct_logits(base.params, vector_D, scale)),
            "cosine_difference_of_means": cosine(vector_D, difference_of_means(residuals_LxPxD[i], base_careful_P)),
            "cosine_opener": cosine(vector_D, opener_D),
            "cosine_beside": {str(n): cosine(vector_D, other[i]) for n, other in enumerate(others)}}
    careful = {"base": float(base_careful_P.mean()), "with_vectors": float(careful_P.mean())} if family else None
    result = {"n": len(problems), "random_cosine": vectors_LxD.shape[1] ** -0.5,
              "careful": careful, "beside": {str(n): name for n, name in enumerate(names)}, "layers": layers,
              "flags": config.as_flags()}
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    files.write_whole(out / "readout.md", format_page(result))
    files.write_json(out / "readout.json", result)
    return result


def opener_direction(family: Family, tokenizer: Tokenizer, params: model.Params) -> np.ndarray:
    """f64[D]: the direction that raises the logits of the family's careful opening words against those of its other
    opening words: the final norm's gain times (mean of the head's columns of careful words - mean of the others)."""
    def mean_column(words):
        ids = [tokenizer.encode(word)[0] for word in words]
        columns = params["head"][:, ids].T if "head" in params else params["embed"][ids]
        return np.asarray(columns, np.float64).mean(0)

    careful, others = opening_words(family)
    return np.asarray(params["final_norm"], np.float64) * (mean_column(careful) - mean_column(others))


def direct_logits(params: model.Params, vector_D: np.ndarray, scale: float) -> np.ndarray:
    """f32[V]: what the vector adds to each logit directly, not through later layers, minus the mean over tokens. The
    head is applied to `gain * vector / scale`, with the gain of the final norm. `scale` replaces the norm's divisor: it
    is the root mean square of the base model's last residual, mean over prompts (logit lens, nostalgebraist 2020)."""
    hidden_D = jnp.asarray(np.asarray(params["final_norm"], np.float64) * vector_D / scale, jnp.float32)
    logits_V = np.asarray(model.head(params, hidden_D))
    return logits_V - logits_V.mean()


def extreme_tokens(tokenizer: Tokenizer, logits_V: np.ndarray) -> dict:
    """The TOKENS tokens with the highest and lowest logits, the most extreme first: `{"raised": [[token, logit], ...],
    "lowered": ...}`. Ids for which the tokenizer has no token are left out."""
    order = [i for i in np.argsort(logits_V, kind="stable").tolist() if tokenizer.backend.id_to_token(i) is not None]
    raised, lowered = ([[tokenizer.backend.decode([i], skip_special_tokens=False), float(logits_V[i])] for i in chosen]
                       for chosen in (order[::-1][:TOKENS], order[:TOKENS]))
    return {"raised": raised, "lowered": lowered}


def cosine(a_D: np.ndarray, b_D: Optional[np.ndarray]) -> Optional[float]:
    """The cosine of the angle between two directions; None if the second is None or zero."""
    return None if b_D is None or not b_D.any() else float(a_D @ b_D / np.linalg.norm(a_D) / np.linalg.norm(b_D))


def format_page(result: dict) -> str:
    """The text of readout.md: a table of the result of `readout`, with a row for each vector."""
    def number(value):
        return "-" if value is None else f"{value:+.3f}"

    def tokens(pairs):
        return ", ".join(f"{token!r} {logit:+.1f}" for token, logit in pairs).replace("|", "\\|")

    flags, careful = result["flags"], result["careful"]
    text = (f"The vectors of {flags['model']}, with {result['n']} problems of {flags['problems']} as prompts.\n"
            f"Cosines of random directions have standard deviation {result['random_cosine']:.3f}.\n")
    if careful:
        text += (f"The likeliest first word opens a careful solution of {careful['base']:.1%} of the problems in the "
                 f"base, and of {careful['with_vectors']:.1%} with the vectors.\n")
    header = ["after layer", "norm", "of the residual's", "cosine: careful - other problems", "cosine: careful opener",
              *(f"cosine: {name}" for name in result["beside"].values()), "raised", "lowered"]
    rows = [[layer, f"{vector['norm']:.3f}", f"{vector['norm_over_residual']:.1%}",
             number(vector["cosine_difference_of_means"]), number(vector["cosine_opener"]),
             *map(number, vector["cosine_beside"].values()), tokens(vector["raised"]), tokens(vector["lowered"])]
            for layer, vector in result["layers"].items()]
    return f"{text}\n{markdown_table(header, rows) if rows else 'Every vector is zero.'}\n"
