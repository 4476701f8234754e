"""Hugging Face's layouts: one engine, and a table for each family of models.

    engine.py                          reads and writes config.json and weights by the tables
    gpt.py bert.py t5.py electra.py    a family's tables: names, keys and defaults by model_type
    peft.py                            adapters in the files of the library peft
"""
from lib.hf import bert
from lib.hf import electra
from lib.hf import gpt
from lib.hf import t5

layouts = {'gpt': gpt.Layout, 'bert': bert.Layout, 't5': t5.Layout, 'electra': electra.Layout}

# model_type of a config.json -> the name of the model file that opens it
families = {kind: family for family, layout in layouts.items() for kind in layout.types}


def Layout(file):
    """The layout of a model file, which names its family: from_hf(hf_config, weights) -> Config,
    state dict, and to_hf(model) -> config.json as a dict, tensors by name."""
    return layouts[file.family](file)
