"""The network's own code beside an exported model, so that it loads where this package is not installed.

transformers runs such code after ``trust_remote_code=True``: ``auto_map`` in config.json names the classes, the files
lie in the folder and import each other relatively. The files are those of ``cocomix.model`` and ``cocomix.ops``,
rewritten in three places:

- imports of ``cocomix.model.X`` and ``cocomix.ops.X`` become relative, all in one folder;
- jaxtyping's names become :class:`typing.Annotated`: ``Annotated[Tensor, "B T"]`` says the shape to the reader as well;
- the registration with the Auto classes is left out: the first copy that is loaded would else stand for those of all
  other folders.

Where this package is imported, transformers takes its registered classes and never the copy.
"""

from __future__ import annotations

import ast
from pathlib import Path

import cocomix
from cocomix import __version__
from cocomix.files import read_json, write_json, write_text

PACKAGES = ("cocomix.model.", "cocomix.ops.")
FIRST = "model.modeling"
"""The module that transformers is pointed to; what it needs is found by its imports."""
RENAMED = {"config": "configuration_cocomix", "modeling": "modeling_cocomix"}
"""Names that transformers' own habit asks for; other modules keep theirs."""
AUTO_MAP = {
    "AutoConfig": "configuration_cocomix.CoCoMixConfig",
    "AutoModelForCausalLM": "modeling_cocomix.CoCoMixForCausalLM",
}
MARK = f"# From cocomix {__version__} (Apache-2.0): written by its export, so that this folder loads without it.\n"


def add_code(folder: Path) -> None:
    """Writes the network's code into an exported model's folder and names it in its config.json."""
    for name in module_names():
        write_text(folder / f"{_file_name(name)}.py", rewritten(source(name)))
    config = read_json(folder / "config.json", "a model's configuration")
    write_json(folder / "config.json", {**config, "auto_map": AUTO_MAP})


def source(name: str) -> str:
    """The text of module ``cocomix.<name>``."""
    return Path(cocomix.__file__).parent.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")


def module_names() -> list[str]:
    """The modules that the network is made of, without ``cocomix.``: the first one and all that it imports."""
    found, waiting = [], [FIRST]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            waiting += [m.removeprefix("cocomix.") for m in imported(source(name)) if m.startswith(PACKAGES)]
    return sorted(found)


def imported(text: str) -> list[str]:
    """Modules that a source imports, anywhere in it."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            modules.append(node.module or "")
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return modules


def rewritten(text: str) -> str:
    """The source as it stands in an export (see the module's description); lines without imports stay as they are."""
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping":
            names = ", ".join(f"Annotated as {alias.asname or alias.name}" for alias in node.names)
            lines[first:last] = [f"from typing import {names}\n"] + [""] * (last - first - 1)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
            lines[first] = lines[first].replace(f"from {node.module} ", f"from .{_file_name(node.module or '')} ")
        elif _registers(node):
            lines[first:last] = [""] * (last - first)
    return MARK + "".join(lines).rstrip() + "\n"


def _registers(node: ast.stmt) -> bool:
    """Whether it is a statement like ``AutoConfig.register(…)``."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    function = node.value.func
    return isinstance(function, ast.Attribute) and function.attr == "register"


def _file_name(name: str) -> str:
    name = name.rpartition(".")[2]
    return RENAMED.get(name, name)
