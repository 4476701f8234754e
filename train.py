"""The one trainer: any model file of this folder, on a CPU, one GPU or many.

    python train.py --model=gpt                              # the default run, on Python's library
    python train.py --model=gpt --data=my.txt --tokenizer=char      # your own text
    python train.py --model=gpt --preset=gpt2 --help         # the flags, with this preset's values
    torchrun --standalone --nproc_per_node=8 train.py --model=gpt --preset=gpt2 --data=fineweb

A flag is a field of Config below or of the model file's Config. Where its value comes from; later
wins:

    new weights     defaults, `recipe`, presets[NAME], recipes[NAME], your flags
    --init_from     defaults, presets[NAME], `finetune` (`recipe` if there is none), your flags

All but your flags stand in the model file. Without --preset, `recipe` names the preset of a run
from new weights. The recipe of a --method comes just before your flags.

A run leaves in out_dir: ckpt.pt (all that is needed to go on), best.pt, metrics.jsonl, log.txt,
loss.svg, tokenizer.json, run.json (the command) and, for supervised data, predictions.jsonl; for an
adapter also peft's two files and, with --merge, merged.pt.
"""
# Unlike nanoGPT: `batch_size` counts the sequences of an optimizer step over all devices, so a
# command trains the same on 1 or 8 of them; a batch is a pure function of (seed, step, row), so
# --resume is exact without any state of a loader. What a model file defines: lib/models.py. What a
# technique around a model (--method) defines: lib/method.py.
import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from dataclasses import dataclass


def stop_at_once(*_):
    os.write(2, b'\nstopped\n')
    os._exit(130)


if __name__ == '__main__':                   # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, stop_at_once)

import numpy as np
import torch
import torch.nn as nn

import lora
from data import files
from data.rows import training, validation
from lib.device import peak_flops, peak_memory, pick_device, pick_dtype
from lib.evaluate import Evaluation, Evaluations
from lib.export import check_export, convert
from lib.feed import (Batches, Feed, columns_of, dropout_seed, open_data, split_batch,
                      values_from_data)
from lib.flags import read as read_flags
from lib.flops import flops as training_flops
from lib.launch import (Signals, is_finished, make_room, process_group, ranks, restarted,
                        run_for_shell)
from lib.log import Log, check_sender
from lib.models import rows_of, show_of
from lib.net import CUDA_GRAPH_MODES, Net, attention_kernel, shard
from lib.optim import Adam, Muon, freeze, matrices_in_blocks
from lib.save import export, save, save_adapter, save_predictions
from lib.watch import Clock, FiniteWatch, Meter
from lib.weights import (build_model, complete_model, fingerprint, load_model,  # noqa: F401 (API)
                         open_weights)
from lib.words import readable


@dataclass
class Config:
    # run
    model: str = 'gpt'              # model file: gpt, bert, t5, electra, or your own NAME.py
    preset: str = ''                # one of the model file's presets: a size, or a whole speedrun
    data: str = 'stdlib'            # data/NAME.py, a prepared folder, your file, folder; A+B mixes
    mix_cap: int = 0                # --data=A+B: a part's size counts up to this; 0: no limit
    mix_temperature: float = 1.0    # --data=A+B: 1: by size, larger: closer to equal shares
    tokenizer: str = ''             # bpe, char, byte, gpt2, a vocabulary file; '': the data's own
    out_dir: str = ''               # where the run is written; '': out/MODEL, or out/MODEL-DATA
    init_from: str = ''             # start from weights: out_dir, .pt file, Hugging Face folder
    new_weights: bool = False       # with init_from: take its architecture, not its weights
    baseline: bool = False          # with init_from: then the same from new weights; print both
    resume: bool = False            # go on with the run in out_dir, bit for bit
    export_hf: str = ''             # at the end, write the model to this folder for transformers
    method: str = ''                # a technique around the model: NAME.py, see lib/method.py
    seed: int = 1337                # seed of weights, data order, masks and dropout
    skip_nonfinite: bool = False    # skip updates with NaN or inf; stop after ten in a row
    deterministic: bool = False     # bit-equal reruns on CUDA too (slower)
    device: str = 'auto'            # auto, cpu, cuda, cuda:1, mps
    dtype: str = 'auto'             # of matrix products: auto, bfloat16, float16, float32
    compile: str = 'auto'           # auto (on CUDA), true, false, max-autotune, reduce-overhead
    shard: bool = False             # FSDP2: shard weights, gradients and optimizer over the ranks
    # batch and length
    batch_size: int = 64            # sequences of one optimizer step, over all devices
    micro_batch_size: int = 0       # sequences that one device holds at once; 0: its whole share
    group_by_length: bool = False   # labelled data: sort every 16 batches by length: less padding
    max_iters: int = 1000           # optimizer steps
    epochs: float = 0.0             # passes over the training data, in the place of max_iters
    time_limit: float = 0.0         # stop after this many seconds of training (seen when it logs)
    target_val_loss: float = 0.0    # stop at the first evaluation at or below; 0: no target
    patience: int = 0               # stop after this many evaluations without improvement; 0: never
    # evaluation, logging, saving
    eval_interval: int = 250        # steps from one evaluation to the next; 0: an epoch
    eval_iters: int = 256           # validation windows (not batches) of an evaluation; 0: all
    log_interval: int = 10          # steps from one line of the log to the next
    save_interval: int = 0          # steps from one checkpoint to the next; 0: eval_interval
    log_to: str = ''                # also send metrics to: wandb, tensorboard
    # adapters (lora.py, adapters.py): init_from is frozen, checkpoints hold the adapter alone
    adapter: str = ''               # lora bottleneck adamix prefix prompt bitfit; '': none, or lora
    adapter_size: int = 0           # width of bottlenecks (0: 16), prefix or prompt tokens (0: 20)
    adapter_hidden: int = 0         # prefix: width of an MLP that makes keys and values; 0: none
    adapter_experts: int = 4        # adamix: bottlenecks in each place
    adapter_consistency: float = 0.0  # adamix, labelled data: weight of its second loss (paper: 1)
    lora_rank: int = 0              # rank of the low-rank adapters; 0: none, or 8 if --adapter=lora
    lora_alpha: float = 16.0        # adapters are scaled by alpha / rank
    lora_match: str = ''            # adapted: q k v out up gate down, names, all; '': usual ones
    lora_dropout: float = 0.0       # on what low-rank adapters read, and inside bottlenecks
    lora_bits: int = 0              # hold frozen layers in 8 (int8) or 16 (bf16) bits; 0: as is
    rslora: bool = False            # scale by alpha / sqrt(rank)
    dora: bool = False              # DoRA: also learn the length of each row
    merge: bool = False             # at the end write merged.pt, the adapter in plain weights
    # optimizer
    optimizer: str = 'adamw'        # adamw, muon (block matrices; adamw for the rest), adafactor
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
    freeze: int = 0                 # freeze the embeddings and this many of the lowest layers
    unfreeze_interval: int = 0      # ULMFiT: unfreeze one more layer every this many steps
    rms_scale: bool = False         # scale each rate by max(1e-3, RMS(parameter)), as T5 does


@dataclass
class Progress:
    """All that changes while a run goes on. ckpt.pt holds it, so that --resume continues here."""
    step: int = 0                   # updates made
    tokens: int = 0                 # tokens seen
    train_seconds: float = 0.0      # spent on training; evaluation and saving are not counted
    best: float = -math.inf         # the best score so far; higher is better
    worse: int = 0                  # evaluations since the score last improved
    evaluated: int = -1             # the step of the last evaluation
    skipped: int = 0                # updates that --skip_nonfinite left out
    saved_step: int = -1            # the step of the last ckpt.pt; not a part of that file

    def record(self, score):
        """Counts an evaluation -> whether its checkpoint is the best one so far. A tie does not
        reset `worse`, but the later checkpoint is kept: it has trained longer."""
        self.worse = 0 if score > self.best else self.worse + 1
        is_best = score >= self.best
        self.best = max(self.best, score)
        return is_best

    def forget_best(self):
        """The loss is another one now, so earlier scores do not compare."""
        self.best = -math.inf
        self.worse = 0


@dataclass
class Run:
    """All that stays as it is while a run goes on."""
    config: Config
    file: object                    # the module of the model file
    flags: dict                     # what was typed, as values
    changed: dict                   # what differs from the defaults
    checkpoint: dict                # what the run goes on from, or {}
    device: torch.device
    dtype: torch.dtype              # of matrix products
    rank: int
    world_size: int
    rows_per_rank: int              # of one step
    micro_batch_size: int
    folder: str                     # prepared data
    meta: dict                      # its meta.json
    tokenizer: object
    model: nn.Module                # the plain one, on its device
    model_values: dict              # of its Config
    origin: str                     # where its first weights came from
    base: str                       # for an adapter: a fingerprint of the weights that it adapts
    feed: Feed
    evaluations: Evaluations
    tokens_per_row: int
    steps_per_epoch: float
    flops_per_row: float            # of training; 0 if not known
    peak_flops: float               # of the device; 0 if not known
    n_parameters: int
    columns: str                    # of the training examples
    new_heads: list                 # parts of the model that the given weights lack
    new_task: bool                  # fine-tuning on a task that the weights were not trained on
    majority_baseline: tuple        # the commonest class, and what it alone would score

    def learning_rate(self, step):
        return self.config.learning_rate * learning_rate_share(step, self.config)


# ---- what training is made of: schedule, optimizers, attention, torch.compile, DDP

def learning_rate_share(step, config):
    """The share of the peak learning rate at `step`, counted from 0. A further schedule is a branch
    here, its name in CHOICES of lib/flags.py and in the help of --lr_schedule."""
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
    elif config.lr_schedule == 'wsd':        # warm-up, stable, linear decay
        share = min(1, (end - step) / max(1, config.decay_share * end))
    else:
        raise ValueError(f'--lr_schedule={config.lr_schedule}: not computed here')
    return floor + (1 - floor) * max(0, share)


def make_optimizers(model, config):
    """-> [AdamW], [Adafactor] or [Muon, AdamW]. Matrices decay, vectors do not; a shared tensor is
    one parameter."""
    depths = freeze(model, config)           # of each parameter; 0 where the model does not tell
    top = max(depths.values())

    def groups(params, peak):
        """Parameter groups by decay and depth. Net.set_learning_rates reads `peak`, the group's
        peak learning rate, and `start`, the first step that it trains."""
        found = {}
        for p in params:
            found.setdefault((p.ndim >= 2, depths[p]), []).append(p)
        return [dict(params=members, weight_decay=config.weight_decay if is_matrix else 0.0,
                     peak=peak * config.layer_decay ** (top - depth),
                     start=(top - depth) * config.unfreeze_interval)
                for (is_matrix, depth), members in sorted(found.items(), key=lambda item: item[0])]

    params = [p for p in model.parameters() if p.requires_grad]
    lr = config.learning_rate
    if config.optimizer == 'adafactor':
        return [torch.optim.Adafactor(groups(params, lr), lr=lr)]
    matrices = set()                         # of Muon, which is not for adapters
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

    On a CPU the fused kernel is two to five times slower than plain products for rows of up to 256
    tokens, and 1.5 times slower for the chunks of a sliding window, if all layers have one. cuDNN's
    kernel, the default on Hopper, can give NaN gradients under a mask (pytorch issue 196678), so it
    is enabled only for running text without a window.
    """
    length = getattr(config, 'block_size', 1024)
    window = getattr(config, 'window', 0)
    if window and not hasattr(config, 'global_every'):           # in bert.py some layers see all
        length = min(length, window)
    # despite its name, enable_flash_sdp switches the CPU's fused kernel too
    torch.backends.cuda.enable_flash_sdp(device.type != 'cpu' or length > 256)
    torch.backends.cuda.enable_cudnn_sdp(getattr(config, 'kind', 'text') == 'text' and not window)


def compile_model(model, config, device, kind):
    """The model through torch.compile where --compile says so, else the model itself."""
    if config.compile == 'false' or config.compile == 'auto' and device.type != 'cuda':
        return model
    mode = config.compile if config.compile in CUDA_GRAPH_MODES else None
    dynamic = None if kind == 'text' else True     # examples are padded to the longest of a batch
    return torch.compile(model, mode=mode, dynamic=dynamic)


def distribute(module, device):
    """DDP: the ranks' gradients are averaged while the backward pass goes on."""
    return nn.parallel.DistributedDataParallel(
        module, device_ids=[device.index] if device.type == 'cuda' else None,
        broadcast_buffers=False, gradient_as_bucket_view=True)


# ---- the run

def setup(settings, device, rank, world_size):
    """Opens and checks everything that a run needs, before a file is touched -> Run. Raises
    ValueError or OSError for a user's mistake."""
    config = settings.config
    file = settings.file
    values = settings.values                 # of the model's Config; the data completes them below
    flags = settings.flags                   # what was typed
    checkpoint = settings.checkpoint
    values, weights, tokenizer, origin = open_weights(config, file, flags, values, checkpoint)
    folder, meta, tokenizer = open_data(config, file, flags, checkpoint, origin, tokenizer)
    if weights is not None and meta['vocab_size'] > values['vocab_size']:
        raise ValueError(f'{config.data} has {meta["vocab_size"]} token ids, the model of {origin} '
                         f'{values["vocab_size"]}: leave out --tokenizer to prepare the text with '
                         'its own')
    has_weights = weights is not None
    values, is_other = values_from_data(file, values, flags, meta, tokenizer, has_weights)
    model_config = file.Config(**values)
    dtype = pick_dtype(config.dtype, device, config.shard)
    rows_per_rank, micro_batch_size = split_batch(config, world_size)
    if flags.get('shard') and world_size == 1:       # typed now; a resumed run may have one rank
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
    # whether `weights` may lack heads: on a new task; and of a resumed adapter, whose base they are
    may_lack_heads = has_weights and ('lora' in checkpoint if checkpoint else is_other)
    base = fingerprint(weights) if config.adapter and has_weights else ''
    model = build_model(file, model_config, weights, origin, config.seed, may_lack_heads)
    if config.export_hf:
        check_export(file, model)
    new_heads = complete_model(file, model, config, weights, checkpoint, may_lack_heads)
    n_parameters = sum(p.numel() for p in model.parameters())
    if config.lora_bits:
        lora.hold(model, config.lora_bits)
    model.to(device)

    feed = Feed(file, model_config, train_set, device, tokenizer)
    feed.find_length()                       # len(train_set) and tokens_per_row need it
    feed.arrays(np.arange(micro_batch_size)) # a trial: refuses a size that no memory holds
    limit = config.eval_iters
    if meta['kind'] != 'text' and 'eval_iters' not in flags:
        limit = 0                            # all examples
    sets = {}
    for title, (val_set, val_meta) in val_sets.items():
        val_feed = Feed(file, model_config, val_set, device, tokenizer)
        sets[title] = Evaluation(val_feed, micro_batch_size, limit, val_meta, rank, world_size)
    evaluations = Evaluations(sets)
    flops_per_row = 0
    if peak_flops(device) and meta['kind'] == 'text':
        flops_per_row = training_flops(model, feed.arrays([0]))
    steps_per_epoch = len(train_set) / config.batch_size
    config = in_steps(config, steps_per_epoch)
    make_optimizers(model, config)           # a trial: refuses flags that do not fit the model
    check_sender(config.log_to)
    return Run(
        config=config, file=file, flags=flags, changed=settings.changed, checkpoint=checkpoint,
        device=device, dtype=dtype, rank=rank, world_size=world_size,
        rows_per_rank=rows_per_rank, micro_batch_size=micro_batch_size, folder=folder, meta=meta,
        tokenizer=tokenizer, model=model, model_values=values, origin=origin, base=base,
        feed=feed, evaluations=evaluations, tokens_per_row=train_set.tokens_per_row,
        steps_per_epoch=steps_per_epoch, flops_per_row=flops_per_row,
        peak_flops=peak_flops(device), n_parameters=n_parameters,
        columns=columns_of(train_set.examples), new_heads=new_heads,
        new_task=may_lack_heads and not checkpoint,
        majority_baseline=evaluations.majority_baseline(train_set.examples, meta))


def in_steps(config, steps_per_epoch):
    """The Config with --epochs and --eval_interval=0, an epoch, in optimizer steps."""
    if config.epochs:
        steps = math.ceil(config.epochs * steps_per_epoch)
        config = dataclasses.replace(config, max_iters=steps)
    if not config.eval_interval:
        config = dataclasses.replace(config, eval_interval=math.ceil(steps_per_epoch))
    return config


def train(run, net, batches, log, progress):
    """Trains until max_iters, a limit, a target or a signal -> the last validation metrics, the
    signal or 0."""
    config = run.config
    save_interval = config.save_interval or config.eval_interval
    meter = Meter(run, progress)             # losses and speed since the last line of the log
    watch = FiniteWatch(run, progress, log)
    metrics = {}
    run.model.train()
    clock = Clock(run.device, progress.train_seconds)
    # a Batch also says, for all ranks alike, whether to stop
    batch = batches.fetch(progress.step, progress.train_seconds)

    while True:
        # `step` updates were made: log, evaluate and save this state, then make one more
        step = progress.step
        stop = bool(batch.signal) or batch.time_is_up or step >= config.max_iters
        log_now = stop or step % config.log_interval == 0
        eval_now = (stop or step % config.eval_interval == 0) and not batch.signal
        eval_now = eval_now and progress.evaluated != step
        save_now = stop or step > 0 and step % save_interval == 0

        if log_now or eval_now or save_now:
            progress.train_seconds = clock.read()        # waits for the device
            watch.check()                                # raises if a loss so far was not finite
        if log_now and meter.sums is not None:
            row = meter.row(progress, lr=run.learning_rate(step - 1))
            log.training(row, config, meter.seconds_left(progress))
            usual = meter.jump(row['train_loss'])
            if usual is not None:
                log.say(f'step {step}: the loss jumped to {row["train_loss"]:.4f}, '
                        f'from a recent mean of {usual:.4f}')
            meter.reset(progress)

        if eval_now:
            metrics = run.evaluations(net)
            progress.evaluated = step
            log.validation(metrics, progress)
            if progress.record(run.evaluations.score(metrics)):
                save(run, net, progress, log, 'best.pt')
                save_predictions(run)
            if metrics['val_loss'] <= config.target_val_loss:
                log.say(f'reached --target_val_loss={config.target_val_loss:g} at step {step}: '
                        f'{metrics["val_loss"]:.4f} after {progress.train_seconds:.2f} s of '
                        'training')
                stop = True
            if 0 < config.patience <= progress.worse:
                stop = True
            log.curve(f'{run.file.__name__} {config.preset}')
        if (stop or save_now) and progress.saved_step != step:
            if save(run, net, progress, log, 'ckpt.pt'):
                progress.saved_step = step
        if stop:
            return metrics, batch.signal
        if eval_now or save_now:
            clock.start()

        # a model may train in stages, each with a loss of its own: ELECTRA's generator, then the
        # discriminator
        if net.begin_stage(step):
            progress.forget_best()
            meter.forget()

        # one optimizer step: the gradient of (sum of all losses) / (number of all targets)
        net.set_learning_rates(learning_rate_share(step, config), step)
        sums = 0                                         # (1 + stats,): the loss, then the stats
        for i, arrays in enumerate(batch.micro_batches):
            torch.manual_seed(dropout_seed(config.seed, step, run.rank, i))
            with net.sync_gradients(i == len(batch.micro_batches) - 1):
                with net.autocast():
                    loss, stats = net(*arrays, totals=batch.n_targets)
                # DDP averages over the ranks, but a loss is its rank's part of the sum: undo that
                net.backward(loss * run.world_size)
            parts = [loss.detach().float()] + [stats[name].float() for name in sorted(stats)]
            sums = sums + torch.stack(parts)
        grad_norm = net.clip_gradients(config.grad_clip)
        update = watch.check_step(sums[0], grad_norm, scaled=net.scaler.is_enabled())
        net.step(update)
        meter.add(sums, sorted(stats), grad_norm, update)
        progress.step += 1
        progress.tokens += config.batch_size * run.tokens_per_row
        # prepared while a GPU is still busy with this step
        batch = batches.fetch(progress.step, progress.train_seconds)


def finish(run, net, log, progress, metrics, signalled, began):
    """After the last step: saves the adapter, shows a sample, exports, logs the result -> the final
    metrics. Raises OSError if the last checkpoint could not be written."""
    config = run.config
    again = f'python train.py --resume --out_dir={config.out_dir}'
    if progress.saved_step < 0:
        raise OSError(f'no checkpoint could be written in {config.out_dir}: free some space')
    if progress.saved_step != progress.step:
        raise OSError(f'the last checkpoint could not be written; {config.out_dir}/ckpt.pt is of '
                      f'step {progress.saved_step}: free some space, then {again}')
    if signalled:
        log.say(f'{signal.Signals(signalled).name}: saved step {progress.step}. To go on: {again}')
        return {}
    if config.adapter:
        save_adapter(run, net, progress, log)

    best_name, best = run.evaluations.best(progress.best)
    seconds = progress.train_seconds
    result = {**metrics, best_name: best, 'steps': progress.step, 'tokens': progress.tokens,
              'train_seconds': seconds, 'total_seconds': time.time() - began,
              'tokens_per_second': progress.tokens / seconds if seconds else 0.0,
              'peak_memory_mb': peak_memory(run.device), 'parameters': run.n_parameters,
              'out_dir': config.out_dir, 'kind': run.meta['kind']}
    _, baseline = run.majority_baseline
    for name, value in baseline.items():
        result['commonest_' + name] = value
    if run.rank == 0:
        with torch.no_grad(), contextlib.suppress(OSError):
            run.model.eval()
            show = show_of(run.file)
            if run.tokenizer and show and not config.shard:
                log.say('\n' + show(run.model, run.tokenizer, run.evaluations.sample()) + '\n')
        if config.export_hf:
            export(run, log)
        # a resumed run that made no further step has logged its result before
        if not run.checkpoint or progress.step > run.checkpoint['step']:
            log.result(result, run.model, run.evaluations.goal, best_name)
    if run.world_size > 1:
        torch.distributed.barrier()
    return result


def make_net(run, log, progress):
    """The model as it trains: attention kernel, shards, torch.compile, DDP, optimizers -> Net."""
    config = run.config
    pick_attention(run.device, run.model.config)
    first = run.feed.send(run.feed.arrays(np.arange(run.micro_batch_size)))
    log.say(f'attention kernel: {attention_kernel(run, first)}')
    if config.shard:
        shard(run.model, run.device, run.world_size)
    compiled = compile_model(run.model, config, run.device, run.meta['kind'])
    net = Net(run, compiled, make_optimizers, distribute)
    is_new_stage = net.begin_stage(progress.step)
    if run.checkpoint:
        net.resume(run.checkpoint, is_new_stage)
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    if trained < run.n_parameters:
        log.say(f'{trained:,} of {run.n_parameters:,} weights are trained '
                f'({trained / run.n_parameters:.2%})')
    if compiled is not run.model or run.device.type == 'cuda':
        net.warm_up(first, run.evaluations.totals, log)
    return net


def one_run(settings, argv, device, signals, began):
    """One run, from the flags to its end -> the final metrics, the signal that ended it or 0."""
    rank, world_size = ranks()
    config = settings.config
    if config.init_from and config.export_hf and config.max_iters == 0:
        return convert(settings), 0          # needs no data
    run = setup(settings, device, rank, world_size)
    config = run.config
    checkpoint = run.checkpoint
    if checkpoint and is_finished(run) and not run.flags.keys() & {'export_hf', 'merge'}:
        return dict(steps=checkpoint['step'], tokens=checkpoint['tokens'], kind=run.meta['kind'],
                    train_seconds=checkpoint['train_seconds'], parameters=run.n_parameters,
                    out_dir=config.out_dir), 0
    if rank == 0:
        make_room(config.out_dir, checkpoint)
        if run.tokenizer and not checkpoint: # so that --tokenizer=OUT_DIR prepares further data
            text = run.tokenizer.dumps().encode()
            path = os.path.join(config.out_dir, 'tokenizer.json')
            files.write_atomic(path, lambda f: f.write(text))
    progress = Progress()
    if checkpoint:
        names = [field.name for field in dataclasses.fields(Progress) if field.name in checkpoint]
        progress = Progress(**{name: checkpoint[name] for name in names})
        progress.saved_step = progress.step
    log = Log(config.out_dir, rank == 0, progress.step if checkpoint else -1, config.log_to)
    log.start(run, argv)
    net = make_net(run, log, progress)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    signals.listen()
    metrics, signalled = train(run, net, Batches(run, signals), log, progress)
    return finish(run, net, log, progress, metrics, signalled, began), signalled


def main(argv=None):
    """Trains as the flags say -> dict of the final metrics (val_loss, val_bpb, train_seconds,
    steps, ...). Raises ValueError or OSError for a user's mistake, FloatingPointError when the loss
    is no longer finite."""
    argv = list(sys.argv[1:] if argv is None else argv)
    settings = parse(argv)
    config = settings.config
    device = pick_device(config.device)
    began = time.time()
    if not settings.checkpoint and restarted(config.out_dir):
        return main(argv + ['--resume'])     # torchrun has started us again after a failure
    with Signals() as signals, process_group(device):
        result, signalled = one_run(settings, argv, device, signals, began)
    if signalled:
        raise SystemExit(128 + signalled)
    if config.baseline:
        run_baseline(config, result, argv)
    return result


def run_baseline(config, result, argv):
    """--baseline: the same run again from new weights, its metrics beside the first one's."""
    anew = ['--baseline=false', '--resume=false', '--new_weights',
            f'--out_dir={config.out_dir}-new']
    other = main(argv + anew)
    result['baseline'] = other
    for name, value in result.items():
        if name.startswith(('best_', 'val_', 'commonest_')) and name in other and ranks()[0] == 0:
            print(f'{readable(name)}:'.ljust(36),
                  f'from {config.init_from} {value:.4f}, from new weights {other[name]:.4f}')


def parse(argv):
    """The command line -> Settings (lib/flags.py)."""
    return read_flags(argv, Config, __doc__)


def cli():
    """main() for the shell: a user's mistake is one line and a non-zero exit status."""
    run_for_shell(main)


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)     # the imports are done
    cli()
