"""The rules of docs/architecture.md as functions from a module to its violations, read from the source with `ast`."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

NO_TORCH = {"errors", "rng", "config"}
GROUND = NO_TORCH | {"boxes", "contracts", "dist", "preprocess", "draw", "rle"}
PARTS = set(
    [
        "datasets",
        "backbones",
        "models",
        "losses",
        "inference",
        "metrics",
        "optim",
        "schedule",
        "precision",
        "log",
        "summary",
        "checks",
        "bn_statistics",
    ]
)
SERVICES = ["weights", "build", "assemble", "checkpoint", "evaluate"]  # each may use those before it
COMMANDS = {
    "cli",
    "usage",
    "compose",
    "commands",
    "api",
    "report",
    "prepare",
    "fetch",
    "submission",
    "predictions",
    "segdata",
    "__main__",
    "__init__",
}
UNITS = GROUND | PARTS | set(SERVICES) | COMMANDS | {"guard", "train"}
# What a command may import before it knows that torch is needed.
LIGHT_COMMANDS = COMMANDS - {"commands", "api", "prepare", "submission", "predictions", "segdata"}
LIGHT = NO_TORCH | LIGHT_COMMANDS | {"build", "assemble"}

HOMES = {
    "hydra": {"compose", "cli"},
    "omegaconf": {"config", "compose"},
    "albumentations": {"datasets.transforms"},
    "cv2": {"datasets.transforms"},
    "PIL": {"datasets.io", "draw"},
    "hotcoco": {"rle", "metrics.coco"},
    "tensorboard": {"log"},
    "torch.utils.tensorboard": {"log"},
    "torch.distributed": {"dist"},
}
RUNNERS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_CONSTRUCTOR_ARGUMENTS = 400, 50, 8
# "module" or "module:Class": why it is larger than the house's sizes. Models may argue for it with their paper.
EXCEPTIONS: dict[str, str] = {
    "models.deeplab:DeepLab": "every argument is a row of the paper's ablation tables",
    "models.deeplabv3:DeepLabV3": "the paper's two variants and its ablation tables, and torchvision's head",
    "models.deeplabv3plus:DeepLabV3Plus": "every argument is a row of the paper's ablation tables",
    "models.encnet:EncNet": "each switch is a row of the paper's ablation or a difference between paper and release",
    "models.fcn:FCN": "each argument is a row of the paper's tables or a difference between paper and release",
    "models.fcn:Deconvolved": "the same",
    "models.fpn:FPN": "each argument is a row of the paper's table or a rule of DeepMask's sampling",
    "models.mask_rcnn:MaskRCNN": "each argument is a row of the paper's ablation tables",
    "models.panet:PANet": "each part is a switch of the paper's ablation, the others are Mask R-CNN's",
    "models.pspnet:PSPNet": "every argument is a row of the paper's ablation tables",
    "inference.instances:InstanceSegmentation": "every argument is a setting of the protocol, flat for the command line",
    "inference.semantic:Semantic": "every argument is a setting of a published protocol, flat for the command line",
    "datasets.transforms:Augment": "each argument is one augmentation of a paper",
}


class Module(NamedTuple):
    """One source file: dotted `name` below segtrain ("datasets.voc"), or its path for tests and scripts."""

    name: str
    source: str

    @property
    def unit(self) -> str:
        return self.name.split(".")[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


class Import(NamedTuple):
    """`name` is dotted and absolute; `lazy` when it is inside a function or only for the type checker."""

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
        isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in ("import_module", "__import__") and node.args
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
        inside = lazy or guarded or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(module.tree, False)
    return found


def unit_of(name: str) -> str | None:
    """The segtrain unit that an import reaches ("segtrain.datasets.voc.VOC" -> "datasets"), None for outside names."""
    first, *rest = name.split(".")
    if first != "segtrain":
        return None
    return rest[0] if rest and rest[0] in UNITS else "__init__"


def allowed(unit: str) -> set[str]:
    """The units that `unit` may import."""
    if unit in NO_TORCH:
        return NO_TORCH
    if unit in GROUND:
        return GROUND
    if unit in PARTS:
        return GROUND | {unit} | ({"backbones"} if unit == "models" else set())
    if unit == "guard":
        return GROUND | PARTS | {"guard"}
    if unit in SERVICES:
        return GROUND | PARTS | set(SERVICES[: SERVICES.index(unit) + 1])
    if unit == "train":
        return GROUND | PARTS | set(SERVICES) | {"guard", "train"}
    return UNITS if unit in COMMANDS else set()


def layers(module: Module) -> list[str]:
    """Imports that reach up or sideways, and units that stand in no layer."""
    if module.unit not in UNITS:
        return [f"{module.name}: stands in no layer of docs/architecture.md"]
    reached = [(i, unit) for i in imports(module) if (unit := unit_of(i.name))]
    return [f"{module.name}:{i.line}: may not import {i.name}" for i, u in reached if u not in allowed(module.unit)]


def lazy_commands(module: Module) -> list[str]:
    """Commands must answer --help before torch is imported."""
    if module.unit not in LIGHT_COMMANDS:
        return []
    eager = [i for i in imports(module) if not i.lazy]
    heavy = [
        i for i in eager if i.name.split(".")[0] in ("torch", "torchvision") or (unit_of(i.name) or "cli") not in LIGHT
    ]
    return [f"{module.name}:{i.line}: import {i.name} inside the function that needs it" for i in heavy]


def names_used(module: Module) -> Iterator[tuple[str, int]]:
    """Imported names, and attribute chains such as `torch.distributed.barrier`."""
    yield from ((i.name, i.line) for i in imports(module))
    yield from ((name, n.lineno) for n in ast.walk(module.tree) if isinstance(n, ast.Attribute) and (name := dotted(n)))


def homes(module: Module) -> list[str]:
    """Outside libraries used away from their home; ground modules use the standard library, numpy and torch only."""
    away = {library: home for library, home in HOMES.items() if module.name not in home}
    violations = [
        f"{module.name}:{line}: {name} belongs to {sorted(home)}"
        for name, line in names_used(module)
        for library, home in away.items()
        if f"{name}.".startswith(f"{library}.")
    ]
    if module.unit in GROUND:
        own = {"segtrain", "numpy"} | {lib for lib, home in HOMES.items() if module.name in home}
        own |= set() if module.unit in NO_TORCH else {"torch"}
        roots = [(i.name.split(".")[0], i.line) for i in imports(module)]
        foreign = [(r, line) for r, line in roots if r not in own and r not in sys.stdlib_module_names]
        violations += [f"{module.name}:{line}: the ground does not import {root}" for root, line in foreign]
    return violations


def is_true(call: ast.Call, keyword: str) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


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
    calls = [(forbidden_call(n), n.lineno) for n in ast.walk(module.tree) if isinstance(n, ast.Call)]
    bad = [(f"call of {what}", line) for what, line in calls if what]
    for name, line in names_used(module):
        if name.split(".")[0] in PICKLES or name == "hydra.utils.instantiate":
            bad.append((f"use of {name}", line))
    # Under another name the calls above would not be seen.
    bad += [
        (f"import of {i.name}", i.line) for i in imports(module) if i.name in ("torch.load", "yaml.load", "os.system")
    ]
    return [f"{module.name}:{line}: {what}" for what, line in bad]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: Module) -> list[Function]:
    return [n for n in ast.walk(module.tree) if isinstance(n, Function)]


def sizes(module: Module) -> list[str]:
    """Files, functions and constructors above the house's sizes."""
    found = []
    lines = len(module.source.splitlines())
    if lines > MAX_FILE_LINES and module.name not in EXCEPTIONS:
        found.append(f"{module.name}: {lines} lines, at most {MAX_FILE_LINES}")
    for f in functions(module):
        length = (f.end_lineno or f.lineno) - f.lineno + 1
        if length > MAX_FUNCTION_LINES:
            found.append(f"{module.name}:{f.lineno}: {f.name} has {length} lines, at most {MAX_FUNCTION_LINES}")
    for cls in (n for n in ast.walk(module.tree) if isinstance(n, ast.ClassDef)):
        init = next((f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
        count = len(init.args.posonlyargs + init.args.args + init.args.kwonlyargs) - 1 if init else 0
        if count > MAX_CONSTRUCTOR_ARGUMENTS and f"{module.name}:{cls.name}" not in EXCEPTIONS:
            found.append(f"{module.name}:{cls.name}: {count} arguments, at most {MAX_CONSTRUCTOR_ARGUMENTS}")
    return found


def annotations(module: Module) -> list[str]:
    """Arguments and results without a type."""
    found = []
    for f in functions(module):
        every = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg]
        bare = [a.arg for a in every if a and a.annotation is None and a.arg not in ("self", "cls")]
        bare += ["the result"] if f.returns is None else []
        found += [f"{module.name}:{f.lineno}: {f.name}: no type for {', '.join(bare)}"] if bare else []
    return found


# Written in two pieces, or this file would find itself.
MACHINE_PATH = re.compile(r"(?<![\w.$}/~-])/(?:wo" + r"rk|ho" + r"me|ro" + r"ot|Us" + r"ers)/\w")


def machine_paths(module: Module) -> list[str]:
    """Paths that exist on one machine only."""
    lines = enumerate(module.source.splitlines(), 1)
    return [f"{module.name}:{number}: {line.strip()}" for number, line in lines if MACHINE_PATH.search(line)]


def own_bases(modules: list[Module]) -> dict[str, list[str]]:
    """Every class of segtrain ("models.fcn.FCN") -> those of its bases that are segtrain's own."""
    bases: dict[str, list[str]] = {}
    for module in modules:
        known = {i.name.split(".")[-1]: i.name.removeprefix("segtrain.") for i in imports(module) if unit_of(i.name)}
        classes = [n for n in module.tree.body if isinstance(n, ast.ClassDef)]
        known |= {c.name: f"{module.name}.{c.name}" for c in classes}
        for c in classes:
            bases[f"{module.name}.{c.name}"] = [known[dotted(b)] for b in c.bases if dotted(b) in known]
    return bases


def inheritance(modules: list[Module]) -> list[str]:
    """Classes more than one level below another class of segtrain."""
    bases = own_bases(modules)
    return [f"{name} < {b} < {top}" for name, own in bases.items() for b in own for top in bases.get(b, [])]
