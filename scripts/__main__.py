"""Lists the commands, `python -m scripts.NAME`, each with the first paragraph of its docstring."""

import ast
import pathlib

for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    if path.stem != "cli" and not path.stem.startswith("__"):
        about = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        print(f"{path.stem:16}" + " ".join(about.split("\n\n")[0].split()))
