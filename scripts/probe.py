"""Measures what training changed, in completions that it reads from files or samples itself.

  python -m scripts.probe --probe=coherence --completions=base/completions.jsonl,after/completions.jsonl --out=DIR
  python -m scripts.probe --probe=memory --model=runs/demo --out=runs/demo/memory
  python -m scripts.probe --probe=boundary --completions=base/completions.jsonl,after/completions.jsonl --out=DIR
  python -m scripts.probe --probe=contamination --model=DIR --problems=math500.jsonl --max_new_tokens=512 --out=DIR
  python -m scripts.probe --probe=contamination --model=DIR --problems=gsm8k.jsonl,svamp.jsonl --clean=calculation:3 \
--twins=reordered,renumbered --max_new_tokens=64 --out=DIR

Writes OUT/PROBE.html, a self-contained page with the figure and items to browse, and the same content as PROBE.json,
PROBE.md, PROBE.png and PROBE_items.jsonl. Sampled completions are saved in OUT/completions.jsonl, from which the same
command continues. The index of `python -m scripts.report --all` links the pages in results/probes/.
"""

from scripts import cli

main = cli.print_page("rlvr_jax.lab.probes.probe.run_probe", "{probe}.md", "{probe}.json")

if __name__ == "__main__":
    cli.run(main, "rlvr_jax.lab.probes.probe.ProbeConfig")
