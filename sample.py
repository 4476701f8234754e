"""Uses a trained model: continues your text, fills its gaps, rewrites, classifies and answers it, and measures.

    python sample.py --prompt="def main(" --num_samples=3            # continues the text with the model in out/gpt
    python sample.py --init_from=gpt2/ --eval=lm --text=book.txt     # perplexity and bits per byte of a Hugging Face folder
    python sample.py --interactive                                   # a prompt a line; Ctrl-C stops it, Ctrl-D leaves
    python sample.py --out_dir=out/gpt-instruct --interactive        # a chat, with a model tuned on instructions
    python sample.py --eval=hellaswag.jsonl                          # multiple choice, last words: see `evaluate`

    python sample.py --out_dir=out/bert --prompt="import [MASK]"     # the likeliest fillings of each gap
    python sample.py --out_dir=out/bert-sst2 --classify=reviews.txt  # labels, values, tags or choices, a text a line
    python sample.py --out_dir=out/bert-squad --context=page.txt --question="Who won?"       # the answer in the text
    python sample.py --init_from=bert/ --embed=lines.txt --out=vectors.npy                   # (lines, width) float32
    python sample.py --init_from=t5/ --prompt=FILE:lines.txt --beams=4 --out=german.txt      # a text in, a text out

A FILE has a text a line (two with a tab between, if the model was trained on pairs); one that ends in .jsonl an object a line, with the columns that train.py takes for such data
("text", "text_b", "tokens", "choices", "input", "target"). - stands for the lines of stdin. From Python: `sample.main([...])`
returns what it prints, `sample.generate(model, ids, 100)` continues ids (B, T), `sample.stream` does so token by token,
`sample.score` gives the log-likelihood of any text after any other.

The context is always the last block_size tokens, as in nanoGPT. While a text is shorter, keys and values are kept in a
cache, so a token costs one position; then each token moves the whole window by one place, which costs a window a token:
--slide=N moves it by N places at a time, which is faster and means that up to N - 1 tokens fewer are seen. Nothing here
knows a model by its name: what can be done with one depends on what its file offers (see `uses`, at the end).

Papers: top-p Holtzman et al. 2020 (1904.09751), min-p Nguyen et al. 2024 (2407.01082), repetition penalty Keskar et al.
2019 (1909.05858). Filters and their order are those of transformers; windows of --eval=lm are those of its guide to
perplexity, after a start token, so that the first token counts too.

Letters: B samples, T tokens, V vocabulary.
"""
import collections
import contextlib
import glob
import os
import signal
import sys
from dataclasses import dataclass

if __name__ == '__main__':                                                 # Ctrl-C while torch is imported, which takes seconds
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b'\nsample.py: stopped\n'), os._exit(130)))

import torch

import bpe
import lora
from data import files
from lib import models
from lib.device import native_bf16, out_of_memory, pick_device
from lib.fill import after, detect, fill, fitted, tight
from lib.flags import fields_of, split_flags, value_of
from lib.generate import Packed, compiled, filtered, generate, packed, stream
from lib.inputs import file_of, read_prompt
from lib.read import answer, classify, embed
from lib.rewrite import write
from lib.score import evaluate, score, scored_row
from lib.talk import continuations, heard, opening, visible
from lib.weights import load_model
from lib.words import nearest


@dataclass
class Config:
    # the model
    out_dir: str = 'out/gpt'         # folder of a run of train.py
    init_from: str = ''              # or other weights: a .pt file or a Hugging Face folder
    lora: str = ''                   # an adapter for these weights: a folder of lora.save or peft, or a run with --adapter
    tokenizer: str = ''              # a vocabulary (file or name), for weights that come without
    device: str = 'auto'             # auto, cpu, cuda, cuda:1, mps
    dtype: str = 'auto'              # auto, bfloat16, float16, float32; auto: bfloat16 to write on CUDA, else float32
    compile: str = 'auto'            # torch.compile of the step of one token: auto (on CUDA), true, false
    # continue a text (gpt)
    prompt: str = ''                 # the text to continue, FILE:path, or - for stdin; '' starts a new document
    num_samples: int = 1             # continuations of it, made together
    max_new_tokens: int = 200        # length of a continuation
    temperature: float = 0.8         # under 1: safer, over 1: wilder, 0: always the likeliest token
    top_k: int = 200                 # only among the k likeliest tokens; 0: off
    top_p: float = 1.0               # only among the likeliest tokens that together have this probability; 1: off
    min_p: float = 0.0               # only tokens at least this many times as probable as the likeliest; 0: off
    repetition_penalty: float = 1.0  # over 1: tokens that the text has already are made less likely; 1: off
    stop: str = ''                   # end a continuation before this text; \n and \t stand for line end and tab
    ignore_eot: bool = False         # go on after the end-of-text token
    seed: int = 1337                 # the same seed gives the same text
    stream: bool = False             # show the text as it is made, one sample after another
    interactive: bool = False        # ask for prompts and continue them; a chat, if the model was tuned on instructions
    system: str = ''                 # chat and its --prompt: what the model is told before, TEXT or FILE:path
    cache: bool = True               # false: compute the whole text anew for each token (slow; a check on the cache)
    slide: int = 1                   # past block_size, forget so many tokens at once; 1: as few as possible
    # evaluate
    eval: str = ''                   # lm: a text's likelihood; FILE.jsonl: multiple choice and last words
    text: str = ''                   # --eval=lm: the text, anything that train.py --data takes as your own text
    stride: int = 0                  # --eval=lm: tokens from one window to the next; 0: half of block_size
    delimiter: str = ' '             # --eval=FILE.jsonl: stands between two parts that have no white space there
    # text to text (t5): --prompt is a text, FILE:path or -, a text a line; a text with <extra_id_0> in it is filled
    beams: int = 1                   # beam search with so many; 1: greedy, or a draw if --temperature, --top_k or --top_p is given
    length_penalty: float = 1.0      # beams are compared by (log p) / tokens^this: over 1 favours long texts
    no_repeat_ngram: int = 0         # never write the same n tokens twice; 0: off
    metric: str = ''                 # bleu, rouge, exact_match, ...: compare with the "target" column of the file
    # read a text (bert, electra): --prompt with [MASK] is filled; with electra each token is doubted
    top: int = 5                     # so many fillings, labels or answers
    classify: str = ''               # TEXT, FILE or -: its label, value, tags or choice, whatever the model was fine-tuned for
    question: str = ''               # TEXT, FILE or -: to be answered out of --context
    context: str = ''                # TEXT or FILE, of any length
    answer: bool = False             # implied by --question
    embed: str = ''                  # TEXT, FILE or -: a vector a line into --out=FILE.npy, or how alike the lines are
    pool: str = 'mean'               # the vector of a text: mean of its last hidden states, or that of the first token: cls
    normalize: bool = False          # vectors of length 1
    # all but continuing
    batch_size: int = 32             # rows at a time; changes no result (but what is drawn)
    out: str = ''                    # write what would be printed to this file
    json: bool = False               # print JSON lines; also where --out ends in .jsonl

    given = ()                       # the flags that were typed

# ---------------------------------------------------------------------------------------------------- text in, text out


def complete(model, tokenizer, config):
    """Prints the prompt with each of its continuations, a line of dashes between; the answers alone, if the model is
    one for chats. -> {'prompt', 'texts'}"""
    text, line, texts = read_prompt(config.prompt), '\n---------------\n', []
    prompt = shown = text
    if chats(model, file_of(model)):
        if not text.strip(): raise ValueError('nothing is asked: give --prompt=TEXT, or --interactive for a chat')
        prompt, shown = opening(config, dict(role='user', content=text.strip())), ''
    if not config.stream:
        texts, speed = continuations(model, tokenizer, prompt, config, config.num_samples, config.seed)
        print(line.join(shown + text for text in texts), flush=True)
        print(speed, file=sys.stderr)
    while len(texts) < config.num_samples:
        texts += speak(model, tokenizer, prompt, config, config.seed + len(texts), [])
        if len(texts) < config.num_samples: print(line[1:], end='')
    return dict(prompt=text, texts=texts)


def speak(model, tokenizer, prompt, config, seed, said):
    """One sample, shown as it is made, and put into the list `said`, which has what there is of it after a Ctrl-C."""
    def show(piece):
        said.append(piece)
        print(piece, end='', flush=True)
    if isinstance(prompt, str): print(prompt, end='', flush=True)
    texts, speed = continuations(model, tokenizer, prompt, config, 1, seed, show)
    print(flush=True)
    print(speed, file=sys.stderr)
    return texts


def converse(model, tokenizer, config):
    """A loop of prompts. Each stands for itself, unless the model is one for chats: then it hears all that was said
    since the beginning or /reset. -> {'texts'}, in a chat also the 'messages'"""
    with contextlib.suppress(ImportError): import readline                 # line editing and history of input()
    texts, ask, chat = [], '> ' if sys.stdin.isatty() else '', chats(model, file_of(model))
    messages = opening(config)
    more = '/reset forgets what was said, ' if chat else ''
    if ask: print(f'a prompt a line; {more}Ctrl-C stops the answer, Ctrl-D leaves', file=sys.stderr)
    while True:
        try: prompt = input(ask)
        except EOFError: break
        except KeyboardInterrupt: print(); continue
        said = []
        if chat and prompt.strip() == '/reset': messages = opening(config)
        if chat and prompt.strip() in ('', '/reset'): continue
        if chat: messages.append(dict(role='user', content=prompt.strip()))
        try: texts += speak(model, tokenizer, messages if chat else prompt, config, config.seed + len(texts), said)
        except KeyboardInterrupt: print(' ... stopped', flush=True)
        except ValueError as e: print(f'\n{e}', file=sys.stderr)           # such as a character unknown to the vocabulary
        if chat and ''.join(said): messages.append(dict(role='assistant', content=''.join(said)))
        elif chat: messages.pop()                                          # unanswered: as if it had not been said
    if ask: print()
    return dict(texts=texts, **(dict(messages=messages) if chat else {}))

# ---------------------------------------------------------------------------------------------------- what can be done

def writes(model, file): return hasattr(file, 'generate')                 # a source in, a text out
def chats(model, file): return models.chat_of(file) is not None and getattr(model.config, 'kind', '') == 'instruct'
def continues(model, file):
    return not writes(model, file) and not chats(model, file) and (hasattr(model, 'step') or likelihoods(model, file))
def likelihoods(model, file): return getattr(file, 'likelihood', False)    # logits(ids) are those of the next token
def encodes(model, file): return hasattr(model, 'hidden') and 'labelled' in getattr(file, 'kinds', ()) and not hasattr(model, 'step')
def is_for(*kinds): return lambda model, file: encodes(model, file) and model.config.kind in kinds
def detects(model, file):                                                  # logits (B, T): was this token replaced?
    return is_for('text')(model, file) and getattr(model.config, 'has_detector', getattr(file, 'detects', False))
def fills(model, file): return is_for('text')(model, file) and not detects(model, file)

# The first line whose flag is given and whose condition holds: the flag, what a model must offer, the use, words for it,
# the further flags that it takes, how to get such a model. A use is a function of (model, tokenizer, config) that prints,
# and returns a dict.
Use = collections.namedtuple('Use', 'flag can run words takes how', defaults=[''])
tuned = 'python train.py --init_from={} --data='
drawing = 'temperature top_k top_p max_new_tokens seed '
playing = drawing + 'num_samples min_p repetition_penalty stop ignore_eot stream cache slide'
uses = [Use('eval', likelihoods, evaluate, 'tell the likelihood of a text', 'text stride delimiter batch_size'),
        Use('interactive', continues, converse, 'continue a text', playing),
        Use('interactive', chats, converse, 'chat', playing + ' system'),
        Use('classify', is_for('labelled', 'tagged', 'choice'), classify, 'classify', 'top batch_size out json', tuned + 'LABELLED.jsonl'),
        Use('answer', is_for('qa'), answer, 'answer questions', 'question context top batch_size out json', tuned + 'squad'),
        Use('embed', encodes, embed, 'give vectors', 'pool normalize batch_size out json'),
        Use('prompt', continues, complete, 'continue a text', playing),
        Use('prompt', chats, complete, 'answer a prompt', playing + ' system'),
        Use('prompt', writes, write, 'answer a text', drawing + 'beams length_penalty no_repeat_ngram metric batch_size out json'),
        Use('prompt', detects, detect, 'find replaced tokens', 'batch_size out json'),
        Use('prompt', fills, fill, 'fill in [MASK]', 'top batch_size out json')]


def choose(config, path, model, file):
    """-> the Use that the flags ask for"""
    able = [u for u in uses if u.can(model, file)]
    asked = next((u.flag for u in uses if getattr(config, u.flag)), '')
    here = f'{path}: {file.__name__}.py' + (f' (kind={model.config.kind})' if hasattr(model.config, 'kind') else '')
    words = dict.fromkeys(u.words for u in able)
    offers = ', '.join(f'{w} ({", ".join("--" + u.flag for u in able if u.words == w)})' for w in words) or 'none of what sample.py does'
    use = next((u for u in able if asked == u.flag or not asked and u.run is complete), None)  # no prompt: a new document
    if use is None and not asked: raise ValueError(f'{here}: nothing asked for; it can {offers}')
    if use is None:
        some = [u for u in uses if u.flag == asked]
        how = f': first {some[0].how.format(path)}' if some[0].how else ''
        raise ValueError(f'{here} cannot {" or ".join(u.words for u in some)}{how}; it can {offers}')
    fit = {use.flag, *use.takes.split(), *(f.name for group, _, f in fields_of(Config) if group == 'the model')}
    if odd := [n for n in config.given if n not in fit]:
        raise ValueError(f'--{odd[0]} does not go with --{use.flag} on {file.__name__}.py, which takes --{" --".join(use.takes.split())}')
    return use

# ---------------------------------------------------------------------------------------------------- the command line

dtypes = dict(bfloat16=torch.bfloat16, float16=torch.float16, float32=torch.float32)
ranges = dict(num_samples=(1, 1e9), max_new_tokens=(1, 1e9), temperature=(0, 1e9), top_k=(0, 1e9), top_p=(0, 1), min_p=(0, 1),
              repetition_penalty=(0.01, 100), slide=(1, 1e9), stride=(0, 1e9), batch_size=(1, 1e9), beams=(1, 1e9), top=(1, 1e9),
              no_repeat_ngram=(0, 1e9))

def parse(argv):
    """flags -> Config. Raises ValueError with one line on a user's mistake."""
    fields, given = fields_of(Config), split_flags(argv)
    if 'help' in given:
        print(f'{__doc__.strip()}\n')
        for group in dict.fromkeys(g for g, _, _ in fields):
            print(group + '\n' + '\n'.join(f'  --{f.name}={f.default}'.ljust(29) + text for g, text, f in fields if g == group))
        raise SystemExit(0)
    usual = {f.name: f.default for _, _, f in fields}
    for name in given:
        if name not in usual: raise ValueError(f'unknown flag --{name}{nearest(name, [*usual], "--")} (--help lists all)')
    config = Config(**{n: value_of(n, type(usual[n]), text) for n, text in given.items()})
    config.given, config.answer = tuple(given), config.answer or bool(config.question or config.context)
    if not os.path.isdir(folder := os.path.dirname(config.out) or '.'): raise ValueError(f'--out={config.out}: no folder {folder}')
    for name, choices in dict(dtype=('auto', *dtypes), compile=('auto', 'true', 'false'), pool=('mean', 'cls')).items():
        if getattr(config, name) not in choices: raise ValueError(f'--{name}={getattr(config, name)}: expected one of {", ".join(choices)}')
    for name, (low, high) in ranges.items():
        if not low <= getattr(config, name) <= high: raise ValueError(f'--{name}={getattr(config, name)}: expected {low} ' + (f'to {high}' if high < 1e9 else 'or more'))
    return config


def run(config):
    path, device = config.init_from or config.out_dir, pick_device(config.device)
    if not config.init_from and not os.path.exists(path):
        have = sorted(d for d in glob.glob('out/*') if os.path.exists(os.path.join(d, 'ckpt.pt')))
        raise FileNotFoundError(f'no run in {path}: train one with python train.py --model=gpt' + ('' if path == Config.out_dir else f' --out_dir={path}')
                                + f', or give --init_from=CHECKPOINT or --out_dir=RUN (here: {", ".join(have[:9]) or "none"}' + ' ...' * (len(have) > 9) + ')')
    if config.lora.endswith('.pt') or os.path.exists(os.path.join(config.lora, 'ckpt.pt')):    # a run, with the head that it made
        model, tokenizer = load_model(config.lora, base=path)
    else:
        model, tokenizer = load_model(path)
        if config.lora and lora.mergeable(lora.load(model, config.lora)): lora.merge(model, unload=True)
    if config.tokenizer: tokenizer = bpe.load(config.tokenizer)
    if tokenizer is None: raise ValueError(f'{path} has no tokenizer: give one with --tokenizer=FILE (or a name, such as gpt2)')
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f'{path} has {model.config.vocab_size} token ids, the vocabulary {tokenizer.name} {tokenizer.vocab_size}: it is not the one of this model')
    use = choose(config, path, model, file_of(model)).run
    half = use in (complete, converse, write) and device.type == 'cuda' and native_bf16()
    return use(model.to(device, dtypes.get(config.dtype) or (torch.bfloat16 if half else torch.float32)).eval(), tokenizer, config)


def main(argv=None):
    """Does what the flags say; -> dict: 'texts', 'records', or what --eval has measured."""
    return run(parse(sys.argv[1:] if argv is None else argv))


def cli():
    """main for the shell: a user's mistake is one line, and exit status 2 for a wrong flag, 1 for the rest"""
    status = 2
    try: config = parse(sys.argv[1:]); status = 1; run(config); sys.stdout.flush(); return
    except KeyboardInterrupt: error, status = 'stopped', 130
    except BrokenPipeError: os.dup2(os.open(os.devnull, os.O_WRONLY), 1); sys.exit(1)  # `| head` has seen enough
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e): raise
        error = f'out of memory ({files.first_line(e)[:200]}): lower --num_samples, --max_new_tokens or --batch_size'
    except (ValueError, OSError) as e: error = ' '.join(str(e).split()) or type(e).__name__
    if os.environ.get('TRACEBACK'): raise
    print(f'\nsample.py: {error}' if status == 130 else f'sample.py: {error}', file=sys.stderr)
    sys.exit(status)

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli()
