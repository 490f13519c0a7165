"""Does CoCu help? The comparison of arms on one data set, run and reported by ``python -m experiments``.

arms.py      what is compared: arms.yaml, checked
archives.py  one folder of archives for each way of curating, all of the same embeddings
truth.py     archives of what is really visible, from the json sidecars
omission.py  how often captions omit a class that is visible
distil.py    what all runs may start from: what the encoder behind the archives knows
training.py  one training run, resumed if it was cut off
scores.py    what a run measured, step by step
summary.py   tables over runs: curves, final scores, steps saved
figures.py   the tables as pictures
pictures.py  images side by side: what two models see
report.py    the page that says what was asked and what was seen
"""
