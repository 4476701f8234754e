"""What a model has learned, as a text that a person reads at the end of a run."""

by_family = {}  # family of a model file -> function: show(model, tokenizer, ids) -> text
