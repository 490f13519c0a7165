"""A curation run: its folder, its stages, what each output records about itself, and how far the work is.

run.py         the configuration, the shards, and where every file lies
records.py     what an output was computed from: is it still good?
stages/        functions from files to files, one for each step
forecast.py    what a run would do
settings.py    what this machine and this data cannot do, found before the work begins
captions.py    the captions of a block of rows, one a row or several
texts.py       text embeddings: the encoder's, or given ones
unmentioned.py concepts that no caption mentions, and the words nearest to them
lock.py        one run at a time in a folder
sharing.py     several processes of one run in a folder
owner.py       which data set a folder belongs to, and who works in it
part.py        a range of shards, for one of many processes
progress.py    how far the work is
inputs.py      written first: what the run is made of
manifest.py    written last: what was asked, what was counted
cleaning.py    files that are no longer wanted
curator.py     all that a block of anchors needs to become archives
"""
