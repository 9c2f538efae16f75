"""What `--help` of the commands prints. No torch here."""

from __future__ import annotations

SEGEVAL = """segeval measures a checkpoint, or what another program predicted.

  segeval checkpoint=RUN_OR_FILE                             on the validation split it was trained with
  segeval checkpoint=RUN dataset.split=test eval.scales=[0.5,1,1.5] eval.flip=true
  segeval checkpoint=RUN inference=slide                     windows instead of whole images
  segeval checkpoint=RUN eval.submission=DIR                 also what the benchmark's server takes, checked
  segeval predictions=DIR dataset=camvid dataset.root=DIR    DIR/<id>.png holds the data set's own class ids
                                                             (eval.prediction_ids=train: train ids)
  segeval predictions=RESULTS.json dataset=coco_json dataset.annotations=FILE.json

Leaves metrics.json, table.txt and, for label maps, confusion.json (rows: truth, pixels), confusion.png and the worst images in
eval/ of the run folder (eval.output=DIR)."""

SEGPREDICT = """segpredict writes a label map (palette PNG) or instances (COCO results JSON), and an overlay, for every image.

  segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR [eval.flip=true inference=slide ...]
  segpredict checkpoint=RUN input=DIR output=DIR eval.submission=DIR      also what the benchmark's server takes"""

SEGDATA = """segdata looks at a data set before a GPU is used.

  segdata verify dataset=camvid dataset.root=DIR             opens every file, checks lists, sizes, labels and boxes
  segdata stats dataset=camvid dataset.root=DIR              pixels, images and objects per class, class weights
  segdata browse dataset=camvid dataset.root=DIR output=browse.png      samples before and after augmentation (or .html)
  segdata prepare dataset=voc dataset.root=DIR               downloads what may be downloaded, else says what to fetch
  segdata prepare dataset=cityscapes dataset.root=DIR dataset.cache=DIR     a cache that training reads by windows

dataset.split=NAME chooses one split; without it, those of training. output=FILE keeps the report."""

SEGREPORT = """segreport puts runs side by side: report.html, report.md, report.csv, and a table on screen.

  segreport RUN_OR_SWEEP ... [output=DIR]"""
