"""Techniques around a model: `python train.py --method=NAME` finds NAME.py.

NAME.py replaces the loss of a model file, and what else it needs to: preference losses, reward
models, distillation, quantisation and pruning while training are of this kind. It defines

    Config      a dataclass of int, float, bool and str fields: its flags
    forward(model, plain, *arrays, totals=None) -> loss, stats
                in the place of Model.forward, under the same contract (sums divided by `totals`).
                plain(*arrays, totals=totals) is the model file's own forward; model.technique is
                an instance of Config, with the values of the flags

and may define, in the place of the model file's or of lib/'s,

    kinds       the kinds of data that it trains on
    model_kind  the kind that the model's own Config gets, if it is another
    batch, encode, collate, predict, count, summary     as lib/models.py describes them

and, for itself,

    recipe      what it trains best with, as fields of any Config; it beats the model file's own
    prepare(model, config)     called once, when the first weights are there and before the model
                               goes to its device. config: train.py's

Everything else is the trainer's: adapters, micro-batches, ranks and resuming work as with the plain
model. A checkpoint holds the plain model's weights, so sample.py and --init_from open it without
the technique.
"""
import dataclasses

from lib.models import import_script, scripts_with

REPLACES = ('kinds', 'batch', 'encode', 'collate', 'predict', 'count', 'summary', 'model_kind',
            'prepare')


def find(name, file, Config):
    """The module of the technique `name`, or None if it is ''. Raises ValueError if there is none,
    if it lacks a part, or if one of its flags is also one of train.py's Config or of the model
    file."""
    if not name:
        return None
    technique = import_script(name, 'method', scripts_with('def forward('))
    missing = [part for part in ('Config', 'forward') if not hasattr(technique, part)]
    if missing:
        raise ValueError(f'--method={name}: {name}.py does not define {", ".join(missing)}: see '
                         'lib/method.py')
    taken = {field.name for cls in (Config, file.Config) for field in dataclasses.fields(cls)}
    for field in dataclasses.fields(technique.Config):
        if field.name in taken:
            raise ValueError(f'--method={name}: its flag --{field.name} exists already: rename the '
                             f'field of {name}.py\'s Config')
    return technique


def defaults(technique):
    """{field: default} of a technique's Config."""
    if technique is None:
        return {}
    return {field.name: field.default for field in dataclasses.fields(technique.Config)}


def combine(file, technique, values):
    """What the trainer sees in the place of the model file. values: those of all flags."""
    if technique is None:
        return file
    settings = technique.Config(**{name: values[name] for name in defaults(technique)})
    return Combined(file, technique, settings)


class Combined:
    """A model file in which a technique replaces some parts."""

    def __init__(self, file, technique, settings):
        self.file = file
        self.technique = technique
        self.settings = settings
        self.__name__ = file.__name__

    def __getattr__(self, name):
        if name in REPLACES and hasattr(self.technique, name):
            return getattr(self.technique, name)
        return getattr(self.file, name)

    def Model(self, config):                 # named after the class that it stands for
        """The model file's model, whose forward is the technique's. Its class is made here,
        because its base is the model file's Model."""
        model = self.file.Model(config)
        technique = self.technique

        def forward(model, *arrays, totals=None):
            def plain(*arrays, totals=None):
                return super(own, model).forward(*arrays, totals=totals)
            return technique.forward(model, plain, *arrays, totals=totals)

        own = type('Model', (type(model),), dict(forward=forward))
        own.__module__ = type(model).__module__
        model.__class__ = own
        model.technique = self.settings      # the Config, not the module
        return model


def source_file(file):
    """The module itself, without the technique."""
    return file.file if isinstance(file, Combined) else file
