"""Readouts of planted vectors, against numbers made with NumPy from the states of a decoding step."""

import dataclasses
import json

import numpy as np
import pytest

from rlvr_jax import model
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit.readout import ReadoutConfig, readout
from rlvr_jax.lab.elicit.vectors import trained_vectors
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.tasks import families, prompts
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig

from fixtures import VARIANTS, random_params

WORDS = families.make_tokenizer(["arithmetic"])
CONFIG = dataclasses.replace(VARIANTS["untied"], num_layers=3, vocab_size=WORDS.backend.get_vocab_size())
OPENERS = [WORDS.encode(word)[0] for word in ("think", "quick", "answer", "hmm")]  # the careful one first
COUNT = 70  # more than one part, the last of which is not full

PARAMS = random_params(CONFIG)  # of a model that often opens with an opener, now of one style and now of another
PARAMS |= {"head": PARAMS["head"].at[:, np.array(OPENERS)].multiply(6)}
GAIN, HEAD = (np.asarray(PARAMS[name], np.float64) for name in ("final_norm", "head"))


@pytest.fixture(scope="module")
def states():
    """(residual f64[3,COUNT,16], next token i[COUNT]) at each last prompt token, from the layers one by one."""
    problems = prompts.load_problems(ProblemSource("arithmetic", PromptConfig(2)), WORDS, "dev", COUNT)
    prefix = model.prefill(PARAMS, CONFIG, prompts.encode_prompts(WORDS, problems, CONFIG, 1))
    seen = []

    def look(layer, x, positions):
        seen.append(np.asarray(x[:, 0], np.float64))
        return x

    inputs = model.Inputs(prefix.last_tokens, np.zeros(COUNT, np.int32))
    logits, _ = model.decode_step(PARAMS, CONFIG, model.unroll_layers(PARAMS, prefix), inputs,
                                  model.init_cache(CONFIG, COUNT, 1), look)
    return np.stack(seen), np.asarray(logits).argmax(-1)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """`read(vectors, flags...)`: the readout of the base with vectors `{layer: vector}`, or None, beside `others`."""
    def run(vectors, others=(), leaf="vector", **flags):
        def load(name, *_):
            of = vectors if name == "m" else others[int(name)]
            leaves = {} if of is None else {leaf: np.array([of.get(i, np.zeros(16)) for i in range(3)], np.float32)}
            return LanguageModel(CONFIG, PARAMS | {"layers": PARAMS["layers"] | leaves}, WORDS)
        monkeypatch.setattr(loading, "load_model", load)
        return readout(ReadoutConfig.from_flags(**{"model": "m", "beside": ",".join(map(str, range(len(others)))),
                                                   "num_ops": 2, "num_problems": COUNT, "out": str(tmp_path)} | flags))
    return run


def cosine(a, b):
    return pytest.approx(a @ b / (a @ a * (b @ b)) ** 0.5, abs=1e-5)


def test_logits_of_the_direct_path(read, states):
    """Column times gain times vector, over the mean divisor of the final norm, less their mean."""
    vector = np.random.default_rng(0).standard_normal(16)
    divisor = np.mean(np.sqrt(np.mean(states[0][-1] ** 2, -1)))
    added = HEAD.T @ (GAIN * vector / divisor)
    added -= added.mean()
    layers, order = read({1: vector})["layers"], np.argsort(added)
    assert list(layers) == ["1"]  # vectors of zeros are left out
    for name, chosen in (("raised", order[::-1][:8]), ("lowered", order[:8])):
        assert [word for word, _ in layers["1"][name]] == [WORDS.backend.id_to_token(int(i)) for i in chosen]
        np.testing.assert_allclose([logit for _, logit in layers["1"][name]], added[chosen], rtol=1e-4)


def test_a_vector_at_the_first_token_alone_is_read_as_one_after_the_last_layer(read):
    """After the last layer both change the same logits at the end of the prompt."""
    vectors = {2: 3 * HEAD[:, OPENERS[0]] / GAIN}
    everywhere, first = (read(vectors, leaf=leaf) for leaf in ("vector", "first_vector"))
    assert first == everywhere and first["careful"]["with_vectors"] > first["careful"]["base"]


def test_directions_of_the_base(read, states):
    rng, (residuals, tokens) = np.random.default_rng(1), states
    careful = tokens == OPENERS[0]
    assert 0.1 < careful.mean() < 0.9
    vectors = rng.standard_normal((3, 16))
    result = read(dict(enumerate(vectors)))
    opener = GAIN * (HEAD[:, OPENERS[0]] - HEAD[:, OPENERS[1:]].mean(-1))
    for i, vector in enumerate(vectors):
        layer = result["layers"][str(i)]
        means = residuals[i][careful].mean(0) - residuals[i][~careful].mean(0)
        assert layer["cosine_difference_of_means"] == cosine(vector, means)
        assert layer["cosine_opener"] == cosine(vector, opener)
        assert layer["norm"] == pytest.approx(np.sqrt(vector @ vector))
        mean_norm = np.mean([np.sqrt(x @ x) for x in residuals[i]])
        assert layer["norm_over_residual"] == pytest.approx(layer["norm"] / mean_norm, rel=1e-4)
    assert result["careful"]["base"] == careful.mean() and result["n"] == COUNT


@pytest.mark.parametrize("factor, share", [(100, 1), (-100, 0)])
def test_what_the_vectors_make_the_model_open_with(factor, share, read):
    """A large vector after the last layer, along the careful opener: every completion begins with it, or none."""
    toward = GAIN * (HEAD[:, OPENERS[0]] - HEAD[:, OPENERS[1:]].mean(-1))
    assert read({2: factor * toward})["careful"]["with_vectors"] == share


def test_vectors_beside_it(read):
    a, b, c = np.random.default_rng(2).standard_normal((3, 16))
    result = read({0: a, 1: b}, others=[{0: c, 1: -2 * b}, {0: a}])
    assert result["layers"]["0"]["cosine_beside"] == {"0": cosine(a, c), "1": pytest.approx(1)}
    assert result["layers"]["1"]["cosine_beside"] == {"0": pytest.approx(-1), "1": None}
    assert result["beside"] == {"0": "0", "1": "1"} and result["random_cosine"] == 0.25


def test_a_base_of_one_style_has_no_difference_of_means(read, monkeypatch):
    monkeypatch.setitem(PARAMS, "head", PARAMS["head"].at[:, np.array(OPENERS)].set(0))
    result = read({0: np.ones(16)})
    assert result["layers"]["0"]["cosine_difference_of_means"] is None and result["careful"]["base"] == 0


def test_the_files(read, tmp_path):
    result = read({1: np.ones(16)}, others=[{1: np.ones(16)}])
    assert json.loads((tmp_path / "readout.json").read_text()) == result
    page, layer = (tmp_path / "readout.md").read_text(), result["layers"]["1"]
    assert f"\n| 1 | {layer['norm']:.3f} | {layer['norm_over_residual']:.1%} | " \
           f"{layer['cosine_difference_of_means']:+.3f} |" in page
    assert "| +1.000 |" in page and f"{layer['raised'][0][0]!r} {layer['raised'][0][1]:+.1f}" in page
    assert f"{result['careful']['base']:.1%} of the problems in the base" in page
    read({})
    assert "Every vector is zero." in (tmp_path / "readout.md").read_text()


def test_problems_of_a_file_have_no_styles(read, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "coins 7 + 5 =", "answer": 12}\n')
    result = read({1: np.ones(16)}, problems=str(tmp_path / "p.jsonl"))
    layer = result["layers"]["1"]
    assert result["careful"] is layer["cosine_difference_of_means"] is layer["cosine_opener"] is None
    assert result["n"] == 1 and layer["norm"] == 4 and len(layer["raised"]) == 8


@pytest.mark.parametrize("vectors, others, flags, error", [
    (None, [], {}, "--model=m has no vectors: .* --trainable=vector"),
    ({}, [None], {}, "--beside=0 has no vectors"), ({}, [], {"out": ""}, "--out is required")])
def test_what_cannot_be_read_is_refused(vectors, others, flags, error, read):
    with pytest.raises(UserError, match=error):
        read(vectors, others, **flags)


def test_vectors_of_another_shape_are_refused():
    loaded = LanguageModel(CONFIG, {"layers": {"vector": np.ones((3, 8))}}, WORDS)
    with pytest.raises(UserError, match="--beside=o: its vectors are 3 of width 8, and --model needs 3 of width 16"):
        trained_vectors("beside", "o", loaded, (3, 16))
