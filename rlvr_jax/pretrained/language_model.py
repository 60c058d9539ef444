"""A loaded model, whatever kind of file it comes from."""

import dataclasses

from rlvr_jax.model import ModelConfig, Params
from rlvr_jax.pretrained.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A loaded model and its tokenizer. `params` are numpy arrays; for training they are float32."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    flags: dict = dataclasses.field(default_factory=dict)  # {flag: value} of the run that saved the model, if any
