"""A study goes on where it was, whatever ended it, and knows what its trials came to.

Members of the kind: a kill between two lines of its file and inside of one, and between the values
of a trial; another search in the folder, another process; a file that is damaged, a link, or of a
stranger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from segtrain.commands.study import FILE, Study, opened
from segtrain.config.choice import sort_out
from segtrain.config.search import Search, SearchSettings
from segtrain.config.settings import read
from segtrain.config.space import Numbers, Texts
from segtrain.errors import DiskError, LockedError, UserError

pytest.importorskip("optuna", reason="needs the extra `search`")
SPACE = {"optimizer.lr": Numbers(1e-4, 1e-1, log=True), "model": Texts(["unet", "fcn"])}


def search(folder: Path, trials: int = 6, **settings: object) -> Search:
    """A search of which no run is trained."""
    typed = {"optimizer.lr": "tag(log,interval(1e-4,1e-1))", "model": "unet,fcn"}
    swept = {key: read(f"{key}={text}") for key, text in typed.items()}
    conf = SearchSettings(n_trials=trials)._replace(**settings)
    fixed = ["train.steps=5", "dataset.root=a"]
    return Search(dict(SPACE), swept, fixed, [], sort_out([]), folder, conf, None, "mIoU")


def score(texts: Mapping[str, str]) -> float:
    """What a made-up run comes to: best near 0.01, and with unet."""
    return -abs(math.log10(float(texts["optimizer.lr"])) + 2) - (texts["model"] == "fcn")


def made(study: Study, count: int) -> list[dict[str, str]]:
    """Make so many trials, one after the other; return their values."""
    tried = []
    for _ in range(count):
        trial = study.next()
        assert trial is not None
        study.tell(trial.number, score(trial.texts))
        tried.append(trial.texts)
    return tried


def test_a_study_that_was_stopped_makes_the_trials_that_it_would_have_made(tmp_path: Path) -> None:
    with opened(
        search(tmp_path / "whole", 16)
    ) as study:  # more than the ten that TPE draws blindly
        whole = made(study, 16)
        assert study.next() is None
        best = study.best
    with opened(search(tmp_path / "torn", 16)) as study:
        torn = made(study, 5)
        left = study.next()  # running when the process is killed
        assert left is not None
    with opened(search(tmp_path / "torn", 16)) as study:
        assert study.left == 11
        assert study.counts == {"with a value": 5, "failed": 0, "pruned": 0, "open": 1}
        torn += made(study, 11)
        assert torn == whole
        assert study.best == best
        assert study.left == 0
    assert torn[5] == left.texts
    assert best is not None
    assert best.value == max(score(texts) for texts in whole)
    assert whole[best.number] == best.texts
    with opened(search(tmp_path / "torn", 18)) as study:
        assert study.left == 2  # more trials of the same study


@pytest.mark.parametrize("cut", [1, 40, 130])
def test_a_kill_inside_a_line_loses_that_line_alone(cut: int, tmp_path: Path) -> None:
    with opened(search(tmp_path)) as study:
        tried = made(study, 2)
        third = study.next()
        assert third is not None
    file = tmp_path / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])  # of the values of the third trial, and none of the second
    with opened(search(tmp_path)) as study:
        assert study.counts == {"with a value": 2, "failed": 0, "pruned": 0, "open": 1}
        again = study.next()
        assert again is not None
        assert (again.number, again.texts) == (2, third.texts)  # drawn anew where it was lost
        assert [told.texts for told in study.told] == tried
    assert all(isinstance(json.loads(line), dict) for line in file.read_text().splitlines())


def test_failed_trials_are_the_worst_whichever_way_is_up(tmp_path: Path) -> None:
    for minimised in (False, True):
        asked = replace(search(tmp_path / str(minimised)), minimised=minimised)
        with opened(asked) as study:
            for value, why in ((0.5, ""), (math.nan, ""), (0.7, ""), (9.9 - 19 * minimised, "no")):
                trial = study.next()
                assert trial is not None
                study.tell(trial.number, value, why)
            assert study.best is not None
            assert study.best.value == (0.5 if minimised else 0.7)
            worst = math.inf if minimised else -math.inf
            assert [told.value for told in study.told] == [0.5, worst, 0.7, worst]
            assert [told.why for told in study.told] == ["", "its value is NaN", "", "no"]
            assert study.counts == {"with a value": 2, "failed": 2, "pruned": 0, "open": 0}
            assert study.failure == "its value is NaN"


def test_of_equal_trials_the_first_is_best_and_values_are_known_again(tmp_path: Path) -> None:
    with opened(search(tmp_path)) as study:
        assert study.best is None
        first = study.next()
        assert first is not None
        study.tell(first.number, 0.5)
        second = study.next()
        assert second is not None
        study.tell(second.number, 0.5)
        assert study.best is not None
        assert study.best.number == 0
        known = study.known(second.texts)
        assert known is not None
        assert (known.number, known.value) == (1, 0.5)
        assert study.known({**second.texts, "optimizer.lr": "0.5"}) is None


def test_median_pruning_stops_what_is_below_the_median_of_five_trials(tmp_path: Path) -> None:
    with opened(search(tmp_path, 9, pruner="median")) as study:
        for value in (0.1, 0.2, 0.3, 0.4, 0.5):
            trial = study.next()
            assert trial is not None
            assert not study.report(trial.number, 10, value)
            study.tell(trial.number, value)
        worse = study.next()
        better = study.next()
        assert worse is not None
        assert better is not None
        assert study.report(worse.number, 10, 0.29)  # the median is 0.3
        assert not study.report(better.number, 10, 0.31)
        study.tell_pruned(worse.number)
        assert study.counts == {"with a value": 5, "failed": 0, "pruned": 1, "open": 1}
        assert study.best is not None
        assert study.best.value == 0.5
    with opened(search(tmp_path, 9, pruner="median")) as study:
        again = study.next()
        assert again is not None
        assert (again.number, again.known) == (better.number, {10: 0.31})


def test_another_search_in_the_folder_is_refused_and_another_place_of_the_data_is_not(
    tmp_path: Path,
) -> None:
    with opened(search(tmp_path)):
        pass
    moved = replace(search(tmp_path), fixed=["train.steps=5", "dataset.root=b"])
    with opened(moved):
        pass
    other = replace(search(tmp_path), fixed=["train.steps=6", "dataset.root=a"])
    with (
        pytest.raises(UserError, match=r"holds another search \(train.steps=5 there\)"),
        opened(other),
    ):
        pass
    mine = search(tmp_path).choice.primary._replace(name="mine", bodies=({},))
    named = replace(search(tmp_path), choice=search(tmp_path).choice._replace(primary=mine))
    with pytest.raises(UserError, match=r"\(--config-name=not set there\)"), opened(named):
        pass
    with (
        pytest.raises(UserError, match=r"\(monitor=mIoU there\)"),
        opened(replace(search(tmp_path), monitor="loss")),
    ):
        pass


def test_another_space_is_another_search_and_no_damaged_file(tmp_path: Path) -> None:
    with opened(search(tmp_path)) as study:
        made(study, 1)
    key = "optimizer.lr"
    swept = {**search(tmp_path).swept, key: read(f"{key}=interval(5,6)")}
    other = replace(search(tmp_path), swept=swept, space={key: Numbers(5.0, 6.0)})
    with (
        pytest.raises(UserError, match=r"holds another search \(optimizer\.lr=.* there\)"),
        opened(other),
    ):
        pass


def test_the_sampler_that_learns_takes_failed_trials_too(tmp_path: Path) -> None:
    with opened(search(tmp_path, 16)) as study:
        for number in range(16):
            trial = study.next()
            assert trial is not None
            study.tell(trial.number, 0.1 * number, "diverged" if number % 5 == 0 else "")
        assert study.counts == {"with a value": 12, "failed": 4, "pruned": 0, "open": 0}


def test_a_full_disk_leaves_whole_lines_and_one_line_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with opened(search(tmp_path)) as study:
        made(study, 1)
        before = (tmp_path / FILE).read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            with pytest.raises(DiskError, match=f"{FILE}: cannot be written"):
                study.next()
        assert (tmp_path / FILE).read_bytes() == before
    with opened(search(tmp_path)) as study:
        made(study, 5)
        assert study.left == 0


def test_two_processes_do_not_share_a_study(tmp_path: Path) -> None:
    with opened(search(tmp_path)), pytest.raises(LockedError), opened(search(tmp_path)):
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"nothing\n",
        b"[]\n",
        b'{"op_code":99}\n',
        b'{"op_code":0,"worker_id":"x","study_name":"segtrain","directions":[7]}\n',
        b"\x80\x04cos\nsystem\n",
    ],
)
def test_a_damaged_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match="no study that can be read"), opened(search(tmp_path)):
        pass


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        (r"\"unet\"", r"\"os.system\""),
        ('"param_name":"optimizer.lr"', '"param_name":"optimizer.other"'),
        ('"param_value_internal":0.0', '"param_value_internal":9.0'),
    ],
)
def test_values_that_a_search_would_not_draw_are_no_study_of_it(
    there: str, instead: str, tmp_path: Path
) -> None:
    with opened(search(tmp_path)) as study:
        made(study, 4)
    content = (tmp_path / FILE).read_text()
    assert there in content
    (tmp_path / FILE).write_text(content.replace(there, instead))
    with pytest.raises(UserError, match="no study that can be read"), opened(search(tmp_path)):
        pass


def test_a_link_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / FILE).symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="is no file of ours"), opened(search(tmp_path)):
        pass
    assert (tmp_path / "other").read_text() == "mine"


def test_without_optuna_a_search_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'segtrain\[search\]'"):
        opened(search(tmp_path)).__enter__()
