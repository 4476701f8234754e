"""Instruction data: the chat template, and conversations as rows of a causal decoder."""
import numpy as np


def turns(messages, tokenizer):
    """The chat template: [{'role': 'system', 'user' or 'assistant', 'content'}] -> for each message the ids of its
    header and of what is said. The headers are the special tokens <|sentinel_0|>, 1 and 2; in a vocabulary without
    sentinels (gpt2) the texts "System:", "User:" and "Assistant:" on a line of their own, with an empty line before the
    next. All begins with the begin-of-text token, or where there is none with end-of-text. What the assistant says ends
    with end-of-text, so that a tuned model stops by itself. In contents, names of special tokens are plain text: nobody
    can speak for another. A message without content is a header alone."""
    eot, roles, special = tokenizer.eot, ('system', 'user', 'assistant'), len(tokenizer.sentinels) >= 3
    if eot is None:
        raise ValueError(f'the vocabulary {tokenizer.name} has no end-of-text token, which ends a response: '
                         'use one that has it, such as --tokenizer=bpe')
    head = [eot if getattr(tokenizer, 'bos', None) is None else tokenizer.bos]
    for m in messages:
        role = m['role']
        head += [tokenizer.sentinels[roles.index(role)]] if special else tokenizer.encode(role.title() + ':\n')
        end = [eot] if role == 'assistant' else [] if special else tokenizer.encode('\n\n')
        yield head, [*tokenizer.encode(m['content']), *end] if 'content' in m else []
        head = []


def chat(messages, tokenizer, config):
    """Messages as `turns` has them -> ids, up to where the assistant speaks next"""
    return [i for parts in turns([*messages, dict(role='assistant')], tokenizer) for part in parts for i in part]


def encode(example, tokenizer, config):
    """{"prompt", "response"} or {"messages"} -> [{'ids', 'targets'}], lists of up to block_size. Targets are -1 but for
    what the assistant says and the end-of-text after it. Where it is too long, what is before the last response loses
    its beginning, down to half of block_size, and then the response its end. ValueError if a response is missing."""
    messages = example['messages'] if 'messages' in example else [
        dict(role=role, content=example.get(name)) for role, name in (('user', 'prompt'), ('assistant', 'response'))]
    spoken = [i for i, m in enumerate(messages) if m['role'] == 'assistant']
    texts = [isinstance(m['content'], str) and (m['role'] != 'assistant' or m['content'].strip()) for m in messages]
    if not spoken or not all(texts):
        raise ValueError(f'{str(example)[:100]}: a text is missing, or a response is empty; expected {{"prompt", '
                         '"response"} or {"messages"} in which the assistant says something')
    ids, targets, T = [], [], config.block_size
    for message, (head, said) in zip(messages[:spoken[-1] + 1], turns(messages, tokenizer)):
        start = len(ids) + len(head)                                       # at the end: of the last response
        ids += head + said
        targets += [-1] * len(head) + (said if message['role'] == 'assistant' else [-1] * len(said))
    cut = max(0, start - max(T + 1 - (len(ids) - start), T // 2, 1))
    return [dict(ids=ids[cut:cut + T + 1][:-1], targets=targets[cut:cut + T + 1][1:])]


def pack(examples, T):
    """Several examples in a row, first-fit, the longest first -> ids, positions, targets, (R, W) each. Positions begin
    at 0 in each example, and in the empty end of a row: that is how the model tells them apart. W is what the longest
    example needs, in steps of 64, or 2, 4, .. times that, up to T: whichever takes the fewest places."""
    def fit(W):
        rows = []                                                          # [free places, examples]
        for e in sorted(examples, key=lambda e: -len(e['ids'])):
            row = next((row for row in rows if row[0] >= len(e['ids'])), None)
            if row is None: rows.append(row := [W, []])
            row[0] -= len(e['ids'])
            row[1].append(e)
        return rows
    least = -(-max(len(e['ids']) for e in examples) // 64) * 64
    packed = {W: fit(W) for W in sorted({min(T, least << k) for k in range(8)})}
    W = min(packed, key=lambda W: len(packed[W]) * W)
    arrays = np.zeros((3, len(packed[W]), W), np.int64)
    for r, (free, row) in enumerate(packed[W]):
        row = [*row, dict(ids=[0] * free, targets=[-1] * free)]
        arrays[:, r] = np.hstack([np.array((e['ids'], range(len(e['ids'])), e['targets']), np.int64) for e in row])
    return tuple(arrays)


def collate(rows, config):
    """Rows of encode -> what `pack` returns"""
    return pack(rows, config.block_size)


def predict(model, arrays, examples, tokenizer): return []                 # responses are judged by their loss alone
