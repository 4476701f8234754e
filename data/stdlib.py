"""The source code of the Python standard library that runs this: about 12 MB of text, no network.

What: every module but its tests (they are more than the library itself), in sorted order, a file a
document. Two supervised tasks come from the same files, split by file, so that nothing of a file is
on both sides:
  names    a function's body -> its name        {"input": "def _(self, x): ...", "target": "name"};
                                                the name is struck out
  modules  a dozen lines -> their package       {"text": "...", "label": "email"}; the package's
                                                name is struck out

    python data/stdlib.py                           # data/stdlib: byte pairs, 8192 tokens
    python data/stdlib.py --task=names              # then: python train.py --data=stdlib-names
"""
import ast
import collections
import hashlib
import os
import platform
import re
import sys
import sysconfig

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

tasks = ('names', 'modules')
LEFT_OUT = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
MOST_PACKAGES = 20
MOST_SNIPPETS = 600             # of a package


def sources(root):
    """Yields the modules that are UTF-8 as (path below root, text), in sorted order."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in LEFT_OUT)
        for name in sorted(n for n in names if n.endswith('.py')):
            path = os.path.join(folder, name)
            try:
                with open(path, encoding='utf-8', newline='') as f:
                    yield os.path.relpath(path, root), f.read()
            except UnicodeDecodeError:
                pass


def functions_of(code):
    """The functions of a module that have a name worth guessing, and the module's lines."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return [], []
    found = [node for node in ast.walk(tree)
             if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
             and not node.name.startswith('__') and len(node.name) >= 3]
    return found, code.splitlines(keepends=True)


def functions(root):
    """Yields the examples of task names as (path, example)."""
    seen = set()
    for path, code in sources(root):
        found, lines = functions_of(code)
        for node in found:
            body = ''.join(lines[node.lineno - 1:node.end_lineno])
            body = re.sub(rf'(?m)^[ \t]{{{node.col_offset}}}', '', body)
            # wherever the name is, or the answer would be in the question
            body = re.sub(rf'\b{re.escape(node.name)}\b', '_', body).strip()
            if 60 <= len(body) <= 1000 and body not in seen:
                seen.add(body)
                yield path, {'input': body, 'target': node.name}


def snippets(root, lines=12):
    """Yields the examples of task modules as (path, example).

    They are from the 20 packages with most snippets that have three or more files, and at most 600
    of each.
    """
    found = collections.defaultdict(list)
    for path, code in sources(root):
        package = path.split(os.sep)[0]
        if package == path:                             # a module of its own
            continue
        rows = [row for row in code.splitlines() if row.strip()]
        for i in range(0, len(rows) - lines + 1, lines):
            snippet = '\n'.join(rows[i:i + lines])
            snippet = re.sub(rf'(?i)(?<![a-z0-9]){package}(?![a-z0-9])', '_', snippet)
            found[package].append((path, {'text': snippet, 'label': package}))
    large = [p for p in found if len({path for path, _ in found[p]}) >= 3]
    large.sort(key=lambda p: (-len(found[p]), p))
    for package in sorted(large[:MOST_PACKAGES]):
        stride = -(-len(found[package]) // MOST_SNIPPETS)               # rounded up
        yield from found[package][::stride]


def files_for_validation(counts):
    """The files of a label that are for validation: in hash order, until they have a tenth of it.

    counts: the number of examples of each file. A file with too many of them is not taken.
    """
    taken = set()
    size = 0
    in_order = sorted(counts, key=lambda path: hashlib.sha256(path.encode()).digest())
    for path in in_order[:-1]:
        if size * 10 >= counts.total():
            break
        if (size + counts[path]) * 3 <= counts.total():
            taken.add(path)
            size += counts[path]
    return taken


def by_file(examples):
    """Splits (path, example) by path into examples to train on and examples for validation."""
    counts = collections.defaultdict(collections.Counter)               # by label
    for path, example in examples:
        counts[example.get('label')][path] += 1
    val = set()
    for files in counts.values():
        val |= files_for_validation(files)
    return ([example for path, example in examples if path not in val],
            [example for path, example in examples if path in val])


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task=''):
    """Makes data/stdlib, running text, or data/stdlib-TASK. Returns the folder.

    source: another folder of Python files
    """
    if task not in ('', *tasks):
        raise ValueError(f'--task={task}: expected one of {", ".join(tasks)}')
    root = source or sysconfig.get_paths()['stdlib']
    what = source or f'standard library of Python {platform.python_version()}'

    def write_code(folder, **tokenizing):
        def read():
            for _, code in sources(root):
                if code:
                    yield from text.pieces(code)

        total = sum(len(code.encode()) for _, code in sources(root))
        return text.write_text(folder, read, total=total, source=what, **tokenizing)

    def write_task(folder, **tokenizing):
        kind, read = ('pairs', functions) if task == 'names' else ('labelled', snippets)
        train, val = by_file(list(read(root)))
        return text.write_examples(folder, kind, lambda: map(dict, train), lambda: map(dict, val),
                                   source=f'{what}, {task}', **tokenizing)

    def write(folder, **tokenizing):
        if not any(True for _ in sources(root)):
            raise FileNotFoundError(f'{root}: holds no .py files; pass the folder of some Python '
                                    'source: --source=FOLDER')
        return write_task(folder, **tokenizing) if task else write_code(folder, **tokenizing)

    name = f'stdlib-{task}' if task else 'stdlib'
    return text.make(name, write, tokenizer, vocab_size, 'bpe8192', out)


if __name__ == '__main__':
    text.script(prepare, __doc__)
