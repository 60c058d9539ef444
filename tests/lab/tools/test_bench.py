"""What `scripts.bench` writes; the times themselves are nobody's promise."""

import re

from rlvr_jax.lab.tools import bench


def test_the_command_beside_the_table_has_every_flag_that_the_figures_depend_on(monkeypatch):
    seconds = iter([4.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr(bench, "alternate", lambda pair, repeats: (next(seconds), None))
    monkeypatch.setattr(bench, "matmul_peak", lambda: 1.0)
    for name in ("our_sampler", "our_gradient"):
        monkeypatch.setattr(bench, name, lambda *_: None)
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)  # no transformers beside us
    text = bench.run(bench.BenchConfig(num_layers=1, repeats=3, rollouts=2, new_tokens=25, out="FILE.md"))
    command, = re.findall("`(python -m scripts.bench .*)`", text)
    assert set(command.split()[3:]) == {"--num_layers=1", "--repeats=3", "--rollouts=2", "--new_tokens=25",
                                        "--prompt_tokens=64", "--host_devices=1"}
