"""Hashes of whole runs, to compare two commits on one machine: `python tests/golden/runs.py --out=FILE [--keep=DIR]`.

A change that was to move code and no number prints the same file before and after. Each line is a run with the hash
of its metrics (without seconds) and of the arrays of its last checkpoint. It takes about eight minutes on two cores;
figures differ between kinds of machine, so the hashes are not kept here. It imports nothing of the project or its
tests, so that it runs in a checkout of any commit.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp

BASE = "pretrain --flagfile=configs/tiny_base.flags --run_dir={D}/base"
TRAIN = "train --flagfile=configs/tiny.flags --model={D}/base --run_dir={D}/{name} "
SHORT = TRAIN + "--num_steps=12 --eval_every=4 --eval_size=128 --save_every=6 "
RUNS = {
    "base": BASE,
    "pretrain": "pretrain --flagfile=configs/tiny_base.flags --seed=1 --num_steps=200 --run_dir={D}/pretrain",
    "one_shot": TRAIN + "--num_steps=60", "one_device": SHORT + "--host_devices=1",
    "minibatches": SHORT + "--num_minibatches=2 --num_passes=2 --objective=dapo --kl_coef=0.01",
    "resampling": SHORT + "--example=all --max_resamples=2 --drop_dead_groups --mask_truncated",
    "history": SHORT + "--example=all --record_history --log_rollouts=12",
    "verifier_free": SHORT + "--reward=verifier_free --objective=rloo --example=all",
    "resets": SHORT + "--reset_every=5 --kl_coef=0.1",
    "lora": SHORT + "--trainable=lora --adapter_rank=2 --learning_rate=1e-2",
    "vector": SHORT + "--trainable=vector --learning_rate=1e-2 --keep_every=4",
    "votes": SHORT + "--reward=incorrect:1,format:0.1 --example=3 --grad_accumulation=4",
    "finetune": "finetune --model={D}/base --examples={D}/examples.jsonl --heldout=arithmetic --eval_size=128 "
                "--num_steps=20 --eval_every=10 --batch_size=16 --learning_rate=1e-4 --run_dir={D}/finetune"}


def digest(run: pathlib.Path) -> dict:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if not key.startswith("seconds") and
             "per_second" not in key and key != "compilations"} for row in rows]
    step = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    arrays = hashlib.sha256()
    for part in ("params", "training"):
        tree = ocp.StandardCheckpointer().restore((run / "checkpoints" / str(step) / part).absolute())
        leaves = {"/" + jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
                  for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for path, leaf in sorted(leaves.items()):
            arrays.update(path.encode() + leaf.tobytes())
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    return {"metrics": hashlib.sha256(text.encode()).hexdigest()[:16], "rows": len(rows), "step": step,
            "arrays": arrays.hexdigest()[:16]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--keep", help="directory for the runs; default: a temporary one")
    parser.add_argument("--only", default="", help="runs to make, joined by commas (base is always made)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(args.keep or temporary)
        work.mkdir(parents=True, exist_ok=True)
        examples = [{"prompt": f"coins {n} + 5 * 2 - 4 * 1 + 9 - 3 =", "completion": "think + 5 12 answer 12"}
                    for n in range(3, 9)]
        (work / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
        made = {}
        for name, command in RUNS.items():
            if args.only and name not in ("base", *args.only.split(",")):
                continue
            words = command.format(D=work, name=name).split()
            done = subprocess.run([sys.executable, "-m", f"scripts.{words[0]}", *words[1:]], capture_output=True,
                                  text=True)
            if done.returncode:
                sys.exit(f"{name}: {' '.join(words)}\n{done.stderr[-2000:]}")
            made[name] = digest(work / name)
            print(name, made[name], flush=True)
        pathlib.Path(args.out).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
