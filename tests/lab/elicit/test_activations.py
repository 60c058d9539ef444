"""Streamed activations: those of single rows, and the same bits however often they were cut short."""

import dataclasses
import hashlib
import json

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


def kept(folder) -> dict:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.npy"))}


def test_they_are_those_of_single_rows(tmp_path):
    found = activations.stream(LOADED, ROWS, [2, 0], tmp_path / "a", batch=4)
    assert found.row.tolist() == [i for i, row in enumerate(ROWS) for _ in row]
    assert found.positions.tolist() == [j for row in ROWS for j in range(len(row))]
    for i, row in enumerate(ROWS):
        hidden, residuals_Lx1xTxD = model.forward(LOADED.params, CONFIG, np.array([row]),
                                                   how=model.ForwardOptions(read_residual=lambda x: x))
        for layer in (0, 2):
            np.testing.assert_allclose(found.at(layer)[found.row == i], residuals_Lx1xTxD[layer, 0], atol=1e-5)
        assert (found.likeliest[found.row == i] == model.head(LOADED.params, hidden)[0].argmax(-1)).all()
    told = json.loads((tmp_path / "a" / "complete.json").read_text())
    assert (told["texts"], told["tokens"], told["bytes"]) == (6, 21, 21 * (2 * 16 + 1) * 4) and told["seconds"] > 0
    with pytest.raises(UserError, match="layer 1"):
        found.at(1)


def test_interrupted_and_continued_is_in_one_go_bit_for_bit(tmp_path, monkeypatch):
    activations.stream(LOADED, ROWS, [1], tmp_path / "whole", batch=2)
    compute, calls = activations._read, []

    def read(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*given)

    monkeypatch.setattr(activations, "_read", read)
    with pytest.raises(KeyboardInterrupt):
        activations.stream(LOADED, ROWS, [1], tmp_path / "cut", batch=2)
    assert kept(tmp_path / "cut") != kept(tmp_path / "whole")
    activations.stream(LOADED, ROWS, [1], tmp_path / "cut", batch=2)
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole") and len(calls) == 4  # two, a cut one, the last
    activations.stream(LOADED, ROWS, [1], tmp_path / "cut", batch=2)
    assert len(calls) == 4


def test_a_folder_is_of_one_model_and_one_set_of_texts(tmp_path):
    activations.stream(LOADED, ROWS, [], tmp_path, batch=2)
    other = dataclasses.replace(LOADED, params=LOADED.params | {"final_norm": LOADED.params["final_norm"] + 1})
    for loaded, rows, layers, batch in ((other, ROWS, [], 2), (LOADED, ROWS[:-1], [], 2), (LOADED, ROWS, [1], 2),
                                        (LOADED, ROWS, [], 3)):
        with pytest.raises(UserError, match="holds activations of another model"):
            activations.stream(loaded, rows, layers, tmp_path, batch=batch)
    for rows, layers, flaw in ((ROWS, [3], "0 to 2"), ([[]], [0], "window"), ([], [0], "window"),
                               ([[1] * (CONFIG.max_seq_len + 1)], [0], "window")):
        with pytest.raises(UserError, match=flaw):
            activations.stream(LOADED, rows, layers, tmp_path / "new")
    at_first = LOADED.params | {"layers": LOADED.params["layers"] | {"first_vector": np.ones((3, 16), np.float32)}}
    with pytest.raises(UserError, match="first_vector acts where a completion begins"):
        activations.stream(dataclasses.replace(LOADED, params=at_first), ROWS, [0], tmp_path / "new")
