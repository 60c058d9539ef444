"""A model ready to use, whatever file it came from."""

import dataclasses

from rlvr_jax.model import ModelConfig, Params
from rlvr_jax.pretrained.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model ready to use: parameters are numpy arrays, float32 wherever they are trained."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    flags: dict = dataclasses.field(default_factory=dict)  # of the run of this program that saved it, if one did
