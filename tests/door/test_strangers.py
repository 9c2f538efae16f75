"""A config of a stranger runs nothing, writes nowhere, and ends in one line.

`segtrain --config-dir STRANGER experiment=evil` is what a user types who tries somebody's configs.
Each attack comes as that experiment, through its defaults list, as an ablation, and as the primary
config (`--config-name evil`), in one run, in a sweep, and with two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from places import SECRET, TINY, Places, assert_one_line
from rows import amount
from warm import ROOT, Ended, Warm

BOMB_SECONDS = 1.0
BOMB_MEBIBYTES = 1024


@dataclass(frozen=True)
class Attack:
    """What a stranger's config says, and what the answer must name."""

    body: str | bytes
    words: tuple[str, ...] = ()
    files: dict[str, str | bytes] = field(default_factory=dict)  # beside it, in the same folder
    ways: tuple[str, ...] = ("experiment", "list", "sweep", "ablation")
    bomb: bool = False


def laughs(first: str, again: str, levels: int = 12) -> str:
    """A config of a few hundred bytes whose value has 10 ** `levels` parts."""
    lines = [f"  a0: &a0 {first}"]
    for level in range(1, levels):
        inside = again.replace("*", f"*a{level - 1}")
        lines.append(f"  a{level}: &a{level} {inside}")
    return "writer:\n" + "\n".join(lines) + "\n"


def lists_of_lists(levels: int) -> dict[str, str | bytes]:
    """Experiments of which each lists eight times the next."""
    files: dict[str, str | bytes] = {}
    for level in range(levels):
        places = "".join(f"  - b{level + 1}@writer.w{i}\n" for i in range(8))
        files[f"experiment/b{level}.yaml"] = f"defaults:\n{places}"
    files[f"experiment/b{levels}.yaml"] = "a: 1\n"
    return files


WRITES = "{_target_: os.mkdir, path: @CANARY@}"
HANDLER = """
version: 1
handlers:
  evil: {class: logging.FileHandler, filename: '@CANARY@'}
root: {handlers: [evil]}
"""
FACTORY = """
version: 1
handlers:
  evil: {(): pathlib.Path.touch, self: '@CANARY@'}
root: {handlers: [evil]}
"""
ONE = ("experiment", "list")
MANY = ("sweep", "ablation")
PLAIN = ("experiment", "sweep", "ablation")

# The name says what is tried; most name the key that the answer must name, too.
ATTACKS: dict[str, Attack] = {
    # Hydra's own nodes, which it builds before any task of ours is called
    "callbacks torch.load": Attack(
        "hydra: {callbacks: {x: {_target_: torch.load, f: '@WEAPONS@/weights.bin', "
        "weights_only: false}}}",
        ("hydra.callbacks",),
    ),
    "callbacks torch.hub": Attack(
        "hydra: {callbacks: {x: {_target_: torch.hub.load, repo_or_dir: '@WEAPONS@', model: x, "
        "source: local}}}",
        ("hydra.callbacks",),
    ),
    "callbacks copyfile": Attack(
        "hydra: {callbacks: {x: {_target_: shutil.copyfile, src: '@WEAPONS@/hubconf.py', "
        "dst: '@VICTIM@/precious.txt'}}}",
        ("hydra.callbacks",),
    ),
    "callbacks write_text": Attack(
        "hydra: {callbacks: {x: {_target_: pathlib.Path.write_text, _args_: [{_target_: "
        "pathlib.Path, _args_: ['@CANARY@']}, x]}}}",
        ("hydra.callbacks",),
    ),
    "callbacks numpy.load": Attack(
        "hydra: {callbacks: {x: {_target_: numpy.load, file: '@WEAPONS@/weights.bin', "
        "allow_pickle: true}}}",
        ("hydra.callbacks",),
    ),
    "callbacks of a group": Attack(
        "defaults: [{override /hydra/callbacks: [evil]}]",
        ("hydra",),
        {"hydra/callbacks/evil.yaml": f"x: {WRITES}"},
        PLAIN,
    ),
    "launcher node": Attack(f"hydra: {{launcher: {WRITES}}}", ("hydra.launcher",)),
    "launcher of a group": Attack(
        "defaults: [{override /hydra/launcher: evil}]",
        ("hydra",),
        {"hydra/launcher/evil.yaml": WRITES},
        PLAIN,
    ),
    "launcher arguments": Attack("hydra: {launcher: {n_jobs: 99}}", ("hydra.launcher",)),
    "sweeper node": Attack(f"hydra: {{sweeper: {WRITES}}}", ("hydra.sweeper",)),
    "sweeper of a group": Attack(
        "defaults: [{override /hydra/sweeper: evil}]",
        ("hydra",),
        {"hydra/sweeper/evil.yaml": WRITES},
        PLAIN,
    ),
    "job_logging of a group": Attack(
        "defaults: [{override /hydra/job_logging: evil}]",
        ("hydra",),
        {"hydra/job_logging/evil.yaml": HANDLER},
        PLAIN,
    ),
    "hydra_logging of a group": Attack(
        "defaults: [{override /hydra/hydra_logging: evil}]",
        ("hydra",),
        {"hydra/hydra_logging/evil.yaml": FACTORY},
        PLAIN,
    ),
    "job_logging handler": Attack(
        "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: '@CANARY@'}}, "
        "root: {handlers: [x]}}}",
        ("hydra.job_logging",),
    ),
    "hydra_logging factory": Attack(
        "hydra: {hydra_logging: {handlers: {x: {(): pathlib.Path.touch, self: '@CANARY@'}}, "
        "root: {handlers: [x]}}}",
        ("hydra.hydra_logging",),
    ),
    "help template": Attack("hydra: {help: {template: evil}}", ("hydra.help",)),
    # The environment and the folder of a job
    "env_set PYTHONPATH": Attack(
        "hydra: {job: {env_set: {PYTHONPATH: '@WEAPONS@'}}}", ("hydra.job.env_set",)
    ),
    "env_set trust": Attack("hydra: {job: {env_set: {SEGTRAIN_TRUST: mylab}}}", ("env_set",)),
    "env_copy": Attack("hydra: {job: {env_copy: [SECRET]}}", ("hydra.job.env",)),
    "chdir": Attack("hydra: {job: {chdir: true}}", ("hydra.job.chdir",)),
    "job name": Attack("hydra: {job: {name: '../../victim/x'}}", ("hydra.job.name",)),
    "output_subdir": Attack("hydra: {output_subdir: ../../victim}", ("hydra.output_subdir",)),
    "mode": Attack("hydra: {mode: MULTIRUN}", ("hydra.mode",)),
    # More folders to read configs from
    "searchpath file": Attack(
        "hydra: {searchpath: ['file://@WEAPONS@/conf']}", ("searchpath",), ways=("experiment",)
    ),
    "searchpath package": Attack(
        "hydra: {searchpath: ['pkg://os']}", ("searchpath",), ways=("experiment", "sweep")
    ),
    # Where a run is written
    "run.dir with ..": Attack("hydra: {run: {dir: outputs/../../victim}}", ("run.dir",), ways=ONE),
    "run.dir in the victim": Attack("hydra: {run: {dir: ../victim}}", ("run.dir", ".."), ways=ONE),
    "run.dir with a newline": Attack('hydra: {run: {dir: "a\\nb"}}', ("run.dir",), ways=ONE),
    "run.dir with an escape": Attack('hydra: {run: {dir: "a\\e[31mb"}}', ("run.dir",), ways=ONE),
    "sweep.dir with ..": Attack("hydra: {sweep: {dir: ../victim}}", ("sweep.dir", ".."), ways=MANY),
    "sweep.dir with an escape": Attack(
        'hydra: {sweep: {dir: "a\\e]0;x\\ab"}}', ("sweep.dir",), ways=MANY
    ),
    "sweep.subdir with ..": Attack(
        "hydra: {sweep: {subdir: ../../victim/x}}", ("subdir", ".."), ways=MANY
    ),
    "sweep.subdir with a newline": Attack(
        'hydra: {sweep: {subdir: "a\\nb"}}', ("subdir",), ways=MANY
    ),
    "eval.output with ..": Attack("eval: {output: ../victim}", ("eval.output", "..")),
    "eval.submission with ..": Attack("eval: {submission: ../victim/x}", ("eval.submission", "..")),
    "cache with ..": Attack(
        "defaults: [{override /dataset: folder}]\ndataset: {cache: ../victim}",
        ("dataset.cache", ".."),
        ways=("experiment", "sweep"),
    ),
    # Keys that a sweep smuggles in
    "swept launcher": Attack(
        "hydra: {sweeper: {params: {hydra.launcher._target_: 'os.mkdir,os.rmdir'}}}",
        ("hydra.launcher",),
        ways=MANY,
    ),
    "swept group of hydra": Attack(
        "hydra: {sweeper: {params: {hydra/launcher: 'basic,joblib'}}}", ("hydra",), ways=MANY
    ),
    "swept callbacks": Attack(
        "hydra: {sweeper: {params: {+hydra.callbacks.x._target_: 'os.mkdir'}}}",
        ("hydra",),
        ways=MANY,
    ),
    "swept env_set": Attack(
        "hydra: {sweeper: {params: {+hydra.job.env_set.PYTHONPATH: '@WEAPONS@'}}}",
        ("hydra.job.env_set",),
        ways=MANY,
    ),
    "swept folder": Attack(
        "hydra: {sweeper: {params: {hydra.sweep.dir: '../victim'}}}",
        ("hydra.sweep.dir",),
        ways=MANY,
    ),
    "swept target": Attack(
        "hydra: {sweeper: {params: {model._target_: 'os.mkdir,os.rmdir'}}}",
        ("model._target_",),
        ways=MANY,
    ),
    "swept search path": Attack(
        "hydra: {sweeper: {params: {hydra.searchpath: '[pkg://os]'}}}", ("hydra",), ways=MANY
    ),
    "swept removal": Attack("hydra: {sweeper: {params: {'~model': ''}}}", ("model",), ways=MANY),
    # The same through the package of a file: the body begins with a header of its own
    "package of callbacks": Attack(
        f"# @package hydra.callbacks\nx: {WRITES}\n", ("hydra",), ways=PLAIN
    ),
    "package of the environment": Attack(
        "# @package hydra.job.env_set\nPYTHONPATH: '@WEAPONS@'\n",
        ("hydra.job.env_set",),
        ways=PLAIN,
    ),
    "package in a defaults list": Attack(
        "defaults: [inner@hydra.callbacks.x]",
        ("hydra",),
        {"experiment/inner.yaml": WRITES},
        ("experiment", "sweep"),
    ),
    "package of a global node": Attack(
        "defaults: [inner@_global_.hydra.job]",
        ("hydra.job",),
        {"experiment/inner.yaml": "env_set: {PYTHONPATH: '@WEAPONS@'}"},
        ("experiment", "sweep"),
    ),
    "package of a part": Attack(
        "defaults: [{override /schedule: evil}]",
        ("hydra",),
        {"schedule/evil.yaml": f"# @package hydra\ncallbacks: {{x: {WRITES}}}\n"},
        ("experiment", "sweep"),
    ),
    "primary config": Attack(
        "defaults: [/hydra/config@hydra]",
        ("hydra",),
        {"hydra/config.yaml": f"callbacks: {{x: {WRITES}}}"},
        ("experiment", "sweep"),
    ),
    # Parts that are none
    "target os.system": Attack(
        "model: {_target_: os.system, command: 'touch @CANARY@'}", ("model._target_",)
    ),
    "target of a writer": Attack(
        "writer: {x: {_target_: logging.FileHandler, filename: '@CANARY@'}}", ("writer",)
    ),
    "target of a data set": Attack(
        "dataset: {_target_: shutil.copyfile, src: '@VICTIM@/precious.txt', dst: '@CANARY@'}",
        ("dataset",),
    ),
    "target inside an argument": Attack(
        "model: {backbone: {_target_: torch.hub.load, repo_or_dir: '@WEAPONS@', model: x, "
        "source: local}}",
        ("model.backbone",),
    ),
    "target of a package": Attack("model: {_target_: mylab.parts.Net}", ("model._target_",)),
    # Resolvers and interpolations
    "resolver unknown": Attack("train: {init: '${system:id}'}", ("system",)),
    "resolver decode": Attack("train: {ema: '${oc.decode:${oc.env:HOME}}'}", ("train.ema",)),
    "interpolation bomb": Attack(
        "writer:\n  a0: xxxxxxxxxx\n"
        + "".join(f"  a{i}: {f'${{writer.a{i - 1}}}' * 10}\n" for i in range(1, 10)),
        ("writer",),
        bomb=True,
    ),
    "interpolation circle": Attack(
        "writer: {a: '${writer.b}', b: '${writer.a}'}", ("writer",), bomb=True
    ),
    "interpolation depth": Attack(
        f"train: {{init: '{'${' * 3000}train.seed{'}' * 3000}'}}", bomb=True
    ),
    # YAML itself
    "billion laughs": Attack(
        laughs("[x,x,x,x,x,x,x,x,x,x]", "[*,*,*,*,*,*,*,*,*,*]"), ("evil",), bomb=True
    ),
    "billion keys": Attack(
        laughs("{a: x, b: x}", "{a: *, b: *, c: *, d: *, e: *}"), ("evil",), bomb=True
    ),
    "merged keys": Attack(
        laughs("{a: x, b: x}", "{<<: [*,*,*,*,*,*,*,*,*,*]}"), ("evil",), bomb=True
    ),
    "alias of itself": Attack("writer: &a {x: *a}", ("evil",), bomb=True),
    "deep lists": Attack("writer: " + "[" * 20000 + "]" * 20000, ("evil",), bomb=True),
    "deep mappings": Attack("writer: " + "{a: " * 5000 + "1" + "}" * 5000, ("evil",), bomb=True),
    "deep indentation": Attack(
        "\n".join(f"{' ' * i}a:" for i in range(2000)), ("evil",), bomb=True
    ),
    "huge file": Attack(b"# nothing\n" * 3_000_000, ("evil",), bomb=True),
    "huge list": Attack("writer: [" + "1," * 2_000_000 + "1]", ("evil",), bomb=True),
    "huge number": Attack("train: {steps: " + "9" * 50_000 + "}", bomb=True),
    "defaults of defaults": Attack("defaults: [b0]", files=lists_of_lists(7), bomb=True),
    "defaults in a circle": Attack("defaults: [evil]", bomb=True, ways=("experiment",)),
    "sweep of a billion": Attack(
        "hydra: {sweeper: {params: {train.seed: 'range(0,1000000000)'}}}",
        ("train.seed",),
        ways=MANY,
        bomb=True,
    ),
    "sweep of ten to the nine": Attack(
        "hydra: {sweeper: {params: {"
        + ", ".join(f"train.{k}: '1,2,3,4,5,6,7,8,9,10'" for k in ("seed", "steps", "keep"))
        + ", "
        + ", ".join(f"eval.{k}: '1,2,3,4,5,6,7,8,9,10'" for k in ("worst", "processes"))
        + ", "
        + ", ".join(f"log.{k}: '1,2,3,4,5,6,7,8,9,10'" for k in ("every", "images"))
        + "}}}",
        ways=MANY,
        bomb=True,
    ),
    "python tag": Attack("model: !!python/object/apply:os.system ['touch @CANARY@']", ("evil",)),
    "python name": Attack("model: !!python/name:os.system", ("evil",)),
    "unknown tag": Attack("model: !evil {a: 1}", ("evil",)),
    "a key twice": Attack("train: {seed: 1}\ntrain: {seed: 2}", ("evil",)),
    "a list": Attack("- train\n- model\n", ("evil",)),
    "a word": Attack("evil\n", ("evil",)),
    "a number as a key": Attack("train: {1: 2}", ("train",)),
    "binary": Attack(bytes(range(256)) * 20, ("evil",)),
    "latin-1": Attack(b"train: {init: gr\xfc\xdfe}", ("evil",)),
    "unknown key": Attack("train: {stepps: 3}", ("train.stepps",)),
    "unknown group": Attack("hydro: {run: {dir: x}}", ("hydro",)),
    "a key with an escape": Attack('"a\\e[31m": 1', ()),
    "a value with an escape": Attack('eval: {weights: "fp\\e[31m\\n8"}', ("eval.weights",)),
}

HEADER = "# @package _global_\n"


def typed(places: Places, attack: Attack, way: str) -> list[str]:
    """Write the stranger's files, and return what the user types to try them."""
    body = attack.body
    if way.startswith("primary"):
        return typed_as_primary(places, attack, way)
    if isinstance(body, str) and not body.startswith("# @package"):
        body = f"{HEADER}{body}"
    group = "ablation" if way == "ablation" else "experiment"
    files = {f"{group}/evil.yaml": body}
    if way == "list":
        files["experiment/harmless.yaml"] = f"{HEADER}defaults: [evil]\n"
    places.write({**attack.files, **files})
    chosen = {
        "experiment": ["experiment=evil"],
        "list": ["experiment=harmless", "train.processes=2"],
        "sweep": ["experiment=evil", "train.patience=5,6"],
        "ablation": ["ablation=evil", "train.processes=2"],
    }[way]
    flags = ["-m"] if way in MANY else []
    return [*flags, "--config-dir", str(places.stranger), *TINY, *chosen]


def typed_as_primary(places: Places, attack: Attack, way: str) -> list[str]:
    """The same where the stranger's file stands in place of conf/train.yaml."""
    body = attack.body
    if isinstance(body, str) and body.startswith("defaults: ["):
        body = body.replace("defaults: [", "defaults: [train, ", 1)
    elif isinstance(body, str) and not body.startswith(("# @package", "- ")) and ":" in body:
        body = f"defaults: [train, _self_]\n{body}"
    beside = {name.removeprefix("experiment/"): text for name, text in attack.files.items()}
    places.write({**beside, "evil.yaml": body})
    words = ["-m", "train.patience=5,6"] if way == "primary sweep" else []
    return ["--config-dir", str(places.stranger), "--config-name", "evil", *TINY, *words]


def assert_harmless(places: Places, before: dict[str, str]) -> None:
    """Nothing ran, and nothing was written, changed or removed anywhere."""
    assert not places.canary.exists()
    assert places.look() == before


def assert_refused(warm: Warm, places: Places, attack: Attack, way: str) -> None:
    arguments = typed(places, attack, way)
    before = places.look()
    ended = warm("segtrain", *arguments, cwd=places.work, env=places.env, timeout=10)
    assert_one_line(ended, "segtrain", 2, *attack.words)
    assert SECRET not in ended.out + ended.err
    assert_harmless(places, before)
    if attack.bomb:
        assert ended.seconds < BOMB_SECONDS
        assert ended.mebibytes < BOMB_MEBIBYTES


QUICK = (
    ("callbacks torch.load", "sweep"),
    ("billion laughs", "experiment"),
    ("env_set PYTHONPATH", "primary"),
    ("searchpath file", "primary"),
)
PRIMARY = {"experiment": "primary", "sweep": "primary sweep"}
CASES = [(name, way) for name, attack in ATTACKS.items() for way in attack.ways]
CASES += [(name, PRIMARY[way]) for name, way in CASES if way in PRIMARY]
OTHERS = [case for case in CASES if case not in QUICK]


def test_there_are_sixty_attacks() -> None:
    assert len(ATTACKS) >= 60


@pytest.mark.row("R7")
@pytest.mark.parametrize(("name", "way"), QUICK)
def test_what_a_stranger_tries_is_refused(
    settings: Warm, places: Places, name: str, way: str
) -> None:
    assert_refused(settings, places, ATTACKS[name], way)


@pytest.mark.row("R7")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), amount(OTHERS, OTHERS[::4], OTHERS))
def test_whatever_a_stranger_tries_is_refused(
    settings: Warm, places: Places, name: str, way: str
) -> None:
    assert_refused(settings, places, ATTACKS[name], way)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["experiment", "ablation"])
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
def test_a_config_that_is_no_file_is_refused(
    settings: Warm, places: Places, kind: str, way: str
) -> None:
    arguments = typed(places, Attack(""), way)
    path = next(places.stranger.glob("*/evil.yaml"))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
    before = places.look()
    ended = settings("segtrain", *arguments, cwd=places.work, env=places.env, timeout=10)
    assert_one_line(ended, "segtrain", 2, "evil")
    assert_harmless(places, before)
    assert ended.seconds < BOMB_SECONDS


# ---------------------------------------------------------------------- configs of our names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic", "joblib", "submitit_local"])
def test_a_stranger_gives_no_launcher(training: Warm, places: Places, name: str) -> None:
    """One of this name in a stranger's folder is not the one that a user asks for."""
    places.write({f"hydra/launcher/{name}.yaml": WRITES})
    before = places.look()
    asked = ["-m", "--config-dir", str(places.stranger), *TINY, "train.patience=5,6"]
    ended = training("segtrain", *asked, f"hydra/launcher={name}", cwd=places.work, env=places.env)
    assert ended.code in (0, 2), ended
    assert "Traceback" not in ended.err
    after = places.look()
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("work/outputs") for name in after.keys() - before)


REAL = (
    ("callbacks torch.load", "sweep"),
    ("callbacks write_text", "ablation"),
    ("env_set PYTHONPATH", "sweep"),
    ("hydra_logging of a group", "sweep"),
    ("launcher of a group", "ablation"),
    ("target os.system", "list"),
    ("billion laughs", "experiment"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), REAL)
def test_a_process_of_its_own_refuses_the_same(places: Places, name: str, way: str) -> None:
    """The other tests fork a warm interpreter; nothing of that may be what keeps a user safe."""
    arguments = typed(places, ATTACKS[name], way)
    before = places.look()
    ended = subprocess.run(
        [sys.executable, "-m", "segtrain", *arguments],
        cwd=places.work,
        env={**os.environ, **places.env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = Ended(ended.returncode, ended.stdout, ended.stderr, 0.0, 0.0)
    assert_one_line(told, "segtrain", 2, *ATTACKS[name].words)
    assert_harmless(places, before)


# What Hydra writes itself, and nobody reads from a file.
NOT_READ = {
    "runtime output_dir": "hydra: {runtime: {output_dir: '@VICTIM@', cwd: '@VICTIM@'}}",
    "override_dirname": "hydra: {job: {override_dirname: ../../victim/x, num: 7}}",
    "overrides": "hydra: {overrides: {task: [model=fcn]}}",
}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["experiment", "sweep", "ablation"])
@pytest.mark.parametrize("name", NOT_READ)
def test_what_hydra_writes_itself_is_not_read_from_a_file(
    training: Warm, places: Places, name: str, way: str
) -> None:
    arguments = typed(places, Attack(NOT_READ[name]), way)
    before = places.look()
    ended = training("segtrain", *arguments, cwd=places.work, env=places.env)
    assert ended.code == 0 or ended.err.count("\n") == 1, ended
    assert ended.code in (0, 2), ended
    after = places.look()
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("work/outputs") for name in after.keys() - before)


SHADOWS = {
    "hydra/launcher/basic.yaml": WRITES,
    "hydra/sweeper/basic.yaml": WRITES,
    "hydra/job_logging/default.yaml": HANDLER,
    "hydra/hydra_logging/default.yaml": HANDLER,
    "hydra/config.yaml": f"callbacks: {{x: {WRITES}}}",
    "hydra/output/default.yaml": "dir: '@VICTIM@'",
    "hydra/env/default.yaml": "PYTHONPATH: '@WEAPONS@'",
    "schema.yaml": "train: {steps: 77}",
    "train.yaml": "train: {steps: 77}",
    "model/unet_32.yaml": f"{HEADER}model: {{_target_: os.mkdir, path: '@CANARY@'}}",
    "dataset/shapes.yaml": "_target_: os.getcwd",
    "optimizer/sgd.yaml": "_target_: os.getcwd",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHADOWS)
def test_a_config_that_has_the_name_of_one_of_ours_changes_nothing(
    settings: Warm, places: Places, name: str
) -> None:
    """It is refused, or ours is used: then the second job is refused for its own mistake."""
    places.write({name: SHADOWS[name]})
    before = places.look()
    words = [*TINY, "--config-dir", str(places.stranger)]
    asked = {
        "run": [*words, "train.precision=fp8"],
        "sweep": ["-m", *words, "train.precision=fp8,fp9"],
    }
    for arguments in asked.values():
        ended = settings("segtrain", *arguments, cwd=places.work, env=places.env)
        assert_one_line(ended, "segtrain", 2)
        assert_harmless(places, before)
    plain = settings("segtrain", "--cfg", "job", *TINY, cwd=places.work, env=places.env)
    assert plain.code == 0, plain
    asked = ("--cfg", "job", *words)
    shown = settings("segtrain", *asked, cwd=places.work, env=places.env)
    assert shown.code == 2 or shown.out == plain.out, shown
    assert_harmless(places, before)


@pytest.mark.slow
def test_the_attacks_are_real(places: Places) -> None:
    """What the weapons do where nobody looks: without it the canary would prove nothing."""
    for path in ("weights.bin", "sitecustomize.py"):
        places.canary.unlink(missing_ok=True)
        code = {
            "weights.bin": f"import numpy; numpy.load({str(places.weapons / path)!r}, None, True)",
            "sitecustomize.py": "",
        }[path]
        run_python(code, places)
        assert places.canary.exists()


def run_python(code: str, places: Places) -> None:
    """A Python of its own with the weapons on its path."""
    env = {**os.environ, "PYTHONPATH": str(places.weapons)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, cwd=places.work)
