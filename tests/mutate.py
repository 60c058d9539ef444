"""Faults put into the code, one at a time, to see whether the tests notice them.

    python tests/mutate.py [--only=WORDS] [--jobs=N] [--list]

The faults are in mutants.toml beside this file, a table each: `name`, the fault in words; `file`; `old`, a text that
stands there once, or `count` times; `new`, what takes its place; `tests`, files or node ids that should fail; and where
nothing can notice the fault `argued`, the reason. Every fault is put into a copy of the checkout, which stays as it is.
With --only those faults are tried whose name or file has the words. The exit status is 1 where a fault that is not
argued is not noticed, a row does not fit the code, or the tests fail without a fault.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
import tomllib
from typing import Optional

ROOT = pathlib.Path(__file__).resolve().parents[1]
TABLE = pathlib.Path(__file__).with_name("mutants.toml")
KEYS = {"name", "file", "old", "new", "tests", "count", "argued"}
COPIED = ("rlvr_jax", "scripts", "tests", "configs", "docs", "pyproject.toml", "README.md", "requirements.txt")
CACHE = pathlib.Path(tempfile.gettempdir()) / "rlvr_jax_mutants"  # compiled programs, kept from fault to fault
PRELOADED = ["flax", "jax", "numpy", "optax", "orbax.checkpoint", "scipy.optimize", "tokenizers"]
LIMIT = 900  # seconds that the tests of one fault may take; a fault that makes them hang is noticed


def faults(path: pathlib.Path = TABLE) -> list[dict]:
    """The rows of the table."""
    return tomllib.loads(path.read_text("utf-8"))["fault"]


def misfit(fault: dict, root: pathlib.Path = ROOT) -> str:
    """Why a row of the table does not fit the code; empty if it does."""
    if not {"name", "file", "old", "new"} <= fault.keys() <= KEYS or not (fault.get("tests") or fault.get("argued")):
        return f"a row has {', '.join(sorted(KEYS))}"
    if not (root / fault["file"]).is_file():
        return f"there is no {fault['file']}"
    found, wanted = (root / fault["file"]).read_text("utf-8").count(fault["old"]), fault.get("count", 1)
    if found != wanted:
        return f"old text is not there: {found} times in place of {wanted}"
    if fault["old"] == fault["new"]:
        return "old and new are the same"
    for test in fault.get("tests", ()):
        path, *names = test.partition("[")[0].split("::")
        if not (root / path).is_file():
            return f"there is no {path}"
        if any(f"def {name}(" not in (root / path).read_text("utf-8") for name in names):
            return f"there is no {test}"
    return ""


def copied(to: pathlib.Path, fault: Optional[dict]) -> None:
    """The checkout in another folder, with the fault, if there is one."""
    for name in COPIED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, to / name)
    if fault:
        path = to / fault["file"]
        path.write_text(path.read_text("utf-8").replace(fault["old"], fault["new"]), "utf-8")


def run_tests(root: str, tests: list[str]) -> None:
    """Ends this process with pytest's status for the tests in a copy; what they print is in output.txt there."""
    import pytest

    os.chdir(root)
    os.environ |= {"PYTHONPATH": root, "RLVR_DATA": os.environ.get("RLVR_DATA", str(ROOT.parent / "shared" / "data"))}
    sys.path[:] = [path for path in sys.path if not path.startswith(str(ROOT)) or "site-packages" in path]
    with open("output.txt", "w", encoding="utf-8", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os._exit(pytest.main(["-x", "--tb=short", "-o", f"cache_dir={CACHE}", *tests]))


def outcome(tests: list[str], fault: Optional[dict] = None, limit: float = LIMIT) -> tuple[str, str]:
    """("passed", "failed" or "error", the line of pytest's output that says so) of tests in a copy."""
    processes = multiprocessing.get_context("forkserver")  # each begins with what it imports anyway
    processes.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="mutant_", ignore_cleanup_errors=True) as folder:
        copied(pathlib.Path(folder), fault)
        process = processes.Process(target=run_tests, args=(folder, tests))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            return "failed", f"the tests did not end in {limit} s"
        output = (pathlib.Path(folder) / "output.txt").read_text("utf-8").strip().splitlines() or ["no output"]
    if process.exitcode == 0 and " passed" in output[-1]:
        return "passed", output[-1]
    failed = next((line for line in output if line.startswith("FAILED")), "")  # an ERROR may be of the machine
    return ("failed", failed) if process.exitcode == 1 and failed else ("error", f"pytest: {output[-1]}")


def tried(fault: dict) -> tuple[str, str]:
    """("noticed", "NOT NOTICED", "argued" or "error"; what there is to say of it)."""
    if wrong := misfit(fault):
        return "error", wrong
    state, line = outcome(fault["tests"], fault) if fault.get("tests") else ("passed", "")
    survived = ("argued", fault["argued"]) if "argued" in fault else ("NOT NOTICED", line)
    return {"failed": ("noticed", line), "passed": survived, "error": ("error", line)}[state]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words of a fault's name or file")
    parser.add_argument("--jobs", type=int, default=1, help="faults tried side by side")
    parser.add_argument("--list", action="store_true", help="print the table's names and files alone")
    asked = parser.parse_args()
    rows = [fault for fault in faults() if asked.only in fault["name"] or asked.only in fault["file"]]
    if asked.list:
        print("\n".join(f"{fault['file']}: {fault['name']}" for fault in rows))
        return 0
    tests = sorted({test for fault in rows for test in fault.get("tests", ())})
    counts, start = dict.fromkeys(("noticed", "NOT NOTICED", "argued", "error"), 0), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
        sound = pool.submit(outcome, tests, None, LIMIT * len(rows))
        for number, (fault, (result, why)) in enumerate(zip(rows, pool.map(tried, rows)), 1):
            counts[result] += 1
            left = (time.monotonic() - start) / number * (len(rows) - number) / 60
            print(f"{number}/{len(rows)} <{left:.0f} min | {result} | {fault['file']}: {fault['name']} | {why}",
                  flush=True)
    print(f"{len(rows)} faults: " + ", ".join(f"{count} {result}" for result, count in counts.items())
          + f"; the tests without a fault: {sound.result()[1]}")
    return int(bool(counts["NOT NOTICED"] or counts["error"] or sound.result()[0] != "passed"))


if __name__ == "__main__":
    sys.exit(main())
