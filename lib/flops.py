"""Training flops of a model, counted by torch while the model runs on the meta device, where a
tensor is a shape without numbers: no work is done and no memory is taken."""
import contextlib

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode


def flops(model, row):
    """Training flops of one row: what the model file's own Model.flops() says, if there is one, and
    otherwise `count`.

    row: the arrays of a micro-batch of one row, as batch() returns them.
    """
    if hasattr(model, 'flops'):
        return model.flops()
    return count(model, row)


@torch.no_grad()
def count(model, row):
    """Three times the flops of a forward pass in training mode: each product y = x w has two more
    in the backward pass, for the gradients of x and of w. This is the usual 6 N + 12 L T H D for
    each token, with these details:

    - Only matrix products and attention count. Look-ups, biases, norms and activations do not.
    - Causal attention counts as if every token saw the whole row. Windows that are cut into chunks
      count what is computed.
    - Frozen weights count as if they were trained, and what checkpointing computes a second time
      does not count.

    Only the forward pass runs, and not on a CPU, because there a model may work out gradients while
    it goes forward (chunked losses), with products in place (addmm_), which torch's counter does
    not see: for T5 it missed 2 %.

    Returns 0 if the model's forward pass depends on values, which the meta device does not have.
    """
    # Parameters without a gradient: torch's counter hooks into all that needs one.
    weights = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        weights[name] = tensor.detach().to('meta')
    arrays = tuple(torch.from_numpy(np.ascontiguousarray(a)).to('meta') for a in row)
    training = model.training
    model.train()
    try:
        with without_autocast(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(model, weights, arrays)
    except (RuntimeError, TypeError):
        return 0
    finally:
        model.train(training)
    return 3 * counter.get_total_flops()


@contextlib.contextmanager
def without_autocast():
    """The meta device has no autocast, and torch raises an error when a model asks whether it is
    on: here it is off."""
    def off(device_type=None):
        return False

    ask = torch.is_autocast_enabled
    torch.is_autocast_enabled = off
    try:
        yield
    finally:
        torch.is_autocast_enabled = ask
