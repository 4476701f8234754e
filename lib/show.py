"""What a model has learned, as a text that a person reads at the end of a run."""
import numpy as np
import torch
from torch.nn import functional as F


@torch.no_grad()
def show_gpt(model, tokenizer, ids, n_prompt=24, n_new=72, temperature=0.8):
    """The first tokens of ids and the model's own continuation, as text. Of instruction data, where ids are examples:
    two prompts and the likeliest responses."""
    training, device, T, lines = model.training, model.tokens.weight.device, model.config.block_size, []
    rng, answers = torch.Generator().manual_seed(0), model.config.kind == 'instruct'
    prompts = [ids[:min(n_prompt, max(1, T // 2))]]
    if answers: prompts = [e['ids'][:1 + next(t for t, y in enumerate(e['targets']) if y >= 0)] for e in ids[:2]]
    model.eval()
    for prompt in prompts:
        prompt = np.asarray(prompt[-max(1, T // 2, T - n_new):], np.int64)
        cache, next_ids, new = model.cache(1, min(T, len(prompt) + n_new)), torch.from_numpy(prompt)[None], []
        for _ in range(min(n_new, T - len(prompt))):
            p = F.softmax(model.step(next_ids.to(device), cache).float().cpu() / temperature, dim=-1)
            next_ids = p.argmax(-1, keepdim=True) if answers else torch.multinomial(p, 1, generator=rng)  # (1, 1)
            if answers and next_ids.item() == tokenizer.eot: break
            new.append(next_ids.item())
        lines.append(f'{tokenizer.decode(prompt.tolist())} >>> {tokenizer.decode(new)}')
    model.train(training)
    return '\n'.join(lines)


by_family = {  # family of a model file -> function: show(model, tokenizer, ids) -> text
    'gpt': show_gpt,
}
