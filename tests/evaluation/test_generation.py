"""How scripts.sample puts a prompt and how long a completion may be, where no flag says so."""

import dataclasses
import types

import numpy as np
import pytest

from rlvr_jax import sampler
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import generate
from rlvr_jax.evaluation.generate import SampleConfig
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.records import Rollouts
from rlvr_jax.tasks.families import make_tokenizer

from fixtures import QWEN

WINDOW = ModelConfig(vocab_size=300, num_layers=1, d_model=8, num_heads=1, num_kv_heads=1, head_dim=8, d_ff=8,
                     max_seq_len=37)


@pytest.fixture
def generated(monkeypatch):
    """`generated(tokenizer, window, flags...)`: (longest completion asked of the sampler, prompt), drawing nothing."""
    def run(words, max_seq_len, **flags):
        asked = []

        def make_sampler(config, decoding, *_):
            asked.append(decoding.max_new_tokens)
            return lambda *args: Rollouts(np.zeros(1, int), np.full((1, 1), 5), np.ones((1, 1), bool),
                                          np.zeros((1, 1)), np.ones(1, bool))

        config = dataclasses.replace(WINDOW, max_seq_len=max_seq_len)
        monkeypatch.setattr(loading, "load_model", lambda *_: types.SimpleNamespace(config=config, params={},
                                                                                    tokenizer=words))
        monkeypatch.setattr(sampler, "make_sampler", make_sampler)
        row, = generate.generate(SampleConfig.from_flags(model="m", **flags))
        return *asked, row["prompt"]
    return run


def test_a_completion_fills_the_window_up_to_a_bound(generated):
    words, prompt = make_tokenizer(["arithmetic"]), "coins 7 + 5 ="
    assert generated(words, 37, prompt=prompt) == (37 - 5, prompt)
    assert generated(words, 2048, prompt=prompt)[0] == 512
    assert generated(words, 37, prompt=prompt, max_new_tokens=8)[0] == 8
    with pytest.raises(UserError, match="a prompt has 5 tokens"):
        generated(words, 5, prompt=prompt)


def test_a_model_with_a_chat_template_is_asked_in_it_and_says_so(generated, capsys):
    assert generated(QWEN, 2048, prompt="Hi?")[1] == "<s>[Hi?]"
    assert capsys.readouterr().err == (
        "asked in the model's chat template; --prompt_style=plain continues the bare prompt\n")
    assert generated(QWEN, 2048, prompt="Hi?", prompt_style="plain")[1] == "Hi?"
    assert generated(make_tokenizer(["arithmetic"]), 2048, prompt="coins")[1] == "coins"
    assert capsys.readouterr().err == ""
