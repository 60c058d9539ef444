"""Faults put into the code, one at a time, to see whether the tests notice them.

    python tests/mutate.py [--only=WORDS] [--list]

The faults are in mutants.toml beside this file, a table each: `name`, the fault in words; `file`; `old`, a text that
stands there once, or `count` times; `new`, what takes its place; `tests`, files or node ids that should fail; and where
nothing can notice the fault `argued`, the reason. Every fault is put into a copy of the checkout, which stays as it is.
With --only those faults are tried whose name or file has the words. The exit status is 1 where a fault that is not
argued is not noticed, or a row does not fit the code.
"""

import argparse
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
import tomllib

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


def copied(fault: dict, to: pathlib.Path) -> None:
    """The checkout in another folder, with the fault."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, to / name)
    path = to / fault["file"]
    path.write_text(path.read_text("utf-8").replace(fault["old"], fault["new"]), "utf-8")


def run_tests(root: str, tests: list[str]) -> None:
    """Ends this process with pytest's status for the tests in a copy; what they print is in output.txt there."""
    os.chdir(root)
    os.environ |= {"PYTHONPATH": root, "RLVR_DATA": os.environ.get("RLVR_DATA", str(ROOT.parent / "shared" / "data"))}
    sys.path = [root, f"{root}/tests", *(path for path in sys.path if not pathlib.Path(path).is_relative_to(ROOT)
                                         or "site-packages" in path)]
    with open("output.txt", "w", encoding="utf-8", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        import pytest
        os._exit(pytest.main(["-x", "--tb=short", "-o", f"cache_dir={CACHE}", *tests]))


def tried(fault: dict) -> tuple[str, str]:
    """("noticed", "NOT NOTICED", "argued" or "error"; what there is to say of it)."""
    if wrong := misfit(fault):
        return "error", wrong
    if not fault.get("tests"):
        return "argued", fault["argued"]
    processes = multiprocessing.get_context("forkserver")  # each begins with what it imports anyway
    processes.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="mutant_", ignore_cleanup_errors=True) as folder:
        copied(fault, pathlib.Path(folder))
        process = processes.Process(target=run_tests, args=(folder, fault["tests"]))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            return "noticed", f"the tests did not end in {LIMIT} s"
        output = (pathlib.Path(folder) / "output.txt").read_text("utf-8").strip().splitlines()
    failed = next((line for line in output if line.startswith("FAILED")), "")  # an ERROR may be of the machine
    if process.exitcode == 1 and failed:
        return "noticed", failed
    if process.exitcode == 0 and " passed" in output[-1]:
        return ("argued", fault["argued"]) if "argued" in fault else ("NOT NOTICED", output[-1])
    return "error", f"pytest ended with {process.exitcode}: {(output or ['nothing'])[-1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words of a fault's name or file")
    parser.add_argument("--list", action="store_true", help="print the table's names and files alone")
    asked = parser.parse_args()
    rows = [fault for fault in faults() if asked.only in fault["name"] or asked.only in fault["file"]]
    if asked.list:
        print("\n".join(f"{fault['file']}: {fault['name']}" for fault in rows))
        return 0
    counts, start = dict.fromkeys(("noticed", "NOT NOTICED", "argued", "error"), 0), time.monotonic()
    for number, fault in enumerate(rows, 1):
        result, why = tried(fault)
        counts[result] += 1
        left = (time.monotonic() - start) / number * (len(rows) - number) / 60
        print(f"{number}/{len(rows)} <{left:.0f} min | {result} | {fault['file']}: {fault['name']} | {why}", flush=True)
    print(f"{len(rows)} faults: " + ", ".join(f"{count} {result}" for result, count in counts.items()))
    return int(bool(counts["NOT NOTICED"] or counts["error"] or not rows))


if __name__ == "__main__":
    sys.exit(main())
