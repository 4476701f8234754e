"""Reads and writes models as Hugging Face's transformers saves them, by the tables of a family.

A checkpoint there is config.json, whose "model_type" names the architecture, and tensors by name.
A family's page (gpt.py, bert.py, t5.py, electra.py) has one `Type` for each model_type that its
model file can be. To add one is to add its table: how its modules are called, how config.json
calls the fields of our Config, and what it means where it is silent. What no table can say is a
small function beside it.

How names are written in these tables:

    '~embed_tokens'         '~' is the prefix that a class with a head puts before its base's names
    'blocks.{}.norm_1'      '{}' is the number of the block, here and there
    'q_proj k_proj v_proj'  several modules there are one here, which holds their rows in this order
"""
import dataclasses
import re

import torch

MOST_DIFFERENCES = 10  # of a model that transformers does not have: so many are named


@dataclasses.dataclass
class Written:
    """An entry of `Type.keys` for a key that is written and not read: the name of its value."""
    name: str


@dataclasses.dataclass
class Always:
    """An entry of `Type.keys` for a key that is always written with this value, and not read."""
    value: object


@dataclasses.dataclass
class Type:
    """One model_type of transformers."""
    cls: str                  # its class, or the beginning of it where the name of a head follows
    prefix: str               # what '~' in `names` stands for
    names: dict               # our modules -> theirs
    keys: dict                # keys of config.json in order -> fields of Config, Written or Always
    silent: dict = None       # fields where config.json is silent, if not as Config's defaults
    fixed: dict = None        # keys of config.json that are absent or of this value
    heads: dict = None        # Config.kind -> names that differ with that head
    activations: dict = None  # their activations -> ours, if not those of the family
    read: object = None       # read(hf, fields): changes the fields where no table can say it
    values: object = None     # values(config) -> further values for `keys`
    relayout: object = None   # relayout(name, w, config, back): their tensor -> ours, or back


def within(ours, theirs, names):
    """The names of modules that lie in another one.

    within('blocks.{}.', '~h.{}.', {'norm_1': 'ln_1'}) -> {'blocks.{}.norm_1': '~h.{}.ln_1'}"""
    return {ours + name: ' '.join(theirs + part for part in parts.split())
            for name, parts in names.items()}


def renamed(keys, **changes):
    """A table of keys in which some are called otherwise, at the same place."""
    return {changes.get(key, key): field for key, field in keys.items()}


def first_key_of(table, value):
    """The first key of a table that stands for a value, or the value itself."""
    return next((key for key, known in table.items() if known == value), value)


class Layout:
    """Hugging Face's layout of a model file. A family's subclass has the tables and overrides what
    it does differently; whoever uses it calls from_hf, to_hf and hf_folders."""
    family = ''       # the name of the model file
    types = {}        # model_type -> Type
    required = ()     # fields of Config for which config.json must have a key
    fixed = {}        # keys of config.json that are absent or of this value, for every type
    activations = {}  # their activations -> ours
    old_names = {}    # ends of names in older checkpoints -> the same today
    spare = ()        # ends of names that may be left over: constants, copies
    spare_heads = ()  # beginnings of names that may be left over: heads that our model lacks
    vocab_rows = ()   # tensors with a row for each token; our table may have more rows than theirs
    hf_folders = {}   # folders inside an exported one -> function like to_hf for the model there

    def __init__(self, file):
        self.file = file

    # -------------------------------------------------------------------------------------- reading

    def from_hf(self, hf, weights):
        """config.json and tensors by name, as save_pretrained writes them -> Config, state dict.

        Raises ValueError if config.json says what our model file cannot be, or if the weights do
        not fit it."""
        fields = self.read_config(hf)
        name = hf['model_type']
        weights = self.bare(self.types[name], weights)
        fields |= self.read_head(self.types[name], hf, weights)
        config = self.build(fields)
        return config, self.read_weights(name, config, weights)

    def type_of(self, hf):
        """The Type that config.json names."""
        kind = hf.get('model_type')
        if kind not in self.types:
            known = ', '.join(self.types)
            raise ValueError(f'model_type {kind!r} in config.json: {self.family}.py reads {known}')
        return self.types[kind]

    def read_config(self, hf):
        """config.json of transformers 4 or 5 -> fields of Config, but for those of a head."""
        kind = self.type_of(hf)
        given = {field: key for key, field in kind.keys.items() if isinstance(field, str)}
        for field in self.required:
            if hf.get(given[field]) is None:
                name = hf['model_type']
                raise ValueError(f'config.json of model_type {name} lacks {given[field]!r}')
        self.check_fixed(hf, self.fixed | (kind.fixed or {}))
        fields = dict(kind.silent or {})
        for field, key in given.items():
            if hf.get(key) is not None:
                fields[field] = hf[key]
        if hf.get(given.get('activation')) is not None:
            fields['activation'] = self.known_activation(kind, fields['activation'])
        if kind.read:
            kind.read(hf, fields)
        return fields

    def check_fixed(self, hf, fixed):
        for key, value in fixed.items():
            if hf.get(key, value) != value:
                raise ValueError(f'{key}={hf[key]!r} in config.json: '
                                 f'{self.family}.py knows only {value!r}')

    def known_activation(self, kind, name):
        known = kind.activations or self.activations
        if name not in known:
            raise ValueError(f'activation {name!r} in config.json: '
                             f'{self.family}.py knows {", ".join(known)}')
        return known[name]

    def read_head(self, kind, hf, weights):
        """Fields of Config that depend on the class of the model, or on the weights."""
        return {}

    def build(self, fields):
        """Config of the fields, each with the type of its default."""
        Config = self.file.Config
        types = {f.name: type(f.default) for f in dataclasses.fields(Config)}
        known = {name: value for name, value in fields.items() if name in types}
        return Config(**{name: types[name](value) for name, value in known.items()})

    def bare(self, kind, weights):
        """Tensors by their names of today, without the prefix."""
        weights = {name.removeprefix(kind.prefix): w for name, w in weights.items()}
        for name in list(weights):
            for end, today in self.old_names.items():
                new = name.removesuffix(end) + today
                if name.endswith(end) and new not in weights:
                    weights[new] = weights.pop(name)
        return weights

    def read_weights(self, model_type, config, weights):
        """Tensors by their names, without the prefix -> state dict."""
        kind = self.types[model_type]
        state = {}
        used = set()
        copies = self.copies(config)
        for name, p in self.outline(config).state_dict().items():
            theirs = self.their_names(kind, config, copies.get(name, name))
            missing = [n for n in theirs if n.replace('~', '') not in weights]
            if missing:
                first = missing[0].replace('~', kind.prefix)
                raise ValueError(f'{model_type} weights lack {first}: they have {len(weights)} '
                                 f'tensors, such as {next(iter(weights), None)}')
            w = torch.cat([weights[n.replace('~', '')] for n in theirs])
            if kind.relayout:
                w = kind.relayout(name, w, config, back=False)
            if w.shape != p.shape:
                raise ValueError(f'{theirs[0].replace("~", kind.prefix)} gives {tuple(w.shape)}, '
                                 f'config.json says {tuple(p.shape)}')
            state[name] = w.contiguous()
            theirs += self.their_names(kind, config, name)     # of a copy both names are explained
            used.update(n.replace('~', '') for n in theirs)
        for name in weights:
            spare = name.endswith(self.spare) or name.startswith(self.spare_heads)
            if name not in used and not spare:
                raise ValueError(f'{model_type} weights hold {name}, '
                                 'which config.json does not explain')
        return state

    # -------------------------------------------------------------------------------------- writing

    def to_hf(self, model):
        """-> config.json as a dict, tensors by name.

        Raises ValueError if transformers has no such model."""
        return self.write(model.config, model.state_dict())

    def write(self, config, state):
        """Config and state dict -> config.json as a dict, tensors by name."""
        name = self.choose(config)
        kind = self.types[name]
        architecture = self.architecture(kind, config)
        hf = dict(architectures=[architecture], model_type=name)
        hf |= self.write_config(kind, config)
        theirs = self.build(self.read_config(hf))              # what transformers will build
        outline = self.outline(theirs)
        self.compare(name, config, theirs, state, outline)
        prefix = '' if architecture == kind.cls + 'Model' else kind.prefix
        weights = {}
        for name, w in self.exported(config, state, outline).items():
            if name in self.vocab_rows:
                w = w[:config.vocab_size]
            if kind.relayout:
                w = kind.relayout(name, w, config, back=True)
            names = self.their_names(kind, config, name)
            parts = [w]
            if len(names) > 1:
                layer = outline.get_submodule(name.rpartition('.')[0])
                parts = w.split(list(layer.parts.values()))
            for n, part in zip(names, parts):
                weights[n.replace('~', prefix)] = part.clone(memory_format=torch.contiguous_format)
        return hf, weights

    def choose(self, config):
        """The model_type that a Config is. Raises ValueError if it is none."""
        raise NotImplementedError

    def architecture(self, kind, config):
        """The class of transformers that opens what is written."""
        return kind.cls

    def write_config(self, kind, config):
        """The keys of config.json for which there is a value, in the order of the table."""
        values = self.values(config)
        values['activation'] = first_key_of(kind.activations or self.activations, config.activation)
        if kind.values:
            values |= kind.values(config)
        hf = {}
        for key, field in kind.keys.items():
            if isinstance(field, Always):
                hf[key] = field.value
                continue
            name = field.name if isinstance(field, Written) else field
            if name in values:
                hf[key] = values[name]
        return hf

    def values(self, config):
        """What config.json gets, by the names in `Type.keys`: the fields of Config and what follows
        from them."""
        return dict(vars(config))

    def compared(self, config):
        """Names in Config that must be the same in what transformers will build."""
        return ()

    def further_differences(self, config, theirs, state, outline):
        """What else transformers would build differently, in words."""
        return []

    def compare(self, name, config, theirs, state, outline):
        """Raises ValueError if what transformers will build is not what we have."""
        differ = []
        for field in self.compared(config):
            mine = getattr(config, field)
            known = getattr(theirs, field)
            if mine != known:
                differ.append(f'{field}={mine!r}, only {field}={known!r}')
        differ += self.further_differences(config, theirs, state, outline)
        if differ:
            first = '; '.join(differ[:MOST_DIFFERENCES])
            raise ValueError(f'transformers has no {name} with {first}')

    def exported(self, config, state, outline):
        """The tensors to write, by our names. outline: the model that transformers will build."""
        return state

    # ----------------------------------------------------------------------------- names and shapes

    def copies(self, config):
        """Tensors that are another one's copy: {our name: our name of the other}."""
        return {}

    def names(self, kind, config):
        """Our modules -> theirs, with the head of this Config."""
        heads = kind.heads or {}
        return kind.names | heads.get(getattr(config, 'kind', ''), {})

    def their_names(self, kind, config, name):
        """blocks.3.attention.qkv.weight -> [~layers.3.self_attn.q_proj.weight, ...]"""
        module, _, leaf = name.rpartition('.')
        number = re.search(r'\.(\d+)\.', module)
        if number:
            module = module.replace(number[0], '.{}.', 1)
        theirs = self.names(kind, config)[module]
        if number:
            theirs = theirs.format(*[number[1]] * theirs.count('{}'))
        return [f'{n}.{leaf}' for n in theirs.split()]

    def outline(self, config):
        """The model on the meta device: its modules and shapes, and no memory."""
        with torch.device('meta'):
            return self.file.Model(config)
