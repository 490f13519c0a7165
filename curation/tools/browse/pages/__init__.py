"""The pages of the browser, rendered on the server.

layout.py      what all pages have: head, search, cards, pages of a long list
home.py        the counts of a run, its concepts, random images
results.py     what a search gives
concept.py     the gallery of a concept
image.py       an image with its neighbours, its archive, and why
vocabulary.py  the table of the vocabulary, to be edited
duplicates.py  groups of near-identical images
rejects.py     what could not be used, by reason
"""
