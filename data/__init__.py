"""One flat script for each data set (data/NAME.py), which train.py finds by its name.

text.py turns your own files, and whatever else --data names, into prepared folders. What it and
the scripts are made of is in reading.py, vocabulary.py, writing.py, folders.py and opening.py.
rows.py says which rows a step of training sees, supervised.py what examples look like, and
metrics.py what predictions are worth.
"""
