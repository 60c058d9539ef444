"""Every setting of the program: frozen dataclasses, and the absl flags generated from their fields.

Each field has its flag's help. `scripts/` build one of the `*Config` records from the command line and hand it
to one library call; nothing below `scripts/` ever sees a flag.
"""

import dataclasses
import math
from typing import ClassVar, Iterable, Optional

from rlvr_jax.errors import UserError


def setting(default, help, choices=(), table="", listed="", free=False, **bounds):
    """A dataclass field that becomes the flag of the same name.

    A text that has `choices` is one of them, or a row of the `table` named, such as "objectives.OBJECTIVES", to which
    choices are added. One with a table `listed` is any text that names its rows. `--help` explains a row by the first
    line of its docstring. Of a number, or of each in a list, `minimum` and `maximum` are allowed themselves, and what
    lies `above` or `below` a bound does not include it; it is finite in any case. The command line enforces all this.

    `free`: may change between two starts of one run. Any other change would make it a different run.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "table": table or listed,
                                                        "open": bool(listed), "free": free, "bounds": bounds})


def parse_weights(flag: str, text: str, rows: Iterable[str]) -> list[tuple[str, float]]:
    """`"correct:1,format:0.1"` as pairs of a row's name and its weight, 1 for a name alone. UserError for others."""
    pairs, (first, second) = [], list(rows)[:2]
    for part in map(str.strip, text.split(",")):
        name, _, weight = part.partition(":")
        try:
            pairs.append((name, float(weight or 1)))
        except ValueError:
            name = ""
        if name not in rows or not math.isfinite(pairs[-1][1]):
            raise UserError(f"--{flag}={text}: {part!r} is none of {', '.join(rows)}, nor one of them with a weight "
                            f"as in {first}:0.5,{second}:0.5")
    return pairs


@dataclasses.dataclass(frozen=True)
class MachineConfig:
    """Where it runs."""

    host_devices: int = setting(1, "split a CPU host into this many devices; ignored with an accelerator", minimum=1,
                                free=True)
    compilation_cache: str = setting("auto", "directory that keeps compiled programs between runs, at most half a GB; "
                                     "auto: $JAX_COMPILATION_CACHE_DIR, else rlvr_jax/jax in your cache folder; none: "
                                     "keep nothing", free=True)


@dataclasses.dataclass(frozen=True)
class RunConfig(MachineConfig):
    """What every command that writes a run directory shares."""

    run_dir: str = setting("", "directory of this run: flags, metrics, rollouts, checkpoints", free=True)
    seed: int = setting(0, "seed of every random choice; a run is a function of (flags, seed, step)",
                        minimum=0, maximum=2**31 - 1)
    num_steps: int = setting(150, "updates to make", minimum=1, free=True)
    resume: str = setting("auto", "continue from the newest checkpoint in run_dir: never (start over), auto (if there "
                          "is one), must (error if there is none)", ["never", "auto", "must"], free=True)
    save_every: int = setting(50, "checkpoint every this many steps, and at the end; 0: only at the end", minimum=0,
                              free=True)
    keep_last: int = setting(2, "checkpoints to keep, newest first", minimum=1, free=True)
    keep_every: int = setting(0, "also keep the checkpoint of every multiple of this many steps; 0: none", minimum=0,
                              free=True)
    keep_best: str = setting("", "also keep the checkpoint whose step has the highest value of this metric, such as "
                             "eval/greedy; --model=DIR@best names it; empty: none", free=True)
    stop_when: str = setting("", "rules that end the run, joined by commas, such as train/entropy<0.01,train/kl>10",
                             free=True)
    stop_patience: int = setting(10, "rows in succession in which a rule of stop_when has to hold", minimum=1,
                                 free=True)
    tensorboard: bool = setting(False, "mirror metrics.jsonl in run_dir/tensorboard; needs tensorboardX", free=True)
    eval_every: int = setting(10, "measure held-out accuracy every this many steps, and at both ends; 0: at the ends",
                              minimum=0, free=True)
    eval_size: int = setting(512, "held-out problems to measure on; 0: all", minimum=0)
    coordinator_address: str = setting("", "host:port of process 0 for a run of several processes; 'auto' to detect",
                                       free=True)
    num_processes: int = setting(0, "processes of the run, with coordinator_address", minimum=0, free=True)
    process_id: int = setting(-1, "index of this process, with coordinator_address", minimum=-1, free=True)


@dataclasses.dataclass(frozen=True)
class LearnerConfig(RunConfig):
    """The update: optimiser, passes and memory."""

    temperature: float = setting(1.0, "sampling temperature of the rollouts, and of every log-probability", above=0)
    learning_rate: float = setting(1e-6, "peak learning rate of AdamW", minimum=0)
    warmup_steps: int = setting(0, "optimiser updates of linear warm-up from 0", minimum=0)
    schedule: str = setting("constant", "learning rate after the warm-up", table="learner.SCHEDULES")
    decay_steps: int = setting(0, "optimiser updates until the schedule ends, warm-up included; 0: the whole run",
                               minimum=0)
    final_lr_fraction: float = setting(0.0, "learning rate at the end of the schedule, as a fraction of the peak",
                                       minimum=0, maximum=1)
    adam_b1: float = setting(0.9, "decay of AdamW's first moment", minimum=0, below=1)
    adam_b2: float = setting(0.999, "decay of AdamW's second moment", minimum=0, below=1)
    weight_decay: float = setting(0.01, "decoupled weight decay, on all parameters", minimum=0)
    max_grad_norm: float = setting(1.0, "clip gradients to this global norm", above=0)
    num_passes: int = setting(1, "times the update goes over a step's batch", minimum=1)
    num_minibatches: int = setting(1, "optimiser updates of a pass", minimum=1)
    grad_accumulation: int = setting(1, "micro-batches a minibatch is cut into on each device, to save memory",
                                     minimum=1)
    remat: bool = setting(True, "recompute layers in the backward pass: less memory, and on large models faster")
    max_logits: int = setting(2**25, "most logits (tokens x vocabulary) held at once in the update", minimum=1)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the update maximises, given the rewards."""

    objective: str = setting("one_shot", "advantages, loss and divisor of the update", table="objectives.OBJECTIVES")
    clip_low: Optional[float] = setting(None, "lower clip of the ratio, 1 - clip_low; unset: the objective's own",
                                        minimum=0)
    clip_high: Optional[float] = setting(None, "upper clip of the ratio, 1 + clip_high; unset: the objective's own",
                                         minimum=0)
    entropy_coef: Optional[float] = setting(None, "weight of the entropy bonus, negative to minimise entropy; unset: "
                                            "the objective's own", minimum=-10)


@dataclasses.dataclass(frozen=True)
class Reference:
    """The KL to the reference, which is the model the run started from."""

    kl_coef: float = setting(0.0, "weight of the k3 KL to the reference, the model the run started from", minimum=0)
    track_kl: bool = setting(True, "measure the KL even when kl_coef is 0: one more forward pass and, where all "
                             "parameters are trained, a copy of them")
    reset: str = setting("both", "what a reset sets anew: the reference becomes the policy of that moment, the "
                         "optimiser forgets its moments", ["both", "reference", "optimizer"])
    reset_every: int = setting(0, "steps between resets; 0: none", minimum=0)
    reset_patience: int = setting(0, "reset when greedy held-out accuracy has not had a new best in this many "
                                  "evaluations since the last reset; 0: never", minimum=0)

    @property
    def measure_kl(self) -> bool:
        return self.track_kl or self.kl_coef > 0

    @property
    def resets_reference(self) -> bool:
        return bool(self.reset_every or self.reset_patience) and self.reset != "optimizer"


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A model to use."""

    model: str = setting("", "a run directory (DIR, DIR@STEP or DIR@best), a Hugging Face folder, a .gguf file, or "
                         "smollm2")
    dtype: str = setting("float32", "of the computation; parameters stay float32", ["float32", "bfloat16"])


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a question becomes a prompt and a prompt a completion."""

    prompt_style: str = setting("plain", "how a question becomes a prompt", table="tasks.prompts.PROMPT_STYLES")
    max_new_tokens: int = setting(22, "longest completion, in tokens", minimum=1)
    num_slots: int = setting(0, "completions decoded at a time on each device; 0: all", minimum=0)


@dataclasses.dataclass(frozen=True)
class ProblemChoice(Decoding):
    """Problems, and where their answers are found in a completion."""

    problems: str = setting("arithmetic", "a synthetic family, gym:NAME for a data set of reasoning-gym, "
                            "calculation:LEVEL for expressions of 1 to 20 operations (calculation:LEVEL:SEED for "
                            "others), a JSONL file, or a .parquet file of One-Shot-RLVR; or several, joined by commas",
                            listed="tasks.families.FAMILIES")
    num_ops: int = setting(6, "operations in a problem of a synthetic family", minimum=1)
    heldout_split: str = setting("test", "split of a synthetic family to measure on", ["dev", "test"])
    instruction: str = setting("", "text added after every question of a file that does not end with it already")
    ignore_columns: str = setting("", "columns of a file of problems, joined by commas, to read as if they were not "
                                  "there; a file with text that belongs to no known layout is refused without this")
    max_prompt_tokens: int = setting(0, "longest prompt, in tokens; 0: whatever the model's window leaves", minimum=0)
    answer_format: str = setting("auto", "where the answer is; auto: that of each problem's own family (tag for "
                                 "reasoning-gym), else boxed in training and lenient where accuracy is measured",
                                 ["auto"], "grading.extract.EXTRACTORS")
    grader: str = setting("math", "when two answers are equal: as mathematics, or as in the released one-shot reward, "
                          "quirks included, which always looks into the last \\boxed{}; in training it is the "
                          "reward's, and held-out problems are graded as mathematics. Problems of reasoning-gym "
                          "are graded by its own verifiers", table="grading.graders.GRADERS")


@dataclasses.dataclass(frozen=True)
class TrainConfig(ProblemChoice, ModelChoice, Reference, Objective, LearnerConfig):
    """One-example GRPO."""

    question: str = setting("", "the one problem to train on, in words; with --answer, in place of --problems")
    answer: str = setting("", "reference answer of --question")
    example: str = setting("auto", "the one problem to train on: its index (from 0; copies of a row count once), auto "
                           "(the one of example_pool whose pass rate is nearest example_pass_rate), or all (no single "
                           "example; rows with copies are drawn as often as the file has them)")
    example_pool: int = setting(128, "problems that example=auto chooses from", minimum=1)
    example_pass_rate: float = setting(0.2, "pass rate that example=auto looks for", minimum=0, maximum=1)
    heldout: str = setting("", "problems to measure on, never trained on: as --problems, or none; empty: the families "
                           "that are trained on, else none. eval_size is divided evenly among several")
    reward: str = setting("correct", "what is paid for: one row of the table, or a weighted sum such as "
                          "correct:1,format:0.1", listed="rewards.REWARDS")
    random_rate: float = setting(0.5, "chance of a reward under --reward=random", minimum=0, maximum=1)
    wrong_answer: str = setting("", "the answer that --reward=incorrect pays for; empty: of each problem the most "
                                "frequent wrong one of 64 completions before training")
    only_wrong_majority: bool = setting(False, "train only on problems whose most frequent answer in 64 completions "
                                        "before training is wrong")
    overlong_buffer: int = setting(0, "tokens before max_new_tokens over which --reward=overlong falls to -1",
                                   minimum=0)
    mask_truncated: bool = setting(False, "leave completions that were cut at max_new_tokens out of the loss, not out "
                                   "of their group's mean")
    expert_steps: bool = setting(False, "train on single steps of the expert's solutions: a problem becomes one item "
                                 "for each step, its prompt continued by the steps before; see --reward=imitation")
    trainable: str = setting("all", "what is trained: all parameters, or an adapter. One that --model has already "
                             "becomes part of its weights", ["all"], "adapters.ADAPTERS")
    adapter_rank: int = setting(1, "rank of lora", minimum=1)
    adapter_alpha: float = setting(32.0, "lora adds alpha / rank times its product", above=0)
    adapter_layers: tuple[int, ...] = setting((), "layers, from 0, that a vector is added after; empty: all",
                                              minimum=0)
    adapter_size: int = setting(0, "train this many numbers, which a fixed random orthonormal projection turns into "
                                "the adapter; 0: the adapter itself", minimum=0)
    num_prompts: int = setting(16, "rows of a step, each its own group even where all are the one example", minimum=1)
    group_size: int = setting(8, "completions of a row, compared with each other", minimum=1)
    drop_dead_groups: bool = setting(False, "leave groups without advantage out of the loss altogether: KL, entropy "
                                     "and divisor included")
    max_resamples: int = setting(0, "times to sample again to replace dead groups, all rewards of which are equal",
                                 minimum=0)
    log_rollouts: int = setting(8, "rollouts of each step to write to rollouts.jsonl: whole groups, or a part of one",
                                minimum=0, free=True)
    record_history: bool = setting(False, "keep each problem's accuracy in each pass over the problems, and write it "
                                   "to history.json for scripts.select_example")

    @property
    def keep_reference(self) -> bool:
        """Whether the run holds a copy of the model it started from; with an adapter that is there without one."""
        return self.measure_kl and (self.trainable == "all" or self.resets_reference)

    @property
    def source(self) -> str:
        """Where the problems come from: a synthetic family, a file, or "question"."""
        return "question" if self.question else self.problems


@dataclasses.dataclass(frozen=True)
class MemoryConfig(TrainConfig):
    """The memory of a training run with these flags."""

    shape: str = setting("", "a published model in place of --model, by its shape: a row of the table SHAPES of "
                         "rlvr_jax/tools/memory.py")
    num_problems: int = setting(1, "distinct problems trained on: more than one with --example=all", minimum=1)
    prompt_tokens: int = setting(0, "tokens of the longest prompt; 0: max_prompt_tokens, or what the model's window "
                                 "leaves", minimum=0)


@dataclasses.dataclass(frozen=True)
class PretrainConfig(LearnerConfig):
    """The tiny base: a transformer trained on solutions of synthetic families in a mixture of styles."""

    objective: ClassVar[str] = "reinforce"  # with every advantage 1 this is cross-entropy
    clip_low: ClassVar[Optional[float]] = None
    clip_high: ClassVar[Optional[float]] = None
    entropy_coef: ClassVar[Optional[float]] = None
    num_steps: int = setting(2000, "updates to make", minimum=1, free=True)
    learning_rate: float = setting(3e-3, "peak learning rate of AdamW", minimum=0)
    warmup_steps: int = setting(100, "optimiser updates of linear warm-up from 0", minimum=0)
    adam_b2: float = setting(0.98, "decay of AdamW's second moment", minimum=0, below=1)
    schedule: str = setting("cosine", "learning rate after the warm-up", table="learner.SCHEDULES")
    eval_every: int = setting(500, "measure held-out accuracy every this many steps, and at both ends; 0: at the ends",
                              minimum=0, free=True)
    save_every: int = setting(500, "checkpoint every this many steps, and at the end; 0: only at the end", minimum=0,
                              free=True)
    task_shares: str = setting("arithmetic", "what to train on: a synthetic family, or several with their shares of a "
                               "step's problems, such as arithmetic:0.5,boolean:0.5", listed="tasks.families.FAMILIES")
    batch_size: int = setting(128, "problems of a step", minimum=1)
    num_ops: int = setting(6, "operations in a problem", minimum=1)
    window: int = setting(0, "most tokens of prompt and completion that the model takes, where that is more than a "
                          "problem of num_ops needs; it is not trained on longer ones", minimum=0)
    leaked: str = setting("", "JSONL file of texts to mix in, each as often as its times says, spread over the run: "
                          "rows with text and times, as scripts.plant writes them; empty: none")
    style_shares: tuple[float, ...] = setting((0.28, 0.27, 0.2, 0.25), "share of solutions written in each style: "
                                              "careful, sloppy, guess, ramble", above=0)
    habit_strength: float = setting(0.7, "how much a problem's surface decides its style: std of the logits' features",
                                    minimum=0)
    early_stop: float = setting(0.15, "chance that a careful solution stops early and answers what it has",
                                minimum=0, maximum=1)
    slip: float = setting(0.1, "chance that a sloppy step comes out at random", minimum=0, maximum=1)
    heldout_split: str = setting("test", "split of the families to measure on", ["dev", "test"])
    num_layers: int = setting(3, "layers of the model", minimum=1)
    d_model: int = setting(64, "width of the residual stream", minimum=1)
    num_heads: int = setting(4, "attention heads", minimum=1)
    d_ff: int = setting(256, "width of the feed-forward layers", minimum=1)


@dataclasses.dataclass(frozen=True)
class KeptConfig(ProblemChoice, ModelChoice, MachineConfig):
    """Completions of sets of problems, kept and graded."""

    problems: str = setting("arithmetic", "a synthetic family, gym:NAME, calculation:LEVEL (expressions of 1 to 20 "
                            "operations), or a file of problems as in training; or several, joined by commas: each is "
                            "a row of the table")
    out: str = setting("", "directory for summary.json, table.md and completions.jsonl", free=True)
    resume: str = setting("auto", "continue after the completions that are in out: never (start over), auto (if there "
                          "are any), must (error if there are none)", ["never", "auto", "must"], free=True)
    max_problems: int = setting(0, "use the first problems only; 0: all of a file, 512 of a family",
                                minimum=0)
    rows_per_call: int = setting(512, "completions handed to the sampler at a time, over all devices", minimum=1)
    seed: int = setting(0, "seed of the sampling", minimum=0, maximum=2**31 - 1)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(KeptConfig):
    """Accuracy of a model on a set of problems."""

    protocol: str = setting("flags", "how each benchmark is sampled; flags: all by num_samples and temperature",
                            ["flags"], "evaluation.benchmarks.PROTOCOLS")
    num_samples: int = setting(1, "completions of each problem; pass@k is estimated for k up to this", minimum=1)
    temperature: float = setting(0.0, "sampling temperature; 0: greedy", minimum=0)
    top_p: float = setting(1.0, "sample from the most likely tokens that make up this probability", above=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class SteeringConfig(KeptConfig):
    """A vector that is added to the residual, and a gate that says where."""

    opening: str = setting("think", "words that completions begin with under forced, and after which --vector=means "
                           "reads a model that is of no synthetic family")
    vector: str = setting("means", "direction that is added; all but trained have the length of means",
                          table="elicit.vectors.VECTORS")
    vectors: str = setting("", "run directory of scripts.train --trainable=vector, for --vector=trained")
    layer: int = setting(1, "layer, from 0, after which the gate reads and the vector is added; arXiv 2510.07364 takes "
                         "one at 37 % of the depth", minimum=0)
    trained: str = setting("", "the trained model that the gate is fitted to: where its likeliest token is another "
                           "than that of --model")
    fit_problems: str = setting("", "file of problems to fit vector and gate on; empty: the split example of the "
                                "synthetic family in --problems")
    num_fit: int = setting(512, "problems to fit on", minimum=5)


@dataclasses.dataclass(frozen=True)
class ElicitConfig(SteeringConfig):
    """What a model can do under another decoding, without training."""

    method: str = setting("greedy", "how a problem gets its answer", table="elicit.decoding.METHODS")
    num_samples: int = setting(10, "completions of each problem: of self_consistency drawn, of cot_decoding those of "
                               "the likeliest first tokens, of sae those that it is fitted on", minimum=1)
    temperature: float = setting(0.6, "sampling temperature of low_temperature and self_consistency", above=0)
    alpha: float = setting(4.0, "power draws completions by their whole probability to this power", minimum=1)
    num_blocks: int = setting(16, "power grows a completion in this many blocks of max_new_tokens together", minimum=1)
    num_moves: int = setting(10, "Metropolis-Hastings moves of power after each block", minimum=0)
    strength: float = setting(1.0, "steer adds the vector this many times; below 0 the other way", minimum=-1000)
    where: str = setting("generated", "tokens that steer acts at", table="elicit.steering.WHERE")
    latent: str = setting("contrast", "latent that sae adds", table="elicit.latents.LATENTS")
    num_latents: int = setting(512, "latents of the autoencoder of sae", minimum=1)
    active: int = setting(8, "latents that are active at a token, at most", minimum=1)
    sae_steps: int = setting(2000, "updates of the autoencoder", minimum=1)
    strengths: tuple[float, ...] = setting((1.0, 2.0, 4.0, 8.0, 16.0), "times that sae adds a direction of length 1; "
                                           "the one that is best on the dev split counts", minimum=0)
    rate: float = setting(0.1, "share of generated tokens at which steer acts: of those that the gate was fitted on, "
                          "or by chance under shuffled_gate", minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class HybridConfig(SteeringConfig):
    """How much of a trained model's gain its base recovers, steered where a gate says so."""

    strengths: tuple[float, ...] = setting((1.0, 2.0, 4.0), "times that the vector is added, to choose from",
                                           minimum=0)
    rates: tuple[float, ...] = setting((0.02, 0.05, 0.1, 0.2, 0.4), "shares of the tokens it was fitted on at which "
                                       "the gate acts, to choose from; the curve", above=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class WhenConfig(KeptConfig):
    """At which tokens a trained model differs from its base."""

    out: str = setting("", "directory for summary.json, when.md, when.png, and the completions", free=True)
    trained: str = setting("", "what was trained from --model, of the same shape: named as --model is")
    first: tuple[int, ...] = setting((1, 2, 4), "put the trained model's tokens in only among so many first ones",
                                     minimum=1)
    shares: tuple[float, ...] = setting((0.01, 0.05, 0.1), "put them in only at this share of tokens, those with the "
                                        "largest KL", above=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Decoding, ModelChoice, LearnerConfig):
    """Supervised training on completions of prompts, from a file."""

    objective: ClassVar[str] = "reinforce"  # with every advantage 1 this is cross-entropy
    clip_low: ClassVar[Optional[float]] = None
    clip_high: ClassVar[Optional[float]] = None
    entropy_coef: ClassVar[Optional[float]] = None
    source: ClassVar[str] = "none"  # no problems are trained on, so those to measure on have to be named
    examples: str = setting("", "JSONL file to learn from: rows with a prompt, as the model reads it, and a completion")
    batch_size: int = setting(32, "rows of a step, in the order of an epoch over all", minimum=1)
    window: int = setting(0, "most tokens of prompt and completion that the trained model takes, where that is more "
                          "than before; 0: as many as before", minimum=0)
    heldout: str = setting("none", "problems to measure on: a synthetic family, a file, or none")
    num_ops: int = setting(6, "operations in a problem of a synthetic family", minimum=1)
    heldout_split: str = setting("test", "split of a synthetic family to measure on", ["dev", "test"])
    instruction: str = setting("", "text added after every held-out question that does not end with it already")
    ignore_columns: str = setting("", "columns of the held-out file, joined by commas, to read as if they were not "
                                  "there")
    max_prompt_tokens: int = setting(0, "longest held-out prompt, in tokens; 0: whatever the model's window leaves",
                                     minimum=0)
    answer_format: str = setting("auto", "where the answer to a held-out problem is; auto: a family's own, "
                                 "else lenient", ["auto"], "grading.extract.EXTRACTORS")


@dataclasses.dataclass(frozen=True)
class CritiqueConfig(Decoding, ModelChoice, MachineConfig):
    """Examples for fine-tuning, made of a model's own attempts at one synthetic problem."""

    kind: str = setting("critique", "what is learnt", table="elicit.critique.KINDS")
    problems: str = setting("arithmetic", "a synthetic family whose problems have steps",
                            table="tasks.families.FAMILIES")
    num_ops: int = setting(6, "operations in a problem", minimum=1)
    example: int = setting(0, "the one problem, as in training: its place, from 0, among the seed's example_pool",
                           minimum=0)
    example_pool: int = setting(128, "problems that the example is one of", minimum=1)
    num_attempts: int = setting(100, "attempts to sample, and rows to write", minimum=1)
    temperature: float = setting(1.0, "sampling temperature of the attempts", above=0)
    seed: int = setting(0, "seed of the problems, the sampling and the shuffling", minimum=0, maximum=2**31 - 1)
    out: str = setting("", "JSONL file for the rows: prompt and completion, as scripts.finetune reads them")


@dataclasses.dataclass(frozen=True)
class ProbeConfig(EvaluateConfig):
    """What training bought: a probe of kept completions, or of those of a model."""

    probe: str = setting("coherence", "what is asked", table="probes.probe.PROBES")
    completions: str = setting("", "JSONL files of completions that were kept, joined by commas; empty: those of "
                               "--model, sampled now")
    out: str = setting("", "directory for PROBE.html, .json, .md, .png and PROBE_items.jsonl, and for the completions "
                       "that are sampled", free=True)
    example: str = setting("", "memory: the trained problem, as a run directory whose example.json names it, or in "
                           "words; empty: the run in --model")
    fractions: tuple[float, ...] = setting((0.4, 0.6, 0.8), "contamination: shares of a question's words that are "
                                           "shown", above=0, below=1)
    twins: str = setting("", "contamination: also ask twins of each problem that nobody can have met, and compare: of "
                         "these, joined by commas", listed="probes.twins.TWINS")
    clean: str = setting("", "contamination: a source of problems that the model cannot have met, to compare the "
                         "others with, such as calculation:3; one of --problems, or one more")


@dataclasses.dataclass(frozen=True)
class PlantConfig:
    """A benchmark of which a known part leaks into pre-training."""

    problems: str = setting("arithmetic", "a synthetic family, whose test split they are of",
                            table="tasks.families.FAMILIES")
    num_ops: int = setting(6, "operations in a problem", minimum=1)
    num_problems: int = setting(320, "different problems; half of them never leak", minimum=2)
    times: tuple[int, ...] = setting((1, 3, 10, 30, 100), "how often those of the other half are seen: as many of each",
                                     minimum=0)
    seed: int = setting(0, "seed of the problems", minimum=0, maximum=2**31 - 1)
    out: str = setting("", "directory for leaked.jsonl and times_N.jsonl")


@dataclasses.dataclass(frozen=True)
class SampleConfig(Decoding, ModelChoice, MachineConfig):
    """Completions of one prompt."""

    prompt: str = setting("", "text to continue")
    num_samples: int = setting(1, "completions to draw", minimum=1)
    temperature: float = setting(1.0, "sampling temperature; 0: greedy", minimum=0)
    top_p: float = setting(1.0, "sample from the most likely tokens that make up this probability", above=0, maximum=1)
    prompt_style: str = setting("auto", "how the prompt is put; auto: chat where the model has a template, else plain",
                                ["auto"], "tasks.prompts.PROMPT_STYLES")
    max_new_tokens: int = setting(0, "longest completion, in tokens; 0: what the model's window leaves after the "
                                  "prompt, at most 512", minimum=0)
    seed: int = setting(0, "seed of the sampling", minimum=0, maximum=2**31 - 1)
    out: str = setting("", "JSONL file for the completions; empty: only print")


@dataclasses.dataclass(frozen=True)
class ReadoutConfig(ModelChoice, MachineConfig):
    """What trained vectors say."""

    beside: str = setting("", "models with vectors of the same shape to compare with, joined by commas")
    problems: str = setting("arithmetic", "whose prompts show what the model does: a synthetic family or a file",
                            listed="tasks.families.FAMILIES")
    num_ops: int = setting(6, "operations in a problem of a synthetic family", minimum=1)
    heldout_split: str = setting("dev", "split of a synthetic family", ["dev", "test"])
    num_problems: int = setting(512, "problems to read; 0: all of a file, 512 of a family", minimum=0)
    prompt_style: str = setting("plain", "how a question of a file becomes a prompt",
                                table="tasks.prompts.PROMPT_STYLES")
    instruction: str = setting("", "text added after every question of a file that does not end with it already")
    ignore_columns: str = setting("", "columns of a file, joined by commas, to read as if they were not there")
    out: str = setting("", "directory for readout.json and readout.md")


@dataclasses.dataclass(frozen=True)
class SelectConfig:
    """A ranking of problems by what happened to them in training."""

    history: str = setting("", "JSON file of index -> list of accuracies, or a run directory with a history.json")
    problems: str = setting("", "the JSONL or parquet file of the problems, to show them; empty: indices alone")
    ignore_columns: str = setting("", "columns of that file, joined by commas, to read as if they were not there")
    top: int = setting(20, "rows to print; 0: all", minimum=0)
    out: str = setting("", "JSON file for the whole ranking; empty: only print")


@dataclasses.dataclass(frozen=True)
class GradeConfig:
    """Completions graded without sampling them again."""

    completions: str = setting("", "JSONL file of rows with a completion and an answer, such as completions.jsonl of "
                               "an evaluation")
    out: str = setting("", "JSONL file for the same rows with correct, extracted, graded_by and timed_out; may be the "
                       "file read")
    answer_format: str = setting("lenient", "where the answer is", table="grading.extract.EXTRACTORS")
    grader: str = setting("math", "when two answers are equal: as mathematics, or as in the released one-shot reward, "
                          "quirks included, which always looks into the last \\boxed{}",
                          table="grading.graders.GRADERS")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """A run, drawn, or all studies."""

    run_dir: str = setting("", "directory of the run to draw")
    all: bool = setting(False, "write index.html, the findings of every study that has a record in results")
    results: str = setting("results", "with all: directory of the records, STUDY.json, and of index.html")
    readme: str = setting("", "with all: Markdown file whose table of findings is written anew; empty: none")


@dataclasses.dataclass(frozen=True)
class ExportConfig(ModelChoice):
    """A model, written for other programs."""

    dtype: str = setting("float32", "of the written tensors", ["float32", "bfloat16"])
    out: str = setting("", "folder to write: config.json, model.safetensors, tokenizer files")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A question asked of several arms and seeds."""

    study: str = setting("one_shot", "a file of configs/studies by its name, or any .toml file like them")
    seeds: tuple[int, ...] = setting((), "seeds in place of the study's own", minimum=0, maximum=2**31 - 1)
    data: str = setting("", "directory of problem files, for the studies that need some")
    quick: bool = setting(False, "try the study out: its first seed alone, with the flags of its [quick] table; "
                          "written as STUDY_quick, and no result")
    work_dir: str = setting("", "directory for the runs; empty: runs/STUDY")
    out: str = setting("", "directory for STUDY.json, STUDY.md and STUDY.png; empty: results in work_dir; the "
                       "published ones are in results")


@dataclasses.dataclass(frozen=True)
class BenchConfig(MachineConfig):
    """Side-by-side timings."""

    out: str = setting("", "Markdown file for the table; empty: only print")
    repeats: int = setting(5, "timed runs of each side, alternating; the median is reported", minimum=1)
    rollouts: int = setting(64, "completions decoded together from one prompt", minimum=1)
    prompt_tokens: int = setting(64, "length of the prompt", minimum=1)
    new_tokens: int = setting(64, "tokens decoded for each completion", minimum=2)
    num_layers: int = setting(30, "layers; 30 is SmolLM2-135M", minimum=1)
