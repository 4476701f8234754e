"""Instructions with answers, for instruction tuning: a small set, Alpaca's, or your own file in a usual layout.

What: {"prompt", "response"}, or {"messages"} for conversations. The prompt is the instruction and, after an empty line,
its input if there is one; no other words are added. Read are a .json list, a .json object with such a list, or .jsonl
(or .gz of these) of

    {"instruction", "input"?, "output"}                      Alpaca; also "context" and "response", as Dolly has them
    {"instruction", "instances": [{"input", "output"}]}      self-instruct (Wang et al. 2022, arXiv 2212.10560)
    {"conversations": [{"from": "human" or "gpt", "value"}]} ShareGPT; {"messages"}, {"prompt", "response"} as they are

The default is 1,100 instructions by Sebastian Raschka (Apache 2.0); task alpaca has 52,002 that a language model has
written (Taori et al. 2023; CC BY-NC 4.0). A twentieth is for validation, chosen by instruction, so that none stands on
both sides.

    python data/instruct.py                                  # then: python train.py --model=gpt --data=instruct
    python data/instruct.py --source=mine.json --out=data/mine --share=0.1
"""
import json, os, sys

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import supervised, text

URLS = {'': 'https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/'
            'instruction-data.json',
        'alpaca': 'https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json'}
tasks = ('alpaca',)
EXPECTED = ('{"instruction", "input", "output"}, {"instruction", "instances"}, {"conversations"}, {"messages"} or '
            '{"prompt", "response"}')
ROLES = dict(human='user', user='user', gpt='assistant', assistant='assistant', bot='assistant', system='system')


def records(path):
    "a .jsonl or .json file -> (place, dict)"
    if text.suffix(path) != '.json':
        yield from text.read_jsonl(path)
        return
    with text.reading(path), text.open_binary(path) as f:
        try: found = json.load(f)
        except UnicodeDecodeError: raise
        except (ValueError, RecursionError) as e:
            raise ValueError(f'{path}: not JSON ({" ".join(str(e).split())[:80]}); '
                             f'expected a list of {EXPECTED}') from None
    if isinstance(found, dict): found = next((v for v in found.values() if isinstance(v, list)), None)
    if not isinstance(found, list) or not found:
        raise ValueError(f'{path}: holds no list of examples; expected one of {EXPECTED}')
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise ValueError(f'{path} item {number}: {json.dumps(row)[:40]}; expected {EXPECTED}')
        yield number, row


def examples(path):
    "-> (instruction, example): {'prompt', 'response'} or {'messages'}; empty answers are left out, they teach nothing"
    empty, dicts = 0, lambda x: isinstance(x, list) and x != [] and all(isinstance(i, dict) for i in x)
    for number, row in records(path):
        row = supervised.mended(row)
        get = lambda row, *names: supervised.need(row, next((n for n in names if n in row), names[0]), path, number)
        if 'conversations' in row:
            turns = supervised.need(row, 'conversations', path, number, dicts, 'a list of {"from", "value"}')
            if isinstance(row.get('chosen'), dict): turns = turns + [row['chosen']]      # of two answers the better one
            row = dict(messages=[
                dict(role=ROLES.get(str(t.get('from', t.get('role')))), content=t.get('value', t.get('content')))
                for t in turns])
        if 'messages' in row or 'prompt' in row:
            example = supervised.check(row, 'instruct', path, number)
            yield example.get('prompt') or example['messages'][0]['content'], example
            continue
        instruction = get(row, 'instruction').strip()
        several = [row]
        if 'instances' in row:
            several = supervised.need(row, 'instances', path, number, dicts, 'a list of {"input", "output"}')
        for instance in several:
            given = get(instance, 'input', 'context').strip() if {'input', 'context'} & instance.keys() else ''
            if given.strip('<>').lower().replace(' ', '') == 'noinput': given = ''       # how some files say: none
            response = get(instance, 'output', 'response').strip()
            if response:
                yield instruction, {'prompt': '\n\n'.join(filter(None, (instruction, given))), 'response': response}
            empty += not response
    if empty: print(f'{path}: left out {empty} examples with an empty answer', file=sys.stderr)


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='', share=0.05):
    "-> data/instruct or data/instruct-alpaca. share: how much is for validation"
    if task not in URLS: raise ValueError(f'--task={task}: expected {" or ".join(tasks)}, or none')
    if not 0 < share < 1: raise ValueError(f'--share={share}: expected a share between 0 and 1, like 0.05')
    made_of = ''
    if source:
        paths = text.files(source)
        made_of = f'{text.fingerprint(paths)} {share}'
    def write(folder, **tokenizing):
        found = paths if source else [text.fetch(f'{task or "small"}.json', URLS[task], 'instruct', max_bytes=1 << 26)]
        rows = [pair for path in found for pair in examples(path)]
        side = lambda n: lambda: (dict(e) for instruction, e in rows if text.for_validation(instruction, share) == n)
        train, val = ((side(0), side(1)) if 0 < sum(1 for _ in side(1)()) < len(rows)
                      else (lambda: (dict(e) for _, e in rows), None))
        return text.write_examples(folder, 'instruct', train, val, source=source or URLS[task], share=share,
                                   made_of=made_of, **tokenizing)
    return text.same_source(
        text.make('instruct' + (task and '-' + task), write, tokenizer, vocab_size, 'bpe8192', out), made_of)


if __name__ == '__main__': text.script(prepare, __doc__)
