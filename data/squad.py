"""SQuAD, questions about Wikipedia whose answer is a span of the paragraph (Rajpurkar et al. 2016, arXiv 1606.05250).

What: version 1.1 (87,599 questions to train on, 10,570 for validation), or 2.0 in which half as many more have no
answer (2018, 1806.03822). A line is {"id", "context", "question", "answers": [{"text", "answer_start"}]}, [] without an
answer; the model file cuts long contexts into overlapping windows.

    python data/squad.py                                     # then: python train.py --model=bert --data=squad
    python data/squad.py --task=2                            # data/squad-2; then add --no_answer
    python data/squad.py --source=FOLDER                     # FOLDER holds train-v1.1.json and dev-v1.1.json (or .gz)
    python data/squad.py --source=articles.json.gz           # one such file: every eighth article is for validation
"""
import json, os, sys

if __name__ == '__main__': sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import text

tasks = ('1', '2')
URL = 'https://rajpurkar.github.io/SQuAD-explorer/dataset/'
SHA256 = {'train-v1.1.json': '3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955',
          'dev-v1.1.json': '95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9',
          'train-v2.0.json': '68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002',
          'dev-v2.0.json': '80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8'}


def rows(path, pick=lambda i: True):
    "questions of the articles whose number pick() takes"
    with text.reading(path), text.open_binary(path) as f:
        try: articles = json.load(f)['data']
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{path}: not SQuAD\'s layout; '
                             f'expected JSON {{"data": [{{"paragraphs": ...}}]}}') from None
    for i, article in enumerate(articles):
        for paragraph in article['paragraphs'] if pick(i) else ():
            for q in paragraph['qas']:
                answers = [] if q.get('is_impossible') else [
                    {'text': a['text'], 'answer_start': a['answer_start']} for a in q['answers']]
                for a in answers:
                    if not paragraph['context'].startswith(a['text'], a['answer_start']):
                        raise ValueError(f'{path}: question {q["id"]}: '
                                         f'{a["text"]!r} is not at character {a["answer_start"]} of the context')
                yield {'id': q['id'], 'context': paragraph['context'], 'question': q['question'].strip(),
                       'answers': answers}


def prepare(tokenizer='bpe', vocab_size=8192, source='', out='', task='1'):
    if task not in tasks: raise ValueError(f'--task={task}: expected {" or ".join(tasks)}')
    version = {'1': '1.1', '2': '2.0'}[task]
    def write(folder, **tokenizing):
        names = [f'{split}-v{version}.json' for split in ('train', 'dev')]
        paths = [text.fetch(n, URL + n, 'squad', source, SHA256[n], max_bytes=1 << 26) for n in names]
        train, val = (lambda: rows(paths[0])), (lambda: rows(paths[1]))
        if paths[0] == paths[1]:
            train, val = (lambda: rows(paths[0], lambda i: i % 8)), (lambda: rows(paths[0], lambda i: i % 8 == 0))
        return text.write_examples(folder, 'qa', train, val, source=source or f'SQuAD {version}',
                                   no_answer=task == '2', **tokenizing)
    return text.make('squad' + ('-2' if task == '2' else ''), write, tokenizer, vocab_size, 'bpe8192', out)


if __name__ == '__main__': text.script(prepare, __doc__)
