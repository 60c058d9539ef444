"""What vectors, gates and autoencoders share before they are fitted: problems apart from those that are measured."""

from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit.vectors import SteeringConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem, flat, replace
from rlvr_jax.tasks.prompts import ProblemSource, is_drawn, load_problems


def pinned(config):
    """The record with the steps of its run directories spelt out (`loading.pinned`)."""
    flags = flat(config)
    return replace(config, **{name: loading.pinned(flags[name]) for name in ("model", "trained", "vectors")})


def check_layer(config: SteeringConfig, loaded: LanguageModel) -> None:
    """Raises UserError for a layer that the model lacks."""
    if config.layer >= loaded.config.num_layers:
        raise UserError(f"--layer={config.layer}: the layers of the model are 0 to {loaded.config.num_layers - 1}")


def problems_apart(config: SteeringConfig, loaded: LanguageModel, split: str) -> list[Problem]:
    """--num_fit problems that are not measured: those of another split of --problems, or of --fit_problems."""
    source = config.kept.source
    if not config.fit_problems and not all(map(is_drawn, source.problems.split(","))):
        raise UserError(f"--problems={source.problems} has one split, which is measured: name a file to fit on, "
                        "--fit_problems")
    return load_problems(ProblemSource(config.fit_problems or source.problems, source.prompt), loaded.tokenizer, split,
                         config.num_fit)
