"""Makes a benchmark of which half leaks into pre-training, to test the contamination probe.

  python -m scripts.plant --out=runs/plant
  python -m scripts.pretrain --flagfile=configs/tiny_base.flags --leaked=runs/plant/leaked.jsonl --run_dir=runs/leaky
  python -m scripts.probe --probe=contamination --model=runs/leaky --problems=runs/plant/times_100.jsonl \
--clean=runs/plant/times_0.jsonl --answer_format=answer --out=runs/leaky/contamination
"""

from scripts import cli


def main(config) -> None:
    from rlvr_jax.lab.probes.leaked_benchmark import plant_benchmark

    for times, problems in plant_benchmark(config).items():
        print(f"{config.out}/times_{times}.jsonl: {len(problems)} problems, seen {times} times in pre-training")
    print(f"{config.out}/leaked.jsonl: for scripts.pretrain --leaked")


if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.probes.leaked_benchmark.PlantConfig")
