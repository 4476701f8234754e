"""Optimizers that torch lacks, and what sharded tensors need."""
import torch


def orthogonalize(g, steps=5):
    "Newton-Schulz iteration towards U V^T of g = U S V^T (Jordan 2024): bf16 on CUDA; fp32 on CPUs (no bf16 units)"
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.size(-2) > x.size(-1)
    if tall: x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan 2024, kellerjordan.github.io/posts/muon). For matrices inside blocks. Those of
    one shape go through the iteration together; one with `parts` (fused q, k, v) is orthogonalised part by part."""
    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            pieces, updates = {}, []                   # shape -> [(where the update goes, the direction)]
            for p in (p for p in group['params'] if p.grad is not None):
                g, state = p.grad, self.state[p]
                if 'momentum_buffer' not in state: state['momentum_buffer'] = torch.zeros_like(g)
                m = state['momentum_buffer'].lerp_(g, 1 - group['momentum'])
                u = g.lerp(m, group['momentum'])     # Nesterov
                full = whole(u, u.device)
                out = torch.empty_like(full)
                parts = getattr(p, 'parts', None) or [len(full)]
                for o, part in zip(out.split(parts), full.split(parts)):
                    pieces.setdefault(part.shape, []).append((o, part))
                p.grad = None; updates.append((p, out))
            for shape, pairs in pieces.items():
                new = orthogonalize(torch.stack([x for _, x in pairs])) * max(1, shape[0] / shape[1]) ** 0.5
                for (o, _), x in zip(pairs, new): o.copy_(x)
            for p, u in updates:
                p.mul_(1 - group['lr'] * group['weight_decay'])
                p.sub_(like(u, p), alpha=group['lr'])


class Adam(torch.optim.AdamW):
    """Fused AdamW. rms_scale: each parameter's rate times max(1e-3, RMS(p)) (Adafactor section 8, kept by nanoT5).
    bias_correction=False: BERT's Adam; the rate and eps undo torch's correction, and the decay undoes the rate."""
    def __init__(self, groups, rms_scale=False, bias_correction=True, **kw):
        if rms_scale: groups = [dict(g, params=[p]) for g in groups for p in g['params']]
        super().__init__(groups, **kw)
        self.rms_scale, self.bias_correction = rms_scale, bias_correction

    def step(self):
        plain = [(g['lr'], g['weight_decay'], g['eps']) for g in self.param_groups]
        for g in self.param_groups:
            p = g['params'][0].detach()
            if self.rms_scale: g['lr'] = whole(p.square().mean().sqrt(), p.device).clamp(min=1e-3) * g['lr']
            if not self.bias_correction:                 # counted here: a GPU's count would have to be waited for
                t = g['t'] = 1 + (g['t'] if 't' in g else int(self.state.get(g['params'][0], {}).get('step', 0)))
                one, two = 1 - g['betas'][0] ** t, (1 - g['betas'][1] ** t) ** 0.5
                g['lr'], g['eps'] = g['lr'] * one / two, g['eps'] / two
                g['weight_decay'] = g['weight_decay'] * two / one
        try: super().step()
        finally:
            for g, (lr, decay, eps) in zip(self.param_groups, plain): g.update(lr=lr, weight_decay=decay, eps=eps)


def like(t, p):
    "a whole tensor, laid out over the ranks as parameter p is"
    if not hasattr(p, 'device_mesh'): return t
    return torch.distributed.tensor.distribute_tensor(t, p.device_mesh, p.placements)


def whole(t, device='cpu'):
    "a tensor that may be spread over the ranks, whole, on the device"
    return (t.full_tensor() if hasattr(t, 'full_tensor') else t).detach().to(device)
