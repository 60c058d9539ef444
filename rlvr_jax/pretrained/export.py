"""Exports a model as a Hugging Face folder."""

import hashlib
import pathlib
import shutil

from rlvr_jax import adapters
from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import huggingface, loading, tokenizer
from rlvr_jax.runs import files, origin

CARD = """# {name}

Step {step} of a run of rlvr_jax's `scripts.{command}`: commit {commit}, JAX {jax}, {device} ({platform}).
`python -m scripts.{command} --flagfile=.../{name}/flags.txt --run_dir=DIR` repeats the run.

| measured in the run | accuracy |
|---|---|
{measured}

| file | sha256 |
|---|---|
{sums}
"""


class ExportConfig(Config):
    """A model to write for other programs."""

    choice: loading.ModelChoice = nested(loading.ModelChoice(), dtype="of the written tensors")
    out: str = flag("", "folder to write: config.json, model.safetensors, tokenizer files; of a run also its card, "
                    "README.md, and its flags.txt")


def export(config: ExportConfig) -> None:
    """Writes the folder, with LoRA added to the weights. Raises UserError for a vector, which it cannot represent."""
    if not config.out:
        raise UserError("--out is required: the folder to write")
    name = loading.pin_step(config.choice.model)
    loaded = loading.load_model(name, params_dtype=config.choice.dtype)
    with files.name_in_errors(config.out):
        huggingface.save_folder(loaded.config, adapters.merge(loaded.params), config.out, config.choice.dtype)
        tokenizer.save_tokenizer(loaded.tokenizer, config.out)
        write_card(name, pathlib.Path(config.out))


def write_card(name: str, out: pathlib.Path) -> None:
    """Writes the flags.txt of the run `name` (`DIR@STEP`) and README.md: how the run was made, what it measured, and
    the sums of the folder's files. Does nothing for a run that has not finished, for a model that is not a run, and
    where there is a README.md."""
    directory, _, step = name.partition("@")
    run, card = pathlib.Path(directory), out / "README.md"
    made, summary = (origin.read(run), files.read_json(run / "summary.json", missing={})) if step else ({}, {})
    if not made.get("starts") or summary.get("steps") != int(step) or card.exists():
        return
    shutil.copyfile(run / "flags.txt", out / "flags.txt")
    measured = [f"| {when}, {how} | {summary[key][how]:.3f} |" for key, when in (("base", "before"), ("final", "after"))
                for how in ("greedy", "sampled") if how in summary[key]]
    sums = [f"| {path.name} | {hashlib.sha256(path.read_bytes()).hexdigest()} |" for path in sorted(out.iterdir())]
    files.write_whole(card, CARD.format_map(made["starts"][-1] | {
        "name": out.name, "step": step, "command": made["command"], "measured": "\n".join(measured),
        "sums": "\n".join(sums)}))
