"""Several completions of one prompt: how they begin, how sure their answers are, and which of them counts.

K paths, P prompts, B completions, T tokens.
"""

import collections
import re
from typing import Callable, Optional

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import model, sampler
from rlvr_jax.grading import grade, mathematics
from rlvr_jax.pretrained.tokenizer import Tokenizer


def opened_sample_fn(opening: tuple[int, ...]) -> Callable:
    """The `sample_fn` (`sampler.make_sampler`) of completions that begin with these token ids."""
    def sample_fn(params, config, prompts, rows, decoding):
        given_T = jnp.full(decoding.max_new_tokens, -1, jnp.int32).at[: len(opening)].set(jnp.array(opening, jnp.int32))
        given = rows._replace(given=jnp.tile(given_T, (len(rows.keys), 1)))
        return sampler.sample(params, config, prompts, given, decoding)
    return sample_fn


def branched_sample_fn(num_paths: int) -> Callable:
    """The `sample_fn` of completions of which the j-th of a prompt begins with its j-th likeliest first token.

    `noted` has the `margin` of every token, p(likeliest) - p(second), and `forward_tokens`: what was fed, with the
    search for first tokens counted in the first path.
    """
    note = sampler.Hooks(note=lambda logits, _: {"margin": margins(logits)})

    def sample_fn(params, config, prompts, rows, decoding):
        prefix, paths_B = model.prefill(params, config, prompts), rows.numbers % num_paths
        first_B = first_tokens(params, config, prefix, num_paths)[rows.prompt_index, paths_B]
        given_BxT = jnp.full((len(rows.keys), decoding.max_new_tokens), -1, jnp.int32).at[:, 0].set(first_B)
        out = sampler.decode(params, config, prefix, rows._replace(given=given_BxT), decoding, note)
        fed_B = jnp.sum(out.completion_mask, -1) + (paths_B == 0)
        return out.replace(noted=out.noted | {"forward_tokens": fed_B})
    return sample_fn


def first_tokens(params: model.Params, config: model.ModelConfig, prefix: model.Prefix, num_paths: int) -> jax.Array:
    """i32[P,K], each prompt's likeliest first tokens, the likeliest first; of fewer than K in all, some again."""
    size = len(prefix.lengths)
    logits_PxV, _ = model.decode_step(params, config, model.unroll_layers(params, prefix), model.Inputs(
        prefix.last_tokens, jnp.zeros(size, jnp.int32)), model.init_cache(config, size, 1))
    _, tokens_PxK = jax.lax.top_k(logits_PxV, min(num_paths, config.vocab_size))
    return tokens_PxK[:, jnp.arange(num_paths) % config.vocab_size]


def margins(logits_BxV: jax.Array) -> jax.Array:
    """f32[B], the probability of the likeliest token less that of the second."""
    probs_BxV = jax.nn.softmax(logits_BxV)  # two maxima: XLA's top_k sorts on a CPU, twenty times slower over 49,152
    others_BxV = jnp.where(jnp.arange(probs_BxV.shape[-1])[None] == jnp.argmax(probs_BxV, -1)[:, None], 0, probs_BxV)
    return jnp.max(probs_BxV, -1) - jnp.max(others_BxV, -1)


def margin_columns(tokenizer: Tokenizer) -> Callable:
    """`columns(rollouts, texts, judged)`: the `margin` of each completion's answer, the mean over the answer's tokens;
    None where no answer was found."""
    def columns(rollouts, texts, judged):
        rows = zip(rollouts.completions, rollouts.completion_mask, rollouts.noted["margin"], texts, judged)
        return [{"margin": answer_margin(tokenizer, ids[mask].tolist(), margin[mask], text, verdict["extracted"])}
                for ids, mask, margin, text, verdict in rows]
    return columns


def answer_margin(tokenizer: Tokenizer, ids: list[int], margins_T: np.ndarray, text: str,
                  answer: Optional[str]) -> Optional[float]:
    """Mean margin of the tokens that write the answer, at its last place in the text."""
    place = answer_place(text, answer)
    if place is None:
        return None
    ends_T = np.array([len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))])  # some characters span tokens
    starts_T = np.concatenate([[0], ends_T[:-1]])
    writes_T = (starts_T < place[1]) & (ends_T > place[0])
    return float(np.mean(margins_T[writes_T])) if writes_T.any() else None


def answer_place(text: str, answer: Optional[str]) -> Optional[tuple[int, int]]:
    """(start, end) of the last characters that write the answer; None if there are none. The text may have commas in a
    number that the answer has lost."""
    if not answer:
        return None
    pattern = rf"(?<!\d){',?'.join(map(re.escape, answer))}(?!\d)"
    return next((match.span() for match in reversed(list(re.finditer(pattern, text)))), None)


# ----- which row of a problem counts


def first(rows: list[dict]) -> Optional[dict]:
    """The first completion, whatever it answers."""
    return rows[0]


def majority(rows: list[dict]) -> Optional[dict]:
    """The first with the answer that most have; of answers that tie the one that came first."""
    answers = list(map(answer_of, rows))
    answer = grade.most_common(answers)
    return rows[answers.index(answer)] if answer else None


def widest(rows: list[dict]) -> Optional[dict]:
    """The one whose answer has the widest margin."""
    return max((row for row in rows if row["margin"] is not None), key=lambda row: row["margin"], default=None)


def summed(rows: list[dict]) -> Optional[dict]:
    """The first with the answer whose margins, summed over all that give it, are most."""
    totals = collections.defaultdict(float)
    for row in rows:
        if row["margin"] is not None:
            totals[answer_of(row)] += row["margin"]
    answer = max(totals, key=totals.get, default=None)
    return next((row for row in rows if row["margin"] is not None and answer_of(row) == answer), None)


def answer_of(row: dict) -> str:
    """A completion's answer, as text that can be compared; empty for none."""
    return mathematics.normalise(row["extracted"] or "")
