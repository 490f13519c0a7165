"""``cocu browse OUT``: pages on this machine to look through the archives of a run of any size.

command.py    the command
app.py        addresses, who may ask, and what browsers may do with the answers
views.py      what each page shows, looked up
pages/        the pages, as HTML
catalogue.py  by concept, word and key: built once, mapped and looked up since
build.py      building it
postings.py   its arrays: pure functions
gallery.py    which archives of a concept, in which order: pure functions
evidence.py   what was retrieved for an image, and why
edits.py      the vocabulary as a person edits it
pictures.py   thumbnails
tars.py       where pictures and truth lie in tars
"""
