"""Flags: every field of a Config is one, and the comment behind the field is its help.

Precedence: defaults < recipe < preset < flag. A run that is resumed has the values of its
checkpoint in the place of the first three.
"""
import dataclasses
import inspect
import os
import re
import textwrap
from typing import NamedTuple

from lib import method
from lib.checkpoint import HOLDS, OPTIONAL, load_checkpoint
from lib.models import import_model, typed
from lib.weights import script_of
from lib.words import nearest

CHOICES = dict(adapter=('', 'lora', 'bottleneck', 'adamix', 'prefix', 'prompt', 'bitfit'),
               optimizer=('adamw', 'muon', 'adafactor'),
               lr_schedule=('cosine', 'linear', 'inverse_sqrt', 'constant', 'wsd'),
               dtype=('auto', 'bfloat16', 'float16', 'float32'),
               compile=('auto', 'true', 'false', 'max-autotune', 'reduce-overhead'),
               log_to=('', 'wandb', 'tensorboard'))
MORE_THAN_0 = ('batch_size', 'log_interval', 'learning_rate')
NOT_NEGATIVE = ('max_iters', 'epochs', 'time_limit', 'patience', 'eval_interval', 'eval_iters',
                'save_interval', 'warmup_iters', 'micro_batch_size', 'weight_decay', 'grad_clip',
                'freeze', 'unfreeze_interval')
# what the state of an optimizer or an adapter depends on: it cannot change when a run is resumed
FIXED = ('method', 'optimizer', 'init_from', 'adapter', 'lora_rank', 'lora_match', 'rslora', 'dora')


class Settings(NamedTuple):
    """What the flags of a run say."""
    config: object      # train.py's Config
    file: object        # the module of the model file, with --method what the technique makes of it
    values: dict        # the values of the model file's Config; the data decides some of them later
    flags: dict         # the flags that were typed, as values
    changed: dict       # the values of both Configs that are not their defaults
    checkpoint: dict    # what the run goes on from, or {}


# ---- reading

def fields_of(cls):
    """The fields of a dataclass with what its source says of them -> [(group, help, field)]. The
    comment behind a field is its help, a comment line of its own starts a group."""
    comments = {}
    group = ''
    for line in inspect.getsource(cls).splitlines():
        heading = re.match(r'\s+# (.+)', line)
        declaration = re.match(r'\s+(\w+)\s*:[^#]*(?:#\s*(.*))?', line)
        if heading:
            group = heading[1].strip()
        elif declaration:
            comments.setdefault(declaration[1], (group, (declaration[2] or '').strip()))
    return [(*comments.get(field.name, ('', '')), field) for field in dataclasses.fields(cls)]


def split_flags(argv):
    """--name=value, --name value, or a bare --name -> {name: text or None}."""
    given = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith('--') and word != '-h':
            raise ValueError(f'unexpected argument {word!r}: flags are written --name=value (see '
                             '--help)')
        name, equals, value = word.lstrip('-').partition('=')
        name = name.replace('-', '_')
        if name in ('h', 'help'):
            name = 'help'
            value = value or None
        elif not equals:
            value = words.pop(0) if words and not words[0].startswith('--') else None
        given[name] = value
    return given


def value_of(name, kind, text):
    """The text of a flag as a value of its field's type. Raises ValueError if it is none."""
    if text is None and kind is not bool:
        raise ValueError(f'--{name} needs a value: --{name}=...')
    try:
        if kind is bool:
            return {'true': True, 'false': False}[(text or 'true').lower()]
        return kind(text)
    except (KeyError, ValueError):
        expected = {bool: 'true or false', int: 'a whole number', float: 'a number'}[kind]
        raise ValueError(f'--{name}={text}: expected {expected}') from None


def read(argv, Config, doc):
    """The command line of train.py -> Settings. Config: train.py's. doc: what --help begins with.
    Raises ValueError for a user's mistake, SystemExit after --help."""
    given = split_flags(argv)
    trainer = {field.name: field.default for field in dataclasses.fields(Config)}
    saved = checkpoint_to_resume(given, trainer)
    if not saved and 'model' not in given and given.get('init_from') not in (None, '', 'scratch'):
        # the model file of the weights
        given['model'] = script_of(given['init_from'])
    model = given.get('model', trainer['model'])
    file = import_model(model)
    if saved:
        typed(file.Config, saved['config'], given['out_dir'])
        saved['train'] = dataclasses.asdict(typed(Config, saved['train'], given['out_dir']))
    name = given.get('method', saved['train']['method'] if saved else '')
    technique = method.find(name, file, Config)
    own = {field.name: field.default for field in dataclasses.fields(file.Config)}
    for name in trainer:
        own.pop(name, None)
    defaults = {**own, **method.defaults(technique), **trainer}
    unknown = [name for name in given if name not in defaults and name != 'help']
    if unknown:
        raise ValueError(f'unknown flag --{unknown[0]}{nearest(unknown[0], list(defaults), "--")} '
                         '(--help lists all)')
    flags = {}
    for name, text in given.items():
        if name != 'help':
            flags[name] = value_of(name, type(defaults[name]), text)

    values = starting_values(file, technique, defaults, flags, saved)
    if saved:
        held = {**saved['config'], **saved.get('method', {})}
        refuse_changes(given['out_dir'], {**own, **held}, flags, saved)
        values |= {**saved['train'], **held, 'export_hf': ''}
    values |= flags
    if 'max_iters' in flags and 'epochs' not in flags:
        values['epochs'] = 0.0
    if not values['out_dir']:
        values['out_dir'] = usual_folder(model, values)
    if 'help' in given:
        print_help(doc, Config, file, values, given['help'] == 'all')
        raise SystemExit(0)
    check_choices(values)
    check_adapter(values, flags, Config)
    check_numbers(values)
    changed = {}
    for name, value in values.items():
        if value != defaults[name] and name not in ('model', 'out_dir', 'resume'):
            changed[name] = value
    return Settings(config=Config(**{name: values[name] for name in trainer}),
                    file=method.combine(file, technique, values),
                    values={name: values[name] for name in own},
                    flags=flags, changed=changed, checkpoint=saved)


def checkpoint_to_resume(given, trainer):
    """The checkpoint of the run that --resume goes on with, or {}. Fills in the flags out_dir and
    model."""
    if not value_of('resume', bool, given.get('resume', 'false')):
        return {}
    path = given.setdefault('out_dir', 'out/' + given.get('model', trainer['model']))
    saved = load_checkpoint(path)
    missing = sorted(HOLDS.keys() - OPTIONAL - saved.keys())
    if missing:
        raise ValueError(f'--resume: the checkpoint in {path} lacks {missing[0]}, so its run '
                         f'cannot go on; start a new one from its weights with --init_from={path}')
    model = saved['model_name']
    if given.setdefault('model', model) != model:
        raise ValueError(f'--resume: {path} holds a run of --model={model}, not {given["model"]}')
    return saved


def starting_values(file, technique, defaults, flags, saved):
    """The values that all flags have before those that were typed: defaults, recipe, preset."""
    recipe = getattr(file, 'recipe', {})
    usual_preset = recipe.get('preset', '')
    if saved:
        usual_preset = saved['train']['preset']
    elif flags.get('init_from'):
        usual_preset = ''
    preset = flags.get('preset', usual_preset)
    # a run holds all values itself
    held_by_run = saved and 'preset' not in flags
    if preset and preset not in file.presets and not held_by_run:
        raise ValueError(f'--preset={preset}: {file.__name__}.py has {", ".join(file.presets)}'
                         f'{nearest(preset, file.presets)}')
    changes = file.presets.get(preset, {})
    if flags.get('init_from') and not saved:
        values = {**defaults, **changes, **getattr(file, 'finetune', recipe)}
    else:
        values = {**defaults, **recipe, **changes, **getattr(file, 'recipes', {}).get(preset, {})}
    if not saved:
        values |= getattr(technique, 'recipe', {})
    values['preset'] = preset
    unknown = set(values) - set(defaults)
    if unknown:
        raise ValueError(f'{file.__name__}.py: the recipe or preset {preset!r} sets '
                         f'{unknown.pop()}, a field of neither Config')
    return values


def refuse_changes(out_dir, held, flags, saved):
    """Raises ValueError if a flag changes what a resumed run cannot change. held: the values of its
    model."""
    held = {**held, **{name: saved['train'][name] for name in FIXED}}
    if flags.get('init_from', held['init_from']) != held['init_from']:
        raise ValueError(f'--resume goes on with the run in {out_dir}: leave out --init_from, '
                         f'or for the run there: --resume --out_dir={flags["init_from"]}')
    for name, value in flags.items():
        if name in held and value != held[name]:
            raise ValueError(f'--resume: --{name}={value}, but the run has {held[name]}: leave it '
                             f'out, or start a new run with --init_from={out_dir}')


def usual_folder(model, values):
    """Where a run without --out_dir is written."""
    if not values['init_from']:
        return f'out/{model}'
    parts = [os.path.basename(part.rstrip('/')) for part in values['data'].split('+')]
    return f'out/{model}-' + re.sub(r'\W+', '-', '-'.join(parts))


# ---- checking

def check_choices(values):
    """Lowers the case of the flags that are one of a few words. Raises ValueError if one is another
    word."""
    for name in ('new_weights', 'baseline'):
        if values[name] and not values['init_from']:
            raise ValueError(f'--{name} compares with weights: add --init_from=RUN')
    for name, allowed in CHOICES.items():
        values[name] = values[name].lower()
        if values[name] not in allowed:
            words = [word for word in allowed if word]
            raise ValueError(f'--{name}={values[name]}: expected one of {", ".join(words)}'
                             f'{nearest(values[name], words)}')


def check_adapter(values, flags, Config):
    """Fills in the adapter that --lora_rank means. Raises ValueError if the flags of adapters do
    not fit together."""
    if not values['adapter'] and values['lora_rank']:
        values['adapter'] = 'lora'
    kind = values['adapter']
    if kind == 'lora':
        values['lora_rank'] = values['lora_rank'] or 8
    elif kind and values['lora_rank']:
        raise ValueError(f'--lora_rank is of low-rank adapters, not of --adapter={kind}')
    if values['adapter_size'] and kind in ('', 'lora', 'bitfit'):
        raise ValueError(f'--adapter_size={values["adapter_size"]}: goes with '
                         '--adapter=bottleneck, adamix, prefix, '
                         'prompt; --lora_rank is that of low-rank adapters')
    for group, _, field in fields_of(Config):
        given = field.name in flags and values[field.name] != field.default
        if given and group.startswith('adapters') and not kind:
            raise ValueError(f'--{field.name} is of adapters, and without one all weights are '
                             'trained: add --lora_rank=8')
    if kind not in ('', 'lora', 'bitfit') and (values['merge'] or values['export_hf']):
        raise ValueError(f'--adapter={kind} cannot become part of the weights: leave out --merge '
                         'and --export_hf')
    if values['lora_bits'] not in (0, 8, 16):
        raise ValueError(f'--lora_bits={values["lora_bits"]}: expected 8 (int8), 16 (bf16) or 0, '
                         'the base as it is')


def check_numbers(values):
    """Raises ValueError if a number is out of its range."""
    for name in MORE_THAN_0:
        if values[name] <= 0:
            raise ValueError(f'--{name}={values[name]}: expected more than 0')
    for name in NOT_NEGATIVE:
        if values[name] < 0:
            raise ValueError(f'--{name}={values[name]}: expected 0 or more')


# ---- help

MAIN_FLAGS = ('model', 'preset', 'data', 'tokenizer', 'out_dir', 'init_from', 'resume',
              'batch_size', 'max_iters', 'learning_rate', 'lora_rank', 'block_size', 'n_layer',
              'n_head', 'n_embd')


def print_help(doc, Config, file, values, everything):
    """Prints --help: `doc`, then the flags of train.py and of the model file with the values that
    they have when they are not given. everything: all of them (--help=all), in groups; else
    MAIN_FLAGS."""
    preset = f' --preset={values["preset"]}' if values['preset'] else ''
    print(f'{doc.strip()}\n\n{"All" if everything else "The main"} flags of '
          f'--model={file.__name__}{preset}, with '
          'the values that they have when they are not given:')
    trainer = {field.name for field in dataclasses.fields(Config)}
    rows = [(group, text, field) for group, text, field in fields_of(Config)]
    for group, text, field in fields_of(file.Config):
        if field.name not in trainer:
            heading = f'{file.__name__}.py: {group}' if group else f'{file.__name__}.py'
            rows.append((heading, text, field))
    if values['method']:
        technique = method.find(values['method'], file, Config)
        for _, text, field in fields_of(technique.Config):
            rows.append((f'{values["method"]}.py', text, field))
    if everything:
        print_flags(rows, values)
    else:
        main = [('', text, field) for _, text, field in rows if field.name in MAIN_FLAGS]
        print_flags(main, values)
        print(f'\n--help=all lists all {len(rows)}.')
    presets = f'presets of {file.__name__}.py: {", ".join(file.presets)}'
    print('\n' + textwrap.fill(presets, 100, break_on_hyphens=False))


def print_flags(rows, values):
    """One line for each flag, --name=value and its help. rows: (group, help, field) as fields_of
    has them."""
    last = None
    for group, text, field in rows:
        if group != last:
            print('\n' + group if group else '')
        last = group
        value = values[field.name]
        usual = f' (default {field.default!r})' if value != field.default else ''
        print(f'  --{field.name}={value}'.ljust(34), text + usual)
