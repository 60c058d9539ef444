"""Files of problems in the layouts of benchmarks and of the released one-shot data, and their prompts."""

import json
import sys
from types import SimpleNamespace

import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import benchmarks
from rlvr_jax.evaluation.completions import KeptConfig
from rlvr_jax.grading import grade
from rlvr_jax.records import Problem
from rlvr_jax.runs.files import read_json
from rlvr_jax.tasks import families, prompts
from rlvr_jax.tasks.pool import PoolConfig, load_pool
from rlvr_jax.tasks.problems import load, merge

from fixtures import QWEN, chat_tokenizer, load_problems, released, write_jsonl, write_parquet

# file -> (rows, {row: (start of the question, answer)})
REAL = {
    "gsm8k": (1319, {0: ("Janet’s ducks lay 16 eggs per day.", "18"), 2: ("Josh decides to try flipping", "70000")}),
    "svamp": (1000, {0: ("There are 87 oranges and 290 bananas in Philip's collection.", "145")}),
    "math500": (500, {0: ("Convert the point $(0,3)$", r"\left( 3, \frac{\pi}{2} \right)")}),
    "mawps_addsub": (395, {0: ("Joan found 70 seashells on the beach .", "43")}),
    "mawps_multiarith": (600, {0: ("For Halloween Debby and her sister", "39")}),
    "mawps_singleeq": (508, {0: ("Joan found 70 seashells on the beach.", "43")}),
    "mawps_singleop": (562, {0: ("If there are 7 bottle caps in a box", "14")})}
# file -> (rows, {row: (start of the question, answer, index)}, [copies of each distinct problem] or their number)
RELEASED = {
    "pi1_r128": (128, {0: (r"The pressure \( P \) exerted", "12.8", 124), 127: ("The pressure", "12.8", 124)}, [128]),
    "pi13_r128": (128, {5: ("Given that circle $C$ passes through", r"\frac{4}{3}", 682)}, [128]),
    "pi1209_r128": (128, {0: ("Define the derivative of the $(n-1)$th", r"-\frac{2023}{2024}", 789)}, [128]),
    "merge_pi1_pi13_r128": (128, {0: ("The pressure", "12.8", 124), 127: ("Given", r"\frac{4}{3}", 682)}, [64, 64]),
    "dsr_sub": (1209, {124: ("The pressure", "12.8", 124), 267: ("", "24", 267), 265: ("Three persons", "", 265),
                       45: ("\nFind the distance", r"5 \sqrt{\frac{2}{11}}", 45)}, [1] * 1209),
    "math500": (500, {0: ("Convert the point $(0,3)$", r"\left( 3, \frac{\pi}{2} \right)", 0)}, [1] * 500)}
SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."


# ----- JSONL

@pytest.mark.parametrize("row, question, answer", [
    ({"problem": "What is $1+1$?", "answer": "2", "solution": r"$\boxed{3}$."}, "What is $1+1$?", "2"),  # MATH-500
    ({"question": " How many? ", "answer": "She has 3 + 4 = <<3+4=7>>7.\n#### 7"}, "How many?", "7"),  # GSM8K
    ({"question": "q", "answer": "#### 1,200"}, "q", "1,200"),
    ({"Body": "Tom has 3 pens.", "Question": "How many?", "Answer": 43.0}, "Tom has 3 pens. How many?", "43"),  # SVAMP
    ({"ID": "x", "body": "Tom has 9 apples. ", "question": "How many?", "answer": "9 (apples)", "formula": "9=9",
      "solution_type": "Sum"}, "Tom has 9 apples. How many?", r"9\text{ apples}"),  # ASDiv
    ({"question": "q", "answer": "5 (x+1)"}, "q", "5 (x+1)"),
    ({"input": "q", "target": 0.5}, "q", "0.5"), ({"question": "q", "answer": 0}, "q", "0"),  # MAWPS
    ({"question": "q", "answer": r"\frac{1}{2}"}, "q", r"\frac{1}{2}"),
    ({"id": 60, "problem": "Find $n$.", "solution": "...", "answer": "025", "url": "u"}, "Find $n$.", "025"),  # AIME
    ({"id": 0, "question": "Find $n$.", "answer": 27.0, "url": "u"}, "Find $n$.", "27"),  # AMC
    ({"problem": "How hot?", "solution": r"So \boxed{1}, no: $T=\boxed{\frac{3}{x^{2}}}$ K.", "type": "t", "idx": 4},
     "How hot?", r"\frac{3}{x^{2}}"),  # Minerva Math
    ({"id": 1, "question": "Which $x$?", "solution": ["long"], "final_answer": ["$\\frac{1}{2}$"],
      "is_multiple_answer": False, "unit": None, "answer_type": "Numerical"}, "Which $x$?", r"\frac{1}{2}"),  # Olympiad
    ({"question": "Which?", "solution": ["long"], "final_answer": ["$-1$", " 3 "], "is_multiple_answer": True},
     "Which?", "-1, 3")])
def test_layouts(tmp_path, row, question, answer):
    found, = load(write_jsonl(tmp_path / "p.jsonl", row))
    assert (found.question, found.answer, found.prompt, found.copies) == (question, answer, question, 1)
    assert found.meta == {"file": str(tmp_path / "p.jsonl"), "line": 1}


@pytest.mark.parametrize("row, unread", [
    ({"Body": "Tom has 3 pens.", "question": "How many?", "answer": 3}, "Body"),
    ({"question": "q", "answer": "2", "choices": ["one", "two"], "hint": "h", "id": "a", "no": "12"}, "choices,hint"),
    ({"problem": "p", "answer": "2", "context": {"text": "Read."}}, "context")])
def test_text_that_no_layout_reads_is_refused_by_name(tmp_path, row, unread):
    path = write_jsonl(tmp_path / "p.jsonl", {"question": "a", "answer": 1}, row)
    with pytest.raises(UserError, match=rf"p\.jsonl, line 2: .*text in {unread.replace(',', ', ')};.*"
                                        rf"--ignore_columns={unread}$"):
        load(path)
    assert load(path, unread)[1].question == row.get("question", row.get("problem"))
    assert load_problems(path, QWEN, ignore_columns=unread)[1].answer == str(row["answer"])


def test_an_ignored_column_is_as_good_as_absent(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl",
                       {"question": "q", "answer": "It is seven.", "final_answer": "7", "hint": "h"})
    assert load(path, "hint,answer")[0].answer == "7"
    path = write_parquet(tmp_path / "p.parquet", released("a", "1") | {"image": "of a cat"})
    with pytest.raises(UserError, match=r"p\.parquet, row 0: .*--ignore_columns=image"):
        load(path)
    assert load(path, "image")[0].question == "a"


def test_a_unit_in_brackets_is_a_unit(tmp_path):
    for answer, right in (("9 (apples)", "9"), ("24 (hot dogs)", "24"), ("2.5 (m)", "2.5")):
        found, = load(write_jsonl(tmp_path / "p.jsonl", {"question": "q", "answer": answer}))
        for grader in ("math", "original"):
            assert grade.grade_texts([rf"\boxed{{{right}}}", r"\boxed{8}"], [found.answer] * 2, "boxed", grader) == [
                (True, right, False), (False, "8", False)]


def test_empty_lines_keep_the_numbering_and_a_question_may_hold_unicode_line_ends(tmp_path):
    (tmp_path / "p.jsonl").write_text('\n{"question": "a", "answer": 1}\r\n  \n{"question": "b", "answer": 2}')
    assert [(p.question, p.meta["line"]) for p in load(str(tmp_path / "p.jsonl"))] == [("a", 2), ("b", 4)]
    text = "one\u2028two\u0085three\x0bfour"
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": text, "answer": 1}, ensure_ascii=False), encoding="utf-8")
    assert load(str(tmp_path / "p.jsonl"))[0].question == text


@pytest.mark.parametrize("content, says", [
    (b"", "holds no problems"), (b"\n \n", "holds no problems"),
    (b'{"question": "a", "answer": 1}\nnot json\n', "line 2: not JSON"), (b'{"question": "a"', "line 1: not JSON"),
    (b"\xff\xfe{}", "line 1: not JSON"), (b"[" * 100_000, "line 1: not JSON"),
    (b'{"question": "a"}', "line 1: needs one of these sets of columns: .* it has question"),
    (b'{"q": "a", "a": "1"}', "body, question and answer; problem and answer; question and answer; Body, Question and "
                              "Answer; input and target; question and final_answer; problem and solution; it has q, a"),
    (b'{"question": "a", "answer": null}', "line 1: needs one of"), (b'["a"]', "line 1: needs names .* it has list"),
    (b"7", "it has int"),
    (b'{"question": "a", "answer": "2"}\n{"question": "b", "answer": " "}', "line 2: no answer in answer"),
    (b'{"question": "a", "answer": "so ####"}', "line 1: no answer in answer"),
    (b'{"question": "a", "final_answer": []}', "line 1: no answer in final_answer"),
    *((b'{"question": "b", "answer": 1.5}\n{"question": "a", "answer": %b}' % x,
       "line 2: answer is .*, a (list|dict|bool): write it as a text") for x in (b'["1"]', b'{"x": 1}', b"true")),
    (b'{"question": "a", "final_answer": ["1", true]}', "line 1: final_answer is True, a bool"),
    (b'{"question": ["a"], "answer": 1}', "line 1: question is .'a'., a list"),
    (b'{"body": " ", "question": "", "answer": 1}', "line 1: the question is empty; write it"),
    (b'{"question": "a", "answer": "0.5"}\n\n{"question": "b", "answer": 3}\n{"question": "a", "answer": "1/2"}\n'
     b'{"question": "b", "answer": 4}', "lines 3 and 5: the same question with the answers '3' and '4'; correct one"),
    (b'{"problem": "a", "solution": "It is 4."}', r"line 1: no answer in solution, which needs a \\boxed{}")])
def test_what_is_not_a_list_of_problems_is_refused_with_its_line(tmp_path, content, says):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=rf"p\.jsonl.*{says}"):
        load(str(tmp_path / "p.jsonl"))


def test_a_missing_file_is_named(tmp_path):
    for name in ("nowhere.jsonl", "nowhere.parquet"):
        with pytest.raises(UserError, match=f"no problem file .*{name}"):
            load(str(tmp_path / name))


@pytest.mark.parametrize("name", REAL)
def test_real_files(data, name):
    count, known = REAL[name]
    found = load(str(data / "eval" / f"{name}.jsonl"))
    assert len(found) == count and all(p.question and p.answer for p in found)
    for row, (question, answer) in known.items():
        assert found[row].question.startswith(question) and found[row].answer == answer


# ----- parquet

def test_a_parquet_row_is_kept_to_the_letter(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", released("\nWhat is 1 + 1? ", " 2.0", index=7), released("b", ""))
    first, second = load(path)
    assert (first.question, first.prompt, first.answer) == ("\nWhat is 1 + 1? ", "\nWhat is 1 + 1? ", " 2.0")
    assert first.meta == {"file": path, "row": 0, "index": 7} and second.meta == {"file": path, "row": 1}
    assert second.answer == ""  # as in the published pool


@pytest.mark.parametrize("row, says", [
    ({"question": "a", "answer": "1"}, "row 0: needs prompt .* and reward_model.ground_truth; it has question='a', "),
    ({"prompt": "a", "reward_model": {"ground_truth": "1"}}, "it has prompt='a'"),
    ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
      "reward_model": {"ground_truth": "1"}}, "one message, of the user.* it has prompt=.*system"),
    ({"prompt": [{"role": "user", "content": "a"}], "reward_model": {"ground_truth": None, "style": "rule"}},
     "row 0: needs"),
    (released("a", ["1"]), "row 0: reward_model.ground_truth is .*, a list: write it as a text or a number"),
    (released(" ", "1"), "row 0: the question is empty")])
def test_another_layout_of_parquet_is_refused_with_the_expected_one(tmp_path, row, says):
    with pytest.raises(UserError, match=rf"p\.parquet, {says}" if says.startswith("row") else says):
        load(write_parquet(tmp_path / "p.parquet", row))


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow", reason="pip install -e '.[real]'")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"p\.parquet cannot be read as parquet"):
        load(str(tmp_path / "p.parquet"))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[real\]'"):
        load(str(tmp_path / "p.parquet"))


@pytest.mark.parametrize("name", RELEASED)
def test_released_files(data, name):
    pytest.importorskip("pyarrow", reason="pip install -e '.[real]'")
    count, known, copies = RELEASED[name]
    found = load(str(data / "one_shot_rlvr" / f"{name}.parquet"))
    assert len(found) == count and {p.copies for p in found} == {1}  # evaluations count rows
    for row, (question, answer, index) in known.items():
        assert found[row].question.startswith(question)
        assert (found[row].answer, found[row].meta["index"], found[row].meta["row"]) == (answer, index, row)
    if name != "math500":
        assert all(p.question.endswith(SUFFIX) for p in found)
    merged = merge(found)
    assert [p.copies for p in merged] == copies  # three equal questions of the pool have different indices
    assert [p.meta["index"] for p in merged] == list(dict.fromkeys(p.meta["index"] for p in found))


# ----- copies

def row(question, answer="1", index=None):
    return Problem(question, answer, question, {} if index is None else {"index": index})


def test_equal_rows_are_one_problem_with_copies_unless_they_have_different_indices_of_their_own():
    merged = merge([row("a"), row("b"), row("a"), row("a", "2"), row("b"), row("b")])
    assert [(p.question, p.answer, p.copies) for p in merged] == [("a", "1", 2), ("b", "1", 3), ("a", "2", 1)]
    merged = merge([row("a", index=5), row("a", index=9), row("b", index=7), row("a", index=5)])
    assert [(p.question, p.copies, p.meta["index"]) for p in merged] == [("a", 2, 5), ("a", 1, 9), ("b", 1, 7)]


@pytest.mark.parametrize("found", [[row("a"), row("a"), row("b"), row("c")], [row("a", index=3), row("b"), row("c")],
                                   [row("a", index=3), row("b", index=3), row("c", index=4)]])
def test_without_an_index_each_the_place_is_the_index(found):
    assert [p.meta["index"] for p in merge(found)] == [0, 1, 2]


# ----- prompts

QWEN_MATH = ("<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{{}}.<|im_end|>\n"
             "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("style, expected", [
    ("plain", "What is 1 + 1?"), ("chat", "<s>[What is 1 + 1?]"), ("qwen_math", QWEN_MATH.format("What is 1 + 1?"))])
def test_prompt_styles(tmp_path, style, expected):
    path = write_jsonl(tmp_path / "p.jsonl", {"question": "What is 1 + 1?", "answer": 2})
    found, = load_problems(path, QWEN, prompt_style=style)
    assert (found.prompt, found.question) == (expected, "What is 1 + 1?")


def test_qwen_math_is_tokens_of_a_chat_and_nothing_before_them():
    ids = QWEN.encode(prompts.PROMPT_STYLES["qwen_math"](QWEN, "1 < 2?"))
    start, end = QWEN.backend.token_to_id("<|im_start|>"), QWEN.backend.token_to_id("<|im_end|>")
    assert [i for i in ids if i in (start, end)] == [start, end, start, end, start] and ids[0] == start
    assert QWEN.decode(ids) == ("system\nPlease reason step by step, and put your final answer within "
                                           "\\boxed{}.\nuser\n1 < 2?\nassistant\n")


def test_a_start_token_is_only_where_the_template_writes_one():
    ids = QWEN.encode(prompts.PROMPT_STYLES["chat"](QWEN, "a"))
    assert ids.count(0) == 1 and ids[0] == 0


@pytest.mark.parametrize("words", [chat_tokenizer(), chat_tokenizer("<|im_end|>", chat_template="x")])
def test_qwen_math_is_refused_where_its_marks_would_be_mere_letters(words):
    with pytest.raises(UserError, match=r"--prompt_style=qwen_math: .*no <\|im_start\|>"):
        prompts.PROMPT_STYLES["qwen_math"](words, "a")


def test_an_instruction_is_not_added_twice(tmp_path):
    amid = f"Who said{SUFFIX} Why?"
    path = write_parquet(tmp_path / "p.parquet", *(released(text, "1") for text in ("a" + SUFFIX, "b", amid)))
    assert [p.prompt for p in load_problems(path, QWEN, instruction=SUFFIX.strip())] == [
        text + SUFFIX for text in ("a", "b", amid)]
    assert [p.prompt for p in load_problems(path, QWEN)] == ["a" + SUFFIX, "b", amid]


def test_words_that_a_model_of_whole_words_lacks_are_named_not_read_as_padding():
    asked = [Problem(text, "1", text) for text in ("coins 7 + 5 =", "koins 7 + 25 =", "koins 7 plus 5 =")]
    config = SimpleNamespace(max_seq_len=99)
    words = families.make_tokenizer(["arithmetic"])
    with pytest.raises(UserError, match="the model does not know 'koins', '25', 'plus': .*such as =, "):
        prompts.encode_prompts(words, asked, config, 5)
    assert prompts.encode_prompts(words, asked[:1], config, 5).lengths.tolist() == [5]
    digits = families.make_tokenizer(["arithmetic_digits"])  # 25 has two tokens
    with pytest.raises(UserError, match="the model does not know 'koins', 'plus': "):
        prompts.encode_prompts(digits, asked, config, 5)
    assert prompts.encode_prompts(QWEN, asked, config, 5).lengths.min() > 5  # it can spell any word


@pytest.mark.parametrize("flags, says", [
    ({"prompt_style": "chat"}, "--prompt_style=chat is for questions of .*; problems of arithmetic,boolean have"),
    ({"prompt_style": "qwen_math"}, "--prompt_style=qwen_math is for .* leave it out"),
    ({"prompt_date": "2025-01-31"}, "--prompt_date=2025-01-31 needs --prompt_style=chat: give both, or leave it out")])
def test_a_template_that_no_prompt_would_be_in_is_refused(flags, says):
    source = prompts.ProblemSource.from_flags(problems="arithmetic,boolean", **flags)
    for load in (lambda: load_pool(PoolConfig(), source, QWEN, 0),
                 lambda: benchmarks.load_sets(KeptConfig(source=source), SimpleNamespace(tokenizer=QWEN))):
        with pytest.raises(UserError, match=says):
            load()


def test_a_date_reaches_the_chat_template(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", {"question": "1 + 1?", "answer": 2})
    dated = chat_tokenizer(chat_template="{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}")
    found, = load_problems(path, dated, prompt_style="chat", prompt_date="2025-01-31")
    assert found.prompt == "31 Jan 2025: 1 + 1?"


@pytest.mark.parametrize("line, says", [
    ('{"question": "q", "answer": "1", "answer": "2"}', "'answer' is there twice"),
    ('{"question": "q", "answer": 1e999}', "1e999 is no number"),
    ('{"question": "q", "answer": NaN}', "NaN is no number"),
    ('{"question": "q", "answer": [-Infinity]}', "-Infinity is no number"),
    ('{"question": null, "answer": "1"}', r"it has question \(null\), answer$")])
def test_a_line_that_says_two_things_or_no_number_is_refused(tmp_path, line, says):
    (tmp_path / "p.jsonl").write_text('{"question": "q", "answer": 1e3}\n' + line + "\n")
    with pytest.raises(UserError, match=f"p.jsonl, line 2: .*{says}"):
        load(str(tmp_path / "p.jsonl"))


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    for name in ("p.jsonl", "x.json"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + b'{"question": "q", "answer": "1"}')
    assert [problem.question for problem in load(str(tmp_path / "p.jsonl"))] == ["q"]
    assert read_json(tmp_path / "x.json") == {"question": "q", "answer": "1"}


def test_a_limit_on_prompts_cannot_lift_the_window(tmp_path):
    asked, shape = [Problem("abcdef", "1", "abcdef")], SimpleNamespace(max_seq_len=10)
    assert prompts.encode_prompts(QWEN, asked, shape, 4, 6).lengths.tolist() == [6]
    for new, limit, advice in ((5, 0, "lower --max_new_tokens to 4"), (5, 100, "lower --max_new_tokens to 4"),
                               (4, 5, "raise --max_prompt_tokens to 6")):
        with pytest.raises(UserError, match=f"a prompt has 6 tokens, more than the 5 that --max_new_tokens={new} .*; "
                                            f"{advice}"):
            prompts.encode_prompts(QWEN, asked, shape, new, limit)
