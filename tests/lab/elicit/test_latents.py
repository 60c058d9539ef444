"""The latent that is added: which one, by a contrast computed anew, how often, and that it is fitted once."""

import dataclasses

import numpy as np
import pytest

from rlvr_jax import records
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit import latents, openings
from rlvr_jax.lab.elicit.sae import Sae
from rlvr_jax.lab.elicit.vectors import SteeringConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.sampler import CHOOSE, Request
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, load_problems

from fixtures import steered_model

SMALL = latents.LatentConfig(active=2, num_latents=8, sae_steps=120, strengths=(0.0, 1e-9, 4.0))


def flags(**more) -> SteeringConfig:
    return records.build(SteeringConfig, **{"num_ops": 2, "max_new_tokens": 10, "layer": 0, "num_fit": 16} | more)


def test_the_contrast_or_another_active_latent():
    scores = np.array([-.5, .2, -np.inf, .7, .1])
    assert latents.contrast(scores, 0) == 3
    assert {latents.random(scores, seed) for seed in range(40)} == {0, 1, 4}
    assert latents.random(scores, 5) == latents.random(scores, 5)
    with pytest.raises(UserError, match="only one latent"):
        latents.random(np.array([-np.inf, .7]), 0)


def test_scores_are_careful_less_other_completions(base):
    """By hand over completions, each of which counts once: the residual's positive part in place of a code."""
    loaded, config = loading.load_model(str(base)), flags()
    problems = load_problems(ProblemSource("arithmetic", PromptConfig(2)), loaded.tokenizer, "example", 3)
    think, quick, hmm = (loaded.tokenizer.encode(word)[0] for word in ("think", "quick", "hmm"))
    opened = [[think, hmm], [think, think], [hmm, quick]]
    rows = [{"problem": i, "ids": np.array([word, quick])} for i, words in enumerate(opened) for word in words]

    def read(x):
        return np.maximum(x, 0) * (np.arange(x.shape[1]) != 5)[None]
    z = read(openings.at_last_token(loaded, problems)[0][0])
    wanted = (z[0] + 2 * z[1]) / 3 - (z[0] + 2 * z[2]) / 3
    found = latents.opening_scores(config, loaded, problems, rows, read)
    assert found[5] == -np.inf and (np.isfinite(found) == z.any(0)).all()
    np.testing.assert_allclose(found[z.any(0)], wanted[z.any(0)], rtol=1e-6, atol=1e-9)
    with pytest.raises(UserError, match="always or never"):
        latents.opening_scores(config, loaded, problems, [row | {"ids": [think]} for row in rows], read)
    bare = [dataclasses.replace(problem, prompt=" ".join(problem.prompt.split()[:4])) for problem in problems]
    file = records.replace(config, problems="some.jsonl", opening="think")
    ends = [read(openings.at_last_token(loaded, [dataclasses.replace(problem, prompt=problem.prompt + more)
                                                 for problem in bare])[0][0]) for more in ("", " think")]
    scores, active = latents.opening_scores(file, loaded, bare, [], read), (ends[0] + ends[1]).any(0)
    np.testing.assert_allclose(scores[active], (ends[1] - ends[0]).mean(0)[active], rtol=1e-6, atol=1e-9)


def test_the_best_strength_on_dev_counts_and_nothing_is_fitted_twice(base, tmp_path, monkeypatch):
    loaded, config = loading.load_model(str(base)), flags(model=str(base), out=str(tmp_path))
    steering, told = latents.chosen(SMALL, config, loaded, 4)
    assert told["dev"]["0"] == told["dev"]["1e-09"]  # nothing is added
    assert told["strength"] == next(s for s in SMALL.strengths if told["dev"][f"{s:g}"] == max(told["dev"].values()))
    assert 0 < told["explained"] < 1 and 0 <= told["dead"] < 1 and told["contrast"] > 0
    sae, scores, _ = latents.dictionary(SMALL, config, loaded, 4)
    assert told["latent"] == np.argmax(scores)
    np.testing.assert_allclose(steering.vector, told["strength"] * sae.decoder[told["latent"]], rtol=1e-6)

    def refuse(*args):
        raise AssertionError("fitted again")
    with monkeypatch.context() as patched:
        patched.setattr(latents, "train", refuse)
        again, same = latents.chosen(SMALL, config, loaded, 4)
        assert same == told and (again.vector == steering.vector).all()
        with pytest.raises(AssertionError, match="fitted again"):  # other settings are another autoencoder
            latents.chosen(records.replace(SMALL, sae_steps=1), config, loaded, 4)
    with pytest.raises(UserError, match="--layer=1"):
        latents.chosen(SMALL, records.replace(config, layer=1), loaded, 4)


def test_the_strength_is_chosen_on_other_problems_than_the_autoencoder_was_fitted_on(monkeypatch):
    steered, chosen_on = steered_model(), []
    loaded, width = LanguageModel(steered.config, steered.params, steered.words), steered.config.d_model
    sae = Sae(*(np.ones(shape, np.float32) for shape in ((8, width), 8, (8, width), width)))
    monkeypatch.setattr(latents, "dictionary", lambda config, steering, *_: (sae, np.arange(8.0), {}))
    monkeypatch.setattr(latents, "measure", lambda by, benchmark, *_: chosen_on.append(
        {problem.prompt for problem in benchmark.problems}) or [{"correct": True}])
    _, told = latents.chosen(SMALL, flags(), loaded, 4)
    fitted_on, dev = ({problem.prompt for problem in load_problems(ProblemSource("arithmetic", PromptConfig(2)),
                       loaded.tokenizer, split, 16)} for split in ("example", "dev"))
    assert chosen_on == [dev] * 3 and not dev & fitted_on and told["strength"] == 0  # of equal ones the first


def test_what_an_autoencoder_is_fitted_on_is_drawn_from_a_stream_of_its_own(monkeypatch):
    steered, asked = steered_model(), []
    loaded = LanguageModel(steered.config, steered.params, steered.words)
    problems = load_problems(ProblemSource("arithmetic", PromptConfig(2)), loaded.tokenizer, "example", 2)
    monkeypatch.setattr(latents, "measure", lambda by, benchmark, request, *_, **__: asked.append(request) or [
        {"problem": i, "ids": np.array([5, 6])} for i in range(2)])
    monkeypatch.setattr(latents, "stream", lambda loaded, texts, *_: texts)
    _, texts, ends = latents.sample_activations(flags(seed=7), loaded, problems, 1)
    assert asked == [Request(7, 0, stream=CHOOSE)]
    assert [text[end + 1:].tolist() for text, end in zip(texts, ends)] == [[5, 6]] * 2
