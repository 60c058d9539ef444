"""The table of synthetic families: mixtures, unchanged data of the first family, faults. test_mixtures.py adds one."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.records import Problem
from rlvr_jax.sampler import Request
from rlvr_jax.tasks import families, pool
from rlvr_jax.tasks.chains import StyleConfig
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.training import pretrain
from rlvr_jax.training.pretrain import PretrainConfig

from fixtures import load_problems

SMALL = PretrainConfig.from_flags(num_ops=2, num_layers=1, d_model=16, num_heads=2, d_ff=32, batch_size=64, remat=False,
                                  warmup_steps=10, learning_rate=1e-2, eval_size=32)
MIXED = {"arithmetic": 0.25, "boolean": 0.75}


def batches(shares, config=SMALL):
    tokenizer = families.make_tokenizer(shares)
    return tokenizer, pretrain.make_data(config, shares, tokenizer)


def test_arithmetic_alone_has_the_tokens_problems_and_batches_of_before_there_was_a_table():
    """Hashes from before there were other families: published figures depend on every bit."""
    tokenizer, sums = families.make_tokenizer(["arithmetic"]), [hashlib.sha256() for _ in range(3)]
    sums[0].update(json.dumps(tokenizer.to_json(), sort_keys=True).encode())
    for split in ("pretrain", "example", "dev", "test"):
        for p in load_problems("arithmetic", tokenizer, count=200, split=split, num_ops=6, seed=5):
            told = sorted((name, x) for name, x in p.meta.items() if name != "steps")  # added later
            sums[1].update(f"{p.prompt}|{p.answer}|{p.question}|{told}\n".encode())
    for config in (PretrainConfig.from_flags(), PretrainConfig.from_flags(num_ops=2, seed=3, batch_size=64)):
        data = batches(families.parse_shares(config.task_shares), config)[1]
        for batch in map(data, (1, 2, 1999)):
            for x in (batch.prompts.tokens, batch.prompts.lengths, batch.prompt_index, batch.completions,
                      batch.completion_mask, batch.advantages):
                sums[2].update(str((x.dtype, x.shape)).encode() + x.tobytes())
    assert [found.hexdigest()[:16] for found in sums] == ["a4a28001d6a4a04c", "2dc40d3a20c9051a", "728f683f1143c09b"]


@pytest.mark.parametrize("shares", [{"boolean": 1.0}, MIXED])
def test_a_batch_reads_as_its_families_solved_it(shares):
    tokenizer, data = batches(shares)
    batch, counts = data(7), dict.fromkeys(shares, 0)
    for tokens, length, ids, mask in zip(batch.prompts.tokens, batch.prompts.lengths, batch.completions,
                                         batch.completion_mask, strict=True):
        prompt, solution = (tokenizer.decode(row) for row in (tokens[:length], ids[mask]))
        assert tokenizer.encode(prompt) == tokens[:length].tolist() and ids[mask][-1] == tokenizer.eos_ids[0]
        name, = [name for name in shares if set(prompt.split()) <= set(FAMILIES[name].vocabulary)]
        assert set(solution.split()) <= set(FAMILIES[name].vocabulary)
        counts[name] += 1
    assert counts == {name: share * 64 for name, share in shares.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_pretraining_never_sees_a_problem_of_another_split(name):
    tokenizer, data = batches({name: 1.0}, PretrainConfig.from_flags(batch_size=256))
    held = {p.prompt.split(" ", 1)[1] for split in ("test", "dev", "example")  # whatever the topic
            for p in load_problems(name, tokenizer, count=512, split=split)}
    seen = {tokenizer.decode(row).split(" ", 1)[1] for step in range(20) for row in data(step).prompts.tokens}
    assert len(held) > 1500 and len(seen) > 5000 and not held & seen


def test_numbers_in_digits_are_tokens_of_one_digit_and_read_as_they_were_written():
    """A value of two digits has two tokens in every text, and no text is longer than `lengths` says."""
    tokenizer, family = families.make_tokenizer(["arithmetic_digits"]), FAMILIES["arithmetic_digits"]
    drawn = family.generate(np.random.default_rng(0), 300, "pretrain", 6)
    problems, longest = family.to_problems(drawn), [0, 0]
    for style in range(4):
        texts = family.solve(np.random.default_rng(1), drawn, np.full(300, style), StyleConfig(early_stop=0.0))
        for problem, text in zip(problems, texts):
            for place, written in enumerate((problem.prompt, text)):
                pieces = [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(written)]
                assert "".join(f" {piece}" for piece in pieces).replace(" ##", "").strip() == written
                assert all(len(piece.removeprefix("##")) == 1 for piece in pieces if piece[-1].isdigit())
                assert tokenizer.decode(tokenizer.encode(written)) == written
                longest[place] = max(longest[place], len(pieces) + place)  # with its <eos>
    assert tuple(longest) == family.lengths(6)
    assert {len(problem.answer) for problem in problems} == {1, 2}
    assert tokenizer.unknown_words(["47", "100", "coins", "xnor", "07"]) == ["xnor", "07"]
    with pytest.raises(UserError, match="arithmetic_digits problems have words such as '##0'"):
        load_problems("arithmetic_digits", families.make_tokenizer(["arithmetic"]), count=1)


def test_a_joint_vocabulary_holds_each_familys_words_once_and_the_first_familys_as_they_were():
    joint, first = (families.make_tokenizer(names).backend.get_vocab() for names in (MIXED, ["arithmetic"]))
    assert set(joint) == set(FAMILIES["arithmetic"].vocabulary) | set(FAMILIES["boolean"].vocabulary)
    assert sorted(joint.values()) == list(range(len(joint))) and first.items() <= joint.items()


@pytest.mark.parametrize("text, shares", [("boolean", {"boolean": 1.0}), ("arithmetic:0.25, boolean:0.75", MIXED)])
def test_shares_are_read(text, shares):
    assert families.parse_shares(text) == shares


@pytest.mark.parametrize("text, named", [
    ("bolean", "none of arithmetic, boolean"), ("", "none of arithmetic, boolean"),
    ("arithmetic:x", "is 'x', no finite"),
    ("arithmetic:1.5,boolean:-0.5", "above 0"), ("arithmetic:nan", "is 'nan', no"),
    ("arithmetic,boolean", "sum to 2"), ("arithmetic:0.5,boolean:0.4", "sum to 0.9"),
    ("boolean:0.5,boolean:1", "each family once")])
def test_shares_that_make_no_sense_are_refused_by_name(text, named):
    with pytest.raises(UserError, match=f"--task_shares={text}.*{named}"):
        pretrain.check_config(SMALL.with_flags(task_shares=text))


def test_an_example_is_chosen_by_its_pass_rate_and_by_style_where_that_is_asked_for():
    problems = [Problem("q", "TFFT", "q", {"task": "boolean"}), Problem("q", "TFFT", "q", {"task": "boolean"}),
                Problem("q", "TFFT", "q", {"file": "own.jsonl"})]
    rows = [{"problem": p, "correct": i < wins, "completion": said} for p, wins, said in
            ((0, 3, "quick TFFT answer TFFT"), (1, 6, "think answer TFFT"), (2, 4, "quick TFFT")) for i in range(10)]
    assert pool.choose_example(rows, problems, 0.3) == 0
    assert pool.choose_example(rows[:20], problems[:2], 0.3, by_style=True) == 1  # problem 0 is solved by luck
    assert pool.choose_example(rows, problems, 0.3, by_style=True) == 2
    always = [row | {"correct": True} if row["problem"] == 0 else row for row in rows]
    assert pool.choose_example(always, problems, 1.0) == 1  # never or always solved: no variance
    shares = measure.style_shares(rows, problems)
    assert shares["careful"] == (1 / 3, 0.6) and shares["sloppy"] == (1 / 3, 0.3) and shares["guess"] == (0.0, None)


def test_each_family_of_a_mixture_has_its_accuracy_beside_that_of_all(monkeypatch):
    problems = [Problem("", "1", "", {"task": name}) for name in ("arithmetic", "arithmetic", "arithmetic", "boolean")]
    rows = [{"problem": i, "correct": i in (0, 2), "completion": "think answer 1"} for i in range(4)]
    monkeypatch.setattr(measure, "sample_and_grade", lambda *args, **kwargs: rows[: len(args[1].problems)])
    by = measure.Sampler(None, None, None)
    heldout = lambda asked: measure.measure_heldout(by, asked, None, Request(0, 0), "answer")
    found = heldout(problems)
    assert [found[f"eval/sampled{name}"] for name in ("", "_arithmetic", "_boolean")] == [0.5, 2 / 3, 0.0]
    assert "eval/sampled_arithmetic" not in heldout(problems[:3])


def test_a_base_is_measured_on_the_split_that_is_asked_for_with_other_draws_at_each_step(monkeypatch):
    monkeypatch.setattr(measure, "measure_heldout", lambda by, problems, prompts, request: (problems, request))
    config, words = SMALL.with_flags(heldout_split="dev", seed=3), families.make_tokenizer(["boolean"])
    shape = pretrain.make_model_config(config, {"boolean": 1.0}, words)
    problems, request = pretrain.make_heldout(config, {"boolean": 1.0}, words, shape)(None, 7)
    assert problems == load_problems("boolean", words, split="dev", count=32, num_ops=2)
    assert request == Request(3, 7)


# ----- faulty families

def faulty(name: str) -> families.Family:
    """Boolean chains with one fault."""
    good = FAMILIES["boolean"]
    without_index = lambda drawn: [replace_meta(problem) for problem in good.to_problems(drawn)]
    replace_meta = lambda problem: dataclasses.replace(problem, meta={})
    return dataclasses.replace(good, **{
        "order": {"vocabulary": ("<eos>", "<pad>", *good.vocabulary[2:])},
        "word twice": {"vocabulary": (*good.vocabulary, "=")}, "no styles": {"styles": {}},
        "few": {"generate": lambda rng, count, split, num_ops: good.generate(rng, count - 1, split, num_ops)},
        "index": {"to_problems": without_index},
        "word of a prompt": {"vocabulary": tuple(word for word in good.vocabulary if word != "bell")},
        "word of a solution": {"solve": lambda *args: [text + " amen" for text in good.solve(*args)]},
        "solutions": {"solve": lambda *args: good.solve(*args)[1:]}, "long": {"lengths": lambda num_ops: (7, 9)},
        "sums": {"habits": lambda *config: lambda drawn: good.habits(*config)(drawn) * 0.9},
        "columns": {"habits": lambda *config: lambda drawn: good.habits(*config)(drawn)[:, :3]}}[name])


@pytest.mark.parametrize("name, says, in_problems", [
    ("order", 'its vocabulary has to start with "<pad>", "<eos>", and to have each word once', True),
    ("word twice", "to have each word once", True), ("no styles", "it has no styles", True),
    ("few", "to_problems returned 63 instead of 64", True),
    ("index", r'give each problem its own meta\["index"\]', True),
    ("word of a prompt", "'bell', in the prompt 'bell .*, is not in its vocabulary", True),
    ("word of a solution", "'amen', in the solution 'think .* amen <eos>', is not in its vocabulary", False),
    ("solutions", "solve returned 63", False), ("long", r"has 10 tokens, and lengths\(2\) allows 9", False),
    ("sums", "whose rows sum to 1; it returned .* a first row that sums to 0.9", False),
    ("columns", r"chances of shape \(64, 4\), .* it returned the shape \(64, 3\)", False)])
def test_a_mistake_of_a_family_is_named_before_anything_is_trained_or_measured(monkeypatch, tmp_path, name, says,
                                                                              in_problems):
    monkeypatch.setitem(FAMILIES, "mine", faulty(name))
    with pytest.raises(UserError, match=f"family mine: .*{says}"):
        pretrain.pretrain(SMALL.with_flags(task_shares="mine", run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    if in_problems:
        with pytest.raises(UserError, match="family mine: "):
            families.draw_problems("mine", np.random.default_rng(1), 64, "test", 2)
    else:
        assert len(families.draw_problems("mine", np.random.default_rng(1), 64, "test", 2)) == 64
