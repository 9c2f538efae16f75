"""What `--help` of the commands prints. No torch here."""

from __future__ import annotations

SEGEVAL = """segeval measures a checkpoint, or label maps that another program wrote.

  segeval checkpoint=RUN_OR_FILE                             on the validation split it was trained with
  segeval checkpoint=RUN dataset.split=test eval.scales=[0.5,1,1.5] eval.flip=true
  segeval checkpoint=RUN inference=slide                     windows instead of whole images
  segeval predictions=DIR dataset=camvid dataset.root=DIR    DIR/<id>.png holds the data set's own class ids

Leaves metrics.json, table.txt, confusion.json (rows: truth, pixels), confusion.png and the worst images in eval/ of the run
folder (eval.output=DIR)."""

SEGPREDICT = """segpredict writes a label map (palette PNG) and an overlay with a legend for every image.

  segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR [eval.flip=true inference=slide ...]"""

SEGDATA = """segdata looks at a data set before a GPU is used.

  segdata verify dataset=camvid dataset.root=DIR             opens every file, checks sizes and labels, counts classes
  segdata browse dataset=camvid dataset.root=DIR output=browse.png      samples before and after augmentation"""

SEGREPORT = """segreport puts runs side by side: report.html, report.md, report.csv, and a table on screen.

  segreport RUN_OR_SWEEP ... [output=DIR]"""
