"""Supervised examples: the kinds there are, by the columns of their lines, and the check that each line passes.

    {"text", "text_b"?, "label"}                   labelled: a class (string, whole number) or a decimal to regress to
    {"text", "choices", "label"}                   choice: which of two or more texts goes on, by its place from 0
    {"tokens", "tags"}                             tagged: words and a tag for each, such as B-PER I-PER O
    {"input", "target", "references"?}             pairs: text to text; texts that count as right, if not target alone
    {"prompt", "response"} or {"messages"}         instruct: turns {"role": "system", "user" or "assistant", "content"}
    {"context", "question", "answers"}             qa: a list of {"text", "answer_start"}, empty when there is no answer

    python data/text.py reviews.jsonl              # or at once: python train.py --model=bert --data=reviews.jsonl
"""
import json

COLUMNS = {'choice': [('text', 'choices', 'label')], 'labelled': [('text', 'label')], 'tagged': [('tokens', 'tags')],
           'pairs': [('input', 'target')], 'instruct': [('prompt', 'response'), ('messages',)],
           'qa': [('context', 'question', 'answers')],
           'text': [('text',)]}                          # the first kind whose columns a line has
METRIC = dict(labelled='accuracy', choice='accuracy', tagged='tags', pairs='exact_match', instruct='loss', qa='squad')

def kind_of(row):
    return next((kind for kind, sets in COLUMNS.items() if any(set(s) <= row.keys() for s in sets)), None)

def columns(row):
    return ', '.join(json.dumps(name, ensure_ascii=False)[1:-1] for name in row)[:200] or 'none'

def need(row, column, path, number, ok=lambda x: isinstance(x, str), expected='a string'):
    "row[column], or an error that says where, what is there, and what should be"
    if column not in row:
        raise ValueError(f'{path} line {number}: no "{column}" column (it has {columns(row)}); '
                         'expected it on every line')
    if not ok(row[column]):
        raise ValueError(f'{path} line {number}: "{column}" is {json.dumps(row[column])[:60]}; expected {expected}')
    return row[column]

def check(row, kind, path, number):
    "a supervised example as it is stored, or ValueError"
    get = lambda *args: need(row, args[0], path, number, *args[1:])
    texts = lambda x: isinstance(x, list) and all(isinstance(t, str) for t in x)
    if kind == 'labelled':
        return {c: get(c) for c in ('text', 'text_b') if c == 'text' or c in row} | {'label': get(
            'label', lambda x: isinstance(x, str) or is_number(x),
            'a string or whole number (a class), or a decimal number (regression)')}
    if kind == 'choice':
        new = {'text': get('text'),
               'choices': get('choices', lambda x: texts(x) and len(x) > 1, 'a list of two or more strings')}
        n = len(new['choices'])
        return new | {'label': get('label', lambda x: type(x) is int and 0 <= x < n,
                                   f'the place of the right choice, 0 to {n - 1}')}
    if kind == 'tagged':
        new = {'tokens': get('tokens', lambda x: texts(x) and x, 'a list of words, strings')}
        n = len(new['tokens'])
        fits = lambda x: isinstance(x, list) and len(x) == n and all(type(t) in (str, int) for t in x)
        return new | {'tags': get('tags', fits, f'as many strings or whole numbers as there are tokens: {n}')}
    if kind == 'pairs':
        new = {c: get(c) for c in ('input', 'target')}
        if row.get('references') is None: return new     # several texts that are right: BLEU and ROUGE take the best
        return new | {'references': get('references', lambda x: texts(x) and x, 'a list of strings, one or more')}
    if kind == 'instruct' and 'messages' not in row: return {c: get(c) for c in ('prompt', 'response')}
    if kind == 'instruct':
        turn = lambda m: (isinstance(m, dict) and m.get('role') in ('system', 'user', 'assistant')
                          and isinstance(m.get('content'), str))
        messages = get('messages', lambda x: (isinstance(x, list) and all(map(turn, x))
                                              and any(m['role'] == 'assistant' for m in x)),
                       'a list of {"role": "system", "user" or "assistant", "content": "..."} '
                       'with an assistant turn to learn from')
        return {'messages': [{'role': m['role'], 'content': m['content']} for m in messages]}
    new, answers = {c: get(c) for c in ('context', 'question')}, row.get('answers')
    if isinstance(answers, dict) and answers.keys() >= {'text', 'answer_start'}:     # as Hugging Face has SQuAD
        row = row | {'answers': [dict(text=t, answer_start=s)
                                 for t, s in zip(answers['text'], answers['answer_start'])]}
    fits = lambda a: (isinstance(a, dict) and isinstance(a.get('text'), str) and type(a.get('answer_start')) is int
                      and a['answer_start'] >= 0 and new['context'].startswith(a['text'], a['answer_start']))
    answers = get('answers', lambda x: isinstance(x, list) and all(map(fits, x)),
                  'a list, empty when there is no answer, of {"text", "answer_start"} '
                  'with that text at that place of the context')
    return new | {'answers': [{'text': a['text'], 'answer_start': a['answer_start']} for a in answers]}

def check_stored(row, kind, labels, path, number):
    "an example of a prepared folder, where a class is its place among the labels: ValueError if it can not be one"
    check(row, kind, path, number)
    found = row['tags'] if kind == 'tagged' else [row['label']] if kind == 'labelled' and labels else []
    if odd := [x for x in found if type(x) is not int or not 0 <= x < len(labels or ())]:
        raise ValueError(f'{path} line {number}: the class {str(odd[0])[:40]!r}; expected a place among the '
                         f'{len(labels or ())} labels of meta.json: prepare the data again')

def is_number(x):                                        # one that fp32 holds: not NaN, not Infinity, not True
    return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e38

def label_names(labels, source):
    "the classes in order, or None when the labels are numbers to regress to"
    seen = set(labels)
    odd = [next((x for x in seen if isinstance(x, str) == text), None) for text in (True, False)]
    if None not in odd:
        raise ValueError(f'{source}: some labels are strings ({odd[0]!r}), some are numbers ({odd[1]!r}); '
                         'expected one type')
    if any(isinstance(x, float) for x in seen): return None
    if len(seen) == 1:
        raise ValueError(f'{source}: every label is {seen.pop()!r}; expected at least two different ones')
    return sorted(seen)

def mended(value):
    "half characters (\\ud800), which JSON can spell and UTF-8 can not, become U+FFFD"
    if isinstance(value, str):
        try: return value if value.isascii() or value.encode() else value
        except UnicodeEncodeError: return value.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    if isinstance(value, list): return [*map(mended, value)]
    return {k: mended(v) for k, v in value.items()} if isinstance(value, dict) else value

def strings(value):
    if isinstance(value, str): yield value
    elif isinstance(value, (list, dict)):
        for v in value.values() if isinstance(value, dict) else value: yield from strings(v)
