"""What train.py and sample.py are made of. Who reads a model file never needs it."""
