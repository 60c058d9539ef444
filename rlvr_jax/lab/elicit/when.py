"""At which tokens a trained model differs from its base model, and whether these tokens alone account for the gain.

Both models run on the base model's greedy completions and on the trained model's. Then the base model writes again, and
gates choose where it takes the trained model's token: the token swap of the controls in arXiv 2510.07364, which arXiv
2603.22446 does in both directions. N slots, B completions, V vocabulary; KL and entropy in nats.
"""

import collections
import math
import pathlib
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import sampler
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import load_sets
from rlvr_jax.evaluation.completions import KeptConfig
from rlvr_jax.evaluation.estimators import summarise_outcome, format_estimate
from rlvr_jax.evaluation.measure import make_sampler
from rlvr_jax.lab.elicit.comparison import TOLERANCE, TOP, load_trained, sample_into, share_of_tokens, weight_difference
from rlvr_jax.lab.elicit.steering import run_beside
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

PAIRS = 12  # differing pairs of tokens that are reported
POSITIONS = 8  # of each text in the table; the figure has all


class Gate(NamedTuple):
    """Tokens at which the trained model's token replaces the base model's: where they differ and all of these hold.

    In `reverse` the trained model writes, and the base model's token is swapped in.
    """

    first: float = math.inf  # among this many first tokens
    least: float = 0.0  # where KL(trained || base) is at least this
    chance: float = 1.0  # with this probability
    unsure: float = -math.inf  # where the base model's entropy is at least this
    reverse: bool = False


UNSWAPPED = {"base": Gate(first=0), "trained": Gate()}  # gates under which each model writes its own greedy text


def compare(base_NxV: jax.Array, trained_NxV: jax.Array) -> dict[str, jax.Array]:
    """The likeliest tokens of two models i32[N], KL(trained || base) f32[N] and the base model's entropy, from
    logits."""
    logp, logq = jax.nn.log_softmax(trained_NxV), jax.nn.log_softmax(base_NxV)
    kl_N = jnp.maximum(jnp.sum(jnp.exp(logp) * (logp - logq), -1), 0.0)  # rounding can make it negative
    return {"base": jnp.argmax(base_NxV, -1).astype(jnp.int32), "kl": kl_N,
            "trained": jnp.argmax(trained_NxV, -1).astype(jnp.int32), "entropy": -jnp.sum(jnp.exp(logq) * logq, -1)}


def swap_sample_fn(gates: list[Gate]) -> Callable:
    """The `sample_fn` (`sampler.make_sampler`) of greedy completions, the j-th of a prompt under the j-th gate.

    Its params are `{"base": Params, "trained": Params}`. `noted` has what `compare` returns at every token, and whether
    it was `swapped`. Log-probabilities are the base model's. Only a gate's chance is random.
    """
    def sample_fn(params, config, prompts, rows, decoding):
        gates_B = Gate(*(jnp.array(column)[rows.numbers % len(gates)] for column in zip(*gates)))
        feed_trained, cache = run_beside(params["trained"], config, prompts, rows, decoding)

        def propose(cache, place: sampler.Draw, base_NxV):
            trained_NxV, cache = feed_trained(place, cache)
            both, gate = compare(base_NxV, trained_NxV), Gate(*(column[place.rows] for column in gates_B))
            swapped_N = ((both["base"] != both["trained"]) & (place.inputs.steps < gate.first)
                         & (both["kl"] >= gate.least) & (both["entropy"] >= gate.unsure)
                         & (place.uniforms < gate.chance))
            tokens_N = jnp.where(swapped_N ^ gate.reverse, both["trained"], both["base"])
            return cache, tokens_N, both | {"swapped": swapped_N}

        return sampler.sample(params["base"], config, prompts, rows, decoding, sampler.Hooks(
            propose=propose, carry=cache))
    return sample_fn


def sample_under_gates(name: str, command: str, config: Config, kept: KeptConfig, base: LanguageModel,
                       trained: LanguageModel, gates: dict[str, Gate], token_columns: tuple = ()) -> dict[str, list]:
    """gate -> its rows, a greedy completion of each problem, kept in the folder `name` of --out (`sample_into`).

    A row counts its `swapped` tokens. `token_columns` are lists over its tokens: "ids", or what `swap_sample_fn` notes.
    """
    def columns(rollouts, texts, judged):
        values = rollouts.noted | {"ids": rollouts.completions}
        return [{"swapped": int(np.sum(values["swapped"][i][mask]))} | {
            column: values[column][i][mask].tolist() for column in token_columns}
            for i, mask in enumerate(rollouts.completion_mask)]

    sampler = make_sampler(base, kept.sampling, sample_fn=swap_sample_fn(list(gates.values())),
                           params={"base": base.params, "trained": trained.params})
    rows = sample_into(name, command, config, sampler, load_sets(kept, base, lambda stem: (len(gates), 0.0)), columns)
    return {gate: rows[i :: len(gates)] for i, gate in enumerate(gates)}


def largest_threshold(values_N: np.ndarray, share: float) -> float:
    """The threshold that this share of the values, at least one of them, reaches."""
    return float(np.sort(values_N)[::-1][max(round(share * len(values_N)), 1) - 1])


# ----- the command


class WhenConfig(Config):
    """At which tokens a trained model differs from its base model."""

    kept: KeptConfig = nested(KeptConfig(), out="directory for summary.json, when.md, when.png, and the completions")
    trained: str = flag("", "model that was trained from --model, of the same shape: named as --model is")
    first: tuple[int, ...] = flag((1, 2, 4), "swap in the trained model's tokens among this many first ones only",
                                  minimum=1)
    shares: tuple[float, ...] = flag((0.01, 0.05, 0.1), "swap them in at this share of tokens only, those with the "
                                     "largest KL", above=0, maximum=1)


def when(config: WhenConfig) -> dict:
    """Compares --model with --trained; returns the summary. summary.json of --out holds it, when.md and when.png show
    it, and `texts/` and `swapped/` keep the completions, from which the same command continues."""
    if not (config.kept.out and config.trained):
        raise UserError("--out and --trained are required: a directory for the results, and what was trained from "
                        "--model")
    config = config.with_flags(**{name: loading.pin_step(config.as_flags()[name]) for name in ("model", "trained")})
    kept, out = config.kept, pathlib.Path(config.kept.out)
    base = loading.load_fixed(kept.choice)
    trained = load_trained(config.trained, base, f"--model={kept.choice.model}", kept.choice.dtype)
    texts = sample_under_gates("texts", "when", config, kept, base, trained, UNSWAPPED, ("base", "trained", "kl"))
    gates = make_gates(config, texts["base"])
    every = texts | sample_under_gates("swapped", "when", config, kept, base, trained, gates)
    summary = {"n": len(texts["base"]),
               "texts": {name: summarise_text(rows, base.tokenizer) for name, rows in texts.items()},
               "swapped": {name: summarise_outcome(rows, texts["base"], texts["trained"]) | {
                   "tokens": share_of_tokens(rows, "swapped")} for name, rows in every.items()},
               "gates": {name: {"first": min(gate.first, kept.sampling.max_new_tokens), "least": gate.least,
                                "chance": gate.chance} for name, gate in gates.items()},
               "weights": weight_difference(base.params, trained.params), "flags": config.as_flags()}
    files.write_whole(out / "when.md", format_page(summary))
    files.write_figure(out / "when.png", lambda sheet: draw_figure(summary, sheet))
    files.write_json(out / "summary.json", summary)
    return summary


def make_gates(config: WhenConfig, rows: list[dict]) -> dict[str, Gate]:
    """The gates by name. `rows` are the base model's text, which gives the KL thresholds. Each of --shares has a
    control: as many swaps, at random places where the models differ."""
    kls, differ = np.concatenate([row["kl"] for row in rows]), np.concatenate([differing(row) for row in rows])
    gates = {f"first {k}": Gate(first=k) for k in config.first}
    for share in config.shares:
        least = largest_threshold(kls, share)
        chance = float(np.sum(differ & (kls >= least)) / max(differ.sum(), 1))
        gates |= {f"largest KL, {100 * share:g} %": Gate(least=least),
                  f"at random, as many as {100 * share:g} %": Gate(chance=chance)}
    return gates


def differing(row: dict) -> np.ndarray:
    """bool[T]: where the two models' likeliest tokens differ."""
    return np.array(row["base"]) != np.array(row["trained"])


def summarise_text(rows: list[dict], tokenizer: Tokenizer) -> dict:
    """The share of tokens `changed`, the share of these that are first tokens (`first_of_changed`, None without any),
    the mean `kl`, and the most frequent `pairs` of differing tokens, [base's, trained's, count].

    `by_position` has `changed`, `kl` and the number of `tokens` at each position from 1 on.
    """
    lengths = np.array([len(row["kl"]) for row in rows])
    mask_NxT = np.arange(lengths.max())[None, :] < lengths[:, None]
    changed_NxT, kl_NxT = np.zeros(mask_NxT.shape), np.zeros(mask_NxT.shape)
    changed_NxT[mask_NxT] = np.concatenate([differing(row) for row in rows])
    kl_NxT[mask_NxT] = np.concatenate([row["kl"] for row in rows])
    counts_T = mask_NxT.sum(0)
    pairs = collections.Counter((a, b) for row in rows for a, b in zip(row["base"], row["trained"]) if a != b)
    return {"tokens": int(counts_T.sum()), "changed": float(changed_NxT.sum() / counts_T.sum()),
            "first_of_changed": float(changed_NxT[:, 0].sum() / changed_NxT.sum()) if changed_NxT.any() else None,
            "kl": float(kl_NxT.sum() / counts_T.sum()),
            "by_position": [{"tokens": int(n), "changed": float(x / n), "kl": float(kl / n)}
                            for n, x, kl in zip(counts_T, changed_NxT.sum(0), kl_NxT.sum(0))],
            "pairs": [[*(tokenizer.backend.decode([i], skip_special_tokens=False) for i in pair), count]
                      for pair, count in pairs.most_common(PAIRS)]}


# ----- page and figure


def format_page(summary: dict) -> str:
    """when.md: the texts, their first positions, the pairs, what swaps lead to, the weights."""
    texts, flags = summary["texts"], summary["flags"]
    positions = markdown_table(["text", "tokens", "likeliest token differs", "KL"], [
        [f"the {name}'s" + (f", token {i}" if i else ""), part["tokens"], f"{part['changed']:.1%}", f"{part['kl']:.4f}"]
        for name, text in texts.items() for i, part in enumerate([text, *text["by_position"][:POSITIONS]])])
    pairs = markdown_table(["the base model's token", "the trained model's", "times, in the base model's text"],
                           [[f"`{a}`", f"`{b}`", n] for a, b, n in texts["base"]["pairs"]])
    names = {"base": "nowhere", "trained": "wherever they differ"}
    swaps = markdown_table(["the trained model's token", "accuracy", "tokens swapped", "of the gap recovered"], [
        [names.get(name, name), format_estimate(gate["accuracy"], gate["interval"]), f"{gate['tokens']:.1%}",
         format_estimate(gate["recovered"], gate["recovered_interval"])] for name, gate in summary["swapped"].items()])
    return "\n\n".join([
        f"{flags['trained']} against {flags['model']}, {summary['n']} problems, greedy; KL(trained || base) in nats; "
        "95 % intervals in brackets", positions, pairs, swaps,
        f"A weight has moved if it changed by more than {TOLERANCE:g} of its size; means over layers.",
        format_weights(summary["weights"])]) + "\n"


def format_weights(weights: dict) -> str:
    """A table of `weight_difference`: all weights, then each kind, averaged over layers."""
    kinds, dashes = collections.defaultdict(list), ["-"] * (1 + len(TOP))
    for name, tensor in weights["tensors"].items():
        kinds["/".join(part for part in name.split("/") if not part.isdigit())].append(tensor)
    rows = [["all", f"{weights['all']['moved']:.1%}", *dashes]]
    for kind, tensors in kinds.items():
        moved = np.average([x["moved"] for x in tensors], weights=[x["size"] for x in tensors])
        spectra = [x["spectrum"] for x in tensors if x["spectrum"]]
        rows.append([kind, f"{moved:.1%}", *([
            f"{np.mean([x['stable_rank'] for x in spectra]):.1f}",
            *(f"{np.mean([x['top'][str(k)] for x in spectra]):.1%}" for k in TOP)] if spectra else dashes)])
    return markdown_table(["weights", "moved", "stable rank of the change", *(f"in its top {k}" for k in TOP)], rows)


def draw_figure(summary: dict, sheet) -> None:
    """KL by position in both texts, and accuracy under each gate, on a matplotlib Figure."""
    sheet.set_size_inches(8, 3.4)
    left, right = sheet.subplots(1, 2)
    for (name, text), colour in zip(summary["texts"].items(), ("#0072b2", "#d55e00")):
        kls = [part["kl"] for part in text["by_position"]]
        left.plot(range(1, len(kls) + 1), kls, "o-", color=colour, markersize=3, label=f"the {name}'s text")
    left.set(xlabel="token of the completion", ylabel="mean KL(trained || base), nats")
    left.legend(fontsize=8)
    draw_intervals(right, {name: (gate["accuracy"], gate["interval"]) for name, gate in summary["swapped"].items()})
    right.set(xlabel="accuracy", xlim=(-0.03, 1.03))


def draw_intervals(axes, results: dict[str, tuple]) -> None:
    """Each (value, interval) of the results as a dot with whiskers, one row a name."""
    values = np.array([value for value, _ in results.values()])
    lows, highs = np.array([interval for _, interval in results.values()]).T
    axes.errorbar(values, range(len(results)), xerr=np.maximum([values - lows, highs - values], 0), fmt="o",
                  color="#0072b2", capsize=3)
    axes.set_yticks(range(len(results)), list(results), fontsize=8)
    axes.invert_yaxis()
