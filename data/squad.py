"""SQuAD, questions about Wikipedia whose answer is a span of the paragraph (Rajpurkar et al. 2016).

What (arXiv 1606.05250): version 1.1 (87,599 questions to train on, 10,570 for validation), or 2.0,
in which half as many more have no answer (2018, 1806.03822). A line is {"id", "context",
"question", "answers": [{"text", "answer_start"}]}, [] without an answer; the model file cuts long
contexts into overlapping windows.

    python data/squad.py                            # then: train.py --model=bert --data=squad
    python data/squad.py --task=2                   # data/squad-2; then add --no_answer
    python data/squad.py --source=FOLDER            # with train-v1.1.json, dev-v1.1.json
    python data/squad.py --source=articles.json.gz  # one such file, a split by articles
"""
import json
import os
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

tasks = ('1', '2')
VERSIONS = {'1': '1.1', '2': '2.0'}
URL = 'https://rajpurkar.github.io/SQuAD-explorer/dataset/'
SHA256 = {
    'train-v1.1.json': '3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955',
    'dev-v1.1.json': '95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9',
    'train-v2.0.json': '68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002',
    'dev-v2.0.json': '80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8',
}


def read(path):
    """The articles of a file."""
    with text.reading(path), text.open_binary(path) as f:
        try:
            return json.load(f)['data']
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{path}: not SQuAD\'s layout; '
                             'expected JSON {"data": [{"paragraphs": ...}]}') from None


def answers_of(question, context, path):
    """The answers of a question. Raises ValueError if one is not in the context."""
    if question.get('is_impossible'):
        return []
    answers = [{'text': a['text'], 'answer_start': a['answer_start']} for a in question['answers']]
    for a in answers:
        if not context.startswith(a['text'], a['answer_start']):
            raise ValueError(f'{path}: question {question["id"]}: {a["text"]!r} is not '
                             f'at character {a["answer_start"]} of the context')
    return answers


def rows(path, split=''):
    """Yields the questions of a file as examples.

    split: 'val' takes every eighth article, 'train' the others, '' all of them
    """
    for i, article in enumerate(read(path)):
        if split and split != ('val' if i % 8 == 0 else 'train'):
            continue
        for paragraph in article['paragraphs']:
            context = paragraph['context']
            for question in paragraph['qas']:
                yield {'id': question['id'],
                       'context': context,
                       'question': question['question'].strip(),
                       'answers': answers_of(question, context, path)}


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='1'):
    """Makes data/squad or data/squad-2, questions with answers. Returns the folder."""
    if task not in tasks:
        raise ValueError(f'--task={task}: expected {" or ".join(tasks)}')
    version = VERSIONS[task]

    def write(folder, **tokenizing):
        names = [f'{split}-v{version}.json' for split in ('train', 'dev')]
        train, val = [text.fetch(name, URL + name, 'squad', source, SHA256[name], max_bytes=1 << 26)
                      for name in names]
        is_one_file = train == val
        return text.write_examples(folder, 'qa',
                                   lambda: rows(train, 'train' if is_one_file else ''),
                                   lambda: rows(val, 'val' if is_one_file else ''),
                                   source=source or f'SQuAD {version}', no_answer=task == '2',
                                   **tokenizing)

    return text.make('squad-2' if task == '2' else 'squad', write, tokenizer, vocab_size,
                     'bpe8192', out)


if __name__ == '__main__':
    text.script(prepare, __doc__)
