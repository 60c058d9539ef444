"""Activations of a batch of texts, compared with those of single texts."""

import dataclasses

import numpy as np
import pytest

from rlvr_jax import model
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit import activations
from rlvr_jax.pretrained.language_model import LanguageModel

from fixtures import VARIANTS, random_params

CONFIG = dataclasses.replace(VARIANTS["untied"], num_layers=3)
LOADED = LanguageModel(CONFIG, random_params(CONFIG), None)
ROWS = [[5, 9, 2], [7], [1, 2, 3, 4, 8], [3, 3], [6, 1, 2, 9, 4, 4, 2], [8, 8, 1]]


def test_they_are_those_of_single_texts(monkeypatch):
    monkeypatch.setattr(activations, "BATCH", 4)
    starts = np.array([2, 0, 1, 0, 3, 1])
    read, plain = activations.read_tokens(LOADED, ROWS, starts, 2), activations.read_tokens(LOADED, ROWS, starts)
    assert plain.residual is None and (plain.likeliest == read.likeliest).all()
    for i, (row, start) in enumerate(zip(ROWS, starts)):
        hidden, residuals_Lx1xTxD = model.forward(LOADED.params, CONFIG, np.array([row]),
                                                   how=model.ForwardOptions(read_residual=lambda x: x))
        mine = read.text == i
        assert read.position[mine].tolist() == list(range(start, len(row)))
        np.testing.assert_allclose(read.residual[mine], residuals_Lx1xTxD[2, 0, start:], atol=1e-5)
        assert (read.likeliest[mine] == model.head(LOADED.params, hidden)[0, start:].argmax(-1)).all()


def test_a_vector_at_the_first_token_cannot_be_read_in_plain_texts():
    at_first = LOADED.params | {"layers": LOADED.params["layers"] | {"first_vector": np.ones((3, 16), np.float32)}}
    with pytest.raises(UserError, match="first_vector acts where a completion begins"):
        activations.read_tokens(dataclasses.replace(LOADED, params=at_first), ROWS, np.zeros(6, int))
