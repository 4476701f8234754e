"""ELECTRA's two stages (3.3), electra.py's --generator_steps: the generator trains alone, then the
discriminator starts from its weights."""
import torch


@torch.no_grad()
def before_step(model, step):
    """The trainer calls this in front of every optimizer step, and once before it builds the
    optimizers. Steps below generator_steps train the generator alone; at that step the
    discriminator takes over its weights, and trains while the generator stays. True at that one
    step: other parameters train from now on. It looks at nothing but the number of the step and may
    be called again, so a run resumes exactly."""
    first = model.config.generator_steps
    stage = 1 if step < first else 2
    if stage != model.stage:
        for name, p in model.named_parameters():
            of_generator = name.startswith('generator.')
            p.requires_grad_(of_generator == (stage == 1))
            if not p.requires_grad:
                p.grad = None
    model.stage = stage
    if step == first:
        for part in ('embeddings', 'encoder'):
            own = getattr(model, part)
            given = getattr(model.generator, part)
            for p, q in zip(own.parameters(), given.parameters()):
                p.copy_(q)
    return step == first
