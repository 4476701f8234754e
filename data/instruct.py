"""Instructions with answers, for instruction tuning: a small set, Alpaca's, or your own file.

What: {"prompt", "response"}, or {"messages"} for conversations. The prompt is the instruction and,
after an empty line, its input if there is one; no other words are added. Read are a .json list, a
.json object with such a list, or .jsonl (or .gz of these) of

    {"instruction", "input"?, "output"}             Alpaca; "context" and "response": Dolly
    {"instruction", "instances": [{"input", "output"}]}     self-instruct (Wang et al. 2022, arXiv
                                                    2212.10560)
    {"conversations": [{"from": "human" or "gpt", "value"}]}    ShareGPT
    {"messages"}, {"prompt", "response"}            as they are

The default is 1,100 instructions by Sebastian Raschka (Apache 2.0); task alpaca has 52,002 that a
language model has written (Taori et al. 2023; CC BY-NC 4.0). A twentieth is for validation, chosen
by instruction, so that none is on both sides.

    python data/instruct.py                         # then: train.py --model=gpt --data=instruct
    python data/instruct.py --source=mine.json --out=data/mine --share=0.1
"""
import json
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import supervised, text

URLS = {
    '': 'https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/'
        'instruction-data.json',
    'alpaca': 'https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json',
}
tasks = ('alpaca',)
EXPECTED = ('{"instruction", "input", "output"}, {"instruction", "instances"}, {"conversations"}, '
            '{"messages"} or {"prompt", "response"}')
ROLES = dict(human='user', user='user', gpt='assistant', assistant='assistant', bot='assistant',
             system='system')


def read_json(path):
    """The list of examples in a .json file. Raises ValueError if there is none."""
    with text.reading(path), text.open_binary(path) as f:
        try:
            found = json.load(f)
        except UnicodeDecodeError:                      # text.reading() says what is wrong
            raise
        except (ValueError, RecursionError) as e:
            raise ValueError(f'{path}: not JSON ({" ".join(str(e).split())[:80]}); '
                             f'expected a list of {EXPECTED}') from None
    if isinstance(found, dict):
        found = next((value for value in found.values() if isinstance(value, list)), None)
    if not isinstance(found, list) or not found:
        raise ValueError(f'{path}: holds no list of examples; expected one of {EXPECTED}')
    return found


def records(path):
    """Yields the examples of a .jsonl or .json file as they are: (number, dict)."""
    if text.suffix(path) != '.json':
        yield from text.read_jsonl(path)
        return
    for number, row in enumerate(read_json(path), 1):
        if not isinstance(row, dict):
            raise ValueError(f'{path} item {number}: {json.dumps(row)[:40]}; expected {EXPECTED}')
        yield number, row


def some_dicts(x):
    """Whether x is a list of one or more dicts."""
    return isinstance(x, list) and len(x) > 0 and all(isinstance(item, dict) for item in x)


def as_messages(row, path, number):
    """A conversation in ShareGPT's layout as {"messages"}."""
    turns = supervised.need(row, 'conversations', path, number, some_dicts,
                            'a list of {"from", "value"}')
    if isinstance(row.get('chosen'), dict):             # of two answers the better one
        turns = turns + [row['chosen']]
    messages = []
    for turn in turns:
        role = ROLES.get(str(turn.get('from', turn.get('role'))))
        messages.append(dict(role=role, content=turn.get('value', turn.get('content'))))
    return dict(messages=messages)


def pairs_of(row, path, number):
    """Yields (prompt, response) for each answer to an instruction; the response may be empty."""
    def get(row, *names):
        name = next((n for n in names if n in row), names[0])
        return supervised.need(row, name, path, number).strip()

    instruction = get(row, 'instruction')
    instances = [row]
    if 'instances' in row:
        instances = supervised.need(row, 'instances', path, number, some_dicts,
                                    'a list of {"input", "output"}')
    for instance in instances:
        given = ''
        if 'input' in instance or 'context' in instance:
            given = get(instance, 'input', 'context')
        if given.strip('<>').lower().replace(' ', '') == 'noinput':     # how some files say: none
            given = ''
        prompt = '\n\n'.join(filter(None, (instruction, given)))
        yield prompt, get(instance, 'output', 'response')


def examples(path):
    """Yields (instruction, example), where an example is {'prompt', 'response'} or {'messages'}.

    Empty answers are left out, since they teach nothing; a line on stderr says how many.
    """
    empty = 0
    for number, row in records(path):
        row = supervised.mended(row)
        if 'conversations' in row:
            row = as_messages(row, path, number)
        if 'messages' in row or 'prompt' in row:
            example = supervised.check(row, 'instruct', path, number)
            yield example.get('prompt') or example['messages'][0]['content'], example
            continue
        for prompt, response in pairs_of(row, path, number):
            if response:
                yield row['instruction'].strip(), {'prompt': prompt, 'response': response}
            else:
                empty += 1
    if empty:
        print(f'{path}: left out {empty} examples with an empty answer', file=sys.stderr)


def split(found, share):
    """Functions that return the examples to train on and for validation, picked by instruction.

    found: list of (instruction, example). The second is None if one side would be empty.
    """
    sides = [[], []]
    for instruction, example in found:
        sides[text.for_validation(instruction, share)].append(example)
    if not sides[0] or not sides[1]:
        return lambda: (dict(example) for _, example in found), None
    return lambda: map(dict, sides[0]), lambda: map(dict, sides[1])


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='', share=0.05):
    """Makes data/instruct or data/instruct-alpaca. Returns the folder.

    share: how much is for validation
    """
    if task not in URLS:
        raise ValueError(f'--task={task}: expected {" or ".join(tasks)}, or none')
    if not 0 < share < 1:
        raise ValueError(f'--share={share}: expected a share between 0 and 1, like 0.05')
    made_of = ''
    paths = []
    if source:
        paths = text.files(source)
        made_of = f'{text.fingerprint(paths)} {share}'

    def write(folder, **tokenizing):
        found = paths or [text.fetch(f'{task or "small"}.json', URLS[task], 'instruct',
                                     max_bytes=1 << 26)]
        train, val = split([pair for path in found for pair in examples(path)], share)
        return text.write_examples(folder, 'instruct', train, val, source=source or URLS[task],
                                   share=share, made_of=made_of, **tokenizing)

    name = f'instruct-{task}' if task else 'instruct'
    folder = text.make(name, write, tokenizer, vocab_size, 'bpe8192', out)
    return text.same_source(folder, made_of)


if __name__ == '__main__':
    text.script(prepare, __doc__)
