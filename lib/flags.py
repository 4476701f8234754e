"""Flags: fields of a dataclass, whose comments are their help."""
import dataclasses
import inspect
import re


def fields_of(cls):
    "-> [(group, field, help)]: the trailing comment of a field is its help, a comment line of its own starts a group"
    comments, group = {}, ''
    for line in inspect.getsource(cls).splitlines():
        if m := re.match(r'\s+# (.+)', line): group = m[1].strip()
        elif m := re.match(r'\s+(\w+)\s*:[^#]*(?:#\s*(.*))?', line):
            comments.setdefault(m[1], (group, (m[2] or '').strip()))
    return [(*comments.get(f.name, ('', '')), f) for f in dataclasses.fields(cls)]


def value_of(name, kind, text):
    "the text of a flag as a value of its field's type"
    if text is None and kind is not bool: raise ValueError(f'--{name} needs a value: --{name}=...')
    wanted = {bool: 'true or false', int: 'a whole number', float: 'a number'}
    try: return {'true': True, 'false': False}[(text or 'true').lower()] if kind is bool else kind(text)
    except (KeyError, ValueError): raise ValueError(f'--{name}={text}: expected {wanted[kind]}') from None


def split_flags(argv):
    "--name=value, --name value, or a bare --name -> {name: text or None}"
    given, words = {}, list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith('--') and word != '-h':
            raise ValueError(f'unexpected argument {word!r}: flags are written --name=value (see --help)')
        name, eq, value = word.lstrip('-').partition('=')
        name = name.replace('-', '_')
        if name in ('h', 'help'): name, value = 'help', None
        elif not eq: value = words.pop(0) if words and not words[0].startswith('--') else None
        given[name] = value
    return given


def print_help(file, values, Config, doc):
    name = file.__name__ + f' --preset={values["preset"]}' * bool(values['preset'])
    print(f'{doc.strip()}\n\nThe flags of --model={name} with the values they have when not given:')
    mine, last = {f.name for f in dataclasses.fields(Config)}, None
    for cls in (Config, file.Config):
        for group, text, field in fields_of(cls):
            group = group if cls is Config else f'{file.__name__}.py' + f': {group}' * bool(group)
            if cls is not Config and field.name in mine: continue
            if group != last: print('\n' + group)
            last = group
            usual = f' (default {field.default!r})' if values[field.name] != field.default else ''
            print(f'  --{field.name}={values[field.name]}'.ljust(34), text + usual)
    print(f'\npresets of {file.__name__}.py: {", ".join(file.presets)}')
