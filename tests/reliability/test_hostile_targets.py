"""A config or checkpoint from a stranger runs no code.

Attacks on `_target_`, each with arguments that would do harm.

The harm is a file, the canary. `test_the_attacks_are_real` resolves the same nodes without any
guard and finds it.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import own_package
import pytest

from segtrain.config import instantiate, trust
from segtrain.errors import UserError

NODE = dict[str, Any]
trust.may_be_trusted("torch")  # what importlib.metadata imports is loaded before we compare
GOOD = "segtrain.inference.semantic.Semantic"
MODEL = "segtrain.models.deeplabv3plus.DeepLabV3Plus"
FOLDER = "segtrain.datasets.folder.Folder"


class Places:
    """The canary, and the files that some attacks need."""

    def __init__(self, folder: Path) -> None:
        self.canary = str(folder / "canary")
        self.source = f"open({self.canary!r}, 'w').close()"
        self.shell = f"touch {self.canary}"
        self.folder = str(folder)
        self.script = str(folder / "hubconf.py")
        self.pickled = str(folder / "weights.bin")
        Path(self.script).write_text(self.source)
        # By hand, in the oldest protocol: call os.system with one string.
        Path(self.pickled).write_bytes(f"cos\nsystem\n(S'{self.shell}'\ntR.".encode())


def unpickled(p: Places) -> NODE:
    return {"f": p.pickled, "weights_only": False}


def copied(p: Places) -> NODE:
    return {"src": p.script, "dst": p.canary}


def on_path(p: Places) -> NODE:
    return {"_args_": [{"_target_": "pathlib.Path", "_args_": [p.canary]}]}


# Targets, with arguments that create the canary wherever attributes are walked. The last eleven
# pass an allow-list of prefixes, for they begin with `segtrain.`
ATTACKS: dict[str, Callable[[Places], NODE]] = {
    "os.system": lambda p: {"command": p.shell},
    "posix.system": lambda p: {"command": p.shell},
    "os.mkdir": lambda p: {"path": p.canary},
    "os.symlink": lambda p: {"src": p.script, "dst": p.canary},
    "builtins.open": lambda p: {"file": p.canary, "mode": "w"},
    "io.open": lambda p: {"file": p.canary, "mode": "w"},
    "builtins.eval": lambda p: {"_args_": [p.source]},
    "builtins.exec": lambda p: {"_args_": [p.source]},
    "subprocess.run": lambda p: {"args": ["touch", p.canary]},
    "subprocess.check_output": lambda p: {"_args_": [["touch", p.canary]]},
    "shutil.copyfile": copied,
    "pathlib.Path.touch": on_path,
    "runpy.run_path": lambda p: {"path_name": p.script},
    "timeit.timeit": lambda p: {"stmt": p.source, "number": 1},
    "zipfile.ZipFile": lambda p: {"file": p.canary, "mode": "w"},
    "logging.FileHandler": lambda p: {"filename": p.canary},
    "torch.load": unpickled,
    "torch.hub.load": lambda p: {"repo_or_dir": p.folder, "model": "x", "source": "local"},
    "numpy.load": lambda p: {"file": p.pickled, "allow_pickle": True},
    "segtrain.config.instantiate.Path.touch": on_path,
    "segtrain.checkpoints.writing.shutil.copyfile": copied,
    "segtrain.checkpoints.writing.os.system": lambda p: {"command": p.shell},
    "segtrain.checkpoints.writing.torch.load": unpickled,
    "segtrain.commands.exit_codes.os.mkdir": lambda p: {"path": p.canary},
    "segtrain.data.images.os.mkdir": lambda p: {"path": p.canary},
    "segtrain.datasets.folder.Path.mkdir": on_path,
    "segtrain.runtime.distributed.os.mkdir": lambda p: {"path": p.canary},
    "segtrain.models.deeplabv3plus.torch.load": unpickled,
    "segtrain.models.deeplabv3plus.nn.modules.module.torch.hub.os.mkdir": lambda p: {
        "path": p.canary
    },
    "segtrain.visualization.picture_files.Path.touch": on_path,
}

# Targets that must be refused for what they are, whatever the arguments.
NOT_PARTS: list[Any] = [
    "",
    ".",
    "...",
    " ",
    "segtrain",
    "segtrain.",
    "segtrain..models.deeplabv3plus.DeepLabV3Plus",
    ".segtrain.models.deeplabv3plus.DeepLabV3Plus",
    "..models.deeplabv3plus.DeepLabV3Plus",
    "models.deeplabv3plus.DeepLabV3Plus",
    "DeepLabV3Plus",
    f"{MODEL}.",
    f"{MODEL}\n",
    f" {MODEL}",
    f"{MODEL}()",
    f"{MODEL}\0",
    f"{MODEL}\ud800",
    # ROMAN NUMERAL FIVE HUNDRED, which Python's own parser reads as D
    MODEL.replace("D", "\u216e"),
    MODEL.replace("a", "\u0430", 1),  # CYRILLIC SMALL LETTER A
    MODEL.replace("models", "\uff4dodels"),  # FULLWIDTH SMALL LETTER M
    MODEL.upper(),
    MODEL.replace(".", "/"),
    MODEL.replace("segtrain", "segtrain2"),
    f"{MODEL}.__init__.__globals__",
    f"{MODEL}.__init__",
    f"{MODEL}.forward",
    f"{MODEL}.__class__",
    f"{MODEL}.load_state_dict",
    "segtrain.models.deeplabv3plus.torch",
    "segtrain.models.deeplabv3plus.nn",
    "segtrain.models.deeplabv3plus.Tensor",
    "segtrain.models.deeplabv3plus.Literal",
    "segtrain.models.deeplabv3plus.ASPP",  # imported there, defined elsewhere
    "segtrain.models.deeplabv3plus.__builtins__",
    "segtrain.models.deeplabv3plus.__dict__",
    "segtrain.models.deeplabv3plus.__loader__",
    "segtrain.models.__init__",
    "segtrain.models.__init__.Net",
    "segtrain.models.__path__",
    "segtrain.models.../../x.Net",
    "segtrain.models.../../../../../../tmp/evil.Net",
    "segtrain.models./tmp/evil.Net",
    "segtrain.models.%2e%2e.evil.Net",
    "segtrain.models.deeplabv3plus",
    "segtrain.models",
    "segtrain.models.nothing.Net",
    "segtrain.__main__.main",
    "segtrain.config.instantiate.build",
    "segtrain.config.instantiate.check",
    "segtrain.config.instantiate.importlib.import_module",
    "segtrain.config.instantiate._fetch",
    "segtrain.config.instantiate.cache",
    "segtrain.checkpoints.writing.save",
    "segtrain.weights.formats.read_weights",
    "segtrain.commands.main.segtrain",
    "segtrain.commands.exit_codes.run_command",
    "segtrain.config.files.load_yaml",
    "segtrain.runtime.launch.launch",
    "segtrain.visualization.picture_files.save",
    "segtrain.errors.UserError",
    "segtrain.runtime.run_folder.RunLock",
    "segtrain.logs.run_log.RunLog",
    "segtrain.engine.train.fit",
    "segtrain.engine.train.write_json",
    "segtrain.checkpoints.safe_load.load",
    "segtrain.backbones.resnet.download",
    "segtrain.data.images.Image.open",
    "segtrain.data.images.Image",
    "segtrain.data.images.read_image",
    "segtrain.data.loader.DataLoader",
    "segtrain.data.workers.end_workers",
    "segtrain.optim.optimizers.torch",
    "segtrain.optim.optimizers._require",
    "segtrain.optim.schedules.math",
    "segtrain.optim.schedules._warm",
    "hydra.utils.instantiate",
    "hydra._internal.utils._locate",
    "functools.partial",
    "functools.reduce",
    "operator.methodcaller",
    "builtins.getattr",
    "builtins.__import__",
    "importlib.import_module",
    "importlib.reload",
    "pkgutil.resolve_name",
    "ctypes.CDLL",
    "types.FunctionType",
    "antigravity.webbrowser.open",
    "torch.optim.SGD",
    "torch.utils.cpp_extension.load",
    "torch.ops.load_library",
    "torchvision.models.resnet18",
    None,
    True,
    0,
    1.5,
    b"os.system",
    [],
    ["os.system"],
    {},
    {"_target_": "os.system"},
    print,
    instantiate.build,
    type("Text", (str,), {})(MODEL),
]

KEYS = (
    "_args_",
    "_partial_",
    "_recursive_",
    "_convert_",
    "_call_",
    "__init__",
    "__class__",
    "__dict__",
    "self",
)


# With the package `mylab` trusted: nothing that it imports or inherits becomes a part.
THROUGH_A_TRUSTED_PACKAGE = [
    "mylab",
    "mylab.parts",
    "mylab.MyNet",
    "mylab.parts.Path.touch",
    "mylab.parts.Path",
    "mylab.parts.nn.Module",
    "mylab.parts.nn",
    "mylab.parts.replace",
    "mylab.parts.Shapes",
    "mylab.parts.confusion.SemanticEvaluator",
    "mylab.parts.MyNet.__init__",
    "mylab.parts.MyNet.load_state_dict",
    "mylab.parts.__builtins__",
    "mylab.__init__.Path",
    "mylab.parts.os.system",
    "mylab.os.system",
    "mylab..parts.MyNet",
    "mylab.parts.MyNet ",
    "mylab.../parts.MyNet",
    "mylab.conf.model.MyNet",
    "mylab2.parts.MyNet",
    "segtrain.mylab.parts.MyNet",
]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the package `mylab` is installed."""
    return own_package.installed(tmp_path_factory.mktemp("site"))


@pytest.fixture(params=["nobody", "mylab"])
def trusted(
    request: pytest.FixtureRequest, site: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Each attack is tried with nobody trusted, and with a researcher's package trusted."""
    monkeypatch.syspath_prepend(site)
    with trust.trusting([] if request.param == "nobody" else [request.param]):
        yield


def nested(node: NODE) -> list[NODE]:
    """The hostile node by itself and wherever a good node has room for it, or has none."""
    plain = {"id": 0, "name": node}
    return [
        node,
        {**node, "_partial_": True},
        {"_target_": GOOD, "model": node},
        {"_target_": GOOD, "model": {"_target_": GOOD, "model": node}},
        {"_target_": GOOD, "mode": node},
        {"_target_": GOOD, "window": [node, node]},
        {"_target_": GOOD, "unknown": node},
        {"_target_": GOOD, "_args_": [node]},
        {"_target_": FOLDER, "root": "r", "split": "s", "labels": [plain]},
        {"_target_": FOLDER, "root": "r", "split": "s", "labels": [node]},
        {"_target_": FOLDER, "root": "r", "split": "s", "labels": [{"a": [[{"b": node}]]}]},
        {"_target_": "segtrain.losses.pixel.PixelCrossEntropy", "weights": {"seg": node}},
        {"_target_": "segtrain.losses.pixel.PixelCrossEntropy", "weights": node},
        {"_target_": node},
    ]


def assert_refused(node: NODE, canary: str, place: str = "model") -> None:
    """`check` and `build` refuse with one line that begins with `place`, import nothing and touch
    nothing.
    """
    before = set(sys.modules)
    for attempt in (
        lambda: instantiate.check(node, "model"),
        lambda: instantiate.build(node, "model"),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert str(caught.value).startswith(place)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert set(sys.modules) == before
    assert not Path(canary).exists()


@pytest.mark.row("R7")
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_wherever_it_stands(name: str, places: Places, trusted: None) -> None:
    for node in nested({"_target_": name, **ATTACKS[name](places)}):
        assert_refused(node, places.canary)


@pytest.mark.parametrize(
    "target",
    [*NOT_PARTS, *THROUGH_A_TRUSTED_PACKAGE],
    ids=lambda target: re.sub(r" at 0x\w+", "", ascii(target))[:60],  # the same in every process
)
def test_what_is_no_part_is_refused_whatever_its_arguments(
    target: Any, places: Places, trusted: None
) -> None:
    for arguments in (
        {},
        {"_args_": [places.canary]},
        {"path": places.canary},
        {"root": places.canary},
    ):
        assert_refused({"_target_": target, **arguments}, places.canary, "model._target_: ")
    assert_refused(
        {"_target_": GOOD, "model": {"_target_": target}}, places.canary, "model.model._target_: "
    )


def test_a_function_of_a_trusted_package_makes_an_optimizer_or_a_schedule_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = own_package.installed(tmp_path / "site")
    with (site / "mylab" / "parts.py").open("a") as file:
        file.write("def wipe(path: str): ...\ndef sgd(model, lr: float): ...\n")
    monkeypatch.syspath_prepend(site)
    with trust.trusting(["mylab"]):
        sgd = {"_target_": "mylab.parts.sgd", "lr": 0.1}
        instantiate.check(sgd, "optimizer", given=("model",))
        wipe = {"_target_": "mylab.parts.wipe", "path": str(tmp_path)}
        with pytest.raises(UserError, match="cannot stand here, it takes no `model`"):
            instantiate.check(wipe, "optimizer", given=("model",))
        assert_refused(wipe, str(tmp_path / "canary"), "model._target_: mylab.parts defines no")


@pytest.mark.parametrize("key", KEYS)
def test_no_key_has_a_meaning_of_its_own(key: str, places: Places) -> None:
    for value in ([places.source], True, "all", {"_target_": "os.mkdir", "path": places.canary}):
        assert_refused({"_target_": GOOD, key: value}, places.canary)
        assert_refused(
            {"_target_": FOLDER, "root": "r", "split": "s", "labels": [{"_x_": value}]},
            places.canary,
        )


def test_values_that_are_not_plain_data_are_refused_and_not_called(places: Places) -> None:
    class Trap:
        def __call__(self, *_: Any) -> str:
            Path(places.canary).touch()
            return ""

        __str__ = __len__ = __iter__ = __bool__ = __call__  # type: ignore[assignment]
        __float__ = __index__ = __hash__ = __call__  # type: ignore[assignment]

    for value in (Trap(), [Trap()], {"seg": Trap()}, Trap, lambda: Path(places.canary).touch()):
        for key in ("mode", "window", "stride", "flip", "model"):
            assert_refused({"_target_": GOOD, key: value}, places.canary)
        assert_refused(
            {"_target_": FOLDER, "root": "r", "split": "s", "labels": [{"a": value}]}, places.canary
        )


def test_without_the_attack_the_nodes_around_it_are_good() -> None:
    model = {"_target_": MODEL, "num_classes": 2}
    instantiate.check({"_target_": GOOD, "model": {"_target_": GOOD, "model": model}}, "inference")
    labels = [{"id": 0, "name": "road", "a": [[{"b": 1}]]}]
    instantiate.check({"_target_": FOLDER, "root": "r", "split": "s", "labels": labels}, "dataset")
    instantiate.check(
        {"_target_": "segtrain.losses.pixel.PixelCrossEntropy", "weights": {"seg": 1.0}}, "loss"
    )


def naive(node: Any) -> Any:
    """What a builder without a guard does: import the longest prefix, walk the rest, build what is
    inside, call.
    """
    if isinstance(node, list):
        return [naive(value) for value in node]
    if not isinstance(node, dict) or "_target_" not in node:
        return node
    words = node["_target_"].split(".")
    for cut in range(len(words), 0, -1):
        with contextlib.suppress(ImportError):
            found = importlib.import_module(".".join(words[:cut]))
            break
    for word in words[cut:]:
        found = getattr(found, word)
    keywords = {key: naive(value) for key, value in node.items() if not key.startswith("_")}
    return found(*naive(node.get("_args_", [])), **keywords)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attacks_are_real(name: str, places: Places) -> None:
    # Both loaders complain about what they unpickled, and hub about the missing model: too late.
    with contextlib.suppress(
        RuntimeError, ValueError, OSError, EOFError, TypeError, AttributeError
    ):
        made = naive({"_target_": name, **ATTACKS[name](places)})
        if hasattr(made, "close"):
            made.close()
    assert Path(places.canary).exists()
