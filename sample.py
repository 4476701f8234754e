"""Uses a trained model: continues, fills, rewrites, classifies, answers, compares, measures.

    python sample.py --prompt="def main(" --num_samples=3        # continues a text with out/gpt
    python sample.py --interactive                               # asks for prompts
    python sample.py --out_dir=out/gpt-instruct --interactive    # a chat, if tuned on instructions
    python sample.py --init_from=gpt2/ --eval=lm --text=book.txt # perplexity, bits per byte
    python sample.py --eval=hellaswag.jsonl                      # multiple choice, last words

    python sample.py --out_dir=out/bert --prompt="import [MASK]" # the likeliest words for each gap
    python sample.py --out_dir=out/bert-sst2 --classify=reviews.txt      # labels, tags, choices
    python sample.py --out_dir=out/bert-squad --context=page.txt --question="Who won?"
    python sample.py --init_from=bert/ --embed=lines.txt --out=vectors.npy     # (lines, width)
    python sample.py --init_from=t5/ --prompt=FILE:lines.txt --beams=4 --out=german.txt

A FILE has one text a line, or two with a tab between them if the model was trained on pairs. A file
that ends in .jsonl has one object a line, with the columns that train.py takes for such data
("text", "text_b", "tokens", "choices", "input", "target"; for --eval see lib/score.py). - stands
for stdin. --interactive: Ctrl-C stops the answer, Ctrl-D leaves.

From Python: sample.main([...]) returns what it prints, sample.generate(model, ids, 100) continues
ids (B, T), sample.stream does so token by token, and sample.score gives the log-likelihood of any
text after any other.

The context is always the last block_size tokens, as in nanoGPT. While a text is shorter, keys and
values are kept in a cache, so that a token costs one position. After that each token moves the
window by one place, and then a token costs a whole window. --slide=N moves it by N places at a
time, which is faster; the model then sees up to N - 1 tokens fewer.

Nothing here knows a model by its name: what can be done with one depends on what its file offers,
see `uses`. Sampling is in lib/generate.py, the other uses in lib/fill, rewrite, read and score.
"""
import contextlib
import glob
import os
import signal
import sys
from dataclasses import dataclass
from typing import Callable, NamedTuple


def stop_at_once(number, frame):
    os.write(2, b'\nsample.py: stopped\n')
    os._exit(130)


if __name__ == '__main__':
    # while torch is imported, which takes seconds
    signal.signal(signal.SIGINT, stop_at_once)

import torch

import bpe
import lora
from data import files
from lib import models
from lib.device import native_bf16, out_of_memory, pick_device
from lib.fill import detect, fill
from lib.flags import fields_of, print_flags, split_flags, value_of
from lib.generate import filtered, generate, packed, stream  # for users of this module
from lib.inputs import model_file, read_prompt
from lib.read import answer, classify, embed
from lib.rewrite import write
from lib.score import evaluate, score
from lib.talk import continuations, opening
from lib.weights import load_model
from lib.words import nearest


@dataclass
class Config:
    # the model
    out_dir: str = 'out/gpt'         # folder of a run of train.py
    init_from: str = ''              # or other weights: a .pt file or a Hugging Face folder
    lora: str = ''                   # an adapter: a folder of lora.save or peft, a run of --adapter
    tokenizer: str = ''              # a vocabulary (file or name), for weights without one
    device: str = 'auto'             # auto, cpu, cuda, cuda:1, mps
    dtype: str = 'auto'              # bfloat16, float16, float32; auto: bfloat16 to write on CUDA
    compile: str = 'auto'            # torch.compile a token's step: auto (on CUDA), true, false
    # continue a text (gpt)
    prompt: str = ''                 # TEXT, FILE:path, or - for stdin; '' starts a new document
    num_samples: int = 1             # number of continuations, made together
    max_new_tokens: int = 200        # length of a continuation
    temperature: float = 0.8         # under 1: safer, over 1: wilder, 0: always the likeliest token
    top_k: int = 200                 # draw from this many likeliest tokens; 0: off
    top_p: float = 1.0               # draw from the likeliest that sum to this probability; 1: off
    min_p: float = 0.0               # rule out tokens under this times the best probability; 0: off
    repetition_penalty: float = 1.0  # over 1: tokens of the text become less likely; 1: off
    stop: str = ''                   # end before this text; \n and \t stand for line end and tab
    ignore_eot: bool = False         # go on after the end-of-text token
    seed: int = 1337                 # the same seed gives the same text
    stream: bool = False             # show the text as it is made, one sample after another
    interactive: bool = False        # ask for prompts; a chat, if the model was tuned for it
    system: str = ''                 # chat: what the model is told first, TEXT or FILE:path
    cache: bool = True               # false: compute the whole text for each token (slow; a check)
    slide: int = 1                   # past block_size, forget this many tokens at a time
    # evaluate
    eval: str = ''                   # lm: a text's likelihood; FILE.jsonl: choices and last words
    text: str = ''                   # --eval=lm: the text, anything that train.py --data reads
    stride: int = 0                  # --eval=lm: tokens between windows; 0: half of block_size
    delimiter: str = ' '             # --eval=FILE: put between two parts without white space there
    # text to text (t5): --prompt is a text, FILE:path or -; a text with <extra_id_0> is filled
    beams: int = 1                   # width of beam search; 1: greedy, or a draw with --top_p etc.
    length_penalty: float = 1.0      # beams are compared by (log p) / tokens^this
    no_repeat_ngram: int = 0         # never write the same n tokens twice; 0: off
    metric: str = ''                 # compare with "target": bleu, rouge, exact_match, ...
    # read a text (bert, electra): --prompt with [MASK] is filled; electra finds replaced tokens
    top: int = 5                     # how many fillings, labels or answers to print
    classify: str = ''               # TEXT, FILE or -: its label, value, tags or choice
    question: str = ''               # TEXT, FILE or -: what to answer from --context
    context: str = ''                # TEXT or FILE of any length
    answer: bool = False             # answer --question; implied by it
    embed: str = ''                  # TEXT, FILE or -: vectors into --out, or how similar lines are
    pool: str = 'mean'               # a text's vector: mean of hidden states, or cls: the first one
    normalize: bool = False          # make the vectors' length 1
    # all uses but continuing
    batch_size: int = 32             # rows at a time; changes no result (but what is drawn)
    out: str = ''                    # write to this file instead of printing
    json: bool = False               # print JSON lines; implied by --out=FILE.jsonl

    given = ()                       # the names of the flags that were typed


MAIN_FLAGS = ('out_dir init_from lora device prompt num_samples max_new_tokens temperature top_k '
              'top_p stop stream interactive eval text beams classify question context embed '
              'batch_size out json').split()  # those of a short --help
LINE = '---------------\n'                               # between two samples


# ---- continuing and chatting

def complete(model, tokenizer, config):
    """Prints the prompt with each of its continuations, a line of dashes between them; of a model
    for chats the answers alone. -> {'prompt', 'texts'}"""
    text = read_prompt(config.prompt)
    prompt = text
    shown = text
    if chats(model, model_file(model)):
        if not text.strip():
            raise ValueError('nothing is asked: give --prompt=TEXT, or --interactive for a chat')
        prompt = [*opening(config), dict(role='user', content=text.strip())]
        shown = ''
    if config.stream:
        texts = []
        for n in range(config.num_samples):
            if n > 0:
                print(LINE, end='')
            texts += speak(model, tokenizer, prompt, config, config.seed + n, [])
    else:
        texts, speed = continuations(model, tokenizer, prompt, config, config.num_samples,
                                     config.seed)
        print(f'\n{LINE}'.join(shown + text for text in texts), flush=True)
        print(speed, file=sys.stderr)
    return dict(prompt=text, texts=texts)


def speak(model, tokenizer, prompt, config, seed, pieces):
    """Makes one sample and shows it meanwhile. Its text is put into the list `pieces`, which has
    the beginning of it after a Ctrl-C. -> [text]"""
    def show(piece):
        pieces.append(piece)
        print(piece, end='', flush=True)

    if isinstance(prompt, str):
        print(prompt, end='', flush=True)
    texts, speed = continuations(model, tokenizer, prompt, config, 1, seed, show)
    print(flush=True)
    print(speed, file=sys.stderr)
    return texts


def converse(model, tokenizer, config):
    """A loop of prompts. Each stands for itself, unless the model is one for chats: then it sees
    all messages since the beginning or the last /reset. -> {'texts'}, in a chat also 'messages'"""
    with contextlib.suppress(ImportError):
        import readline  # line editing and history of input()
    chat = chats(model, model_file(model))
    messages = opening(config)
    texts = []
    ask = ''
    if sys.stdin.isatty():
        ask = '> '
        more = '/reset forgets what was said, ' if chat else ''
        print(f'a prompt a line; {more}Ctrl-C stops the answer, Ctrl-D leaves', file=sys.stderr)
    while True:
        try:
            prompt = input(ask)
        except EOFError:
            break
        except KeyboardInterrupt:
            print()
            continue
        if chat:
            message = prompt.strip()
            if message == '/reset':
                messages = opening(config)
            if message in ('', '/reset'):
                continue
            messages.append(dict(role='user', content=message))
            prompt = messages
        pieces = []
        try:
            texts += speak(model, tokenizer, prompt, config, config.seed + len(texts), pieces)
        except KeyboardInterrupt:
            print(' ... stopped', flush=True)
        except ValueError as e:  # such as a character unknown to the vocabulary
            print(f'\n{e}', file=sys.stderr)
        reply = ''.join(pieces)
        if chat and reply:
            messages.append(dict(role='assistant', content=reply))
        elif chat:
            messages.pop()  # unanswered: as if it had not been said
    if ask:
        print()
    result = dict(texts=texts)
    if chat:
        result['messages'] = messages
    return result


# ---- what can be done with which model

def writes(model, file):
    """A text in, a text out."""
    return hasattr(file, 'generate')


def chats(model, file):
    return models.chat_of(file) is not None and getattr(model.config, 'kind', '') == 'instruct'


def has_likelihood(model, file):
    """Whether logits(ids) are those of the next token."""
    return getattr(file, 'likelihood', False)


def continues(model, file):
    if writes(model, file) or chats(model, file):
        return False
    return hasattr(model, 'step') or has_likelihood(model, file)


def encodes(model, file):
    has_labels = 'labelled' in getattr(file, 'kinds', ())
    return hasattr(model, 'hidden') and has_labels and not hasattr(model, 'step')


def is_encoder_for(*kinds):
    def check(model, file):
        return encodes(model, file) and model.config.kind in kinds
    return check


def detects(model, file):
    """Whether logits (B, T) tell of each token if it was replaced."""
    if not is_encoder_for('text')(model, file):
        return False
    return getattr(model.config, 'has_detector', getattr(file, 'detects', False))


def fills(model, file):
    return is_encoder_for('text')(model, file) and not detects(model, file)


class Use(NamedTuple):
    """What can be done with some models."""
    flag: str            # asks for it
    can: Callable        # (model, file) -> whether the model offers what it needs
    run: Callable        # (model, tokenizer, config) -> dict; prints it too
    words: str           # "it can ..."
    takes: str           # the names of the further flags that it takes
    how: str = ''        # how to get such a model from {}


DRAWING = 'temperature top_k top_p max_new_tokens seed'
CONTINUING = f'{DRAWING} num_samples min_p repetition_penalty stop ignore_eot stream cache slide'
BATCHES = 'batch_size out json'
FINE_TUNE = 'python train.py --init_from={} --data='

# The first one counts whose flag is given and which the model offers.
uses = [
    Use('eval', has_likelihood, evaluate, 'tell the likelihood of a text',
        'text stride delimiter batch_size'),
    Use('interactive', continues, converse, 'continue a text', CONTINUING),
    Use('interactive', chats, converse, 'chat', f'{CONTINUING} system'),
    Use('classify', is_encoder_for('labelled', 'tagged', 'choice'), classify, 'classify',
        f'top {BATCHES}', f'{FINE_TUNE}LABELLED.jsonl'),
    Use('answer', is_encoder_for('qa'), answer, 'answer questions',
        f'question context top {BATCHES}', f'{FINE_TUNE}squad'),
    Use('embed', encodes, embed, 'give vectors', f'pool normalize {BATCHES}'),
    Use('prompt', continues, complete, 'continue a text', CONTINUING),
    Use('prompt', chats, complete, 'answer a prompt', f'{CONTINUING} system'),
    Use('prompt', writes, write, 'answer a text',
        f'{DRAWING} beams length_penalty no_repeat_ngram metric {BATCHES}'),
    Use('prompt', detects, detect, 'find replaced tokens', BATCHES),
    Use('prompt', fills, fill, 'fill in [MASK]', f'top {BATCHES}'),
]


def choose(config, path, model, file):
    """The Use that the flags ask for. Raises ValueError if the model cannot do that, or if another
    flag does not go with it. path: where the model comes from, for the message."""
    able = [use for use in uses if use.can(model, file)]
    asked = next((use.flag for use in uses if getattr(config, use.flag)), '')
    for use in able:
        # nothing is asked for: the model continues an empty prompt, a new document
        if use.flag == asked or not asked and use.run is complete:
            check_flags(use, config, file)
            return use

    here = f'{path}: {file.__name__}.py'
    if hasattr(model.config, 'kind'):
        here += f' (kind={model.config.kind})'
    if not asked:
        raise ValueError(f'{here}: nothing asked for; it can {offers(able)}')
    wanted = [use for use in uses if use.flag == asked]
    how = ''
    if wanted[0].how:
        how = f': first {wanted[0].how.format(path)}'
    raise ValueError(f'{here} cannot {" or ".join(use.words for use in wanted)}{how}; '
                     f'it can {offers(able)}')


def offers(able):
    """What a model can do, in words, and the flags that ask for it."""
    flags = {}
    for use in able:
        flags.setdefault(use.words, []).append(f'--{use.flag}')
    parts = [f'{words} ({", ".join(names)})' for words, names in flags.items()]
    return ', '.join(parts) or 'none of what sample.py does'


def check_flags(use, config, file):
    """Raises ValueError if a flag was given that does not go with this use."""
    fit = [use.flag, *use.takes.split()]
    fit += [field.name for group, _, field in fields_of(Config) if group == 'the model']
    for name in config.given:
        if name not in fit:
            takes = ' '.join(f'--{other}' for other in use.takes.split())
            raise ValueError(f'--{name} does not go with --{use.flag} on {file.__name__}.py, '
                             f'which takes {takes}')


# ---- the command line

DTYPES = dict(bfloat16=torch.bfloat16, float16=torch.float16, float32=torch.float32)
CHOICES = dict(dtype=('auto', *DTYPES), compile=('auto', 'true', 'false'), pool=('mean', 'cls'))
RANGES = dict(top_p=(0, 1), min_p=(0, 1), repetition_penalty=(0.01, 100))
LOWEST = dict(num_samples=1, max_new_tokens=1, slide=1, batch_size=1, beams=1, top=1,
              temperature=0, top_k=0, stride=0, no_repeat_ngram=0)
HIGHEST = 1e9                                            # of those in LOWEST


def parse(argv):
    """The command line -> Config. Raises ValueError for a user's mistake, SystemExit after
    --help."""
    given = split_flags(argv)
    defaults = {field.name: field.default for _, _, field in fields_of(Config)}
    if 'help' in given:
        print_help(everything=given['help'] == 'all')
        raise SystemExit(0)
    for name in given:
        if name not in defaults:
            close = nearest(name, list(defaults), '--')
            raise ValueError(f'unknown flag --{name}{close} (--help=all lists all)')
    values = {name: value_of(name, type(defaults[name]), text) for name, text in given.items()}
    config = Config(**values)
    config.given = tuple(given)
    if config.question or config.context:
        config.answer = True
    folder = os.path.dirname(config.out) or '.'
    if not os.path.isdir(folder):
        raise ValueError(f'--out={config.out}: no folder {folder}')
    check_values(config)
    return config


def check_values(config):
    """Raises ValueError for a value that a flag cannot have."""
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            raise ValueError(f'--{name}={value}: expected one of {", ".join(choices)}')
    for name, (low, high) in RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f'--{name}={value}: expected {low} to {high}')
    for name, low in LOWEST.items():
        value = getattr(config, name)
        if not low <= value <= HIGHEST:
            raise ValueError(f'--{name}={value}: expected {low} or more')


def print_help(everything):
    """Prints what sample.py does and its flags with their defaults: MAIN_FLAGS, or all of them."""
    rows = fields_of(Config)
    defaults = {field.name: field.default for _, _, field in rows}
    if everything:
        print(__doc__.strip())
        print_flags(rows, defaults)
    else:
        examples = __doc__.strip().split('\n\n')[:3]
        print('\n\n'.join(examples))
        print_flags([('', text, field) for _, text, field in rows if field.name in MAIN_FLAGS],
                    defaults)
        print(f'\n--help=all lists all {len(rows)} flags.')


def open_model(config):
    """-> (model, tokenizer), as the flags of the model say. Raises OSError or ValueError if there
    is no such model, adapter or vocabulary, or if they do not fit each other."""
    path = config.init_from or config.out_dir
    if not config.init_from and not os.path.exists(path):
        raise FileNotFoundError(no_run(path))
    adapter = config.lora
    if adapter.endswith('.pt') or os.path.exists(os.path.join(adapter, 'ckpt.pt')):
        # a run, with the head that it made
        model, tokenizer = load_model(adapter, base=path)
    else:
        model, tokenizer = load_model(path)
        if adapter and lora.mergeable(lora.load(model, adapter)):
            lora.merge(model, unload=True)
    if config.tokenizer:
        tokenizer = bpe.load(config.tokenizer)
    if tokenizer is None:
        raise ValueError(f'{path} has no tokenizer: give one with --tokenizer=FILE '
                         '(or a name, such as gpt2)')
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f'{path} has {model.config.vocab_size} token ids, the vocabulary '
                         f'{tokenizer.name} {tokenizer.vocab_size}: '
                         'it is not the one of this model')
    return model, tokenizer


def no_run(path):
    """The message for an out_dir that does not exist."""
    train = 'python train.py --model=gpt'
    if path != Config.out_dir:
        train += f' --out_dir={path}'
    runs = sorted(os.path.dirname(p) for p in glob.glob('out/*/ckpt.pt'))
    here = ', '.join(runs[:9]) or 'none'
    if len(runs) > 9:
        here += ' ...'
    return (f'no run in {path}: train one with {train}, or give --init_from=CHECKPOINT '
            f'or --out_dir=RUN (here: {here})')


def run(config):
    """Does what a Config says. -> dict: 'texts', 'records', or what --eval has measured"""
    device = pick_device(config.device)
    model, tokenizer = open_model(config)
    use = choose(config, config.init_from or config.out_dir, model, model_file(model))
    writes_text = use.run in (complete, converse, write)
    dtype = torch.float32
    if config.dtype != 'auto':
        dtype = DTYPES[config.dtype]
    elif writes_text and device.type == 'cuda' and native_bf16():
        dtype = torch.bfloat16
    return use.run(model.to(device, dtype).eval(), tokenizer, config)


def main(argv=None):
    """Does what the flags say. -> dict: 'texts', 'records', or what --eval has measured"""
    return run(parse(sys.argv[1:] if argv is None else argv))


def what_went_wrong(error):
    """A user's mistake, or an end that is nobody's fault, as one line; '' for a bug."""
    if isinstance(error, KeyboardInterrupt):
        return 'stopped'
    if out_of_memory(error):
        return (f'out of memory ({files.first_line(error)[:200]}): '
                'lower --num_samples, --max_new_tokens or --batch_size')
    if isinstance(error, (ValueError, OSError)):
        return ' '.join(str(error).split()) or type(error).__name__
    return ''


def cli():
    """main for the shell: a user's mistake is one line, with TRACEBACK=1 all of it. The exit status
    is 2 for a wrong flag, 1 for another mistake, 130 after a Ctrl-C."""
    status = 2
    try:
        config = parse(sys.argv[1:])
        status = 1
        run(config)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as e:
        message = what_went_wrong(e)
        if not message or os.environ.get('TRACEBACK'):
            raise
        if isinstance(e, KeyboardInterrupt):
            status = 130
            print(file=sys.stderr)
        print(f'sample.py: {message}', file=sys.stderr)
        sys.exit(status)


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli()
