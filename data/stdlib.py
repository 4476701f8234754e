"""The source code of the Python standard library that runs this: about 12 MB of real text on every machine, no network.

What: every module but its tests (they are more than the library itself), in sorted order, a file a document. Two
supervised tasks come from the same files, split by file so that nothing of a file stands on both sides:
  names    a function's body -> its name        {"input": "def _(self, x): ...", "target": "name"}, the name struck out
  modules  a dozen lines -> their package       {"text": "...", "label": "email"}, the package's name struck out

    python data/stdlib.py                                    # data/stdlib: byte pairs, 8192 tokens
    python data/stdlib.py --task=names                       # then: python train.py --data=stdlib-names
"""
import ast, collections, hashlib, os, platform, re, sys, sysconfig

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

tasks = ('names', 'modules')
LEFT_OUT = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}

def sources(root):
    "(path below root, text) of each module in sorted order; what is not UTF-8 is left out."
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in LEFT_OUT)
        for name in sorted(n for n in names if n.endswith('.py')):
            path = os.path.join(folder, name)
            try:
                with open(path, encoding='utf-8', newline='') as f:
                    yield os.path.relpath(path, root), f.read()
            except UnicodeDecodeError:
                pass

def functions(root):
    "-> (path, example) of task names"
    seen = set()
    for path, code in sources(root):
        try: tree, lines = ast.parse(code), code.splitlines(keepends=True)
        except (SyntaxError, ValueError): continue
        for node in ast.walk(tree):
            if (not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith('__')
                    or len(node.name) < 3): continue
            body = ''.join(lines[node.lineno - 1:node.end_lineno])
            body = re.sub(rf'(?m)^[ \t]{{{node.col_offset}}}', '', body)
            # wherever it stands, or the answer is in the question
            body = re.sub(rf'\b{re.escape(node.name)}\b', '_', body).strip()
            if 60 <= len(body) <= 1000 and body not in seen:
                seen.add(body)
                yield path, {'input': body, 'target': node.name}

def snippets(root, lines=12, most=600):
    "-> (path, example) of task modules: the 20 packages of three or more files with most snippets, up to `most` each"
    found = collections.defaultdict(list)
    for path, code in sources(root):
        package, rows = path.split(os.sep)[0], [r for r in code.splitlines() if r.strip()]
        for i in range(0, len(rows) - lines + 1, lines) if package != path else ():
            snippet = re.sub(rf'(?i)(?<![a-z0-9]){package}(?![a-z0-9])', '_', '\n'.join(rows[i:i + lines]))
            found[package].append((path, {'text': snippet, 'label': package}))
    kept = [p for p in found if len({path for path, _ in found[p]}) >= 3]
    for package in sorted(sorted(kept, key=lambda p: (-len(found[p]), p))[:20]):
        yield from found[package][::-(-len(found[package]) // most)]

def by_file(examples):
    "-> examples to train on, for validation: of each label, files in hash order until they are a tenth of its examples"
    groups, val = collections.defaultdict(collections.Counter), set()
    for path, example in examples: groups[example.get('label')][path] += 1
    for counts in groups.values():
        taken = 0
        for path in sorted(counts, key=lambda path: hashlib.sha256(path.encode()).digest())[:-1]:
            if taken * 10 >= counts.total(): break
            if (taken + counts[path]) * 3 <= counts.total():               # not a file that is most of it
                val.add(path)
                taken += counts[path]
    return [[example for path, example in examples if (path in val) == side] for side in (False, True)]

def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task=''):
    "-> data/stdlib (running text) or data/stdlib-names, data/stdlib-modules. source: another folder of Python files."
    if task not in ('', *tasks): raise ValueError(f'--task={task}: expected one of {", ".join(tasks)}')
    root = source or sysconfig.get_paths()['stdlib']
    def write(folder, **tokenizing):
        name = source or f'standard library of Python {platform.python_version()}'
        if not any(True for _ in sources(root)):
            raise FileNotFoundError(f'{root}: holds no .py files; pass the folder of some Python source: '
                                    '--source=FOLDER')
        if task:
            train, val = by_file(list((functions if task == 'names' else snippets)(root)))
            fresh = lambda rows: lambda: map(dict, rows)
            return text.write_examples(folder, 'pairs' if task == 'names' else 'labelled', fresh(train), fresh(val),
                                       source=f'{name}, {task}', **tokenizing)
        read = lambda: (piece for _, code in sources(root) if code for piece in text.pieces(code))
        total = sum(len(code.encode()) for _, code in sources(root))
        return text.write_text(folder, read, total=total, source=name, **tokenizing)
    return text.make('stdlib' + (task and '-' + task), write, tokenizer, vocab_size, 'bpe8192', out)

if __name__ == '__main__': text.script(prepare, __doc__)
