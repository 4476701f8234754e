"""
The one trainer: any model file of this folder, on a CPU, one GPU or many.

    python train.py --model=gpt                                     # the default run, on the standard library's source
    python train.py --model=gpt --data=my.txt --tokenizer=char      # your own text
    torchrun --standalone --nproc_per_node=8 train.py --model=gpt --preset=gpt2 --data=fineweb
    python train.py --model=gpt --preset=gpt2 --help                # every flag, with the values it would have

A flag is a field of Config below or of the model file's Config. Precedence: defaults < recipe < preset < flag.

A model file (`cp gpt.py mine.py; python train.py --model=mine`) imports torch and numpy alone and defines

    Config, presets            a dataclass of int, float, bool and str fields; {name: the fields that differ}
    recipe, recipes            optional: what this file, and what a preset, trains best with (fields of both Configs)
    batch(draw, config, rng)   -> numpy arrays of one micro-batch: the objective lives here
        draw(length, overlap=0, stream=0) -> (B, length) int64 windows of the text, one for each row of the micro-batch
        rng.random(*shape), rng.integers(low, high, *shape) -> (B, *shape): random numbers of each row
    Model(config)
        forward(*arrays, totals=None) -> loss, stats. Both are sums divided by `totals`, the number of targets in the
                                 global batch (None: in this one), so that adding over micro-batches and ranks is exact
        logits(ids)              full logits, for parity and evaluation
        cache(rows, length), step(ids, cache) -> (B, V)      (optional)
        flops()                  optional: training flops of a row, where lib/flops.py does not count them well
    family                     optional: which tables of lib/ fit this Model (Hugging Face's layout, what is shown)
    from_hf(config, weights), to_hf(model), hf_types       optional: a Hugging Face layout of its own
    count(*arrays)             optional: numbers of targets, one for each entry of totals; default: entries >= 0 of the
                               last array
    show(model, tokenizer, ids)      optional: text that lets a person see what the model has learned

    fill(tokenizer)            optional: further Config fields that the tokenizer decides, as a dict
    finetune                   optional: what trains well from given weights (--init_from), in the place of the recipes
    summary(stats)             optional: what is reported, made of the summed stats (a ratio of two sums, say)
    Model.before_step(step)    optional: called with the number of each step, and once before the optimizers are built;
                               true if other parameters train from this step on
    chat(messages, tokenizer, config)    optional, for instructions: a conversation -> ids that a reply continues
    likelihood                 optional: true if the loss is that of the text: for bits per byte, and sample.py --eval
    generate(model, source, mask, ...), text_of(ids, tokenizer, eot)   optional: a source in, a text out, for sample.py
    Model.depth_of(name)       optional: how deep a parameter lies, for --freeze, --layer_decay, --unfreeze_interval
    hf_folders                 optional: {name: function like to_hf}, more models for folders inside an exported one

Config fields named vocab_size, kind, n_labels, labels, no_answer, eot_id, pad_id, cls_id, sep_id, mask_id are filled
from the data and its tokenizer. For labelled data a model file also defines

    kinds = ('text', 'labelled', ...)        the kinds of data it trains on
    encode(example, tokenizer, config) -> list of dicts, the rows of an example; batch finds them as draw.examples()
    predict(model, arrays, examples, tokenizer) -> list of dicts, a row each: index, prediction, score (the best counts)

What a run leaves in out_dir: ckpt.pt (all that is needed to go on), best.pt, metrics.jsonl, log.txt, loss.svg,
tokenizer.json, run.json (the command) and, for supervised data, predictions.jsonl; of an adapter also peft's two files
and, with --merge, merged.pt.

Departures from nanoGPT: `batch_size` counts sequences of an optimizer step over all devices, so a command trains the
same on 1 or 8 of them; a batch is a pure function of (seed, step, row), so `--resume` is exact without loader state.
"""
import contextlib, dataclasses, importlib, json, math, os, re
import signal, statistics, sys, time, traceback
from dataclasses import dataclass

if __name__ == '__main__':                           # Ctrl-C while torch is imported, which takes seconds: no traceback
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b'\nstopped\n'), os._exit(130)))

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn

import adapters, bpe, lora
from data import files, metrics, text
from data.files import first_line, write_safetensors
from data.rows import keyed, training, validation
from lib import models
from lib.words import nearest, further, readable, span
from lib.models import HERE, scripts_with, import_model, typed
from lib.flags import fields_of, value_of, split_flags, print_help
from lib.optim import orthogonalize, Muon, Adam, like, whole
from lib.checkpoint import HOLDS, load_checkpoint, save_checkpoint, restore
from lib.weights import hf_file, script_of, fingerprint, base_of, load_parts, outline, load_weights, load_model, export_hf, build_model
from lib.curve import draw_curve
from lib.log import Log, note_start, say_result, git_revision
from lib.device import PEAK, wide_products, native_bf16, pick_device, peak_memory, attention_backend, out_of_memory
from lib.launch import SIGNALS, launch_id, make_room
from lib.flops import flops as training_flops
from lib.feed import open_data, fields_from_data, Feed
from lib.evaluate import TRUTH, Evaluation, Evaluations

@dataclass
class Config:
    # run
    model: str = 'gpt'              # model file: gpt, bert, t5, electra, or your own NAME.py
    preset: str = ''                # one of the model file's presets (a size, or a whole speedrun)
    data: str = 'stdlib'            # data/NAME.py, a prepared folder, your own file, folder, .jsonl, .gz; A+B mixes
    mix_cap: int = 0                # --data=A+B: a part counts as at most this many examples (T5's K); 0 means no limit
    mix_temperature: float = 1.0    # --data=A+B: 1 mixes by size, more evens the shares out
    tokenizer: str = ''             # bpe, char, byte, gpt2, or a vocabulary file; '' takes the data set's own
    out_dir: str = ''               # where the run is written; '' means out/MODEL, and with init_from out/MODEL-DATA
    init_from: str = ''             # start from weights: an out_dir, a .pt file, or a Hugging Face folder
    new_weights: bool = False       # with init_from: its architecture and tokenizer alone, the weights start anew
    baseline: bool = False          # with init_from: then the same run from new weights, and both results side by side
    resume: bool = False            # go on with the run in out_dir, bit for bit
    export_hf: str = ''             # at the end, write the model to this folder for transformers
    seed: int = 1337                # seed of weights, data order, masks and dropout
    skip_nonfinite: bool = False    # a loss or gradient that is not finite: leave out the update; ten in a row stop
    deterministic: bool = False     # bit-equal reruns on CUDA too (slower)
    device: str = 'auto'            # auto, cpu, cuda, cuda:1, mps
    dtype: str = 'auto'             # auto, bfloat16, float16, float32: what matrix products run in; weights stay fp32
    compile: str = 'auto'           # torch.compile: auto (on CUDA), true, false, max-autotune, reduce-overhead (graphs)
    shard: bool = False             # FSDP2: shard weights, gradients and optimizer over the ranks
    # batch and length
    batch_size: int = 64            # sequences of one optimizer step, over all devices
    micro_batch_size: int = 0       # sequences that one device holds at once; 0 means its whole share
    group_by_length: bool = False   # labelled data: sort each 16 batches by length, so that a batch needs less padding
    max_iters: int = 1000           # optimizer steps
    epochs: float = 0.0             # passes over the training data, in the place of max_iters; 0 means max_iters
    time_limit: float = 0.0         # stop after this many seconds of training; 0 means no limit
    target_val_loss: float = 0.0    # stop at the first evaluation at or below; 0 means no target
    patience: int = 0               # stop after this many evaluations without a better one; 0 means never
    # evaluation, logging, saving
    eval_interval: int = 250        # steps from one evaluation to the next; 0 means an epoch
    eval_iters: int = 256           # validation windows of an evaluation, the first ones of the text; 0 means all
    log_interval: int = 10          # steps from one line of the log to the next
    save_interval: int = 0          # steps from one checkpoint to the next; 0 means eval_interval
    log_to: str = ''                # also send metrics to: wandb, tensorboard
    # adapters (lora.py, adapters.py): the weights of init_from stay as they are, checkpoints hold the adapter alone
    adapter: str = ''               # lora bottleneck adamix prefix prompt bitfit; '': lora if lora_rank, else none
    adapter_size: int = 0           # width of bottlenecks (0: 16), number of prefix or prompt tokens (0: 20)
    adapter_hidden: int = 0         # prefix: width of an MLP that its keys and values come from; 0: none
    adapter_experts: int = 4        # adamix: bottlenecks in each place
    adapter_consistency: float = 0.0  # adamix, labelled data: weight of its second loss (the paper's 1); a second pass
    lora_rank: int = 0              # rank of the low-rank adapters; --adapter=lora alone: 8
    lora_alpha: float = 16.0        # they count alpha / rank
    lora_match: str = ''            # adapted: q k v out up gate down, names of layers, all; '': q,v or down or out,down
    lora_dropout: float = 0.0       # on what low-rank adapters read, and inside bottlenecks
    lora_bits: int = 0              # hold the frozen layers in 8 (int8) or 16 (bf16) bits; 0: as they are
    rslora: bool = False            # alpha / sqrt(rank) instead
    dora: bool = False              # DoRA: also learn the length of each row
    merge: bool = False             # at the end write out_dir/merged.pt, a plain checkpoint, the adapter in its weights
    # optimizer
    optimizer: str = 'adamw'        # adamw, muon (for the matrices inside blocks; adamw for the rest), adafactor
    learning_rate: float = 6e-4     # peak learning rate of adamw
    min_lr: float = 0.0             # learning rate at the end of the schedule
    muon_lr: float = 0.02           # peak learning rate of muon; follows the same schedule
    lr_schedule: str = 'cosine'     # cosine, linear, inverse_sqrt, constant, wsd (warm-up, stable, linear decay)
    warmup_iters: int = 100         # steps of linear warm-up
    lr_decay_iters: int = 0         # step at which min_lr is reached; 0 means max_iters
    decay_share: float = 0.2        # share of the steps in which wsd decays
    weight_decay: float = 0.1       # decoupled, on matrices only
    beta1: float = 0.9              # Adam's beta1
    beta2: float = 0.95             # Adam's beta2
    eps: float = 1e-8               # Adam's epsilon
    momentum: float = 0.95          # muon's momentum
    grad_clip: float = 1.0          # clip the gradient's norm to this; 0 means off
    bias_correction: bool = True    # Adam's; BERT's own Adam goes without
    layer_decay: float = 1.0        # learning rate of each layer relative to the one above it, for fine-tuning
    freeze: int = 0                 # leave the embeddings and this many of the lowest layers as they are; 0 means none
    unfreeze_interval: int = 0      # gradual unfreezing (ULMFiT): from the head down, a layer more every so many steps
    rms_scale: bool = False         # times max(1e-3, RMS(parameter)) on each learning rate: T5's cure (nanoT5)

# ---------------------------------------------------------------------------------------------------- flags


def parse(argv):
    """flags -> Config, model file, its Config's values, the given flags, what differs from the defaults, the checkpoint
    to resume or {}. Raises ValueError on a user's mistake."""
    mine = {f.name: f.default for f in dataclasses.fields(Config)}
    given, saved = split_flags(argv), {}
    if value_of('resume', bool, given.get('resume', 'false')):
        saved = load_checkpoint(path := given.setdefault('out_dir', 'out/' + given.get('model', mine['model'])))
        if missing := sorted(HOLDS.keys() - {'lora', 'source', 'base', 'skipped', 'columns'} - saved.keys()):
            raise ValueError(f'--resume: the checkpoint in {path} lacks {missing[0]}, so its run cannot go on; '
                             f'start a new one from its weights with --init_from={path}')
        had = saved['model_name']
        if given.setdefault('model', had) != had:
            raise ValueError(f'--resume: {given["out_dir"]} holds a run of --model={had}, not {given["model"]}')
    elif 'model' not in given and given.get('init_from') not in (None, '', 'scratch'):
        given['model'] = script_of(given['init_from'])                     # whose weights they are
    model = given.get('model', mine['model'])
    file = import_model(model)
    if saved:
        typed(file.Config, saved['config'], given['out_dir'])
        saved['train'] = dataclasses.asdict(typed(Config, saved['train'], given['out_dir']))
    own = {f.name: f.default for f in dataclasses.fields(file.Config) if f.name not in mine}
    base = {**own, **mine}
    if unknown := [n for n in given if n not in base and n != 'help']:
        raise ValueError(f'unknown flag --{unknown[0]}{nearest(unknown[0], list(base), "--")} (--help lists all)')
    flags = {n: value_of(n, type(base[n]), text) for n, text in given.items() if n != 'help'}
    recipe, presets = getattr(file, 'recipe', {}), file.presets
    usual = saved['train']['preset'] if saved else '' if flags.get('init_from') else recipe.get('preset', '')
    preset = flags.get('preset', usual)
    if preset and preset not in presets and not (saved and 'preset' not in flags):      # a run holds all its values
        raise ValueError(f'--preset={preset}: {model}.py has {", ".join(presets)}{nearest(preset, presets)}')
    values = {**base, **recipe, **presets.get(preset, {}), **getattr(file, 'recipes', {}).get(preset, {})}
    if flags.get('init_from') and not saved:
        values = {**base, **presets.get(preset, {}), **getattr(file, 'finetune', recipe)}
    values['preset'] = preset
    if unknown := set(values) - set(base):
        raise ValueError(f'{model}.py: the recipe or preset {preset!r} sets {unknown.pop()}, a field of neither Config')
    if saved:
        held = {**own, **saved['config']}
        fixed = 'optimizer', 'init_from', 'adapter', 'lora_rank', 'lora_match', 'rslora', 'dora'
        held |= {n: saved['train'][n] for n in fixed}                      # what its state hangs on
        if flags.get('init_from', held['init_from']) != held['init_from']:
            raise ValueError(f'--resume goes on with the run in {given["out_dir"]}: leave out --init_from, '
                             f'or for the run there: --resume --out_dir={flags["init_from"]}')
        if changed := [n for n in flags if n in held and flags[n] != held[n]]:
            n, had = changed[0], held[changed[0]]
            raise ValueError(f'--resume: --{n}={flags[n]}, but the run has {had}: leave it out, '
                             f'or start a new run with --init_from={given["out_dir"]}')
        values = {**values, **saved['train'], **saved['config'], 'export_hf': ''}
    values = {**values, **flags}
    if 'max_iters' in flags and 'epochs' not in flags: values['epochs'] = 0.0
    if not values['out_dir']:
        data = re.sub(r'\W+', '-', '-'.join(os.path.basename(part.rstrip('/')) for part in values['data'].split('+')))
        values['out_dir'] = f'out/{model}-{data}' if values['init_from'] else f'out/{model}'
    if 'help' in given:
        print_help(file, values, Config, __doc__)
        raise SystemExit(0)
    for n in ('new_weights', 'baseline'):
        if values[n] and not values['init_from']: raise ValueError(f'--{n} compares with weights: add --init_from=RUN')
    values['adapter'] = kind = values['adapter'].lower() or 'lora' * (values['lora_rank'] != 0)
    if kind == 'lora': values['lora_rank'] = values['lora_rank'] or 8
    elif kind and values['lora_rank']: raise ValueError(f'--lora_rank is of low-rank adapters, not of --adapter={kind}')
    if values['adapter_size'] and kind in ('', 'lora', 'bitfit'):
        raise ValueError(f'--adapter_size={values["adapter_size"]}: goes with --adapter=bottleneck, adamix, prefix, '
                         'prompt; --lora_rank is that of low-rank adapters')
    of_adapters = {f.name for group, _, f in fields_of(Config) if group.startswith('adapters')}
    if not kind and (idle := [n for n in flags if n in of_adapters and values[n] != mine[n]]):
        raise ValueError(f'--{idle[0]} is of adapters, and without one all weights are trained: add --lora_rank=8')
    if kind not in ('', 'lora', 'bitfit') and (values['merge'] or values['export_hf']):
        raise ValueError(f'--adapter={kind} cannot become part of the weights: leave out --merge and --export_hf')
    if values['lora_bits'] not in (0, 8, 16):
        raise ValueError(f'--lora_bits={values["lora_bits"]}: expected 8 (int8), 16 (bf16) or 0, the base as it is')
    choices = dict(adapter=' lora bottleneck adamix prefix prompt bitfit',
                   optimizer='adamw muon adafactor', lr_schedule='cosine linear inverse_sqrt constant wsd',
                   dtype='auto bfloat16 float16 float32', compile='auto true false max-autotune reduce-overhead',
                   log_to=' wandb tensorboard')
    for n, allowed in choices.items():
        values[n] = values[n].lower()
        if values[n] not in allowed.split(' '):
            names = allowed.split()
            raise ValueError(f'--{n}={values[n]}: expected one of {", ".join(names)}{nearest(values[n], names)}')
    for n in ('batch_size', 'log_interval', 'learning_rate'):
        if values[n] <= 0: raise ValueError(f'--{n}={values[n]}: expected more than 0')
    for n in ('max_iters', 'epochs', 'time_limit', 'patience', 'eval_interval', 'eval_iters', 'save_interval',
              'warmup_iters', 'micro_batch_size', 'weight_decay', 'grad_clip', 'freeze', 'unfreeze_interval'):
        if values[n] < 0: raise ValueError(f'--{n}={values[n]}: expected 0 or more')
    config = Config(**{n: values[n] for n in mine})
    changed = {n: v for n, v in values.items() if v != base[n] and n not in ('model', 'out_dir', 'resume')}
    return config, file, {n: values[n] for n in own}, flags, changed, saved


# ---------------------------------------------------------------------------------------------------- optimizers


def make_optimizers(model, config):
    "-> [Adam], [Adafactor] or [Muon, Adam]. Decay on p.ndim >= 2 only; a shared tensor is one parameter"
    depth = getattr(model, 'depth_of', lambda name: 0)
    depths = {p: depth(n) for n, p in model.named_parameters()}
    top = max(depths.values())
    if (config.freeze or config.unfreeze_interval or config.layer_decay != 1) and not top:
        raise ValueError('--freeze, --unfreeze_interval and --layer_decay need a Model that has depth_of(name), as '
                         'those of bert.py and electra.py: leave them out')
    if config.freeze and not 0 < config.freeze < top:
        raise ValueError(f'--freeze={config.freeze}: the model has {top - 1} layers; expected 1 to {top - 1}')
    for p, d in depths.items(): p.requires_grad_(p.requires_grad and not 0 < config.freeze >= d)
    for m in model.modules():                        # here, because sharding makes new parameters
        if hasattr(m, 'parts'): m.weight.parts = list(m.parts.values())
    inside = {p for m in model.modules() if isinstance(m, nn.ModuleList) for p in m.parameters() if p.ndim == 2}
    def groups(params, peak):
        kinds = sorted({(p.ndim >= 2, depths[p]) for p in params})
        return [dict(params=[p for p in params if (p.ndim >= 2, depths[p]) == (decays, d)],
                     weight_decay=config.weight_decay * decays, peak=peak * config.layer_decay ** (top - d),
                     start=(top - d) * config.unfreeze_interval) for decays, d in kinds]
    params, lr = [p for p in model.parameters() if p.requires_grad], config.learning_rate
    if config.optimizer == 'adafactor': return [torch.optim.Adafactor(groups(params, lr), lr=lr)]
    if config.optimizer != 'muon' or config.adapter: inside = ()    # adapters are no matrices to orthogonalise
    muon, rest = [p for p in params if p in inside], [p for p in params if p not in inside]
    optimizers = []
    if muon: optimizers.append(Muon(groups(muon, config.muon_lr), config.muon_lr, config.momentum))
    if rest: optimizers.append(Adam(groups(rest, lr), config.rms_scale, config.bias_correction, lr=lr,
                                    betas=(config.beta1, config.beta2), eps=config.eps, fused=True))
    return optimizers

def lr_at(step, config):
    "share of the peak learning rate at `step`, counted from 0"
    if step < config.warmup_iters: return (step + 1) / (config.warmup_iters + 1)
    end, floor = config.lr_decay_iters or config.max_iters, config.min_lr / config.learning_rate
    t = min(1, (step - config.warmup_iters) / max(1, end - config.warmup_iters))
    if config.lr_schedule == 'cosine': share = 0.5 * (1 + math.cos(math.pi * t))
    elif config.lr_schedule == 'linear': share = 1 - t
    elif config.lr_schedule == 'wsd': share = min(1, (end - step) / max(1, config.decay_share * end))
    elif config.lr_schedule == 'inverse_sqrt': return max(floor, (max(1, config.warmup_iters) / (step + 1)) ** 0.5)
    else: return 1.0
    return floor + (1 - floor) * max(0, share)

# ---------------------------------------------------------------------------------------------------- files


# ---------------------------------------------------------------------------------------------------- the run


def pick_attention(device, config):
    """A CPU's fused attention kernel takes two to five times as long as plain products for rows of up to 256 tokens,
    and half as long again for the blocks that windows cut rows into, where all layers have one. cuDNN's, a Hopper's
    default, can make NaN of gradients under a mask (pytorch issue 196678): it gets rows without one alone."""
    length, window = getattr(config, 'block_size', 1024), getattr(config, 'window', 0)
    if window and not hasattr(config, 'global_every'): length = min(length, window)
    torch.backends.cuda.enable_flash_sdp(device.type != 'cpu' or length > 256)             # the CPU's kernel too
    torch.backends.cuda.enable_cudnn_sdp(getattr(config, 'kind', 'text') == 'text' and not window)


def main(argv=None):
    """Train as the flags say; -> dict of the final metrics (val_loss, val_bpb, train_seconds, steps, ...).
    Raises ValueError or OSError for a user's mistake, FloatingPointError when the loss is no longer finite."""
    argv = list(sys.argv[1:] if argv is None else argv)
    config, file, values, flags, changed, saved = parse(argv)
    device = pick_device(config.device)
    world, rank = int(os.environ.get('WORLD_SIZE', 1)), int(os.environ.get('RANK', 0))
    began, restarted = time.time(), os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0'
    if restarted and not saved and os.path.exists(os.path.join(config.out_dir, 'ckpt.pt')):
        with open(os.path.join(config.out_dir, 'run.json'), encoding='utf-8') as f: ran = json.load(f)
        if (ran['argv'], ran.get('launch')) == (sys.argv, launch_id()):    # no earlier run
            return main(argv + ['--resume'])         # torchrun started us again after a failure
    distributed = 'RANK' in os.environ and 'MASTER_ADDR' in os.environ
    if distributed: dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo')
    handlers, stop, status = {}, [], 0
    def ask_to_stop(number, frame):
        "the first signal ends the run after this step, a later one at once; a launcher repeats what all were sent"
        if stop and time.time() > stop[1] + 1: raise KeyboardInterrupt
        stop[:] = stop or [number, time.time()]
    def listen():
        with contextlib.suppress(ValueError):        # not in the main thread: the caller keeps its handlers
            for s in SIGNALS:                        # nohup's SIGHUP stays ignored
                if s != getattr(signal, 'SIGHUP', 0) or signal.getsignal(s) != signal.SIG_IGN:
                    handlers[s] = signal.signal(s, ask_to_stop)
        return stop
    try: result = run(config, file, values, flags, changed, saved, argv, device, world, rank, listen, began)
    except SystemExit as e: status = e.code
    finally:
        for s, h in handlers.items(): signal.signal(s, h)
    # after run's frames are gone, never while an error holds them: DDP's part of the group then ends under the
    # interpreter's lock and may wait for ever
    if distributed: dist.destroy_process_group()
    if status: raise SystemExit(status)
    if not config.baseline: return result
    anew = ['--baseline=false', '--resume=false', '--new_weights', f'--out_dir={config.out_dir}-new']
    result['baseline'] = other = main(argv + anew)
    names = [k for k in result if k.startswith(('best_', 'val_', 'commonest_')) and k in other]
    for k in names if rank == 0 else ():
        print(f'{readable(k)}:'.ljust(36), f'from {config.init_from} {result[k]:.4f}, from new weights {other[k]:.4f}')
    return result


def open_weights(config, file, flags, values, saved):
    "-> the model's Config values, weights or None, tokenizer or None, where they came from"
    if saved:
        weights = base_of(saved, config.out_dir) if 'lora' in saved else saved['model']
        tokenizer = bpe.loads(saved['tokenizer']) if saved['tokenizer'] else None
        return values, weights, tokenizer, config.out_dir
    if config.init_from in ('', 'scratch'): return values, None, None, ''
    source, given, weights, tokenizer = load_parts(config.init_from)
    if getattr(weights, 'adapter', None):
        raise ValueError(f'--init_from={config.init_from} is an adapter ({weights.adapter["kind"]}) that no '
                         f'plain weights can hold: --resume --out_dir={config.init_from} goes on with it, '
                         'or start from its base')
    if source is not file:                           # a fork starts from its parent's weights, if it has its fields
        fields, had = {f.name for f in dataclasses.fields(file.Config)}, dataclasses.asdict(given)
        if lacks := [n for n in had if n not in fields]:
            raise ValueError(f'--init_from={config.init_from} holds a model of {source.__name__}.py, '
                             f'not of --model={config.model}, whose Config has no {lacks[0]}{further(lacks)}: '
                             f'leave out --model, or keep the fields of {source.__name__}.py in a fork of it')
        given = typed(file.Config, had, config.init_from)
    own = {f.name for f in dataclasses.fields(file.Config)} - {'vocab_size'}
    wanted = {n: v for n, v in {**getattr(file, 'finetune', {}), **flags}.items() if n in own}
    values = {**dataclasses.asdict(given), **wanted}
    return values, None if config.new_weights else weights, tokenizer, config.init_from


def run(config, file, values, flags, changed, saved, argv, device, world, rank, listen, began):
    # ---- what to train, on what
    values, weights, tokenizer, origin = open_weights(config, file, flags, values, saved)
    if config.init_from and config.export_hf and config.max_iters == 0:            # a conversion: needs no data
        export_hf(file, build_model(file, file.Config(**values), weights, origin, 0), tokenizer, config.export_hf)
        print(f'wrote {config.export_hf}')
        return dict(export_hf=config.export_hf)
    folder, meta, tokenizer = open_data(config, file, flags, saved, origin, tokenizer)
    if weights is not None and meta['vocab_size'] > values['vocab_size']:
        raise ValueError(f'{config.data} has {meta["vocab_size"]} token ids, the model of {origin} '
                         f'{values["vocab_size"]}: leave out --tokenizer to prepare the text with its own')
    fill = fields_from_data(file, meta, tokenizer, weights is not None)
    other = any(values.get(n, fill[n]) != fill[n] for n in ('kind', 'n_labels'))
    new_task = weights is not None and ('lora' in saved if saved else other)
    named = {n for n in flags if n.endswith('_id')}  # the roles that the command itself gives to tokens
    values = {n: v if n in named or fill.get(n) is None else fill[n] for n, v in values.items()}
    mconfig = file.Config(**values)
    dtype = dict(bfloat16=torch.bfloat16, float16=torch.float16, float32=torch.float32).get(config.dtype) or (
        torch.float32 if device.type != 'cuda' else torch.bfloat16 if native_bf16() else torch.float16)
    if dtype == torch.float16 and (device.type != 'cuda' or config.shard):
        raise ValueError('--dtype=float16 needs CUDA and no --shard: use bfloat16 or float32')
    autocast = lambda: torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    share = config.batch_size // world               # rows of a step for this rank
    micro = min(config.micro_batch_size or share, share)
    if share * world != config.batch_size or share % micro:
        unit = world * max(micro, 1)
        raise ValueError(f'--batch_size={config.batch_size} does not split into {world} device(s) x micro-batches of '
                         f'{micro or 1}: try --batch_size={-(-config.batch_size // unit) * unit}')
    config = dataclasses.replace(config, shard=config.shard and world > 1)
    if flags.get('shard') and world == 1:
        raise ValueError('--shard needs several ranks: torchrun --standalone --nproc_per_node=N train.py ...')
    if config.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
    encode = lambda example: models.rows_of(file, meta['kind']).encode(example, tokenizer, mconfig)
    train_set = training(meta, config.seed, encode, config.mix_cap, config.mix_temperature)
    val_sets = validation(meta, config.seed, encode)
    feed = Feed(file, mconfig, train_set, device, tokenizer)
    base = fingerprint(weights) if config.adapter and weights is not None else ''
    model = build_model(file, mconfig, weights, origin, config.seed, new_task)
    if config.export_hf:                             # refused before files are touched
        if not models.layout_of(file): raise ValueError(f'--export_hf: {file.__name__}.py has no Hugging Face layout')
        try: models.layout_of(file).to_hf(model)
        except ValueError as e:
            raise ValueError(f'--export_hf: {e}; leave it out, or take a published preset') from None
    anew = lambda k, w: k not in weights or w.shape != weights[k].shape
    heads = sorted({k.split('.')[0] for k, w in model.state_dict().items() if anew(k, w)}) if new_task else []
    if config.adapter:                               # before .to(device): the same first numbers everywhere
        if weights is None:
            flag = 'lora_rank' if config.adapter == 'lora' else f'adapter={config.adapter}'
            raise ValueError(f'--{flag} needs weights to adapt: '
                             'give --init_from=OUT_DIR, a .pt file or a Hugging Face folder')
        if config.shard:
            raise ValueError('adapters do not shard: leave out --shard, and hold the base with --lora_bits=8')
        if saved: lora.load_state(model, saved['lora'], saved['model'])
        else: adapters.wrap(model, config, ','.join(heads))
    if config.shard and values.get('generator_steps'):
        raise ValueError('--shard and --generator_steps do not go together: '
                         'FSDP2 settles which weights train once and for all')
    n_params = sum(p.numel() for p in model.parameters())
    if config.lora_bits: lora.hold(model, config.lora_bits)
    model.to(device)
    first = feed.send(feed.arrays(np.arange(micro)))
    limit = config.eval_iters if meta['kind'] == 'text' or 'eval_iters' in flags else 0        # of examples all
    evaluation = Evaluations({
        title: Evaluation(Feed(file, mconfig, val_set, device, tokenizer), micro, limit, tokenizer, m, rank, world)
        for title, (val_set, m) in val_sets.items()})
    tokens_per_row, peak = train_set.tokens_per_row, 0
    if device.type == 'cuda': peak = next((v for k, v in PEAK.items() if k in torch.cuda.get_device_name(device)), 0)
    flops = training_flops(model, feed.arrays([0])) if peak and meta['kind'] == 'text' else 0  # of a full row
    epoch = len(train_set) / config.batch_size       # in steps
    if config.epochs:
        steps = math.ceil(config.epochs * len(train_set) / config.batch_size)
        config = dataclasses.replace(config, max_iters=steps)
    if not config.eval_interval: config = dataclasses.replace(config, eval_interval=math.ceil(epoch))
    if saved and (saved['step'] >= config.max_iters or 0 < config.time_limit <= saved['train_seconds']):
        n, flag = saved['step'], 'max_iters'
        if n < config.max_iters: flag = 'time_limit'
        elif config.epochs: flag = 'epochs'
        more = dict(max_iters=2 * max(n, 1), epochs=f'{2 * config.epochs:g}',
                    time_limit=f'{2 * max(config.time_limit, saved["train_seconds"]):.3g}')[flag]
        if rank == 0:
            print(f'{config.out_dir} is finished: step {n} of {config.max_iters}'
                  + f' (--{flag}={getattr(config, flag):g})' * (flag != 'max_iters')
                  + f'; to go on: python train.py --resume --out_dir={config.out_dir} --{flag}={more}', flush=True)
        if not flags.keys() & {'export_hf', 'merge'}:
            return dict(steps=n, tokens=saved['tokens'], train_seconds=saved['train_seconds'], parameters=n_params,
                        out_dir=config.out_dir, kind=meta['kind'])
    seen = [e.keys() for e in train_set.examples]    # its columns; ? where not every example has it
    columns = ' '.join(n + '?' * any(n not in e for e in seen) for n in sorted(set().union(*seen)))
    floor = {}                                       # what the commonest class of the training data would score
    if meta['kind'] == 'labelled' and meta['labels'] and meta['metric']:
        common = statistics.mode(e['label'] for e in train_set.examples)
        truth = [evaluation.truth[i] for i in evaluation.examples]
        floor = metrics.compute(meta['metric'], [common] * len(truth), truth, meta['labels'])
    make_optimizers(model, config)                   # flags that do not fit are refused before files are touched
    sent_to = config.log_to
    try: importlib.import_module({'': 'torch', 'tensorboard': 'torch.utils.tensorboard'}.get(sent_to, sent_to))
    except ImportError: raise ValueError(f'--log_to={sent_to}: not installed; pip install {sent_to}') from None
    if rank == 0: make_room(config.out_dir, saved)
    if rank == 0 and tokenizer and not saved:        # so that --tokenizer=OUT_DIR prepares further data
        files.write_atomic(os.path.join(config.out_dir, 'tokenizer.json'), lambda f: f.write(tokenizer.dumps().encode()))
    start = saved or dict(step=0, tokens=0, train_seconds=0.0, best=-math.inf, worse=0, evaluated=-1)
    skipped = start.get('skipped', 0)                # updates that --skip_nonfinite left out
    step, tokens, seconds, best, worse, evaluated = (
        start[k] for k in ('step', 'tokens', 'train_seconds', 'best', 'worse', 'evaluated'))
    log = Log(config.out_dir, rank == 0, step if saved else -1, config.log_to)
    note_start(log, file, config, values, folder, meta, argv, saved)
    log.say(f'{file.__name__}{" " + config.preset if config.preset else ""}: {n_params / 1e6:.2f} M parameters, '
            f'{device}, {str(dtype)[6:]}, data {os.path.relpath(folder)}')
    log.say('settings: ' + ' '.join(f'{n}={values.get(n, v)}' for n, v in changed.items()))
    log.say(f'batch: {config.batch_size} rows of {tokens_per_row} tokens = {world} device(s) x '
            f'{share // micro} micro-batch(es) x {micro}; an epoch is {epoch:.1f} steps')
    if 0 < config.max_iters <= config.warmup_iters:
        log.say(f'all {config.max_iters} steps are warm-up, no learning rate gets to its peak: '
                f'lower --warmup_iters={config.warmup_iters}')
    if new_task:
        log.say(f'a new task: all weights come from {origin}' + f', but {", ".join(heads)} start anew' * bool(heads))
    if floor:
        scores = ', '.join(f'{readable(k)} {v:.4f}' for k, v in floor.items())
        log.say(f'always {meta["labels"][common]!r}, the commonest class of the training data: {scores}')
    pick_attention(device, mconfig)
    with autocast(): kernel = attention_backend(lambda: model(*[t[:1] for t in first]))    # with gradients: some refuse
    log.say(f'attention kernel: {kernel}')

    # ---- shards or DDP, compile, optimizers
    if config.shard:
        from torch.distributed.fsdp import fully_shard
        mesh = dist.init_device_mesh(device.type, (world,))
        blocks = [b for m in model.modules() if isinstance(m, nn.ModuleList) for b in m]
        for block in blocks: fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    how = config.compile
    compiled, graphs = how != 'false' and (how != 'auto' or device.type == 'cuda'), '-' in how
    moving = meta['kind'] != 'text'                  # shapes: examples are padded to the longest of a batch
    fast = torch.compile(model, mode=how if graphs else None, dynamic=True if moving else None) if compiled else model
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    stage = getattr(model, 'before_step', lambda step: False)
    def distribute():                                # what hangs on the set of parameters that train
        ddp = lambda: nn.parallel.DistributedDataParallel(
            fast, device_ids=[device.index] if device.type == 'cuda' else None, broadcast_buffers=False,
            gradient_as_bucket_view=True)
        optimizers = make_optimizers(model, config)  # first: DDP must see what is frozen
        return ddp() if world > 1 and not config.shard else fast, optimizers
    new_stage = stage(step)
    net, optimizers = distribute()
    if saved and saved['scaler']: scaler.load_state_dict(saved['scaler'])
    if saved and not new_stage: restore(optimizers, model, saved['optimizer'], config.out_dir)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trained < n_params: log.say(f'{trained:,} of {n_params:,} weights are trained ({trained / n_params:.2%})')
    # CUDA graphs reuse the memory of what they return: from here on the last call's is no longer needed
    new_call = torch.compiler.cudagraph_mark_step_begin if graphs else lambda: None
    fast_eval = lambda *arrays, **kw: (new_call(), fast(*arrays, **kw))[1]
    def own_gradients():                             # and gradients are added to tensors of our own
        for p in model.parameters() if graphs else ():
            if p.requires_grad and p.grad is None: p.grad = torch.zeros_like(p)
    if compiled or device.type == 'cuda':            # off the clock; it changes no state
        log.live('compiling ...')
        t0 = time.time()
        try:
            for _ in range(3 if graphs else 1):          # CUDA graphs: one call warms up, the next one records
                own_gradients(), new_call()
                with autocast(): (net(*first, totals=evaluation.totals)[0] * 0).backward()
            model.eval()
            for _ in range(3 if graphs else 1):
                with torch.no_grad(), autocast(): fast_eval(*first, totals=evaluation.totals)
            model.train()
        except Exception as e:
            if how != 'auto' or not compiled or world > 1 or out_of_memory(e): raise
            log.say(f'torch.compile failed, going on without it (slower): {type(e).__name__}: {first_line(e)[:150]}')
            net = fast = model
        for p in model.parameters(): p.grad = None
        log.say(f'compile and warm-up: {time.time() - t0:.1f} s')
    del first, weights

    sync = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    def save(name):
        state = dict(step=step, tokens=tokens, train_seconds=seconds, best=best, worse=worse, evaluated=evaluated,
                     skipped=skipped,
                     config=values, train=dataclasses.asdict(config), scaler=scaler.state_dict(), data=meta['sha256'],
                     model_name=file.__name__, source=open(file.__file__, encoding='utf-8').read(),
                     tokenizer=tokenizer.dumps() if tokenizer else '', base=base, columns=columns)
        path = os.path.join(config.out_dir, name)
        weights = model.state_dict()
        if hasattr(model, 'lora'): weights, state['lora'] = lora.state(model), lora.settings(model)
        try: save_checkpoint(path, model, optimizers if name == 'ckpt.pt' else [], rank, weights, **state); return True
        except OSError as e:
            log.say(f'could not write {path} ({e}); an earlier one is kept. Free some space: the run goes on')
            return False
    def fetch(step):
        "this rank's micro-batches of a step, the global numbers of targets, the signal that any rank has, time over"
        pool = 16 if config.group_by_length and len(feed.lengths) else 1
        rows = np.arange(step // pool * pool * config.batch_size, (step // pool + 1) * pool * config.batch_size)
        order = np.argsort(keyed(config.seed, 9, step // pool, np.arange(pool)))
        rows = feed.by_length(rows).reshape(pool, -1)[order[step % pool]]
        rows = rows[rank::world] if len(feed.lengths) else rows[rank * share:(rank + 1) * share]
        micros = [feed.arrays(rows[a:a + micro]) for a in range(0, share, micro)]
        counts, asked = np.sum([feed.count(*m) for m in micros], 0), [s in stop[:1] for s in SIGNALS]
        wants, n = torch.tensor([*counts, *asked, 0 < config.time_limit <= seconds], dtype=torch.float64), len(counts)
        if world > 1: dist.all_reduce(wants)         # on the host: the device does not wait
        asked = [s for s, ranks in zip(SIGNALS, wants[n:]) if ranks] or [0]
        totals = wants[:n].float()
        if device.type == 'cuda': totals = totals.pin_memory()       # else the copy waits for the step at hand
        return [feed.send(m) for m in micros], totals.to(device, non_blocking=True), asked[0], wants[-1] > 0
    def check():
        "stop before a bad state is saved or evaluated"
        if world > 1: dist.all_reduce(first_bad, dist.ReduceOp.MAX)       # the loss is each rank's own
        if (bad := int(first_bad)) < 0: return
        lr, last = config.learning_rate * lr_at(bad, config), f'{config.out_dir}/ckpt.pt of step {saved_at}'
        raise FloatingPointError(
            f'the loss or gradient of step {bad} is not finite (learning rate {lr:.3g}); '
            f'the last good checkpoint is {last if saved_at >= 0 else "none"}: '
            'lower --learning_rate or raise --warmup_iters' + ' and --resume' * (saved_at >= 0)
            + f' ({skipped} updates were skipped)' * bool(skipped))

    # ---- the loop: `step` updates have been made
    first_bad, sums, row = torch.tensor(-1, device=device), None, {}
    saved_at, mark = step if saved else -1, (step, seconds, skipped)
    recent, in_row = [], 0                           # logged losses; steps in a row that were not finite
    if device.type == 'cuda': torch.cuda.reset_peak_memory_stats()
    model.train()
    stop, clock = listen(), time.perf_counter()
    micros, totals, signalled, late = fetch(step)
    while True:
        done = step >= config.max_iters or signalled or late
        look = (step % config.eval_interval == 0 or done) and not signalled and evaluated != step
        keep = (done or step and step % (config.save_interval or config.eval_interval) == 0) and saved_at != step
        # ---- log
        if look or keep or step % config.log_interval == 0:
            sync(); seconds, clock = seconds + time.perf_counter() - clock, time.perf_counter()
            check()                                  # before a bad state is evaluated or saved
        if sums is not None and (step % config.log_interval == 0 or done):
            sums = sums.cpu()
            if world > 1: dist.all_reduce(sums)
            n, spent = step - mark[0], seconds - mark[1]
            mean, *others = (sums / (n - skipped + mark[2])).tolist()
            others = feed.summary(dict(zip(sorted(stats), others)))
            means = {'train_loss': mean, **{'train_' + k: v for k, v in others.items()}}
            rate, eta = n * config.batch_size * tokens_per_row / spent, (config.max_iters - step) * spent / n
            memory = peak_memory(device)
            line = dict(step=step, tokens=tokens, train_seconds=round(seconds, 3), **means,
                        lr=config.learning_rate * lr_at(step - 1, config), grad_norm=norm.item(),
                        tokens_per_second=round(rate, 1), peak_memory_mb=round(memory, 1))
            if flops and peak: line['mfu'] = flops * n * config.batch_size / spent / peak / world
            if skipped: line['skipped'] = skipped
            log.metrics(line)
            mfu = f' | mfu {line["mfu"]:.1%}' if 'mfu' in line else ''
            left = min(eta, config.time_limit - seconds) if config.time_limit else eta
            log.live(f'step {step}/{config.max_iters} | loss {means["train_loss"]:.4f} | {rate / 1e3:,.1f}k tokens/s'
                     f'{mfu} | {memory / 1024:.2f} GB | {span(left)} left')
            usual, spread = statistics.mean(recent or [mean]), statistics.pstdev(recent or [mean])
            if len(recent) >= 10 and mean > usual + max(5 * spread, 0.1 * abs(usual)):
                log.say(f'step {step}: the loss jumped to {mean:.4f}, from a recent mean of {usual:.4f}')
            sums, mark, recent = None, (step, seconds, skipped), recent[-49:] + [mean]
        # ---- evaluate
        if look:
            row, evaluated = evaluation(fast_eval, model, autocast), step
            log.metrics(dict(step=step, tokens=tokens, train_seconds=round(seconds, 3), **row))
            scores = ', '.join(f'{readable(k)} {v:.4f}' for k, v in row.items() if k != 'val_ppl')
            log.say(f'step {step}: {scores}, after {span(seconds)} of training')
            score = evaluation.sign * row[evaluation.goal]
            worse = worse + 1 if score <= best else 0
            if score >= best:                        # of equal ones the later, which has trained longer
                best = score
                save('best.pt')
                if rank == 0 and evaluation.predictions:
                    lines = ''.join(json.dumps(p) + '\n' for p in evaluation.predictions).encode()
                    with contextlib.suppress(OSError):     # a full disk must not end the run
                        files.write_atomic(os.path.join(config.out_dir, 'predictions.jsonl'), lambda f: f.write(lines))
            if row['val_loss'] <= config.target_val_loss:
                log.say(f'reached --target_val_loss={config.target_val_loss:g} at step {step}: {row["val_loss"]:.4f} '
                        f'after {seconds:.2f} s of training')
                done = True
            done = done or 0 < config.patience <= worse
            keep = keep or done and saved_at != step
            log.curve(f'{file.__name__} {config.preset}')
        # ---- save
        if keep and save('ckpt.pt'): saved_at = step
        if look or keep: clock = time.perf_counter()
        if done: break
        # ---- one optimizer step: the gradient of (sum of all losses) / (number of all targets)
        if stage(step):                              # the loss is another one now
            (net, optimizers), best, worse, recent = distribute(), -math.inf, 0, []
        for group in (g for opt in optimizers for g in opt.param_groups):
            group['lr'] = group['peak'] * lr_at(step, config) * (step >= group['start'])
        own_gradients()
        for i, arrays in enumerate(micros):
            torch.manual_seed(int(keyed(config.seed, 3, step, rank, i)[0] >> np.uint64(1)))    # dropout and sampling
            last = i == len(micros) - 1
            if config.shard: model.set_requires_gradient_sync(last)
            with contextlib.nullcontext() if last or net is fast else net.no_sync():
                new_call()
                with autocast(): loss, stats = net(*arrays, totals=totals)
                scaler.scale(loss * world).backward()          # DDP and FSDP average over the ranks
            parts = torch.stack([loss.detach().float(), *(stats[k].float() for k in sorted(stats))])
            now = now + parts if i else parts
        for opt in optimizers if scaler.is_enabled() else (): scaler.unscale_(opt)
        norm = whole(nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf), device)
        bad = ~(torch.isfinite(now[0]) & (torch.isfinite(norm) if not scaler.is_enabled() else True))
        if config.skip_nonfinite:                    # on all ranks alike; the host waits for the device
            if world > 1: dist.all_reduce(bad := bad.int(), dist.ReduceOp.MAX)
            in_row = in_row + 1 if bad else 0
            skipped += bool(in_row)
            if in_row: log.say(f'step {step}: the loss or gradient is not finite, no update ({skipped} skipped so far)')
        if in_row == 10 or not config.skip_nonfinite:
            first_bad = torch.where((bad > 0) & (first_bad < 0), step, first_bad)
            if device.type == 'cpu' or in_row: check()
        if not in_row:
            sums = now if sums is None else sums + now
            for opt in optimizers: scaler.step(opt)
        scaler.update()
        for opt in optimizers: opt.zero_grad(set_to_none=not graphs)
        step, tokens = step + 1, tokens + config.batch_size * tokens_per_row
        micros, totals, signalled, late = fetch(step)          # while the device works

    # ---- the end
    again = f'python train.py --resume --out_dir={config.out_dir}'
    if saved_at < 0: raise OSError(f'no checkpoint could be written in {config.out_dir}: free some space')
    if saved_at != step:
        raise OSError(f'the last checkpoint could not be written; {config.out_dir}/ckpt.pt is of step {saved_at}: '
                      f'free some space, then {again}')
    if signalled:
        log.say(f'{signal.Signals(signalled).name}: saved step {step}. To go on: {again}')
        raise SystemExit(128 + signalled)
    if config.adapter:                               # the adapter as peft's files, and, if asked for, in a plain model
        if rank == 0 and not lora.save(model, config.out_dir) and config.adapter == 'lora':
            log.say('adapter_model.safetensors has our own names: transformers or peft has nothing like this model')
        if config.merge or config.export_hf: lora.merge(model, unload=True)
        if config.merge: save('merged.pt')
    best_name = 'best_' + (evaluation.goal[4:] if evaluation.sign > 0 else 'val_loss')
    final = {**row, best_name: evaluation.sign * best, 'steps': step, 'tokens': tokens, 'train_seconds': seconds,
             'total_seconds': time.time() - began, 'tokens_per_second': tokens / seconds if seconds else 0.0,
             'peak_memory_mb': peak_memory(device), 'parameters': n_params, 'out_dir': config.out_dir,
             'kind': meta['kind'],
             **{'commonest_' + k: v for k, v in floor.items()}}
    if rank == 0:
        with torch.no_grad(), contextlib.suppress(OSError):
            model.eval()
            if tokenizer and models.show_of(file) and not config.shard:
                log.say('\n' + models.show_of(file)(model, tokenizer, evaluation.sample()) + '\n')
        if config.export_hf and config.shard:
            log.say('sharded weights are exported from the checkpoint: '
                    f'python train.py --init_from={config.out_dir} --max_iters=0 --export_hf={config.export_hf}')
        elif config.export_hf:
            export_hf(file, model, tokenizer, config.export_hf)
            log.say(f'Hugging Face folder: {config.export_hf}')
        if not saved or step > saved['step']: say_result(log, final, model, evaluation.goal, best_name, began)
    if world > 1: dist.barrier()
    return final


def cli():
    "main for the shell: a user's mistake is one line and a non-zero exit status"
    try: main()
    except SystemExit as e:
        if e.code: raise
        with contextlib.suppress(OSError): sys.stdout.flush()
        os._exit(0)                                  # --help: taking torch down takes half a second
    except (Exception, KeyboardInterrupt) as e:
        ranks, error = 'RANK' in os.environ, ''
        if isinstance(e, KeyboardInterrupt): error = 'stopped'
        elif out_of_memory(e):
            error = (f'error: out of memory ({first_line(e)[:200]}); lower --micro_batch_size (the training stays the '
                     'same) or --block_size, or add --checkpoint_activations')
        elif isinstance(e, (ValueError, OSError, FloatingPointError)):
            error = 'error: ' + (' '.join(str(e).split()) or type(e).__name__)
        elif ranks and isinstance(e, RuntimeError) and re.search('gloo|nccl|tcpstore', str(e), re.I):
            error = (f'error: rank {os.environ["RANK"]} lost the others ({first_line(e)[:150]}): one was killed, or '
                     'says itself what is wrong; --resume goes on from the last checkpoint')
        if not error and not ranks: raise
        if not error or os.environ.get('TRACEBACK'): traceback.print_exc()
        print(f'\n{error}', file=sys.stderr, flush=True)
        os._exit(1) if ranks else sys.exit(1)        # other ranks may wait for us in a collective

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli()
