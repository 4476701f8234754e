"""Instruction data: the chat template, and conversations as rows of a causal decoder.

What a model file declares in `kinds` as instruct and does not encode itself comes from here:
encode, collate, predict (see lib/models.py), and chat for conversations with a person.
"""
import numpy as np

ROLES = ('system', 'user', 'assistant')
STEP = 64                # packed rows are multiples of this wide: few shapes for compiled code
DOUBLINGS = 8            # packed rows are up to 2^7 times as wide as the longest example needs


def turns(messages, tokenizer):
    """The chat template: [{'role': 'system', 'user' or 'assistant', 'content'}] -> for each message
    the ids of its header and of what is said.

    The headers are the special tokens <|sentinel_0|>, 1 and 2; in a vocabulary without sentinels
    (gpt2) the texts "System:", "User:" and "Assistant:" on a line of their own, with an empty line
    before the next. All begins with the begin-of-text token, or where there is none with
    end-of-text. What the assistant says ends with end-of-text, so that a tuned model stops by
    itself. In contents, names of special tokens are plain text: nobody can speak for another. A
    message without content is a header alone. ValueError if the vocabulary has no end-of-text
    token.
    """
    if tokenizer.eot is None:
        raise ValueError(f'the vocabulary {tokenizer.name} has no end-of-text token, which ends a '
                         'response: use one that has it, such as --tokenizer=bpe')
    has_sentinels = len(tokenizer.sentinels) >= len(ROLES)
    bos = getattr(tokenizer, 'bos', None)
    header = [tokenizer.eot if bos is None else bos]
    for message in messages:
        role = message['role']
        if has_sentinels:
            header.append(tokenizer.sentinels[ROLES.index(role)])
        else:
            header += tokenizer.encode(role.title() + ':\n')
        said = []
        if 'content' in message:
            said = [*tokenizer.encode(message['content'])]
            if role == 'assistant':
                said.append(tokenizer.eot)
            elif not has_sentinels:
                said += tokenizer.encode('\n\n')
        yield header, said
        header = []


def chat(messages, tokenizer, config):
    """Messages as `turns` has them -> ids, up to where the assistant speaks next"""
    ids = []
    for header, said in turns([*messages, dict(role='assistant')], tokenizer):
        ids += header + said
    return ids


def messages_of(example):
    """{"prompt", "response"} or {"messages"} -> messages. Raises ValueError if a text is missing or
    the assistant says nothing."""
    if 'messages' in example:
        messages = example['messages']
    else:
        messages = [dict(role='user', content=example.get('prompt')),
                    dict(role='assistant', content=example.get('response'))]
    are_texts = all(isinstance(m['content'], str) for m in messages)
    responses = [m['content'] for m in messages if m['role'] == 'assistant']
    if not are_texts or not responses or not all(r.strip() for r in responses):
        raise ValueError(f'{str(example)[:100]}: a text is missing, or a response is empty; '
                         'expected {"prompt", "response"} or {"messages"} in which the assistant '
                         'says something')
    return messages


def encode(example, tokenizer, config):
    """{"prompt", "response"} or {"messages"} -> [{'ids', 'targets'}], lists of up to block_size.

    Targets are -1 but for what the assistant says and the end-of-text after it. Messages after the
    last response are left out. A conversation that is too long loses its beginning, but keeps at
    least half of block_size before the last response, which then loses its end.
    """
    messages = messages_of(example)
    last = max(i for i, m in enumerate(messages) if m['role'] == 'assistant')
    messages = messages[:last + 1]
    ids = []
    targets = []
    for message, (header, said) in zip(messages, turns(messages, tokenizer)):
        ids += header
        targets += [-1] * len(header)
        start = len(ids)                                   # when all is done: of the last response
        ids += said
        targets += said if message['role'] == 'assistant' else [-1] * len(said)

    T = config.block_size
    room = T + 1 - (len(ids) - start)                      # for what is before a whole response
    cut = max(0, start - max(room, T // 2, 1))
    ids = ids[cut:cut + T + 1]
    targets = targets[cut:cut + T + 1]
    return [dict(ids=ids[:-1], targets=targets[1:])]


def collate(rows, config):
    """Rows of encode -> ids, positions, targets: see pack"""
    return pack(rows, config.block_size)


def pack(examples, T):
    """Several examples in a row -> ids, positions, targets, (R, W) each.

    Positions begin at 0 in each example, and in the empty end of a row: that is how the model tells
    them apart. W is what the longest example needs, in steps of 64, or 2, 4, ... times that, up to
    T: whichever takes the fewest places.
    """
    longest = max(len(e['ids']) for e in examples)
    least = (longest + STEP - 1) // STEP * STEP
    widths = sorted({min(T, least * 2 ** k) for k in range(DOUBLINGS)})
    packed = {W: first_fit(examples, W) for W in widths}
    W = min(widths, key=lambda W: len(packed[W]) * W)
    R = len(packed[W])
    ids = np.zeros((R, W), np.int64)
    positions = np.zeros((R, W), np.int64)
    targets = np.full((R, W), -1, np.int64)
    for r, row in enumerate(packed[W]):
        a = 0
        for e in row:
            b = a + len(e['ids'])
            ids[r, a:b] = e['ids']
            positions[r, a:b] = np.arange(b - a)
            targets[r, a:b] = e['targets']
            a = b
        positions[r, a:] = np.arange(W - a)
    return ids, positions, targets


def first_fit(examples, W):
    """Lists of examples whose lengths add up to W at most: the longest first, each into the first
    row with room"""
    rows = []
    free = []                                              # places of each row
    for e in sorted(examples, key=lambda e: -len(e['ids'])):
        n = len(e['ids'])
        r = next((r for r, places in enumerate(free) if places >= n), None)
        if r is None:
            r = len(rows)
            rows.append([])
            free.append(W)
        rows[r].append(e)
        free[r] -= n
    return rows


def predict(model, arrays, examples, tokenizer):
    """Nothing: responses are judged by their loss alone"""
    return []
