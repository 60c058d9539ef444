"""Lists the commands, `python -m scripts.NAME`, with the first sentence of each one's docstring."""

import ast
import pathlib

for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    if path.stem != "cli" and not path.stem.startswith("__"):
        about = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        print(f"{path.stem:16}" + " ".join(about.split("\n\n")[0].split()))
