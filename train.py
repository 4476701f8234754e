"""The one trainer: any model file of this folder, on a CPU, one GPU or many.

    python train.py --model=gpt                              # the default run, on Python's library
    python train.py --model=gpt --data=my.txt --tokenizer=char      # your own text
    python train.py --model=gpt --preset=gpt2 --help         # the flags, with this preset's values
    torchrun --standalone --nproc_per_node=8 train.py --model=gpt --preset=gpt2 --data=fineweb

A flag is a field of Config below or of the model file's Config. Precedence: defaults < recipe <
preset < flag.

A run leaves in out_dir: ckpt.pt (all that is needed to go on), best.pt, metrics.jsonl, log.txt,
loss.svg, tokenizer.json, run.json (the command) and, for supervised data, predictions.jsonl; of an
adapter also peft's two files and, with --merge, merged.pt.
"""
# Departures from nanoGPT: `batch_size` counts the sequences of an optimizer step over all devices,
# so a command trains the same on 1 or 8 of them; a batch is a pure function of (seed, step, row),
# so `--resume` is exact without any state of a loader. What a model file defines: lib/models.py. A
# technique around a model (--method): lib/method.py.
import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from dataclasses import dataclass

# Ctrl-C while torch is imported, which takes seconds: no traceback
if __name__ == '__main__':
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b'\nstopped\n'), os._exit(130)))

import numpy as np
import torch
import torch.nn as nn

import lora
from data import files
from data.rows import training, validation
from lib.device import peak_flops, peak_memory, pick_device, pick_dtype
from lib.evaluate import Evaluation, Evaluations
from lib.export import check_export, convert
from lib.feed import (Batches, Feed, columns_of, dropout_seed, fields_from_data, open_data,
                      split_batch)
from lib.flags import read as read_flags
from lib.flops import flops as training_flops
from lib.launch import (Signals, is_finished, make_room, process_group, ranks, restarted,
                        run_for_shell)
from lib.log import Log, check_sender
from lib.models import rows_of, show_of
from lib.net import Net, attention_kernel, shard
from lib.optim import Adam, Muon, freeze, matrices_in_blocks
from lib.save import export, save, save_adapter, save_predictions
from lib.watch import Clock, FiniteWatch, Meter
from lib.weights import (add_adapter, build_model, fingerprint, heads_that_start_anew, is_new_task,
                         load_model, open_weights)
from lib.words import readable

# for a while, for who calls them train.NAME
from data.rows import validation  # noqa: F401
from lib.checkpoint import load_checkpoint, restore  # noqa: F401
from lib.device import PEAK, attention_backend, native_bf16, out_of_memory, wide_products  # noqa: F401
from lib.export import export_hf  # noqa: F401
from lib.flags import fields_of, split_flags, value_of  # noqa: F401
from lib.launch import SIGNALS  # noqa: F401
from lib.models import import_model, typed  # noqa: F401
from lib.optim import orthogonalize  # noqa: F401
from lib.weights import load_parts, script_of  # noqa: F401
from lib.words import nearest  # noqa: F401


@dataclass
class Config:
    # run
    model: str = 'gpt'              # model file: gpt, bert, t5, electra, or your own NAME.py
    preset: str = ''                # one of the model file's presets: a size, or a whole speedrun
    data: str = 'stdlib'            # data/NAME.py, a prepared folder, your file, folder; A+B mixes
    mix_cap: int = 0                # --data=A+B: most examples that a part counts as; 0: no limit
    mix_temperature: float = 1.0    # --data=A+B: 1 mixes by size, more evens the shares out
    tokenizer: str = ''             # bpe, char, byte, gpt2, a vocabulary file; '': the data's own
    out_dir: str = ''               # where the run is written; '': out/MODEL, or out/MODEL-DATA
    init_from: str = ''             # start from weights: out_dir, .pt file, Hugging Face folder
    new_weights: bool = False       # with init_from: its architecture and tokenizer alone
    baseline: bool = False          # with init_from: then the same from new weights, side by side
    resume: bool = False            # go on with the run in out_dir, bit for bit
    export_hf: str = ''             # at the end, write the model to this folder for transformers
    method: str = ''                # a technique around the model: NAME.py, see lib/method.py
    seed: int = 1337                # seed of weights, data order, masks and dropout
    skip_nonfinite: bool = False    # leave out updates that are not finite; ten in a row stop
    deterministic: bool = False     # bit-equal reruns on CUDA too (slower)
    device: str = 'auto'            # auto, cpu, cuda, cuda:1, mps
    dtype: str = 'auto'             # of matrix products: auto, bfloat16, float16, float32
    compile: str = 'auto'           # auto (on CUDA), true, false, max-autotune, reduce-overhead
    shard: bool = False             # FSDP2: shard weights, gradients and optimizer over the ranks
    # batch and length
    batch_size: int = 64            # sequences of one optimizer step, over all devices
    micro_batch_size: int = 0       # sequences that one device holds at once; 0: its whole share
    group_by_length: bool = False   # labelled data: sort each 16 batches by length: less padding
    max_iters: int = 1000           # optimizer steps
    epochs: float = 0.0             # passes over the training data, in the place of max_iters
    time_limit: float = 0.0         # stop after this many seconds of training; 0: no limit
    target_val_loss: float = 0.0    # stop at the first evaluation at or below; 0: no target
    patience: int = 0               # stop after so many evaluations without a better one; 0: never
    # evaluation, logging, saving
    eval_interval: int = 250        # steps from one evaluation to the next; 0: an epoch
    eval_iters: int = 256           # validation windows of an evaluation, the first ones; 0: all
    log_interval: int = 10          # steps from one line of the log to the next
    save_interval: int = 0          # steps from one checkpoint to the next; 0: eval_interval
    log_to: str = ''                # also send metrics to: wandb, tensorboard
    # adapters (lora.py, adapters.py): the weights of init_from stay, checkpoints hold the adapter
    adapter: str = ''               # lora bottleneck adamix prefix prompt bitfit; '': none, or lora
    adapter_size: int = 0           # width of bottlenecks (0: 16), prefix or prompt tokens (0: 20)
    adapter_hidden: int = 0         # prefix: width of an MLP that makes keys and values; 0: none
    adapter_experts: int = 4        # adamix: bottlenecks in each place
    adapter_consistency: float = 0.0  # adamix, labelled data: weight of its second loss (paper: 1)
    lora_rank: int = 0              # rank of the low-rank adapters; 0: none, or 8 if --adapter=lora
    lora_alpha: float = 16.0        # they count alpha / rank
    lora_match: str = ''            # adapted: q k v out up gate down, names, all; '': usual ones
    lora_dropout: float = 0.0       # on what low-rank adapters read, and inside bottlenecks
    lora_bits: int = 0              # hold frozen layers in 8 (int8) or 16 (bf16) bits; 0: as is
    rslora: bool = False            # alpha / sqrt(rank) instead
    dora: bool = False              # DoRA: also learn the length of each row
    merge: bool = False             # at the end write merged.pt, the adapter in plain weights
    # optimizer
    optimizer: str = 'adamw'        # adamw, muon (matrices in blocks; adamw the rest), adafactor
    learning_rate: float = 6e-4     # peak learning rate of adamw
    min_lr: float = 0.0             # learning rate at the end of the schedule
    muon_lr: float = 0.02           # peak learning rate of muon; follows the same schedule
    lr_schedule: str = 'cosine'     # cosine, linear, inverse_sqrt, constant, wsd (decays at end)
    warmup_iters: int = 100         # steps of linear warm-up
    lr_decay_iters: int = 0         # step at which min_lr is reached; 0: max_iters
    decay_share: float = 0.2        # share of the steps in which wsd decays
    weight_decay: float = 0.1       # decoupled, on matrices only
    beta1: float = 0.9              # Adam's beta1
    beta2: float = 0.95             # Adam's beta2
    eps: float = 1e-8               # Adam's epsilon
    momentum: float = 0.95          # muon's momentum
    grad_clip: float = 1.0          # clip the gradient's norm to this; 0: off
    bias_correction: bool = True    # Adam's; BERT's own Adam goes without
    layer_decay: float = 1.0        # learning rate of each layer relative to the one above it
    freeze: int = 0                 # leave the embeddings and so many of the lowest layers as is
    unfreeze_interval: int = 0      # gradual unfreezing (ULMFiT): a layer more every so many steps
    rms_scale: bool = False         # T5's cure: max(1e-3, RMS(parameter)) times each learning rate


@dataclass
class Progress:
    """All that changes while a run goes on. ckpt.pt holds it, so that --resume continues exactly
    here."""
    step: int = 0                   # updates made
    tokens: int = 0                 # tokens seen
    train_seconds: float = 0.0      # spent on training; evaluation and saving are not counted
    best: float = -math.inf         # the best score so far; higher is better
    worse: int = 0                  # evaluations since then
    evaluated: int = -1             # the step of the last evaluation
    skipped: int = 0                # updates that --skip_nonfinite left out
    saved: int = -1                 # the step of ckpt.pt; the file itself need not hold it

    def is_best(self, score):
        """Counts an evaluation. Of equal scores the later one is better: it has trained longer."""
        self.worse = self.worse + 1 if score <= self.best else 0
        if score < self.best:
            return False
        self.best = score
        return True


@dataclass
class Setup:
    """All that stays as it is while a run goes on."""
    config: Config
    file: object                    # the module of the model file
    flags: dict                     # what was typed, as values
    changed: dict                   # what differs from the defaults
    saved: dict                     # the checkpoint that the run goes on from, or {}
    device: torch.device
    dtype: torch.dtype              # of matrix products
    rank: int
    world_size: int
    share: int                      # rows of a step for this rank
    micro_batch_size: int
    folder: str                     # prepared data
    meta: dict                      # its meta.json
    tokenizer: object
    model: nn.Module                # the plain one, on its device
    model_values: dict              # of its Config
    origin: str                     # where its first weights came from
    base: str                       # of an adapter: a fingerprint of the weights that it is for
    feed: Feed
    evaluate: Evaluations
    tokens_per_row: int
    epoch: float                    # in steps
    flops_per_row: float            # of training; 0 if not known
    peak_flops: float               # of the device; 0 if not known
    n_parameters: int
    columns: str                    # of the training examples
    new_heads: list                 # parts of the model that the given weights lack
    new_task: bool                  # given weights meet another kind of data or other classes
    majority: tuple                 # the commonest class, and what it alone would score

    def learning_rate(self, step):
        return self.config.learning_rate * learning_rate_share(step, self.config)


# ---- what training is made of: schedule, optimizers, attention, torch.compile, DDP

def learning_rate_share(step, config):
    """The share of the peak learning rate at `step`, counted from 0."""
    if step < config.warmup_iters:
        return (step + 1) / (config.warmup_iters + 1)
    end = config.lr_decay_iters or config.max_iters
    floor = config.min_lr / config.learning_rate
    done = min(1, (step - config.warmup_iters) / max(1, end - config.warmup_iters))
    if config.lr_schedule == 'constant':
        return 1.0
    if config.lr_schedule == 'inverse_sqrt':
        return max(floor, (max(1, config.warmup_iters) / (step + 1)) ** 0.5)
    if config.lr_schedule == 'cosine':
        share = 0.5 * (1 + math.cos(math.pi * done))
    elif config.lr_schedule == 'linear':
        share = 1 - done
    else:                                    # wsd: warm-up, stable, linear decay
        share = min(1, (end - step) / max(1, config.decay_share * end))
    return floor + (1 - floor) * max(0, share)


def make_optimizers(model, config):
    """-> [AdamW], [Adafactor] or [Muon, AdamW]. Matrices decay, vectors do not; a shared tensor is
    one parameter."""
    depths = freeze(model, config)           # of each parameter; 0 where the model does not tell
    top = max(depths.values())

    def groups(params, peak):
        """Parameter groups by decay and depth. `peak` is the learning rate at the top of the
        model."""
        kinds = sorted({(p.ndim >= 2, depths[p]) for p in params})
        return [dict(params=[p for p in params if (p.ndim >= 2, depths[p]) == (decays, depth)],
                     weight_decay=config.weight_decay * decays,
                     peak=peak * config.layer_decay ** (top - depth),
                     start=(top - depth) * config.unfreeze_interval)
                for decays, depth in kinds]

    params = [p for p in model.parameters() if p.requires_grad]
    lr = config.learning_rate
    if config.optimizer == 'adafactor':
        return [torch.optim.Adafactor(groups(params, lr), lr=lr)]
    matrices = set()                         # adapters are none to orthogonalize
    if config.optimizer == 'muon' and not config.adapter:
        matrices = matrices_in_blocks(model)
    muon = [p for p in params if p in matrices]
    rest = [p for p in params if p not in matrices]
    optimizers = []
    if muon:
        optimizers.append(Muon(groups(muon, config.muon_lr), config.muon_lr, config.momentum))
    if rest:
        optimizers.append(Adam(groups(rest, lr), config.rms_scale, config.bias_correction, lr=lr,
                               betas=(config.beta1, config.beta2), eps=config.eps, fused=True))
    return optimizers


def pick_attention(device, config):
    """Chooses among the kernels of scaled_dot_product_attention. config: the model's.

    A CPU's fused kernel takes two to five times as long as plain products for rows of up to 256
    tokens, and half as long again for the blocks that windows cut rows into, where all layers have
    one. cuDNN's, a Hopper's default, can make NaN of gradients under a mask (pytorch issue 196678),
    so only rows without one get it.
    """
    length = getattr(config, 'block_size', 1024)
    window = getattr(config, 'window', 0)
    if window and not hasattr(config, 'global_every'):
        length = min(length, window)
    torch.backends.cuda.enable_flash_sdp(device.type != 'cpu' or length > 256)     # of CPUs too
    torch.backends.cuda.enable_cudnn_sdp(getattr(config, 'kind', 'text') == 'text' and not window)


def compile_model(model, config, device, kind):
    """The model through torch.compile where --compile says so, else the model itself."""
    if config.compile == 'false' or config.compile == 'auto' and device.type != 'cuda':
        return model
    mode = config.compile if '-' in config.compile else None     # max-autotune, reduce-overhead
    dynamic = None if kind == 'text' else True     # examples are padded to the longest of a batch
    return torch.compile(model, mode=mode, dynamic=dynamic)


def distribute(module, device):
    """DDP: the ranks' gradients are averaged while the backward pass goes on."""
    return nn.parallel.DistributedDataParallel(
        module, device_ids=[device.index] if device.type == 'cuda' else None,
        broadcast_buffers=False, gradient_as_bucket_view=True)


# ---- the run

def setup(settings, device, rank, world_size):
    """Everything that a run needs, opened and checked before a file is touched -> Setup. Raises
    ValueError or OSError for a user's mistake."""
    config, file, values, flags, changed, saved = settings
    values, weights, tokenizer, origin = open_weights(config, file, flags, values, saved)
    folder, meta, tokenizer = open_data(config, file, flags, saved, origin, tokenizer)
    if weights is not None and meta['vocab_size'] > values['vocab_size']:
        raise ValueError(f'{config.data} has {meta["vocab_size"]} token ids, the model of {origin} '
                         f'{values["vocab_size"]}: leave out --tokenizer to prepare the text with '
                         'its own')
    fields = fields_from_data(file, meta, tokenizer, weights is not None)
    new_task = weights is not None and is_new_task(values, fields, saved)
    for name, value in fields.items():
        typed_by_hand = name in flags and name.endswith('_id')     # the role of a token
        if name in values and value is not None and not typed_by_hand:
            values[name] = value
    model_config = file.Config(**values)
    dtype = pick_dtype(config.dtype, device, config.shard)
    share, micro_batch_size = split_batch(config, world_size)
    if flags.get('shard') and world_size == 1:
        raise ValueError('--shard needs several ranks: torchrun --standalone --nproc_per_node=N '
                         'train.py ...')
    config = dataclasses.replace(config, shard=config.shard and world_size > 1)
    if config.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)

    def encode(example):
        return rows_of(file, meta['kind']).encode(example, tokenizer, model_config)

    train_set = training(meta, config.seed, encode, config.mix_cap, config.mix_temperature)
    val_sets = validation(meta, config.seed, encode)
    feed = Feed(file, model_config, train_set, device, tokenizer)
    base = fingerprint(weights) if config.adapter and weights is not None else ''
    model = build_model(file, model_config, weights, origin, config.seed, new_task)
    if config.export_hf:
        check_export(file, model)
    new_heads = heads_that_start_anew(model, weights) if new_task else []
    if config.adapter:                       # before the model moves: the same first numbers
        add_adapter(model, config, weights, saved, new_heads)
    if hasattr(file, 'prepare'):
        file.prepare(model, config)
    if config.shard and values.get('generator_steps'):
        raise ValueError('--shard and --generator_steps do not go together: '
                         'FSDP2 settles which weights train once and for all')
    n_parameters = sum(p.numel() for p in model.parameters())
    if config.lora_bits:
        lora.hold(model, config.lora_bits)
    model.to(device)

    feed.arrays(np.arange(micro_batch_size)) # the corpus learns the length of its windows
    use_all = meta['kind'] != 'text' and 'eval_iters' not in flags
    limit = 0 if use_all else config.eval_iters
    sets = {}
    for title, (val_set, val_meta) in val_sets.items():
        val_feed = Feed(file, model_config, val_set, device, tokenizer)
        sets[title] = Evaluation(val_feed, micro_batch_size, limit, val_meta, rank, world_size)
    evaluate = Evaluations(sets)
    epoch = len(train_set) / config.batch_size
    if config.epochs:
        config = dataclasses.replace(config, max_iters=math.ceil(config.epochs * epoch))
    if not config.eval_interval:
        config = dataclasses.replace(config, eval_interval=math.ceil(epoch))
    flops_per_row = 0                        # for the share of the device's peak
    if peak_flops(device) and meta['kind'] == 'text':
        flops_per_row = training_flops(model, feed.arrays([0]))
    make_optimizers(model, config)           # refuses flags that do not fit
    check_sender(config.log_to)
    return Setup(
        config=config, file=file, flags=flags, changed=changed, saved=saved,
        device=device, dtype=dtype, rank=rank, world_size=world_size,
        share=share, micro_batch_size=micro_batch_size, folder=folder, meta=meta,
        tokenizer=tokenizer, model=model, model_values=values, origin=origin, base=base,
        feed=feed, evaluate=evaluate, tokens_per_row=train_set.tokens_per_row, epoch=epoch,
        flops_per_row=flops_per_row, peak_flops=peak_flops(device), n_parameters=n_parameters,
        columns=columns_of(train_set.examples), new_heads=new_heads, new_task=new_task,
        majority=evaluate.majority_baseline(train_set.examples, meta))


def train(setup, net, batches, log, progress):
    """Trains until max_iters, a limit, a target or a signal -> the last validation metrics, the
    signal or 0."""
    config = setup.config
    save_interval = config.save_interval or config.eval_interval
    meter = Meter(setup, progress)           # losses and speed since the last line of the log
    watch = FiniteWatch(setup, progress, log)
    metrics = {}
    setup.model.train()
    clock = Clock(setup.device, progress.train_seconds)
    batch = batches.fetch(progress.step, progress.train_seconds)

    while True:
        step = progress.step
        finished = step >= config.max_iters or batch.signal or batch.time_is_up
        log_now = step % config.log_interval == 0 or finished
        eval_now = step % config.eval_interval == 0 or finished
        if batch.signal or progress.evaluated == step:
            eval_now = False
        save_now = finished or step > 0 and step % save_interval == 0

        if log_now or eval_now or save_now:
            progress.train_seconds = clock.read()                # waits for the device
            watch.check()                                        # before it is saved
        if log_now and meter.sums is not None:
            row = meter.row(progress, lr=setup.learning_rate(step - 1))
            log.training(row, config, meter.seconds_left(progress))
            usual = meter.jump(row['train_loss'])
            if usual is not None:
                log.say(f'step {step}: the loss jumped to {row["train_loss"]:.4f}, '
                        f'from a recent mean of {usual:.4f}')
            meter.reset(progress)

        if eval_now:
            metrics = setup.evaluate(net)
            progress.evaluated = step
            log.validation(metrics, progress)
            if progress.is_best(setup.evaluate.score(metrics)):
                save(setup, net, progress, log, 'best.pt')
                save_predictions(setup)
            if metrics['val_loss'] <= config.target_val_loss:
                log.say(f'reached --target_val_loss={config.target_val_loss:g} at step {step}: '
                        f'{metrics["val_loss"]:.4f} after {progress.train_seconds:.2f} s of '
                        'training')
                finished = True
            finished = finished or 0 < config.patience <= progress.worse
            log.curve(f'{setup.file.__name__} {config.preset}')
        if (save_now or finished) and progress.saved != step:
            if save(setup, net, progress, log, 'ckpt.pt'):
                progress.saved = step
        if finished:
            return metrics, batch.signal
        if eval_now or save_now:
            clock.start()

        # one optimizer step: the gradient of (sum of all losses) / (number of all targets)
        if net.begin_stage(step):            # from here on other parameters train, on another loss
            progress.best = -math.inf
            progress.worse = 0
            meter.recent = []
        net.set_learning_rates(learning_rate_share(step, config), step)
        total = 0
        for i, arrays in enumerate(batch.micro_batches):
            torch.manual_seed(dropout_seed(config.seed, step, setup.rank, i))
            with net.gradients_of(is_last=i == len(batch.micro_batches) - 1):
                with net.autocast():
                    loss, stats = net(*arrays, totals=batch.totals)
                net.backward(loss * setup.world_size)            # DDP averages over the ranks
            names = sorted(stats)
            sums = [loss.detach().float()] + [stats[name].float() for name in names]
            total = total + torch.stack(sums)
        grad_norm = net.clip_gradients(config.grad_clip)
        good = watch.is_good(total[0], grad_norm, scaled=net.scaler.is_enabled())
        net.step(update=good)
        meter.add(total, names, grad_norm, good)
        progress.step += 1
        progress.tokens += config.batch_size * setup.tokens_per_row
        batch = batches.fetch(progress.step, progress.train_seconds)     # the device still works


def finish(setup, net, log, progress, metrics, stopped_by, began):
    """What is left to do after the last step: adapters, exports, a sample, the last lines -> the
    final metrics."""
    config = setup.config
    model = setup.model
    again = f'python train.py --resume --out_dir={config.out_dir}'
    if progress.saved < 0:
        raise OSError(f'no checkpoint could be written in {config.out_dir}: free some space')
    if progress.saved != progress.step:
        raise OSError(f'the last checkpoint could not be written; {config.out_dir}/ckpt.pt is of '
                      f'step {progress.saved}: free some space, then {again}')
    if stopped_by:
        log.say(f'{signal.Signals(stopped_by).name}: saved step {progress.step}. To go on: {again}')
        return {}
    if config.adapter:
        save_adapter(setup, net, progress, log)

    goal = setup.evaluate.goal
    best_name = 'best_val_loss'
    best = -progress.best
    if setup.evaluate.higher_is_better:
        best_name = 'best_' + goal.removeprefix('val_')
        best = progress.best
    seconds = progress.train_seconds
    result = {**metrics, best_name: best, 'steps': progress.step, 'tokens': progress.tokens,
              'train_seconds': seconds, 'total_seconds': time.time() - began,
              'tokens_per_second': progress.tokens / seconds if seconds else 0.0,
              'peak_memory_mb': peak_memory(setup.device), 'parameters': setup.n_parameters,
              'out_dir': config.out_dir, 'kind': setup.meta['kind']}
    for name, value in setup.majority[1].items():
        result['commonest_' + name] = value
    if setup.rank == 0:
        with torch.no_grad(), contextlib.suppress(OSError):
            model.eval()
            show = show_of(setup.file)
            if setup.tokenizer and show and not config.shard:
                log.say('\n' + show(model, setup.tokenizer, setup.evaluate.sample()) + '\n')
        if config.export_hf:
            export(setup, log)
        if not setup.saved or progress.step > setup.saved['step']:
            log.result(result, model, goal, best_name)
    if setup.world_size > 1:
        torch.distributed.barrier()
    return result


def run(settings, argv, device, signals, began):
    """One run, from the flags to its end -> the final metrics, the signal that stopped it or 0."""
    rank, world_size = ranks()
    if settings.config.init_from and settings.config.export_hf and settings.config.max_iters == 0:
        return convert(settings), 0          # needs no data
    this = setup(settings, device, rank, world_size)
    config = this.config
    model = this.model
    saved = this.saved
    if saved and is_finished(this) and not this.flags.keys() & {'export_hf', 'merge'}:
        result = dict(steps=saved['step'], tokens=saved['tokens'], kind=this.meta['kind'],
                      train_seconds=saved['train_seconds'], parameters=this.n_parameters,
                      out_dir=config.out_dir)
        return result, 0
    if rank == 0:
        make_room(config.out_dir, saved)
        if this.tokenizer and not saved:     # so that --tokenizer=OUT_DIR prepares further data
            text = this.tokenizer.dumps().encode()
            path = os.path.join(config.out_dir, 'tokenizer.json')
            files.write_atomic(path, lambda f: f.write(text))
    progress = Progress()
    if saved:
        names = [field.name for field in dataclasses.fields(Progress) if field.name in saved]
        progress = Progress(**{name: saved[name] for name in names}, saved=saved['step'])
    log = Log(config.out_dir, rank == 0, progress.step if saved else -1, config.log_to)
    log.start(this, argv)

    pick_attention(device, model.config)
    first = this.feed.send(this.feed.arrays(np.arange(this.micro_batch_size)))
    kernel = attention_kernel(this, first)
    log.say(f'attention kernel: {kernel}')
    if config.shard:
        shard(model, device, world_size)
    compiled = compile_model(model, config, device, this.meta['kind'])
    net = Net(model, config, device, this.dtype, world_size, compiled, make_optimizers, distribute)
    is_new_stage = net.begin_stage(progress.step)
    if saved:
        net.resume(saved, is_new_stage)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trained < this.n_parameters:
        log.say(f'{trained:,} of {this.n_parameters:,} weights are trained '
                f'({trained / this.n_parameters:.2%})')
    if compiled is not model or device.type == 'cuda':
        net.warm_up(first, this.evaluate.totals, log)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()

    signals.listen()
    batches = Batches(this, signals)
    metrics, stopped_by = train(this, net, batches, log, progress)
    return finish(this, net, log, progress, metrics, stopped_by, began), stopped_by


def main(argv=None):
    """Trains as the flags say -> dict of the final metrics (val_loss, val_bpb, train_seconds,
    steps, ...). Raises ValueError or OSError for a user's mistake, FloatingPointError when the loss
    is no longer finite."""
    argv = list(sys.argv[1:] if argv is None else argv)
    settings = parse(argv)
    config = settings.config
    device = pick_device(config.device)
    began = time.time()
    if not settings.saved and restarted(config.out_dir):
        return main(argv + ['--resume'])     # torchrun has started it again after a failure
    with Signals() as signals, process_group(device):
        result, stopped_by = run(settings, argv, device, signals, began)
    if stopped_by:
        raise SystemExit(128 + stopped_by)
    if not config.baseline:
        return result
    anew = ['--baseline=false', '--resume=false', '--new_weights',
            f'--out_dir={config.out_dir}-new']
    result['baseline'] = other = main(argv + anew)
    for name, value in result.items():
        if name.startswith(('best_', 'val_', 'commonest_')) and name in other and ranks()[0] == 0:
            print(f'{readable(name)}:'.ljust(36),
                  f'from {config.init_from} {value:.4f}, from new weights {other[name]:.4f}')
    return result


def parse(argv):
    """The command line -> Settings (lib/flags.py)."""
    return read_flags(argv, Config, __doc__)


def cli():
    """main() for the shell: a user's mistake is one line and a non-zero exit status."""
    run_for_shell(main)


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli()
