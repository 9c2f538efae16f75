"""What `segtrain --help` prints."""

from __future__ import annotations

from collections.abc import Sequence

from segtrain.commands.flags import split_flags
from segtrain.config.choice import own_folders
from segtrain.config.recipes import GROUP as RECIPE
from segtrain.config.schema import describe_schema
from segtrain.config.suggest import groups


def help_text(arguments: Sequence[str] = ()) -> str:
    """Return the help of `segtrain`, with the groups of trusted packages too.

    So are those of `--config-dir` and `hydra.searchpath` among the `arguments`. Errors: UserError.
    """
    flags, words = split_flags(arguments)
    folders = own_folders(words, flags.get("--config-dir", ()))
    listing = "\n".join(
        f"  {group + '=':<12} {', '.join(names)}"
        for group, names in groups(folders).items()
        if names and group != RECIPE
    )
    return f"""segtrain trains an image segmentation network.

  segtrain                                          small DeepLabv3+ on generated shapes
  segtrain model=deeplabv3plus dataset=camvid dataset.root=DIR
  segtrain -m model.backbone=resnet18,resnet34      one run per combination
  segtrain recipes [model=NAME] [dataset=NAME]      the published recipes; model and data set
                                                    choose theirs, recipe=null chooses none
  segtrain -m search=lr_wd hydra.sweeper.n_trials=30    search by Optuna (segtrain[search])
  segtrain find_lr [overrides]                      find a learning rate: a curve, and the value
  segtrain resume=RUN                               go on where RUN stopped
  segtrain extend=RUN train.steps=N                 train on where RUN stands, in its own folder
  segtrain replay=RUN/bad_step_N                    compute a step again that was not finite
  segtrain import=FILE dataset=voc                  make a run of published weights
  segtrain --cfg job [overrides]                    print the composed config
  segtrain --trust mylab model=mynet                also parts and configs of your own package,
                                                    which pip installed (or SEGTRAIN_TRUST=mylab)

Groups (choose one of each with group=name; change a value with group.key=value)
{listing}

Settings of every run
{describe_schema()}

The run folder (hydra.run.dir=...) holds config.yaml, train.log, metrics.jsonl, summary.json,
checkpoints/, tensorboard/ and samples/. Exit codes: 0 done, 2 mistake in the command, 65 bad data,
70 internal, diverged or stood still, 73 folder in use, 74 disk, 75 interrupted and resumable,
130 stopped before anything was saved."""
