"""Does CoCu help? The comparison of arms on one data set, run and reported by ``cocu experiments``.

arms.py        what is compared: arms.yaml and arms_demo.yaml, checked; families of arms that one recipe trains
recipes.py     how it is trained: YAML files, laid one over another
comparison.py  which runs there are, and running them
archives.py    one folder of archives for each way of curating, all of the same embeddings
truth.py       archives of what is really visible, from the json sidecars
distil.py      what all runs may start from: what the encoder behind the archives knows of windows
distil_places.py  the same of places: the map of a dense CLIP
masked_places.py  its ceiling: the same, told by masks
runs.py        one training run, resumed if it was interrupted
commands.py    running the commands of other packages
scores.py      what a run measured, step by step
untrained.py   what the encoder behind the archives scores as it is
omission.py    how often captions omit a class that is visible
quality.py     how well archives agree with what is visible
summary.py     tables over runs: curves, final scores, steps saved
report.py      what is written of the runs that are finished: tables, figures, pictures, the page
findings.py    sentences that follow from the numbers
page.py        the page that says what was asked and what was seen
figures.py     the tables as pictures
photographs.py archives of photographs, measured by what people say of them: a page of its own
rankings.py    the search for a better ranking
pictures.py    images side by side: what two models see
omitted.py     images of what captions leave out: archives, and heat maps of models
"""
