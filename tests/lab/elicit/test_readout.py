"""What planted vectors read as, against numbers made with NumPy from states that a decoding step hands out."""

import dataclasses
import json

import numpy as np
import pytest

from rlvr_jax import model
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit.readout import ReadoutConfig, readout
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
    """`read(vectors, flags...)`: what is found of the base with vectors [L,D] or `{layer: vector}`, and of `others`."""
    def run(vectors, others=(), leaf="vector", **flags):
        models = {"m": vectors, **{f"o{n}": other for n, other in enumerate(others)}}
        monkeypatch.setattr(loading, "load_model", lambda name, *_: LanguageModel(
            CONFIG, PARAMS | {"layers": PARAMS["layers"] | planted(models[name], leaf)}, WORDS))
        return readout(ReadoutConfig.from_flags(**{"model": "m", "beside": ",".join([*models][1:]), "num_ops": 2,
                                                   "num_problems": COUNT, "out": str(tmp_path / "out")} | flags))
    return run


def planted(vectors, leaf="vector") -> dict:
    if vectors is None:
        return {}
    if isinstance(vectors, dict):
        vectors = [vectors.get(i, np.zeros(16)) for i in range(3)]
    return {leaf: np.asarray(vectors, np.float32)}


def cosine(a, b):
    return pytest.approx(a @ b / (a @ a * (b @ b)) ** 0.5, abs=1e-5)


def test_a_vector_along_a_words_column_reads_as_that_word(read):
    column = HEAD[:, OPENERS[0]] / GAIN
    found = read({1: 0.5 * column, 2: -0.5 * column})["layers"]
    assert list(found) == ["1", "2"]  # the one of zeros says nothing
    assert found["1"]["raised"][0][0] == found["2"]["lowered"][0][0] == "think"


def test_logits_of_the_direct_path(read, states):
    """Column times gain times vector, over the mean divisor of the final norm, less their mean."""
    vector = np.random.default_rng(0).standard_normal(16)
    divisor = np.mean(np.sqrt(np.mean(states[0][-1] ** 2, -1)))
    added = HEAD.T @ (GAIN * vector / divisor)
    added -= added.mean()
    found, order = read({0: vector})["layers"]["0"], np.argsort(added)
    for name, chosen in (("raised", order[::-1][:8]), ("lowered", order[:8])):
        assert [word for word, _ in found[name]] == [WORDS.backend.id_to_token(int(i)) for i in chosen]
        np.testing.assert_allclose([logit for _, logit in found[name]], added[chosen], rtol=1e-4)


def test_a_vector_at_the_first_token_alone_is_read_as_one_after_the_last_layer(read):
    """After the last layer both change the same logits at the end of the prompt."""
    vectors = {2: 3 * HEAD[:, OPENERS[0]] / GAIN}
    everywhere, first = (read(vectors, leaf=leaf) for leaf in ("vector", "first_vector"))
    assert first == everywhere and first["careful"]["with_vectors"] > first["careful"]["base"]


def test_directions_of_the_base(read, states):
    rng, (residuals, said) = np.random.default_rng(1), states
    careful = said == OPENERS[0]
    assert 0.1 < careful.mean() < 0.9
    vectors = rng.standard_normal((3, 16))
    found = read(vectors)
    opener = GAIN * (HEAD[:, OPENERS[0]] - HEAD[:, OPENERS[1:]].mean(-1))
    for i, vector in enumerate(vectors):
        one = found["layers"][str(i)]
        means = residuals[i][careful].mean(0) - residuals[i][~careful].mean(0)
        assert one["cosine_difference_of_means"] == cosine(vector, means)
        assert one["cosine_opener"] == cosine(vector, opener)
        assert one["norm"] == pytest.approx(np.sqrt(vector @ vector))
        mean_norm = np.mean([np.sqrt(x @ x) for x in residuals[i]])
        assert one["norm_over_residual"] == pytest.approx(one["norm"] / mean_norm, rel=1e-4)
    assert found["careful"]["base"] == careful.mean() and found["n"] == COUNT


def test_what_is_said_first_with_the_vectors(read):
    """After the last layer the direction of an opener, and large: then every completion begins with it."""
    toward = GAIN * (HEAD[:, OPENERS[0]] - HEAD[:, OPENERS[1:]].mean(-1))
    assert read({2: 100 * toward})["careful"]["with_vectors"] == 1
    assert read({2: -100 * toward})["careful"]["with_vectors"] == 0


def test_vectors_beside_it(read):
    a, b, c = np.random.default_rng(2).standard_normal((3, 16))
    found = read({0: a, 1: b}, others=[{0: c, 1: -2 * b}, {0: a}])
    assert found["layers"]["0"]["cosine_beside"] == {"0": cosine(a, c), "1": pytest.approx(1)}
    assert found["layers"]["1"]["cosine_beside"] == {"0": pytest.approx(-1), "1": None}
    assert found["beside"] == {"0": "o0", "1": "o1"} and found["random_cosine"] == 0.25


def test_a_base_of_one_style_has_no_difference_of_means(read, monkeypatch):
    monkeypatch.setitem(PARAMS, "head", PARAMS["head"].at[:, np.array(OPENERS)].set(0))
    found = read({0: np.ones(16)})
    assert found["layers"]["0"]["cosine_difference_of_means"] is None and found["careful"]["base"] == 0


def test_the_files(read, tmp_path):
    found = read({1: np.ones(16)}, others=[{1: np.ones(16)}])
    assert json.loads((tmp_path / "out" / "readout.json").read_text()) == found
    page = (tmp_path / "out" / "readout.md").read_text()
    row, = [line for line in page.splitlines() if line.startswith("| 1 |")]
    one = found["layers"]["1"]
    assert f"| {one['norm']:.3f} | {one['norm_over_residual']:.1%} | {one['cosine_difference_of_means']:+.3f} |" in row
    assert "| +1.000 |" in row and f"{one['raised'][0][0]!r} {one['raised'][0][1]:+.1f}" in row
    assert f"{found['careful']['base']:.1%} of the problems in the base" in page
    read({})
    assert "Every vector is zero." in (tmp_path / "out" / "readout.md").read_text()


def test_problems_of_a_file_have_no_styles(read, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "coins 7 + 5 =", "answer": 12}\n')
    found = read({1: np.ones(16)}, problems=str(tmp_path / "p.jsonl"))
    one = found["layers"]["1"]
    assert found["careful"] is one["cosine_difference_of_means"] is one["cosine_opener"] is None
    assert found["n"] == 1 and one["norm"] == 4 and len(one["raised"]) == 8


def test_what_cannot_be_read_is_refused(read):
    with pytest.raises(UserError, match="m has no vectors: .* --trainable=vector"):
        read(None)
    with pytest.raises(UserError, match="o0 has no vectors"):
        read({0: np.ones(16)}, others=[None])
    with pytest.raises(UserError, match="--beside=o0: .* are 3 of width 8, and those of --model 3 of width 16"):
        read({0: np.ones(16)}, others=[np.ones((3, 8))])
    with pytest.raises(UserError, match="--out is required"):
        read({0: np.ones(16)}, out="")
