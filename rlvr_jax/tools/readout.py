"""What trained vectors say: the tokens that each reads as, and the directions of its base that it lies along.

L layers, D width, P prompts, V vocabulary, S positions. Every cosine is of a vector with another direction of the
residual after the same layer. That of two random directions has mean 0 and standard deviation 1/sqrt(D).
"""

import dataclasses
import functools
import pathlib
from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import adapters, model
from rlvr_jax.config import ReadoutConfig
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks import families
from rlvr_jax.tasks.families import Family
from rlvr_jax.tasks.prompts import encode_prompts, load_problems

TOKENS = 8  # most raised and most lowered ones that are shown
PROMPTS = 64  # run through the model at a time


def readout(config: ReadoutConfig) -> dict:
    """Reads the vectors of `config.model`; returns what readout.json in `config.out` then holds. readout.md shows it.

    `layers` has an entry, by the layer's number as text, for every vector that is not zero. What needs the styles of a
    synthetic family is None for a file. The base is the model with the vectors off.

    Raises UserError for a model without vectors, and for one beside it whose vectors have another shape.
    """
    if not config.out:
        raise UserError("--out is required: the directory for readout.json and readout.md")
    config = dataclasses.replace(config, model=loading.pinned(config.model))
    loaded = loading.load_model(config.model, config.dtype, config.dtype)
    vectors_LxD = vectors(config.model, loaded)
    names = [loading.pinned(name) for name in config.beside.split(",") if name]
    others = [vectors(name, loading.load_model(name), vectors_LxD.shape) for name in names]
    problems = load_problems(config.problems, loaded.tokenizer, count=config.num_problems, num_ops=config.num_ops,
                             split=config.heldout_split, prompt_style=config.prompt_style,
                             instruction=config.instruction, ignore_columns=config.ignore_columns)
    prompts = encode_prompts(loaded.tokenizer, problems, loaded.config, max_new_tokens=1)
    base, family = adapters.without(loaded.params), families.FAMILIES.get(config.problems)
    residuals_LxPxD, said_P = at_last_token(base, loaded.config, prompts)
    _, steered_P = at_last_token(loaded.params, loaded.config, prompts)
    careful_P, steered_P = (family and carefully(family, loaded.tokenizer, tokens) for tokens in (said_P, steered_P))
    opener_D = family and opener(family, loaded.tokenizer, base)
    scale = float(np.sqrt(np.mean(residuals_LxPxD[-1] ** 2, -1)).mean())
    layers = {}
    for i in np.flatnonzero(vectors_LxD.any(-1)):
        vector_D, norm = vectors_LxD[i], float(np.linalg.norm(vectors_LxD[i]))
        layers[str(i)] = {
            "norm": norm, "norm_over_residual": norm / float(np.linalg.norm(residuals_LxPxD[i], axis=-1).mean()),
            **extremes(loaded.tokenizer, direct_logits(base, vector_D, scale)),
            "cosine_difference_of_means": cosine(vector_D, difference_of_means(residuals_LxPxD[i], careful_P)),
            "cosine_opener": cosine(vector_D, opener_D),
            "cosine_beside": {str(n): cosine(vector_D, other[i]) for n, other in enumerate(others)}}
    found = {"n": len(problems), "random_cosine": vectors_LxD.shape[1] ** -0.5,
             "careful": family and {"base": float(careful_P.mean()), "with_vectors": float(steered_P.mean())},
             "beside": {str(n): name for n, name in enumerate(names)}, "layers": layers,
             "flags": dataclasses.asdict(config)}
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    files.write_whole(out / "readout.md", page(found))
    files.write_json(out / "readout.json", found)
    return found


def vectors(name: str, loaded: loading.LanguageModel, shape: Optional[tuple] = None) -> np.ndarray:
    """The vectors of a model, f64[L,D]. Raises UserError if it has none, or if they are not of the given shape."""
    if "vector" not in loaded.params["layers"]:
        raise UserError(f"{name} has no vectors: it takes the run directory of scripts.train --trainable=vector")
    found_LxD = np.asarray(loaded.params["layers"]["vector"], np.float64)
    if shape not in (None, found_LxD.shape):
        raise UserError(f"--beside={name}: its vectors are {found_LxD.shape[0]} of width {found_LxD.shape[1]}, and "
                        f"those of --model {shape[0]} of width {shape[1]}; compare models of one shape")
    return found_LxD


@functools.partial(jax.jit, static_argnums=1)
def _at_last_token(params: model.Params, config: model.ModelConfig, prompts: model.Prompts) -> tuple:
    def last(x_PxSxD):
        return x_PxSxD[jnp.arange(len(prompts.lengths)), prompts.lengths - 1]

    hidden_PxSxD, residuals_LxPxD = model.forward(params, config, prompts.tokens, read_residual=last)
    return residuals_LxPxD.astype(jnp.float32), jnp.argmax(model.head(params, last(hidden_PxSxD)), -1)


def at_last_token(params: model.Params, config: model.ModelConfig, prompts: model.Prompts) -> tuple:
    """(residual after every layer f64[L,P,D], most likely next token i[P]) at the last token of each prompt.

    That token is the first of the greedy completion.
    """
    count, parts = len(prompts.lengths), []
    for start in range(0, count, PROMPTS):  # the last part keeps the shape of the others
        rows = np.minimum(np.arange(start, start + min(PROMPTS, count)), count - 1)
        parts.append(_at_last_token(params, config, jax.tree.map(lambda x, rows=rows: x[rows], prompts)))
    residuals, tokens = zip(*parts)
    return np.concatenate(residuals, 1)[:, :count].astype(np.float64), np.concatenate(tokens)[:count]


def opening_words(family: Family) -> tuple[list[str], list[str]]:
    """(words that open a careful solution, words that open any other)."""
    careful = next(iter(family.styles.values()))
    return tuple([word for word, style in family.styles.items() if (style == careful) == wanted]
                 for wanted in (True, False))


def carefully(family: Family, tokenizer: Tokenizer, tokens_P: np.ndarray) -> np.ndarray:
    """bool[P]: whether a completion with this first token opens in the family's careful style."""
    return np.array([tokenizer.decode([token]) in opening_words(family)[0] for token in tokens_P])


def difference_of_means(residuals_PxD: np.ndarray, careful_P: Optional[np.ndarray]) -> Optional[np.ndarray]:
    """f[D]: the mean over prompts that the base answers in the careful style, less that over all others.

    The "difference of means" direction of Marks and Tegmark (arXiv 2310.06824). None without prompts of both kinds.
    """
    if careful_P is None or careful_P.all() or not careful_P.any():
        return None
    return residuals_PxD[careful_P].mean(0) - residuals_PxD[~careful_P].mean(0)


def opener(family: Family, tokenizer: Tokenizer, params: model.Params) -> np.ndarray:
    """f64[D]: how the residual has to move for the careful opening word to gain on the mean of the other ones.

    The final norm's gain times the head's column of that word, less the mean of the columns of the others.
    """
    def mean_column(words):
        ids = [tokenizer.encode(word)[0] for word in words]
        columns = params["head"][:, ids].T if "head" in params else params["embed"][ids]
        return np.asarray(columns, np.float64).mean(0)

    careful, others = opening_words(family)
    return np.asarray(params["final_norm"], np.float64) * (mean_column(careful) - mean_column(others))


def direct_logits(params: model.Params, vector_D: np.ndarray, scale: float) -> np.ndarray:
    """f32[V]: what the vector adds to each logit on the direct path, past the layers in between, less their mean.

    This is the head of `gain * vector / scale`: the final norm's gain, and its divisor held at `scale`, the mean root
    mean square of the base's last residual. Of the logits the mean is taken, since the softmax sees differences alone.
    (The logit lens, nostalgebraist 2020, of a direction in place of a state.)
    """
    hidden_D = jnp.asarray(np.asarray(params["final_norm"], np.float64) * vector_D / scale, jnp.float32)
    logits_V = np.asarray(model.head(params, hidden_D))
    return logits_V - logits_V.mean()


def extremes(tokenizer: Tokenizer, logits_V: np.ndarray) -> dict:
    """`{"raised": [[token, logit], ...], "lowered": ...}`, the farthest first; rows that are no token are left out."""
    order = [i for i in np.argsort(logits_V, kind="stable").tolist() if tokenizer.backend.id_to_token(i) is not None]
    return {name: [[tokenizer.backend.decode([i], skip_special_tokens=False), float(logits_V[i])] for i in chosen]
            for name, chosen in (("raised", order[: -TOKENS - 1 : -1]), ("lowered", order[:TOKENS]))}


def cosine(a_D: np.ndarray, b_D: Optional[np.ndarray]) -> Optional[float]:
    """None where there is no second direction, or it is zero."""
    return None if b_D is None or not b_D.any() else float(a_D @ b_D / np.linalg.norm(a_D) / np.linalg.norm(b_D))


def page(found: dict) -> str:
    """readout.md: what `readout` found, a row for each vector."""
    def number(value):
        return "-" if value is None else f"{value:+.3f}"

    def tokens(pairs):
        return ", ".join(f"{token!r} {logit:+.1f}" for token, logit in pairs).replace("|", "\\|")

    flags, careful = found["flags"], found["careful"]
    lines = [f"What the vectors of {flags['model']} say, with {found['n']} problems of {flags['problems']} as prompts.",
             f"Cosines of random directions have standard deviation {found['random_cosine']:.3f}."]
    if careful:
        lines += [f"The likeliest first word opens a careful solution of {careful['base']:.1%} of the problems in the "
                  f"base, and of {careful['with_vectors']:.1%} with the vectors."]
    header = ["after layer", "norm", "of the residual's", "cosine: careful - other problems", "cosine: careful opener",
              *(f"cosine: {name}" for name in found["beside"].values()), "raised", "lowered"]
    rows = [[layer, f"{one['norm']:.3f}", f"{one['norm_over_residual']:.1%}",
             number(one["cosine_difference_of_means"]), number(one["cosine_opener"]),
             *map(number, one["cosine_beside"].values()), tokens(one["raised"]), tokens(one["lowered"])]
            for layer, one in found["layers"].items()]
    return "\n".join([*lines, "", markdown_table(header, rows) if rows else "Every vector is zero."]) + "\n"
