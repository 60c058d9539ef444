"""Ranks problems by historical variance: how much a problem's accuracy varied over an earlier run on all of them.

  python -m scripts.select_example --history=acc_step_500.json --problems=dsr_sub.parquet
  python -m scripts.select_example --history=runs/pool   # a run with --record_history

For the published pool, JSONL files and the synthetic task, the index is the value of --example in scripts.train.
"""

from scripts import cli


def main(config) -> None:
    from rlvr_jax.tasks.history import select

    ranking = select(config)
    print(f"{'rank':>5}{'index':>7}{'variance':>10}{'accuracy':>10}{'passes':>8}")
    for row in ranking[: config.top or None]:
        print(f"{row['rank']:5}{row['index']:>7}{row['score']:10.5f}{row['accuracy']:10.3f}{row['passes']:8}",
              *([row["answer"] or "(none)", " ".join(row["question"].split())[:60]] if "question" in row else []),
              sep="  ")
    if config.out:
        print(config.out)


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.tasks.history.SelectConfig")
