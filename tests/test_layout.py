"""How the collection is laid out: who imports whom, how long a file may be, what ruff does not look at yet.

    sample.py, tests/bench.py -> train.py -> lib/ -> lora.py, adapters.py, bpe.py, data/

A model file imports torch and numpy alone, so that a copy of it is a model of one's own. No file imports itself by way of
others, imports inside functions counted too. Files that are still to be rebuilt stand in tables here and in
pyproject.toml; an entry that is no longer needed fails, so that the tables can only shrink:

    python tests/test_layout.py --shrink         # takes out what is no longer needed
"""
import ast
import glob
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from lib.models import ROW_MODULES as ROWS

LONGEST = {'': 650, 'lib': 400, 'data': 400}         # lines of a file at the top, in lib/, in data/
TOO_LONG = set()

OUTSIDE = {'torch', 'numpy', 'tiktoken', 'regex', 'requests'}      # what anything may import
WITHOUT_TORCH = ('bpe.py', 'data/', 'lib/vocab/')    # start fast, and prepare data where torch is not needed
ON_DEMAND = {'lib/log.py': {'wandb'}}                # inside a function, when a flag asks for it

# what a model file may import inside a function, when a flag asks for it
NEIGHBOURS = {
    'bert.py': {'lib.local', 'lib.maelm', 'lib.masking', 'lib.positions', 'lib.sentences', 'lib.spanbert', 'lib.tasks'},
    'electra.py': {'lib.ablations', 'lib.detection', 'lib.stages', 'lib.tasks'},
    'gpt.py': {'lib.loss', 'lib.positions', 'lib.windows'},
    't5.py': {'lib.noise', 'lib.pairs', 'lib.one_stack', 'lib.head_loss', 'lib.beams'},
}
# what the parts below train.py may import of each other, at the top of the file or inside a function
BELOW = {
    'adapters.py': {'lora', 'lib'},
    'lora.py': {'data', 'lib'},
    'bpe.py': {'lib.vocab'},
    'data': {'data', 'bpe', 'lib.vocab'},
    'lib/vocab': {'lib.vocab', 'bpe', 'data.files'},
    'lib': {'lib', 'lora', 'adapters', 'bpe', 'data'},
}


def scripts():
    found = []
    for pattern in ('*.py', 'lib/**/*.py', 'data/*.py'):
        found += glob.glob(pattern, root_dir=ROOT, recursive=True)
    return sorted(path.replace(os.sep, '/') for path in found)


def read(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as f:
        return f.read()


def module_of(path):
    return path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


OURS = {module_of(path): path for path in scripts()}


def modules_named(node):
    """The modules that an import statement loads: of `from data import rows` data.rows, of `from os import path` os."""
    if isinstance(node, ast.Import):
        return {a.name for a in node.names}
    assert not node.level, 'relative imports do not work in a script that is run by itself'
    return {name if (name := f'{node.module}.{a.name}') in OURS else node.module for a in node.names}


def imports(path):
    """-> (modules imported at the top of a file, modules imported inside its functions), without the standard library."""
    top, inside = set(), set()

    def visit(node, found):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                found |= {m for m in modules_named(child) if m.split('.')[0] not in sys.stdlib_module_names}
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            visit(child, inside if is_function else found)
    visit(ast.parse(read(path)), top)
    return top, inside


def is_model(path):
    """Whether a script at the top is a model file: it defines what train.py looks for."""
    if '/' in path:
        return False
    tree = ast.parse(read(path))
    names = {n.name for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
    return {'Config', 'Model', 'batch'} <= names


def within(module, allowed):
    return any(module == a or module.startswith(a + '.') for a in allowed)


MODELS = [path for path in scripts() if is_model(path)]


def test_the_four_families_are_model_files():
    assert {'gpt.py', 'bert.py', 't5.py', 'electra.py'} <= set(MODELS)


@pytest.mark.parametrize('path', MODELS)
def test_a_model_file_imports_torch_and_numpy_alone(path):
    top, inside = imports(path)
    assert {m for m in top if not within(m, {'torch', 'numpy'})} == set()
    assert {m for m in inside if not within(m, {'torch', 'numpy'} | NEIGHBOURS.get(family_of(path) + '.py', set()))} == set()


def family_of(path):
    """The line `family = ...` of a model file, which a copy keeps."""
    with open(os.path.join(ROOT, path), encoding='utf-8') as f:
        found = re.search(r"^family = '(\w+)'", f.read(), re.M)
    return found[1] if found else path.removesuffix('.py')


@pytest.mark.parametrize('path', [p for p in scripts() if p not in MODELS])
def test_who_imports_whom(path):
    top, inside = imports(path)
    if path == 'sample.py':
        ours = {m.split('.')[0] for m in OURS} - {module_of(m) for m in MODELS}
    elif path == 'train.py':
        ours = {'lib', 'lora', 'adapters', 'bpe', 'data'}
    else:
        folder = next(f for f in ('lib/vocab', 'lib', 'data', '') if path.startswith(f + '/' * bool(f)) or not f)
        ours = BELOW[folder or path]
    allowed = OUTSIDE | ours
    if path.startswith(WITHOUT_TORCH) and path != 'data/files.py':
        allowed -= {'torch'}
    assert {m for m in top if not within(m, allowed)} == set()
    assert {m for m in inside if not within(m, allowed | ON_DEMAND.get(path, set()))} == set()


def test_no_file_imports_itself_by_way_of_others():
    edges = {}
    for module, path in OURS.items():
        top, inside = imports(path)
        edges[module] = (top | inside) & OURS.keys()
    edges['lib.models'] |= {f'lib.{name}' for name in ROWS.values()} & OURS.keys()     # found there by their names
    done = set()

    def visit(module, way):
        assert module not in way, ' -> '.join([*way[way.index(module):], module])
        if module in done:
            return
        for other in sorted(edges[module]):
            visit(other, [*way, module])
        done.add(module)
    for module in edges:
        visit(module, [])


def limit_of(path):
    return LONGEST[path.split('/')[0] if '/' in path else '']


def test_no_file_is_too_long():
    lines = {path: len(read(path).splitlines()) for path in scripts()}
    long = {path: n for path, n in lines.items() if n > limit_of(path)}
    assert not long.keys() - TOO_LONG, {path: long[path] for path in long.keys() - TOO_LONG}
    assert not TOO_LONG - long.keys(), \
        f'short enough now: {sorted(TOO_LONG - long.keys())}; python tests/test_layout.py --shrink'


def exceptions():
    """-> {file: codes} of pyproject.toml's table of files that ruff looks at less closely."""
    table = read('pyproject.toml').partition('[tool.ruff.lint.per-file-ignores]')[2]
    rows = re.findall(r'(?m)^"([^"]+)" = \[(.*)\]', table)
    return {path: re.findall(r'"(\w+)"', codes) for path, codes in rows}


def find_ruff():
    return shutil.which('ruff') or shutil.which('ruff', path=os.path.dirname(sys.executable))


def needed(ruff):
    """-> {(file, code)}: all that ruff finds when it leaves nothing out."""
    command = [ruff, 'check', '.', '--output-format=json', '--config=lint.per-file-ignores={}']
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding='utf-8')
    return {(os.path.relpath(e['filename'], ROOT).replace(os.sep, '/'), e['code']) for e in json.loads(told.stdout)}


def test_ruff_leaves_out_no_more_than_it_must():
    ruff = find_ruff()
    if not ruff:
        pytest.skip('needs ruff')
    found = needed(ruff)
    idle = [f'{path}: {code}' for path, codes in exceptions().items() for code in codes
            if '*' not in path and (path, code) not in found]
    assert not idle, f'no longer needed in pyproject.toml: {", ".join(idle)}; python tests/test_layout.py --shrink'
    told = subprocess.run([ruff, 'check', '.', '--output-format=concise'], cwd=ROOT, capture_output=True, text=True)
    assert not told.returncode, told.stdout


def shrink():
    """Takes out of both tables what is no longer needed."""
    found = needed(find_ruff())
    rows = []
    for line in read('pyproject.toml').splitlines():
        path, _, codes = line.partition(' = ')
        path = path.strip('"')
        if path in exceptions() and '*' not in path:
            left = [code for code in re.findall(r'"(\w+)"', codes) if (path, code) in found]
            if not left:
                continue
            line = f'"{path}" = [' + ', '.join(f'"{code}"' for code in left) + ']'
        rows.append(line)
    with open(os.path.join(ROOT, 'pyproject.toml'), 'w', encoding='utf-8', newline='\n') as f:
        f.write('\n'.join(rows) + '\n')
    left = [path for path in sorted(TOO_LONG) if path in OURS.values() and len(read(path).splitlines()) > limit_of(path)]
    table = 'TOO_LONG = {' + ', '.join(map(repr, left)) + '}' if left else 'TOO_LONG = set()'
    source = re.sub(r'(?m)^TOO_LONG = (\{.*?\}|set\(\))', table, read('tests/test_layout.py'))
    with open(os.path.abspath(__file__), 'w', encoding='utf-8', newline='\n') as f:
        f.write(source)


if __name__ == '__main__':
    assert sys.argv[1:] == ['--shrink'], __doc__
    shrink()
