"""The core on its own: in an empty folder the root files alone run the program of docs/core.md."""

import re
import shutil
import site
import subprocess
import sys

from fixtures import ROOT

LIST = "\nimport sys; print('modules', *sorted(name for name in sys.modules if name.startswith('rlvr_jax.')))\n"


def test_the_root_files_alone_train_in_an_empty_folder(tmp_path):
    files = sorted((ROOT / "rlvr_jax").glob("*.py"))
    (tmp_path / "rlvr_jax").mkdir()
    for path in files:
        shutil.copy(path, tmp_path / "rlvr_jax")
    program, = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "core.md").read_text("utf-8"), re.M | re.S)
    (tmp_path / "toy.py").write_text(program + LIST)
    # Without `site` Python finds no installed copy of the program, only these folders.
    done = subprocess.run([sys.executable, "-S", "toy.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env={"PYTHONPATH": ":".join([str(tmp_path), *site.getsitepackages()]), "HOME": str(tmp_path),
                               "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    rewards = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(rewards) == 10 and sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    modules = set(re.search(r"^modules (.*)$", done.stdout, re.M)[1].split())
    assert modules == {f"rlvr_jax.{path.stem}" for path in files} - {"rlvr_jax.__init__"}
