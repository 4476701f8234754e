"""The model as a run trains it: compiled, spread over ranks, with its optimizers. What train.py
need not see is here: FSDP2, the scaler of fp16, CUDA graphs, the fallback when torch.compile fails,
stages that train other parameters."""
import contextlib
import math
import time

import torch
import torch.distributed as dist
import torch.nn as nn

from data.files import first_line
from lib.checkpoint import restore
from lib.device import attention_backend, out_of_memory
from lib.optim import whole


CUDA_GRAPH_MODES = ('reduce-overhead', 'max-autotune')      # of torch.compile


def shard(model, device, world_size):
    """FSDP2: spreads weights, gradients and optimizer states over the ranks, block by block."""
    from torch.distributed.fsdp import fully_shard
    mesh = dist.init_device_mesh(device.type, (world_size,))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


class Net:
    """The model while it trains. net(*arrays, totals=...) is the forward pass with gradients.

    model           the plain module
    compiled        the same through torch.compile, or the plain module: evaluation runs it
    train_module    that in DDP, where there are several ranks and no shards: training runs it
    """

    def __init__(self, run, compiled, make_optimizers, distribute):
        """run: train.Run. make_optimizers(model, config) -> optimizers and distribute(module,
        device) -> DDP are handed in, so that train.py shows them."""
        self.model = run.model
        self.config = run.config
        self.device = run.device
        self.dtype = run.dtype
        self.world_size = run.world_size
        self.compiled = compiled
        self.make_optimizers = make_optimizers
        self.distribute = distribute
        self.optimizers = []
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.graphs = self.config.compile in CUDA_GRAPH_MODES
        # the modules that fully_shard has wrapped
        self.sharded = [module for module in self.model.modules() if hasattr(module, 'unshard')]

    # ---- what trains

    def begin_stage(self, step):
        """Tells the model the number of the step -> whether another stage begins, in which other
        parameters train. Then, and at the start, optimizers and DDP are made anew."""
        is_new = hasattr(self.model, 'before_step') and self.model.before_step(step)
        if is_new or not self.optimizers:
            # first the optimizers, which freeze what does not train: DDP must see that
            self.optimizers = self.make_optimizers(self.model, self.config)
            self.train_module = self.compiled
            if self.world_size > 1 and not self.config.shard:
                self.train_module = self.distribute(self.compiled, self.device)
        return is_new

    def resume(self, saved, is_new_stage):
        """Goes on with the optimizer states of a checkpoint. A new stage begins with fresh ones."""
        if saved['scaler']:
            self.scaler.load_state_dict(saved['scaler'])
        if not is_new_stage:
            restore(self.optimizers, self.model, saved['optimizer'], self.config.out_dir)

    def warm_up(self, batch, totals, log):
        """Compiles, or loads the kernels, before the clock runs. It changes no state."""
        log.live('compiling ...')
        start = time.time()
        # CUDA graphs: the first call warms up, the second records, the third replays
        calls = 3 if self.graphs else 1
        try:
            for _ in range(calls):
                with self.autocast():
                    loss, _ = self(*batch, totals=totals)
                    (loss * 0).backward()
            self.model.eval()
            for _ in range(calls):
                with torch.no_grad(), self.autocast():
                    self.evaluate(batch, totals)
            self.model.train()
        except Exception as e:
            is_compiled = self.compiled is not self.model
            may_fall_back = self.config.compile == 'auto' and is_compiled and self.world_size == 1
            if not may_fall_back or out_of_memory(e):
                raise
            log.say(f'torch.compile failed, going on without it (slower): {type(e).__name__}: '
                    f'{first_line(e)[:150]}')
            self.compiled = self.model
            self.train_module = self.model
        for parameter in self.model.parameters():
            parameter.grad = None
        log.say(f'compile and warm-up: {time.time() - start:.1f} s')

    # ---- forward

    def autocast(self):
        """Matrix products in --dtype; weights stay in fp32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def __call__(self, *arrays, totals):
        """-> loss, stats, with gradients."""
        if self.graphs:
            self.own_gradients()
            # what the last call returned is no longer needed
            torch.compiler.cudagraph_mark_step_begin()
        return self.train_module(*arrays, totals=totals)

    def evaluate(self, arrays, totals, full_size=True):
        """-> loss, stats. full_size: the arrays have the shapes that the compiled model knows."""
        if not full_size:
            return self.model(*arrays, totals=totals)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(*arrays, totals=totals)

    @contextlib.contextmanager
    def whole_weights(self):
        """Sharded weights in one piece on every rank, for code that calls methods of the model
        other than forward()."""
        for module in self.sharded:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        yield
        for module in self.sharded:
            module.reshard()
            # as fully_shard sets it: all but the root give up their whole weights
            module.set_reshard_after_forward(module is not self.model, recurse=False)

    # ---- backward and step

    def own_gradients(self):
        """CUDA graphs reuse the memory of what they return, so gradients are added to tensors of
        our own."""
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def sync_gradients(self, is_last):
        """The context of one micro-batch: the ranks exchange gradients in the last one alone."""
        if self.config.shard:
            self.model.set_requires_gradient_sync(is_last)
        if is_last or self.train_module is self.compiled:
            return contextlib.nullcontext()
        return self.train_module.no_sync()

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def clip_gradients(self, limit):
        """Clips the norm of all gradients to `limit`, or not at all if it is 0 -> the norm before,
        on the device."""
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit or math.inf)
        return whole(norm, self.device)

    def set_learning_rates(self, share, step):
        """Sets every group's learning rate to `share` of its peak; groups that are still frozen
        have 0."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = group['peak'] * share * (step >= group['start'])

    def step(self, update=True):
        """Updates the weights, unless update=False, and clears the gradients."""
        if update:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=not self.graphs)


def attention_kernel(run, arrays):
    """The name of the kernel that attention runs on. With gradients, because some kernels refuse
    them."""
    def forward():
        run.model(*[array[:1] for array in arrays])

    if run.dtype == torch.float32:
        return attention_backend(forward)
    with torch.autocast(run.device.type, run.dtype):
        return attention_backend(forward)
