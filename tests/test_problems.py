"""Files of problems in the layouts that benchmarks come in, the real ones included."""

import json

import pytest

from rlvr_jax.config import UserError
from rlvr_jax.problems import load_jsonl

# file -> (rows, {row: (start of the question, answer)})
REAL = {
    "gsm8k": (1319, {0: ("Janet’s ducks lay 16 eggs per day.", "18"), 2: ("Josh decides to try flipping a house.", "70000")}),
    "svamp": (1000, {0: ("There are 87 oranges and 290 bananas in Philip's collection.", "145")}),
    "math500": (500, {0: ("Convert the point $(0,3)$", r"\left( 3, \frac{\pi}{2} \right)")}),
    "mawps_addsub": (395, {0: ("Joan found 70 seashells on the beach .", "43")}),
    "mawps_multiarith": (600, {0: ("For Halloween Debby and her sister", "39")}),
    "mawps_singleeq": (508, {0: ("Joan found 70 seashells on the beach.", "43")}),
    "mawps_singleop": (562, {0: ("If there are 7 bottle caps in a box", "14")}),
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("row, question, answer", [
    ({"problem": "What is $1+1$?", "answer": "2", "solution": "no"}, "What is $1+1$?", "2"),
    ({"question": " How many? ", "answer": "She has 3 + 4 = <<3+4=7>>7.\n#### 7"}, "How many?", "7"),
    ({"question": "q", "answer": "#### 1,200"}, "q", "1,200"),
    ({"Body": "Tom has 3 pens.", "Question": "How many?", "Answer": 43.0}, "Tom has 3 pens. How many?", "43"),
    ({"input": "q", "target": 0.5}, "q", "0.5"), ({"question": "q", "answer": 0}, "q", "0"),
    ({"question": "q", "answer": r"\frac{1}{2}"}, "q", r"\frac{1}{2}"),
])
def test_layouts(tmp_path, row, question, answer):
    found, = load_jsonl(write(tmp_path / "p.jsonl", row))
    assert (found.question, found.answer, found.prompt) == (question, answer, question)
    assert found.meta == {"file": str(tmp_path / "p.jsonl"), "line": 1}


def test_empty_lines_do_not_count_but_keep_the_numbering(tmp_path):
    (tmp_path / "p.jsonl").write_text('\n{"question": "a", "answer": 1}\r\n  \n{"question": "b", "answer": 2}')
    assert [(p.question, p.meta["line"]) for p in load_jsonl(str(tmp_path / "p.jsonl"))] == [("a", 2), ("b", 4)]


def test_a_question_may_hold_unicode_line_ends(tmp_path):
    text = "one\u2028two\u0085three\x0bfour"
    (tmp_path / "p.jsonl").write_text(json.dumps({"question": text, "answer": 1}, ensure_ascii=False), encoding="utf-8")
    assert load_jsonl(str(tmp_path / "p.jsonl"))[0].question == text


@pytest.mark.parametrize("content, says", [
    (b"", "holds no problems"), (b"\n \n", "holds no problems"),
    (b'{"question": "a", "answer": 1}\nnot json\n', "line 2: not JSON"), (b'{"question": "a", "ans', "line 1: not JSON"),
    (b"\xff\xfe{}", "line 1: not JSON"), (b"[" * 100_000, "line 1: not JSON"),
    (b'{"question": "a"}', "line 1: needs one of these sets of columns: .* it has question"),
    (b'{"question": "a", "answer": null}', "line 1: needs one of"), (b'["a", 1]', "line 1: needs one of .* it has list"),
    (b"7", "it has int"),
])
def test_what_is_not_a_list_of_problems_is_refused_with_its_line(tmp_path, content, says):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=rf"p\.jsonl.*{says}"):
        load_jsonl(str(tmp_path / "p.jsonl"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no problem file .*nowhere.jsonl"):
        load_jsonl(str(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize("name", REAL)
def test_real_files(data, name):
    count, known = REAL[name]
    found = load_jsonl(str(data / "eval" / f"{name}.jsonl"))
    assert len(found) == count and all(p.question and p.answer for p in found)
    for row, (question, answer) in known.items():
        assert found[row].question.startswith(question) and found[row].answer == answer
