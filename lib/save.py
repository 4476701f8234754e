"""What a run leaves in its folder: checkpoints, predictions, adapters, an export."""
import contextlib
import dataclasses
import json
import os

import lora
from data import files
from lib.checkpoint import save_checkpoint
from lib.export import export_hf


def save(run, net, progress, log, name):
    """Writes a checkpoint into out_dir. -> whether that went well; a full disk does not end the
    run."""
    config = run.config
    model = run.model
    state = dataclasses.asdict(progress)
    del state['saved_step']
    with open(run.file.__file__, encoding='utf-8') as f:
        state['source'] = f.read()
    state |= dict(config=run.model_values, train=dataclasses.asdict(config),
                  scaler=net.scaler.state_dict(), data=run.meta['sha256'],
                  model_name=run.file.__name__, base=run.base,
                  tokenizer=run.tokenizer.dumps() if run.tokenizer else '',
                  columns=run.columns)
    if config.method:
        state['method'] = dataclasses.asdict(run.file.settings)
    weights = model.state_dict()
    if hasattr(model, 'lora'):
        weights = lora.state(model)
        state['lora'] = lora.settings(model)
    path = os.path.join(config.out_dir, name)
    optimizers = net.optimizers if name == 'ckpt.pt' else []
    try:
        save_checkpoint(path, model, optimizers, weights, run.rank, **state)
    except OSError as e:
        log.say(f'could not write {path} ({e}); an earlier one is kept. Free some space: the run '
                'goes on')
        return False
    return True


def save_predictions(run):
    """Writes the predictions of the best evaluation to predictions.jsonl. A full disk does not end
    the run."""
    if run.rank == 0 and run.evaluations.predictions:
        lines = [json.dumps(prediction) + '\n' for prediction in run.evaluations.predictions]
        path = os.path.join(run.config.out_dir, 'predictions.jsonl')
        with contextlib.suppress(OSError):
            files.write_atomic(path, lambda f: f.write(''.join(lines).encode()))


def save_adapter(run, net, progress, log):
    """Writes an adapter as peft's files and, with --merge, in plain weights. An export gets it
    merged as well."""
    config = run.config
    if run.rank == 0:
        has_peft_names = lora.save(run.model, config.out_dir)
        if config.adapter == 'lora' and not has_peft_names:
            log.say('adapter_model.safetensors has our own names: transformers or peft has nothing '
                    'like this model')
    if config.merge or config.export_hf:
        lora.merge(run.model, unload=True)
    if config.merge:
        save(run, net, progress, log, 'merged.pt')


def export(run, log):
    """Writes the folder that --export_hf names."""
    config = run.config
    if config.shard:
        log.say('sharded weights are exported from the checkpoint: python train.py '
                f'--init_from={config.out_dir} --max_iters=0 --export_hf={config.export_hf}')
        return
    export_hf(run.file, run.model, run.tokenizer, config.export_hf)
    log.say(f'Hugging Face folder: {config.export_hf}')
