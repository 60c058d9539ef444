"""At which tokens a trained model differs from its base model, and whether these tokens alone account for the gain.

Both models run on the greedy completions of each. Then the base model generates again, and gates choose the tokens at
which the trained model's token replaces its own. This token swap is a control in arXiv 2510.07364; arXiv 2603.22446
swaps in both directions. N slots of the sampler, B completions, T tokens, V vocabulary; KL and entropy in nats.
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

PAIRS = 12  # how many of the most frequent pairs of differing tokens are reported
POSITIONS = 8  # how many first positions of each text the table has; the figure has all positions


class Gate(NamedTuple):
    """When to swap tokens: the base model writes, and the trained model's token replaces its own where the two differ
    and all these conditions hold. With `reverse`, the two models change roles: the trained model writes."""

    first: float = math.inf  # only among this many first tokens
    least: float = 0.0  # only where KL(trained || base) is at least this
    chance: float = 1.0  # only with this probability
    unsure: float = -math.inf  # only where the base model's entropy is at least this
    reverse: bool = False


UNSWAPPED = {"base": Gate(first=0), "trained": Gate()}  # gates under which each model generates its own text


def compare(base_NxV: jax.Array, trained_NxV: jax.Array) -> dict[str, jax.Array]:
    """Compares two models by their logits. Returns `base` and `trained`, their most likely tokens i32[N]; `kl`, f32[N],
    KL(trained || base); and `entropy`, f32[N], that of the base model."""
    logp, logq = jax.nn.log_softmax(trained_NxV), jax.nn.log_softmax(base_NxV)
    kl_N = jnp.maximum(jnp.sum(jnp.exp(logp) * (logp - logq), -1), 0.0)  # rounding can make it negative
    return {"base": jnp.argmax(base_NxV, -1).astype(jnp.int32), "kl": kl_N,
            "trained": jnp.argmax(trained_NxV, -1).astype(jnp.int32), "entropy": -jnp.sum(jnp.exp(logq) * logq, -1)}


def swap_sample_fn(gates: list[Gate]) -> Callable:
    """Returns a `sample_fn` for `sampler.make_sampler`: greedy completions, the j-th of a prompt under the j-th gate.
    Its params are `{"base": Params, "trained": Params}`. `noted` has, for every token, what `compare` returns and
    whether it was `swapped`. Log-probabilities are the base model's. Only `Gate.chance` makes use of random numbers."""
    def sample_fn(params, config, prompts, rows, decoding):
        index_B = rows.numbers % len(gates)  # which gate each row has
        gates_B = Gate(*(jnp.array(values)[index_B] for values in zip(*gates)))  # every field is an array [B]
        feed_trained, cache = run_beside(params["trained"], config, prompts, rows, decoding)

        def propose(cache, draw: sampler.Draw, base_NxV):
            trained_NxV, cache = feed_trained(draw, cache)
            compared = compare(base_NxV, trained_NxV)
            gate = Gate(*(values_B[draw.rows] for values_B in gates_B))  # every field is an array [N]
            swapped_N = ((compared["base"] != compared["trained"]) & (draw.inputs.steps < gate.first)
                         & (compared["kl"] >= gate.least) & (compared["entropy"] >= gate.unsure)
                         & (draw.uniforms < gate.chance))
            tokens_N = jnp.where(swapped_N ^ gate.reverse, compared["trained"], compared["base"])
            return cache, tokens_N, compared | {"swapped": swapped_N}

        return sampler.sample(params["base"], config, prompts, rows, decoding, sampler.Hooks(
            propose=propose, carry=cache))
    return sample_fn


def sample_under_gates(name: str, command: str, config: Config, kept: KeptConfig, base: LanguageModel,
                       trained: LanguageModel, gates: dict[str, Gate], token_columns: tuple = ()) -> dict[str, list]:
    """Samples a greedy completion of each problem under each gate, saved in the folder `name` of --out (`sample_into`).
    `config` has all flags of the script `command`; `kept` is the part of `config` about completions. Returns {name of a
    gate: rows}. Each row has the number of its `swapped` tokens and, for each of `token_columns`, a list with a value
    for each token: "ids" are token ids, and other columns are what `swap_sample_fn` notes, such as "kl"."""
    def columns(rollouts, texts, judged):
        values = rollouts.noted | {"ids": rollouts.completions}
        return [{"swapped": int(np.sum(values["swapped"][i][mask]))} | {
            column: values[column][i][mask].tolist() for column in token_columns}
            for i, mask in enumerate(rollouts.completion_mask)]

    swapper = make_sampler(base, kept.sampling, sample_fn=swap_sample_fn(list(gates.values())),
                           params={"base": base.params, "trained": trained.params})
    benchmarks = load_sets(kept, base, lambda stem: (len(gates), 0.0))  # a greedy completion of a problem for each gate
    rows = sample_into(name, command, config, swapper, benchmarks, columns)  # in the order of problems, then of gates
    return {gate: rows[i :: len(gates)] for i, gate in enumerate(gates)}


def largest_threshold(values_N: np.ndarray, share: float) -> float:
    """The k-th largest of N values, where k is `share` times N, rounded, and at least 1."""
    return float(np.sort(values_N)[::-1][max(round(share * len(values_N)), 1) - 1])


# ----- the command


class WhenConfig(Config):
    """At which tokens a trained model differs from its base model."""

    kept: KeptConfig = nested(KeptConfig(), out="directory for summary.json, when.md, when.png, and the completions")
    trained: str = flag("", "model that was trained from --model and has its shape; a name of the same form as --model")
    first: tuple[int, ...] = flag((1, 2, 4), "swap in the trained model's tokens only among this many first tokens",
                                  minimum=1)
    shares: tuple[float, ...] = flag((0.01, 0.05, 0.1), "swap in the trained model's tokens only at this share of "
                                     "tokens, those with the largest KL", above=0, maximum=1)


def when(config: WhenConfig) -> dict:
    """Compares --model with --trained and returns the summary. Writes summary.json, when.md and when.png into --out,
    and completions into its folders texts/ and swapped/, from which the same command resumes."""
    if not (config.kept.out and config.trained):
        raise UserError("--out and --trained are required: a directory for the results, and a model that was trained "
                        "from --model")
    config = config.with_flags(**{name: loading.pin_step(config.as_flags()[name]) for name in ("model", "trained")})
    kept, out = config.kept, pathlib.Path(config.kept.out)
    base = loading.load_fixed(kept.choice)
    trained = load_trained(config.trained, base, f"--model={kept.choice.model}", kept.choice.dtype)
    texts = sample_under_gates("texts", "when", config, kept, base, trained, UNSWAPPED, ("base", "trained", "kl"))
    gates = make_gates(config, texts["base"])
    completions = texts | sample_under_gates("swapped", "when", config, kept, base, trained, gates)
    summary = {"n": len(texts["base"]),
               "texts": {name: summarise_text(rows, base.tokenizer) for name, rows in texts.items()},
               "swapped": {name: summarise_outcome(rows, texts["base"], texts["trained"]) | {
                   "tokens": share_of_tokens(rows, "swapped")} for name, rows in completions.items()},
               "gates": {name: {"first": min(gate.first, kept.sampling.max_new_tokens), "least": gate.least,
                                "chance": gate.chance} for name, gate in gates.items()},
               "weights": weight_difference(base.params, trained.params), "flags": config.as_flags()}
    files.write_whole(out / "when.md", format_page(summary))
    files.write_figure(out / "when.png", lambda sheet: draw_figure(summary, sheet))
    files.write_json(out / "summary.json", summary)
    return summary


def make_gates(config: WhenConfig, rows: list[dict]) -> dict[str, Gate]:
    """{name: gate} for --first and --shares. `rows`, the base model's completions, give the KL threshold of each share.
    Each share also has a control with as many swaps, at random tokens among those where the models differ."""
    kls = np.concatenate([row["kl"] for row in rows])
    differ = np.concatenate([np.not_equal(row["base"], row["trained"]) for row in rows])
    gates = {f"first {k}": Gate(first=k) for k in config.first}
    for share in config.shares:
        least = largest_threshold(kls, share)
        chance = float(np.sum(differ & (kls >= least)) / max(differ.sum(), 1))
        gates |= {f"largest KL, {100 * share:g} %": Gate(least=least),
                  f"at random, as many as {100 * share:g} %": Gate(chance=chance)}
    return gates


def summarise_text(rows: list[dict], tokenizer: Tokenizer) -> dict:
    """Numbers about one model's completions, `rows`. `tokens` is how many tokens they have, `changed` the share of them
    where the most likely tokens of the two models differ, and `kl` the mean KL. `by_position` lists a dict of these
    three for each position. `first_of_changed` is the share of first tokens among the changed ones, or None if none is
    changed. `pairs` lists the most frequent pairs: [the base model's token, the trained model's token, count]."""
    lengths = np.array([len(row["kl"]) for row in rows])
    mask_NxT = np.arange(lengths.max())[None, :] < lengths[:, None]
    changed_NxT, kl_NxT = np.zeros(mask_NxT.shape), np.zeros(mask_NxT.shape)
    changed_NxT[mask_NxT] = np.concatenate([np.not_equal(row["base"], row["trained"]) for row in rows])
    kl_NxT[mask_NxT] = np.concatenate([row["kl"] for row in rows])
    counts_T = mask_NxT.sum(0)
    pairs = collections.Counter((a, b) for row in rows for a, b in zip(row["base"], row["trained"]) if a != b)
    return {"tokens": int(counts_T.sum()), "changed": float(changed_NxT.sum() / counts_T.sum()),
            "first_of_changed": float(changed_NxT[:, 0].sum() / changed_NxT.sum()) if changed_NxT.any() else None,
            "kl": float(kl_NxT.sum() / counts_T.sum()),
            "by_position": [{"tokens": int(n), "changed": float(changed / n), "kl": float(kl / n)}
                            for n, changed, kl in zip(counts_T, changed_NxT.sum(0), kl_NxT.sum(0))],
            "pairs": [[*(tokenizer.backend.decode([i], skip_special_tokens=False) for i in pair), count]
                      for pair, count in pairs.most_common(PAIRS)]}


# ----- page and figure


def format_page(summary: dict) -> str:
    """The text of when.md: tables of both models' texts, of tokens at which they differ, of swaps, and of weights."""
    texts, flags = summary["texts"], summary["flags"]
    positions = markdown_table(["text", "tokens", "likeliest token differs", "KL"], [
        [f"the {name}'s" + (f", token {i}" if i else ""), row["tokens"], f"{row['changed']:.1%}", f"{row['kl']:.4f}"]
        for name, text in texts.items() for i, row in enumerate([text, *text["by_position"][:POSITIONS]])])
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
    """A Markdown table of a `weight_difference` result: all weights, then each kind of weight, averaged over layers."""
    kinds, dashes = collections.defaultdict(list), ["-"] * (1 + len(TOP))  # "layers/q" is the kind of "layers/q/0"
    for name, tensor in weights["tensors"].items():
        kinds["/".join(part for part in name.split("/") if not part.isdigit())].append(tensor)
    rows = [["all", f"{weights['all']['moved']:.1%}", *dashes]]
    for kind, tensors in kinds.items():
        moved = np.average([x["moved"] for x in tensors], weights=[x["size"] for x in tensors])
        spectra = [x["spectrum"] for x in tensors if x["spectrum"]]
        cells = [f"{np.mean([x['stable_rank'] for x in spectra]):.1f}",
                 *(f"{np.mean([x['top'][str(k)] for x in spectra]):.1%}" for k in TOP)] if spectra else dashes
        rows.append([kind, f"{moved:.1%}", *cells])
    return markdown_table(["weights", "moved", "stable rank of the change", *(f"in its top {k}" for k in TOP)], rows)


def draw_figure(summary: dict, sheet) -> None:
    """Draws KL by position in both texts, and accuracy under each gate, on the matplotlib Figure `sheet`."""
    sheet.set_size_inches(8, 3.4)
    left, right = sheet.subplots(1, 2)
    for (name, text), colour in zip(summary["texts"].items(), ("#0072b2", "#d55e00")):
        kls = [position["kl"] for position in text["by_position"]]
        left.plot(range(1, len(kls) + 1), kls, "o-", color=colour, markersize=3, label=f"the {name}'s text")
    left.set(xlabel="token of the completion", ylabel="mean KL(trained || base), nats")
    left.legend(fontsize=8)
    draw_intervals(right, {name: (gate["accuracy"], gate["interval"]) for name, gate in summary["swapped"].items()})
    right.set(xlabel="accuracy", xlim=(-0.03, 1.03))


def draw_intervals(axes, results: dict[str, tuple]) -> None:
    """Draws `results`, {name: (value, (low, high))}, on matplotlib Axes: a row for each name, a dot with whiskers."""
    values = np.array([value for value, _ in results.values()])
    lows, highs = np.array([interval for _, interval in results.values()]).T
    axes.errorbar(values, range(len(results)), xerr=np.maximum([values - lows, highs - values], 0), fmt="o",
                  color="#0072b2", capsize=3)
    axes.set_yticks(range(len(results)), list(results), fontsize=8)
    axes.invert_yaxis()
