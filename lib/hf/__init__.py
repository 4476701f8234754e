"""Hugging Face's layouts: one engine, and a table for each family of models."""

families = {}  # model_type of a config.json -> the name of the model file that opens it
