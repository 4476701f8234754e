"""Optimizers that torch lacks: Muon, and AdamW with T5's and BERT's variants. And tensors that are
spread over ranks."""
import torch
import torch.nn as nn


def whole(tensor, device='cpu'):
    """A tensor that may be spread over the ranks, in one piece, on `device`."""
    if hasattr(tensor, 'full_tensor'):
        tensor = tensor.full_tensor()
    return tensor.detach().to(device)


def layout_like(tensor, parameter):
    """A whole tensor, spread over the ranks as `parameter` is."""
    if not hasattr(parameter, 'device_mesh'):
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def orthogonalize(g, steps=5):
    """Newton-Schulz iteration towards U V^T of g = U S V^T (Jordan 2024,
    kellerjordan.github.io/posts/muon).

    g: (..., M, N) -> the same shape. It runs in bf16 on CUDA and in fp32 on a CPU.
    """
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    if tall:
        x = x.mT
    return x.to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal (Jordan 2024), for the matrices inside blocks.

    Matrices of one shape go through the iteration together. A matrix with `parts` (q, k and v in
    one) is made orthogonal part by part.
    """

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            # shape -> [(where the update goes, the direction)]
            pieces = {}
            updates = []                             # (parameter, its update)
            for p in group['params']:
                if p.grad is None:
                    continue
                direction = self.direction(p, group['momentum'])
                update = torch.empty_like(direction)
                parts = getattr(p, 'parts', None) or [len(direction)]
                for out, part in zip(update.split(parts), direction.split(parts)):
                    pieces.setdefault(part.shape, []).append((out, part))
                p.grad = None
                updates.append((p, update))
            for shape, pairs in pieces.items():
                directions = torch.stack([part for _, part in pairs])
                scale = max(1, shape[0] / shape[1]) ** 0.5
                for (out, _), new in zip(pairs, orthogonalize(directions) * scale):
                    out.copy_(new)
            for p, update in updates:
                p.mul_(1 - group['lr'] * group['weight_decay'])
                p.sub_(layout_like(update, p), alpha=group['lr'])

    def direction(self, p, momentum):
        """Nesterov's momentum of a parameter's gradient, as a whole tensor."""
        state = self.state[p]
        if 'momentum_buffer' not in state:
            state['momentum_buffer'] = torch.zeros_like(p.grad)
        average = state['momentum_buffer'].lerp_(p.grad, 1 - momentum)
        nesterov = p.grad.lerp(average, momentum)
        return whole(nesterov, nesterov.device)


class Adam(torch.optim.AdamW):
    """Fused AdamW with two variants.

    rms_scale: each parameter's learning rate is multiplied by max(1e-3, RMS(parameter)), as in
    Adafactor (Shazeer and Stern 2018, section 8) and nanoT5. bias_correction=False: BERT's Adam.
    torch always corrects the bias; so the learning rate and eps undo the correction, and the decay
    undoes the change of the learning rate.
    """

    def __init__(self, groups, rms_scale=False, bias_correction=True, **options):
        if rms_scale:
            groups = [dict(group, params=[p]) for group in groups for p in group['params']]
        super().__init__(groups, **options)
        self.rms_scale = rms_scale
        self.bias_correction = bias_correction

    def step(self):
        plain = [(group['lr'], group['weight_decay'], group['eps']) for group in self.param_groups]
        for group in self.param_groups:
            if self.rms_scale:
                p = group['params'][0].detach()
                rms = whole(p.square().mean().sqrt(), p.device)
                group['lr'] = rms.clamp(min=1e-3) * group['lr']
            if not self.bias_correction:
                self.undo_correction(group)
        try:
            super().step()
        finally:
            for group, (lr, decay, eps) in zip(self.param_groups, plain):
                group.update(lr=lr, weight_decay=decay, eps=eps)

    def undo_correction(self, group):
        """Changes a group's numbers so that torch's step is one without bias correction."""
        # counted here: to read a GPU's count, the host would wait
        if 't' not in group:
            group['t'] = int(self.state.get(group['params'][0], {}).get('step', 0))
        group['t'] += 1
        first = 1 - group['betas'][0] ** group['t']
        second = (1 - group['betas'][1] ** group['t']) ** 0.5
        group['lr'] = group['lr'] * first / second
        group['eps'] = group['eps'] / second
        group['weight_decay'] = group['weight_decay'] * second / first


def freeze(model, config):
    """Freezes what --freeze says -> the depth of each parameter, {parameter: number}, 0 where the
    model does not tell. Raises ValueError if a flag needs depths that the model has not."""
    depth_of = getattr(model, 'depth_of', lambda name: 0)
    depths = {p: depth_of(name) for name, p in model.named_parameters()}
    top = max(depths.values())
    if (config.freeze or config.unfreeze_interval or config.layer_decay != 1) and not top:
        raise ValueError('--freeze, --unfreeze_interval and --layer_decay need a Model that has '
                         'depth_of(name), as those of bert.py and electra.py: leave them out')
    if config.freeze and not 0 < config.freeze < top:
        raise ValueError(f'--freeze={config.freeze}: the model has {top - 1} layers; expected 1 to '
                         f'{top - 1}')
    for p, depth in depths.items():
        p.requires_grad_(p.requires_grad and not 0 < config.freeze >= depth)
    return depths


def matrices_in_blocks(model):
    """The matrices that Muon trains. A layer with `parts` (q, k and v in one) tells them to its
    weight; that is done here because sharding makes new parameters."""
    for module in model.modules():
        if hasattr(module, 'parts'):
            module.weight.parts = list(module.parts.values())
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return {p for blocks in lists for p in blocks.parameters() if p.ndim == 2}
