"""Supervised examples: the kinds there are, by the columns of their lines, and the check that each line passes.

    {"text", "text_b"?, "label"}                   labelled: a class (string or whole number) or a value to regress to (decimal)
    {"input", "target"}                            pairs: text to text
    {"prompt", "response"} or {"messages"}         instruct: chat turns {"role": "system", "user" or "assistant", "content"}
    {"context", "question", "answers"}             qa: a list of {"text", "answer_start"}, empty when there is no answer

    python data/text.py reviews.jsonl              # or at once: python train.py --model=bert --data=reviews.jsonl
"""
import json

COLUMNS = {'labelled': [('text', 'label')], 'pairs': [('input', 'target')], 'instruct': [('prompt', 'response'), ('messages',)],
           'qa': [('context', 'question', 'answers')], 'text': [('text',)]}        # the first kind whose columns a line has
METRIC = dict(labelled='accuracy', pairs='exact_match', instruct='loss', qa='f1')

def kind_of(row):
    return next((kind for kind, sets in COLUMNS.items() if any(set(s) <= row.keys() for s in sets)), None)

def need(row, column, path, number, ok=lambda x: isinstance(x, str), expected='a string'):
    "row[column], or an error that says where, what is there, and what should be"
    if column not in row:
        raise ValueError(f'{path} line {number}: no "{column}" column (it has {", ".join(row) or "none"}); expected it on every line')
    if not ok(row[column]):
        raise ValueError(f'{path} line {number}: "{column}" is {json.dumps(row[column])[:60]}; expected {expected}')
    return row[column]

def check(row, kind, path, number):
    "a supervised example as it is stored, or ValueError"
    get = lambda *args: need(row, args[0], path, number, *args[1:])
    if kind == 'labelled':
        return {c: get(c) for c in ('text', 'text_b') if c == 'text' or c in row} | {'label': get(
            'label', lambda x: isinstance(x, (str, int, float)) and not isinstance(x, bool) and x == x,
            'a string or whole number (a class), or a decimal number (regression)')}
    if kind == 'pairs': return {c: get(c) for c in ('input', 'target')}
    if kind == 'instruct' and 'messages' not in row: return {c: get(c) for c in ('prompt', 'response')}
    if kind == 'instruct':
        turn = lambda m: isinstance(m, dict) and m.get('role') in ('system', 'user', 'assistant') and isinstance(m.get('content'), str)
        messages = get('messages', lambda x: isinstance(x, list) and all(map(turn, x)) and any(m['role'] == 'assistant' for m in x),
                       'a list of {"role": "system", "user" or "assistant", "content": "..."} with an assistant turn to learn from')
        return {'messages': [{'role': m['role'], 'content': m['content']} for m in messages]}
    new, answers = {c: get(c) for c in ('context', 'question')}, row.get('answers')
    if isinstance(answers, dict) and answers.keys() >= {'text', 'answer_start'}:     # SQuAD in columns, as Hugging Face has it
        row = row | {'answers': [dict(text=t, answer_start=s) for t, s in zip(answers['text'], answers['answer_start'])]}
    fits = lambda a: (isinstance(a, dict) and isinstance(a.get('text'), str) and type(a.get('answer_start')) is int
                      and a['answer_start'] >= 0 and new['context'].startswith(a['text'], a['answer_start']))
    answers = get('answers', lambda x: isinstance(x, list) and all(map(fits, x)),
                  'a list, empty when there is no answer, of {"text", "answer_start"} with that text at that place of the context')
    return new | {'answers': [{'text': a['text'], 'answer_start': a['answer_start']} for a in answers]}

def label_names(rows, source):
    "the classes in order, or None when the labels are numbers to regress to"
    seen = {row['label'] for row in rows}
    odd = [next((x for x in seen if isinstance(x, str) == text), None) for text in (True, False)]
    if None not in odd: raise ValueError(f'{source}: some labels are strings ({odd[0]!r}), some are numbers ({odd[1]!r}); expected one type')
    if any(isinstance(x, float) for x in seen): return None
    if len(seen) == 1: raise ValueError(f'{source}: every label is {seen.pop()!r}; expected at least two different ones')
    return sorted(seen)

def strings(value):
    if isinstance(value, str): yield value
    elif isinstance(value, (list, dict)):
        for v in value.values() if isinstance(value, dict) else value: yield from strings(v)
