"""Supervised examples: the kinds there are, told by the columns of a line, and a check of each.

    {"text", "text_b"?, "label"}               labelled: a class (string, whole number) or a decimal
                                               number to regress to
    {"text", "choices", "label"}               choice: which of two or more texts goes on, by its
                                               place from 0
    {"tokens", "tags"}                         tagged: words, and a tag for each such as B-PER
    {"input", "target", "references"?}         pairs: text to text; references are all texts that
                                               count as right, if target is not the only one
    {"prompt", "response"} or {"messages"}     instruct: turns {"role": "system", "user" or
                                               "assistant", "content"}
    {"context", "question", "answers"}         qa: a list of {"text", "answer_start"}, empty when
                                               there is no answer

    python data/text.py reviews.jsonl          # or at once: train.py --model=bert --data=...
"""
import json

# The kind of a line is the first one whose columns it has
COLUMNS = {
    'choice': [('text', 'choices', 'label')],
    'labelled': [('text', 'label')],
    'tagged': [('tokens', 'tags')],
    'pairs': [('input', 'target')],
    'instruct': [('prompt', 'response'), ('messages',)],
    'qa': [('context', 'question', 'answers')],
    'text': [('text',)],
}
METRIC = dict(labelled='accuracy', choice='accuracy', tagged='tags', pairs='exact_match',
              instruct='loss', qa='squad')
ROLES = ('system', 'user', 'assistant')


def kind_of(row):
    """The kind of data that a line has the columns of, or None."""
    for kind, sets in COLUMNS.items():
        if any(set(columns) <= row.keys() for columns in sets):
            return kind
    return None


def columns(row):
    """The names of a line's columns, for messages."""
    names = (json.dumps(name, ensure_ascii=False)[1:-1] for name in row)
    return ', '.join(names)[:200] or 'none'


# ----------------------------------------------------------------------------- what a value may be

def is_text(x):
    return isinstance(x, str)


def are_texts(x):
    """Whether x is a list of strings."""
    return isinstance(x, list) and all(map(is_text, x))


def some_texts(x):
    """Whether x is a list of one or more strings."""
    return are_texts(x) and len(x) > 0


def is_number(x):
    """Whether x is a number that fp32 holds: not NaN, not Infinity, not True."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e38


def is_turn(x):
    """Whether x is a turn of a conversation, {"role", "content"}."""
    return isinstance(x, dict) and x.get('role') in ROLES and is_text(x.get('content'))


def are_messages(x):
    """Whether x is a conversation with an assistant turn to learn from."""
    if not isinstance(x, list) or not all(map(is_turn, x)):
        return False
    return any(turn['role'] == 'assistant' for turn in x)


def need(row, column, path, number, ok=is_text, expected='a string'):
    """row[column], or a ValueError that says where it stands, what it is and what it should be."""
    if column not in row:
        raise ValueError(f'{path} line {number}: no "{column}" column (it has {columns(row)}); '
                         'expected it on every line')
    if not ok(row[column]):
        raise ValueError(f'{path} line {number}: "{column}" is {json.dumps(row[column])[:60]}; '
                         f'expected {expected}')
    return row[column]


# --------------------------------------------------------------------- a check of each kind of line
#
# Each returns the columns that are stored, and raises ValueError if one of them is wrong.
# get(column, ok, expected) is need() of the line that is checked.

def check_labelled(row, get):
    new = {'text': get('text')}
    if 'text_b' in row:
        new['text_b'] = get('text_b')
    new['label'] = get('label', lambda x: is_text(x) or is_number(x),
                       'a string or whole number (a class), or a decimal number (regression)')
    return new


def check_choice(row, get):
    new = {'text': get('text')}
    new['choices'] = get('choices', lambda x: are_texts(x) and len(x) > 1,
                         'a list of two or more strings')
    n = len(new['choices'])
    new['label'] = get('label', lambda x: type(x) is int and 0 <= x < n,
                       f'the place of the right choice, 0 to {n - 1}')
    return new


def check_tagged(row, get):
    words = get('tokens', some_texts, 'a list of words, strings')
    n = len(words)

    def fits(x):
        return isinstance(x, list) and len(x) == n and all(type(tag) in (str, int) for tag in x)

    tags = get('tags', fits, f'as many strings or whole numbers as there are tokens: {n}')
    return {'tokens': words, 'tags': tags}


def check_pairs(row, get):
    new = {'input': get('input'), 'target': get('target')}
    if row.get('references') is not None:       # BLEU and ROUGE take the best of them
        new['references'] = get('references', some_texts, 'a list of strings, one or more')
    return new


def check_instruct(row, get):
    if 'messages' not in row:
        return {'prompt': get('prompt'), 'response': get('response')}
    messages = get('messages', are_messages,
                   'a list of {"role": "system", "user" or "assistant", "content": "..."} '
                   'with an assistant turn to learn from')
    return {'messages': [{'role': m['role'], 'content': m['content']} for m in messages]}


def check_qa(row, get):
    new = {'context': get('context'), 'question': get('question')}

    def is_answer(x):
        if not isinstance(x, dict) or not is_text(x.get('text')):
            return False
        start = x.get('answer_start')
        return type(start) is int and start >= 0 and new['context'].startswith(x['text'], start)

    answers = get('answers', lambda x: isinstance(x, list) and all(map(is_answer, x)),
                  'a list, empty when there is no answer, of {"text", "answer_start"} '
                  'with that text at that place of the context')
    new['answers'] = [{'text': a['text'], 'answer_start': a['answer_start']} for a in answers]
    return new


def as_list(answers):
    """Answers as Hugging Face has those of SQuAD, a dict of two lists, become a list of dicts."""
    if not isinstance(answers, dict):
        return answers
    texts = answers.get('text')
    starts = answers.get('answer_start')
    if not isinstance(texts, list) or not isinstance(starts, list):
        return answers
    return [dict(text=text, answer_start=start) for text, start in zip(texts, starts)]


CHECKS = dict(labelled=check_labelled, choice=check_choice, tagged=check_tagged, pairs=check_pairs,
              instruct=check_instruct, qa=check_qa)


def check(row, kind, path, number):
    """A line of a .jsonl file as the example that is stored: the columns of its kind alone.

    Raises ValueError with the file, the line's number and what was expected.
    """
    if kind == 'qa' and 'answers' in row:
        row = row | {'answers': as_list(row['answers'])}

    def get(column, ok=is_text, expected='a string'):
        return need(row, column, path, number, ok, expected)

    return CHECKS[kind](row, get)


def check_stored(row, kind, labels, path, number):
    """Checks an example of a prepared folder, where a class is its place among the labels.

    Raises ValueError if the example is not one of its kind, or its label is not such a place.
    """
    check(row, kind, path, number)
    classes = []
    if kind == 'tagged':
        classes = row['tags']
    elif kind == 'labelled' and labels:
        classes = [row['label']]
    n = len(labels or ())
    for x in classes:
        if type(x) is not int or not 0 <= x < n:
            raise ValueError(f'{path} line {number}: the class {str(x)[:40]!r}; expected a place '
                             f'among the {n} labels of meta.json: prepare the data again')


def label_names(labels, source):
    """The classes in order, or None when the labels are numbers to regress to.

    Raises ValueError if some are strings and some are numbers, or if all are the same.
    """
    seen = set(labels)
    text = next((x for x in seen if is_text(x)), None)
    number = next((x for x in seen if not is_text(x)), None)
    if text is not None and number is not None:
        raise ValueError(f'{source}: some labels are strings ({text!r}), some are numbers '
                         f'({number!r}); expected one type')
    if any(isinstance(x, float) for x in seen):
        return None
    if len(seen) == 1:
        raise ValueError(f'{source}: every label is {seen.pop()!r}; '
                         'expected at least two different ones')
    return sorted(seen)


# ----------------------------------------------------------------------------------- strings in it

def mended(value):
    """Replaces half characters (\\ud800), which JSON can spell and UTF-8 cannot, by U+FFFD."""
    if isinstance(value, list):
        return [mended(v) for v in value]
    if isinstance(value, dict):
        return {k: mended(v) for k, v in value.items()}
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return value


def strings(value):
    """Yields all strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from strings(v)
    elif isinstance(value, list):
        for v in value:
            yield from strings(v)
