"""One flat script per data set (data/NAME.py), and text.py for your own files; train.py finds them by name."""
