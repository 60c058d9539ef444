"""Damaged and hostile input for everything that reads a file or a text: `python tests/fuzz.py NAME [FIRST] [COUNT]`.

Input i of a reader is one of its sound files with a few changes, all drawn from i. A reader may return, or raise
UserError, of which a user sees one line. Anything else is a fault, and so are more than SECONDS, and memory beyond ROOM
and FACTOR times the input: it is printed with the number of its input, and the exit status is 1. test_fuzz.py runs this
in a process of its own.
"""

import dataclasses
import functools
import io
import json
import pathlib
import resource
import shlex
import signal
import sys
import tempfile
import warnings
from typing import Callable, NamedTuple

import numpy as np

from rlvr_jax.errors import UserError

SECONDS, ROOM, FACTOR = 30, 64 << 20, 64  # a grader's child may take 20
WORDS = [b"\0", b"\xff\xfe", b"{", b"}" * 50, b"[" * 2000, b"(" * 2000, b"\\boxed{" * 300, b"10**10**10", b"1e999",
         b"-1", b"NaN", b"9" * 400, b"null", b"true", b'"', b"'", b"\n", b"\r\n", b"\\", b"{{ range(10**9) }}",
         b"{% for %}", b"\\frac{", b"\\sqrt", b"^" * 99, "\u2028\u202e\ud7ff".encode(), b"<answer>", b"#" * 20,
         b"=", b",", b"..", b"\xf0\x9f", (2**31).to_bytes(8, "little"), (2**62).to_bytes(8, "little"), bytes(8)]


class Reader(NamedTuple):
    """`sound()` gives inputs that can be read; `read(path)` reads the file at that path."""

    sound: Callable[[], list[bytes]]
    read: Callable[[pathlib.Path], object]


def changed(sound: bytes, rng: np.random.Generator) -> bytes:
    """The input with one to four changes: bits turned, a part cut out, doubled or moved, a word of WORDS put in."""
    data = bytearray(sound)
    for _ in range(rng.integers(1, 5)):
        at, end = sorted(rng.integers(0, len(data) + 1, 2))
        match rng.integers(6):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : min(end, at + 64)]
            case 2:
                data[at:at] = data[at : min(end, at + 4096)]
            case 3:
                del data[at:]
            case 4:
                data[at : at + int(rng.integers(0, 9))] = WORDS[rng.integers(len(WORDS))]
            case _:
                data[at:at] = WORDS[rng.integers(len(WORDS))]
    return bytes(data[: 1 << 20])


# ----- the readers

def told(path: pathlib.Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def extraction(path):
    from rlvr_jax.grading.extract import EXTRACTORS

    return [extract(told(path)) for extract in EXTRACTORS.values()]


def original_grader(path):
    from rlvr_jax.grading import grade

    return grade.is_correct(f"\\boxed{{{told(path)}}}", "1/2", "boxed", "original")


def equal_answers(path):
    from rlvr_jax.grading import mathematics

    return mathematics.split_elements(mathematics.normalise(told(path))), mathematics.read_number(told(path))


def chat_template(path):
    from rlvr_jax.tasks import families
    from rlvr_jax.tasks.prompts import PROMPT_STYLES

    tokenizer = families.make_tokenizer(["arithmetic"])
    return PROMPT_STYLES["chat"](dataclasses.replace(tokenizer, chat_template=told(path)), "2 + 2")


def steps_of(path):
    from rlvr_jax.lab.probes import traces

    prompt, _, completion = told(path).partition("\n")
    tree = traces.read_trace(prompt, completion)
    return tree and traces.judge_trace(tree[0], traces.read_value("7"), tree[1])


def problems(suffix):
    def read(path):
        from rlvr_jax.tasks.problems import load

        return load(str(path.rename(path.with_suffix(suffix))))
    return read


def parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet as writer

    made = io.BytesIO()
    rows = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(20)]
    writer.write_table(pyarrow.Table.from_pylist(rows), made)
    return made.getvalue()


def gguf_file(path):
    from rlvr_jax.pretrained import gguf_file

    return gguf_file.load(path.rename(path.with_suffix(".gguf")))


def folder(name):
    """Reads a Hugging Face folder in which this one file is the changed one."""
    def read(path):
        from rlvr_jax.pretrained.loading import load_model

        with tempfile.TemporaryDirectory(dir=path.parent) as made:
            for file, content in sound_folder().items():
                (pathlib.Path(made) / file).write_bytes(path.read_bytes() if file == name else content)
            return load_model(made)
    return read


def study_file(path):
    from rlvr_jax.lab.studies import study

    return study.load(str(path.rename(path.with_suffix(".toml"))))


def flags_of(path):
    from scripts import cli

    try:
        words = shlex.split(told(path).replace("\0", ""))  # no command line can have it
    except ValueError:
        return None  # the shell's own error
    return cli.check_command(shlex.join(["train", *words]))


def run_log(path):
    from rlvr_jax.runs.files import read_json, read_lines

    try:
        rows = [row for _, row in read_lines(path)]
    except UserError:
        rows = []
    return rows, read_json(path)


@functools.cache
def sound_folder() -> dict[str, bytes]:
    """The files of a small Qwen2 model with its tokenizer."""
    from golden import cases
    from rlvr_jax.model import ModelConfig
    from rlvr_jax.pretrained import huggingface
    from rlvr_jax.pretrained.tokenizer import save_tokenizer
    from rlvr_jax.tasks import families

    tokenizer = families.make_tokenizer(["arithmetic"])
    shape = ModelConfig(vocab_size=tokenizer.backend.get_vocab_size(), num_layers=1, d_model=8, num_heads=2,
                        num_kv_heads=1, head_dim=4, d_ff=8, max_seq_len=64, qkv_bias=True)
    with tempfile.TemporaryDirectory() as made:
        huggingface.save_folder(shape, cases.random_params(shape, 0), pathlib.Path(made))
        save_tokenizer(tokenizer, pathlib.Path(made))
        return {file.name: file.read_bytes() for file in pathlib.Path(made).iterdir()}


def sound_gguf() -> list[bytes]:
    from golden import cases
    from rlvr_jax.model import ModelConfig

    shape = ModelConfig(vocab_size=4, num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=8,
                        max_seq_len=64)
    with tempfile.TemporaryDirectory() as made:
        path = pathlib.Path(made) / "m.gguf"
        cases.write_gguf(path, shape, cases.random_params(shape, 0), "llama")
        return [path.read_bytes()]


ROOT = pathlib.Path(__file__).parents[1]
TEXTS = [b"think + 5 12 answer 12", b"a \\boxed{\\frac{1}{2}} and \\boxed{x^{2}+\\sqrt{3}}", b"<answer>4</answer> # 7",
         b"The answer is $\\left(-\\infty, 3\\right] \\cup \\{5\\}$", b"1,000,000.50 \\text{ dollars} = 10^{6}\\%"]
ROWS = b'{"question": "7 + 5 =", "answer": "12"}\n{"question": "a", "answer": "b", "steps": ["c", "d"]}\n'
TEMPLATE = (b"{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] | trim }}"
            b"{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}")
READERS = {
    "extraction": Reader(lambda: TEXTS, extraction), "original grader": Reader(lambda: TEXTS, original_grader),
    "answers": Reader(lambda: TEXTS, equal_answers), "chat template": Reader(lambda: [TEMPLATE], chat_template),
    "steps": Reader(lambda: [b"coins 7 + 5 * 2 =\nthink + 5 12 * 2 24 answer 24",
                             b"(3+4)*2-5=\n3+4=7;7*2=14;14-5=9;#9"], steps_of),
    "jsonl": Reader(lambda: [ROWS], problems(".jsonl")), "parquet": Reader(lambda: [parquet()], problems(".parquet")),
    "gguf": Reader(sound_gguf, gguf_file),
    "safetensors": Reader(lambda: [sound_folder()["model.safetensors"]], folder("model.safetensors")),
    "config.json": Reader(lambda: [sound_folder()["config.json"]], folder("config.json")),
    "tokenizer.json": Reader(lambda: [sound_folder()["tokenizer.json"]], folder("tokenizer.json")),
    "study": Reader(lambda: [(ROOT / "configs" / "studies" / f"{name}.toml").read_bytes()
                             for name in ("one_shot", "memory", "examples")], study_file),
    "flags": Reader(lambda: [b"--flagfile=configs/tiny.flags --model=base --run_dir=run --learning_rate=1e-4",
                             b"--reward=correct:0.5,format:0.5 --adapter_layers=0,1 --noremat"], flags_of),
    "log": Reader(lambda: [b'{"step": 1, "train/loss": 0.5}\n{"step": 2}\n', b'{"final": {"greedy": 0.5}}'], run_log)}


# ----- running them

def peak() -> int:
    """Bytes of the most memory that this process has had. What `resource` says begins with what its parent had."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) << 10


class Late(BaseException):
    """No Exception, which a reader may take for what a damaged file does."""


def fault(read: Callable, data: bytes, folder: pathlib.Path) -> str:
    """What went wrong with this input; empty if nothing did."""
    def late(*_):
        raise Late

    path, before = folder / "input", peak()
    path.write_bytes(data)
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        read(path)
    except UserError as error:
        if not str(error).strip():
            return "an error without words"
    except Late:
        return f"more than {SECONDS} s"
    except BaseException as error:  # noqa: BLE001: whatever it is, a user would see it
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    finally:
        signal.alarm(0)
        for left in folder.iterdir():
            left.unlink()
    grown = peak() - before
    return f"{grown >> 20} MiB for {len(data)} bytes" if grown > ROOM + FACTOR * len(data) else ""


def main(name: str, first: int, count: int) -> int:
    reader, faults = READERS[name], []
    sound = reader.sound()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as made:
        for data in [*sound, *sound]:  # the first times have imports and compilation in them
            fault(reader.read, data, pathlib.Path(made))
        for data in sound:
            assert not (wrong := fault(reader.read, data, pathlib.Path(made))), f"a sound file of {name}: {wrong}"
        for i in range(first, first + count):
            rng = np.random.default_rng(i)
            data = changed(sound[i % len(sound)], rng)
            if wrong := fault(reader.read, data, pathlib.Path(made)):
                faults.append(wrong)
                print(f"{name}, input {i}: {wrong}", flush=True)
    print(json.dumps({"reader": name, "inputs": count, "faults": len(faults)}))
    return len(faults) > 0


if __name__ == "__main__":
    given = [*map(int, sys.argv[2:]), *(0, 200)[len(sys.argv) - 2 :]]
    sys.exit(main(sys.argv[1], *given))
