"""The rules of docs/architecture.md as functions from a module to its violations, read from the
source with `ast`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "segtrain"

# Modules directly under segtrain/, and what each may import: nothing else lies there.
TOP = {
    "errors": set(),
    "rng": set(),
    "contracts": {"errors", "structures"},
    "api": {
        "errors",
        "contracts",
        "structures",
        "config",
        "runtime",
        "checkpoints",
        "optim",
        "data",
        "benchmarks",
        "engine",
    },
    "__init__": {"api"},
    "__main__": {"commands"},
}


def may_import() -> dict[str, set[str]]:
    """What each folder may import, as the line "May import: ..." of its `__init__.py` says."""
    allowed = dict(TOP)
    for init in PACKAGE.glob("*/__init__.py"):
        text = ast.get_docstring(ast.parse(init.read_text())) or ""
        line = re.search(r"^May import: ([^.]*)\.$", text, re.MULTILINE)
        allowed[init.parent.name] = set(re.split(r",\s+", line[1])) if line else set()
    return allowed


ALLOWED = may_import()
# What answers --help, and what checks a configuration, does without torch.
NO_TORCH = {"errors", "rng", "config", "commands", "__init__", "__main__"}
NO_TORCH_MODULES = {
    "engine.evidence",
    "logs.clock",
    "logs.follow",
    "logs.metrics_file",
    "logs.progress",
    "runtime.console",
    "runtime.devices",
    "runtime.exhausted",
    "runtime.files",
    "runtime.lock_file",
    "runtime.own_folder",
    "runtime.parent",
    "runtime.pool",
    "runtime.run_folder",
    "runtime.signals",
}

HOMES = {
    "hydra": {
        "config.by_hydra",
        "config.compose",
        "config.hydra_state",
        "config.outside",
        "config.settings",
        "config.space",
        "commands.show",
        "commands.sweep",
    },
    "omegaconf": {
        "config.schema",
        "config.by_hydra",
        "config.files",
        "config.places",
        "config.compose",
        "config.jobs",
        "config.outside",
    },
    "albumentations": {"data.extra"},
    "cv2": {"data.view"},
    "PIL": {
        "data.images",
        *(
            f"visualization.{name}"
            for name in (
                "embedded",
                "heat_map",
                "overlays",
                "panels",
                "picture_files",
                "rate_curve",
                "text",
            )
        ),
    },
    "hotcoco": {"structures.run_lengths", "metrics.coco"},
    "optuna": {"commands.study"},
    "plotly": {"commands.report_page"},
    "mlflow": {"logs.mlflow_writer"},
    "tensorboard": {"logs.writers"},
    "torch.utils.tensorboard": {"logs.writers"},
    "wandb": {"logs.wandb_writer"},
    "torch.distributed": {"runtime.distributed", "runtime.launch"},
}
RUNNERS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}


class Module(NamedTuple):
    """One source file: dotted `name` below segtrain ("datasets.voc"), or its path for tests and
    scripts.
    """

    name: str
    source: str

    @property
    def unit(self) -> str:
        return self.name.split(".")[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


class Import(NamedTuple):
    """`name` is dotted and absolute.

    `lazy` when it is inside a function or only for the type checker.
    """

    name: str
    lazy: bool
    line: int


def dotted(node: ast.AST) -> str:
    """`torch.distributed.x` of an attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{base}.{node.attr}" if (base := dotted(node.value)) else ""
    return ""


def imports_of_node(node: ast.AST, module: Module, lazy: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, lazy, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = ["segtrain", *module.name.removesuffix(".__init__").split(".")]
            keep = len(parents) - node.level + (module.name.endswith("__init__"))
            base = ".".join([*parents[: max(keep, 1)], *filter(None, [node.module])])
        yield from (Import(f"{base}.{alias.name}", lazy, node.lineno) for alias in node.names)
    elif (
        isinstance(node, ast.Call)
        and dotted(node.func).split(".")[-1] in ("import_module", "__import__")
        and node.args
    ):
        target = node.args[0]
        if isinstance(target, ast.Constant) and isinstance(target.value, str):
            yield Import(target.value, lazy, node.lineno)


def imports(module: Module) -> list[Import]:
    """Every import of the module, those inside functions too."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        found.extend(imports_of_node(node, module, lazy))
        guarded = isinstance(node, ast.If) and dotted(node.test).split(".")[-1] == "TYPE_CHECKING"
        inside = (
            lazy or guarded or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        )
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(module.tree, False)
    return found


def unit_of(name: str) -> str | None:
    """Folder or top module that an import reaches ("segtrain.datasets.voc.VOC" -> "datasets")."""
    first, *rest = name.split(".")
    if first != "segtrain":
        return None
    return rest[0] if rest and rest[0] in ALLOWED else "__init__"


def layers(module: Module) -> list[str]:
    """Imports that the folder's own line does not allow, and modules that stand in no folder."""
    if module.unit not in ALLOWED:
        return [f"{module.name}: lies in no folder of docs/architecture.md"]
    reached = [(i, unit) for i in imports(module) if (unit := unit_of(i.name))]
    may = ALLOWED[module.unit] | {module.unit}
    return [f"{module.name}:{i.line}: may not import {i.name}" for i, u in reached if u not in may]


def upward(allowed: Mapping[str, set[str]]) -> list[str]:
    """Folders that import each other in a circle: then neither stands below the other."""
    placed: set[str] = set()
    while ready := {name for name, may in allowed.items() if name not in placed and may <= placed}:
        placed |= ready
    return sorted(set(allowed) - placed)


def is_light(name: str) -> bool:
    """Whether an imported name of segtrain ("segtrain.config.schema.RunConf") needs no torch."""
    parts = name.split(".")[1:]
    unit = unit_of(name)
    return unit in NO_TORCH or any(".".join(parts[:n]) in NO_TORCH_MODULES for n in (2, 3))


def lazy_commands(module: Module) -> list[str]:
    """Commands must answer --help, and refuse a wrong setting, before torch is imported."""
    if module.unit not in NO_TORCH and module.name not in NO_TORCH_MODULES:
        return []
    eager = [i for i in imports(module) if not i.lazy]
    heavy = [
        i
        for i in eager
        if i.name.split(".")[0] in ("torch", "torchvision")
        or (unit_of(i.name) is not None and i.name != "segtrain.commands" and not is_light(i.name))
    ]
    return [
        f"{module.name}:{i.line}: import {i.name} inside the function that needs it" for i in heavy
    ]


def names_used(module: Module) -> Iterator[tuple[str, int]]:
    """Imported names, and attribute chains such as `torch.distributed.barrier`."""
    yield from ((i.name, i.line) for i in imports(module))
    yield from (
        (name, n.lineno)
        for n in ast.walk(module.tree)
        if isinstance(n, ast.Attribute) and (name := dotted(n))
    )


def homes(module: Module) -> list[str]:
    """Outside libraries used away from their home."""
    away = {library: home for library, home in HOMES.items() if module.name not in home}
    violations = [
        f"{module.name}:{line}: {name} belongs to {sorted(home)}"
        for name, line in names_used(module)
        for library, home in away.items()
        if f"{name}.".startswith(f"{library}.")
    ]
    return violations


def is_true(call: ast.Call, keyword: str) -> bool:
    return any(
        k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True
        for k in call.keywords
    )


def forbidden_call(call: ast.Call) -> str | None:
    name = dotted(call.func)
    if name == "torch.load" and not is_true(call, "weights_only"):
        return "torch.load without weights_only=True"
    if name in (
        "eval",
        "exec",
        "yaml.load",
        "yaml.unsafe_load",
        "os.system",
        "os.popen",
        "builtins.eval",
        "builtins.exec",
    ):
        return name
    if name.split(".")[-1] == "instantiate":
        return "instantiate"
    return next((f"{word}=True" for word in ("shell", "allow_pickle") if is_true(call, word)), None)


def forbidden(module: Module) -> list[str]:
    """Calls that run code from a file or a config."""
    calls = [
        (forbidden_call(n), n.lineno) for n in ast.walk(module.tree) if isinstance(n, ast.Call)
    ]
    bad = [(f"call of {what}", line) for what, line in calls if what]
    for name, line in names_used(module):
        if name.split(".")[0] in PICKLES or name == "hydra.utils.instantiate":
            bad.append((f"use of {name}", line))
    # Under another name the calls above would not be seen.
    bad += [
        (f"import of {i.name}", i.line)
        for i in imports(module)
        if i.name in ("torch.load", "yaml.load", "os.system")
    ]
    return [f"{module.name}:{line}: {what}" for what, line in bad]


# Where an attribute may be asked for by a literal name, and why no contract can say it.
LITERAL_ATTRIBUTES = {"data.tiles": "os.posix_fadvise is not on every system"}


def literal_attributes(module: Module) -> list[str]:
    """Calls such as `getattr(model, "backbone", None)`: a contract says what a part offers."""
    if module.name in LITERAL_ATTRIBUTES:
        return []
    calls = [n for n in ast.walk(module.tree) if isinstance(n, ast.Call)]
    return [
        f"{module.name}:{call.lineno}: {name} with the literal {call.args[1].value!r}"
        for call in calls
        if (name := dotted(call.func)) in ("getattr", "hasattr", "setattr")
        and len(call.args) > 1
        and isinstance(call.args[1], ast.Constant)
        and not str(call.args[1].value).startswith("__")
    ]


# The folders whose work it is to tell label maps from objects.
TELLS_TASKS_APART = {"structures", "visualization", "metrics"}
TASK_TYPES = {"Instances", "Segments", "Scene"}


def task_questions(module: Module) -> list[str]:
    """`isinstance` on the types of a task: elsewhere the contracts make the question needless."""
    if module.unit in TELLS_TASKS_APART:
        return []
    asked = []
    for call in (n for n in ast.walk(module.tree) if isinstance(n, ast.Call)):
        if dotted(call.func) == "isinstance" and len(call.args) == 2:
            names = {dotted(n).split(".")[-1] for n in ast.walk(call.args[1])} & TASK_TYPES
            asked += [f"{module.name}:{call.lineno}: isinstance of {n}" for n in sorted(names)]
    return asked


# Names that two folders share, because both name the same subject of their own folder.
SHARED_NAMES: dict[str, str] = {
    "train": "the loop (engine) and its command",
    "evaluate": "the pass over a data set (engine) and its command",
    "parts": "how one part is built (config) and how all parts of a run are (engine)",
    "files": "configs as files (config) and files whole or not at all (runtime)",
    "instances": "objects as values (structures) and how they are predicted (inference)",
    "proposals": "files and grids of boxes (data) and inference that is led by them",
    "voc": "a data set and its benchmark",
    "coco": "a data set, its metric and its benchmark",
    "cityscapes": "a data set, its metric and its benchmark",
    "context": "a data set and its benchmark",
}


def repeated_names(modules: list[Module]) -> list[str]:
    """Modules of one name in several folders: a traceback or a tab should say which one it is."""
    homes_of: dict[str, list[str]] = {}
    for module in modules:
        name = module.name.split(".")[-1]
        if name not in ("__init__", "base", *SHARED_NAMES):
            homes_of.setdefault(name, []).append(module.name)
    return [f"{name}: {', '.join(names)}" for name, names in homes_of.items() if len(names) > 1]


def untyped_factories(module: Module) -> list[str]:
    """Public functions of config/parts.py that hide what they build behind `Any`."""
    if module.name != "config.parts":
        return []
    public = [f for f in functions(module) if not f.name.startswith("_")]
    return [
        f"{module.name}:{f.lineno}: {f.name} returns Any"
        for f in public
        if f.returns is not None and dotted(f.returns).split(".")[-1] == "Any"
    ]


def empty_docstrings(module: Module) -> list[str]:
    """Docstrings that only send the reader elsewhere."""
    nodes = [n for n in ast.walk(module.tree) if isinstance(n, Function | ast.ClassDef)]
    texts = [(n.lineno, n.name, ast.get_docstring(n) or "") for n in nodes]
    return [
        f"{module.name}:{line}: the docstring of {name} only says {text!r}"
        for line, name, text in texts
        if re.match(r"(See|As in|Like)\b", text) and "\n" not in text
    ]


def crowded_lines(module: Module) -> list[str]:
    """Several assignments on one line; a swap of the same names is one."""
    found = []
    for n in ast.walk(module.tree):
        if not isinstance(n, ast.Assign) or not isinstance(n.value, ast.Tuple):
            continue
        target = n.targets[0]
        if isinstance(target, ast.Tuple) and len(target.elts) == len(n.value.elts):
            left = sorted(ast.unparse(e) for e in target.elts)
            if left != sorted(ast.unparse(e) for e in n.value.elts):
                found.append(f"{module.name}:{n.lineno}: {ast.unparse(n)}")
    return found


FORMAT_SWITCH = "# fmt" + ":"


def unformatted(module: Module) -> list[str]:
    """Lines that the formatter is told to leave alone."""
    lines = enumerate(module.source.splitlines(), 1)
    return [
        f"{module.name}:{number}: {line.strip()}" for number, line in lines if FORMAT_SWITCH in line
    ]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: Module) -> list[Function]:
    return [n for n in ast.walk(module.tree) if isinstance(n, Function)]


def annotations(module: Module) -> list[str]:
    """Arguments and results without a type."""
    found = []
    for f in functions(module):
        every = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg]
        bare = [a.arg for a in every if a and a.annotation is None and a.arg not in ("self", "cls")]
        bare += ["the result"] if f.returns is None else []
        found += (
            [f"{module.name}:{f.lineno}: {f.name}: no type for {', '.join(bare)}"] if bare else []
        )
    return found


# Written in two pieces, or this file would find itself.
MACHINE_PATH = re.compile(r"(?<![\w.$}/~-])/(?:wo" + r"rk|ho" + r"me|ro" + r"ot|Us" + r"ers)/\w")


def machine_paths(module: Module) -> list[str]:
    """Paths that exist on one machine only."""
    lines = enumerate(module.source.splitlines(), 1)
    return [
        f"{module.name}:{number}: {line.strip()}"
        for number, line in lines
        if MACHINE_PATH.search(line)
    ]


def own_bases(modules: list[Module]) -> dict[str, list[str]]:
    """Every class of segtrain ("models.fcn.FCN") -> those of its bases that are segtrain's own."""
    bases: dict[str, list[str]] = {}
    for module in modules:
        known = {
            i.name.split(".")[-1]: i.name.removeprefix("segtrain.")
            for i in imports(module)
            if unit_of(i.name)
        }
        classes = [n for n in module.tree.body if isinstance(n, ast.ClassDef)]
        known |= {c.name: f"{module.name}.{c.name}" for c in classes}
        for c in classes:
            bases[f"{module.name}.{c.name}"] = [
                known[dotted(b)] for b in c.bases if dotted(b) in known
            ]
    return bases


def inheritance(modules: list[Module]) -> list[str]:
    """Classes more than one level below another class of segtrain.

    A folder's `base` does not count.
    """
    bases = own_bases(modules)
    return [
        f"{name} < {b} < {top}"
        for name, own in bases.items()
        for b in own
        for top in bases.get(b, [])
        if top.split(".")[-2] != "base"
    ]
