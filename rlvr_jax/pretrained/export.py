"""Exports a model as a Hugging Face folder."""

import collections
import hashlib
import pathlib
import shutil

from rlvr_jax import adapters
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import huggingface, loading, tokenizer
from rlvr_jax.runs import files, origin

MARK = "of a run of rlvr_jax's `scripts."  # a part of every card that `write_card` wrote
CARD = """# {name}

Step {step} """ + MARK + """{command}`: commit {commit}, JAX {jax}, {device} ({platform}).
`python -m scripts.{command} --flagfile=.../{name}/flags.txt --run_dir=DIR` repeats the run.

| held-out accuracy at the end | |
|---|---|
{measured}

| file | sha256 |
|---|---|
{sums}
"""


class ExportConfig(Config):
    """A model to write as a Hugging Face folder."""

    choice: loading.ModelChoice = nested(loading.ModelChoice(), dtype="dtype of the written tensors")
    out: str = flag("", "folder to write: config.json, model.safetensors and tokenizer files; for a finished run also "
                    "README.md, its model card, and its flags.txt")


def export(config: ExportConfig) -> None:
    """Writes the model `config.choice`, with LoRA merged into the weights, and its model card into the Hugging Face
    folder `config.out`. Raises UserError for a model with trained vectors, which such a folder cannot represent."""
    if not config.out:
        raise UserError("--out is required: the folder to write")
    name = loading.pin_step(config.choice.model)
    loaded = loading.load_model(name, params_dtype=config.choice.dtype)
    with files.name_in_errors(config.out):
        huggingface.save_folder(loaded.config, adapters.merge(loaded.params), config.out, config.choice.dtype)
        tokenizer.save_tokenizer(loaded.tokenizer, config.out)
        write_card(name, pathlib.Path(config.out))


def write_card(name: str, out: pathlib.Path) -> None:
    """If `name` is `DIR@STEP` and STEP the last step of a finished run, copies the run's flags.txt to `out` and writes
    the model card `out`/README.md: the run's commit and device, its accuracies, and the SHA-256 sums of the files in
    `out`. Does nothing for any other model, or if `out` is DIR or has a README.md that is not such a card."""
    directory, _, step = name.partition("@")
    run, card = pathlib.Path(directory), out / "README.md"
    run_origin = origin.read(run) if step else {}
    summary = files.read_json(run / "summary.json", missing={}) if step else {}
    is_free = not card.exists() or MARK in card.read_text("utf-8", "replace")
    if (not run_origin.get("starts") or summary.get("steps") != int(step) or not is_free
            or not (run / "flags.txt").is_file() or run.samefile(out)):
        return
    shutil.copyfile(run / "flags.txt", out / "flags.txt")
    measured = [f"| {how} | {summary['final'][how]:.3f} |" for how in ("greedy", "sampled") if how in summary["final"]]
    sums = [f"| {path.name} | {hashlib.sha256(path.read_bytes()).hexdigest()} |" for path in sorted(out.iterdir())
            if path.is_file() and path != card]
    start = run_origin["starts"][-1]  # commit, device etc. of the run's last start; earlier versions stored less
    files.write_whole(card, CARD.format_map(collections.defaultdict(lambda: "unknown", start) | {
        "name": out.name, "step": step, "command": run_origin["command"],
        "measured": "\n".join(measured), "sums": "\n".join(sums)}))
