"""docs/weights.md: a section for each system, whose commands are understood."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segtrain.config.compose import check, compose_config, with_overrides

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "weights.md").read_text()
CONF = ROOT / "conf"
# Heading -> the model that its files are, for the settings that a command types.
SYSTEMS = {
    "FCN": "fcn",
    "ParseNet": "parsenet",
    "DeconvNet": "deconvnet",
    "U-Net": "unet_paper",
    "FPN mask proposals": "fpn",
    "PSPNet": "pspnet",
    "Mask R-CNN": "mask_rcnn",
    "DeepLab v2": "deeplab",
    "DeepLabv3": "deeplabv3",
    "DeepLabv3+": "deeplabv3plus_xception65",
    "PANet": "panet",
    "EncNet": "encnet",
}


def sections() -> dict[str, str]:
    """Heading -> what stands below it."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line.split() for block in blocks for line in block.splitlines()]


def test_every_system_has_a_file_but_the_one_that_nobody_published() -> None:
    found = sections()
    assert list(SYSTEMS) == [name for name in found if name in SYSTEMS]
    without = [name for name in SYSTEMS if not commands(found[name])]
    assert without == ["FPN mask proposals"]
    assert "No published weights are known" in found["FPN mask proposals"]


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "FPN mask proposals"])
def test_the_commands_of_a_system_are_understood(system: str) -> None:
    typed = commands(sections()[system])
    made = set()
    for program, source, *words in typed:
        key, _, path = source.partition("=")
        if program == "segtrain":
            assert key == "import"
            (run,) = (word.partition("=")[2] for word in words if word.startswith("hydra.run.dir="))
            made.add(run)
            cfg, _ = compose_config([f"model={SYSTEMS[system]}", *words])
            imported = check(cfg)
        else:
            assert (program, key) == ("segeval", "checkpoint")
            assert path in made  # what the line before has imported
            with_overrides(imported, words)
    assert {program for program, *_ in typed} == {"segtrain", "segeval"}


def test_the_files_that_recipes_start_from_stand_on_the_page() -> None:
    """A header names FILE and the page, as in `FILE: semseg's resnet50_v2.pth, docs/weights.md`."""
    named = set()
    for path in [*CONF.glob("experiment/*.yaml"), *CONF.glob("ablation/*.yaml")]:
        header = re.sub(r"\n#\s*", " ", path.read_text())
        files = re.findall(r"(\S+), docs/weights\.md", header)
        assert bool(files) or "model.weights=FILE" not in header or "+ COCO" in header, path
        named |= set(files)
    assert len(named) >= 7
    assert [file for file in sorted(named) if f"`{file}`" not in PAGE] == []
