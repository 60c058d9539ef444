"""Flag files: each can be read, and those of published experiments have the published values."""

import json
import re
import shlex

import pytest

from rlvr_jax.chips import here
from rlvr_jax.training.train import TrainConfig

from fixtures import ROOT, record_of

CONFIGS = ROOT / "configs"
FILES = {str(path.relative_to(CONFIGS)).removesuffix(".flags"): path for path in sorted(CONFIGS.rglob("*.flags"))}
PI1 = "pi1_qwen2.5_math_1.5b"
PAPER = [name for name, path in FILES.items() if "one_shot_rlvr.flags" in path.read_text() and name != "one_shot_rlvr"]


def header(name: str) -> list[str]:
    """The comment at the top of a flag file, without its marks."""
    lines = FILES[name].read_text().splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


def commands(name: str) -> list[str]:
    """The commands in a header, their continuation lines joined."""
    text = "\n".join(header(name)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("python -m scripts.")]


@pytest.mark.parametrize("name", [name for name in FILES if name != "one_shot_rlvr"])  # others read that
def test_the_header_of_a_file_has_its_command_and_all_flags_exist(name, parse):
    assert f"--flagfile=configs/{name}.flags" in commands(name)[0]
    for command in commands(name):
        script, *given = shlex.split(command)[2:]
        parse(record_of(script.removeprefix("scripts.")), *given)


def test_all_published_runs_have_a_file():
    assert set(PAPER) == {PI1, "pi13_qwen2.5_math_1.5b", "pi1_pi13_qwen2.5_math_1.5b", "dsr_sub_qwen2.5_math_1.5b",
                          "pi1_qwen2.5_math_7b", "pi1_llama3.2_3b", "entropy_only_qwen2.5_math_1.5b",
                          "policy_gradient_only_qwen2.5_math_1.5b"}


@pytest.mark.parametrize("name", PAPER)
def test_a_published_file_says_whose_its_number_is_and_names_no_place_on_a_machine(name, parse):
    text, config = " ".join(header(name)), parse(TrainConfig, f"--flagfile={FILES[name]}")
    assert "Not run here" in text and "Published (theirs, arXiv 2504.20571): MATH-500 from" in text
    assert (config.choice.model, config.run.run_dir, config.source.problems) == ("", "", "arithmetic")
    assert not re.search(r"(^|[\s=])[/~]", FILES[name].read_text(), re.M)


def test_pi1_has_the_published_hyperparameters(parse):
    """Wang et al., arXiv 2504.20571, and scripts/train/training_1.5b_pi1_r128.sh of their code."""
    config = parse(TrainConfig, f"--flagfile={FILES[PI1]}")
    published = {"learning_rate": 1e-6, "schedule": "constant", "warmup_steps": 0, "adam_b1": 0.9, "adam_b2": 0.999,
                 "weight_decay": 0.01, "max_grad_norm": 1.0, "dtype": "bfloat16", "temperature": 0.6,
                 "num_prompts": 128, "group_size": 8, "max_prompt_tokens": 1024, "max_new_tokens": 3072,
                 "num_steps": 2000, "save_every": 20, "eval_every": 20, "kl_coef": 0.001, "entropy_coef": 0.001,
                 "clip_low": None, "clip_high": None, "num_passes": 1, "num_minibatches": 1, "objective": "one_shot",
                 "prompt_style": "qwen_math", "instruction": "", "grader": "original", "answer_format": "boxed",
                 "reward": "correct", "example": "all", "drop_dead_groups": False, "max_resamples": 0}
    assert {name: config.as_flags()[name] for name in published} == published


@pytest.mark.parametrize("name, changed", [
    ("pi13_qwen2.5_math_1.5b", {}), ("pi1_pi13_qwen2.5_math_1.5b", {}), ("dsr_sub_qwen2.5_math_1.5b", {}),
    ("pi1_qwen2.5_math_7b", {}),
    ("pi1_llama3.2_3b", {"prompt_style": "chat", "instruction": r"Let's think step by step and output the final answer "
                                                                r"within \boxed{}."}),
    ("entropy_only_qwen2.5_math_1.5b", {"reward": "none", "kl_coef": 0.0, "weight_decay": 0.0, "track_kl": False}),
    ("policy_gradient_only_qwen2.5_math_1.5b", {"kl_coef": 0.0, "entropy_coef": 0.0, "weight_decay": 0.0,
                                                "track_kl": False})])
def test_other_published_runs_differ_from_pi1_in_what_they_say(name, changed, parse):
    ours, pi1 = (parse(TrainConfig, f"--flagfile={FILES[stem]}").as_flags() for stem in (name, PI1))
    assert {key: value for key, value in ours.items() if value != pi1[key]} == changed


def test_prolonged_has_what_its_paper_states(parse):
    """ProRL, arXiv 2505.24864; `dapo` is group advantages, clipped ratios, and a mean over all tokens."""
    config = parse(TrainConfig, f"--flagfile={FILES['prolonged']}")
    stated = {"clip_low": 0.2, "clip_high": 0.4, "temperature": 1.2, "group_size": 16, "num_minibatches": 4,
              "num_passes": 1, "schedule": "constant", "objective": "dapo", "drop_dead_groups": True, "reset": "both"}
    assert {name: config.as_flags()[name] for name in stated} == stated
    assert config.grpo.keep_reference and config.grpo.resets.resets_reference and config.grpo.loss.kl_coef > 0
    assert config.grpo.max_resamples and config.measured.heldout_split == "dev"  # a run may react to it
    assert "Not run here" in " ".join(header("prolonged"))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("chips/")])
def test_a_file_for_a_chip_says_what_compiling_it_found_or_that_it_was_not_and_that_it_was_not_run(name, parse):
    text, (train, compiled) = " ".join(header(name)), commands(name)
    chip = name.rpartition("_")[2]
    record = json.loads((ROOT / "results" / "chips.json").read_text())
    found = [one["verdict"] for command, one in record.items() if f"--flagfile=configs/{name}.flags" in command]
    assert (f"Compiled for the chip, not run on it: {found[0]} (results/chips.md)." if found else
            "Not run on it, nor compiled for it yet.") in text
    assert f"--chip={chip} --flagfile=configs/{name}.flags" in compiled and f"configs/{name}.flags" in train
    ours, published = (parse(TrainConfig, f"--flagfile={FILES[which]}").as_flags() for which in (
        name, re.search(r"--flagfile=configs/(\S+)\.flags\n", FILES[name].read_text())[1]))
    changed = {key for key, value in ours.items() if value != published[key]} - {
        "trainable", "adapter_rank", "adapter_alpha", "learning_rate", "params_dtype", "dtype", "grad_accumulation",
        "num_slots", "divide_state", "sample_by_layer", "first_moment_dtype"}
    evening = {"num_prompts", "group_size", "max_new_tokens", "kl_coef", "track_kl", "num_steps", "eval_every", "eval_size",
               "save_minutes"}
    assert changed == (evening if "evening" in name else set())  # everything else that affects learning is as published
    assert (ours["learning_rate"] != published["learning_rate"]) == (ours["trainable"] == "lora")
    assert ours["dtype"] == ("float16" if chip == "T4" else "bfloat16")


def test_the_page_of_chips_is_what_the_commands_in_headers_found():
    """Nothing on it is written by hand, and it has no command that no header has any more."""
    record, given = json.loads((ROOT / "results" / "chips.json").read_text()), list(here.commands())
    assert set(record) <= set(given) and (ROOT / "results" / "chips.md").read_text() == here.format_page(record)
    tiny = {record[command]["chip"] for command in given if "configs/tiny.flags" in command and command in record}
    assert tiny >= {"v5e-1", "v5e-8", "H100"}
    assert all(any(f"configs/{name}.flags" in command for command in given) for name in PAPER)
