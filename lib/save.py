"""What a run leaves in its folder: checkpoints, predictions, adapters, an export."""
import contextlib
import dataclasses
import json
import os

import lora
from data import files
from lib.checkpoint import save_checkpoint
from lib.export import export_hf


def save(setup, net, progress, log, name):
    """Writes a checkpoint into out_dir. -> whether that went well; a full disk does not end the
    run."""
    config = setup.config
    model = setup.model
    state = {name: value for name, value in dataclasses.asdict(progress).items() if name != 'saved'}
    with open(setup.file.__file__, encoding='utf-8') as f:
        state['source'] = f.read()
    state |= dict(config=setup.model_values, train=dataclasses.asdict(config),
                  scaler=net.scaler.state_dict(), data=setup.meta['sha256'],
                  model_name=setup.file.__name__, base=setup.base,
                  tokenizer=setup.tokenizer.dumps() if setup.tokenizer else '',
                  columns=setup.columns)
    if config.method:
        state['method'] = dataclasses.asdict(setup.file.settings)
    weights = model.state_dict()
    if hasattr(model, 'lora'):
        weights = lora.state(model)
        state['lora'] = lora.settings(model)
    path = os.path.join(config.out_dir, name)
    optimizers = net.optimizers if name == 'ckpt.pt' else []
    try:
        save_checkpoint(path, model, optimizers, weights, setup.rank, **state)
    except OSError as e:
        log.say(f'could not write {path} ({e}); an earlier one is kept. Free some space: the run '
                'goes on')
        return False
    return True


def save_predictions(setup):
    """Writes the predictions of the best evaluation to predictions.jsonl. A full disk does not end
    the run."""
    if setup.rank == 0 and setup.evaluate.predictions:
        lines = [json.dumps(prediction) + '\n' for prediction in setup.evaluate.predictions]
        path = os.path.join(setup.config.out_dir, 'predictions.jsonl')
        with contextlib.suppress(OSError):
            files.write_atomic(path, lambda f: f.write(''.join(lines).encode()))


def save_adapter(setup, net, progress, log):
    """Writes an adapter as peft's files and, with --merge, in plain weights. An export gets it
    merged as well."""
    config = setup.config
    if setup.rank == 0:
        has_peft_names = lora.save(setup.model, config.out_dir)
        if config.adapter == 'lora' and not has_peft_names:
            log.say('adapter_model.safetensors has our own names: transformers or peft has nothing '
                    'like this model')
    if config.merge or config.export_hf:
        lora.merge(setup.model, unload=True)
    if config.merge:
        save(setup, net, progress, log, 'merged.pt')


def export(setup, log):
    """Writes the folder that --export_hf names."""
    config = setup.config
    if config.shard:
        log.say('sharded weights are exported from the checkpoint: '
                f'python train.py --init_from={config.out_dir} --max_iters=0 '
                f'--export_hf={config.export_hf}')
        return
    export_hf(setup.file, setup.model, setup.tokenizer, config.export_hf)
    log.say(f'Hugging Face folder: {config.export_hf}')
